"""Pairs of clean and degraded pictures: made, read again, made again from their records, by every format and kind of picture."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cli import dataset
from diffusion import Degrade, Drawn, Gallery, PairOptions, Ranges, Sensor, degrade_again, open_gallery, write_pairs
from diffusion.data import pair_files
from diffusion.data.images import read_image
from diffusion.data.products import kind_of
from diffusion.methods import named_method
from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, Operator, OpticalTurbulence, Schedule
from lbm_warp.checks import InputError
from tests.pictures import chw, constants, damage, zipped
from tests.pictures import save as save_as
from tests.runs import exit_code, files
from tests.test_imports import ROOT

Call = Callable[..., tuple[int, str, str]]
PROCESS = ("--process", "beyond-blur-curl", "--draw", "level", 20, 40, "--draw", "peclet", 1, 8)
AIR = ("--burst", 2, "--interval", 0.01, "--draw", "wind", 1, 5)


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = exit_code(dataset.main, "--data", *arguments)
        out, err = capsys.readouterr()
        return code, out, err.rpartition("\r")[2]  # without the bar that a slow machine shows

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four pictures that differ, of 20 x 24 pixels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in (1, 2, 9, 10):
        save(folder / f"p{number}.png", textured(number))
    return folder


def textured(seed: int, height: int = 20, width: int = 24) -> np.ndarray:
    """uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


Pair = tuple[dict[str, Any], np.ndarray, np.ndarray, np.ndarray | None]


def pairs_in(place: Path) -> dict[str, Pair]:
    """The pairs of a part, by their stems, of files as a stranger would read them: record, clean, degraded frames, flow."""
    samples: dict[str, dict[str, bytes]] = {}
    for shard in place.glob("*.tar"):
        with tarfile.open(shard) as tar:
            for member in tar:
                stem, _, ending = member.name.partition(".")
                samples.setdefault(stem, {})[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
    for path in place.glob("*/*"):
        stem, _, ending = path.name.partition(".")
        name = {"record": "json", "arrays": "npz"}.get(path.parent.name, f"{path.parent.name}.{ending}")
        samples.setdefault(stem, {})[name] = path.read_bytes()
    return {stem: pair(sample) for stem, sample in sorted(samples.items())}


def pair(sample: dict[str, bytes]) -> Pair:
    record = json.loads(sample["json"])
    if "npz" in sample:
        arrays = np.load(io.BytesIO(sample["npz"]))
        degraded = arrays["degraded"]
        return record, arrays["clean"], degraded if degraded.ndim == 4 else degraded[None], arrays.get("flow")
    images = {name: read_image(io.BytesIO(content)) for name, content in sorted(sample.items()) if name.endswith(("png", "tif"))}
    degraded = np.stack([image for name, image in images.items() if name.startswith("degraded")])
    flow = np.load(io.BytesIO(sample["flow.npy"])) if "flow.npy" in sample else None
    return record, next(image for name, image in images.items() if name.startswith("clean")), degraded, flow


@pytest.mark.parametrize(
    ("form", "how", "shards"),
    [
        ("png", PROCESS, ()),
        ("png", AIR, ("--shards", 3)),
        ("png16", AIR, ()),
        ("tiff", PROCESS, ("--shards", 3)),
        ("npz", PROCESS, ()),
        ("npz", AIR, ("--shards", 3)),
    ],
    ids=["png", "png-tar", "png16", "tiff-tar", "npz", "npz-tar"],
)
def test_a_record_does_it_again(call: Call, photos: Path, tmp_path: Path, form: str, how: tuple, shards: tuple) -> None:
    noise = ("--draw", "read_noise", 0, 0.1, "--draw", "shot_noise", 0, 0.1)
    code, out, err = call(photos, "--out", "made", "--pairs", 5, "--size", 16, "--format", form, *how, *noise, *shards)
    assert (code, out, err) == (0, "wrote 5 pairs to made\n", "")
    found = pairs_in(tmp_path / "made" / "train")
    assert list(found) == [f"{number:06}" for number in range(5)]
    assert [record["picture"] for record, *_ in found.values()] == ["p1.png", "p1.png", "p2.png", "p9.png", "p10.png"]
    kept = pair_files.FORMATS[form].kept
    for record, clean, degraded, flow in found.values():
        again = degrade_again(record, clean)
        assert clean.shape == (3, 16, 16) and len(degraded) == len(record["seeds"])
        np.testing.assert_array_equal(kept(again), kept(degraded))
        assert flow is not None and flow.shape == (*degraded.shape[:1] * (len(degraded) > 1), 2, 16, 16)
    assert len({record["seeds"][0] for record, *_ in found.values()}) == 5
    assert len(list((tmp_path / "made" / "train").glob("*.tar"))) == (2 if shards else 0)


def test_what_is_written_of_the_flow_does_it_again(call: Call, photos: Path, tmp_path: Path) -> None:
    """Without its seed: the solver in the given velocity, and the tilt in pixels."""
    assert call(photos, "--out", "a", *PROCESS, "--format", "npz")[0] == call(photos, "--out", "b", "--format", "npz")[0] == 0
    for record, clean, degraded, flow in pairs_in(tmp_path / "a" / "train").values():
        method = named_method("beyond-blur-curl")
        level, peclet = record["parameters"]["level"], record["parameters"]["peclet"]
        assert 20 <= level <= 40 and 1 <= peclet <= 8
        assert flow is not None
        schedule = Schedule(np.array([0.0, method.operator.blur.of_levels(method.levels, 20)[level]]))
        carried = AdvectionDiffusion(schedule, peclet=peclet, turbulence=GivenVelocity(torch.from_numpy(flow)[None]))
        mean = carried(torch.from_numpy(clean)[None], 1, 0)[0].numpy()
        noise = (degraded[0] - mean) / method.forward.noise[level]
        assert abs(noise.mean()) < 5 / noise.size**0.5 and abs(noise.std() - 1) < 0.1
    for record, clean, _, flow in pairs_in(tmp_path / "b" / "train").values():
        air = OpticalTurbulence(d_over_r0=record["parameters"]["d_over_r0"])
        np.testing.assert_array_equal(flow, air.tilt(record["seeds"][0], *clean.shape[1:])[0].numpy())


def test_the_workers_and_an_interruption_change_nothing(
    call: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, extra in ((pair_files.Loose, ()), (pair_files.Shards, ("--shards", 2))):
        arguments = (photos, "--pairs", 7, "--size", 16, "--held-out", 0.3, "--burst", 2, *PROCESS, *extra)
        assert call(*arguments, "--out", "one", "--workers", 1)[0] == 0
        add, added = kind.add, []

        def interrupted(self: Any, number: int, *rest: Any, add: Any = add, added: list[int] = added) -> None:
            added.append(number)
            if len(added) == 4:
                raise KeyboardInterrupt
            add(self, number, *rest)

        monkeypatch.setattr(kind, "add", interrupted)
        assert call(*arguments, "--out", "two", "--workers", 3)[0] == 130
        whole, found = files(tmp_path / "one"), files(tmp_path / "two")
        assert 1 < len(found) < len(whole) and found.items() <= whole.items()
        code, out, _ = call(*arguments, "--out", "two", "--workers", 2)
        assert code == 0 and re.fullmatch(r"wrote [45] pairs to two; the others were there\n", out)
        assert files(tmp_path / "two") == whole
        assert (
            call(*arguments, "--out", "two")[1] == "wrote 0 pairs to two; the others were there\n"
            and files(tmp_path / "two") == whole
        )
        next((tmp_path / "two").rglob("000000.*[gr]")).unlink()  # a picture or a tar file
        assert call(*arguments, "--out", "two")[1].startswith("wrote ") and files(tmp_path / "two") == whole
        for name in ("one", "two"):
            (tmp_path / name).rename(tmp_path / f"{name}-{kind.__name__}")


@pytest.mark.slow
def test_a_killed_command_is_finished_by_the_next(call: Call, photos: Path, tmp_path: Path) -> None:
    arguments = [str(word) for word in (photos, "--pairs", 30, "--size", 32, "--out", "killed", *PROCESS)]
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.dataset", "--data", *arguments], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}
    )
    record = tmp_path / "killed" / "train" / "record"
    while len(list(record.glob("*.json"))) < 5:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "train" / "metadata.jsonl").exists()
    assert call(*arguments)[0] == 0 and call(*arguments[:-1], arguments[-1], "--out", "whole")[0] == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_other_options_pictures_and_folders_are_refused(call: Call, photos: Path, tmp_path: Path) -> None:
    assert call(photos, "--out", "made", "--size", 16, *PROCESS)[0] == 0
    before = files(tmp_path / "made")
    for extra, words in (
        (("--seed", 1), "made with seed 0, not 1"),
        (("--draw", "read_noise", 0, 0.1), "made with draw"),
        (("--pairs", 5), "made with pairs 4, not 5"),
        (("--format", "tiff"), 'made with format "png", not "tiff"'),
    ):
        code, out, err = call(photos, "--out", "made", "--size", 16, *PROCESS, *extra)
        assert code == 2 and out == "" and err.count("\n") == 1 and words in err and "choose another folder (--out)" in err
    save(photos / "p11.png", textured(11))
    code, _, err = call(photos, "--out", "made", "--size", 16, "--pairs", 4, *PROCESS)
    assert code == 2 and "holds pairs of other pictures" in err
    save_as(tmp_path / "own" / "train" / "mine.png", 3)
    code, _, err = call(photos, "--out", "own", "--size", 16)
    assert code == 2 and "not made by this command" in err and list(files(tmp_path / "own")) == ["train/mine.png"]
    assert files(tmp_path / "made") == before
    code, _, err = call(photos, "--out", photos / "made")
    assert code == 2 and "inside of the folder of pictures" in err and not (photos / "made").exists()


def test_every_kind_of_picture(call: Call, tmp_path: Path) -> None:
    """16 bits to one unit, grey, floats, over white; what is damaged or ours is named once, and the rest is made."""
    folder = tmp_path / "kinds"
    folder.mkdir()
    words = np.random.default_rng(0).integers(0, 65536, (8, 9, 3), dtype=np.uint16)
    (folder / "colour16.png").write_bytes(pair_files.png(words))
    (folder / "colour16.tif").write_bytes(pair_files.tiff(words))
    save(folder / "grey16.png", words[..., 0])
    save(folder / "float.tif", words[..., 1].astype(np.float32) / 65535)
    save(folder / "alpha.png", np.dstack([words[..., :3] >> 8, np.full((8, 9), 255)]).astype(np.uint8))
    save(folder / "damaged.png", textured(0))
    damage(folder / "damaged.png")
    (folder / "ours.png").write_bytes(pair_files.png(words, "beyond-blur: corrupted"))
    code, out, err = call(folder, "--out", "made", "--format", "png16", "--pairs", 14, *PROCESS)
    assert code == 0 and err == ""
    assert "left out: 2 of 7 pictures, damaged.png, ours.png; the first since" in out and err == ""
    assert "2 pairs of pictures with transparent parts, which are shown over white" in out and "wrote 10 pairs to made" in out
    found = {record["picture"]: (clean * 65535).round().astype(int) for record, clean, *_ in pairs_in(Path("made/train")).values()}
    levels = words.transpose(2, 0, 1)
    assert set(found) == {"colour16.png", "colour16.tif", "grey16.png", "float.tif", "alpha.png"}
    np.testing.assert_array_equal(found["colour16.png"], levels)
    np.testing.assert_array_equal(found["colour16.tif"], levels)
    np.testing.assert_array_equal(found["grey16.png"], levels[[0, 0, 0]])
    np.testing.assert_array_equal(found["float.tif"], levels[[1, 1, 1]])
    np.testing.assert_array_equal(found["alpha.png"], (levels >> 8) * 257)
    clean, degraded = (Path(f"made/train/{kind}/000000.png").read_bytes() for kind in ("clean", "degraded"))
    assert kind_of(clean) is None and kind_of(degraded) == "corrupted"


def test_pictures_of_every_origin(call: Call, photos: Path, tmp_path: Path) -> None:
    frames = [Image.fromarray(textured(number)) for number in range(5)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    zipped(photos, tmp_path / "photos.zip")
    constants(tmp_path / "grey", 2)
    for data, count, channels in (("film.gif", 5, 3), ("photos.zip", 4, 3), ("photos/p1.png", 1, 3), ("grey", 2, 1)):
        assert call(data, "--out", f"{data}-made", *PROCESS)[0] == 0, data
        found = pairs_in(Path(f"{data}-made/train"))
        assert len(found) == count and all(clean.shape[0] == channels for _, clean, *_ in found.values())
    assert call("digits", "--pairs", 3, *PROCESS)[0] == 0
    assert all(clean.shape == (1, 16, 16) for _, clean, *_ in pairs_in(Path("outputs/digits-pairs/train")).values())


def test_held_out_pictures_have_no_pair_in_both_parts(call: Call, photos: Path, tmp_path: Path) -> None:
    assert call(photos, "--out", "made", "--size", 16, "--pairs", 20, "--held-out", 0.5, "--no-flow", *PROCESS)[0] == 0
    train, test = ({record["picture"] for record, *_ in pairs_in(Path("made") / part).values()} for part in ("train", "test"))
    assert len(train) == len(test) == 2 and not train & test and not Path("made/train/flow").exists()
    frames = [Image.fromarray(textured(number)) for number in range(4)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert call("film.gif", "--out", "film", "--held-out", 0.25, *PROCESS)[0] == 0
    assert [record["picture"] for record, *_ in pairs_in(Path("film/test")).values()] == ["film.gif, frame 3"]
    code, _, err = call("photos/p1.png", "--out", "one", "--pairs", 4, "--held-out", 0.5)
    assert code == 2 and "there is only one" in err and not Path("one").exists()


def test_pieces_are_cut_out_at_places_of_their_own(call: Call, photos: Path, tmp_path: Path) -> None:
    save(photos / "small.png", textured(0, 7, 30))
    code, _, err = call(photos, "--out", "made", "--size", "8x60", "--crop", *PROCESS)
    assert code == 2 and "no pair was made: 5 of 5 pictures" in err and not Path("made").exists()
    code, out, _ = call(photos, "--out", "made", "--pairs", 25, "--size", "8x6", "--crop", *PROCESS)
    assert code == 0 and "small.png: 7 x 30 pixels, too small for a piece of 8 x 6" in out and "20 pairs" in out
    found = [(record, clean) for record, clean, *_ in pairs_in(Path("made/train")).values()]
    assert len({tuple(record["piece"]) for record, _ in found}) > 10
    for record, clean in found:
        (top, left), whole = record["piece"], read_image(photos / record["picture"])
        np.testing.assert_array_equal(clean, whole[:, top : top + 8, left : left + 6])


def test_a_burst_is_one_scene_behind_moving_or_independent_air(call: Call, photos: Path) -> None:
    moving = ("--burst", 3, "--interval", 0.02, "--draw", "wind", 5, 5, "--format", "npz")
    assert call(photos, "--out", "moving", *moving)[0] == call(photos, "--out", "other", *moving[:2], "--format", "npz")[0] == 0
    for name, kinds in (("moving", 1), ("other", 3)):
        for record, clean, degraded, flow in pairs_in(Path(name) / "train").values():
            assert len(degraded) == 3 and len(set(record["seeds"])) == kinds and flow is not None
            assert len({frame.tobytes() for frame in degraded}) == 3
            air = OpticalTurbulence(d_over_r0=record["parameters"]["d_over_r0"], wind=record["parameters"].get("wind", 0.0))
            for frame, seed, moment in zip(degraded, record["seeds"], record.get("times", (0.0, 0.0, 0.0)), strict=True):
                alone = replace(air, time=moment)(torch.from_numpy(clean)[None], air.levels, seed)
                np.testing.assert_array_equal(frame, alone[0].numpy())
    assert call(photos / "p1.png", "--out", "star", "--no-spherical", "--format", "npz")[0] == 0
    ((record, clean, degraded, _),) = pairs_in(Path("star/train")).values()
    star = OpticalTurbulence(record["parameters"]["d_over_r0"], spherical=False)
    np.testing.assert_array_equal(degraded, star(torch.from_numpy(clean)[None], star.levels, record["seeds"]).numpy())
    code, _, err = call(photos, "--out", "no", "--burst", 2, "--interval", 0.1, *PROCESS)
    assert code == 2 and "--interval is for optical turbulence" in err and not Path("no").exists()
    code, _, err = call(photos, "--out", "no", "--burst", 2, "--interval", 1e9)
    assert code == 2 and err.startswith("error: time [s] must be from") and not Path("no").exists()


def test_the_noise_of_a_sensor() -> None:
    """Variance shot^2 u + read^2, the same in any batch, another one at another time."""
    u = torch.linspace(0.0, 1.0, 5)[:, None, None, None].expand(5, 1, 64, 64).contiguous()
    camera = Sensor(Still(), shot_noise=0.2, read_noise=0.1)
    noise = camera(u, 1, torch.arange(5)) - u
    expected = 0.04 * u[:, 0, 0, 0] + 0.01
    # The variance of N samples has a relative standard deviation of (2 / N)^(1/2).
    assert ((noise.var(dim=(1, 2, 3)) / expected - 1).abs() < 5 * (2 / 64**2) ** 0.5).all()
    torch.testing.assert_close(camera(u[2:3], 1, 2) - u[2:3], noise[2:3], rtol=0, atol=0)
    later = replace(camera, operator=replace(camera.operator, time=1.0))
    assert ((later(u, 1, torch.arange(5)) - u) * noise).mean().abs() < 5 * 0.03 / noise.numel() ** 0.5
    black = torch.zeros(1, 1, 4, 4, requires_grad=True)
    replace(camera, read_noise=0.0)(black, 1, 0).sum().backward()
    assert black.grad is not None and black.grad.isfinite().all()


@dataclass(frozen=True)
class Still(Operator):
    """Darker by a factor, to a number of powers."""

    factor: float = 1.0
    time: float = 0.0
    levels: int = 4

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 * self.factor ** level[:, None, None, None].to(u0)


def test_an_operator_and_pictures_of_ones_own(tmp_path: Path) -> None:
    pictures = [chw(textured(number)) for number in range(3)]
    gallery = Gallery.of(pictures, "\udcfc")  # of a name that is not UTF-8
    ranges = Ranges(Still(), (2, 2), {"factor": (0.5, 0.9)})
    made = write_pairs(
        gallery, tmp_path / "made", Degrade(ranges, burst=2, interval=1.0), PairOptions(format="npz"), about={"by": "me"}
    )
    assert made[:2] == (3, False) and not made.left_out
    for (record, clean, degraded, flow), picture in zip(pairs_in(tmp_path / "made" / "train").values(), pictures, strict=True):
        assert record["picture"].startswith(r"\udcfc, picture")
        np.testing.assert_array_equal(clean, picture)
        np.testing.assert_allclose(degraded[1], picture * record["parameters"]["factor"] ** 2, rtol=1e-5)
        np.testing.assert_array_equal(degrade_again(record, clean, types=[Still]), degraded)
        assert flow is None
        with pytest.raises(InputError, match=r"types=\[Still\]"):
            degrade_again(record, clean)
    with pytest.raises(InputError, match="entries operator, parameters and seeds; this has not"):
        degrade_again({"other": 1}, pictures[0])
    with pytest.raises(InputError, match="the clean picture: expected floating-point"):
        degrade_again(record, np.uint8(255 * pictures[0]), types=[Still])
    broken = Degrade(lambda seed: Drawn(Still(float("nan")), 1))
    with pytest.raises(InputError, match=r"no pair was made: 3 of 3 .*Still gives values that are NaN or infinite"):
        write_pairs(Gallery.of(pictures), tmp_path / "nan", broken)
    kept = Degrade(lambda seed: Drawn(AdvectionDiffusion(Schedule.geometric(), turbulence=CurlNoise()), 1))  # no dataclass
    with pytest.raises(InputError, match="an operator of pairs holds a AdvectionDiffusion"):
        write_pairs(Gallery.of(pictures), tmp_path / "object", kept)
    assert not (tmp_path / "object").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: np.uint8(255 * u), r"picture 0: expected floating-point \[C, H, W\] in .*, C = 1 or 3, of numpy; got uint8"),
        (lambda u: u.transpose(1, 2, 0), r"got float32 \[20, 24, 3\]"),
        (lambda u: u[[0, 1, 2, 0]], r"got float32 \[4, 20, 24\]"),
        (torch.from_numpy, r"got torch.float32 \[3, 20, 24\]"),
        (lambda u: 255.0 * u, "values from .* to 255; expected 0 to 1"),
        (lambda u: u * np.nan, "NaN or infinite"),
    ],
)
def test_pictures_of_another_kind_are_refused(tmp_path: Path, change: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_pairs(Gallery.of([change(chw(textured(0)))]), tmp_path / "made", Degrade(Ranges(Still())))
    assert not list((tmp_path / "made").glob("*"))


def test_what_makes_no_pairs_is_refused(tmp_path: Path, photos: Path) -> None:
    degrade, pictures = Degrade(Ranges(Still())), open_gallery(str(photos))
    write_pairs(pictures, tmp_path / "made", degrade)
    for make, message in (
        (lambda: write_pairs(pictures, tmp_path / "again", degrade), "which can be done once; open them again"),
        (lambda: write_pairs(Gallery.of([]), tmp_path / "again", degrade), "there are no pictures"),
        (lambda: Degrade(Still()), r"a function of a seed, such as Ranges\(operator\)"),  # type: ignore[arg-type]
        (lambda: Ranges(Still), "operator must be a lbm_warp.Operator, got a class"),  # type: ignore[arg-type]
        (lambda: Ranges(Still(), 3), "level takes two numbers, from and to, got 3"),  # type: ignore[arg-type]
        (lambda: Ranges(Still(), ranges={"factor": (1.0,)}), "factor takes two numbers"),  # type: ignore[dict-item]
    ):
        with pytest.raises(InputError, match=message):
            make()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--draw", "level", 40, 20), "level from 40 to 20: expected the smaller number first"),
        (("--draw", "level", 0, 20), "the lowest level must be at least 1"),
        (("--draw", "level", 10, 2000), "the highest level must be from 1 to 200"),
        (("--draw", "level", 1.5, 2), "whole numbers"),
        (("--draw", "peclet", -1, 2), "peclet must be from 0"),
        (("--draw", "peclet", "nan", 2), "peclet must be from 0"),
        (("--draw", "peclet", 1, "inf"), "peclet"),
        (("--draw", "pecelt", 1, 2), "no part has a value called pecelt; there are"),
        (("--draw", "peclet", 1), "--draw"),
        (("--draw", "boundary", 1, 2), "boundary is a str, and only numbers are drawn"),
        (("--draw", "transport", 0, 1), "transport is a bool, and only numbers are drawn"),
        (("--draw", "read_noise", 0, 1, "--draw", "read_noise", 0, 2), "--draw read_noise is given twice"),
        (("--draw", "read_noise", -1, 1), "read_noise must be from 0"),
        (("--no-spherical",), "--spherical is for optical turbulence"),
        (("--draw", "d_over_r0", 1, 2), "no part has a value called d_over_r0"),
        (("--process", "ddpm", "--draw", "peclet", 1, 2), "no part has a value called peclet"),
        (("--process", "fliud"), "did you mean fluid?"),
        (("--burst", 0), "--burst must be from 1"),
        (("--interval", -1), "--interval must be at least 0"),
        (("--interval", 1), "add --burst, or leave it out"),
        (("--pairs", 0), "--pairs must be from 1"),
        (("--shards", 0), "--shards must be from 1"),
        (("--workers", 0), "--workers must be from 1"),
        (("--crop",), "give it with --size"),
        (("--size", "big"), "size must be"),
        (("--size", 1), "size must be"),
        (("--held-out", 1.5), "--held-out must be from 0 to 0.9"),
        (("--format", "jpeg"), "jpeg"),
        (("--seed", -1), "--seed must be from 0"),
        (("--device", "tpu"), "--device tpu"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_nothing_is_written(call: Call, photos: Path, arguments: tuple, words: str) -> None:
    code, out, err = call(photos, "--out", "made", *PROCESS[:2], *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: ") and words in err
    assert not Path("made").exists()


def test_bad_pictures_are_one_line(call: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    (tmp_path / "page.html").write_text("<html>")
    (tmp_path / "floats").mkdir()
    for name, white in (("a", 1.0), ("b", 60000.0)):
        Image.fromarray(np.float32(np.eye(4) * white)).save(tmp_path / "floats" / f"{name}.tif")
    for data, words in (
        ("empty", "no image files"),
        ("missing", "no such folder or archive"),
        ("text", "no image among the 1"),
        ("floats", r"values from 0 (floats/a.tif) to 60000 (floats/b.tif); expected 0 to 1"),
        ("page.html", "neither a picture that Pillow can read nor a video"),
        ("cifar10", "cifar-10-binary.tar.gz"),
    ):
        code, out, err = call(data, "--out", "made")
        assert code == 2 and out == "" and err.count("\n") == 1 and words in err, err
    assert not Path("made").exists()


def test_a_full_disk_is_one_line_and_leaves_whole_files(call: Call, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if "000002" in self.name:
            write(self, content[:10])
            raise OSError(28, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    code, _, err = call(photos, "--out", "made", "--size", 16, *PROCESS)
    assert code == 2 and err.count("\n") == 1 and "No space left on device" in err
    found = pairs_in(Path("made/train"))
    assert len(found) == 2 and not any("part" in name for name in files(Path("made")))
    monkeypatch.setattr(Path, "write_bytes", write)
    assert call(photos, "--out", "made", "--size", 16, *PROCESS)[1] == "wrote 2 pairs to made; the others were there\n"


@pytest.mark.slow
def test_datasets_reads_them_as_they_are(call: Call, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for out, form, extra in (("folder", "imagefolder", ()), ("tar", "webdataset", ("--shards", 3))):
        assert call(photos, "--out", out, "--size", 16, "--pairs", 8, "--held-out", 0.25, "--burst", 2, *PROCESS, *extra)[0] == 0
        found = datasets.load_dataset(form, data_dir=str(tmp_path / out), cache_dir=str(tmp_path / "cache"))
        assert {part: len(rows) for part, rows in found.items()} == {"train": 6, "test": 2}
        row = found["train"][0]
        record = row if form == "imagefolder" else row["json"]
        clean = row["clean" if form == "imagefolder" else "clean.png"]
        degraded = row["degraded"] if form == "imagefolder" else [row["degraded.00.png"], row["degraded.01.png"]]
        again = degrade_again(record, chw(np.asarray(clean)))
        for frame, image in zip(again, degraded, strict=True):
            np.testing.assert_allclose(frame.clip(0, 1), chw(np.asarray(image)), atol=0.51 / 255)


def test_the_files_are_read_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_files, "STRIP", 14)  # rows of a PNG that are packed at a time: two
    tifffile = pytest.importorskip("tifffile")
    words = np.random.default_rng(0).integers(0, 65536, (5, 7, 4), dtype=np.uint16)
    for pixels in (words, words[..., :3], words[..., :1]):
        found = tifffile.imread(io.BytesIO(pair_files.tiff(pixels, "beyond-blur: corrupted")))
        np.testing.assert_array_equal(np.atleast_3d(found), pixels)
        levels = (pixels >> 8).astype(np.uint8)
        np.testing.assert_array_equal(np.atleast_3d(np.asarray(Image.open(io.BytesIO(pair_files.png(levels))))), levels)
    grey = (words[..., :2] >> 8).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(pair_files.png(grey)))), grey)
