"""The explorer's page in a real browser: what people see and do. Skipped where there is no Chromium."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette", reason="the extra 'explore' is not installed")
pytest.importorskip("uvicorn", reason="the extra 'explore' is not installed")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from playwright import sync_api as browsers
from starlette.applications import Starlette

from cli.explore.server import application
from cli.render import to_pixels
from cli.restore import EXAMPLE, fitted
from cli.scene import PHOTOGRAPH
from diffusion.data.images import read_image, resize_shorter
from diffusion.methods import METHODS, named_method
from diffusion.sampling.pipeline import Pipeline
from diffusion.sampling.restoration import restore
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, StrokeFlow
from tests.explorer import array_of, serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Starlette:
    return application(torch.device("cpu"), tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def address(app: Starlette) -> Iterator[str]:
    with serving(Path(), app) as place:
        yield place


@pytest.fixture
def page(browser: browsers.Browser, address: str) -> Iterator[browsers.Page]:
    """A page that makes no error, and asks no other host for anything."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, reduced_motion="reduce", base_url=address)
    context.set_default_timeout(60_000)
    opened, problems, hosts = context.new_page(), [], set()
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("request", lambda request: hosts.add(urlparse(request.url).netloc))
    yield opened
    context.close()
    assert not problems and hosts - {""} == {urlparse(address).netloc}


def settle(page: browsers.Page) -> None:
    """Wait until all that was asked for is there."""
    page.wait_for_timeout(250)  # a change asks for the fine trajectory after a moment
    page.wait_for_selector("body:not(.busy)")


def shown(page: browsers.Page, canvas: str) -> np.ndarray:
    """What a canvas shows, uint8 [H, W, 3]: red, green, blue."""
    height, width = page.evaluate("id => { const c = document.getElementById(id); return [c.height, c.width]; }", canvas)
    read = "([id, height, width]) => document.getElementById(id).getContext('2d').getImageData(0, 0, width, height).data"
    return array_of(page, read, [canvas, height, width], np.uint8).reshape(height, width, 4)[..., :3]


def expected(share: float, frames: int = 96, seed: int = 0, peclet: float = 400.0, turbulence=None, size: int = 128) -> np.ndarray:
    """The picture at a share of the trajectory, by the operator."""
    u0 = torch.from_numpy(resize_shorter(read_image(PHOTOGRAPH), size))[None]
    schedule = Schedule(0.04 * size * np.linspace(0.0, 1.0, frames) ** 1.15)
    operator = AdvectionDiffusion(schedule, peclet=peclet, turbulence=turbulence or CurlNoise())
    return to_pixels(operator(u0, round(share * (frames - 1)), seed)[0])


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to rounding: a level reached alone or with all others."""
    return a.shape == b.shape and np.abs(a.astype(int) - b).max() <= 1


def set_value(page: browsers.Page, key: str, value: object) -> None:
    """Move a slider, choose, or type."""
    control = page.locator(f"[data-key={key}]:visible")
    control.evaluate("(e, value) => { e.value = value; e.dispatchEvent(new Event('input', { bubbles: true })); }", str(value))
    settle(page)


def test_load_scrub_and_turn_the_knobs(page: browsers.Page) -> None:
    page.goto("/?view=corrupt&size=128&t=0.5")
    settle(page)
    assert close(shown(page, "picture"), expected(0.5, 96))
    # Both ways, by the slider and by the keys.
    for share in (0.9, 0.1, 0.0, 1.0):
        page.locator(".timeline [data-time]").fill(str(share))
        assert close(shown(page, "picture"), expected(share))
    page.locator(".timeline [data-time]").press("ArrowLeft")
    assert close(shown(page, "picture"), expected(94 / 95))
    page.keyboard.press("Home")
    assert close(shown(page, "picture"), expected(0.0)) and "0.00 px" in page.inner_text("#numbers")
    page.keyboard.press("End")
    # The numbers are the operator's: the blur of the last level is 0.04 L.
    numbers = page.inner_text("#numbers")
    assert "5.12 px" in numbers and f"{0.5 * 0.04**2:.6f}" in numbers
    set_value(page, "peclet", 40)
    set_value(page, "seed", 5)
    set_value(page, "octaves", 2)
    assert close(shown(page, "picture"), expected(1.0, seed=5, peclet=40.0, turbulence=CurlNoise(octaves=2)))
    assert "--peclet 40" in page.inner_text("#command") and "--octaves 2" in page.inner_text("#command")
    set_value(page, "process", "ddpm")
    forward = named_method("ddpm").changed(levels=95).forward
    u0 = torch.from_numpy(resize_shorter(read_image(PHOTOGRAPH), 128))[None]
    assert close(shown(page, "picture"), to_pixels(forward.corrupt(u0, 95, torch.tensor([5]))[0]))
    # It has no flow, and what belongs to a flow is gone; with another process comes its own Peclet number.
    assert not page.locator("[data-key=octaves]").is_visible() and not page.locator("[data-key=peclet]").is_visible()
    set_value(page, "process", "beyond-blur-curl")
    assert page.locator("[data-key=peclet]").input_value() == "2" and "Pe = 2" in page.inner_text("#picture-caption")


def test_the_address_brings_everything_back(page: browsers.Page, browser: browsers.Browser) -> None:
    page.goto("/?view=corrupt&peclet=0")
    settle(page)
    set_value(page, "size", 128)
    set_value(page, "peclet", 77)
    set_value(page, "seed", 9)
    page.locator(".timeline [data-time]").fill("0.6")
    page.wait_for_timeout(450)
    query = parse_qs(urlparse(page.url).query)
    assert query["peclet"] == ["77"] and query["seed"] == ["9"] and query["size"] == ["128"] and query["t"] == ["0.6000"]
    before = shown(page, "picture")
    other = browser.new_page()
    other.goto(page.url)
    settle(other)
    assert np.array_equal(shown(other, "picture"), before) and close(before, expected(0.6, seed=9, peclet=77.0))
    other.close()


def test_two_people_have_their_own(page: browsers.Page, browser: browsers.Browser, address: str) -> None:
    page.goto("/?view=corrupt&size=128&seed=1&t=1")
    settle(page)
    other = browser.new_page()
    other.goto(f"{address}/?view=corrupt&size=128&seed=2&t=1")
    set_value(page, "peclet", 100)
    settle(other)
    assert close(shown(page, "picture"), expected(1.0, seed=1, peclet=100.0))
    assert close(shown(other, "picture"), expected(1.0, seed=2))
    other.close()


def test_paint_a_flow(page: browsers.Page) -> None:
    page.goto("/?view=corrupt&size=128&t=1&strokes_on=rest&brush=9")
    settle(page)
    usual = shown(page, "picture")
    box = page.locator("#field").bounding_box()

    def strokes() -> list[str]:
        page.click("#share")  # the address is written
        return parse_qs(urlparse(page.url).query).get("strokes", [""])[0].split()

    def stroke(height: float, end: bool = True) -> None:
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + height * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.9 * box["width"], box["y"] + height * box["height"], steps=12)
        if end:
            page.mouse.up()

    page.keyboard.press("p")
    stroke(0.5)
    settle(page)
    (one,) = strokes()
    assert f"--strokes {one} --brush 0.09" in page.inner_text("#command").replace("'", "")
    assert close(shown(page, "picture"), expected(1.0, turbulence=StrokeFlow.parse(one, 0.09)))
    # The ink is seen where the stroke is, on the flow and on the picture.
    ink = "c => { const d = c.getContext('2d').getImageData(c.width / 2, c.height / 2, 1, 1).data; return d[3]; }"
    assert all(page.locator(f"{place} .ink").evaluate(ink) > 200 for place in ("#field", "#painted"))
    # A second finger draws nothing; Esc takes a stroke back that is under way, Ctrl-Z the last one.
    stroke(0.3, end=False)
    touch = "new PointerEvent('pointer' + kind, { pointerId: 77, clientX: 9 + 300 * i })"
    finger = f"field => ['down', 'move'].forEach((kind, i) => field.dispatchEvent({touch}))"
    page.locator("#field").evaluate(finger)
    assert len(strokes_now := page.evaluate("explorer.state.strokes.split(' ')")) == 2 and "," in strokes_now[1]
    page.keyboard.press("Escape")
    page.mouse.up()
    assert strokes() == [one]
    stroke(0.7)
    assert len(strokes()) == 2
    page.keyboard.press("Control+z")
    assert strokes() == [one]
    page.keyboard.press("Control+z")
    settle(page)
    assert not strokes() and close(shown(page, "picture"), usual)
    # It ends by Esc, and when the process has no flow.
    page.keyboard.press("Escape")
    assert page.locator("#paint").get_attribute("aria-pressed") == "false"
    page.click("#paint")
    set_value(page, "process", "ddpm")
    assert not page.locator("#painting").is_visible() and not page.locator("#panel.painting").count()


def png(height: int, width: int) -> bytes:
    """A picture file of random pixels."""
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, "png")
    return data.getvalue()


def drop(page: browsers.Page, name: str, data: bytes) -> None:
    """Drop a file on the page."""
    transfer = page.evaluate_handle(
        """([name, data]) => { const t = new DataTransfer(); t.items.add(new File([new Uint8Array(data)], name)); return t; }""",
        [name, list(data)],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def test_drop_a_picture_and_hostile_files(page: browsers.Page, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "png")
    page.goto("/?view=corrupt&size=128&t=0")
    settle(page)
    drop(page, "my <b>picture</b>'s.png", data.getvalue())
    page.wait_for_selector("#picture-name:has-text('my <b>picture')")
    settle(page)
    clean = to_pixels(torch.from_numpy(resize_shorter(picture.transpose(2, 0, 1).astype(np.float32) / 255.0, 128)))
    assert np.array_equal(shown(page, "picture"), clean)
    # The name is text, not HTML, and is quoted for a shell.
    assert page.locator("#picture-name b").count() == 0 and "'my <b>picture</b>'\\''s.png'" in page.inner_text("#command")
    for name, bad, words in (
        ("page.html", b"<script>alert(1)</script>", "this file"),
        ("cut.png", data.getvalue()[:150], "this file"),
        ("large.png", b"\0" * (16 * 2**20 + 1), "larger than 16 MiB"),
    ):
        if len(bad) < 10_000:
            drop(page, name, bad)
        else:
            (tmp_path / name).write_bytes(bad)
            page.set_input_files("#file", tmp_path / name)
        page.wait_for_selector(f"#toast.shown:has-text('{words}')")
        assert np.array_equal(shown(page, "picture"), clean)
    for name, data, words in (
        ("me.HEIC", b"x", "save it as JPEG"),
        ("me.jpg", b"\0\0\0\x18ftypheic\0\0\0\0", "save it as JPEG"),
        ("logo.jpg", b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "without pixels"),
        ("clip.png", b"\0\0\0\x20ftypisom\0\0\2\0", "takes films"),
        ("text.png", b"%PDF-1.7", "is a document"),
    ):
        drop(page, name, data)
        page.wait_for_selector(f"#toast.shown:has-text('{words}')")


def test_compare(page: browsers.Page) -> None:
    page.goto("/?view=compare&ct=1")
    settle(page)
    names = page.locator("#compare strong").all_inner_texts()
    assert names == [name for name, method in METHODS.items() if method.operator.transport]
    number = names.index("cold")
    read = "c => [c.height, c.width, ...c.getContext('2d').getImageData(60, 60, 1, 1).data]"
    pixels = page.locator("#compare canvas").nth(number).evaluate(read)
    u0 = torch.from_numpy(resize_shorter(read_image(PHOTOGRAPH), 128))[None]
    forward = named_method("cold").changed(levels=47).forward
    last = to_pixels(forward.corrupt(u0, 47, torch.tensor([0]))[0])
    assert pixels[:2] == [128, 192] and np.abs(np.array(pixels[2:5]) - last[60, 60]).max() <= 1


def test_generate_and_replay(page: browsers.Page) -> None:
    page.goto("/?view=generate&model=digits&num=4&steps=6&gseed=3")
    settle(page)
    images = [to_pixels(image) for image in Pipeline.from_pretrained("digits").sample(4, 3, steps=6)]
    sheet = shown(page, "samples")
    assert close(sheet[:16, :16], images[0]) and close(sheet[:16, 17:33], images[1])
    page.keyboard.press("Home")
    assert "0 of 6" in page.inner_text("#numbers") and not close(shown(page, "samples")[:16, :16], images[0])
    set_value(page, "mode", "interpolate")
    assert "--interpolate 4" in page.inner_text("#command")
    # A model without classes has none to choose; one with classes has.
    assert page.locator("#label").is_disabled()
    set_value(page, "model", "fashion")
    set_value(page, "label", "sneaker")
    assert page.locator("#label").is_enabled() and "--label sneaker" in page.inner_text("#command")


def test_another_view_is_not_disturbed_by_what_came_before(page: browsers.Page) -> None:
    page.goto("/?view=generate&model=fashion&num=64")
    page.wait_for_selector("#numbers:has-text('step')")
    page.click("[data-view=corrupt]")
    settle(page)
    page.keyboard.press("Home")
    page.wait_for_timeout(1500)
    assert page.locator(".timeline [data-time]").input_value() == "0" and "0.00 px" in page.inner_text("#numbers")


def test_restore_by_a_model(page: browsers.Page) -> None:
    page.goto("/?view=restore&rpicture=degraded&rmodel=emoji&rlevel=300&rsamples=2")
    settle(page)
    page.wait_for_selector("#restored-caption:has-text('mean of the samples')")
    assert page.locator("#draws canvas").count() == 2 and "--level 300" in page.inner_text("#command")
    pipeline = Pipeline.from_pretrained("emoji")
    picture, size = fitted(pipeline, read_image(EXAMPLE, "RGB"))
    drawn = restore(pipeline.at_size(size), picture, 300, 2)
    assert np.array_equal(shown(page, "degraded"), to_pixels(picture)) and close(
        shown(page, "restored"), to_pixels(drawn.mean(dim=0))
    )


def test_files_to_take_home(page: browsers.Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.explore.studio.VIDEO_SIZE", 128)  # encoded sooner
    page.goto("/?view=corrupt&size=128&t=0.5")
    settle(page)
    with page.expect_download() as download:
        page.click("#png")
    # Named by picture, process and time, and of a useful size.
    assert download.value.suggested_filename == "chelsea-flow-pe400-t0.50.png"
    download.value.save_as(tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        small = np.asarray(picture.convert("RGB").reduce(6)).astype(int)
        assert picture.size == (6 * 192, 6 * 128) and np.abs(small - shown(page, "picture")).mean() < 1.0
    with page.expect_download() as download:
        page.click("#mp4")
        assert page.locator("#film").is_visible() and page.locator("#mp4").is_disabled()
    assert download.value.suggested_filename == "chelsea-flow-pe400.mp4"
    download.value.save_as(tmp_path / "film.mp4")
    assert (tmp_path / "film.mp4").read_bytes()[4:8] == b"ftyp"
    # A film can be left.
    page.click("#mp4")
    page.click("#cancel")
    page.wait_for_selector("#film", state="hidden")
    assert page.locator("#mp4").is_enabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_windows_and_dark_mode(page: browsers.Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    for view in ("story", "corrupt", "compare", "generate", "restore") if scheme == "light" else ("restore",):
        page.goto(f"/?view={view}&size=128&num=4&steps=4&model=digits")
        settle(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (int(ground[0]) < 128) == (scheme == "dark")


def test_back_and_forward_and_the_time_of_each_view(page: browsers.Page) -> None:
    page.add_init_script("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.goto("/?view=corrupt&size=128&t=0.5")
    settle(page)
    length = page.evaluate("history.length")
    for peclet in (1000, 900, 1000):  # no entry for each place of a slider
        page.locator("[data-key=peclet]").fill(str(peclet))
    assert page.evaluate("history.length") == length
    assert page.locator("label:has([data-key=peclet]) .value").inner_text() == "1000"
    # The address that is copied is the one that is seen, at once.
    page.locator("[data-time]:visible").fill("0.25")
    page.click("#share")
    assert "peclet=1000" in page.evaluate("copied") and "t=0.2500" in page.evaluate("copied")
    page.focus("#tab-corrupt")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-compare" and "view=compare" in page.url
    page.locator("[data-time]:visible").fill("0.9")
    page.wait_for_timeout(450)
    page.go_back()
    page.wait_for_selector("#tab-corrupt[aria-selected=true]")
    settle(page)
    assert page.locator("[data-time]:visible").input_value() == "0.25" and "Pe = 1000" in page.inner_text("#picture-caption")
    page.go_forward()
    page.wait_for_selector("#tab-compare[aria-selected=true]")
    assert page.locator("[data-time]:visible").input_value() == "0.9"


def test_a_dropped_picture_survives_a_reload_and_another_server(page: browsers.Page, app: Starlette) -> None:
    page.goto("/?view=corrupt&size=128&t=0")
    settle(page)
    page.route("**/api/pictures", lambda route: (page.wait_for_timeout(200), route.continue_()))
    drop(page, "-my cat.png", png(9, 12))
    page.wait_for_selector("#drop:has-text('Reading -my cat.png')")
    page.wait_for_selector("#picture-name:has-text('my cat')")
    settle(page)
    before, command = shown(page, "picture"), page.inner_text("#command")
    assert "'./-my cat.png'" in command
    pictures = app.state.studio.pictures
    pictures.added.clear(), pictures.resized.clear()  # as a server that was started anew
    set_value(page, "seed", 3)
    settle(page)
    assert page.locator("#notice").is_hidden() and pictures.added
    set_value(page, "seed", 0)
    page.reload()
    settle(page)
    assert np.array_equal(shown(page, "picture"), before) and page.inner_text("#command") == command
    assert page.inner_text("#picture-name") == "-my cat.png"
    # Who has not the picture is told, and keeps the rest.
    page.goto("/?view=corrupt&size=128&picture=0123456789abcdef01234567&peclet=33")
    page.wait_for_selector("#notice:has-text('drop it on the page again')")
    assert page.locator("[data-key=peclet]").input_value() == "33" and "not here" in page.inner_text("#picture-name")
    page.click("[data-picture=chelsea]")
    settle(page)
    assert not page.locator("#notice").is_visible() and "--peclet 33" in page.inner_text("#command")


def test_knobs_without_effect_are_disabled_with_a_reason(page: browsers.Page) -> None:
    page.goto("/?view=corrupt&size=128&octaves=2&time=1&seed=5&strokes=100,500,900,500&strokes_on=rest")
    settle(page)
    flow = ("octaves", "time", "turbulence", "seed")

    def idle(*keys: str) -> bool:
        controls = [page.locator(f"[data-key={key}]:visible") for key in keys]
        return all(control.is_disabled() and control.get_attribute("title") for control in controls)

    assert idle(*flow) and page.locator("[data-random=seed]:visible").is_disabled()
    assert "The painted flow is all there is" in page.inner_text("#flow .reason")
    assert page.locator("label:has([data-key=octaves])").evaluate("label => Number(getComputedStyle(label).opacity)") < 0.6
    words = page.inner_text("#command")
    assert "--strokes" in words and not any(word in words for word in ("octaves", "turbulence", "seed"))
    set_value(page, "strokes_on", "turbulence")
    assert not any(page.locator(f"[data-key={key}]:visible").is_disabled() for key in flow)
    assert "--strokes-on turbulence" in page.inner_text("#command") and "--octaves 2" in page.inner_text("#command")
    page.click("#clear")
    set_value(page, "turbulence", "spectral")
    assert idle("octaves", "brush") and "octaves" not in page.inner_text("#command")
    set_value(page, "peclet", 0)
    assert idle(*flow, "brush", "strokes_on") and page.locator("#paint").is_disabled()
    set_value(page, "process", "cold")
    assert idle("seed")
    page.goto("/?view=generate&model=digits&num=1&steps=2&guidance=2")
    settle(page)
    assert idle("label", "guidance") and "without classes" in page.inner_text("fieldset:has(#label) .reason")


def test_picture_and_knobs_are_seen_together(page: browsers.Page) -> None:
    """In any window, and for a picture of any shape; the page is never higher than the window."""
    page.goto("/?view=corrupt&size=128")
    drop(page, "tall.png", png(48, 16))
    page.wait_for_selector("#picture-name:has-text('tall')")
    settle(page)
    for width, height in ((1440, 900), (1024, 768), (720, 450), (390, 844)):  # the third is a zoom of 200 %
        page.set_viewport_size({"width": width, "height": height})
        for place in ("#picture", "#play", "[data-time]:visible", "#presets button >> nth=0"):
            box = page.locator(place).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width, (width, place)
            assert box["y"] >= 0 and box["y"] + box["height"] <= height, (width, place)
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [width, height]
    shape = page.locator("#picture").bounding_box()
    assert shape["height"] / shape["width"] == pytest.approx(3.0, rel=0.02) and shape["height"] > 150
    page.click("#drawer")
    assert not page.locator("#settings").is_visible() and page.locator("#picture").bounding_box()["height"] > 1.3 * shape["height"]
    # Every canvas has a name or is hidden from those who cannot see it; what changes with the slider is not read out.
    nameless = "c => c.offsetParent && !c.ariaLabel && !c.closest('[aria-hidden], button')"
    assert page.evaluate(f"[...document.querySelectorAll('canvas')].filter({nameless}).length") == 0
    live = "[...document.querySelectorAll('[aria-live], [role=status], [role=alert], output')].map(e => e.id)"
    assert page.evaluate(live) == ["notice", "warnings", "toast"]


def test_the_story(page: browsers.Page) -> None:
    page.goto("/")
    page.wait_for_selector("#picture-caption:has-text('Pe = 2000')")
    assert page.locator("#tab-story").get_attribute("aria-selected") == "true" and page.locator("#back").is_disabled()
    seen = []
    for step in range(1, 6):
        article = page.locator(f"[data-step='{step}']")
        assert article.is_visible() and page.locator("[data-step]:visible").count() == 1
        if step < 5:
            # Every letter of the equation is explained below it.
            letters = article.locator("math[display=block] mi").all_text_contents()
            explained = "".join(article.locator(".symbols").all_text_contents())
            assert letters and all(letter in explained or letter in "km" for letter in letters)
        if step == 2:
            settle(page)
            article.locator("[data-time]").fill("0.5")
            assert article.locator("[data-number=fo]").inner_text() == f"{0.5 * (0.16 * (48 / 95) ** 1.15) ** 2:.3g}"
        if step == 3:
            page.wait_for_selector("#picture-caption:has-text('Pe = 600,')")
            before = shown(page, "picture")
            article.locator("[data-key=speclet]").fill("0")
            page.wait_for_selector("#picture-caption:has-text('Pe = 0,')")
            assert not np.array_equal(shown(page, "picture"), before)
            assert article.locator("[data-number=carried]").inner_text().startswith("0.0")
        if step == 4:
            page.click("[data-process=ddpm]")
            page.wait_for_selector("#picture-caption:has-text('ddpm')")
        seen.append(page.inner_text("h2:visible"))
        if step < 5:
            page.click("#next")
    page.wait_for_selector("#samples-caption:has-text('28 samples')")
    assert len(set(seen)) == 5 and page.locator("#next").is_disabled()
    page.go_back()
    assert page.inner_text("h2:visible") == seen[3]
    # Corrupt is as it was.
    page.keyboard.press("2")
    assert page.locator("[data-key=peclet]").input_value() == "400" and page.locator("[data-key=process]").input_value() == ""
    # Presets have thumbnails, and set all that they say.
    page.wait_for_selector("#presets button:last-child canvas[width='192']")
    page.click("#presets button:has-text('turbulent')")
    settle(page)
    assert "--peclet 2000" in page.inner_text("#command") and page.locator("#presets [aria-pressed=true]").count() == 1


def gained(page: browsers.Page) -> bool:
    """Whether the restored picture is nearer to the clean one than the degraded one is."""
    clean, degraded, restored = (shown(page, name).astype(float) for name in ("clean", "degraded", "restored"))
    return np.square(restored - clean).mean() < 0.7 * np.square(degraded - clean).mean()


def test_degrade_a_picture_then_restore_it(page: browsers.Page) -> None:
    page.goto("/?step=5&picture=astronaut")
    page.click("[data-go=restore]")
    assert "rpicture=astronaut" in page.url and "rclean=1" in page.url
    page.wait_for_selector("#spread-caption:has-text('90 %')")
    assert page.inner_text("#degraded-caption") == "Degraded: blur 1.5 px, noise 0.08 of the range. In its own size, 384 x 512 px."
    assert shown(page, "restored").shape == shown(page, "spread").shape == (512, 384, 3) and gained(page)
    page.goto("/?view=restore&rpicture=emoji&rmodel=emoji&rlevel=300&rsamples=2")  # it is clean
    page.wait_for_selector("#restored-caption:has-text('mean of the samples')")
    assert page.locator("#clean").is_visible() and page.inner_text("#degraded-caption").startswith("Level 300. It is")
    assert "--degrade 300" in page.inner_text("#command") and gained(page)
    page.goto("/?view=restore&rpicture=emoji&rmodel=digits&rdegrade=3&rlevel=1&rsamples=1")
    settle(page)
    assert page.locator("[data-key=rdegrade]").input_value() == "3" and "--degrade 3" in page.inner_text("#command")


def test_restore_a_photograph(page: browsers.Page, tmp_path: Path) -> None:
    """Any picture that is dropped is one, unless it is as small as those of the other models."""
    page.goto("/?view=restore&rmodel=digits&rpicture=degraded&rlevel=1&rsamples=1")
    settle(page)
    assert page.locator("[data-key=rmodel] option").first.inner_text() == "photographs: any size"
    drop(page, "toy.png", png(16, 16))
    page.wait_for_selector("#restored-name:has-text('toy')")
    assert page.locator("[data-key=rmodel]").input_value() == "digits" and page.locator("[data-key=rsamples]").is_visible()
    noisy = np.linspace(0.0, 200.0, 90)[:, None, None] + np.random.default_rng(0).normal(28.0, 12.0, (90, 120, 3))
    data = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "png")
    drop(page, "mine.png", data.getvalue())
    page.wait_for_selector("#spread-caption:has-text('90 %')")
    settle(page)
    assert page.locator("[data-key=rmodel]").input_value() == "photographs" and not page.locator("[data-key=rsamples]").is_visible()
    assert not page.locator("#clean").is_visible() and page.locator("[data-key=rdblur]").is_disabled()
    assert page.inner_text("#command") == "beyond-blur restore mine.png"
    found = float(page.locator("[data-key=rnoise]").get_attribute("placeholder"))
    assert found == pytest.approx(12.0 / 255.0, rel=0.2)
    assert shown(page, "restored")[20:70].std(axis=1).mean() < 0.5 * shown(page, "degraded")[20:70].std(axis=1).mean()
    # What a visitor says is in the address and in the command, and is not said of another picture.
    set_value(page, "rblur", 0)
    set_value(page, "rnoise", 0.1)
    assert page.inner_text("#command") == "beyond-blur restore mine.png --blur 0 --noise 0.1"
    assert "blurred by 0.00 (told) px, with noise of 0.100 (told)" in page.inner_text("#restored-caption")
    before = shown(page, "restored")
    page.click("#share")
    page.reload()
    settle(page)
    assert np.array_equal(shown(page, "restored"), before) and page.locator("[data-key=rnoise]").input_value() == "0.1"
    with page.expect_download() as download:
        page.click("#png")
    download.value.save_as(tmp_path / "made.png")
    assert download.value.suggested_filename == "mine-restored-photographs.png"
    assert np.array_equal(np.asarray(Image.open(tmp_path / "made.png").convert("RGB")), before)
    page.click("[data-rpicture=astronaut]")
    assert "rnoise" not in page.url and not page.locator("[data-key=rnoise]").input_value()


def test_a_picture_that_stays_as_it_is_has_no_empty_samples(page: browsers.Page) -> None:
    data = io.BytesIO()
    Image.fromarray(to_pixels(Pipeline.from_pretrained("digits").sample(1, 5)[0])).save(data, "png")
    page.goto("/?view=restore&rpicture=degraded&rmodel=digits&rlevel=1&rsamples=1")
    settle(page)
    drop(page, "clean.png", data.getvalue())
    page.wait_for_selector("#restored-caption:has-text('the picture as it is')")
    assert not page.locator("#draws canvas").count() and not page.inner_text("#numbers")


def test_addresses_may_name_what_every_object_of_the_language_has(page: browsers.Page) -> None:
    page.goto("/?view=constructor&step=4&sprocess=toString&speclet=&constructor=1&rpicture=__proto__")
    settle(page)
    assert page.locator("#notice").is_hidden() and page.locator("#tab-story[aria-selected=true]").count() == 1
    assert "[object" not in page.locator("#restored-name").text_content()


def test_a_server_that_is_gone_is_said(page: browsers.Page) -> None:
    page.goto("/?view=corrupt&size=128")
    settle(page)
    page.route("**/api/**", lambda route: route.abort())
    set_value(page, "seed", 3)
    page.wait_for_selector("#notice:has-text('is it still running')")


def test_the_figure_of_the_readme(page: browsers.Page, tmp_path: Path) -> None:
    """``make figures`` keeps it; the flow of the left one is turbulence, that of the right one is painted."""
    page.emulate_media(reduced_motion="no-preference")
    page.set_viewport_size({"width": 1160, "height": 620})
    strokes = "150,300,400,250,700,300,850,500 850,750,600,800,300,750,150,550"
    folder = os.environ.get("BEYOND_BLUR_FIGURES")
    pictures, size = [], 512 if folder else 128
    for query in ("t=0.7&peclet=2000&sigma=1.2&octaves=3&seed=5", f"t=0.75&strokes={strokes}&strokes_on=rest"):
        page.goto(f"/?view=corrupt&size={size}&{query}")
        settle(page)
        page.wait_for_timeout(1500 if folder else 100)  # particles draw their paths
        pictures.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    both = Image.fromarray(np.concatenate([np.asarray(picture) for picture in pictures], axis=1))
    both.save(Path(folder or tmp_path) / "explore.jpg", quality=82)
    assert np.asarray(pictures[0])[60:500, 300:750].std() > 20.0
