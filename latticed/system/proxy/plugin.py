"""The plugin: plans inbounds and users of its configuration, counts what they use, ends them, serves their links."""

from __future__ import annotations

import asyncio
import functools
import secrets as random
import time
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system.findings import IntentRefused
from latticed.system.long_values import LongValues
from latticed.system.plugin import Measure, SecretReply, SystemPlugin
from latticed.system.proxy import accounts, check, decode, devices, ends, subscriptions, usage, values
from latticed.system.proxy.accounts import Account
from latticed.system.proxy.links import NoLink
from latticed.system.proxy.links import write as write_link
from latticed.system.proxy.subscriptions import Format
from latticed.system.proxy.usage import ByteCount, Connection, Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from latticed.system.proxy.ends import Plain
    from latticed.system.proxy.intent import ProxyIntent

KIND: Final = "proxy"
POLL_S: Final = 2.0
"""Seconds between two looks. With the time of an apply, who is over is cut within five."""
ROUTE: Final = "/latticed.proxy/sub/"
"""Where subscriptions are; a token follows."""
TOLD: Final = 10
"""Names in one notification; the rest is counted."""
_TOKEN_BYTES: Final = 32
_OWN: Final = frozenset({"public_url"})
"""Keys of the configuration that are no part of the intent."""
_NOBODY: Final = {"status": 404, "content_type": "text/plain; charset=utf-8", "body": "not found\n"}
"""For a token that nobody has, and for a user who is not let in: what a stranger tries tells him nothing."""
_AGENTS: Final = (
    ("sing-box", Format.SING_BOX),
    ("clash", Format.CLASH),
    ("mihomo", Format.CLASH),
    ("stash", Format.CLASH),
)


class ProxyCores(SystemPlugin):
    """Actions `plan status users disable enable reset links token revoke`; `subscription` is what the route asks for.

    What is taken away is applied at once: it needs no approval. What is given is planned, and waits for one.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._seen: Health | None = None
        self._changing = asyncio.Lock()
        self._accounts: dict[str, Account] = {}
        self._usage = Usage()
        self._devices: Mapping[str, int] = {}
        self._connections = 0
        # Of a user with thousands of connections they are longer than a value of kv.
        self._values = LongValues(self.host.kv)
        # What kv has, by key: only what differs is written.
        self._stored: dict[str, str] = {}
        # Somebody is let in again who may be by what was approved, and whom the helper does not have yet.
        self._returning = False
        # The confirmed intent by the name of its plan, and the same decoded.
        self._applied: tuple[str, Plain, ProxyIntent] | None = None

    async def started(self) -> None:
        parts = []
        for group in range(usage.GROUPS):
            try:
                parts.append(usage.read(await self._read(f"usage.{group}")))
                self._accounts |= accounts.read(await self._read(f"users.{group}"))
            except (ValueError, zlib.error) as error:
                raise PluginError(f"a value of group {group} in kv is damaged: put it back from a backup") from error
        self._usage = usage.joined(parts)

    async def run(self) -> None:
        await self._serve()
        while True:
            try:
                async with self._changing:
                    state = await self._state()
                    unkept = await self._count(state)
                    self._returning = self._returning and not await self.came_to_nothing()
                    if self._returning and self.may_try() and not (state["target"] or {}).get("unconfirmed"):
                        await self._take_effect(state)
                    else:
                        await self._end(state)
                    self._seen = await self.after_news(unkept or self.with_refusal(_health(state)), self._tell)
            except (HostError, PluginError) as error:
                self._seen = Health("degraded", str(error)[:400])
            await asyncio.sleep(self._pause_s())

    def _pause_s(self) -> float:
        """Until the next look, which is at a user's end where one comes before POLL_S is over."""
        intents = (self._intent(), self._applied[1] if self._applied else {})
        return usage.wait_s((end for one in intents for end in _until(one).values()), time.time(), POLL_S)

    async def check(self) -> Health:
        return self._seen or _health(await self._state())

    def measures(self) -> tuple[Measure, ...]:
        used, told = self._usage.used, self._devices
        found: tuple[tuple[str, str, str, dict[tuple[str, ...], int]], ...] = (
            ("up_bytes_total", "counter", "bytes from a user", {(name,): one.up_bytes for name, one in used.items()}),
            ("down_bytes_total", "counter", "bytes to a user", {(name,): one.down_bytes for name, one in used.items()}),
            ("devices", "gauge", "addresses that a user comes from", {(name,): count for name, count in told.items()}),
        )
        return (
            *(
                Measure(name=f"proxy_user_{name}", kind=kind, text=text, labels=("user",), values=values)
                for name, kind, text, values in found
            ),
            Measure(
                name="proxy_connections",
                kind="gauge",
                text="open connections of users",
                labels=(),
                values={(): self._connections},
            ),
        )

    # Actions

    async def do_plan(self, _payload: Any) -> Any:
        """What network.plan answers: `{"ok", "sha256", "state", …}`."""
        async with self._changing:
            return await self._planned(await self._wanted())

    async def do_status(self, _payload: Any) -> Any:
        """`{"target", "running", "connections", "users", "off", "plans"}`: `off` are those who are not let in."""
        state = await self._state()
        listed = (await self.host.network.plans())["plans"]
        intent = self._intent()
        return {
            "target": state["target"],
            "running": bool((state["live"] or {}).get("running")),
            "connections": self._connections,
            "users": len(intent.get("users", [])),
            "off": sorted(self._off(intent)),
            "plans": [one for one in listed if one["state"] not in {"stale", "refused"}],
        }

    async def do_users(self, _payload: Any) -> Any:
        """All users: `[{"id", "name", "state", "up_bytes", "down_bytes", "quota_bytes", "expires_at", …}]`."""
        state = await self._state()
        applied = await self._confirmed(state)
        let_in = {one["id"] for one in applied.get("users", []) if one.get("enabled", True)} if applied else set()
        waiting = frozenset((state["live"] or {}).get("coming", ()))
        intent = self._intent()
        off = self._off(intent)
        found = []
        for user in intent.get("users", []):
            name = user["id"]
            used = self._usage.used.get(name, ByteCount())
            is_off = name in off or not user.get("enabled", True)
            is_in = "waiting" if name in waiting else "active"
            found.append(
                {
                    **{key: user.get(key) for key in ("id", "name", "quota_bytes", "expires_at")},
                    "state": "disabled" if is_off else is_in if name in let_in else "planned",
                    "up_bytes": used.up_bytes,
                    "down_bytes": used.down_bytes,
                    "devices": self._devices.get(name, 0),
                    "token": bool(self._account(name).token),
                }
            )
        return found

    async def do_disable(self, payload: Any) -> Any:
        """Let a user in no more, `{"id"}`: his connections are closed at once, and nobody else's."""
        return await self._of_user(payload, off=True)

    async def do_enable(self, payload: Any) -> Any:
        """Let a user in again, `{"id"}`: at once where that was approved, else planned."""
        return await self._of_user(payload, off=False)

    async def do_reset(self, payload: Any) -> Any:
        """Count a user's bytes from nothing, `{"id"}`; who was over his quota is let in again, as by `enable`."""
        name = self._name(payload)
        async with self._changing:
            before, self._usage = self._usage, usage.reset(self._usage, name)
            key = f"usage.{usage.group(name)}"
            try:
                await self._write(key, (await asyncio.to_thread(_written, self._usage))[key])
            except HostError as error:
                self._usage = before
                raise PluginError(f"it cannot be kept: {error.message}") from error
            self._returning = True
            made = await self._take_effect(await self._state())
        return {"id": name, **made}

    async def do_links(self, payload: Any) -> Any:
        """The share links of a user, `{"id", "inbound"?}`, by inbound; `conf` is the link where it is one."""
        name = self._name(payload, {"inbound"})
        intent = await self._user_intent(name)
        made = functools.partial(_links, intent, name, payload.get("inbound"))
        if not made(values.shown(devices.references(intent, name)))["links"]:
            raise PluginError(f"{name[:40]!r} is let in at no such inbound")
        return SecretReply(None, forms=devices.references(intent, name), encode=made)

    async def do_token(self, payload: Any) -> Any:
        """A new token for a user's subscription, `{"id"}`; the one of before opens nothing any more."""
        name = self._name(payload)
        await self._user_intent(name)
        token = random.token_urlsafe(_TOKEN_BYTES)
        async with self._changing:
            await self._set(name, replace(self._account(name), token=accounts.token_hash(token)))
        await self._serve()
        path = f"{ROUTE}{token}"
        url = self.config.get("public_url", "").rstrip("/")
        return {"id": name, "path": path, **({"url": f"{url}{path}", "conf": f"{url}{path}"} if url else {})}

    async def do_revoke(self, payload: Any) -> Any:
        """Take a user's token away, `{"id"}`, of one who is not configured any more, too; whether there was one."""
        name = self._name(payload, of=self._accounts)
        async with self._changing:
            had = bool(self._account(name).token)
            await self._set(name, replace(self._account(name), token=""))
        return {"id": name, "revoked": had}

    async def do_subscription(self, payload: Any) -> Any:
        """The answer to a request at the route: `{path, query, headers, …}`."""
        path = str(payload.get("path", "")) if isinstance(payload, dict) else ""
        kept = accounts.token_hash(path.removeprefix(ROUTE).rstrip("/"))
        name = next((one for one, account in self._accounts.items() if account.token == kept), "")
        if not name or self._applied is None:
            return _NOBODY
        _, plain, intent = self._applied
        user = next((one for one in plain.get("users", []) if one["id"] == name), None)
        forms = devices.references(intent, name)
        if user is None or not forms or name in self._off(plain) or name in self._off(self._intent()):
            return _NOBODY
        used = self._usage.used.get(name, ByteCount())
        info = subscriptions.userinfo(
            up_bytes=used.up_bytes,
            down_bytes=used.down_bytes,
            quota_bytes=user.get("quota_bytes"),
            expires_at=user.get("expires_at"),
        )
        return SecretReply(None, forms=forms, encode=functools.partial(_document, intent, name, _form(payload), info))

    # What goes on

    async def _serve(self) -> None:
        """Have the route as long as somebody has a token; what stands against it is in the log and the health."""
        if any(one.token for one in self._accounts.values()):
            try:
                answer = await self.host.call(
                    "route.put", path=ROUTE, target="invoke", action="subscription", methods=["GET"]
                )
            except HostError as error:
                await self.host.log.warning("subscriptions are not served", reason=error.message)
                return
            if answer["message"]:
                await self.host.log.warning("subscriptions are not served", reason=answer["message"])

    async def _count(self, state: Any) -> Health | None:
        """Count what the core tells, and keep it before anything is done with it; what is to be said where it cannot
        be kept: who has to go is cut all the same.
        """
        live = state["live"] or {}
        # Of a core that does not answer nothing is known: what it tells later would be counted again.
        if live.get("answers"):
            self._usage, self._devices = await asyncio.to_thread(_polled, self._usage, live)
            self._connections = _connected(live)
        applied = await self._confirmed(state)
        for intent in (applied, self._intent()):
            self._usage = usage.ticked(self._usage, _until(intent or {}), int(time.time()))
        self._forget(state, applied)
        try:
            await self._keep()
        except HostError as error:
            return Health("degraded", f"what users have used, or who is disabled, is not kept: {error}"[:400])
        return None

    async def _end(self, state: Any, *, told: bool = True) -> Plain | None:
        """Apply the confirmed intent without users who have to end; what is applied then. `told`: plan anew what was
        planned before, which the plan for that has pushed aside.
        """
        applied = await self._confirmed(state)
        if applied is None:
            return None
        cut = ends.cut(applied, self._off(applied))
        if cut == applied:
            if (state["live"] or {}).get("unfinished"):
                # Who is cut has connected anew, or is to leave the core's file.
                await self.host.network.apply(state["target"]["confirmed"])
            return applied
        made = await self._planned(cut)
        await self.host.network.apply(made["sha256"])
        await self.host.log.info("users ended", plan=made["sha256"][:12])
        wanted = await self._wanted()
        if told and wanted != cut:
            await self._planned(wanted)
        return cut

    async def _tell(self) -> None:
        """Notify of users whose time or quota is over since the last look."""
        users = [user for user in self._intent().get("users", []) if user.get("enabled", True)]
        told = {user["id"]: end for user in users if (end := self._end_of(user)) != self._account(user["id"]).told}
        news = [
            f"{name}: {'its time is over' if end.startswith('time') else 'its quota is used up'}"
            for name, end in told.items()
            if end
        ]
        if news:
            rest = [f"and {len(news) - TOLD} more"] if len(news) > TOLD else []
            title = news[0] if len(news) == 1 else f"{news[0]}, and {len(news) - 1} more"
            await self.tell(f"proxy: {title}", "\n".join([*news[:TOLD], *rest]), event="proxy.user")
        # Afterwards: what cannot be sent is told at the next look, and what cannot be kept once more by the next start.
        if told:
            self._accounts |= {name: replace(self._account(name), told=end) for name, end in told.items()}
            await self._write_all(self._accounts_by_key())

    def _end_of(self, user: Plain) -> str:
        """The end that a user has come to, as `time 1800000000`; empty for none."""
        now_s = int(time.time())
        if usage.over(self._usage, _until({"users": [user]}), {}, now_s):
            return f"time {user['expires_at']}"
        if usage.over(self._usage, {}, _quotas({"users": [user]}), now_s):
            return f"quota {user['quota_bytes']}"
        return ""

    # Changes

    async def _of_user(self, payload: Any, *, off: bool) -> Any:
        name = self._name(payload)
        async with self._changing:
            await self._set(name, replace(self._account(name), off=off))
            self._returning = self._returning or not off
            made = await self._take_effect(await self._state())
        return {"id": name, **made}

    async def _take_effect(self, state: Any) -> dict[str, Any]:
        """Apply what is taken away, and plan the rest: `{"sha256", "state"}` of the plan of everything."""
        self._tried = self._refused = (
            ""  # what became of an earlier one says nothing of this one, if it is not even planned
        )
        try:
            applied = await self._end(state, told=False)
        except HostError as error:
            raise PluginError(f"it is kept, and tried again every {POLL_S:g} s: {error.message}") from error
        wanted = await self._wanted()
        if applied == wanted:
            self._returning = False
            return {"sha256": (state["target"] or {}).get("confirmed", ""), "state": "applying"}
        made = await self._planned(wanted)
        found, self._returning = await self.apply_again(made)
        return {"sha256": made["sha256"], "state": found}

    async def _planned(self, intent: Plain) -> Any:
        # Here first: the helper says the same, but may not be there.
        await asyncio.to_thread(_checked, intent)
        try:
            return await self.host.network.plan(KIND, intent)
        except HostError as error:
            raise PluginError(str(error)) from error

    # What is wanted, and what is there

    def _intent(self) -> Plain:
        """The configuration as an intent, users who have to end included."""
        return {name: value for name, value in self.config.items() if name not in _OWN}

    async def _wanted(self) -> Plain:
        intent = self._intent()
        return ends.cut(intent, self._off(intent))

    def _off(self, intent: Plain) -> frozenset[str]:
        """Who of an intent is not let in: disabled by an operator, his time over, his quota used up."""
        off = {name for name, one in self._accounts.items() if one.off}
        return usage.over(self._usage, _until(intent), _quotas(intent), int(time.time())) | off

    async def _state(self) -> Any:
        try:
            return await self.host.network.state(KIND)
        except HostError as error:
            raise PluginError(error.message) from error

    async def _confirmed(self, state: Any) -> Plain | None:
        """The intent that is confirmed at the helper, None when there is none of this plugin."""
        confirmed = (state["target"] or {}).get("confirmed", "")
        if self._applied is not None and self._applied[0] == confirmed:
            return self._applied[1]
        self._applied = None
        plain = await self.intent_of(confirmed) if confirmed else None
        if plain is None:
            return None
        self._applied = confirmed, plain, await asyncio.to_thread(decode.read, plain)
        return plain

    async def _user_intent(self, name: str) -> ProxyIntent:
        """The applied intent, which lets this user in; PluginError when it does not, or says too little for links."""
        await self._confirmed(await self._state())
        hint = f"latticectl apply {self.id}"
        if self._applied is None:
            raise PluginError(f"nothing is applied yet: {hint}")
        _, plain, intent = self._applied
        forms = devices.references(intent, name)
        if not forms or name in self._off(plain):
            raise PluginError(f"{name[:40]!r} is not let in: enable it, then {hint}")
        try:
            devices.links(intent, name, values.shown(forms))
        except NoLink as error:
            raise PluginError(error.reason) from error
        return intent

    def _name(self, payload: Any, more: Collection[str] = (), of: Collection[str] = ()) -> str:
        """The id of a configured user in a payload, or of another one in `of`."""
        known = {"id", *more}
        if not isinstance(payload, dict) or "id" not in payload or payload.keys() - known:
            raise PluginError(f"expected an object with id, and at most {', '.join(sorted(known))}")
        if not all(isinstance(one, str) for one in payload.values()):
            raise PluginError(f"{', '.join(sorted(payload))}: expected text")
        name: str = payload["id"]
        if name not in {*of, *(one["id"] for one in self.config.get("users", []))}:
            raise PluginError(f"the configuration has no user {name[:40]!r}")
        return name

    # What is kept

    def _account(self, name: str) -> Account:
        return self._accounts.get(name, Account())

    async def _set(self, name: str, account: Account) -> None:
        """Keep an account; on a failure it is as before."""
        before = self._account(name)
        self._accounts[name] = account
        key = f"users.{usage.group(name)}"
        try:
            await self._write(key, self._accounts_by_key()[key])
        except HostError as error:
            self._accounts[name] = before
            raise PluginError(f"it cannot be kept: {error.message}") from error

    def _forget(self, state: Any, applied: Plain | None) -> None:
        """Drop what is kept of users who are gone, so that whoever gets an id later has nothing of it.

        Of nobody while a plan is unconfirmed, since an undo may bring him back.
        """
        if applied is None or state["target"].get("unconfirmed"):
            return
        names = {one["id"] for intent in (applied, self._intent()) for one in intent.get("users", [])}
        self._usage = usage.of_users(self._usage, names)
        self._accounts = {name: one for name, one in self._accounts.items() if name in names}

    async def _keep(self) -> None:
        await self._write_all({**await asyncio.to_thread(_written, self._usage), **self._accounts_by_key()})

    def _accounts_by_key(self) -> dict[str, str]:
        users: list[dict[str, Account]] = [{} for _ in range(usage.GROUPS)]
        for name, account in self._accounts.items():
            users[usage.group(name)][name] = account
        return {f"users.{group}": accounts.written(found) for group, found in enumerate(users)}

    async def _write_all(self, texts: Mapping[str, str]) -> None:
        """Write what differs from what kv has, each that can be. HostError: the rest is tried again at a later look."""
        failed = None
        for key, text in texts.items():
            try:
                await self._write(key, text)
            except HostError as error:
                failed = error
        if failed is not None:
            raise failed

    async def _read(self, key: str) -> str | None:
        value = await self._values.get(key)
        if value is None:
            return None
        self._stored[key] = zlib.decompress(value).decode("utf-8")
        return self._stored[key]

    async def _write(self, key: str, text: str) -> None:
        if self._stored.get(key) == text or (key not in self._stored and text in _EMPTY):
            return
        await self._values.put(key, zlib.compress(text.encode("utf-8")))
        self._stored[key] = text


def _polled(before: Usage, live: Any) -> tuple[Usage, dict[str, int]]:
    """The state after a poll, and from how many addresses each user comes; there may be tens of thousands."""
    told = [Connection(**one) for one in live["connections"]]
    told += [Connection(**one, is_open=False) for one in live.get("ended", ())]
    after = usage.polled(before, told, live.get("untold", {}))
    if "ended" not in live:  # a helper of a version before: what it tells no more, a newer one tells again
        after = replace(after, knows_ended=False)
    return after, usage.sources(told)


def _connected(live: Any) -> int:
    """How many connections the core has."""
    untold: dict[str, int] = live.get("untold", {})
    return len(live["connections"]) + sum(untold.values())


def _written(state: Usage) -> dict[str, str]:
    return {f"usage.{group}": usage.written(one) for group, one in enumerate(usage.split(state))}


_EMPTY: Final = frozenset({usage.written(Usage()), accounts.written({})})


def _until(intent: Plain) -> dict[str, int]:
    """When each user's time is over."""
    return {one["id"]: one["expires_at"] for one in intent.get("users", []) if one.get("expires_at") is not None}


def _quotas(intent: Plain) -> dict[str, int]:
    return {one["id"]: one["quota_bytes"] for one in intent.get("users", []) if one.get("quota_bytes") is not None}


def _checked(intent: Plain) -> None:
    try:
        if found := check.check(decode.read(intent)):
            raise IntentRefused(found)
    except IntentRefused as refused:
        raise PluginError(refused.reason) from refused


def _links(intent: ProxyIntent, name: str, inbound: str | None, secrets: Mapping[str, str]) -> dict[str, Any]:
    """Share links by inbound; `secrets` are values, or what is shown."""
    found = {one.name: write_link(one) for one in devices.links(intent, name, secrets) if inbound in {None, one.name}}
    return {"id": name, "links": found, **({"conf": next(iter(found.values()))} if len(found) == 1 else {})}


def _document(intent: ProxyIntent, name: str, form: Format, info: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    """A subscription as the answer of a route."""
    body = subscriptions.write(devices.links(intent, name, secrets), form)
    return {"content_type": subscriptions.MEDIA_TYPES[form], "userinfo": info, "body": body.decode("utf-8")}


def _form(payload: Plain) -> Format:
    """What the query says (`format=clash`), else what the client is, else base64."""
    said = next((value for name, value in payload.get("query", []) if name == "format"), "")
    if said in set(Format):
        return Format(said)
    agent = str(payload.get("headers", {}).get("user-agent", "")).lower()
    return next((form for word, form in _AGENTS if word in agent), Format.BASE64)


def _health(state: Any) -> Health:
    target, live = state["target"] or {}, state["live"] or {}
    if target.get("unconfirmed"):
        left = int(target.get("deadline_s", 0))
        return Health("degraded", f"plan {target['unconfirmed'][:12]} is unconfirmed and is undone in {left} s")
    if not target.get("confirmed"):
        return Health("degraded", "no plan is applied: latticectl apply latticed.proxy")
    if problem := target.get("problem"):
        return Health("degraded", f"{problem}: journalctl -t latticed-apply")
    if not live.get("answers"):
        return Health("degraded", "the core's API does not answer: nothing is counted, and nobody cut")
    if target.get("drifted") or not live.get("sound"):
        return Health("degraded", "drift: the core has ended, or its file is another: latticectl plan apply")
    return Health("healthy", f"plan {target['confirmed'][:12]}, {_connected(live)} connections")
