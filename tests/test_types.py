"""What type checkers say to people who use the library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = """
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffusion import (
    METHODS, CleanImage, ConstantNoise, EvaluationConfig, GivenNetwork, Measurement, Method, NetworkConfig, Observer, Operator,
    Pipeline, Resample, RunConfig, Size, TrainingConfig, Uniform, WarmUpAndDecay, as_dataset, evaluate, named_method, open_dataset,
    preset, solve, train,
)
from lbm_warp import AdvectionDiffusion, CurlNoise, FieldRequest, Schedule, Turbulence, check_operator


@dataclass(frozen=True)
class Half(Operator):
    levels: int = 10
    linear = True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return u0 * (1.0 - 0.5 * level / self.levels)[:, None, None, None].to(u0)


class Wind(Turbulence):
    def field(self, ask: FieldRequest) -> torch.Tensor:
        return torch.ones((len(ask.seed), 2, ask.height, ask.width), device=ask.device)


class Log(Observer):
    def logged(self, line: dict[str, float]) -> None:
        print(line["loss"])


schedule = Schedule.geometric(sigma_min=0.5, sigma_max=20.0, levels=200)
operator = AdvectionDiffusion(schedule, peclet=8.0, turbulence=CurlNoise(octaves=4))
u0 = torch.rand(2, 3, 32, 32)
u_k: torch.Tensor = operator(u0, level=120, seed=[1, 2])
before, after = operator.pair(u0, level=torch.tensor([3, 4]), seed=0)
for number, u in operator.trajectory(u0, seed=7):
    print(number, u.mean().item())
print(check_operator(Half(), (16, 16)))
digits = open_dataset("digits")
method = Method(Half(), ConstantNoise(0.02), CleanImage(), Uniform(), Resample(eta=0.0))
config = RunConfig("half", digits.name, digits.channels, digits.size, method, NetworkConfig(width=16), TrainingConfig(images=64))
config = replace(config, method=named_method("fluid").changed(peclet=2.0), training=TrainingConfig(schedule=WarmUpAndDecay(1e-4)))
done: bool = train(config, digits, Path("runs/x"), observers=[Log()])
pipeline = Pipeline.from_pretrained("runs/x", types=[Half])
images: torch.Tensor = pipeline.with_sampler(Resample(eta=0.0, steps=20)).sample(4, seed=1)
drawn: torch.Tensor = solve(pipeline, images[0], Measurement(lambda x: x), noise=0.1)
scores = evaluate(pipeline, digits, EvaluationConfig(num=32))
print(scores["scores"] if scores else None, list(METHODS), preset("digits").size.shorter, Size.of(16), as_dataset([u0[0]]).channels)
network = GivenNetwork.of(torch.nn.Conv2d(1, 1, 1))
"""


@pytest.mark.slow
def test_a_script_of_public_calls_and_the_examples_pass_the_strictest_check(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # An installed library is not reported on, only what its user writes.
    examples = [path for path in (ROOT / "examples").glob("*.py") if path.stem != "diffusers_unet"]
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", str(script), *map(str, examples)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
