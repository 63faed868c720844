"""Counts what a piece of work does, step by step, and lets a test act before each: copy the state, refuse the disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Steps:
    """Calls `at` before each step, by its name."""

    at: Any = staticmethod(lambda _: None)
    names: list[str] = field(default_factory=list)

    def before(self, owner, name, monkeypatch):
        done = getattr(owner, name)

        def stepped(*args, **named):
            self.names.append(name)
            self.at(name)
            return done(*args, **named)

        monkeypatch.setattr(owner, name, stepped)
