"""Built-in plugins that do next to nothing: there are to be eight, and what they cost to list is measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from latticed.system.builtin import Builtin
from latticed.system.plugin import SystemPlugin

if TYPE_CHECKING:
    from collections.abc import Iterator


class Small(SystemPlugin):
    async def do_echo(self, payload: Any) -> Any:
        return payload


def found() -> Iterator[Builtin]:
    """One for each folder small_N beside this file."""
    for folder in sorted(Path(__file__).parent.glob("small_*")):
        yield Builtin(folder=folder, load=lambda: Small)
