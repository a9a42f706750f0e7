"""The arrows between modules point down only: cli -> diffusion -> lbm_warp."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {"lbm_warp": {"lbm_warp"}, "diffusion": {"diffusion", "lbm_warp"}, "cli": {"cli", "diffusion", "lbm_warp"}}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
}


def imports(path: Path) -> set[str]:
    """Modules a file imports, with ``from package import module`` resolved where it names one of ours."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in FILES else node.module for a in node.names}
    return found


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_only_from_its_room_and_below(module: str) -> None:
    allowed = ROOMS[module.split(".")[0]]
    for name in imports(FILES[module]):
        assert name.split(".")[0] not in set(ROOMS) - allowed, f"{module} imports {name}"


def test_kernel_files_know_no_torch_and_one_module_of_the_solver_knows_both() -> None:
    both = set()
    for module, path in FILES.items():
        roots = {name.split(".")[0] for name in imports(path)}
        if module.startswith("lbm_warp.kernels"):
            assert "torch" not in roots, module
        elif module.split(".")[0] in ("lbm_warp", "diffusion") and {"torch", "warp"} <= roots:
            both.add(module)
    assert both == {"lbm_warp.interop"}


def test_there_is_no_cycle() -> None:
    graph = {module: imports(path) & FILES.keys() for module, path in FILES.items()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for below in graph[module]:
                visit(below, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_solver_imports_no_plotting_and_no_command_line() -> None:
    code = (
        "import sys, lbm_warp, diffusion.training.loop; sys.exit(any(m in sys.modules for m in ('matplotlib', 'tyro', 'imageio')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
