"""Emoji from a font: one that is made here, and Debian's where it is installed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib import newTable
from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_
from fontTools.ttLib.tables.BitmapGlyphMetrics import SmallGlyphMetrics
from PIL import Image

from diffusion.data import catalog
from diffusion.data.dataset import numbers_of, open_dataset
from diffusion.data.images import DataError
from tests.runs import exit_code
from tools import emoji

NOTO = emoji.Emoji().font
# Grinning face; woman, light skin, rocket; woman, rocket; flag of Sweden.
COLOURS = {"face": (250, 200, 0, 255), "astronaut": (200, 0, 0, 255), "woman-rocket": (0, 200, 0, 128), "se": (0, 0, 250, 255)}
POINTS = {"face": 0x1F600, "woman": 0x1F469, "light": 0x1F3FB, "zwj": 0x200D, "rocket": 0x1F680, "S": 0x1F1F8, "E": 0x1F1EA}
JOINED = """
feature ccmp {
    lookup parts { sub woman light by pale; } parts;
    lookup whole {
        sub pale zwj rocket by astronaut; sub woman zwj rocket by woman-rocket;
        sub rocket zwj woman by woman-rocket; sub S E by se;
    } whole;
} ccmp;
"""


def bitmap(colour: tuple[int, int, int, int]) -> bytes:
    """A picture of 136 x 128 pixels: a square of a colour in a transparent frame."""
    picture = Image.new("RGBA", (136, 128))
    picture.paste(colour, (36, 32, 100, 96))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def font(tmp_path: Path) -> Path:
    """A font with four emoji, three of them ligatures, one of these of a ligature."""
    glyphs = [".notdef", *POINTS, "pale", *list(COLOURS)[1:]]
    builder = FontBuilder(1024)
    builder.setupGlyphOrder(glyphs)
    builder.setupCharacterMap({point: name for name, point in POINTS.items()})
    builder.setupHorizontalMetrics({name: (1024, 0) for name in glyphs})
    builder.setupHorizontalHeader()
    builder.setupPost()
    addOpenTypeFeaturesFromString(builder.font, JOINED)
    data, places = newTable("CBDT"), newTable("CBLC")
    data.version = places.version = 3.0
    pictures, index = {}, []
    for name in COLOURS:
        picture = C_B_D_T_.cbdt_bitmap_format_17(b"", builder.font)
        picture.metrics = SmallGlyphMetrics()
        vars(picture.metrics).update(height=128, width=136, BearingX=0, BearingY=101, Advance=136)
        picture.imageData = bitmap(COLOURS[name])
        pictures[name] = picture
        table = E_B_L_C_.eblc_index_sub_table_1(b"", builder.font)
        table.names, table.indexFormat, table.imageFormat, table.imageDataOffset = [name], 1, 17, 0
        table.firstGlyphIndex = table.lastGlyphIndex = glyphs.index(name)
        index.append(table)
    strike = E_B_L_C_.Strike()
    strike.indexSubTables = sorted(index, key=lambda table: table.firstGlyphIndex)
    line = E_B_L_C_.SbitLineMetrics()
    names = "ascender descender widthMax caretSlopeNumerator caretSlopeDenominator caretOffset minOriginSB minAdvanceSB maxBeforeBL"
    vars(line).update(dict.fromkeys([*names.split(), "minAfterBL", "pad1", "pad2"], 0))
    size = strike.bitmapSizeTable
    vars(size).update(hori=line, vert=line, colorRef=0, ppemX=109, ppemY=109, bitDepth=32, flags=1)
    size.startGlyphIndex, size.endGlyphIndex, size.numberOfIndexSubTables = 1, len(glyphs) - 1, len(index)
    size.indexSubTableArrayOffset = size.indexTablesSize = 0
    places.strikes, data.strikeData = [strike], [pictures]
    builder.font["CBDT"], builder.font["CBLC"] = data, places
    builder.save(tmp_path / "small.ttf")
    return tmp_path / "small.ttf"


def test_emoji_of_a_font_by_their_code_points(font: Path) -> None:
    """Ligatures of ligatures too, in Unicode's order; a ligature that is spelled backwards is no emoji of its own."""
    found = emoji.read_font(font)
    assert list(found) == ["1f600", "1f469-200d-1f680", "1f469-1f3fb-200d-1f680", "1f1f8-1f1ea"]
    assert found["1f469-1f3fb-200d-1f680"] == bitmap(COLOURS["astronaut"])


@pytest.fixture
def written(font: Path, tmp_path: Path) -> Path:
    """A folder of data sets, of which emoji is made from the font."""
    assert exit_code(emoji.main, tmp_path / "data" / "emoji", "--font", font) == 0
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["emoji"]
    return tmp_path / "data"


def test_they_are_square_on_white_with_their_groups_as_classes(written: Path, tmp_path: Path) -> None:
    dataset = open_dataset("emoji", 32, written, cache=tmp_path / "cache")
    assert dataset.classes() == emoji.GROUPS
    assert [emoji.GROUPS[label] for label in dataset.labels] == ["smileys", "people", "people", "flags"]
    # The frame of four pixels left and right of the square that the emoji fill is cut off.
    assert dataset.pixels.shape == (4, 3, 32, 32) and (dataset.pixels[:, :, :5] == 255).all()
    assert dataset.pixels[0, :, 16, 16].tolist() == [250, 200, 0]
    # Half transparent green over white.
    np.testing.assert_allclose(dataset.pixels[1, :, 16, 16], [127, 227, 127], atol=1)


def test_halves_keep_families_together(written: Path, tmp_path: Path) -> None:
    halves = [open_dataset("emoji", 32, written, cache=tmp_path / "cache", split=split) for split in ("even", "odd")]
    families = halves[0].families  # face, woman with a rocket, flag
    assert [len(half) for half in halves] == [2, 2] and halves[1].labels.tolist() == [1, 1]
    assert numbers_of("even", families).tolist() == [0, 3] and numbers_of("all", families).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("names", "same"),
    [
        (["1f469-1f3fb-200d-1f680", "1f468-200d-1f680", "1f9d1-1f3ff-200d-1f680"], True),
        (["1f44d", "1f44d-1f3fd"], True),
        (["1f469-200d-2764-200d-1f468", "1f46b-1f3fb", "1f469-1f3fb-200d-1f91d-200d-1f468-1f3fd"], True),
        (["1f1f8-1f1ea", "1f3c1", "1f3f4-e0067-e0062-e0065-e006e-e0067-e007f"], True),
        (["1f600", "1f601"], False),
        (["1f469-200d-1f680", "1f469-200d-1f52c"], False),
    ],
)
def test_families(names: list[str], same: bool) -> None:
    assert (len({emoji.family(name) for name in names}) == 1) == same


def test_bad_fonts_are_refused_in_one_line(font: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.ttf"
    for content in (b"", b"no font", font.read_bytes()[:300]):
        other.write_bytes(content)
        with pytest.raises(DataError, match=r"other\.ttf: not a font that can be read"):
            emoji.read_font(other)
    builder = FontBuilder(1024)
    builder.setupGlyphOrder([".notdef"])
    builder.setupCharacterMap({})
    builder.save(other)
    with pytest.raises(DataError, match="without colour bitmaps"):
        emoji.read_font(other)


def test_without_them_the_two_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "SYSTEM", tmp_path / "nowhere")
    monkeypatch.delenv("BEYOND_BLUR_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    commands = r"apt install fonts-noto-color-emoji.*python -m tools\.emoji data/emoji"
    with pytest.raises(DataError, match=rf"none of emoji, emoji\.zip in data, .*{commands}"):
        open_dataset("emoji")


def test_a_folder_is_written_whole_or_not_at_all(
    font: Path, written: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, given, message in (("emoji", font, "exists"), ("b", "no.ttf", "no such font")):
        assert exit_code(emoji.main, written / folder, "--font", given) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    def fail(name: str) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(emoji, "family", fail)
    assert exit_code(emoji.main, written / "b", "--font", font) == 2
    assert [path.name for path in written.iterdir()] == ["emoji"]


@pytest.mark.skipif(not NOTO.is_file(), reason="Debian's fonts-noto-color-emoji is not installed")
def test_debians_font_has_all_emoji_and_no_near_duplicates_across_the_halves(tmp_path: Path) -> None:
    emoji.write(emoji.read_font(NOTO), tmp_path / "emoji")
    dataset = open_dataset("emoji", 16, tmp_path, cache=tmp_path)
    assert len(dataset) == len(emoji.groups()) == 3655 and set(np.bincount(dataset.labels) > 80) == {True}
    even, odd = (dataset.pixels[numbers_of(split, dataset.families)].reshape(-1, 768) / 255.0 for split in ("even", "odd"))
    assert min(len(even), len(odd)) > 1400
    # Root mean square distance of a pixel to the nearest picture of the other half; of two skin tones it is about 0.05.
    squares = (even**2).sum(axis=1)
    nearest = np.sqrt(np.maximum((squares - 2 * odd @ even.T).min(axis=1) + (odd**2).sum(axis=1), 0) / 768)
    assert (nearest < 0.03).mean() < 0.005 and (nearest < 0.06).mean() < 0.03
