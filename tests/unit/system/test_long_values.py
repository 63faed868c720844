"""Values in parts: read back as written, never mixed, whole after a kill at any write."""

from __future__ import annotations

import base64
import os

import pytest

from latticed.sdk.calls import HostError
from latticed.system.host import Kv
from latticed.system.long_values import PART_BYTES, LongValues

KEY = "devices.wg"
LENGTHS = (0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES, 9 * PART_BYTES + 7)


class Killed(BaseException):
    """The process ends here."""


class Bucket:
    """kv of 64 KiB a value; ends the process before its `dies_at`th change, or refuses it (`full_at`)."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.changes = 0
        self.dies_at = self.full_at = 0

    async def ask(self, method, params):
        self.asked.append(method)
        key = params.get("key")
        match method:
            case "kv.get":
                value = self.values.get(key)
                return {"ok": value is not None, "value_base64": base64.b64encode(value or b"").decode()}
            case "kv.list":
                found = sorted(one for one in self.values if one.startswith(params["prefix"]))
                return {"keys": found, "next": None}
        self.changes += 1
        if self.changes == self.dies_at:
            raise Killed
        if self.changes == self.full_at:
            raise HostError("quota_exceeded", "the bucket is full")
        if method == "kv.delete":
            return {"ok": self.values.pop(key, None) is not None}
        value = params["value"].encode() if "value" in params else base64.b64decode(params["value_base64"])
        assert len(value) <= 64 << 10
        self.values[key] = value
        return {"ok": True}

    def again(self) -> LongValues:
        """After a restart."""
        return LongValues(Kv(self.ask))


def text(length: int) -> str:
    return os.urandom(length // 2 + 1).hex()[:length]


async def test_values_of_any_length_replace_each_other():
    """In memory and after a restart; no part of an old value stays."""
    bucket = Bucket()
    kept = bucket.again()
    assert await kept.get(KEY) is None
    for length in (*LENGTHS, *reversed(LENGTHS)):
        await kept.put(KEY, value := text(length))
        assert await kept.get(KEY) == value.encode()
        assert await bucket.again().get(KEY) == value.encode()
        parts = 0 if length <= PART_BYTES else -(-length // PART_BYTES)
        assert len(bucket.values) == 1 + parts
    bucket.asked.clear()
    await kept.put(KEY, text(5 * PART_BYTES))
    bucket.asked.clear()
    for _ in range(3):
        await kept.get(KEY)
    assert bucket.asked == ["kv.get"] * 3, "what did not change is not read again"


async def test_keys_that_begin_alike_keep_their_own_parts():
    bucket = Bucket()
    kept = bucket.again()
    values = {key: text(2 * PART_BYTES) for key in (KEY, f"{KEY}.x", "devices", "part")}
    for _ in range(2):
        for key, value in values.items():
            await kept.put(key, value)
    assert {key: await kept.get(key) for key in values} == {key: value.encode() for key, value in values.items()}


async def test_a_value_that_looks_like_parts_is_a_value():
    bucket = Bucket()
    await bucket.again().put(KEY, value := f"parts:2:{'a' * 64}")
    assert await bucket.again().get(KEY) == value.encode()


@pytest.mark.parametrize("old", [0, PART_BYTES, 3 * PART_BYTES])
@pytest.mark.parametrize("new", [1, 4 * PART_BYTES])
@pytest.mark.parametrize("how", ["dies_at", "full_at"])
async def test_a_kill_or_a_full_bucket_at_any_write_leaves_the_old_or_the_new_value(old, new, how):
    """Whole, and the next value removes what was left."""
    before, after = text(old), text(new)
    for point in range(1, 30):
        bucket = Bucket()
        await bucket.again().put(KEY, before)
        kept = bucket.again()
        await kept.get(KEY)
        setattr(bucket, how, bucket.changes + point)
        try:
            await kept.put(KEY, after)
        except (Killed, HostError):
            found = await bucket.again().get(KEY)
            assert found in {before.encode(), after.encode()}
            later = bucket.again()
            await later.get(KEY)
            await later.put(KEY, last := text(5 * PART_BYTES))
            assert await bucket.again().get(KEY) == last.encode()
            assert len(bucket.values) == 6
        else:
            assert point > 1
            return
    raise AssertionError("expected it to end")


@pytest.mark.parametrize("new", [1, 4 * PART_BYTES])
async def test_who_is_told_that_it_cannot_be_kept_has_the_old_value(new):
    """Though parts of the one before cannot be removed."""
    for point in range(1, 10):
        bucket = Bucket()
        await bucket.again().put(KEY, before := text(3 * PART_BYTES))
        kept = bucket.again()
        await kept.get(KEY)
        bucket.full_at = bucket.changes + point
        try:
            await kept.put(KEY, after := text(new))
        except HostError:
            assert await bucket.again().get(KEY) == before.encode()
        else:
            assert await bucket.again().get(KEY) == after.encode()


@pytest.mark.parametrize("old", [0, 2 * PART_BYTES])
async def test_what_does_not_fit_takes_no_room_from_others(old):
    bucket = Bucket()
    await bucket.again().put(KEY, before := text(old))
    kept = bucket.again()
    for point in range(1, 5):
        bucket.full_at = bucket.changes + point
        with pytest.raises(HostError):
            await kept.put(KEY, text(3 * PART_BYTES))
        assert len(bucket.values) == (3 if old else 1)
    assert await bucket.again().get(KEY) == before.encode()


async def test_a_part_that_is_gone_or_changed_is_damage():
    """And not a shorter value."""
    for change in (lambda values, key: values.pop(key), lambda values, key: values.update({key: b"x"})):
        bucket = Bucket()
        await bucket.again().put(KEY, text(3 * PART_BYTES))
        change(bucket.values, max(bucket.values))
        with pytest.raises(ValueError, match="another or fewer"):
            await bucket.again().get(KEY)
