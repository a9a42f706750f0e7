"""Augmentation that the network is told about, and a learned weighting of levels."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.augmentation import Augmentation, GeometricAugmentation
from diffusion.network import NetworkConfig, UNet
from diffusion.presets import PRESETS, REAL
from diffusion.run import RunConfig, fingerprint, load_config, save_config
from diffusion.sampling.pipeline import Pipeline
from diffusion.training.estimate import operations, predicted_seconds
from diffusion.training.loop import ExecutionConfig, train
from diffusion.weighting import LearnedWeighting, Uncertainty, Weighting
from lbm_warp.checks import InputError
from tests.runs import stripes, tiny_config

CPU = torch.device("cpu")
MANY = torch.arange(2000)


def noise(count: int, height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(0))


def test_an_augmented_picture_depends_on_its_seed_alone() -> None:
    u0, augment = noise(40), GeometricAugmentation(0.5)
    moved, told = augment(u0, MANY[:40])
    assert moved.shape == u0.shape and 0.0 <= moved.min() and moved.max() <= 1.0
    for first in range(0, 40, 7):
        part = slice(first, first + 7)
        again = augment(u0[part], MANY[:40][part])
        assert torch.equal(again[0], moved[part]) and torch.equal(again[1], told[part])
    assert not torch.equal(augment(u0, MANY[40:80])[1], told)


def test_pictures_that_are_told_to_be_as_they_were_are_so_bit_for_bit() -> None:
    u0, augment = noise(2000, 8, 8), GeometricAugmentation(0.12)
    moved, told = augment(u0, MANY)
    still = ~told.any(dim=1)
    assert torch.equal(moved[still], u0[still]) and 300 < still.sum() < 700  # 0.5 x 0.88^4 x 0.94 of them: 563
    nothing, none = Augmentation()(u0, MANY)
    assert nothing is u0 and none.shape == (2000, 0)


def test_mirroring_and_translation_keep_every_value() -> None:
    """Beyond its edges the picture is mirrored with its last pixel repeated: what numpy calls symmetric."""
    u0, augment = noise(300), GeometricAugmentation(0.5)
    moved, told = augment(u0, MANY[:300])
    chosen = (told[:, 4:] == 0.0).all(dim=1).nonzero()[:, 0].tolist()
    assert len(chosen) > 20 and told[chosen, :4].any(dim=0).all()
    for i in chosen:
        flips = [axis for axis, name in ((2, 0), (1, 1)) if told[i, name]]
        dx, dy = (round(float(told[i, 2 + axis]) * side / 8) for axis, side in enumerate((16, 12)))
        wide = np.pad(np.flip(u0[i].numpy(), flips), ((0, 0), (36, 36), (48, 48)), mode="symmetric")
        assert np.array_equal(moved[i].numpy(), wide[:, 36 - dy : 48 - dy, 48 - dx : 64 - dx])


def test_turns_scales_and_stretches_are_what_the_network_is_told() -> None:
    """A blob goes where the matrix of what is told takes it, and becomes as wide; pixels are 1/8 of its width, so a mean over one
    is off by 2 / (24 x 8^2) of its height at the top, over the square of a scale of 0.8."""
    count, side, width = 60, 96, 8.0
    x = torch.arange(side) - 0.5 * (side - 1)
    grid = torch.stack(torch.meshgrid(x, x, indexing="ij")[::-1], dim=-1)  # (x, y)
    centre = torch.tensor([6.0, -4.0])
    u0 = (-0.5 * ((grid - centre) / width).square().sum(-1)).exp().expand(count, 1, side, side)
    moved, told = GeometricAugmentation(0.7)(u0, MANY[:count])
    checked = 0
    for picture, numbers in zip(moved[:, 0], told.double().tolist(), strict=True):
        left_right, upside_down, dx, dy, c, s, scale, along, across = numbers
        turn = np.array([[1 + c, -s], [s, 1 + c]])
        q = np.array([[along, across], [across, -along]])  # symmetric, so exp2 by its eigenvalues
        values, axes = np.linalg.eigh(0.2 * q)
        matrix = (axes * np.exp2(values)) @ axes.T @ turn * 2 ** (0.2 * scale)
        place = np.array([6.0 * (1 - 2 * left_right) + dx * side / 8, -4.0 * (1 - 2 * upside_down) + dy * side / 8])
        if np.abs(place).max() > 16 or np.linalg.svd(matrix)[1].min() < 0.8:
            continue  # its mirror image comes into sight, or it is narrower
        back = (grid.numpy() @ np.linalg.inv(matrix).T - place) / width
        inner = slice(24, 72)
        expected = np.exp(-0.5 * (back**2).sum(-1))[inner, inner]
        assert np.abs(picture.numpy()[inner, inner] - expected).max() < 3e-3, numbers
        checked += 1
    assert checked > 15


def test_moves_are_as_frequent_and_as_large_as_is_said() -> None:
    _, told = GeometricAugmentation(0.2)(torch.zeros((2000, 1, 8, 64)), MANY)
    share = (told != 0.0).double().mean(dim=0)
    assert share[[0, 1]].tolist() == pytest.approx([0.5, 0.1], abs=4 * 0.012)
    assert share[[2, 5, 6, 7]].tolist() == pytest.approx(4 * [0.2], abs=4 * 0.009)
    for column in (2, 6):  # units of an eighth of the side, and of 2^(1/5): normal
        drawn = told[:, column][told[:, column] != 0.0]
        assert float(drawn.std()) == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(drawn)))


def test_a_network_that_is_told_zeros_is_one_that_is_told_nothing() -> None:
    config = NetworkConfig(8, (1, 2))
    networks = []
    for told in (0, 9):
        torch.manual_seed(0)
        networks.append(UNet(3, config, levels=5, told=told))
    plain, other = networks
    weights = other.state_dict()
    assert weights.keys() - plain.state_dict().keys() == {"augmentation.weight"}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())
    for weight in other.parameters():
        nn.init.normal_(weight, std=0.2)
    u, level = noise(2, 8, 8), torch.tensor([1, 5])
    assert torch.equal(other(u, level), other(u, level, told=torch.zeros(2, 9)))
    assert not torch.equal(other(u, level), other(u, level, told=torch.ones(2, 9)))


@pytest.mark.slow
def test_a_run_with_both_samples_as_others_do(tmp_path: Path) -> None:
    config = tiny_config("fluid", augment=GeometricAugmentation(0.3), weighting=LearnedWeighting(4))
    train(config, stripes(), tmp_path, CPU)
    assert load_config(tmp_path) == config
    assert Pipeline.from_pretrained(tmp_path).sample(2).isfinite().all()


@pytest.mark.slow
def test_one_picture_that_is_augmented_has_a_loss_of_ordinary_size(tmp_path: Path) -> None:
    """The moments are those of what is trained on: those of one picture have no variance, and divide by it."""
    config = tiny_config("fluid", augment=GeometricAugmentation(0.3))
    train(config, stripes(1), tmp_path, CPU)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] < 10.0 * 64


@dataclass(frozen=True)
class Doubled(Weighting):
    def build(self, levels: int, values: int) -> nn.Module:
        class Twice(nn.Module):
            def forward(self, loss: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
                return 2.0 * loss.mean()

        return Twice()


@dataclass(frozen=True)
class Larger(Augmentation):
    told: ClassVar[int] = 1

    def __call__(self, u0: torch.Tensor, seed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return u0.repeat(1, 1, 2, 2), torch.zeros(len(u0), 1)


class Deaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.layer(u)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augment": 0.1}, "augment must be a diffusion.Augmentation, got float"),
        ({"augment": GeometricAugmentation(2.0)}, "augment must be from 0 to 1"),
        ({"weighting": "learned"}, "weighting must be a diffusion.Weighting, got str"),
        ({"weighting": LearnedWeighting(0)}, "weighting terms must be from 1 to 1024"),
        (
            {"weighting": Doubled()},
            r"Doubled.build gives float32 \[\]; expected a module that gives a weighted loss for each image",
        ),
        ({"augment": Larger()}, r"Larger.__call__ gives float32 \[2, 1, 16, 16\]; expected pictures of shape"),
        ({"network": Deaf(), "augment": GeometricAugmentation()}, r"told=numbers\) .* unexpected keyword argument 'told'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        train(tiny_config(**values), stripes(), tmp_path / "run", CPU, ExecutionConfig(accumulate=1))
    assert "\n" not in str(error.value) and not (tmp_path / "run" / "config.json").exists()


def test_the_uncertainty_of_a_level_becomes_the_mean_of_its_loss() -> None:
    """u minimises loss / exp(u) + D u at exp(u) = <loss> / D, and there the gradients of all levels are alike."""
    torch.manual_seed(0)
    levels, values = 40, 50
    weighting = Uncertainty(levels, values, 16)
    mean = values * torch.exp(3.0 * torch.cos(math.pi * (torch.arange(levels + 1) - 0.5) / levels))  # over a factor of 400
    loss, level = torch.ones(8), torch.arange(1, 9)
    assert torch.equal(weighting(loss, level), loss)  # u is 0 at first
    optimiser = torch.optim.Adam(weighting.parameters(), lr=1e-3)
    for step in range(1500):
        level = torch.randint(1, levels + 1, (32,))
        optimiser.param_groups[0]["lr"] = 1e-3 * (1.0 - step / 1500)
        optimiser.zero_grad()
        weighting(mean[level] * torch.rand(32).mul(2.0), level).mean().backward()
        optimiser.step()
    level = torch.arange(1, levels + 1)
    ratio = mean[level] / (values * weighting.of(level).exp())
    assert ratio.detach().numpy() == pytest.approx(1.0, abs=0.2)


def test_runs_from_before_are_read_as_plain_ones(tmp_path: Path) -> None:
    config = tiny_config()
    save_config(tmp_path, config)
    text = (tmp_path / "config.json").read_text()
    assert '"augment"' in text
    values = json.loads(text)
    del values["training"]["augment"], values["training"]["weighting"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_config(tmp_path) == config


def test_a_model_is_the_same_when_its_class_gains_a_field() -> None:
    def network(**fields: object) -> RunConfig:
        kind = dataclass(frozen=True)(type("Own", (NetworkConfig,), {"__annotations__": dict.fromkeys(fields, int)} | fields))
        kind.__module__ = "own"
        return tiny_config(network=kind(8, (1, 2)))

    old, new = network(), network(more=3)
    assert old.to_json() != new.to_json()
    assert fingerprint(old, {}) == fingerprint(new, {})
    assert fingerprint(old, {}) != fingerprint(replace(new, network=replace(new.network, more=4)), {})
    assert fingerprint(old, {}) != fingerprint(replace(old, size=16), {})


def test_the_presets_of_the_real_sets_follow_their_sources() -> None:
    """EDM's train.py and README, EDM2's decay after 70,000 of 1,048,576 batches."""
    assert {name: preset.training.augment.probability for name, preset in REAL.items()} == {
        name: 0.12 if name == "cifar10" else 0.15 for name in REAL
    }
    rates = {"cifar10": (1e-3, 512, 0.13), "ffhq-64": (2e-4, 256, 0.05), "afhq-64": (2e-4, 256, 0.25)}
    for name, config in REAL.items():
        assert PRESETS[name] is config and isinstance(config.training.weighting, LearnedWeighting)
        training, published = config.training, PRESETS[f"{name.replace('ffhq-64', 'afhq-64')}-published"]
        assert training.images == published.training.images and training.ema_half_life == 500_000
        expected = rates.get(name, (1e-4, 256, published.network.dropout))
        assert (training.schedule.learning_rate, training.batch, config.network.dropout) == expected
        assert training.schedule.constant == training.images // 15


def test_the_time_on_an_h200_is_that_of_its_operations() -> None:
    """A step that is too small says nothing; of ffhq-128 310 images/s are predicted, 1.0e12 operations each."""
    config = tiny_config(images=10**7, batch=10**6)
    assert predicted_seconds(config) == pytest.approx(10**7 * 3 * operations(config) / (0.3 * 989e12))
    assert predicted_seconds(tiny_config()) is None
    assert 3 * 324.2e9 * 310 == pytest.approx(0.3 * 989e12, rel=0.03)
