from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.config import TrainingConfig
from diffusion.files import load_tensors
from diffusion.parametrisation import Plain, parametrisation, prediction_loss
from diffusion.process import PROCESSES
from diffusion.rng import below, seeds
from diffusion.sampling.pipeline import Pipeline
from diffusion.statistics import Statistics
from diffusion.training.log import MetricsLog
from diffusion.training.loop import ExecutionConfig, Trainer, train
from diffusion.training.ranks import Ranks
from diffusion.training.state import EMA, TrainingState
from lbm_warp.checks import InputError
from tests.runs import stripes, tiny_config, without_dropout

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES)
def test_loss_at_initialisation_is_its_closed_form(process: str) -> None:
    """A network that answers nothing leaves the right answer a: a^2; cold's |a| (Bansal et al. 2022), and soft's (A_k a)^2 over
    sigma_k^2 (Daras et al. 2023)."""
    config = tiny_config(process)
    corruption = config.corruption()
    u0 = torch.from_numpy(np.stack(stripes()))
    seed = torch.arange(len(u0))
    level = 1 + below(config.process.levels, seed, "level")
    form = parametrisation(corruption, Statistics.measure(stripes(), corruption, CPU))
    inputs, answer = form.example(u0, level, seed)
    loss = prediction_loss(corruption, config.build_network()(inputs, level), answer, level, seed)
    expected = answer.square()
    if process == "cold":
        expected = answer.abs()
    elif process == "soft":
        blurred = [corruption.operator(a[None], int(k), int(s))[0] for a, k, s in zip(answer, level, seed, strict=True)]
        expected = (torch.stack(blurred) / torch.from_numpy(corruption.noise)[level][:, None, None, None]).square()
    assert loss.item() == pytest.approx(expected.sum().item() / len(u0), rel=1e-5)


@pytest.mark.slow
def test_one_batch_is_learnt_by_heart() -> None:
    """The same few images, flows and levels over and over: the loss falls to a small part of what it was."""
    config = without_dropout(tiny_config())
    torch.manual_seed(0)
    network = config.build_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    u0 = torch.from_numpy(np.stack(stripes(4)))
    level, seed = torch.tensor([1, 3, 5, 6]), torch.arange(4)
    corrupted, answer = Plain(config.corruption()).example(u0, level, seed)
    losses = []
    for _ in range(300):
        loss = prediction_loss(config.corruption(), network(corrupted, level), answer, level, seed)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_ema_is_its_definition() -> None:
    """w <- d w + (1 - d) w_network with d = min(decay, (1 + n) / (10 + n)), by hand for one number."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2.0)
    average = EMA(network, decay=0.15)
    expected = 2.0
    for n, weight in enumerate([5.0, -1.0, 3.0, 3.0]):
        nn.init.constant_(network.weight, weight)
        average.update()
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        assert average.network.weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    training = TrainingConfig(images=1000, batch=10, learning_rate=1e-3, warmup=100, decay=0.5)
    rates = {first: training.learning_rate_at(first, 10) for first in (0, 90, 490, 500, 750, 990)}
    assert rates == pytest.approx({0: 1e-4, 90: 1e-3, 490: 1e-3, 500: 1e-3, 750: 5e-4, 990: 2e-5})
    assert replace(training, decay=0.0).learning_rate_at(990, 10) == 1e-3


@pytest.mark.slow
def test_every_image_of_every_step_is_corrupted_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    config = tiny_config(images=80)
    pair = Plain.example

    def spy(self, u0, level, seed):
        seen.extend(zip(level.tolist(), seed.tolist(), strict=True))
        return pair(self, u0, level, seed)

    monkeypatch.setattr(Plain, "example", spy)
    ranks = Ranks(CPU)
    trainer = Trainer(config, TrainingState.initial(config, CPU), ranks, ExecutionConfig())
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, ranks)
    for _ in range(10):
        trainer.step(torch.from_numpy(np.stack(stripes(8))), log)
    assert len({seed for _, seed in seen}) == 80
    assert {level for level, _ in seen} == set(range(1, 7))
    expected = seeds(config.training.seed, "image", np.arange(80)).tolist()
    assert [seed for _, seed in seen] == expected


def everything(folder: Path) -> dict[str, torch.Tensor]:
    """The newest checkpoint."""
    return load_tensors(max((folder / "checkpoints").iterdir()))


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "checkpoints").iterdir())


def equal(a: Path, b: Path) -> bool:
    """Whether two runs ended at the same numbers."""
    here, there = everything(a), everything(b)
    return here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)


def near(a: Path, b: Path) -> None:
    """Assert that two runs ended at the same averaged weights, but for rounding."""
    here, there = (load_tensors(folder / "ema.safetensors") for folder in (a, b))
    for name in here:
        torch.testing.assert_close(here[name], there[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config, dataset = tiny_config(), stripes()
    assert train(config, dataset, tmp_path / "whole", CPU, ExecutionConfig(checkpoint_every=16))
    # Stopped after the third step, then after another, then finished; dropout is on.
    for answer in ([False, False, True], [True]):
        answers = iter(answer)
        assert not train(
            config, dataset, tmp_path / "parts", CPU, ExecutionConfig(checkpoint_every=16), should_stop=lambda a=answers: next(a)
        )
    assert train(config, dataset, tmp_path / "parts", CPU, ExecutionConfig(checkpoint_every=16))
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert whole.keys() == parts.keys() and any(name.startswith("adam.") for name in whole)
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    for file in ("ema.safetensors", "model.safetensors", "prior.safetensors", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    images = [json.loads(line)["images"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert images == sorted(set(images)) and images[-1] == 48


@pytest.mark.slow
def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    config, dataset = tiny_config(), stripes()
    train(config, dataset, tmp_path / "run", CPU)
    longer = replace(config, training=replace(config.training, images=64))
    assert train(longer, dataset, tmp_path / "run", CPU)
    train(longer, dataset, tmp_path / "once", CPU)
    once, grown = everything(tmp_path / "once"), everything(tmp_path / "run")
    assert all(torch.equal(once[name], grown[name]) for name in once)


KILLED = """
import os, pathlib, random, signal, sys, time, torch
from tests.runs import *
from diffusion.files import load_tensors
from diffusion.training.loop import ExecutionConfig, train

torch.set_num_threads(1)
folder, chance = pathlib.Path(sys.argv[1]), random.Random(0)

def go():
    train(tiny_config(images=1600), stripes(), folder, torch.device("cpu"), ExecutionConfig(checkpoint_every=16, keep_every=160))

def seen():
    return sorted(path.name for path in folder.glob("checkpoints/0*"))

for kill in range(7):
    before, child = seen(), os.fork()
    if child == 0:
        go()
        os._exit(0)
    deadline = time.monotonic() + 60
    # The first is killed wherever it is, the others after they got on.
    while kill > 0 and seen() == before and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.25))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for file in folder.rglob("[!.]*.safetensors"):
        load_tensors(file)
    print("killed after", seen()[-1:])
go()
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """SIGKILL at seven random moments; what is on the disk is whole at each, and leads to the same weights in the end."""
    root = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, tmp_path / "killed"]
    done = subprocess.run(command, cwd=root, env=environment, check=True, capture_output=True, text=True)
    moments = [line for line in done.stdout.splitlines() if line.startswith("killed after")]
    assert len(moments) == len(set(moments)) == 7 and not any("000001600" in moment for moment in moments)
    whole = KILLED[: KILLED.index("for kill")] + "go()"
    subprocess.run([sys.executable, "-c", whole, tmp_path / "whole"], cwd=root, env=environment, check=True, capture_output=True)
    assert equal(tmp_path / "killed", tmp_path / "whole")
    assert checkpoints(tmp_path / "killed") == [160 * i for i in range(1, 10)] + [1584, 1600]
    assert not [file for file in (tmp_path / "killed").rglob("*") if ".part" in file.name]


@pytest.mark.slow
def test_the_last_two_checkpoints_are_kept_and_the_first_at_every_multiple(tmp_path: Path) -> None:
    config = tiny_config(images=80, batch=16)
    train(config, stripes(), tmp_path / "few", CPU, ExecutionConfig(checkpoint_every=16))
    assert checkpoints(tmp_path / "few") == [64, 80]
    train(config, stripes(), tmp_path / "more", CPU, ExecutionConfig(checkpoint_every=16, keep_every=24))
    assert checkpoints(tmp_path / "more") == [32, 48, 64, 80]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 48 images with its checkpoints at 32 and 48."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_config(), stripes(), folder, CPU, ExecutionConfig(checkpoint_every=16))
    return folder


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"bit": bytes(content), "cut": bytes(content[:-100]), "empty": b""}[how])


@pytest.mark.slow
@pytest.mark.parametrize("how", ["bit", "cut", "empty"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    damage(folder / "checkpoints" / "000000048.safetensors", how)
    assert train(tiny_config(), stripes(), folder, CPU, ExecutionConfig(checkpoint_every=16))
    said = capsys.readouterr().out
    assert "000000048.safetensors: not" in said and f"going on from {folder / 'checkpoints' / '000000032.safetensors'}" in said
    assert equal(folder, finished) and checkpoints(folder) == [32, 48]
    for name in ("ema.safetensors", "model.safetensors"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


def test_a_run_without_a_readable_checkpoint_is_refused_and_left_alone(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    for number, how in ((32, "bit"), (48, "cut")):
        damage(folder / "checkpoints" / f"{number:09d}.safetensors", how)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=r"no checkpoint can be read; .*000000048.safetensors: not a readable"):
        train(tiny_config(), stripes(), folder, CPU)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_what_a_killed_run_left_half_written_is_cleared_away(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    (folder / "checkpoints" / ".000000064.4711.part.safetensors").write_bytes(b"half a checkpoint")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"images": 4')
    longer = tiny_config(images=64)
    assert train(longer, stripes(), folder, CPU)
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["000000048.safetensors", "000000064.safetensors"]
    images = [json.loads(line)["images"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert images[-2:] == [48, 64]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoints(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    before = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    longer = tiny_config(images=96)
    size = len(before[folder / "checkpoints" / "000000048.safetensors"])
    message = r"000000064.safetensors: cannot be written \(.*\); the last good checkpoint is .*000000048.safetensors$"
    with largest_file(size - 1), pytest.raises(ValueError, match=message):
        train(longer, stripes(), folder, CPU, ExecutionConfig(checkpoint_every=16))
    assert {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
    assert train(longer, stripes(), folder, CPU)
    train(longer, stripes(), tmp_path / "whole", CPU)
    assert equal(folder, tmp_path / "whole")


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(finished: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    broken = stripes()
    broken[5] = np.full_like(broken[5], np.nan)
    message = r"the loss is nan in step (7|8|9), at image (56|64|72): .*; the last good checkpoint is .*000000048.safetensors$"
    with pytest.raises(ValueError, match=message):
        train(tiny_config(images=96), broken, folder, CPU)
    assert checkpoints(folder) == [32, 48] and equal(folder, finished)
    with pytest.raises(ValueError, match="there is no checkpoint yet"):
        train(tiny_config(learning_rate=1.0, images=4000, clip=1e30), stripes(), tmp_path / "wild", CPU)


@pytest.mark.slow
def test_a_run_carried_out_in_another_way_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    config, dataset = without_dropout(tiny_config(images=44)), stripes()
    train(config, dataset, tmp_path / "once", CPU)
    train(config, dataset, tmp_path / "pieces", CPU, ExecutionConfig(accumulate=4))
    near(tmp_path / "once", tmp_path / "pieces")
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"] for name in ("once", "pieces")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    # Begun in one way, ended in another.
    shorter = replace(config, training=replace(config.training, images=24))
    train(shorter, dataset, tmp_path / "both", CPU, ExecutionConfig(accumulate=2))
    assert train(config, dataset, tmp_path / "both", CPU, ExecutionConfig(workers=2, keep_every=8))
    near(tmp_path / "once", tmp_path / "both")


@pytest.mark.slow
def test_bfloat16_is_the_networks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = without_dropout(tiny_config(images=64))
    pair, seen = Plain.example, []

    def spy(self, u0, level, seed):
        result = pair(self, u0, level, seed)
        seen.append((torch.is_autocast_enabled("cpu"), {tensor.dtype for tensor in (u0, *result)}))
        return result

    monkeypatch.setattr(Plain, "example", spy)
    outputs = []

    def on_checkpoint(images: int, pipeline: Pipeline) -> None:
        outputs.append(pipeline.sample(2))

    for precision in ("fp32", "bf16"):
        train(config, stripes(), tmp_path / precision, CPU, ExecutionConfig(precision=precision), on_checkpoint=on_checkpoint)
    assert set(map(str, seen)) == {str((False, {torch.float32}))}
    assert all(tensor.dtype == torch.float32 for tensor in everything(tmp_path / "bf16").values())
    assert not equal(tmp_path / "fp32", tmp_path / "bf16")
    assert all(output.dtype == torch.float32 for output in outputs)
    # The sampling network computes in bfloat16 as well: eight bits are seen, no more.
    assert 0 < (outputs[0] - outputs[1]).abs().max() < 0.05 * outputs[0].abs().max() + 0.01
    losses = [json.loads((tmp_path / name / "metrics.jsonl").read_text())["loss"] for name in ("fp32", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
def test_a_compiled_network_trains_alike_under_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the back end that needs no compiler."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
    config = without_dropout(tiny_config(images=32))
    train(config, stripes(), tmp_path / "plain", CPU)
    train(config, stripes(), tmp_path / "compiled", CPU, ExecutionConfig(compile=True))
    near(tmp_path / "plain", tmp_path / "compiled")
    assert everything(tmp_path / "plain").keys() == everything(tmp_path / "compiled").keys()


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler\nhere")

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend=backend))
    with pytest.raises(ValueError, match=r"torch.compile does not work here .*leave --compile out") as error:
        train(tiny_config(), stripes(), tmp_path, CPU, ExecutionConfig(compile=True))
    assert "\n" not in str(error.value)


@pytest.mark.cuda
def test_no_step_waits_for_the_device(tmp_path: Path) -> None:
    config, ranks = tiny_config(), Ranks(torch.device("cuda", 0))
    trainer = Trainer(config, TrainingState.initial(config, ranks.device), ranks, ExecutionConfig(accumulate=2))
    log = MetricsLog(tmp_path / "metrics.jsonl", 0, ranks)
    u0 = torch.from_numpy(np.stack(stripes(8)))
    trainer.step(u0, log)  # compiles and records
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.step(u0, log)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_too_little_memory_is_said_with_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(Plain, "example", full)
    with pytest.raises(ValueError, match=r"cpu has not enough memory for 4 images at a time: .*--accumulate.*--precision bf16"):
        train(tiny_config(), stripes(), tmp_path, CPU, ExecutionConfig(accumulate=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"accumulate": 3},
            "a batch of 8 images does not divide into 1 processes x 3 accumulation steps; --batch must be a multiple of 3",
        ),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"precision": "fp16"}, "precision must be fp32 or bf16, got 'fp16'"),
        ({"precision": "bf16", "compile": True}, "--compile with bf16 gives wrong gradients on a CPU"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
        ({"keep_every": 0}, "keep_every must be at least 1, got 0"),
    ],
)
def test_bad_ways_to_carry_a_run_out_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(tiny_config(), stripes(), tmp_path / "run", CPU, ExecutionConfig(**options))
    assert not (tmp_path / "run").exists()


def test_the_launchers_precision_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="precision must be fp32 or bf16, got 'fp16'"):
        train(tiny_config(), stripes(), tmp_path / "run", CPU)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    config = tiny_config()
    assert Trainer(config, TrainingState.initial(config, CPU), Ranks(CPU), ExecutionConfig()).precision == "bf16"


@pytest.mark.slow
def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    config, dataset = tiny_config(), stripes()
    train(config, dataset, tmp_path, CPU)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    for other, message in (
        (tiny_config(seed=4), "training.seed is 3, not 4"),
        (tiny_config("ihd"), "process_name is beyond-blur, not ihd"),
        (replace(config, network=replace(config.network, width=16)), "network.width is 8, not 16"),
        (replace(config, data="dots"), "data is stripes, not dots"),
    ):
        with pytest.raises(ValueError, match=message):
            train(other, dataset, tmp_path, CPU)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


@pytest.mark.slow
def test_scores_are_logged_and_the_best_weights_kept_wherever_the_run_is_resumed(tmp_path: Path) -> None:
    """The distances are made up: best at 32 images. A run that stops after 24 of 48 has the same log and the same weights."""

    def run(folder: Path, images: int) -> None:
        config = without_dropout(tiny_config(images=48))
        config = replace(config, training=replace(config.training, images=images))
        distances = {16: 5.0, 32: 2.0, 48: 3.0}
        seen = []
        train(
            config,
            stripes(),
            folder,
            CPU,
            ExecutionConfig(score_every=16, checkpoint_every=8),
            on_log=lambda line: seen.append(line["images"]),
            score=lambda pipeline: distances[seen[-1]] + 0.0 * float(pipeline.sample(1).mean()),
        )

    run(tmp_path / "once", 48)
    run(tmp_path / "twice", 24)
    assert json.loads((tmp_path / "twice" / "best.json").read_text()) == {"images": 16, "frechet_distance": 5.0}
    run(tmp_path / "twice", 48)
    for name in ("once", "twice"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found = {line["images"]: line["frechet_distance"] for line in lines if "frechet_distance" in line}
        assert found == {16: 5.0, 32: 2.0, 48: 3.0}
        assert json.loads((tmp_path / name / "best.json").read_text()) == {"images": 32, "frechet_distance": 2.0}
    best, last = (load_tensors(tmp_path / "once" / name) for name in ("best.safetensors", "ema.safetensors"))
    again = load_tensors(tmp_path / "twice" / "best.safetensors")
    assert all(torch.equal(best[name], again[name]) for name in best) and not all(torch.equal(best[n], last[n]) for n in best)
    loaded = Pipeline.from_pretrained(tmp_path / "once", best=True).network.state_dict()
    assert all(torch.equal(loaded[name], best[name]) for name in best)
    with pytest.raises(InputError, match=r"has no best.safetensors; train with --score-every"):
        Pipeline.from_pretrained(best=True)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    from diffusion.files import whole_file

    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(OSError, match="full"), whole_file(target) as aside:
        aside.write_text("half of the n")
        raise OSError("disk full")
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]
    with whole_file(target) as aside:
        aside.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["file.txt"]
