"""The base class of corruption operators, from clean images to the levels of a trajectory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional

from lbm_warp.checks import InputError, Integers, as_batch, as_images, check_levels
from lbm_warp.interop import not_traced


class Operator:
    """Maps clean images, floating-point [N, C, H, W], to levels 0 (clean) to K of their trajectories.

    A trajectory is a function of the image and its seed; images do not affect each other. An operator of one's own is a number of
    levels and :meth:`apply`; :func:`lbm_warp.check_operator` tells whether it is a right one:

        @dataclass(frozen=True)
        class Fade(Operator):
            levels: int = 50
            linear = True

            def apply(self, u0, level, seed):
                return u0 * (1 - level / self.levels)[:, None, None, None].to(u0)

    Attributes:
        levels: K; level K is the most corrupted one.
        linear: A(a u + b w) = a A(u) + b A(w), for the same level and seed.
        random: whether the seed matters.
        diagonal: whether A multiplies every cosine mode (DCT-II) by a factor.
        keeps_size: whether :meth:`apply` gives images of the size of the clean ones.
        peclet: advection relative to diffusion, 0 without a flow.
        moving: whether the flow changes in time.
    """

    levels: int
    linear: bool = False
    random: bool = False
    diagonal: bool = False
    keeps_size: bool = True
    peclet: float = 0.0
    moving: bool = False

    @property
    def solver(self) -> str:
        """The method, for reports, for example ``lattice``; by default the name of the class."""
        return type(self).__name__

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Images at levels 1 to K: the one method that an operator needs.

        Args:
            u0: clean images, floating-point [N, C, H, W]; it must not change them.
            level: 1 to K, int64 [N] on the CPU; with ``keeps_size = False`` all images of one call have the same level.
            seed: int64 [N] on the CPU.

        Returns:
            Floating-point [N, C, H, W] on the device of ``u0``; [N, C, h, w] if the operator does not keep the size, which may then
            depend on the level.
        """
        raise InputError(f"{type(self).__name__} needs a method apply(u0, level, seed) that gives the images at their levels")

    def at(self, u0: torch.Tensor, levels: Sequence[torch.Tensor], seed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Images at several levels of one trajectory. Override it where one pass gives them all.

        Level 0 is the clean image itself, bit for bit. Images of another size get that of the clean ones by repeating pixels.

        Args:
            u0: clean images, floating-point [N, C, H, W].
            levels: 0 to K, int64 [N] each, on the CPU.
            seed: int64 [N] on the CPU.

        Returns:
            A tensor like ``u0`` for each of the levels.

        Raises:
            InputError: if :meth:`apply` gives no such images, or changes the clean ones.
        """
        return tuple(self._at(u0, level, seed) for level in levels)

    @not_traced
    def __call__(self, u0: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """Corrupt clean images to a level.

        Args:
            u0: clean images, floating-point [N, C, H, W], H, W >= 2, in any memory layout, on a CPU or a CUDA device.
            level: 0 (clean) to K, one for all images or one per image. Integers and CPU tensors need no device synchronisation.
            seed: one for all images or one per image.

        Returns:
            [N, C, H, W], dtype and device of ``u0``.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        u0 = as_images(u0)
        level = check_levels(level, len(u0), 0, self.levels)
        return self.at(u0, (level,), as_batch("seed", seed, len(u0)))[0]

    @not_traced
    def pair(self, u0: torch.Tensor, level: Integers, seed: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels k - 1 and k of one trajectory, for a network that learns the step from k to k - 1.

        Args:
            u0, seed: as for :meth:`__call__`.
            level: k, 1 to K, one for all images or one per image.

        Returns:
            ``(u_{k-1}, u_k)``, each as the result of :meth:`__call__`.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        u0 = as_images(u0)
        level = check_levels(level, len(u0), 1, self.levels)
        before, after = self.at(u0, (level - 1, level), as_batch("seed", seed, len(u0)))
        return before, after

    def trajectory(self, u0: torch.Tensor, seed: Integers) -> Iterator[tuple[int, torch.Tensor]]:
        """All levels of one trajectory, without gradients.

        Args:
            u0, seed: as for :meth:`__call__`.

        Yields:
            ``(level, u)`` for levels 0 (a copy of the clean images) to K.

        Raises:
            InputError: if an argument has the wrong shape, dtype or range.
        """
        u0 = as_images(u0)
        seed = as_batch("seed", seed, len(u0))
        for level in range(self.levels + 1):
            with torch.no_grad():
                (u,) = self.at(u0.detach(), (torch.full((len(u0),), level, device="cpu"),), seed)
            yield level, u

    @not_traced
    def adjoint(self, w: torch.Tensor, level: Integers, seed: Integers) -> torch.Tensor:
        """The transpose of a linear operator, from automatic differentiation: <adjoint(w), u> = <w, A(u)> for all u.

        Args:
            w: [N, C, H, W], a tensor like the images at ``level``.
            level, seed: as for :meth:`__call__`.

        Returns:
            [N, C, H, W], dtype and device of ``w``, differentiable in ``w``.

        Raises:
            InputError: if the operator is not linear, if torch has no gradient of it, or as for :meth:`__call__`.
        """
        name = type(self).__name__
        if not self.linear:
            raise InputError(f"only a linear operator has an adjoint, and {name} is not; if it is, it must say: linear = True")
        w = as_images(w)
        level, seed = check_levels(level, len(w), 0, self.levels), as_batch("seed", seed, len(w))
        again = torch.is_grad_enabled() and w.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors of inference mode cannot be differentiated.
            w = w.clone() if w.is_inference() else w
            u = torch.zeros_like(w, requires_grad=True)
            try:
                (image,) = self.at(u.clone(), (level,), seed)
            except RuntimeError as error:
                if "numpy() on Tensor that requires grad" not in str(error):
                    raise
                image = w.detach()
            if not image.requires_grad:
                raise InputError(f"{name} has no gradient, because apply leaves torch: write its method adjoint(w, level, seed)")
            return torch.autograd.grad(image, u, w, create_graph=again)[0]

    def iterations(self, height: int, width: int) -> np.ndarray:
        """Lattice iterations to levels 0..K at this size [pixels], in units of one on the pixel grid, float64 [K + 1]."""
        return np.zeros(self.levels + 1)

    def _at(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """Images at one level each; :meth:`apply` sees those that are not clean, at one time those that have one size."""
        u, size = u0, level.clamp_max(1) if self.keeps_size else level
        for group in size[size > 0].unique():
            rows = torch.nonzero(size == group).flatten()
            if len(rows) == len(level):
                u = self._applied(u0, level, seed)
            else:
                there = rows.to(u0.device, non_blocking=True)
                u = u.index_copy(0, there, self._applied(u0.index_select(0, there), level[rows], seed[rows]))
        return u0.clone() if u is u0 else u

    def _applied(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        """What :meth:`apply` gives, checked, in the size and dtype of the clean images."""
        if u0.is_inference() or (u0.is_leaf and u0.requires_grad and torch.is_grad_enabled()):
            # Torch counts no changes of the former and refuses those of the latter; it does neither for a copy.
            with torch.inference_mode(False):
                u0 = u0.clone()
        version = u0._version
        u = self.apply(u0, level, seed)
        if u0._version != version:
            raise InputError(f"{type(self).__name__}.apply changes its images in place; clone them first")
        check_result(self, u, u0, self.keeps_size)
        if u.shape != u0.shape:
            u = functional.interpolate(u, u0.shape[2:], mode="nearest-exact")
        return u.to(u0.dtype)


def check_result(operator: Operator, u: torch.Tensor, u0: torch.Tensor, same_size: bool) -> None:
    """Raise InputError unless ``u`` can be what an operator makes of ``u0``."""
    shape = list(u0.shape) if same_size else [*u0.shape[:2], "h", "w"]
    if isinstance(u, torch.Tensor) and u.is_floating_point() and u.device == u0.device and u.ndim == 4:
        if u.shape == u0.shape or (not same_size and u.shape[:2] == u0.shape[:2]):
            return
    got = f"{u.dtype} {list(u.shape)} on {u.device}" if isinstance(u, torch.Tensor) else type(u).__name__
    raise InputError(f"{type(operator).__name__}.apply must give a floating-point tensor {shape} on {u0.device}, got {got}")
