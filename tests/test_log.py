from __future__ import annotations

import time

import pytest
import torch

from diffusion.training.log import StepLog, Stopwatch
from diffusion.training.ranks import Ranks

CPU = torch.device("cpu")


def test_a_line_holds_the_means_of_its_steps() -> None:
    log = StepLog(100, Ranks(CPU))
    for step, (loss, norm) in enumerate([(3.0, 1.0), (1.0, 2.0)], start=11):
        with log.watch.part("corruption"):
            time.sleep(0.02)
        with log.watch.part("network"):
            time.sleep(0.01)
        with log.watch.part("network"):
            time.sleep(0.02)
        log.add(step, 10 * step, torch.tensor(loss), torch.tensor(norm))
    line = log.line(1e-3)
    assert (line["images"], line["step"], line["loss"], line["gradient_norm"], line["learning_rate"]) == (120, 12, 2.0, 1.5, 1e-3)
    assert 20 <= line["corruption_ms"] < line["network_ms"] and line["network_ms"] >= 30
    assert line["corruption_ms"] + line["network_ms"] <= 1e3 * (20 / line["images_per_second"]) / 2 + 1
    assert not log.steps


@pytest.mark.parametrize(("loss", "norm", "what"), [("nan", 1, "loss is nan"), (1, "inf", "norm of the gradient is inf")])
def test_the_first_step_that_is_not_finite_is_named(loss: float, norm: float, what: str) -> None:
    log = StepLog(0, Ranks(CPU))
    log.add(1, 8, torch.tensor(1.0), torch.tensor(1.0))
    for step in (2, 3):
        log.add(step, 8 * step, torch.tensor(float(loss)), torch.tensor(float(norm)))
    with pytest.raises(ValueError, match=f"the {what} in step 2, at image 16: try a smaller learning rate"):
        log.line(1e-3)


@pytest.mark.cuda
def test_events_time_the_device_and_not_the_host() -> None:
    device = torch.device("cuda", 0)
    watch = Stopwatch(device)
    x = torch.rand((4096, 4096), device=device)
    torch.cuda.synchronize()
    start = time.perf_counter()
    with watch.part("network"):
        for _ in range(50):
            x = x @ x
            x = x / x.norm()
    queued = 1e3 * (time.perf_counter() - start)
    assert watch.read()["network"] > queued
    assert watch.read() == {}
