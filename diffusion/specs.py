"""Objects of numbers, frozen dataclasses, as JSON: the name of the class, and its fields. Reading runs no code from a file.

A class is looked up by its name among those that the reader knows: the library's, and, where its name begins with ``types.``, those
that the caller passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np

from lbm_warp import Operator
from lbm_warp.checks import InputError

CLASS = "class"
OWN = "types."
PACKAGES = ("diffusion", "lbm_warp")
Spec = TypeVar("Spec")


def to_json(value: object, place: str = "the run") -> Any:
    """An object as JSON: numbers, text, tuples of them, and frozen dataclasses (or objects without data) as dictionaries.

    Args:
        value: the object.
        place: what holds it, for messages.

    Raises:
        InputError: if it holds something else, such as a tensor or a function.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [to_json(item, place) for item in value]
    kind = type(value)
    if is_dataclass(value):
        return {CLASS: class_name(kind)} | {
            field.name: to_json(getattr(value, field.name), f"{kind.__name__}.{field.name}")
            for field in fields(value)
            if field.init
        }
    # An operator can be called; functions and the like are not made again from the names of their classes.
    named = isinstance(value, Operator) or not callable(value)
    if named and not hasattr(value, "__array__") and not getattr(value, "__dict__", True):
        return {CLASS: class_name(kind)}
    raise InputError(
        f"{place} holds a {kind.__name__}, which config.json cannot keep: use numbers, text, tuples and frozen dataclasses of "
        "them, and make tensors from these where they are needed"
    )


def distinct(value: object) -> Any:
    """What tells an object of numbers from others, as JSON: without fields that have their default values, so that a field which a
    class gains later changes nothing."""
    if isinstance(value, (tuple, list)):
        return [distinct(item) for item in value]
    if not is_dataclass(value):
        return to_json(value)
    values = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(value)}
    return {CLASS: class_name(type(value))} | {name: distinct(one) for name, one in values.items() if one != defaults[name]}


def class_name(kind: type) -> str:
    """What JSON calls a class: the library's by their names, others by theirs after ``types.``."""
    return ("" if kind.__module__.partition(".")[0] in PACKAGES else OWN) + kind.__name__


def by_name(kinds: Iterable[type]) -> dict[str, type]:
    """Classes by what JSON calls them.

    Raises:
        InputError: if two have one name.
    """
    found: dict[str, type] = {}
    for kind in kinds:
        if not isinstance(kind, type):
            raise InputError(f"types must be classes, such as types=[Masking], got {kind!r}")
        if found.setdefault(class_name(kind), kind) is not kind:
            raise InputError(f"two classes are called {kind.__name__}, and files know them by their names: rename one")
    return found


def from_json(value: Any, known: Mapping[str, type], place: str) -> Any:
    """The object that :func:`to_json` wrote; fields that it lacks have their defaults.

    Args:
        value: what JSON holds.
        known: classes by what JSON calls them (:func:`by_name`).
        place: where it stands, for messages.

    Raises:
        InputError: if it names a class that is not known, or its fields are not those of the class.
    """
    if isinstance(value, list):
        return tuple(from_json(item, known, place) for item in value)
    if not isinstance(value, dict):
        return value
    name = value.get(CLASS)
    if not isinstance(name, str):
        raise InputError(f"{place} names no class where an object stands: expected an entry {CLASS!r}")
    if name not in known:
        own = name.removeprefix(OWN)
        raise InputError(f"{place} names the class {own}, which is not the library's: pass the class itself, types=[{own}]")
    kind = known[name]
    settable = [field for field in fields(kind) if field.init] if is_dataclass(kind) else []
    needed = {field.name for field in settable if field.default is MISSING and field.default_factory is MISSING}
    given = {key: from_json(item, known, place) for key, item in value.items() if key != CLASS}
    unknown = sorted(given.keys() - {field.name for field in settable})
    if unknown or needed - given.keys():
        raise InputError(f"{place}: {name} has unknown entries {unknown} or lacks {sorted(needed - given.keys())}")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"{place}: {name} has an entry of the wrong type ({error})") from None


def classes(value: object) -> list[type]:
    """The classes of an object and of the objects in its fields."""
    return list(dict.fromkeys(type(part) for part in parts(value)))


def parts(value: object) -> Iterator[object]:
    """An object of numbers, and those in its fields."""
    if isinstance(value, tuple):
        for item in value:
            yield from parts(item)
    elif not isinstance(value, (bool, int, float, str, type(None))):
        yield value
        for field in fields(value) if is_dataclass(value) else ():
            yield from parts(getattr(value, field.name))


def changed(value: Spec, **changes: Any) -> Spec:
    """The object with other values for some fields, which may be its own or those of objects in its fields.

    Raises:
        InputError: if it has no such field, or several.
    """
    new = _changed(value, changes)
    names = [field.name for part in parts(new) if is_dataclass(part) for field in fields(part) if field.init]
    for name in changes:
        if (count := names.count(name)) != 1:
            known = ", ".join(sorted(set(names)))
            raise InputError(f"{'more than one' if count else 'no'} part has a value called {name}; there are {known}")
    return new


def _changed(value: Any, changes: Mapping[str, Any]) -> Any:
    if type(value) is tuple:
        items = tuple(_changed(item, changes) for item in value)
        return value if all(item is old for item, old in zip(items, value, strict=True)) else items
    if not is_dataclass(value) or isinstance(value, type):
        return value
    new: dict[str, Any] = {}
    for field in fields(value):
        if field.init:
            old, rest = getattr(value, field.name), {name: change for name, change in changes.items() if name != field.name}
            item = _changed(changes.get(field.name, old), rest)
            new |= {} if item is old else {field.name: item}
    return replace(value, **new) if new else value
