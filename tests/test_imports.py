"""Arrows between packages, and between the rooms of diffusion, point down only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Every floor may import from the floors below it, and from itself where it is a room with modules of its own.
FLOORS = [
    {"lbm_warp"},
    {"diffusion.files", "diffusion.launcher", "diffusion.learning_rate", "diffusion.rng", "diffusion.size", "diffusion.specs"},
    {"diffusion.augmentation", "diffusion.data", "diffusion.network", "diffusion.weighting"},
    {"diffusion.forward"},
    {"diffusion.denoisers"},
    {"diffusion.density", "diffusion.flow_matching", "diffusion.samplers"},
    {"diffusion.photographs"},
    {"diffusion.methods"},
    {"diffusion.run"},
    {"diffusion.degradation", "diffusion.presets", "diffusion.sampling"},
    {"diffusion.training", "diffusion.evaluation"},
    {"cli"},
]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("lbm_warp", "diffusion", "cli")
    for path in sorted((ROOT / package).rglob("*.py"))
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


def room(module: str) -> str:
    """The room a module belongs to: its package, or within diffusion a folder or a module beside the folders."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "diffusion" else parts[0]


@pytest.mark.parametrize("module", [module for module in FILES if module != "diffusion"])
def test_a_module_imports_only_from_its_room_and_below(module: str) -> None:
    here = room(module)
    assert here in ROOMS, f"{here} has no floor yet: add it to FLOORS"
    for name in imports(FILES[module]) & FILES.keys():
        there = room(name)
        assert there == here or ROOMS[there] < ROOMS[here], f"{module} imports {name}"


def test_the_package_names_its_public_things_and_imports_none_of_them() -> None:
    assert imports(FILES["diffusion"]) == {"lazy_loader"}


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("lbm_warp", "diffusion matplotlib PIL tyro imageio huggingface_hub accelerate"),
        ("diffusion", "torch warp lbm_warp numpy matplotlib PIL tyro imageio huggingface_hub accelerate"),
        ("diffusion.run", "matplotlib tyro imageio huggingface_hub accelerate datasets PIL"),
        ("diffusion.training.loop", "matplotlib tyro imageio huggingface_hub datasets diffusion.sampling.pipeline"),
    ],
)
def test_a_module_brings_only_what_it_needs(module: str, unwanted: str) -> None:
    code = f"import sys, {module}; print([m for m in {unwanted.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
