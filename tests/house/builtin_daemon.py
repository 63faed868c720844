"""latticed with built-in plugins of the tests: `builtin_daemon.py SET VERSION ARGUMENTS…`.

SET is a name of `system.registry.SETS`; VERSION is latticed's own where it is empty. As in latticed, the plugins are
handed to the daemon's entry point. Plugins can plan the kind `file` too, which the tests' root helper applies
(`file_kind`): what plans are has tests of its own, without what the kinds of latticed ask of an intent.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).resolve().parents[2]))

    from latticed.model import plan

    # Before others make lists of it.
    plan.KINDS = (*plan.KINDS, "file")

    from latticed import daemon
    from tests.house.system.registry import SETS

    wanted, version = sys.argv.pop(1), sys.argv.pop(1)
    sys.exit(daemon.main(builtins=SETS[wanted], version=version))
