"""Films: one flow in time, the way from one picture into another, what is read and written, and the command."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import imageio.v2 as imageio
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from cli import film, video
from cli.corrupt import main
from cli.sample import _first_seen
from diffusion.size import Size
from lbm_warp import AdvectionDiffusion, Schedule
from lbm_warp.checks import InputError


@pytest.fixture
def frames() -> list[np.ndarray]:
    """A disc that moves, float32 [3, 24, 32] each."""
    y, x = np.mgrid[:24, :32]
    discs = [((x - 6 - i) ** 2 + (y - 12) ** 2 < 25).astype(np.float32) for i in range(11)]
    return [np.stack([disc, 0.5 * disc, 1 - disc]) for disc in discs]


def test_a_film_of_samples_does_not_wait_on_grey() -> None:
    """It begins half a second before something is seen; new noise at every level is not something."""
    random = np.random.default_rng(0)
    start = [np.clip(random.normal(128, 40, (1, 32, 32, 3)), 0, 255).astype(np.uint8) for _ in range(40)]
    end = [np.clip(random.normal(128, 40 - 4 * n, (1, 32, 32, 3)), 0, 255).astype(np.uint8) for n in range(11)]
    assert abs(_first_seen([[pictures] for pictures in (*start, *end)]) - 40) < 4
    flat = [np.full((1, 8, 8, 3), value, dtype=np.uint8) for value in (*[128] * 30, *range(128, 200, 8))]
    assert _first_seen([[pictures] for pictures in flat]) == 31 and _first_seen([[flat[0]]]) == 0


def corrupt(u: torch.Tensor, part: np.ndarray) -> torch.Tensor:
    operator = AdvectionDiffusion(Schedule(np.linspace(0.0, 2.0, 11)), peclet=8.0)
    return operator(u, torch.from_numpy((10 * part).round().astype(np.int64)), 3)


def test_a_frame_depends_on_no_other(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, size, cpu = video.Pictures(len(frames), None, lambda: iter(frames)), Size(24, 32), torch.device("cpu")
    for options in (film.FilmOptions(), film.FilmOptions(course="hold"), film.FilmOptions(loop=True)):
        together = list(film.corrupted(pictures, size, options, corrupt, cpu))
        with monkeypatch.context() as patch:
            patch.setattr(film, "BATCH", 3)
            others = list(film.corrupted(pictures, size, options, corrupt, cpu))
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
    assert [int(frame.sum()) for frame in video.there_and_back(way)] == [int(f.sum()) for f in way + way[-2:0:-1]]


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


def encode(path: Path, *options: str, rate: str = "10", count: int = 6, pixels: str = "yuv420p") -> Path:
    """A video of a test picture that changes, 32 x 24 pixels; options of ffmpeg say how it differs from others."""
    source = ["-f", "lavfi", "-i", f"testsrc=s=32x24:r={rate},format=rgba", "-frames:v", str(count)]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, "-pix_fmt", pixels, *options, str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.mark.parametrize("rate", ["10", "1", "1/2", "30000/1001", "24000/1001", "25/2"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_rate_is_kept_however_slow_or_fractional(rate: str, name: str, tmp_path: Path) -> None:
    pictures = video.open_film(encode(tmp_path / name, rate=rate))
    assert (pictures.count, pictures.fps, pictures.remarks) == (6, Fraction(rate), ())
    assert len(list(pictures.read())) == 6


def test_every_frame_of_a_variable_rate_comes_out_and_the_duration_stays(tmp_path: Path) -> None:
    """Ten frames in a tenth of a second, and ten in five seconds."""
    times = "setpts='if(lt(N,10),N*0.01,0.1+(N-10)*0.5)/TB'"
    path = encode(tmp_path / "a.mp4", "-vf", times, "-fps_mode", "vfr", "-enc_time_base", "1/1000", count=20)
    pictures = video.open_film(path)
    (remark,) = pictures.remarks
    assert pictures.count == len(list(pictures.read())) == 20 and "all 20 are shown at a constant" in remark
    assert 20 / pictures.fps == pytest.approx(4.6, abs=0.2)


def test_frames_are_turned_and_their_pixels_made_square_as_the_file_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    upright = encode(tmp_path / "a.mp4")
    expected = next(video.open_film(upright).read())
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", upright, "-c", "copy"]
    subprocess.run([*command, tmp_path / "b.mp4"], check=True)
    turned = next(video.open_film(tmp_path / "b.mp4").read())
    np.testing.assert_allclose(turned, np.rot90(expected, axes=(1, 2)), atol=0.02)
    wide = encode(tmp_path / "c.mp4", "-vf", "setsar=2/1")
    assert next(video.open_film(wide).read()).shape == (3, 24, 64)
    assert capfd.readouterr() == ("", "")


def test_sound_is_left_out_and_that_is_said(tmp_path: Path) -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", encode(tmp_path / "a.mp4"), "-f", "lavfi", "-i", "sine"]
    subprocess.run([*command, "-shortest", tmp_path / "b.mp4"], check=True)
    assert video.open_film(tmp_path / "b.mp4").remarks == ("its sound is left out",)


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mov", "png")])
def test_transparent_parts_of_a_video_are_shown_over_white(name: str, codec: str, tmp_path: Path) -> None:
    pixels = "yuva420p" if name == "a.webm" else "rgba"
    path = encode(tmp_path / name, "-vf", "colorchannelmixer=aa=0", "-c:v", codec, count=2, pixels=pixels)
    pictures = video.open_film(path)
    assert pictures.remarks == (video.OVER_WHITE,)
    assert min(frame.min() for frame in pictures.read()) > 0.98


def animate(path: Path, durations: list[int], mode: str = "RGB", **options: object) -> Path:
    pictures = [Image.new(mode, (12, 8), (40 * n,) * (len(mode) - 1) + (0,) if mode == "RGBA" else (40 * n,) * 3) for n in range(3)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_an_animated_picture_is_a_film(name: str, tmp_path: Path) -> None:
    even = video.open_film(animate(tmp_path / name, [40] * 3, lossless=True))
    assert (even.count, even.fps, even.remarks) == (3, 25, ()) and video.is_film(tmp_path / name)
    levels = [round(float(frame.mean()) * 255) for frame in even.read()]
    assert levels == [0, 40, 80]
    uneven = video.open_film(animate(tmp_path / name, [40, 40, 1000], lossless=True))
    assert uneven.fps == pytest.approx(3 / 1.08, rel=1e-3) and "all 3 are shown" in uneven.remarks[0]
    clear = video.open_film(animate(tmp_path / name, [40] * 3, "RGBA", lossless=True, exact=True, disposal=2))
    assert clear.remarks == (video.OVER_WHITE,) and min(frame.min() for frame in clear.read()) == 1.0


def test_where_a_picture_is_needed_the_first_of_an_animation_is_used_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = animate(tmp_path / "a.gif", [40] * 3)
    assert video.read_still(path).max() == 0.0
    assert capsys.readouterr().out == f"{path}: only the first of its 3 pictures is used\n"
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    assert not video.is_film(tmp_path / "b.png") and video.read_still(tmp_path / "b.png") is not None
    assert capsys.readouterr().out == ""


def test_frames_of_a_folder_come_as_a_person_counts(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("L", (8, 8), number).save(tmp_path / f"frame{number}.png")
    assert [round(float(frame.mean()) * 255) for frame in video.open_film(tmp_path).read()] == [1, 2, 10]


def test_a_video_is_known_by_its_content(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4").rename(tmp_path / "a: 100%.dat")
    assert video.is_film(tmp_path / "a: 100%.dat") and video.open_film(tmp_path / "a: 100%.dat").count == 6


def test_a_video_that_is_cut_short_gives_what_is_there_and_says_so(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mkv", count=20).read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    pictures = video.open_film(tmp_path / "a.mkv")
    assert 2 < len(list(pictures.read())) == pictures.count < 20
    assert pictures.remarks == (f"it is damaged; what can be read is used: {pictures.count} frames",)


def still(count: int) -> Iterator[np.ndarray]:
    yield from [np.zeros((16, 16, 3), dtype=np.uint8)] * count


@pytest.mark.parametrize(
    ("encoder", "problem"),
    [
        ("echo '[error] Nothing left' >&2; exit 1", "the video encoder failed (Nothing left)"),
        ("kill -9 $$", "the video encoder failed (Killed)"),
        ("cat > /dev/null; for last; do :; done; : > ${last#file:}", "the video encoder wrote 0 of 3 frames"),
        (None, "ffmpeg cannot be started (No such file or directory); install imageio-ffmpeg again"),
    ],
)
def test_an_encoder_that_fails_leaves_nothing(
    encoder: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, without space, ending well and writing nothing, or not there."""
    monkeypatch.chdir(tmp_path)  # an encoder that stands in writes pipe:1, too
    script, out = tmp_path / "ffmpeg", tmp_path / "out"
    if encoder is not None:
        script.write_text(f"#!/bin/sh\n{encoder}\n")
        script.chmod(0o755)
    out.mkdir()
    (out / "film.mp4").write_text("earlier")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(InputError) as caught:
        video.save_video(out / "film.mp4", still(3), 10)
    assert problem in str(caught.value) and os.listdir(out) == ["film.mp4"] and (out / "film.mp4").read_text() == "earlier"


def test_a_command_that_may_write_no_more_ends_in_a_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The limit of the system on files; for the encoder it is a signal."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 64), 90).save("p.png")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(SystemExit) as ended:
            main(["p.png", "--to", "p.png", "--frames", "3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    out, err = capfd.readouterr()
    assert ended.value.code == 2 and "outputs/p/film.mp4: the video encoder failed" in err and "wrote" not in out
    assert signal.strsignal(signal.SIGXFSZ) in err or "File too large" in err
    assert os.listdir() == ["p.png"]


def test_a_film_that_is_interrupted_leaves_no_half_file(tmp_path: Path) -> None:
    def dying() -> Iterator[np.ndarray]:
        yield from still(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        video.save_video(tmp_path / "film.mp4", dying(), 12)
    assert not list(tmp_path.iterdir())


def test_a_command_removes_what_it_made_and_nothing_else(
    frames: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Twelve frames, then five, then a picture of the same name from elsewhere."""
    monkeypatch.chdir(tmp_path)
    for place, count in (("in", 11), ("few/in", 5)):
        Path(place).mkdir(parents=True)
        for number, frame in enumerate(frames[:count]):
            Image.fromarray((255 * frame.transpose(1, 2, 0)).astype(np.uint8)).save(f"{place}/{number}.png")
    small = ["--peclet", "1", "--sigma-max", "1px"]
    main(["in", "--png", *small])
    out = Path("outputs/in")
    (out / "frames" / "mine.txt").write_text("mine")
    assert len(list(out.glob("frames/*.png"))) == 11
    main(["few/in", "--png", *small])
    assert len(list(out.glob("frames/*.png"))) == 5 and (out / "frames" / "mine.txt").exists()
    main(["in/0.png", "--out", str(out), *small, "--levels", "3", "--columns", "2", "--peclet", "0"])
    assert sorted(path.name for path in out.iterdir()) == ["corrupted.png", "corruption.json", "frames", "strip.png"]
    assert os.listdir(out / "frames") == ["mine.txt"]

    Path("mine").mkdir()
    Path("mine/film.mp4").write_text("mine")
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["in", "--out", "mine", *small])
    assert ended.value.code == 2 and "mine/film.mp4: not made by this command; move it" in capfd.readouterr().err
    assert os.listdir("mine") == ["film.mp4"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty"], "empty: no pictures in this folder"),
        (["text.mp4"], "text.mp4: neither a picture that Pillow can read nor a video that ffmpeg can read"),
        (["sound.m4a"], "there is no video in it"),
        (["p.png", "--sigma-max", "1000"], "sigma_max must be at most 2 longer sides = 16 px"),
        (["p.png", "--png"], "--png is for films: of a video, a folder of pictures, or with --to"),
        (["p.png", "--course", "hold"], "--course is for films"),
        (["p.png", "--loop"], "--loop is for a video; add --video"),
        (["p.png", "--frames", "9"], "--frames is for a video; add --video"),
        (["full", "--frames", "9"], "--frames is for a picture; a film keeps its own"),
        (["full", "--columns", "3"], "--columns is for the strip of a picture; a film has none"),
        (["full", "--levels", "9"], "--levels is for the strip of a picture; a film has none"),
        (["full", "--course", "hold", "--loop"], "--loop does not go with --course hold"),
        (["p.png", "--to", "p.png", "--course", "hold"], "--course does not go with --to"),
        (["p.png", "--out", ""], "an empty word after --out; is a variable of the shell empty?"),
        (["p.png", "--out="], "an empty word in --out=; is a variable"),
        ([""], "an empty word after the command; is a variable"),
        (["empty", "--to", "p.png"], "--to needs a picture to start from, got empty"),
        (["p.png", "--to", "missing.png"], "missing.png"),
        (["p.png", "--to", "p.png", "--process", "ihd", "--sigma-max", "3"], "--sigma-max does not go with --process"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "full"):
        Path(folder).mkdir()
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save("full/0.png")
    Path("text.mp4").write_text("no video")
    sound = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", "lavfi", "-i", "sine", "-t", "0.1", "sound.m4a"]
    if "sound.m4a" in arguments:
        subprocess.run(sound, check=True)
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save("p.png")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    err = capfd.readouterr().err
    assert ended.value.code == 2 and message in err and err.count("\n") == 1
    assert not Path("outputs").exists()
