"""Operators of one's own: what the base class makes of one method, and what the check finds in right and in wrong ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from diffusion.rng import seeds
from lbm_warp import (
    AdvectionDiffusion,
    CurlNoise,
    GivenVelocity,
    InputError,
    Medium,
    Operator,
    RandomTurbulence,
    Schedule,
    SpectralTurbulence,
    StrokeFlow,
    TextbookSolver,
    WaveAdvectionDiffusion,
    check_operator,
    energy_spectrum,
    solenoidal,
)
from lbm_warp.checks import Integers, as_batch, check_integer, check_number
from lbm_warp.random import normal

SCHEDULE = Schedule.geometric(0.5, 6.0, 8)


def share(operator: Operator, level: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Level over K, in the shape that multiplies images."""
    return (level / operator.levels)[:, None, None, None].to(like)


@dataclass(frozen=True)
class Fade(Operator):
    levels: int = 10
    linear = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 * (1.0 - share(self, level, u0))


@dataclass(frozen=True)
class Masking(Operator):
    """Pixels are lost in an order that the seed draws; it accepts no level 0."""

    levels: int = 10
    linear = random = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        assert int(level.min()) > 0 and level.dtype == seed.dtype == torch.int64 and level.shape == seed.shape == (len(u0),)
        order = [torch.rand(u0.shape[2:], generator=torch.Generator().manual_seed(int(one))) for one in seed]
        return u0 * (torch.stack(order)[:, None].to(u0) >= share(self, level, u0))


@dataclass(frozen=True)
class Shrink(Operator):
    """Half the size at the first half of the levels, a quarter at the others."""

    levels: int = 4
    linear = True
    keeps_size = False

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        assert len(level.unique()) == 1
        return functional.avg_pool2d(u0, 2 if 2 * int(level[0]) <= self.levels else 4)


class Gamma(Operator, nn.Module):
    """Not linear, learnable, and not a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = 3
        self.power = nn.Parameter(torch.tensor(2.0))

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 ** (1.0 + share(self, level, u0) * self.power)


def images(count: int = 4, size: tuple[int, int] = (8, 12), dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand((count, 2, *size), generator=torch.Generator().manual_seed(0), dtype=dtype)


LAYERS = {"alpha": images(1, (16, 24))[0, 0], "source": images(1, (16, 24))[0, 1]}
RIGHT = {
    "fade": Fade(),
    "masking": Masking(),
    "shrink": Shrink(),
    "gamma": Gamma(),
    "one level": Fade(levels=1),
    "heat kernel": AdvectionDiffusion(SCHEDULE, peclet=0.0),
    "curl noise": AdvectionDiffusion(SCHEDULE, peclet=4.0),
    "periodic, moving": AdvectionDiffusion(SCHEDULE, peclet=4.0, boundary="periodic", turbulence_time=1.0),
    "compressible": AdvectionDiffusion(SCHEDULE, peclet=1.0, turbulence=SpectralTurbulence(compressible=True)),
    "with a background": AdvectionDiffusion(SCHEDULE, peclet=1.0, turbulence=SpectralTurbulence(compressible=True), offset=9.5),
    "given": AdvectionDiffusion(SCHEDULE, peclet=2.0, turbulence=GivenVelocity(CurlNoise().velocity(0, 16, 24))),
    "painted": AdvectionDiffusion(SCHEDULE, peclet=2.0, turbulence=StrokeFlow((((0.1, 0.5), (0.9, 0.5)),))),
    "around walls": AdvectionDiffusion(SCHEDULE, peclet=2.0, medium=Medium(walls=images(1, (16, 24))[0, 0] < 0.02)),
    "in layers, with a source": AdvectionDiffusion(SCHEDULE, peclet=2.0, medium=Medium(**LAYERS)),
    "waves": WaveAdvectionDiffusion(SCHEDULE, peclet=0.5, wave_speed=9.0),
    "waves with a background": WaveAdvectionDiffusion(SCHEDULE, peclet=0.5, wave_speed=9.0, offset=9.5),
    "textbook": TextbookSolver(SCHEDULE, peclet=2.0),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right_operators_pass(name: str, device: torch.device) -> None:
    operator = RIGHT[name]
    operator = operator.to(device) if isinstance(operator, nn.Module) else operator
    report = check_operator(operator, (16, 24), channels=2, device=device)
    report.raise_if_wrong()
    assert report.wrong == () and (report.seeds > 0.0) == operator.random and (report.adjoint is not None) == operator.linear
    assert str(report).startswith(type(operator).__name__) and "WRONG" not in str(report)


class Wrong(Fade):
    """Every mistake is a method of a subclass."""

    levels = 10


CALLS = count()


class Drifting(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return super().apply(u0, level, seed) + 0.003 * next(CALLS)


class Seeded(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return super().apply(u0, level, seed) * (1.0 + 0.01 * (seed % 7)[:, None, None, None].to(u0))


class Constant(Wrong):
    random = True


class Affine(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return super().apply(u0, level, seed) + 0.3


class Transposed(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return torch.roll(u0, 1, dims=3)

    def adjoint(self, w: torch.Tensor, level: object, seed: object) -> torch.Tensor:
        return torch.roll(w, 1, dims=3)


class Mixing(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return super().apply(u0, level, seed) + 0.1 * u0.mean(dim=0, keepdim=True)


class InPlace(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0.mul_(1.0 - share(self, level, u0))


class Clean(Wrong):
    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(0.9 * u0 for _ in levels)


class Forgetful(Wrong):
    """The second of two levels starts from the first."""

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        images: list[torch.Tensor] = []
        for level in levels:
            images += super().at(images[-1] if images else u0, (level,), seed)
        return tuple(images)


class NotFinite(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 / (level < self.levels)[:, None, None, None].to(u0) - u0


class Spreading(Wrong):
    diagonal = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return super().apply(u0, level, seed) + 0.01 * torch.roll(u0, 1, dims=3)


class Factors(Wrong):
    diagonal = invertible = True

    def transfer(self, level: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        assert level.dtype == torch.int64 and size.shorter == min(size) == 16  # type: ignore[attr-defined]
        return (0.9 - level.double() / self.levels)[:, None, None, None].expand(-1, 1, *size)

    def invert(self, y: torch.Tensor, level: Integers) -> torch.Tensor:
        return 2.0 * y


class Static(Wrong):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return 0.5 * u0


class Unchanged(Wrong):
    unchanged = True


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Drifting, r"two calls with one seed differ by: 0\.00\d+ \(must be 0\)"),
        (Seeded, r"not random; two seeds differ by: 0\.0\d+ \(must be 0\)"),
        (Constant, r"random; two seeds differ by: 0 \(must not be 0\)"),
        (Affine, r"relative error of A\(a u \+ b w\) = a A\(u\) \+ b A\(w\): 0\.\d+ \(at most 0\.0001\)"),
        (Transposed, r"relative error of <A u, w> = <u, adjoint\(w\)>: 0\.\d+ \(at most 0\.0001\)"),
        (Mixing, r"an image alone and in a batch differ by: 0\.\d+ \(at most 1e-05\)"),
        (InPlace, r"the clean images are changed by: 1 \(must be 0\)"),
        (Clean, r"level 0 differs from the clean image by: 0\.1 \(must be 0\)"),
        (Forgetful, r"a level alone and after another one differ by: 0\.\d+ \(at most 1e-05\)"),
        (NotFinite, r"differ by: nan"),
        (Spreading, r"part of a cosine mode that goes into others: 0\.0\d+ \(at most 0\.0001\)"),
        (Factors, r"error of the factors of transfer\(level, size\): 0\.\d+ \(at most 0\.0001\)"),
        (Factors, r"error of invert\(A\(u\)\) = u: 0\.\d+ \(at most 0\.001\)"),
        (Static, r"levels 1 and K differ by: 0 \(must not be 0\)"),
        (Unchanged, r"levels differ from the clean image by: 1 \(must be 0\)"),
    ],
)
def test_wrong_operators_are_found_and_by_how_much(kind: type[Operator], message: str) -> None:
    report = check_operator(kind(), 16, channels=1)
    with pytest.raises(InputError, match=f"^{kind.__name__} is not the operator it says it is: .*{message}") as error:
        report.raise_if_wrong()
    assert "\n" not in str(error.value)
    assert any("WRONG" in line for line in str(report).splitlines())


def test_images_are_never_changed_silently() -> None:
    """By single levels, several sizes, with gradients, in inference mode and in the adjoint."""
    u0, line = images(), "^InPlace.apply changes its images in place; clone them first$"
    for call in (
        lambda: InPlace()(u0.clone(), 3, 0),
        lambda: InPlace()(u0, [0, 1, 2, 3], 0),
        lambda: InPlace()(u0.clone().requires_grad_(), 3, 0),
        lambda: InPlace().adjoint(u0, 3, 0),
        torch.inference_mode()(lambda: InPlace()(u0.clone(), 3, 0)),
    ):
        with pytest.raises(InputError, match=line):
            call()
    assert torch.equal(u0, images())
    with torch.inference_mode():
        assert torch.equal(Fade()(u0.clone(), 3, 0), Fade()(u0, 3, 0))
    wrong = check_operator(InPlace(), 16).wrong
    assert len(wrong) == 1 and wrong[0].startswith("the clean images are changed by")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: check_operator(Fade, 16), r"^operator must be a lbm_warp\.Operator, got a class; pass an object: Fade\(\)$"),
        (lambda: check_operator(Fade(0), 16), "^levels must be at least 1, got 0$"),
        (lambda: check_operator(Fade(2.5), 16), r"^levels must be an integer, got 2\.5$"),
        (lambda: check_operator(Operator(), 16), "^levels must be an integer, got None$"),
        (lambda: check_operator(Fade(), 16, seed=2**63), r"^seed must be an integer from 0 to 2\^63 - 1, or one for each"),
        (lambda: Fade()(images(), 1, [2**63] * 4), r"^seed must be an integer from 0 to 2\^63 - 1"),
        (lambda: Fade()(images(), 1, "3"), r"^seed must be an integer from 0 to 2\^63 - 1"),
        (lambda: AdvectionDiffusion(SCHEDULE, turbulence=CurlNoise), r"^turbulence must be .*: CurlNoise\(\)$"),
        (lambda: TextbookSolver(SCHEDULE, turbulence=CurlNoise), r"^turbulence must be .*: CurlNoise\(\)$"),
        (lambda: RandomTurbulence(turbulence="curl"), r"^turbulence must be a lbm_warp\.Turbulence, got str$"),
        (lambda: AdvectionDiffusion(SCHEDULE, boundary=None), "^boundary must be one of wall, periodic, got None$"),
        (lambda: AdvectionDiffusion([0.0, 1.0]), r"^schedule must be a lbm_warp\.Schedule, got list$"),
        (lambda: TextbookSolver([0.0, 1.0]), "^schedule must be"),
        (lambda: WaveAdvectionDiffusion([0.0, 1.0], peclet=1.0, wave_speed=1.0), "^schedule must be"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_numbers_of_numpy_are_numbers() -> None:
    check_number("peclet", np.float32(2.0), 0.0)
    check_integer("levels", np.int64(2), 1)
    assert as_batch("seed", np.int64(2**63 - 1), 2).tolist() == [2**63 - 1] * 2
    numpy = AdvectionDiffusion(Schedule.geometric(0.5, 6.0, np.int64(8)), peclet=np.float32(4.0))
    assert torch.equal(numpy(images(), 3, 1), AdvectionDiffusion(SCHEDULE, peclet=4.0)(images(), 3, 1))
    for check, value in (
        (check_integer, True),
        (check_integer, np.True_),
        (check_number, np.True_),
        (check_number, np.float32("nan")),
    ):
        with pytest.raises(InputError, match="x must be"):
            check("x", value, 0)


SEEDS = (np.int64(5), np.uint64(5), np.array(5), torch.tensor(5), torch.tensor(5, dtype=torch.uint8))
MANY = ([np.int64(5), np.uint64(6)], (5, 6), np.array([5, 6], np.uint64), torch.tensor([5, 6]), [torch.tensor(5), torch.tensor(6)])


def test_integers_of_every_kind_are_seeds() -> None:
    u0, flow = images(2), AdvectionDiffusion(SCHEDULE, peclet=2.0)
    for many, given in ((False, SEEDS), (True, MANY)):
        expected = [5, 6] if many else 5
        for seed in given:
            assert torch.equal(flow(u0, 3, seed), flow(u0, 3, expected))
            assert torch.equal(CurlNoise().velocity(seed, 8, 8), CurlNoise().velocity(expected, 8, 8))
            assert torch.equal(seeds(seed, "test"), seeds(expected, "test"))
    assert check_operator(Fade(), np.int64(16), seed=np.uint64(3)).wrong == ()


@pytest.mark.parametrize("seed", [2**63, np.uint64(2**63), 2**64, True, np.True_, [True, False], 1.0, np.float64(1.0), "3", None])
def test_other_seeds_are_refused_in_one_line(seed: object) -> None:
    for call in (
        lambda: Fade()(images(2), 1, seed),
        lambda: list(Fade().trajectory(images(2), seed)),
        lambda: CurlNoise().velocity(seed, 8, 8),
        lambda: normal(seed, (2, 3)),
        lambda: seeds(seed, "test"),
    ):
        with pytest.raises(InputError, match=r"^seed must be (integer, got|an integer from 0 to 2\^63 - 1)"):
            call()
    for number in ([], [[1, 2]], torch.zeros(2, dtype=torch.int64, device="meta")):
        with pytest.raises(InputError, match=r"^seed must be"):
            CurlNoise().velocity(number, 8, 8)


U0 = torch.rand((2, 2, 8, 12), generator=torch.Generator().manual_seed(0))
NO_IMAGES = {
    "none": (U0[:0], r"shape \[N, C, H, W\] with H, W >= 2, got \[0, 2, 8, 12\]: it is empty"),
    "no channels": (U0[:, :0], "it is empty"),
    "meta": (U0.to("meta"), "dense tensor on a CPU or a CUDA device, got torch.strided on meta"),
    "sparse": (U0.to_sparse(), "got torch.sparse_coo on cpu"),
    "uint8": ((255 * U0).byte(), "floating-point, got torch.uint8: expected float16"),
    "float8": (U0.to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
    "complex": (U0.to(torch.complex64), "floating-point, got torch.complex64"),
    "numpy": (U0.numpy(), "a torch tensor .*, got ndarray"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
@pytest.mark.parametrize("operator", ["fade", "heat kernel", "curl noise", "waves", "textbook"])
def test_tensors_that_are_no_images_are_refused_in_one_line(operator: str, name: str) -> None:
    given, message = NO_IMAGES[name]
    for call in (RIGHT[operator], lambda u, level, seed: list(RIGHT[operator].trajectory(u, seed)), RIGHT[operator].pair):
        with pytest.raises(InputError, match=f"^images must .*{message}") as refused:
            call(given, 1, 0)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("call", [GivenVelocity, solenoidal, energy_spectrum, RandomTurbulence()])
@pytest.mark.parametrize("name", ["none", "meta", "complex", "numpy"])
def test_tensors_that_are_no_velocities_are_refused_in_one_line(call: Callable[[object], object], name: str) -> None:
    with pytest.raises(InputError):
        call(NO_IMAGES[name][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(2, 3), (3, 2), (3, 300)])
def test_small_and_narrow_images_of_every_dtype(size: tuple[int, int], dtype: torch.dtype) -> None:
    u0 = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(0)).to(dtype)
    small = Schedule.geometric(0.5, 2.0, 4)
    waves = WaveAdvectionDiffusion(small, peclet=0.5, wave_speed=9.0, offset=9.5)
    for operator in (AdvectionDiffusion(small, peclet=0.5), AdvectionDiffusion(small, peclet=0.0), waves):
        u = operator(u0.clone().requires_grad_(), 4, 1)
        assert u.dtype == dtype and bool(u.isfinite().all()) and u.requires_grad
        assert operator(u0[..., :2, :2], 4, 1).isfinite().all()


@pytest.mark.parametrize("device", ["mps", "meta", "tpu", "cuda:99"])
def test_devices_where_kernels_do_not_work_are_refused_in_one_line(device: str) -> None:
    for call in (
        lambda: CurlNoise().velocity(0, 8, 8, device=device),
        lambda: normal(0, (1, 2), device),
        lambda: check_operator(Fade(), 8, device=device),
    ):
        with pytest.raises(InputError, match=r"^device (must be cpu, cuda or cuda:N, got|cuda:99: torch sees)"):
            call()


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda u: u[:, :1], r"float32 \[4, 1, 8, 12\] on cpu"),
        (lambda u: u[..., ::2], r"float32 \[4, 2, 8, 6\]"),
        (lambda u: u.flatten(2), r"float32 \[4, 2, 96\]"),
        (lambda u: (255 * u).byte(), r"uint8 \[4, 2, 8, 12\]"),
        (lambda u: u.numpy(), "ndarray"),
        (lambda u: u.to("meta"), "on meta"),
    ],
)
def test_a_result_that_is_no_image_is_refused_with_the_name_of_the_class(result, got: str) -> None:
    class Bad(Operator):
        levels = 3

        def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
            return result(u0)

    with pytest.raises(InputError, match=rf"Bad\.apply must give a floating-point tensor \[4, 2, 8, 12\] on cpu, got .*{got}"):
        Bad()(images(), 1, 0)
    with pytest.raises(InputError, match="Nothing needs a method apply"):
        type("Nothing", (Operator,), {"levels": 3})()(images(), 1, 0)


def test_sizes_may_change_but_not_the_number_of_images_and_channels() -> None:
    class Bad(Shrink):
        def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
            return u0[:, :1]

    with pytest.raises(InputError, match=r"Bad\.apply must give .* \[4, 2, 'h', 'w'\]"):
        Bad()(images(), 1, 0)


def test_levels_of_several_sizes_in_one_batch(device: torch.device) -> None:
    """Smaller images are enlarged by repeating pixels, and level 0 is the image itself."""
    u0 = images().to(device)
    half, quarter = (functional.avg_pool2d(u0, n).repeat_interleave(n, 2).repeat_interleave(n, 3) for n in (2, 4))
    u = Shrink()(u0, [0, 2, 3, 1], 0)
    assert torch.equal(u, torch.stack([u0[0], half[1], quarter[2], half[3]]))
    for level, whole in zip(range(5), (u0, half, half, quarter, quarter), strict=True):
        assert torch.equal(Shrink()(u0, level, 0), whole)
    # Nearest pixels where no whole number of them fits: 8 / 3 and 12 / 3.
    third = type("Third", (Shrink,), {"apply": lambda self, u, level, seed: functional.avg_pool2d(u, 3)})()
    assert third(u0, 1, 0).shape == u0.shape and Shrink()(u0.half(), 3, 0).dtype == torch.float16


@pytest.mark.parametrize("operator", [Fade(), Masking(), Shrink(), Gamma()], ids=lambda operator: type(operator).__name__)
def test_one_method_makes_calls_pairs_and_trajectories(operator: Operator) -> None:
    u0, level, seed = images(), torch.tensor([1, 3, 2, 1]), torch.tensor([5, 6, 7, 2**40])
    before, after = operator.pair(u0, level, seed)
    levels = dict(operator.trajectory(u0, seed))
    assert list(levels) == list(range(operator.levels + 1))
    assert torch.equal(levels[0], u0) and levels[0] is not u0 and not levels[1].requires_grad
    for n, k in enumerate(level.tolist()):
        assert torch.equal(after[n], levels[k][n]) and torch.equal(before[n], levels[k - 1][n])
        assert torch.equal(operator(u0[n : n + 1], k, int(seed[n]))[0], after[n])
    mixed = operator(u0, [0, 1, 0, 2], seed)
    assert torch.equal(mixed[0], u0[0]) and torch.equal(mixed[3], levels[2][3])
    assert operator(u0, 0, 0) is not u0 and operator(u0.double(), 2, seed).dtype == torch.float64
    np.testing.assert_array_equal(operator.iterations(8, 12), np.zeros(operator.levels + 1))
    assert operator.solver == type(operator).__name__ and operator.peclet == 0.0 and not operator.moving and not operator.diagonal


@pytest.mark.parametrize("operator", [Masking(), AdvectionDiffusion(SCHEDULE)], ids=["own", "lattice"])
def test_every_call_refuses_bad_arguments_and_takes_every_layout(operator: Operator) -> None:
    u0, levels = images(), operator.levels
    calls = [operator, operator.adjoint, operator.pair, lambda u, _, seed: next(iter(operator.trajectory(u, seed)))[1]]
    for call in calls:
        with pytest.raises(InputError, match="torch tensor"):
            call(u0.numpy(), 1, 0)
        with pytest.raises(InputError, match="seed must be one integer or one for each of the 4 images"):
            call(u0, 1, [1, 2])
    for call, least in ((operator, 0), (operator.adjoint, 0), (operator.pair, 1)):
        for level in (levels + 1, least - 1):
            with pytest.raises(InputError, match=f"level must be from {least} to {levels}, got {level}"):
                call(u0, level, 0)
    for other in (u0.to(memory_format=torch.channels_last), u0.transpose(2, 3).contiguous().transpose(2, 3)):
        for call in (*calls[:2], lambda u, level, seed: operator.pair(u, level, seed)[1]):
            assert torch.equal(call(other, 2, 1), call(u0, 2, 1))
        for (_, u), (_, expected) in zip(operator.trajectory(other, 1), operator.trajectory(u0, 1), strict=True):
            assert torch.equal(u, expected)


def test_the_adjoint_by_automatic_differentiation(device: torch.device) -> None:
    """It is the transpose, in the dtype of w, differentiable in w and as often as torch can; also in inference mode."""
    level, seed = torch.tensor([0, 1, 4, 2]), torch.arange(4)
    u, w = images(dtype=torch.float64).to(device), images(dtype=torch.float64).flip(0).to(device)
    waves = WaveAdvectionDiffusion(SCHEDULE, peclet=0.5, wave_speed=9.0)
    for operator in (Fade(), Masking(), Shrink(), waves):
        torch.testing.assert_close(
            (operator(u, level, seed) * w).sum(), (u * operator.adjoint(w, level, seed)).sum(), rtol=1e-9, atol=0
        )
        again = w.clone().requires_grad_()
        transposed = operator.adjoint(again, level, seed)
        (gradient,) = torch.autograd.grad((transposed * u).sum(), again)
        torch.testing.assert_close(gradient, operator(u, level, seed))
        with torch.inference_mode():
            assert torch.equal(operator.adjoint(w + 0.0, level, seed), transposed)
        assert not operator.adjoint(w, level, seed).requires_grad and operator.adjoint(w.half(), level, seed).dtype == torch.float16


def test_what_has_no_adjoint_says_so() -> None:
    class Numpy(Fade):
        def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(u0.detach().numpy() * 0.5)

    class Raw(Numpy):
        def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(u0.numpy() * 0.5)

    with pytest.raises(InputError, match="only a linear operator has an adjoint, and Gamma is not; if it is, it must say: linear"):
        Gamma().adjoint(images(), 1, 0)
    for call in (lambda: Numpy().adjoint(images(), 1, 0), lambda: check_operator(Numpy(), 8), lambda: check_operator(Raw(), 8)):
        with pytest.raises(InputError, match=r"(Numpy|Raw) has no gradient, because apply leaves torch: write its method adjoint"):
            call()
    background = WaveAdvectionDiffusion(SCHEDULE, peclet=0.5, wave_speed=9.0, offset=9.5)
    with pytest.raises(InputError, match="WaveAdvectionDiffusion is not"):
        background.adjoint(images(), 1, 0)


def test_learnable_numbers_of_an_operator_have_their_gradient() -> None:
    gamma, u0 = Gamma(), images()
    gamma(u0, [0, 1, 2, 3], 0).sum().backward()
    expected = sum((u * u.log() * u ** (2 * k / 3) * k / 3).sum() for k, u in enumerate(u0))
    torch.testing.assert_close(gamma.power.grad, expected)


@pytest.mark.parametrize(
    "operator", [AdvectionDiffusion(SCHEDULE, peclet=4.0), WaveAdvectionDiffusion(SCHEDULE, peclet=0.5, wave_speed=3.0)]
)
def test_levels_in_any_order_and_number_at_once(operator: Operator) -> None:
    """In one pass where that is possible, and always the right ones."""
    u0, seed = images(), torch.arange(4)
    for levels in (
        [[1, 2, 3, 4], [5, 5, 5, 5]],
        [[2, 1, 0, 8], [1, 2, 0, 3]],
        [[0, 1, 3, 2], [0, 4, 8, 7], [2, 5, 8, 8]],
        [[8, 0, 1, 2]],
    ):
        each = [torch.tensor(level) for level in levels]
        for u, level in zip(operator.at(u0, each, seed), each, strict=True):
            torch.testing.assert_close(u, operator(u0, level, seed), rtol=0, atol=1e-6)


def test_what_operators_say_of_themselves() -> None:
    heat, flow, background = (RIGHT[name] for name in ("heat kernel", "curl noise", "with a background"))
    assert heat.linear and heat.diagonal and not heat.random and heat.solver == "heat kernel" and heat.levels == 8
    assert flow.linear and flow.random and not flow.diagonal and not flow.moving and flow.solver == "lattice"
    assert background.random and not background.linear and RIGHT["periodic, moving"].moving
    assert not AdvectionDiffusion(SCHEDULE, peclet=0.0, boundary="periodic").diagonal
    assert AdvectionDiffusion(SCHEDULE, peclet=0.0, offset=3.0).linear and not RIGHT["given"].random
    assert RIGHT["waves"].linear and RIGHT["waves"].moving and not RIGHT["waves with a background"].linear


@pytest.mark.slow
def test_the_solver_needs_numpy_torch_and_warp_only() -> None:
    """In a process in which every other installed package is missing, but for what these three require themselves."""
    code = """
import importlib.metadata as metadata, re, sys
needed, left = set(), ["numpy", "torch", "warp-lang"]
while left:
    needed.add(name := left.pop().lower().replace("_", "-"))
    try:
        requires = [line for line in metadata.requires(name) or () if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        continue  # of another platform
    left += {re.match("[A-Za-z0-9._-]+", line)[0] for line in requires} - needed
others = {
    module for module, packages in metadata.packages_distributions().items()
    if not needed & {package.lower().replace("_", "-") for package in packages}
} - {"lbm_warp"}
assert {"PIL", "matplotlib", "tqdm", "tyro", "accelerate"} <= others and not {"numpy", "torch", "warp"} & others
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in others:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
import torch, lbm_warp
u0 = torch.rand((1, 1, 16, 16))
for operator in (lbm_warp.AdvectionDiffusion(lbm_warp.Schedule.geometric(0.5, 3.0, 3)), lbm_warp.AdvectionDiffusion(
    lbm_warp.Schedule.geometric(0.5, 3.0, 3), peclet=0.0)):
    lbm_warp.check_operator(operator, 16).raise_if_wrong()
assert lbm_warp.RandomTurbulence()(u0).shape == u0.shape
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(8, 8), (4, 16)])
def test_a_blur_that_leaves_nothing_but_the_mean_is_the_widest(size: tuple[int, int]) -> None:
    """Two longer sides: the iterations grow with the square of the width, and more of them change nothing."""
    u0, most = torch.rand((1, 1, *size)), 2.0 * max(size)
    last = AdvectionDiffusion(Schedule([0.0, most]), peclet=1e-3)(u0, 1, 0)
    torch.testing.assert_close(last, u0.mean().expand_as(u0), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=f"sigma_max must be at most 2 longer sides = {most:g} px"):
        AdvectionDiffusion(Schedule([0.0, 1.01 * most]), peclet=1e-3)(u0, 1, 0)
