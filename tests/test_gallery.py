"""The gallery: every process is on the page, its files are there, and its code runs."""

from __future__ import annotations

import html
import re
from pathlib import Path

import imageio.v2 as imageio
import pytest

from diffusion.methods import METHODS
from tools.gallery import ENTRIES, main


@pytest.mark.slow
def test_the_page_its_files_and_its_code(tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "gallery"), "--size", "24", "--frames", "7"])
    page = (tmp_path / "gallery" / "index.html").read_text(encoding="utf-8")
    blocks = [html.unescape(block) for block in re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)]
    assert len(blocks) == len(ENTRIES) and all(block.count("\n") <= 10 for block in blocks)
    for name, block in zip(ENTRIES, blocks, strict=True):
        assert f'named_method("{name}")' in block and f'id="{name}"' in page
        names: dict[str, object] = {}
        exec(block, names)
        u0, half, last = (names[which] for which in ("u0", "half", "last"))
        assert last.shape == u0.shape and (last - u0).abs().mean() > (half - u0).abs().mean() > 1e-3
    sources = re.findall(r'src="([^"]+)"', page)
    assert sorted(sources) == sorted(file.name for file in (tmp_path / "gallery").iterdir() if file.name != "index.html")
    with imageio.get_reader(tmp_path / "gallery" / "ihd.mp4") as reader:
        assert reader.count_frames() == 12
    # Every picture has a caption, and no film begins where motion is not wanted.
    assert page.count("<figcaption>") == len(sources) and "autoplay" not in page and "prefers-reduced-motion" in page
    # Nothing is loaded from other hosts.
    assert not re.search(r'(src|href)="(?!#|https://arxiv\.org/abs/)[^"]*//', page) and "@import" not in page


def test_no_process_is_missing() -> None:
    """But for the controls, and for what differs from another in the number of levels alone."""
    assert set(ENTRIES) == {name for name, method in METHODS.items() if method.operator.transport} - {"ddpm-1000"}
