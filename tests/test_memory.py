"""The memory a call needs in addition to its input."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lbm_warp import AdvectionDiffusion, Schedule

SHAPE = (32, 3, 128, 128)

# The peak of the resident set is reset through /proc, after a warm-up call that compiles the kernels and starts the threads.
SCRIPT = f"""
import torch
from lbm_warp import AdvectionDiffusion, Schedule

def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))

def now():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

operator = AdvectionDiffusion(Schedule.geometric(0.5, 6.0, 10), peclet=8.0)
u0 = torch.rand({SHAPE})
seed = torch.arange(len(u0))

def call():
    return operator(u0, 10, seed)

def adjoint():
    return operator.adjoint(u0, 10, seed)

for function in (call, adjoint):
    function()
    before = now()
    open("/proc/self/clear_refs", "w").write("5")
    function()
    print("inputs", (peak() - before) / (u0.numel() * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_a_call_and_a_backward_pass_take_at_most_eight_times_the_input_on_the_cpu() -> None:
    """7.7 for state, scratch, velocity (two thirds of an RGB image), and nine weights (three RGB images) for full iterations and
    for a partial one."""
    environment = {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536", "PATH": ""}
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True, check=True)
    forward, backward = (float(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("inputs"))
    assert 1.0 < forward <= 8.0 and 1.0 < backward <= 8.0, (forward, backward)


@pytest.mark.cuda
def test_a_call_and_a_backward_pass_take_at_most_ten_times_the_input_on_cuda() -> None:
    """Two sets of nine weights are made together: 8.7, and what the allocator rounds up."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 6.0, 10), peclet=8.0)
    u0 = torch.rand(SHAPE, device="cuda")
    seed = torch.arange(len(u0))
    for function in (operator, operator.adjoint):
        function(u0, 10, seed)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function(u0, 10, seed)
        assert torch.cuda.max_memory_allocated() - before <= 10.0 * u0.numel() * 4
