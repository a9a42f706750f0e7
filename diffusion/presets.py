"""Presets: complete runs by name, with data, size, process, schedule, network and optimiser that belong together.

    config = preset("ffhq-128")
    train(dataclasses.replace(config, data="my faces"), dataset, folder)

A preset called after its data runs ``fluid``, this project's process. Those of the real sets (``REAL``) have the network and the
length of the published run on the same pictures, and are trained as the field has learned since, each by an option. EDM is Karras
et al. 2022 (arXiv:2206.00364), EDM2 Karras et al. 2024 (arXiv:2312.02696), both with their code; ADM is Dhariwal and Nichol 2021
(arXiv:2105.05233). How well it suits ``fluid`` at these sizes has not been measured.

- ``--augment 0.15``, for CIFAR-10 0.12, with the network told: few pictures for so long a training (EDM).
- ``--weighting learned``: all levels count alike, whatever the parametrisation (EDM2).
- ``--network.dropout`` 0.13, 0.05 and 0.25 for CIFAR-10, FFHQ and AFHQ (EDM), else that of the published run.
- ``--batch 256``, for CIFAR-10 512: gradients with less noise, and GPUs that are busy (EDM, ADM).
- ``--learning-rate`` 1e-3 for CIFAR-10 and 2e-4 at 64 pixels (EDM), 1e-4 for larger pictures (ADM).
- ``--constant``: after a fifteenth of the training the rate falls as 1 / sqrt(images), so the run may be longer (EDM2).
- ``--ema-half-life 500000`` images, at first a twentieth of those seen: the same average for every batch (EDM).
- ``--precision bf16`` on a GPU that has it: half the bytes, and no scaled loss as in EDM2's fp16.

``...-published`` are published runs:

- ``cifar10``, ``lsun-church-128``, ``afhq-64`` and ``ffhq-256``: inverse heat dissipation (IHD; Rissanen et al., ICLR 2023).
  Published are levels, blur, noise, size of the network, dropout, Adam's step size, its warm-up over 5,000 steps, the decay of the
  average, clipping, the batch, and 1.3 million steps as the longest training.
- ``ffhq-128``: Beyond Blur (Gruszczynski et al., ICCV 2025) at the best Peclet number of its published table, with the moving field
  of the public research code. Network and optimiser are those of that code's main configuration for FFHQ at 128 pixels. What the
  paper's runs used is not known for certain: the code is older than the paper; its main configuration has batches of 32 and 1.3
  million steps, its only grid of Peclet numbers has batches of 8 and 200,001 steps. sigma_max of 128 pixels is that of the grid;
  the paper does not say its own.

The network is this project's U-Net at the published size; its attention has one head for every 64 channels (published: one head),
and the level scales and shifts its features (published: shifts alone). ``digits`` and ``ffhq-64`` (the network of ``afhq-64`` on
other pictures), ``fashion-mnist`` and ``emoji`` are our own. Blur is a fraction of the shorter image side, so a preset keeps its
meaning at another size.

``small`` and ``large`` are for one's own pictures, which get ``small`` on a CPU and ``large`` on a GPU. They follow size and number
of the pictures:

- The network halves the resolution down to about 8 pixels, with attention there; ``small`` has one block of 32 channels at each
  resolution, ``large`` two of 64.
- The training of ``small`` is 300,000 images up to 32 x 32 pixels, fewer in proportion to the pixels above, at least 20,000: hours
  on two CPU cores. That of ``large`` is 3,000,000 images. None is longer than 1,000 times each picture, or 60,000 images if that is
  more.
- The network is told how far each pixel is from black and white where a tenth or more of the pixels are one of the two.
- Fewer than 5,000 pictures get a dropout of 0.1, and in colour they are mirrored: they are photographs more often than letters or
  digits, which are grey.
"""

from __future__ import annotations

from dataclasses import replace

from diffusion.augmentation import GeometricAugmentation
from diffusion.data.catalog import KNOWN
from diffusion.forward import Geometric
from diffusion.learning_rate import InverseSquareRoot, WarmUpAndDecay
from diffusion.methods import Method, named_method
from diffusion.network import NetworkConfig
from diffusion.photographs import BlurOfGrid, DensityOfGrid, LocalUNet, NoiseOfGrid, Photographs
from diffusion.run import RunConfig, TrainingConfig
from diffusion.samplers import MeanColour, Resample
from diffusion.size import Size
from diffusion.weighting import LearnedWeighting
from lbm_warp.checks import check_name

AT_ENDS = 0.1  # share of black and white pixels: drawings, digits and clothes have a third or more, photographs a few hundredths
FEW = 5_000  # pictures: with fewer, a network that learns them by heart is the greater risk

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
    **numbers: object,
) -> RunConfig:
    """Inverse heat dissipation on colour pictures, ``sigma_max`` in pixels; ``numbers`` hold what differs from ``ihd``."""
    return RunConfig(
        process_name="ihd",
        data=data,
        channels=3,
        size=Size.of(size),
        method=named_method("ihd").changed(sigma_max=sigma_max / size, **numbers),
        network=network,
        training=TrainingConfig(
            images=_STEPS * batch, batch=batch, schedule=WarmUpAndDecay(learning_rate, _WARMUP_STEPS * batch), ema=ema
        ),
    )


_SMALL = NetworkConfig(width=128, multipliers=(1, 2, 2, 2), blocks=4, attention=(2, 3), dropout=0.1)
_MEDIUM = NetworkConfig(width=128, multipliers=(1, 2, 3, 4), blocks=2, attention=(2, 3), dropout=0.1)
_LARGE = NetworkConfig(width=128, multipliers=(1, 2, 3, 4, 5), blocks=3, attention=(2, 3, 4), dropout=0.3)
_CHURCH = replace(_LARGE, blocks=4, dropout=0.1)

_PUBLISHED = {
    "cifar10": _published("cifar10", 32, sigma_max=24, network=_SMALL, batch=128, learning_rate=2e-4, ema=0.999),
    "afhq-64": _published("afhq", 64, sigma_max=32, network=_MEDIUM, batch=128, learning_rate=1e-4, ema=0.999),
    "lsun-church-128": _published(
        "lsun-church", 128, sigma_max=64, network=_CHURCH, batch=32, learning_rate=2e-5, ema=0.999, levels=400
    ),
    "ffhq-256": _published("ffhq", 256, sigma_max=128, network=_LARGE, batch=32, learning_rate=2e-5, ema=0.9999),
}
_PUBLISHED["ffhq-128"] = replace(
    _PUBLISHED["ffhq-256"],
    size=Size.of(128),
    process_name="beyond-blur",
    method=named_method("beyond-blur").changed(peclet=_PECLET),
)


def _fluid(
    published: RunConfig,
    learning_rate: float = 1e-4,
    dropout: float | None = None,
    augment: float = 0.15,
    batch: int = 256,
) -> RunConfig:
    """``fluid`` on the data, at the size, with the network and for the images of a published run, trained as above."""
    training, network = published.training, published.network
    assert isinstance(training.schedule, WarmUpAndDecay) and isinstance(network, NetworkConfig)
    return replace(
        published,
        process_name="fluid",
        method=named_method("fluid"),
        network=replace(network, dropout=network.dropout if dropout is None else dropout),
        training=TrainingConfig(
            images=training.images,
            batch=batch,
            schedule=InverseSquareRoot(learning_rate, training.schedule.warmup, training.images // 15),
            ema_half_life=500_000,
            augment=GeometricAugmentation(augment),
            weighting=LearnedWeighting(),
        ),
    )


def _textured(
    data: str,
    channels: int,
    size: int | Size,
    images: int,
    network: NetworkConfig = NetworkConfig(width=32, attention=(2,)),
    learning_rate: float = 1e-3,
    flip: bool = False,
) -> RunConfig:
    """``fluid`` on pictures that have texture; by default a run of hours on two CPU cores, of minutes on a GPU."""
    return RunConfig(
        process_name="fluid",
        data=data,
        channels=channels,
        size=Size.of(size),
        # More of the training at low noise, and the training is long.
        method=named_method("fluid").changed(log_mean=-1.6),
        network=network,
        training=TrainingConfig(images=images, schedule=WarmUpAndDecay(learning_rate, decay=0.5), flip=flip),
    )


# Of the presets for one's own pictures: width and blocks of the network, longest training, learning rate.
OWN = {"small": (32, 1, 300_000, 1e-3), "large": (64, 2, 3_000_000, 5e-4)}


def for_pictures(name: str, data: str, size: Size, channels: int = 3, count: int | None = None, at_ends: float = 0.0) -> RunConfig:
    """``small`` or ``large`` on so many pictures (None: many) with this share of black and white pixels, by the rule above."""
    width, blocks, images, learning_rate = OWN[name]
    halvings = 0
    while size.shorter >> halvings > 8 and not any(side % 2 ** (halvings + 1) for side in size):
        halvings += 1
    # The work of attention grows with the square of the pixels.
    attention = (halvings,) if (size.height >> halvings) * (size.width >> halvings) <= 1024 else ()
    if name == "small":
        images = min(images, max(images * 32 * 32 // (size.height * size.width), 20_000))
    if count is not None:
        images = min(images, max(1_000 * count, 60_000))
    few = count is not None and count < FEW
    network = NetworkConfig(width, (1, *[2] * halvings), blocks, attention, dropout=0.1 if few else 0.0)
    run = _textured(data, channels, size, images, network, learning_rate, flip=few and channels == 3)
    return replace(run, method=run.method.changed(tell_ends=at_ends >= AT_ENDS))


REAL = {
    "cifar10": _fluid(_PUBLISHED["cifar10"], 1e-3, dropout=0.13, augment=0.12, batch=512),
    "ffhq-64": _fluid(replace(_PUBLISHED["afhq-64"], data="ffhq"), 2e-4, dropout=0.05),
    "ffhq-128": _fluid(_PUBLISHED["ffhq-128"]),
    "ffhq-256": _fluid(_PUBLISHED["ffhq-256"]),
    "lsun-church-128": _fluid(_PUBLISHED["lsun-church-128"]),
    "afhq-64": _fluid(_PUBLISHED["afhq-64"], 2e-4, dropout=0.25),
}
PRESETS = {
    # Trains in minutes on a CPU.
    "digits": RunConfig(
        process_name="fluid",
        data="digits",
        channels=1,
        size=Size.of(16),
        method=named_method("fluid"),
        training=TrainingConfig(schedule=WarmUpAndDecay(decay=0.5)),
    ),
    "fashion-mnist": _textured("fashion-mnist", channels=1, size=28, images=370_000),
    "emoji": _textured("emoji", channels=3, size=32, images=300_000),
    **REAL,
    # Pieces of photographs that become blurred and noisy, for pictures of any size (tools.photographs).
    "photographs": RunConfig(
        process_name="photographs",
        data="photographs",
        channels=3,
        size=Size.of(64),
        # For restoration alone: its last level is a picture still, so samples do not begin there.
        method=Method(BlurOfGrid(), NoiseOfGrid(), Photographs(), DensityOfGrid(), Resample(steps=2, start=MeanColour())),
        network=LocalUNet(),
        training=TrainingConfig(images=1_000_000, batch=32, schedule=WarmUpAndDecay(1e-3, decay=0.5), flip=True),
    ),
} | {f"{name}-published": config for name, config in _PUBLISHED.items()}
PRESETS |= {name: for_pictures(name, "pictures", Size.of(64)) for name in OWN}

# For known sets that no preset is made for: the largest shorter side [pixels] that each preset is taken for.
_UP_TO = {"digits": 28, "cifar10": 32, "ffhq-64": 64, "ffhq-128": 128, "ffhq-256": 256}
_SIZE = 64


def preset(name: str) -> RunConfig:
    """The run called ``name``.

    Raises:
        InputError: if there is none; the message gives the nearest name.
    """
    check_name("preset", name, PRESETS)
    return PRESETS[name]


def preset_for(
    data: str,
    size: Size | None = None,
    name: str = "",
    *,
    gpu: bool = False,
    channels: int = 3,
    count: int | None = None,
    at_ends: float = 0.0,
) -> tuple[str, RunConfig]:
    """The preset that suits a data set: of those made for it the nearest in size, for one's own pictures ``small`` or ``large``.

    Args:
        data: name of a data set, or where pictures are; "" is that of the preset, or digits.
        size: size of the images; by default that of the data set: 128 for ffhq, 28 for mnist, 16 for digits; 64 for other pictures.
        name: the preset, where it is chosen.
        gpu: whether it is trained on a GPU.
        channels, count, at_ends: of the pictures; ``count`` None is many, or not known, ``at_ends`` the share of their pixels that
            are black or white.

    Returns:
        Its name, and the run on this data at this size.

    Raises:
        InputError: if there is no such preset, or its network cannot work at this size.
    """
    if name and name not in OWN:
        config = preset(name)
        return name, replace(config, data=data or config.data, size=size or config.size)
    data = data or "digits"
    known = is_known(data)
    fitting = {n: one for n, one in PRESETS.items() if one.data == data and one.process_name == "fluid"} if known else {}
    sides = {n: one.size.shorter for n, one in fitting.items()}
    size = size or Size.of(KNOWN[data].size if data in KNOWN else next(iter(sides.values()), _SIZE))
    if not known or name in OWN:
        name = name or ("large" if gpu else "small")
    if name in OWN:
        # Known sets are large, or have letters or digits.
        return name, for_pictures(name, data, size, channels, None if known else count, 0.0 if known else at_ends)
    if sides:
        name = min(sides, key=lambda name: abs(sides[name] - size.shorter))
    else:
        name = next((name for name, limit in _UP_TO.items() if size.shorter <= limit), "ffhq-256")
    return name, replace(PRESETS[name], data=data, size=size)


def is_known(data: str) -> bool:
    """Whether this is the name of a data set, rather than where one's own pictures are."""
    return data == "digits" or data in KNOWN


def with_decay(config: RunConfig) -> RunConfig:
    """The run with a learning rate that falls to zero, by default over the second half: for a training by the clock."""
    schedule = config.training.schedule
    assert isinstance(schedule, (WarmUpAndDecay, InverseSquareRoot))
    decay = schedule.decay if isinstance(schedule, WarmUpAndDecay) else 0.0
    falling = WarmUpAndDecay(schedule.learning_rate, schedule.warmup, decay or 0.5)
    return replace(config, training=replace(config.training, schedule=falling))


def with_blur_of(method: Method, published: Method) -> Method:
    """The method with the schedule of blur of a published run, which belongs to its data, where both blur by such a schedule."""
    ours, theirs = (getattr(one.operator, "blur", None) for one in (method, published))
    if not isinstance(ours, Geometric) or not isinstance(theirs, Geometric):
        return method
    return method.changed(blur=theirs, levels=published.levels)
