"""Eight processes on the CPU, or three, against one: the same run, the same errors, no one left waiting. Two under torchrun."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from cli import train as command
from diffusion.augmentation import GeometricAugmentation
from diffusion.files import load_tensors
from diffusion.run import RunConfig
from diffusion.sampling.pipeline import Pipeline
from diffusion.training.loop import ExecutionConfig, train
from diffusion.training.observers import EarlyStop, Observer
from diffusion.training.ranks import Ranks
from diffusion.weighting import LearnedWeighting, Weighting
from lbm_warp.checks import InputError
from tests.runs import exit_code, stripes, tiny_config, without_dropout

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
MANY = 8
FEW = {"batch": 5, "weighting": Weighting()}  # fewer images than processes
LONG = ["--images", "1000000", "--batch", "32", "--network.width", "8", "--levels", "5", "--device", "cpu", "--out"]


def odd_config(**training: object) -> RunConfig:
    """57 images in batches of 8: seven steps, and a last one of a single image, which the other ranks go without."""
    recipe = {"augment": GeometricAugmentation(0.5), "weighting": LearnedWeighting()}
    return without_dropout(tiny_config(**recipe | {"images": 57} | training))


# What the processes do


class Broken(list):
    """Pictures that one rank can no longer read after a few."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__(stripes(19))
        self.ranks, self.seen = ranks, 0

    def __getitem__(self, index):
        self.seen += 1
        if self.ranks.rank == self.ranks.count - 1 and self.seen > 22:  # one look at all, then one a step
            raise InputError("picture 7 cannot be read")
        return super().__getitem__(index)


class Full(Observer):
    def checkpointed(self, images: int, pipeline: Pipeline) -> None:
        raise OSError(28, "No space left on device", "grid.png")


class Asked(Observer):
    """A signal to one process."""

    def __init__(self, ranks: Ranks) -> None:
        self.answers: Iterator[bool] = iter([False, False, ranks.rank == 1])

    def should_stop(self) -> bool:
        return next(self.answers)


class Counting(Observer):
    """How often the hosts meet between two steps."""

    def __init__(self) -> None:
        self.reductions, self.steps = 0, []
        reduce = torch.distributed.all_reduce

        def counted(*arguments: object, **options: object) -> object:
            self.reductions += 1
            return reduce(*arguments, **options)

        torch.distributed.all_reduce = counted

    def stepped(self, images: int) -> None:
        self.steps.append(self.reductions)


def many(folder: Path, ranks: Ranks) -> None:
    config, dataset, said = odd_config(), stripes(19), {}

    def refused(name: str, *arguments: object, **options: object) -> None:
        with pytest.raises(InputError) as error:
            train(*arguments, **options)
        said[name] = str(error.value)

    train(config, dataset, folder / "many", CPU, ExecutionConfig(checkpoint_every=16))
    counting = Counting()
    train(odd_config(**FEW), dataset, folder / "few", CPU, observers=[counting])
    said["reductions"] = [b - a for a, b in zip(counting.steps, counting.steps[1:], strict=False)]
    train(config, dataset, folder / "bf16", CPU, ExecutionConfig(bf16_gradients=True))
    # Begun by one process, ended by eight; and by eight, for three.
    train(config, dataset, folder / "begun", CPU)
    train(odd_config(images=24), dataset, folder / "handed", CPU)
    train(config, dataset, folder / "tuned", CPU, init=folder / "one")

    said["scattered"] = ranks.scatter(list(range(MANY)) if ranks.main else None)
    refused("data", config, Broken(ranks), folder / "broken", CPU, ExecutionConfig(checkpoint_every=8))
    refused("nan", tiny_config(learning_rate=1.0, images=4000, clip=1e30), dataset, folder / "nan", CPU)
    refused("write", config, dataset, folder / "full", CPU, observers=[Full()])
    other = odd_config(seed=ranks.rank // 4)
    refused("options", other, dataset, folder / "refused", CPU)
    # A signal to one of them stops all, after the same step; so does what rank 0 alone is told.
    said["stopped"] = train(config, dataset, folder / "stopped", CPU, observers=[Asked(ranks)])
    how, early = ExecutionConfig(score_every=8), [EarlyStop(2)]
    score = lambda pipeline: 3.0 if ranks.main else None  # noqa: E731
    said["early"] = train(config, dataset, folder / "early", CPU, how, observers=early, score=score)
    (folder / f"rank{ranks.rank}.json").write_text(json.dumps(said))


def three(folder: Path, ranks: Ranks) -> None:
    """Shares of two, three and three images, in parts of two at most."""
    for name in ("three", "handed"):
        train(odd_config(), stripes(19), folder / name, CPU, ExecutionConfig(accumulate=2))


def long_command(folder: Path, ranks: Ranks) -> None:
    sys.stderr = open(folder / f"stderr{ranks.rank}.txt", "w")
    command.main([*LONG, str(folder / "killed"), "--checkpoint-minutes", "0.01"])


def wrong_command(folder: Path, ranks: Ranks) -> None:
    os.chdir(folder)
    sys.stderr = open(f"wrong{ranks.rank}.txt", "w")
    command.main(["--data", "nowhere"])


def start(count: int, work: Callable[[Path, Ranks], None], folder: Path) -> list[int]:
    """Processes with the environment that a launcher gives them, forked: they need not import torch again; returns their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    pids = []
    for rank in range(count):
        if (pid := os.fork()) == 0:
            numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
            os.environ.update(where | {name: str(number) for name, number in numbers.items()})
            ranks = Ranks(CPU)
            work(folder, ranks)
            ranks.close()
            os._exit(0)
        pids.append(pid)
    return pids


def codes(pids: list[int]) -> list[int]:
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def work(folder: Path) -> None:
    """All launches, one after the other, in a process without threads."""
    torch.set_num_threads(1)
    __import__("torch._dynamo")  # as Adam does, in a second; the processes have it then
    found = {"many": codes(start(MANY, many, folder)), "three": codes(start(3, three, folder))}
    found["wrong"] = codes(start(MANY, wrong_command, folder))
    pids, deadline = start(MANY, long_command, folder), time.monotonic() + 60
    while not list((folder / "killed" / "checkpoints").glob("0*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(pids[5], signal.SIGKILL)
    (folder / "codes.json").write_text(json.dumps(found | {"killed": codes(pids)}))


# What came of it


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What many processes wrote; ``one`` and ``alone``: the same runs by this process alone."""
    folder = tmp_path_factory.mktemp("launched")
    train(odd_config(), stripes(19), folder / "one", CPU, ExecutionConfig(checkpoint_every=16))
    train(odd_config(**FEW), stripes(19), folder / "alone", CPU)
    train(odd_config(images=32), stripes(19), folder / "begun", CPU)
    words = [sys.executable, "-c", "import sys; from tests.test_parallel import Path, work; work(Path(sys.argv[1]))", str(folder)]
    _, err = finish(begin(words))
    found = json.loads((folder / "codes.json").read_text()) if (folder / "codes.json").exists() else {}
    assert not any(found.get("many", [1]) + found.get("three", [1])), err[-3000:]
    return folder


def begin(words: list[str], **options: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def torchrun(*arguments: object, **options: object) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return begin([*launcher, *map(str, arguments)], **options)


def finish(process: subprocess.Popen, seconds: float = 300) -> tuple[str, str]:
    """Wait for a launch; one that hangs is ended, with all its processes."""
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"the processes wait for each other:\n{process.communicate()[1][-3000:]}")


def curve(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alone"), [("many", "one"), ("few", "alone"), ("three", "one"), ("begun", "one"), ("handed", "one")]
)
def test_many_processes_train_what_one_trains(launched: Path, name: str, alone: str) -> None:
    """Also where they are more than the images of a batch, share it unevenly, or go on with what others began. Sums are rounded to
    float32 in another order: relative 2^-24 in a step, of which eight steps of Adam make about 1e-5."""
    if name == "many":
        assert curve(launched / "one", "images") == curve(launched / "many", "images") == [16, 32, 48, 57]
        for value in ("loss", "gradient_norm", "learning_rate"):
            assert curve(launched / "many", value) == pytest.approx(curve(launched / "one", value), rel=1e-5), value
    for file in ("model.safetensors", "ema.safetensors"):
        one, other = (load_tensors(launched / run / file) for run in (alone, name))
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-4, atol=1e-5, msg=f"{file} {key}")
    for file in ("prior.safetensors", "config.json"):
        assert (launched / name / file).read_bytes() == (launched / alone / file).read_bytes()


@pytest.mark.slow
def test_gradients_in_bfloat16_are_rounded_and_no_more(launched: Path) -> None:
    one, rounded = (curve(launched / run, "loss") for run in ("one", "bf16"))
    mean = sum(one) / 4  # lines of two steps each, and one line of eight
    assert rounded == [pytest.approx(mean, rel=1e-2)] and rounded != [pytest.approx(mean, rel=1e-6)]


@pytest.mark.slow
def test_every_process_stops_with_the_same_words(launched: Path) -> None:
    """Rank 0, which writes the checkpoints, adds which is the last."""
    first, *others = (json.loads((launched / f"rank{rank}.json").read_text()) for rank in range(MANY))
    for name, said in (
        ("data", "picture 7 cannot be read"),
        ("nan", "the loss is "),
        ("write", "grid.png: No space left on device"),
        ("options", f"{launched / 'refused'}: the processes have different options; "),
    ):
        reason, _, checkpoint = first[name].rpartition("; ") if name != "options" else (first[name], "", "")
        assert reason.startswith(said) and {other[name] for other in others} == {reason}
        assert checkpoint.startswith({"nan": "there is no checkpoint yet", "options": ""}.get(name, "the last good checkpoint is"))
    assert [said["scattered"] for said in (first, *others)] == list(range(MANY))
    assert not (launched / "refused").exists() and not (launched / "nan" / "checkpoints").exists()


@pytest.mark.slow
def test_a_request_to_one_process_stops_all_after_the_same_step(launched: Path) -> None:
    said = json.loads((launched / "rank0.json").read_text())
    assert said["stopped"] is False and said["early"] is False
    for name, images in (("stopped", 16), ("early", 24)):
        assert [path.name for path in (launched / name / "checkpoints").iterdir()] == [f"{images:09d}.safetensors"]


@pytest.mark.slow
def test_the_hosts_meet_once_a_step(launched: Path) -> None:
    assert json.loads((launched / "rank0.json").read_text())["reductions"] == 11 * [1]


@pytest.mark.slow
def test_where_one_process_is_killed_the_others_end_with_one_line(launched: Path) -> None:
    """The command, without a launcher that would end them."""
    found = json.loads((launched / "codes.json").read_text())
    assert found["killed"] == [2, 2, 2, 2, 2, -signal.SIGKILL, 2, 2]
    said = [(launched / f"stderr{rank}.txt").read_text().splitlines() for rank in range(MANY)]
    (line,) = [line for line in said[0] if line.startswith("error:")]
    assert line.startswith("error: another process of this training has ended; the same command goes on with it; the last good")
    assert not any(said[1:]) and "Traceback" not in "".join(said[0])


@pytest.mark.slow
def test_many_processes_begin_from_the_weights_that_one_begins_from(launched: Path) -> None:
    train(odd_config(), stripes(19), launched / "tuned-by-one", CPU, init=launched / "one")
    one, many = (load_tensors(launched / run / "ema.safetensors") for run in ("tuned-by-one", "tuned"))
    for key in one:
        torch.testing.assert_close(many[key], one[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
def test_sigterm_saves_a_launched_run_and_one_process_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself, under torchrun: one voice, one checkpoint, and the device count is free when it goes on."""
    options = [*LONG, str(tmp_path / "run")]
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

    assert exit_code(command.main, *options, "--images", images + 64) == 0 and "trained" in capsys.readouterr().out
    assert curve(tmp_path / "run", "images")[-1] == images + 64


@pytest.mark.slow
def test_an_error_of_a_launched_command_is_said_once(launched: Path) -> None:
    said = [(launched / f"wrong{rank}.txt").read_text() for rank in range(MANY)]
    assert said[0].startswith("error: nowhere: no such folder or archive; expected ") and said[0].count("\n") == 1
    assert not any(said[1:]) and json.loads((launched / "codes.json").read_text())["wrong"] == MANY * [2]
    assert not (launched / "runs").exists()


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
