"""Evaluation as a library call and as a command: from pictures to scores, a table and a JSON file."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import diffusion
from cli import evaluate
from diffusion import EvaluationConfig, Pipeline
from diffusion.data import as_dataset, open_dataset
from diffusion.evaluation import FeatureExtractor
from diffusion.evaluation.features import INCEPTION_FILE, usual_features
from diffusion.evaluation.scoring import frechet_scorer
from diffusion.evaluation.sources import ImageSource
from diffusion.files import load_tensors, save_tensors
from lbm_warp.checks import InputError
from tests.runs import SIZE, exit_code, files, said, stripes
from tests.test_metrics import counted, paired

ROOT = Path(__file__).parent.parent
PICTURES = np.rint(255 * np.stack(stripes(41))).astype(np.uint8)
Call = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory, finished_run: Path) -> Path:
    """A run trained for a moment."""
    return shutil.copytree(finished_run, tmp_path_factory.mktemp("evaluate") / "run")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 41 grey pictures of 8 x 8 pixels."""
    return save_pictures(tmp_path / "data", PICTURES)


def save_pictures(folder: Path, pictures: np.ndarray) -> Path:
    folder.mkdir()
    for index, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0).squeeze()).save(folder / f"{index:03}.png")
    return folder


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command in a fresh folder, with the cache in it; returns exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def command(*arguments: object) -> tuple[int, str, str]:
        return exit_code(evaluate.main, *arguments), *said(capsys.readouterr())

    return command


def report(path: Path) -> dict:
    return json.loads(path.read_text())


PIXELS = ("--features", "pixels", "--size", SIZE)


def test_a_run_is_scored_as_by_hand(call: Call, run: Path, data: Path) -> None:
    """Against an independent count and Frechet distance on the images that cli.sample would write."""
    scoring = ("--data", data, "--num", 30, "--features", "pixels", "--k", 3)
    code, out, _ = call(run, *scoring, "--seed", 4, "--steps", 3, "--sampling-noise", 0.5)
    assert code == 0 and "samples" in out and "floor" in out and "precision" in out and str(run / "metrics.json") in out
    found = report(run / "metrics.json")
    assert found["samples"].pop("model") == Pipeline.from_pretrained(run).fingerprint != found["reference"].pop("fingerprint")
    assert found["samples"] == {"source": str(run), "seed": 4, "steps": 3, "sampling_noise": 0.5} and found["learned"] is None
    assert found["reference"] == {"data": str(data), "split": "all"}
    assert found["features"] == {"name": "pixels", "sha256": None, "dimension": SIZE**2}
    assert (found["size"], found["channels"], found["k"]) == (SIZE, 1, 3)

    images = Pipeline.from_pretrained(run).sample(30, seed=4, steps=3, sampling_noise=0.5)
    samples = np.rint(images.clamp(0, 1).numpy() * 255).reshape(30, -1) / 255
    reference = PICTURES.reshape(41, -1) / 255
    thinned = reference[np.linspace(0, 40, 30).round().astype(int)]
    scores = found["scores"]
    names = ("precision", "recall", "density", "coverage")
    assert [scores[name] for name in names] == pytest.approx(counted(thinned, samples, 3), abs=1e-12)
    centred, centred_reference = ((x - x.mean(axis=0)) / (len(x) - 1) ** 0.5 for x in (samples, reference))
    nuclear = np.linalg.svd(centred @ centred_reference.T, compute_uv=False).sum()
    distance = np.sum((samples.mean(axis=0) - reference.mean(axis=0)) ** 2)
    distance += np.sum(centred**2) + np.sum(centred_reference**2) - 2 * nuclear
    assert scores["frechet_distance"] == pytest.approx(distance, rel=1e-6)
    assert scores["kernel_distance"] == pytest.approx(paired(samples, reference), rel=1e-4)
    assert f"{scores['kernel_distance']:.3g} +- {scores['kernel_distance_error']:.1g}" in out
    drift = 255 * (samples.mean() - reference.mean())
    assert scores["colour_drift_by_channel"] == pytest.approx([drift]) and scores["colour_drift"] == pytest.approx(abs(drift))
    spreads = [x.mean(axis=1).std(ddof=1) for x in (samples, reference)]
    assert scores["colour_spread"] == pytest.approx(spreads[0] / spreads[1])


def test_steps_that_a_run_cannot_take_are_refused_before_pictures_are_measured(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageSource, "measure", lambda *_: pytest.fail("it measures"))
    for steps in (1, 99):
        with pytest.raises(InputError, match=f"steps must be from 2 to 6, got {steps}"):
            diffusion.evaluate(run, torch.from_numpy(PICTURES), EvaluationConfig(features="pixels", steps=steps), device="cpu")


def test_the_library_finds_what_the_command_finds(call: Call, run: Path, data: Path) -> None:
    """In batches of another size, of a run folder as of a pipeline, and of a run of a name that the Hub might have."""
    code, _, _ = call(run, "--data", data, "--split", "odd", "--features", "pixels", "--out", "m.json")
    found = report(Path("m.json"))
    assert code == 0 and (found["scores"]["samples"], found["scores"]["reference"]) == (20, 20)
    assert (found["floor"]["samples"], found["floor"]["reference"]) == (20, 20)
    config = EvaluationConfig(split="odd", features="pixels", batch=7, cache=Path("other"))
    for samples, name in ((run, str(run)), (Pipeline.from_pretrained(run), "pipeline")):
        again = json.loads(json.dumps(diffusion.evaluate(samples, str(data), config, device="cpu")))
        assert again["samples"] == {**found["samples"], "source": name}
        # A pixel on the edge between two bytes may fall either way.
        assert again["scores"]["frechet_distance"] == pytest.approx(found["scores"]["frechet_distance"], rel=1e-3)
        assert all(again[name] == found[name] for name in ("reference", "size", "channels", "features", "k", "floor"))
    with pytest.raises(InputError, match="nobody/nothing: no such run folder, and the Hub does not provide it"):
        diffusion.evaluate("nobody/nothing")


@pytest.mark.parametrize("kind", ["folder", "zip", "npz"])
def test_the_data_itself_is_perfect(call: Call, data: Path, kind: str) -> None:
    samples = {"folder": data, "zip": Path("copy.zip"), "npz": Path("copy.npz")}[kind]
    with zipfile.ZipFile("copy.zip", "w") as archive:
        for file in sorted(data.iterdir()):
            archive.write(file, file.name)
    np.savez("copy.npz", PICTURES.transpose(0, 2, 3, 1))
    code, out, _ = call(samples, "--data", data, *PIXELS)
    assert code == 0 and f"wrote outputs/{samples.stem}-metrics.json" in out
    scores = report(Path("outputs") / f"{samples.stem}-metrics.json")["scores"]
    assert scores["frechet_distance"] < 1e-10 and scores["colour_drift"] == 0 and scores["colour_spread"] == 1
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1


@pytest.mark.parametrize(("held", "shown"), [("odd", slice(0, None, 2)), ("even", slice(1, None, 2))])
def test_the_floor_is_the_half_that_is_not_the_reference(call: Call, data: Path, tmp_path: Path, held: str, shown: slice) -> None:
    """Whoever memorises one half exactly reaches the floor against the other half exactly."""
    memory = save_pictures(tmp_path / "memory", PICTURES[shown])
    assert call(memory, "--data", data, "--split", held, *PIXELS)[0] == 0
    found = report(Path("outputs/memory-metrics.json"))
    assert found["scores"] == found["floor"] and found["floor"]["frechet_distance"] > 0
    # Against all pictures it is nearer, and the floor is that of even against odd.
    assert call(memory, "--data", data, *PIXELS, "--out", "all.json")[0] == 0
    every = report(Path("all.json"))
    assert every["scores"]["frechet_distance"] < found["scores"]["frechet_distance"]
    assert every["scores"]["reference"] == 41 and every["floor"]["reference"] == 20


def test_digits_and_their_features_are_the_default_pair(call: Call) -> None:
    np.savez("digits.npz", np.zeros((200, 16, 16, 1), np.uint8))
    code, out, _ = call("digits.npz", "--data", "digits")
    found = report(Path("outputs/digits-metrics.json"))
    assert code == 0 and "digits features" in out and found["features"]["dimension"] == 64
    # Black pictures only: far from digits, darker by their mean brightness, and all alike.
    scores = found["scores"]
    assert scores["frechet_distance"] > 3 * found["floor"]["frechet_distance"]
    assert scores["colour_drift_by_channel"] == pytest.approx([-scores["colour_drift"]]) and scores["colour_spread"] == 0


def test_colour(call: Call, tmp_path: Path) -> None:
    """A cast of (8, 0, -6) is a drift of 10, and is found by channel."""
    pictures = np.random.default_rng(0).integers(20, 200, (20, 3, SIZE, SIZE)).astype(np.uint8)
    colours = save_pictures(tmp_path / "colours", pictures)
    cast = (pictures + np.array([8, 0, -6])[:, None, None]).astype(np.uint8)
    np.savez("cast.npz", arr_0=cast.transpose(0, 2, 3, 1))
    assert call("cast.npz", "--data", colours, "--features", "pixels")[0] == 0
    scores = report(Path("outputs/cast-metrics.json"))["scores"]
    assert scores["colour_drift"] == pytest.approx(10) and scores["colour_drift_by_channel"] == pytest.approx([8, 0, -6])


def test_reference_features_are_kept_and_only_good_ones_taken(
    call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    measure = ImageSource.measure
    monkeypatch.setattr(ImageSource, "measure", lambda source, *rest: measured.append(source.name) or measure(source, *rest))
    np.savez("samples.npz", PICTURES[:9].transpose(0, 2, 3, 1))

    def again(*options: object) -> list[str]:
        measured.clear()
        assert call("samples.npz", "--data", data, *(options or ("--features", "pixels")))[0] == 0
        return [Path(name).stem for name in measured]

    assert again() == ["data", "samples"]
    expected = report(Path("outputs/samples-metrics.json"))
    assert again() == ["samples"] and report(Path("outputs/samples-metrics.json")) == expected
    cache = tmp_path / "home" / "beyond-blur"
    [path] = cache.glob("*.safetensors")
    # Other features, another size and other pictures are other entries.
    assert again("--features", "digits") == again("--features", "pixels", "--size", "4") == ["data", "samples"]
    Image.fromarray(PICTURES[0, 0] // 2).save(data / "000.png")
    assert again() == ["data", "samples"] and len(list(cache.glob("*.safetensors"))) == 4
    Image.fromarray(PICTURES[0, 0]).save(data / "000.png")
    # A damaged entry is made anew.
    path.write_bytes(path.read_bytes()[:100])
    assert again() == ["data", "samples"] and report(Path("outputs/samples-metrics.json")) == expected
    assert again() == ["samples"]
    assert again("--features", "pixels", "--cache", "here") == ["data", "samples"] and len(files(tmp_path / "here")) == 1


def test_a_bundled_model_is_scored_by_its_name(call: Call) -> None:
    code, out, _ = call("digits", "--num", 9, "--steps", 2)
    assert code == 0 and "digits against digits (all), 16 x 16 px, digits features" in out
    assert report(Path("outputs/digits-metrics.json"))["samples"]["source"] == "digits"


# An evaluation that is killed


def test_an_evaluation_that_was_killed_goes_on_with_the_samples_that_it_made(
    call: Call, run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the third of four batches; what it kept goes at the end. Another seed, and damaged samples, are made anew."""
    made, sample, last = [], Pipeline.sample, [3]

    def draw(pipeline: Pipeline, index: np.ndarray, *rest: object, **more: object) -> torch.Tensor:
        if len(made) == last[0]:
            raise KeyboardInterrupt
        made.append(index[0])
        return sample(pipeline, index, *rest, **more)

    monkeypatch.setattr(Pipeline, "sample", draw)
    options = (run, "--data", data, "--num", 32, "--batch", 8, "--features", "pixels")
    last[0] = 2
    assert call(*options, "--out", "killed.json")[0] == 130 and made == [0, 8]
    [kept] = (tmp_path / "home" / "beyond-blur").glob("samples-*")
    assert len(list(kept.iterdir())) == 2
    last[0] = 10**9
    made.clear()
    assert call(*options, "--out", "other.json", "--seed", 1)[0] == 0 and made == [0, 8, 16, 24] and kept.exists()
    next(kept.iterdir()).write_bytes(b"half")
    made.clear()
    assert call(*options, "--out", "killed.json")[0] == 0 and len(made) == 3 and made[-2:] == [16, 24]
    assert not list((tmp_path / "home" / "beyond-blur").glob("samples-*"))
    made.clear()
    assert call(*options, "--out", "whole.json")[0] == 0 and made == [0, 8, 16, 24]
    assert report(Path("killed.json")) == report(Path("whole.json")) != report(Path("other.json"))


def test_samples_that_cannot_be_kept_are_scored_all_the_same(call: Call, run: Path, data: Path) -> None:
    Path("full").write_text("no folder")
    code, _, err = call(run, "--data", data, "--num", 16, "--batch", 8, "--features", "pixels", "--cache", "full")
    assert code == 0 and err.count("the samples are not kept, and a killed evaluation begins anew") == 1


# Objects in place of names


def test_arrays_and_data_sets_are_scored_as_their_files(call: Call, data: Path, tmp_path: Path) -> None:
    """Samples as a tensor, an array or a torch Dataset, pictures as a data set; other sizes and channels are fitted."""
    np.savez("samples.npz", PICTURES[::2].transpose(0, 2, 3, 1))
    assert call("samples.npz", "--data", data, *PIXELS)[0] == 0
    expected = report(Path("outputs/samples-metrics.json"))
    config = EvaluationConfig(features="pixels")
    floats = torch.from_numpy(PICTURES[::2]).double() / 255
    whole = open_dataset(str(data), SIZE)
    for samples, pictures in ((floats, str(data)), (PICTURES[::2], PICTURES), (TensorDataset(floats.float()), as_dataset(whole))):
        found = json.loads(json.dumps(diffusion.evaluate(samples, pictures, config, device="cpu")))
        assert all(found[name] == expected[name] for name in ("size", "channels", "features", "scores", "floor", "intervals"))
        assert found["samples"] == {"source": type(samples).__name__}
    colour = np.repeat(np.repeat(np.repeat(PICTURES, 3, axis=1), 2, axis=2), 2, axis=3)
    assert diffusion.evaluate(colour, whole, config, device="cpu")["channels"] == 3
    small = diffusion.evaluate(floats, colour, config, device="cpu")
    assert (small["size"], small["channels"]) == (SIZE, 1) and small["scores"]["colour_drift"] < 20
    with pytest.raises(InputError, match="Tensor: not a run, so name the real pictures"):
        diffusion.evaluate(floats)
    with pytest.raises(InputError, match=r"Tensor: values from 0 to 2.97.*; expected 0 to 1, -1 to 1 or 0 to 255"):
        diffusion.evaluate(3 * floats, whole, config, device="cpu")


def test_half_of_a_set_given_as_an_object_is_all_of_it(run: Path, data: Path) -> None:
    """Of a run on the even half and pictures by name the odd ones are the reference; pictures of the odd half are it already."""
    odd = open_dataset(str(data), SIZE, split="odd")
    found = diffusion.evaluate(Pipeline.from_pretrained(run), odd, EvaluationConfig(features="pixels", num=8), device="cpu")
    assert found["reference"]["data"] == "data[odd]" and found["reference"]["split"] == "all"
    assert found["scores"]["reference"] == 20


class Mean(nn.Module):
    """Four block means, times a weight; not itself while it is trained."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.uint8 and not self.training
        return self.weight * nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)


def test_features_of_ones_own(data: Path, tmp_path: Path) -> None:
    """A module, a function and an extractor; the report names them, and a module by its weights. Nothing of theirs is kept."""
    config, module = EvaluationConfig(cache=tmp_path / "cache", k=3), Mean()

    def block_means(images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.double(), 2).flatten(1)

    found = [
        diffusion.evaluate(PICTURES[:20], PICTURES, config, features=features, device="cpu")
        for features in (module, Mean(), Mean(2.0), block_means, FeatureExtractor("own", "hash", block_means))
    ]
    assert [report["features"]["name"] for report in found] == ["Mean", "Mean", "Mean", "block_means", "own"]
    hashes = [report["features"]["sha256"] for report in found]
    assert hashes[0] == hashes[1] != hashes[2] and hashes[3:] == [None, "hash"]
    distances = [report["scores"]["frechet_distance"] for report in found]
    assert distances[2] == pytest.approx(4 * distances[0], rel=1e-5) and distances[3] == pytest.approx(distances[0], rel=1e-4)
    assert module.training and len(list((tmp_path / "cache").iterdir())) == 1
    shape = r"must return features of shape \[41, D\]"
    for wrong, message in ((lambda images: images.float(), shape), (nn.Linear(3, 2), "Linear: fails on uint8")):
        with pytest.raises(InputError, match=message):
            diffusion.evaluate(PICTURES, PICTURES, config, features=wrong, device="cpu")


def test_training_is_scored_against_pictures_and_features_of_ones_own(run: Path) -> None:
    config = EvaluationConfig(num=9, split="all")
    distance = frechet_scorer(PICTURES, config, torch.device("cpu"), Mean())
    pipeline = Pipeline.from_pretrained(run)
    expected = diffusion.evaluate(pipeline, PICTURES, config, features=Mean(), device="cpu")
    assert distance(pipeline) == pytest.approx(expected["scores"]["frechet_distance"])


# Bad input


def test_bad_samples_are_refused_in_one_line_and_nothing_is_written(call: Call, data: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("nothing")
    np.savez("named.npz", images=PICTURES)
    np.savez("floats.npz", np.zeros((9, 8, 8, 3)))
    np.savez("channels.npz", np.zeros((9, 8, 8, 4), np.uint8))
    np.savez("objects.npz", np.array([{}], dtype=object))
    np.savez("good.npz", PICTURES.transpose(0, 2, 3, 1))
    np.save("array.npy", PICTURES)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:900])
    before, run_before = files(tmp_path), files(run)
    pixels = ("--features", "pixels")
    for arguments, message in (
        (["nowhere"], "nowhere: no such run folder, folder or .zip of images, or .npz file"),
        (["good.npz"], "good.npz: not a run, so name the real pictures to compare its images with: --data NAME"),
        (
            ["good.npz", "--data", data, "--steps", 3],
            "good.npz: not a run; steps and sampling_noise say how a run makes",
        ),
        (["empty", "--data", data], "empty: no image files"),
        (["text.npz", "--data", data], "text.npz: not an .npz file with an array arr_0"),
        (["cut.npz", "--data", data], "cut.npz: not an .npz file with an array arr_0"),
        (["array.npz", "--data", data], "array.npz: not an .npz file with an array arr_0"),
        (["objects.npz", "--data", data], "objects.npz: not an .npz file with an array arr_0"),
        (["named.npz", "--data", data], "named.npz: no array arr_0, but images; write it with numpy.savez(file, images)"),
        (["floats.npz", "--data", data], "floats.npz: arr_0 is float64 [9, 8, 8, 3]; expected uint8 [N, H, W, C]"),
        (["channels.npz", "--data", data], "channels.npz: arr_0 is uint8 [9, 8, 8, 4]"),
        (["good.npz", "--data", "nothing"], "nothing: no such folder or archive"),
        (["good.npz", "--data", data, "--num", "42", *pixels], "good.npz has 41 images, fewer than num = 42"),
        (["good.npz", "--data", data, "--num", "5", *pixels], "good.npz has 5 images, too few for k = 5: at least 6 are needed"),
        (["good.npz", "--data", data, "--k", "20", *pixels], f"each half of {data} has 20 images, too few for k = 20"),
        (["good.npz", "--data", data, "--k", "0", *pixels], "k must be at least 1, got 0"),
        (["good.npz", "--data", data, "--batch", "0"], "batch must be at least 1, got 0"),
        (["good.npz", "--data", data, "--num", "1"], "num must be from 2 to 10000000, got 1"),
        (["good.npz", "--data", data, "--bootstrap", "10000000"], "bootstrap must be from 2 to 1000000, got 10000000"),
        (["good.npz", "--data", data, "--size", "1"], "each 2 to 16384; got '1'"),
        (["good.npz", "--data", data, "--seed", "-1"], "seed must be from 0"),
        (["good.npz", "--data", data, "--features", "vgg"], "features 'vgg': expected inception, inception-clean, lite0, digits, "),
        (["good.npz", "--data", data, "--features", "no.pt"], "no.pt: no such file"),
        (["good.npz", "--data", data, "--inception", "no.pt"], "no.pt: no such file"),
        (["good.npz", "--data", data, "--out", "empty"], "--out empty: a folder; expected the name of a file"),
        (["good.npz", "--data", data, "--out", "good.npz/new.json"], "new.json: cannot be written (Not a directory); choose"),
        (["good.npz", "--data", data, "--device", "tpu"], "--device tpu: expected auto, cpu, cuda or cuda:N"),
        ([run, "--data", data, "--size", "16"], f"size 16: the images of {run} have size 8"),
        ([run], "was trained on pictures in memory (stripes); name those to compare with: --data"),
    ):
        code, _, err = call(*arguments)
        assert code == 2 and message in err and err.startswith("error: ") and err.count("\n") == 1, (arguments, err)
    assert {name: content for name, content in files(tmp_path).items() if not name.startswith("home/")} == before
    assert files(run) == run_before


@pytest.fixture
def no_inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("BEYOND_BLUR_DATA", raising=False)


@pytest.mark.usefixtures("no_inception")
def test_without_inception_the_features_of_a_bundled_classifier_are_taken_and_said(call: Call, data: Path, tmp_path: Path) -> None:
    code, out, err = call(data, "--data", data, "--size", SIZE)
    assert code == 0 and "fashion-mnist features" in out and " FD" in out
    assert "no file of Inception here: the features are those of the bundled fashion-mnist classifier; distances" in err
    assert usual_features("data", channels=3) == "emoji" and usual_features("digits", channels=3) == "digits"
    pipeline = Pipeline.from_pretrained("digits")
    assert frechet_scorer(PICTURES.repeat(2, 2).repeat(2, 3), EvaluationConfig(num=9, steps=2), torch.device("cpu"))(pipeline) > 0
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION_FILE).touch()
    assert usual_features("data", channels=3) == "inception"


@pytest.mark.usefixtures("no_inception")
def test_a_missing_inception_is_asked_for(call: Call, data: Path) -> None:
    code, _, err = call(data, "--data", data, "--features", "inception")
    assert code == 2 and "https://nvlabs-fi-cdn.nvidia.com/" in err and "SHA-256" in err and err.count("\n") == 1


class Broken(nn.Module):
    """Features that are not finite where a picture is dark, or of a shape that is none."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat = flat

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        brightness = images.float().mean((1, 2, 3))
        return brightness if self.flat else (brightness - 1.0).log()[:, None]


@pytest.mark.parametrize(
    ("flat", "message"),
    [(True, "must return features of shape"), (False, "dark.npz: the features of 6 of 6 images are not")],
)
def test_features_that_are_none_are_refused(call: Call, data: Path, tmp_path: Path, flat: bool, message: str) -> None:
    torch.jit.script(Broken(flat)).save("broken.pt")
    np.savez("dark.npz", np.zeros((6, SIZE, SIZE, 1), np.uint8))
    code, _, err = call("dark.npz", "--data", data, "--features", "broken.pt")
    error = err.strip().splitlines()[-1]
    assert code == 2 and message in error and error.startswith("error: ") and "outputs" not in os.listdir(tmp_path)


def test_a_run_whose_samples_are_not_finite_is_refused(call: Call, run: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("config.json", "prior.safetensors"):
        (tmp_path / "broken" / name).write_bytes((run / name).read_bytes())
    weights = load_tensors(run / "ema.safetensors")
    weights["enter.bias"].fill_(float("nan"))
    save_tensors(tmp_path / "broken" / "ema.safetensors", weights)
    code, _, err = call("broken", "--data", data, "--num", 8, "--features", "pixels")
    error = err.strip().splitlines()[-1]
    assert code == 2 and "broken: 8 of 8 samples are not finite" in error and "metrics.json" not in files(tmp_path / "broken")


# Ranks


@pytest.mark.slow
def test_two_ranks_find_what_one_does(call: Call, run: Path, data: Path, tmp_path: Path) -> None:
    """41 pictures on two ranks: their order is kept, and the one that makes the shares equal is cut off."""
    options = (run, "--data", data, "--num", 9, "--features", "pixels", "--device", "cpu", "--batch", 7, "--cache")
    assert call(*options, "one", "--out", "one.json")[0] == 0
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--"]
    words = [*launcher, "cli.evaluate", *map(str, options), "two", "--out", "two.json"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert files(tmp_path / "one").keys() == files(tmp_path / "two").keys()
    [alone, together] = [load_tensors(next((tmp_path / cache).iterdir())) for cache in ("one", "two")]
    assert all(torch.equal(alone[name], together[name]) for name in ("features", "colours"))
    alone, together = report(Path("one.json")), report(Path("two.json"))
    assert together["floor"] == alone["floor"]
    assert together["scores"]["frechet_distance"] == pytest.approx(alone["scores"]["frechet_distance"], rel=1e-3)
