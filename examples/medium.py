"""Walls, sources and a diffusivity that varies: heat finds its way through a maze, and a photograph keeps its eyes."""

from pathlib import Path

import numpy as np
import torch
import tyro
from matplotlib import colormaps
from PIL import Image

from diffusion.data.images import read_image
from diffusion.files import asset
from lbm_warp import AdvectionDiffusion, Medium, Schedule


def maze(rooms: int, seed: int) -> np.ndarray:
    """Walls of a maze with one way between any two rooms, bool [2 rooms + 1, 2 rooms + 1]: a walk that turns back at dead ends."""
    random, walls, way = np.random.default_rng(seed), np.ones((2 * rooms + 1, 2 * rooms + 1), dtype=bool), [(1, 1)]
    while way:
        y, x = way[-1]
        walls[y, x] = False
        around = ((y - 2, x), (y + 2, x), (y, x - 2), (y, x + 2))
        new = [(j, i) for j, i in around if 0 < min(j, i) and max(j, i) < len(walls) and walls[j, i]]
        if not new:
            way.pop()
            continue
        way.append(new[random.integers(len(new))])
        walls[(y + way[-1][0]) // 2, (x + way[-1][1]) // 2] = False
    return walls


def main(out: Path = Path("outputs/medium.jpg")) -> None:
    """Heat from the middle of a maze at four times; a photograph, out of focus, stirred, and stirred around its eyes."""
    widths = np.where(np.arange(19) % 2, 11, 5)
    walls = torch.from_numpy(maze(9, seed=1).repeat(widths, axis=0).repeat(widths, axis=1))
    source = torch.zeros(1, 1, *walls.shape)
    source[..., 69:80, 69:80] = 1.0  # the room in the middle
    schedule = Schedule(len(walls) * np.array([0.0, 0.15, 0.4, 0.8, 2.0]))
    heat, above = AdvectionDiffusion(schedule, peclet=0.0, medium=Medium(walls=walls, source=source)), []
    for _, u in list(heat.trajectory(torch.zeros_like(source), seed=0))[1:]:
        colours = colormaps["inferno"](((u / u.max())[0, 0] ** 0.4).numpy())[..., :3]
        above.append(np.where(walls[..., None], 0.88, colours).repeat(2, axis=0).repeat(2, axis=1))
    photograph = torch.from_numpy(read_image(asset("chelsea.png"), "RGB")[:, 1:299, 60:358].copy())[None]
    y, x = torch.meshgrid(torch.arange(298.0), torch.arange(298.0), indexing="ij")
    left, right = (torch.hypot(x - i, y - j) for i, j in ((112.0, 116.0), (258.0, 137.0)))
    focus = Medium(alpha=((torch.minimum(left, right) / 60.0 - 1.0) / 2.0).clamp(0.0, 1.0) ** 2)
    eyes = Medium(walls=(left < 34.0) | (right < 27.0))
    below = [photograph[0].permute(1, 2, 0).numpy()]
    for sigma, peclet, medium in ((14.0, 0.0, focus), (5.0, 250.0, None), (5.0, 250.0, eyes)):
        u = AdvectionDiffusion(Schedule([0.0, sigma]), peclet=peclet, medium=medium)(photograph, 1, seed=7)
        below.append(u[0].permute(1, 2, 0).numpy())
    framed = np.pad(np.stack([above, below]), ((0, 0), (0, 0), (4, 4), (4, 4), (0, 0)), constant_values=1.0).clip(0.0, 1.0)
    sheet = np.concatenate(np.concatenate(framed, axis=1), axis=1)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255.0 * sheet).astype(np.uint8)).save(out, quality=88)


if __name__ == "__main__":
    tyro.cli(main)
