"""Figures, sheets and captions of pictures that are square, wide or tall."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from cli import figures, render, scene

SHAPES = pytest.mark.parametrize("shape", [(24, 24), (20, 60), (60, 20)], ids=["square", "wide", "tall"])


def pictures(count: int, shape: tuple[int, int]) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 255, (count, *shape, 3), dtype=np.uint8))


def drawings(shape: tuple[int, int]) -> dict[str, Figure]:
    """One of every kind of figure that shows pictures."""
    many, labels = pictures(8, shape), [f"level {level} of 200" for level in (67, 134, 200)]
    spectrum = (np.arange(1, 9), np.arange(1, 9) ** -2.0)
    compared = [figures.ComparedProcess(name, "Pe = 2, curl-noise\nno noise", many, [spectrum] * 8) for name in ("ihd", "ddpm")]
    return {
        "strip": figures.strip(many, ["level 134\nsigma = 12.3 px\nFo = 1.3e-05"] * 8, "a title"),
        "restorations": figures.restorations(many[0], many[1:4], [many[4:]] * 3, labels),
        "comparison": figures.comparison(compared, np.linspace(0.0, 0.99, 8)),
        "labelled_strips": figures.labelled_strips([(label, render.grid(many, 8)) for label in labels], "a title"),
    }


@pytest.mark.slow
@SHAPES
def test_pictures_keep_their_shape_and_nothing_overlaps(shape: tuple[int, int]) -> None:
    for name, figure in drawings(shape).items():
        figure.draw_without_rendering()
        shown = [axes for axes in figure.axes if axes.images]
        assert len(shown) == {"strip": 8, "restorations": 1 + 3 * 5, "comparison": 16, "labelled_strips": 3}[name]
        boxes = [axes.get_window_extent() for axes in shown]
        for axes, box in zip(shown, boxes, strict=True):
            height, width = axes.images[0].get_size()
            assert box.width / box.height == pytest.approx(width / height, rel=1e-3)
        texts = [text for axes in figure.axes for text in (*axes.texts, axes.title) if text.get_text()]
        boxes += [text.get_window_extent() for text in [*texts, *figure.texts]]
        # A pixel may be shared by rounding.
        assert not any(first.padded(-1).overlaps(second) for first, second in combinations(boxes, 2)), name
        if name == "strip":
            gaps = [right.x0 - left.x1 for left, right in pairwise(boxes[:8])]
            assert max(gaps) - min(gaps) < 1


@SHAPES
def test_a_sheet_is_about_as_wide_as_high(shape: tuple[int, int]) -> None:
    many = pictures(12, shape)
    sheet = render.grid(many, gap=0)
    assert 0.5 < sheet.shape[0] / sheet.shape[1] < 2
    assert (sheet[: shape[0], shape[1] : 2 * shape[1]] == many[1]).all()


@pytest.mark.parametrize("width", [60, 160, 480])
def test_captions_are_not_cut_and_have_letters_of_one_size(width: int) -> None:
    short, long, two = render.captions(["ihd", "beyond-blur-frozen", "two words or more"], width)
    for caption in (short, long, two):
        assert caption.shape == (40, width, 3) and caption.min() < 160
        assert (caption[:, [0, -1]] == 255).all() and (caption[[0, -1]] == 255).all()
    # A letter that the font lacks is its number; elsewhere it would be an empty box.
    escaped, written = render.captions(["été 照", "été \\u7167"], width)
    assert np.array_equal(escaped, written) and render.spelled("Ω→é") == "Ω→é"
    alone, beside = (render.captions(["ihd", *others], width)[0] for others in ([], ["beyond-blur-frozen"] * 2))
    assert (alone < 128).sum() > (beside < 128).sum()


def test_a_scale_goes_from_black_to_white() -> None:
    middle = render.scale(("0", "0.3"), 120)[8, 30:80, 0].astype(int)
    assert middle[0] < middle[-1] and (np.diff(middle) >= 0).all()


@pytest.mark.parametrize(("side", "sharp"), [(8, True), (28, True), (100, False)])
def test_small_pictures_stay_sharp_and_larger_ones_are_enlarged_smoothly(side: int, sharp: bool) -> None:
    (picture,) = pictures(1, (side, side))
    large = render.enlarged(picture, 5 * side)
    assert large.shape == (5 * side, 5 * side, 3)
    assert (large[::5, ::5] == picture).all() == sharp


def test_headings_stand_above_the_columns_even_of_rows_that_are_not_full() -> None:
    u = torch.zeros(2, 1, 8, 8)
    plain, headed = render.sheet(u, 3), render.sheet(u, headings=["shirt", "ankle-boot", "bag"])
    assert headed.width == 3 * 100 + 4 and headed.height - 104 > 20 and plain.height == 72
    above = np.asarray(headed)[: headed.height - 104]
    assert all(above[:, left : left + 96].min() < 128 for left in (4, 104, 204))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (9.3e-6, f"9.3 {scene.TIMES} 10⁻⁶"),
        (0.0, "0"),
        (0.5, "0.5"),
        (0.00999, "0.01"),
        (24.0, "24"),
        (123.4, "120"),
        (2.0e7, f"2 {scene.TIMES} 10⁷"),
    ],
)
def test_numbers_are_as_people_write_them(number: float, text: str) -> None:
    assert scene.written(number) == text


def test_a_heading_of_a_comparison_is_read_on_white_and_its_line_has_the_colour_of_the_spectrum() -> None:
    comparison = drawings((24, 24))["comparison"]
    first, *_, spectrum = comparison.axes[:9]
    assert {text.get_color() for axes in comparison.axes for text in axes.texts} == {render.INK}
    colours = [axes.lines[0].get_color() for axes in comparison.axes[:8]]
    assert np.array_equal(colours, [line.get_color() for line in spectrum.lines]) and first.images


def test_the_colour_bar_is_as_high_as_the_picture() -> None:
    k = np.arange(1, 9)
    velocity = np.ones((2, 12, 24))
    figure = figures.velocity_and_spectrum(velocity, "a title", (k, k**-2.0, k**-2.0), 3)
    figure.draw_without_rendering()
    field = figure.axes[0]
    (bar,) = field.child_axes
    boxes = [axes.get_window_extent() for axes in (field, bar)]
    assert boxes[0].height == pytest.approx(boxes[1].height, abs=1) and boxes[0].y0 == pytest.approx(boxes[1].y0, abs=1)


def test_ranks_are_drawn_in_at_most_five_lines() -> None:
    names = ["brightness", *(f"mode {i},{i}" for i in range(8)), *(f"digits feature {i}" for i in range(1, 9))]
    found = {"histogram": [[4] * 5] * 17, "restorations": 4, "pictures": 20, "measured": names, "level": 3, "error": 0.1}
    figure = figures.rank_histograms([found] * 3, "a title")
    (legend,) = figure.legends
    said = {text.get_text() for text in legend.get_texts()}
    assert said == {"all", "brightness", "modes", "digits features", "exact sampler"}
    assert all(len(axes.lines) == 4 for axes in figure.axes)


def test_names_are_drawn_letter_by_letter(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """No formulas, no boxes for letters that the font lacks; the numbers of an axis stay what they are."""
    name = "$x_1$ and $\\frac{ 照 \udcff \t é"
    rows = [{"name": name, "size": size, "images_per_second": 1.0 / size} for size in (8, 16)]
    for figure in (figures.strip(pictures(2, (8, 8)), [name, "two\nlines"], name), figures.cost_curves(rows, name)):
        figures.save_figure(tmp_path / "figure.png", figure)
        texts = [text for text in figure.findobj(Text) if "x_1" in text.get_text()]  # type: ignore[attr-defined]
        assert {text.get_text() for text in texts} == {"$x_1$ and $\\frac{ \\u7167 \\udcff \\t é"} and len(texts) == 2
        assert not any(text.get_parse_math() for text in texts)  # type: ignore[attr-defined]
    (axes,) = figure.axes
    assert "$" in axes.get_yticklabels()[0].get_text() and axes.get_yticklabels()[0].get_parse_math()
    assert not recwarn.list
