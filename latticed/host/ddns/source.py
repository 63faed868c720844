"""Which address of an interface is published, and when a changed one replaces it. Pure, but for `addresses_of`.

interface has 10.0.0.5 and 93.184.216.34   ->  93.184.216.34
then 93.184.216.35 in its place            ->  still 93.184.216.34, until the new one has stayed for `settle_s`
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from latticed.host.ddns import spec as specs
from latticed.kit import interfaces as kernel
from latticed.kit.value import Value

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.addresses import Address

_UNSUITABLE: Final = 0x01 | 0x08 | 0x20 | 0x40
"""IFA_F_TEMPORARY, _DADFAILED, _DEPRECATED, _TENTATIVE (rtnetlink(7)): not usable for long, or not yet."""


class Seen(Value, frozen=True, kw_only=True):
    """The address that an interface has (empty: none that may be published), and since when (monotonic seconds)."""

    address: str
    since_s: float


def addresses_of(interface: str) -> tuple[Address, ...]:
    """The addresses of one interface that stay, as they are now; none when there is no such interface.

    OSError when the kernel does not list them. The name is compared as bytes: the kernel promises no encoding.
    """
    found = (*kernel.ipv4(), *kernel.ipv6())
    name = os.fsencode(interface)
    return tuple(one.address for one in found if one.interface == name and not one.flags & _UNSUITABLE)


def chosen(found: Iterable[Address], kind: specs.Type, *, published: str, private: bool) -> str:
    """The address to publish, as text, or "": the published one while the interface has it, else public before private.
    `kind` decides the IP version; with `private`, addresses of private networks may be published.
    """
    fit = [one for one in found if one.version == specs.version(kind) and specs.may_publish(one, private=private)]
    if any(str(one) == published for one in fit):
        return published
    # Then by number: the kernel's order may change at any time, which would change the record.
    fit.sort(key=lambda one: (not specs.may_publish(one, private=False), int(one)))
    return str(fit[0]) if fit else ""


def settled(before: Seen | None, found: str, *, published: str, now_s: float, settle_s: float) -> tuple[Seen, str]:
    """(what was seen, the address to publish): a changed address is published once it has stayed for `settle_s`.

    `found` is what `chosen` gives now, `before` what the last call returned. When nothing is published yet, the first
    one is taken at once. An interface that has lost its address counts as changed, too: after `settle_s` the result is
    "".
    """
    # A change back starts the time anew, so an address that comes and goes is never published.
    seen = before if before is not None and before.address == found else Seen(address=found, since_s=now_s)
    is_settled = not published or found == published or now_s - seen.since_s >= settle_s
    return seen, found if is_settled else published
