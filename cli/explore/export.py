"""The live view as one file that needs no server: styles, scripts and pictures are inside it."""

from __future__ import annotations

import base64
import io
import json
import re
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from cli.scene import PHOTOGRAPH
from diffusion.files import asset, whole_file
from lbm_warp.checks import InputError

PICTURES = {"The cat": PHOTOGRAPH, "An astronaut": asset("astronaut.jpg")}
# The modules of the page, each after those that it imports.
MODULES = ("flow.js", "lattice.js", "patterns.js", "live.js", "alone.js")
# The page loads nothing, from anywhere.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def export(folder: Path) -> Path:
    """Write the page to ``index.html`` in a folder, and return its path.

    Raises:
        InputError: if a page is there that is not an exported one.
    """
    page, place = live_page(), folder / "index.html"
    mark = next(line for line in page.splitlines() if 'name="generator"' in line)
    if place.exists() and mark not in place.read_text("utf-8", "replace"):
        raise InputError(f"{place}: not made by this command; move it, or choose another folder (--export)")
    with whole_file(place) as aside:
        aside.write_text(page, encoding="utf-8")
    return place


def live_page() -> str:
    """The page as text."""
    page = part("live.html")
    page = page.replace("<title>", f'<meta http-equiv="content-security-policy" content="{POLICY}" />\n    <title>')
    page = page.replace('href="icon.svg"', f'href="data:image/svg+xml,{quote(part("icon.svg"))}"')
    page = re.sub(r'<link rel="stylesheet" href="([\w.]+)" />', lambda link: f"<style>\n{part(link[1])}</style>", page)
    pictures = json.dumps({name: data_address(path) for name, path in PICTURES.items()})
    return page.replace(
        '<script type="module" src="alone.js"></script>',
        f'<script type="module">\nglobalThis.PICTURES = {pictures};\n{"".join(map(script, MODULES))}</script>',
    )


def script(name: str) -> str:
    """A module without its imports and exports: those that it imports stand before it in the same script."""
    text = re.sub(r'(?m)^import \{[^}]*\} from "\./[\w.]+";\n', "", part(name))
    return re.sub(r"(?m)^export ", "", text)


def part(name: str) -> str:
    """A file of the page."""
    return (resources.files("cli.explore") / "page" / name).read_text(encoding="utf-8")


def data_address(path: Path) -> str:
    """A picture as an address that holds it, as JPEG."""
    data = io.BytesIO()
    with Image.open(path) as picture:
        picture.convert("RGB").save(data, "jpeg", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
