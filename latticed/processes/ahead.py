"""Keeps a stub started ahead (`sandbox.ahead`), and does without where it does not last."""

from __future__ import annotations

import asyncio
import collections
import contextlib
from typing import TYPE_CHECKING, Final, Self

from latticed.kit import logs
from latticed.processes import waiting
from latticed.sandbox import launch
from latticed.sandbox.ahead import StubAhead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.sandbox.launch import Launched
    from latticed.sandbox.spec import ChildSpec

ENDS: Final = 3
"""So many ends of it within WITHIN_S seconds, and no other is started: each child gets a stub of its own from then on,
which takes 10 ms of processor time more.
"""
WITHIN_S: Final = 10.0
_END_S: Final = 1.0  # for a killed stub to be gone; after that nothing waits for it
log = logs.get_logger()


class Ahead:
    """The stub started ahead: with the first child, and again when it has ended or the daemon's limits have changed.

    An async context manager.
    """

    def __init__(self) -> None:
        self.stub: StubAhead | None = None
        self._ends_s: collections.deque[float] = collections.deque(maxlen=ENDS)
        self._given_up = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it, and start none any more; its children are none of its concern."""
        self._given_up = True
        if self.stub is None:
            return
        stub, self.stub = self.stub, None
        stub.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await waiting.readable(stub.pidfd)
        stub.ended()
        stub.close()

    def launch(self, spec: ChildSpec, descriptors: Mapping[int, int], cgroup: int | None) -> Launched | None:
        """As `launch.launch`, by the stub; None when it cannot be had, so that the child has to get a stub of its
        own. Does not wait.
        """
        try:
            stub = self._current(spec)
            return None if stub is None else launch.launch(spec, descriptors, cgroup=cgroup, send=stub.send)
        except OSError:
            return None  # what fails for lack of something fails for the other stub too, and is reported there

    def _current(self, spec: ChildSpec) -> StubAhead | None:
        if self.stub is not None and self.stub.ended():
            self._lost(self.stub)
        elif self.stub is not None and self.stub.outdated():
            # Its starts under way are made by it yet; nobody waits for its end, so `orphans` reaps it.
            self.stub.close()
            self.stub = None
        if self.stub is None and not self._given_up:
            self.stub = StubAhead.start(spec.plan)
        return self.stub

    def _lost(self, stub: StubAhead) -> None:
        """It has ended, by itself or by somebody's hand."""
        stub.close()
        self.stub = None
        now_s = asyncio.get_running_loop().time()
        self._ends_s.append(now_s)
        if len(self._ends_s) == ENDS and now_s - self._ends_s[0] <= WITHIN_S:
            self._given_up = True
            log.warning("stub_given_up", ends=ENDS, within_s=int(WITHIN_S))
