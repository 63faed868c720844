from __future__ import annotations

import pytest

from latticed.ctl import activity
from latticed.host.call import HostError
from tests.house import in_process


async def test_host_calls_are_counted_by_plugin():
    """Every call counts once, whatever its outcome; denials are also counted separately, those by the service itself
    included.
    """
    async with in_process.opened() as home:
        home.drop("demo", id="acme.demo", capabilities=["kv:read", "kv:write"])
        instance = await home.armed("acme.demo")
        await instance.call("kv.put", key="a", value="1")
        await instance.call("kv.get", key="a")
        for method, params in (("http.do", {}), ("kv.put", {"key": "a/b", "value": "1"}), ("kv.get", {"no": "key"})):
            with pytest.raises(HostError):
                await instance.call(method, **params)
        sample = activity.read((await home.ask("GET", "/metrics"))["raw"].decode(), 0.0)
        assert (sample.calls, sample.denied) == ({"acme.demo": 5}, {"acme.demo": 3})
