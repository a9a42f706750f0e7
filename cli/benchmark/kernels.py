"""Count what the CUDA kernels take, from their binaries, and what a call of the operator asks of a device: needs no GPU."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import warp as wp
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cli.benchmark import measure
from lbm_warp import AdvectionDiffusion, Schedule, checks, interop
from lbm_warp.checks import InputError, check_integer
from lbm_warp.kernels import cuda, onchip
from lbm_warp.kernels.grids import transfers
from lbm_warp.kernels.sensitivity import moment_gradient_kernel
from lbm_warp.kernels.stencil import medium_kernel, source_kernel, stencil_kernel

# CUDA's disassembler, each in a package of its own: nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm.
TOOLS = ("cuobjdump", "nvdisasm")
# As those of the benchmarks: head, width, and unit of the numbers.
COLUMNS = {
    "name": ("name", 38, 1.0),
    "registers": ("registers", 11, 1.0),
    "stack": ("stack B", 9, 1.0),
    "local": ("local", 7, 1.0),
    "shared": ("shared B", 10, 1.0),
    "instructions": ("instructions", 14, 1.0),
    "per_update": ("an update", 11, 1.0),
    "bytes_per_update": ("bytes", 7, 1.0),
    "images": ("images", 8, 1.0),
    "size": ("size", 6, 1.0),
    "launches": ("launches", 10, 1.0),
    "operations": ("operations", 12, 1.0),
    "views": ("views", 7, 1.0),
}


class Binary(NamedTuple):
    """A kernel to look at: its name for people, and the updates in one pass of its instructions."""

    name: str
    kernel: wp.Kernel
    updates: int | None
    """Cells a thread updates in an iteration; None for a kernel that is no iteration."""


@dataclass(frozen=True)
class Kernels(measure.Report):
    """What the CUDA kernels take, and what a call of the operator asks of a device; no GPU is needed."""

    columns = COLUMNS
    arch: int = 90
    """Architecture to compile for: 80 (A100), 86, 89, 90 (H100, H200), 100, 120."""
    sizes: tuple[int, ...] = (64, 128, 512)
    """Sides of the images of a call in pixels."""

    def run(self) -> None:
        """Compile every kernel, disassemble it, count the work of calls; print two tables, write the numbers."""
        check_integer("--arch", self.arch, 75, 130)
        for size in self.sizes:
            check_integer("--sizes", size, 2)
        tools = find_tools()
        calls = self.table("a call, to 0.16 L at Pe = 8: kernels, torch operations, views", map(count_call, self.sizes))
        with tempfile.TemporaryDirectory(dir=wp.config.kernel_cache_dir) as folder:
            title = (
                f"whole kernels for sm_{self.arch}; local: loads and stores of spilled registers; an update: of a cell, in the loop"
            )
            self.report(title, self.rows(tools, Path(folder)), architecture=self.arch, calls=calls)

    def rows(self, tools: dict[str, str], folder: Path) -> Iterator[measure.Row]:
        """What each kernel takes."""

        @cache
        def read(module: wp.Module) -> tuple[str, str]:
            """What the tools say of a module, which may hold several kernels; its binary is kept beside other compiled kernels."""
            kept = folder.parent / f"{module.get_module_identifier(256)}_for_sm_{self.arch}"
            if not kept.exists():
                place = folder / module.name
                place.mkdir()
                wp.compile_aot_module(module, device=None, arch=self.arch, module_dir=place, use_ptx=False)
                with suppress(OSError):  # another process was faster
                    place.rename(kept)
            (cubin,) = kept.rglob("*.cubin")
            return output(tools["cuobjdump"], "-res-usage", cubin), output(tools["nvdisasm"], "-c", "-ndf", cubin)

        for binary in binaries():
            listed, listing = read(binary.kernel.module)
            symbol = rf"(\b{binary.kernel.key}_[0-9a-f]+_cuda_kernel_forward)"
            name, *numbers = re.findall(rf"{symbol}:\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", listed)[0]
            lines = instructions(listing, name)
            whole, loop = operations(lines), hot_path(lines)
            yield {
                "name": binary.name,
                **dict(zip(("registers", "stack", "shared"), map(int, numbers), strict=True)),
                "local": whole["LDL"] + whole["STL"],
                "instructions": whole.total(),
                "per_update": binary.updates and loop.total() / binary.updates,
                "bytes_per_update": binary.updates and bytes_of(loop) / binary.updates,
            }


def binaries() -> Iterator[Binary]:
    """All kernels, the iterations first."""
    kinds = {"": False, ", background": True}
    for name, background in kinds.items():
        yield Binary(f"on chip{name}", onchip.advance_kernel(background), onchip.ROWS)
    for dtype in (wp.float32, wp.float64):
        for name, background in kinds.items():
            yield Binary(f"a cell, {dtype.__name__}{name}", cuda.iterate_kernel(dtype, background), None)
        yield Binary(f"weights, {dtype.__name__}", stencil_kernel(dtype, False), None)
        yield Binary(f"weights, {dtype.__name__}, adjoint", stencil_kernel(dtype, True), None)
        yield Binary(f"medium, {dtype.__name__}", medium_kernel(dtype), None)
        yield Binary(f"source, {dtype.__name__}", source_kernel(dtype), None)
        yield Binary(f"moment gradient, {dtype.__name__}", moment_gradient_kernel(dtype), None)
        for name, kernel in transfers(dtype)._asdict().items():
            yield Binary(f"{name.replace('_', ' ')}, {dtype.__name__}", kernel, None)
    for name in ("turbulence", "populations", "hashing"):
        module = importlib.import_module(f"lbm_warp.kernels.{name}")
        for kernel in (value for value in vars(module).values() if isinstance(value, wp.Kernel)):
            if kernel.module.name.endswith(name):
                yield Binary(kernel.key.removesuffix("_kernel").replace("_", " "), kernel, None)


class DeviceOperations(TorchDispatchMode):
    """Counts operations on tensors of the device meta, and views apart: these ask nothing of a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) and value.is_meta for value in tree_leaves((args, kwargs, result))):
            self.counts["views" if function.is_view else "operations"] += 1
        return result


def count_call(size: int, images: int = 32) -> measure.Row:
    """What a call of the operator asks of a device."""
    operator = AdvectionDiffusion(Schedule.geometric(min(0.5, 0.16 * size), 0.16 * size, 50), peclet=8.0)
    u = torch.empty((images, 3, size, size), device="meta")
    return {"images": images, "size": size, **counted(lambda: operator(u, 50, range(images)))}


def counted(call: Callable[[], Any]) -> dict[str, int]:
    """What a call asks of a device, counted without one: its tensors are on the device meta, kernels do not run."""
    with (
        mock.patch.object(checks, "DEVICES", (*checks.DEVICES, "meta")),
        mock.patch.object(interop, "load"),
        mock.patch.object(interop, "replay") as launch,
    ):
        call()  # makes what later calls use again
        launch.reset_mock()
        with DeviceOperations() as seen:
            call()
    return {"launches": launch.call_count, **seen.counts}


def find_tools() -> dict[str, str]:
    """Paths of CUDA's tools, from PATH or from their packages.

    Raises:
        InputError: if one is missing.
    """
    nvidia = find_spec("nvidia")
    beside = [str(bin) for place in (nvidia and nvidia.submodule_search_locations) or () for bin in Path(place).glob("cu*/bin")]
    places = os.pathsep.join([os.environ.get("PATH", ""), *beside])
    found = {tool: path for tool in TOOLS if (path := shutil.which(tool, path=places))}
    if missing := [tool for tool in TOOLS if tool not in found]:
        packages = " ".join(f"nvidia-cuda-{tool}" for tool in missing)
        raise InputError(f"{' and '.join(missing)} not found: pip install {packages}, or install CUDA's toolkit")
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
