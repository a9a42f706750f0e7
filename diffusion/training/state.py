"""The state of a training: everything that a step changes and a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from diffusion.rng import seeds
from diffusion.run import RunConfig
from diffusion.training.checkpoint import Checkpoints, load_checkpoint
from diffusion.training.dry_step import called
from diffusion.training.ranks import Ranks
from lbm_warp.checks import InputError

ADAM = ("step", "exp_avg", "exp_avg_sq")


class EMA:
    """Exponential moving average of a network's weights: w <- d w + (1 - d) w_network.

    The decay d warms up as min(decay, (1 + n) / (10 + n)) over the updates n, so early averages forget the initialisation. An
    update may have a limit of its own. ``torch.optim.swa_utils.AveragedModel`` keeps n on the device, where this warm-up would wait
    for it in every step.

    Args:
        network: the network to follow.
        decay: limit of d, 0 to 1.

    Attributes:
        network: a copy of the network with the averaged weights, in evaluation mode.
        updates: n, the number of updates so far.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0
        # Collected once: to walk through the modules in every step costs milliseconds. Tied weights are one.
        both = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        pairs = {average.data_ptr(): (average, weight) for average, weight in both}.values()
        self._averages, self._weights = ([pair[side] for pair in pairs if pair[0].is_floating_point()] for side in (0, 1))
        self._counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self, limit: float | None = None) -> None:
        """Take one step towards the present weights of the network."""
        decay = min(self.decay if limit is None else limit, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)
        for average, weight in self._counts:
            average.copy_(weight)


class TrainingState:
    """Weights, their average, the optimiser's moments, and the number of images seen.

    Args:
        network: the network that is trained.
        average: its average.
        weighting: what weights the losses by level; its parameters are trained too, and belong to the training alone.
        optimiser: Adam on the parameters of both.
    """

    def __init__(self, network: nn.Module, average: EMA, weighting: nn.Module, optimiser: torch.optim.Adam) -> None:
        self.network = network
        self.average = average
        self.weighting = weighting
        self.optimiser = optimiser
        self.images = 0
        # Used so far of a training by the clock.
        self.seconds = 0.0

    @classmethod
    def initial(cls, config: RunConfig, device: torch.device) -> TrainingState:
        """The state before the first step: weights from the run's seed, on a device.

        Raises:
            InputError: if Adam cannot train the network: no weights, weights without a shape yet, or complex ones.
        """
        torch.manual_seed(int(seeds(config.training.seed, "weights")))
        network = called(f"{type(config.network).__name__}.build", config.build_network)
        _check_weights(network, f"{type(config.network).__name__}.build")
        network = network.to(device)
        weighting = config.build_weighting().to(device)
        # The learning rate is set in every step.
        adam = partial(torch.optim.Adam, [*network.parameters(), *weighting.parameters()], fused=True)
        optimiser = called(f"Adam on the weights of {type(network).__name__}", adam)
        return cls(network, EMA(network, config.training.ema), weighting, optimiser)

    def begin_from(self, weights: dict[str, torch.Tensor]) -> list[str]:
        """Take over weights, where names and shapes fit, into the network and its average.

        Returns:
            What does not fit, in words, one tensor each.

        Raises:
            InputError: if nothing fits.
        """
        own = self.network.state_dict()
        fitting = {name: tensor for name, tensor in weights.items() if name in own and tensor.shape == own[name].shape}
        if not fitting:
            raise InputError("none of its weights fit this network in name and shape; choose a run with a network like this one")
        self.network.load_state_dict(fitting, strict=False)
        self.average.network.load_state_dict(self.network.state_dict())
        there = {name: str(list(weights[name].shape)) if name in weights else "missing" for name in own.keys() - fitting.keys()}
        return [f"{name} ({there[name]} there, {list(own[name].shape)} here)" for name in own if name in there]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, averages and moments, under the names that they have in a checkpoint."""
        moments = {
            f"adam.{name}.{key}": self.optimiser.state[parameter][key]
            for name, parameter in self._parameters()
            if parameter in self.optimiser.state
            for key in ADAM
        }
        return moments | {
            f"{part}.{name}": t for part, module in self._modules().items() for name, t in module.state_dict().items()
        }

    def _modules(self) -> dict[str, nn.Module]:
        """The modules, by what their tensors are called in a checkpoint."""
        return {"network": self.network, "average": self.average.network, "weighting": self.weighting}

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What Adam moves; no module of a network has a slash in its name unless its user puts it there."""
        yield from self.network.named_parameters()
        yield from ((f"weighting/{name}", parameter) for name, parameter in self.weighting.named_parameters())

    def save(self, checkpoints: Checkpoints) -> None:
        """Begin to write the state as one file, so a run that is killed never mixes two moments; as :meth:`Checkpoints.save`."""
        clock = {"seconds": str(self.seconds)} if self.seconds else {}
        checkpoints.save(self.images, self.tensors(), {"updates": str(self.average.updates)} | clock)

    def share(self, ranks: Ranks) -> None:
        """Take over the state of rank 0, which alone has read a checkpoint, on all ranks."""
        trained = [name for name, parameter in self._parameters() if parameter in self.optimiser.state]
        numbers = self.images, self.average.updates, self.seconds, trained
        self.images, self.average.updates, self.seconds, trained = ranks.broadcast(numbers)
        for name, parameter in self._parameters():
            if name in trained and not ranks.main:
                moments = {key: torch.zeros_like(parameter) for key in ADAM[1:]}
                self.optimiser.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | moments
        ranks.copy_from_main(self.tensors().values())

    def load(self, path: Path) -> None:
        """Take over what :meth:`save` wrote, on this rank.

        Raises:
            InputError: if the file is damaged or belongs to another network.
        """
        tensors, metadata = load_checkpoint(path)
        try:
            self.images, self.average.updates = int(metadata["images"]), int(metadata["updates"])
            self.seconds = float(metadata.get("seconds", 0.0))
            for part, module in self._modules().items():
                module.load_state_dict({n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(f"{part}.")})
            for name, parameter in self._parameters():
                if f"adam.{name}.step" not in tensors:
                    continue  # a frozen weight
                found = {key: tensors[f"adam.{name}.{key}"].to(parameter.device) for key in ADAM}
                # The fused update needs moments that lie in memory like the weights.
                alike = {key: torch.empty_like(parameter).copy_(found[key]) for key in ADAM[1:]}
                self.optimiser.state[parameter] = found | alike
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not a checkpoint of this network ({' '.join(str(error).split())[:200]})") from None


def _check_weights(network: nn.Module, build: str) -> None:
    """Raise InputError unless what ``build`` gave is a network with weights that can be trained."""
    if not isinstance(network, nn.Module):
        raise InputError(f"{build} gives {type(network).__name__}; expected a torch.nn.Module")
    kind, weights = type(network).__name__, dict(network.named_parameters())
    if not any(weight.requires_grad for weight in weights.values()):
        raise InputError(f"{kind} has no weights to train; expected parameters with requires_grad")
    for name, tensor in (weights | dict(network.named_buffers())).items():
        if is_lazy(tensor):
            raise InputError(f"{kind}: {name} has no shape yet (a lazy module); call the network once before it is trained")
        if name in weights and tensor.is_complex():
            raise InputError(f"{kind}: {name} is complex; expected float32 (keep real and imaginary part, torch.view_as_real)")
