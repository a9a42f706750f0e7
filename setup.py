"""What pyproject.toml cannot say: in a wheel the folder assets lies inside diffusion, where it collides with no other package."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PATTERNS = ("*.png", "*.gz", "*.md", "*.safetensors", "*-model/*")


class BuildWithAssets(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for source in (path for pattern in PATTERNS for path in Path("assets").glob(pattern)):
                target = Path(self.build_lib, "diffusion", source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithAssets})
