"""Train a small classifier on data with classes; its features say how alike pictures are (cli.evaluate --features FILE)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import tyro

from cli import console
from diffusion.data.dataset import grey_or_colour, open_dataset
from diffusion.evaluation.features import train_classifier
from diffusion.files import save_tensors
from lbm_warp.checks import InputError


@dataclass(frozen=True)
class Features:
    """Options of ``python -m cli.features``."""

    data: str = "digits"
    """Pictures with classes, named as for cli.train."""
    size: int | None = None
    """Height and width that the classifier sees in pixels, a multiple of 8; that of the data by default."""
    held_out: int = 2
    """The last of every so many pictures is kept from the training, and tells how good it is: 2 trains on the even half."""
    epochs: int = 10
    """Times that each picture is seen."""
    seed: int = 0
    """Seed of the weights, the order and the shifts."""
    grey: bool = False
    """Turn colour pictures to grey. By default pictures are grey if all are, of 256 that are looked at."""
    colour: bool = False
    """Keep colour, also of pictures that look grey."""
    data_root: Path | None = None
    """Folder of named data sets; by default the environment variable BEYOND_BLUR_DATA, or ./data."""
    data_cache: Path | None = None
    """Folder of prepared pictures; ~/.cache/beyond-blur/data by default."""
    out: Path | None = None
    """File for the weights; outputs/<data>-features.safetensors by default."""


def run(options: Features) -> None:
    """Train the classifier, say how good it is, write it down."""
    out = options.out or Path("outputs") / f"{Path(options.data).name}-features.safetensors"
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: expected a file *.safetensors")
    console.check_file(out)
    grey = grey_or_colour(options.grey, options.colour)
    dataset = open_dataset(options.data, options.size, options.data_root, grey=grey, cache=options.data_cache)
    # More threads change the last digits of the weights, and are no faster.
    torch.set_num_threads(1)
    classifier, accuracy = train_classifier(dataset, options.held_out, epochs=options.epochs, seed=options.seed)
    print(f"{dataset.name}: {100 * accuracy:.1f} % of the pictures kept from the training are put into the right class")
    given = ("data", "size", "held_out", "epochs", "seed")
    save_tensors(out, classifier.state_dict(), {name: str(getattr(options, name)) for name in given})
    print(f"wrote {out}: cli.evaluate --features {out}")


main = partial(console.run, "features", run, partial(tyro.cli, Features))


if __name__ == "__main__":
    main()
