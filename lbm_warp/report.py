"""Whether an operator is what it says: measured on random images, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lbm_warp.checks import Device, InputError, check_integer
from lbm_warp.operator import Operator, check_result

# Largest error of linearity and of the adjoint, and largest difference between batches and between calls, in float32.
LEAST_LINEAR, LEAST_EQUAL = 1e-4, 1e-5


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
        InputError: if its images have the wrong shape, dtype or device, or if a linear operator has no adjoint.
    """
    check_integer("seed", seed, 0)
    generator = torch.Generator().manual_seed(seed)
    shape = (4, channels, *((size, size) if isinstance(size, int) else size))
    u0, other, positive = (torch.rand(shape, generator=generator).to(device) for _ in range(3))
    mixed = torch.randn(shape, generator=generator).to(device)
    last, seeds = operator.levels, seed + torch.arange(4)
    middle = (last + 1) // 2
    level, mean = torch.tensor([last, 1, 0, middle]), torch.tensor([middle, last, 1, middle])
    changes = []

    def at(u: torch.Tensor, levels: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        given = u.clone()
        result = operator(given, levels, numbers)
        changes.append(_difference(given, u))
        check_result(operator, result, u, True)
        if result.dtype != u.dtype:
            raise InputError(f"{type(operator).__name__} must give {u.dtype} images for {u.dtype} ones, got {result.dtype}")
        return result

    together, order = at(u0, level, seeds), torch.tensor([2, 0, 3, 1])
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
    return OperatorReport(
        name=type(operator).__name__,
        random=operator.random,
        level_zero=_difference(at(u0, torch.zeros(4, dtype=torch.int64), seeds), u0),
        repeat=_difference(at(u0, mean, seeds), at(u0, mean, seeds)),
        seeds=_difference(at(u0, mean, seeds), at(u0, mean, seeds + 4)),
        batch=_difference(torch.cat([together, together[order.to(u0.device)]]), torch.cat([alone, again])),
        levels=_difference(torch.cat(after), torch.cat(single)),
        input=_largest(changes),
        linearity=linearity,
        adjoint=adjoint,
    )


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
