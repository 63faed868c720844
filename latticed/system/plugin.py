"""A built-in plugin as a class: actions, a health check and one background task, all on the daemon's event loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.sdk.base import Health, PluginError, Reply
from latticed.sdk.calls import HostError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from latticed.system.host import Host


RETRY_S: Final = 2.0
MAX_RETRY_S: Final = 60.0
"""Between two tries of a plan that the helper refuses."""
_NOT_GRANTED: Final = frozenset({"capability_denied", "capability_not_granted"})
_FINAL: Final = frozenset({"bad_request", "denied", "intent_refused", "kind_unknown"})
"""Codes of refusals that another try would only meet again; another plan is needed, or other settings."""


class SecretReply(Reply):
    """A reply in whose texts the host puts the values of some secrets, after the plugin has let go of it.

        SecretReply({"conf": "PresharedKey = ${secret:PSK#anna}"}, forms={"PSK#anna": "key"})

    `forms`: each reference that is to be replaced and the form of its value, `key`, `uuid` or `password`. Any other
    reference stays as it is: it is text that somebody else wrote. A secret that is not bound fails the action.

    `encode`: where values are within another encoding, such as base64, a pure function that makes the result of the
    values by reference; `result` is nothing then. The host calls it last, on a thread. It keeps nothing, and of what it
    raises only the type is told.

        SecretReply(None, forms={"USERS#anna": "uuid"}, encode=functools.partial(document, intent, "anna"))
    """

    def __init__(
        self,
        result: Any,
        *,
        forms: Mapping[str, str],
        message: str = "",
        encode: Callable[[Mapping[str, str]], Any] | None = None,
    ) -> None:
        super().__init__(result, message=message)
        self.forms = dict(forms)
        self.encode = encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric of a plugin in `/metrics`, as `latticed_` and its `name`.

    `kind`: counter or gauge. `values`: by the values of `labels`, which are ids and names of a small alphabet, never
    what an outsider says: `{("wg-home", "anna-phone"): 1024}` for the labels `("network", "device")`.
    """

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], int]


class SystemPlugin:
    """Write an async method `do_ACTION(payload)` for each action, `check` for its health, `run` for what goes on.

    One object for each start. `id`, `capabilities` (declared and granted at the start) and `config` (what the operator
    set) are as for plugins of the SDK. Methods may run beside each other, and each is cancelled when its time is over
    or the plugin is stopped; `host` refuses calls from then on. None of them may block: the whole daemon would wait.
    """

    def __init__(self, host: Host, *, id: str, capabilities: tuple[str, ...], config: Mapping[str, Any]) -> None:  # noqa: A002 - its name in the protocol
        self.host = host
        self.id = id
        self.capabilities = capabilities
        self.config = config
        self._tried = ""  # the plan of the last `apply_again`
        self._refused, self._refusals, self._next_s = "", 0, 0.0  # why, how often in a row, and when to try again

    async def started(self) -> None:
        """Called once, before anything else; if it raises, the plugin does not start."""

    async def run(self) -> None:
        """The background task, until it is cancelled; the plugin fails, and is started again, when it ends before."""
        await asyncio.get_running_loop().create_future()

    async def check(self) -> Health:
        """The plugin's health; called regularly. An exception counts as unhealthy."""
        return Health()

    def measures(self) -> tuple[Measure, ...]:
        """What `/metrics` shows of the plugin: what is known without asking anybody."""
        return ()

    async def tell(self, title: str, body: str, **options: str) -> None:
        """`notify.send`. Not granted is no error, since no other look would find it granted sooner; HostError else."""
        try:
            await self.host.notify.send(title, body, **options)
        except HostError as error:
            if error.code not in _NOT_GRANTED:
                raise

    async def after_news(self, seen: Health, *news: Callable[[], Awaitable[None]]) -> Health:
        """The health, once these have told the operator what is new. What cannot be told waits for the next look; a
        plugin that is healthy otherwise is degraded by it.
        """
        for one in news:
            try:
                await one()
            except HostError as error:
                if seen.status == "healthy":
                    seen = Health("degraded", str(error)[:400])
        return seen

    async def intent_of(self, plan: str) -> dict[str, Any] | None:
        """The intent of the plan with this SHA-256; None when this plugin has no such plan. HostError otherwise."""
        found = await self._plan(plan)
        return None if found is None else found["intent"]

    async def _plan(self, sha256: str) -> dict[str, Any] | None:
        """What network.plans tells of one plan; None when this plugin has none of that name, or none any more."""
        try:
            (found,) = (await self.host.call("network.plans", sha256=sha256))["plans"]
        except HostError as error:
            if error.code == "not_found":
                return None
            raise
        plan: dict[str, Any] = found
        return plan

    async def apply_again(self, made: Mapping[str, Any]) -> tuple[str, bool]:
        """Apply the plan that network.plan answered, where it does no more than was approved before.

        Its state then, and whether to try it again once `may_try` says so: another change was under way, or the helper
        is late or does not run.

        A plan that waits for an approval stays what it is.
        """
        self._tried, refused, self._refused = made["sha256"], self._refusals, ""
        self._refusals, self._next_s = 0, 0.0
        if made["state"] != "planned":
            return made["state"], made["state"] in {"applying", "stale"}
        try:
            return (await self.host.network.apply(made["sha256"]))["state"], True
        except HostError as error:
            code = error.message.removeprefix("nothing was applied: ").partition(":")[0]
            if code == "not_approved":
                return made["state"], False
            if code in _FINAL:
                self._refused = f"what was given back is not applied, nor tried again: {error.message}"
                return made["state"], False
            pause_s = min(MAX_RETRY_S, RETRY_S * 2**refused)
            self._refusals, self._next_s = min(refused + 1, 10), time.monotonic() + pause_s
            self._refused = f"what was given back is not applied yet, and tried again: {error.message}"
            return made["state"], True

    def may_try(self) -> bool:
        """Whether `apply_again` is not to wait any longer: the longer, the more often it was refused."""
        return time.monotonic() >= self._next_s

    def with_refusal(self, found: Health) -> Health:
        """`found`; where that is healthy and the last `apply_again` was refused, that instead."""
        return Health("degraded", self._refused[:400]) if self._refused and found.status == "healthy" else found

    async def came_to_nothing(self) -> bool:
        """Whether the plan that was tried last failed or was undone, so that trying it again would do so, too."""
        found = await self._plan(self._tried) if self._tried else None
        return found is not None and found["state"] in {"failed", "rolled_back"}

    async def invoke(self, action: str, payload: Any) -> Any:
        """Carry out `action`; returns the result (any JSON, or a sdk.Reply). An exception fails the action.

        The payload is any JSON. Unless overridden, calls do_ACTION, with `_` for `-`.
        """
        found = getattr(self, f"do_{action.replace('-', '_')}", None)
        if found is None:
            raise PluginError(f"no such action: {action[:100]}")
        return await found(payload)
