"""Whether an operator is what it says: measured on random images, in numbers."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from lbm_warp.checks import Device, InputError, as_batch, as_device, check_integer, check_object
from lbm_warp.heat import from_modes, to_modes
from lbm_warp.operator import Operator, check_result

# Largest error of linearity, of the adjoint and of modes, largest difference between batches and between calls, and largest error
# of the inverse, which makes rounding errors larger; in float32.
LEAST_LINEAR, LEAST_EQUAL, LEAST_INVERSE = 1e-4, 1e-5, 1e-3


class Size(NamedTuple):
    """Height and width of images [pixels], as the method ``transfer`` of an operator takes them."""

    height: int
    width: int

    @property
    def shorter(self) -> int:
        """The shorter side [pixels]."""
        return min(self)


@dataclass(frozen=True)
class OperatorReport:
    """What :func:`check_operator` has measured. ``print`` shows it line by line.

    Differences are the largest between two images, relative to the largest value of an image or one.
    """

    name: str
    """Class of the operator."""
    random: bool
    """Whether it says that the seed matters."""
    level_zero: float
    """Difference of level 0 from the clean image; must be zero."""
    repeat: float
    """Difference of two calls with the same seed; must be zero."""
    seeds: float
    """Difference of two seeds; zero unless the operator is random, and not zero if it is."""
    batch: float
    """Difference between an image alone, and among others in another order with other levels; at most 1e-5."""
    levels: float
    """Difference between a level alone, and together with the level before it; at most 1e-5."""
    input: float
    """Change of the clean images themselves; must be zero."""
    linearity: float | None
    """Norm of A(a u + b w) - a A(u) - b A(w) relative to its terms, at most 1e-4; None unless it says that it is linear."""
    adjoint: float | None
    """Error of <A u, w> = <u, A^T w> relative to the norms, at most 1e-4; None unless it says that it is linear."""
    ends: float | None
    """Difference of levels 1 and K; must not be zero; None for one level, or if it says that every level is the clean image."""
    unchanged: float | None
    """Difference of any level from the clean image; must be zero; None unless it has ``unchanged = True``."""
    modes: float | None
    """What A makes of a cosine mode beside a multiple of it, relative, at most 1e-4; None unless it says that it is diagonal."""
    transfer: float | None
    """Error of the factors of cosine modes, at most 1e-4; None unless it is diagonal and has a method ``transfer(level, size)``."""
    inverse: float | None
    """Error of A^-1 A u = u relative to u, at most 1e-3; None unless it has ``invertible = True`` and a method ``invert``."""

    @property
    def _lines(self) -> list[tuple[bool, str]]:
        """Whether each of the numbers is right, and what it says."""

        def line(what: str, value: float, most: float) -> tuple[bool, str]:
            limit = f"at most {most:g}" if most else "must be 0"
            return value <= most, f"{what}: {value:.2g} ({limit})"

        lines = [
            line("level 0 differs from the clean image by", self.level_zero, 0.0),
            line("two calls with one seed differ by", self.repeat, 0.0),
            line("an image alone and in a batch differ by", self.batch, LEAST_EQUAL),
            line("a level alone and after another one differ by", self.levels, LEAST_EQUAL),
            line("the clean images are changed by", self.input, 0.0),
        ]
        if self.random:
            lines.append((self.seeds > 0.0, f"random; two seeds differ by: {self.seeds:.2g} (must not be 0)"))
        else:
            lines.append(line("not random; two seeds differ by", self.seeds, 0.0))
        if self.linearity is not None and self.adjoint is not None:
            lines.append(line("linear; relative error of A(a u + b w) = a A(u) + b A(w)", self.linearity, LEAST_LINEAR))
            lines.append(line("linear; relative error of <A u, w> = <u, adjoint(w)>", self.adjoint, LEAST_LINEAR))
        if self.ends is not None:
            lines.append((self.ends > 0.0, f"levels 1 and K differ by: {self.ends:.2g} (must not be 0)"))
        for what, value, most in (
            ("unchanged; levels differ from the clean image by", self.unchanged, 0.0),
            ("diagonal; part of a cosine mode that goes into others", self.modes, LEAST_LINEAR),
            ("diagonal; error of the factors of transfer(level, size)", self.transfer, LEAST_LINEAR),
            ("invertible; relative error of invert(A(u)) = u", self.inverse, LEAST_INVERSE),
        ):
            if value is not None:
                lines.append(line(what, value, most))
        return lines

    @property
    def wrong(self) -> tuple[str, ...]:
        """What is wrong, a line each; empty for a right operator."""
        return tuple(line for right, line in self._lines if not right)

    def raise_if_wrong(self) -> None:
        """Raise InputError, in one line, unless all is right."""
        if self.wrong:
            raise InputError(f"{self.name} is not the operator it says it is: {'; '.join(self.wrong)}")

    def __str__(self) -> str:
        return "\n".join([self.name, *(f"  {'right' if right else 'WRONG'}  {line}" for right, line in self._lines)])


@torch.no_grad()
def check_operator(
    operator: Operator, size: int | tuple[int, int], channels: int = 3, seed: int = 0, device: Device = "cpu"
) -> OperatorReport:
    """Measure on random images whether an operator keeps the rules of :class:`Operator`.

    Args:
        operator: the operator.
        size: height and width of the images [pixels], or one number for both.
        channels: channels of the images.
        seed: of the random images and of the operator.
        device: where to try it.

    Raises:
        InputError: if it is no operator with levels, its images have the wrong shape, dtype or device, a linear operator has no
            adjoint, or a diagonal one no factors.
    """
    check_object("operator", operator, Operator)
    check_integer("levels", getattr(operator, "levels", None), 1)  # type: ignore[arg-type]
    check_integer("seed", seed, 0)
    seeds, device = as_batch("seed", seed, 4) + torch.arange(4, device="cpu"), as_device(device)
    generator = torch.Generator().manual_seed(int(seed))
    shape = (4, channels, *((size, size) if isinstance(size, (int, np.integer)) else size))
    u0, other, positive = (torch.rand(shape, generator=generator, device="cpu").to(device) for _ in range(3))
    mixed = torch.randn(shape, generator=generator, device="cpu").to(device)
    last, middle = operator.levels, (operator.levels + 1) // 2
    level, mean = torch.tensor([last, 1, 0, middle], device="cpu"), torch.tensor([middle, last, 1, middle], device="cpu")
    changes: list[float] = []
    operator = _sparing(operator, changes)

    def at(u: torch.Tensor, levels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        given = u.clone()
        result = operator(given, levels, numbers)
        changes.append(_difference(given, u))
        check_result(operator, result, u, True)
        if result.dtype != u.dtype:
            raise InputError(f"{type(operator).__name__} must give {u.dtype} images for {u.dtype} ones, got {result.dtype}")
        return result

    together, order = at(u0, level, seeds), torch.tensor([2, 0, 3, 1], device="cpu")
    alone = torch.cat([at(u0[i : i + 1], level[i : i + 1], seeds[i : i + 1]) for i in range(4)])
    again = at(u0[order.to(u0.device)], level[order], seeds[order])
    after = operator.pair(u0.clone(), level.clamp(min=1), seeds)
    single = [at(u0, levels, seeds) for levels in (level.clamp(min=1) - 1, level.clamp(min=1))]
    linearity = adjoint = None
    if operator.linear:
        a, b = 0.7, -1.3
        parts = [a * at(u0, mean, seeds), b * at(other, mean, seeds)]
        linearity = _relative((at(a * u0 + b * other, mean, seeds) - parts[0] - parts[1]), parts[0].norm() + parts[1].norm())
        errors = []
        for w in (positive, mixed):
            image, transposed = at(u0, mean, seeds), operator.adjoint(w, mean, seeds)
            inner = (image.double() * w).sum() - (u0.double() * transposed).sum()
            errors.append(_relative(inner, torch.maximum(image.norm() * w.norm(), u0.norm() * transposed.norm())))
        adjoint = _largest(errors)
    modes = transfer = inverse = None
    if operator.diagonal:
        mode = _modes(mixed)
        modes = _largest([_into_others(mode, at(mode, torch.full((4,), k, device="cpu"), seeds)) for k in (1, middle, last)])
        if hasattr(operator, "transfer"):
            factors = operator.transfer(level, Size(*shape[2:])).to(mixed)
            transfer = _difference(to_modes(at(mixed, level, seeds)), factors * to_modes(mixed))
    if getattr(operator, "invertible", False) and hasattr(operator, "invert"):
        inverse = _relative(operator.invert(at(u0, mean, seeds), mean) - u0, u0.norm())
    unchanged = getattr(operator, "unchanged", False)
    ends = [at(u0, torch.full((4,), k, device="cpu"), seeds) for k in (1, last)]
    return OperatorReport(
        name=type(operator).__name__,
        random=operator.random,
        level_zero=_difference(at(u0, torch.zeros(4, dtype=torch.int64, device="cpu"), seeds), u0),
        repeat=_difference(at(u0, mean, seeds), at(u0, mean, seeds)),
        seeds=_difference(at(u0, mean, seeds), at(u0, mean, seeds + 4)),
        batch=_difference(torch.cat([together, together[order.to(u0.device)]]), torch.cat([alone, again])),
        levels=_difference(torch.cat(after), torch.cat(single)),
        input=_largest(changes),
        linearity=linearity,
        adjoint=adjoint,
        ends=None if unchanged or last == 1 else _difference(*ends),
        unchanged=_difference(together, u0) if unchanged else None,
        modes=modes,
        transfer=transfer,
        inverse=inverse,
    )


def _sparing(operator: Operator, changes: list[float]) -> Operator:
    """The operator with an ``apply`` that works on copies, and appends to ``changes`` how much it changes them."""

    def apply(u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        given = u0.clone()
        result = operator.apply(given, level, seed)
        changes.append(_difference(given.detach(), u0.detach()))
        return result

    sparing = copy(operator)
    object.__setattr__(sparing, "apply", apply)  # also of a frozen dataclass
    return sparing


def _modes(like: torch.Tensor) -> torch.Tensor:
    """Four cosine modes, from the constant to the highest, another multiple of it in every channel of an image."""
    modes, (channels, height, width) = torch.zeros_like(like), like.shape[1:]
    for mode, y, x in zip(modes, (0, 0, height // 2, height - 1), (0, 1, width // 3, width - 1), strict=True):
        mode[:, y, x] = torch.arange(1, channels + 1, device="cpu")
    return from_modes(modes)


def _into_others(u: torch.Tensor, image: torch.Tensor) -> float:
    """Norm of what is no multiple of ``u`` in an image of it, relative to u, the largest of a batch."""
    u, image = u.flatten(1).double(), image.flatten(1).double()
    rest = image - (image * u).sum(dim=1, keepdim=True) / u.square().sum(dim=1, keepdim=True) * u
    return float((rest.norm(dim=1) / u.norm(dim=1)).max())


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference of two images, relative to their largest value or one; NaN if either is not finite."""
    scale = torch.stack([one.abs().max(), other.abs().max()]).clamp(min=1.0).max()
    return float((one - other).abs().max() / scale)


def _largest(errors: list[float]) -> float:
    """The largest of some errors; NaN is larger than any."""
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _relative(error: torch.Tensor, scale: torch.Tensor) -> float:
    """Norm of an error relative to a scale; zero if both are."""
    return float(error.norm() / scale.clamp(min=torch.finfo(scale.dtype).tiny))
