"""Inverse problems with a bundled model as the prior: inpainting and super-resolution; any linear measurement works alike."""

from pathlib import Path

import torch
import tyro
from torch.nn.functional import avg_pool2d, interpolate

from cli.render import save_grid
from diffusion import Measurement, Pipeline, open_dataset, solve


def main(out: Path = Path("outputs/inpainting"), pictures: int = 4, samples: int = 4) -> None:
    """A row for each picture: the truth, what was measured, and what it may have been."""
    pipeline = Pipeline.from_pretrained("digits")
    digits = open_dataset("digits")
    truth = torch.stack([torch.from_numpy(digits[100 * i]) for i in range(1, pictures + 1)])

    hole = torch.ones(16, 16)
    hole[5:12, 4:12] = 0.0
    problems = {
        "inpainting": Measurement(lambda x: x * hole, lambda y: y * hole),
        "super-resolution": Measurement(lambda x: avg_pool2d(x, 2)),
    }
    for name, measurement in problems.items():
        rows = []
        for number, x in enumerate(truth):
            y = measurement.forward(x[None])[0]
            y = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(number))
            drawn = solve(pipeline, y, measurement, noise=0.02, images=samples, seed=number)
            rows += [x[None], interpolate(y[None], (16, 16)), drawn]
            error = (measurement.forward(drawn) - y).square().mean().sqrt()
            print(
                f"{name}, picture {number}: off the measurement by {error:.3f} (noise 0.02), off the truth by "
                f"{(drawn.mean(dim=0) - x).square().mean().sqrt():.3f}"
            )
        save_grid(out / f"{name}.png", torch.cat(rows).clamp(0.0, 1.0), columns=2 + samples)


if __name__ == "__main__":
    tyro.cli(main)
