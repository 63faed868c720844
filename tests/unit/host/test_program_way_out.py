"""The way out of a network of a service's own: what it reaches and what it does not; with real programs and servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host import permissions
from latticed.host.call import HostError
from latticed.host.egress.guard import Guard
from latticed.host.program import hosts, way_out
from latticed.host.program.calls import ProgramCalls
from latticed.host.program.data import ServiceData
from latticed.host.program.hosts import ReachableHost
from latticed.host.program.keeper import ProgramKeeper, ProgramRights
from latticed.host.program.way_out import WayOutDeps
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.model import egress
from latticed.model.egress import EgressRights
from latticed.model.errors import Problem
from latticed.settings.programs import ServiceSettings
from tests.house import confinements
from tests.house.origins import Authority, answer, serving
from tests.unit.host.test_program_keeper import QUICK, A, until

PROGRAMS = {"python": "/usr/bin/python3", "node": "/usr/bin/node"}


@dataclass
class World:
    """Services whose plugin may connect where `rights` says; what was recorded is in `events`."""

    programs: ProgramKeeper
    calls: dict
    rights: EgressRights | None
    events: list = field(default_factory=list)
    contacts: list = field(default_factory=list)
    recorded: bool = True
    may: bool = True

    async def put(self, script, *, name="web", program="python", hosts=(), option="-c", **more):
        served = self.calls["service.put"]
        wanted = {"name": name, "program": program, "args": (option, script), "network": "own", "hosts": tuple(hosts)}
        return await served.answer(A, msgspec.convert({**wanted, **more}, served.params, strict=True))

    def bind(self, *origins, hosts=()):
        self.rights = EgressRights(origins=tuple(egress.origin(one) for one in origins), hosts=hosts)

    def said(self, name="web"):
        return self.programs.get(A.plugin_id, name).program.output()

    async def until_said(self, word, name="web"):
        program = self.programs.get(A.plugin_id, name).program
        await until(lambda: word in self.said(name)["stdout"], f"{word!r}: {program.view()}")

    def outcomes(self):
        return [(one.decision, one.code, one.detail["host"]) for one in self.events]


@pytest.fixture
async def here(tmp_path):
    clock = SystemClock()
    async with open_ledger(tmp_path / "state", clock=clock) as ledger:
        made = World(None, {}, EgressRights())

        async def record(event):
            if not made.recorded:
                raise Problem("audit_unavailable", "the disk is full")
            made.events.append(event)
            return 1

        made.programs = ProgramKeeper(
            ledger,
            clock=clock,
            spawner=confinements.Spawner(),
            settings=ServiceSettings(programs=PROGRAMS),
            rights=ProgramRights(
                refusal=lambda _: None if made.may else permissions.judge(permissions.UNKNOWN),
                way_out=WayOutDeps(
                    guard=Guard(connect_s=2, lookup_s=2),
                    rights=lambda _: made.rights,
                    record=record,
                    contacted=lambda plugin_id, host: made.contacts.append((plugin_id, host)),
                    clock=clock,
                ),
            ),
            policy=QUICK,
            data=ServiceData(tmp_path / "services"),
        )
        async with made.programs:
            made.calls = {one.method: one for one in ProgramCalls(made.programs).calls()}
            yield made


# Reaching what is granted.

NODE = """
const https = require('https'), ca = process.argv[1]
https.get('https://files.example.org:PORT/sub?x=1', {ca: ca}, (answer) => {
  let body = ''
  answer.on('data', (piece) => body += piece)
  answer.on('end', () => { console.log('got', answer.statusCode, body); setTimeout(() => {}, 1e6) })
}).on('error', (error) => { console.log('failed', error.code); setTimeout(() => {}, 1e6) })
"""


async def test_node_reaches_a_granted_host_by_plain_https(here):
    """It knows no proxy: the name resolves in there, TLS is end to end and verified against the real name."""
    if not os.path.exists(PROGRAMS["node"]):
        pytest.skip("node is not installed here")
    authority = Authority()
    async with serving(answer(b"from outside"), tls=authority.server("files.example.org")) as server:
        here.bind(f"https://files.example.org:{server.port}=127.0.0.1")
        script = NODE.replace("PORT", str(server.port)).replace(
            "process.argv[1]", repr(authority.certificate().decode())
        )
        await here.put(script, program="node", option="-e", hosts=[f"files.example.org:{server.port}"])
        await here.until_said("got 200 from outside")
        (seen,) = server.seen
        assert (seen.path, seen.sni) == ("/sub?x=1", "files.example.org")
        assert here.outcomes() == [("allow", "", f"files.example.org:{server.port}")]
        assert (here.events[0].action, here.events[0].target) == ("host.call", "service.connect")
        assert (here.events[0].actor, here.events[0].detail["service"]) == ("plugin:acme.a", "web")
        assert here.contacts == [(A.plugin_id, f"files.example.org:{server.port}")]


REACHES = """
import os, socket, sys, time
def reached(host, port):
    try:
        with socket.create_connection((host, port), timeout=5) as one:
            one.sendall(b'GET /x HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')
            return 'yes' if b'200' in one.recv(100) else 'closed'
    except OSError as error:
        return type(error).__name__
for text in TARGETS:
    host, _, port = text.rpartition(':')
    print(text, reached(host, int(port)), flush=True)
print('done', flush=True)
time.sleep(1000)
"""


async def test_only_named_hosts_and_ports_are_there(here):
    """Neither the host's loopback, nor private and metadata addresses, nor another port, nor another name."""
    async with serving(answer(b"yes")) as server, serving(answer(b"no")) as other:
        name = f"a.example.org:{server.port}"
        here.bind(f"http://{name}=127.0.0.1", f"http://b.example.org:{other.port}=127.0.0.1")
        targets = [
            name, f"a.example.org:{other.port}", f"b.example.org:{other.port}", f"127.0.0.1:{server.port}",
            f"127.0.0.1:{other.port}", "169.254.169.254:80", "10.0.0.1:80", "8.8.8.8:53", "latticed.invalid:80",
        ]  # fmt: skip
        await here.put(REACHES.replace("TARGETS", repr(targets)), hosts=[name])
        await here.until_said("done")
        said = dict(line.split(" ") for line in here.said()["stdout"].splitlines()[:-1])
        assert said.pop(name) == "yes"
        assert len(said) == len(targets) - 1
        assert set(said.values()) <= {"ConnectionRefusedError", "gaierror", "OSError"}, said
        assert (server.connections, other.connections) == (1, 0)


CONNECTS = """
import os, socket, time
def asked(text, more=b''):
    with socket.create_connection(('127.77.0.1', 3128), timeout=20) as one:
        one.sendall(text.encode() + more)
        said = b''
        while piece := one.recv(1000):
            said += piece
            if b'200 Connection' in said and b'\\r\\n\\r\\n' in said and b'HTTP/1.1 200 OK' not in said and not more:
                one.sendall(b'GET /x HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')
        return said
assert os.environ['HTTPS_PROXY'] == os.environ['https_proxy'] == 'http://127.77.0.1:3128'
for text in TEXTS:
    print(repr(text), asked(text).split(b'\\r\\n')[0].decode(), flush=True)
print(asked(TEXTS[0], b'GET /x HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n').count(b'200 OK'), 'early', flush=True)
print('done', flush=True)
time.sleep(1000)
"""


async def test_connect_proxy_takes_what_is_named_and_nothing_else(here):
    """Patterns too; a name that could be read in two ways, a plain GET and garbage are refused."""
    async with serving(answer(b"yes")) as server:
        port = server.port
        origins = [f"https://{name}:{port}=127.0.0.1" for name in ("a.example.org", "b.example.org", "localhost")]
        here.bind(*origins, f"http://127.0.0.1:{port}")
        hosts = [f"a.example.org:{port}", f"127.0.0.1:{port}"]
        texts = {
            f"CONNECT a.example.org:{port} HTTP/1.1\r\nHost: a\r\n\r\n": "200 Connection established",
            f"CONNECT A.Example.ORG.:{port} HTTP/1.0\r\n\r\n": "200 Connection established",
            f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n": "200 Connection established",
            f"CONNECT b.example.org:{port} HTTP/1.1\r\n\r\n": "403 Forbidden",
            f"CONNECT localhost:{port} HTTP/1.1\r\n\r\n": "403 Forbidden",
            "CONNECT a.example.org:1 HTTP/1.1\r\n\r\n": "403 Forbidden",
            f"CONNECT 2130706433:{port} HTTP/1.1\r\n\r\n": "400 Bad Request",
            f"CONNECT 127.1:{port} HTTP/1.1\r\n\r\n": "400 Bad Request",
            "CONNECT a.example.org:99999 HTTP/1.1\r\n\r\n": "400 Bad Request",
            f"GET http://a.example.org:{port}/ HTTP/1.1\r\n\r\n": "400 Bad Request",
            "\x16\x03\x01 no http\r\n\r\n": "400 Bad Request",
            f"CONNECT {'a' * 300}:1 HTTP/1.1\r\n\r\n": "400 Bad Request",
        }
        await here.put(CONNECTS.replace("TEXTS", repr(list(texts))), hosts=hosts)
        await here.until_said("done")
        lines = here.said()["stdout"].splitlines()
        for line, (text, status) in zip(lines, texts.items(), strict=False):
            assert line.endswith(f"HTTP/1.1 {status}"), (text[:80], line[-60:])
        assert "1 early" in lines
        denied = [(code, host) for decision, code, host in here.outcomes() if decision == "deny"]
        assert denied == [
            ("egress_blocked", f"b.example.org:{port}"), ("egress_blocked", f"localhost:{port}"),
            ("egress_blocked", "a.example.org:1"),
        ]  # fmt: skip


# Losing it.

HOLDS = """
import socket, sys, time
held = socket.create_connection(('a.example.org', PORT), timeout=20)
held.sendall(b'GET /hold HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n')
print('held', held.recv(100), flush=True)
held.settimeout(60)
try: print('over', held.recv(100), flush=True)
except OSError as error: print('over', type(error).__name__, flush=True)
try:
    with socket.create_connection(('a.example.org', PORT), timeout=5) as one: print('again', one.recv(100), flush=True)
except OSError as error: print('again', type(error).__name__, flush=True)
time.sleep(1000)
"""


@dataclass
class Silent:
    port: int = 0
    connections: int = 0
    open: int = 0


@contextlib.asynccontextmanager
async def holding(here):
    """A program that holds a connection to a server that says nothing more."""

    server = Silent()

    async def serve(reader, writer):
        server.connections += 1
        server.open += 1
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await reader.read()  # until it is cut
        server.open -= 1
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    here.bind(f"http://a.example.org:{server.port}=127.0.0.1")
    await here.put(HOLDS.replace("PORT", str(server.port)), hosts=[f"a.example.org:{server.port}"])
    await here.until_said("held b'HTTP/1.1 200 OK")
    yield server
    await here.programs.delete(A.plugin_id, "web")
    await until(lambda: not server.open)
    listening.close()
    await listening.wait_closed()


@pytest.mark.parametrize("how", ["unbound", "rebound", "no capability"])
async def test_connection_is_cut_when_its_host_is_taken_back(here, how):
    """At once, and the next one is refused, on record with what would allow it; the program itself runs on."""
    async with holding(here) as server:
        elsewhere = f"http://a.example.org:{server.port}=127.0.0.2"
        here.rights = {
            "unbound": EgressRights(),
            "rebound": EgressRights(origins=(egress.origin(elsewhere),)),
            "no capability": None,
        }[how]
        here.programs.recheck(A.plugin_id)
        await here.until_said("over b''" if how == "nothing" else "over ")
        await here.until_said("again ")
        assert "again b''" in here.said()["stdout"] or "again Connection" in here.said()["stdout"]
        assert server.connections == 1
        assert here.events[-1].decision == ("deny")
        assert here.programs.get(A.plugin_id, "web").program.state == "running"


async def test_nothing_is_left_of_it_when_the_plugin_may_not_act(here):
    """Also while the program is still in the grace period of its stop."""
    async with holding(here) as server:
        script = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n" + HOLDS
        await here.put(script.replace("PORT", str(server.port)), hosts=[f"a.example.org:{server.port}"])
        await until(lambda: server.connections == 2)
        await here.until_said("held b'HTTP/1.1 200 OK")
        here.may = False
        here.programs.recheck(A.plugin_id)
        await until(lambda: not server.open)
        await here.programs.drained(A.plugin_id)
        assert server.connections == 2
        assert here.programs.get(A.plugin_id, "web").way_out._connections == set()


async def test_what_cannot_be_recorded_is_not_connected(here):
    async with serving(answer(b"yes")) as server:
        name = f"a.example.org:{server.port}"
        here.bind(f"http://{name}=127.0.0.1")
        here.recorded = False
        await here.put(REACHES.replace("TARGETS", repr([name])), hosts=[name])
        await here.until_said("done")
        assert f"{name} yes" not in here.said()["stdout"]
        assert server.connections == 0


# Crowds and silence.

CROWD = """
import socket, threading, time
held = []
def one(number):
    with socket.create_connection(('a.example.org', PORT), timeout=60) as sock:
        sock.sendall(b'POST /%d HTTP/1.1\\r\\nContent-Length: 200000\\r\\n\\r\\n' % number + bytes(200000))
        said = b''
        while piece := sock.recv(65536): said += piece
        held.append(len(said))
threading.stack_size(256 << 10)  # 90 usual ones are more than the memory limit
threads = [threading.Thread(target=one, args=(number,)) for number in range(90)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print('done', len(held), set(held), flush=True)
time.sleep(1000)
"""


async def test_many_connections_take_turns_and_lose_no_byte(here, monkeypatch):
    """More than are joined at once: the others wait; bodies of both directions are whole."""
    monkeypatch.setattr(way_out, "MAX_CONNECTIONS", 8)
    monkeypatch.setattr(way_out, "RATE", way_out.Rate(per_second=10_000, burst=10_000))
    async with serving(answer(bytes(300_000))) as server:
        here.bind(f"http://a.example.org:{server.port}=127.0.0.1")
        await here.put(CROWD.replace("PORT", str(server.port)), hosts=[f"a.example.org:{server.port}"])
        await here.until_said("done 90 ")
        (size,) = here.said()["stdout"].split("{")[1].split("}")[0].split(", ")
        assert int(size) > 300_000
        assert {one.body for one in server.seen} == {bytes(200_000)}
        assert server.connections == 90, here.programs.get(A.plugin_id, "web").program.view()


async def test_rechecks_cut_no_connection_that_is_being_made(here):
    """They come at any moment, and most often while nothing has changed."""
    async with serving(answer(b"yes")) as server:
        name = f"a.example.org:{server.port}"
        here.bind(f"http://{name}=127.0.0.1")
        await here.put(REACHES.replace("TARGETS", repr([name] * 20)), hosts=[name])
        while "done" not in here.said()["stdout"]:
            here.programs.recheck(A.plugin_id)
            await asyncio.sleep(0)
        assert here.said()["stdout"].count("yes") == 20


async def test_services_together_leave_the_daemon_its_descriptors(here, monkeypatch):
    """Listeners of one more service are refused, and start once there is room; connections of all share places."""
    here.bind(hosts=tuple(f"h{number}.example.org:443" for number in range(30)))
    names = here.rights.hosts
    monkeypatch.setattr("latticed.kit.descriptors.limit", lambda: 8 * 40)
    script = "print('up', flush=True); import time; time.sleep(1000)"
    await here.put(script, hosts=names, name="one")
    await here.until_said("up", "one")
    await here.put(script, hosts=names, name="two")
    await until(lambda: here.programs.get(A.plugin_id, "two").program.state == "failed")
    assert "room for its hosts, found 31" in here.programs.get(A.plugin_id, "two").program.error[1]
    await here.programs.delete(A.plugin_id, "one")
    await here.put(script, hosts=names, name="two")
    await here.until_said("up", "two")


async def test_places_of_all_services_bound_connections(here):
    """With one place two connections are joined one after the other."""
    places = here.programs.rights.way_out.places
    while places._value > 1:
        await places.acquire()
    async with serving(answer(b"yes")) as server:
        name = f"a.example.org:{server.port}"
        here.bind(f"http://{name}=127.0.0.1")
        await here.put(REACHES.replace("TARGETS", repr([name] * 5)), hosts=[name])
        await here.until_said("done")
        assert here.said()["stdout"].count("yes") == 5
    await until(lambda: places._value == 1)


async def test_silent_connections_are_closed_after_a_while(here, monkeypatch):
    """Both one that asks the proxy nothing and one that says nothing once it is joined."""
    monkeypatch.setattr(way_out, "ASK_S", 0.2)
    monkeypatch.setattr(way_out, "IDLE_S", 0.2)
    async with holding(here):
        await here.until_said("over ")
    script = "import socket, time\none = socket.create_connection(('127.77.0.1', 3128))\n"
    script += "print('said', one.recv(10), flush=True); time.sleep(999)"
    here.bind("http://a.example.org:80=127.0.0.1")
    await here.put(script, hosts=["a.example.org:80"])
    await here.until_said("said b''")


# The rules.

RIGHTS = EgressRights(
    hosts=("api.example.org:443", "*.files.example.org:443", "*"),
    declared=("api.example.org:443", "*.files.example.org:443", "other.example.org:8443", "*.star.example.org:443"),
    origins=(egress.origin("http://backend.lan:8080=10.0.0.5"),),
)


@pytest.mark.parametrize(
    "asked",
    [
        "api.example.org:443", "API.example.org.:443", "https://api.example.org", "*.files.example.org:443",
        "a.files.example.org:443", "*.b.files.example.org:443", "backend.lan:8080", "*.star.example.org:443", "*",
    ],
)  # fmt: skip
def test_hosts_within_the_grants_are_taken(asked):
    assert len(hosts.checked([asked, asked], RIGHTS)) == 1


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        ("api.example.org:80", "egress_blocked"),
        ("www.example.org:443", "egress_blocked"),
        ("other.example.org:8443", "port not granted"),
        ("*.example.org:443", "egress_blocked"),
        ("backend.lan:8081", "egress_blocked"),
        ("files.example.org:443", "egress_blocked"),
        ("api.example.org", "bad_params"),
        ("127.1:443", "bad_params"),
        ("api.example.org:443/x", "bad_params"),
    ],
)
def test_other_hosts_are_refused(asked, word):
    with pytest.raises(HostError, match=word):
        hosts.checked([asked], RIGHTS)


@pytest.mark.parametrize("one", ["no host", "www.example.org:443", "*"])
def test_too_many_hosts_are_refused_before_each_is_judged(one):
    with pytest.raises(HostError, match="hosts: expected at most 64, found 65"):
        hosts.checked([one] * 65, RIGHTS)


def test_star_covers_what_the_guard_allows_and_needs_the_grant():
    any_host = ReachableHost(host="www.example.org", port=443)
    assert hosts.allowed(any_host, ("*",))
    assert not hosts.allowed(any_host, ("*.files.example.org:443", "api.example.org:443"))
    with pytest.raises(HostError, match="host not granted"):
        hosts.checked(["*"], EgressRights(hosts=("api.example.org:443",)))
    assert hosts.layout(("*",)).listen == (hosts.PROXY,)


async def test_hosts_need_the_network_own_and_the_capability(here):
    here.bind("http://a.example.org:80=127.0.0.1")
    with pytest.raises(HostError, match="hosts: expected the network own"):
        await here.put("pass", hosts=["a.example.org:80"], network="none")
    here.rights = None
    with pytest.raises(HostError, match="capability_not_granted"):
        await here.put("pass", hosts=["a.example.org:80"])
    here.rights = RIGHTS
    with pytest.raises(HostError, match="at most 64, found 65"):
        await here.put("pass", hosts=[f"h{number}.files.example.org:443" for number in range(65)])


def test_layout_gives_each_name_one_address():
    """Ports of one name share it; patterns, addresses and localhost are for the proxy alone."""
    found = hosts.layout(
        ("a.example:443", "a.example:80", "*.b.example:443", "10.0.0.1:80", "[::1]:80", "localhost:80", "c.example:443")
    )
    assert found.names == (("a.example", "127.77.1.1"), ("c.example", "127.77.1.2"))
    assert found.listen == (hosts.PROXY, ("127.77.1.1", 443), ("127.77.1.1", 80), ("127.77.1.2", 443))
    assert found.targets == (None, ReachableHost(host="a.example", port=443), ReachableHost(host="a.example", port=80),
                             ReachableHost(host="c.example", port=443))  # fmt: skip
    assert hosts.layout(()).listen == ()


@given(st.lists(st.sampled_from(["a", "b", "c", "d"]).map(lambda one: f"{one}.example.org"), max_size=64),
       st.integers(1, 65_535))  # fmt: skip
def test_no_two_targets_share_a_listener(names, port):
    found = hosts.layout(dict.fromkeys(f"{name}:{port}" for name in names))
    assert len(set(found.listen)) == len(found.listen) == len(found.targets)
