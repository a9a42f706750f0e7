"""Sets of the Hugging Face hub, from parquet files made here: as a table and as a stream."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

from diffusion.data import dataset as data
from diffusion.data import hub, prepare
from diffusion.data.dataset import ImageDataset, ImageStream, open_dataset
from diffusion.data.identity import Identity
from diffusion.data.loader import batches
from diffusion.sampling.prior import Prior
from tests.pictures import check, chw, encoded, fails, first_levels
from tests.runs import tiny_config

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tables in the test's own folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    # At the end of a stream the library waits for its threads, five seconds.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    datasets.disable_progress_bars()

    def decode(*_: object) -> None:
        raise AssertionError("the library decodes an image")

    monkeypatch.setattr(datasets.Image, "decode_example", decode)


def write(path: Path, contents: list[bytes | None], **columns: list) -> None:
    """A parquet file with a column of images, called `picture`, behind a column of numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features = {"number": datasets.Value("int64"), "picture": datasets.Image(), "kind": datasets.ClassLabel(names=["even", "odd"])}
    rows = {
        "number": list(range(len(contents))),
        "picture": [content and {"bytes": content, "path": None} for content in contents],
        "kind": [number % 2 for number in range(len(contents))],
    }
    datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty constant grey pictures in three files, and a split of two."""
    for part in range(3):
        write(tmp_path / "set" / f"train-{part:05}-of-00003.parquet", [encoded(20 * part + i) for i in range(20)])
    write(tmp_path / "set" / "test-00000-of-00001.parquet", [encoded(200), encoded(201)])
    return tmp_path / "set"


def run(dataset: ImageDataset | ImageStream, *arguments: int, **options: object) -> list[int]:
    with batches(dataset, *arguments, **options) as queue:
        return [level for batch in queue for level in first_levels(batch)]


def sending() -> Callable[[list | None], object]:
    """What scatters between two ranks that run one after the other."""
    sent: list[list] = []

    def scatter(parts: list | None) -> object:
        sent.extend([parts] if parts else [])
        return parts[0] if parts else sent.pop(0)[1]

    return scatter


# A table


def test_a_table_is_read_by_index(folder: Path) -> None:
    dataset = open_dataset(f"hf:{folder}")
    assert (len(dataset), dataset.size, dataset.channels, dataset.name) == (60, (64, 64), 1, "set")
    assert first_levels(dataset) == list(range(60)) and first_levels([dataset[-1]]) == [59]
    assert dataset.labels.dtype == np.int64 and dataset.labels.tolist() == 30 * [0, 1]
    assert dataset.description == f"60 grey images from hf:{folder} (grey: all 60 looked at)"
    assert open_dataset(f"hf:{folder}", 8, grey=False)[0].shape == (3, 8, 8)
    assert first_levels(open_dataset(f"hf:{folder}:test", 8)) == [200, 201]
    with pytest.warns(UserWarning, match=f"hf:{folder}: of train, test only train is read; name another as in hf:{folder}:test"):
        open_dataset(f"hf:{folder}", 8)


def test_a_table_is_prepared_once_and_again_when_it_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, decode = [], prepare.decode
    monkeypatch.setattr(prepare, "decode", lambda *arguments: read.append(arguments) or decode(*arguments))
    monkeypatch.chdir(folder.parent)
    for name in (f"hf:{folder}", f"hf:{folder}", "hf:set"):
        assert len(open_dataset(name, 8)) == 60 and len(read) == 60
    write(folder / "train-00001-of-00003.parquet", [encoded(99)] * 20)
    assert first_levels(open_dataset(f"hf:{folder}", 8)) == [*range(20), *[99] * 20, *range(40, 60)]


def test_a_table_that_vanished_is_no_problem_of_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(table: object, key: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    read = datasets.Dataset.__getitem__
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda t, key: vanished(t, key) if isinstance(key, int) else read(t, key))
    with fails("no image among the 2 that were looked at", "row 1: no such file"):
        open_dataset(f"hf:{folder}:test", 8, grey=True)
    monkeypatch.setattr(datasets.Dataset, "__getitem__", vanished)
    with fails(f"hf:{folder}: no such file"):
        open_dataset(f"hf:{folder}", 8)


@pytest.mark.parametrize("stream", [False, True])
def test_images_are_decoded_by_our_reader(tmp_path: Path, stream: bool) -> None:
    """16 bits, transparency and odd shapes come out as from files."""
    sixteen, clear, wide = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(sixteen, "PNG")
    Image.new("LA", (4, 4), (0, 51)).save(clear, "PNG")
    Image.fromarray(np.repeat(np.array([[0, 90, 90, 0]], dtype=np.uint8), 2, axis=0)).save(wide, "PNG")
    write(tmp_path / "set" / "a.parquet", [sixteen.getvalue(), clear.getvalue(), wide.getvalue()])
    dataset = open_dataset(f"hf:{tmp_path / 'set'}", 2, stream=stream)
    for image, level in zip(dataset, (round(40000 / 65535 * 255), 204, 90), strict=True):
        check(image, chw(np.full((2, 2), level)))


def test_damaged_rows_of_a_table_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / "set" / "a.parquet", [encoded(1), b"nothing", None, encoded(4)[:-30], encoded(5)])
    with pytest.warns(UserWarning, match="3 of 5 image files cannot be read: 1, 2, 3; of the first: .*, row 1: not an image"):
        dataset = open_dataset(f"hf:{tmp_path / 'set'}", 8)
    assert first_levels(dataset) == [1, 5] and dataset.labels.tolist() == [0, 0]


def test_a_path_in_a_table_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(66))
    features = datasets.Features({"image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": str(secret)}]}, features=features)
    rows = rows.cast_column("image", datasets.Image())
    (tmp_path / "set").mkdir()
    pyarrow.write_table(rows.data.table, tmp_path / "set" / "a.parquet")
    for stream in (False, True):
        with fails("no image among the 1 that were looked at", "not an image"):
            open_dataset(f"hf:{tmp_path / 'set'}", 8, stream=stream)


def test_a_set_of_single_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of the hub that is a folder of images there: its table names the files."""
    (tmp_path / "images" / "train").mkdir(parents=True)
    for level in (7, 8):
        (tmp_path / "images" / "train" / f"{level}.png").write_bytes(encoded(level))
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, name, **options: load("imagefolder", data_dir=str(tmp_path / "images"), **options)
    )
    assert first_levels(open_dataset("hf:owner/name", 8)) == [7, 8]
    with fails("hf:owner/name", "cannot be streamed", "--stream"):
        open_dataset("hf:owner/name", 8, stream=True)


@pytest.mark.parametrize("kind", ["bytes", "struct"])
@pytest.mark.parametrize("prefix", ["", "hf:"])
def test_files_of_images_in_a_table_that_does_not_say_so(tmp_path: Path, kind: str, prefix: str) -> None:
    """As pandas and pyarrow write them, beside bytes that are no image; a file, a folder, and with names as labels."""
    contents = [encoded(level) for level in range(3)]
    pictures = contents if kind == "bytes" else [{"bytes": content, "path": "x"} for content in contents]
    columns = {"code": [b"a", b"b", b"c"], "pixels": pictures, "label": ["dog", "cat", "dog"]}
    (tmp_path / "set").mkdir()
    pyarrow.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "set" / "a.parquet")
    dataset = open_dataset(f"{prefix}{tmp_path / 'set'}", 8)
    assert first_levels(dataset) == [0, 1, 2] and dataset.name == "set"
    assert dataset.classes() == ("cat", "dog") and dataset.labels.tolist() == [1, 0, 1]
    if not prefix:
        assert first_levels(open_dataset(str(tmp_path / "set" / "a.parquet"), 8)) == [0, 1, 2]
    assert first_levels(open_dataset(f"hf:{tmp_path / 'set'}", 8, stream=True)) == [0, 1, 2]


# A stream


def test_a_stream_is_told_by_its_beginning(folder: Path) -> None:
    known = Identity.of(open_dataset(f"hf:{folder}", 8, stream=True), "set")
    assert known.data == known.location == f"hf:{folder}" and len(known.cells) == 32
    assert known.changes(Identity.of(open_dataset(f"hf:{folder}", 8, stream=True), "set")) == []
    write(folder / "train-00000-of-00003.parquet", [encoded(99)] * 20)
    changes = known.changes(other := Identity.of(open_dataset(f"hf:{folder}", 8, stream=True), "set"))
    assert changes == ["20 of 32 that were looked at show something else"]
    assert known.kept_in(open_dataset(f"hf:{folder}", 8, stream=True), other) == 13


@pytest.mark.slow
def test_a_stream_is_shuffled_by_the_seed_and_goes_on_anywhere(folder: Path) -> None:
    def fresh() -> ImageDataset:
        return open_dataset(f"hf:{folder}", 8, stream=True)

    whole = run(fresh(), 5, 0, 150, 50)
    for epoch in (0, 1):
        assert sorted(whole[60 * epoch : 60 * epoch + 60]) == list(range(60))
    assert whole[:60] != whole[60:120] and whole[:60] != list(range(60)) and run(fresh(), 6, 0, 150, 50) != whole
    assert run(fresh(), 5, 0, 150, 7) == whole
    for first in (13, 59, 60, 61, 130):
        assert run(fresh(), 5, first, 150, 8) == whole[first:]


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_see_the_same_stream(folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which the first rank alone reads."""
    dataset = open_dataset(f"hf:{folder}", "8x12", stream=True)
    with batches(dataset, 5, 10, 90, 9, flip=True) as queue:
        whole = list(queue)
    assert all(batch.dtype == torch.float32 and batch.shape[1:] == (1, 8, 12) for batch in whole)
    shares, scatter = [], sending()

    def read_again(*_: object) -> None:
        raise AssertionError("the second rank reads the stream")

    for rank in range(2):
        with batches(dataset, 5, 10, 90, 9, flip=True, part=(rank, 2), scatter=scatter, workers=workers) as queue:
            shares.append(list(queue))
        monkeypatch.setattr(hub.Stream, "shuffled", read_again)
    for batch, *parts in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat(parts), batch)


def test_a_stream_may_say_its_length_or_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is known, the epochs before are not read again; where it is not, the first one is."""
    source = open_dataset(f"hf:{folder}", 8, stream=True).source
    whole = list(islice(source.shuffled(5, 0), 250))
    epochs, shuffle = [], type(source.table).shuffle

    def counting(table, seed, buffer_size):
        epochs.append(seed)
        return shuffle(table, seed=seed, buffer_size=buffer_size)

    monkeypatch.setattr(type(source.table), "shuffle", counting)
    for count, read in ((60, 1), (None, 2)):
        epochs.clear()
        assert list(islice(replace(source, count=count).shuffled(5, 190), 20)) == whole[190:210]
        assert len(epochs) == read


def test_a_stream_that_ends_early_is_refused(folder: Path) -> None:
    source = open_dataset(f"hf:{folder}", 8, stream=True).source
    with fails("60 images came of 61"):
        list(islice(replace(source, count=61).shuffled(5, 0), 100))
    for part in folder.glob("train*"):
        part.write_bytes(part.read_bytes()[:100])
    with fails(folder, "the stream broke off", "last checkpoint"):
        list(islice(source.shuffled(5, 0), 100))


def test_the_beginning_of_a_stream_is_read_by_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much as the prior and statistics need; nothing of it unless it is asked for."""
    dataset = open_dataset(f"hf:{folder}", 8, stream=True)
    assert (dataset.channels, dataset.name, dataset.labels) == (1, "set", None)
    assert dataset.description == f"grey images, streamed from hf:{folder} (grey: all 32 looked at)"
    assert run(dataset, 5, 0, 3, 3) and "pixels" not in vars(dataset)
    assert len(dataset) == 60 and first_levels(dataset) == list(range(60))
    assert len(Prior.build(dataset, tiny_config().method, torch.device("cpu")).thumbnails) == 60
    monkeypatch.setattr(data, "_HEAD", 7)
    assert len(open_dataset(f"hf:{folder}", 8, stream=True)) == 7
    monkeypatch.setattr(data, "_HEAD_BYTES", 5 * 64)
    assert len(open_dataset(f"hf:{folder}", 8, stream=True)) == 5


def test_damaged_rows_of_a_stream_are_replaced_the_same_everywhere(tmp_path: Path) -> None:
    contents = [encoded(level) for level in range(40)]
    contents[33], contents[35] = encoded(33)[:-30], None
    write(tmp_path / "set" / "a.parquet", contents)
    dataset = open_dataset(f"hf:{tmp_path / 'set'}", 8, stream=True)
    with pytest.warns(UserWarning) as record:
        whole = run(dataset, 5, 0, 80, 8)
        assert run(dataset, 5, 0, 80, 8, workers=1) == whole
    for word in ("truncated", "not an image"):
        assert any(word in str(warning.message) and "takes its place" in str(warning.message) for warning in record)
    assert len(dataset.damaged) == 2
    for epoch in (whole[:40], whole[40:]):
        assert set(range(40)) - {33, 35} <= set(epoch)
    with pytest.warns(UserWarning):
        scatter, fresh = sending(), [open_dataset(f"hf:{tmp_path / 'set'}", 8, stream=True) for _ in range(2)]
        halves = [run(fresh[rank], 5, 20, 80, 10, part=(rank, 2), scatter=scatter) for rank in (0, 1)]
    assert [level for i in range(0, 30, 5) for half in halves for level in half[i : i + 5]] == whole[20:]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_of_damaged_rows_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setattr(data, "_HEAD", 60)
    write(tmp_path / "set" / "a.parquet", [encoded(level, side=24)[: None if level < 3 else -30] for level in range(40)])
    dataset = open_dataset(f"hf:{tmp_path / 'set'}", 8, stream=True)
    with fails("set: 7 damaged images, too many to go on; the last: ", "truncated"):
        run(dataset, 5, 0, 40, 8, workers=workers)


# What cannot be opened


def test_a_hub_that_does_not_answer_is_asked_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails at once with what to do, takes what is kept here, and asks again the next time."""
    asked = []

    def head(address: str, timeout: float) -> None:
        asked.append((address, timeout))
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    with fails("mnist: none of mnist", "or use other images with --data FOLDER", "the Hub does not answer: no route to host"):
        open_dataset("mnist", root=folder)
    assert asked == [("https://huggingface.co", hub.ANSWER)]
    assert not huggingface_hub.constants.HF_HUB_OFFLINE and "Retrying" not in capsys.readouterr().err

    load, offline = datasets.load_dataset, []

    def kept(path: str, name: str | None, **options: object) -> object:
        offline.append(huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE)
        return load("parquet", data_dir=str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", kept)
    assert len(open_dataset("hf:owner/name", 8)) == 60 and offline == [True] and len(asked) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_without_the_library_or_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    with fails("hf:owner/name", "cannot be loaded", "check the name, the network"):
        open_dataset("hf:owner/name", stream=stream)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with fails("hf:owner/name", "pip install 'beyond-blur[hub]'"):
        open_dataset("hf:owner/name", stream=stream)
    (tmp_path / "a.parquet").write_bytes(b"")
    with fails("a.parquet", "parquet files need the datasets library", "pip install 'beyond-blur[hub]'"):
        open_dataset(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("name", ["", "mnist", "parquet", "owner/name@", "owner/name:", "a:b:c", "owner/name@x@y"])
def test_names_that_are_none(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with fails(f"hf:{name}: expected hf:owner/name"):
        open_dataset(f"hf:{name}")


def test_configuration_and_split_reach_the_library(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    calls, load = [], datasets.load_dataset

    def loading(path, name, **options):
        calls.append((path, name, options.pop("trust_remote_code")))
        return load("parquet", data_dir=str(folder), **options)

    monkeypatch.setattr(datasets, "load_dataset", loading)
    dataset = open_dataset("hf:owner/name@small-1.0:test", 8)
    assert calls == [("owner/name", "small-1.0", False)] and len(dataset) == 2 and dataset.name == "owner/name"
    assert open_dataset("mnist", root=folder).name == "mnist" and calls[1] == ("ylecun/mnist", None, False)
    with fails("hf:owner/name:valid", "no split 'valid'", "train, test"):
        open_dataset("hf:owner/name:valid", 8)


@pytest.mark.parametrize("stream", [False, True])
def test_folders_that_hold_no_images(tmp_path: Path, stream: bool) -> None:
    with fails("no parquet files"):
        open_dataset(f"hf:{tmp_path}", stream=stream)
    datasets.Dataset.from_dict({"text": ["a"], "number": [1]}).to_parquet(tmp_path / "a.parquet")
    with fails("no column of images", "text (Value)", "number (Value)"):
        open_dataset(f"hf:{tmp_path}", stream=stream)
    (tmp_path / "a.parquet").write_text("text")
    with fails(f"hf:{tmp_path}", "cannot be loaded"):
        open_dataset(f"hf:{tmp_path}", stream=stream)
