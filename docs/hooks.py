"""What the documentation takes from the project when it is built: pictures, notebooks, tables, formulas as MathML."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import tomllib
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from PIL import Image

ROOT = Path(__file__).parent.parent


def on_config(config: Any) -> Any:
    """The project's modules can be imported; the repository's address is the one of pyproject.toml."""
    sys.path.insert(0, str(ROOT))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.repo_url = project["urls"].get("Repository")
    return config


def on_files(files: Files, config: Any) -> Files:
    """The project's figures and films, and the pictures of its evidence, under assets/; the notebooks with what they show under
    examples/; the live view."""
    for folder in ("figures", "evidence"):
        for path in sorted((ROOT / "assets" / folder).glob("*.[jmp][pn][g4]")):
            files.append(File.generated(config, f"assets/{folder}/{path.name}", abs_src_path=str(path)))
    for name, picture in pictures_of_processes().items():
        files.append(File.generated(config, f"assets/processes/{name}.jpg", content=picture))
    for path in sorted((ROOT / "examples").glob("*.ipynb")):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
        page, pictures = notebook(path)
        files.append(File.generated(config, f"examples/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"examples/{name}", content=content))
    from cli.explore.export import live_page

    files.append(File.generated(config, "assets/live.html", content=live_page()))
    return files


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as a page, and the pictures that it shows; tests/test_examples.py runs it and compares."""
    page, pictures = "", {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        page += f"{source}\n\n" if cell["cell_type"] == "markdown" else f"``` {{.python}}\n{source}\n```\n\n"
        for output in cell.get("outputs", ()):
            data = {kind: "".join(lines) for kind, lines in output.get("data", {"text": output.get("text")}).items()}
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                page += f"![What this cell shows]({name}){{ .shown }}\n\n"
            elif "text/html" in data:
                page += f'<div class="shown">{data["text/html"]}</div>\n\n'
            else:
                page += f"``` {{.text .shown}}\n{''.join(data.values()).rstrip()}\n```\n\n"
    return f"{page}[This notebook]({path.name}){{ download }} runs in seconds on a CPU.\n", pictures


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Tables of the evidence, from evidence.json, where a page says ``<!-- evidence: NAME -->``; ``<!-- processes -->``."""
    markdown = re.sub(r"<!-- evidence: ([\w-]+) -->", lambda found: evidence(found[1]), markdown)
    return markdown.replace("<!-- processes -->", processes())


def processes() -> str:
    """Each process as the gallery has it: its equation, what it is, its picture, its paper."""
    from tools.gallery import ENTRIES

    return "\n".join(
        f"### {entry.title}: `{name}` {{ #{name} }}\n\n{entry.special}\n\n{entry.about}\n\n"
        f"![A cat, from clean to fully corrupted by {entry.title}](../assets/processes/{name}.jpg)\n\n"
        f"{entry.paper}, [arXiv {entry.link}](https://arxiv.org/abs/{entry.link})\n"
        for name, entry in ENTRIES.items()
    )


def pictures_of_processes() -> dict[str, bytes]:
    """The photograph on its way through each process, drawn now."""
    import torch

    from cli.render import grid
    from cli.scene import PHOTOGRAPH
    from diffusion.data.images import read_image, resize_shorter
    from tools.gallery import ENTRIES, way

    drawn, u0 = {}, torch.from_numpy(resize_shorter(read_image(PHOTOGRAPH, "RGB"), 96))[None]
    for name in ENTRIES:
        file = io.BytesIO()
        Image.fromarray(grid(way(name, u0, frames=7), columns=7)).save(file, "JPEG", quality=85)
        drawn[name] = file.getvalue()
    return drawn


def evidence(name: str) -> str:
    """The table of a study, and what made it."""
    from tools.evidence import STUDIES, Evidence, rows_of_study, stored, table

    options, study = Evidence(out=ROOT / "assets" / "evidence"), STUDIES[name]
    commands = "\n".join(f"        {study.command(sweep)}" for sweep in study.sweeps)
    rows = table(rows_of_study(stored(options), name), study.columns).replace(" ± ", "\u00a0±\u00a0")
    return f'{rows}\n\n??? note "Made by"\n\n{commands}\n'


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script; an empty corner of a table is no heading."""

    def formula(found: re.Match[str]) -> str:
        tag, text = found[1], unescape(found[2]).strip()
        return convert(text[2:-2], display="block" if tag == "div" else "inline")

    html = re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, html, flags=re.DOTALL)
    html = re.sub(r'<math [^>]*display="block"', r'\g<0> tabindex="0"', html)  # who has no mouse scrolls a wide one with the keys
    return re.sub(r"<th[^>]*></th>", "<td></td>", html)


def on_post_page(output: str, **_: Any) -> str:
    """The theme's search is a dialog without a name."""
    return output.replace('data-md-component="search" role', 'aria-label="Search" data-md-component="search" role')
