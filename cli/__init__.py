"""The commands: ``beyond-blur COMMAND``, or ``python -m cli.COMMAND``; ``beyond-blur`` alone lists them."""

import sys
from importlib.util import find_spec
from pathlib import Path

from cli.signals import interrupted_in_a_line
from cli.streams import open_closed

# What the extra cli installs: without one of these no command starts.
NEEDED = (
    *(
        "PIL",
        "accelerate",
        "filelock",
        "huggingface_hub",
        "imageio",
        "imageio_ffmpeg",
        "lazy_loader",
        "matplotlib",
        "numpy",
        "psutil",
    ),
    *("safetensors", "torch", "tqdm", "tyro", "warp"),
)
open_closed()
if sys.argv[0] == "-m" or sys.argv[0].endswith("beyond-blur"):  # a command, which is still being found and imported
    interrupted_in_a_line()
if missing := [name for name in NEEDED if find_spec(name) is None]:
    print(f"error: the commands need {', '.join(missing)}: pip install 'beyond-blur[cli]'", file=sys.stderr)
    sys.exit(2)
for name in ("lbm_warp", "diffusion"):  # beside a file or a folder of that name ``python -m`` finds it first
    if Path(getattr(find_spec(name), "origin", None) or "") != Path(__file__).parent.parent / name / "__init__.py":
        print(f"error: something else here is called {name}; use beyond-blur COMMAND, or python -P -m cli.COMMAND", file=sys.stderr)
        sys.exit(2)
