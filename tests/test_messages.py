"""What messages advise: an option that they name is one that the command has which shows them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import tyro

from cli import compare, corrupt, dataset, evaluate, features, restore, sample, sweep, train
from cli.explore.__main__ import Explore
from lbm_warp.checks import amount
from tests.test_imports import FILES

COMMANDS = {
    "compare": [compare.Compare],
    "corrupt": [corrupt.Corrupt],
    "dataset": [dataset.Dataset],
    "evaluate": [evaluate.Evaluate],
    "explore": [Explore],
    "features": [features.Features],
    "restore": [restore.Restore],
    "sample": [sample.Sample],
    "sweep": [sweep.Sweep, train.Train],
    "train": [train.Train],
}
# By modules that several commands share, or rooms of them, the commands that show their messages.
SHOWN_BY = {
    "cli.explore.studio": [],
    "cli.scene": ["corrupt"],
    "cli.film": ["corrupt"],
    "cli.video": ["compare", "corrupt", "dataset", "sample"],
    "cli.jobs": ["sweep"],
    "diffusion.data": ["evaluate", "features", "sweep", "train"],
    "diffusion.data.identity": ["train"],
    "diffusion.data.loader": ["train"],
    "diffusion.data.pairs": ["dataset"],
    "diffusion.degradation": ["dataset"],
    "diffusion.evaluation": ["evaluate"],
    "diffusion.evaluation.features": ["evaluate", "sweep"],
    "diffusion.run": ["train"],
    "diffusion.sampling": [],
    "diffusion.training": ["train"],
}
# Named only where they were given, in what says that they do not go together.
GIVEN = {"--stream", "--split", "--classes", "--compile", "--peclet"}
# A word that names another program's option.
FOREIGN = {"--thumbs", "--help", "--help-all", "--version"}
# Of a classifier's pictures, in evaluation's room.
ELSEWHERE = {("cli.train", "--best"), ("diffusion.evaluation.features", "--size")}


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The options of every command."""
    with train.registry, pytest.warns(DeprecationWarning):
        parsers = {name: [tyro.extras.get_parser(kind) for kind in kinds] for name, kinds in COMMANDS.items()}
    return {name: {option for parser in found for option in parser._option_string_actions} for name, found in parsers.items()}


def texts(path: Path) -> list[str]:
    """The strings of a module, without docstrings; those with values in them as one, with a star for a value."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    left_out = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = []
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if id(node) not in left_out and (isinstance(node, ast.JoinedStr) or isinstance(node, ast.Constant)):
            found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in parts))
            left_out |= {id(part) for part in parts}
    return found


@pytest.mark.parametrize("module", [name for name in FILES if not name.startswith(("lbm_warp", "cli.benchmark"))])
def test_an_option_in_a_message_exists(module: str, options: dict[str, set[str]]) -> None:
    room = next((part for part in (module, module.rpartition(".")[0]) if part in SHOWN_BY), "")
    own = module.removeprefix("cli.").partition(".")[0]
    for text in texts(FILES[module]):
        for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text):
            if word in FOREIGN or (module, word) in ELSEWHERE:
                continue
            elsewhere = re.search(rf"cli\.(\w+)[^;]*{word}", text)
            commands = [elsewhere[1]] if elsewhere else SHOWN_BY.get(room, [own] if own in COMMANDS else [])
            known = [word in options[command] for command in commands] or [any(word in one for one in options.values())]
            assert any(known) if word in GIVEN else all(known), f"{module}: {text!r} names {word}, which is no option of {commands}"


def test_one_thing_is_one_and_not_several() -> None:
    assert [amount(count, "picture") for count in (0, 1, 2, 2000)] == ["0 pictures", "1 picture", "2 pictures", "2,000 pictures"]
    assert (amount(1, "class"), amount(3, "process")) == ("1 class", "3 processes")
