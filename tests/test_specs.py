"""Objects of numbers as JSON and back; what a file may name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffusion import specs
from diffusion.forward.operators import FlowAndBlur, Geometric, Operator, Sine
from diffusion.forward.scales import Scales
from diffusion.methods import LIBRARY, METHODS, Method, known_classes
from diffusion.presets import PRESETS
from diffusion.run import RunConfig, load_config, save_config
from lbm_warp import CurlNoise
from lbm_warp.checks import InputError
from tests.runs import tiny_config


@dataclass(frozen=True)
class Part:
    number: float = 1.0


@dataclass(frozen=True)
class Whole:
    name: str
    parts: tuple[Part, ...] = ()
    nothing: None = None
    table: tuple[tuple[int, ...], ...] = ((1, 2), (3,))
    derived: float = field(default=0.0, init=False)


class Empty:
    """What has no data needs no dataclass."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)


class Plain(Operator):
    """An operator that is no dataclass."""

    levels = 5


def through_text(value: object, *known: type) -> object:
    """What a file of the value gives."""
    return specs.from_json(json.loads(json.dumps(specs.to_json(value))), specs.by_name(known), "config.json")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_comes_back_from_its_text(name: str) -> None:
    method = METHODS[name]
    text = json.dumps(specs.to_json(method))
    again = specs.from_json(json.loads(text), known_classes(), "config.json")
    assert again == method and type(again) is Method and json.dumps(specs.to_json(again)) == text
    assert set(specs.classes(method)) <= set(LIBRARY)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    save_config(tmp_path, PRESETS[name])
    assert load_config(tmp_path) == PRESETS[name]


def test_objects_in_tuples_and_objects_without_data_come_back() -> None:
    whole = Whole("a", (Part(2.0), Part()))
    assert through_text(whole, Whole, Part) == whole and through_text(Empty(), Empty) == Empty()
    assert type(through_text(Plain(), Plain)) is Plain
    assert specs.to_json(whole)["parts"][1] == {"class": "types.Part", "number": 1.0} and "derived" not in specs.to_json(whole)
    assert specs.classes(whole) == [Whole, Part]
    for value in (None, True, 3, 0.1 + 0.2, -0.0, 1e300, "text", (), (1, (2.5, None))):
        assert repr(through_text(value)) == repr(value)


def test_missing_fields_have_their_defaults() -> None:
    assert specs.from_json({"class": "types.Whole", "name": "b"}, specs.by_name([Whole]), "f") == Whole("b")


OWN_GEOMETRIC = type("Geometric", (Geometric,), {"__module__": __name__})


def test_a_class_called_like_one_of_the_librarys_is_told_apart_and_two_of_one_name_are_refused() -> None:
    own = OWN_GEOMETRIC(0.3)
    found = specs.from_json(specs.to_json((own, Geometric(0.3))), known_classes([OWN_GEOMETRIC]), "f")
    assert [type(part) for part in found] == [OWN_GEOMETRIC, Geometric]
    with pytest.raises(InputError, match="two classes are called Geometric, and files know them by their names: rename one"):
        known_classes([OWN_GEOMETRIC, type("Geometric", (Sine,), {"__module__": __name__})])
    known_classes([OWN_GEOMETRIC, OWN_GEOMETRIC, Geometric])  # the same ones twice are no harm


@dataclass(frozen=True)
class Checked:
    number: int = 1

    def __post_init__(self) -> None:
        if self.number < 0:
            raise InputError(f"number must be at least 0, got {self.number}")
        len(range(self.number))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"class": "types.Other"}, r"here names the class Other, which is not .*: pass the class itself, types=\[Other\]"),
        ({"class": "os.system"}, "here names the class os.system, which is not the library's"),
        ({"class": "Checked"}, "here names the class Checked, which is not the library's"),
        ({"name": 3}, "here names no class where an object stands: expected an entry 'class'"),
        ({"class": ["types.Whole"]}, "here names no class where an object stands"),
        ({"class": "types.Whole", "name": "a", "nane": 1, "b": 2}, r"types.Whole has unknown entries \['b', 'nane'\]"),
        ({"class": "types.Whole", "name": "a", "derived": 1.0}, r"types.Whole has unknown entries \['derived'\]"),
        ({"class": "types.Whole"}, r"types.Whole has unknown entries \[\] or lacks \['name'\]"),
        ({"class": "types.Empty", "a": 1}, r"types.Empty has unknown entries \['a'\]"),
        ({"class": "types.Whole", "name": "a", "parts": [{"class": "types.Gone"}]}, "here names the class Gone"),
        ({"class": "types.Checked", "number": -1}, "here: number must be at least 0, got -1"),
        ({"class": "types.Checked", "number": "1"}, "here: types.Checked has an entry of the wrong type"),
    ],
)
def test_what_does_not_fit_the_classes_is_refused_in_one_line(value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        specs.from_json(value, specs.by_name([Whole, Part, Empty, Checked]), "here")
    assert "\n" not in str(error.value)


class Holding(Scales):
    """An object with data that is no dataclass."""

    def __init__(self) -> None:
        self.noise = 0.1


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(2),
        np.zeros(2),
        {"a": 1},
        {1, 2},
        nn.Linear(1, 1),
        Holding(),
        Part(torch.zeros(1)),
        (Holding(),),
    ],
)
def test_what_config_json_cannot_hold_is_refused_in_one_line(value: object) -> None:
    with pytest.raises(InputError, match=r"holds a .*, which config.json cannot keep: use numbers") as error:
        specs.to_json(value)
    assert "\n" not in str(error.value)


def test_a_run_with_a_part_that_cannot_be_kept_is_refused_when_it_is_made() -> None:
    with pytest.raises(InputError, match=r"Method.scales holds a Holding, which config.json cannot keep"):
        tiny_config(METHODS["ihd"].changed(scales=Holding()))


# Other values


NESTED = Whole("a", (Part(2.0),))


def test_values_change_wherever_they_are() -> None:
    operator = FlowAndBlur()
    changed = specs.changed(operator, sigma_max=0.2, octaves=3, peclet=1.0)
    assert changed == FlowAndBlur(peclet=1.0, blur=Geometric(0.2), turbulence=CurlNoise(octaves=3)) and operator == FlowAndBlur()
    assert specs.changed(NESTED, number=3.0) == Whole("a", (Part(3.0),))
    assert specs.changed(operator, blur=Sine(0.1), sigma_max=0.3) == FlowAndBlur(blur=Sine(0.3)), "a part, and a number of it"
    assert specs.changed(operator, blur=Geometric(), sigma_min=0.7).blur == Geometric(0.5, 0.7)


def test_what_does_not_change_stays_the_same_object() -> None:
    """So a given module, which is no number, stays in its run."""
    module = nn.Conv2d(1, 1, 3)
    config = tiny_config(network=module)
    assert specs.changed(NESTED) is NESTED and specs.changed(NESTED, name="b").parts is NESTED.parts
    changed = specs.changed(config, peclet=0.2)
    assert isinstance(changed, RunConfig) and changed.network is config.network and changed.size == config.size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: specs.changed(FlowAndBlur(), peclett=1.0), "no part has a value called peclett; there are blur, blur_floor, "),
        (lambda: specs.changed(FlowAndBlur(), blur=Sine(), sigma_min=0.5), "no part has a value called sigma_min; there are"),
        (lambda: specs.changed(Whole("a", (Part(), Part())), number=2.0), "more than one part has a value called number"),
        (lambda: specs.changed(NESTED, derived=2.0), "no part has a value called derived"),
        (lambda: specs.changed(FlowAndBlur(), peclet=-1.0), "peclet must be from 0 to 1000000, got -1"),
    ],
)
def test_changes_that_mean_nothing_are_refused_in_one_line(change: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        change()
    assert "\n" not in str(error.value)
