from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lbm_warp import (
    AdvectionDiffusion,
    CurlNoise,
    FieldRequest,
    GivenVelocity,
    Schedule,
    SpectralTurbulence,
    TravellingWaves,
    Turbulence,
    energy_spectrum,
    solenoidal,
)
from lbm_warp.checks import InputError
from lbm_warp.turbulence import Remembering

DIVERGENCE_FREE = [CurlNoise(), CurlNoise(octaves=2, cells=5), SpectralTurbulence(), SpectralTurbulence(k_max=5.5, k_min=2.0)]
COMPRESSIBLE = SpectralTurbulence(compressible=True)
ALL = [*DIVERGENCE_FREE, COMPRESSIBLE]
every_boundary = pytest.mark.parametrize("boundary", ["wall", "periodic"])
every_turbulence = pytest.mark.parametrize("turbulence", [*ALL, TravellingWaves()], ids=str)
one_of_each = pytest.mark.parametrize("turbulence", [CurlNoise(), SpectralTurbulence(), COMPRESSIBLE, TravellingWaves()], ids=str)


def corner_divergence(v: torch.Tensor, boundary: str) -> torch.Tensor:
    """mean_y diff_x u_x + mean_x diff_y u_y on the corners of the cells: the net flow out of the square around a corner.

    Beyond a wall lies the mirror image (normal velocity reversed), beyond a periodic border the other side.
    """
    v = v.double()
    if boundary == "periodic":
        v = torch.cat([v[..., -1:], v, v[..., :1]], dim=3)
        v = torch.cat([v[..., -1:, :], v, v[..., :1, :]], dim=2)
    else:
        flip_x = torch.tensor([-1.0, 1.0], dtype=torch.float64, device=v.device)[:, None, None]
        v = torch.cat([v[..., :1] * flip_x, v, v[..., -1:] * flip_x], dim=3)
        flip_y = -flip_x
        v = torch.cat([v[..., :1, :] * flip_y, v, v[..., -1:, :] * flip_y], dim=2)
    along_x, along_y = v[:, 0].diff(dim=2), v[:, 1].diff(dim=1)
    return (along_x[:, 1:] + along_x[:, :-1] + along_y[:, :, 1:] + along_y[:, :, :-1]) / 2


@every_boundary
@pytest.mark.parametrize("turbulence", DIVERGENCE_FREE, ids=str)
def test_no_divergence_and_no_flow_through_walls(turbulence, boundary: str, device: torch.device) -> None:
    """Zero up to rounding, at the border too: the mirror images beyond it would show a flow through a wall."""
    v = turbulence.velocity([3, 4], 48, 72, boundary=boundary, device=device)
    gradient = v.diff(dim=3).abs().max()
    assert gradient > 0.1
    assert corner_divergence(v, boundary).abs().max() < 1e-5 * gradient
    compressible = COMPRESSIBLE.velocity(0, 48, 48, boundary=boundary, device=device)
    assert corner_divergence(compressible, boundary).abs().max() > 0.1


def test_generators_tell_whether_their_fields_have_divergence() -> None:
    assert not any(turbulence.compressible for turbulence in DIVERGENCE_FREE)
    field = torch.zeros((1, 2, 8, 8))
    assert COMPRESSIBLE.compressible and GivenVelocity(field).compressible and not GivenVelocity(field, project=True).compressible


@every_boundary
@pytest.mark.parametrize("turbulence", ALL, ids=str)
def test_every_field_has_unit_rms(turbulence, boundary: str, device: torch.device) -> None:
    v = turbulence.velocity(torch.arange(5), 40, 33, boundary=boundary, device=device)
    assert v.shape == (5, 2, 40, 33) and v.device.type == device.type
    # Unit rms of a component: the mean over both components and all cells.
    torch.testing.assert_close(v.double().square().mean(dim=(1, 2, 3)).cpu(), torch.ones(5, dtype=torch.float64), rtol=1e-5, atol=0)


@every_turbulence
def test_one_seed_is_one_field_in_every_batch(turbulence) -> None:
    together = turbulence.velocity([7, -1, 2**62, 8, 7 + 2**32], 32, 32)
    for index, seed in enumerate([7, -1, 2**62, 8, 7 + 2**32]):
        torch.testing.assert_close(together[index], turbulence.velocity(seed, 32, 32)[0], rtol=0, atol=0)
    correlation = torch.corrcoef(together.flatten(1))
    # A field has few large modes, so two fields are correlated a little; equal fields would have 1.
    assert (correlation - torch.eye(5)).abs().max() < 0.9


@every_turbulence
def test_fields_of_many_seeds_have_no_common_part(turbulence) -> None:
    """The mean of 64 independent fields has rms 1 / sqrt(64); twice that is very unlikely."""
    v = turbulence.velocity(range(64), 32, 32)
    assert v.mean(dim=0).square().mean().sqrt() < 0.25


@one_of_each
def test_a_seed_is_the_same_flow_at_every_resolution(turbulence) -> None:
    """Fields are functions of x / L: means over 2 x 2 pixels of the larger field are the smaller one, up to the grid's error."""
    fine = turbulence.velocity([1, 2], 128, 192)
    coarse = turbulence.velocity([1, 2], 64, 96)
    averaged = torch.nn.functional.avg_pool2d(fine, 2)
    assert (averaged - coarse).square().mean().sqrt() < 0.08


@one_of_each
def test_the_field_changes_smoothly_in_time(turbulence) -> None:
    now, soon, later = (turbulence.velocity(5, 48, 48, time=t) for t in (0.5, 0.501, 5.75))
    assert 0 < (soon - now).abs().max() < 0.1
    assert torch.corrcoef(torch.stack([now.flatten(), later.flatten()]))[0, 1] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("turbulence", "boundary", "slope", "reach"),
    [
        (SpectralTurbulence(k_max=40.0), "periodic", -5 / 3, (4, 20)),
        (SpectralTurbulence(k_max=40.0), "wall", -5 / 3, (4, 20)),
        (SpectralTurbulence(compressible=True, k_max=40.0), "periodic", -7 / 3, (4, 20)),
        (TravellingWaves(), "periodic", -7 / 3, (4, 32)),
        (CurlNoise(octaves=6), "periodic", -5 / 3, (4, 32)),
        (CurlNoise(octaves=6), "wall", -5 / 3, (4, 32)),
    ],
    ids=str,
)
def test_energy_spectrum_follows_its_power_law(turbulence, boundary: str, slope: float, reach: tuple[int, int]) -> None:
    """Mean of 16 fields: slope within 0.15 over the inertial range, from the largest eddies to the limit of the generator."""
    k, energy = energy_spectrum(turbulence.velocity(range(16), 256, 256, boundary=boundary), boundary)
    inertial = (k >= reach[0]) & (k <= reach[1])
    assert np.polyfit(k[inertial].log(), energy[inertial].log(), 1)[0] == pytest.approx(slope, abs=0.15)


@every_boundary
def test_the_energy_spectrum_of_one_mode(boundary: str, device: torch.device) -> None:
    """All the energy of a mode with m periods along the shorter side is at wavenumber m (Parseval)."""
    size, m = 32, 5
    y = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) / size
    mode = torch.sin(2 * torch.pi * m * y) if boundary == "periodic" else torch.cos(2 * torch.pi * m * y)
    velocity = torch.zeros((1, 2, size, 2 * size), dtype=torch.float64, device=device)
    velocity[0, 0] = mode[:, None]
    if boundary == "wall":  # v_x is zero at the walls at both ends of x
        velocity[0, 0] *= torch.sin(torch.pi * (torch.arange(2 * size, device=device) + 0.5) / (2 * size))
    k, energy = energy_spectrum(velocity, boundary)
    assert energy.sum() == pytest.approx(velocity.square().sum(dim=1).mean().item() / 2, rel=1e-12)
    assert int(k[energy.argmax()]) == m and energy.max() > (1 - 1e-12) * energy.sum()


def test_k_min_and_k_max_limit_the_spectrum() -> None:
    """A periodic field has no energy outside k_min to k_max."""
    v = SpectralTurbulence(k_min=3.0, k_max=9.0).velocity([1, 2], 64, 64, boundary="periodic").double()
    energy = torch.fft.fft2(v).abs().square().sum(dim=(0, 1))
    periods = torch.fft.fftfreq(64, 1 / 64, dtype=torch.float64)
    k = torch.hypot(periods[:, None], periods[None])
    inside = (k >= 3.0 - 1e-6) & (k <= 9.0 + 1e-6)
    assert energy[~inside].sum() < 1e-10 * energy[inside].sum()
    assert energy[(k >= 3.0) & (k < 4.0)].sum() > 0.05 * energy.sum()


@every_boundary
@pytest.mark.parametrize("size", [(24, 36), (17, 20)])
def test_the_projection_removes_the_divergence_and_nothing_else(boundary: str, size: tuple[int, int], device: torch.device) -> None:
    """No divergence up to rounding; no change of fields without divergence; the removed part is orthogonal to the rest."""
    field = torch.randn((3, 2, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
    projected = solenoidal(field, boundary)
    assert corner_divergence(projected, boundary).abs().max() < 1e-12 < 1.0 < corner_divergence(field, boundary).abs().max()
    torch.testing.assert_close(solenoidal(projected, boundary), projected, rtol=0, atol=1e-12)
    removed = field - projected
    assert abs((removed * projected).sum().item()) < 1e-9 * removed.square().sum().item()
    curl = CurlNoise().velocity(1, *size, boundary=boundary, device=device).double()
    torch.testing.assert_close(solenoidal(curl, boundary), curl, rtol=0, atol=1e-6)


def test_given_velocities_are_used_as_they_are(photograph: torch.Tensor) -> None:
    schedule = Schedule.geometric(0.5, 8.0, 5)
    field = CurlNoise().velocity([4, 5], 128, 128)
    images = photograph.repeat(2, 1, 1, 1)
    # On one grid: a given field may have divergence, and is used on coarser grids later.
    options = {"peclet": 8.0, "coarsen": False}
    expected = AdvectionDiffusion(schedule, turbulence=CurlNoise(), **options)(images, 5, seed=[4, 5])
    given = AdvectionDiffusion(schedule, turbulence=GivenVelocity(field), **options)(images, 5, seed=[0, 0])
    assert torch.equal(given, expected)
    one = AdvectionDiffusion(schedule, turbulence=GivenVelocity(field[:1]), **options)(images, 5, seed=0)
    assert torch.equal(one[0], expected[0]) and torch.equal(one[1], expected[0])
    compressible = COMPRESSIBLE.velocity(3, 128, 128)
    flat = torch.full((1, 1, 128, 128), 0.5)
    spread = [
        AdvectionDiffusion(schedule, peclet=2.0, turbulence=GivenVelocity(compressible, project))(flat, 5, seed=0).std().item()
        for project in (False, True)
    ]
    assert spread[0] > 0.01 and spread[1] < 0.05 * spread[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CurlNoise(octaves=0), "octaves must be at least 1, got 0"),
        (lambda: SpectralTurbulence(k_max=0.0), "k_max must be at least 1"),
        (lambda: SpectralTurbulence(k_max=4.0, k_min=4.0), "k_min must be from 0 to 3.996"),
        (lambda: CurlNoise().velocity(0, 1, 8), "height must be at least 2"),
        (lambda: CurlNoise().velocity(0.5, 8, 8), "seed must be integer"),
        (lambda: GivenVelocity(torch.zeros(1, 3, 8, 8)), r"shape \[N, 2, H, W\] with H, W >= 2, got \[1, 3, 8, 8\]"),
        (lambda: GivenVelocity(np.zeros((1, 2, 8, 8))), "got ndarray"),
        (lambda: GivenVelocity(torch.full((1, 2, 8, 8), 7.0)), "at most 6 V in each component, got 7 V"),
        (lambda: GivenVelocity(torch.full((1, 2, 8, 8), torch.nan)), "must be finite"),
        (lambda: GivenVelocity(torch.zeros(2, 2, 8, 8)).velocity([1, 2, 3], 8, 8), r"need \[3, 2, 8, 8\] or \[1, 2, 8, 8\]"),
        (lambda: GivenVelocity(torch.zeros(1, 2, 8, 8)).velocity(0, 8, 9), r"need \[1, 2, 8, 9\]"),
        (lambda: solenoidal(torch.zeros(1, 2, 8, 8), "open"), "boundary must be one of"),
        (lambda: CurlNoise().velocity(0, 8, 8, boundary="open"), "boundary must be one of wall, periodic, got 'open'"),
    ],
)
def test_bad_values_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@dataclass(frozen=True)
class Shear(Turbulence):
    """A flow of one's own: one field for all seeds."""

    strength: float = 1.4142

    random = False

    def field(self, ask: FieldRequest) -> torch.Tensor:
        y = 2 * torch.pi * (torch.arange(ask.height, device=ask.device) + 0.5) / ask.height
        v_x = self.strength * torch.sin(y + ask.time)[:, None].expand(ask.height, ask.width)
        return torch.stack([v_x, torch.zeros_like(v_x)])[None]


def test_a_flow_of_ones_own_is_one_method(device: torch.device) -> None:
    v = Shear().velocity([1, 2, 3], 12, 16, device=device)
    assert v.shape == (3, 2, 12, 16) and v.is_contiguous() and v.device.type == device.type and torch.equal(v[0], v[2])
    assert Shear().compressible and not Shear().bounded
    images = torch.rand((2, 1, 12, 16)).to(device)
    given = AdvectionDiffusion(Schedule.geometric(0.5, 3.0, 4), peclet=4.0, turbulence=GivenVelocity(v[:1]))
    operator = AdvectionDiffusion(Schedule.geometric(0.5, 3.0, 4), peclet=4.0, turbulence=Shear())
    assert torch.equal(operator(images, 4, [1, 2]), given(images, 4, 0)) and not operator.random
    moving = AdvectionDiffusion(Schedule.geometric(0.5, 3.0, 4), peclet=4.0, turbulence=Shear(), turbulence_time=20.0)
    assert not torch.equal(moving(images, 4, 0), given(images, 4, 0))


@dataclass(frozen=True)
class Counted(Turbulence):
    """Counts how often its fields are made."""

    made: list[FieldRequest]

    def field(self, ask: FieldRequest) -> torch.Tensor:
        self.made.append(ask)
        return CurlNoise().field(ask)


def test_a_flow_is_made_once_for_many_calls_with_the_same_seeds() -> None:
    """The last one alone is kept; a request is the same by its values, not because it is the same object."""
    counted, seed = Counted([]), torch.tensor([3, 5])
    remembering = Remembering(counted)
    with torch.inference_mode():
        first = remembering.velocity(seed, 8, 12)
    assert torch.equal(first, CurlNoise().velocity([3, 5], 8, 12)) and remembering.random and not first.is_inference()
    for again in ([3, 5], torch.tensor([3, 5])):
        assert torch.equal(remembering.velocity(again, 8, 12), first) and len(counted.made) == 1
    seed += 1
    others = [{"seed": seed}, {"seed": 3}, {"height": 12}, {"boundary": "periodic"}, {"time": 0.5}, {}]
    for count, other in enumerate(others, 2):
        given = {"seed": [3, 5], "height": 8, "width": 12} | other
        assert torch.equal(remembering.velocity(**given), CurlNoise().velocity(**given)) and len(counted.made) == count
    field = torch.rand((1, 2, 8, 12), requires_grad=True)
    for _ in range(2):
        assert Remembering(GivenVelocity(field)).velocity(0, 8, 12).requires_grad


def test_what_is_asked_for() -> None:
    asked: list[FieldRequest] = []

    class Watched(Shear):
        def field(self, ask: FieldRequest) -> torch.Tensor:
            asked.append(ask)
            return super().field(ask)

    Watched().velocity([3, -1], 8, 10, boundary="periodic", time=0.5, span=0.25)
    Watched().velocity(7, 8, 10)
    (first, second) = asked
    assert first.seeds.tolist() == [3, -1] and first.seeds.dtype == torch.int64 and second.seeds.tolist() == [7]
    assert (first.height, first.width, first.boundary, first.time, first.span) == (8, 10, "periodic", 0.5, 0.25)
    assert first.device == torch.device("cpu") and (second.boundary, second.time, second.span) == ("wall", 0.0, 0.0)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda v: v[:, :1], r"the velocity of Bad has shape \[1, 1, 8, 10\], the images need \[3, 2, 8, 10\] or \[1, 2, 8, 10\]"),
        (lambda v: v.expand(2, -1, -1, -1), r"has shape \[2, 2, 8, 10\]"),
        (lambda v: v[0], r"has shape \[2, 8, 10\]"),
        (lambda v: v.long(), "the velocity of Bad must be a floating-point tensor, got torch.int64"),
        (lambda v: v.numpy(), "must be a floating-point tensor, got float32"),
        (lambda v: None, "must be a floating-point tensor, got NoneType"),
        (lambda v: v / 0.0, "the velocity of Bad must be finite and at most 6 V in each component, got (inf|nan) V"),
        (lambda v: 7.0 * v, r"at most 6 V in each component, got 9\.\d+ V: divide it by its rms"),
    ],
)
def test_a_field_that_is_none_is_refused_in_one_line(field, message: str) -> None:
    class Bad(Shear):
        def field(self, ask: FieldRequest) -> torch.Tensor:
            return field(super().field(ask))

    with pytest.raises(InputError, match=message) as error:
        Bad().velocity([1, 2, 3], 8, 10)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="Nothing needs a method field"):
        type("Nothing", (Turbulence,), {})().velocity(0, 8, 8)
