"""Plugins in Python as programs of their own: a body for a class, written to a file and started with this Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import latticed

ENVIRONMENT = {
    "PATH": os.defpath,
    "PYTHONPATH": str(Path(latticed.__file__).parents[1]),
    "PYTHONUNBUFFERED": "",  # as in the sandbox, whatever these tests run under
}

_PROGRAM = """\
import os, subprocess, sys, threading, time
from latticed.sdk import Health, HostError, Plugin, PluginError, Reply

class Tested(Plugin):
    "A plugin of a test."
{body}

Tested().run()
"""


def program(directory: Path, body: str) -> list[str]:
    """The command that runs a plugin whose class has this body."""
    path = directory / "plugin.py"
    path.write_text(_PROGRAM.format(body=textwrap.indent(textwrap.dedent(body), "    ")))
    return [sys.executable, str(path)]


def say(*messages: dict[str, Any] | str) -> str:
    """A line of the host under latticed-stdio-1; a text is a method without parameters, numbered by its position."""
    full = [one if isinstance(one, dict) else {"id": place, "method": one} for place, one in enumerate(messages, 1)]
    return "".join(json.dumps({"jsonrpc": "2.0", **one}) + "\n" for one in full)


def told(command: list[str], text: str, **more: Any) -> tuple[list[dict[str, Any]], subprocess.CompletedProcess[str]]:
    """The program's whole output for the input `text`, and its exit."""
    done = subprocess.run(
        command, input=text, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=30, **more
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done
