"""ddns.*: a plugin has DNS records follow an address, at Cloudflare or at a server that takes dynamic updates.

The call says what is wanted and returns once that is on disk; the provider is asked afterwards, and `ddns.status` says
how that went.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.host.call import Caller, Params, Served
from latticed.host.ddns import spec as specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.ddns.keeper import DdnsKeeper
    from latticed.host.secret.references import PluginSecrets


class DdnsDelete(Params, frozen=True):
    """Parameters of ddns.delete."""

    name: str
    """The domain name."""
    type: specs.Type | None = None
    """Absent: A and AAAA."""


class DdnsStatusQuery(Params, frozen=True):
    """Parameters of ddns.status."""

    name: str = ""
    """Only this domain name; empty: all."""
    type: specs.Type | None = None
    """Only this type."""


class DdnsCalls:
    """The host calls `ddns.put`, `ddns.delete` and `ddns.status`.

    `secrets_of(plugin_id)` gives a plugin's secrets, to check that the one that is named is bound to it.
    """

    def __init__(self, records: DdnsKeeper, *, secrets_of: Callable[[str], PluginSecrets]) -> None:
        self._records = records
        self._secrets_of = secrets_of

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="ddns.put", params=specs.DdnsPut, serve=self._put),
            Served(method="ddns.delete", params=DdnsDelete, serve=self._delete),
            Served(method="ddns.status", params=DdnsStatusQuery, serve=self._status),
        )

    async def _put(self, caller: Caller, asked: specs.DdnsPut) -> dict[str, Any]:
        """Keep the record up to date from now on; `state` is that before the provider was asked."""
        spec = specs.checked(asked, private=self._records.settings.private)
        # Only checked: the value is read anew for each try, so that a rotated secret is used at once. Without this, a
        # typing error would show only in the status of a later try.
        self._secrets_of(caller.plugin_id).expand(spec.secret)
        made = await self._records.put(caller.plugin_id, spec, retry=asked.retry)
        return {"ok": True, "name": made.name, "type": spec.type, "state": made.status.state}

    async def _delete(self, caller: Caller, asked: DdnsDelete) -> dict[str, Any]:
        """`ok`: whether there was any. The record at the provider stays as it is."""
        name = specs.record_name(asked.name)
        kinds = ("A", "AAAA") if asked.type is None else (asked.type,)
        # All are deleted, even after one that existed: `any` over a generator would stop there.
        existed = [await self._records.delete(caller.plugin_id, name, kind) for kind in kinds]
        return {"ok": any(existed)}

    def _status(self, caller: Caller, asked: DdnsStatusQuery) -> dict[str, Any]:
        """The caller's records, by name and type, each as `KeptRecord.view`."""
        name = specs.record_name(asked.name) if asked.name else ""
        found = [
            one.view()
            for one in self._records.of(caller.plugin_id)
            if name in ("", one.name) and asked.type in (None, one.spec.type)
        ]
        return {"records": found}
