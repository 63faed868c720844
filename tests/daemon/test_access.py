"""Who asks is known by the kernel's word; what they may is one table (contracts §7)."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.house import bundles, daemons, processes

pytestmark = [pytest.mark.daemon, pytest.mark.root]

ACME = bundles.author("acme")
OPEN_GID, READ_GID, HOST_GID = 65510, 65511, 65512
STRANGER = processes.OTHER_STRANGER


def _user(uid, *groups):
    """Ids in the socket's group, so that the file mode lets them connect."""
    return processes.User(uid=uid, gid=OPEN_GID, groups=(OPEN_GID, *groups))


READER, OPERATOR, NOBODY = _user(65520), _user(65521), _user(65534)
BY_GROUP, HOST_BY_GROUP = _user(65522, READ_GID), _user(65523, HOST_GID)
NAMELESS = _user(65524)
MANY_GROUPS = _user(65525, *range(100_000, 100_400), READ_GID)

SETTINGS = f"""
[access]
own_user = false
[access.users]
{READER.uid} = ["read"]
{OPERATOR.uid} = ["operate"]
{NOBODY.uid} = ["operate", "host", "trust"]
{HOST_BY_GROUP.uid} = ["operate"]
[access.groups]
{READ_GID} = ["read"]
{HOST_GID} = ["host"]
"""

ROUTES = [
    ("GET", "/api/status", "read"),
    ("GET", "/api/plugins", "read"),
    ("GET", "/api/plugins/lifecycle", "operate"),
    ("POST", "/api/plugins/lifecycle", "operate"),
    ("GET", "/api/plugins/rejected", "read"),
    ("POST", "/api/plugins/verify", "operate"),
    ("GET", "/api/plugins/by-id/acme.demo", "read"),
    ("POST", "/api/plugins/by-id/acme.demo/upgrade", "operate"),
    ("POST", "/api/plugins/by-id/acme.demo/restart", "operate"),
    ("POST", "/api/plugins/by-id/acme.demo/forget", "operate"),
    ("GET", "/api/audit", "operate"),
    ("GET", "/api/audit/verify", "operate"),
    ("GET", "/api/kv/default", "operate"),
    ("GET", "/api/kv/default/key", "operate"),
    ("PUT", "/api/kv/default/key", "operate"),
    ("DELETE", "/api/kv/default/key", "operate"),
    ("POST", "/api/trust/lift", "trust"),
]


@pytest.fixture(scope="module")
def daemon():
    """A daemon whose socket everybody in OPEN_GID can reach."""
    with daemons.placed(settings=SETTINGS) as place:
        place.trust_us(ACME)
        place.drop(author=ACME, capabilities=["kv:read", "http:egress"])
        for path in (place.home.parent, place.home, place.run):
            path.chmod(0o711)
        with place.running() as daemon:
            os.chown(place.socket, -1, OPEN_GID)  # what socket_group does for groups the user is in
            yield daemon


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
def test_without_its_scope_every_route_is_403(daemon, method, path, scope):
    """The answer names the scope; nothing is done, and the refusal is on record."""
    body = {} if method in {"POST", "PUT"} else None
    answer = daemon.ask(method, path, body, user=NAMELESS)
    assert (answer.status, answer.code) == (403, "access_denied")
    assert scope in answer.json()["detail"]
    assert daemon.plugin()["status"] == "verified"


def test_health_asks_for_nothing_and_tells_nothing(daemon):
    """Status only without `read`."""
    answer = daemon.get("/api/health", user=NAMELESS)
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    told = daemon.get("/api/health", user=READER).json()
    assert (told["status"], told["problems"], set(told)) == (
        "ok",
        [],
        {"status", "problems", "sandbox", "notes", "not_running"},
    )


def test_the_wrong_route_tells_nothing_more_to_strangers(daemon):
    assert daemon.get("/api/nothing", user=NAMELESS).status == 404


def test_a_reader_reads_and_no_more(daemon):
    assert daemon.get("/api/plugins", user=READER).status == 200
    assert daemon.get("/api/plugins/lifecycle", user=READER).status == 403
    refused = daemon.post("/api/plugins/lifecycle", {"id": "acme.demo", "status": "installed"}, user=READER)
    assert (refused.status, "operate" in refused.json()["detail"]) == (403, True)


def test_groups_count_by_the_kernels_word(daemon):
    """SO_PEERGROUPS: supplementary groups, hundreds of them too."""
    assert daemon.get("/api/plugins", user=BY_GROUP).status == 200
    assert daemon.get("/api/plugins", user=MANY_GROUPS).status == 200
    assert daemon.get("/api/plugins/lifecycle", user=BY_GROUP).status == 403


def test_uid_65534_is_nobody_whatever_was_granted(daemon):
    assert daemon.get("/api/plugins", user=NOBODY).status == 403
    assert daemon.get("/api/health", user=NOBODY).json() == {"status": "ok"}


def test_the_daemons_own_user_has_nothing_here(daemon):
    """access.own_user = false, the packaged setting."""
    assert daemon.get("/api/plugins", user=daemon.place.user).status == 403


@pytest.mark.parametrize(
    "consent", [{"accept": ["http:egress"]}, {"accept_hosts": ["example.org:443"]}, {"allow_downgrade": True}]
)
def test_consent_to_host_risk_takes_the_scope_host(daemon, consent):
    """`operate` alone is not enough; nothing changes."""
    body = {"id": "acme.demo", "status": "installed", **consent}
    answer = daemon.post("/api/plugins/lifecycle", body, user=OPERATOR)
    assert (answer.status, "host" in answer.json()["detail"]) == (403, True)
    path = "/api/plugins/by-id/acme.demo/upgrade"
    assert daemon.post(path, consent, user=OPERATOR).status == 403
    assert daemon.plugin()["status"] == "verified"


def test_granting_host_risk_takes_host_and_trimming_does_not(daemon):
    path = "/api/plugins/by-id/acme.demo/grants"
    assert daemon.ask("PUT", path, {"grant": ["http:egress"]}, user=OPERATOR).status == 403
    assert daemon.ask("PUT", path, {"grant": ["http:egress"]}, user=HOST_BY_GROUP).status == 200
    assert daemon.ask("PUT", path, {"trim": ["http:egress"]}, user=OPERATOR).status == 200


def test_events_name_who_asked(daemon):
    """uid, user and pid of the peer; refusals too."""
    daemon.post("/api/plugins/lifecycle", {"id": "acme.demo", "status": "active"}, user=OPERATOR)
    refused = daemon.events(target="acme.demo", action="plugin.status")[-1]
    assert refused["actor"].startswith(f"uid:{OPERATOR.uid} ")
    denied = daemon.events(action="api.refused")
    assert any(one["actor"].startswith(f"uid:{NAMELESS.uid} ") for one in denied)
    assert all(one["decision"] == "deny" and one["code"] == "access_denied" for one in denied)


def test_whom_the_file_mode_keeps_out_cannot_even_ask(daemon):
    """Not in the socket's group: the kernel refuses the connection, latticectl says which of the two it is."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        daemon.get("/api/health", user=STRANGER)
    assert b"PermissionError" in caught.value.stderr


def test_a_reload_changes_who_may(acme_place):
    """Scopes are resolved at load; SIGHUP loads."""
    with acme_place.running() as daemon:
        os.chown(acme_place.socket, -1, OPEN_GID)
        assert daemon.get("/api/plugins", user=NAMELESS).status == 403
        acme_place.set(f'[access.users]\n{NAMELESS.uid} = ["read"]')
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: daemon.get("/api/plugins", user=NAMELESS).status == 200, "the new scope")


@pytest.fixture
def acme_place():
    with daemons.placed() as place:
        place.trust_us(ACME)
        for path in (place.home.parent, place.home, place.run):
            path.chmod(0o711)
        yield place
