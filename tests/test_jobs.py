"""Commands in processes of their own: what becomes of them, what they are given, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from cli import signals
from cli.jobs import Job, side_by_side

WAIT = "import sys; open('begun', 'w').close(); sys.stdin.read(); open('ended', 'w').close()"


def ended(folder: Path, scripts: dict[str, list[str]], devices: list[str]) -> dict[str, str]:
    jobs = [Job(name, [["-c", script] for script in codes], folder / f"{name}.txt") for name, codes in scripts.items()]
    return {job.name: problem for job, problem in side_by_side(jobs, devices)}


def test_what_becomes_of_jobs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three at a time: what goes wrong is the last line of the log, and no command follows one that failed."""
    fails = "import sys; print('error: it cannot\\n', file=sys.stderr); sys.exit(2)"
    stops = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    dies = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    scripts = {"both": ["print('one')", "print('two')"], "fails": [fails, "print('after')"], "dies": [dies], "other": [""]}
    scripts |= {"stops": [stops, "print('after')"], "ends": ["raise SystemExit(130)", "print('after')"]}
    found = ended(tmp_path, scripts, ["cpu"] * 3)
    assert found.pop("dies").startswith("its process was killed (signal 9)")
    interrupted = "it was interrupted; the same command goes on"
    assert found.pop("stops") == found.pop("ends") == interrupted
    assert found == {"both": "", "other": "", "fails": f"it cannot; see {tmp_path / 'fails.txt'}"}
    assert (tmp_path / "both.txt").read_text() == "one\ntwo\n" and not any("after" in log.read_text() for log in tmp_path.iterdir())
    out, err = capfd.readouterr()
    assert out == "" and "runs: 100%" in err
    # A log grows.
    ended(tmp_path, {"both": ["print('again')"]}, ["cpu"] * 3)
    assert (tmp_path / "both.txt").read_text() == "one\ntwo\nagain\n"


def test_one_at_a_time_shows_its_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = ended(tmp_path, {"first": ["print('hello')"], "second": ["import sys; sys.exit('no')"]}, ["cpu"])
    assert found == {"first": "", "second": "its message is above"}
    out, err = capfd.readouterr()
    assert out.split() == ["first", "hello", "second"] and err == "no\n" and not list(tmp_path.glob("*.txt"))


def test_threads_and_devices_are_shared_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    tell = "import os, sys, time; print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:]); time.sleep(0.5)"
    assert set(ended(tmp_path, {name: [tell] for name in "abc"}, ["cuda:0", "cuda:1", "cuda:0"]).values()) == {""}
    told = sorted((tmp_path / f"{name}.txt").read_text().strip() for name in "abc")
    assert told == ["2 --device cuda:0", "2 --device cuda:0", "2 --device cuda:1"]


@pytest.mark.parametrize("how", ["signal", "error"])
def test_commands_end_when_the_caller_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """By a signal, or because the caller fails: a command that is running ends, and no other begins."""
    monkeypatch.chdir(tmp_path)
    jobs = [Job("quick", [["-c", ""]], tmp_path / "q"), Job("long", [["-c", WAIT], ["-c", "open('after', 'w')"]], tmp_path / "l")]
    jobs.append(Job("later", [["-c", "open('after', 'w')"]], tmp_path / "n"))

    def interrupt() -> None:
        while not Path("begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if how == "signal":
        threading.Thread(target=interrupt).start()
        done = []
        with pytest.raises(KeyboardInterrupt) as caught:
            for job, problem in side_by_side(jobs, ["cpu"]):
                done.append((job.name, problem))
        assert done == [("quick", "")] and signals.exit_code(caught.value) == 143
    else:
        with pytest.raises(ZeroDivisionError):
            for job, _ in side_by_side(jobs[:2], ["cpu"] * 2):
                assert job.name == "quick"
                while not Path("begun").exists():
                    time.sleep(0.01)
                raise ZeroDivisionError
    assert Path("ended").exists() and not Path("after").exists()
