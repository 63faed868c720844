"""Cloudflare as a provider (API v4): find the zone, read the record, write it only when it differs.

Lists come in pages and are read whole. The token is sent to the API's own origin only, over TLS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import msgspec

from latticed.host.call import HostError
from latticed.host.ddns import cloudflare_api as api
from latticed.host.ddns import outcome
from latticed.host.ddns import spec as specs
from latticed.host.ddns.outcome import Published
from latticed.model import hosts
from latticed.model.egress import EgressRights

if TYPE_CHECKING:
    from latticed.host.ddns.outcome import UpdateJob
    from latticed.host.egress.client import EgressClient

BASE: Final = "https://api.cloudflare.com/client/v4"
RIGHTS: Final = EgressRights(hosts=("api.cloudflare.com:443",))
"""The capability ddns:admin includes this one origin; nothing that a plugin passes can change where requests go."""
# Items of a page, and pages of a list. A list beyond that fails the try: a part of it could miss the record, and a
# second one would be made.
_ZONES_OF_A_PAGE: Final = 50
_RECORDS_OF_A_PAGE: Final = 100
_MAX_PAGES: Final = 200


class _Zone(msgspec.Struct, frozen=True):
    """The fields of a Cloudflare zone that are used here."""

    id: str
    name: str
    status: str = "active"


class _Record(msgspec.Struct, frozen=True):
    """The fields of a Cloudflare DNS record that are used here. `ttl` in seconds; 1 means automatic."""

    id: str
    name: str
    type: str
    content: str
    ttl: int
    proxied: bool | None = False


class CloudflareProvider:
    """Publishes records at Cloudflare. `base` and `rights` are those of the public API; tests pass their own."""

    def __init__(self, client: EgressClient, *, base: str = BASE, rights: EgressRights = RIGHTS) -> None:
        self._api = api.CloudflareApi(client, base=base, rights=rights)

    async def publish(self, job: UpdateJob, token: str) -> Published:
        """Publish `job`; the token needs Zone Read and DNS Edit. At most one write is sent.

        Raises ProviderRefused when the API refuses or its answer is not as expected, HostError from the egress guard:
        then it is not known whether the address is published.
        """
        zone = await self._zone(job, token)
        path = f"/zones/{zone.id}/dns_records"
        # Read first: an equal record needs no write, and several records of that name are found before one is
        # overwritten.
        found = await self._record(path, job, token)
        if found is not None and _is_equal(found, job):
            return Published(address=job.address, changed=False)
        wanted = {"content": job.address, "ttl": job.ttl}
        if found is None:
            # Not proxied: a proxied name resolves to Cloudflare's addresses, not to this one.
            whole = {"type": job.type, "name": job.name, "proxied": False, **wanted}
            answer = await self._api.ask("POST", path, token, whole)
        else:
            if found.proxied:  # Cloudflare sets the TTL of proxied records itself
                del wanted["ttl"]
            # PATCH, not PUT: what is not sent stays, as the comment, tags and the proxy.
            answer = await self._api.ask("PATCH", f"{path}/{api.checked_id(found.id)}", token, wanted)
        # The answer has the record as it is stored: only that counts as published.
        written = api.typed(answer.result, _Record)
        if not _is_equal(written, job):
            raise outcome.transient("not_written", "the record that was written does not come back as it was sent")
        return Published(address=job.address, changed=True)

    async def _zone(self, job: UpdateJob, token: str) -> _Zone:
        """The zone with the longest name that is a suffix of the record's, or the one that the job names.

        ProviderRefused: no_zone, several_zones.
        """
        asked = {"name": job.zone} if job.zone else {}
        all_zones = await self._all("/zones", asked, token, _Zone, of_a_page=_ZONES_OF_A_PAGE)
        # Compared here again: whether the API has filtered by name is not relied on.
        fit = [zone for zone in all_zones if specs.is_below(_plain(job.name), _normal(zone.name))]
        if job.zone:
            fit = [zone for zone in fit if _normal(zone.name) == job.zone]
        if not fit:
            raise outcome.denied("no_zone", f"expected a zone of {job.name} that the token may see, found none")
        longest = max(len(_normal(zone.name)) for zone in fit)
        fit = [zone for zone in fit if len(_normal(zone.name)) == longest]
        # One name may be a zone of several accounts that the token may see; only an active zone is served. None active:
        # the record is written nevertheless, and is served once the zone is activated.
        active = [zone for zone in fit if zone.status == "active"] or fit
        if len(active) > 1:
            raise outcome.denied("several_zones", f"expected one zone {_normal(fit[0].name)}, found {len(active)}")
        # It becomes a part of paths: an id with a slash would lead to another resource.
        api.checked_id(active[0].id)
        return active[0]

    async def _record(self, path: str, job: UpdateJob, token: str) -> _Record | None:
        """The record of the job's name and type in the zone at `path`, or None. ProviderRefused several_records: which
        of them is meant is not known, and none is changed.
        """
        asked = {"type": job.type, "name": job.name}
        records = await self._all(path, asked, token, _Record, of_a_page=_RECORDS_OF_A_PAGE)
        # As above: other records must not be changed even if the API ignores the filter.
        mine = [one for one in records if one.type == job.type and _normal(one.name) == job.name]
        if len(mine) > 1:
            raise outcome.denied(
                "several_records",
                f"expected at most one {job.type} record of {job.name}, found {len(mine)}: delete what is not wanted",
            )
        return mine[0] if mine else None

    async def _all(
        self, path: str, asked: dict[str, str], token: str, kind: type[api.T], *, of_a_page: int
    ) -> list[api.T]:
        """Every item of the list at `path`, each as a `kind`; `asked` are the filters, `of_a_page` items come per page.

        ProviderRefused too_many_pages beyond _MAX_PAGES; and as `CloudflareApi.ask`.
        """
        found: list[api.T] = []
        for page in range(1, _MAX_PAGES + 1):
            query = urlencode({**asked, "page": page, "per_page": of_a_page})
            answer = await self._api.ask("GET", f"{path}?{query}", token)
            items = api.items(answer.result, kind)
            found += items
            # An empty page ends the list as well: the number of pages is the server's claim.
            if page >= answer.pages or not items:
                return found
        raise outcome.transient("too_many_pages", f"expected at most {_MAX_PAGES} pages of {path.partition('?')[0]}")


def _is_equal(found: _Record, job: UpdateJob) -> bool:
    """Whether a record has the job's address and TTL. Addresses are compared as such, as IPv6 has several spellings; of
    a proxied record the TTL does not count, since Cloudflare sets it.
    """
    address, wanted = hosts.address_of(found.content), hosts.address_of(job.address)
    return address == wanted and (bool(found.proxied) or found.ttl == job.ttl)


def _plain(name: str) -> str:
    """The name without the `*.` of a wildcard."""
    return name.removeprefix("*.")


def _normal(name: str) -> str:
    """A name as Cloudflare writes it (Unicode for international ones) in normal form; "" when it is no domain name."""
    try:
        return specs.record_name(name)
    # A zone or record that no plugin could name; it fits no record of ours.
    except HostError:
        return ""
