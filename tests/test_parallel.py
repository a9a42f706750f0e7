"""Two processes on the CPU, started by torchrun, against one: the same run, the same errors, no one left waiting."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffusion.files import load_tensors
from diffusion.run import RunConfig
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.ranks import Ranks
from tests.runs import stripes, tiny_config, without_dropout

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")


def odd_config() -> RunConfig:
    """57 images in batches of 8: seven steps, and a last one of a single image, which one rank of two goes without."""
    return without_dropout(tiny_config(images=57))


WORKER = """
import json, os, pathlib, sys, torch
from dataclasses import replace
from lbm_warp.checks import InputError
from diffusion.training.ranks import Ranks
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.observers import EarlyStop, Observer
from tests.runs import stripes, tiny_config
from tests.test_parallel import odd_config

folder, cpu = pathlib.Path(sys.argv[1]), torch.device("cpu")
config, dataset = odd_config(), stripes(19)
said = {}

def refused(name, *arguments, **options):
    try:
        train(*arguments, **options)
    except InputError as error:
        said[name] = str(error)

train(config, dataset, folder / "two", cpu, ExecutionConfig(checkpoint_every=16))
train(config, dataset, folder / "pieces", cpu, ExecutionConfig(accumulate=2))
# Begun by one process (the test), ended by two.
train(config, dataset, folder / "begun", cpu)

ranks = Ranks(cpu)
refused("batch", replace(config, training=replace(config.training, batch=9)), dataset, folder / "refused", cpu)

class Broken(list):
    def __getitem__(self, index):
        if ranks.rank == 1 and len(seen) > 12:
            raise InputError("picture 7 cannot be read")
        seen.append(index)
        return super().__getitem__(index)

seen = []
refused("data", config, Broken(dataset), folder / "broken", cpu, ExecutionConfig(checkpoint_every=8))
refused("nan", tiny_config(learning_rate=1.0, images=4000, clip=1e30), dataset, folder / "nan", cpu)

class Full(Observer):
    def checkpointed(self, images, pipeline):
        raise OSError(28, "No space left on device", "grid.png")

refused("write", config, dataset, folder / "full", cpu, observers=[Full()])

class Asked(Observer):
    answers = iter([False, False, True])

    def should_stop(self):
        return ranks.rank == 1 and next(self.answers)

# A signal to one of them stops both, after the same step; so does what rank 0 alone is told.
said["stopped"] = train(config, dataset, folder / "stopped", cpu, observers=[Asked()])
score = lambda pipeline: 3.0 if ranks.rank == 0 else None
said["early"] = train(config, dataset, folder / "early", cpu, ExecutionConfig(score_every=8), observers=[EarlyStop(2)], score=score)
train(config, dataset, folder / "tuned", cpu, init=folder / "one")
(folder / f"rank{ranks.rank}.json").write_text(json.dumps({"said": said, "count": ranks.count}))
ranks.close()
"""


def torchrun(*arguments: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def finish(process: subprocess.Popen, seconds: float = 180) -> tuple[str, str]:
    """Wait for a launch; one that hangs is ended, with all its processes."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the processes wait for each other:\n{process.communicate()[1][-3000:]}")


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, and ``one``: the same run by this process alone."""
    folder = tmp_path_factory.mktemp("launched")
    config = odd_config()
    train(config, stripes(19), folder / "one", CPU, ExecutionConfig(checkpoint_every=16))
    train(replace(config, training=replace(config.training, images=32)), stripes(19), folder / "begun", CPU)
    script = folder / "worker.py"
    script.write_text(WORKER)
    process = torchrun(script, folder)
    _, err = finish(process)
    assert process.returncode == 0, err[-3000:]
    return folder


def curve(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two", "pieces", "begun"])
def test_two_processes_train_what_one_trains(launched: Path, name: str) -> None:
    if name == "two":
        assert curve(launched / "one", "images") == curve(launched / "two", "images") == [16, 32, 48, 57]
        for value in ("loss", "gradient_norm", "learning_rate"):
            assert curve(launched / "two", value) == pytest.approx(curve(launched / "one", value), rel=1e-5), value
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = (load_tensors(launched / run / file) for run in ("one", name))
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5, msg=f"{file} {key}")
    for file in ("prior.safetensors", "config.json"):
        assert (launched / name / file).read_bytes() == (launched / "one" / file).read_bytes()


@pytest.mark.slow
def test_every_process_stops_with_the_same_words(launched: Path) -> None:
    first, second = (json.loads((launched / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second and first["count"] == 2
    said = first["said"]
    assert (
        said["batch"]
        == "a batch of 9 images does not divide into 2 processes x 1 accumulation steps; --batch must be a multiple of 2"
    )
    assert said["data"].startswith("picture 7 cannot be read")
    assert said["nan"].startswith("the loss is ") and said["nan"].endswith("there is no checkpoint yet")
    assert said["write"].startswith("grid.png: No space left on device; the last good checkpoint is")
    assert not (launched / "refused").exists() and not (launched / "nan" / "checkpoints").exists()


@pytest.mark.slow
def test_a_request_to_one_process_stops_both_after_the_same_step(launched: Path) -> None:
    said = json.loads((launched / "rank0.json").read_text())["said"]
    assert said["stopped"] is False and said["early"] is False
    for name, images in (("stopped", 16), ("early", 24)):
        assert [path.name for path in (launched / name / "checkpoints").iterdir()] == [f"{images:09d}.safetensors"]


@pytest.mark.slow
def test_two_processes_begin_from_the_weights_that_one_begins_from(launched: Path) -> None:
    train(odd_config(), stripes(19), launched / "tuned-by-one", CPU, init=launched / "one")
    one, two = (load_tensors(launched / run / "ema.safetensors") for run in ("tuned-by-one", "tuned"))
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
def test_sigterm_saves_a_launched_run_and_one_process_can_go_on(tmp_path: Path) -> None:
    """The command itself, under torchrun: one voice, one checkpoint, and the device count is free when it goes on."""
    options = ["--images", "1000000", "--batch", "32", "--network.width", "8", "--levels", "5", "--out", str(tmp_path / "run")]
    process = torchrun("-m", "cli.train", *options, cwd=tmp_path)
    deadline = time.monotonic() + 120
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {
        int(worker): dict(entry.split("=", 1) for entry in Path(f"/proc/{worker}/environ").read_text().split("\0") if "=" in entry)
        for worker in workers
    }
    os.kill(next(worker for worker, environment in ranks.items() if environment.get("RANK") == "1"), signal.SIGTERM)
    out, err = finish(process)
    # The launcher reports what its processes end with.
    assert process.returncode != 0 and "exitcode  : 143" in err
    assert out.count("interrupted and saved") == 1 and out.count("1797 handwritten digits") == 1
    assert err.count("training:") > 0 and "error:" not in err
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    images = int(saved.stem)

    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cli.train", *options, "--images", str(images + 64)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "trained" in done.stdout
    assert curve(tmp_path / "run", "images")[-1] == images + 64


@pytest.mark.slow
def test_an_error_of_a_launched_command_is_said_once(tmp_path: Path) -> None:
    process = torchrun("-m", "cli.train", "--batch", "31", cwd=tmp_path)
    _, err = finish(process)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert lines == [
        "error: a batch of 31 images does not divide into 2 processes x 1 accumulation steps; --batch must be a multiple of 2"
    ]
    # The launcher's own report names the exit code of the process that ended first.
    assert process.returncode != 0 and "exitcode  : 2" in err
    assert not (tmp_path / "runs").exists()


def test_alone_every_share_is_the_whole() -> None:
    ranks = Ranks(CPU)
    assert (ranks.rank, ranks.count, ranks.main, ranks.device) == (0, 1, True, CPU)
    assert ranks.share(7) == range(7) and ranks.agree(3)
    assert ranks.any(True) is True and ranks.any(False) is False
    with pytest.raises(FileNotFoundError), ranks.together():
        Path("nowhere").read_text()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="device cuda: torch sees 0 CUDA devices here; take cpu"):
        Ranks(torch.device("cuda"))
