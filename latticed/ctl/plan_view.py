"""How plans, reviews and what became of them are shown; shared by `plan` and `apply`."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import replies
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.table import Cell

if TYPE_CHECKING:
    from argparse import ArgumentParser
    from collections.abc import Iterator

    from latticed.ctl.render import Screen
    from latticed.ctl.root_helper import HelperFault

TONES: Final = {
    "applied": "good",
    "approved": "good",
    "planned": "warn",
    "applying": "warn",
    "unconfirmed": "warn",
    "failed": "bad",
    "rolled_back": "bad",
    "stale": "warn",
    "refused": "bad",
}
"""By state of a plan."""
_TO_APPROVE: Final = frozenset({"planned", "stale", "rolled_back", "failed"})
SHORT: Final = 12
"""Digits of a plan's name in tables and commands; 8 are enough where they are unique."""
_MOST_S: Final = 3_600
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600}
_LONGEST_CODE: Final = 32
_CODE_CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyz_"


def state(word: str) -> Cell:
    """A plan's state in its colour."""
    return Cell(word, TONES.get(word, ""))


def seconds(text: str) -> int:
    """An argument's type: `60s`, `5m`, `1h` or `60`, up to an hour."""
    digits, unit = (text[:-1], text[-1]) if text[-1:] in _UNITS else (text, "s")
    # isascii: int() takes digits of any script.
    found = int(digits) * _UNITS[unit] if digits.isascii() and digits.isdigit() and len(digits) < 6 else 0
    if not 1 <= found <= _MOST_S:
        raise ArgumentTypeError(f"expected 1s to 1h, found {text[:40]!r}")
    return found


def add_confirm_within(parser: ArgumentParser) -> None:
    """Add `--confirm-within TIME` to a verb; 0 leaves the time to the helper's settings."""
    parser.add_argument(
        "--confirm-within", metavar="TIME", type=seconds, default=0, help="60s, 5m; default: [apply] confirm_within_s"
    )


def add_override(parser: ArgumentParser) -> None:
    """Add `--override CODE` to a verb that approves."""
    parser.add_argument(
        "--override",
        metavar="CODE",
        action="append",
        default=[],
        type=_code,
        help="approve in spite of findings with this code, as plan show prints them; on record (repeatable)",
    )


def _code(text: str) -> str:
    """An argument's type: the code of a finding."""
    if not (0 < len(text) <= _LONGEST_CODE and text.strip(_CODE_CHARACTERS) == "" and text[0] != "_"):
        raise ArgumentTypeError(f"expected a code such as lockout_source, found {text[:40]!r}")
    return text


def review(screen: Screen, plain: dict[str, Any]) -> None:
    """Print what an operator approves: the fields, the review, what stands against it, and the diff against the live
    state.
    """
    screen.fields(_fields(plain))
    diff(screen, str(plain.get("diff") or ""))


def standing(plain: dict[str, Any]) -> list[str]:
    """The codes of the findings that stand against a plan, each once: to be overridden, or mended."""
    return sorted({str(one.get("code") or "") for one in replies.rows(plain.get("findings") or [], "findings")})


def approval(plain: dict[str, Any]) -> tuple[str, str]:
    """The command that approves a plan by its review, empty where there is nothing to approve; and what it lacks.

    That is `--override CODE …` for what stands against the plan. Not one command to copy: what locks somebody out is to
    be thought of.
    """
    if plain.get("state") not in _TO_APPROVE or plain.get("narrows"):
        return "", ""
    command = f"latticectl plan approve {str(plain.get('plan'))[:SHORT]} {plain.get('review')}"
    return command, " ".join(f"--override {code}" for code in standing(plain))


def _fields(plain: dict[str, Any]) -> Iterator[tuple[str, str | Cell]]:
    yield "plan", str(plain.get("plan") or "")
    yield "kind", str(plain.get("kind") or "")
    yield "target", str(plain.get("target") or "")
    yield "state", state(str(plain.get("state") or ""))
    yield "narrows", "yes: it may be applied without approval" if plain.get("narrows") is True else "no"
    if rendering := str(plain.get("rendering") or ""):
        yield "rendering", rendering
    yield "review", str(plain.get("review") or "")
    for name in ("overridden", "findings"):
        for one in replies.rows(plain.get(name) or [], name):
            sentence = f"{one.get('code')}: expected {one.get('expected')}, found {one.get('found')}"
            yield name.removesuffix("s"), Cell(sentence, "warn" if name == "overridden" else "bad")


def diff(screen: Screen, unified: str) -> None:
    """Print a unified diff, in colours on a terminal; a line that says so when there is no difference."""
    if not unified:
        screen.line("the live state is as planned: no difference")
    for line in unified.removesuffix("\n").split("\n") if unified else ():
        # Tabs are controls, which are shown escaped otherwise.
        screen.toned(line.replace("\t", "    "), _tone(line))


def _tone(line: str) -> str:
    if line.startswith(("+++", "---")):
        return "head"
    return {"+": "good", "-": "bad", "@": "dim"}.get(line[:1], "")


def intent(screen: Screen, wanted: Any) -> None:
    """Print an intent, indented so that no line of it can pass for one of latticectl's own."""
    screen.line("intent:")
    for line in json.dumps(wanted, indent=2, ensure_ascii=False).splitlines():
        screen.line("  " + line)


def moved(screen: Screen, plain: dict[str, Any]) -> int:
    """Print what became of a plan, and the next command; exit code 1 when it was undone or failed."""
    name, word = str(plain.get("plan") or ""), str(plain.get("state") or "")
    done = ExitCode.FAILED if word in {"failed", "rolled_back", "stale"} else ExitCode.OK
    if screen.json_wanted:
        screen.json(plain)
        return done
    left = plain.get("deadline_s")
    within = f"for {left:.0f} s more" if word == "unconfirmed" and isinstance(left, int | float) else ""
    screen.line(name[:SHORT], word, within)
    if plain.get("message"):
        screen.note(str(plain["message"]))
    if word == "approved":
        screen.hint(f"latticectl plan apply {name[:SHORT]}")
    elif word == "unconfirmed":
        screen.hint(f"latticectl plan confirm {name[:SHORT]} keeps it; without that it is undone")
    return done


def findings(screen: Screen, fault: HelperFault) -> None:
    """Print the faults of an intent on stderr, one a line."""
    for one in fault.findings:
        path, expected, found = (str(one.get(key) or "") for key in ("path", "expected", "found"))
        screen.note(f"{path}: expected {expected}, found {found}")
