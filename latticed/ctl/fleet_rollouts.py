"""A rollout that is under way: which one is meant, and its waves as they go, on a terminal in place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_controller, replies, stream
from latticed.ctl.exit_codes import ExitCode
from latticed.ctl.fleet_controller import short, word
from latticed.ctl.table import Cell, Column
from latticed.kit import text
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.client.control import ControlClient
    from latticed.ctl.arguments import Parser
    from latticed.ctl.session import CtlSession

LOOK_S: Final = 0.5
"""Between two looks at a rollout that is followed."""
_SHOWN: Final = 3
"""Names of nodes that a line has at most."""
_OVER: Final = frozenset({"done", "returned"})
_WAVES: Final = (
    Column("WAVE", right=True),
    Column("NODES", right=True),
    Column("WELL", right=True),
    Column("PENDING", right=True),
    Column("UNWELL", right=True),
    Column("AWAY", right=True),
    Column(""),
)


def add_arguments(parser: Parser) -> None:
    """The arguments of a verb about one rollout."""
    fleet_controller.add_arguments(parser)
    parser.add_argument(
        "rollout", metavar="ROLLOUT", nargs="?", default="", help="its name (default: the one that is under way)"
    )
    parser.add_argument("--reason", metavar="TEXT", default="", help="why, for those who look at it later")


def change(session: CtlSession, verb: str) -> dict[str, Any]:
    """Have the controller halt, resume or take back the rollout that is meant; it as it is then."""
    asked = fleet_controller.client(session)
    name = session.args.rollout or only(asked)
    return replies.mapping(asked.post("fleet", "rollouts", name, verb, body={"reason": session.args.reason}), "rollout")


def only(asked: ControlClient) -> str:
    """The name of the one rollout that is not over; Problem not_found, usage."""
    page = replies.mapping(asked.get("fleet", "rollouts"), "rollouts")
    rows = replies.rows(page.get("rollouts"), "list of rollouts")
    names = [str(one.get("name")) for one in rows if str(one.get("state")) not in _OVER]
    if not names:
        last = f"; the last one was {rows[0].get('name')}" if rows else ""
        raise Problem("not_found", f"expected a rollout that is under way, found none{last}", "latticectl fleet roll")
    if len(names) > 1:
        raise Problem("usage", f"expected the name of a rollout: {', '.join(names[:10])} are under way")
    return names[0]


def line(one: dict[str, Any]) -> str:
    """A rollout in one line: `r1: running, wave 2 of 5, 100 of 1000 nodes`, and what is wrong."""
    waves = replies.rows(one.get("waves") or [], "list of waves")
    at = one.get("wave")
    number = at if isinstance(at, int) else 0
    said = [f"{one.get('name')}: {one.get('state')}", f"wave {number + 1} of {len(waves)}"]
    if 0 <= number < len(waves):
        wave = waves[number]
        said.append(f"{wave.get('well', 0)} of {wave.get('nodes', 0)} well")
        said += [f"{wave[name]} {name}" for name in ("pending", "unwell", "away") if wave.get(name)]
    said.append(f"given to {one.get('touched', 0)} of {one.get('nodes', 0)} nodes")
    return ", ".join(said)


def show(session: CtlSession, one: dict[str, Any]) -> None:
    """Print a rollout with its waves."""
    screen = session.screen
    if screen.json_wanted:
        screen.json(one)
        return
    screen.fields(
        [
            ("rollout", str(one.get("name") or "")),
            ("state", word(one.get("state"))),
            ("reason", str(one.get("reason") or "")),
            ("intent", str(one.get("intent") or "")),
            ("before", ", ".join(f"{count} {_had(had)}" for had, count in _before(one))),
        ]
    )
    rows = replies.rows(one.get("waves") or [], "list of waves")
    screen.rows(_WAVES, [_wave(number, wave) for number, wave in enumerate(rows, 1)])
    for name in ("unwell", "away", "stuck"):
        if nodes := replies.texts(one.get(name)):
            more = f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else ""
            screen.note(f"{name}: {', '.join(nodes[:_SHOWN])}{more}")


def _before(one: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(replies.mapping(one.get("before") or {}, "what was before").items())


def _had(before: str) -> str:
    return f"had {short(before)}" if before else "can go back to nothing"


def without_way_back(one: dict[str, Any]) -> int:
    """How many of a rollout's nodes keep the release when it goes back."""
    return next((count for before, count in _before(one) if not before and isinstance(count, int)), 0)


def _wave(number: int, wave: dict[str, Any]) -> tuple[str | Cell, ...]:
    counts = [wave.get(name, 0) for name in ("well", "pending", "unwell", "away")]
    tones = ("good", "", "bad", "warn")
    cells = [Cell(str(count), tone if count else "dim") for count, tone in zip(counts, tones, strict=True)]
    return str(number), str(wave.get("nodes", 0)), *cells, "" if wave.get("given") else "not given"


def follow(session: CtlSession, name: str, *, until: frozenset[str]) -> dict[str, Any]:
    """Show a rollout until its state is one of `until`: on a terminal in one line, else a line for each change."""
    progress = _Progress(session)
    asked = fleet_controller.client(session)
    lost = False
    try:
        while True:
            try:
                one = replies.mapping(asked.get("fleet", "rollouts", name), "rollout")
            # It goes on without us, and with another controller: the line says that it is not seen.
            except Problem as problem:
                if not stream.passing(problem):
                    raise
                if not lost:
                    progress.say(f"{name}: not seen now, {problem.reason}")
                lost = True
            else:
                lost = False
                progress.say(line(one))
                if str(one.get("state")) in until:
                    return one
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        progress.end()
        session.screen.hint(f"it goes on: latticectl fleet roll --follow {name}, or latticectl fleet halt {name}")
        raise
    finally:
        progress.end()


class _Progress:
    """The newest line of what goes on, on stderr: it is no data."""

    def __init__(self, session: CtlSession) -> None:
        self._err = session.screen.err
        self._note: Callable[[str], None] = session.screen.note
        self._in_place = session.screen.err.isatty() and session.environ.get("TERM") != "dumb"
        self._said = ""

    def say(self, words: str) -> None:
        """Show this, unless it is shown already."""
        if words == self._said:
            return
        self._said = words
        if self._in_place:
            self._err.write(f"\r\x1b[K{text.sanitise(words, 200)}")
        else:
            self._note(words)
        self._err.flush()

    def end(self) -> None:
        """Leave the line empty for what is printed next."""
        if self._in_place and self._said:
            self._err.write("\r\x1b[K")
            self._err.flush()
            self._said = ""


def ended(session: CtlSession, one: dict[str, Any]) -> int:
    """Print a rollout that is over or halted; Problem rollout_returned or rollout_halted where it is not done."""
    show(session, one)
    name, reason = one.get("name"), one.get("reason") or "an operator said so"
    match one.get("state"):
        case "done":
            return ExitCode.OK
        case "halted":
            hint = f"latticectl fleet resume {name}, or latticectl fleet back {name}"
            raise Problem("rollout_halted", f"{name} is halted: {reason}", hint)
        case _:
            hint = "latticectl fleet nodes --state unwell; latticectl fleet events"
            raise Problem("rollout_returned", f"{name} went back: {reason}", hint)
