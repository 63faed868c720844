"""Having a node's credentials renewed over the connection, while they still count.

The link sees when they are half over, the node signs a request for new ones, a controller answers (`enrolment`). The
new ones are for the same key; once a server has let somebody in by them they lie in the place of the old, which are
kept beside them. The connection goes on until the server ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.fleet import enrolment, messages, nats_connection, nkeys
from latticed.fleet.engine import EngineUnavailable
from latticed.kit import files, logs
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.fleet.documents import EnrolmentToken
    from latticed.fleet.engine import Engine
    from latticed.fleet.nats_connection import NatsConnection

log = logs.get_logger()

LOOK_S: Final = 600.0
"""Between two looks at the credentials."""
_SOONEST_S: Final = 1.0
_SHARE: Final = 1 / 32
"""Of the half of their life in which credentials are to be renewed: no look comes sooner after another one."""
_SIGN_S: Final = 30.0
"""For the node to sign."""
_CREDENTIALS_BYTES: Final = 64 << 10


@dataclass(slots=True)
class Renewing:
    """Whose credentials: those in the file `credentials`, of the node that joined by `token`."""

    token: EnrolmentToken
    credentials: Path
    now_s: Callable[[], float] = time.time
    look_s: float = LOOK_S
    _answer: asyncio.Future[messages.RenewalSigned] | None = field(default=None, init=False)

    def signed(self, message: messages.RenewalSigned) -> None:
        """The node has signed the request that it was asked for."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    async def work(
        self,
        connection: NatsConnection,
        engine: Engine,
        put: Callable[[messages.ToNode], bool],
        spread: Callable[[float], float],
    ) -> None:
        """Look again and again, and renew when it is time; until it is cancelled."""
        while True:
            await connection.wait_up()
            pause_s = self.look_s
            try:
                present = await asyncio.to_thread(self._present)
                pause_s = self._pause_s(present)
                if self._due_s(present) <= self.now_s():
                    await self._renewed(present, connection, engine, put)
            except (EngineUnavailable, TimeoutError, OSError, ValueError) as error:
                log.warning("credentials_not_renewed", code="unreachable", reason=str(error)[:300])
            except Problem as problem:
                log.warning("credentials_not_renewed", code=problem.code, reason=problem.reason)
            await asyncio.sleep(spread(pause_s))

    def _present(self) -> nkeys.UserCredentials:
        return nkeys.UserCredentials.parse(files.read_at_most(self.credentials, _CREDENTIALS_BYTES))

    def _due_s(self, present: nkeys.UserCredentials) -> float:
        """From when on they are to be renewed; never for those that do not end."""
        begun = nkeys.unverified(present.token).get("iat")
        if present.expires_s is None or not isinstance(begun, int):
            return math.inf
        return enrolment.renewal_due_s(begun, present.expires_s)

    def _pause_s(self, present: nkeys.UserCredentials) -> float:
        """Until the next look: often enough that there are several while they count, however short they last; and
        bounded by how long they last where they have ended, as by a clock that is far ahead they always have.
        """
        now_s, due_s = self.now_s(), self._due_s(present)
        ends_s = present.expires_s or now_s
        left_s = due_s - now_s if due_s > now_s else max((ends_s - now_s) / 8, (ends_s - due_s) * _SHARE)
        return min(self.look_s, max(left_s, _SOONEST_S))

    async def _renewed(
        self,
        present: nkeys.UserCredentials,
        connection: NatsConnection,
        engine: Engine,
        put: Callable[[messages.ToNode], bool],
    ) -> None:
        """Ask, and keep what is better than what there is. Problem of a refusal, EngineUnavailable, TimeoutError."""
        user = present.key.public
        self._answer = asyncio.get_running_loop().create_future()
        try:
            put(messages.RenewalWanted(user=user))
            async with asyncio.timeout(_SIGN_S):
                request = await self._answer
        finally:
            self._answer = None
        found = enrolment.answered(
            await engine.renew(request.document),
            fleet=self.token.fleet,
            operators=self.token.operators,
            node=self.token.node,
            node_key=request.node_key,
            user=user,
            now_s=int(self.now_s()),
        )
        # An older answer, sent again, must not shorten what there is.
        if found.expires <= (present.expires_s or 0):
            raise Problem("answer_invalid", f"expected credentials until after {present.expires_s}, found older ones")
        fresh = nkeys.UserCredentials(token=found.jwt, key=present.key, name=self.token.node, expires_s=found.expires)
        # Whoever has a controller's key can sign that somebody is let in, and no server need be of that opinion.
        await connection.lets_in(fresh)
        await asyncio.to_thread(keep, self.credentials, fresh)
        log.info("credentials_renewed", expires=found.expires)


def keep(path: Path, credentials: nkeys.UserCredentials) -> None:
    """Have `path` hold these credentials, for this user alone, and those of before lie beside it; OSError: they are
    left where they are.
    """
    with contextlib.suppress(FileNotFoundError):
        files.replace(nats_connection.before(path), files.read_at_most(path, _CREDENTIALS_BYTES), mode=0o600)
    files.replace(path, credentials.text(), mode=0o600)
