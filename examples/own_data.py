"""Data of one's own, a torch Dataset of (image, label) pairs, with a score of one's own, a logger and a learning rate."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch.utils.data import Dataset

import diffusion
from cli.render import save_grid


class Discs(Dataset[tuple[torch.Tensor, int]]):
    """Discs on the left (class 0) or on the right (class 1)."""

    def __len__(self) -> int:
        return 2000

    def __getitem__(self, number: int) -> tuple[torch.Tensor, int]:
        drawn = torch.rand(3, generator=torch.Generator().manual_seed(number))
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
        distance = torch.hypot(y - 5.0 - 6.0 * drawn[0], x - (4.0 if number % 2 == 0 else 11.0))
        return ((0.4 + 0.6 * drawn[2]) * torch.sigmoid(2.0 * (1.5 + 2.5 * drawn[1] - distance)))[None], number % 2


@dataclass(frozen=True)
class Cosine(diffusion.LearningRate):
    peak: float = 2e-3

    def at(self, first: int, last: int, images: int) -> float:
        return 0.5 * self.peak * (1.0 + math.cos(math.pi * first / images))


class Losses(diffusion.Observer):  # a logger, such as wandb.log(line)
    def logged(self, line: dict[str, float]) -> None:
        print(f"  image {line['images']:.0f}: loss {line['loss']:.3g}")


def left_and_right(images: torch.Tensor) -> torch.Tensor:
    """Features: the brightness of both halves, uint8 [N, 1, 16, 16] to float32 [N, 2]."""
    return images.view(-1, 16, 2, 8).float().mean(dim=(1, 3)) / 255.0


def main(out: Path = Path("runs/discs"), images: int = 40_000, scored: int = 200) -> None:
    """Train with classes (the same command goes on with an interrupted run), sample both, score."""
    preset, training = diffusion.preset("digits"), diffusion.TrainingConfig(images, schedule=Cosine())
    config = replace(preset, data="discs", training=training, classes=("left", "right"))
    diffusion.train(config, Discs(), out, observers=[Losses()])
    pipeline = diffusion.Pipeline.from_pretrained(out, types=[Cosine])
    save_grid(out / "samples.png", pipeline.sample(16, label="all"), columns=2)
    report = diffusion.evaluate(pipeline, Discs(), diffusion.EvaluationConfig(num=scored), features=left_and_right)
    print("Frechet distance:", report and report["scores"]["frechet_distance"])


if __name__ == "__main__":
    tyro.cli(main)
