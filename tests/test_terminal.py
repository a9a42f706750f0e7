"""The commands in a terminal, in pipes, with closed streams, without a home, and with names of every kind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli import __main__ as cli
from diffusion.files import load_tensors, save_tensors
from diffusion.launcher import Launch, launch
from lbm_warp import InputError, caches
from tests.runs import exit_code

ROOT = Path(__file__).parent.parent
LINE = "error: Unrecognized options: --levls, 5; did you mean --levels?"
ESCAPE = "\x1b["

# Each command line in its environment, in one process, which takes seconds to start; a mark ends its output.
SESSION = """
import json, os, sys
from cli.__main__ import main
for words, environment in json.loads(sys.argv[1]):
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        main(words)
    except SystemExit as end:
        print(f"[{end.code or 0}]", end="\\0", flush=True)
    os.environ.clear()
    os.environ.update(before)
"""


def in_a_terminal(*cases: tuple[list[str], dict[str, str]]) -> list[str]:
    """What commands write in a pseudo-terminal with colours, each followed by its exit code."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    environment = kept | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", SESSION, json.dumps(cases)]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 2**16):
                written += part
        except OSError:  # what Linux says at the end
            pass
    os.close(ours)
    return written.decode().replace("\r\n", "\n").split("\0")[:-1]


@pytest.mark.slow
def test_a_wrong_option_is_one_line_in_a_terminal_and_help_has_its_colours() -> None:
    wrong = ["train", "--levls", "5"]
    around: list[dict[str, str]] = [{}, {"COLUMNS": "20"}, {"FORCE_COLOR": "1"}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}]
    lines = in_a_terminal(
        *((wrong, environment) for environment in around),
        (["train", "--size", "--help"], {"COLUMNS": "20"}),
        (["corrupt", "--turbulence", "waves"], {"COLUMNS": "20"}),
        (["corrupt", "--help-all"], {}),
        (["corrupt", "--help-all"], {"NO_COLOR": "1"}),
        (["corrupt", "--help-all"], {"TERM": "dumb"}),
    )
    assert lines[: len(around)] == [f"{LINE}\n[2]"] * len(around)
    missing, choice, help_text, plain, dumb = lines[len(around) :]
    assert missing == "error: Missing value for argument '--size'. Expected 1 values; --help explains the options\n[2]"
    assert choice.startswith("error: invalid choice 'waves' for argument '--turbulence'.") and choice.count("\n") == 1
    assert ESCAPE in help_text and ESCAPE not in plain + dumb
    assert re.sub(r"\x1b\[[\d;]*m", "", help_text) == plain == dumb and "--size" in plain and plain.endswith("[0]")


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash, in which $cli is ``python -m cli``."""
    variables = os.environ | {"PYTHONPATH": str(ROOT), "cli": f"{sys.executable} -m cli"} | environment
    return subprocess.run(["bash", "-c", script], cwd=folder, env=variables, capture_output=True, text=True, timeout=300)


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path: Path) -> None:
    """In the seconds before a command begins; here the import of torch is where it comes."""
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    ended = subprocess.run([sys.executable, "-m", "cli.train"], env=environment, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "interrupted\n", -signal.SIGINT)


def test_a_reader_that_leaves_and_closed_streams_are_no_errors(tmp_path: Path) -> None:
    done = shell("$cli | true; echo ${PIPESTATUS[0]}; $cli 2>&- | wc -l; $cli >&-; echo $?; $cli >/dev/full; echo $?", tmp_path)
    assert done.stdout.split() == ["141", "16", "0", "2"]
    assert done.stderr == "error: standard output: No space left on device\n"
    assert shell("$cli corrupt --bad 2>/dev/full; echo $?", tmp_path).stdout.split() == ["2"]


@pytest.mark.slow
def test_long_work_without_a_reader_or_without_streams(tmp_path: Path) -> None:
    work = "corrupt --size 8 --levels 2 --columns 2 --peclet 0"
    done = shell(f"$cli {work} --out a 2>&1 | true; echo ${{PIPESTATUS[0]}}; $cli {work} --out b <&- >&- 2>&-; echo $?", tmp_path)
    assert done.stdout.split() == ["141", "0"] and done.stderr == ""
    assert {"strip.png", "corrupted.png"} < {file.name for file in (tmp_path / "b").iterdir()}


@pytest.mark.slow
def test_without_a_home_a_command_works_and_says_so_in_one_line(tmp_path: Path) -> None:
    done = shell("unset XDG_CACHE_HOME; $cli corrupt --size 8 --levels 2 --columns 2 --peclet 0", tmp_path, HOME="/no-such-home")
    said = [line for line in done.stderr.splitlines() if line.strip() and "level/s" not in line]
    assert done.returncode == 0 and len(said) == 1, done.stderr
    place = re.fullmatch(r"/no-such-home/.cache cannot be written: caches are in (\S+) until the end; XDG_CACHE_HOME=.*", said[0])
    assert place and not Path(place[1]).exists() and not Path("/no-such-home").exists()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own, without variables that say where caches are."""
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "WARP_CACHE_PATH", "HF_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    caches._temporary.cache_clear()
    return tmp_path


def test_caches_are_in_the_users_folder(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert caches.cache_folder("beyond-blur", "data") == fresh / ".cache" / "beyond-blur" / "data"
    caches.send_libraries()
    assert not {"XDG_CACHE_HOME", "MPLCONFIGDIR", "WARP_CACHE_PATH"} & os.environ.keys()
    monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "other"))
    assert caches.cache_folder("beyond-blur") == fresh / "other" / "beyond-blur"


@pytest.mark.parametrize("case", ["nobody", "no home", "a file", "only warp"])
def test_caches_that_cannot_be_written_are_in_a_temporary_folder(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    """An unknown user, a home that does not exist, a cache that is a file; one line, and libraries that are sent there too."""
    (fresh / ".cache" / "huggingface").mkdir(parents=True)
    if case == "nobody":
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom the system does not know
    elif case == "no home":
        monkeypatch.setenv("HOME", str(fresh / "missing"))
    elif case == "a file":
        (fresh / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(fresh / "file"))
    else:
        (fresh / ".cache" / "warp").touch()
    caches.send_libraries()
    folder = caches.cache_folder("warp")
    assert folder.parent.is_dir() and fresh not in folder.parents and Path(os.environ.get("WARP_CACHE_PATH", folder)) == folder
    (line,) = caplog.messages
    assert "cannot be written: caches are in" in line and "\n" not in line
    if case != "only warp":
        assert Path(os.environ["XDG_CACHE_HOME"]) == folder.parent == caches.cache_folder()
    assert ("MPLCONFIGDIR" in os.environ) == (case in ("nobody", "no home")) and not (fresh / "missing").exists()
    assert "HF_HOME" not in os.environ and not Path("~").exists()


NAMES = ["$x_1$ $\\frac{", "照片😀 مرحبا", os.fsdecode(b"\xff\xfe"), "two\nlines"]


@pytest.mark.parametrize("name", NAMES, ids=["dollars", "letters", "bytes", "lines"])
def test_pictures_of_any_name_are_corrupted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.arange(3 * 36, dtype=np.uint8).reshape(6, 6, 3)
    Image.fromarray(pixels).save(f"{name}.png")
    assert exit_code(cli.main, "corrupt", f"{name}.png", "--levels", "2", "--columns", "2", "--peclet", "0") == 0
    out, err = capsys.readouterr()
    made = {file.name for file in (tmp_path / "outputs" / name).iterdir()}
    assert out.encode() and "Glyph" not in err and {"strip.png", "corruption.json"} < made
    code = exit_code(cli.main, "corrupt", f"{name}-missing.png")
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and err.startswith("error: ")


def test_tensors_in_a_folder_of_any_name(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / name / f"{name[-1]}.safetensors"
        save_tensors(path, {"x": torch.arange(3)}, {"data": name})
        assert load_tensors(path)["x"].tolist() == [0, 1, 2]


WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Launch()),
        (WHOLE, Launch(1, 4, 1, 2)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Launch()),
        ({"LOCAL_RANK": "abc"}, "LOCAL_RANK is 'abc', expected a number"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK is '', expected a number"),
        ({"WORLD_SIZE": "2.5"}, r"WORLD_SIZE is '2\.5', expected a number"),
        ({"RANK": "-1"}, "RANK is '-1', expected a number"),
        ({"RANK": "1"}, r"started this process \(RANK=1\), but WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2"}, "but RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set: use torchrun"),
        ({"LOCAL_RANK": "0"}, "but RANK, WORLD_SIZE"),
        (WHOLE | {"MASTER_ADDR": ""}, "but MASTER_ADDR is not set"),
        (WHOLE | {"RANK": "4"}, "but there is no process 4 of 4"),
    ],
)
def test_half_the_environment_of_a_launcher_is_refused_in_one_line(
    environment: dict[str, str], expected: Launch | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, Launch):
        assert launch() == expected
        return
    with pytest.raises(InputError, match=expected) as refused:
        launch()
    assert exit_code(cli.main, "corrupt", "--size", "8") == 2
    assert capsys.readouterr().err == f"error: {refused.value}\n"
