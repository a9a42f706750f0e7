"""Batches of pictures for training, read ahead of it, in an order that depends on the seed alone."""

from __future__ import annotations

import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import count, islice, repeat, takewhile
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from diffusion.data import ImageDataset, ImageStream
from diffusion.images import DataError
from diffusion.rng import below

THREADS = 4
MOST_WORKERS = 8

Result = TypeVar("Result")
# What to read for a batch: for each image where it is, and whether to mirror it.
Request = list[tuple[Any, bool]]


@contextmanager
def batches(
    dataset: Sequence[np.ndarray],
    seed: int,
    first: int,
    last: int,
    size: int,
    *,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    flip: bool = False,
) -> Iterator[Iterator[np.ndarray]]:
    """Batches of pictures in the order the seed gives, read ahead of the training.

    Every epoch is a permutation of its own. Image number i of a run is the same picture, mirrored or not, whatever the batch size, the
    ranks and the workers, and a run that resumes at image i goes on with it. That holds for damaged images too: what stands in for one
    depends on the data set alone.

    Args:
        dataset: pictures, float32 [C, S, S].
        seed: the run's seed.
        first, last: from which image of the run to which (exclusive).
        size: images a batch, over all ranks; the last batch may be smaller.
        part: this rank and the number of ranks. Each has its contiguous share of every batch.
        workers: processes that read and decode; 0 reads in threads of this one.
        flip: mirror each image, left to right, on the fall of a coin.

    Yields:
        An iterator over float32 [n, C, S, S], n the rank's share.

    Raises:
        DataError: from the iterator, if too many images are damaged, a stream breaks off, or a worker dies.
    """
    reader = _Reader(dataset)
    requests = _requests(dataset, seed, first, last, size, part, flip)
    # Threads and processes both have their place. Decoding and resizing let go of the interpreter, so threads serve pictures in memory
    # and machines of few cores, with nothing to start and nothing to copy. But the rest of reading a file holds it, and the thread that
    # keeps a fast GPU busy needs it for itself: processes leave it alone. Both take whole batches from one queue of requests and give
    # them back in order, so it makes no difference to the pictures who reads them.
    with ThreadPoolExecutor(THREADS) as pool, ThreadPoolExecutor(1) as download:
        if _stream(dataset):
            # Once a rank, in a thread of this process: what it got goes out with the requests.
            ahead = _in_order(download, repeat(partial(next, requests, None)), 2 * max(workers, THREADS))
            requests = takewhile(lambda request: request is not None, ahead)
        try:
            if workers:
                results = iter(_processes(reader, requests, workers))
            else:
                results = _in_order(pool, (partial(reader.__getitem__, request) for request in requests), THREADS)
            yield _pictures(dataset, results)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            reason = " ".join(str(error).split())
            raise DataError(f"a process that reads images died ({reason}); use fewer --workers, or 0 for none") from error
        finally:
            for executor in (pool, download):
                executor.shutdown(wait=False, cancel_futures=True)


def default_workers(dataset: Sequence[np.ndarray], ranks: int = 1) -> int:
    """How many processes to read `dataset` with, on a machine that `ranks` share: none for pictures in memory or with few cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    spare = cores // ranks - 1
    return min(spare, MOST_WORKERS) if getattr(dataset, "encoded", False) and spare > 1 else 0


def _stream(dataset: Sequence[np.ndarray]) -> ImageStream | None:
    return dataset.stream if isinstance(dataset, ImageDataset) else None


def _requests(
    dataset: Sequence[np.ndarray], seed: int, first: int, last: int, size: int, part: tuple[int, int], flip: bool
) -> Iterator[Request]:
    """What this rank has to read for each batch."""
    stream = _stream(dataset)
    run = stream.rows(seed, first) if stream else _order(len(dataset), seed, first)
    rank, ranks = part
    for start in range(first, last, size):
        images = list(islice(run, min(size, last - start)))
        low, high = (len(images) * edge // ranks for edge in (rank, rank + 1))
        coins = below(2, seed, "flip", np.arange(start + low, start + high)).tolist() if flip else [0] * (high - low)
        yield list(zip(images[low:high], map(bool, coins), strict=True))


def _order(length: int, seed: int, first: int) -> Iterator[int]:
    """Places in the data set of the images of a run, from number `first` on: a permutation an epoch, without end."""
    for epoch in count(first // length):
        order = np.random.default_rng((seed, epoch)).permutation(length)
        yield from map(int, order[first % length :])
        first = 0


class _Reader(Dataset):
    """Reads batches by request: their pictures, float32 [n, C, S, S], and what was wrong with damaged images; or the error."""

    def __init__(self, dataset: Sequence[np.ndarray]) -> None:
        self.dataset = dataset

    def __getitem__(self, request: Request) -> tuple[np.ndarray, list[str]] | DataError:
        pictures, problems = [], []
        try:
            for where, mirrored in request:
                picture, found = self._read(where)
                pictures.append(picture[..., ::-1] if mirrored else picture)
                problems += found
            # A rank whose share is empty has a batch all the same.
            batch = np.stack(pictures) if pictures else np.empty((0, *self._shape()), dtype=np.float32)
        except DataError as error:
            # Returned, not raised: what leaves a worker process as an exception comes back with its traceback for a message.
            return error
        return batch, problems

    def _read(self, where: Any) -> tuple[np.ndarray, list[str]]:
        if stream := _stream(self.dataset):
            return stream.read(where)
        return self.dataset.read(where) if isinstance(self.dataset, ImageDataset) else (self.dataset[where], [])

    def _shape(self) -> tuple[int, ...]:
        dataset = self.dataset
        return (dataset.channels, dataset.size, dataset.size) if isinstance(dataset, ImageDataset) else dataset[0].shape


def _pictures(dataset: Sequence[np.ndarray], results: Iterable[Any]) -> Iterator[np.ndarray]:
    """The pictures of what a reader gives; damaged images are reported in the order of the run."""
    for result in results:
        if isinstance(result, DataError):
            raise result
        pictures, problems = result
        if problems:
            dataset.report(problems)
        yield np.asarray(pictures)


def _in_order(pool: ThreadPoolExecutor, calls: Iterable[Callable[[], Result]], ahead: int) -> Iterator[Result]:
    """What the calls return, in order, while `pool` works on the next few."""
    futures: deque[Future[Result]] = deque()
    for call in calls:
        futures.append(pool.submit(call))
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _processes(reader: _Reader, requests: Iterable[Request], workers: int) -> DataLoader:
    """A loader whose worker processes read."""
    return DataLoader(
        reader,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        worker_init_fn=_leave_signals,
        # Forked processes share the names of the files and the cache of decoded images. They use neither CUDA nor torch's threads.
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        # The loader draws a seed for its workers, which must not come out of the global generator.
        generator=torch.Generator(),
    )


def _leave_signals(worker: int) -> None:
    """Ignore signals that are sent to all processes: the training decides what they mean, and ends its workers when it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
