"""kv.get: the buckets that a caller may read."""

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


async def test_kv_list_takes_no_bucket(outside):
    with pytest.raises(HostError, match="bad_params"):
        await gate(outside, FOR_WORKERS).call("kv.list", {"bucket": "default"})
