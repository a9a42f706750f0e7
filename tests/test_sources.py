"""Folders, archives and tables on the disk, and what hostile ones can do."""

from __future__ import annotations

import gzip
import json
import os
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from diffusion.data import images, sources
from diffusion.data.dataset import open_dataset
from diffusion.data.sources import open_path
from tests.pictures import encoded, fails, first_levels, save, zipped


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


# Archives


def test_members_with_paths_out_of_the_archive_stay_in_it(tmp_path: Path) -> None:
    """Names that would leave the folder an archive is unpacked to, with other pictures at those places."""
    outside = tmp_path / "outside.png"
    save(outside, 77, "L")
    (tmp_path / "in").mkdir()
    names = [str(outside), "../outside.png", "/etc/a.png", "b.png"]
    path = archive(tmp_path / "in" / "p.zip", {name: encoded(level) for level, name in enumerate(names, 1)})
    before = sorted(tmp_path.rglob("*"))
    # Paths with a hidden part, as .. is, are left out; the others are read in the archive.
    assert sorted(first_levels(open_dataset(str(path), 8))) == [1, 3, 4]
    assert sorted(tmp_path.rglob("*")) == before and not os.path.exists("/etc/a.png")


def test_a_bomb_is_refused_without_unpacking_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 2**24)
    path = archive(tmp_path / "p.zip", {"bomb.png": bytes(2**24 + 2**20)})
    assert path.stat().st_size < 2**18
    with fails(f"{path}/bomb.png", "17.0 MiB", "16 MiB"):
        open_dataset(str(path), 8)
    path = archive(path, {"bomb.png": bytes(2**24 + 2**20), "a.png": encoded(3)})
    with pytest.warns(UserWarning, match=r"1 of 2 .*: bomb.png; .*17.0 MiB.*; they are left out"):
        assert first_levels(open_dataset(str(path), 8)) == [3]


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_a_bomb_that_lies_about_its_size_is_unpacked_no_further_than_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    image = encoded(3)
    path = archive(tmp_path / "p.zip", {f"bomb.{suffix}": image + bytes(2**26)})
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\1\2")
    assert struct.unpack_from("<I", content, start + 24)[0] == len(image) + 2**26
    struct.pack_into("<I", content, start + 24, len(image))
    path.write_bytes(content)

    unpacked = []
    read = zipfile.ZipExtFile._read1

    def counting(self, count):
        unpacked.append(len(result := read(self, count)))
        return result

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", counting)
    tracemalloc.start()
    with fails(f"{path}/bomb.{suffix}", "CRC"):
        open_dataset(str(path), 8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(unpacked) <= len(image) and peak < 2**22


def test_other_compressions_are_refused(tmp_path: Path) -> None:
    path = archive(tmp_path / "p.zip", {"a.png": encoded(3)}, zipfile.ZIP_BZIP2)
    with fails(f"{path}/a.png", "other than deflate"):
        open_dataset(str(path), 8)


def test_corrupt_archives(tmp_path: Path) -> None:
    path = archive(tmp_path / "p.zip", {f"{level}.png": encoded(level) for level in range(6)})
    content = path.read_bytes()
    for damaged in (b"", b"no archive", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with fails(path, "damaged"):
            open_dataset(str(path), 8)
    # Local headers overwritten: the directory can be read, no member can.
    path.write_bytes(content.replace(b"PK\3\4", b"PK\0\0"))
    with fails(path, "no image among the 6 that were looked at", "5.png"):
        open_dataset(str(path), 8)


def test_encrypted_archive(tmp_path: Path) -> None:
    path = archive(tmp_path / "p.zip", {"a.png": encoded(1), "b.png": encoded(2)})
    content = bytearray(path.read_bytes())
    start = -1
    while (start := content.find(b"PK\1\2", start + 1)) >= 0:
        content[start + 8 : start + 10] = struct.pack("<H", 1)
    path.write_bytes(content)
    with fails(path, "without password"):
        open_dataset(str(path), 8)


# Folders


def test_only_regular_files_of_sane_size_are_read(tmp_path: Path) -> None:
    """A pipe without a writer, a device without an end and a file too large, each of them named as an image."""
    save(tmp_path / "a.png", 3, "L")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(images.MAX_FILE_BYTES + 1)
    with pytest.warns(UserWarning, match=r"3 of 4 .*large.png, pipe.png, zero.png; .*256 MiB"):
        assert first_levels(open_dataset(str(tmp_path), 8)) == [3]
    with fails("pipe.png: not a regular file"):
        open_path(tmp_path).read("pipe.png")


def test_links_are_followed_but_not_in_loops(tmp_path: Path) -> None:
    for name in ("in/a.png", "in/c/b.png", "elsewhere/x.png"):
        save(tmp_path / name, 1)
    (tmp_path / "in" / "c" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "c" / "side").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "in" / "c")
    assert open_path(tmp_path / "in").names == ["a.png", "c/b.png", "c/side/x.png"]


def test_order_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.png", "a/z.png", "c/d/e.PNG", "a.png", "a/b/c.bmp", ".hidden.png", ".git/x.png", "c/.cache/x.png"):
        save(tmp_path / name, 1)
    walk = os.walk

    def backwards(*args, **options):
        for directory, folders, names in walk(*args, **options):
            folders.sort(reverse=True)
            yield directory, folders, sorted(names, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    # "a.png" precedes "a/..." since "." sorts before "/".
    assert open_path(tmp_path).names == ["a.png", "a/b/c.bmp", "a/z.png", "b.png", "c/d/e.PNG"]


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "in/b"), OSError(5, "Input/output error", "in/b")])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """It is no problem of the cache folder."""
    save(tmp_path / "a.png", 1)

    def walk(top, onerror, followlinks):
        onerror(error)

    monkeypatch.setattr(os, "walk", walk)
    with fails("in/b", "permission" if error.errno == 13 else "cannot be read"):
        open_dataset(str(tmp_path), 8)


# Labels


def labels(tmp_path: Path, content: str) -> tuple[list[int] | None, list[str]]:
    for name in ("a.png", "b.png"):
        save(tmp_path / name, 1)
    (tmp_path / "dataset.json").write_text(content)
    classes, names = open_path(tmp_path).labels(["a.png", "b.png"])
    return None if classes is None else classes.tolist(), list(names)


@pytest.mark.parametrize("value", [{"labels": None}, {"labels": []}, {}, {"labels": [["c.png", 1]]}, {"info": {"year": 1}}])
def test_a_dataset_json_without_labels(tmp_path: Path, value: object) -> None:
    assert labels(tmp_path, json.dumps(value)) == (None, [])


@pytest.mark.parametrize(
    ("value", "classes", "names"),
    [
        ({"labels": [["a.png", 1], ["b.png", 0], ["c.png", 7]]}, [1, 0], []),
        ({"labels": [["a.png", 1.0], ["b.png", 0.0]]}, [1, 0], []),
        ({"labels": [["a.png", "dog"], ["b.png", "cat"]]}, [1, 0], ["cat", "dog"]),
        ({"labels": {"a.png": 1, "b.png": 0}}, [1, 0], []),
        ({"a.png": "dog", "b.png": "cat"}, [1, 0], ["cat", "dog"]),
        ([["a.png", 1], ["b.png", 0]], [1, 0], []),
        ({"labels": [["a.png", [0.0, 1.0]], ["b.png", [1, 0]]]}, [1, 0], []),
        ({"labels": [["a.png", [3]], ["b.png", [0]]]}, [3, 0], []),
    ],
)
def test_labels_of_every_form(tmp_path: Path, value: object, classes: list[int], names: list[str]) -> None:
    assert labels(tmp_path, json.dumps(value)) == (classes, names)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([["a.png", 1]], "not every image has a class: 1 of 2 have none, such as b.png"),
        ({"labels": [["a.png", 1], ["b.png", None]]}, "not every image has a class: 1 of 2 have none, such as b.png"),
        ({"labels": [["a.png", 1], ["b.png", True]]}, "b.png: label True; expected an integer, from 0, a name or a one-hot row"),
        ({"labels": [["a.png", 1], ["b.png", 2**63]]}, "b.png: label 9223372036854775808; expected"),
        ({"labels": [["a.png", [0.2, 0.8]], ["b.png", [1, 1]]]}, "a.png: label [0.2, 0.8]; expected"),
        ({"labels": [["a.png", "cat"], ["b.png", 1]]}, "b.png: label 1, where others are names"),
    ],
)
def test_labels_that_are_no_class_for_every_image(tmp_path: Path, value: object, message: str) -> None:
    """Said to those who ask for classes; others read the pictures."""
    with fails(message):
        labels(tmp_path, json.dumps(value))
    dataset = open_dataset(str(tmp_path), 8)
    assert len(dataset) == 2 and dataset.labels is None
    with fails(message, "leave out --classes"):
        dataset.classes()


def test_labels_go_with_their_pictures_whatever_wrote_the_names(tmp_path: Path) -> None:
    """A table in the one folder of an archive, slashes of Windows, and letters in two pieces."""
    content = json.dumps({"labels": [["x/caf\u00e9.png", 1], ["y\\b.png", 0]]}).encode()
    members = {"top\\x\\cafe\u0301.png": encoded(1), "top/y/b.png": encoded(2), "top/dataset.json": content}
    dataset = open_dataset(str(archive(tmp_path / "p.zip", members)), 8)
    assert dict(zip(first_levels(dataset), dataset.labels.tolist(), strict=True)) == {1: 1, 2: 0}


def test_a_dataset_json_may_name_families(tmp_path: Path) -> None:
    families = [["a", "bird"], ["c", 7], ["d", "bird"]]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [], "families": families}))
    family = open_path(tmp_path).family
    assert family is not None and list(map(family, "abcd")) == ["bird", "b", "c", "bird"]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": []}))
    assert open_path(tmp_path).family is None


@pytest.mark.parametrize(
    "content",
    ['{"labels": [["a.png", 1]', '{"families": [3]}', '{"labels": [3]}', '{"labels": [[[], 1]]}', '{"labels": 3}', "[" * 10**6],
)
def test_damaged_labels(tmp_path: Path, content: str) -> None:
    with fails(tmp_path / "dataset.json", "cannot be read"):
        labels(tmp_path, content)


def test_two_labels_of_one_picture_are_refused(tmp_path: Path) -> None:
    with fails(tmp_path / "dataset.json", "café.png has the values 1 and 0; leave one of them"):
        labels(tmp_path, json.dumps([["café.png", 1], ["café.png", 0]]))
    assert labels(tmp_path, json.dumps([["a.png", 1], ["a.png", 1], ["b.png", 0]])) == ([1, 0], [])


def test_labels_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_LABELS_BYTES", 2**20)
    with fails(tmp_path / "dataset.json", "at most 1 MiB"):
        labels(tmp_path, " " * (2**20 + 1))
    path = zipped(tmp_path, tmp_path.parent / "p.zip", zipfile.ZIP_DEFLATED)
    with fails(f"{path}/dataset.json", "at most 1 MiB"):
        open_path(path)


# Tables


def idx(shape: tuple[int, ...], count: int, magic: int | None = None) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", magic or 0x0800 + len(shape), *shape) + bytes(count)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "damaged"),
        (idx((2, 3, 3), 18, magic=0x0D03), "not an IDX file"),
        (idx((0, 3, 3), 0), "not an IDX file"),
        (idx((2**20, 2**10, 2**10), 18), "not an IDX file"),
        (idx((2, 3, 3), 17), "shape (2,3,3)"),
        (idx((2, 3, 3), 19), "shape (2,3,3)"),
        (idx((2, 3, 3), 2**26), "shape (2,3,3)"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_idx(tmp_path: Path, content: bytes, word: str, packed: bool) -> None:
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * packed)
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    tracemalloc.start()
    with fails(path, word):
        open_path(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_idx_labels_must_fit(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx((2, 3, 3), 18))
    assert open_path(tmp_path).labels(["0"])[0] is None
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx((3,), 3))
    with fails("2 images but 3 labels"):
        open_path(tmp_path)


def test_damaged_cifar(tmp_path: Path) -> None:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(bytes(3073))
    assert len(open_path(tmp_path).names) == 5
    for content in (b"", bytes(3072)):
        (tmp_path / "data_batch_2.bin").write_bytes(content)
        with fails("data_batch_2.bin", "3073 bytes"):
            open_path(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    (tmp_path / "data_batch_2.bin").write_bytes(bytes(3073))
    with fails("data_batch_3.bin", "no such file"):
        open_path(tmp_path)


def test_pickles_databases_and_single_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with fails(tmp_path, "pickles may run code", "cifar-10-binary.tar.gz"):
        open_dataset(str(tmp_path))
    (tmp_path / "data_batch_1").rename(tmp_path / "data.mdb")
    with fails(tmp_path, "LMDB", "export", "https://github.com/fyu/lsun"):
        open_dataset(str(tmp_path))
    with fails(tmp_path / "data.mdb", "single file", "folder"):
        open_dataset(str(tmp_path / "data.mdb"))
    assert os.listdir(tmp_path) == ["data.mdb"]
