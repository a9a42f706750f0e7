"""The live view in Chromium: its numbers are the operator's; stirring, recording, and the page that needs no server."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright import sync_api as browsers

from cli.explore.__main__ import Explore, explore
from cli.explore.export import export
from lbm_warp import AdvectionDiffusion, CurlNoise, GivenVelocity, Schedule, StrokeFlow, solenoidal
from lbm_warp.checks import InputError
from lbm_warp.planner import Plan
from tests.explorer import array_of, serving

ITERATIONS = 100
Opener = Callable[..., browsers.Page]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def browser_arguments() -> list[str]:
    """A container has no graphics card."""
    return ["--enable-unsafe-swiftshader"]


@pytest.fixture
def opens(browser: browsers.Browser, exported: Path) -> Iterator[Opener]:
    """Opens the exported page from its file with a query; it makes no error and asks nobody for anything."""
    context, problems, asked = browser.new_context(reduced_motion="reduce"), [], []

    def page(query: str, **viewport: int) -> browsers.Page:
        opened = context.new_page()
        opened.set_viewport_size({"width": 1000, "height": 800} | viewport)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        opened.on("request", lambda request: asked.append(request.url))
        opened.goto(f"{exported.as_uri()}?{query}")
        opened.wait_for_function("live.record.at(-1)?.picture")
        return opened

    yield page
    context.close()
    assert not problems and all(url.startswith(("file:", "data:", "blob:")) for url in asked)


def numbers(page: browsers.Page, script: str, argument: object = None) -> np.ndarray:
    """What a script gives, an array of floats, flat."""
    return array_of(page, f"argument => Float32Array.from(({script})(argument))", argument).copy()


def cells(page: browsers.Page, script: str, argument: object = None) -> torch.Tensor:
    """What a script gives as red, green, blue and another number of every cell, float32 [1, 3, H, W]."""
    found = torch.from_numpy(numbers(page, script, argument))
    return found.reshape(1, *page.evaluate("[live.lattice.height, live.lattice.width]"), 4).permute(0, 3, 1, 2)[:, :3]


def velocity(psi: np.ndarray) -> torch.Tensor:
    """Curl of a stream function on the corners of the cells, [1, 2, H, W]."""
    down, right = np.diff(psi, axis=0), np.diff(psi, axis=1)
    return torch.from_numpy(np.stack([(down[:, 1:] + down[:, :-1]) / 2, -(right[1:] + right[:-1]) / 2]))[None]


def operator(iterations: int, peclet: float, height: int, width: int, **options: Any) -> AdvectionDiffusion:
    """The operator whose level 1 is so many iterations from the clean image."""
    grid = Plan.build(Schedule([0.0, 1.0]), peclet, height, width, coarsen=False).grids[0]
    return AdvectionDiffusion(Schedule([0.0, grid.sigma2(iterations) ** 0.5]), peclet=peclet, coarsen=False, **options)


class TestNumbers:
    pytestmark = pytest.mark.slow

    @pytest.mark.parametrize("boundary", ["wall", "periodic"])
    def test_a_picture_in_a_given_velocity_field(self, opens: Opener, boundary: str) -> None:
        """Red, green and blue after a hundred iterations, in single precision on both sides."""
        page, (height, width), random = opens("size=128"), (37, 52), np.random.default_rng(0)
        picture = random.random((height, width, 4), np.float32)
        field = CurlNoise().velocity(5, height, width, boundary=boundary)
        for peclet in (0.0, 60.0):  # as diffusion limits the iterations, and as the velocity does
            script = """({ size, periodic, picture, field, iterations, peclet }) => {
                const { lattice } = live;
                lattice.resize(...size);
                lattice.periodic = periodic;
                lattice.load(new Float32Array(picture));
                lattice.upload(lattice.field, new Float32Array(field));
                lattice.advance(iterations, peclet);
                return lattice.read(lattice.now); }"""
            argument = {"size": [width, height], "periodic": boundary == "periodic", "picture": picture.ravel().tolist()}
            argument |= {"field": field[0].permute(1, 2, 0).ravel().tolist(), "iterations": ITERATIONS, "peclet": peclet}
            stirred = cells(page, script, argument)
            clean = torch.from_numpy(picture[..., :3].transpose(2, 0, 1)[None].copy())
            options = {"turbulence": GivenVelocity(field), "boundary": boundary, "exact": False}
            expected = operator(ITERATIONS, peclet, height, width, **options)(clean, 1, 0)
            assert (expected - clean).abs().max() > 0.3
            # The bound is 1/255; rounding of a sum of nine, a hundred times, is far below it.
            assert (stirred - expected).abs().max() < 1e-5

    def test_its_own_flow_is_that_of_the_commands(self, opens: Opener) -> None:
        page = opens("size=64&seed=7&turbulence=100&unrest=0&peclet=50")
        clean = cells(page, "() => live.clean.rgba")
        moved = cells(page, f"() => (live.advance({ITERATIONS}), live.lattice.read(live.lattice.now))")
        height, width = clean.shape[2:]
        assert (moved - operator(ITERATIONS, 50.0, height, width, turbulence=CurlNoise())(clean, 1, 7)).abs().max() < 1e-4
        # The flow and the blur keep the mean, up to a rounding for each iteration.
        assert page.evaluate("live.lattice.mean()") == pytest.approx(clean.mean().item(), abs=ITERATIONS * 2.0**-26)

    @pytest.mark.parametrize("boundary", ["wall", "periodic"])
    def test_turbulence_at_any_time(self, opens: Opener, boundary: str) -> None:
        page = opens(f"size=64&seed=123456789&boundary={boundary}")
        height, width = page.evaluate("[live.lattice.height, live.lattice.width]")
        for time in (0.0, 0.7, 5.3):
            psi = numbers(page, "time => live.noise.psi(time)", time).reshape(height + 1, width + 1)
            expected = CurlNoise().velocity(123456789, height, width, boundary=boundary, time=time)
            assert (velocity(psi) - expected).abs().max() < 1e-4

    @pytest.mark.parametrize("boundary", ["wall", "periodic"])
    def test_a_stroke_is_a_painted_flow(self, opens: Opener, boundary: str) -> None:
        page = opens(f"size=128&brush=6&boundary={boundary}&turbulence=0")
        height, width = page.evaluate("[live.lattice.height, live.lattice.width]")
        wide = width / height
        points = [(0.3, 0.35), (0.6, 0.45), (0.7, 0.7), (0.3, 0.35)]  # a closed one, as a periodic flow here has no mean
        script = "points => { points.slice(1).forEach((to, i) => live.stroke(points[i], to)); return live.strokes.psi(); }"
        psi = numbers(page, script, [[x * wide, y] for x, y in points]).reshape(height + 1, width + 1)
        field = velocity(psi)
        expected = StrokeFlow((tuple(points),), 0.06).velocity(0, height, width, boundary=boundary)
        field = field * (field * expected).mean() / field.square().mean()
        # Second order in the cell h = L / 128 against the brush b = 0.06 L, as in test_strokes.
        assert (field - expected).abs().max() < (1 / 128 / 0.06) ** 2 * expected.abs().max()
        assert torch.allclose(solenoidal(field, boundary), field, atol=1e-5)

    def test_a_flat_picture_stays_flat(self, opens: Opener) -> None:
        """In a flow so strong that the lattice does not resolve it: what is shown, of 255."""
        page = opens("size=96&turbulence=100&peclet=1000")
        shown = """() => {
            const { lattice } = live, { gl, width, height } = lattice, pixels = new Uint8Array(4 * width * height);
            lattice.load(new Float32Array(4 * width * height).map((_, i) => i % 4 < 3 ? 128 / 255 : 1));
            for (let i = 0; i < 3; i++) live.stir();
            live.advance(100);
            lattice.show();
            gl.readPixels(0, 0, width, height, gl.RGBA, gl.UNSIGNED_BYTE, pixels);
            return pixels.filter((_, i) => i % 4 < 3); }"""
        assert set(numbers(page, shown)) == {128.0}


DRAG = [(0.2 + 0.12 * i, 0.5) for i in range(6)]


def drag(page: browsers.Page, points: list[tuple[float, float]] = DRAG) -> None:
    """Move the pointer over the picture, pressed, along points in its sides."""
    box = page.locator(".live-ink").bounding_box()
    assert box
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def run_for(page: browsers.Page, iterations: int) -> None:
    page.wait_for_function("number => live.iterations >= number", arg=iterations + page.evaluate("live.iterations"))


class TestPage:
    pytestmark = pytest.mark.slow

    def test_stir_pause_and_scrub_back(self, opens: Opener) -> None:
        page = opens("size=64&picture=Bands&turbulence=0")
        state = "() => live.lattice.read(live.lattice.now)"
        # Reduced motion: nothing moves before it is asked for. Without a stroke the bands stay upright.
        page.wait_for_timeout(100)
        assert page.evaluate("live.iterations") == 0
        page.keyboard.press("Space")
        run_for(page, 30)
        picture = cells(page, state)
        assert (picture - picture[:, :, :1]).abs().max() < 1e-5
        drag(page)
        assert page.locator(".live-hint").is_hidden()
        run_for(page, 60)
        page.keyboard.press("Space")
        stopped, stirred = page.evaluate("live.iterations"), cells(page, state)
        assert (stirred - stirred[:, :, :1]).abs().max() > 0.15
        page.wait_for_timeout(100)
        assert page.evaluate("live.iterations") == stopped and page.get_by_label("Run", exact=True).is_visible()
        # Back to the clean picture, one on, and on from there.
        page.keyboard.press("Home")
        seen = "() => live.canvases.past.getContext('2d').getImageData(0, 0, live.lattice.width, live.lattice.height).data"
        assert (cells(page, seen) / 255 - cells(page, "() => live.clean.rgba")).abs().max() < 0.5 / 255
        assert "iterations 0" in page.inner_text(".live-numbers").replace("\n", " ")
        page.keyboard.press("ArrowRight")
        early = page.evaluate("live.record[1].iterations")
        assert 0 < early < 40 and page.locator(".live-past").is_visible()
        page.keyboard.press("Space")
        run_for(page, 1)
        assert page.evaluate("live.iterations") < stopped and page.locator(".live-past").is_hidden()
        page.keyboard.press("a")
        assert page.evaluate("live.iterations") < early

    def test_what_is_recorded_is_bounded_and_reaches_back_to_the_beginning(self, opens: Opener) -> None:
        page = opens("size=384&picture=Drops")
        page.evaluate("async () => { for (let i = 1; i < 200; i++) { live.iterations = i; await live.keep(); } }")
        kept, size = page.evaluate("[live.record.map(({ iterations }) => iterations), live.lattice.width * live.lattice.height]")
        assert kept[0] == 0 and kept == sorted(kept) and kept[-1] > 190 and 30 < len(kept) and 4 * size * len(kept) <= 64 * 2**20

    def test_drop_a_picture(self, opens: Opener) -> None:
        page, data = opens("size=128"), io.BytesIO()
        Image.fromarray(np.full((90, 160, 3), (200, 100, 50), np.uint8)).save(data, "png")
        drop = """([name, data]) => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(data)], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })); }"""
        page.evaluate(drop, ["flat.png", list(data.getvalue())])
        page.wait_for_function("live.source.width === 160")
        # A small picture is enlarged to 128 cells.
        assert page.evaluate("[live.lattice.height, live.lattice.width]") == [128, 228]
        assert torch.allclose(cells(page, "() => live.clean.rgba").mean(dim=(0, 2, 3)) * 255, torch.tensor([200.0, 100.0, 50.0]))
        page.evaluate(drop, ["notes.txt", list(b"no picture")])
        page.wait_for_selector("text=cannot read this picture")
        assert page.evaluate("live.lattice.width") == 228

    def test_a_browser_that_cannot_is_told(self, opens: Opener, browser: browsers.Browser, exported: Path) -> None:
        page = browser.new_page()
        page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
        page.goto(exported.as_uri())
        page.wait_for_selector("text=needs WebGL 2 with float textures")
        assert page.locator("canvas:visible").count() == 0
        page.close()

    def test_one_finger_stirs_and_two_scroll(self, browser: browsers.Browser, exported: Path) -> None:
        context = browser.new_context(has_touch=True, reduced_motion="reduce", viewport={"width": 390, "height": 500})
        page = context.new_page()
        page.goto(f"{exported.as_uri()}?size=128")
        page.wait_for_function("live.record.at(-1)?.picture")
        fingers = context.new_cdp_session(page)
        for count, stirred in ((2, False), (1, True)):
            page.evaluate("scrollTo(0, 0)")
            for step in range(8):
                points = [{"x": 120 + 60 * i, "y": 250 - 20 * step, "id": i} for i in range(count)]
                fingers.send("Input.dispatchTouchEvent", {"type": "touchMove" if step else "touchStart", "touchPoints": points})
            fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
            page.wait_for_timeout(100)
            assert (page.evaluate("scrollY") > 60) != stirred
            assert page.evaluate("live.particles.length > 0") == stirred
        context.close()

    @pytest.mark.parametrize(("query", "width", "height"), [("", 360, 740), ("embed", 640, 420), ("embed", 320, 480)])
    def test_small_windows(self, opens: Opener, query: str, width: int, height: int) -> None:
        page = opens(f"size=128&{query}", width=width, height=height)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # A page within another one needs no scrolling: the picture, and the knobs that are left.
        if query:
            assert page.evaluate("document.documentElement.scrollHeight") <= height and page.locator(".about").is_hidden()
        assert page.get_by_label("Peclet number").is_visible() and page.get_by_label("Run", exact=True).is_visible()

    def test_an_address_says_the_knobs(self, opens: Opener) -> None:
        page = opens("size=128&peclet=250&boundary=periodic&brush=nothing&seed=5&picture=nowhere")
        assert page.evaluate("live.knobs") == {
            "peclet": "250", "speed": "240", "boundary": "periodic", "brush": "12", "turbulence": "15", "unrest": "0.5", "seed": "5"
        }  # fmt: skip

    @pytest.mark.parametrize("within", ["", "embed&"])
    def test_the_address_follows_the_knobs(self, opens: Opener, within: str) -> None:
        page = opens(f"{within}size=128&seed=5")
        page.evaluate("live.turn({ peclet: 480, seed: 0 })")
        page.evaluate("document.querySelectorAll('.live-pictures button')[2].click()")
        page.wait_for_url("**picture=Bands**")
        found = dict(parse_qsl(urlsplit(page.url).query, keep_blank_values=True))
        assert found == {"size": "128", "peclet": "480", "picture": "Bands"} | ({"embed": ""} if within else {})
        if within:
            assert page.get_by_role("link", name="All knobs").get_attribute("href") == page.url.replace("embed=&", "")
        again = opens(urlsplit(page.url).query)
        assert again.evaluate("live.peclet") == 480 and again.evaluate("live.knobs.seed") == "0"
        assert again.evaluate("String(live.clean.rgba)") == page.evaluate("String(live.clean.rgba)")

    def test_the_address_of_the_explorer_says_them_too(self, browser: browsers.Browser, tmp_path: Path) -> None:
        with serving(tmp_path) as address:
            page = browser.new_page(reduced_motion="reduce")
            page.goto(f"{address}/?view=live&lpeclet=480&lseed=9")
            knobs = "['peclet', 'seed', 'brush'].map((name) => document.querySelector(`[data-knob=${name}]`).value).join(' ')"
            page.wait_for_selector(".live-bar")
            assert page.evaluate(knobs) == "480 9 7"
            page.locator("[data-knob=brush]").fill("12")
            page.locator("[data-knob=seed]").fill("0")
            page.wait_for_url("**lbrush=12")
            assert "lpeclet=480" in page.url and "lseed" not in page.url
            page.locator("[data-view=story]").click()
            page.go_back()
            page.wait_for_selector(".live-bar")
            assert page.evaluate(knobs) == "480 0 12"
            page.close()


def test_the_page_is_one_file_and_replaces_no_other(tmp_path: Path) -> None:
    page = export(tmp_path / "new" / "folder")
    text = page.read_text(encoding="utf-8")
    assert "import {" not in text and 'src="data:' not in text.split("<body")[0] and ".css" not in text.split("<style>")[0]
    assert export(page.parent) == page and [file.name for file in page.parent.iterdir()] == ["index.html"]
    page.write_text("mine")
    with pytest.raises(InputError, match="not made by this command"):
        export(page.parent)
    assert page.read_text() == "mine"
    with pytest.raises(InputError, match="--port is for the server"):
        explore(Explore(export=tmp_path, port=1))
