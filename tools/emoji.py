"""Write the emoji of a font as PNG files, for --data emoji. The font has bitmaps (a table CBDT), as Noto Color Emoji has.

An emoji is called by its code points without variation selectors, such as 1f469-1f3fb-200d-1f680: woman, light skin, joined to a
rocket. Names, order and groups are those of Unicode's list of emoji, version 15.0. A dataset.json says which emoji are nearly the
same, as people of several skin tones are: halves of the data set keep them together.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cli import console
from diffusion.data.catalog import KNOWN
from diffusion.data.images import DataError, data_errors
from lbm_warp.checks import InputError

if TYPE_CHECKING:
    from fontTools.ttLib import TTFont

GROUPS = KNOWN["emoji"].classes
TABLE = Path(__file__).parent / "emoji.csv.gz"
_SELECTOR = 0xFE0F
# Skin tones, hair, the joiner, the signs of woman and man.
_LOOKS = {*range(0x1F3FB, 0x1F400), *range(0x1F9B0, 0x1F9B4), 0x200D, 0x2640, 0x2642}
_PERSONS = dict.fromkeys((0x1F468, 0x1F469, 0x1F9D1), "adult") | dict.fromkeys((0x1F466, 0x1F467, 0x1F9D2), "child")
# Two and more persons: heart, kiss, hands; and as emoji of their own.
_TOGETHER = {*_PERSONS.values(), "2764", "1f48b", "1f91d"}
_GROUPS_OF_PERSONS = {"1f46a", "1f46b", "1f46c", "1f46d", "1f48f", "1f491"}


@dataclass(frozen=True)
class Emoji:
    """Options of ``python -m tools.emoji``."""

    folder: tyro.conf.Positional[Path] = Path("data/emoji")
    """Where to: a folder that does not exist yet. --data emoji finds one called emoji in ./data and in --data-root."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The font; by default that of Debian's package fonts-noto-color-emoji."""


def run(options: Emoji) -> None:
    """Write the folder, whole or not at all."""
    if not options.font.is_file():
        raise InputError(f"{options.font}: no such font; apt install fonts-noto-color-emoji, or name another with --font")
    count = write(read_font(options.font), options.folder)
    print(f"wrote {count:,} emoji to {options.folder}")


def write(bitmaps: dict[str, bytes], folder: Path) -> int:
    """Write PNG files, by the names of their emoji, into a folder for each group; returns how many.

    Files and folders begin with numbers that keep their order.

    Raises:
        InputError: if the folder exists.
    """
    if folder.exists():
        raise InputError(f"{folder}: exists; choose another folder, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    labels, families = [], []
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        whole = Path(aside) / folder.name
        for number, (name, bitmap) in enumerate(bitmaps.items()):
            group = groups()[name]
            file = f"{group}-{GROUPS[group]}/{number:04d}-{name}.png"
            labels.append((file, group))
            families.append((file, family(name)))
            (whole / file).parent.mkdir(parents=True, exist_ok=True)
            (whole / file).write_bytes(bitmap)
        (whole / "dataset.json").write_text(json.dumps({"labels": labels, "families": families}), encoding="utf-8")
        whole.rename(folder)
    return len(labels)


def read_font(path: Path) -> dict[str, bytes]:
    """The bitmaps of a font as PNG files by the names of their emoji, in Unicode's order.

    Raises:
        DataError: if it is not a font, damaged, or has no such bitmaps.
        InputError: if fontTools is not installed.
    """
    try:
        from fontTools.ttLib import TTFont, TTLibError
    except ModuleNotFoundError:
        raise InputError("tools.emoji needs fontTools: pip install fonttools") from None
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
    with gzip.open(TABLE, "rt") as table:
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
    glyphs: dict[tuple[int, ...], str] = {(point,): glyph for point, glyph in font.getBestCmap().items()}
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


main = partial(console.run, "emoji", run, partial(tyro.cli, Emoji), package="tools")


if __name__ == "__main__":
    main()
