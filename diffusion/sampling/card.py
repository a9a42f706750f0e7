"""The model card of a run: process, schedule, network, training and metrics in numbers, for people who find its weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from diffusion import specs
from diffusion.run import RunConfig
from diffusion.sampling.prior import Prior

PAPER = "https://arxiv.org/abs/2506.16827"


def card_text(config: RunConfig, prior: Prior, parameters: int, metrics: dict[str, Any], repo_id: str) -> str:
    """The card's text in Markdown.

    Args:
        config: the run.
        prior: what its sampling starts from.
        parameters: number of parameters of its network.
        metrics: numbers of an evaluation, nested or not; entries that are not numbers are left out.
        repo_id: the model that the example in the card loads.
    """
    operator, signal, noise = config.method.operator, config.forward.signal, config.forward.noise
    sigma = operator.widths(config.size)
    height, width = config.size
    colours = {1: "grey", 3: "colour"}.get(config.channels, f"{config.channels}-channel")
    levels = {
        "levels K": operator.levels,
        "blur, levels 1 to K": f"{sigma[1]:.3g} to {sigma[-1]:.4g} px",
        "Fourier number, level K": f"{(sigma[-1] / config.size.shorter) ** 2 / 2:.3g}",
        "signal, levels 1 to K": f"{signal[1]:.4g} to {signal[-1]:.4g}",
        "noise, levels 1 to K": f"{noise[1]:.4g} to {noise[-1]:.4g}",
    }
    sections: dict[str, dict[str, Any]] = {
        f"Process: {config.process_name}": dict(_entries(specs.to_json(config.method))),
        "Schedule": levels,
        "Network": {"parameters": f"{parameters:,}"} | dict(_entries(specs.to_json(config.network))),
        "Training": {"data": config.data} | dict(_entries(specs.to_json(config.training))),
    }
    if metrics:
        sections["Metrics"] = dict(_numbers(metrics))
    own = [kind.__name__ for kind in specs.classes(config) if specs.class_name(kind).startswith(specs.OWN)]
    loads, needs = f'"{repo_id}"', ""
    if own:
        loads += f", types=[{', '.join(own)}]"
        needs = f"It is made of classes of its author's own, which loading needs: {', '.join(own)}. "
    about = "its images are corrupted level by level, and the network learned the reverse."
    if operator.peclet > 0.0 or sigma[-1] > 0.0:
        about = "a flow carries the pictures while they blur, or blur alone, and noise is added; the network learned the reverse."
    tables = "\n\n".join(f"## {_plain(title)}\n\n{_table(rows)}" for title, rows in sections.items())
    return f"""# {_plain(config.process_name)}: {height} x {width} {colours} images

An image diffusion model of the process {_plain(config.process_name)}: {about}
{needs}Library: *Beyond Blur: A Fluid Perspective on Generative Diffusion Models* (ICCV 2025, {PAPER}).

```python
from diffusion import Pipeline  # the library beyond-blur

pipeline = Pipeline.from_pretrained({loads})
images = pipeline.sample(16, seed=0)  # float32 [16, {config.channels}, {height}, {width}], values around [0, 1]
```

Sampling starts from level K of `prior.safetensors`. {prior.describe()}

{tables}
"""


def _table(rows: dict[str, Any]) -> str:
    lines = (f"| {_plain(name).replace('_', ' ')} | {_plain(value)} |" for name, value in rows.items())
    return "\n".join(["| | |", "|---|---|", *lines])


def _entries(values: dict[str, Any], part: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and words of nested parts by their names; a part itself is called by the name of its class."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _entries(value, name)
        elif name != specs.CLASS:
            yield name, tuple(value) if isinstance(value, list) else value
        elif part:
            yield part, str(value).removeprefix(specs.OWN)


def _numbers(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}, ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + name, f"{value:.4g}" if isinstance(value, float) else f"{value}"


def _plain(value: object) -> str:
    """The value as one line of a table cell, with the characters of Markdown escaped."""
    words = ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
    text = " ".join(words.split()).encode("utf-8", "backslashreplace").decode()
    return "".join(f"\\{character}" if character in "|<>[]`*#\\" else character for character in text)
