"""Having the message system's servers cut off whoever an operator revoked: the operator's word is handed to them.

An operator signs which users count no more (`documents.UserRevocations`), and the message system's own operator the
token of the account NODES that says so; a controller only carries it. Its credentials for that can hand tokens over
and ask which one is there; it can sign none. Servers close the connections of such a user at once, and let him in no
more. They keep the token over restarts. One that was set up anew has an older one: it is handed over again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Final

from latticed.fleet import deployment, nkeys
from latticed.fleet.engine import EngineUnavailable
from latticed.kit import logs
from latticed.kit.text import sanitise

if TYPE_CHECKING:
    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.nats_connection import NatsConnection

LOOK_S: Final = 60.0
"""How often the servers are asked which token they have."""
_QUIET_S: Final = 1.0
"""After the last answer, where some do not."""
_MOST_ANSWERS: Final = 64
"""Taken to one question: more than a cluster has servers."""

log = logs.get_logger()


class CuttingOff:
    """`keep` runs for as long as the process. `servers`: how many there are to be; `account`: the public key of NODES,
    empty where the controller's settings do not name it.
    """

    def __init__(
        self,
        core: FleetCore,
        connection: NatsConnection | None,
        *,
        account: str,
        servers: int,
        look_s: float = LOOK_S,
    ) -> None:
        self._core, self._connection = core, connection
        self._account, self._servers, self._look_s = account, servers, look_s
        self.trouble = ""
        """Why servers may let in somebody who was revoked; empty when they do not, as far as is known."""
        self.held = ""
        """SHA-256 of the list that all servers hold; empty before that."""

    @property
    def able(self) -> bool:
        """Whether there are credentials for it."""
        return self._connection is not None

    async def keep(self) -> None:
        """Hand the newest list over when it comes, at each connection, and whenever a server has another; until
        cancelled.
        """
        if self._connection is None:
            await asyncio.Event().wait()
            return
        seen, held = 0, ""
        while True:
            await self._connection.wait_up()
            present = self._connection.connections
            self._core.users_came.clear()
            signed = self._core.shelf.users
            if signed is not None:
                try:
                    if (seen, held) != (present, signed.sha256) or await self._differs(signed.document.account):
                        await self._handed_over(signed.document.account, signed.sha256)
                    seen, held = present, signed.sha256
                    self._told("", signed.sha256)
                except EngineUnavailable as error:
                    self._told(sanitise(str(error), 300), "")
            await self._something(present)

    def _told(self, trouble: str, held: str) -> None:
        if trouble and trouble != self.trouble:
            log.warning("users_not_revoked", reason=trouble)
        self.trouble, self.held = trouble, held

    async def _something(self, seen: int) -> None:
        """Return once there is another list, another connection, or it is time to look."""
        assert self._connection is not None  # noqa: S101 - `keep` has looked
        waits = [
            asyncio.ensure_future(self._core.users_came.wait()),
            asyncio.ensure_future(self._connection.wait_for_another(seen)),
        ]
        try:
            await asyncio.wait(waits, timeout=self._look_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waits:
                one.cancel()
            await asyncio.wait(waits)

    async def _differs(self, token: str) -> bool:
        """Whether a server has another token."""
        return any(answer != token.encode() for answer in await self._asked(deployment.claims_of(_subject(token)), b""))

    async def _handed_over(self, token: str, sha256: str) -> None:
        """Have every server take a token. EngineUnavailable for less than that."""
        try:
            # Servers keep what they are handed, whoever signed it, and let nobody in by what does not hold.
            nkeys.verified(token, frozenset({str(nkeys.unverified(token).get("iss", ""))}))
        except nkeys.BadKey as error:
            raise EngineUnavailable(str(error)) from error
        if self._account not in {"", _subject(token)}:
            raise EngineUnavailable(f"expected a token of the account {self._account}, found one of {_subject(token)}")
        answers = await self._asked(deployment.UPDATE_CLAIMS, token.encode())
        refused = [reason for one in answers if (reason := _refused(one))]
        if refused:
            raise EngineUnavailable(refused[0])
        if len(answers) < self._servers:
            raise EngineUnavailable(f"expected {self._servers} servers to take it, found {len(answers)} that did")
        log.info("users_revoked", sha256=sha256, servers=len(answers))

    async def _asked(self, subject: str, data: bytes) -> list[bytes]:
        """What the servers answer, each for itself; no longer waited for than until all have."""
        assert self._connection is not None  # noqa: S101 - `keep` has looked
        found: list[bytes] = []
        asked = self._connection.replies(subject, data, timeout_s=_QUIET_S)
        with contextlib.suppress(EngineUnavailable):  # after the last of them
            async with contextlib.aclosing(asked) as replies:
                async for reply in replies:
                    if reply.status:  # that nobody answers
                        break
                    found.append(reply.data)
                    if len(found) >= self._servers:
                        break
        return found


def _subject(token: str) -> str:
    """The account that a token is of."""
    return str(nkeys.unverified(token).get("sub", ""))


def _refused(answer: bytes) -> str:
    """Why a server did not take a token; empty when it did."""
    try:
        plain = json.loads(answer)
        code = plain.get("data", {}).get("code", plain.get("error", {}).get("code"))
    except (ValueError, AttributeError, RecursionError):
        return "expected the answer of a server, found another one"
    if code == 200:
        return ""
    return f"a server does not take it: {sanitise(json.dumps(plain.get('error', plain))[:300], 300)}"
