"""One step that is not kept, on two pictures: what a user's parts give is checked before anything is written."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import nn

from diffusion.denoisers import Denoiser, Reverse
from diffusion.forward.operators import Operator
from diffusion.rng import seeds
from diffusion.run import RunConfig
from diffusion.samplers.base import Sampler
from diffusion.training.ranks import one_line
from lbm_warp.checks import InputError


def check_step(config: RunConfig, network: nn.Module, dataset: Sequence[np.ndarray], device: torch.device) -> None:
    """Raise InputError, with the class and the method, unless all parts of a run give what the others take.

    Two pictures at the levels 1 and K go through operator, noise, denoiser, network, loss, its gradient and the first step of
    sampling. Network and torch's global generator are left as they are. A lack of memory is left to the training to say.
    """
    with suppress(torch.OutOfMemoryError), torch.random.fork_rng([device] if device.type == "cuda" else []):
        _check_rate(config)
        _check_parts(config, copy.deepcopy(network), dataset, device)


def called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a user's function gives; tensors among the arguments must be left as they are.

    Raises:
        InputError: in one line, if it raises an error, or changes a tensor.
    """
    tensors = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
    before = [tensor.detach().clone() for tensor in tensors]
    try:
        result = function(*arguments)
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        missing = isinstance(error, NotImplementedError) and str(error)
        raise InputError(f"{name} fails: {(' '.join(missing.split()) if missing else one_line(error))[:300]}") from error
    if not all(map(torch.equal, before, tensors)):
        raise InputError(f"{name} changes its input in place; clone it first")
    return result


def _check_rate(config: RunConfig) -> None:
    """Check the learning rate of the first step."""
    training = config.training
    name, last = f"{type(training.schedule).__name__}.at", min(training.batch, training.images)
    rate = called(name, training.schedule.at, 0, last, training.images)
    if not isinstance(rate, Real) or not 0.0 <= float(rate) < math.inf:
        raise InputError(f"{name} gives {rate!r} as the learning rate of the first step; expected a finite number >= 0")


def _check_parts(config: RunConfig, network: nn.Module, dataset: Sequence[np.ndarray], device: torch.device) -> None:
    method, forward, shape = config.method, config.forward, [2, *config.shape]
    operator, denoiser, sampler, levels = method.operator, method.denoiser, method.sampler, method.levels
    seed = seeds(config.training.seed, "image", np.arange(max(config.training.batch, 2)))
    name = f"{type(method.density).__name__}.draw"
    drawn = called(name, method.density.draw, forward, seed)
    if not isinstance(drawn, torch.Tensor) or drawn.dtype != torch.int64 or drawn.shape != seed.shape:
        raise InputError(f"{name} gives {_words(drawn)}; expected int64 {list(seed.shape)}, a level for every seed")
    if not 1 <= drawn.min() <= drawn.max() <= levels:
        raise InputError(f"{name} gives levels {drawn.min()} to {drawn.max()}; expected 1 to {levels}")

    u0 = torch.from_numpy(np.stack([dataset[0], dataset[1 % len(dataset)]])).to(device)
    seed, level, augment = seed[:2], torch.tensor([1, levels]), config.training.augment
    name = f"{type(augment).__name__}.__call__"
    moved = called(name, augment, u0, seed)
    if not isinstance(moved, tuple) or len(moved) != 2:
        raise InputError(f"{name} gives {_words(moved)}; expected pictures and what the network is told, a tuple of two")
    u0 = _check(name, "pictures", moved[0], shape)
    told = {"told": _check(name, "numbers", moved[1], [2, augment.told])} if augment.told else {}
    if denoiser.needs_statistics:
        name = f"{type(denoiser).__name__}.measure"
        forward = forward.measured(called(name, denoiser.measure, list(u0.cpu().numpy()), forward, device))
    name = _written(operator, Operator, "at", "apply")
    corrupted = _check(name, "images", called(name, operator, u0, level, seeds(seed, "flow")), shape)
    name = f"{type(method.scales).__name__}.noise_power"
    noise = _check(name, "noise", called(name, forward.unit_noise, seed, u0), shape)
    u = forward.scaled(corrupted, level) + forward.at(forward.noise, level, u0) * noise

    name = f"{type(denoiser).__name__}.example"
    example = called(name, denoiser.example, forward, u0, level, seed)
    if not isinstance(example, tuple) or len(example) != 2:
        raise InputError(f"{name} gives {_words(example)}; expected the network's inputs and the target, a tuple of two")
    inputs, target = example
    _check(_written(denoiser, Denoiser, "example", "inputs"), "inputs", inputs, [2, *config.input_shape])
    for part in target if isinstance(target, tuple) else (target,):
        if isinstance(part, torch.Tensor):
            expected = shape if part is target else list(part.shape)
            _check(_written(denoiser, Denoiser, "example", "target"), "a target", part, expected)

    labels = [torch.tensor([0, len(config.classes)], device=device)] if config.classes else []
    arguments = f"(images, levels{', labels' * len(labels)}{', told=numbers' * len(told)})"
    name = f"{type(network).__name__} called as {arguments} with images {list(inputs.shape)}"
    predicted = [2, denoiser.outputs(config.channels), *config.size]
    prediction = _check(
        name, "a tensor", called(name, partial(network.train(), **told), inputs, level.to(device), *labels), predicted
    )
    name = of_loss = f"{type(denoiser).__name__}.loss"
    loss = called(name, partial(denoiser.loss, forward, prediction, target, level, seed))
    loss = _check(name, "a loss for each image", loss, [2])
    name = f"{type(config.training.weighting).__name__}.build"
    weighted = called(name, config.build_weighting().to(device), loss, level.to(device))
    _check(name, "a module that gives a weighted loss for each image", weighted, [2])
    called(f"the gradient of {of_loss} with {type(network).__name__}", weighted.mean().backward)

    network.eval()
    with torch.inference_mode():
        if denoiser.gives_clean(forward):
            name = f"{type(denoiser).__name__}.clean"
            _check(name, "images", called(name, denoiser.clean, forward, prediction.detach(), u, level, seed), shape)
        # Both from level K: the second picture twice.
        u, seed = u[1:].repeat(2, 1, 1, 1), seed[1:].repeat(2)
        reverse = Reverse(forward, denoiser, lambda inputs, level: network(inputs, level, *labels), seed)
        name = _written(sampler, Sampler, "walk", "step")
        visited = sampler.visited(forward)[:2]
        first = called(name, lambda u: next(iter(sampler.walk(reverse, u, visited, lambda level: torch.zeros_like(u)))), u)
        _check(name, "images", first[0], shape)


def _written(part: object, base: type, whole: str, piece: str) -> str:
    """The method that a user writes, with its class: the whole, where the base class's is overridden, or a piece of it."""
    kind = type(part)
    return f"{kind.__name__}.{piece if getattr(kind, whole) is getattr(base, whole) else whole}"


def _check(name: str, what: str, found: Any, shape: list[int]) -> torch.Tensor:
    """The tensor that was found; raise InputError if it has another shape or is not finite."""
    if not isinstance(found, torch.Tensor) or list(found.shape) != shape:
        raise InputError(f"{name} gives {_words(found)}; expected {what} of shape {shape}")
    if not found.isfinite().all():
        raise InputError(f"{name} gives {what} with values that are NaN or infinite; expected finite ones")
    return found


def _words(found: object) -> str:
    """Type and shape of a tensor, or the type of something else."""
    if not isinstance(found, torch.Tensor):
        return type(found).__name__
    return f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
