"""Painted flows: no divergence, along the strokes, the same flow at every resolution; how they are written down."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cli import corrupt
from diffusion.data.images import read_image
from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, StrokeFlow, solenoidal
from lbm_warp.checks import InputError
from tests.runs import exit_code, said

ACROSS = StrokeFlow((((0.1, 0.5), (0.9, 0.5)),))


def test_a_stroke_pushes_along_itself_and_the_fluid_flows_back_beside_it() -> None:
    velocity = ACROSS.velocity([0, 7], 64, 96)
    assert velocity.shape == (2, 2, 64, 96) and torch.equal(velocity[0], velocity[1])
    x, y = velocity[0]
    assert x[31:33, 40:56].min() > 2.0 and x[8, 48] < -0.1 and x[56, 48] < -0.1
    # Symmetric about the stroke, and about its middle but for the direction.
    assert torch.allclose(x, x.flip(0), atol=1e-5) and torch.allclose(y, -y.flip(1), atol=1e-5)


@pytest.mark.parametrize("boundary", ["wall", "periodic"])
def test_a_painted_flow_has_no_divergence_and_unit_rms(boundary: str) -> None:
    flow = StrokeFlow((((0.2, 0.2), (0.8, 0.3), (0.6, 0.9)), ((0.1, 0.9), (0.4, 0.5))))
    velocity = flow.velocity(0, 48, 64, boundary=boundary)
    assert velocity.square().mean().item() == pytest.approx(1.0, abs=1e-5)
    # The projection onto fields without divergence, tested by itself, leaves it as it is.
    assert torch.allclose(solenoidal(velocity, boundary), velocity, atol=1e-5)
    if boundary == "wall":
        # So a flat image stays flat, to the accuracy of the scheme in time.
        operator = AdvectionDiffusion(Schedule.geometric(0.5, 6.0, levels=4), peclet=20.0, turbulence=flow)
        assert (operator(torch.full((1, 1, 48, 64), 0.5), 4, 0) - 0.5).abs().max() < 1.0 / 255.0


def test_it_is_the_same_flow_at_every_resolution() -> None:
    flow = StrokeFlow((((0.2, 0.7), (0.5, 0.2), (0.9, 0.6)),))
    coarse, fine = flow.velocity(0, 64, 80), flow.velocity(0, 128, 160)
    restricted = torch.nn.functional.avg_pool2d(fine, 2)
    # Second order in the cell h = L / 64 against the brush b = 0.06 L: (h / b)^2 / 4 of the largest speed.
    assert (restricted - coarse).abs().max() < (1 / 64 / 0.06) ** 2 / 4 * coarse.abs().max()


def test_a_short_stroke_keeps_the_limit_that_iterations_are_planned_for() -> None:
    velocity = StrokeFlow((((0.5, 0.5), (0.51, 0.5)),), brush=0.02).velocity(0, 128, 128)
    assert 5.5 < velocity.abs().max() <= 5.9 and velocity.square().mean() < 1.0


def test_strokes_on_turbulence_are_added_to_it() -> None:
    under = CurlNoise(octaves=2)
    velocity = StrokeFlow(ACROSS.strokes, over=under).velocity([3, 4], 48, 64)
    parts = ACROSS.velocity([3, 4], 48, 64) + under.velocity([3, 4], 48, 64)
    assert torch.allclose(velocity, parts / parts.square().mean((1, 2, 3), keepdim=True).sqrt(), atol=1e-5)
    assert not torch.equal(velocity[0], velocity[1]) and torch.allclose(solenoidal(velocity, "wall"), velocity, atol=1e-4)


def test_strokes_as_text() -> None:
    assert StrokeFlow.parse("100,500,900,500") == ACROSS
    assert StrokeFlow.parse(" 0,0,1000,1000  5,6,7,8 ").strokes == (((0.0, 0.0), (1.0, 1.0)), ((0.005, 0.006), (0.007, 0.008)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "takes 1 to 64 strokes of 512 points in all, got 0 of 0"),
        ("1,2", "a stroke needs at least two points, got 1"),
        ("1,2,3", "a stroke has an x and a y for each point, got 3 numbers"),
        ("a,b,c,d", "a stroke is x,y,x,y,... in thousandths"),
        ("1,2,3,1001", "a point of a stroke must be from 0 to 1, got 1.001"),
        ("1,2,3,4 " * 65, "takes 1 to 64 strokes of 512 points in all, got 65 of 130"),
        (",".join(["5"] * 1026), "takes 1 to 64 strokes of 512 points in all, got 1 of 513"),
        ("500,500,500,500", "these strokes leave no flow"),
    ],
)
def test_bad_strokes_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        StrokeFlow.parse(text).velocity(0, 16, 16)
    assert message in str(refused.value)


@pytest.mark.usefixtures("empty_figures")
def test_the_command_takes_strokes_and_octaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {}
    painted = ("--strokes", "100,500,900,500")
    both = (*painted, "--strokes-on", "turbulence", "--brush", 0.1, "--octaves", 2)
    for name, options in {"usual": (), "painted": painted, "smooth": ("--octaves", 1), "both": both}.items():
        assert exit_code(corrupt.main, "--size", 32, "--levels", 4, "--columns", 2, "--out", tmp_path / name, *options) == 0
        made[name] = read_image(tmp_path / name / "corrupted.png")
    assert min(np.abs(made["usual"] - made[name]).mean() for name in ("painted", "smooth", "both")) > 0.005
    for options, message in (
        (("--octaves", 2, "--turbulence", "spectral"), "--octaves is for curl-noise"),
        (("--strokes", "1,2", "--process", "fluid"), "--strokes does not go with --process"),
        (("--brush", 0.1), "--brush is for painted strokes; add --strokes"),
        ((*painted, "--octaves", 2), "--octaves is for turbulence; add --strokes-on turbulence"),
    ):
        capsys.readouterr()
        assert exit_code(corrupt.main, "--size", 32, "--out", tmp_path / "bad", *options) == 2
        assert message in said(capsys.readouterr())[1]
