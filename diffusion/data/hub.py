"""Images of the Hugging Face hub, through the `datasets` library (optional: pip install 'beyond-blur[hub]').

A set is kept on the disk as a memory-mapped table, or read as a stream. Images stay encoded until our own reader decodes them:
grey, transparent and 16-bit ones, and the limits on their size, are what they are for files.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from diffusion.data.images import DataError, check_file_bytes, data_errors
from diffusion.data.sources import Folder
from diffusion.rng import seeds

INSTALL = "pip install 'beyond-blur[hub]'"

# Rows of a stream that are shuffled together. Their files are kept in memory meanwhile.
SHUFFLED = 1000
# Kinds of sets whose tables name files that the library itself found, in the set's own folder.
_OF_FILES = {"imagefolder"}


class Row(NamedTuple):
    """One encoded image."""

    name: str
    """What messages call it."""
    content: bytes | None
    """Its file; None where the row is empty."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A table on the disk, memory-mapped; a store of images called by number."""

    name: str
    """What messages call the set."""
    table: Any
    """datasets.Dataset."""
    column: str
    """Its column of encoded images."""
    labels: np.ndarray | None
    """Class of each row, int64, where there is a column of classes."""

    def names(self) -> Sequence[int]:
        """Numbers of the rows."""
        return range(len(self.table))

    @contextmanager
    def reading(self, index: int) -> Iterator[tuple[BinaryIO, str]]:
        """Open one image; what goes wrong meanwhile is a DataError. Yields the file and what messages call it."""
        row = self.table[index][self.column] or {}
        name, content, path = f"{self.name}, row {index}", row.get("bytes"), row.get("path")
        if content is None and path and self.table.info.builder_name in _OF_FILES:
            with Folder(Path(path).parent).reading(Path(path).name) as opened:
                yield opened
        else:
            # A path in any other table is whatever its maker wrote there: it is not followed.
            with _opened(name, content) as opened:
                yield opened


@dataclass(frozen=True, eq=False)
class Stream:
    """A set that is read from its beginning, for those too large for the disk."""

    name: str
    """What messages call the set."""
    table: Any
    """datasets.IterableDataset."""
    column: str
    """Its column of encoded images."""
    count: int | None
    """Number of images, if the set declares it."""

    def __iter__(self) -> Iterator[Row]:
        """The rows in their own order, once."""
        return self._rows(self.table)

    def shuffled(self, seed: int, first: int) -> Iterator[Row]:
        """The rows of a run without end, from number `first` on.

        Every epoch shuffles anew: the order of the files, and `SHUFFLED` rows at a time. This is a function of the seed; to go on
        at `first` is to read what comes before it in its epoch again, without decoding it.

        Raises:
            DataError: The stream broke off, or is not as long as the set declares.
        """
        epoch, length = 0, self.count
        while True:
            if length:
                skipped, first = divmod(first, length)
                epoch += skipped
            shuffled = self.table.shuffle(seed=int(seeds(seed, "epoch", epoch)), buffer_size=SHUFFLED)
            number = 0
            for number, row in enumerate(self._rows(shuffled), 1):
                if number > first:
                    yield row
            if not number or length not in (None, number):
                raise DataError(f"{self.name}: {number} images came of {length or 'some'}; try again, or without --stream")
            epoch, length, first = epoch + 1, number, max(first - number, 0)

    @contextmanager
    def reading(self, row: Row) -> Iterator[tuple[BinaryIO, str]]:
        """Open one image; what goes wrong meanwhile is a DataError. Yields the file and what messages call it."""
        with _opened(*row) as opened:
            yield opened

    def _rows(self, table: Any) -> Iterator[Row]:
        with _hub_errors(self.name, "the stream broke off", "check the network; a run goes on from its last checkpoint"):
            for row in table:
                value = row[self.column] or {}
                content = value.get("bytes")
                # Rows have no numbers that survive the shuffling.
                known_by = Path(value.get("path") or "").name or hashlib.sha256(content or b"").hexdigest()[:12]
                yield Row(f"{self.name}, {known_by}", content)


def open_hub(data: str, stream: bool) -> Rows | Stream:
    """Open a set of the hub, or a folder of parquet files.

    Args:
        data: "owner/name", with "@config" and ":split" (train unless given) where wanted; or the path of the folder, with ":split".
        stream: Read it as a stream; otherwise it is downloaded first, and kept where the library keeps its cache.

    Raises:
        DataError: The library is not installed, there is no such set, configuration or split, no network, or no image column.
    """
    name = f"hf:{data}"
    try:
        from datasets import ClassLabel, Image, load_dataset
    except ImportError:
        raise DataError(f"{name}: sets of the hub need the datasets library; install it: {INSTALL}") from None
    place, config, split = _parsed(data)
    if (folder := Path(place).expanduser()).is_dir():
        if not any(folder.rglob("*.parquet")):
            raise DataError(f"{name}: no parquet files in it; expected some; a folder of images is read without hf:")
        source = {"path": "parquet", "data_dir": str(folder)}
    else:
        source = {"path": place, "name": config}
    with _hub_errors(name, "cannot be loaded", "check the name, the network and the space on the disk"):
        # Data files only: a script that comes with a set is never run. (Later versions of the library cannot.)
        splits = load_dataset(**source, streaming=stream, trust_remote_code=False)
    if split not in splits:
        raise DataError(f"{name}: no split '{split}'; it has {', '.join(splits)}; name one as in hf:{place}:{next(iter(splits))}")
    table = splits[split]

    columns = dict(table.features or {})
    image = next((column for column, kind in columns.items() if isinstance(kind, Image)), None)
    label = next((column for column, kind in columns.items() if isinstance(kind, ClassLabel)), None)
    if image is None:
        kinds = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in columns.items())
        raise DataError(f"{name}: no column of images; expected one of type Image among {kinds or 'its columns'}")
    if stream and table.info.builder_name in _OF_FILES:
        raise DataError(f"{name}: its images are single files, which cannot be streamed; leave out --stream")
    # In this order: other operations on a table decode its images.
    images = table.cast_column(image, Image(decode=False)).select_columns(image)
    if stream:
        declared = (table.info.splits or {}).get(split)
        return Stream(name, images, image, declared.num_examples if declared else None)
    labels = table.with_format("numpy", columns=[label])[:][label].astype(np.int64) if label else None
    return Rows(name, images, image, labels)


def _parsed(data: str) -> tuple[str, str | None, str]:
    """Split "owner/name@config:split" into its parts."""
    match = re.fullmatch(r"(?P<place>[^@:]+)(@(?P<config>[^@:]+))?(:(?P<split>[\w.]+))?", data)
    folder = match is not None and Path(match["place"]).expanduser().is_dir()
    if match is None or not (folder or "/" in match["place"]) or (folder and match["config"]):
        raise DataError(f"hf:{data}: expected hf:owner/name, hf:owner/name@config:split or hf:FOLDER with parquet files")
    return match["place"], match["config"], match["split"] or "train"


@contextmanager
def _opened(name: str, content: bytes | None) -> Iterator[tuple[BinaryIO, str]]:
    """An encoded image as a file."""
    with data_errors(name):
        if content is None:
            raise DataError(f"{name}: holds no image file")
        check_file_bytes(len(content), name)
        yield io.BytesIO(content), name


@contextmanager
def _hub_errors(name: str, problem: str, advice: str) -> Iterator[None]:
    """Turn whatever the library and the network raise into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise DataError(f"{name}: {problem} ({reason}); {advice}") from error
