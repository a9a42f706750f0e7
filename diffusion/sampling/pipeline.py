"""The pipeline: a trained run as an object, to load, sample from and share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from torch import nn

from diffusion.denoisers import Reverse
from diffusion.files import asset, load_tensors, read_json, save_tensors, write_json
from diffusion.forward.process import UnitNoise
from diffusion.forward.statistics import Statistics, load_statistics
from diffusion.methods import Method
from diffusion.network import for_sampling
from diffusion.rng import seeds
from diffusion.run import RunConfig, differing, fingerprint, load_config, save_config
from diffusion.samplers.base import Callback, Sampler, circular, noise_of_parts, spherical
from diffusion.sampling.card import PAPER, card_text
from diffusion.sampling.prior import Prior, load_prior
from diffusion.size import Size
from lbm_warp.checks import MOST, InputError, as_batch, as_device, as_integers, as_tensor, check_integer, check_number

# Models in assets, by name.
BUNDLED = {name: asset(f"{name}-model") for name in ("digits", "fashion", "emoji")}
FILES = ("config.json", "ema.safetensors", "best.safetensors", "prior.safetensors", "statistics.safetensors", "metrics.json")
# Memory for a batch: on a CPU, where larger batches are no faster, and as a share of a GPU's free memory.
CPU_BYTES = 2**30
CUDA_SHARE = 0.5
# What images are named by.
NUMBERS = "a number of images or a list of their numbers, each at least 0"
PAIRS = "pairs of image numbers, such as [(0, 1), (2, 3)]"


class Pipeline(
    ModelHubMixin,
    library_name="beyond-blur",
    pipeline_tag="unconditional-image-generation",
    tags=["diffusion", "inverse-heat-dissipation", "advection-diffusion"],
    paper_url=PAPER,
):
    """A trained run: its configuration, its network and the prior that sampling starts from.

        pipeline = Pipeline.from_pretrained("runs/digits-fluid")  # a run folder, owner/name on the Hub, or digits, fashion, emoji
        images = pipeline.sample(16, seed=0)                            # float32 [16, C, H, W], values around [0, 1]
        pipeline.save_pretrained("folder")                              # safetensors, JSON and a model card
        pipeline.push_to_hub("owner/name")

    An image is a function of the seed and its number. It does not depend on the other images of a call, nor on the batch size (up
    to the rounding of convolutions, about 1e-6). ``pipeline.network.compile()`` makes long runs faster.

    Args:
        config: the run.
        network: the reverse network, called as ``network(u, level)``; put into evaluation mode.
        prior: thumbnails that sampling starts from.
        statistics: moments of the training pictures, for a denoiser that needs them.
        metrics: numbers of an evaluation, by name, for the model card.
        precision: ``fp32``, or ``bf16`` to run the network, and only the network, under autocast.
        batch: images at a time; by default chosen by memory. It is halved permanently when a GPU runs out of memory.

    Raises:
        InputError: if ``precision`` or ``batch`` is out of its range.
    """

    def __init__(
        self,
        config: RunConfig,
        network: nn.Module,
        prior: Prior,
        *,
        statistics: Statistics | None = None,
        metrics: dict[str, Any] | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch: int | None = None,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision must be fp32 or bf16, got {precision!r}")
        if batch is not None:
            check_integer("batch", batch, 1)
        self.config = config
        self.method = config.method
        self.forward = config.forward.measured(statistics)
        self.statistics = statistics
        self.network = network.eval()
        self.prior = prior
        self.metrics = metrics or {}
        self.precision = precision
        self.batch = batch or default_batch(config, self.device)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder_or_id: str | Path = BUNDLED["digits"],
        *,
        device: torch.device | str = "cpu",
        precision: Literal["fp32", "bf16"] = "fp32",
        batch: int | None = None,
        best: bool = False,
        types: Iterable[type] | type = (),
        network: nn.Module | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Pipeline:
        """Load a run: its averaged weights and its prior. Only JSON and safetensors files are read; nothing in them is executed.

        Args:
            folder_or_id: a run folder, a folder that :meth:`save_pretrained` wrote, a bundled model (digits, 16 x 16 pixels, the
                default; fashion, 28 x 28; emoji, 32 x 32), or ``owner/name`` of a model on the Hugging Face Hub.
            device: where to sample.
            precision, batch: as for the class.
            types: classes of one's own that the run is made of (operators, networks, ...): no file makes code run.
            network: the module of a run that was trained with a module of one's own; it gets the run's weights.
            best: take best.safetensors, the weights with the best score during training, instead of the last ones.
            revision: branch, tag or commit of the model on the Hub.
            token: access token for the Hub; True for the stored one.
            cache_dir: folder for downloads; by default the Hub's own cache.
            force_download: download files again even if they are in the cache.
            local_files_only: use the cache only.

        Raises:
            InputError: if there is no such run, or if a file of it is missing, damaged, or does not fit the configuration.
        """
        # The mixin's own method would read config.json first and pass parts of it to the constructor, unchecked.
        if not isinstance(folder_or_id, (str, Path)):
            raise InputError(f"a run is named by its folder, or as owner/name, got {type(folder_or_id).__name__}")
        folder = Path(folder_or_id)
        if not folder.is_dir():
            folder = BUNDLED.get(str(folder_or_id), folder)
        if not folder.is_dir() and is_model_id(str(folder_or_id)):
            try:
                folder = Path(
                    snapshot_download(
                        str(folder_or_id),
                        revision=revision,
                        token=token,
                        cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only,
                        allow_patterns=list(FILES),
                    )
                )
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise InputError(f"{folder_or_id}: no such run folder, and the Hub does not provide it ({reason})") from None
        config = load_config(folder, types, network)
        module = config.build_network(empty=True)
        weights = folder / ("best.safetensors" if best else "ema.safetensors")
        if best and not weights.is_file():
            raise InputError(f"{folder}: it has no best.safetensors, which cli.train --score-every keeps; leave out best")
        module.load_state_dict(_fitting(load_tensors(weights), module, weights), assign=True)
        # Convolutions are faster with channels last.
        module = module.to(as_device(device)).to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
        metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").is_file() else {}
        statistics = load_statistics(folder, config.shape) if config.method.denoiser.needs_statistics else None
        how: dict[str, Any] = {"metrics": metrics, "precision": precision, "batch": batch}
        return cls(config, module, load_prior(folder, config.shape), statistics=statistics, **how)

    def __repr__(self) -> str:
        shape, parameters = list(self.config.shape), sum(parameter.numel() for parameter in self.network.parameters())
        process = f"{self.config.process_name}, {self.method.operator.describe()}".replace("\n", ", ")
        about = f"{self.config.data} {shape}, {self.method.levels:,} levels, {parameters:,} parameters, {self.device}"
        return f"Pipeline({process}; {about})"

    @property
    def device(self) -> torch.device:
        """The device of the network and of the samples while they are made."""
        return next((parameter.device for parameter in self.network.parameters()), torch.device("cpu"))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration, the weights and what sampling starts from: equal for equal models only."""
        tensors = self.network.state_dict() | {"thumbnails": self.prior.thumbnails}
        if self.statistics:
            tensors |= {f"statistics.{name}": tensor for name, tensor in vars(self.statistics).items()}
        return fingerprint(self.config, tensors)

    def at_size(self, size: Size | int | str) -> Pipeline:
        """The same run for images of another height and width: the network is convolutional, the statistics are interpolated.

        Raises:
            InputError: if the network cannot take this size.
        """
        size = Size.of(size)
        if size == self.config.size:
            return self
        statistics = self.statistics.at_size(size) if self.statistics else None
        return self._changed(replace(self.config, size=size), statistics=statistics, batch=None)

    def with_sampler(self, sampler: Sampler) -> Pipeline:
        """The same run with another sampler, such as ``replace(pipeline.method.sampler, eta=0.0, steps=20)``: DDIM.

        Raises:
            InputError: if it does not fit the run's forward process and denoiser.
        """
        return self._changed(replace(self.config, method=replace(self.method, sampler=sampler)))

    def with_sampling_noise(self, sampling_noise: float) -> Pipeline:
        """The same run with another amount of noise in sampling, in units of the training noise.

        Raises:
            InputError: if it is less than 0.
        """
        return self.with_sampler(replace(self.method.sampler, sampling_noise=sampling_noise))

    def _changed(self, config: RunConfig, **changes: Any) -> Pipeline:
        kept = {name: getattr(self, name) for name in ("statistics", "metrics", "precision", "batch")}
        return Pipeline(config, self.network, self.prior, **kept | changes)

    def to(self, device: torch.device | str) -> Pipeline:
        """Move the network to a device; returns the pipeline."""
        self.network.to(as_device(device))
        return self

    def sample(
        self,
        images: int | Sequence[int] | np.ndarray,
        seed: int = 0,
        *,
        steps: int | None = None,
        sampling_noise: float | None = None,
        sampler: Sampler | None = None,
        label: str | int | None = None,
        guidance: float = 1.0,
        same_init: bool = False,
        share_noise: bool = False,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """New images.

        Args:
            images: number of images (then they are 0 to ``images`` - 1), or a list of image numbers.
            seed: 0 to 2^63 - 1; image number i is a function of the seed and of i.
            steps: number of steps, at most K; by default the sampler's own. Fewer are faster and coarser.
            sampling_noise: noise of the sampler in units of the training noise; by default its own.
            sampler: another sampler than the run's, as in :meth:`with_sampler`.
            label: class of the images, by name or number, for a run with classes; ``all`` gives image number i class i modulo the
                number of classes; None leaves it open.
            guidance: weight g >= 0 of the label (Ho and Salimans 2022): the network predicts F_none + g (F_label - F_none).
            same_init: all images start from the corrupted image of number 0, each with its own noise.
            share_noise: all images get the noise of number 0, each with its own start.
            callback: called as ``callback(level, u)`` at the start and after every step, batch after batch.

        Returns:
            float32 [N, C, H, W] on the CPU, values around [0, 1], not clipped.

        Raises:
            InputError: if an argument is out of its range.
        """
        numbers = _numbers(images)
        own, common = _sample_seeds(numbers, seed), _sample_seeds(np.zeros_like(numbers), seed)
        start, noise, method = common if same_init else own, common if share_noise else own, self._sampled(sampling_noise, sampler)

        def draw(rows: slice) -> torch.Tensor:
            u = self._start(start[rows], method)
            reverse = self.reverse(start[rows], label, guidance, numbers[rows])
            return self._run(method.sampler, reverse, u, self._noise(noise[rows], u), method.levels, steps, callback)

        return self.batched(len(numbers), draw)

    def interpolate(
        self,
        pairs: Sequence[tuple[int, int]],
        points: int = 10,
        seed: int = 0,
        *,
        steps: int | None = None,
        sampling_noise: float | None = None,
        label: str | int | None = None,
        guidance: float = 1.0,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """Images between pairs of samples: pictures are interpolated linearly, noise (the flow's, too) spherically.

        The flow of the sampler is that of the nearer end.

        Args:
            pairs: image numbers of the two samples, as in :meth:`sample`; their images are the ends.
            points: images for each pair, with the ends, at least 2.
            seed, steps, sampling_noise, label, guidance, callback: as for :meth:`sample`; the label is one for all.

        Returns:
            float32 [len(pairs), points, C, H, W] on the CPU.

        Raises:
            InputError: if an argument is out of its range.
        """
        ends = _integers("pairs", pairs, PAIRS)
        if ends.ndim != 2 or ends.shape[1] != 2:
            raise InputError(f"pairs must be {PAIRS}, got shape {list(ends.shape)}")
        check_integer("points", points, 2, MOST // max(len(ends), 1))
        numbers = ends.repeat(points, axis=0)
        first, second = (_sample_seeds(column, seed) for column in numbers.T)
        places = torch.linspace(0.0, 1.0, points).repeat(len(numbers) // points)[:, None, None, None]
        method = self._sampled(sampling_noise)
        flow = torch.where(places.flatten() < 0.5, first, second)
        begin = replace(method.sampler.start, start_noise=0.0)
        still = replace(method, operator=method.operator.still(), sampler=replace(method.sampler, start=begin))

        def draw(rows: slice) -> torch.Tensor:
            one, other = (self._start(of[rows], method) for of in (first, second))
            blurred, other_blurred = (self._start(of[rows], still) for of in (first, second))
            place = places[rows].to(self.device)
            # What flow and noise add to the blurred pictures of the prior is random with mean zero.
            u = torch.lerp(blurred, other_blurred, place) + circular(one - blurred, other - other_blurred, place)
            noise = spherical(self._noise(first[rows], u), self._noise(second[rows], u), place)
            reverse = self.reverse(flow[rows], label, guidance)
            return self._run(method.sampler, reverse, u, noise, method.levels, steps, callback)

        return self.batched(len(numbers), draw).unflatten(0, (-1, points))

    def corrupt(self, image: torch.Tensor, level: int, seed: int = 0) -> torch.Tensor:
        """An image at a level, without noise, float32 [C, H, W] on the CPU: the start of :meth:`restore`.

        Args:
            image: float32 [C, H, W] in [0, 1].
            level: 0 to K.
            seed: seed of the flow.

        Raises:
            InputError: if an argument has the wrong shape or range.
        """
        image = self._pictures(as_tensor("image", image)[None])[0]
        check_integer("level", level, 0, self.forward.levels)
        flow = _sample_seeds(np.zeros(1, dtype=np.int64), seed)
        return self.forward.mean(image[None].to(self.device, torch.float32), level, flow)[0].cpu()

    def restore(
        self,
        image: torch.Tensor,
        level: int,
        images: int = 1,
        seed: int = 0,
        *,
        steps: int | None = None,
        sampling_noise: float | None = None,
        label: str | int | None = None,
        guidance: float = 1.0,
        callback: Callback | None = None,
    ) -> torch.Tensor:
        """Corrupt an image to a level by :meth:`corrupt` and sample from there, each time with other noise.

        Args:
            image, level: as for :meth:`corrupt`; the level is at least 1.
            images: number of restorations.
            seed, steps, sampling_noise, label, guidance, callback: as for :meth:`sample`; ``steps`` is at most ``level``, and the
                label is one for all.

        Returns:
            float32 [images, C, H, W] on the CPU.

        Raises:
            InputError: if an argument has the wrong shape or range.
        """
        check_integer("images", images, 1, MOST)
        method, noise_seed = self._sampled(sampling_noise), _sample_seeds(np.arange(images), seed)
        method.sampler.visited(self.forward, level, steps)
        corrupted, flow = self.corrupt(image, level, seed).to(self.device), _sample_seeds(np.zeros(images, dtype=np.int64), seed)

        def draw(rows: slice) -> torch.Tensor:
            u = corrupted.repeat(len(flow[rows]), 1, 1, 1)
            reverse = self.reverse(flow[rows], label, guidance)
            return self._run(method.sampler, reverse, u, self._noise(noise_seed[rows], u), level, steps, callback)

        return self.batched(images, draw)

    def from_seeds(self, start: torch.Tensor, flow: torch.Tensor, noise: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """New images from seeds of their parts, to vary one part alone.

        Args:
            start: seeds of the picture of the prior and of the noise at level K, int64 [N].
            flow: seeds of the flow, int64 [N].
            noise: seeds of the noise that the sampler adds below level K, int64 [N].
            steps: number of steps, as for :meth:`sample`.

        Returns:
            float32 [N, C, H, W] on the CPU.
        """
        last = self.forward.levels

        def draw(rows: slice) -> torch.Tensor:
            u = self._start(start[rows], self.method, flow[rows])
            parts = noise_of_parts(self._noise(start[rows], u), self._noise(noise[rows], u), last)
            return self._run(self.method.sampler, self.reverse(flow[rows]), u, parts, last, steps, None)

        return self.batched(len(start), draw)

    def posterior(
        self, images: torch.Tensor, level: int, seed: torch.Tensor, draw: torch.Tensor, steps: int | None = None
    ) -> torch.Tensor:
        """Corrupt every image to a level, flow and noise included, and sample what it may have been: draws from p(u_0 | u_k).

        Args:
            images: float32 [N, C, H, W] in [0, 1].
            level: k, 1 to K.
            seed: seeds of flow and noise of the corruption, int64 [N].
            draw: seeds of the sampler's noise, int64 [N].
            steps: number of steps, at most k.

        Returns:
            float32 [N, C, H, W] on the CPU.

        Raises:
            InputError: if ``level`` or ``steps`` is out of its range.
        """
        self.method.sampler.visited(self.forward, level, steps)
        images = self._pictures(images)
        seed, draw = (as_batch("seed", one, len(images)) for one in (seed, draw))

        def restored(rows: slice) -> torch.Tensor:
            u = self.forward.mean(images[rows].to(self.device), level, seed[rows])
            # The sampler adds the noise of its first level: here that of the corruption.
            given = self.forward.unit_noise(seed[rows], u)
            noise = noise_of_parts(lambda k: given, self._noise(draw[rows], u), level)
            return self._run(self.method.sampler, self.reverse(seed[rows]), u, noise, level, steps, None)

        return self.batched(len(images), restored)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the files that others need: config.json, ema.safetensors, prior.safetensors, README.md, and metrics.json.

        Args:
            save_directory: folder, made if missing. A model card that stands there is kept, unless it is that of another run.
            options: those of ``huggingface_hub.ModelHubMixin.save_pretrained``; ``model_card_kwargs`` is passed to
                :meth:`generate_model_card`.

        Raises:
            InputError: if the folder is a run folder of a training, or cannot be written.
        """
        if (Path(save_directory) / "metrics.jsonl").exists():
            raise InputError(f"{save_directory}: a run is trained in this folder; choose another one")
        if (config := Path(save_directory) / "config.json").is_file() and differing(self.config.to_json(), read_json(config)):
            (Path(save_directory) / "README.md").unlink(missing_ok=True)
        try:
            return super().save_pretrained(save_directory, **options)
        except OSError as error:
            raise InputError(f"{save_directory}: cannot be written ({error.strerror}); choose another folder") from None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the files that :meth:`save_pretrained` writes to the Hugging Face Hub; returns the address of the commit.

        Args:
            repo_id: ``owner/name``; created if it does not exist.
            options: those of ``huggingface_hub.ModelHubMixin.push_to_hub`` (private, token, branch, commit_message, ...);
                ``model_card_kwargs`` is passed to :meth:`generate_model_card`.
        """
        card = {"repo_id": repo_id} | (options.pop("model_card_kwargs", None) or {})
        return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def generate_model_card(self, repo_id: str = "owner/name", license: str | None = None) -> ModelCard:
        """The model card: process, schedule, network, training and metrics in numbers, and how to sample.

        Args:
            repo_id: the model that the example in the card loads.
            license: licence of the weights, an identifier such as ``mit``. The owner chooses it, so there is no default.
        """
        known = self._hub_mixin_info.model_card_data.to_dict()
        header = ModelCardData(**known | ({"license": license} if license else {}))
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return ModelCard(f"---\n{header.to_yaml()}\n---\n\n{card_text(self.config, self.prior, parameters, self.metrics, repo_id)}")

    def _save_pretrained(self, save_directory: Path) -> None:
        save_tensors(save_directory / "ema.safetensors", self.network.state_dict())
        self.prior.save(save_directory)
        # What this model lacks, and another one may have left there.
        stale = {"best.safetensors", "statistics.safetensors", "metrics.json"}
        if self.statistics:
            self.statistics.save(save_directory)
            stale.remove("statistics.safetensors")
        if self.metrics:
            write_json(save_directory / "metrics.json", self.metrics)
            stale.remove("metrics.json")
        save_config(save_directory, self.config)
        for name in stale:
            (save_directory / name).unlink(missing_ok=True)

    def _sampled(self, sampling_noise: float | None, sampler: Sampler | None = None) -> Method:
        """The method with another sampler, or another amount of its noise."""
        method = self.method if sampler is None else replace(self.method, sampler=sampler)
        return method if sampling_noise is None else replace(method, sampler=replace(method.sampler, sampling_noise=sampling_noise))

    def _pictures(self, images: torch.Tensor) -> torch.Tensor:
        """Images [N, C, H, W] of the run's shape and range; up to half of it beyond both ends is let pass.

        Raises:
            InputError: if they are not such images.
        """
        images = as_tensor("images", images)
        if tuple(images.shape[1:]) != self.config.shape:
            raise InputError(f"images must have shape {list(self.config.shape)}, got {list(images.shape[1:])}")
        low, high = (float(end) for end in images.double().aminmax())
        if not images.is_floating_point() or not (low >= -0.5 and high <= 1.5):
            raise InputError(f"images must be floating-point numbers from 0 to 1, got {images.dtype} from {low:g} to {high:g}")
        return images

    def _start(self, seed: torch.Tensor, method: Method, flow: torch.Tensor | None = None) -> torch.Tensor:
        return self.prior.draw(seed, method, self.config.size, self.device, flow)

    def _noise(self, seed: torch.Tensor, like: torch.Tensor) -> UnitNoise:
        return self.forward.seeded_noise(seed, like)

    def _run(
        self,
        sampler: Sampler,
        reverse: Reverse,
        u: torch.Tensor,
        noise: UnitNoise,
        start: int,
        steps: int | None,
        callback: Callback | None,
    ) -> torch.Tensor:
        """The sampler, from images ``u`` at level ``start`` without their noise, told of from there on."""
        if callback is not None:
            callback(start, u)
        return sampler(reverse, u, noise, callback, start=start, steps=steps)

    def reverse(
        self,
        flow: torch.Tensor,
        label: str | int | None = None,
        guidance: float = 1.0,
        images: np.ndarray | None = None,
    ) -> Reverse:
        """The network as a denoiser of images in these flows, under a label with guidance.

        Args:
            flow: seeds of the flows that corrupt the images, int64 [N].
            label, guidance: as for :meth:`sample`.
            images: numbers of the images, int64 [N]; the label ``all`` needs them.

        Raises:
            InputError: if there is no such label, or the guidance is out of its range or without a label.
        """
        check_number("guidance", guidance, 0.0)
        none = len(self.config.classes)
        number: torch.Tensor | int | None = (
            torch.as_tensor(images) % none
            if images is not None and self.config.means_every_class(label)
            else self.config.label_number(label)
        )
        if guidance != 1.0 and label is None:
            raise InputError(f"guidance {guidance:g} needs a label")

        network = for_sampling(self.network, self.precision, self.batch * self.config.size.height * self.config.size.width)

        def labels_of(level: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(number, device=level.device).expand(len(level))

        def labelled(u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            return network(u, level, labels_of(level))

        def guided(u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
            labels = labels_of(level)
            labels = torch.cat([torch.full_like(labels, none), labels])
            open_, closed = network(torch.cat([u, u]), torch.cat([level, level]), labels).chunk(2)
            return open_ + guidance * (closed - open_)

        chosen = network if number is None else labelled if guidance == 1.0 else guided
        return Reverse(self.forward.in_one_flow(), self.method.denoiser, chosen, flow)

    def batched(self, count: int, draw: Callable[[slice], torch.Tensor]) -> torch.Tensor:
        """Call ``draw`` for the rows of ``count`` images batch by batch; halve a batch that does not fit into a GPU's memory.

        Raises:
            InputError: if a single image does not fit, or one that is made is not finite.
        """
        check_integer("number of images", count, 1, MOST)
        done: list[torch.Tensor] = []
        first = 0
        while first < count:
            rows = slice(first, min(first + self.batch, count))
            try:
                done.append(_finite(draw(rows).cpu()))
                first = rows.stop
                continue
            except torch.OutOfMemoryError:
                taken = rows.stop - first
            if taken == 1:
                raise InputError(f"not enough memory on {self.device} for a single image; sample with device cpu")
            # After the handler: its traceback keeps the batch in memory.
            torch.cuda.empty_cache()
            self.batch = taken // 2
        return torch.cat(done)


def default_batch(config: RunConfig, device: torch.device) -> int:
    """Images at a time: as many as fit into half of a GPU's free memory, or into 1 GiB on a CPU; 1 to 256 (64 on a CPU)."""
    if device.type == "cuda":
        budget, most = CUDA_SHARE * torch.cuda.mem_get_info(device)[0], 256
    else:
        budget, most = CPU_BYTES, 64
    return int(min(max(budget // config.network.activation_bytes(config.size), 1), most))


def _finite(images: torch.Tensor) -> torch.Tensor:
    wrong = int((~images.isfinite()).flatten(1).any(dim=1).sum())
    if wrong:
        advice = "train it longer or with a lower learning rate, or sample with another number of steps, less guidance or fp32"
        raise InputError(f"{wrong} of {len(images)} samples are not finite: the run has diverged; {advice}")
    return images


def _fitting(tensors: dict[str, torch.Tensor], network: nn.Module, path: Path) -> dict[str, torch.Tensor]:
    """The tensors in the dtypes of the network's, if their names and shapes are the same."""
    expected = network.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        have, want = tensors.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape:
            have_shape, want_shape = (None if t is None else list(t.shape) for t in (have, want))
            raise InputError(f"{path}: weights do not fit config.json: {name} is {have_shape}, expected {want_shape}")
    return {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}


def is_model_id(name: str) -> bool:
    """Whether a name that is no folder is a model on the Hub: owner/name, unless there is a local folder called owner."""
    owner, slash, rest = name.partition("/")
    return bool(slash) and "/" not in rest and rest not in ("", ".", "..") and not Path(owner).is_dir()


def _numbers(images: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """Numbers of images, int64: those from 0 on, for so many, or those of a list."""
    if isinstance(images, (int, np.integer)):
        check_integer("images", images, 1, MOST)
        return np.arange(images)
    if hasattr(images, "__len__") and getattr(images, "ndim", True):
        check_integer("the number of images", len(images), 1, MOST)
    return _integers("images", images, NUMBERS)


def _integers(name: str, values: Any, form: str) -> np.ndarray:
    """Integers of Python, numpy or torch; an error names the form that they must have."""
    try:
        return as_integers(name, values).numpy()
    except InputError:
        raise InputError(f"{name} must be {form}, got {values!r}"[:200]) from None


def _sample_seeds(numbers: np.ndarray, seed: int) -> torch.Tensor:
    check_integer("seed", seed, 0, 2**63 - 1)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer) or (numbers < 0).any():
        raise InputError(f"images must be {NUMBERS}, got {numbers.tolist()}"[:200])
    return seeds(seed, "sample", numbers)
