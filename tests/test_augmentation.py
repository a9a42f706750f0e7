"""Turbulence as an augmentation: invariants of paths, and that images, masks and boxes stay together."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lbm_warp import AdvectionDiffusion, GivenVelocity, RandomTurbulence, Schedule, as_physics
from lbm_warp.checks import InputError


def vortex(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The stream function sin(pi x / W) sin(pi y / H) at the centres of the cells, and its velocity with unit rms."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    velocity = torch.stack(
        [torch.sin(np.pi * x) * torch.cos(np.pi * y) / height, -torch.cos(np.pi * x) * torch.sin(np.pi * y) / width]
    )
    return torch.sin(np.pi * x) * torch.sin(np.pi * y), (velocity / velocity.square().mean().sqrt())[None]


def disc(height: int, width: int, centre: tuple[float, float], radius: float) -> torch.Tensor:
    """A disc with a border of a pixel, [1, 1, H, W]."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    distance = torch.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2)
    return (radius + 0.5 - distance).clamp(0.0, 1.0)[None, None]


def centre(image: torch.Tensor) -> np.ndarray:
    """Centre of mass (x, y) [pixels]."""
    weight = image.double().squeeze().numpy()
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_paths_keep_the_stream_function_and_lead_back() -> None:
    """Second order in the cell by the linear interpolation; a quarter of a turn in a vortex that fills the image."""
    errors = []
    for height, width in ((24, 36), (48, 72)):
        transform = RandomTurbulence(peclet=400.0, sigma_max=0.04, turbulence=GivenVelocity(vortex(height, width)[1]), levels=1)
        flow = transform.draw(1, height, width, seed=0)
        x = torch.rand((1, 200, 2), generator=torch.Generator().manual_seed(1)) * torch.tensor([width, height])
        carried = flow.points(x)
        assert (carried - x).norm(dim=-1).mean() > 0.1 * height
        assert carried.min() >= 0 and (carried <= torch.tensor([width, height])).all()
        assert (flow.points(carried, backward=True) - x).abs().max() < 0.02
        psi = [torch.sin(np.pi * p[..., 0] / width) * torch.sin(np.pi * p[..., 1] / height) for p in (x, carried)]
        errors.append((psi[1] - psi[0]).abs().max().item())
    assert errors[0] < 4e-3 and errors[1] < errors[0] / 3


def test_images_masks_and_boxes_stay_together() -> None:
    """A disc carried as an image and as labels; a square as a mask and as a box."""
    image = disc(64, 96, (40.0, 30.0), 12.0)
    transform = RandomTurbulence(peclet=150.0, sigma_max=0.03, levels=1)
    flow = transform.draw(4, 64, 96, seed=range(4))
    images = flow.images(image.expand(4, -1, -1, -1))
    labels = torch.where(image > 0.5, 7, 2).expand(4, -1, -1, -1)
    masks = flow.masks(labels)
    boxes = flow.boxes(torch.tensor([[[28, 18, 52, 42]]]).expand(4, -1, -1))
    square = torch.zeros((1, 1, 64, 96), dtype=torch.bool)
    square[:, :, 18:42, 28:52] = True
    squares = flow.masks(square.expand(4, -1, -1, -1))
    assert masks.dtype == boxes.dtype == torch.int64 and set(masks.unique().tolist()) == {2, 7}
    for i in range(4):
        found = masks[i, 0] == 7
        assert np.abs(centre(images[i]) - centre(found)).max() < 0.35
        assert np.abs(centre(found) - [40.0, 30.0]).max() > 0.5
        assert abs(found.sum() / (labels[0] == 7).sum() - 1) < 0.03, "a flow without divergence keeps the area"
        rows, columns = np.nonzero(squares[i, 0].numpy())
        edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(boxes[i, 0].numpy() - edges).max() <= 1.5


def test_a_batch_its_parts_and_another_run_agree() -> None:
    transform, images = RandomTurbulence(p=0.7), torch.rand((6, 3, 16, 24))
    together = transform.draw(6, 16, 24, seed=range(6))
    assert 0 < (together.level == 0).sum() < 6 and len(together.level.unique()) > 3
    for i in range(6):
        assert torch.equal(transform.draw(1, 16, 24, seed=i).images(images[i : i + 1])[0], together.images(images)[i])
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(transform(images))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


class Augmented(Dataset):
    """Eight pictures, changed as they are read."""

    def __init__(self) -> None:
        self.transform = RandomTurbulence()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(torch.full((1, 16, 16), index / 8.0).cumsum(-1))


def test_in_the_workers_of_a_loader() -> None:
    """After the kernels ran in this process; torch seeds the workers."""
    RandomTurbulence()(torch.rand((8, 3, 64, 64)))
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(torch.cat(list(DataLoader(Augmented(), batch_size=2, num_workers=2, timeout=60))))
    assert torch.equal(*results) and results[0].shape == (8, 1, 16, 16)


def test_what_is_not_changed() -> None:
    images, target = torch.rand((2, 3, 8, 8)), {"label": 3, "weights": torch.rand((2, 3, 8, 8))}
    same, other = RandomTurbulence(p=0.0)(images, target)
    assert torch.equal(same, images) and other["label"] == 3 and other["weights"] is target["weights"]
    flow = RandomTurbulence(p=0.0).draw(2, 8, 8, seed=1)
    box = torch.tensor([[[1.5, 2.0, 5.0, 9.5]]]).expand(2, -1, -1)
    assert torch.equal(flow.boxes(box), box) and torch.equal(flow.masks(images), images)


def test_dtypes_and_gradients() -> None:
    transform = torch.nn.Sequential(RandomTurbulence(levels=1), torch.nn.Identity())
    pixels = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    results = []
    for image in (pixels, pixels.float() / 255.0):
        torch.manual_seed(0)
        results.append(transform(image))
    assert results[0].dtype == torch.uint8 and results[0].shape == (3, 16, 16)
    assert (results[0] / 255.0 - results[1]).abs().max() <= 0.5 / 255.0 + 1e-6
    image = torch.rand((1, 1, 8, 8), requires_grad=True)
    transform(image).sum().backward()
    # Mass is conserved, so every pixel counts once.
    torch.testing.assert_close(image.grad, torch.ones_like(image), rtol=0, atol=1e-5)


def test_bad_input_is_refused() -> None:
    for options, message in (
        ({"peclet": -1.0}, "peclet must be"),
        ({"sigma_max": 0.0}, "sigma_max must be"),
        ({"p": 2.0}, "p must be"),
    ):
        with pytest.raises(InputError, match=message):
            RandomTurbulence(**options)
    with pytest.raises(InputError, match=r"v2\.ToImage"):
        RandomTurbulence()("no picture")
    flow = RandomTurbulence().draw(2, 8, 12, seed=0)
    for shape in ((3, 1, 8, 12), (2, 1, 16, 24), (2, 8, 12)):
        for images in (torch.zeros(shape), torch.zeros(shape, dtype=torch.uint8)):
            with pytest.raises(InputError, match=r"images must be a dense tensor \[2, M, 8, 12\]"):
                flow.images(images)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed")
def test_torchvision_samples() -> None:
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    image = tv_tensors.Image((255 * disc(64, 96, (40.0, 30.0), 12.0)[0]).to(torch.uint8).expand(3, -1, -1))
    boxes = tv_tensors.BoundingBoxes([[28, 18, 24, 24]], format="XYWH", canvas_size=(64, 96))
    sample = {
        "image": image,
        "boxes": boxes,
        "mask": tv_tensors.Mask(image[0] > 128),
        "video": tv_tensors.Video(image.expand(4, -1, -1, -1)),
    }
    result = v2.Compose([RandomTurbulence(peclet=300.0, levels=1)])(sample)
    assert all(type(result[name]) is type(sample[name]) and result[name].dtype == sample[name].dtype for name in sample)
    assert all(torch.equal(frame, result["image"]) for frame in result["video"])
    x, y, w, h = result["boxes"][0].tolist()
    rows, columns = np.nonzero(result["mask"].numpy())
    assert x - 1 <= columns.min() and columns.max() <= x + w and y - 1 <= rows.min() and rows.max() <= y + h


def test_physics_of_deepinv(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and adjoint as deepinv would call them; where it is installed, its own test of adjointness."""
    operator, x = AdvectionDiffusion(Schedule.geometric(0.5, 3.0, 10), peclet=8.0), torch.rand((2, 3, 16, 16))
    if importlib.util.find_spec("deepinv") is None:
        stand_in = ModuleType("deepinv.physics")
        stand_in.LinearPhysics = lambda **options: SimpleNamespace(**options)
        monkeypatch.setitem(sys.modules, "deepinv", ModuleType("deepinv"))
        monkeypatch.setitem(sys.modules, "deepinv.physics", stand_in)
    else:
        assert float(as_physics(operator, 5).adjointness_test(x)) < 1e-5
    physics, w = as_physics(operator, 5, seed=[3, 4]), torch.rand((2, 3, 16, 16))
    assert torch.equal(physics.A(x), operator(x, 5, [3, 4]))
    assert (physics.A(x) * w).sum().item() == pytest.approx((x * physics.A_adjoint(w)).sum().item(), rel=1e-5)
    with pytest.raises(InputError, match="this AdvectionDiffusion is not: with a background, offset must be 0"):
        as_physics(AdvectionDiffusion(Schedule.geometric(), offset=9.5), 1)


def test_without_deepinv_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepinv.physics", None)
    with pytest.raises(InputError, match=r"pip install 'beyond-blur"):
        as_physics(AdvectionDiffusion(Schedule.geometric()), 1)
