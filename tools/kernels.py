"""Read registers, memory and instructions of the CUDA kernels from their binaries: needs no GPU, but CUDA's disassembler."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import tyro
import warp as wp

from cli import console
from cli.benchmark import measure
from lbm_warp.checks import InputError, check_integer
from lbm_warp.kernels import cuda, onchip
from lbm_warp.kernels.sensitivity import displacement_gradient_kernel

TOOLS = ("cuobjdump", "nvdisasm")
# As those of the benchmarks: head, width, and unit of the numbers.
COLUMNS = {
    "name": ("name", 22, 1.0),
    "registers": ("registers", 11, 1.0),
    "stack": ("stack B", 9, 1.0),
    "shared": ("shared B", 10, 1.0),
    "instructions": ("instructions", 14, 1.0),
    "per_update": ("an update", 11, 1.0),
    "spills_per_update": ("spills", 8, 1.0),
    "bytes_per_update": ("bytes", 7, 1.0),
}


class Binary(NamedTuple):
    """A kernel to look at: its name for people, and the updates in one pass of its instructions."""

    name: str
    kernel: wp.Kernel
    updates: int | None
    """Cells a thread updates in an iteration; None for a kernel that is no iteration."""


@dataclass(frozen=True)
class Kernels(measure.Report):
    """Options of ``python -m tools.kernels``."""

    columns = COLUMNS
    arch: int = 90
    """Architecture to compile for: 80 (A100), 86, 89, 90 (H100, H200), 100, 120."""

    def run(self) -> None:
        """Compile every kernel, disassemble it, print a table, write the numbers."""
        check_integer("--arch", self.arch, 75, 130)
        tools = find_tools()
        with tempfile.TemporaryDirectory() as folder:
            rows = self.rows(tools, Path(folder))
            self.report(f"compiled for sm_{self.arch}; instructions of an iteration, or of a kernel", rows, architecture=self.arch)

    def rows(self, tools: dict[str, str], folder: Path) -> Iterator[measure.Row]:
        """What each kernel takes."""

        @cache
        def read(module: wp.Module) -> tuple[str, str]:
            """What the tools say of a module, which may hold several kernels."""
            place = folder / module.name
            place.mkdir()
            wp.compile_aot_module(module, device=None, arch=self.arch, module_dir=place, use_ptx=False)
            (cubin,) = place.rglob("*.cubin")
            return output(tools["cuobjdump"], "-res-usage", cubin), output(tools["nvdisasm"], "-c", cubin)

        for binary in binaries():
            listed, listing = read(binary.kernel.module)
            symbol = rf"(\b{binary.kernel.key}\w*_cuda_kernel_forward)"
            name, *numbers = re.findall(rf"{symbol}:\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", listed)[0]
            path = hot_path(instructions(listing, name))
            yield {
                "name": binary.name,
                **dict(zip(("registers", "stack", "shared"), map(int, numbers), strict=True)),
                "instructions": sum(path.values()),
                "per_update": binary.updates and sum(path.values()) / binary.updates,
                "spills_per_update": binary.updates and (path["LDL"] + path["STL"]) / binary.updates,
                "bytes_per_update": binary.updates and bytes_of(path) / binary.updates,
            }


def binaries() -> Iterator[Binary]:
    """All kernels, the iterations first."""
    for name, adjoint, background in (("", False, False), (", background", False, True), (", adjoint", True, False)):
        kernel = onchip.advance_kernel(adjoint, background)
        yield Binary(f"on chip{name}", kernel, onchip.ROWS)
    for name, dtype in (("float32", wp.float32), ("float64", wp.float64)):
        kernel = cuda.iterate_kernel(dtype, False, False)
        yield Binary(f"a cell, {name}", kernel, None)
    yield Binary("displacement gradient", displacement_gradient_kernel(wp.float32), None)
    for name in ("turbulence", "populations", "hashing"):
        module = importlib.import_module(f"lbm_warp.kernels.{name}")
        for kernel in (value for value in vars(module).values() if isinstance(value, wp.Kernel)):
            if kernel.module.name.endswith(name):
                yield Binary(kernel.key.removesuffix("_kernel").replace("_", " "), kernel, None)


def find_tools() -> dict[str, str]:
    """Paths of CUDA's tools, from PATH or from the package triton.

    Raises:
        InputError: if one is missing.
    """
    triton = find_spec("triton")
    beside = [str(Path(place) / "backends" / "nvidia" / "bin") for place in (triton and triton.submodule_search_locations) or ()]
    places = os.pathsep.join([os.environ.get("PATH", ""), *beside])
    found = {tool: path for tool in TOOLS if (path := shutil.which(tool, path=places))}
    if missing := [tool for tool in TOOLS if tool not in found]:
        raise InputError(f"{' and '.join(missing)} not found: pip install triton (its wheel has them), or install CUDA's toolkit")
    return found


def output(*command: object) -> str:
    """What a tool prints."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def instructions(listing: str, symbol: str) -> list[str | tuple[str, str]]:
    """The instructions of a kernel in a listing of nvdisasm, and its labels as ``(label, '')``."""
    _, _, text = listing.partition(f"\n.text.{symbol}:")
    lines: list[str | tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith(".text.") or line.lstrip().startswith(".section"):
            break
        if label := re.match(r"(\.L_\w+):", line):
            lines.append((label[1], ""))
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            lines.append(instruction[1])
    return lines


def hot_path(lines: list[str | tuple[str, str]]) -> Counter[str]:
    """Operations by name in the innermost loop with a barrier, all branches taken, or if there is none in the whole kernel."""
    at = {line[0]: number for number, line in enumerate(lines) if isinstance(line, tuple)}
    jumps = [(number, at[found[1]]) for number, line in enumerate(lines) if (found := branch(line)) and found[1] in at]
    loops = [(target, number) for number, target in jumps if target < number]
    with_barrier = [(first, last) for first, last in loops if any("BAR.SYNC" in line for line in lines[first:last])]
    first, last = min(with_barrier, key=lambda loop: loop[1] - loop[0], default=(0, len(lines)))
    return operations(lines[first : last + 1])


def branch(line: str | tuple[str, str]) -> re.Match[str] | None:
    """A branch, with its label."""
    return re.search(r"BRA.*`\((\.L_\w+)\)", line) if isinstance(line, str) else None


def operations(lines: list[str | tuple[str, str]]) -> Counter[str]:
    """How often each operation occurs, by its name with the width of its data; no-operations are padding."""
    found: Counter[str] = Counter()
    for line in lines:
        if isinstance(line, str):
            words = re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")
            if words[0] != "NOP":
                wide = next((word for word in words if word in ("64", "128")), "32")
                found[words[0] if words[0] not in ("LD", "LDG", "ST", "STG") else f"{words[0]} {wide}"] += 1
    return found


def bytes_of(path: Counter[str]) -> int:
    """Bytes that loads and stores of global memory name, before caches."""
    return sum(count * int(name.split()[1]) // 8 for name, count in path.items() if " " in name)


main = partial(console.run, "kernels", Kernels.run, partial(tyro.cli, Kernels), package="tools")


if __name__ == "__main__":
    main()
