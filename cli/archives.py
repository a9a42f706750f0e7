"""Archives of samples, in the formats that evaluations and trainings read."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffusion.data.products import mark
from diffusion.files import whole_file


def save_npz(path: Path, files: Sequence[Path]) -> None:
    """Write image files of one size as the array arr_0, uint8 [N, H, W, C], one image in memory at a time."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), *_pixels(files[0]).shape)}
    with whole_file(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        archive.comment = mark("archive").encode()
        with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as array:
            np.lib.format.write_array_header_1_0(array, header)
            for file in files:
                array.write(_pixels(file).tobytes())


def save_zip(path: Path, files: Sequence[Path]) -> None:
    """Write image files as they are into an archive like those of EDM and StyleGAN (PNG, not compressed again; no labels)."""
    with whole_file(path) as aside, zipfile.ZipFile(aside, "w") as archive:
        archive.comment = mark("archive").encode()
        for file in files:
            # Without the time of the file, so that the same samples make the same archive.
            archive.writestr(zipfile.ZipInfo(f"images/{file.name}"), file.read_bytes())
        archive.writestr(zipfile.ZipInfo("dataset.json"), json.dumps({"labels": None}))


def _pixels(file: Path) -> np.ndarray:
    """uint8 [H, W, C]."""
    with Image.open(file) as image:
        return np.atleast_3d(np.asarray(image))
