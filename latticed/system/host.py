"""The host calls of a built-in plugin: `latticed.sdk` with `await`, for the groups that built-ins use."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from latticed.sdk.calls import HostError, from_base64, given, to_base64

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Ask = Callable[[str, dict[str, Any]], Awaitable[Any]]
    """Carries one host call to the plugin's Gate and returns its result, or raises sdk.HostError."""


class Host:
    """`call` makes any host call; the groups have the names of the SDK's."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self.kv = Kv(ask)
        self.log = Log(ask)
        self.node = Node(ask)
        self.notify = Notify(ask)
        self.network = Network(ask)

    async def call(self, host_call: str, /, **params: Any) -> Any:
        """Any host call by its name, with exactly these parameters; sdk.HostError when it is refused."""
        return await self._ask(host_call, params)


class _Calls:
    def __init__(self, ask: Ask) -> None:
        self._ask = ask


class Kv(_Calls):
    """Small values that survive restarts, in a bucket of this plugin's own."""

    async def get(self, key: str) -> str | None:
        """The value as text, or None when there is none (kv:read)."""
        value = await self.get_bytes(key)
        return None if value is None else value.decode("utf-8")

    async def get_bytes(self, key: str) -> bytes | None:
        """The value, or None when there is none (kv:read)."""
        found = await self._ask("kv.get", {"key": key})
        return from_base64(found["value_base64"]) if found["ok"] else None

    async def put(self, key: str, value: str | bytes) -> None:
        """Set a value; HostError("quota_exceeded") when it does not fit (kv:write)."""
        coded = {"value": value} if isinstance(value, str) else {"value_base64": to_base64(value)}
        await self._ask("kv.put", {"key": key, **coded})

    async def delete(self, key: str) -> bool:
        """Remove a key; whether there was one (kv:write)."""
        return bool((await self._ask("kv.delete", {"key": key}))["ok"])

    async def keys(self, prefix: str = "") -> AsyncIterator[str]:
        """All keys that begin with `prefix`, in order, asked for page by page (kv:read)."""
        after: dict[str, Any] = {}
        while True:
            page = await self._ask("kv.list", {"prefix": prefix, **after})
            for key in page["keys"]:
                yield key
            if page["next"] is None:
                return
            after = {"after": page["next"]}


class Log(_Calls):
    """Lines in the daemon's log, with the plugin's id; `fields` are converted to text. A line that is refused is left
    out: what it tells of was done all the same.
    """

    async def write(self, level: str, message: str, **fields: object) -> None:
        """One line of level debug, info, warning or error (log:write)."""
        plain = {name: str(value) for name, value in fields.items()}
        with contextlib.suppress(HostError):
            await self._ask("log.write", {"level": level, "message": message, "fields": plain})

    async def info(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        await self.write("info", message, **fields)

    async def warning(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        await self.write("warning", message, **fields)

    async def error(self, message: str, **fields: object) -> None:
        """See write (log:write)."""
        await self.write("error", message, **fields)


class Node(_Calls):
    """What this machine is and does."""

    async def facts(self) -> Any:
        """Facts that seldom change: system, processors, memory, addresses (node:read)."""
        return await self._ask("node.facts", {})

    async def metrics(self) -> Any:
        """Load, memory, disks and interfaces now (node:read)."""
        return await self._ask("node.metrics", {})

    async def journal(self, filter: str, cursor: str = "", *, limit: int | None = None) -> Any:  # noqa: A002 - its name
        """`{entries, cursor, gap}`: journal entries after `cursor` (node:read)."""
        return await self._ask("node.journal", given(filter=filter, cursor=cursor, limit=limit))


class Notify(_Calls):
    """Messages to the operator."""

    async def send(
        self,
        title: str,
        body: str = "",
        *,
        severity: str | None = None,
        event: str | None = None,
        dedupe: str | None = None,
    ) -> Any:
        """Put one notification into the operator's queue; a second one with the same `dedupe` is the first one
        (notify:send).
        """
        more = given(severity=severity, event=event, dedupe=dedupe)
        return await self._ask("notify.send", {"title": title, "body": body, **more})


class Network(_Calls):
    """Changes to the host's network as plans: proposed here, approved by an operator, applied with a rollback."""

    async def state(self, kind: str) -> Any:
        """The live facts that a plan of `kind` would change (network:plan)."""
        return await self._ask("network.state", {"kind": kind})

    async def plan(self, kind: str, intent: dict[str, Any]) -> Any:
        """Propose a change; the answer names the sha256 of the plan (network:plan)."""
        return await self._ask("network.plan", {"kind": kind, "intent": intent})

    async def plans(self) -> Any:
        """This plugin's plans with their states (network:plan)."""
        return await self._ask("network.plans", {})

    async def apply(self, sha256: str) -> Any:
        """Apply what an operator approved (network:apply)."""
        return await self._ask("network.apply", {"sha256": sha256})
