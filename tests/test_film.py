"""Films: one flow in time, the way from one picture into another, and the command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from cli import film
from cli.corrupt import main
from diffusion.size import Size
from lbm_warp import AdvectionDiffusion, Schedule


@pytest.fixture
def frames() -> list[np.ndarray]:
    """A disc that moves, float32 [3, 24, 32] each."""
    y, x = np.mgrid[:24, :32]
    discs = [((x - 6 - i) ** 2 + (y - 12) ** 2 < 25).astype(np.float32) for i in range(11)]
    return [np.stack([disc, 0.5 * disc, 1 - disc]) for disc in discs]


def corrupt(u: torch.Tensor, part: np.ndarray) -> torch.Tensor:
    operator = AdvectionDiffusion(Schedule(np.linspace(0.0, 2.0, 11)), peclet=8.0)
    return operator(u, torch.from_numpy((10 * part).round().astype(np.int64)), 3)


def test_a_frame_depends_on_no_other(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = film.Pictures(len(frames), Size(24, 32), None, lambda: iter(frames))
    for options in (film.FilmOptions(), film.FilmOptions(course="hold"), film.FilmOptions(loop=True)):
        together = list(film.corrupted(pictures, options, corrupt, torch.device("cpu")))
        with monkeypatch.context() as patch:
            patch.setattr(film, "BATCH", 3)
            others = list(film.corrupted(pictures, options, corrupt, torch.device("cpu")))
        assert len(together) == 11 and all(np.array_equal(a, b) for a, b in zip(together, others, strict=True))
    # The looped film ends as it began: clean.
    assert np.array_equal(together[0], (255 * frames[0].transpose(1, 2, 0)).round().astype(np.uint8))
    assert np.array_equal(together[-1], (255 * frames[-1].transpose(1, 2, 0)).round().astype(np.uint8))
    assert np.abs(together[5].astype(int) - 255 * frames[5].transpose(1, 2, 0)).max() > 30


def test_from_one_picture_into_another(frames: list[np.ndarray]) -> None:
    first, second = (torch.from_numpy(frames[i])[None] for i in (0, 10))
    way = list(film.passage(first, second, 21, corrupt))
    for picture, frame in ((first, way[0]), (second, way[-1])):
        assert np.array_equal(frame, (255 * picture[0].permute(1, 2, 0)).round().byte().numpy())
    # At the height of the turbulence both are there alike, by the linear operator.
    middle = (0.5 * (corrupt(first, np.ones(1)) + corrupt(second, np.ones(1)))).clamp(0.0, 1.0)
    assert np.abs(way[10] - 255.0 * middle[0].permute(1, 2, 0).numpy()).max() < 1.0
    assert [int(frame.sum()) for frame in film.there_and_back(way)] == [int(f.sum()) for f in way + way[-2:0:-1]]


def test_the_command(frames: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, the video made of it, and a picture on its way into another."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for number, frame in enumerate(frames):
        Image.fromarray((255 * frame.transpose(1, 2, 0)).astype(np.uint8)).save(f"in/{number:02d}.png")
    Path("in/notes.txt").write_text("no picture")
    main(["in", "--png", "--peclet", "20", "--out", "folder", "--fps", "12"])
    assert len(list(Path("folder/frames").iterdir())) == 11
    main(["folder/film.mp4", "--size", "24", "--process", "ihd", "--levels", "20", "--out", "video"])
    main(["in/00.png", "--to", "in/10.png", "--frames", "6", "--loop", "--out", "way"])
    for place, count, fps in (("folder", 11, 12), ("video", 11, 12), ("way", 10, 30)):
        with imageio.get_reader(f"{place}/film.mp4") as reader:
            assert reader.count_frames() == count and reader.get_meta_data()["fps"] == pytest.approx(fps)
        assert json.loads(Path(place, "corruption.json").read_text())["options"]["out"] == place


def test_a_film_that_is_killed_leaves_no_half_file(tmp_path: Path) -> None:
    def dying() -> Iterator[np.ndarray]:
        yield from [np.zeros((16, 16, 3), dtype=np.uint8)] * 3
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film.save(dying(), tmp_path, 12, png=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "empty: no pictures in this folder"),
        (["text.mp4"], "text.mp4: not a video that ffmpeg can read"),
        (["p.png", "--png"], "--png and --course are for films"),
        (["empty", "--to", "p.png"], "--to needs a picture to start from, got empty"),
        (["p.png", "--to", "missing.png"], "missing.png"),
        (["p.png", "--to", "p.png", "--process", "ihd", "--sigma-max", "3"], "--sigma-max does not go with --process"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("text.mp4").write_text("no video")
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save("p.png")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capfd.readouterr().err
    assert ended.value.code == 2 and message in err and err.count("\n") == 1
    assert not Path("outputs").exists()
