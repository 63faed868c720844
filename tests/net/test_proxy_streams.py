"""Two users stream through a real sing-box: one is cut, through the core's own API, and the other never pauses."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import threading

import pytest

from latticed.system.proxy import api, applied, check, decode, devices, render, subscriptions, usage
from latticed.system.proxy.subscriptions import Format
from latticed.system.proxy.usage import Usage
from tests.house import cores, ports, processes, proxies

pytestmark = pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX)
CHUNK = 4_096


@pytest.fixture
def echo():
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(connection):
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65_536):
                connection.sendall(data)

    def accept():
        with contextlib.suppress(OSError):
            while True:
                thread = threading.Thread(target=serve, args=(listener.accept()[0],))
                thread.start()
                threads.append(thread)

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    accepting.join()
    for thread in threads:
        thread.join()


@pytest.fixture
def intent():
    users = [proxies.user("anna", quota_bytes=10 * CHUNK), proxies.user("ben", quota_bytes=1 << 40)]
    found = decode.read(
        proxies.document(
            proxies.shadowsocks(listen="127.0.0.1", port=ports.free()),
            host="127.0.0.1",
            api={**proxies.API, "port": ports.free()},
            users=users,
            reach_private=True,
        )
    )
    assert check.check(found) == ()
    return found


@contextlib.contextmanager
def served(intent, tmp_path):
    configuration = applied.config(applied.read(render.render(intent, proxies.secrets(intent))), 0)
    with cores.running(configuration, tmp_path, "server", intent.api.port) as core:
        yield core


@contextlib.contextmanager
def stream(intent, user, tmp_path, echo):
    """A connection of this user to the echo server, through a client of his own."""
    document = subscriptions.write(devices.links(intent, user, proxies.secrets(intent)), Format.SING_BOX)
    port = ports.free()
    with (
        cores.running(cores.client(document, port), tmp_path, f"client-{user}", port),
        socket.create_connection(("127.0.0.1", port), timeout=cores.PATIENCE_S) as sock,
    ):
        sock.sendall(f"CONNECT 127.0.0.1:{echo} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert b" 200 " in sock.recv(1_024)
        yield sock


def carried(sock):
    """Send a chunk and get it back."""
    sock.sendall(b"x" * CHUNK)
    got = 0
    while got < CHUNK:
        data = sock.recv(CHUNK)
        assert data
        got += len(data)


def asked(intent, path, body, *, secret=None):
    """An answer of the core's API."""
    known = secret or proxies.secrets(intent)[intent.api.secret]
    connection = http.client.HTTPConnection(str(intent.api.listen), intent.api.port, timeout=cores.PATIENCE_S)
    headers = {"Content-Type": api.CONTENT_TYPE, "Authorization": f"Bearer {known}"}
    connection.request("POST", path, body, headers)
    return connection, connection.getresponse()


def listed(intent):
    connection, answer = asked(intent, api.LIST_PATH, api.list_request())
    with contextlib.closing(connection):
        return api.connections(answer.read(api.frame_length(answer.read(api.HEADER_BYTES))))


def opened(intent):
    """Who has a connection."""
    return {one.user for one in listed(intent) if one.is_open}


def counted(intent, user, size):
    """What the core tells once it has counted that many bytes of a user each way: a moment after it has sent them."""
    told = []

    def is_told():
        told[:] = listed(intent)
        return any(min(one.up_bytes, one.down_bytes) >= size for one in told if one.user == user)

    processes.until(is_told, what=f"{size} bytes of {user}")
    return tuple(told)


def closed(intent, connection_id):
    connection, answer = asked(intent, api.CLOSE_PATH, api.close_request(connection_id))
    with contextlib.closing(connection):
        return api.refusal(answer.read())


def test_quota_cuts_one_and_the_other_never_pauses(intent, tmp_path, echo):
    quotas = {one.id: one.quota_bytes for one in intent.users}
    with (
        served(intent, tmp_path),
        stream(intent, "anna", tmp_path, echo) as anna,
        stream(intent, "ben", tmp_path, echo) as ben,
    ):
        for _ in range(4):
            carried(anna)
            carried(ben)
        state = usage.polled(Usage(), counted(intent, "anna", 4 * CHUNK))
        assert state.used["anna"].up_bytes >= 4 * CHUNK
        assert state.used["anna"].down_bytes >= 4 * CHUNK
        assert usage.over(state, {}, quotas, 0) == frozenset()
        carried(anna)
        # Kept and read again, as after a kill of the daemon: what was counted is not counted twice.
        told = counted(intent, "anna", 5 * CHUNK)
        state = usage.polled(usage.read(usage.written(state)), told)
        assert 10 * CHUNK <= state.used["anna"].total() < 11 * CHUNK
        off = usage.over(state, {}, quotas, 0)
        assert off == {"anna"}
        (connection,) = (one.id for one in told if one.user in off)
        for _ in range(2):  # the same again is no fault
            assert closed(intent, connection) == ""
        with contextlib.suppress(ConnectionError):
            assert anna.recv(1) == b""
        for _ in range(4):
            carried(ben)
        processes.until(lambda: opened(intent) == {"ben"}, what="the end of Anna's connection")
        assert usage.sources(listed(intent)) == {"ben": 1}


def test_a_core_that_is_killed_loses_no_usage_that_was_polled(intent, tmp_path, echo):
    with served(intent, tmp_path) as core, stream(intent, "ben", tmp_path, echo) as ben:
        carried(ben)
        state = usage.polled(Usage(), counted(intent, "ben", CHUNK))
        core.kill()
        core.wait()
    before = state.used["ben"]
    with served(intent, tmp_path), stream(intent, "ben", tmp_path, echo) as ben:
        carried(ben)
        state = usage.polled(state, counted(intent, "ben", CHUNK))
    assert 4 * CHUNK <= state.used["ben"].total() < 5 * CHUNK
    assert before.total() < 3 * CHUNK


def test_a_connection_that_ends_before_it_was_polled_is_counted_once(intent, tmp_path, echo):
    """Where the core tells it: of those that have ended it does of some."""

    def ended():
        told = []

        def is_over():
            told[:] = listed(intent)
            return not any(one.is_open for one in told)

        with stream(intent, "ben", tmp_path, echo) as ben:
            carried(ben)
        processes.until(is_over, what="the end of Ben's connection")
        return told

    with served(intent, tmp_path):
        told = next(filter(None, (ended() for _ in range(20))))
    state = Usage()
    for _ in range(2):
        state = usage.polled(usage.read(usage.written(state)), told[-1:])
        assert 2 * CHUNK <= state.used["ben"].total() < 3 * CHUNK
    assert usage.sources(told) == {}


def test_the_api_tells_nothing_without_its_secret(intent, tmp_path):
    with served(intent, tmp_path):
        connection, answer = asked(intent, api.LIST_PATH, api.list_request(), secret="x" * 20)
        with contextlib.closing(connection):
            # 16: unauthenticated
            assert (answer.read(), answer.getheader("grpc-status")) == (b"", "16")
        assert listed(intent) == ()


def test_frames_that_are_none_are_refused():
    for hostile in (b"", b"\0\0\0\0", b"\x80\0\0\0\1", b"\x01\0\0\0\1", struct.pack(">BI", 0, api.MAX_FRAME_BYTES + 1)):
        with pytest.raises(ValueError):
            api.frame_length(hostile)
    for hostile in (b"", b"\0\0\0\0\0", b"\x80\0\0\0\3abc", b"\0\xff\xff\xff\xff"):
        with pytest.raises(ValueError):
            api.refusal(hostile)
    assert api.refusal(b"\x80\0\0\0\x11grpc-status: 16\r\n") == "gRPC status 16"
