"""Gradients through the operator: the adjoint scheme against finite differences and against the operator itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from lbm_warp import AdvectionDiffusion, CurlNoise, Schedule, SpectralTurbulence
from lbm_warp.checks import InputError
from lbm_warp.grids import (
    prolong,
    prolong_transposed,
    restrict,
    restrict_transposed,
    restrict_velocity,
    restrict_velocity_transposed,
)
from lbm_warp.planner import Scheme

FLOWS = {
    "heat": {"peclet": 0.0},
    "curl noise": {"peclet": 4.0, "turbulence": CurlNoise()},
    "compressible, with a background": {"peclet": 0.5, "turbulence": SpectralTurbulence(compressible=True), "offset": 9.5},
}


def random(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize("flow", FLOWS)
def test_gradcheck_in_float64(flow: str, boundary: str, device: torch.device) -> None:
    """Finite differences of the operator and of a pair; every image has another level."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 3.5, 6), boundary=boundary, **FLOWS[flow])
    u0 = random((3, 1, 4, 5), 0, device).requires_grad_()
    level, seed = torch.tensor([0, 3, 6]), torch.tensor([1, 2, 3])
    assert torch.autograd.gradcheck(lambda u: operator(u, level, seed), u0)
    assert torch.autograd.gradcheck(lambda u: operator.pair(u, level.clamp(min=1), seed), u0)


@pytest.mark.slow
@pytest.mark.parametrize("boundary", ["wall", "periodic"])
@pytest.mark.parametrize(
    ("turbulence", "rate"), [(CurlNoise(), 0.0), (CurlNoise(), 3.0), (SpectralTurbulence(compressible=True), 0.0)]
)
def test_the_adjoint_is_the_transpose_through_hundreds_of_iterations_and_all_grids(
    turbulence, rate: float, boundary: str, device: torch.device
) -> None:
    """<w, A u> = <A^T w, u> in float64, with levels on each of three grids in one batch."""
    schedule = Schedule(np.array([0.0, 1.0, 5.0, 12.0, 20.0, 40.0]))
    scheme = Scheme(min_cells=16, min_cells_per_peclet=4.0, min_cells_per_root_source=4.0)
    operator = AdvectionDiffusion(
        schedule, peclet=4.0, turbulence=turbulence, boundary=boundary, turbulence_time=rate, scheme=scheme
    )
    level, seed = torch.tensor([5, 1, 4, 0, 3, 2]), torch.arange(6)
    assert set(operator.plan(64, 96).level_grid[level]) == {0, 1, 2}
    u, w = random((6, 2, 64, 96), 1, device), random((6, 2, 64, 96), 2, device)
    forward = (operator(u, level, seed) * w).sum(dim=(1, 2, 3))
    backward = (operator.adjoint(w, level, seed) * u).sum(dim=(1, 2, 3))
    torch.testing.assert_close(forward, backward, rtol=1e-12, atol=0)


def test_backward_of_a_loss_is_the_adjoint(photograph: torch.Tensor, device: torch.device) -> None:
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 8.0, 10), peclet=8.0)
    u0 = photograph.clone().to(device).requires_grad_()
    target = torch.zeros_like(u0)
    loss = 0.5 * (operator(u0, 7, seed=3) - target).square().sum()
    loss.backward()
    expected = operator.adjoint(operator(u0.detach(), 7, seed=3), 7, seed=3)
    torch.testing.assert_close(u0.grad, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert not operator(u0, 7, seed=3).requires_grad


def test_gradient_descent_recovers_a_sharper_image(photograph: torch.Tensor) -> None:
    """The loss against a corrupted image falls, and the estimate of its source improves."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 3.0, 4), peclet=8.0)
    corrupted = operator(photograph, 4, seed=0)
    guess = corrupted.clone().requires_grad_()
    errors = []
    for _ in range(15):
        error = (operator(guess, 4, seed=0) - corrupted).square().sum()
        (gradient,) = torch.autograd.grad(error, guess)
        guess = (guess - 0.5 * gradient).detach().requires_grad_()
        errors.append(error.item())
    assert errors[-1] < 0.1 * errors[0]
    assert (guess - photograph).square().sum() < (corrupted - photograph).square().sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_have_the_dtype_of_the_images(dtype: torch.dtype, device: torch.device) -> None:
    """Half precision is computed in float32 and rounded once; float32 agrees with float64 up to rounding."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 6.0, 5), peclet=4.0)
    u0 = random((2, 3, 20, 20), 0, device, dtype)
    reference = operator(u0.double(), 5, seed=[1, 2])
    for result in (
        operator(u0, 5, seed=[1, 2]),
        operator.pair(u0, 5, seed=[1, 2])[1],
        operator.adjoint(u0, 0, seed=[1, 2]) * 0 + reference,
    ):
        tolerance = {torch.float64: 1e-12}.get(dtype, torch.finfo(dtype).eps + 1e-5)
        torch.testing.assert_close(result.double(), reference, rtol=0, atol=tolerance)
    assert operator(u0, 5, seed=[1, 2]).dtype == dtype == operator.adjoint(u0, 3, seed=[1, 2]).dtype
    assert next(iter(operator.trajectory(u0, seed=[1, 2])))[1].dtype == dtype
    gradient = torch.autograd.grad(operator(u0.requires_grad_(), 3, seed=[1, 2]).sum(), u0)[0]
    assert gradient.dtype == dtype


@pytest.mark.slow
@pytest.mark.parametrize("flow", FLOWS)
def test_second_derivatives(flow: str, device: torch.device) -> None:
    """The operator is linear up to its background, so the derivative of its adjoint is the operator without the background."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 3.5, 6), **FLOWS[flow])
    u0, level, seed = random((2, 1, 4, 5), 0, device).requires_grad_(), torch.tensor([6, 2]), torch.tensor([1, 2])
    assert torch.autograd.gradgradcheck(lambda u: operator(u, level, seed).pow(3), u0)
    assert torch.autograd.gradgradcheck(lambda u: operator.pair(u, level, seed)[0].pow(3), u0)
    assert torch.autograd.gradcheck(lambda w: operator.adjoint(w, level, seed), u0)


def test_second_derivatives_on_several_grids_with_a_background(device: torch.device) -> None:
    """The derivative of the adjoint is A(u) - A(0), on the grids of the operator itself: without a background they are others."""
    options = {"peclet": 0.5, "turbulence": SpectralTurbulence(compressible=True)}
    scheme = Scheme(min_cells=4, min_cells_per_peclet=0.0, min_cells_per_root_source=6.0, coarsen_from_sigma_lu=2.0)
    with_background, without = (
        AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 6), offset=c, scheme=scheme, **options) for c in (9.5, 0.0)
    )
    assert 1 < len(with_background.plan(64, 64).grids) < len(without.plan(64, 64).grids)
    u, w = random((2, 1, 64, 64), 0, device), random((2, 1, 64, 64), 1, device).requires_grad_()
    level, seed = torch.tensor([6, 5]), torch.tensor([1, 2])
    (gradient,) = torch.autograd.grad((with_background.adjoint(w, level, seed) * u).sum(), w)
    linear = with_background(u, level, seed) - with_background(torch.zeros_like(u), level, seed)
    torch.testing.assert_close(gradient, linear, rtol=0, atol=1e-12)


def test_the_gradient_of_a_pair_is_that_of_its_results(device: torch.device) -> None:
    """With both results in the loss, and with one of them alone."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 10), peclet=6.0)
    u0, w = random((3, 1, 64, 64), 0, device).requires_grad_(), random((3, 1, 64, 64), 1, device)
    level, seed = torch.tensor([3, 10, 8]), torch.tensor([1, 2, 3])
    before, after = operator.pair(u0, level, seed)
    each = [operator.adjoint(w, level - 1, seed), operator.adjoint(w.flip(3), level, seed)]
    for loss, expected in (((before * w).sum(), each[0]), ((after * w.flip(3)).sum(), each[1])):
        torch.testing.assert_close(torch.autograd.grad(loss, u0, retain_graph=True)[0], expected, rtol=0, atol=1e-14)
    both = torch.autograd.grad((before * w + after * w.flip(3)).sum(), u0)[0]
    torch.testing.assert_close(both, sum(each), rtol=0, atol=1e-14)


@pytest.mark.parametrize("peclet", [0.0, 4.0])
def test_transforms_of_torch(peclet: float, device: torch.device) -> None:
    """Of torch.func they are right without a flow, and refused with one; forward-mode derivatives are right in both."""
    u, v = (random((2, 1, 6, 8), seed, device) for seed in (0, 1))
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 2.0, 4), peclet=peclet)
    image = partial(operator, level=3, seed=0)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(image(forward_ad.make_dual(u, v))).tangent
    torch.testing.assert_close(tangent, image(v), rtol=0, atol=1e-14)
    leaf = u.clone().requires_grad_()
    transforms = {
        "grad": (torch.func.grad(lambda u: (image(u) * v).sum()), operator.adjoint(v, 3, 0)),
        "vmap": (torch.func.vmap(lambda u: image(u[None])[0]), image(u)),
        "jvp": (lambda u: torch.func.jvp(image, (u,), (v,))[1], image(v)),
        "batch": (
            lambda _: torch.autograd.grad(image(leaf), leaf, v[None], is_grads_batched=True)[0][0],
            operator.adjoint(v, 3, 0),
        ),
    }
    for transformed, expected in transforms.values():
        if peclet > 0.0:
            with pytest.raises(InputError, match=r"computed by kernels, which torch.func .* cannot transform; take gradients with"):
                transformed(u)
        else:
            torch.testing.assert_close(transformed(u), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("peclet", [0.0, 8.0])
def test_transforms_that_read_no_values_are_refused_in_one_line(peclet: float, device: torch.device) -> None:
    """And nothing of them stays in a cache."""
    u, operator = random((2, 1, 5, 7), 0, device), AdvectionDiffusion(Schedule.geometric(0.5, 2.0, 4), peclet=peclet)
    image = partial(operator, level=3, seed=0)
    expected, levels = image(u), torch.tensor([1, 2, 3])
    for transformed in (
        lambda: torch.func.linearize(image, u),
        lambda: torch.func.linearize(lambda u: operator.pair(u, 3, 0)[1], u),
        lambda: torch.func.vmap(lambda level: operator(u, level, 0))(levels),
        lambda: torch.func.vmap(lambda level: operator.adjoint(u, level, 0))(levels),
        lambda: make_fx(image)(u),
    ):
        with pytest.raises(InputError, match=r"levels have no values under vmap over them, nor in a trace .*linearize"):
            transformed()
    with pytest.raises(InputError, match="functionalize cannot transform" if peclet == 0.0 else "torch.func .* cannot transform"):
        torch.func.functionalize(image)(u)
    assert torch.equal(image(u), expected)


@pytest.mark.parametrize("peclet", [0.0, 8.0])
def test_modes_of_torch_change_nothing(peclet: float, device: torch.device) -> None:
    """Inference mode, before and after other calls, autocast, several threads, and a compiled caller."""
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 12.0, 10), peclet=peclet)
    u0, level, seed = random((2, 3, 64, 64), 0, device, torch.float32), torch.tensor([4, 10]), torch.tensor([1, 2])
    with torch.inference_mode():
        inferred, transposed = operator(u0, level, seed), operator.adjoint(u0, level, seed)
    result = operator(u0.clone().requires_grad_(), level, seed)
    result.sum().backward()
    assert torch.equal(inferred, result) and torch.equal(transposed, operator.adjoint(u0, level, seed))
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(operator(u0, level, seed), inferred) and torch.equal(operator.adjoint(u0, level, seed), transposed)
    with ThreadPoolExecutor(4) as threads:
        for other in threads.map(lambda _: operator(u0, level, seed), range(8)):
            assert torch.equal(other, inferred)
    # Compiled by Dynamo alone: the call stays outside the compiled parts.
    compiled = torch.compile(lambda u: operator(u + 0.0, level, seed) * 2.0, backend="eager")
    assert torch.equal(compiled(u0), inferred * 2.0)
    torch.compiler.reset()


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (4, 2), (2, 6)])
def test_transfers_between_grids_and_their_transposes(size: tuple[int, int], periodic: bool, device: torch.device) -> None:
    """<P u, w> = <u, P' w>; sizes whose mirror images are mirrored again, too."""
    fine, coarse = random((2, 2, *size), 0, device), random((2, 2, size[0] // 2, size[1] // 2), 1, device)
    for there, back in (
        (restrict(fine), restrict_transposed(coarse)),
        (prolong_transposed(fine, periodic), prolong(coarse, periodic)),
        (restrict_velocity(fine, periodic), restrict_velocity_transposed(coarse, periodic)),
    ):
        torch.testing.assert_close((there * coarse).sum(), (fine * back).sum(), rtol=1e-12, atol=1e-12)
