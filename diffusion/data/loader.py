"""Batches of pictures for training, read ahead of it, in an order that depends on the seed alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import count, islice, repeat, takewhile
from typing import Any, TypeVar

import numpy as np

from diffusion.data.dataset import ImageDataset, ImageStream
from diffusion.data.images import DataError
from diffusion.rng import below

THREADS = 4
MOST_WORKERS = 8

Result = TypeVar("Result")
# What to read for a batch: for each image where it is, and whether to mirror it.
Request = list[tuple[Any, bool]]
# The pictures of a batch, float32 [n, C, S, S], and what was wrong with damaged images.
Batch = tuple[np.ndarray, list[str]]

_dataset_of_worker: Sequence[np.ndarray] = ()


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

    Every epoch is a permutation of its own. Image number i of a run is the same picture, mirrored or not, whatever the batch size,
    the ranks and the workers, and a run that resumes at image i goes on with it. That holds for damaged images too: what stands in
    for one depends on the data set alone.

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
    requests = _requests(dataset, seed, first, last, size, part, flip)
    pool, read = _readers(dataset, workers)
    download = ThreadPoolExecutor(1)
    if _stream(dataset):
        # Once a rank, in a thread of this process: what it got goes out with the requests.
        ahead = _in_order(download, repeat(partial(next, requests, None)), 2 * max(workers, THREADS))
        requests = takewhile(lambda request: request is not None, ahead)
    try:
        yield _pictures(dataset, _in_order(pool, (partial(read, request) for request in requests), max(2 * workers, THREADS)))
    finally:
        for executor in (pool, download):
            executor.shutdown(cancel_futures=True)


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


def _read(dataset: Sequence[np.ndarray], request: Request) -> Batch:
    """Read one batch."""
    pictures, problems = [], []
    for where, mirrored in request:
        if isinstance(dataset, ImageDataset):
            picture, found = (dataset.stream or dataset).read(where)
            problems += found
        else:
            picture = dataset[where]
        pictures.append(picture[..., ::-1] if mirrored else picture)
    if pictures:
        return np.stack(pictures), problems
    # The share of a rank may be empty.
    shape = (dataset.channels, dataset.size, dataset.size) if isinstance(dataset, ImageDataset) else dataset[0].shape
    return np.empty((0, *shape), dtype=np.float32), problems


def _pictures(dataset: Sequence[np.ndarray], results: Iterable[Batch]) -> Iterator[np.ndarray]:
    """The pictures of what was read; damaged images are reported in the order of the run."""
    try:
        for pictures, problems in results:
            if problems:
                dataset.report(problems)
            yield pictures
    except BrokenProcessPool as error:
        raise DataError("a process that reads images died, perhaps for lack of memory; use fewer --workers, or 0") from error


def _in_order(pool: Executor, calls: Iterable[Callable[[], Result]], ahead: int) -> Iterator[Result]:
    """What the calls return, in order, while `pool` works on the next few."""
    futures: deque[Future[Result]] = deque()
    for call in calls:
        futures.append(pool.submit(call))
        if len(futures) > ahead:
            yield futures.popleft().result()
    while futures:
        yield futures.popleft().result()


def _readers(dataset: Sequence[np.ndarray], workers: int) -> tuple[Executor, Callable[[Request], Batch]]:
    """Who reads, and how it is called. Both kinds take whole batches and give the same ones.

    Threads and processes both have their place. Decoding and resizing let go of the interpreter, so threads serve pictures in
    memory and machines of few cores, with nothing to start and nothing to copy. But the rest of reading a file holds it, and the
    thread that keeps a fast GPU busy needs it for itself: processes leave it alone. Executors rather than torch's DataLoader, as
    they are one interface to both, raise what a worker raised, and tell of a lost worker when its batch is asked for, not amid a
    step.
    """
    if not workers:
        return ThreadPoolExecutor(THREADS), partial(_read, dataset)
    # Forked processes share the names of the files and the cache of decoded images. They use neither CUDA nor torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    pool = ProcessPoolExecutor(workers, context, _become_worker, (dataset, os.getpid()))
    # Started now, while no thread of ours holds a lock that a forked process would wait for.
    pool.submit(os.getpid)
    return pool, _read_as_worker


def _become_worker(dataset: Sequence[np.ndarray], parent: int) -> None:
    """Prepare a worker process: what it reads, and when it ends."""
    global _dataset_of_worker
    _dataset_of_worker = dataset
    # A signal to all processes is for the training to answer, which saves first and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent says so, or is gone."""
    while os.getppid() == parent:
        signal_ = signal.sigtimedwait([signal.SIGTERM], 1.0)
        if signal_ is not None and signal_.si_pid == parent:
            break
    os._exit(0)


def _read_as_worker(request: Request) -> Batch:
    return _read(_dataset_of_worker, request)
