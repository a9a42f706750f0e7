"""Where what can be made again is kept: in the user's cache folder or, where that cannot be written, in a temporary one."""

from __future__ import annotations

import atexit
import functools
import logging
import os
import shutil
import tempfile
from pathlib import Path

log = logging.getLogger("lbm_warp")


def cache_folder(*parts: str) -> Path:
    """A folder in the user's cache, made if it is missing.

    The cache is XDG_CACHE_HOME or ~/.cache. Where there is no home, or nothing can be written there, it is a temporary folder that
    goes at the end of the process; one line says so. A cache is never a condition.
    """
    folder = _cache_home().joinpath(*parts)
    return folder if _can_be_written(folder) else _temporary().joinpath(*parts)


def send_libraries() -> None:
    """Send the caches of Warp, matplotlib, the Hub and torch to where they can be written, before these libraries look."""
    before, home = _cache_home(), cache_folder()
    if home != before:
        for name, part in (("HF_HOME", "huggingface"), ("TORCH_HOME", "torch")):
            if (before / part).is_dir():
                os.environ.setdefault(name, str(before / part))  # what is there can still be read
    if home != before or "XDG_CACHE_HOME" in os.environ:
        os.environ["XDG_CACHE_HOME"] = str(home)
    if "WARP_CACHE_PATH" not in os.environ and (kernels := cache_folder("warp")) != home / "warp":
        os.environ["WARP_CACHE_PATH"] = str(kernels)
    if "MPLCONFIGDIR" not in os.environ and not _can_be_written(_home()):
        os.environ["MPLCONFIGDIR"] = str(cache_folder("matplotlib"))


def _home() -> Path:
    """The user's home folder; one that does not exist for a user without."""
    home = Path(os.path.expanduser("~"))
    return home if home.is_absolute() else Path(os.devnull, "home")


def _cache_home() -> Path:
    """The user's cache folder, whether it can be written or not."""
    given = os.environ.get("XDG_CACHE_HOME")
    return Path(given).absolute() if given else _home() / ".cache"


def _can_be_written(folder: Path) -> bool:
    """Whether files can be written to a folder, which is made if it is missing; a home is not."""
    if _home() in (folder, *folder.parents) and not _home().is_dir():
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


@functools.cache
def _temporary() -> Path:
    """A folder for the caches of this process."""
    folder = Path(tempfile.mkdtemp(prefix="beyond-blur-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    log.warning("%s cannot be written: caches are in %s until the end; XDG_CACHE_HOME=FOLDER keeps them", _cache_home(), folder)
    return folder
