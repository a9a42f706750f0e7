"""Pictures of one's own: arrays, tensors and PIL images, alone or in pairs with labels, read when they are asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from diffusion.data.dataset import ImageDataset, ImageStream, Pictures
from diffusion.data.images import (
    OVERSHOOT,
    RANGES,
    DataError,
    Range,
    check_values,
    data_errors,
    decoded,
    open_image,
    scaled,
    value_range,
)
from diffusion.data.labels import as_classes, in_order
from diffusion.data.prepare import PROBES, evenly_spaced
from diffusion.size import Size
from lbm_warp.checks import amount

SLACK = 0.5  # of white, by which values of clipped pictures may leave their range
DTYPES = ("uint8", "float32", "float64")


def as_dataset(
    pictures: Any,
    name: str | None = None,
    *,
    channels: int | None = None,
    size: Size | int | str | Sequence[int] | None = None,
    labels: Any = None,
    class_names: Sequence[str] = (),
    clip: bool = False,
) -> Pictures:
    """Pictures of any kind as training and evaluation take them.

    Nothing is copied: a picture is read, and checked, each time it is asked for. Float pictures have one range, 0 to 1, -1 to 1 or
    0 to 255: that of most of up to 256 of them, which a warning names unless it is 0 to 1.

    Args:
        pictures: what :func:`diffusion.open_dataset` gives, which is left as it is; or anything that has a length and items: an
            array or tensor [N, ...], a list, a torch ``Dataset``, a ``datasets.Dataset``; or a pair of arrays, pictures and labels
            of all of them. An item is a picture, a pair of a picture and its label, or a mapping with ``image`` and perhaps
            ``label``. A picture is a PIL image, the bytes of an image file, or an array or tensor [C, H, W], [H, W, C] or [H, W]
            of uint8, float32 or float64.
        name: short name, for messages and reports; by default that of the type.
        channels, size: those that the pictures must have.
        labels: classes of all pictures, [N], where the items have none: integers from 0, names, or one-hot rows; or a dict of them
            by the number of the picture. Those of the items are read, once, when they are first asked for.
        class_names: names of the classes; by default those of a ClassLabel, or the names among the labels in alphabetical order.
        clip: clip values that leave their range by at most half of white, as samples of a model do; else by a twentieth, as resized
            pictures do.

    Raises:
        DataError: if there are no pictures, the first is none, or has another size or number of channels, or the range cannot be
            told. Later ones raise it when they are read.
    """
    if isinstance(pictures, Pictures):
        _check_ours(pictures)
    if not isinstance(pictures, Pictures) or labels is not None or class_names:
        pictures = OwnPictures(pictures, name, labels, class_names, clip)
    expected = Size.of(pictures.size if size is None else size)
    _check_shape(pictures.name, (pictures.channels, *pictures.size), (channels or pictures.channels, *expected))
    return pictures


class OwnPictures(Pictures):
    """What :func:`as_dataset` makes of pictures that are not our own; arguments and errors as there."""

    def __init__(self, items: Any, name: str | None, labels: Any, class_names: Sequence[str], clip: bool) -> None:
        if isinstance(items, (tuple, list)) and len(items) == 2 and labels is None and _are_pictures_and_labels(*items):
            items, labels = items
        self.items, self.overshoot, self.given = items, SLACK if clip else OVERSHOOT, labels
        self.name = name or getattr(items, "name", None) or type(items).__name__
        if not _is_sequence(items):
            keys = f" of {', '.join(map(str, items))}; name one of them" if isinstance(items, Mapping) else ""
            keys = keys or (", but what reads it: pass its .dataset" if hasattr(items, "dataset") else "")
            raise DataError(f"{self.name}: not a sequence of pictures{keys}; files and names of data sets: diffusion.open_dataset")
        if not len(items):
            raise DataError(f"{self.name}: no pictures; expected at least one")
        if getattr(items, "ndim", 0) == 3 and (items.shape[0] == 3 or items.shape[2] in (1, 3)):
            grey = f"; for {items.shape[0]} grey ones pictures[:, None]" if items.shape[2] not in (1, 3) else ""
            expected = f"expected [N, C, H, W] or [N, H, W, C]; for one picture pass pictures[None]{grey}"
            raise DataError(f"{self.name}: shape {list(items.shape)} may be one picture; {expected}")
        if isinstance(labels, Mapping):
            self.given = in_order(labels, len(items), self.name)
        elif labels is not None and not _is_sequence(labels):
            form = "expected a list, a label for each image, or a dict by its number"
            raise DataError(f"{self.name}: labels are a {type(labels).__name__}; {form}")
        features = getattr(items, "features", None)  # of a datasets.Dataset
        self._names = class_names or (getattr(features.get("label"), "names", ()) if isinstance(features, Mapping) else ())
        self.channels, *sides = self._picture(0).shape
        self.size = Size(*sides)

    def read(self, index: Any) -> np.ndarray:
        """As :meth:`Pictures.read`: float32."""
        if isinstance(index, (int, np.integer)):
            number = range(len(self))[index]
            picture = self._picture(number)
            _check_shape(self._place(number), picture.shape, (self.channels, *self.size))
            return picture
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        return np.array([self.read(number) for number in chosen], np.float32).reshape(-1, self.channels, *self.size)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def labelled(self) -> bool:
        """Whether labels were given, or the first item has one."""
        return self.given is not None or self._item(0)[1] is not None

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        """Class of each image, int64 [N]; None if the first has none."""
        return self._classes[0]

    @property
    def class_names(self) -> Sequence[str]:  # type: ignore[override]
        """Names of the classes, where they have names."""
        return self._classes[1]

    @cached_property
    def _classes(self) -> tuple[np.ndarray | None, Sequence[str]]:
        if not self.labelled:
            return None, self._names
        given = self.given
        if given is None and isinstance(getattr(self.items, "features", None), Mapping):
            given = self.items["label"]  # the column, without decoding the images
        if given is None:
            given = [self._item(number)[1] for number in tqdm(range(len(self)), desc="labels", unit="img", delay=1, leave=False)]
        if len(given) != len(self):
            raise DataError(f"{self.name}: {amount(len(given), 'label')}; expected one for each of {amount(len(self), 'image')}")
        return as_classes(given, self._names, self._place)

    @cached_property
    def range(self) -> Range:
        """Black and white of float pictures, by up to 256 of the set."""
        numbers = evenly_spaced(len(self), PROBES).tolist()
        items = ((self._place(number), self._item(number)[0]) for number in numbers)
        arrays = [values for place, picture in items if (values := _floats(picture, place)) is not None and values.size]
        found = value_range([(values.min(), values.max()) for values in arrays], self.name, self.overshoot)
        if found != RANGES[0]:
            note = f"{self.name}: values from {found[0]:g}, which is black, to {found[1]:g}, which is white"
            warnings.warn(f"{note}, as in most of the {len(arrays)} pictures looked at", stacklevel=2)
        return found

    def _place(self, number: int) -> str:
        return f"{self.name}, picture {number}"

    def _item(self, number: int) -> tuple[Any, Any]:
        """An item as picture and label; None where it has no label."""
        item = self.items[number]
        if isinstance(item, Mapping):
            if "image" not in item:
                raise DataError(f"{self._place(number)}: columns {', '.join(item)}; expected image, perhaps label; rename them")
            return item["image"], item.get("label")
        if isinstance(item, (tuple, list)):
            if len(item) not in (1, 2):
                kind = f"a {type(item).__name__} of {len(item)}"
                raise DataError(f"{self._place(number)}: {kind}; expected a picture, or a pair of a picture and its label")
            return (*item, None)[:2]
        return item, None

    def _picture(self, number: int) -> np.ndarray:
        """A picture, float32 [C, H, W] in [0, 1]; it has been checked but for its size."""
        place, picture = self._place(number), self._item(number)[0]
        if isinstance(picture, Mapping) and "bytes" in picture:  # an image of a datasets.Dataset that is not decoded
            picture = picture["bytes"]
        with data_errors(place):
            if isinstance(picture, bytes):
                picture = open_image(io.BytesIO(picture), place)
            if isinstance(picture, Image.Image):
                return decoded(picture.copy(), place, self.range if picture.mode == "F" else None)
        if (dtype := _dtype(picture)) not in DTYPES:
            raise DataError(f"{place}: {dtype}; expected a PIL image, or an array or tensor of {', '.join(DTYPES)}; convert it")
        values = _array(picture, place)
        if values.ndim == 2:
            values = values[None]
        elif values.ndim == 3 and values.shape[0] not in (1, 3) and values.shape[2] in (1, 3):
            values = values.transpose(2, 0, 1)
        if values.ndim != 3 or values.shape[0] not in (1, 3) or min(values.shape[1:]) < 2:
            expected = "[C, H, W], [H, W, C] or [H, W] with C 1 (grey) or 3 (RGB), at least 2 x 2 pixels"
            raise DataError(f"{place}: shape {list(picture.shape)}; expected {expected}; reshape it, or choose channels")
        if dtype == "uint8":
            return np.divide(values, 255, dtype=np.float32, order="C")
        return scaled(values, self.range, place, self.overshoot)


def _is_sequence(value: Any) -> bool:
    """Whether a value has a length and items by their numbers. A set, a generator, a text and a single number have none."""
    has_items = hasattr(value, "__len__") and hasattr(value, "__getitem__") and getattr(value, "ndim", 1) > 0
    return has_items and not isinstance(value, (str, bytes, Mapping))


def _dtype(picture: Any) -> str:
    """Type of the values of an array or tensor, whatever the order of their bytes; of anything else its own type."""
    dtype = getattr(picture, "dtype", type(picture))
    return str(getattr(dtype, "name", None) or getattr(dtype, "__name__", dtype)).removeprefix("torch.")


def _array(picture: Any, place: str) -> np.ndarray:
    """The values of an array or tensor."""
    if np.ma.is_masked(picture):
        raise DataError(f"{place}: masked values; expected a number for every pixel; fill them, picture.filled(0), or leave it out")
    if not isinstance(picture, torch.Tensor):
        return np.asarray(picture)
    if picture.layout != torch.strided or picture.is_meta:
        raise DataError(f"{place}: {picture.layout} on {picture.device}; expected a dense tensor with values; convert it")
    return picture.detach().cpu().numpy()


def _floats(picture: Any, place: str) -> np.ndarray | None:
    """The values of a float picture; None if it is no such."""
    if isinstance(picture, Image.Image):
        return np.asarray(picture) if picture.mode == "F" else None
    return _array(picture, place) if _dtype(picture) in DTYPES[1:] else None


def _are_pictures_and_labels(pictures: Any, labels: Any) -> bool:
    """Whether this is a pair of all pictures, an array or tensor [N, ...], and their labels, [N] or rows [N, classes]."""
    if getattr(pictures, "ndim", 0) < 3 or not (_is_sequence(labels) or isinstance(labels, Mapping)):
        return False
    return len(labels) == len(pictures) and getattr(labels, "ndim", 1) <= 2


def _check_ours(pictures: Pictures) -> None:
    """Raise DataError if pictures in our own form are none, or not uint8 or float32 in [0, 1]: all in memory, else some of them."""
    if isinstance(pictures, (OwnPictures, ImageStream)):
        return  # checked when they are read, and uint8
    if not len(pictures):
        raise DataError(f"{pictures.name}: no pictures; expected at least one")
    values = pictures.pixels if isinstance(pictures, ImageDataset) else pictures.read(evenly_spaced(len(pictures), PROBES))
    if values.dtype not in (np.uint8, np.float32):
        raise DataError(f"{pictures.name}: {values.dtype}; expected uint8 or float32; convert the pictures")
    if values.dtype == np.float32:
        check_values(values, RANGES[0], pictures.name)


def _check_shape(place: str, found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        words = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise DataError(f"{place}: channels and pixels {'; expected '.join(words)}; convert, crop or resize")
