"""The agent of a fleet's host, from its invitation on: real server, real daemon, real processes and users."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import ssl
import stat
import subprocess
import tarfile
import threading
import time

import pytest

from latticed.fleet import agent_settings, documents, nkeys
from tests.house import agents, bundles, enrolling, fleets, long, processes
from tests.house.processes import until

pytestmark = [pytest.mark.daemon, pytest.mark.root, pytest.mark.timeout(600)]
ACME = bundles.author("acme")
SETTLE_S = 4 * processes.PATIENCE_S
MOST_MB = 45
"""Of a whole agent (10**6 bytes), as the issue has it."""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with enrolling.opened(tmp_path_factory.mktemp("fleet")) as opened:
        yield opened


@pytest.fixture
def own_fleet(tmp_path):
    """For a test that does something to its server."""
    with enrolling.opened(tmp_path / "fleet") as opened:
        yield opened


@pytest.fixture
def host():
    with agents.placed(ACME) as placed:
        yield placed


@pytest.fixture
def node(request):
    """A name of its own for each test."""
    return f"n-{abs(hash(request.node.nodeid)) % 10**8}"


def packed(host, plugin_id, **fields):
    """A bundle of this plugin as a file, and what an intent says of it."""
    directory = host.home / f"made-{plugin_id}-{len(list(host.home.iterdir()))}"
    directory.mkdir()
    made = bundles.drop(directory, plugin_id, id=plugin_id, author=ACME, **fields)
    path = directory / "bundle.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("manifest.json", "artifact"):
            tar.add(directory / plugin_id / name, name)
    return made, path


def intent(fleet, generation, *plugins, **fields):
    plain = {
        "fleet": enrolling.NAME,
        "generation": generation,
        "selector": documents.Selector(labels={"role": "web"}, nodes=()),
        "plugins": plugins,
        "back_to": (),
        "expires": int(time.time()) + 3_600,
    }
    return documents.Intent(**{**plain, **fields})


def wanted(plugin_id, version="1.0.0", **fields):
    return fleets.plugin(plugin_id, **{"identity": None, "versions": version, "publisher": "acme", **fields})


def settled(fleet, node, meant):
    name = documents.name_of(meant)

    def found():
        status = fleet.status(node)
        return status if status is not None and status.intent == name and status.settled else None

    return until(found, what="the node to have settled", deadline_s=SETTLE_S)


def credentials(host):
    return nkeys.UserCredentials.parse(host.state.credentials.read_bytes())


def test_host_joins_and_runs_the_first_plugin_that_an_operator_signs(fleet, host, node):
    with host.place.running() as daemon:
        joined = host.join(fleet.invitation(node))
        assert joined.returncode == 0, joined.stderr
        assert f"this host is {node} of the fleet home (role=web)" in joined.stdout
        with host.running() as agent:
            agent.until("connected; nothing assigned yet")
            made, path = packed(host, "acme.first", version="1.0.0")
            meant = intent(fleet, 1, wanted(made.id))
            fleet.desire(node, meant, {made.id: path})
            (row,) = settled(fleet, node, meant).plugins
            assert (row.version, row.status, row.state) == ("1.0.0", "active", "armed")
            assert daemon.plugin(made.id)["status"] == "active"
            agent.until("generation 1 settled")
        # The agent is gone; what it had the daemon run goes on.
        assert daemon.plugin(made.id)["runtime"]["state"] == "armed"
        with host.running() as agent:
            agent.until("generation 1 settled")


def test_what_is_pinned_is_root_s_and_secrets_are_the_agent_s_alone(fleet, host, node):
    assert host.join(fleet.invitation(node)).returncode == 0
    found = {path: path.stat() for path in (host.pinned, host.state.credentials, host.state.node / "key")}
    assert [(one.st_uid, stat.S_IMODE(one.st_mode)) for one in found.values()] == [
        (0, 0o644),
        (agents.AGENT.uid, 0o600),
        (agents.AGENT.uid, 0o600),
    ]
    assert stat.S_IMODE(host.state.node.stat().st_mode) == 0o700
    # Nothing of the invitation's own credentials is left.
    assert {one.name for one in host.state.link.iterdir()} == {"nats.creds"}
    os.chown(host.pinned, agents.AGENT.uid, 0)
    with host.running() as agent:
        assert agent.ended() == os.EX_CONFIG
        assert "fleet_state_invalid" in agent.log.read_text()


def test_host_of_no_fleet_says_which_command_mends_it(host):
    with host.running() as agent:
        assert agent.ended() == os.EX_CONFIG
    said = agent.log.read_text()
    assert "not_enrolled" in said
    assert "latticed-fleet join INVITATION" in said


def test_invitation_counts_once(fleet, host, node):
    """A copy on a second host is refused, also when the first one had it from a thief; the first may ask again."""
    invitation = fleet.invitation(node)
    first = host.join(invitation)
    assert first.returncode == 0, first.stderr
    key = fleet.office.joined[node].node_key
    with agents.placed() as other:
        refused = other.join(invitation)
        assert (refused.returncode, "enrolment_used" in refused.stderr) == (1, True), refused.stderr
        assert key in refused.stderr
        assert not other.pinned.exists()
        # Nor by another invitation of the same name, as long as the first host's key counts.
        named = other.join(fleet.invitation(node))
        assert "node_exists" in named.stderr
        fleet.office.revoked.add(key)
        again = other.join(fleet.invitation(node))
        assert again.returncode == 0, again.stderr
    assert fleet.office.joined[node].node_key != key


@pytest.mark.parametrize("change", ["operator", "nonce", "key", "credentials", "token", "half", "empty", "expired"])
def test_invitation_that_is_altered_is_refused_before_anybody_is_asked(fleet, host, node, change):
    import json

    plain = json.loads(fleet.invitation(node))
    other = json.loads(fleet.invitation(f"{node}-x"))
    match change:
        case "operator":
            stranger = fleets.STRANGER
            token = documents.read(json.dumps(plain["token"]).encode(), documents.EnrolmentToken).document
            plain["token"] = json.loads(documents.sign(token, stranger))
        case "nonce" | "token":
            plain["token"] = other["token"]
        case "key" | "credentials":
            plain[change] = other[change]
        case "expired":
            plain = json.loads(fleet.invitation(node, expires=int(time.time()) - 1))
    data = json.dumps(plain).encode()
    data = {"half": data[: len(data) // 2], "empty": b""}.get(change, data)
    asked = fleet.office.asked
    refused = host.join(data)
    code = "enrolment_expired" if change == "expired" else "enrolment_invalid"
    assert (refused.returncode, code in refused.stderr) == (1, True), refused.stderr
    assert "Traceback" not in refused.stderr
    assert fleet.office.asked == asked
    assert not host.pinned.exists()


def test_host_of_one_fleet_does_not_join_another_or_under_another_name(fleet, host, node, tmp_path_factory):
    assert host.join(fleet.invitation(node)).returncode == 0
    renamed = host.join(fleet.invitation(f"{node}-b"))
    assert "enrolled_already" in renamed.stderr
    assert "systemctl disable --now latticed-fleet" in renamed.stderr
    stranger = fleet.operator
    fleet.operator = fleets.STRANGER
    try:
        operators = (fleets.public(fleets.STRANGER),)
        other = host.join(fleet.invitation(node, operators=operators))
    finally:
        fleet.operator = stranger
    assert "operator_unknown" in other.stderr
    assert host.join(fleet.invitation(node), "--operator", fleets.public(fleets.STRANGER)).returncode == 1


def test_operator_whom_a_host_knows_as_revoked_invites_it_to_nothing(fleet, host, node):
    """Otherwise a stolen key would name the operators that the host is to believe from then on."""
    assert host.join(fleet.invitation(node)).returncode == 0
    kept = host.state.node / "state"
    pinned, state = host.pinned.read_bytes(), json.loads(kept.read_bytes())
    kept.write_text(json.dumps({**state, "revoked": [fleets.public(fleet.operator)]}))
    asked = fleet.office.asked
    again = host.join(fleet.invitation(node))
    assert (again.returncode, "operator_revoked" in again.stderr) == (1, True), again.stderr
    assert (host.pinned.read_bytes(), fleet.office.asked) == (pinned, asked)


@pytest.mark.parametrize("at_s", [0.0, 0.35, 0.5, 0.6, 0.7, *long.only(0.1, 0.2, 0.3, 0.4, 0.45, 0.55, 0.65, 0.8, 0.9)])
def test_host_that_was_killed_while_it_joined_joins_with_the_same_invitation(fleet, host, node, at_s):
    """Whatever it had done, and whether the controller had answered already or not."""
    invitation = fleet.invitation(node)
    process = subprocess.Popen(
        host.joining(invitation),
        env=host.place.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(at_s)
    process.kill()
    process.wait()
    again = host.join(invitation)
    assert again.returncode == 0, again.stderr
    assert host.pinned.exists()
    left = {path.name for path in host.state.directory.iterdir()}
    assert left == {"node", "link", "spool"}
    # And once more, now that nothing is left of the attempt: with the keys that it has.
    user = credentials(host).key.public
    more = host.join(invitation)
    assert more.returncode == 0, more.stderr
    assert credentials(host).key.public == user
    with host.place.running(), host.running() as agent:
        agent.until("connected; nothing assigned yet")


def test_host_whose_disk_takes_nothing_says_so_and_joins_when_it_does(fleet, host, node):
    """Whichever write it is that fails: the invitation is this host's, and it goes on with the keys that it has."""
    invitation = fleet.invitation(node)
    seen = set()
    for most in (0, 40, 200, 700, 1_100, 1_500):  # bytes of a file: what is smaller is written, what is larger fails
        limited = ["prlimit", f"--fsize={most}", "--", *host.joining(invitation)]
        done = subprocess.run(
            limited, env=host.place.environment(), cwd="/", capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            assert "cannot write" in done.stderr, done.stderr
            assert "Traceback" not in done.stderr
            seen.add(done.stderr.split("cannot write ")[1].split(":")[0])
    assert len(seen) > 2, seen
    joined = host.join(invitation)
    assert joined.returncode == 0, joined.stderr
    assert not [one for one in host.state.directory.rglob("*") if ".new" in one.name or one.name.startswith(".")]


def test_controller_that_does_not_answer_costs_nothing_but_time(fleet, host, node):
    invitation = fleet.invitation(node)
    fleet.office.silent = True
    try:
        refused = host.join(invitation, "--wait", "6")
    finally:
        fleet.office.silent = False
    assert "controller_unreachable" in refused.stderr
    assert "run this again" in refused.stderr
    # It had taken the request: the same host is given what it asked for.
    key = fleet.office.joined[node].node_key
    assert host.join(invitation).returncode == 0
    assert fleet.office.joined[node].node_key == key


def test_credentials_are_renewed_before_they_end(fleet, host, node):
    fleet.office.life_s = 30
    try:
        assert host.join(fleet.invitation(node)).returncode == 0
        first = credentials(host)
        fleet.office.life_s = 3_600
        with host.place.running(), host.running() as agent:
            agent.until("connected")
            until(lambda: credentials(host).expires_s > first.expires_s, what="new credentials", deadline_s=SETTLE_S)
            second = credentials(host)
            assert (second.key.public, second.name) == (first.key.public, node)
            # The server ends the connection of the old ones, and takes the new.
            agent.until("not connected: ")
            agent.until(": connected")
    finally:
        fleet.office.life_s = 14 * 86_400


def test_host_that_was_off_for_too_long_says_so_and_joins_anew_as_what_it_was(fleet, host, node):
    fleet.office.life_s = 1
    try:
        assert host.join(fleet.invitation(node)).returncode == 0
    finally:
        fleet.office.life_s = 14 * 86_400
    until(lambda: credentials(host).expires_s < time.time(), what="the credentials to end")
    with host.place.running():
        with host.running() as agent:
            assert "latticed-fleet join" in agent.until("the credentials ended")
        key, state = (host.state.node / "key").read_bytes(), (host.state.node / "state").read_bytes()
        again = host.join(fleet.invitation(node))
        assert again.returncode == 0, again.stderr
        assert "its key and its state are those that it had" in again.stdout
        assert ((host.state.node / "key").read_bytes(), (host.state.node / "state").read_bytes()) == (key, state)
        with host.running() as agent:
            agent.until("connected; nothing assigned yet")


@pytest.mark.parametrize("lost", ["all", "state"])
def test_host_whose_state_is_lost_joins_anew_once_its_key_is_revoked(fleet, host, node, lost):
    """Under another key: a floor of generations that is lost does not begin at zero under the one of before."""
    assert host.join(fleet.invitation(node)).returncode == 0
    key = fleet.office.joined[node].node_key
    if lost == "all":
        shutil.rmtree(host.state.directory)
    else:
        (host.state.node / "state").unlink()
        refused = host.join(fleet.invitation(node))
        assert f"remove {host.state.node}" in refused.stderr, refused.stderr
        shutil.rmtree(host.state.node)
    invitation = fleet.invitation(node)
    refused = host.join(invitation)
    assert (refused.returncode, "node_exists" in refused.stderr) == (1, True), refused.stderr
    fleet.office.revoked.add(key)
    joined = host.join(invitation)
    assert joined.returncode == 0, joined.stderr
    assert fleet.office.joined[node].node_key != key
    with host.place.running(), host.running() as agent:
        agent.until("connected; nothing assigned yet")


def test_host_that_was_revoked_comes_back_by_what_it_is_told(fleet, host, node):
    assert host.join(fleet.invitation(node)).returncode == 0
    key = fleet.office.joined[node].node_key
    fleet.office.revoked.add(key)
    invitation = fleet.invitation(node)
    refused = host.join(invitation)
    assert "node_revoked" in refused.stderr, refused.stderr
    assert f"remove {agent_settings.STATE}/node, then latticed-fleet join" in refused.stderr, refused.stderr
    shutil.rmtree(host.state.node)
    joined = host.join(invitation)
    assert joined.returncode == 0, joined.stderr
    assert "systemctl enable --now latticed-fleet" in joined.stdout
    assert fleet.office.joined[node].node_key != key
    with host.place.running(), host.running() as agent:
        agent.until("connected; nothing assigned yet")


def test_host_whose_pinned_token_is_damaged_keeps_its_key(fleet, host, node):
    assert host.join(fleet.invitation(node)).returncode == 0
    key = fleet.office.joined[node].node_key
    host.pinned.write_bytes(b"{")
    invitation = fleet.invitation(node)
    refused = host.join(invitation)
    assert "remove it; then latticed-fleet join" in refused.stderr, refused.stderr
    host.pinned.unlink()
    assert host.join(invitation).returncode == 0
    assert fleet.office.joined[node].node_key == key


def test_host_keeps_its_key_for_each_operator_whom_its_last_invitation_named(fleet, host, node):
    first = fleet.operator
    both = (*fleet.directory.facts.operators, fleets.public(fleets.SECOND))
    assert host.join(fleet.invitation(node)).returncode == 0
    assert host.join(fleet.invitation(node, operators=both)).returncode == 0
    key = (host.state.node / "key").read_bytes()
    host.pinned.unlink()
    fleet.operator = fleets.SECOND
    try:
        refused = host.join(fleet.invitation(node, operators=both))
    finally:
        fleet.operator = first
    assert "operator_unknown" in refused.stderr  # says the controller, which was not told of him
    assert (host.state.node / "key").read_bytes() == key


def test_host_that_left_a_fleet_begins_anew_in_another_one_of_the_same_name(fleet, own_fleet, host, node):
    """The operator's key of the one before is lost, say: what it has signed decides nothing any more."""
    assert host.join(own_fleet.invitation(node)).returncode == 0
    before = intent(own_fleet, 7)
    meant = intent(fleet, 1, selector=documents.Selector(labels={"role": "db"}, nodes=()))
    with host.place.running():
        with host.running() as agent:
            agent.until("connected")
            own_fleet.desire(node, before, {})
            settled(own_fleet, node, before)
        host.pinned.unlink()
        joined = host.join(fleet.invitation(node, labels={"role": "db"}))
        assert joined.returncode == 0, joined.stderr
        assert fleet.office.joined[node].node_key != own_fleet.office.joined[node].node_key
        with host.running() as agent:
            agent.until("connected")
            fleet.desire(node, meant, {})
            settled(fleet, node, meant)


def test_host_that_is_cut_off_runs_on_and_is_mended_by_another_invitation(own_fleet, host, node):
    """Its credentials are revoked in the servers; its key is not."""
    fleet = own_fleet
    assert host.join(fleet.invitation(node)).returncode == 0
    made, path = packed(host, "acme.cut", version="1.0.0")
    meant = intent(fleet, 1, wanted(made.id))
    with host.place.running() as daemon:
        with host.running() as agent:
            agent.until("connected")
            fleet.desire(node, meant, {made.id: path})
            settled(fleet, node, meant)
            fleet.cut_off(credentials(host).key.public)
            agent.until("not connected: ")
            assert daemon.plugin(made.id)["runtime"]["state"] == "armed"
        again = host.join(fleet.invitation(node))
        assert again.returncode == 0, again.stderr
        with host.running() as agent:
            agent.until(": connected; generation 1 settled")


@pytest.mark.parametrize("half", ["node", "link"])
def test_halves_end_together_and_the_next_start_goes_on(fleet, host, node, half):
    assert host.join(fleet.invitation(node)).returncode == 0
    made, path = packed(host, "acme.lives", version="1.0.0")
    meant = intent(fleet, 1, wanted(made.id))
    with host.place.running() as daemon:
        with host.running() as agent:
            agent.until("connected")
            fleet.desire(node, meant, {made.id: path})
            settled(fleet, node, meant)
            both = (agent.pid, agent.link)
            agents.kill(both[half == "link"])
            assert agent.ended() == (-signal.SIGKILL if half == "node" else 1)
            until(lambda: not any(map(agents.is_alive, both)), what="both halves to end")
        assert daemon.plugin(made.id)["runtime"]["state"] == "armed"
        with host.running() as agent:
            agent.until("generation 1 settled")


@pytest.mark.parametrize("number", range(long.times(2, 40)))
def test_agent_that_is_killed_at_any_moment_goes_on_to_what_was_wanted(fleet, host, node, number):
    """An intent of three plugins, of which each kill may find another step."""
    assert host.join(fleet.invitation(node)).returncode == 0
    packs = [packed(host, f"acme.k{one}", version="1.0.0") for one in range(3)]
    meant = intent(fleet, 1, *(wanted(made.id) for made, _ in packs))
    fleet.desire(node, meant, {made.id: path for made, path in packs})
    with host.place.running() as daemon:
        for after_s in (0.3, 0.5, 0.5 + 0.07 * number, 0.8 + 0.05 * number):
            with host.running() as agent:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    agent.process.wait(after_s)
                agents.kill(agent.pid)
                agent.ended()
        with host.running():
            settled(fleet, node, meant)
        assert {daemon.plugin(made.id)["status"] for made, _ in packs} == {"active"}


def test_agent_stops_at_once_and_nothing_else_does(fleet, host, node):
    assert host.join(fleet.invitation(node)).returncode == 0
    with host.place.running() as daemon, host.running() as agent:
        agent.until("connected")
        both = (agent.pid, agent.link)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.ended() == -signal.SIGTERM
        until(lambda: not any(map(agents.is_alive, both)), what="both halves to end")
        assert daemon.get("/api/health").status == 200


def test_daemon_and_engine_may_be_away(own_fleet, host, node):
    """It says so, and goes on when they are back: each by itself, and both."""
    fleet = own_fleet
    assert host.join(fleet.invitation(node)).returncode == 0
    made, path = packed(host, "acme.away", version="1.0.0")
    meant = intent(fleet, 1, wanted(made.id))
    fleet.desire(node, meant, {made.id: path})
    with host.running() as agent:
        agent.until("unreachable")
        with host.place.running() as daemon:
            settled(fleet, node, meant)
            fleet.server.stop()
            agent.until("not connected: ")
            assert daemon.plugin(made.id)["runtime"]["state"] == "armed"
        agent.until("unreachable")
        fleet.server.start()
        with host.place.running():
            agent.until(": connected; generation 1 settled")
            settled(fleet, node, meant)


def test_halves_share_no_descriptor_and_no_secret(fleet, host, node):
    assert host.join(fleet.invitation(node)).returncode == 0
    with host.place.running(), host.running() as agent:
        agent.until("connected; nothing assigned yet")
        halves = {"node": agent.pid, "link": agent.link}
        held = {
            name: {os.readlink(path) for path in _fds(pid)} - {"/dev/null", str(agent.log)}
            for name, pid in halves.items()
        }
        # Each end of the socketpair is an inode of its own; the pipe is what the link says how it is by.
        shared = held["node"] & held["link"]
        assert all(one.startswith("pipe:") for one in shared), held
        assert len(shared) == 1
        seccomp = {name: _status(pid)["Seccomp"] for name, pid in halves.items()}
        assert seccomp == {"node": "2", "link": "2"}
        assert {_status(pid)["NoNewPrivs"] for pid in halves.values()} == {"1"}
        assert [_status(pid)["Name"] for pid in halves.values()] == ["fleet-node", "fleet-link"]
        families = {name: _families(pid) for name, pid in halves.items()}
        assert families["node"] == set()
        assert families["link"] == {"tcp"}


def _fds(pid):
    place = f"/proc/{pid}/fd"
    return [f"{place}/{one}" for one in os.listdir(place)]


def _status(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        lines = [line.partition(":") for line in status]
    return {name: value.strip() for name, _, value in lines}


def _families(pid):
    """Which kinds of network sockets a process has."""
    mine = {os.readlink(one) for one in _fds(pid)}
    found = set()
    for name in ("tcp", "tcp6", "udp", "udp6"):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            inodes = {f"socket:[{line.split()[9]}]" for line in list(table)[1:]}
        if mine & inodes:
            found.add(name)
    return found


def test_whole_agent_fits_into_its_memory(fleet, host, node):
    """Beside the daemon that it serves, whose libraries it shares."""
    assert host.join(fleet.invitation(node)).returncode == 0
    made, path = packed(host, "acme.memory", version="1.0.0")
    meant = intent(fleet, 1, wanted(made.id))
    with host.place.running(), host.running() as agent:
        agent.until("connected")
        fleet.desire(node, meant, {made.id: path})
        settled(fleet, node, meant)
        found = {name: kib * 1024 / 1e6 for name, kib in agent.memory_kib().items()}
        print({name: f"{size:.1f} MB" for name, size in found.items()})
        assert found["Pss"] <= MOST_MB, found


class _Hostile:
    """A server with the fleet's certificate that says what it likes to whoever connects."""

    def __init__(self, fleet, speak):
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        below = fleet.directory.path / "servers/nats-1"
        self._context.load_cert_chain(below / "server.pem", below / "server.key")
        self._speak = speak
        self.met = threading.Event()
        self._writers = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._up = threading.Event()
        self._thread.start()
        assert self._up.wait(30)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._loop.close()

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self):
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._met, "127.0.0.1", 0, ssl=self._context)
        self.url = f"tls://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._up.set()
        await self._end.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)

    async def _met(self, reader, writer):
        self.met.set()
        self._writers.append(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await self._speak(reader, writer)


async def _huge(_reader, writer):
    writer.write(b"INFO {" + b'"x":"' + b"A" * (64 << 20))
    await writer.drain()
    await asyncio.sleep(3_600)


async def _slow(_reader, writer):
    for byte in b'INFO {"server_name":"x","version":"2.15.1","headers":true,"max_payload":1048576}' * 1_000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.2)


async def _garbage(_reader, writer):
    writer.write(os.urandom(4096) + b"\r\n")
    await writer.drain()
    await asyncio.sleep(3_600)


@pytest.mark.parametrize("speak", [_huge, _slow, _garbage])
def test_hostile_server_keeps_the_host_from_nothing(fleet, host, node, speak):
    """Neither does it end the half that signs, nor what runs; with the right server it goes on."""
    assert host.join(fleet.invitation(node)).returncode == 0
    with host.place.running() as daemon, _Hostile(fleet, speak) as hostile:
        host.configure(servers=[hostile.url])
        with host.running() as agent:
            agent.until("not connected")
            assert hostile.met.wait(processes.PATIENCE_S)
            pids = (agent.pid, agent.link)
            for _ in range(2):
                agent.until("WATCHDOG=1")
            assert all(map(agents.is_alive, pids))
            assert daemon.get("/api/health").status == 200
    host.configure()
    with host.place.running(), host.running() as agent:
        agent.until("connected; nothing assigned yet")


def test_settings_that_are_not_valid_name_what_is_wrong(fleet, host, node):
    assert host.join(fleet.invitation(node)).returncode == 0
    for line, said in (("spool_mib = 0", "spool_mib"), ("sockets = 1", "sockets"), ("x", "settings_invalid")):
        host.settings.write_text(line)
        with host.running() as agent:
            assert agent.ended() == os.EX_CONFIG
            assert said in agent.log.read_text()
