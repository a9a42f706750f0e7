"""Write one page that shows every process: pictures, a film, its equation, code that runs, and its paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from cli import console, render
from cli.compare import describe
from cli.scene import PHOTOGRAPH
from cli.video import save_video, there_and_back
from diffusion import specs
from diffusion.data.dataset import evenly_spaced
from diffusion.data.images import read_image, resize_shorter
from diffusion.files import whole_file
from diffusion.methods import METHODS, named_method
from lbm_warp.checks import amount, check_integer

CAPTIONS = ("clean", *(f"k / K = {part / 5:g}" for part in range(1, 6)))
EQUATION = "u<sub>k</sub> = m + s<sub>k</sub> (A<sub>k</sub>(u<sub>0</sub>) &minus; m) + &sigma;<sub>k</sub> ε"
OPERATOR = "A<sub>k</sub>: ∂u/∂t + ∇·(v u) = ∇·(&alpha; ∇u) up to level k, m = ½, ε ~ N(0, 1)"


class Entry(NamedTuple):
    """What the page says of a process."""

    title: str
    special: str
    """The equation's special case, as HTML."""
    about: str
    paper: str
    link: str


GRUSZCZYNSKI = ("G. Gruszczynski et al., Beyond Blur: A Fluid Perspective on Generative Diffusion Models, ICCV 2025", "2506.16827")
ENTRIES: Mapping[str, Entry] = {
    "fluid": Entry(
        "Fluid",
        "∇·v = 0, Pe = 4, s<sub>k</sub>&sup2; + 4 &sigma;<sub>k</sub>&sup2; = 1, log(s<sub>k</sub>/&sigma;<sub>k</sub>) even in k",
        "This project's own process: gentle transport, blur and noise; the network predicts what a Wiener filter leaves over.",
        *GRUSZCZYNSKI,
    ),
    "beyond-blur": Entry(
        "Beyond Blur",
        "v: moving waves, Pe = 0.1, A<sub>k</sub>(u + c) &minus; c with c = 9.5, s<sub>k</sub> = 1, &sigma;<sub>k</sub> = 0.01",
        "A compressible flow acts on a background: transport, and noise with the spectrum of the flow.",
        *GRUSZCZYNSKI,
    ),
    "beyond-blur-frozen": Entry(
        "Beyond Blur, frozen",
        "as Beyond Blur, ∂v/∂t = 0",
        "The same waves standing still: thirteen times as much structured noise.",
        *GRUSZCZYNSKI,
    ),
    "beyond-blur-curl": Entry(
        "Beyond Blur, divergence-free",
        "v = curl ψ, Pe = 2, s<sub>k</sub> = 1, &sigma;<sub>k</sub> = 0.01",
        "Transport alone, by curl noise, without structured noise.",
        *GRUSZCZYNSKI,
    ),
    "ihd": Entry(
        "Inverse heat dissipation",
        "v = 0, s<sub>k</sub> = 1, &sigma;<sub>k</sub> = 0.01",
        "The heat equation, solved exactly in cosine modes.",
        "S. Rissanen, M. Heinonen, A. Solin, Generative Modelling with Inverse Heat Dissipation, ICLR 2023",
        "2206.13397",
    ),
    "blurring": Entry(
        "Blurring diffusion",
        "v = 0, s<sub>k</sub> = cos φ<sub>k</sub>, 2 &sigma;<sub>k</sub> = sin φ<sub>k</sub>",
        "Blur and Gaussian diffusion at once; every mode has a posterior of its own.",
        "E. Hoogeboom, T. Salimans, Blurring Diffusion Models, ICLR 2023",
        "2209.05557",
    ),
    "soft": Entry(
        "Soft diffusion",
        "v = 0, s<sub>k</sub> = 1, &sigma;<sub>k</sub> up to 0.1 in the first quarter",
        "Blur and some noise; the loss is compared after the blur.",
        "G. Daras et al., Soft Diffusion: Score Matching with General Corruptions, TMLR 2023",
        "2209.05442",
    ),
    "cold": Entry(
        "Cold diffusion",
        "v = 0, s<sub>k</sub> = 1, &sigma;<sub>k</sub> = 0",
        "Blur without any noise, up to a single colour.",
        "A. Bansal et al., Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise, NeurIPS 2023",
        "2208.09392",
    ),
    "ddpm": Entry(
        "DDPM",
        "A<sub>k</sub> = 1, s<sub>k</sub>= √&alpha;&#772;<sub>k</sub>, 4 &sigma;<sub>k</sub>&sup2; = 1 &minus; s<sub>k</sub>&sup2;",
        "Noise alone, the scheme that all others are compared with.",
        "J. Ho, A. Jain, P. Abbeel, Denoising Diffusion Probabilistic Models, NeurIPS 2020",
        "2006.11239",
    ),
    "edm": Entry(
        "EDM",
        "A<sub>k</sub> = 1, log(s<sub>k</sub> / &sigma;<sub>k</sub>) even in k",
        "Noise alone, with inputs and targets of variance one.",
        "T. Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, NeurIPS 2022",
        "2206.00364",
    ),
    "flow-matching": Entry(
        "Heat dissipation flow matching",
        "v = 0, s<sub>k</sub> = 1 &minus; 0.999 k / K, &sigma;<sub>k</sub> = k / 2 K",
        "The straight path between noise and image, which sharpens on the way; sampling integrates an ODE.",
        "Ma et al. 2026",
        "2605.19371",
    ),
}
CODE = """import torch
from diffusion import named_method

forward = named_method("{name}").forward
u0, seed = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])  # two pictures, a flow and a noise for each
half = forward.corrupt(u0, forward.levels // 2, seed)
last = forward.corrupt(u0, forward.levels, seed)
"""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Beyond Blur: all processes</title>
<style>
:root {{ color-scheme: light dark; --line: light-dark(#d5d9e0, #3a4150); --soft: light-dark(#f4f6f9, #1c2129); }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }}
section {{ border-top: 1px solid var(--line); padding: 1.2rem 0 2rem; }}
.pictures {{ display: grid; grid-template-columns: repeat(3, 1fr); gap: 1rem 0.8rem; align-items: start; }}
.pictures figure:last-child {{ grid-area: 1 / 4 / 3; width: 20rem; }}
@media (max-width: 900px) {{
  .pictures figure:last-child {{ grid-area: auto / 1 / auto / -1; width: auto; }}
}}
figure {{ margin: 0; }}
figcaption {{ font-size: 0.85rem; text-align: center; }}
img, video {{ width: 100%; border-radius: 6px; }}
.equation {{ font-family: Cambria, Georgia, serif; font-size: 1.15rem; }}
pre {{ background: var(--soft); padding: 0.8rem 1rem; overflow-x: auto; border-radius: 6px; font-size: 0.85rem; }}
nav a {{ margin-right: 0.8rem; white-space: nowrap; }}
</style>
<h1>One operator, many ways to destroy a picture</h1>
<p class="equation">{equation}<br>{operator}</p>
<nav>{links}</nav>
{sections}
<script>
// Films begin by themselves only where motion is wanted.
if (matchMedia("(prefers-reduced-motion: no-preference)").matches)
  for (const film of document.querySelectorAll("video")) film.play();
</script>
</html>
"""


@dataclass(frozen=True)
class Gallery:
    """Options of ``python -m tools.gallery``."""

    out: Path = Path("outputs/gallery")
    """Folder of the page, index.html, with its pictures and films."""
    image: Path = PHOTOGRAPH
    """The picture; the bundled photograph of a cat by default."""
    size: int = 160
    """Shorter side of the picture [pixels]."""
    frames: int = 72
    """Frames of each film, one way."""
    fps: int = 24
    """Frames per second of the films."""
    seed: int = 0
    """Seed of flow and noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def gallery(options: Gallery) -> None:
    """Corrupt the picture by every process; write pictures, films and the page."""
    console.check_at_least(options, size=16, frames=2, fps=1)
    check_integer("--seed", options.seed, 0, 2**63 - 1)
    device = console.pick_device(options.device)
    u0 = torch.from_numpy(resize_shorter(read_image(options.image, "RGB"), options.size))[None].to(device)
    sections = []
    for name, entry in tqdm(ENTRIES.items(), desc="processes", unit="process"):
        draw(name, u0, options)
        sections.append(section(name, entry))
    links = " ".join(f'<a href="#{name}">{escape(entry.title)}</a>' for name, entry in ENTRIES.items())
    page = PAGE.format(equation=EQUATION, operator=OPERATOR, links=links, sections="\n".join(sections))
    with whole_file(options.out / "index.html") as aside:
        aside.write_text(page, encoding="utf-8")
    print(f"wrote {options.out / 'index.html'}, {amount(len(ENTRIES), 'process')}")


def draw(name: str, u0: torch.Tensor, options: Gallery) -> None:
    """Write NAME-0.png, ..., pictures at levels evenly spaced, and NAME.mp4, the way there and back."""
    frames = way(name, u0, options.frames, options.seed)
    for number, k in enumerate(evenly_spaced(len(frames), len(CAPTIONS))):
        render.save_image(options.out / f"{name}-{number}.png", frames[k], "corrupted")
    save_video(options.out / f"{name}.mp4", there_and_back(frames), options.fps)


def way(name: str, u0: torch.Tensor, frames: int, seed: int = 0) -> list[np.ndarray]:
    """A picture [1, C, H, W] from clean to the last level of a process, in so many steps: uint8 [H, W, 3] each."""
    forward = specs.changed(named_method(name).forward, levels=frames - 1)
    return [render.to_pixels(u[0]) for _, u in forward.trajectory(u0, torch.tensor([seed]))]


def section(name: str, entry: Entry) -> str:
    """A process on the page, HTML."""
    facts = escape(describe(METHODS[name].forward).replace("\n", ", "))
    pictures = "\n".join(
        f'<figure><img src="{name}-{number}.png" alt="A photograph of a cat, {caption} on the way to fully corrupted by '
        f'{escape(entry.title)}" loading="lazy"><figcaption>{caption}</figcaption></figure>'
        for number, caption in enumerate(CAPTIONS)
    )
    return f"""<section id="{name}">
<h2>{escape(entry.title)} <small><code>--process {name}</code></small></h2>
<p class="equation">{entry.special}</p>
<p>{escape(entry.about)} ({facts}; {METHODS[name].levels:,} levels.)</p>
<div class="pictures">
{pictures}
<figure><video src="{name}.mp4" loop muted playsinline controls></video><figcaption>there and back</figcaption></figure>
</div>
<pre><code>{escape(CODE.format(name=name))}</code></pre>
<p>{escape(entry.paper)}, <a href="https://arxiv.org/abs/{entry.link}">arXiv {entry.link}</a></p>
</section>"""


main = partial(console.run, "gallery", gallery, partial(tyro.cli, Gallery), package="tools")


if __name__ == "__main__":
    main()
