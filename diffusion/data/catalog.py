"""Data sets known by name: where a local copy may lie, where the hub has one, and how to get one otherwise."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from diffusion.size import Size


@dataclass(frozen=True)
class Known:
    """A data set known by name."""

    names: tuple[str, ...]
    """Patterns for names of local copies, best first. A copy with a size in its name (ffhq-64x64.zip) serves up to that size."""
    size: int
    """Side of the images [pixels] unless another is asked for."""
    hub: str | None
    """The set on the Hugging Face hub, if it is there."""
    instructions: str
    """How to get a local copy, its size and licence; ``{folder}`` is where to put it."""
    classes: tuple[str, ...] = ()
    """Names of the classes."""


KNOWN = {
    "ffhq": Known(
        ("ffhq", "ffhq.zip", "ffhq-*x*.zip", "thumbnails128x128", "images1024x1024"),
        128,
        "merkol/ffhq-256",
        "download thumbnails128x128 (70,000 PNG images, about 2 GB, CC BY-NC-SA 4.0) as https://github.com/NVlabs/ffhq-dataset "
        "describes (python download_ffhq.py --thumbs) and move that folder to {folder}/thumbnails128x128",
    ),
    "afhq": Known(
        ("afhq/train", "afhqv2/train", "afhq", "afhqv2", "afhq.zip", "afhqv2.zip", "afhqv2-*x*.zip", "afhq-*x*.zip"),
        64,
        "huggan/AFHQv2",
        "download AFHQ v2 (15,803 PNG images, about 7 GB, CC BY-NC 4.0) as https://github.com/clovaai/stargan-v2 describes "
        "(bash download.sh afhq-v2-dataset) and move that folder to {folder}/afhq",
    ),
    "lsun-church": Known(
        ("lsun?church", "church_outdoor_train", "lsun-church.zip", "lsun*church*x*.zip", "church_outdoor_train_lmdb"),
        128,
        "tglcourse/lsun_church_train",
        "download church_outdoor (126,227 images, about 2.3 GB, no licence stated) and export it to image files as "
        "https://github.com/fyu/lsun describes (python download.py -c church_outdoor; python data.py export), into "
        "{folder}/lsun-church",
    ),
    "cifar10": Known(
        ("cifar10", "cifar10.zip", "cifar10-*x*.zip", "cifar-10-batches-bin", "cifar-10-batches-py"),
        32,
        "uoft-cs/cifar10",
        "download cifar-10-binary.tar.gz (the binary version; 50,000 training images, 162 MB, no licence stated) from "
        "https://www.cs.toronto.edu/~kriz/cifar.html and unpack it to {folder}/cifar-10-batches-bin",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "mnist": Known(
        ("mnist", "mnist.zip", "mnist-*x*.zip", "MNIST/raw", "MNIST"),
        28,
        "ylecun/mnist",
        "download train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz (60,000 images, 10 MB, CC BY-SA 3.0) from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/ and put them into {folder}/mnist",
    ),
    "fashion-mnist": Known(
        ("fashion-mnist", "fashion-mnist.zip", "fashion-mnist-*x*.zip", "FashionMNIST/raw", "FashionMNIST"),
        28,
        "zalando-datasets/fashion_mnist",
        "install Debian's package (apt install dataset-fashion-mnist), or download train-images-idx3-ubyte.gz and "
        "train-labels-idx1-ubyte.gz (60,000 images, 26 MB, MIT licence) from https://github.com/zalandoresearch/fashion-mnist "
        "and put them into {folder}/fashion-mnist",
        ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot"),
    ),
    "emoji": Known(
        ("emoji", "emoji.zip"),
        32,
        None,
        "install Debian's font (apt install fonts-noto-color-emoji; 3,655 pictures, 10 MB, SIL Open Font License) and write its "
        "pictures there from a checkout of this project (python -m tools.emoji {folder}/emoji)",
        ("smileys", "people", "animals", "food", "travel", "activities", "objects", "symbols", "flags"),
    ),
}
SYSTEM = Path("/usr/share/datasets")


def folders(root: Path | None) -> list[Path]:
    """Where local copies are looked for: ``root``, the folder that BEYOND_BLUR_DATA names, ./data, where Debian puts data sets."""
    return [Path(folder) for folder in (root, os.environ.get("BEYOND_BLUR_DATA"), "data", SYSTEM) if folder]


def find(name: str, size: Size, root: Path | None) -> Path | None:
    """The best local copy of the known set ``name`` for images of this size; of several sizes the smallest that is enough."""
    for folder in folders(root):
        for pattern in KNOWN[name].names:
            copies = [(side, path) for path in folder.glob(pattern) if (side := _side(path)) >= max(size)]
            if copies:
                return min(copies)[1]
    return None


def advice(name: str, root: Path | None) -> str:
    """What to do if there is no copy of the known set ``name``."""
    places = folders(root)
    looked = f"none of {', '.join(KNOWN[name].names)} in {', '.join(map(str, places))}"
    return f"{looked}; {KNOWN[name].instructions.format(folder=places[0])}, or use other images with --data FOLDER"


def _side(path: Path) -> float:
    """Side of the images in a copy, if its name says it."""
    match = re.search(r"(\d+)x\1(?!\d)", path.name)
    return int(match[1]) if match else math.inf
