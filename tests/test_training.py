from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion.checkpoint import load_tensors
from diffusion.ema import EMA
from diffusion.process import FLOWS
from diffusion.rng import below, seeds
from diffusion.training import TrainingState, reconstruction_loss, train, training_step
from tests.runs import stripes, tiny_config, without_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("process", FLOWS)
def test_loss_at_initialisation_is_its_closed_form(process: str) -> None:
    """A network that predicts no correction leaves sum (u_k + noise - u_{k-1})^2."""
    config = tiny_config(process)
    u0 = torch.from_numpy(np.stack(stripes()))
    seed = torch.arange(len(u0))
    level = 1 + below(config.process.levels, seed, "level")
    loss = reconstruction_loss(config.build_network(), u0, level, seed, config.process)
    corrupted, target = config.process.training_pair(u0, level, seed)
    assert loss.item() == pytest.approx((corrupted - target).square().sum().item() / len(u0), rel=1e-6)


def test_one_batch_is_learnt_by_heart() -> None:
    """The same few images, flows and levels over and over: the loss falls to a small part of what it was."""
    config = without_dropout(tiny_config())
    torch.manual_seed(0)
    network = config.build_network()
    optimiser = torch.optim.Adam(network.parameters(), lr=4e-3)
    u0 = torch.from_numpy(np.stack(stripes(4)))
    level, seed = torch.tensor([1, 3, 5, 6]), torch.arange(4)
    losses = []
    for _ in range(300):
        loss = reconstruction_loss(network, u0, level, seed, config.process)
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
        average.update(network)
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
        assert average.network.weight.item() == pytest.approx(expected, rel=1e-5)


def test_every_image_of_every_step_is_corrupted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    config = tiny_config()
    pair = type(config.process).training_pair

    def spy(self, u0, level, seed):
        seen.extend(zip(level.tolist(), seed.tolist(), strict=True))
        return pair(self, u0, level, seed)

    monkeypatch.setattr(type(config.process), "training_pair", spy)
    network = config.build_network()
    state = TrainingState(network, EMA(network, 0.9), torch.optim.Adam(network.parameters()))
    for _ in range(10):
        training_step(state, torch.from_numpy(np.stack(stripes(8))), config)
    assert len({seed for _, seed in seen}) == 80
    assert {level for level, _ in seen} == set(range(1, 7))
    expected = seeds(config.training.seed, "image", np.arange(80)).tolist()
    assert [seed for _, seed in seen] == expected


def everything(folder: Path) -> dict[str, torch.Tensor]:
    return load_tensors(folder / "training.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config, dataset = tiny_config(), stripes()
    assert train(config, dataset, tmp_path / "whole", CPU, checkpoint_every=16)
    # Stopped after the third step, then after another, then finished; dropout is on.
    for answer in ([False, False, True], [True]):
        answers = iter(answer)
        assert not train(config, dataset, tmp_path / "parts", CPU, checkpoint_every=16, should_stop=lambda a=answers: next(a))
    assert train(config, dataset, tmp_path / "parts", CPU, checkpoint_every=16)
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert whole.keys() == parts.keys() and any(name.startswith("adam.") for name in whole)
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    for file in ("ema.safetensors", "model.safetensors", "prior.safetensors", "config.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "parts" / file).read_bytes(), file
    images = [json.loads(line)["images"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert images == sorted(set(images)) and images[-1] == 48


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    config, dataset = tiny_config(), stripes()
    train(config, dataset, tmp_path / "run", CPU)
    longer = replace(config, training=replace(config.training, images=64))
    assert train(longer, dataset, tmp_path / "run", CPU)
    train(longer, dataset, tmp_path / "once", CPU)
    once, grown = everything(tmp_path / "once"), everything(tmp_path / "run")
    assert all(torch.equal(once[name], grown[name]) for name in once)


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """SIGKILL at a random moment, three times over; what is on the disk is whole and leads to the same weights."""
    script = (
        "import sys, pathlib, torch; torch.set_num_threads(1); from tests.runs import *; from diffusion.training import train\n"
        "train(tiny_config(images=4000), stripes(), pathlib.Path(sys.argv[1]), torch.device('cpu'), checkpoint_every=200)"
    )
    command = [sys.executable, "-c", script]
    root = Path(__file__).parent.parent
    chance = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([*command, tmp_path / "killed"], cwd=root, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (tmp_path / "killed" / "training.safetensors").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 2.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for file in (tmp_path / "killed").glob("[!.]*.safetensors"):
            load_tensors(file)
    for name in ("killed", "whole"):
        subprocess.run([*command, tmp_path / name], cwd=root, check=True, capture_output=True)
    killed, whole = everything(tmp_path / "killed"), everything(tmp_path / "whole")
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    config = tiny_config()
    train(config, stripes(), tmp_path, CPU)
    good = (tmp_path / "training.safetensors").read_bytes()
    broken = [np.full_like(picture, np.nan) for picture in stripes()]
    longer = replace(config, training=replace(config.training, images=96))
    with pytest.raises(ValueError, match=r"the loss is nan at image 96.*last checkpoint"):
        train(longer, broken, tmp_path, CPU)
    assert (tmp_path / "training.safetensors").read_bytes() == good


def test_a_folder_with_another_run_is_refused(tmp_path: Path) -> None:
    config, dataset = tiny_config(), stripes()
    train(config, dataset, tmp_path, CPU)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()}
    for other, message in (
        (tiny_config(seed=4), "its training has seed = 3, this one 4"),
        (tiny_config("ihd"), "its process has peclet = 0.1, this one 0.0"),
        (replace(config, network=replace(config.network, width=16)), "its network has width = 8, this one 16"),
        (replace(config, data="dots"), "its data is stripes, this one's dots"),
    ):
        with pytest.raises(ValueError, match=message):
            train(other, dataset, tmp_path, CPU)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir() if file.is_file()} == before


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
