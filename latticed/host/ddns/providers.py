"""One try at a record's provider, with the secret that its spec names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.host.ddns.outcome import ProviderRefused, UpdateFailed, UpdateJob
from latticed.kit import logs, text

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.ddns.cloudflare import CloudflareProvider
    from latticed.host.ddns.outcome import Published
    from latticed.host.ddns.rfc2136 import Rfc2136Provider
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.host.secret.references import PluginSecrets
    from latticed.model.egress import EgressRights

TRY_S: Final = 30.0
"""Seconds for a whole try, with all its requests: few tries run at a time, so one that hangs must end."""
REASON_CHARACTERS: Final = 300
"""Reasons contain text of the provider; they are stored and shown."""

log = logs.get_logger()


class Providers:
    """All providers. `secrets_of(plugin_id)`: its secrets as they are now, for one try."""

    def __init__(
        self, *, cloudflare: CloudflareProvider, rfc2136: Rfc2136Provider, secrets_of: Callable[[str], PluginSecrets]
    ) -> None:
        self._cloudflare = cloudflare
        self._rfc2136 = rfc2136
        self._secrets_of = secrets_of

    async def publish(
        self, plugin_id: str, spec: DdnsSpec, address: str, rights: EgressRights
    ) -> Published | UpdateFailed:
        """The outcome of one try, within TRY_S. Raises nothing but CancelledError, and no reason contains a secret.

        `rights` count for rfc2136 only: Cloudflare's API is reached under rights of its own.
        """
        # New for each try: it remembers the values that it gave out, so that they can be redacted below.
        secrets = self._secrets_of(plugin_id)
        try:
            async with asyncio.timeout(TRY_S):
                return await self._publish(spec, address, secrets, rights)
        except ProviderRefused as refused:
            found = refused.fault
        except HostError as error:  # refused by this host or not reachable: both may change
            found = UpdateFailed(error.code, error.reason)
        except TimeoutError:
            found = UpdateFailed("deadline_exceeded", f"not done within {TRY_S:g} s")
        # A fault of ours counts as a failed try, so that it is retried with backoff and shown in the status.
        except Exception:
            log.error("ddns_try_failed", plugin_id=plugin_id, provider=spec.provider, exc_info=True)
            found = UpdateFailed("internal", "the try failed, see the daemon's log")
        # Redacted before it is cut and escaped: half a secret, or an escaped one, would not be recognised.
        reason = text.sanitise(secrets.redact(found.reason), REASON_CHARACTERS)
        return replace(found, reason=reason)

    async def _publish(self, spec: DdnsSpec, address: str, secrets: PluginSecrets, rights: EgressRights) -> Published:
        """As `publish`, with exceptions: ProviderRefused, HostError (a secret that is not bound, the egress guard)."""
        job = UpdateJob(name=spec.name, type=spec.type, address=address, ttl=spec.ttl, zone=spec.zone)
        secret = secrets.expand(spec.secret)
        match spec.provider:
            case "cloudflare":
                return await self._cloudflare.publish(job, secret)
            case "rfc2136":
                return await self._rfc2136.publish(job, spec, secret, rights)
