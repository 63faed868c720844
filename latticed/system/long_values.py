"""Values of a built-in plugin that may be longer than one value of kv: kept in parts, replaced whole.

A value of at most PART_BYTES stands under its key as it is. Of a longer one the key has the number of parts and its
hash, by which the keys of the parts are named. Parts are written first, then the key, then the parts of before are
removed: a kill between two writes leaves the old value or the new one, and parts that the next long value removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING, Final

from latticed.sdk.calls import HostError

if TYPE_CHECKING:
    from latticed.system.host import Kv

PART_BYTES: Final = 48 << 10
"""Below the default of `host_calls.kv_value_bytes`."""
_HEAD: Final = re.compile(rb"parts:([0-9]{1,4}):([0-9a-f]{64})")


class LongValues:
    """Values of kv by key. What was read or written stays in memory, so an unchanged value costs one call to read."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._known: dict[str, tuple[bytes, bytes]] = {}  # by key: what the key had, and the value

    async def get(self, key: str) -> bytes | None:
        """The value, or None when there is none. ValueError for one whose parts are damaged; HostError of kv."""
        head = await self._kv.get_bytes(key)
        found = _HEAD.fullmatch(head) if head is not None else None
        if head is None or found is None:
            return head
        if key not in self._known or self._known[key][0] != head:
            digest = found[2].decode("ascii")
            parts = [await self._kv.get_bytes(_part(key, digest, number)) for number in range(int(found[1]))]
            value = b"".join(part for part in parts if part is not None)
            if hashlib.sha256(value).hexdigest() != digest:
                raise ValueError(f"expected a value in {len(parts)} parts, found another or fewer")
            self._known[key] = (head, value)
        return self._known[key][1]

    async def put(self, key: str, value: str | bytes) -> None:
        """Set a value, text as UTF-8; the old one stays when HostError is raised, and nothing of the new one."""
        data = value.encode("utf-8") if isinstance(value, str) else value
        if len(data) <= PART_BYTES and not _HEAD.fullmatch(data):
            await self._kv.put(key, value)
            if self._known.pop(key, None):
                await self._sweep_if_it_can(key, but="")
            return
        digest = hashlib.sha256(data).hexdigest()
        parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
        head = f"parts:{len(parts)}:{digest}"
        try:
            for number, part in enumerate(parts):
                await self._kv.put(_part(key, digest, number), part)
            await self._kv.put(key, head)
        except HostError:
            # Parts of values that did not fit would leave no room for anything else.
            found = _HEAD.fullmatch(await self._kv.get_bytes(key) or b"")
            await self._sweep(key, but=found[2].decode("ascii") if found else "")
            raise
        self._known[key] = (head.encode("ascii"), data)
        await self._sweep_if_it_can(key, but=digest)

    async def _sweep_if_it_can(self, key: str, *, but: str) -> None:
        """After a value that is kept: what stays here goes with the next long one."""
        with contextlib.suppress(HostError):
            await self._sweep(key, but=but)

    async def _sweep(self, key: str, *, but: str) -> None:
        """Remove the parts of a key's other values."""
        kept = _part(key, but, 0).removesuffix("0000")
        for one in [one async for one in self._kv.keys(_prefix(key))]:
            if not but or not one.startswith(kept):
                await self._kv.delete(one)


def _prefix(key: str) -> str:
    """How the keys of all parts begin; by a hash, as one key may begin with another."""
    return f"part.{hashlib.sha256(key.encode()).hexdigest()[:16]}."


def _part(key: str, digest: str, number: int) -> str:
    return f"{_prefix(key)}{digest[:32]}.{number:04}"
