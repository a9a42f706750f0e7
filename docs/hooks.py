"""What the documentation takes from the project when it is built: pictures, tables of the recorded evidence, formulas as MathML."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_config(config: Any) -> Any:
    """The project's modules can be imported."""
    sys.path.insert(0, str(ROOT))
    return config


def on_files(files: Files, config: Any) -> Files:
    """The project's figures, and the pictures of its evidence, under assets/."""
    for folder in ("figures", "evidence"):
        for picture in sorted((ROOT / "assets" / folder).glob("*.[jp][pn]g")):
            uri = f"assets/{folder}/{picture.name}"
            files.append(File.generated(config, uri, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Tables of the evidence, from evidence.json, where a page says ``<!-- evidence: NAME -->``."""
    return re.sub(r"<!-- evidence: ([\w-]+) -->", lambda found: evidence(found[1]), markdown)


def evidence(name: str) -> str:
    """The table of a study, and what made it."""
    from tools.evidence import STUDIES, Evidence, rows_of_study, stored, table

    options, study = Evidence(out=ROOT / "assets" / "evidence"), STUDIES[name]
    commands = "\n".join(f"        {study.command(sweep)}" for sweep in study.sweeps)
    return f'{table(rows_of_study(stored(options), name), study.columns)}\n\n??? note "Made by"\n\n{commands}\n'


def on_page_content(html: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def formula(found: re.Match[str]) -> str:
        tag, text = found[1], unescape(found[2]).strip()
        return convert(text[2:-2], display="block" if tag == "div" else "inline")

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', formula, html, flags=re.DOTALL)
