"""Batches of images for training, through torch's DataLoader, in an order that depends on the seed alone."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from diffusion.data.dataset import ImageDataset, ImageStream, Pictures
from diffusion.data.hub import Row
from diffusion.data.images import DataError
from diffusion.data.prepare import THREADS
from diffusion.rng import below

CPU = torch.device("cpu")


@contextmanager
def batches(
    dataset: Sequence[np.ndarray],
    seed: int,
    first: int,
    last: int,
    size: int,
    *,
    part: tuple[int, int] = (0, 1),
    scatter: Callable[[list[Any] | None], Any] | None = None,
    workers: int = 0,
    flip: bool = False,
    device: torch.device = CPU,
) -> Iterator[Iterator[torch.Tensor]]:
    """Batches of images in the order the seed gives.

    Every epoch is a permutation of its own. Image number i of a run is the same image, mirrored or not, whatever the batch size,
    the ranks and the workers, and a run that resumes at image i goes on with it.

    Args:
        dataset: pictures (see :func:`diffusion.data.as_dataset`), or any sequence of images, float32 [C, H, W].
        seed: the run's seed.
        first, last: from which image of the run to which (exclusive).
        size: images a batch, over all ranks; the last batch may be smaller.
        part: this rank and the number of ranks. Each has its contiguous share of every batch.
        scatter: where several ranks share a stream: called on all of them for every batch, on rank 0 with a list of what each is to
            get; returns what this one gets. Rank 0 alone reads the stream, and each decodes its share.
        workers: processes that read ahead; 0 reads in this one, when a batch is asked for. A stream is read by at most one, so that
            it is downloaded once.
        flip: mirror each image, left to right, with probability 1/2.
        device: where the batches go, as they are stored (uint8, as a rule), without waiting for a GPU; floats are made there.

    Yields:
        An iterator over float32 [n, C, H, W] on the device, n the rank's share.

    Raises:
        DataError: if a worker process dies; from the iterator, if a picture cannot be used, a stream breaks off or has too many
            damaged images.
    """
    order = Order(seed, first, last, size, part, flip)
    stream = isinstance(dataset, ImageStream)
    workers = min(workers, 1) if stream else workers
    reader = _StreamReader(dataset, order, bool(scatter)) if isinstance(dataset, ImageStream) else _Reader(dataset, order)
    loader: DataLoader = DataLoader(
        reader,
        batch_size=None,  # the readers give whole batches
        sampler=None if stream else order,
        num_workers=workers,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,  # they share the data set
        worker_init_fn=partial(_prepare_worker, os.getpid()),
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # otherwise torch's global one is drawn from
    )
    images = _floats(reader.shared(loader, scatter) if isinstance(reader, _StreamReader) and scatter else loader, device)
    try:
        yield images
    except RuntimeError as error:
        # torch raises this wherever the program is when a worker dies.
        if "DataLoader worker" not in str(error):
            raise
        # Its traceback keeps the loader alive, and with it the other workers.
        traceback.clear_frames(error.__traceback__)
        raise DataError("a process that reads images died, perhaps for lack of memory; use fewer --workers, or 0") from error
    finally:
        images.close()  # ends the workers


def labels_of(dataset: Pictures, seed: int, numbers: np.ndarray) -> torch.Tensor:
    """Classes of the images of a run by their numbers in it, int64 [n]; ``seed`` as for :func:`batches`."""
    assert dataset.labels is not None
    length = len(dataset)
    places = [_permutation(seed, epoch, length)[place] for epoch, place in zip(*np.divmod(numbers, length), strict=True)]
    return torch.from_numpy(dataset.labels[places])


def default_workers(dataset: Sequence[np.ndarray], ranks: int = 1) -> int:
    """How many processes read ``dataset``, on a machine that ``ranks`` share: one if it is not in memory and a core is free."""
    # Only Linux says which cores are ours; elsewhere a worker is not forked, and would get a copy of all images.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    on_disk = isinstance(dataset, ImageStream) or (isinstance(dataset, ImageDataset) and isinstance(dataset.pixels, np.memmap))
    return int(on_disk and cores // ranks > 2)


@dataclass(frozen=True)
class Order(Sampler):
    """Which images of a run a rank reads, batch after batch, and which of them are mirrored; arguments as for :func:`batches`."""

    seed: int
    first: int
    last: int
    size: int
    part: tuple[int, int]
    flip: bool

    def __iter__(self) -> Iterator[tuple[range, range]]:
        """Numbers in the run of the images of every batch, and of this rank's share of it."""
        rank, ranks = self.part
        for start in range(self.first, self.last, self.size):
            batch = range(start, min(start + self.size, self.last))
            yield batch, batch[len(batch) * rank // ranks : len(batch) * (rank + 1) // ranks]

    def mirror(self, pixels: np.ndarray, share: range) -> torch.Tensor:
        """Mirror half of the images [n, C, H, W], at random by their numbers."""
        if self.flip:
            chosen = below(2, self.seed, "flip", np.array(share)).numpy().astype(bool)
            pixels[chosen] = pixels[chosen][..., ::-1]
        return torch.from_numpy(pixels)


@dataclass(frozen=True, eq=False)
class Mirrored(Sequence[np.ndarray]):
    """Each picture and its mirror image: what a training that mirrors half of the pictures learns."""

    pictures: Sequence[np.ndarray]

    def __len__(self) -> int:
        return 2 * len(self.pictures)

    def __getitem__(self, number: int) -> np.ndarray:  # type: ignore[override]
        picture = self.pictures[number // 2]
        return np.ascontiguousarray(picture[..., ::-1]) if number % 2 else picture


@lru_cache(2)
def _permutation(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


@dataclass(frozen=True, eq=False)
class _Reader(Dataset):
    """Reads a rank's share of a batch, by what :class:`Order` gives."""

    dataset: Sequence[np.ndarray]
    order: Order

    def __getitem__(self, numbers: tuple[range, range]) -> torch.Tensor | DataError:
        share, length = numbers[1], len(self.dataset)
        places = [int(_permutation(self.order.seed, number // length, length)[number % length]) for number in share]
        if not isinstance(self.dataset, Pictures):
            pixels = np.array([self.dataset[place] for place in places], dtype=np.float32).reshape(-1, *self.dataset[0].shape)
            return self.order.mirror(pixels, share)
        try:
            return self.order.mirror(self.dataset.read(places), share)
        except DataError as error:
            # Given, not raised: torch changes the message of an error that is raised in a worker.
            return error


@dataclass(frozen=True, eq=False)
class _StreamReader(IterableDataset):
    """Reads every batch of a stream: its images, or its rows where other ranks get shares of them."""

    stream: ImageStream
    order: Order
    rows: bool

    def __iter__(self) -> Iterator[torch.Tensor | list[Row] | DataError]:
        source = self.stream.source.shuffled(self.order.seed, self.order.first)
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                for batch, share in self.order:
                    rows = [row for _, row in zip(batch, source, strict=False)]
                    yield rows if self.rows else self.decoded(rows, share, pool)
        except DataError as error:
            yield error  # as _Reader gives it

    def decoded(self, rows: list[Row], share: range, pool: ThreadPoolExecutor) -> torch.Tensor:
        """The images of these rows, which have these numbers in the run: uint8 [n, C, H, W]."""
        pixels = np.array(list(pool.map(self.stream.decode, rows)), dtype=np.uint8)
        return self.order.mirror(pixels.reshape(-1, self.stream.channels, *self.stream.size), share)

    def shared(self, loader: DataLoader, scatter: Callable[[list[Any] | None], Any]) -> Iterator[torch.Tensor]:
        """This rank's share of every batch, of rows that rank 0 reads through ``loader``; all ranks raise an error of that."""
        reading = iter(loader) if self.order.part[0] == 0 else None
        with ThreadPoolExecutor(THREADS) as pool:
            for _, share in self.order:
                rows = scatter(None if reading is None else self._parts(reading))
                if isinstance(rows, Exception):
                    raise rows
                yield self.decoded(rows, share, pool)

    def _parts(self, reading: Iterator[list[Row] | Exception]) -> list[Any]:
        """What each rank gets of the next batch: its rows, or what went wrong."""
        ranks = self.order.part[1]
        try:
            rows = next(reading)
        except RuntimeError as error:  # a worker died
            rows = error
        if isinstance(rows, Exception):
            return ranks * [rows]
        return [rows[len(rows) * rank // ranks : len(rows) * (rank + 1) // ranks] for rank in range(ranks)]


def _floats(loader: Iterable[torch.Tensor | DataError], device: torch.device) -> Generator[torch.Tensor, None, None]:
    for pixels in loader:
        if isinstance(pixels, DataError):
            raise pixels
        pixels = pixels.to(device, non_blocking=True)
        yield pixels / 255 if pixels.dtype == torch.uint8 else pixels


def _prepare_worker(parent: int, worker: int) -> None:
    """Signals to all processes are for the training to answer, which saves first and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent says so, or is gone."""
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
