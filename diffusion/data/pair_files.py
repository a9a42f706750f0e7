"""The files of pairs of clean and degraded pictures: image files or arrays, loose or in tar files.

Pair 17 is, as loose files in a folder or as members of a tar file,

    clean/000017.png     degraded/000017.png     flow/000017.npy     record/000017.json
    000017.clean.png     000017.degraded.png     000017.flow.npy     000017.json

with degraded/000017.00.png, degraded/000017.01.png, ... for the frames of a burst. Beside loose files, metadata.jsonl has all
records, a line each, as ``datasets.load_dataset("imagefolder", ...)`` reads them; WebDataset and ``datasets`` read the tar files.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.data.images import STRIP
from diffusion.data.products import mark
from diffusion.files import read_json, whole_file
from lbm_warp.checks import MOST


@dataclass(frozen=True)
class Images:
    """Image files of integers from 0 for black to ``white``; values are clipped to [0, 1]."""

    ending: str
    white: int
    encode: Callable[[np.ndarray, str], bytes]
    """Makes a file of pixels [H, W, C], with a text that says what made it, if there is one."""
    channels: tuple[int, ...] = (1, 3)
    """C of the pictures that it takes."""

    def kept(self, values: np.ndarray) -> np.ndarray:
        """Values in [0, 1] as the files keep them."""
        return np.rint(values.clip(0.0, 1.0) * self.white).astype(np.uint8 if self.white == 255 else np.uint16)

    def floats(self, kept: np.ndarray) -> np.ndarray:
        """What reading a file gives, float32."""
        return np.divide(kept, np.float32(self.white), dtype=np.float32)

    def files(self, clean: np.ndarray, degraded: np.ndarray, flow: np.ndarray | None) -> dict[str, bytes]:
        """The files of a pair by their endings: kept values [C, H, W] and [M, C, H, W], and the flow, [M, 2, H, W]."""
        frames = [""] if len(degraded) == 1 else [f"{number:02}." for number in range(len(degraded))]
        made = {f"clean.{self.ending}": self.encode(clean.transpose(1, 2, 0), "")}
        for number, frame in zip(frames, degraded, strict=True):
            made[f"degraded.{number}{self.ending}"] = self.encode(frame.transpose(1, 2, 0), mark("corrupted"))
        return made if flow is None else made | {"flow.npy": _saved(partial(np.save, arr=_single(flow)))}


@dataclass(frozen=True)
class Arrays:
    """NPZ files with the arrays clean, degraded and flow, float32, as they are."""

    channels = range(1, MOST)

    def kept(self, values: np.ndarray) -> np.ndarray:
        """As :meth:`Images.kept`: the values themselves."""
        return values

    floats = kept

    def files(self, clean: np.ndarray, degraded: np.ndarray, flow: np.ndarray | None) -> dict[str, bytes]:
        """As :meth:`Images.files`."""
        arrays = {"clean": clean, "degraded": _single(degraded)} | ({} if flow is None else {"flow": _single(flow)})
        return {"npz": _saved(lambda file: np.savez(file, **arrays))}  # type: ignore[arg-type]


PNG_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # PNG's colour type by the number of channels


def png(pixels: np.ndarray, made_by: str = "") -> bytes:
    """A PNG file of uint8 or uint16 [H, W, C], grey or RGB, C 1 or 3, or with alpha, 2 or 4; Pillow writes no colours of 16 bits.

    A row is its difference from the one above, in which zlib looks for runs of one byte alone. Photographs and noise have no
    others: the file is as large as Pillow's, which takes ten times as long.
    """
    height, width, channels = pixels.shape
    packer = zlib.compressobj(1, strategy=zlib.Z_RLE)
    header = struct.pack(">2I5B", width, height, 8 * pixels.dtype.itemsize, PNG_KINDS[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), *([(b"tEXt", b"Software\0" + made_by.encode())] if made_by else [])]
    count, above = max(1, STRIP // width), np.zeros(width * channels * pixels.dtype.itemsize, np.uint8)
    for top in range(0, height, count):
        strip = np.ascontiguousarray(pixels[top : top + count], pixels.dtype.newbyteorder(">")).view(np.uint8)
        rows = np.vstack([above, strip.reshape(-1, len(above))])
        filtered = np.insert(np.diff(rows, axis=0), 0, 2, axis=1)  # the filter "up"
        above = rows[-1]
        chunks.append((b"IDAT", packer.compress(filtered.tobytes()) + (packer.flush() if top + count >= height else b"")))
    packed = (struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    return b"".join((b"\x89PNG\r\n\x1a\n", *packed, b"\0\0\0\0IEND\xaeB`\x82"))


def tiff(pixels: np.ndarray, made_by: str = "") -> bytes:
    """A TIFF file of uint16 [H, W, C], grey, RGB or RGB with alpha, in one strip, not compressed; see :func:`png`."""
    height, width, channels = pixels.shape
    data, text = np.ascontiguousarray(pixels, "<u2").data, made_by.encode() + b"\0" if made_by else b""
    # Behind the header and the entries: bits of every channel, the text, the pixels.
    place = 8 + 2 + 12 * (9 + bool(text) + (channels == 4)) + 4
    behind = struct.pack(f"<{channels}H", *[16] * channels) + text
    short, long = 3, 4
    entries = [
        (256, long, 1, width),
        (257, long, 1, height),
        (258, short, channels, 16 if channels == 1 else place),
        (259, short, 1, 1),  # not compressed
        (262, short, 1, 1 if channels == 1 else 2),  # grey or RGB
        (273, long, 1, place + len(behind)),  # where the strip begins
        (277, short, 1, channels),
        (278, long, 1, height),
        (279, long, 1, data.nbytes),
        *([(305, 2, len(text), place + 2 * channels)] if text else []),
        *([(338, short, 1, 2)] if channels == 4 else []),  # alpha, which the colours are not multiplied by
    ]
    table = b"".join(struct.pack("<2H2I", *entry) for entry in entries)
    return b"".join((struct.pack("<2sHIH", b"II", 42, 8, len(entries)), table, bytes(4), behind, data))


FORMATS: dict[str, Images | Arrays] = {
    "png": Images("png", 255, png),
    "png16": Images("png", 65535, png),
    "tiff": Images("tif", 65535, tiff),
    "npz": Arrays(),
}


# What records call the files of a folder; columns of the first two names are pictures to ``datasets``.
COLUMNS = {"clean": "clean_file_name", "degraded": "degraded_file_name", "flow": "flow", "arrays": "arrays"}


class Loose:
    """A folder of loose files, for pairs of these numbers, which rise."""

    def __init__(self, place: Path, numbers: Sequence[int]) -> None:
        self.place, self.numbers = place, numbers
        self.there = {path.stem for path in place.glob("record/*.json") if self._whole(path)}

    def _whole(self, record: Path) -> bool:
        """Whether all files are there that a record names."""
        row = read_json(record)
        named = (row.get(column + end, ()) for column in COLUMNS.values() for end in ("", "s"))
        return all((self.place / name).exists() for names in named for name in np.atleast_1d(names))

    def has(self, number: int) -> bool:
        """Whether a pair is there, whole."""
        return _stem(number) in self.there

    def add(self, number: int, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """Write the files of a pair, the record last; a pair that could not be made has none."""
        columns: dict[str, list[str]] = {}
        for ending, content in files.items():
            folder, _, rest = ending.partition(".") if "." in ending else ("arrays", "", ending)
            columns.setdefault(folder, []).append(f"{folder}/{_stem(number)}.{rest}")
            self._write(columns[folder][-1], content)
        if files:
            row = {
                COLUMNS[folder] + "s" * (len(names) > 1): names[0] if len(names) == 1 else names
                for folder, names in columns.items()
            }
            self._write(f"record/{_stem(number)}.json", json.dumps(row | dict(record)).encode() + b"\n")

    def _write(self, name: str, content: bytes) -> None:
        with whole_file(self.place / name) as aside:
            aside.write_bytes(content)

    def __enter__(self) -> Loose:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write metadata.jsonl, if all went well."""
        paths = [path for number in self.numbers if (path := self.place / f"record/{_stem(number)}.json").exists()]
        if kind is None and paths:
            self._write("metadata.jsonl", b"".join(path.read_bytes() for path in paths))


class Shards:
    """A folder of tar files of ``size`` pairs each, for pairs of these numbers, which rise."""

    def __init__(self, place: Path, numbers: Sequence[int], size: int) -> None:
        self.shard = {number: place / f"{index // size:06}.tar" for index, number in enumerate(numbers)}
        self.last = {path: number for number, path in self.shard.items()}
        self.opened = ExitStack()
        self.tar: tarfile.TarFile | None = None

    def has(self, number: int) -> bool:
        """As :meth:`Loose.has`."""
        return self.shard[number].exists()

    def add(self, number: int, record: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
        """As :meth:`Loose.add`, in the order of the numbers."""
        path = self.shard[number]
        if self.tar is None:
            self.tar = self.opened.enter_context(tarfile.open(self.opened.enter_context(whole_file(path)), "w"))
        for ending, content in (dict(files) | {"json": json.dumps(record).encode()} if files else {}).items():
            member = tarfile.TarInfo(f"{_stem(number)}.{ending}")
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))
        if number == self.last[path]:
            self.opened.close()
            self.tar = None

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *error: Any) -> None:
        self.opened.__exit__(*error)  # a tar file that is not complete is removed


def _stem(number: int) -> str:
    return f"{number:06}"


def _single(frames: np.ndarray) -> np.ndarray:
    """What belongs to one frame, without the axis of the frames."""
    return frames[0] if len(frames) == 1 else frames


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    save(file)
    return file.getvalue()
