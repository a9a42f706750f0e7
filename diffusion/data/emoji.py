"""Colour emoji: the PNG bitmaps of a font with a CBDT table, such as Google's Noto Color Emoji.

An emoji is called by its code points without variation selectors, such as 1f469-1f3fb-200d-1f680: woman, light skin, joined to a
rocket. Names, order and groups are those of Unicode's list of emoji, version 15.0.
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path

from fontTools.ttLib import TTFont, TTLibError

from diffusion.data.images import DataError, data_errors

GROUPS = ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols", "flags")
VERSION = "Unicode 15.0"
_SELECTOR = 0xFE0F
# Skin tones, hair, the joiner, the signs of woman and man.
_LOOKS = {*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4), 0x200D, 0x2640, 0x2642}
_PERSONS = dict.fromkeys((0x1F468, 0x1F469, 0x1F9D1), "adult") | dict.fromkeys((0x1F466, 0x1F467, 0x1F9D2), "child")
# Two and more persons: heart, kiss, hands; and as emoji of their own.
_TOGETHER = {*_PERSONS.values(), "2764", "1f48b", "1f91d"}
_GROUPS_OF_PERSONS = {"1f46a", "1f46b", "1f46c", "1f46d", "1f48f", "1f491"}


def read_font(path: Path) -> dict[str, bytes]:
    """The bitmaps of a font as PNG files by the names of their emoji, in Unicode's order.

    Raises:
        DataError: if it is not a font, damaged, or has no such bitmaps.
    """
    with data_errors(str(path)):
        try:
            with TTFont(path, lazy=True) as font:
                if "CBDT" not in font:
                    raise DataError(f"{path}: a font without colour bitmaps (table CBDT); expected NotoColorEmoji.ttf of that kind")
                bitmaps, glyphs = font["CBDT"].strikeData[0], _glyphs(font)
                found = {name: glyphs.get(tuple(int(point, 16) for point in name.split("-"))) for name in groups()}
                return {name: bitmaps[glyph].imageData for name, glyph in found.items() if glyph in bitmaps}
        except (TTLibError, AttributeError, IndexError, KeyError, AssertionError) as error:
            raise DataError(f"{path}: not a font that can be read ({error})") from None


@cache
def groups() -> dict[str, int]:
    """Number of the group of every emoji, by its name, in Unicode's order."""
    with (files("assets") / "emoji.csv.gz").open("rb") as packed, gzip.open(packed, "rt") as table:
        return {name: GROUPS.index(group) for name, group in (line.split(",") for line in table.read().split())}


def family(name: str) -> str:
    """What emoji that are nearly the same picture have in common: a person in any skin, hair and sex is one family, as are couples
    and families of people, and all flags."""
    if GROUPS[groups()[name]] == "flags":
        return "flag"
    points = [int(point, 16) for point in name.split("-")]
    kinds = [_PERSONS.get(point, f"{point:x}") for point in points if point not in _LOOKS]
    together = (len(kinds) > 1 and _TOGETHER.issuperset(kinds)) or _GROUPS_OF_PERSONS.issuperset(kinds)
    return "persons" if together else "-".join(kinds) or name


def _glyphs(font: TTFont) -> dict[tuple[int, ...], str]:
    """The glyph of every code point, and of every sequence of code points that the font joins into one glyph."""
    glyphs = {(point,): glyph for point, glyph in font.getBestCmap().items()}
    lookups = font["GSUB"].table.LookupList.Lookup if "GSUB" in font else []
    tables = [getattr(table, "ExtSubTable", table) for lookup in lookups for table in lookup.SubTable]
    sets = [found for table in tables if table.LookupType == 4 for found in table.ligatures.items()]
    todo = [(ligature.LigGlyph, (first, *ligature.Component)) for first, ligatures in sets for ligature in ligatures]
    # A ligature may be part of another.
    while todo:
        points: dict[str, list[tuple[int, ...]]] = {}
        for sequence, glyph in glyphs.items():
            points.setdefault(glyph, []).append(sequence)
        ready = [(glyph, parts) for glyph, parts in todo if all(part in points for part in parts)]
        for glyph, parts in ready:
            for sequences in product(*(points[part] for part in parts)):
                glyphs.setdefault(tuple(point for one in sequences for point in one if point != _SELECTOR), glyph)
        done = set(ready)
        todo = [ligature for ligature in todo if ligature not in done] if ready else []
    return glyphs
