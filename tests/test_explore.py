"""The explorer's server: its numbers are the operator's and the pipeline's, its commands make the same files, its bounds hold."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from email.message import Message
from functools import partial
from importlib import metadata
from itertools import islice
from pathlib import Path
from urllib.parse import urlencode

import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette", reason="the extra 'explore' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'explore' is not installed")

from cli import corrupt, restore, sample
from cli.compare import power_spectrum
from cli.explore import __main__ as command
from cli.explore import pictures as store
from cli.explore import stream
from cli.explore.pictures import Pictures
from cli.explore.server import application, corruption
from cli.explore.stream import Gone, Turns, steps, told
from cli.explore.studio import PACE, SIZES, Studio
from cli.render import quantised, to_pixels
from cli.scene import PHOTOGRAPH
from diffusion.data.images import read_image, resize_shorter
from diffusion.methods import METHODS
from diffusion.sampling import tiles
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.restoration import restore as restored
from diffusion.specs import changed
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule
from lbm_warp.checks import InputError
from tests.explorer import add, ask, messages, pictures, serving, streamed
from tests.runs import exit_code, said


@pytest.fixture(scope="module")
def address(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished_run, runs / "stripes")
    with serving(runs) as place:
        yield place


@pytest.fixture
def small_films(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding a film takes longer than all the rest, and of large frames several times as long."""
    for module in ("corrupt", "explore.studio"):
        monkeypatch.setattr(f"cli.{module}.VIDEO_SIZE", 128)


def as_png(picture: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "png")
    return data.getvalue()


def cat(size: int) -> torch.Tensor:
    return torch.from_numpy(resize_shorter(read_image(PHOTOGRAPH), size))[None]


def test_numbers_of_a_trajectory_are_the_operators(address: str) -> None:
    query = {"size": 128, "frames": 5, "peclet": 90, "sigma": 0.06, "octaves": 3, "seed": 4, "time": 0.5}
    scene, *frames = messages(address, "trajectory", query)
    schedule = Schedule(0.06 * 128 * np.linspace(0.0, 1.0, 5) ** 1.15)
    operator = AdvectionDiffusion(schedule, peclet=90.0, turbulence=CurlNoise(octaves=3), turbulence_time=0.5)
    height, width = scene["height"], scene["width"]
    field = np.frombuffer(scene["body"], np.float32).reshape(2, *scene["field"])
    assert np.array_equal(field, operator.velocity(4, *scene["field"])[0].numpy())
    for message, (number, u) in zip(frames, operator.trajectory(cat(128), 4), strict=True):
        assert np.array_equal(pictures(message, height, width, 3), to_pixels(u[0]))
        assert message["sigma"] == schedule.sigma[number] and message["mean"] == pytest.approx(u.double().mean().item(), rel=1e-12)
        assert message["fourier"] == pytest.approx(schedule.fourier(128)[number], rel=1e-12)
        assert np.allclose(message["spectrum"], power_spectrum(u[0])[1], rtol=1e-12)
        # The velocity of a moving flow at the moment of the frame, on a grid of 32 cells.
        now = np.frombuffer(message["body"][height * width * 3 :], np.float32).reshape(2, *message["field"])
        assert np.array_equal(now, operator.velocity(4, *message["field"], sigma=schedule.sigma[number] * 32 / 128)[0].numpy())


@pytest.mark.parametrize("name", METHODS)
def test_processes_are_those_of_the_library(address: str, name: str) -> None:
    scene, *frames = messages(address, "trajectory", {"size": 128, "frames": 3, "process": name, "seed": 2})
    forward = changed(METHODS[name].forward, levels=2)
    for message, (level, u) in zip(frames, forward.trajectory(cat(128), torch.tensor([2])), strict=True):
        assert np.array_equal(pictures(message, scene["height"], scene["width"], 3), to_pixels(u[0]))
        assert message["noise"] == forward.noise[level] and message["signal"] == forward.signal[level]


@pytest.mark.slow
@pytest.mark.usefixtures("empty_figures")
@pytest.mark.parametrize(
    "query",
    [
        {"peclet": 70, "sigma": 0.05, "octaves": 2, "seed": 11},
        {"peclet": 0},
        {"strokes": "100,500,900,500 500,900,500,100", "peclet": 33},
        {"strokes": "100,500,900,500", "strokes_on": "turbulence", "brush": 0.1, "time": 1, "octaves": 2, "peclet": 33},
        {"turbulence": "spectral", "time": 2, "peclet": 5.5},
        {"process": "fluid"},
        {"process": "beyond-blur-curl", "peclet": 12, "seed": 5},
    ],
)
def test_the_command_line_makes_the_same_files(address: str, small_films: None, tmp_path: Path, query: dict) -> None:
    picture = as_png(np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8))
    query |= {"size": 128, "picture": add(address, picture)[1]["name"]}
    (tmp_path / "mine.png").write_bytes(picture)
    scene, *_, last = messages(address, "trajectory", query | {"frames": 9})
    program, name, *words = shlex.split(scene["command"].replace(query["picture"], str(tmp_path / "mine.png")))
    assert (program, name, words.count("--video")) == ("beyond-blur", "corrupt", 1)
    if "seed" not in query:
        words.remove("--video")
    assert exit_code(corrupt.main, *words, "--out", tmp_path / "out") == 0
    made = np.rint(255.0 * read_image(tmp_path / "out" / "corrupted.png", "RGB").transpose(1, 2, 0))
    # The last level of another number of levels: equal up to rounding of float32, which may turn a half up or down.
    assert np.abs(pictures(last, scene["height"], scene["width"], 3) - made).max() <= 1

    if "seed" not in query:
        return
    (tmp_path / "page.mp4").write_bytes(ask(f"{address}/api/film?{urlencode(query)}")[1])
    with imageio.get_reader(tmp_path / "page.mp4") as film, imageio.get_reader(tmp_path / "out" / "trajectory.mp4") as other:
        assert all(np.array_equal(*frames) for frames in zip(film, other, strict=True))


@pytest.mark.parametrize("mode", ["new", "same-init", "share-noise", "interpolate"])
def test_samples_are_those_of_the_pipeline_and_of_the_command(address: str, tmp_path: Path, mode: str) -> None:
    query = {"model": "digits", "num": 6, "seed": 3, "steps": 4, "mode": mode}
    scene, *frames = messages(address, "samples", query)
    pipeline = Pipeline.from_pretrained("digits")
    if mode == "interpolate":
        expected = pipeline.interpolate([(0, 1)], 6, 3, steps=4)[0]
    else:
        expected = pipeline.sample(6, 3, steps=4, same_init=mode == "same-init", share_noise=mode == "share-noise")
    assert scene["frames"] == len(frames) == 5 and [frames[0]["level"], frames[-1]["level"]] == [1000, 0]
    assert np.array_equal(pictures(frames[-1], 6, 16, 16, 3), np.stack([to_pixels(image) for image in expected]))
    words = shlex.split(scene["command"])[2:]
    words.remove("--video")
    assert exit_code(sample.main, *words, "--out", tmp_path) == 0
    made = np.stack([np.rint(255 * read_image(file, "RGB").transpose(1, 2, 0)) for file in sorted(tmp_path.glob("images/*"))])
    # In another batch convolutions round otherwise, by about 1e-6.
    assert np.abs(made - pictures(frames[-1], 6, 16, 16, 3)).max() <= 1


@pytest.mark.slow
def test_the_film_of_samples_is_that_of_the_command(address: str, tmp_path: Path) -> None:
    query = {"model": "digits", "num": 4, "steps": 3}
    (tmp_path / "page.mp4").write_bytes(ask(f"{address}/api/sampled-film?{urlencode(query)}")[1])
    words = shlex.split(messages(address, "samples", query)[0]["command"])[2:]
    assert exit_code(sample.main, *words, "--out", tmp_path / "out") == 0
    with imageio.get_reader(tmp_path / "page.mp4") as film, imageio.get_reader(tmp_path / "out" / "reverse.mp4") as other:
        assert all(np.array_equal(*frames) for frames in zip(film, other, strict=True))


def test_runs_are_models_too(address: str) -> None:
    choices = json.loads(ask(f"{address}/api/choices")[1])
    assert choices["models"][:3] == ["digits", "fashion", "emoji"] and list(choices["processes"]) == list(METHODS)
    (run,) = choices["models"][3:]
    scene, *_, last = messages(address, "samples", {"model": run, "num": 3})
    assert f"beyond-blur sample {run}" in scene["command"] and len(pictures(last, 3, scene["height"], scene["width"], 3)) == 3


@pytest.mark.slow
def test_restorations_are_those_of_the_library_and_of_the_command(address: str, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained("digits")
    degraded = quantised(pipeline.forward.corrupt(pipeline.sample(1, 5), 400, torch.tensor([1]))[0])[..., 0]
    name = add(address, as_png(degraded))[1]["name"]
    query = {"picture": name, "model": "digits", "samples": 3, "seed": 2}
    found = messages(address, "restored", query)
    progress = [message for message in found if message["kind"] == "progress"]
    scene, estimate, *frames, result = (message for message in found if message not in progress)
    assert [one["done"] for one in progress] == sorted({one["done"] for one in progress}) and progress[-1]["done"] <= progress[0][
        "of"
    ]
    assert estimate["low"] <= estimate["level"] <= estimate["high"] and estimate["warning"] is None and estimate["clean"] < 0.01
    assert scene["own"] == [16, 16] and "own size, 16 x 16 px" in scene["text"]
    assert np.isclose(sum(estimate["probability"]), 1.0)
    z = torch.from_numpy(degraded)[None].float() / 255.0
    expected = restored(pipeline, z, estimate["level"], 3, 2)
    assert np.array_equal(pictures(frames[-1], 3, 16, 16, 3), np.stack([to_pixels(image) for image in expected]))
    assert np.array_equal(pictures(result, 16, 16, 3), to_pixels(expected.mean(dim=0)))

    (tmp_path / "mine.png").write_bytes(as_png(degraded))
    words = shlex.split(scene["command"].replace(name, str(tmp_path / "mine.png")))[2:]
    assert exit_code(restore.main, *words, "--out", tmp_path / "out") == 0
    made = np.rint(255 * read_image(tmp_path / "out" / "restored.png", "RGB").transpose(1, 2, 0))
    assert np.abs(made - pictures(result, 16, 16, 3)).max() <= 1


def assembled(parts: list[dict], height: int, width: int) -> np.ndarray:
    """The pixels of the tiles of a photograph, and of what is not known, uint8 [2, H, W, 3]."""
    whole = np.zeros((2, height, width, 3), np.uint8)
    for part in parts:
        size = part["height"], part["width"]
        whole[:, part["top"] :, part["left"] :][:, : size[0], : size[1]] = pictures(part, 2, *size, 3)
    return whole


def test_a_photograph_is_restored_as_by_the_command(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tiles", partial(tiles.tiles, side=64))
    data = io.BytesIO()
    with Image.open(PHOTOGRAPH) as image:
        image.crop((120, 60, 220, 140)).save(data, "png")
    (tmp_path / "mine.png").write_bytes(data.getvalue())
    query = {"picture": add(address, data.getvalue())[1]["name"], "model": "photographs"}
    scene, estimate, *parts, result = messages(address, "restored", query | {"noise": 0.05})
    assert (scene["height"], scene["width"], scene["own"]) == (80, 100, [80, 100]) and "100 x 80 px" in scene["text"]
    assert estimate["noise"] == [0.05, 0.0] and estimate["sigma"][1] > 0.0
    words = shlex.split(scene["command"].replace(query["picture"], str(tmp_path / "mine.png")))[2:]
    assert words[1:] == ["--noise", "0.05"] and exit_code(restore.main, *words, "--out", tmp_path / "out") == 0
    assert len(parts) == 4
    for pixels, name in zip(assembled(parts, 80, 100), ("restored", "spread"), strict=True):
        made = np.rint(255.0 * read_image(tmp_path / "out" / f"{name}.png", "RGB").transpose(1, 2, 0))
        assert np.abs(pixels - made).max() <= 1
    record = json.loads((tmp_path / "out" / "restoration.json").read_text())
    assert result["half_width"] == pytest.approx(record["half_width_90_percent"], rel=1e-4)

    # Degraded first: what is found is what it was given, and what comes back is nearer to the clean one.
    given = {"degrade_blur": 1.0, "degrade_noise": 0.1, "seed": 3}
    scene, clean, estimate, *parts, _ = messages(address, "restored", query | given)
    assert scene["command"] == "beyond-blur restore degraded.png"
    assert np.array_equal(pictures(clean, 80, 100, 3), np.asarray(Image.open(tmp_path / "mine.png").convert("RGB")))
    noise, spread = estimate["noise"]
    assert abs(noise - 0.1) < 4.0 * spread + 0.01
    z, u0 = (pictures(one, 80, 100, 3).astype(float) for one in (scene, clean))
    assert np.square(assembled(parts, 80, 100)[0] - u0).mean() < 0.3 * np.square(z - u0).mean()


def test_of_a_large_photograph_the_middle_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.explore.studio.MOST_PHOTOGRAPH", 64 * 96)
    studio = Studio(torch.device("cpu"), tmp_path)
    pipeline, read, own = studio.degraded("chelsea", "photographs")
    whole = read_image(PHOTOGRAPH)
    (_, height, width), (top, left) = read.shape, ((whole.shape[1 + i] - read.shape[1 + i]) // 2 for i in range(2))
    assert own == whole.shape[1:] and 0.95 < height * width / (64 * 96) <= 1.0
    assert np.array_equal(read, whole[:, top : top + height, left : left + width])
    made = studio.photograph(pipeline, read, own, restore.Restore((Path("chelsea"),), "photographs"))
    assert b"This is the middle of 451 x 300 px; the command restores all of it." in next(made)
    made.close()


@pytest.mark.parametrize(
    ("what", "query", "message"),
    [
        ("trajectory", {"size": 100}, "size must be one of 128, 256, 512, got 100"),
        ("trajectory", {"size": "x"}, "size must be a number, got 'x'"),
        ("trajectory", {"peclet": "nan"}, "peclet must be from 0 to 2000, got nan"),
        ("trajectory", {"peclet": 1e9}, "peclet must be from 0 to 2000"),
        ("trajectory", {"sigma": 2}, "sigma must be from 0.01 to 0.5, got 2"),
        ("trajectory", {"octaves": 99}, "octaves must be from 1 to 8, got 99"),
        ("trajectory", {"seed": -1}, "seed must be from 0"),
        ("trajectory", {"turbulence": "none"}, "turbulence must be one of curl-noise, spectral"),
        ("trajectory", {"frames": 100000}, "frames must be from 2 to 240, got 100000"),
        ("trajectory", {"process": "flud"}, "did you mean fluid?"),
        ("trajectory", {"strokes": "1"}, "a stroke has an x and a y"),
        ("trajectory", {"picture": "../../etc/passwd"}, "no longer in the memory of this machine; drop it on the page again"),
        ("samples", {"model": "/etc"}, "unknown model '/etc'"),
        ("samples", {"num": 100}, "number of samples must be from 1 to 64, got 100"),
        ("samples", {"steps": 5000}, "got 5000"),
        ("samples", {"label": "cat", "model": "fashion"}, "unknown label 'cat'"),
        ("samples", {"mode": "old"}, "unknown mode 'old'"),
        ("samples", {"model": "photographs"}, "photographs restores photographs, and draws none"),
        ("restored", {"samples": 99}, "number of samples must be from 1 to 16, got 99"),
        ("restored", {"level": 5000}, "got 5000"),
        ("restored", {"level": 0}, "level must be at least 1, got 0"),
        ("restored", {"degrade": 1001}, "level that it is degraded to must be from 1 to 1000, got 1001"),
        ("restored", {"model": "photographs", "blur": 9}, "blur must be from 0 to 4, got 9"),
        ("restored", {"model": "photographs", "degrade_noise": "nan"}, "degrade noise must be from 0 to 0.25, got nan"),
    ],
)
def test_what_is_wrong_is_said_in_words(address: str, what: str, query: dict, message: str) -> None:
    status, body = ask(f"{address}/api/{what}?{urlencode(query)}")
    text = json.loads(body)["error"] if status != 200 else messages(address, what, query)[-1]["text"]
    assert status in ((410,) if "picture" in query else (200, 400)) and message in text and "\n" not in text
    assert not text.startswith("--")  # a knob is no option


def bomb() -> bytes:
    """A PNG file of a few bytes that says it has 10^10 pixels."""
    data = bytearray(as_png(np.zeros((2, 2, 3), np.uint8)))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "this file"),
        (b"not a picture" * 100, "this file"),
        (as_png(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))[:2000], "this file"),
        (b"\0" * (16 * 2**20 + 1), "larger than 16 MiB"),
        (bomb(), "this file"),
        (b"<svg onload='alert(1)' xmlns='http://www.w3.org/2000/svg'/>", "this file"),
        (as_png(np.zeros((3, 100, 3), np.uint8)), "100 x 3 pixels; sides of at most 4 : 1"),
    ],
    ids=["empty", "text", "cut", "large", "bomb", "svg", "narrow"],
)
def test_hostile_pictures_are_refused_in_words(address: str, data: bytes, message: str) -> None:
    status, answer = add(address, data)
    assert status == 400 and message in answer["error"] and "\n" not in answer["error"]


def test_other_sites_are_not_answered(address: str) -> None:
    picture = as_png(np.zeros((8, 8, 3), np.uint8))
    assert ask(f"{address}/api/pictures", picture, content_type="text/plain")[0] == 400
    assert ask(f"{address}/api/choices", sec_fetch_site="cross-site")[0] == 403
    assert ask(f"{address}/api/choices", host="evil.example")[0] == 400
    assert ask(f"{address}/page/../../console.py")[0] == 404 and ask(f"{address}/page/%2e%2e/server.py")[0] == 404
    assert ask(f"{address}/?view=generate")[0] == 200


def test_pictures_take_a_bounded_amount_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Pictures({"cat": PHOTOGRAPH})
    files = [as_png(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)) for seed in range(6)]
    monkeypatch.setattr(store, "MOST_KEPT", 3 * len(files[0]))
    monkeypatch.setattr(store, "MOST_RESIZED", 2 * 32 * 32 * 3 * 4)
    names = [kept.add(file)["name"] for file in files]
    assert len(set(names)) == 6 and list(kept.added) == names[-3:]
    for name in names[-3:]:
        assert kept.of_size(name, 32).shape == (3, 32, 32)
    assert list(kept.resized) == [(name, 32) for name in names[-2:]]
    with pytest.raises(InputError, match="drop it on the page again"):
        kept.read(names[0])
    # The same file has the same name, so a link to it works again.
    assert kept.add(files[0])["name"] == names[0] and kept.read(names[0]).shape == (3, 16, 16)
    assert kept.read("cat").shape[0] == 3


@pytest.mark.slow
def test_twenty_visitors_at_once_get_their_own_in_bounded_memory(address: str) -> None:
    names = [add(address, as_png(np.full((24, 24, 3), 10 * i, np.uint8)))[1]["name"] for i in range(20)]

    def visit(number: int) -> list[dict]:
        return messages(address, "trajectory", {"size": 128, "frames": 24, "peclet": 50, "seed": number, "picture": names[number]})

    alone = [visit(number) for number in (3, 17)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(visit, range(20)))
    assert [together[3], together[17]] == alone
    for number, found in enumerate(together):
        assert len(found) == 25
        # A flat picture stays flat, at its own brightness.
        assert np.abs(pictures(found[-1], 128, 128, 3).astype(int) - 10 * number).max() <= 1
    # What they got is 20 x 24 x 48 KiB = 23 MiB, and is held here as well; the server holds a few frames of each.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 300.0


def test_a_visitor_who_leaves_is_forgotten(address: str) -> None:
    host, port = address.removeprefix("http://").split(":")
    threads = threading.active_count()
    for _ in range(3):
        with socket.create_connection((host, int(port))) as line:
            line.sendall(f"GET /api/samples?num=64&model=digits HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            line.recv(100)
    # Others are served after it, and its work ends.
    assert messages(address, "trajectory", {"size": 128, "frames": 2})[-1]["number"] == 1
    for _ in range(100):
        if threading.active_count() <= threads + 2:
            break
        threading.Event().wait(0.1)
    assert not [thread for thread in threading.enumerate() if "run" in thread.name and thread.name.startswith("Thread")][threads:]


def test_steps_go_on_only_while_they_are_asked_for() -> None:
    done: list[object] = []

    def work(emit) -> None:
        try:
            for number in range(5):
                done.append(number)
                emit(number)
        except Gone:
            done.append("gone")
            raise

    iterator = steps(work)
    assert [next(iterator), next(iterator)] == [0, stream.REST] and done == [0]
    assert next(iterator) == 1 and done == [0, 1]
    iterator.close()
    for _ in range(100):
        if "gone" in done:
            break
        threading.Event().wait(0.01)
    assert done == [0, 1, "gone"]
    assert list(steps(lambda emit: [emit(n) for n in "ab"])) == ["a", stream.REST, "b", stream.REST]

    def wrong(emit) -> None:
        emit(1)
        raise InputError("no more")

    async def all_of_it() -> list[bytes]:
        return [one async for one in told(Turns().add("a", "b", (n if n is stream.REST else bytes([n]) for n in steps(wrong))))]

    found = asyncio.run(all_of_it())
    assert found[0] == b"\1" and b'"text": "no more"' in found[1] and len(found) == 2


def test_one_network_works_at_a_time() -> None:
    """The activations of several would need several times the memory."""
    inside: list[str] = []

    def work(name: str) -> Iterator[object]:
        def step(emit) -> None:
            stream.enter()
            inside.append(name)
            emit(stream.PAUSE)
            inside.remove(name)
            stream.leave()

        return steps(step)

    one, other, third = work("one"), work("other"), work("third")
    assert next(one) is stream.PAUSE and next(other) is stream.REST and inside == ["one"]
    assert list(one) == [] and next(other) is stream.PAUSE and next(third) is stream.REST and inside == ["other"]
    other.close()  # who leaves in the middle gives the place away
    while (made := next(third)) is stream.REST:
        pass
    assert made is stream.PAUSE and list(third) == []


def test_clients_take_turns_and_so_do_the_works_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "TURN", 0.0)
    order: list[str] = []

    def work(name: str, count: int = 3) -> Iterator[object]:
        for _ in range(count):
            order.append(name)
            yield stream.PAUSE
        yield name

    async def all_of_them() -> list[str]:
        turns = Turns()
        works = [turns.add("one", name, work(name)) for name in "ab"] + [turns.add("other", "c", work("c"))]
        return [await one.next() for one in works]

    assert asyncio.run(all_of_them()) == ["a", "b", "c"]
    # Each second turn is the other client's, as long as it wants one.
    assert "".join(order)[:6] in ("acbcac", "cacbca") and sorted(order) == sorted(3 * "abc")


def test_a_newer_wish_and_a_longer_queue_end_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST", 3)
    monkeypatch.setattr(stream, "STALLED", 0.05)
    closed: list[str] = []

    def work(name: str) -> Iterator[str]:
        try:
            while True:
                yield name
        finally:
            closed.append(name)

    async def told_of() -> list[bytes]:
        turns = Turns()
        older, newer = turns.add("a", "film", work("older")), turns.add("a", "film", work("newer"))
        assert await newer.next() == "newer"
        said = [[one async for one in told(older)][-1]]
        turns.add("b", "film", work("stalled")), turns.add("c", "film", work("c"))
        with pytest.raises(stream.Busy, match="3 pages are being served"):
            turns.add("d", "film", work("d"))
        await asyncio.sleep(0.1)
        await newer.next()  # whoever reads stays
        assert await turns.add("d", "film", work("d")).next() == "d" and len(turns.works) == 3 and newer in turns.works
        for client in "abcd":
            turns.end(client, None, "over")
        assert not turns.works
        turns._thread.shutdown()
        return said

    assert b'"kind": "cancelled", "text": "something newer was asked for"' in asyncio.run(told_of())[0]
    assert sorted(closed) == ["c", "d", "newer", "stalled"]  # the older one had not begun


@pytest.mark.parametrize(
    "query",
    [
        {"peclet": 100, "sigma": 0.1},
        {"peclet": 60, "time": 2},
        {"peclet": 0},
        *({"process": name} for name in ("fluid", "beyond-blur", "soft", "ddpm")),
    ],
)
def test_a_trajectory_in_short_turns_and_with_a_frame_first_is_the_same(tmp_path: Path, query: dict) -> None:
    studio = Studio(torch.device("cpu"), tmp_path)
    chosen = studio.chosen(corruption({"size": "128"} | {name: str(value) for name, value in query.items()}), "chelsea", 5)
    scene, *frames = [made for made in studio.trajectory(chosen) if made is not stream.PAUSE]
    studio.pace = dict.fromkeys(SIZES, 1e-2 * PACE)  # as on a slow machine: turns of a hundredth of the iterations
    made = list(studio.trajectory(chosen, at=0.5))
    pauses = sum(one is stream.PAUSE for one in made)
    assert [one for one in made if one is not stream.PAUSE] == [scene, frames[2], *frames[:2], *frames[3:]]
    assert pauses > 10 or query.get("peclet") == 0 or query.get("process") in ("soft", "ddpm")


def test_what_takes_too_long_is_said_before(tmp_path: Path) -> None:
    studio = Studio(torch.device("cpu"), tmp_path)
    options = corruption({"size": "512", "peclet": "1000", "sigma": "0.32"})
    studio.pace = dict.fromkeys(SIZES, 1e9)
    chosen = studio.chosen(options, "chelsea", 48)
    assert chosen.u0.shape[2] == 256 and re.match(r"At 512 px this takes about \d min; it is shown at 256 px", str(chosen.warning))
    assert "--size 512" in json.loads(next(studio.trajectory(chosen)).split(b"}")[0][4:] + b"}")["command"]
    studio.pace = dict.fromkeys(SIZES, 1e8)
    with pytest.raises(InputError, match=r"this film takes about \d+ min, at most 10 min .* or the command: beyond-blur corrupt"):
        studio.chosen_film(options, "chelsea")
    studio.pace = dict.fromkeys(SIZES, 1e6)
    with pytest.raises(InputError, match="take a smaller Peclet number"):
        studio.chosen(options, "chelsea", 48)


@pytest.mark.slow
def test_knobs_are_answered_while_one_client_asks_for_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in turns and in processor time, which a busy machine does not change."""
    for most in ("MOST_SECONDS", "MOST_FILM_SECONDS"):
        monkeypatch.setattr(f"cli.explore.studio.{most}", 1e9)  # nothing is refused
    app = application(torch.device("cpu"), tmp_path)
    app.state.studio.warm_up()
    worst = {"size": 512, "peclet": 1000, "sigma": 0.32, "client": "worst"}
    with serving(tmp_path, app) as address, ThreadPoolExecutor(32) as pool:
        films = [pool.submit(ask, f"{address}/api/film?{urlencode(worst)}") for _ in range(4)]
        greedy = streamed(address, "trajectory", worst | {"frames": 48})
        assert next(greedy)["kind"] == "scene"
        # Four clicks are one film.
        ended = [film.result()[0] for film in islice(as_completed(films, 60.0), 3)]
        assert ended == [409] * 3 and sum(work.share == "films" for work in app.state.turns.works) == 1

        def knob(number: int) -> int:
            query = {"size": 128, "frames": 32, "peclet": 400, "seed": number, "at": 0.3, "client": number}
            wished = streamed(address, "trajectory", query)
            assert [next(wished)["kind"], next(wished)["number"]] == ["scene", 9]
            wished.close()
            return number

        before, begin = app.state.turns.count, time.process_time()
        assert list(pool.map(knob, range(19))) == list(range(19))
        # In a round everybody has a turn, and so have the two greedy ones; a knob needs one or two, and what is left goes on.
        assert app.state.turns.count - before < 6 * 21
        assert time.process_time() - begin < 8.0
        greedy.close()
        assert json.loads(ask(f"{address}/api/cancel?client=worst", b"")[1])["ended"] >= 1
        assert [film.result(20.0)[0] for film in films] == [409] * 4
        # With what the other threads of this process did meanwhile; the whole takes minutes.
        assert app.state.turns.longest < 2.0


@pytest.mark.slow
def test_a_film_says_how_far_it_is_and_can_be_cancelled(address: str) -> None:
    query = {"size": 128, "peclet": 30, "client": "me"}
    films = streamed(address, "film", query | {"progress": 1})
    first = next(films)
    assert first["kind"] == "progress" and first["of"] == 240 and first["seconds"] > 0.0
    assert json.loads(ask(f"{address}/api/cancel?client=me&slot=film", b"")[1]) == {"ended": 1}
    assert list(films)[-1]["kind"] == "cancelled"
    *progress, film = messages(address, "film", query | {"progress": 1})
    assert film["kind"] == "film" and film["body"] == ask(f"{address}/api/film?{urlencode(query)}")[1]
    done = [message["done"] for message in progress]
    assert done == sorted(done) and done[-1] > 0 and {message["kind"] for message in progress} == {"progress"}


@pytest.mark.slow
def test_after_long_and_rough_use_nothing_is_left(tmp_path: Path) -> None:
    """A thousand requests that are aborted, fifty uploads that stop halfway, readers that stall, films that are killed."""
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    line = [sys.executable, "-m", "cli.explore", "--port", "0", "--device", "cpu"]
    env = os.environ | {"TMPDIR": str(tmp_path)}

    def left() -> list[Path]:
        return [file for file in tmp_path.rglob("*") if not file.is_dir()]

    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(line, cwd=Path(__file__).parent.parent, env=env, **pipes) as process:
        try:
            address = re.search(r"http://[\w.:]+", process.stdout.readline())[0]
            host, port = address.removeprefix("http://").split(":")

            def begin(text: str, body: bytes = b"") -> socket.socket:
                opened = socket.socket()
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # one that stalls soon stops the server
                opened.connect((host, int(port)))
                opened.sendall(f"{text} HTTP/1.1\r\nHost: {host}\r\n".encode() + body)
                return opened

            def memory() -> float:
                status = Path(f"/proc/{process.pid}/status")
                return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1]) / 1024 if status.exists() else 0.0

            wishes = (
                "trajectory?size=512&peclet=1000&sigma=0.32",
                "trajectory?size=256",
                "samples?num=64",
                "film?size=512",
                "restored?",
                "restored?model=photographs&picture=chelsea",
            )
            for number in range(1000):
                begin(f"GET /api/{wishes[number % 6]}&seed={number}", b"\r\n").close()
            upload = b"Content-Type: application/octet-stream\r\nContent-Length: 9000000\r\n\r\n" + bytes(500_000)
            for _ in range(50):
                begin("POST /api/pictures", upload).close()
            wish = "GET /api/trajectory?size=256&peclet=0&frames=240"
            stalled = [begin(f"{wish}&client={number}", b"\r\n") for number in range(64)]
            for _ in range(60):  # as the page does, while a thousand that have left are forgotten
                status, _ = ask(f"{address}/api/trajectory?size=128&frames=2")
                if status == 200:
                    break
                time.sleep(1.0)
            assert status == 200
            add(address, as_png(np.zeros((3000, 3000, 3), np.uint8)))
            for model in ("digits", "fashion", "emoji"):
                messages(address, "samples", {"model": model, "num": 16, "steps": 4})
            messages(address, "restored", {"picture": "chelsea", "model": "photographs"})
            for one in stalled:
                one.close()
            messages(address, "sampled-film", {"model": "digits", "num": 4, "steps": 4, "progress": 1})
            deadline = time.monotonic() + 20.0  # it is given back some seconds after the last turn
            while memory() >= 800.0 and time.monotonic() < deadline:
                time.sleep(0.5)
            assert memory() < 800.0
            assert not left()
            film = streamed(address, "film", {"size": 128, "progress": 1})
            assert next(film)["kind"] == "progress"
        finally:
            process.kill()
        assert process.stderr.read() == ""  # no traceback
    assert not left() and set(os.listdir("/dev/shm") if shared else ()) <= shared


@pytest.mark.slow
def test_a_clean_picture_stays_and_a_strange_one_is_named(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline.from_pretrained("digits")
    clean = quantised(pipeline.sample(1, 5)[0])[..., 0]
    (tmp_path / "mine.png").write_bytes(as_png(clean))
    name = add(address, as_png(clean))[1]["name"]
    found = messages(address, "restored", {"picture": name, "model": "digits"})
    (estimate,) = (message for message in found if message["kind"] == "estimate")
    assert estimate["level"] == 0 and estimate["clean"] > 0.5 and "no blur or noise of the kind that digits" in estimate["warning"]
    assert found[-1]["kind"] == "result" and np.array_equal(pictures(found[-1], 16, 16, 3)[..., 0], clean)
    assert not any(message["kind"] == "frame" for message in found)
    assert exit_code(restore.main, tmp_path / "mine.png", "--run", "digits", "--out", tmp_path / "out") == 0
    assert estimate["warning"] in said(capsys.readouterr())[0]
    assert np.array_equal(np.rint(255 * read_image(tmp_path / "out" / "restored.png", "L"))[0], clean)

    scene, estimate = (
        message
        for message in streamed(address, "restored", {"picture": "chelsea", "model": "digits", "samples": 1})
        if message["kind"] in ("scene", "estimate")
    )
    assert (
        "the picture has 451 x 300 px" in scene["text"]
        and "does not look like those that digits was trained on" in estimate["warning"]
    )


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert exit_code(command.main, "--port", port) == 2
        assert f"cannot listen at 127.0.0.1:{port}" in said(capsys.readouterr())[1]
    for options, message in ((("--port", 70000), "--port must be from 0 to 65535"), (("--device", "tpu"), "expected auto, cpu")):
        assert exit_code(command.main, *options) == 2 and message in said(capsys.readouterr())[1]


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    # Without what it compiles and measures first.
    start = "from cli.explore import __main__ as command, studio\nstudio.Studio.warm_up = lambda self: None\ncommand.main()"
    line = [sys.executable, "-c", start, "--port", "0", "--device", "cpu"]
    root = Path(__file__).parent.parent
    with subprocess.Popen(line, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = re.search(r"http://\S+", process.stdout.readline())[0]
            assert b"Beyond Blur" in ask(address)[1]
        finally:
            process.send_signal(2)
        assert process.wait(20) in (0, 130, -2)


def test_links_are_those_of_the_package_and_the_paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    studio, package = Studio(torch.device("cpu"), tmp_path), Message()
    paper = {"Paper": "https://arxiv.org/abs/2506.16827"}
    assert paper.items() <= studio.choices()["links"].items()
    package["Project-URL"], package["Project-URL"] = "Code, https://code.example/a, b", "Documentation, https://docs.example"
    monkeypatch.setattr("cli.explore.studio.metadata.metadata", lambda _: package)
    assert studio.choices()["links"] == paper | {"Code": "https://code.example/a, b", "Documentation": "https://docs.example"}

    def missing(_: str) -> Message:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr("cli.explore.studio.metadata.metadata", missing)
    assert studio.choices()["links"] == paper


def test_a_broken_run_does_not_break_the_page(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / "ema.safetensors").write_bytes(b"")
    studio = Studio(torch.device("cpu"), tmp_path)
    assert studio.choices()["models"][3:] == [str(tmp_path / "broken")]
    with pytest.raises(InputError, match=r"config\.json"):
        studio.model(str(tmp_path / "broken"))
