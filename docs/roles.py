"""Sphinx's roles in docstrings, such as :meth:`Operator.at`, as links to where the API says more, or as code where it does not."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|meth|func|attr|data|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Loaded by mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """The names are looked up when the docstring is: by then all modules are known."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda found: link(obj, found[1]), obj.docstring.value)


def link(obj: griffe.Object, name: str) -> str:
    """A link to what is called this in the docstring of an object; mkdocs-autorefs leaves it out where no page shows it."""
    first, _, rest = name.partition(".")
    try:
        path = f"{obj.resolve(first)}.{rest}".rstrip(".")
    except griffe.NameResolutionError:
        path = name
    return f'<autoref optional identifier="{path}"><code>{name}</code></autoref>'
