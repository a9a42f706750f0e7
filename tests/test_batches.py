"""Batches: the order, the ranks, worker processes, and what happens when something breaks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.data.dataset import open_dataset
from diffusion.data.loader import batches, default_workers
from tests.pictures import constants, fails


def numbered(count: int) -> list[np.ndarray]:
    """Pictures that tell their place, and left from right."""
    return [np.array([[[place, -place], [place, -place]]], dtype=np.float32) for place in range(1, count + 1)]


def run(dataset: Sequence[np.ndarray], *arguments: int, **options: object) -> np.ndarray:
    """All the batches one after the other."""
    with batches(dataset, *arguments, **options) as queue:
        return torch.cat(list(queue)).numpy()


def order(dataset: Sequence[np.ndarray], *arguments: int, **options: object) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in run(dataset, *arguments, **options)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return constants(tmp_path / "in", 20)


def test_order_depends_on_the_seed_and_not_on_the_batch() -> None:
    dataset = numbered(7)
    whole = order(dataset, 5, 0, 21, 21)
    assert whole == [1 + place for epoch in range(3) for place in np.random.default_rng((5, epoch)).permutation(7)]
    assert order(dataset, 5, 0, 21, 4) == whole
    assert order(dataset, 5, 0, 9, 2) + order(dataset, 5, 9, 21, 5) == whole
    assert whole[:7] != whole[7:14] and order(dataset, 6, 0, 21, 21) != whole


def test_batches_have_the_size_asked_for_and_are_float32() -> None:
    with batches(numbered(5), 0, 3, 14, 4) as queue:
        found = list(queue)
    assert [len(batch) for batch in found] == [4, 4, 3]
    assert all(batch.dtype == torch.float32 and batch.shape[1:] == (1, 2, 2) for batch in found)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_every_batch_contiguously(ranks: int) -> None:
    with batches(numbered(7), 5, 2, 19, 6, flip=True) as queue:
        whole = list(queue)
    parts = []
    for rank in range(ranks):
        with batches(numbered(7), 5, 2, 19, 6, flip=True, part=(rank, ranks)) as queue:
            parts.append(list(queue))
    assert [len(part) for part in parts] == [len(whole)] * ranks
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat(shares), batch)
        sizes = [len(share) for share in shares]
        assert max(sizes) - min(sizes) <= 1


def test_flips_are_a_fair_coin_for_every_visit_and_mirror_left_to_right() -> None:
    plain, flipped = (run(numbered(10), 1, 0, 4000, 64, flip=flip) for flip in (False, True))
    mirrored = flipped[:, 0, 0, 0] != plain[:, 0, 0, 0]
    np.testing.assert_array_equal(flipped[mirrored], plain[mirrored][..., ::-1])
    np.testing.assert_array_equal(flipped[~mirrored], plain[~mirrored])
    # Five standard deviations of a coin; and one picture falls both ways.
    assert abs(mirrored.mean() - 0.5) < 5 * 0.5 / 4000**0.5
    assert {True, False} == set(mirrored[plain[:, 0, 0, 0] == 3])
    np.testing.assert_array_equal(run(numbered(10), 1, 777, 4000, 50, flip=True), flipped[777:])
    assert (run(numbered(10), 2, 0, 4000, 64, flip=True)[:, 0, 0, 0] < 0).tolist() != mirrored.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(folder: Path, workers: int) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for dataset in (numbered(7), open_dataset(str(folder), 8), open_dataset("digits", 8, split="odd")):
        alone = run(dataset, 5, 0, 50, 8, flip=True)
        np.testing.assert_array_equal(run(dataset, 5, 0, 50, 8, flip=True, workers=workers), alone)
        np.testing.assert_array_equal(run(dataset, 5, 17, 50, 3, flip=True, workers=workers), alone[17:])
        halves = [run(dataset, 5, 48, 50, 2, flip=True, workers=workers, part=(rank, 2)) for rank in (0, 1)]
        np.testing.assert_array_equal(np.concatenate(halves), alone[48:])
    assert torch.rand(1) == expected


@pytest.mark.slow
def test_workers_that_are_not_forked_change_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS and Windows: the data set is pickled."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", multiprocessing.get_context("spawn"))
    dataset = open_dataset(str(folder), 8, split="odd")
    np.testing.assert_array_equal(run(dataset, 5, 0, 40, 8, workers=1), run(dataset, 5, 0, 40, 8))


@pytest.mark.parametrize("workers", [0, 2])
def test_leaving_early_leaves_nothing_behind(folder: Path, workers: int) -> None:
    with batches(open_dataset(str(folder), 8), 0, 0, 10**6, 4, workers=workers) as queue:
        next(queue)
        assert len(multiprocessing.active_children()) == workers
    assert multiprocessing.active_children() == []


# What breaks


class Fatal(list):
    """Reading picture 5 kills the process that does it, unless it is the first one."""

    main = os.getpid()

    def __getitem__(self, place):
        if place == 5 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(place)


def test_a_worker_that_dies_is_one_clear_error() -> None:
    with fails("a process that reads images died", "--workers"):
        run(Fatal(numbered(20)), 0, 0, 60, 4, workers=2)
    assert multiprocessing.active_children() == []


def test_signals_to_all_processes_are_for_the_training_to_answer(folder: Path) -> None:
    """Someone else's signals, as a terminal or a batch system sends them to every process of a job."""
    dataset = open_dataset(str(folder), 8)
    with batches(dataset, 0, 0, 200, 4, workers=2) as queue:
        found = [next(queue), next(queue)]  # one of each worker
        pids = " ".join(str(worker.pid) for worker in multiprocessing.active_children())
        subprocess.run(f"kill -INT {pids}; kill -TERM {pids}", shell=True, check=True)
        time.sleep(0.2)
        found += list(queue)
    np.testing.assert_array_equal(torch.cat(found).numpy(), run(dataset, 0, 0, 200, 4))


@pytest.mark.slow
def test_workers_end_with_a_killed_training(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, sys, time, numpy as np; from diffusion.data.loader import batches\n"
        "with batches([np.zeros((1, 2, 2), np.float32)] * 9, 0, 0, 10**6, 4, workers=2) as queue:\n"
        "    next(queue); print(*(child.pid for child in multiprocessing.active_children()), flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE) as training:
        workers = [int(pid) for pid in training.stdout.readline().split()]
        assert len(workers) == 2
        training.kill()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize("workers", [0, 1])
def test_other_errors_are_not_turned_into_advice(workers: int) -> None:
    with pytest.raises(RuntimeError, match="out of memory"), batches(numbered(3), 0, 0, 9, 3, workers=workers) as queue:
        next(queue)
        raise RuntimeError("CUDA out of memory")


def test_default_workers(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    files, digits = open_dataset(str(folder), 8, split="odd"), open_dataset("digits")
    for cores, ranks, expected in ((1, 1, 0), (2, 1, 0), (4, 1, 1), (64, 1, 1), (64, 8, 1), (16, 8, 0)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
        assert default_workers(files, ranks) == expected
        assert default_workers(digits, ranks) == default_workers(numbered(3), ranks) == 0
