"""The console's pages of a fleet: there where it was given a controller's socket, and nowhere else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from latticed.fleet import controller_view as view
from tests.house import answering_controllers, api_server, consoles, processes
from tests.house.answering_controllers import SimulatedController, event, node, rollout
from tests.house.consoles import RunningConsole

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

DIRECTIVES = {"default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "script-src 'self'"}


@pytest.fixture(scope="module")
def controller() -> Iterator[SimulatedController]:
    """At a socket that the console's user may connect to."""
    place = Path(tempfile.mkdtemp(prefix="fleet-", dir="/tmp"))  # socket paths are short
    place.chmod(0o755)
    try:
        with api_server.serving(place / "c.sock", SimulatedController) as served:
            served.socket.chmod(0o666)  # the console's user, whom the server does not know
            yield served
    finally:
        shutil.rmtree(place)


@pytest.fixture(scope="module")
def console(controller) -> Iterator[RunningConsole]:
    with consoles.simulated("--controller", str(controller.socket)) as (_, console):
        console.enter()
        yield console


def shown(console: RunningConsole, path: str, said: str) -> str:
    """The page once it says that: an answer about the fleet is shared for a second by those who ask for it."""

    def there() -> str:
        text = console.get(path).text
        return text if said in text else ""

    return processes.until(there, what=f"{said!r} on {path}")


@pytest.fixture(autouse=True)
def settled(controller) -> None:
    """Three nodes that are well."""
    controller.nodes = [node("db-1"), node("web-1"), node("web-2")]
    controller.alarms, controller.rollouts, controller.override, controller.page = (), [], {}, 100
    controller.details, controller.fleet_events = {}, []


def test_without_a_controller_there_is_no_such_page():
    with consoles.simulated() as (api, console):
        console.enter()
        assert "/fleet" not in console.get("/").text
        assert [console.get(path).status for path in ("/fleet", "/fleet/web-1")] == [404, 404]
        assert not [one for one in api.asked if "fleet" in one]


@pytest.mark.parametrize("page", ["/fleet", "/fleet/web-1"])
def test_a_page_of_the_fleet_forbids_what_others_do(console, page: str):
    seen = console.get(page)
    assert seen.status == 200
    assert {one.strip() for one in seen.headers["content-security-policy"].split(";")} >= DIRECTIVES
    assert seen.headers["cache-control"] == "no-store"
    assert console.post(page).status == 404


def test_the_page_has_each_node_what_it_has_and_what_to_look_at(console, controller):
    controller.nodes.append(node("web-3", "refused", refused="intent_expired", reason="valid until yesterday", plans=2))
    controller.alarms = (view.AlarmView(code="operator_unknown", reason="a stranger signs", node="web-3"),)
    controller.rollouts = [rollout("halted", reason="2 of 3 nodes are away")]
    text = shown(console, "/fleet", "a stranger signs")
    for said in ("Fleet shop", "web-1", "role=web zone=eu", answering_controllers.INTENT[:12], "2 plans wait"):
        assert said in text
    assert "intent_expired: valid until yesterday" in text
    assert "latticectl fleet roll --follow r1" in text
    assert "2 of 3 nodes are away" in text
    # It is asked for again while it is seen: no event of the daemon tells what becomes of a fleet.
    assert "data-goes-on" in text
    assert f'href="{console.base}/fleet"' in console.get("/").text


def test_a_thousand_nodes_are_read_page_by_page(console, controller):
    controller.nodes = [node(f"web-{number:04}") for number in range(250)]
    first = console.get("/fleet").text
    assert ("web-0099" in first, "web-0100" in first) == (True, False)
    assert f'href="{console.base}/fleet?after=web-0099"' in first
    second = console.get("/fleet?after=web-0099").text
    assert ("web-0100" in second, "web-0099<" in second) == (True, False)


def test_a_node_has_a_page_with_its_plugins_and_events(console, controller):
    plugin = view.PluginView(
        id="acme.demo",
        version="1.2.3",
        identity="7f" * 32,
        status="active",
        state="armed",
        health="degraded",
        restarts=4,
        denied=2,
    )
    controller.details["web-1"] = {"plugins": (plugin,), "missed": 3}
    controller.fleet_events = [event(1, "web-1", action="fleet.refused", code="generation_old"), event(2, "db-1")]
    text = console.get("/fleet/web-1").text
    for said in ("acme.demo", "1.2.3", "degraded", "fleet.refused", "generation_old", "3 of its events never came"):
        assert said in text
    assert text.count("fleet.taken_up") == 0
    assert console.get("/fleet/web-9").status == 404
    assert console.get("/fleet/..%2f..%2fsecrets").status == 404


def test_a_controller_that_is_away_or_refuses_is_said_on_the_page(console, controller):
    controller.override = {
        "GET fleet": api_server.problem(403, "forbidden", "expected uid 0", "ask root"),
        "GET fleet/nodes": api_server.problem(403, "forbidden", "expected uid 0", "ask root"),
    }

    shown(console, "/fleet", "expected uid 0")
    with consoles.simulated("--controller", "/nonexistent/c.sock") as (_, other):
        other.enter()
        text = other.get("/fleet").text
        assert "the controller is not running" in text
        assert "Not known." in text


def test_what_nodes_say_is_text(console, controller):
    """A node's reasons and a plugin's version come from a host that may be another's."""
    hostile = '<script>alert(1)</script>"\u202e'
    controller.nodes = [node("web-1", hostile, refused=hostile, reason=hostile, labels={"a": hostile})]
    for page in ("/fleet", "/fleet/web-1"):
        text = console.get(page).text
        assert "<script>alert" not in text
        assert "\u202e" not in text
        assert "&lt;script&gt;alert" in text
