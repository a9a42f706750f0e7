"""A trained run as an object: what it draws, and what it takes from others' folders and from the Hub."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import pydoc
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

import diffusion
from diffusion import Pipeline
from diffusion.data.dataset import open_dataset
from diffusion.files import load_tensors, save_tensors
from diffusion.learning_rate import WarmUpAndDecay
from diffusion.methods import METHODS, named_method
from diffusion.presets import preset, preset_for
from diffusion.rng import seeds
from diffusion.run import fingerprint
from diffusion.samplers import ODE, MeanColour, Resample
from diffusion.sampling.pipeline import BUNDLED
from diffusion.sampling.prior import Prior
from diffusion.size import Size
from diffusion.training.loop import train
from lbm_warp import CurlNoise
from lbm_warp.checks import InputError
from tests.runs import SIZE, stripes, tiny_config

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


class Still(nn.Module):
    """A network that predicts no change, and remembers how many images it was given at a time."""

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.room = room
        self.asked: list[int] = []

    def forward(self, u: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(u))
        if len(u) > self.room:
            raise torch.OutOfMemoryError("no room")
        return torch.zeros_like(u)


def still(room: int = 1000, batch: int | None = None, process: str = "beyond-blur") -> Pipeline:
    config = tiny_config(process)
    return Pipeline(config, Still(room), Prior.build(stripes(), config.method, CPU), batch=batch)


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A finished run with an evaluation."""
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    (folder / "metrics.json").write_text(json.dumps({"fid": 12.3456, "scores": {"recall": 0.5}, "features": "digits", "ok": True}))
    return folder


@pytest.fixture
def pipeline(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run)


# What it draws


def test_an_image_depends_on_the_seed_and_its_number_alone(pipeline: Pipeline) -> None:
    images = pipeline.sample(5, seed=3)
    assert images.shape == (5, 1, SIZE, SIZE) and images.dtype == torch.float32
    assert (images[0] - images[1]).abs().max() > 0.01
    torch.testing.assert_close(pipeline.sample([4, 1], seed=3), images[[4, 1]], rtol=0, atol=1e-5)
    assert (pipeline.sample(1, seed=4) - images[:1]).abs().max() > 0.01
    assert torch.equal(pipeline.sample(5, seed=3), images)
    pipeline.batch = 2
    torch.testing.assert_close(pipeline.sample(5, seed=3), images, rtol=0, atol=1e-5)


def test_all_from_the_same_start_or_with_the_same_noise() -> None:
    """With a network that changes nothing a sample is its start and its noise."""
    pipeline = still()
    starts, samples = {}, {}
    for name, options in {"own": {}, "start": {"same_init": True}, "noise": {"share_noise": True}}.items():
        seen: list[torch.Tensor] = []
        samples[name] = pipeline.sample([0, 7, 3], callback=lambda level, u, seen=seen: seen.append(u), **options)
        starts[name] = seen[0]
    noises = {name: samples[name] - starts[name] for name in samples}
    assert torch.equal(starts["start"], starts["own"][:1].expand(3, -1, -1, -1))
    torch.testing.assert_close(noises["start"], noises["own"], rtol=0, atol=1e-6)
    assert torch.equal(starts["noise"], starts["own"])
    torch.testing.assert_close(noises["noise"], noises["own"][:1].expand(3, -1, -1, -1), rtol=0, atol=1e-6)
    assert (starts["own"][0] - starts["own"][1]).abs().max() > 0.01 < (noises["own"][0] - noises["own"][1]).abs().max()
    # Number 0 is the one that the others share with, asked for or not.
    assert torch.equal(pipeline.sample([7], same_init=True), samples["start"][1:2])


def test_sampling_noise_is_in_units_of_the_training_noise() -> None:
    pipeline = still()
    starts: list[torch.Tensor] = []
    quiet = pipeline.sample(3, sampling_noise=0.0, callback=lambda level, u: starts.append(u))
    assert torch.equal(quiet, starts[0])
    usual, default, double = (pipeline.sample(3, sampling_noise=noise) - quiet for noise in (1.25, None, 2.5))
    assert torch.equal(usual, default)
    torch.testing.assert_close(double, 2 * usual, rtol=0, atol=1e-6)
    assert torch.equal(pipeline.with_sampling_noise(2.5).sample(3) - quiet, double)


def test_fewer_steps_skip_levels() -> None:
    pipeline = still()
    visited: list[int] = []
    pipeline.sample(1, steps=3, callback=lambda level, u: visited.append(level))
    assert visited == [6, 4, 1, 0] and len(pipeline.network.asked) == 3


def test_a_run_takes_another_sampler(tmp_path: Path) -> None:
    """A run of DDPM sampled by DDIM (Song et al. 2021), for good or in one call; its network is the same."""
    config = tiny_config("ddpm")
    assert train(config, stripes(), tmp_path / "run")
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    ddim = Resample(eta=0.0, steps=3, clip_clean=True)
    changed = pipeline.with_sampler(ddim)
    assert changed.method.sampler == ddim and changed.network is pipeline.network and pipeline.method == config.method
    images = pipeline.sample(4, seed=2, sampler=ddim)
    assert torch.equal(changed.sample(4, seed=2), images) and (pipeline.sample(4, seed=2) - images).abs().max() > 1e-3
    # Without fresh noise the start alone decides: the noise of other images makes no difference below it.
    seed = torch.arange(3)
    assert torch.equal(changed.from_seeds(seed, seed, seed), changed.from_seeds(seed, seed, seed + 9))
    assert (pipeline.from_seeds(seed, seed, seed) - pipeline.from_seeds(seed, seed, seed + 9)).abs().max() > 1e-3
    changed.save_pretrained(tmp_path / "ddim")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "ddim").sample(4, seed=2), images)
    # Another start is a part of the sampler.
    starts: list[torch.Tensor] = []
    pipeline.sample(2, sampler=Resample(start=MeanColour()), callback=lambda level, u: starts.append(u))
    assert starts[0].flatten(1).std(dim=1).max() < 0.01


def test_an_interpolation_ends_at_the_two_samples(pipeline: Pipeline) -> None:
    rows = pipeline.interpolate([(0, 1), (5, 2)], points=4, seed=3)
    assert rows.shape == (2, 4, 1, SIZE, SIZE)
    ends = torch.stack([rows[0, 0], rows[0, -1], rows[1, 0], rows[1, -1]])
    torch.testing.assert_close(ends, pipeline.sample([0, 1, 5, 2], seed=3), rtol=0, atol=1e-5)
    steps = (rows[0, 1:] - rows[0, :-1]).abs().amax(dim=(1, 2, 3))
    assert (steps > 0).all()


@pytest.mark.parametrize("process", ["ihd", "beyond-blur-frozen"])
def test_an_interpolation_goes_straight_in_the_pictures_and_round_in_all_noise(process: str) -> None:
    """Its ends are the samples exactly. In its middle the noise is (first + second) / sqrt(2), that of the flow too."""
    pipeline = still(process=process)
    starts: list[torch.Tensor] = []
    row = pipeline.interpolate([(4, 9)], points=3, callback=lambda level, u: starts.append(u))[0]
    ends = pipeline.sample([4, 9])
    torch.testing.assert_close(row[[0, 2]], ends, rtol=0, atol=1e-6)
    quiet = pipeline.sample([4, 9], sampling_noise=0.0)
    blur = named_method("ihd").changed(levels=6, sigma_max=0.5)
    blurred = pipeline.prior.draw(seeds(0, "sample", np.array([4, 9])), blur, Size(SIZE, SIZE), CPU)
    expected = blurred.mean(dim=0) + (quiet - blurred).sum(dim=0) / 2**0.5
    torch.testing.assert_close(starts[0][1], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(row[1] - starts[0][1], (ends - quiet).sum(dim=0) / 2**0.5, rtol=0, atol=1e-6)


def test_a_restoration_starts_from_the_corrupted_picture(pipeline: Pipeline) -> None:
    picture = torch.from_numpy(stripes(1)[0])
    flow = seeds(seeds(3, "sample", np.zeros(1, dtype=int)), "flow")
    expected = pipeline.forward.operator(picture[None], 4, flow)[0]
    assert torch.equal(pipeline.corrupt(picture, 4, seed=3), expected)
    assert torch.equal(pipeline.corrupt(picture, 0), picture)

    visited: list[tuple[int, torch.Tensor]] = []
    restored = pipeline.restore(picture, 4, images=3, seed=3, callback=lambda level, u: visited.append((level, u)))
    assert restored.shape == (3, 1, SIZE, SIZE) and [level for level, _ in visited] == [4, 3, 2, 1, 0]
    assert torch.equal(visited[0][1], expected.expand(3, -1, -1, -1))
    assert (restored[0] - restored[1]).abs().max() > 1e-3
    torch.testing.assert_close(pipeline.restore(picture, 4, seed=3), restored[:1], rtol=0, atol=1e-5)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    whole, cramped = still(batch=16), still(room=3, batch=16)
    torch.testing.assert_close(cramped.sample(11), whole.sample(11), rtol=0, atol=1e-6)
    # 11 do not fit, 5 do not, 2 do; and the next call knows.
    assert cramped.batch == 2 and cramped.network.asked[:3] == [11, 5, 2]
    cramped.network.asked.clear()
    assert cramped.sample(3).shape[0] == 3 and cramped.network.asked[0] == 2
    with pytest.raises(ValueError, match="not enough memory on cpu for a single image"):
        still(room=0).sample(4)


def test_bf16_rounds_the_network_and_nothing_else(pipeline: Pipeline, run: Path) -> None:
    low = Pipeline.from_pretrained(run, precision="bf16")
    seen: list[torch.Tensor] = []
    exact = pipeline.sample(4, callback=lambda level, u: seen.append(u))
    rounded = low.sample(4, callback=lambda level, u: seen.append(u))
    assert torch.equal(seen[0], seen[len(seen) // 2]) and rounded.dtype == torch.float32
    assert 1e-6 < (rounded - exact).abs().max() < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.sample(0), "images must be from 1 to 10000000, got 0"),
        (lambda p: p.sample(10**12), "images must be from 1 to 10000000, got 1000000000000"),
        (lambda p: p.sample(range(10**12)), "the number of images must be from 1 to 10000000"),
        (lambda p: p.sample([]), "the number of images must be from 1 to"),
        (lambda p: p.sample([[1], [2, 3]]), "images must be a number of images or a list"),
        (lambda p: p.sample(torch.tensor(3)), "images must be a number of images or a list"),
        (lambda p: Pipeline.from_pretrained(3), "a run is named by its folder, or as owner/name, got int"),
        (lambda p: p.save_pretrained(__file__), "test_pipeline.py: cannot be written"),
        (lambda p: p.sample(2.5), "images must be a number of images or a list"),
        (lambda p: p.sample([-1]), "images must be a number of images or a list"),
        (lambda p: p.sample([[1]]), "images must be a number of images or a list"),
        (lambda p: p.sample(1, seed=-1), "seed must be from 0"),
        (lambda p: p.sample(1, seed=0.5), "seed must be an integer"),
        (lambda p: p.sample(1, steps=7), "steps must be from 2 to 6, got 7"),
        (lambda p: p.sample(1, sampling_noise=-1.0), "sampling noise must be at least 0"),
        (lambda p: p.sample(1, sampler=Resample()), "sampler Resample needs the clean image, which denoiser Step does not give"),
        (lambda p: p.with_sampler(ODE()), "sampler ODE needs the velocity, which denoiser Step does not give: take Residual"),
        (lambda p: p.interpolate([(0, 1)], points=1), "points must be from 2 to 10000000, got 1"),
        (lambda p: p.interpolate([(0, 1), (2, 3)], points=10**12), "points must be from 2 to 5000000, got 1000000000000"),
        (lambda p: p.interpolate("ab"), "pairs must be pairs of image numbers"),
        (
            lambda p: p.restore(np.ma.masked_less(np.eye(8, dtype=np.float32)[None], 1), 2),
            "image must be numbers everywhere, got masked",
        ),
        (lambda p: p.restore("cat.png", 2), "image must be an array or tensor of numbers, got str"),
        (lambda p: p.restore(torch.zeros(1, 8, 8), 7), "level must be from 1 to 6, got 7"),
        (lambda p: p.restore(torch.zeros(1, 8, 8), 0), "level must be from 1 to 6, got 0"),
        (lambda p: p.restore(torch.zeros(3, 8, 8), 2), r"must have shape \[1, 8, 8\], got \[3, 8, 8\]"),
        (lambda p: p.restore(torch.zeros(1, 8, 8), 2, images=0), "images must be from 1 to 10000000, got 0"),
        (lambda p: Pipeline(p.config, p.network, p.prior, precision="fp8"), "precision must be fp32 or bf16, got 'fp8'"),
        (lambda p: Pipeline(p.config, p.network, p.prior, batch=0), "batch must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(still())


# What it takes and gives


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("digits", (1, 16, 16), 0), ("fashion", (1, 28, 28), 10), ("emoji", (3, 32, 32), 9)]
)
def test_the_bundled_models_are_small_and_known_by_name(
    name: str, shape: tuple[int, ...], classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(file.stat().st_size for file in BUNDLED[name].iterdir()) < 6 * 2**20
    pipeline = Pipeline.from_pretrained(name)
    config = pipeline.config
    assert config.shape == shape and len(config.classes) == classes and config.process_name == "fluid"
    # What the preset of its data trains.
    assert replace(config, classes=()) == preset_for(config.data)[1]
    images = pipeline.sample(3, steps=4, label="all" if classes else None)
    assert images.shape == (3, *shape) and -0.5 < images.min() and images.max() < 1.5
    # A folder of this name comes first.
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match="not a run folder"):
        Pipeline.from_pretrained(name)


def test_a_sampler_makes_its_flow_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit what it draws when every step makes it; once more for the start."""
    made, field = [], CurlNoise.field
    monkeypatch.setattr(CurlNoise, "field", lambda self, ask: made.append(ask) or field(self, ask))
    pipeline = Pipeline.from_pretrained()
    images = pipeline.sample(2, seed=1, steps=4)
    assert len(made) == 2
    monkeypatch.setattr(type(pipeline.forward), "in_one_flow", lambda self: self)
    assert torch.equal(pipeline.sample(2, seed=1, steps=4), images) and len(made) == 2 + 5


def test_the_bundled_model_draws_digits() -> None:
    pipeline = Pipeline.from_pretrained()
    images = pipeline.sample(8, steps=12)
    assert images.shape == (8, 1, 16, 16) and -0.3 < images.min() and images.max() < 1.5
    dataset = diffusion.open_dataset("digits", 16)
    digits = torch.from_numpy(np.stack([dataset[i] for i in range(400)]))
    # A digit is nearer to some digit of the data than the mean digit is to it.
    distance = torch.cdist(images.flatten(1), digits.flatten(1)).amin(dim=1)
    assert distance.mean() < 0.8 * torch.cdist(digits.mean(dim=0).flatten()[None], digits.flatten(1)).mean()


def test_what_is_saved_comes_back_and_draws_the_same(pipeline: Pipeline, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "shared"
    pipeline.save_pretrained(folder)
    assert {file.name for file in folder.iterdir()} == {
        "README.md",
        "config.json",
        "ema.safetensors",
        "metrics.json",
        "prior.safetensors",
    }
    again = Pipeline.from_pretrained(folder)
    assert again.config == pipeline.config and again.metrics == pipeline.metrics
    assert torch.equal(again.sample(2), pipeline.sample(2))
    marks = [fingerprint(p.config, p.network.state_dict()) for p in (pipeline, again)]
    assert marks[0] == marks[1] != fingerprint(tiny_config("ihd"), pipeline.network.state_dict())
    # The owner's own card survives, a run that is being trained is left alone.
    (folder / "README.md").write_text("mine")
    again.save_pretrained(folder)
    assert (folder / "README.md").read_text() == "mine"
    before = {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()}
    with pytest.raises(ValueError, match="a run is trained in this folder"):
        pipeline.save_pretrained(run)
    assert {file.name: file.read_bytes() for file in run.iterdir() if file.is_file()} == before


@pytest.mark.slow
def test_samples_that_are_not_finite_are_an_error(run: Path) -> None:
    """All samples of a run whose weights have overflowed."""
    pipeline = Pipeline.from_pretrained(run)
    for parameter in pipeline.network.parameters():
        parameter.data.fill_(torch.inf)
    for draw in (lambda: pipeline.sample(2), lambda: pipeline.restore(torch.zeros(pipeline.config.shape), 2)):
        with pytest.raises(InputError, match="samples are not finite: the run has diverged"):
            draw()


def test_a_pipeline_shows_itself_in_a_line(pipeline: Pipeline) -> None:
    shown = repr(pipeline)
    assert shown.startswith(f"Pipeline({pipeline.config.process_name}, Pe = ") and "\n" not in shown
    assert "stripes [1, 8, 8], 6 levels" in shown and shown.endswith("parameters, cpu)")


def test_nothing_is_printed_to_standard_output_but_by_the_user() -> None:
    """As in a notebook: no banner of Warp, no line for every kernel, no bar."""
    code = "from diffusion import Pipeline; Pipeline.from_pretrained().sample(1, steps=2); print('done')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "done\n"


def test_a_compiled_network_saves_as_it_was(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.network.compile(backend="eager")
    pipeline.save_pretrained(tmp_path / "shared")
    assert torch.equal(Pipeline.from_pretrained(tmp_path / "shared").sample(1), pipeline.sample(1))


def test_the_model_card_says_what_the_run_is(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "shared")
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.library_name == "beyond-blur" and card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.license is None and "diffusion" in card.data.tags
    for words in (
        "# beyond-blur: 8 x 8 grey images",
        "| peclet | 0.1 |",
        "| operator | Waves |",
        "| levels K | 6 |",
        "| blur, levels 1 to K | 0.5 to 8 px |",
        "| Fourier number, level K | 0.5 |",
        f"| parameters | {sum(p.numel() for p in pipeline.network.parameters()):,} |",
        "| multipliers | 1, 2 |",
        "| images | 48 |",
        "| fid | 12.35 |",
        "| scores, recall | 0.5 |",
        'Pipeline.from_pretrained("owner/name")',
    ):
        assert words in card.text, words
    height, width = pipeline.prior.thumbnails.shape[2:]
    assert f"It holds 20 training pictures as thumbnails of {height} x {width} pixels" in card.text
    assert "the mean of the training pictures and none of them" in Pipeline.from_pretrained().generate_model_card().text
    assert "features" not in card.text and "ok" not in card.text.split("Metrics")[1]
    assert pipeline.generate_model_card(license="cc-by-4.0").data.license == "cc-by-4.0"
    assert "Metrics" not in still().generate_model_card().text
    odd = Pipeline(replace(pipeline.config, data="a | b\n# <b>[x](y)"), pipeline.network, pipeline.prior)
    assert r"| data | a \| b \# \<b\>\[x\](y) |" in odd.generate_model_card().text


def test_the_model_card_samples(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = Pipeline.from_pretrained(run)
    text = pipeline.generate_model_card(repo_id=str(run)).text
    names: dict[str, object] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    assert torch.equal(names["images"], pipeline.sample(16))


class FakeHub:
    """What the mixin asks of huggingface_hub.HfApi, and a note of it."""

    pushed: dict[str, object]

    def __init__(self, token: str | None = None) -> None:
        FakeHub.pushed = {"token": token}

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> object:
        self.pushed |= {"repo_id": repo_id, "private": private}
        return type("Repo", (), {"repo_id": repo_id})()

    def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
        self.pushed |= options | {"files": {file.name: file.read_bytes() for file in folder_path.iterdir()}}
        return f"https://huggingface.co/{repo_id}/commit/1"


def test_a_push_uploads_weights_configuration_and_card(pipeline: Pipeline, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", FakeHub)
    address = pipeline.push_to_hub("someone/stripes", private=True, token="t", model_card_kwargs={"license": "mit"})
    assert address == "https://huggingface.co/someone/stripes/commit/1"
    pushed = FakeHub.pushed
    expected = {"repo_id": "someone/stripes", "private": True, "token": "t", "repo_type": "model"}
    assert {name: pushed[name] for name in expected} == expected
    files = pushed["files"]
    assert set(files) == {"README.md", "config.json", "ema.safetensors", "metrics.json", "prior.safetensors"}
    for name in ("config.json", "ema.safetensors", "prior.safetensors"):
        assert files[name] == (run / name).read_bytes()
    card = files["README.md"].decode()
    assert 'from_pretrained("someone/stripes")' in card and "license: mit" in card


def test_a_model_of_the_hub_is_loaded_from_its_cache(finished_run: Path, tmp_path: Path) -> None:
    """The Hub's own code on the Hub's own layout: a snapshot of links to blobs."""
    repository = tmp_path / "models--someone--stripes"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "ema.safetensors", "prior.safetensors"):
        shutil.copy(finished_run / name, repository / "blobs" / name)
        (snapshot / name).symlink_to(repository / "blobs" / name)
    pipeline = Pipeline.from_pretrained("someone/stripes", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(pipeline.sample(1), Pipeline.from_pretrained(finished_run).sample(1))


def refused(folder: str | Path, message: str, **options: object) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Pipeline.from_pretrained(folder, **options)
    assert "\n" not in str(error.value)


def test_what_the_hub_does_not_have_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused("someone/stripes", "no such run folder, and the Hub does not provide it", cache_dir=tmp_path, local_files_only=True)

    def offline(*arguments: object, **options: object) -> None:
        raise LocalEntryNotFoundError("no connection\nand more lines")

    monkeypatch.setattr("diffusion.sampling.pipeline.snapshot_download", offline)
    refused("someone/stripes", r"the Hub does not provide it \(no connection\)")


@pytest.mark.parametrize(
    "name",
    ["nowhere", "../nowhere", "a/../b", "a/..", "/nowhere", "runs/mine", "a/b/c", "a/b c", "a/--b", "a/b.git", "~/x", "a/", ""],
)
def test_names_that_are_no_models_never_reach_the_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either they are no owner/name, or the Hub's own check refuses them before anything is sent."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *a, **o: pytest.fail("asked the Hub"))
    before = sorted(tmp_path.rglob("*"))
    refused(name, "no such run folder|not a run folder", cache_dir=tmp_path / "cache")
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["config.json", "ema.safetensors", "prior.safetensors", "metrics.json"])
def test_nothing_in_a_folder_is_executed(run: Path, name: str) -> None:
    """A pickle under any name is no safetensors and no JSON; beside them it is not looked at."""
    (run / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(run / "executed")))
    (run / "modeling.py").write_text(f"open({str(run / 'executed')!r}, 'w')")
    Pipeline.from_pretrained(run)
    (run / name).write_bytes(pickle.dumps(Bomb(run / "executed")))
    refused(run, f"{name}: not")
    assert not (run / "executed").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"auto_map": {"class": "evil.Model"}}, "names the class evil.Model, which is not the library's"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "names no class where an object stands"),
        ({"_target_": "os.system", "_args_": ["touch executed"]}, r"RunConfig has unknown entries \['_args_', '_target_'\]"),
        ({"prior": "x", "batch": 3}, r"RunConfig has unknown entries \['batch', 'prior'\]"),
        ({"network": "__import__('os').system('touch executed')"}, "it names no network"),
        ({"method": {"__class__": "os"}}, "names no class where an object stands"),
        ({"method": {"class": "os.system"}}, "names the class os.system, which is not the library's: pass the class itself"),
        ({"method": {"class": "types.Popen"}}, r"names the class Popen, .*: pass the class itself, types=\[Popen\]"),
        ({"method": {"class": "Identity"}}, "method must be a diffusion.Method, got Identity"),
        ({"method": {"class": "Method", "operator": "x"}}, r"Method .*lacks \['denoiser', 'density', 'sampler', 'scales'\]"),
        ({"size": {"class": "Identity"}}, "size must be one number of pixels"),
        ({"channels": "3"}, "channels must be an integer"),
    ],
)
def test_a_config_with_code_is_refused(run: Path, values: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | values))
    refused(run, message)
    assert not (run / "executed").exists()


def test_links_and_pipes_in_place_of_files_are_refused(run: Path) -> None:
    (run / "ema.safetensors").unlink()
    (run / "ema.safetensors").symlink_to("/etc/hostname")
    refused(run, "ema.safetensors: not a readable safetensors file|ema.safetensors: missing")
    (run / "ema.safetensors").unlink()
    os.mkfifo(run / "ema.safetensors")
    refused(run, "ema.safetensors: missing")
    (run / "config.json").unlink()
    (run / "config.json").symlink_to("/dev/zero")
    refused(run, "not a run folder")


@pytest.mark.parametrize("text", ["[" * 100_000, "[1, 2]", "\x00", '{"a": ', ""])
def test_metrics_that_are_no_json_object_are_refused(run: Path, text: str) -> None:
    (run / "metrics.json").write_text(text)
    refused(run, "metrics.json: not")


def test_half_precision_weights_are_taken_as_float32(run: Path) -> None:
    weights = load_tensors(run / "ema.safetensors")
    save_tensors(run / "ema.safetensors", {name: tensor.half() for name, tensor in weights.items()})
    pipeline = Pipeline.from_pretrained(run)
    assert {parameter.dtype for parameter in pipeline.network.parameters()} == {torch.float32}
    assert pipeline.sample(1).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_and_samples_on_the_digits(name: str, tmp_path: Path) -> None:
    digits = preset("digits")
    config = replace(
        digits,
        process_name=name,
        method=named_method(name).changed(levels=5),
        network=replace(digits.network, width=8),
        training=replace(digits.training, images=128, batch=32, schedule=WarmUpAndDecay(warmup=32)),
    )
    assert train(config, open_dataset("digits", 16, None), tmp_path / "run", CPU)
    pipeline = Pipeline.from_pretrained(tmp_path / "run")
    samples = pipeline.sample(4, seed=1)
    assert samples.shape == (4, 1, 16, 16) and samples.isfinite().all()
    # A run remembers its own process: the same samples from the folder, others from another seed, and pictures restored.
    assert pipeline.config.method == config.method
    assert (samples - pipeline.sample(4, seed=2)).abs().max() > 1e-3
    assert pipeline.restore(samples[0].clamp(0.0, 1.0), 3, 2).shape == (2, 1, 16, 16)
    assert pipeline.interpolate([(0, 1)], 3, steps=3).shape == (1, 3, 1, 16, 16)


# As a library


def test_every_public_name_is_there_and_explains_itself() -> None:
    assert set(diffusion.__all__) <= set(dir(diffusion))
    for name in diffusion.__all__:
        value = getattr(diffusion, name)
        assert name in ("PRESETS", "METHODS") or inspect.getdoc(value), name
    with pytest.raises(AttributeError, match="pipelines"):
        _ = diffusion.pipelines
    for name in ("from_pretrained", "sample", "interpolate", "restore", "corrupt", "save_pretrained", "push_to_hub", "to"):
        method = getattr(Pipeline, name)
        assert method.__module__ == "diffusion.sampling.pipeline" and method.__doc__
        assert all(p.annotation is not p.empty for p in inspect.signature(method).parameters.values() if p.name != "self"), name
    text = pydoc.plain(pydoc.render_doc(Pipeline))
    assert "owner/name on the Hub" in text and "float32 [N, C, H, W]" in text


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, diffusion; sys.exit(any(m in sys.modules for m in ('torch', 'warp', 'huggingface_hub')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True).returncode == 0
