"""Pictures of one's own: arrays, tensors and PIL images, alone or in pairs with labels, read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from diffusion.data.dataset import Pictures
from diffusion.data.images import DataError, data_errors, decoded
from diffusion.size import Size

SLACK = 0.5  # by which values of clipped pictures may leave [0, 1]
DTYPES = ("uint8", "float32", "float64")


def as_dataset(
    pictures: Any,
    name: str | None = None,
    *,
    channels: int | None = None,
    size: Size | None = None,
    labels: Any = None,
    class_names: Sequence[str] = (),
    clip: bool = False,
) -> Pictures:
    """Pictures of any kind as training and evaluation take them.

    Nothing is copied: a picture is read, and checked, each time it is asked for.

    Args:
        pictures: what :func:`diffusion.open_dataset` gives, which is left as it is; or anything that has a length and items: an
            array or tensor [N, ...], a list, a torch ``Dataset``, a ``datasets.Dataset``. An item is a picture, a pair of a picture
            and its label, or a mapping with ``image`` and perhaps ``label``. A picture is a PIL image, or an array or tensor
            [C, H, W], [H, W, C] or [H, W], uint8, or float32 or float64 in [0, 1].
        name: short name, for messages and reports; by default that of the type.
        channels, size: those that the pictures must have.
        labels: classes of all pictures, integers [N], where the items have none. Those of the items are read, once, when they are
            first asked for.
        class_names: names of the classes; by default those of a ClassLabel.
        clip: clip values that leave [0, 1] by at most 0.5, as samples of a model do.

    Raises:
        DataError: if there are no pictures, the first is none, or has another size or number of channels. Later ones raise it when
            they are read.
    """
    if not isinstance(pictures, Pictures) or labels is not None or class_names:
        pictures = OwnPictures(pictures, name, labels, class_names, clip)
    _check_shape(pictures.name, (pictures.channels, *pictures.size), (channels or pictures.channels, *(size or pictures.size)))
    return pictures


class OwnPictures(Pictures):
    """What :func:`as_dataset` makes of pictures that are not our own; arguments and errors as there."""

    def __init__(self, items: Any, name: str | None, labels: Any, class_names: Sequence[str], clip: bool) -> None:
        self.items, self.clip, self.given = items, clip, labels
        self.name = name or getattr(items, "name", None) or type(items).__name__
        if isinstance(items, (str, Mapping)) or not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            keys = f" of {', '.join(map(str, items))}; name one of them" if isinstance(items, Mapping) else ""
            raise DataError(f"{self.name}: not a sequence of pictures{keys}; files and names of data sets: diffusion.open_dataset")
        if not len(items):
            raise DataError(f"{self.name}: no pictures; expected at least one")
        features = getattr(items, "features", None)  # of a datasets.Dataset
        self.class_names = class_names or (getattr(features.get("label"), "names", ()) if isinstance(features, Mapping) else ())
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

    @cached_property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        """Class of each image, int64 [N]; None if the first has none."""
        if not self.labelled:
            return None
        given = self.given
        if given is None and isinstance(getattr(self.items, "features", None), Mapping):
            given = self.items["label"]  # the column, without decoding the images
        if given is None:
            given = [self._item(number)[1] for number in tqdm(range(len(self)), desc="labels", unit="img", delay=1, leave=False)]
        labels = [label.tolist() if hasattr(label, "tolist") else label for label in given]
        for number, label in enumerate(labels):
            if type(label) is not int:
                raise DataError(f"{self._place(number)}: label {label!r}; expected an integer, from 0; number the classes")
        if len(labels) != len(self):
            raise DataError(f"{self.name}: {len(labels)} labels; expected one for each of the {len(self)} images")
        return np.array(labels, np.int64)

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
                raise DataError(f"{self._place(number)}: {type(item).__name__} of {len(item)}; expected a picture and its label")
            return (*item, None)[:2]
        return item, None

    def _picture(self, number: int) -> np.ndarray:
        """A picture, float32 [C, H, W] in [0, 1]; it has been checked but for its size."""
        place, picture = self._place(number), self._item(number)[0]
        if isinstance(picture, Image.Image):
            with data_errors(place):
                return decoded(picture.copy(), place)
        dtype = str(getattr(picture, "dtype", type(picture).__name__)).removeprefix("torch.")
        if dtype not in DTYPES:
            raise DataError(f"{place}: {dtype}; expected a PIL image, or an array or tensor of {', '.join(DTYPES)}; convert it")
        values = picture.detach().cpu().numpy() if isinstance(picture, torch.Tensor) else np.asarray(picture)
        if values.ndim == 2:
            values = values[None]
        elif values.ndim == 3 and values.shape[0] not in (1, 3) and values.shape[2] in (1, 3):
            values = values.transpose(2, 0, 1)
        if values.ndim != 3 or values.shape[0] not in (1, 3) or min(values.shape[1:]) < 2:
            expected = "[C, H, W], [H, W, C] or [H, W] with C 1 (grey) or 3 (RGB), at least 2 x 2 pixels"
            raise DataError(f"{place}: shape {list(picture.shape)}; expected {expected}; reshape it, or choose channels")
        if dtype == "uint8":
            return np.divide(values, 255, dtype=np.float32, order="C")
        low, high, slack = values.min(), values.max(), SLACK if self.clip else 0.0
        if not (low >= -slack and high <= 1.0 + slack):
            if not np.isfinite([low, high]).all():
                raise DataError(f"{place}: values that are NaN or infinite; expected 0 to 1; repair the picture, or leave it out")
            signed, bytes_ = -1.0 <= low < 0.0 and high <= 1.0, low >= 0.0 and 1.0 + SLACK < high <= 255.0
            advice = "take (x + 1) / 2 if -1 is black" if signed else "divide by 255" if bytes_ else "rescale or clip them"
            raise DataError(f"{place}: values from {low:g} to {high:g}; expected 0 to 1; {advice}")
        return np.array(values.clip(0.0, 1.0) if self.clip else values, np.float32, order="C")


def _check_shape(place: str, found: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(found) != tuple(expected):
        words = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise DataError(f"{place}: channels and pixels {'; expected '.join(words)}; convert, crop or resize")
