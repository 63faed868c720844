"""Which changes of a core's file can wait: users who go or come, and nothing else. And how long its API may take."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time

import pytest

from latticed.model.errors import Problem
from latticed.plans import proxy_api
from latticed.system.proxy import applied, decode, ends, render
from latticed.system.proxy.intent import Core
from tests.house import proxies


def file_of(document):
    intent = decode.read(document)
    return intent.core, applied.config(applied.read(render.render(intent, proxies.secrets(intent))), 0)


def document(*users, **changes):
    return proxies.document(proxies.trojan(tag="tr"), proxies.hysteria(tag="hy"), users=list(users), **changes)


DORA = proxies.user("dora")
ANNA, BEN, FAST = proxies.user("anna"), proxies.user("ben"), proxies.user("cleo", inbounds=["hy"])


@pytest.mark.parametrize(
    ("before", "after", "gone", "come"),
    [
        (document(ANNA, BEN), document(ANNA, BEN), set(), set()),
        (document(ANNA, BEN), document(ANNA), {"ben"}, set()),
        (document(ANNA), document(ANNA, BEN), set(), {"ben"}),
        (document(ANNA), document(BEN), {"anna"}, {"ben"}),
        (document(ANNA), document(ANNA, FAST), set(), {"cleo"}),
    ],
)
def test_users_who_go_and_come_are_told(before, after, gone, come):
    core, old = file_of(before)
    moved = applied.moves(core, old, file_of(after)[1])
    assert moved == applied.Moves(gone=frozenset(gone), come=frozenset(come))


@pytest.mark.parametrize(
    "after",
    [
        document(ANNA, proxies.user("ben", label="ben.2")),
        document(ANNA, proxies.user("ben", inbounds=["hy"])),
        document(ANNA, BEN, reach_private=True),
        proxies.document(proxies.trojan(tag="tr", port=4_444), proxies.hysteria(tag="hy"), users=[ANNA, BEN]),
        # Nobody is left of those before, and the port is another one.
        proxies.document(proxies.trojan(tag="tr", port=4_444), proxies.hysteria(tag="hy"), users=[FAST, DORA]),
    ],
)
def test_every_other_change_cannot_wait(after):
    core, old = file_of(document(ANNA, BEN))
    assert applied.moves(core, old, file_of(after)[1]) is None


@pytest.mark.parametrize("seed", range(40))
def test_who_is_cut_can_come_back_to_the_same_file(seed):
    """Where an inbound has gone with its last user, it comes back at once only."""
    made = proxies.sound(random.Random(seed))
    core, whole = file_of(made)
    off = frozenset(one["id"] for one in made["users"][::2])
    cut = ends.cut(made, off)
    _, less = file_of(cut)
    moved = applied.moves(core, whole, less)
    assert moved is not None
    assert (moved.gone <= off, moved.come) == (True, frozenset())
    back = applied.moves(core, less, whole)
    if len(cut["inbounds"]) == len(made["inbounds"]):
        assert back == applied.Moves(gone=frozenset(), come=moved.gone)
    elif core is Core.SING_BOX:
        assert back is None


@contextlib.contextmanager
def dripping():
    """A server that never comes to the end of an answer, a byte at a time."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError), listener.accept()[0] as connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n\0\0\1\0\0")
            for _ in range(6_000):
                connection.sendall(b"x")
                time.sleep(0.02)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield {"listen": "127.0.0.1", "listen_port": listener.getsockname()[1], "secret": "x"}
    finally:
        listener.close()
        thread.join()


@pytest.mark.parametrize("first", [True, False])
def test_an_api_that_drips_is_given_up(first):
    """It would be read for ever: each byte comes well within any timeout of a read."""
    with dripping() as service, pytest.raises(Problem) as failed:
        proxy_api.asked(service, "/", b"", time.monotonic() + 0.5, first=first)
    assert failed.value.code == "tool_failed"


def test_time_that_is_over_is_over_for_all_calls_that_share_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        service = {"listen": "127.0.0.1", "listen_port": listener.getsockname()[1], "secret": "x"}
        with pytest.raises(Problem):
            proxy_api.asked(service, "/", b"", time.monotonic())
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_core_that_was_silent_is_waited_for_once_and_not_held_against_it_for_ever(monkeypatch):
    now = [100.0]
    given = []

    def asked(service, path, body, until, *, first=False):
        given.append(round(until - now[0], 3))
        now[0] = until
        raise Problem("tool_failed", "no answer")

    monkeypatch.setattr(proxy_api.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(proxy_api, "asked", asked)
    api = proxy_api.CoreApi()
    for _ in range(4):
        assert api.connections({}, 7) is None
        assert (api.is_silent(7), api.hangs(7)) == (True, False)
    # Another process under way since is not the one that was silent.
    assert not api.is_silent(8)
    now[0] += proxy_api.REMEMBERED_S
    assert not api.is_silent(7)
    assert api.connections({}, 7) is None
    whole, short = proxy_api.ANSWER_S, proxy_api.SILENT_S
    assert given == [whole, short, short, short, whole]
    assert api.hangs(7)
    nobody = b"\x10\x01"  # the list from its beginning, without a connection
    monkeypatch.setattr(proxy_api, "asked", lambda *_, **__: nobody)
    assert api.connections({}, 7) == ()
    assert (api.is_silent(7), api.hangs(7)) == (False, False)
