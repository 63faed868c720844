"""SSH alerts: tells of logins by SSH, of runs of failed ones, and of what could not be watched.

Pure: `lines` reads one message of sshd, `watch` is the state machine over the entries of the journal, `check` reads
configuration and pages of entries strictly, `intent` holds the model, `render` makes notifications. `plugin` asks
`node.journal` and keeps the state. It reports, and never bans.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latticed.system.builtin import Builtin

if TYPE_CHECKING:
    from latticed.system.plugin import SystemPlugin


def _load() -> type[SystemPlugin]:
    from latticed.system.ssh_alerts.plugin import SshAlerts

    return SshAlerts


BUILTIN = Builtin(folder=Path(__file__).parent, load=_load)
