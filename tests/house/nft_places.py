"""latticed's own root helper, and intents of nft guard for it: ssh alone, and the web besides."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from tests.house import apply_helpers

SSH = {"name": "ssh", "rules": [{"proto": "tcp", "ports": [22]}]}
BASE = {"groups": [SSH], "bindings": {"groups": ["ssh"]}}
WEB = {"name": "web", "rules": [{"proto": "tcp", "ports": [80]}]}
WIDE = {"groups": [SSH, WEB], "bindings": {"groups": ["ssh", "web"]}}


@dataclass
class NftPlace(apply_helpers.Place):
    """latticed's own helper, as it is started for real."""

    def __post_init__(self) -> None:
        # A look at the host takes ten programs.
        self.settings = {"poll_s": 1.0, **self.settings}
        super().__post_init__()

    def command(self, *options: str) -> list[str]:
        return [sys.executable, "-I", "-m", "latticed.apply", "--config", str(self.config), *options]
