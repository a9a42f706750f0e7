"""Parts of one's own that are wrong: refused in one line, where they meet, and nothing silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import (
    ODE,
    CleanImage,
    Density,
    FlowAndBlur,
    GivenNetwork,
    Identity,
    LinearPath,
    LogSNR,
    Measurement,
    Method,
    Noise,
    Operator,
    Pipeline,
    Prior,
    Resample,
    Reverse,
    RunConfig,
    Sampler,
    Scales,
    Sine,
    Size,
    Uniform,
    evaluate,
    named_method,
    solve,
    train,
)
from lbm_warp import check_operator
from lbm_warp.checks import InputError

SIZE = Size.of(8)


class Half(nn.Module):
    """A network with buffers of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.register_buffer("index", torch.arange(8))
        self.register_buffer("phase", torch.tensor([1j, 2.0]))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return -0.5 * self.weight * u[..., self.get_buffer("index")]


def pipeline(method: Method, network: nn.Module | None = None) -> Pipeline:
    config = RunConfig("mine", "none", 1, SIZE, method, GivenNetwork.of(network or Half()))
    return Pipeline(config, network or Half(), Prior(torch.full((1, 1, 8, 8), 0.5)))


METHOD = Method(Identity(20), LogSNR(), CleanImage(), Uniform(), Resample(steps=5))


def test_buffers_of_a_network_keep_their_dtypes(tmp_path: Path) -> None:
    pipeline(METHOD).save_pretrained(tmp_path)
    loaded = Pipeline.from_pretrained(tmp_path, network=Half())
    assert loaded.network.get_buffer("index").dtype == torch.int64
    assert torch.equal(loaded.network.get_buffer("phase"), torch.tensor([1j, 2.0]))
    assert torch.equal(loaded.sample(2, seed=1), pipeline(METHOD).sample(2, seed=1))


@dataclass(frozen=True)
class Weights(Density):
    values: tuple[float, ...]

    def weights(self, forward: Any) -> np.ndarray:
        return np.array(self.values)


@dataclass(frozen=True)
class Fading(Scales):
    def signal_at(self, t: np.ndarray) -> np.ndarray:
        return 1.0 - t

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return 0.5 * t


@dataclass(frozen=True)
class Flat(CleanImage):
    def target(self, forward: Any, u0: torch.Tensor, u: torch.Tensor, level: Any, seed: torch.Tensor) -> torch.Tensor:
        return (u0 - u)[:, 0]


@dataclass(frozen=True)
class Holds(Operator):
    levels: int = 5
    what: object = None

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0


@dataclass(frozen=True)
class Twin(Operator):
    levels: int = 5


@dataclass(frozen=True)
class Diagonal(Holds):
    """It says that it is, and gives no factors."""

    diagonal = True


@dataclass(frozen=True)
class Alone(Sampler):
    """It gives the first image of a batch, or nothing."""

    first: bool = True

    def step(self, reverse: Any, u: torch.Tensor, level: int, below: int, noise: Any) -> torch.Tensor:
        return u[:1] if self.first else None  # type: ignore[return-value]


OTHER = type("Twin", (Scales,), {"__module__": __name__})
IMAGE = torch.full((1, 8, 8), 0.5)


def config(method: Method = METHOD, **more: Any) -> RunConfig:
    return RunConfig("mine", "none", 1, SIZE, method, **more)


def twins() -> RunConfig:
    return config(replace(METHOD, operator=Twin(), scales=OTHER(), sampler=Resample(eta=0.0)))


def measured(function: Any, **more: Any) -> Callable[[], object]:
    return lambda: solve(pipeline(METHOD), IMAGE, function, noise=0.1, **more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: replace(METHOD, density=Weights((np.nan,) * 20)), "Weights.weights must give a finite number"),
        (lambda: replace(METHOD, density=Weights((1.0,) * 21)), "for each of 20 levels"),
        (lambda: replace(METHOD, density=Weights((0.0,) * 20)), "not only zeros"),
        (
            lambda: replace(METHOD, scales=Fading(), denoiser=Noise()),
            "target noise needs some signal at every level; that of level 2",
        ),
        (lambda: replace(METHOD, scales=Fading(), sampler=Resample(spacing="edm")), "spacing edm needs some signal"),
        (lambda: replace(METHOD, sampler=Resample(start="mean")), r"start must be a diffusion\.Start"),  # type: ignore[arg-type]
        (lambda: Flat().loss(METHOD.forward, IMAGE[None], IMAGE, torch.tensor([1]), torch.tensor([1])), "shape of the prediction"),
        (lambda: config(replace(METHOD, operator=Holds(what=torch.ones(2)))), r"Holds\.what holds a Tensor"),
        (lambda: config(replace(METHOD, operator=Holds(what=lambda x: x))), r"Holds\.what holds a function"),
        (twins, "two classes are called Twin"),
        (lambda: check_operator(Diagonal(), 8), r"Diagonal is diagonal and needs a method transfer\(level, size\), factors of the"),
        (lambda: Size.of(np.int64(1)), "size must be one number of pixels"),
        (lambda: pipeline(METHOD).to("mps"), "device must be cpu, cuda or cuda:N, got mps: kernels do not work there"),
        (lambda: pipeline(METHOD).sample(1, seed=np.uint64(2**63)), "seed must be from 0 to 9223372036854775807, got 92233"),
        (measured(lambda x: x, seed=True), "seed must be integer, got bool"),
        (lambda: METHOD.forward.corrupt(IMAGE[None].to("meta"), 3, torch.tensor([0])), "got torch.strided on meta"),
        (lambda: config(classes="cat"), "classes must be a tuple of names"),
        (lambda: config(classes=("a", "a")), "classes must have different names"),
        (lambda: pipeline(METHOD).corrupt(255.0 * IMAGE, 3), "floating-point numbers from 0 to 1, got torch.float32 from 127.5"),
        (lambda: pipeline(METHOD).corrupt((255 * IMAGE).byte(), 3), "got torch.uint8"),
        (lambda: pipeline(METHOD).restore(torch.nan * IMAGE, 3), "from nan"),
        (lambda: pipeline(METHOD).interpolate([(0, 1, 2)]), "pairs must be pairs of image numbers"),  # type: ignore[list-item]
        (
            lambda: pipeline(METHOD).sample(3, sampler=Alone()),
            r"Alone.step must give all .*, got \[1, 1, 8, 8\]",
        ),
        (lambda: pipeline(METHOD).sample(3, sampler=Alone(first=False)), "Alone.step must give all images, .* got NoneType"),
        (lambda: config(network=Half), r"network must be a diffusion\.NetworkSpec, got a class; pass an object: Half\(\)"),
        (lambda: evaluate("digits", config=3), r"config must be a diffusion\.EvaluationConfig, got int"),  # type: ignore[arg-type]
        (lambda: Pipeline.from_pretrained("digits", types=["os"]), "types must be classes"),  # type: ignore[list-item]
        (measured(lambda x: 0.5 * x + 0.3), "is not linear: a black image must give 0"),
        (measured(lambda x: x.clamp(0.0, 0.5)), "is not linear"),
        (measured(lambda x: x * torch.rand_like(x)), "differs from call to call"),
        (measured(torch.fft.fft2), "view_as_real makes complex values real"),
        (measured(Measurement(lambda x: x, lambda y: 4.0 * y)), "the adjoint is not H's"),
        (measured(lambda x: x[..., ::2]), r"has shape \[1, 8, 4\], got \[1, 8, 8\]"),
        (measured(Identity(5)), "needs a linear operator and its level"),
        (lambda: solve(pipeline(METHOD), torch.nan * IMAGE, lambda x: x, noise=0.1), "finite floating-point numbers"),
        (lambda: solve(pipeline(named_method("cold").changed(levels=5)), IMAGE, lambda x: x, noise=0.1), "needs noise above 0"),
    ],
)
def test_it_is_refused_in_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_numpy_numbers_in_the_fields_of_a_run_are_kept_as_numbers() -> None:
    assert config(METHOD.changed(noise=np.float64(0.25))).to_json()["method"]["scales"]["noise"] == 0.25


def test_a_model_saved_over_another_leaves_nothing_of_it(tmp_path: Path) -> None:
    digits = Pipeline.from_pretrained("digits")
    digits.save_pretrained(tmp_path)
    assert (tmp_path / "statistics.safetensors").is_file() and "fluid" in (tmp_path / "README.md").read_text()
    pipeline(METHOD).save_pretrained(tmp_path)
    assert not (tmp_path / "statistics.safetensors").exists() and not (tmp_path / "metrics.json").exists()
    assert "mine" in (tmp_path / "README.md").read_text()


def test_a_training_does_not_overwrite_a_saved_model(tmp_path: Path) -> None:
    mine = pipeline(METHOD)
    mine.save_pretrained(tmp_path)
    before = (tmp_path / "ema.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds a model, and no checkpoints to go on from"):
        train(mine.config, [np.full((1, 8, 8), 0.25 * i, np.float32) for i in range(4)], tmp_path, "cpu")
    assert (tmp_path / "ema.safetensors").read_bytes() == before


@pytest.mark.parametrize("blur", [None, FlowAndBlur(levels=20), FlowAndBlur(levels=20, blur=Sine(0.16))])
def test_an_ode_with_the_perfect_network_ends_in_the_picture(blur: FlowAndBlur | None) -> None:
    """Also with a blur that begins with a jump: the last step gives the clean image."""
    method = Method(blur or Identity(20), LinearPath(), CleanImage(), Uniform(), ODE(steps=10))
    truth, seed = torch.rand((2, 1, 8, 8), generator=torch.Generator().manual_seed(0)), torch.arange(2)
    reverse = Reverse(method.forward, method.denoiser, lambda u, level: truth - u, seed)
    u = method.sampler(reverse, method.forward.mean(truth, 20, seed), method.forward.seeded_noise(seed, truth))
    torch.testing.assert_close(u, truth, rtol=0, atol=1e-6)
