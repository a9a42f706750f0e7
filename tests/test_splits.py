"""Halves of a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data.dataset import ImageStream, open_dataset
from diffusion.data.images import DataError
from diffusion.data.splits import half, name_of_half, numbers_of, whole_and_half


def test_halves_are_disjoint_and_together_everything() -> None:
    whole = open_dataset("digits", 8, None)
    even, odd = (half(whole, split) for split in ("even", "odd"))
    assert (len(even), len(odd)) == (899, 898) and (even.name, odd.name) == ("digits[even]", "digits[odd]")
    assert "the 899 of even number" in even.description and (even.channels, even.size) == (1, 8)
    for number in range(len(whole)):
        one = (even, odd)[number % 2]
        assert np.array_equal(one[number // 2], whole[number]) and one.labels[number // 2] == whole.labels[number]
    assert list(numbers_of("even", 5)) == [0, 2, 4] and list(numbers_of("odd", 5)) == [1, 3]
    assert half(whole, "all") is whole and list(numbers_of("all", 3)) == [0, 1, 2]
    with pytest.raises(IndexError):
        odd[898]


def test_the_only_image_has_no_other_half(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "one.png")
    one = open_dataset(str(tmp_path), 8, None)
    assert len(half(one, "even")) == 1
    with pytest.raises(DataError, match="1 image has none of odd number; at least 2 are needed"):
        half(one, "odd")


@pytest.mark.parametrize("name", ["digits", "my faces", "a[b]", "[even]", "x[even]y", "hf:owner/name"])
@pytest.mark.parametrize("split", ["all", "even", "odd"])
def test_the_name_of_a_half_tells_which(name: str, split: str) -> None:
    assert whole_and_half(name_of_half(name, split)) == (name, split)


def test_a_stream_is_not_split() -> None:
    stream = replace(open_dataset("digits", 8), name="endless", stream=ImageStream(None, 8, "L", ()))
    assert half(stream, "all") is stream
    with pytest.raises(DataError, match="endless: a stream has no halves; leave out --stream, or --split"):
        half(stream, "even")
