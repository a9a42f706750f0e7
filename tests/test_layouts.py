"""Every public call takes every layout in memory, and gives what it gives for contiguous tensors, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch

from diffusion import METHODS, Pipeline, Size, as_dataset, named_method, solve
from diffusion.data import fit
from lbm_warp import (
    AdvectionDiffusion,
    CurlNoise,
    GivenVelocity,
    Medium,
    Operator,
    OpticalTurbulence,
    RandomTurbulence,
    Schedule,
    TextbookSolver,
    TravellingWaves,
    WaveAdvectionDiffusion,
    energy_spectrum,
    solenoidal,
)
from lbm_warp.heat import blur, from_modes, to_modes
from lbm_warp.random import normal
from lbm_warp.textbook import evolve
from tests.test_operator import Shrink

Call = Callable[[torch.Tensor], torch.Tensor]
SCHEDULE = Schedule.geometric(0.5, 3.0, 4)
LEVEL, SEED = torch.tensor([1, 4, 3]), torch.arange(3)


def layouts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensor [N, C, H, W] in other layouts, and one that repeats a row of memory."""
    yield tensor.contiguous(memory_format=torch.channels_last)
    yield tensor.transpose(2, 3).contiguous().transpose(2, 3)
    yield tensor.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    larger = tensor.new_zeros([2 * tensor.shape[0], tensor.shape[1] + 1, tensor.shape[2] + 3, 2 * tensor.shape[3]])
    larger[::2, 1:, 2:-1, ::2] = tensor
    yield larger[::2, 1:, 2:-1, ::2]
    yield tensor[:1, :1].expand(tensor.shape)


def check(call: Call, tensor: torch.Tensor) -> None:
    expected = call(tensor)
    for given in layouts(tensor):
        before = given.clone()
        assert torch.equal(call(given), expected if torch.equal(given, tensor) else call(given.contiguous()))
        assert torch.equal(given, before)


OPERATORS: dict[str, Operator] = {
    "heat": AdvectionDiffusion(SCHEDULE, peclet=0.0),
    "flow": AdvectionDiffusion(SCHEDULE, peclet=4.0),
    "moving": AdvectionDiffusion(SCHEDULE, peclet=4.0, boundary="periodic", turbulence_time=0.02),
    "waves": WaveAdvectionDiffusion(SCHEDULE, peclet=0.5, wave_speed=0.1, offset=9.5),
    "textbook": TextbookSolver(SCHEDULE, peclet=2.0),
    "own": Shrink(),
}


def gradient(operator: Operator, u: torch.Tensor) -> torch.Tensor:
    u = u.detach().requires_grad_()
    return torch.autograd.grad(operator(u, LEVEL, SEED).square().sum(), u)[0]


def calls(operator: Operator) -> Iterator[Call]:
    yield lambda u: operator(u, LEVEL, SEED)
    yield lambda u: torch.stack(operator.pair(u, LEVEL, SEED))
    yield lambda u: torch.stack(operator.at(u, (LEVEL - 1, LEVEL), SEED))
    yield lambda u: torch.stack([image for _, image in operator.trajectory(u, SEED)])
    if operator.linear:
        yield lambda u: operator.adjoint(u, LEVEL, SEED)
    if not isinstance(operator, TextbookSolver):
        yield lambda u: gradient(operator, u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, dtype: torch.dtype) -> None:
    u0 = torch.rand((3, 2, 8, 12), generator=torch.Generator().manual_seed(0)).to(dtype)
    for call in calls(OPERATORS[name]):
        check(call, u0)


@pytest.mark.parametrize("name", OPERATORS)
def test_the_default_device_of_torch_does_not_matter(name: str) -> None:
    u0 = torch.rand((3, 2, 6, 10), generator=torch.Generator().manual_seed(0))
    for call in (*calls(OPERATORS[name]), RandomTurbulence().draw(3, 6, 10, seed=SEED).masks):
        expected = call(u0)
        with torch.device("meta"):
            assert torch.equal(call(u0), expected)


def test_the_default_dtype_of_torch_does_not_matter() -> None:
    u0 = torch.rand((3, 2, 6, 10), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    air, waves = OpticalTurbulence(d_over_r0=3.0, levels=4), TravellingWaves()
    of_seeds: list[Call] = [lambda seed: normal(seed, (3, 5)), lambda seed: waves.velocity(seed, 6, 10)]
    of_seeds += [partial(operator, u0, LEVEL) for operator in (*OPERATORS.values(), air)]
    for call in of_seeds:
        expected = call(SEED)
        call(SEED + 3)  # out of the caches
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(call(SEED), expected)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["reversed", "big-endian", "Fortran"])
def test_arrays_of_numpy_in_every_layout(kind: str) -> None:
    alpha = np.random.default_rng(0).random((8, 12))
    given = {"reversed": alpha[::-1], "big-endian": alpha.astype(">f8"), "Fortran": np.asfortranarray(alpha)}[kind]
    medium = Medium(alpha=given)  # type: ignore[arg-type]
    assert np.array_equal(medium.alpha[0, 0].numpy(), np.ascontiguousarray(given))  # type: ignore[index]


def test_velocities_augmentation_and_modes() -> None:
    u0, velocity = torch.rand((3, 2, 8, 12), generator=torch.Generator().manual_seed(0)), CurlNoise().velocity(SEED, 8, 12)
    flow = RandomTurbulence().draw(3, 8, 12, seed=SEED)

    def augmented(images: torch.Tensor) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return RandomTurbulence()(images)

    of_images: list[Call] = [
        *(augmented, flow.images, flow.masks, to_modes, from_modes),
        lambda u: flow.images((255 * u).byte()),
        lambda u: blur(u, torch.tensor([0.0, 1.0, 2.0]), True),
        lambda u: evolve(u, velocity, 2),
    ]
    of_velocities: list[Call] = [
        *(solenoidal, lambda v: energy_spectrum(v)[1], lambda v: evolve(u0, v, 2)),
        lambda v: AdvectionDiffusion(SCHEDULE, peclet=2.0, turbulence=GivenVelocity(v, project=True))(u0, LEVEL, SEED),
    ]
    for call in of_images:
        check(call, u0)
    for call in of_velocities:
        check(call, velocity)


@pytest.mark.parametrize("name", METHODS)
def test_processes(name: str) -> None:
    u0 = torch.rand((3, 1, 8, 12), generator=torch.Generator().manual_seed(0))
    method = named_method(name).changed(levels=6)
    forward, denoiser = method.forward, method.denoiser
    if denoiser.needs_statistics:
        forward = forward.measured(denoiser.measure(as_dataset(u0.repeat(4, 1, 1, 1)), forward, torch.device("cpu")))
    check(lambda u: forward.corrupt(u, LEVEL, SEED), u0)
    check(lambda u: torch.stack(forward.pair(u, LEVEL, SEED)), u0)
    check(lambda u: torch.stack(forward.means(u, (1, 3), SEED)), u0)
    check(lambda u: torch.stack([image for _, image in forward.trajectory(u, SEED)]), u0)
    check(lambda u: denoiser.example(forward, u, LEVEL, SEED)[0], u0)
    check(lambda u: denoiser.inputs(forward, u, LEVEL), u0)
    if denoiser.gives_clean(forward):
        check(lambda u: denoiser.clean(forward, 0.1 * u, u, LEVEL, SEED), u0)


def test_pipelines_and_data() -> None:
    pipeline, u0 = Pipeline.from_pretrained("digits"), torch.rand((2, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    check(lambda u: pipeline.corrupt(u[0], 3), u0)
    check(lambda u: pipeline.restore(u[0], 40, steps=2), u0)
    check(lambda u: pipeline.posterior(u, 40, SEED[:2], SEED[:2], steps=2), u0)
    check(lambda u: solve(pipeline, u[0], lambda x: x, noise=0.1, steps=2), u0)
    check(lambda u: torch.from_numpy(as_dataset(u)[1]), u0)
    check(lambda u: torch.from_numpy(fit(u[0].numpy(), Size.of(8))), u0)
