"""Which buckets kv.get reads for whom."""

from __future__ import annotations

import pytest

from latticed.broker.decide import Rights
from latticed.host.call import Caller, HostError
from latticed.host.kv import FOR_WORKERS
from tests.house import ingresses


@pytest.fixture
async def outside(tmp_path):
    async with ingresses.opened(tmp_path) as found:
        await found.put("default", "k", b"the operators'")
        await found.put("plugin:acme.demo", "k", b"its own")
        await found.put("plugin:acme.other", "k", b"another's")
        await found.put("private", "k", b"not for plugins")
        yield found


def gate(outside, buckets):
    caller = Caller(plugin_id="acme.demo", buckets=buckets)
    return outside.broker.gate(caller, Rights(declared=frozenset({"kv:read"}), granted=frozenset({"kv:read"})))


async def asked(outside, buckets, **params):
    try:
        return (await gate(outside, frozenset(buckets)).call("kv.get", {"key": "k", **params}))["value"]
    except HostError as error:
        return error.code.value


async def test_without_a_bucket_it_is_the_callers_own(outside):
    """For workers as for anybody."""
    assert await asked(outside, ()) == await asked(outside, FOR_WORKERS) == "its own"
    assert await asked(outside, (), bucket="plugin:acme.demo") == "its own"


async def test_the_operators_bucket_is_for_those_who_may(outside):
    """Workers, for `default`; nobody else."""
    assert await asked(outside, FOR_WORKERS, bucket="default") == "the operators'"
    assert await asked(outside, (), bucket="default") == "bad_params"


@pytest.mark.parametrize("bucket", ["plugin:acme.other", "private", "", "plugin:", "Default", "default "])
async def test_no_other_bucket_is_read(outside, bucket):
    """Not even one that somebody put among the allowed, when it is another plugin's. There or not: the same answer."""
    assert await asked(outside, FOR_WORKERS, bucket=bucket) == "bad_params"
    assert await asked(outside, {"plugin:acme.other"}, bucket="plugin:acme.other") == "bad_params"


async def test_other_calls_take_no_bucket(outside):
    """A worker may read, and only by key."""
    with pytest.raises(HostError, match="bad_params"):
        await gate(outside, FOR_WORKERS).call("kv.list", {"bucket": "default"})
