"""Parts of one's own, written from Python alone: each is trained, resumed, loaded, sampled and scored like the library's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, smooth_l1_loss

import diffusion
from diffusion import (
    ODE,
    Blur,
    CleanImage,
    ConstantNoise,
    Denoiser,
    Density,
    FlowAndBlur,
    FlowMatching,
    ForwardProcess,
    Geometric,
    Identity,
    LearningRate,
    LinearPath,
    LogitNormal,
    LogSNR,
    Method,
    NetworkShape,
    NetworkSpec,
    Observer,
    Operator,
    Pipeline,
    Remainder,
    Resample,
    Residual,
    Reverse,
    RunConfig,
    Sampler,
    Scales,
    Size,
    Step,
    TrainingConfig,
    Uniform,
    evaluate,
    named_method,
    train,
)
from diffusion.evaluation import EvaluationConfig
from diffusion.evaluation.likelihood import likelihood
from diffusion.files import load_tensors
from diffusion.forward.process import UnitNoise
from diffusion.rng import seeds
from diffusion.specs import to_json
from lbm_warp import FieldRequest, Turbulence, check_operator
from lbm_warp.checks import InputError
from tests.runs import SIZE, stripes, tiny_config

ROOT = Path(__file__).parent.parent
PICTURES = stripes(40)


@dataclass(frozen=True)
class Masking(Operator):
    """Pixels go black one after another, in an order that the seed draws."""

    levels: int = 20
    linear = True
    random = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        orders = [torch.rand(u0.shape[2:], generator=torch.Generator().manual_seed(number)) for number in seed.tolist()]
        kept = torch.stack(orders) * self.levels >= level[:, None, None]
        return u0 * kept[:, None].to(u0)


@dataclass(frozen=True)
class Darkening(Operator):
    """Not linear: every pixel to a power."""

    levels: int = 12
    power: float = 4.0

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0.clamp_min(0.0) ** (1.0 + self.power * level / self.levels)[:, None, None, None].to(u0)


class Shrinking(Operator):
    """Fewer pixels: a half of the side, then a quarter. It has no numbers, so it is a plain class."""

    levels = 6
    linear = True
    keeps_size = False

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return avg_pool2d(u0, 2 if int(level[0]) <= 3 else 4)


@dataclass(frozen=True)
class Shifting(Operator):
    """The image goes round, to where the seed says."""

    levels: int = 8
    linear = True
    random = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        steps = (level * (1 + seed % 5)).tolist()
        return torch.stack([image.roll(step, dims=2) for image, step in zip(u0, steps, strict=True)])


@dataclass(frozen=True)
class Fading(Operator):
    """The image loses its brightness."""

    levels: int = 12
    linear = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 * (1.0 - 0.9 * level / self.levels)[:, None, None, None].to(u0)


@dataclass(frozen=True)
class Ramp(Scales):
    """Noise that grows with a power of the level, while the contrast falls a little."""

    power: float = 2.0

    def noise_at(self, t: np.ndarray) -> np.ndarray:
        return 0.5 * t**self.power

    def signal_at(self, t: np.ndarray) -> np.ndarray:
        return 1.0 - 0.9 * t


@dataclass(frozen=True)
class Linear(Blur):
    """Blur width in proportion to the level."""

    def widths(self, t: np.ndarray, shorter: int) -> np.ndarray:
        return self.sigma_max * shorter * t


@dataclass(frozen=True)
class Late(Density):
    """Most of the training near level K."""

    power: float = 2.0

    def weights(self, forward: ForwardProcess) -> np.ndarray:
        return np.arange(1, forward.levels + 1) ** self.power


@dataclass(frozen=True)
class Brightness(Denoiser):
    """The network predicts the clean image itself; an error is squared where it is small."""

    def target(self, forward: ForwardProcess, u0: torch.Tensor, u: torch.Tensor, level: Any, seed: torch.Tensor) -> torch.Tensor:
        return u0

    def clean(
        self, forward: ForwardProcess, prediction: torch.Tensor, u: torch.Tensor, level: Any, seed: torch.Tensor
    ) -> torch.Tensor:
        return prediction

    def loss(
        self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, level: torch.Tensor, seed: torch.Tensor
    ) -> torch.Tensor:
        return smooth_l1_loss(prediction, target, reduction="none").flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Naive(Sampler):
    """Cold diffusion's algorithm 1: the predicted clean image, corrupted to the level below."""

    def step(self, reverse: Reverse, u: torch.Tensor, level: int, below: int, noise: UnitNoise) -> torch.Tensor:
        return reverse.mean(reverse.clean(u, level).clamp(0.0, 1.0), below)


@dataclass(frozen=True)
class Cells(Turbulence):
    """Rows of eddies, the same for all seeds: the curl of sin(m pi x) sin(m pi y), of unit rms."""

    count: int = 2
    compressible = False
    random = False

    def field(self, ask: FieldRequest) -> torch.Tensor:
        y, x = (self.count * math.pi * (torch.arange(side) + 0.5) / side for side in (ask.height, ask.width))
        vx, vy = torch.sin(x) * torch.cos(y)[:, None], -torch.cos(x) * torch.sin(y)[:, None]
        return 2.0 * torch.stack([vx, vy])[None]


@dataclass(frozen=True)
class CosineDecay(LearningRate):
    peak: float = 2e-3

    def at(self, first: int, last: int, images: int) -> float:
        return 0.5 * self.peak * (1.0 + math.cos(math.pi * first / images))


class Small(nn.Module):
    """A network of one's own, called as network(u, level)."""

    def __init__(self, inputs: int = 1, outputs: int = 1, width: int = 8, levels: int = 6) -> None:
        super().__init__()
        self.levels = levels
        self.layers = nn.Sequential(nn.Conv2d(inputs + 1, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        place = (level / self.levels)[:, None, None, None].expand(-1, 1, *u.shape[2:])
        return self.layers(torch.cat([u, place], dim=1))


@dataclass(frozen=True)
class SmallSpec(NetworkSpec):
    width: int = 8

    def build(self, shape: NetworkShape) -> nn.Module:
        return Small(shape.inputs, shape.outputs, self.width, shape.levels)


COLD = ConstantNoise(0.02), CleanImage(), Uniform(), Resample(eta=0.0)
METHODS: dict[str, tuple[Method, list[type]]] = {
    "masking": (Method(Masking(), *COLD), [Masking]),
    "not linear": (Method(Darkening(), *COLD), [Darkening]),
    "another size": (Method(Shrinking(), *COLD), [Shrinking]),
    "drawn by the seed": (Method(Shifting(), ConstantNoise(0.02), Step(), Uniform(), Residual()), [Shifting]),
    "a Wiener filter of masked pictures": (Method(Masking(), LogSNR(), Remainder(), Uniform(), Resample(steps=6)), [Masking]),
    "an ODE": (Method(Fading(), LinearPath(), FlowMatching(), LogitNormal(), ODE(steps=6)), [Fading]),
    "scales": (Method(Identity(12), Ramp(), CleanImage(), Uniform(), Resample()), [Ramp]),
    "blur": (Method(FlowAndBlur(peclet=1.0, blur=Linear(), levels=6), *COLD), [Linear]),
    "density": (Method(FlowAndBlur(levels=6), ConstantNoise(), Step(), Late(), Residual()), [Late]),
    "denoiser": (Method(Identity(12), LogSNR(), Brightness(), Uniform(), Resample()), [Brightness]),
    "sampler": (Method(FlowAndBlur(levels=6), ConstantNoise(0.0), CleanImage(), Uniform(), Naive()), [Naive]),
    "turbulence": (Method(FlowAndBlur(peclet=8.0, turbulence=Cells(), levels=6), *COLD), [Cells]),
    "all": (Method(Masking(), Ramp(), Brightness(), Late(), Naive()), [Masking, Ramp, Brightness, Late, Naive]),
}
DENSITIES = {"drawn by the seed", "a Wiener filter of masked pictures", "an ODE", "scales", "density", "denoiser"}


class StopAt(Observer):
    """Stop after so many images."""

    def __init__(self, images: int) -> None:
        self.images, self.seen = images, 0

    def stepped(self, images: int) -> None:
        self.seen = images

    def should_stop(self) -> bool:
        return self.seen >= self.images


def trained(config: RunConfig, folder: Path) -> Path:
    """A run that was interrupted and resumed, whose weights are those of one that was not."""
    assert train(config, PICTURES, folder / "whole", "cpu")
    assert not train(config, PICTURES, folder / "run", "cpu", observers=[StopAt(24)])
    assert train(config, PICTURES, folder / "run", "cpu")
    for name in ("model.safetensors", "ema.safetensors"):
        whole, resumed = (load_tensors(folder / run / name) for run in ("whole", "run"))
        assert all(torch.equal(whole[key], resumed[key]) for key in whole) and whole.keys() == resumed.keys()
    return folder / "run"


def refused_without_types(folder: Path, types: Sequence[type]) -> None:
    """It is one line that names the class."""
    with pytest.raises(InputError, match=rf"names the class {types[0].__name__}, .*types=\[{types[0].__name__}\]") as error:
        Pipeline.from_pretrained(folder, types=types[1:])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_of_ones_own_parts_is_trained_resumed_loaded_sampled_and_scored(name: str, tmp_path: Path) -> None:
    method, types = METHODS[name]
    folder = trained(tiny_config(method), tmp_path)
    refused_without_types(folder, types)
    pipeline = Pipeline.from_pretrained(folder, types=types)
    assert to_json(pipeline.method) == to_json(method)
    visited: list[int] = []
    images = pipeline.sample(3, seed=1, callback=lambda level, u: visited.append(level))
    assert images.shape == (3, 1, SIZE, SIZE) and images.isfinite().all() and visited[0] == method.levels and visited[-1] == 0
    torch.testing.assert_close(pipeline.sample([2], seed=1), images[2:], rtol=0, atol=1e-5)
    assert pipeline.restore(torch.from_numpy(PICTURES[0]), method.levels // 2, images=2).isfinite().all()
    assert pipeline.interpolate([(0, 1)], points=3).isfinite().all()
    pipeline.save_pretrained(tmp_path / "shared")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "shared", types=types).sample(3, seed=1), images)

    def read(index: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([PICTURES[i] for i in index]) * 255).round() / 255

    numbers = np.arange(8)
    if name in DENSITIES:
        found = likelihood(pipeline, read, numbers, numbers)
        assert math.isfinite(found.bits_per_dimension) and found.start + sum(found.by_tenth) + found.end > 0.0
    else:
        with pytest.raises(InputError, match="own has no likelihood"):
            likelihood(pipeline, read, numbers, numbers)


def test_on_the_way_down_pictures_are_masked_and_not_blurred(tmp_path: Path) -> None:
    """In pixels that a level masks there is its noise alone, and as many are masked as the level says."""
    method, types = METHODS["masking"]
    assert train(tiny_config(method), PICTURES, tmp_path, "cpu")
    pipeline = Pipeline.from_pretrained(tmp_path, types=types)
    levels: dict[int, torch.Tensor] = {}
    pipeline.sample(6, seed=1, callback=levels.__setitem__)
    flow = seeds(seeds(1, "sample", np.arange(6)), "flow")
    for level, u in levels.items():
        kept = method.operator(torch.ones_like(u), level, flow).bool()
        assert kept.double().mean() == pytest.approx(1.0 - level / 20, abs=5 * 0.5 / kept.numel() ** 0.5)
        if level in (5, 10, 15):
            assert u[~kept].std() == pytest.approx(0.02, rel=0.25) and u[~kept].abs().max() < 0.12 and u[kept].mean() > 0.1
    assert torch.equal(levels[20], torch.zeros_like(levels[20]))  # the start, told of before its noise


@pytest.mark.parametrize(
    "operator", [Masking(), Darkening(), Shrinking(), Shifting(), Fading()], ids=lambda operator: type(operator).__name__
)
def test_the_operators_are_what_they_say(operator: Operator) -> None:
    check_operator(operator, (8, 12)).raise_if_wrong()


def test_the_derivative_of_an_operator_of_ones_own_is_known() -> None:
    """Linear in the level, so differences of levels are exact: d/dt (1 - 0.9 (1 - t)) = 0.9."""
    u0, level = torch.rand((3, 1, 8, 8)), torch.tensor([1, 7, 12])
    value, rate = Fading().rate(u0, level, torch.arange(3))
    torch.testing.assert_close(value, Fading()(u0, level, 0))
    torch.testing.assert_close(rate, 0.9 * u0, rtol=0, atol=1e-5)


def test_a_learning_rate_and_a_network_of_ones_own(tmp_path: Path) -> None:
    method = named_method("ihd").changed(levels=6)
    training = TrainingConfig(images=48, batch=8, schedule=CosineDecay())
    config = RunConfig("own", "stripes", 1, Size.of(SIZE), method, SmallSpec(), training)
    folder = trained(config, tmp_path)
    refused_without_types(folder, [SmallSpec, CosineDecay])
    refused_without_types(folder, [CosineDecay, SmallSpec])
    pipeline = Pipeline.from_pretrained(folder, types=[SmallSpec, CosineDecay])
    assert pipeline.config == config and isinstance(pipeline.network, Small) and pipeline.sample(2).isfinite().all()
    rates = [line["learning_rate"] for line in diffusion.training.observers.read_metrics(folder)]
    assert rates[-1] == pytest.approx(1e-3 * (1.0 + math.cos(math.pi * 40 / 48)))
    # Another rate is another run.
    with pytest.raises(InputError, match="holds another run"):
        train(tiny_config(method, network=SmallSpec()), PICTURES, folder, "cpu")


def test_a_module_of_ones_own_is_the_network(tmp_path: Path) -> None:
    """It is left as it is, and training begins from its weights; who loads the run brings such a module."""
    module = Small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    config = tiny_config(named_method("ihd").changed(levels=6), network=module)
    folder = trained(config, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    pipeline = Pipeline.from_pretrained(folder, network=Small())
    assert pipeline.sample(2).isfinite().all() and pipeline.config == config
    for network, message in ((None, r"module of one's own, Small: pass one, network=Small\("), (nn.Conv2d(1, 1, 1), "got Conv2d")):
        with pytest.raises(InputError, match=message) as error:
            Pipeline.from_pretrained(folder, network=network)
        assert "\n" not in str(error.value)


def test_a_flow_of_ones_own_is_told_to_the_network(tmp_path: Path) -> None:
    operator = FlowAndBlur(peclet=8.0, turbulence=Cells(), levels=6)
    method = Method(operator, ConstantNoise(0.02), CleanImage(tell_flow=True), Uniform(), Resample(eta=0.0))
    assert not operator.random and train(tiny_config(method), PICTURES, tmp_path, "cpu")
    pipeline = Pipeline.from_pretrained(tmp_path, types=[Cells])
    assert pipeline.config.input_shape == (3, SIZE, SIZE) and pipeline.sample(2).isfinite().all()


@pytest.mark.slow
def test_a_run_of_ones_own_parts_is_evaluated(tmp_path: Path) -> None:
    method, types = METHODS["scales"]
    assert train(tiny_config(method), PICTURES, tmp_path, "cpu")
    config = EvaluationConfig(features="pixels", k=3, likelihood=True, calibration=False, variance=False)
    report = evaluate(tmp_path, np.stack(PICTURES), config, device="cpu", types=types)
    assert report is not None and report["likelihood"]["steps"] == 12 and report["scores"]["frechet_distance"] > 0.0


def test_a_blur_of_ones_own_has_its_widths() -> None:
    operator = FlowAndBlur(blur=Linear(0.5), levels=4)
    np.testing.assert_allclose(operator.widths(Size(8, 12)), [0, 1, 2, 3, 4])
    assert operator != FlowAndBlur(blur=Geometric(0.5), levels=4)
