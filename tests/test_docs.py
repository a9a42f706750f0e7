"""What README and documentation say: snippets run, commands parse, links lead somewhere."""

from __future__ import annotations

import functools
import io
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from urllib.parse import unquote

import pytest

import cli.__main__
from tests.test_imports import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
SNIPPETS = [
    pytest.param(code, id=f"{name}-{number}")
    for name, text in TEXTS.items()
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
]
COMMAND = re.compile(rf"^(?:beyond-blur |.*-m cli\.)({'|'.join(cli.__main__.COMMANDS)})\b(.*)$")


def commands() -> list[tuple[str, str, str]]:
    """Command lines that stand in code, a line each: page, command and its options."""
    found = []
    for name, text in TEXTS.items():
        blocks = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE) + re.findall(r"`([^`\n]+)`", text)
        for line in (line.strip() for block in blocks for line in block.splitlines()):
            for command, options in COMMAND.findall(line.split("  ")[0].split(" # ")[0]):
                found.append((name, command, options))
    return list(dict.fromkeys(found))


@pytest.mark.slow
@pytest.mark.parametrize("code", SNIPPETS)
def test_a_snippet_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "snippet", "exec", dont_inherit=True), {"__name__": "snippet"})


def test_the_commands_have_the_options_that_the_pages_say() -> None:
    lines = commands()
    assert len(lines) > 30
    for page, command, options in lines:
        words = shlex.split(options)
        known = help_of(command, words[0] if command == "benchmark" and words else None)
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= known, (page, options)


@functools.cache
def help_of(*command: str | None) -> set[str]:
    """The options that ``--help-all`` of a command lists."""
    with redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
        cli.__main__.main([*filter(None, command), "--help-all"])
    return set(re.findall(r"--[\w-]+", shown.getvalue()))


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_leads_somewhere(name: str) -> None:
    """To a file of the project, and to a heading of it where one is named."""
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]) + re.findall(r'<img src="([^"]+)"', TEXTS[name]):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, heading = unquote(link).partition("#")
        target = page if not place else page.parent / place
        # The documentation puts the project's pictures under assets/.
        from_docs = ROOT / "docs" in page.parents and "assets/" in place
        if from_docs and not target.exists():
            target = ROOT / place[place.index("assets/") :]
        generated = {ROOT / "docs" / "contributing.md", ROOT / "docs" / "changes.md"}
        assert target.exists(), link
        if heading and target not in generated:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
            assert heading in slugs, link
