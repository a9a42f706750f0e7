"""Tools for the people who develop this project: run as ``python -m tools.NAME`` in a checkout, and never installed."""

import cli  # noqa: F401  (says which libraries are missing)
