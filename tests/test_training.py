from __future__ import annotations

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.augmentation import GeometricAugmentation
from diffusion.denoisers import CleanImage, Denoiser, Reverse, Step, summed
from diffusion.density import Uniform
from diffusion.files import load_tensors
from diffusion.forward.operators import Operator
from diffusion.forward.process import ForwardProcess, Level, UnitNoise
from diffusion.forward.scales import ConstantNoise
from diffusion.learning_rate import InverseSquareRoot, LearningRate, WarmUpAndDecay
from diffusion.methods import METHODS, Method
from diffusion.rng import below, seeds
from diffusion.run import check_same_run, load_config
from diffusion.samplers import Resample, Sampler
from diffusion.sampling.pipeline import Pipeline
from diffusion.size import Size
from diffusion.training.dry_step import check_step
from diffusion.training.log import StepLog
from diffusion.training.loop import ExecutionConfig, Trainer, train
from diffusion.training.observers import EarlyStop, Observer
from diffusion.training.ranks import Ranks
from diffusion.training.state import EMA, TrainingState
from diffusion.weighting import LearnedWeighting
from lbm_warp.checks import InputError
from tests.runs import files, stripes, tiny_config, without_dropout

CPU = torch.device("cpu")
RECIPE = {"augment": GeometricAugmentation(0.5), "weighting": LearnedWeighting()}


@pytest.mark.slow
@pytest.mark.parametrize("process", METHODS)
def test_loss_at_initialisation_is_its_closed_form(process: str) -> None:
    """A network that answers nothing leaves the right answer a: a^2; cold's |a| (Bansal et al. 2022), and soft's (A_k a)^2 over
    sigma_k^2 (Daras et al. 2023). In flow matching it is the velocity of a grey image."""
    config = tiny_config(process)
    denoiser, forward = config.method.denoiser, config.forward
    forward = forward.measured(denoiser.measure(stripes(), forward, CPU))
    u0 = torch.from_numpy(np.stack(stripes()))
    seed = torch.arange(len(u0))
    level = 1 + below(forward.levels, seed, "level")
    inputs, answer = denoiser.example(forward, u0, level, seed)
    loss = denoiser.loss(forward, config.build_network()(inputs, level), answer, level, seed).mean()
    if process == "flow-matching":
        u, truth = answer
        expected = (2.0 * forward.velocity(torch.full_like(u0, 0.5), u, level, seed) - truth).square()
    else:
        expected = answer.square()
    if process == "cold":
        expected = answer.abs()
    elif process == "soft":
        blurred = [forward.operator(a[None], int(k), int(s))[0] for a, k, s in zip(answer, level, seed, strict=True)]
        expected = (torch.stack(blurred) / torch.from_numpy(forward.noise)[level][:, None, None, None]).square()
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
    denoiser = config.method.denoiser
    corrupted, answer = denoiser.example(config.forward, u0, level, seed)
    losses = []
    for _ in range(300):
        loss = denoiser.loss(config.forward, network(corrupted, level), answer, level, seed).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_ema_is_its_definition() -> None:
    """w <- d w + (1 - d) w_network with d = min(decay, (1 + n) / (10 + n)), by hand for one number."""
    network = nn.Sequential(*[nn.Linear(1, 1, bias=False)] * 2)  # tied
    nn.init.constant_(network[0].weight, 2.0)
    average = EMA(network, decay=0.15)
    expected = 2.0
    for n, weight in enumerate([5.0, -1.0, 3.0, 3.0]):
        nn.init.constant_(network[0].weight, weight)
        average.update()
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        assert average.network[1].weight.item() == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    schedule = WarmUpAndDecay(1e-3, warmup=100, decay=0.5)
    rates = {first: schedule.at(first, first + 10, 1000) for first in (0, 90, 490, 500, 750, 990)}
    assert rates == pytest.approx({0: 1e-4, 90: 1e-3, 490: 1e-3, 500: 1e-3, 750: 5e-4, 990: 2e-5})
    assert replace(schedule, decay=0.0).at(990, 1000, 1000) == 1e-3


def test_the_inverse_square_root_halves_where_the_images_are_four_times_as_many() -> None:
    schedule = InverseSquareRoot(1e-3, warmup=100, constant=1000)
    rates = {last: schedule.at(last - 10, last, 10**9) for last in (50, 100, 1000, 4000, 16_000)}
    assert rates == pytest.approx({50: 5e-4, 100: 1e-3, 1000: 1e-3, 4000: 5e-4, 16_000: 2.5e-4})


def test_a_half_life_in_images_is_the_same_for_every_batch() -> None:
    """What is left of a weight after the half-life is a half; before twenty half-lives, of a twentieth of the images."""
    for batch in (10, 50):
        training = tiny_config(ema_half_life=100).training
        decays = [training.ema_decay(first, first + batch) for first in range(5000, 5100, batch)]
        assert math.prod(decays) == pytest.approx(0.5)
    assert training.ema_decay(990, 1000) == pytest.approx(0.5 ** (10 / 50))
    assert tiny_config(ema=0.9).training.ema_decay(0, 8) == 0.9


@dataclass(frozen=True)
class CosineDecay(LearningRate):
    peak: float = 1e-3

    def at(self, first: int, last: int, images: int) -> float:
        return 0.5 * self.peak * (1.0 + math.cos(math.pi * first / images))


def test_a_schedule_of_ones_own_is_followed_and_kept_in_the_run(tmp_path: Path) -> None:
    """With the square root of the ratio to the batch that it is for."""
    config = tiny_config(schedule=CosineDecay(1e-3), rate_batch=2)
    train(config, stripes(), tmp_path, CPU, ExecutionConfig(checkpoint_every=8))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [1e-3 * (1.0 + math.cos(math.pi * first / 48)) for first in range(0, 48, 8)]
    assert [line["learning_rate"] for line in lines] == pytest.approx(expected)
    assert load_config(tmp_path, types=[CosineDecay]) == config
    with pytest.raises(InputError, match=r"names the class CosineDecay, .*types=\[CosineDecay\]"):
        load_config(tmp_path)


@pytest.mark.slow
def test_every_image_of_every_step_is_corrupted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    config = tiny_config(images=80)
    example = Step.example

    def spy(self: Step, forward: ForwardProcess, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple:
        seen.extend(zip(level.tolist(), seed.tolist(), strict=True))
        return example(self, forward, u0, level, seed)

    monkeypatch.setattr(Step, "example", spy)
    ranks = Ranks(CPU)
    trainer = Trainer(config, TrainingState.initial(config, CPU), ranks, ExecutionConfig())
    log = StepLog(0, ranks)
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


class After(Observer):
    """Stops after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, images: int) -> None:
        self.steps -= 1

    def should_stop(self) -> bool:
        return self.steps == 0


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config, dataset = tiny_config(**RECIPE), stripes()
    assert train(config, dataset, tmp_path / "whole", CPU, ExecutionConfig(checkpoint_every=16))
    # Stopped after the third step, then after another, then finished; dropout is on.
    for steps in (3, 1):
        assert not train(config, dataset, tmp_path / "parts", CPU, ExecutionConfig(checkpoint_every=16), observers=[After(steps)])
    assert train(config, dataset, tmp_path / "parts", CPU, ExecutionConfig(checkpoint_every=16))
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert whole.keys() == parts.keys() and {"adam.enter.weight.step", "weighting.weight", "adam.weighting/weight.step"} < set(
        whole
    )
    assert whole["weighting.weight"].any() and not any(
        "weighting" in name for name in load_tensors(tmp_path / "whole/model.safetensors")
    )
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    for file in ("ema.safetensors", "model.safetensors", "prior.safetensors", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    images = [json.loads(line)["images"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert images == sorted(set(images)) and images[-1] == 48


class Pressed(Observer):
    """Ctrl-C, as Python raises it: after a step, or in the midst of one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def stepped(self, images: int) -> None:
        self.steps -= 1
        if not self.steps:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_saves_the_last_whole_step_and_is_raised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps; within the update of the weights, which is done first; and while a part of a batch is corrupted."""
    config, dataset = tiny_config(), stripes()
    train(config, dataset, tmp_path / "whole", CPU)
    with pytest.raises(KeyboardInterrupt):
        train(config, dataset, tmp_path / "run", CPU, observers=[Pressed(2)])
    assert checkpoints(tmp_path / "run") == [16] and not (tmp_path / "run" / ".lock").exists()
    for owner, name, saved in ((EMA, "update", [16, 24]), (Step, "example", [16, 24])):
        original = getattr(owner, name)

        def pressed(*arguments: object, original: Any = original) -> object:
            monkeypatch.undo()
            signal.raise_signal(signal.SIGINT)
            return original(*arguments)

        monkeypatch.setattr("diffusion.training.loop.check_step", lambda *_: None)
        monkeypatch.setattr(owner, name, pressed)
        with pytest.raises(KeyboardInterrupt):
            train(config, dataset, tmp_path / "run", CPU)
        assert checkpoints(tmp_path / "run") == saved
    assert train(config, dataset, tmp_path / "run", CPU) and equal(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
def test_ctrl_c_saves_no_weights_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> torch.Tensor:
        return torch.full((), math.nan, requires_grad=True)

    monkeypatch.setattr("diffusion.training.loop.check_step", lambda *_: None)
    monkeypatch.setattr(Step, "loss", broken)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(), stripes(), tmp_path / "run", CPU, observers=[Pressed(2)])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_second_training_in_a_folder_is_refused(tmp_path: Path) -> None:
    """At once, and the first one is not disturbed."""

    class Second(Observer):
        def checkpointed(self, images: int, pipeline: Pipeline) -> None:
            before = set(tmp_path.rglob("*"))
            with pytest.raises(InputError, match="another process works in this folder; wait until it has ended"):
                train(tiny_config(seed=4), stripes(), tmp_path, CPU)
            assert before <= set(tmp_path.rglob("*"))  # the checkpoint is still being written

    assert train(tiny_config(images=16), stripes(), tmp_path, CPU, observers=[Second()])
    assert train(tiny_config(images=24), stripes(), tmp_path, CPU) and checkpoints(tmp_path) == [16, 24]


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
__import__("torch._dynamo")  # as Adam does, in a second; the children have it then
folder, chance = pathlib.Path(sys.argv[1]), random.Random(0)

def go():
    train(tiny_config(images=480), stripes(), folder, torch.device("cpu"), ExecutionConfig(checkpoint_every=16, keep_every=80))

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
    time.sleep(chance.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for file in folder.rglob("[!.]*.safetensors"):
        load_tensors(file)
    print("killed after", seen()[-1:])
go()
folder = folder.with_name("whole")
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
    assert len(moments) == len(set(moments)) == 7 and not any("000000480" in moment for moment in moments)
    assert equal(tmp_path / "killed", tmp_path / "whole")
    assert checkpoints(tmp_path / "killed") == [80 * i for i in range(1, 6)] + [464, 480]
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
def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    example = Step.example

    def broken(self: Step, *arguments: object) -> tuple:
        inputs, target = example(self, *arguments)
        return inputs, target * float("nan" if len(target) > 2 else 1)

    message = (
        r"the loss is nan in step 7, at image 56: try a smaller learning rate; the last good checkpoint is .*000000048.safetensors$"
    )
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=message):
        patch.setattr(Step, "example", broken)
        train(tiny_config(images=96), stripes(), folder, CPU)
    assert checkpoints(folder) == [32, 48] and equal(folder, finished)
    with pytest.raises(ValueError, match="there is no checkpoint yet"):
        train(tiny_config(learning_rate=1.0, images=4000, clip=1e30), stripes(), tmp_path / "wild", CPU)


@pytest.mark.slow
def test_a_run_carried_out_in_another_way_is_the_same_run(finished: Path, tmp_path: Path) -> None:
    config, dataset = without_dropout(tiny_config(images=44, **RECIPE)), stripes()
    train(config, dataset, tmp_path / "once", CPU)
    train(config, dataset, tmp_path / "pieces", CPU, ExecutionConfig(accumulate=3))  # of 3, 3 and 2 images
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
    example, seen = Step.example, []

    def spy(self: Step, forward: ForwardProcess, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> tuple:
        result = example(self, forward, u0, level, seed)
        seen.append((torch.is_autocast_enabled("cpu"), {tensor.dtype for tensor in (u0, *result)}))
        return result

    monkeypatch.setattr(Step, "example", spy)
    outputs = []

    class Sampling(Observer):
        def checkpointed(self, images: int, pipeline: Pipeline) -> None:
            outputs.append(pipeline.sample(2))

    for precision in ("fp32", "bf16"):
        train(config, stripes(), tmp_path / precision, CPU, ExecutionConfig(precision=precision), observers=[Sampling()])
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
    monkeypatch.setattr(nn.Module, "compile", lambda self, options: compile_(self, backend="aot_eager"))
    config = without_dropout(tiny_config(images=32))
    train(config, stripes(), tmp_path / "plain", CPU)
    train(config, stripes(), tmp_path / "compiled", CPU, ExecutionConfig(compile=True))
    near(tmp_path / "plain", tmp_path / "compiled")
    assert everything(tmp_path / "plain").keys() == everything(tmp_path / "compiled").keys()


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_trained_as_it_is_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def backend(graph: object, inputs: object) -> None:
        raise RuntimeError("no compiler\nhere")

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, options: compile_(self, backend=backend))
    train(tiny_config(), stripes(), tmp_path / "plain", CPU)
    capsys.readouterr()
    train(tiny_config(), stripes(), tmp_path / "failed", CPU, ExecutionConfig(compile=True))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("torch.compile compiles the network") and "no compiler here" in second
    assert equal(tmp_path / "plain", tmp_path / "failed")


@pytest.mark.parametrize(("chosen", "compiled"), [(None, [False]), (True, [False]), (False, [])])
def test_on_cuda_the_network_is_compiled_unless_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, chosen: bool | None, compiled: list
) -> None:
    ranks, graphs = Ranks(CPU), []
    ranks.device = torch.device("cuda", 0)
    monkeypatch.setattr(nn.Module, "compile", lambda self, options: graphs.append(options["triton.cudagraphs"]))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    # A half of the batch at a time: no CUDA graph.
    Trainer(tiny_config(), TrainingState.initial(tiny_config(), CPU), ranks, ExecutionConfig(accumulate=2, compile=chosen))
    assert graphs == compiled and torch.backends.cudnn.benchmark


@pytest.mark.cuda
def test_no_step_waits_for_the_device() -> None:
    config, ranks = tiny_config(), Ranks(torch.device("cuda", 0))
    trainer = Trainer(config, TrainingState.initial(config, ranks.device), ranks, ExecutionConfig(accumulate=2))
    log = StepLog(0, ranks)
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

    monkeypatch.setattr(Step, "example", full)
    with pytest.raises(ValueError, match=r"cpu has not enough memory for 4 images at a time: .*--accumulate.*--precision bf16"):
        train(tiny_config(), stripes(), tmp_path, CPU, ExecutionConfig(accumulate=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_minutes": -1}, "checkpoint_minutes must be from 0 to 100000, got -1"),
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
        (replace(config, data="stripes[odd]"), r"data is stripes, not stripes\[odd\]"),
    ):
        with pytest.raises(ValueError, match=message):
            train(other, dataset, tmp_path, CPU)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


class Seen(Observer):
    images = 0

    def stepped(self, images: int) -> None:
        self.images = images


@pytest.mark.slow
def test_scores_are_logged_and_the_best_weights_kept_wherever_the_run_is_resumed(tmp_path: Path) -> None:
    """The distances are made up: best at 32 images. A run that stops after 24 of 48 has the same log and the same weights."""

    def run(folder: Path, images: int) -> None:
        config = without_dropout(tiny_config(images=48))
        config = replace(config, training=replace(config.training, images=images))
        distances = {16: 5.0, 32: 2.0, 48: 3.0}
        seen = Seen()
        train(
            config,
            stripes(),
            folder,
            CPU,
            ExecutionConfig(score_every=16, checkpoint_every=8),
            observers=[seen],
            score=lambda pipeline: distances[seen.images] + 0.0 * float(pipeline.sample(1).mean()),
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
    with pytest.raises(InputError, match=r"has no best.safetensors, which cli.train --score-every keeps"):
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


def test_what_killed_processes_left_half_written_is_removed(tmp_path: Path) -> None:
    """Not what is written by a process that lives, by one of another machine, or by others in their way."""
    from diffusion.files import MACHINE, write_json

    dead = [f".00003.999999999-{MACHINE}.part.png", f".data.999999998-{MACHINE}.part.json", f".log.999999999-{MACHINE}.part"]
    others = [f".a.{os.getppid()}-{MACHINE}.part.png", ".a.999999999-0.part.png", ".a.999999999.part.png", "a.part.png"]
    for name in (*dead, *others):
        (tmp_path / name).write_bytes(b"half")
    write_json(tmp_path / "new.json", {})
    assert set(files(tmp_path)) == {"new.json", *others}


class Own(nn.Module):
    """A user's network, with a norm that has averages and counts of its own, a tied weight, and one that is never trained."""

    def __init__(self, enter: nn.Module | None = None, inputs: int = 1, outputs: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(enter or nn.Conv2d(inputs, 4, 1), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, outputs, 1))
        self.tied = self.layers[0]
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.layers(u) * self.frozen


@pytest.mark.slow
def test_a_users_network_trains_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config, how = tiny_config(network=Own()), ExecutionConfig(checkpoint_every=16)
    assert train(config, stripes(), tmp_path / "whole", CPU, how)
    assert not train(config, stripes(), tmp_path / "parts", CPU, how, observers=[After(3)])
    assert train(config, stripes(), tmp_path / "parts", CPU, how)
    assert equal(tmp_path / "whole", tmp_path / "parts")
    tensors = load_tensors(tmp_path / "whole" / "ema.safetensors")
    assert tensors["layers.1.num_batches_tracked"] == 6 and tensors["frozen"] == 1.0
    assert torch.equal(tensors["tied.weight"], tensors["layers.0.weight"])
    assert Pipeline.from_pretrained(tmp_path / "whole", network=Own()).sample(2).shape == (2, 1, 8, 8)


class Pooled(Own):
    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return super().forward(u, level)[..., ::2, ::2]


class Alike(Own):
    """Takes the level of the first image for all."""

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return super().forward(u, level)[:1]


class Paired(Own):
    def forward(self, u: torch.Tensor, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return u, u


class Doubling(Own):
    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return super().forward(u.mul_(2.0), level)


class Undefined(Own):
    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return super().forward(u, level) / (level > 1)[:, None, None, None]


@pytest.mark.parametrize(
    ("network", "classes", "message"),
    [
        (Own(outputs=2), (), r"Own called as .* gives float32 \[2, 2, 8, 8\]; expected a tensor of shape \[2, 1, 8, 8\]"),
        (Pooled(), (), r"Pooled .* gives float32 \[2, 1, 4, 4\]"),
        (Alike(), (), r"Alike .* gives float32 \[1, 1, 8, 8\]"),
        (Paired(), (), r"Paired .* gives tuple; expected"),
        (Doubling(), (), r"Doubling called as .* changes its input in place; clone it first"),
        (Undefined(), (), r"Undefined called as .* gives a tensor with values that are NaN or infinite"),
        (Own(nn.LazyConv2d(4, 1)), (), r"Own: layers.0.weight has no shape yet \(a lazy module\)"),
        (Own(nn.Conv2d(1, 4, 1, dtype=torch.complex64)), (), r"Own: layers.0.weight is complex"),
        (nn.Identity(), (), r"Identity has no weights to train"),
        (Own(inputs=3), (), r"Own called as \(images, levels\) .*\[2, 1, 8, 8\] fails: .*expected input.* to have 3"),
        (Own(), ("a", "b"), r"Own called as \(images, levels, labels\) .* fails: .*takes 3 positional arguments but 4 were given"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, network: nn.Module, classes: tuple[str, ...], message: str
) -> None:
    pairs = [(picture, number % 2) for number, picture in enumerate(stripes())]
    with pytest.raises(InputError, match=message) as error:
        train(tiny_config(network=network, classes=classes), pairs, tmp_path / "run", CPU)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


class Same(Operator):
    """Leaves images as they are, wrongly in the one way or the other."""

    levels = 6

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0.clone()


class InPlace(Same):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0.mul_(0.5)


class Broken(Same):
    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 / (level < 6)[:, None, None, None]


class NegativeNoise(ConstantNoise):
    def noise_power(self, size: Size) -> torch.Tensor:
        return torch.full(tuple(size), -1.0)


class FromZero(Uniform):
    def draw(self, forward: ForwardProcess, seed: torch.Tensor) -> torch.Tensor:
        return super().draw(forward, seed) - 1


class Unwritten(Denoiser):
    pass


class Whole(CleanImage):
    def target(self, forward: ForwardProcess, u0: torch.Tensor, u: torch.Tensor, level: Level, seed: torch.Tensor) -> torch.Tensor:
        return u0.mean(dim=1)


class OfAll(CleanImage):
    def loss(self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, *_: Any) -> torch.Tensor:
        return summed((prediction - target).square()).mean()


class Detached(CleanImage):
    def loss(self, forward: ForwardProcess, prediction: torch.Tensor, target: Any, *_: Any) -> torch.Tensor:
        return summed((prediction - target).square()).detach()


class Cut(CleanImage):
    def clean(self, *arguments: Any) -> torch.Tensor:
        return super().clean(*arguments)[..., :4]


class Halving(Sampler):
    def step(self, reverse: Reverse, u: torch.Tensor, level: int, below: int, noise: UnitNoise) -> torch.Tensor:
        return u[..., ::2]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"operator": InPlace()}, "InPlace.apply changes its images in place; clone them first"),
        ({"operator": Broken()}, "Broken.apply gives images with values that are NaN or infinite"),
        ({"scales": NegativeNoise(0.1)}, "NegativeNoise.noise_power gives noise with values that are NaN"),
        ({"density": FromZero()}, "FromZero.draw gives levels 0 to 5; expected 1 to 6"),
        ({"denoiser": Unwritten()}, r"Unwritten.example fails: Unwritten needs a method target\(forward"),
        ({"denoiser": Whole()}, r"Whole.target gives float32 \[2, 8, 8\]; expected a target of shape \[2, 1, 8, 8\]"),
        ({"denoiser": OfAll()}, r"OfAll.loss gives float32 \[\]; expected a loss for each image of shape \[2\]"),
        ({"denoiser": Detached()}, "the gradient of Detached.loss with UNet fails: RuntimeError"),
        ({"denoiser": Cut()}, r"Cut.clean gives float32 \[2, 1, 8, 4\]; expected images of shape"),
        ({"sampler": Sampler()}, r"Sampler.step fails: Sampler needs a method step\(reverse"),
        ({"sampler": Halving()}, r"Halving.step gives float32 \[2, 1, 8, 4\]; expected images"),
        ({"schedule": LearningRate()}, r"LearningRate.at fails: LearningRate needs a method at\("),
        ({"schedule": CosineDecay(math.nan)}, "CosineDecay.at gives nan as the learning rate of the first step"),
    ],
)
def test_a_part_that_does_not_fit_is_named_before_anything_is_written(tmp_path: Path, parts: dict, message: str) -> None:
    parts = {"operator": Same(), "scales": ConstantNoise(0.1), "denoiser": CleanImage(), "density": Uniform()} | parts
    schedule = {"schedule": parts.pop("schedule")} if "schedule" in parts else {}
    config = tiny_config(Method(**{"sampler": Resample(eta=0.0)} | parts), **schedule)
    network, before = config.build_network(), torch.random.get_rng_state()
    with pytest.raises(InputError, match=message) as error:
        check_step(config, network, stripes(), CPU)
    assert "\n" not in str(error.value) and torch.equal(before, torch.random.get_rng_state())
    with pytest.raises(InputError, match=message):
        train(config, stripes(), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": lambda pipeline: 1.0}, r"score and ExecutionConfig\(score_every=...\) go together"),
        ({"execution": ExecutionConfig(score_every=8)}, r"score and ExecutionConfig\(score_every=...\) go together"),
        ({"observers": [print]}, "observers must be a list of objects that subclass .*Observer, got <built-in function print>"),
        ({"observers": [Observer]}, "observers must be a list"),
        ({"observers": Observer()}, "observers must be a list"),
        ({"config": "digits"}, "config must be a diffusion.RunConfig, got str"),
        ({"device": f"cuda:{torch.cuda.device_count()}"}, "torch sees . CUDA devices here; take cpu"),
        ({"device": "gpu"}, "device must be cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        train(dataset=stripes(), folder=tmp_path / "run", **{"config": tiny_config(), "device": CPU} | options)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_score_may_be_any_number_and_nan_is_never_the_best(tmp_path: Path) -> None:
    given = iter([math.nan, np.float32(3.0), torch.tensor(2.0), math.nan, None])
    how = ExecutionConfig(score_every=8, checkpoint_every=8)
    with pytest.raises(InputError, match="score gives NoneType; expected a number"):
        train(tiny_config(), stripes(), tmp_path, CPU, how, score=lambda pipeline: next(given))
    assert json.loads((tmp_path / "best.json").read_text()) == {"images": 24, "frechet_distance": 2.0}
    early = EarlyStop(2)
    early.scores = [math.nan, 3.0, 2.0, math.nan]
    assert not early.should_stop()
    early.scored(40, math.nan)
    assert early.should_stop()


@dataclass(frozen=True)
class Plain(LearningRate):
    rate: float = 1e-3
    extra: float = math.nan

    def at(self, first: int, last: int, images: int) -> np.float32:  # type: ignore[override]
        return np.float32(self.rate)


def test_a_run_is_the_same_when_its_file_means_the_same(tmp_path: Path) -> None:
    """A field that an older file lacks has its default, and NaN equals NaN; a run of another class is compared as text."""
    config = tiny_config(schedule=Plain(), images=8)
    assert train(config, stripes(), tmp_path, CPU)
    file = tmp_path / "config.json"
    check_same_run(tmp_path, config)
    values = json.loads(file.read_text())
    del values["training"]["schedule"]["extra"], values["method"]["sampler"]["spacing"]
    file.write_text(json.dumps(values))
    check_same_run(tmp_path, tiny_config(schedule=Plain(), images=16))
    with pytest.raises(InputError, match=r"training.schedule.rate is 0.001, not 0.002"):
        check_same_run(tmp_path, tiny_config(schedule=Plain(2e-3)))
    with pytest.raises(InputError, match=r"training.schedule.extra is nan, not 1.0|extra is NaN, not 1.0"):
        check_same_run(tmp_path, tiny_config(schedule=Plain(extra=1.0)))
    with pytest.raises(InputError, match="holds another run"):
        check_same_run(tmp_path, tiny_config(schedule=CosineDecay()))


def test_labels_and_classes_must_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [(picture, number % 3) for number, picture in enumerate(stripes())]
    for pictures, classes, message in (
        (stripes(), ("a", "b"), "list: not every image has a class"),
        (pairs, ("a", "b"), r"list: .*label 2.*; expected 0 to 1"),
        (stripes(size=16), (), "list: .*1 x 16 x 16; expected 1 x 8 x 8"),
    ):
        with pytest.raises(InputError, match=message) as error:
            train(tiny_config(classes=classes), pictures, tmp_path / "run", CPU)
        assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    assert train(tiny_config(images=8), pairs, tmp_path / "run", CPU)
    assert "list: the labels are not learned" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_begins_from_the_weights_of_another(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On other pictures of another size and with classes, which alone begin anew; killed and resumed as any run."""
    pairs = [(picture, number % 2) for number, picture in enumerate(stripes(size=16))]
    config, begun = tiny_config(size=16, classes=("a", "b")), load_tensors(finished / "ema.safetensors")
    seen: dict[str, torch.Tensor] = {}

    class Start(Observer):
        def started(self, folder: Path, config: object, images: int) -> None:
            seen.update(load_tensors(folder / "ema.safetensors") if images else {})

        def checkpointed(self, images: int, pipeline: Pipeline) -> None:
            seen.update(pipeline.network.state_dict())

    slow = replace(config, training=replace(config.training, schedule=WarmUpAndDecay(1e-12, 0)))
    assert not train(slow, pairs, tmp_path / "slow", CPU, init=finished, observers=[After(1), Start()])
    assert all(torch.allclose(seen[name], tensor, atol=1e-6) for name, tensor in begun.items())
    said = capsys.readouterr().out
    assert f"the weights are those of {finished}, except label.weight (missing there, [3, 32] here)\n" in said
    assert json.loads((tmp_path / "slow" / "init.json").read_text()) == {
        "init": str(finished),
        "new": ["label.weight (missing there, [3, 32] here)"],
    }
    how = ExecutionConfig(checkpoint_every=16)
    assert train(config, pairs, tmp_path / "whole", CPU, how, init=finished)
    assert not train(config, pairs, tmp_path / "parts", CPU, how, init=finished, observers=[After(3)])
    capsys.readouterr()
    assert train(config, pairs, tmp_path / "parts", CPU, how, init=finished)
    assert "began from" not in capsys.readouterr().out and equal(tmp_path / "whole", tmp_path / "parts")
    assert train(config, pairs, tmp_path / "parts", CPU, how, init="digits")
    assert f"{tmp_path / 'parts'} began from {finished} and goes on; digits is left aside" in capsys.readouterr().out
    assert train(config, pairs, tmp_path / "parts", CPU, how)
    assert equal(tmp_path / "whole", tmp_path / "parts")


def test_weights_come_from_a_bundled_model_or_a_pipeline_and_what_does_not_fit_is_named(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny_config(images=8), stripes(), tmp_path / "one", CPU, init=Pipeline.from_pretrained(finished))
    assert "the weights are those of a pipeline of beyond-blur on stripes\n" in capsys.readouterr().out
    train(tiny_config(images=8, schedule=CosineDecay()), stripes(), tmp_path / "own", CPU)
    wide = replace(tiny_config(images=8), network=replace(tiny_config().network, width=24, multipliers=(1, 2, 2)))
    train(wide, stripes(), tmp_path / "two", CPU, init="digits")
    said = capsys.readouterr().out
    assert "the weights are those of digits, except enter.weight ([24, 2, 3, 3] there, [24, 1, 3, 3] here)" in said
    train(tiny_config(images=8), stripes(), tmp_path / "few", CPU, init="digits")
    assert re.search(r"\d of \d+ tensors are taken from digits, except ", capsys.readouterr().out)
    for init, network, message in (
        (finished, Own(), "none of its weights fit this network in name and shape"),
        (
            tmp_path / "own",
            Own(),
            r"names the class CosineDecay, .*; or load it first, init=Pipeline.from_pretrained\('.*', types=",
        ),
        ("nowhere", tiny_config().network, "nowhere: no such run folder"),
    ):
        with pytest.raises(InputError, match=message):
            train(tiny_config(network=network), stripes(), tmp_path / "three", CPU, init=init)
        assert not (tmp_path / "three").exists()
