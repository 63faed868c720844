"""Callers are identified by the kernel (SO_PEERCRED), and one table says which scopes they have (contracts §7)."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess

import pytest

from latticed.rpc import routes
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
REFUSED_ONCE = _user(65525, READ_GID)  # nothing else is refused to it: repeated refusals are counted in later events
MANY_GROUPS = _user(65525, *range(100_000, 100_400), READ_GID)

SETTINGS = f"""
[access]
own_user = false
[access.users]
{READER.uid} = ["read"]
{OPERATOR.uid} = ["operate"]
{NOBODY.uid} = ["operate", "host", "trust"]
{HOST_BY_GROUP.uid} = ["operate"]
65526 = ["host"]
65527 = ["trust"]
65529 = ["operate", "host", "trust"]
[access.groups]
{READ_GID} = ["read"]
{HOST_GID} = ["host"]
"""

ROUTES = [
    tuple(line.split())
    for line in """
    GET /api/health -
    GET /api/status read
    GET /api/plugins read
    GET /api/plugins/lifecycle operate
    POST /api/plugins/lifecycle operate
    GET /api/plugins/brief read
    GET /api/plugins/rejected read
    POST /api/plugins/verify operate
    GET /api/plugins/by-id/{id} read
    POST /api/plugins/by-id/{id}/upgrade operate
    POST /api/plugins/by-id/{id}/rollback operate
    POST /api/plugins/by-id/{id}/restart operate
    POST /api/plugins/by-id/{id}/invoke operate
    GET /api/plugins/by-id/{id}/logs operate
    POST /api/plugins/by-id/{id}/forget operate
    GET /api/plugins/by-id/{id}/grants read
    PUT /api/plugins/by-id/{id}/grants operate
    GET /api/plugins/by-id/{id}/config host
    PUT /api/plugins/by-id/{id}/config host
    GET /api/plugins/by-id/{id}/usage operate
    GET /api/plugins/by-id/{id}/history read
    GET /api/audit operate
    GET /api/audit/verify operate
    GET /api/kv/{bucket} operate
    GET /api/kv/{bucket}/{key} operate
    PUT /api/kv/{bucket}/{key} operate
    DELETE /api/kv/{bucket}/{key} operate
    GET /api/secrets host
    PUT /api/secrets/{name} host
    DELETE /api/secrets/{name} host
    PUT /api/secrets/{name}/plugins/{id} host
    DELETE /api/secrets/{name}/plugins/{id} host
    GET /api/notifications operate
    POST /api/notifications/prune operate
    POST /api/notifications/test operate
    POST /api/notifications/{item}/retry operate
    GET /api/tasks operate
    POST /api/tasks/cancel operate
    GET /api/tasks/{task} operate
    POST /api/tasks/{task}/approve host
    POST /api/tasks/{task}/cancel operate
    GET /api/plans read
    GET /api/plans/{sha} read
    GET /api/market read
    POST /api/market/refresh operate
    GET /api/market/plugins read
    GET /api/market/plugins/{id} operate
    GET /api/market/plugins/{id}/bundle operate
    GET /api/market/outdated read
    POST /api/market/install operate
    POST /api/market/import operate
    PUT /api/market/holds/{id} operate
    DELETE /api/market/holds/{id} operate
    GET /api/ddns operate
    POST /api/ddns/{id}/{name}/retry operate
    GET /api/monitors operate
    GET /api/services operate
    GET /api/routes operate
    GET /api/events read
    GET /metrics read
    GET /openapi.json read
    GET /api/backup all
    GET /api/trust read
    POST /api/trust/foresee operate
    POST /api/trust/lift trust
    """.strip().splitlines()
]
"""Every route and the scope that it needs, repeated here by hand; `-`: none, `all`: all four."""

ALL = {"read", "operate", "host", "trust"}
CALLERS = {
    "none": (NAMELESS, set()),
    "read": (READER, {"read"}),
    "operate": (OPERATOR, {"read", "operate"}),
    "host": (_user(65526), {"host"}),
    "trust": (_user(65527), {"trust"}),
    "read+host by group": (_user(65528, READ_GID, HOST_GID), {"read", "host"}),
    "all": (_user(65529), ALL),
    "nobody": (NOBODY, set()),
}
"""Callers and their scopes."""

_MATRIX = """
import http.client, json, socket, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(sys.argv[1])
for method, path in json.loads(sys.argv[2]):
    connection = Connection("latticed")
    connection.request(method, path, b"" if method in ("GET", "DELETE") else b"{}")
    answer = connection.getresponse()
    print(json.dumps([answer.status, json.loads(answer.read())["detail"] if answer.status == 403 else ""]))
    connection.close()
"""


@pytest.fixture(scope="module")
def daemon():
    """A daemon whose socket every member of the group OPEN_GID can reach."""
    with daemons.placed(settings=SETTINGS) as place:
        place.trust_us(ACME)
        place.drop(author=ACME, capabilities=["kv:read", "http:egress"])
        for path in (place.home.parent, place.home, place.run):
            path.chmod(0o711)
        with place.running() as daemon:
            os.chown(place.socket, -1, OPEN_GID)  # what socket_group does for groups the user is in
            yield daemon


@pytest.fixture(scope="module")
def answered(daemon):
    """A function: the answers to one of `CALLERS` on each of `ROUTES`, as (status, detail of the refusal)."""

    @functools.cache
    def ask(caller):
        user, _ = CALLERS[caller]
        paths = [(method, re.sub(r"{\w+}", "no-such", path)) for method, path, _ in ROUTES]
        ran = subprocess.run(
            [processes.reachable_python(), "-I", "-c", _MATRIX, str(daemon.place.socket), json.dumps(paths)],
            capture_output=True,
            check=True,
            timeout=60,
            user=user.uid,
            group=user.gid,
            extra_groups=list(user.groups),
            cwd="/",
        )
        return [tuple(json.loads(line)) for line in ran.stdout.splitlines()]

    return ask


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("route", ROUTES, ids=" ".join)
def test_every_route_is_403_without_its_scope(daemon, answered, route, caller):
    """The refusal names the scope; with it any other status, as the requested things do not exist."""
    _, held = CALLERS[caller]
    needed = {"-": set(), "all": ALL}.get(route[2], {route[2]})
    status, words = answered(caller)[ROUTES.index(route)]
    assert (status == 403) == bool(needed - held), (status, words)
    if status == 403:
        assert any(scope in words for scope in needed), words
    assert daemon.plugin()["status"] == "verified"


def test_routes_of_this_test_are_all_routes_of_the_api():
    """New routes are added to ROUTES by hand."""
    assert [(method, path) for method, path, _ in ROUTES] == [(one.method, one.path) for one in routes.ROUTES]


def test_refused_request_is_audited(daemon):
    """The event has the caller's uid and the code access_denied."""
    before = daemon.get("/api/status").json()["audit"]["seq"]
    assert daemon.post("/api/trust/lift", {}, user=REFUSED_ONCE).status == 403
    found = daemon.events(after=str(before), action="api.refused")
    (event,) = [one for one in found if one["actor"].startswith(f"uid:{REFUSED_ONCE.uid} ")]
    assert (event["decision"], event["code"]) == ("deny", "access_denied")


def test_health_without_scope_read_shows_only_the_status(daemon):
    """With `read` the answer has problems, sandbox, notes and counts, too."""
    answer = daemon.get("/api/health", user=NAMELESS)
    assert (answer.status, answer.json()) == (200, {"status": "ok"})
    told = daemon.get("/api/health", user=READER).json()
    assert (told["status"], told["problems"], set(told)) == (
        "ok",
        [],
        {"status", "problems", "sandbox", "notes", "not_running"},
    )


def test_unknown_route_is_404_without_a_scope(daemon):
    assert daemon.get("/api/nothing", user=NAMELESS).status == 404


def test_scope_read_allows_only_reading_routes(daemon):
    assert daemon.get("/api/plugins", user=READER).status == 200
    assert daemon.get("/api/plugins/lifecycle", user=READER).status == 403
    refused = daemon.post("/api/plugins/lifecycle", {"id": "acme.demo", "status": "installed"}, user=READER)
    assert (refused.status, "operate" in refused.json()["detail"]) == (403, True)


def test_scopes_follow_supplementary_groups_of_the_peer(daemon):
    """SO_PEERGROUPS reports them; there may be hundreds."""
    assert daemon.get("/api/plugins", user=BY_GROUP).status == 200
    assert daemon.get("/api/plugins", user=MANY_GROUPS).status == 200
    assert daemon.get("/api/plugins/lifecycle", user=BY_GROUP).status == 403


def test_uid_65534_has_no_scope_even_if_named(daemon):
    assert daemon.get("/api/plugins", user=NOBODY).status == 403
    assert daemon.get("/api/health", user=NOBODY).json() == {"status": "ok"}


def test_daemons_own_user_has_no_scope_if_own_user_is_false(daemon):
    """The packaged settings have access.own_user = false."""
    assert daemon.get("/api/plugins", user=daemon.place.user).status == 403


@pytest.mark.parametrize(
    "consent", [{"accept": ["http:egress"]}, {"accept_hosts": ["example.org:443"]}, {"allow_downgrade": True}]
)
def test_accepting_host_risk_needs_scope_host(daemon, consent):
    """`operate` alone is not enough; nothing changes."""
    body = {"id": "acme.demo", "status": "installed", **consent}
    answer = daemon.post("/api/plugins/lifecycle", body, user=OPERATOR)
    assert (answer.status, "host" in answer.json()["detail"]) == (403, True)
    path = "/api/plugins/by-id/acme.demo/upgrade"
    assert daemon.post(path, consent, user=OPERATOR).status == 403
    assert daemon.plugin()["status"] == "verified"


def test_granting_host_risk_needs_scope_host_and_trimming_does_not(daemon):
    path = "/api/plugins/by-id/acme.demo/grants"
    assert daemon.ask("PUT", path, {"grant": ["http:egress"]}, user=OPERATOR).status == 403
    assert daemon.ask("PUT", path, {"grant": ["http:egress"]}, user=HOST_BY_GROUP).status == 200
    assert daemon.ask("PUT", path, {"trim": ["http:egress"]}, user=OPERATOR).status == 200


def test_audit_events_name_the_caller(daemon):
    """They have uid, user and pid of the peer; so have events of refusals."""
    daemon.post("/api/plugins/lifecycle", {"id": "acme.demo", "status": "active"}, user=OPERATOR)
    refused = daemon.events(target="acme.demo", action="plugin.status")[-1]
    assert refused["actor"].startswith(f"uid:{OPERATOR.uid} ")
    denied = daemon.events(action="api.refused")
    assert any(one["actor"].startswith(f"uid:{NAMELESS.uid} ") for one in denied)
    assert all(one["decision"] == "deny" and one["code"] == "access_denied" for one in denied)


def test_user_outside_the_sockets_group_cannot_connect(daemon):
    """connect(2) fails, and latticectl says that access is missing, not the daemon."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        daemon.get("/api/health", user=STRANGER)
    assert b"PermissionError" in caught.value.stderr


def test_reload_changes_scopes_of_users(acme_place):
    """Scopes are resolved when settings are loaded, and SIGHUP loads them."""
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
