"""Real pictures that samples are compared with: their halves, their features, and the cache of these."""

from __future__ import annotations

import hashlib
import json
import logging
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from diffusion.data.dataset import Split, evenly_spaced, numbers_of, whole_and_half
from diffusion.evaluation.config import EvaluationConfig
from diffusion.evaluation.features import BUNDLED, FeatureExtractor, Features, open_features, usual_features
from diffusion.evaluation.metrics import Measurement
from diffusion.evaluation.sources import ImageSource
from diffusion.files import load_tensors, save_tensors
from lbm_warp.caches import cache_folder
from lbm_warp.checks import InputError, amount

log = logging.getLogger("lbm_warp")

MOST_SAMPLES = 10_000  # of a run, unless told
PROBES = 2048  # pictures that a fingerprint looks at
CACHE_FORMAT = 1


@dataclass(frozen=True)
class Reference:
    """Real pictures, and how samples are compared with them.

    Raises:
        InputError: by ``extractor`` and what uses it, if there are no such features, or their file is missing or damaged.
    """

    pictures: ImageSource
    config: EvaluationConfig
    device: torch.device
    features: Features | None = None
    """Features of one's own, in place of those that the configuration names."""

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The features that were given, that the configuration names, or that suit the pictures."""
        data, given = whole_and_half(self.pictures.name)[0], self.features or self.config.features
        features = given or usual_features(data, self.pictures.channels, self.config.inception)
        if not given and features in BUNDLED and features != data and PartialState().is_main_process:
            says = "distances compare with each other, not with published FIDs"
            log.warning("no file of Inception here: the features are those of the bundled %s classifier; %s", features, says)
        return open_features(features, self.device, self.config.inception)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what the features depend on: number and size of the pictures, up to 2,048 of them, and the extractor."""
        probes = self.pictures.read(evenly_spaced(self.pictures.count, PROBES)).numpy()
        facts = [CACHE_FORMAT, self.pictures.count, *probes.shape, self.extractor.name, self.extractor.sha256]
        return hashlib.sha256(json.dumps(facts).encode() + probes.tobytes()).hexdigest()

    def numbers(self, split: Split | None = None) -> np.ndarray:
        """Numbers of the pictures that samples are compared with, or of those of another split, int64."""
        count, families = self.pictures.count, self.pictures.data.families if self.pictures.data else None
        return numbers_of(split or self.config.split or "all", count if families is None else families)

    @property
    def num(self) -> int:
        """Number of samples of a run: as many as pictures that they are compared with, at most 10,000, or ``config.num``."""
        return self.config.num or min(len(self.numbers()), MOST_SAMPLES)

    def facts(self) -> dict[str, str | None]:
        """What metrics.json says of the reference."""
        return {"data": self.pictures.name, "split": self.config.split, "fingerprint": self.fingerprint}

    def read(self, index: np.ndarray) -> torch.Tensor:
        """Pictures as a run takes them, float32 [n, C, H, W] in [0, 1]."""
        return self.pictures.read(index).float() / 255.0

    def check_enough(self, samples: str, count: int) -> None:
        """Raise InputError unless both halves of the pictures, and ``count`` samples, are more than k images."""
        k = self.config.k
        for name, have in ((f"each half of {self.pictures.name}", self.pictures.count // 2), (samples, count)):
            if have <= k:
                raise InputError(f"{name} has {amount(have, 'image')}, too few for k = {k}: at least {k + 1} are needed")

    def measured(self) -> Measurement | None:
        """Features and colours of all pictures, from the cache if they are there, else measured and kept there.

        Those of a module or function of one's own are not kept: nothing tells when its code has changed. On a cache hit only rank 0
        gets them, the others None.
        """
        found, main = None, PartialState().is_main_process
        keep = self.features is None or isinstance(self.features, FeatureExtractor)
        path = (self.config.cache or cache_folder("beyond-blur")) / f"{self.fingerprint}.safetensors" if main else Path()
        if main and keep:
            with suppress(InputError, TypeError):  # missing or damaged
                found = Measurement(**load_tensors(path))
        [cached] = broadcast_object_list([found is not None])
        if not cached:
            found = self.pictures.measure(np.arange(self.pictures.count), self.extractor, self.config.batch, self.device)
            if main and keep:
                try:
                    save_tensors(path, vars(found), {"data": self.pictures.name, "features": self.extractor.name})
                except InputError as error:  # such as a full disk: what was measured counts
                    log.warning("%s: the features of the pictures are not kept", error)
        return found
