"""Observers: what a training tells, and what is made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.files import read_json
from diffusion.run import RunConfig
from diffusion.sampling.pipeline import Pipeline
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.observers import EarlyStop, MetricsFile, Observer, Progress, SampleGrids, TensorBoard, grid, read_metrics
from lbm_warp import InputError
from tests.runs import SIZE, stripes, tiny_config

CPU = torch.device("cpu")


class Loud(Observer):
    """A user's own observer."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def logged(self, line: dict[str, float]) -> None:
        self.said.append(f"loss at {line['images']}")

    def ended(self, complete: bool) -> None:
        self.said.append("complete" if complete else "not complete")


class Everything(Observer):
    """Writes down what it is told, and stops the training where it is asked to."""

    def __init__(self, stop_at: int = 1000) -> None:
        self.told: list[tuple[str, object]] = []
        self.stop_at = stop_at
        self.images = 0

    def started(self, folder: Path, config: RunConfig, images: int) -> None:
        self.told.append(("started", images))
        assert config == tiny_config(images=config.training.images) and (folder / "metrics.jsonl").exists()

    def resumed(self, images: int, pipeline: Pipeline) -> None:
        self.told.append(("resumed", images))

    def stepped(self, images: int) -> None:
        self.images = images

    def logged(self, line: dict[str, float]) -> None:
        self.told.append(("logged", line["images"]))

    def scored(self, images: int, score: float) -> None:
        self.told.append(("scored", (images, score)))

    def checkpointed(self, images: int, pipeline: Pipeline) -> None:
        self.told.append(("checkpointed", images))

    def ended(self, complete: bool) -> None:
        self.told.append(("ended", complete))

    def should_stop(self) -> bool:
        return self.images >= self.stop_at


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_users_observer_is_told(tmp_path: Path) -> None:
    loud = Loud()
    assert train(tiny_config(), stripes(), tmp_path, CPU, ExecutionConfig(checkpoint_every=32), observers=[loud])
    assert loud.said == ["loss at 32", "loss at 48", "complete"]


def test_everything_is_told_in_its_order(tmp_path: Path) -> None:
    how, config = ExecutionConfig(checkpoint_every=32, score_every=24), tiny_config()
    first, second = Everything(stop_at=24), Everything()
    assert not train(config, stripes(), tmp_path, CPU, how, observers=[first], score=lambda pipeline: 5.0)
    assert first.told == [("started", 0), ("logged", 24), ("scored", (24, 5.0)), ("checkpointed", 24), ("ended", False)]
    assert train(config, stripes(), tmp_path, CPU, how, observers=[second], score=lambda pipeline: 4.0)
    expected = [("logged", 32), ("checkpointed", 32), ("logged", 48), ("scored", (48, 4.0)), ("checkpointed", 48), ("ended", True)]
    assert second.told == [("started", 24), ("resumed", 24), *expected]
    assert [line["images"] for line in lines(tmp_path)] == [24, 24, 32, 48, 48]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "grid.png"), ZeroDivisionError("a mistake")])
def test_an_error_of_an_observer_ends_the_run_and_every_observer_hears_it(tmp_path: Path, error: Exception) -> None:
    class Broken(Observer):
        def checkpointed(self, images: int, pipeline: Pipeline) -> None:
            raise error

    other = Loud()
    message = "grid.png: No space left on device; the last good checkpoint is" if isinstance(error, OSError) else "a mistake"
    with pytest.raises(ValueError if isinstance(error, OSError) else ZeroDivisionError, match=message):
        train(tiny_config(), stripes(), tmp_path, CPU, ExecutionConfig(checkpoint_every=16), observers=[Broken(), other])
    assert other.said == ["loss at 16", "not complete"]


@pytest.mark.parametrize("cut", [None, 24, 32, 40])
def test_a_run_stops_when_its_scores_have_become_no_better_wherever_it_was_resumed(tmp_path: Path, cut: int | None) -> None:
    scores, how = {8: 9.0, 16: 4.0, 24: 5.0, 32: 4.5, 40: 4.0, 48: 1.0}, ExecutionConfig(score_every=8, checkpoint_every=8)

    def run(stop_at: int = 1000) -> bool:
        counted = Everything(stop_at)
        return train(
            tiny_config(images=80),
            stripes(),
            tmp_path,
            CPU,
            how,
            observers=[counted, EarlyStop(patience=3)],
            score=lambda pipeline: scores[counted.images],
        )

    if cut:
        assert not run(cut)
    # Once it has stopped it trains no further step.
    for _ in range(2):
        assert not run()
        assert [line["frechet_distance"] for line in lines(tmp_path) if "frechet_distance" in line] == [9.0, 4.0, 5.0, 4.5, 4.0]
        assert json.loads((tmp_path / "best.json").read_text())["images"] == 16
        assert max(path.stem for path in (tmp_path / "checkpoints").iterdir()) == "000000040"


def test_metrics_after_the_checkpoint_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"images": 8, "loss": 0.1}\n{"images": 16}\n{"images": 24}\n{"ima')
    MetricsFile().started(tmp_path, tiny_config(), 16)
    assert path.read_text() == '{"images": 8, "loss": 0.1}\n{"images": 16}\n'


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"images": 8}\n{"images": 16}\n',
        '{"images": 8}\n{"images": 16}\n'.encode("utf-16"),
        b'{"images": 8, "note": "caf\xe9"}\r\n{"images": 16}\r\n',
        b'{"images": 8}\n\0\0\0\0{"images": 16}\n\0\0\0',
        b'{"images": 8}\n[1]\n5\n{"images": "many"}\n{"images": 16}\n{"ima',
    ],
    ids=["mark", "utf-16", "latin-1", "zeros", "other"],
)
def test_a_log_is_read_in_the_encoding_that_it_has_got(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    assert [line["images"] for line in read_metrics(tmp_path)] == [8, 16]
    (tmp_path / "one.json").write_bytes(content.splitlines()[0] if b"\0" not in content else '{"images": 8}'.encode("utf-16"))
    if b"caf" not in content:
        assert read_json(tmp_path / "one.json") == {"images": 8}
        return
    with pytest.raises(InputError, match="not JSON"):
        read_json(tmp_path / "one.json")


def test_grids_of_samples_are_drawn_at_every_checkpoint_and_where_one_is_missing(tmp_path: Path) -> None:
    how = ExecutionConfig(checkpoint_every=32)
    train(tiny_config(), stripes(), tmp_path, CPU, how, observers=[SampleGrids(5)])
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    assert sorted(drawn) == ["000000032.png", "000000048.png"]
    (tmp_path / "samples" / "000000048.png").unlink()
    train(tiny_config(), stripes(), tmp_path, CPU, how, observers=[SampleGrids(5)])
    assert {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()} == drawn
    with Image.open(tmp_path / "samples" / "000000048.png") as picture:
        assert picture.size == (4 + 2 * 68, 4 + 3 * 68)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_grid_shows_every_image_in_its_place(channels: int) -> None:
    images = torch.arange(5)[:, None, None, None].expand(-1, channels, SIZE, SIZE) / 10
    sheet = grid(images)
    assert sheet.shape == (4 + 3 * 68, 4 + 2 * 68, 3) and sheet.dtype == np.uint8
    for number in range(5):
        top, left = 4 + 68 * (number // 2), 4 + 68 * (number % 2)
        assert (sheet[top : top + 64, left : left + 64] == round(25.5 * number)).all()
        sheet[top : top + 64, left : left + 64] = 255
    assert (sheet == 255).all()


@pytest.mark.slow
def test_tensorboard_shows_log_scores_and_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    how, longer = ExecutionConfig(checkpoint_every=32, score_every=32), tiny_config(images=96)
    for config in (replace(longer, training=replace(longer.training, images=64)), longer):
        train(config, stripes(), tmp_path, CPU, how, observers=[SampleGrids(4), TensorBoard()], score=lambda pipeline: 2.5)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = [line for line in lines(tmp_path) if "loss" in line]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (line["images"], pytest.approx(line["loss"])) for line in found
    ]
    assert [event.step for event in events.Scalars("frechet_distance")] == [32, 64, 96]
    assert [event.step for event in events.Images("samples")] == [32, 64, 96]
    monkeypatch.setattr("diffusion.training.observers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="TensorBoard is not installed; pip install tensorboard"):
        TensorBoard()


@pytest.mark.parametrize("make", [lambda: EarlyStop(0), lambda: SampleGrids(0)])
def test_numbers_out_of_range_are_refused(make: Callable[[], Observer]) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        make()


def test_the_bar_tells_operations_and_their_share_of_the_peak(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress()
    bar.started(tmp_path, tiny_config(), 0)
    bar.logged({"images": 8, "loss": 1.25, "flop_per_second": 1.34e14, "share_of_peak": 0.136})
    bar.ended(False)
    assert "loss=1.25, FLOP/s=1.3e+14, of peak=14%" in capsys.readouterr().err
