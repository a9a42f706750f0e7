"""A corruption of one's own: pixels are lost one after another, in an order that the seed draws."""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from cli.render import save_grid
from diffusion import (
    CleanImage,
    ConstantNoise,
    ExecutionConfig,
    Method,
    Operator,
    Pipeline,
    Resample,
    RunConfig,
    TrainingConfig,
    Uniform,
    open_dataset,
    train,
)
from lbm_warp import check_operator


@dataclass(frozen=True)
class Masking(Operator):
    """Level k loses the share k / K of the pixels: they become black."""

    levels: int = 40
    linear, random = True, True

    def apply(self, u0: torch.Tensor, level: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        order = [torch.rand(u0.shape[2:], generator=torch.Generator().manual_seed(int(one))) for one in seed]
        kept = torch.stack(order)[:, None] >= level[:, None, None, None] / self.levels
        return u0 * kept.to(u0)


METHOD = Method(Masking(), ConstantNoise(0.02), CleanImage(), Uniform(), Resample(eta=0.0, steps=20))


def main(out: Path = Path("runs/masking"), images: int = 40_000) -> None:
    """Train on the digits (the same command goes on with an interrupted run), then sample, and show a few steps of the way."""
    print(check_operator(METHOD.operator, (16, 16), channels=1))
    digits = open_dataset("digits")
    config = RunConfig("masking", digits.name, digits.channels, digits.size, METHOD, training=TrainingConfig(images=images))
    train(config, digits, out, execution=ExecutionConfig(checkpoint_every=max(1, images // 4)))

    pipeline = Pipeline.from_pretrained(out, types=[Masking])
    way: list[torch.Tensor] = []
    samples = pipeline.sample(8, callback=lambda level, u: way.append(u.clone()))
    black = [float((u < 0.1).float().mean()) for u in way]
    print("share of dark pixels on the way:", " ".join(f"{share:.2f}" for share in black))
    save_grid(out / "way.png", torch.cat([*way[::5], samples]), columns=8)


if __name__ == "__main__":
    tyro.cli(main)
