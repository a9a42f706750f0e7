"""What a wheel holds, what each part of it needs, and what is said where that is missing."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections import defaultdict
from contextlib import suppress
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

import cli
from tests.test_imports import FILES, ROOT

MODULES = {"pillow": "PIL", "warp-lang": "warp"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the source distribution of a copy of this code."""
    place = tmp_path_factory.mktemp("wheel")
    for name in ("lbm_warp", "diffusion", "cli", "assets", "tools", "tests", "examples"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=place, capture_output=True, check=True)
    (wheel,) = place.glob("dist/*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(built: Path) -> dict[str, bytes]:
    """The files of the wheel."""
    with zipfile.ZipFile(built) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with nothing but this wheel, and the libraries that the tests have."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(place / "bin" / "python")]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", "--quiet", str(built)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return place / "bin"


@pytest.fixture(scope="module")
def needed(wheel: dict[str, bytes]) -> dict[str, set[str]]:
    """Modules that the libraries of each extra bring, and under "" those of the package itself."""
    (metadata,) = (content for name, content in wheel.items() if name.endswith("METADATA"))
    found = defaultdict(set)
    for line in message_from_bytes(metadata).get_all("Requires-Dist", ()):
        library, extra = re.match(r"([\w-]+)", line), re.search(r"extra == ['\"](\w+)", line)
        assert library
        found[extra[1] if extra else ""].add(MODULES.get(library[1].lower(), library[1].replace("-", "_")))
    return found


@pytest.mark.slow
def test_a_wheel_has_the_packages_their_models_and_the_page_and_nothing_else(wheel: dict[str, bytes]) -> None:
    here = {path.relative_to(ROOT).as_posix() for path in FILES.values()} | {"lbm_warp/py.typed", "diffusion/py.typed"}
    for pattern in ("cli/explore/page/*", "diffusion/**/*.pyi"):
        here |= {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)}
    for pattern in ("*.png", "*.gz", "*.md", "*.safetensors", "*-model/*"):
        here |= {f"diffusion/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "assets").glob(pattern)}
    assert {name for name in wheel if ".dist-info/" not in name} == here


@pytest.mark.slow
def test_every_part_needs_what_its_extra_brings(needed: dict[str, set[str]]) -> None:
    """What modules import when they are imported themselves; the server of the page is imported by a command that asks for it."""
    assert needed[""] == {"numpy", "torch", "warp"}
    allowed = {"lbm_warp": needed[""]}
    allowed["diffusion"] = allowed["lbm_warp"] | needed["diffusion"]
    allowed["cli"] = allowed["diffusion"] | needed["cli"] - {"beyond_blur"}
    assert set(cli.NEEDED) == allowed["cli"]
    for module, path in FILES.items():
        roots = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                roots |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots.add(str(node.module).partition(".")[0])
        if module != "cli.explore.server":
            others = roots - sys.stdlib_module_names - {"lbm_warp", "diffusion", "cli"}
            assert others <= allowed[module.partition(".")[0]], module


def test_the_versions_that_it_is_tested_with_can_be_installed_by_every_python_that_is_claimed() -> None:
    claimed = SpecifierSet(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"])
    (lowest,) = (specifier.version for specifier in claimed)
    pinned = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    looked_at, python = 0, {"python_version": lowest, "python_full_version": f"{lowest}.0"}
    for requirement in map(Requirement, pinned):
        if requirement.marker and not requirement.marker.evaluate(python):
            continue  # another version is taken there
        with suppress(metadata.PackageNotFoundError):
            library = metadata.distribution(requirement.name)
            if library.version.partition("+")[0] in requirement.specifier:
                assert f"{lowest}.0" in SpecifierSet(library.metadata["Requires-Python"] or ""), requirement
                looked_at += 1
    assert looked_at > 20 and f"Python {lowest} or newer" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder_beside_files_of_the_same_names(environment: Path, tmp_path: Path) -> None:
    """Beside a user's cli.py and diffusion, where ``python -m`` without -P finds theirs."""
    (tmp_path / "cli.py").touch()
    (tmp_path / "diffusion").mkdir()
    (tmp_path / "diffusion" / "__init__.py").touch()
    Image.new("RGB", (48, 48), "orange").save(tmp_path / "small.png")

    def run(*command: str) -> str:
        program, *rest = command
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([environment / program, *rest], cwd=tmp_path, env=kept, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stderr}"

    assert run("beyond-blur", "--help").startswith("usage: beyond-blur COMMAND")
    small = ("--size", "16", "--levels", "2", "--columns", "2", "--processes", "fluid")
    assert "wrote out/comparison.png" in run("beyond-blur", "compare", "small.png", *small, "--out", "out")
    trained = run("beyond-blur", "train", "--process", "ihd", "--images", "64", "--out", "run", "--no-grids")
    assert "sample with: beyond-blur sample run" in trained
    assert "wrote" in run("beyond-blur", "sample", "run", "--num", "2", "--steps", "2")
    assert run("python", "-P", "-m", "cli.corrupt", "--help").startswith("usage: ")
    assert "cli.corrupt" in run("python", "-m", "cli.corrupt", "--help")  # Python: their cli is not a package
    (tmp_path / "cli.py").unlink()
    assert run("python", "-m", "cli.corrupt").startswith("2: error: something else here is called diffusion; use beyond-blur")


@pytest.mark.parametrize("module", ["cli", "cli.corrupt", "cli.explore", "tools.evidence"])
def test_a_command_without_its_libraries_says_what_to_install(module: str) -> None:
    """Python without the folder of installed packages."""
    done = subprocess.run([sys.executable, "-S", "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and "tyro" in done.stderr and "pip install 'beyond-blur[cli]'" in done.stderr


def test_no_module_of_a_package_imports_a_tool() -> None:
    for path in FILES.values():
        assert not re.search(r"^\s*(from|import) tools\b", path.read_text(encoding="utf-8"), re.MULTILINE), path
