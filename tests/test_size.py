"""Images that are not square, from the option to the sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.run import load_config, save_config
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.prior import Prior
from diffusion.size import Size
from diffusion.training.loop import train
from diffusion.training.observers import Observer
from tests.runs import stripes, tiny_config

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("value", "size", "text", "stored"),
    [
        (16, (16, 16), "16", 16),
        ("16", (16, 16), "16", 16),
        ("96x128", (96, 128), "96x128", [96, 128]),
        ((96, 128), (96, 128), "96x128", [96, 128]),
        ([64, 64], (64, 64), "64", 64),
        (Size(5, 7), (5, 7), "5x7", [5, 7]),
        (np.int64(16), (16, 16), "16", 16),
        ((np.uint8(96), 128), (96, 128), "96x128", [96, 128]),
    ],
)
def test_a_size_is_written_in_many_forms(value: object, size: tuple[int, int], text: str, stored: object) -> None:
    found = Size.of(value)
    assert (found, str(found), found.to_json(), found.shorter) == (size, text, stored, min(size))
    assert Size.of(found.to_json()) == Size.of(str(found)) == found


@pytest.mark.parametrize("value", [1, 0, -4, "1", "x", "", "16x", "16x1", "16 x 16", "3x4x5", (4, 4, 4), (), 4.0, True, None])
def test_other_sizes_are_refused_in_one_line(value: object) -> None:
    with pytest.raises(ValueError, match=r"^size must be one number of pixels \(64\) or height x width \(96x128\)") as error:
        Size.of(value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [8, (8, 12), (12, 8)])
def test_a_configuration_keeps_its_size(tmp_path: Path, size: int | tuple[int, int]) -> None:
    config = tiny_config(size=size)
    save_config(tmp_path, config)
    assert load_config(tmp_path) == config and json.loads((tmp_path / "config.json").read_text())["size"] == (
        size if isinstance(size, int) else list(size)
    )
    assert config.difference(config) is None
    assert config.difference(tiny_config(size=16)) == f"size is 16, not {config.size.to_json()}"


class StopAtOnce(Observer):
    def should_stop(self) -> bool:
        return True


@pytest.mark.parametrize("process", ["beyond-blur", "blurring", "ddpm", "fluid", "flow-matching"])
def test_a_wide_run_trains_resumes_samples_and_restores(tmp_path: Path, process: str) -> None:
    config, pictures = tiny_config(process, size=(8, 12)), stripes(size=(8, 12))
    assert not train(config, pictures, tmp_path / "run", CPU, observers=[StopAtOnce()])
    assert train(config, pictures, tmp_path / "run", CPU)
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    images = pipeline.sample(3, steps=4)
    assert images.shape == (3, 1, 8, 12) and images.isfinite().all()
    assert pipeline.interpolate([(0, 1)], points=3).shape == (1, 3, 1, 8, 12)
    assert pipeline.restore(torch.from_numpy(pictures[0]), 3, images=2).shape == (2, 1, 8, 12)
    assert ": 8 x 12 grey images" in pipeline.generate_model_card().text
    with pytest.raises(ValueError, match=r"must have shape \[1, 8, 12\], got \[1, 12, 8\]"):
        pipeline.restore(torch.from_numpy(np.ascontiguousarray(pictures[0].transpose(0, 2, 1))), 3)


def test_a_tall_picture_is_treated_as_the_wide_one_turned(tmp_path: Path) -> None:
    """Without a flow the axes are equal: the prior of transposed pictures is the transposed prior."""
    wide = stripes(size=(8, 12))
    tall = [np.ascontiguousarray(picture.transpose(0, 2, 1)) for picture in wide]
    first, second = (
        Prior.build(pictures, tiny_config("ihd", size=size).method, CPU).thumbnails
        for pictures, size in ((wide, (8, 12)), (tall, (12, 8)))
    )
    torch.testing.assert_close(first, second.transpose(2, 3), rtol=0, atol=1e-6)
