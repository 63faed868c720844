"""As root: each child has its own uid, never 0, and its limits are counted for it alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import bombs, hosting, programs

pytestmark = [pytest.mark.daemon, pytest.mark.root]


@pytest.fixture(scope="module")
def host():
    with hosting.hosting("[plugin_limits]\nprocesses = 8", user=None) as host:
        yield host


def ids_of(pid):
    rows = dict(row.split(":\t") for row in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in row)
    return {int(word) for name in ("Uid", "Gid") for word in rows[name].split()}, rows


def test_children_of_root_each_have_their_own_unprivileged_uid(host):
    """They have a gid of their own, no groups and no capabilities; the level is dedicated, asked for or not."""
    one = host.up("acme.one", bombs.BOMBS, runtime={"sandbox": {"level": "dedicated"}})
    two = host.up("acme.two", bombs.BOMBS)
    assert host.daemon.get("/api/health").json()["sandbox"]["level"] == "dedicated"
    seen = set()
    for plugin_id in (one, two):
        runtime = host.runtime(plugin_id)
        assert runtime["sandbox"].split("+")[0] == "dedicated"
        assert "dedicated" in host.daemon.ctl("info", plugin_id).stdout
        (uid,), rows = ids_of(runtime["pid"])
        assert uid >= 1_900_000_000
        assert rows["Groups"].split() == []
        assert {int(rows[name], 16) for name in rows if name.startswith("Cap")} == {0}
        assert rows["NoNewPrivs"] == "1"
        seen.add(uid)
    assert len(seen) == 2


def test_each_start_and_each_invocation_has_a_new_uid(host):
    """Under stdio-json-v1 each invocation is a child; uids are returned in the end."""
    plugin_id = host.up("acme.v1", programs.WHO, v2=False)
    uids = [host.result(plugin_id, "who") for _ in range(3)]
    assert len({tuple(one) for one in uids}) == 3
    assert all(uid == gid >= 1_900_000_000 for uid, gid in uids)


def test_task_limit_is_counted_per_child(host):
    """A child that uses up its own leaves another child's untouched."""
    features = {"sandbox": {"features": ["processes"]}}
    greedy = host.up("acme.greedy", bombs.BOMBS, runtime=features)
    modest = host.up("acme.modest", bombs.BOMBS, runtime=features)
    first, second = host.result(greedy, "forks"), host.result(modest, "forks")
    assert first["errno"] == second["errno"] == "EAGAIN"
    assert first["count"] == second["count"] == 7


def test_kill_9_of_the_daemon_ends_children_of_other_uids():
    """PDEATHSIG is set again after the change of uid, which clears it."""
    with hosting.hosting(user=None) as host:
        host.up("acme.demo", programs.MOODY, runtime={"sandbox": {"features": ["processes"]}})
        host.result("acme.demo", "fork")
        host.daemon.until(lambda: len(host.processes()) == 8, "its processes, and process 1 of their namespace")
        tree = host.processes()
        host.daemon.kill()
        hosting.until_gone(tree)
