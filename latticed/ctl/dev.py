"""latticectl dev: run a bundle while it is being written, in a daemon of its own, and take each change at once."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.client.control import LONG_S
from latticed.ctl import consent, decode, invoke, replies, trial_input
from latticed.ctl.arguments import Parser, examples
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed import wire
    from latticed.ctl.dev_sources import Builds, News
    from latticed.ctl.session import CtlSession
    from latticed.ctl.trial import Trial
    from latticed.ctl.trial_input import TrialInput

EXAMPLES: Final = examples(
    "latticectl dev ./acme.demo",
    'latticectl dev ./acme.demo --invoke greet --payload \'{"name": "world"}\'   # Enter repeats it',
    "latticectl dev ./acme.fetch --accept http:egress --accept-host api.example.org:443",
    "latticectl dev ./acme.native --build 'cc -O2 -static -o artifact main.c'",
)


def arguments(parser: Parser) -> None:
    parser.add_argument("directory", metavar="DIR", type=str, help="a bundle, signed or not; its src is packed")
    parser.add_argument("--build", metavar="COMMAND", help="run this in DIR, by sh, before each start")
    parser.add_argument("--invoke", metavar="ACTION", help="what the Enter key has it do, until another is typed")
    parser.add_argument("--payload", metavar="JSON", help="the payload of that")
    trial_input.arguments(parser)
    consent.granting(parser, dry_run=False)


def run(session: CtlSession) -> int:
    """Run it until Ctrl-C, a line that says `quit`, or on a terminal the end of what is typed (Ctrl-D)."""
    from latticed.ctl import dev_sources, trial

    args, screen = session.args, session.screen
    if screen.json_wanted:
        raise Problem("usage", "expected --format text: dev is for people", "latticectl run answers in JSON")
    source = Path(args.directory)
    asked = (args.invoke, invoke.payload(args.payload)) if args.invoke else None
    given = trial_input.read(args, session.environ)
    builds = dev_sources.Builds(source, args.build)
    with trial.interrupted_once():
        builds.run()
    with trial.opened(source, session.environ) as own:
        screen.toned(
            f"DEVELOPMENT DAEMON for {own.plugin_id}: its key, its record and its values go when this ends", "warn"
        )
        screen.line(f"other verbs reach it: latticectl --socket {own.socket} info {own.plugin_id}")
        screen.line("type ACTION [JSON] to invoke, Enter to repeat it, quit to end")
        with contextlib.suppress(KeyboardInterrupt), dev_sources.opened(builds, own) as news:
            _Bench(session, own, builds, news, asked, given).serve()
    return ExitCode.OK


class _Bench:
    """What is done about the news: one after the other, so that lines are not mixed and no build overtakes another."""

    def __init__(
        self,
        session: CtlSession,
        own: Trial,
        builds: Builds,
        news: News,
        asked: tuple[str, Any] | None,
        given: TrialInput,
    ) -> None:
        self.session = session
        self.own = own
        self.builds = builds
        self.news = news
        self.asked = asked
        self.given = given
        self.agreed = consent.given(session.args)
        self.declined: set[str] = set()
        self.is_due = False
        """Whether another build is wanted, as the last one changed files that may be the author's."""

    def serve(self) -> None:
        """Start the plugin, then do what comes, until it is to end."""
        self._attempt(self._start)
        while True:
            kind, what = self.news.next()
            if kind == "ended" or (kind == "typed" and what.strip() in {"quit", "q"}):
                return
            if kind == "said":
                self.session.screen.line(what)
            elif kind == "changed":
                self._attempt(self._reload)
            else:
                self._attempt(functools.partial(self._invoke, what.strip()))
            self.session.screen.flush()

    def _attempt(self, step: Callable[[], None]) -> None:
        """Carry out a step; what goes wrong is printed, and the next change may mend it."""
        try:
            step()
        except Problem as problem:
            # Without it the command that helps would reach the machine's own daemon.
            hint = problem.hint and problem.hint.replace("latticectl ", f"latticectl --socket {self.own.socket} ")
            self.session.screen.error(Problem(problem.code, problem.reason, hint))
        self.session.screen.flush()

    def _start(self) -> None:
        """Install and start it, with what is agreed to."""
        view = self.own.view()
        self._agree(("plugins", "lifecycle"), {"id": view.id, "status": "installed", "already_so": True})
        give = functools.partial(trial_input.give, self.session.screen, self.own, self.given)
        self._tell(self.own.activated(self.agreed, give), "runs")

    def _reload(self) -> None:
        """Build it and take it over; what runs stays when it cannot be built, signed or verified."""
        if not self.is_due and self.builds.unchanged():
            return
        began_s = time.monotonic()
        changed = False
        try:
            self.builds.run()
            changed = self.own.put()
        finally:
            # Once: a command that writes other files each time would be run for ever.
            self.is_due = self.builds.wrote_others() and not self.is_due
            if not changed and not self.is_due:
                self.news.absorbed = self.builds.seen
        if not changed:
            return
        view = self.own.view()
        if view.candidate is not None:  # None: a change that was refused has been undone
            path, body = ("plugins", "by-id", self.own.plugin_id, "upgrade"), {"allow_downgrade": True, "retry": True}
            self._agree(path, body)
            view = decode.plugin(self.own.client(read_s=LONG_S).post(*path, body={**body, **self.agreed}))
        if view.status != "active":
            self._start()
            return
        self._tell(self.own.armed(view), f"reloaded in {time.monotonic() - began_s:.2f} s")

    def _agree(self, path: tuple[str, ...], body: dict[str, Any]) -> None:
        """Ask about what this step would leave out, once; without a terminal it stays out."""
        view = decode.plugin(self.own.client().post(*path, body={**body, **self.agreed, "dry_run": True}))
        open_ = [one for one in consent.lacking(view) if one not in self.declined]
        if not open_ or not sys.stdin.isatty():
            return
        screen = self.session.screen
        screen.line(f"{view.id} asks for {', '.join(open_)}; grant it while dev runs? y and Enter, or Enter alone")
        screen.flush()
        if self.news.answer().strip().lower() in {"y", "yes"}:
            self.agreed["accept"] = [*self.agreed.get("accept", []), *open_]
        else:
            self.declined.update(open_)

    def _invoke(self, line: str) -> None:
        """`ACTION [JSON]` has it do that; an empty line what it did last."""
        action, _, text = line.partition(" ")
        if action:
            self.asked = (action, invoke.payload(text.strip() or None))
        if self.asked is None:
            raise Problem("usage", "expected an action, found an empty line", 'for example: greet {"name": "you"}')
        path = ("plugins", "by-id", self.own.plugin_id, "invoke")
        body = {"action": self.asked[0], "payload": self.asked[1]}
        reply = replies.mapping(self.own.client(read_s=LONG_S).post(*path, body=body), "reply")
        invoke.show(self.session, reply, self.own.plugin_id, self.asked[0], hint="")

    def _tell(self, view: wire.PluginView, what: str) -> None:
        """Say that it runs, and what it lacks."""
        screen, message = self.session.screen, view.runtime.message
        screen.line(f"{view.id} {what}" + (f": {message}" if message else ""))
        if lacking := consent.lacking(view):
            screen.line(f"not granted: {', '.join(lacking)} (latticectl dev --accept NAME grants it)")
