"""`explain=1`: what would refuse the next step, signs in stderr, calls that succeeded since their denial."""

from __future__ import annotations

import pytest

from latticed.host.call import HostError
from latticed.model.errors import Problem
from latticed.rpc import explain
from latticed.runners.output import OutputLine
from tests.house import in_process

ID = "acme.demo"


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


async def causes(home, plugin_id=ID):
    report = await home.ask("GET", f"/api/plugins/by-id/{plugin_id}?explain=1")
    assert report.status == 200, report
    return report["causes"]


async def test_causes_are_in_the_plugin_record_only_with_explain(home):
    home.drop("demo", id=ID)
    await home.seen(ID)
    assert "causes" not in await home.ask("GET", f"/api/plugins/by-id/{ID}")
    assert await causes(home) == {
        "refusal": None,
        "upgrade": None,
        "denied_records": [],
        "failed_services": [],
        "signs": [],
        "working": [],
        "ended": None,
        "missing_secrets": [],
    }


async def test_explain_evaluates_the_refusal_of_the_next_step_now(home):
    """Lifecycle rules and the runner are asked, which changes and records nothing."""
    home.drop("demo", id=ID, v2=True, dependencies=[{"id": "acme.other", "version": "*"}])
    await home.seen(ID)
    await home.decide(ID, "installed")
    mark = home.mark()
    refusal = (await causes(home))["refusal"]
    assert (refusal["code"], refusal["hint"]) == (
        "dependency_unmet",
        "latticectl install acme.other && latticectl activate acme.other",
    )
    home.drop("other", id="acme.other")
    await home.armed("acme.other")
    assert (await causes(home))["refusal"] is None

    async def refuses(_):
        raise Problem("sandbox_unavailable", "needs dedicated, host gives isolated", "run latticed as root")

    home.driven.admitting = refuses
    refusal = (await causes(home))["refusal"]
    assert refusal == {
        "code": "sandbox_unavailable",
        "detail": "needs dedicated, host gives isolated",
        "hint": "run latticed as root",
    }
    assert [event for event in home.events(after=mark) if event["target"] == ID] == []


async def test_host_call_that_succeeded_since_its_denial_is_shown_as_working(home):
    home.drop("demo", id=ID, capabilities=["kv:read", "kv:write"])
    instance = await home.armed(ID)
    with pytest.raises(HostError):
        await instance.call("kv.put", key="a/b", value="x")
    assert (await causes(home))["working"] == []
    await instance.call("kv.put", key="ab", value="x")
    assert (await causes(home))["working"] == ["kv.put"]


async def test_missing_grant_is_audited_but_not_revealed_to_the_plugin(home):
    """The address of a private target above all must not be."""
    home.drop("demo", id=ID, capabilities=["http:egress", "audit:read"])
    await home.armed(ID, accept=("http:egress",))
    instance = home.driven.only(ID)

    async def denied(url):
        with pytest.raises(HostError) as caught:
            await instance.call("http.do", url=url)
        assert "origin=" not in str(caught.value)
        return home.events(action="host.call", target="http.do")[-1]["detail"].get("fix")

    assert await denied("http://10.0.0.5:8080/") == "origin=http://10.0.0.5:8080"
    grants = f"/api/plugins/by-id/{ID}/grants"
    await home.ask("PUT", grants, {"hosts": ["10.0.0.5:8080", "[fd00::5]:80"]})
    assert await denied("http://10.0.0.5:8080/") == "origin=http://10.0.0.5:8080"
    assert await denied("http://[fd00::5]/") == "origin=http://[fd00::5]:80"
    assert await denied("http://localhost/") is None
    await home.ask("PUT", grants, {"hosts": ["*"]})
    assert await denied("http://8.8.8.8:25/") == "host=8.8.8.8:25"
    events = (await instance.call("audit.query"))["events"]
    assert all("fix" not in event["detail"] for event in events)


@pytest.mark.parametrize(
    ("line", "sign", "value"),
    [
        ("ModuleNotFoundError: No module named 'requests'", "missing_module", "requests"),
        ("Error: Cannot find module 'left-pad'", "missing_module", "left-pad"),
        ("/proc/self/fd/3: 5: Cannot fork", "cannot_fork", ""),
        ("bash: fork: Operation not permitted", "cannot_fork", ""),
        ("    self.pid = _fork_exec(", "cannot_fork", ""),
        ("Error: spawn /bin/true EPERM", "cannot_fork", ""),
        ("RuntimeError: can't start new thread", "cannot_thread", ""),
        ("a fork in the road", "", ""),
        ("the module is named 'x'", "", ""),
    ],
)
def test_signs_of_known_errors_are_recognised_in_stderr_only(line, sign, value):
    lines = [OutputLine(seq=n, at=n, stream=stream, text=line) for n, stream in enumerate(("stderr", "log", "stderr"))]
    assert explain.signs(lines) == ([{"sign": sign, "value": value}] if sign else [])
    assert explain.signs(lines[1:2]) == []
