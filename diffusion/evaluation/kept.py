"""Samples of a run that is being evaluated, kept until the evaluation ends: one that was killed goes on with them."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.sources import ImageSource
from diffusion.files import load_tensors, save_tensors
from diffusion.sampling.pipeline import Pipeline
from lbm_warp.caches import cache_folder
from lbm_warp.checks import InputError

log = logging.getLogger("lbm_warp")

FORMAT = 1
# Time after which nobody goes on with an evaluation any more [s].
FORGOTTEN = 30 * 86_400.0


class KeptSamples:
    """The samples of a run in a folder of the cache, which is called after everything that they depend on.

    Args:
        source: the run as a source of images.
        run: the run.
        config: how it is sampled, and where the cache is.
    """

    def __init__(self, source: ImageSource, run: Pipeline, config: EvaluationConfig) -> None:
        self.source, cache = source, config.cache or cache_folder("beyond-blur")
        how = [FORMAT, config.seed, config.steps, config.sampling_noise, run.precision, run.device.type]
        key = hashlib.sha256(json.dumps([run.fingerprint, *how]).encode()).hexdigest()
        self.folder: Path | None = cache / f"samples-{key}"
        for other in cache.glob("samples-*"):
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > FORGOTTEN:
                    shutil.rmtree(other)

    def read(self, index: np.ndarray) -> torch.Tensor:
        """As :attr:`ImageSource.read`, from the folder if this batch is there, else made and kept there."""
        if self.folder is None:
            return self.source.read(index)
        path = self.folder / f"{hashlib.sha256(index.tobytes()).hexdigest()[:16]}.safetensors"
        with suppress(InputError, KeyError):  # missing or damaged
            return load_tensors(path)["images"]
        images = self.source.read(index)
        try:
            save_tensors(path, {"images": images})
        except InputError as error:
            log.warning("%s: the samples are not kept, and a killed evaluation begins anew", error)
            self.folder = None
        return images

    def remove(self) -> None:
        """Remove the folder, at the end of the evaluation."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
