"""Checks the types in the daemon's answers; Problem("bad_reply") for unexpected ones.

Separate from `views`, so that verbs that show no record do not import its types.
"""

from __future__ import annotations

from typing import Any

from latticed.ctl.table import Cell
from latticed.model.errors import Problem


def bad(what: str) -> Problem:
    """The Problem bad_reply, about an answer's `what`."""
    return Problem("bad_reply", f"the daemon's answer has no proper {what}", "latticectl version shows both sides")


def mapping(plain: Any, what: str) -> dict[str, Any]:
    """`plain`, which must be a JSON object; Problem bad_reply about `what` otherwise."""
    if not isinstance(plain, dict):
        raise bad(what)
    return plain


def rows(plain: Any, what: str) -> list[dict[str, Any]]:
    """`plain`, which must be a list of JSON objects; Problem bad_reply about `what` otherwise."""
    if not isinstance(plain, list):
        raise bad(what)
    return [mapping(row, what) for row in plain]


def texts(plain: Any) -> list[str]:
    """The items of a list as strings; an empty list for anything else."""
    return [str(item) for item in plain] if isinstance(plain, list) else []


def withheld(grants: dict[str, Any]) -> list[str]:
    """What else a plugin asks for and was not granted, as `kind=value`; of an answer about grants."""
    hosts = (f"host={one}" for one in texts(grants.get("withheld_hosts")))
    return [*hosts, *texts(grants.get("withheld"))]


def counts(plain: Any) -> str:
    """`{"active": 2, "verified": 1}` as `2 active, 1 verified`."""
    if not isinstance(plain, dict):
        return ""
    return ", ".join(f"{count} {name}" for name, count in plain.items() if count)


def not_running(plain: dict[str, Any]) -> list[tuple[str, Cell]]:
    """The field with the number of active plugins that do not run, by reason; no field when all run."""
    said = counts(plain.get("not_running"))
    return [("not running", Cell(said, "warn"))] if said else []
