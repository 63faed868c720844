"""kv.get: the buckets that a caller may read."""

from __future__ import annotations

import pytest

from latticed.broker.decide import Rights
from latticed.host.call import Caller, HostError
from latticed.host.kv import FOR_WORKERS
from tests.house import ingresses

KV = frozenset({"kv:read", "kv:write"})


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
    return outside.broker.gate(caller, Rights(declared=KV, granted=KV))


async def asked(outside, buckets, **params):
    try:
        return (await gate(outside, frozenset(buckets)).call("kv.get", {"key": "k", **params}))["value"]
    except HostError as error:
        return error.code.value


async def test_kv_get_without_bucket_reads_the_callers_own(outside):
    """So does that of a worker, which may name another one."""
    assert await asked(outside, ()) == await asked(outside, FOR_WORKERS) == "its own"
    assert await asked(outside, (), bucket="plugin:acme.demo") == "its own"


async def test_bucket_default_can_be_read_by_workers_only(outside):
    """`default` is the bucket of operators."""
    assert await asked(outside, FOR_WORKERS, bucket="default") == "the operators'"
    assert await asked(outside, (), bucket="default") == "bad_params"


@pytest.mark.parametrize("bucket", ["plugin:acme.other", "private", "", "plugin:", "Default", "default "])
async def test_kv_get_of_other_bucket_is_refused(outside, bucket):
    """Another plugin's is refused even if it is among the allowed ones. The answer does not depend on whether it
    exists.
    """
    assert await asked(outside, FOR_WORKERS, bucket=bucket) == "bad_params"
    assert await asked(outside, {"plugin:acme.other"}, bucket="plugin:acme.other") == "bad_params"


async def test_operator_lets_a_plugin_read_another_ones_values_and_takes_it_back(outside):
    """At once, of any type; no other plugin's, and not those set aside for another publisher. It cannot write them."""
    of_other = {"bucket": "plugin:acme.other"}
    outside.readable["acme.demo"] = frozenset({"plugin:acme.other"})
    for kind in ((), FOR_WORKERS):
        assert await asked(outside, kind, **of_other) == "another's"
        assert await asked(outside, kind, bucket="plugin:acme.third") == "bad_params"
        assert await asked(outside, kind, bucket="plugin:acme.other@acme") == "bad_params"
    assert await gate(outside, ()).call("kv.list", of_other) == {"keys": ["k"], "next": None}
    with pytest.raises(HostError, match="bad_params"):
        await gate(outside, ()).call("kv.put", {"key": "k", "value": "", **of_other})
    outside.readable.clear()
    with pytest.raises(HostError, match=r"latticectl caps grant acme\.demo bucket=plugin:acme\.other"):
        await gate(outside, ()).call("kv.list", of_other)


async def test_kv_list_of_a_bucket_follows_the_rules_of_kv_get(outside):
    assert await gate(outside, FOR_WORKERS).call("kv.list", {"bucket": "default"}) == {"keys": ["k"], "next": None}
    with pytest.raises(HostError, match="bad_params"):
        await gate(outside, ()).call("kv.list", {"bucket": "default"})
