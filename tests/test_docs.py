"""What README and documentation say: snippets run, commands parse, links lead somewhere."""

from __future__ import annotations

import functools
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest

import cli.__main__
import diffusion
import lbm_warp
from tests.test_imports import ROOT

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

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


QUESTIONS = {
    "How do I train on my folder, with labels?": ("docs/howto/pictures.md", "--classes"),
    "Which equation is solved?": ("docs/concepts/equation.md", r"\frac{\partial u}{\partial t}"),
    "How do I add a spectrum of noise?": ("docs/questions.md", "--noise-exponent"),
    "What does it cost?": ("docs/howto/paper.md", "days"),
    "How do I bring an operator of my own?": ("README.md", "class Columns(Operator)"),
    "How do I use several GPUs?": ("docs/howto/gpus.md", "torchrun"),
    "Is it better than DDPM or EDM?": ("docs/evidence.md", "<!-- evidence: digits -->"),
    "How exact is the solver?": ("docs/accuracy.md", "order 4.0"),
    "How do I restore a blurred picture?": ("docs/howto/restore.md", "beyond-blur restore blurred.png"),
    "I know EDM: what is sigma here?": ("docs/coming-from.md", "half of EDM's sigma"),
    "How do I get a gradient in the velocity?": ("docs/howto/solver.md", "loss.backward()"),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_question_is_answered_at_most_two_clicks_from_the_readme(question: str) -> None:
    page, answer = QUESTIONS[question]
    assert answer in TEXTS[page]
    reached = {"README.md"}
    for _ in range(2):
        links = {(name, link) for name in reached & TEXTS.keys() for link in re.findall(r"\]\(([^)\s#]+\.md)", TEXTS[name])}
        reached |= {os.path.normpath(Path(name).parent / link) for name, link in links}
    assert page in reached


@pytest.mark.parametrize("name", TEXTS)
def test_a_link_leads_somewhere(name: str) -> None:
    """To a file of the project, and to a heading of it where one is named."""
    page = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]) + re.findall(r'<img src="([^"]+)"', TEXTS[name]):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, heading = unquote(link).partition("#")
        target = page if not place else page.parent / place
        # The documentation puts the project's pictures under assets/, and makes pages of its notebooks.
        if ROOT / "docs" in page.parents and not target.exists():
            target = ROOT / re.sub(r"^(\.\./)*", "", place).replace(".md", ".ipynb")
        generated = {ROOT / "docs" / "contributing.md", ROOT / "docs" / "changes.md"}
        assert target.exists(), link
        if heading and target not in generated:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}
            assert heading in slugs, link


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation in a folder; a warning or a dead link in it is an error."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(place)]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return place


@pytest.fixture
def phone(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of a narrow screen, light or dark, that asks the network for nothing."""
    asked: set[str] = set()
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=getattr(request, "param", "light"))
    page = context.new_page()
    page.on("request", lambda request: asked.add(request.url.partition(":")[0]))
    yield page
    context.close()
    assert asked <= {"file", "blob", "data"}


@pytest.mark.slow
@pytest.mark.parametrize("phone", ["light", "dark"], indirect=True)
def test_pages_suit_a_phone_the_dark_and_those_who_do_not_see_them(phone: Page, site: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for name in ("concepts/equation.html", "evidence.html", "examples/own_operator.html"):
        phone.goto((site / name).as_uri())
        phone.wait_for_timeout(300)  # the theme's scripts
        assert axe.run(phone).response["violations"] == [], name
        assert phone.evaluate("document.documentElement.scrollWidth") == 390
        phone.evaluate("document.querySelectorAll('img').forEach((image) => (image.loading = 'eager'))")
        phone.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


@pytest.mark.slow
def test_all_public_names_are_there_and_names_in_docstrings_are_links(site: Path) -> None:
    for package in (lbm_warp, diffusion):
        api = (site / "api" / f"{package.__name__}.html").read_text(encoding="utf-8")
        assert set(package.__all__) <= set(re.findall(r"\w+", api))
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r":(class|meth|func|attr|mod):|</code>\]\[", html), page
    assert 'href="#lbm_warp.Operator.at"><code>Operator.at</code>' in (site / "api" / "lbm_warp.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_search_works_in_a_folder(phone: Page, site: Path) -> None:
    phone.goto((site / "index.html").as_uri())
    phone.click("label.md-header__button[for=__search]")
    phone.locator(".md-search__input").press_sequentially("peclet")
    phone.wait_for_selector(".md-search-result__link[href*='equation.html']")
