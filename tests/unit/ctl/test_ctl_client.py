from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from latticed.client.control import ApiRefusal, ControlClient
from latticed.ctl import exit_codes
from latticed.ctl.exit_codes import ExitCode
from latticed.model.errors import Problem
from tests.house import api_server


def test_missing_daemon_exits_7_as_not_running(ctl, tmp_path):
    """There is no socket, or no listener behind it; exit 5 is for missing permission."""
    ran = ctl("status", LATTICED_SOCKET=str(tmp_path / "none.sock"))
    assert ran.code == 7
    assert ran.err.startswith("error: the daemon is not running\nhint: ")
    assert str(tmp_path / "none.sock") in ran.err
    assert "systemctl start latticed, or without a unit, in another terminal: latticed;" in ran.err
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    assert ctl("status", LATTICED_SOCKET=str(tmp_path / "dead.sock")).code == 7
    assert ctl("status", LATTICED_SOCKET="/" + "x" * 200).code == 7
    assert ctl("status", LATTICED_SOCKET=f"{tmp_path}/none.sock/x").code == 7


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to become another user")
def test_socket_without_permission_exits_5_as_denied(api):
    """connect(2) fails with EACCES."""
    api.socket.chmod(0o600)
    for place in (api.socket.parent, *api.socket.parent.parents[:2]):
        place.chmod(0o755)
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.setresgid(65533, 65533, 65533)
            os.setresuid(65533, 65533, 65533)
            ControlClient(str(api.socket)).get("status")
        except Problem as problem:
            code = exit_codes.of(problem) if "you may not use its socket" in problem.reason else 98
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == ExitCode.DENIED


@pytest.mark.parametrize(
    ("method", "undone", "again"),
    [("get", False, True), ("put", False, True), ("delete", False, True), ("post", False, False), ("post", True, True)],
)
def test_stopping_daemon_is_asked_again_where_nothing_is_done_twice(api, method, undone, again):
    """Until one does not stop: what it did not begin, and what may be done twice (RFC 9110, 9.2.2)."""
    api.add()
    api.stopping = [undone, undone]
    words = ("plugins", "by-id", "acme.demo", "grants") if method != "post" else ("plugins", "rescan")
    body = {} if method in {"get", "delete"} else {"body": {"grant": [], "trim": []}}
    with pytest.raises(ApiRefusal) if not again else contextlib.suppress(ApiRefusal) as caught:
        getattr(ControlClient(str(api.socket)), method)(*words, **body)
    assert len(api.asked) == (3 if again else 1)
    assert again or caught.value.code == "stopping"


def test_what_a_broken_off_attempt_may_have_removed_is_not_said_to_be_missing(api):
    """Nor is it said to be removed: nobody knows. What no attempt began to remove is missing."""
    api.stopping = [True, False]
    with pytest.raises(ApiRefusal) as caught:
        ControlClient(str(api.socket)).delete("secrets", "token")
    assert (caught.value.code, len(api.asked)) == ("stopping", 3)
    api.stopping = [True]
    with pytest.raises(ApiRefusal) as caught:
        ControlClient(str(api.socket)).delete("secrets", "token")
    assert caught.value.status == 404


def test_get_is_retried_once_after_a_broken_connection(api):
    api.drop = 1
    assert ControlClient(str(api.socket)).get("plugins") == []
    assert api.asked == ["GET /api/plugins"] * 2
    api.drop = 2
    with pytest.raises(Problem) as caught:
        ControlClient(str(api.socket)).get("plugins")
    assert exit_codes.of(caught.value) is ExitCode.UNREACHABLE


def test_changing_request_is_not_retried(api):
    """The error says that it is unknown whether the change was carried out."""
    api.add()
    api.drop = 1
    with pytest.raises(Problem, match="closed the connection") as caught:
        ControlClient(str(api.socket)).post("plugins", "lifecycle", body={"id": "acme.demo", "status": "installed"})
    assert len(api.asked) == 1
    assert "not known" in caught.value.hint


@pytest.mark.parametrize(
    ("answer", "code", "detail"),
    [
        (api_server.problem(404, "not_found", "no such thing"), ExitCode.NOT_FOUND, "no such thing"),
        (api_server.problem(403, "access_denied", "this takes the scope operate"), ExitCode.DENIED, "scope operate"),
        (api_server.problem(409, "not_available"), ExitCode.FAILED, "simulated not_available"),
        (api_server.problem(503, "ledger_unavailable"), ExitCode.FAILED, "simulated ledger_unavailable"),
        ((500, b"<html>"), ExitCode.FAILED, "HTTP status 500"),
        ((500, [1, 2]), ExitCode.FAILED, "HTTP status 500"),
        ((418, {"title": "short and stout"}), ExitCode.FAILED, "short and stout"),
        ((200, b"\xff{"), ExitCode.FAILED, "not JSON"),
        ((200, {"a": 1}), ExitCode.FAILED, "no proper list of plugins"),
        ((200, [{"id": "acme.demo"}]), ExitCode.FAILED, "no proper runtime"),
        ((200, [{"runtime": {}}]), ExitCode.FAILED, "no proper runtime"),
        ((200, [7]), ExitCode.FAILED, "no proper list of plugins"),
    ],
)
def test_any_answer_ends_in_a_message_and_an_exit_code(ctl, api, answer, code, detail):
    """Problem documents are shown as they are, other answers as a bad reply; never a traceback."""
    api.override["GET plugins"] = answer
    ran = ctl("list")
    assert (ran.code, ran.data) == (code, b"")
    assert detail in ran.err


def test_problem_details_and_hints_are_escaped(ctl, api):
    api.override["GET plugins"] = api_server.problem(409, "x", "one\ntwo\x1b[2J", "hin\u202et")
    ran = ctl("list")
    assert ran.err == "error: one\\x0atwo\\x1b[2J\nhint: hin\\u202et\n"


def test_path_parts_of_requests_are_percent_encoded(api):
    """So are bytes that are not UTF-8; parts that would name another path are not sent."""
    client = ControlClient(str(api.socket))
    for key in ("a/b", "ü ?#%", os.fsdecode(b"\xff\xfe"), "a=b&c"):
        client.put_bytes("kv", "plugin:acme.demo", key, body=b"\0v")
        assert client.get_bytes("kv", "plugin:acme.demo", key) == b"\0v"
        assert ("plugin:acme.demo", key) in api.values
    for key in ("", ".", ".."):
        with pytest.raises(Problem, match="nothing is named"):
            client.get_bytes("kv", "b", key)


def test_refusal_keeps_its_code_and_status(api):
    with pytest.raises(ApiRefusal) as caught:
        ControlClient(str(api.socket)).get("plugins", "by-id", "acme.none")
    assert (caught.value.status, caught.value.code) == (404, "not_found")


@contextmanager
def _answering(path: Path, *answers: bytes | None) -> Iterator[None]:
    """A socket that sends raw bytes, one item per connection; None: sends nothing until the client disconnects."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with closing(connection):
                    connection.recv(65536)
                    if answer is not None:
                        connection.sendall(answer)
                    else:
                        while connection.recv(65536):
                            pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_silent_daemon_times_out(tmp_path):
    """It does so after `read_s` seconds, with the exit code of an unreachable daemon."""
    with _answering(tmp_path / "s", None):
        with pytest.raises(Problem, match="no answer within") as caught:
            ControlClient(str(tmp_path / "s"), read_s=0.05).get("status")
        assert exit_codes.of(caught.value) is ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n[1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Len",
    ],
)
def test_answer_that_is_cut_is_retried_once_then_unreachable(tmp_path, answer):
    """A truncated answer is never taken for complete."""
    with _answering(tmp_path / "s", answer, answer), pytest.raises(Problem) as caught:
        ControlClient(str(tmp_path / "s")).get("status")
    assert exit_codes.of(caught.value) is ExitCode.UNREACHABLE


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000,
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}}\r\n0\r\n\r\n",
    ],
)
def test_answer_that_is_no_proper_http_is_a_bad_reply(tmp_path, answer):
    """It is not asked for again: the peer would say the same."""
    with _answering(tmp_path / "s", answer), pytest.raises(Problem) as caught:
        ControlClient(str(tmp_path / "s")).get("status")
    assert caught.value.code == "bad_reply"


def test_answer_over_the_size_limit_is_an_error(api, monkeypatch):
    monkeypatch.setattr("latticed.client.control.MAX_REPLY_BYTES", 1000)
    api.override["GET plugins"] = (200, b"x" * 1001)
    with pytest.raises(Problem, match="longer than"):
        ControlClient(str(api.socket)).get("plugins")


def test_client_retries_connecting_while_the_backlog_is_full(tmp_path):
    """connect(2) fails with EAGAIN at once; the client retries until its connect timeout."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first = socket.socket(socket.AF_UNIX)
        with closing(first):
            first.connect(str(tmp_path / "s"))
            with pytest.raises(Problem) as caught:
                ControlClient(str(tmp_path / "s"), connect_s=0.05).get("status")
            assert exit_codes.of(caught.value) is ExitCode.UNREACHABLE
            accepted, _ = listener.accept()
            accepted.close()
