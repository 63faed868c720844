"""What a kind of plan has to be able to do, for daemon and root helper alike: one frozen object for each kind.

The first half is pure: the daemon shows with it, the helper decides with it. The second half acts on the host, in the
helper alone, through `Tools`. Kinds are listed in `plans.kinds`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from latticed.plans.protocol import Finding

Intent = dict[str, Any]
"""A plan's intent as plain JSON values, canonical (`model.plan`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What was found on the host.

    `facts`: JSON for callers (listeners, interfaces, peers …). `basis`: what a review depends on; it must not change by
    itself (no counters, no remaining times). `text`: the target as text, comparable to a rendering; diffs start there.
    `unfinished`: an apply of what is confirmed has something to do again, though it `holds`: what comes back by itself,
    as a user who was cut, is no drift. `found`: the kind's own, for its `commit`; it may hold secrets.
    """

    facts: dict[str, Any] = field(default_factory=dict)
    basis: bytes = b""
    text: str = ""
    unfinished: bool = False
    found: object = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramEnd:
    """How a program ended: its exit status (negative: the signal), and what it wrote."""

    status: int
    stdout: bytes
    stderr: bytes


class Tools(Protocol):
    """The programs of a kind, as the helper runs them (`plans.programs`)."""

    def run(self, program: str, *arguments: str, stdin: bytes = b"", stays: bool = False) -> ProgramEnd:
        """Run one of the kind's `programs` and wait. `stays`: it leaves a process behind that goes on, and that gets no
        more of the processor and of memory than others, whatever the helper gets.

        Problems tool_missing, tool_failed (too slow, too much output).
        """
        ...

    def waiting(
        self, program: str, *arguments: str, first: bytes = b""
    ) -> AbstractContextManager[Callable[[bytes], ProgramEnd]]:
        """Start a program that changes nothing before it has read all of its standard input, and do other things
        meanwhile. What the block gets is called once, with what is to be read after `first`, and waits as `run`; a
        program for which it is not called is killed.
        """
        ...

    def path(self, program: str) -> str:
        """Where one of the kind's `programs` is, for another of them that starts it."""
        ...


class Kind(Protocol):
    """One kind. Pure functions give the same for the same; effects raise Problem tool_missing, tool_failed or
    apply_failed, and may raise OSError.

    An intent that `check` finds fault with never gets to `render`. Everything that an effect writes it takes from the
    rendering or the snapshot; both may hold secrets and stay in root's 0600 files.
    """

    @property
    def name(self) -> str:
        """As plans name it (`nft`)."""
        ...

    @property
    def target(self) -> str:
        """What is owned on the host, for people: `table inet latticed_guard`."""
        ...

    @property
    def programs(self) -> Mapping[str, str]:
        """Name and absolute path of each program that effects run; `[apply] programs` replaces paths."""
        ...

    def secrets(self, intent: Intent) -> Mapping[str, str]:
        """The references in an intent (`NAME#label`), each with the form it needs (`protocol.SECRET_FORMS`)."""
        ...

    def check(self, intent: Intent, live: Live | None, source: str) -> tuple[Finding, ...]:
        """All faults of an intent, none for a good one. Those against the host alone may be `overridable`.

        `live` None: the host could not be observed, so only what needs no live state is checked. `source`: address that
        the operator's session comes from, empty when unknown.
        """
        ...

    def render(self, intent: Intent, live: Live | None, secrets: Mapping[str, str]) -> bytes:
        """What is committed. `secrets`: a value for each reference; for showing, the reference itself."""
        ...

    def narrows(self, approved: Intent, new: Intent, *, now_s: int) -> bool:
        """Whether `new` only takes away from `approved`; True for equal ones. Never True for what widens.

        `now_s`: seconds since 1970, for what `approved` has ended by then: a ban that is over stops nothing any more.
        """
        ...

    def holds(self, rendering: bytes, live: Live) -> bool:
        """Whether the live state is what this rendering makes; False is drift."""
        ...

    def observe(self, tools: Tools) -> Live:
        """The live state."""
        ...

    def validate(self, rendering: bytes, tools: Tools) -> None:
        """Have the tool itself check the rendering, changing nothing. Problem tool_failed."""
        ...

    def snapshot(self, tools: Tools) -> bytes:
        """All that is owned as it is, for `restore`; also that there is nothing yet."""
        ...

    def commit(self, rendering: bytes, tools: Tools, *, may_wait: bool = False, live: Live | None = None) -> None:
        """Make the host what the rendering says, at once or not at all where the tool can.

        `live`: what `observe` found under the lock that is still held, so that nothing has to be looked at again; what
        somebody else has changed since is found by `self_check`.

        `may_wait`: no operator waits to try it. What disturbs others may then take effect later, as `Live.unfinished`
        says in time.
        """
        ...

    def self_check(self, rendering: bytes, tools: Tools) -> None:
        """Prove by looking at the host that the commit took effect and nobody is locked out. Problem apply_failed."""
        ...

    def restore(self, snapshot: bytes, tools: Tools) -> None:
        """Put back what `snapshot` gave. May be called twice, after a commit that was begun, and after none."""
        ...
