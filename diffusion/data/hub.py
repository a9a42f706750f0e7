"""Images of the Hugging Face hub, through the ``datasets`` library (optional: pip install 'beyond-blur[hub]').

A set is downloaded to the library's cache, or read as a stream. Our own reader decodes the images, so that grey, transparent and
16-bit ones are read as from files, and the limits on their size are the same.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from diffusion.data.images import DataError, data_errors, read_image
from diffusion.data.sources import Source, numbered, read_file
from diffusion.rng import seeds
from lbm_warp.checks import amount

# Rows of a stream that are shuffled together. Their files are kept in memory meanwhile.
SHUFFLED = 1000
FIRST = 32  # rows of a stream that are looked at
ANSWER = 3.0  # time for the Hub to answer at all [s]
# An image of a stream: what messages call it, and its file (empty where the row is).
Row = tuple[str, bytes]


@dataclass(frozen=True, eq=False)
class Stream:
    """A set that is read from its beginning, for those too large for the disk."""

    location: str
    table: Any
    """datasets.IterableDataset with one column, of encoded images."""
    count: int | None
    """Number of images, if the set declares it."""

    @cached_property
    def names(self) -> list[Row]:
        """The first 32 rows."""
        return list(islice(self, FIRST))

    def read(self, row: Row) -> Row:
        """As :attr:`Source.read`: a row holds its file."""
        return row

    def __iter__(self) -> Iterator[Row]:
        """The rows in their own order, once."""
        return self._rows(self.table)

    def shuffled(self, seed: int, first: int) -> Iterator[Row]:
        """The rows of a run without end, from number ``first`` on.

        Every epoch shuffles anew: the order of the files, and ``SHUFFLED`` rows at a time, as a function of the seed. To go on at
        ``first``, the rows before it in its epoch are read again, but not decoded.

        Raises:
            DataError: if the stream broke off, or is not as long as the set declares.
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
                came = f"{amount(number, 'image')} came of {length or 'some'}"
                raise DataError(f"{self.location}: {came}; try again, or without --stream")
            epoch, length, first = epoch + 1, number, max(first - number, 0)

    def _rows(self, table: Any) -> Iterator[Row]:
        with _hub_errors(self.location, "the stream broke off", "check the network; a run goes on from its last checkpoint"):
            # Plainly iterated, the library gives each of torch's worker processes an order of its own.
            for row in table.iter(batch_size=1):
                [[image]] = row.values()
                content, path = _cell(image)
                # Rows have no numbers that survive the shuffling.
                yield f"{self.location}, {Path(path).name or hashlib.sha256(content).hexdigest()[:12]}", content


def open_hub(data: str, stream: bool = False) -> tuple[str, Source | Stream]:
    """Open a set of the hub, or a folder of parquet files.

    Args:
        data: ``owner/name``, with ``@config`` and ``:split`` (train unless given) where wanted; or the path of the folder, with
            ``:split``.
        stream: read it as a stream; otherwise it is downloaded first, and kept where the library keeps its cache.

    Returns:
        A short name, such as owner/name or that of the folder, and the set.

    Raises:
        DataError: if the library is not installed, there is no such set, configuration or split, no network, or no image column.
    """
    location = f"hf:{data}"
    parts = re.fullmatch(r"([^@:]+)(?:@([^@:]+))?(?::([\w.]+))?", data)
    place, config, split = parts.groups() if parts else ("", None, None)
    found = Path(os.path.expanduser(place))
    folder = found.resolve() if place and found.is_dir() else None
    if not (folder or "/" in place) or (folder and config):
        raise DataError(f"{location}: expected hf:owner/name, hf:owner/name@config:split or hf:FOLDER with parquet files")
    if folder is None:
        return place, _open(location, {"path": place, "name": config}, split, stream)
    if not any(folder.rglob("*.parquet")):
        raise DataError(f"{location}: no parquet files in it; expected some; a folder of images is read without hf:")
    where = {"path": "parquet", "data_dir": str(folder)}
    return folder.name, _open(location.replace(place, str(folder), 1), where, split, stream)


def open_parquet(path: Path) -> Source:
    """Open a parquet file, or the training split of a folder of them.

    Raises:
        DataError: as :func:`open_hub`.
    """
    where = {"data_dir": str(path.resolve())} if path.is_dir() else {"data_files": {"train": str(path.resolve())}}
    source = _open(str(path), {"path": "parquet", **where}, None, stream=False)
    assert isinstance(source, Source)
    return source


def _open(location: str, where: dict[str, Any], split: str | None, stream: bool) -> Source | Stream:
    """A split of what ``datasets.load_dataset(**where)`` loads; errors as for :func:`open_hub`."""
    try:
        from datasets import ClassLabel, Image, Value, load_dataset
    except ImportError:
        raise DataError(
            f"{location}: sets of the hub and parquet files need the datasets library; install it: pip install 'beyond-blur[hub]'"
        ) from None
    of_hub = "name" in where
    advice = "check the name, the network and the space on the disk" if of_hub else "it may be damaged or cut short: get a new copy"
    with _hub_errors(location, "cannot be loaded", advice), _at_once() if of_hub else nullcontext():
        # Data files only: a script that comes with a set is never run. (Later versions of the library cannot.)
        splits = load_dataset(**where, streaming=stream, trust_remote_code=False)
    found, example = ", ".join(splits), f"hf:{location.removeprefix('hf:').partition(':')[0]}:{list(splits)[-1]}"
    if split is None and len(splits) > 1:
        warnings.warn(f"{location}: of {found} only train is read; name another as in {example}", stacklevel=2)
    if (split := split or "train") not in splits:
        raise DataError(f"{location}: no split '{split}'; it has {found}; name one as in {example}")

    table = splits[split]
    columns = dict(table.features or {})
    image = next((column for column, kind in columns.items() if isinstance(kind, Image)), None) or _encoded(table, columns)
    labels = {column: kind for column, kind in columns.items() if isinstance(kind, ClassLabel)}
    labels |= {column: columns[column] for column in ("label", "labels", "class") if isinstance(columns.get(column), Value)}
    label = next(iter(labels), None)
    if image is None:
        kinds = ", ".join(f"{column} ({type(kind).__name__})" for column, kind in columns.items())
        expected = "expected one of type Image, or of the bytes of image files,"
        raise DataError(f"{location}: no column of images; {expected} among {kinds or 'its columns'}")
    # The table of an image folder names files that the library itself found, in the set's own folder.
    of_files = table.info.builder_name == "imagefolder"
    if stream and of_files:
        raise DataError(f"{location}: its images are single files, which cannot be streamed; leave out --stream")
    # In this order: other operations on a table decode its images.
    images = table.cast_column(image, Image(decode=False)).select_columns(image)
    if stream:
        declared = (table.info.splits or {}).get(split)
        return Stream(location, images, declared.num_examples if declared else None)

    def read(number: int) -> tuple[str, bytes]:
        name = f"{location}, row {number}"
        with data_errors(name):
            content, path = _cell(images[number][image])
        # A path in any other table is whatever its maker wrote there: it is not followed.
        return read_file(path) if of_files and path and not content else (name, content)

    with data_errors(location):
        classes = table.select_columns(label)[:][label] if label else [None] * len(table)
    return numbered(location, images._fingerprint, classes, read, getattr(labels.get(label), "names", ()))


def _encoded(table: Any, columns: dict[str, Any]) -> str | None:
    """The first column that has the file of an image in the first row, as bytes or an object with ``bytes``; None without one."""
    [row] = islice(table, 1) if columns else [{}]
    for column in columns:
        value = row[column]
        content = value.get("bytes") if isinstance(value, dict) else value
        with suppress(DataError):
            if isinstance(content, bytes) and read_image(io.BytesIO(content)).size:
                return column
    return None


def _cell(image: dict[str, Any] | None) -> tuple[bytes, str]:
    """Content and path of an image in a table, empty where there is none."""
    image = image or {}
    return image.get("bytes") or b"", image.get("path") or ""


@contextmanager
def _at_once() -> Iterator[None]:
    """A block in which the libraries give what they have kept, or give up, where the Hub does not answer within seconds.

    Left to themselves they try again for most of a minute.
    """
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        yield
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER)
        problem = None
    except Exception as error:
        problem = error
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(f"the Hub does not answer: {problem}; and there is no copy here") if problem else error from None
    finally:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = False


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
