"""Presets: complete runs by name, with data, size, process, schedule, network and optimiser that belong together.

    config = preset("ffhq-128")
    train(dataclasses.replace(config, data="my faces"), dataset, folder)

``ffhq-128-published`` is the run of Beyond Blur (Gruszczynski et al., ICCV 2025) at the best Peclet number of its published table,
with the moving field of the public research code. Network and optimiser are those of that code's main configuration for FFHQ at 128
pixels. What the paper's runs used is not known for certain: the code is older than the paper; its main configuration has batches
of 32 and 1.3 million steps, its only grid of Peclet numbers has batches of 8 and 200,001 steps. sigma_max of 128 pixels is that of
the grid; the paper does not say its own.

The others, except ``digits``, are the published configurations of inverse heat dissipation (IHD; Rissanen et al., ICLR 2023) for
their data, and ``ffhq-128`` that of Beyond Blur, all with a frozen flow. Published are: levels, blur, noise, size of the network,
dropout, Adam's step size, its warm-up over 5,000 steps, the decay of the average, clipping, the batch, and 1.3 million steps as the
longest training. The network is this project's U-Net at the published size; its attention has one head for every 64 channels
(published: one head), and the level scales and shifts its features (published: shifts alone).

Our own choices are: all of ``digits``; the flow of all but ``ffhq-128-published``; ``ffhq-64``, which is IHD's run on AFHQ at 64
pixels with other pictures. Blur is a fraction of the shorter image side, so a preset keeps its meaning at another size.
"""

from __future__ import annotations

from dataclasses import replace

from diffusion.config import RunConfig, TrainingConfig
from diffusion.data.catalog import KNOWN
from diffusion.network import NetworkConfig
from diffusion.process import named_process
from diffusion.size import Size
from lbm_warp.checks import check_name

# The best FID of the table published for FFHQ at 128 pixels (36.64, against 55.87 without flow).
_PECLET = 0.06
_STEPS = 1_300_000
_WARMUP_STEPS = 5_000


def _published(
    data: str,
    size: int,
    sigma_max: float,
    network: NetworkConfig,
    batch: int,
    learning_rate: float,
    ema: float,
    levels: int = 200,
    process_name: str = "beyond-blur-frozen",
) -> RunConfig:
    """A run on colour pictures with what all published configurations share; ``sigma_max`` in pixels."""
    process = replace(named_process(process_name), peclet=_PECLET, sigma_max=sigma_max / size, levels=levels)
    return RunConfig(
        process_name=process_name,
        data=data,
        channels=3,
        size=size,
        process=process,
        network=network,
        training=TrainingConfig(
            images=_STEPS * batch, batch=batch, learning_rate=learning_rate, warmup=_WARMUP_STEPS * batch, ema=ema
        ),
    )


_LARGE = NetworkConfig(width=128, multipliers=(1, 2, 3, 4, 5), blocks=3, attention=(2, 3, 4), dropout=0.3)
_MEDIUM = NetworkConfig(width=128, multipliers=(1, 2, 3, 4), blocks=2, attention=(2, 3), dropout=0.1)

_FFHQ_128 = {"size": 128, "sigma_max": 128, "network": _LARGE, "batch": 32, "learning_rate": 2e-5, "ema": 0.9999}

PRESETS = {
    # Trains in minutes on a CPU.
    "digits": RunConfig(
        process_name="fluid",
        data="digits",
        channels=1,
        size=16,
        process=named_process("fluid"),
        network=NetworkConfig(),
        training=TrainingConfig(decay=0.5),
    ),
    "cifar10": _published(
        "cifar10",
        size=32,
        sigma_max=24,
        network=NetworkConfig(width=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(2, 3), dropout=0.1),
        batch=128,
        learning_rate=2e-4,
        ema=0.999,
    ),
    "ffhq-64": _published("ffhq", size=64, sigma_max=32, network=_MEDIUM, batch=128, learning_rate=1e-4, ema=0.999),
    "ffhq-128": _published("ffhq", **_FFHQ_128),
    "ffhq-128-published": _published("ffhq", **_FFHQ_128, process_name="beyond-blur"),
    "ffhq-256": _published("ffhq", size=256, sigma_max=128, network=_LARGE, batch=32, learning_rate=2e-5, ema=0.9999),
    "lsun-church-128": _published(
        "lsun-church",
        size=128,
        sigma_max=64,
        network=replace(_LARGE, blocks=4, dropout=0.1),
        batch=32,
        learning_rate=2e-5,
        ema=0.999,
        levels=400,
    ),
    "afhq-64": _published("afhq", size=64, sigma_max=32, network=_MEDIUM, batch=128, learning_rate=1e-4, ema=0.999),
}

# For pictures that no preset is made for: the largest shorter side [pixels] that each preset is taken for.
_UP_TO = {"digits": 28, "cifar10": 32, "ffhq-64": 64, "ffhq-128": 128, "ffhq-256": 256}
_SIZE = 64


def preset(name: str) -> RunConfig:
    """The run called ``name``.

    Raises:
        InputError: if there is none; the message gives the nearest name.
    """
    check_name("preset", name, PRESETS)
    return PRESETS[name]


def preset_for(data: str, size: Size | None = None) -> tuple[str, RunConfig]:
    """The preset that suits a data set: of those made for it the nearest in size, for other pictures one that is large enough.

    Args:
        data: name of a data set, or where pictures are.
        size: size of the images; by default that of the data set: 128 for ffhq, 28 for mnist, 16 for digits; 64 for other pictures.

    Returns:
        Its name, and the run on this data at this size.

    Raises:
        InputError: if its network cannot work at this size.
    """
    sides = {name: config.size.shorter for name, config in PRESETS.items() if config.data == data}
    size = size or Size.of(KNOWN[data].size if data in KNOWN else next(iter(sides.values()), _SIZE))
    if sides:
        name = min(sides, key=lambda name: abs(sides[name] - size.shorter))
    else:
        name = next((name for name, limit in _UP_TO.items() if size.shorter <= limit), "ffhq-256")
    return name, replace(PRESETS[name], data=data, size=size)
