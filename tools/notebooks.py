"""Run the notebooks of examples/ and write into them what they show: ``python -m tools.notebooks [NAME ...]``.

A cell is run as Jupyter does it: what it prints, the value of its last expression, its open figures. Progress bars are left out.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib

from diffusion.files import whole_file

EXAMPLES = Path(__file__).parent.parent / "examples"


def outputs(code: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """Run a cell among these names, and give what it shows as Jupyter keeps it."""
    from matplotlib import pyplot

    *body, last = ast.parse(code).body
    shown, printed = None, io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(ast.Module(body, []), "cell", "exec", dont_inherit=True), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "cell", "eval", dont_inherit=True), names)
        else:
            exec(compile(ast.Module([last], []), "cell", "exec", dont_inherit=True), names)
    found = [{"output_type": "stream", "name": "stdout", "text": lines(printed.getvalue())}] if printed.getvalue() else []
    if shown is not None:
        kinds = {"text/html": "_repr_html_", "image/png": "_repr_png_"}
        data = {kind: getattr(shown, method)() for kind, method in kinds.items() if hasattr(shown, method)}
        found.append(display(data or {"text/plain": repr(shown)}))
    for number in pyplot.get_fignums():
        file = io.BytesIO()
        pyplot.figure(number).savefig(file, format="png", dpi=80, bbox_inches="tight", facecolor="white")
        found.append(display({"image/png": file.getvalue()}))
    pyplot.close("all")
    return found


def display(data: dict[str, str | bytes]) -> dict[str, Any]:
    """An output that is shown, from its content in each format."""
    kept = {kind: base64.b64encode(it).decode() if isinstance(it, bytes) else lines(it) for kind, it in data.items()}
    return {"output_type": "display_data", "data": kept, "metadata": {}}


def lines(text: str) -> list[str]:
    """A text as a notebook keeps it."""
    return text.splitlines(keepends=True)


def run(path: Path) -> dict[str, Any]:
    """A notebook with what its cells show now; files that it writes are gone afterwards."""
    matplotlib.use("agg")
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    with TemporaryDirectory() as folder, chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = outputs("".join(cell["source"]), names)
    return notebook


if __name__ == "__main__":
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        if not sys.argv[1:] or path.stem in sys.argv[1:]:
            notebook = run(path)
            with whole_file(path) as aside:
                aside.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
