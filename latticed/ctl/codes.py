"""What every code means, why it happens, and the command that helps: codes.txt, below the symptoms that people see.

`latticectl explain` gives advice from it, and the reference is made of it. Nothing of the daemon reads it.
"""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from latticed.settings import Settings

FILE: Final = Path(__file__).with_name("codes.txt")
_WORDS: Final = {"digest": "SHA256"}


class CodeText(NamedTuple):
    """One code. `command` may have placeholders, such as `{id}` and `{bundle}`."""

    means: str
    why: str
    command: str


class Symptom(NamedTuple):
    """What somebody sees, where to look first, and the codes that may be behind it, in their order."""

    anchor: str
    title: str
    about: str
    command: str
    codes: dict[str, CodeText]


@functools.cache
def symptoms() -> tuple[Symptom, ...]:
    """All symptoms with their codes; ValueError for a file that is not of the form that its first lines say."""
    found = []
    for part in FILE.read_text(encoding="utf-8").split("\n## ")[1:]:
        head, command, entries = part.strip().split("\n\n")
        title, _, about = head.partition("\n")
        anchor, _, words = title.partition(" | ")
        found.append(Symptom(anchor, words, " ".join(about.split()), _command(command), dict(_texts(entries))))
    return tuple(found)


def _texts(lines: str) -> list[tuple[str, CodeText]]:
    """The entries below one symptom, three lines each."""
    split = lines.splitlines()
    if len(split) % 3:
        raise ValueError(f"expected three lines for each code, found {len(split)} after {split[0]!r}")
    found = []
    for first, why, command in zip(split[::3], split[1::3], split[2::3], strict=True):
        code, _, means = first.partition(": ")
        found.append((code, CodeText(means, why.strip(), _command(command))))
    return found


def _command(line: str) -> str:
    """The command of a line `$ …`."""
    dollar, _, command = line.strip().partition(" ")
    if dollar != "$":
        raise ValueError(f"expected a command, found {line[:80]!r}")
    return command


def shown(command: str) -> str:
    """A command with words in capitals for its placeholders: `latticectl info ID`."""
    return re.sub(r"\{(\w+)\}", lambda found: _WORDS.get(found[1], found[1].upper()), command)


def placed(command: str, settings: Settings) -> str:
    """A command with this host's directories in place of those that latticed has unless set otherwise."""
    places = {"latticed": settings.state_dir, "latticed-plugins": settings.plugin_dir}
    return re.sub(
        r"/var/lib/(latticed|latticed-plugins)(?![\w-])", lambda found: shlex.quote(str(places[found[1]])), command
    )


def text_of(code: str) -> CodeText | None:
    """The text of a code; None for one that is not known."""
    return next((one.codes[code] for one in symptoms() if code in one.codes), None)
