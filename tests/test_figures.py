"""Figures, sheets and captions of pictures that are square, wide or tall."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cli import figures, render

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
def test_a_caption_is_not_cut(width: int) -> None:
    caption = render.caption("beyond-blur-curl", width)
    assert caption.shape == (40, width, 3) and caption.min() < 128
    assert (caption[:, [0, -1]] == 255).all()


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
