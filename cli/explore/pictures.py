"""Pictures that people give to the page. They are kept in memory alone, and in a bounded amount of it."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffusion.data.images import Cut, data_errors, open_image, read_image, shorter_to
from diffusion.size import Size
from lbm_warp.checks import InputError

MOST_BYTES = 16 * 2**20  # of a file
MOST_PIXELS = 40 * 10**6
MOST_KEPT = 64 * 2**20  # bytes of all files
MOST_RESIZED = 32 * 2**20  # bytes of all resized pictures
LONGEST = 4  # longer side in units of the shorter one
SMALL = 128  # shorter side of what is seen first [pixels]


class Gone(InputError):
    """A picture is not here, or no longer: whoever has its file may send it again."""


class Pictures:
    """Files of pictures by name: the bundled ones, and those that were added, whose names are their checksums.

    Whoever has a file can name it, so a link to it works again as soon as the file was added again.

    Args:
        bundled: paths by name.
    """

    def __init__(self, bundled: dict[str, Path]) -> None:
        self.bundled = bundled
        self.added: OrderedDict[str, bytes] = OrderedDict()
        self.resized: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def add(self, data: bytes) -> dict[str, object]:
        """Keep a picture; the oldest ones make room. Returns its name, height and width.

        Raises:
            InputError: if it is no picture, or too large.
        """
        check_bytes(len(data))
        with data_errors("this file"):
            width, height = open_image(io.BytesIO(data), "this file").size
        if width * height > MOST_PIXELS:
            raise InputError(
                f"this picture has {width} x {height} pixels; at most {MOST_PIXELS // 10**6} million are taken; shrink it"
            )
        if max(width, height) > LONGEST * min(width, height):
            raise InputError(f"this picture has {width} x {height} pixels; sides of at most {LONGEST} : 1 are taken; crop it")
        name = hashlib.sha256(data).hexdigest()[:24]
        self.resized[name, SMALL] = read_image(io.BytesIO(data), name="this file", cut=partial(shorter_to, length=SMALL))
        self.added[name] = data
        self.added.move_to_end(name)
        shrink(self.added, MOST_KEPT, len)
        return {"name": name, "height": height, "width": width}

    def read(self, name: str, mode: Literal["L", "RGB"] | None = None, cut: Callable[[Size], Cut] | None = None) -> np.ndarray:
        """A picture in its own size, or what is cut out of it, float32 [C, H, W].

        Raises:
            Gone: if it is not here.
        """
        if name in self.bundled:
            return read_image(self.bundled[name], mode, cut=cut)
        try:
            data = self.added[name]
        except KeyError:
            raise Gone("this picture is no longer in the memory of this machine; drop it on the page again") from None
        return read_image(io.BytesIO(data), mode, "this file", cut=cut)

    def of_size(self, name: str, size: int) -> np.ndarray:
        """A picture with a shorter side of ``size`` pixels, as ``cli.corrupt --size`` makes it."""
        if (name, size) not in self.resized:
            self.resized[name, size] = self.read(name, cut=partial(shorter_to, length=size))
            shrink(self.resized, MOST_RESIZED, lambda image: image.nbytes)
        self.resized.move_to_end((name, size))
        return self.resized[name, size]


def check_bytes(count: int) -> None:
    """Raise InputError if a file is larger than what is taken."""
    if count > MOST_BYTES:
        raise InputError(f"this file is larger than {MOST_BYTES // 2**20} MiB, which is the most that is taken; shrink it")


def shrink(kept: OrderedDict[Any, Any], most: int, measure: Callable[[Any], int]) -> None:
    """Drop the oldest of what is kept, but never the newest, until the rest measures at most so much."""
    while len(kept) > 1 and sum(map(measure, kept.values())) > most:
        kept.popitem(last=False)
