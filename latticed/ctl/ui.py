"""latticectl ui: the console in a browser, served by this process to whoever opens the link that it prints."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from latticed.ctl import fleet_controller, replies
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.kit import sd_notify
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from latticed.console.operator import ExplainedPlugin, HealthFinding, Reader
    from latticed.console.server import Console
    from latticed.ctl.session import CtlSession

EXAMPLES: Final = examples(
    "latticectl ui                                      # prints a link to open; ends with Ctrl-C",
    "latticectl ui --act                                # the page may install, activate, disable, invoke",
    "latticectl ui --listen 127.0.0.1:8790              # from elsewhere: ssh -L 8790:127.0.0.1:8790 HOST",
    "latticectl ui --listen /run/console/http.sock --origin https://plugins.example.org",
    "latticectl ui --controller /run/latticed-controller/control.sock   # with a page of the fleet",
    "latticectl ui link                                 # a new link of the console that runs as a unit",
)
LINK_SOCKET: Final = "/run/latticed-ui/link.sock"
"""Where a unit of its own offers links."""
_LINK_S: Final = 5.0
_LONGEST_LINK: Final = 4_096
_LONG: Final = frozenset({("market", "install"), ("market", "refresh")})
"""Acts that take minutes, as invocations may: downloads."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 5.0


def arguments(parser: Parser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=("serve", "link"), default="serve", help="serve (default), or print a new link"
    )
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        default="127.0.0.1:0",
        help="loopback address with a port, or a unix socket's path (default: 127.0.0.1 and any port)",
    )
    parser.add_argument("--act", action="store_true", help="let the page act, too; without it the page only reads")
    parser.add_argument(
        "--origin",
        metavar="URL",
        action="append",
        default=[],
        help="by what browsers call it besides: https://NAME of your TLS proxy (repeatable)",
    )
    parser.add_argument(
        "--controller",
        metavar="PATH",
        type=str,
        default="",
        help=f"also a page of the fleet, by this socket of its controller: {fleet_controller.SOCKET}",
    )
    parser.add_argument(
        "--link-socket",
        metavar="PATH",
        default="",
        help=f"socket that hands out links to whoever may open it (link: default {LINK_SOCKET})",
    )


def run(session: CtlSession) -> int:
    """Serve until Ctrl-C, or print a link."""
    if session.args.action == "link":
        session.screen.line(_link(session.args.link_socket or LINK_SOCKET))
        return ExitCode.OK
    return _serve(session)


def _serve(session: CtlSession) -> int:
    try:
        from latticed.console import guard, server
    except ModuleNotFoundError as error:
        if error.name not in {"jinja2", "markupsafe"}:
            raise
        raise Problem("ui_missing", "the console needs the package Jinja2", "pip install 'latticed[ui]'") from error
    import asyncio

    args = session.args
    options = server.ConsoleOptions(
        at=guard.listen_at(args.listen),
        origins=tuple(guard.origin(one) for one in args.origin),
        act=args.act,
        link_socket=args.link_socket,
        with_fleet=bool(args.controller),
    )
    if options.at.path and not options.origins:
        raise Problem(
            "usage", "--listen with a unix socket takes --origin", "--origin https://NAME, as browsers will call it"
        )
    on_terminal = session.screen.out.isatty()
    # Whoever reads a log or a file that has it could open the console.
    if not on_terminal and not args.link_socket:
        hint = "on a terminal, or with --link-socket PATH, and then: latticectl ui link --link-socket PATH"
        raise Problem("usage", "the link is printed to a terminal only, and stdout is none", hint)

    def started(console: Console) -> None:
        if on_terminal:
            session.screen.line(console.link())
            session.screen.note(
                "opens once, within ten minutes;", "acts" if args.act else "reads only", "- Ctrl-C ends it"
            )
        else:
            session.screen.note(f"serves; latticectl ui link --link-socket {args.link_socket} prints a link")
        session.screen.flush()
        sd_notify.from_environment(os.environ).ready()

    asyncio.run(server.serve(_Caller(session), options, started=started))
    return ExitCode.OK


def _link(path: str) -> str:
    """A new link of the console whose link socket is `path`; Problem unreachable, socket_denied, bad_reply."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as wire:
        wire.settimeout(_LINK_S)
        try:
            wire.connect(path)
            line = wire.makefile("rb").readline(_LONGEST_LINK)
        except PermissionError as error:
            raise Problem("socket_denied", f"you may not use {path}", "join the group of that socket") from error
        except OSError as error:
            hint = "start it: latticectl ui --link-socket PATH"
            raise Problem("unreachable", f"no console answers at {path}: {error.strerror or error}", hint) from error
    try:
        found = json.loads(line)["link"]
    except (ValueError, LookupError, TypeError) as error:
        raise Problem("bad_reply", f"{path} does not answer as a console", "is it another program's?") from error
    return str(found)


class _Caller:
    """What the console needs of latticectl (`console.operator`), with the rights of this process."""

    def __init__(self, session: CtlSession) -> None:
        self._session = session

    def ask(self, method: str, parts: tuple[str, ...], query: Mapping[str, Any], body: Mapping[str, Any]) -> Any:
        from latticed.client.control import LONG_S

        # Only with --controller is there a page that asks for it.
        if parts[0] == "fleet":
            client = fleet_controller.client(self._session)
        else:
            # As long as latticectl waits for the same.
            long = method == "POST" and (parts in _LONG or parts[-1] == "invoke")
            client = self._session.client(read_s=LONG_S if long else None)
        match method:
            case "GET" if parts == ("health",):
                return client.health()
            case "GET":
                return client.get(*parts, query=query or None)
            case "POST":
                return client.post(*parts, body=body)
            case "DELETE":
                return client.delete(*parts)
            case _:
                return client.put(*parts, body=body)

    def changes(self, wanted: Callable[[], bool]) -> Iterator[str]:
        import itertools

        from latticed.ctl import stream

        # One attempt after the other: pages stay open over any restart of the daemon.
        pause_s, gone = _FIRST_PAUSE_S, False
        while wanted():
            try:
                lines = self._session.client().lines("events")
                # Its first line comes at once, its first event maybe in an hour.
                first = next(lines, b"")
                # Also the first time: what changed since a page was made was told to nobody.
                yield "back"
                pause_s, gone = _FIRST_PAUSE_S, False
                for sent in stream.decode(itertools.chain((first,), lines)):
                    if sent.data:
                        yield _target(sent.data)
            except Problem as problem:
                # Each attempt more would be one more refusal on record.
                if problem.code == "access_denied":
                    yield "denied"
                    return
                if not stream.passing(problem):
                    pause_s = _LONGEST_PAUSE_S
                # Not where a stream has merely ended: the next one may follow at once.
                if not gone:
                    yield "gone"
                    gone = True
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def explain(self, reader: Reader, plugin_id: str) -> ExplainedPlugin:
        from latticed.console.operator import ExplainedPlugin
        from latticed.ctl import explain

        steps, found = explain.steps(self._now(), reader, plugin_id)
        return ExplainedPlugin(steps, found.why, found.command)

    def doctor(self) -> list[HealthFinding]:
        from latticed.console.operator import HealthFinding
        from latticed.ctl import doctor

        return [HealthFinding(*one) for one in doctor.findings(self._now())]

    def review(self, plan: str) -> dict[str, Any]:
        from latticed.ctl import plan_view, root_helper

        client = root_helper.of(self._session)
        found = client.review(plan)
        command, overrides = plan_view.approval(found)
        found = {**found, "approve": command, "overrides": overrides}
        if found.get("state") != "unconfirmed":
            return found
        # How long is left is the target's, not the review's.
        targets = replies.rows(client.observe().get("targets"), "list of targets")
        left_s = next((one.get("deadline_s") for one in targets if one.get("unconfirmed") == plan), 0)
        return {**found, "deadline_s": left_s}

    def became(self, answer: Any, *, upgraded: bool) -> tuple[str, str]:
        from latticed.ctl import decision, decode

        return decision.became(decode.plugin(answer), upgraded=upgraded)

    def when(self, moment: str) -> str:
        return self._now().screen.when(moment)

    def _now(self) -> CtlSession:
        """The session with the time of now: this process runs for hours."""
        return self._session._replace(screen=self._session.screen._replace(now_s=time.time()))


def _target(data: str) -> str:
    """The plugin that an event is about, or what else it is about; empty for what cannot be read."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(plain, dict):
        return ""
    # What a plugin does has the name of its monitor or record, the number of its plan or task for a target.
    kind, _, name = str(plain.get("actor") or "").partition(":")
    target = name if kind == "plugin" else str(plain.get("target") or "")
    # What a plugin calls a monitor of its own says nothing of the daemon.
    return "" if target in {"gone", "back", "denied"} else target
