"""What one run of a verb has at hand: its arguments, the screen, the environment, the client, the settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Mapping

    from latticed.ctl.client import Client
    from latticed.ctl.render import Screen
    from latticed.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    args: Namespace
    screen: Screen
    environ: Mapping[str, str]

    def client(self) -> Client:
        """A client for the socket of --socket, LATTICED_SOCKET, or the settings (contracts §8)."""
        from latticed.ctl.client import Client

        given = getattr(self.args, "socket", None) or self.environ.get("LATTICED_SOCKET")
        return Client(given or str(self.settings().control_socket))

    def settings(self) -> Settings:
        """The settings the daemon would use here; Problem("settings_invalid") when they are bad."""
        from pathlib import Path

        from latticed import settings

        config = getattr(self.args, "config", None)
        return settings.load(Path(config) if config else None, self.environ, os.geteuid())
