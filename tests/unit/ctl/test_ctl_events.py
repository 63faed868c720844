from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ctl import stream
from latticed.model import chain
from latticed.model.errors import Problem
from tests.house import terminals
from tests.house.api_server import event, problem, sse


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Replace pauses; the list of what they would have been."""
    pauses: list[float] = []
    monkeypatch.setattr("latticed.ctl.stream.time.sleep", pauses.append)
    return pauses


def lines(data: bytes) -> list[bytes]:
    return data.splitlines(keepends=True)


def test_event_stream_is_decoded_as_server_sent_events():
    """Comments and unknown fields are ignored, data lines joined, an id alone is a mark, a truncated event dropped."""
    said = b": hello\n\nretry: 5\nid: 7\nevent: x\ndata: a\ndata:b\n\nid: 9\n\r\ndata: no id\n\nid: 10\ndata: cut"
    assert list(stream.decode(lines(said))) == [stream.Sent("7", "a\nb"), stream.Sent("9", "")]


@pytest.mark.parametrize("name", ["", "-1", "x", "1.", ".5", "1.5.2", "\u0661"])
def test_invalid_event_id_is_a_bad_reply(name):
    with pytest.raises(Problem, match="bad_reply"):
        list(stream.decode(lines(f"id: {name}\ndata: x\n\n".encode())))


@given(st.lists(st.binary()))
def test_any_bytes_of_a_stream_are_decoded_or_a_bad_reply(chunks):
    """They give events with a valid id, or Problem("bad_reply")."""
    try:
        found = list(stream.decode(chunks))
    except Problem as refused:
        code = refused.code
    else:
        code = "bad_reply"
        assert all(chain.cursor(sent.at) is not None for sent in found)
    assert code == "bad_reply"


@given(st.lists(st.text(alphabet='ab \\"\u2028', max_size=5)), st.integers(0, 100))
def test_client_decodes_events_as_the_daemon_sent_them(reasons, start):
    """Their texts have quotes, backslashes and U+2028; at the end comes an id without data."""
    events = [event(start + at, reason=reason) for at, reason in enumerate(reasons)]
    found = list(stream.decode(lines(sse(*events, upto=999))))
    assert [json.loads(sent.data) for sent in found[:-1]] == events
    assert found[-1] == stream.Sent("999", "")


def test_events_without_follow_shows_the_newest_and_ends(ctl, api):
    """One aligned line per event, oldest first; host calls only on request."""
    api.events = [event(seq) for seq in range(1, 31)]
    api.events[28] |= {"action": "host.call", "actor": "plugin:acme.demo", "target": "kv.get"}
    api.override["GET status"] = (200, {"audit": {"seq": 30}})
    out = ctl("events").out.splitlines()
    assert [line.split()[0] for line in out] == [str(seq) for seq in [*range(10, 29), 30]]
    assert out[0].split("  ")[:4] == ["", "", "", "10"]
    assert out[0].split()[1:5] == ["2025-01-31T08:00:00Z", "plugin.status", "allow", "acme.demo"]
    assert len({line.index("allow") for line in out}) == 1
    assert [line.split()[0] for line in ctl("events", "--last", "2").out.splitlines()] == ["28", "30"]
    assert [line.split()[0] for line in ctl("events", "--last", "2", "--host-calls").out.splitlines()] == ["29", "30"]
    assert [line.split()[0] for line in ctl("events", "--after", "27").out.splitlines()] == ["28", "30"]


def test_events_accepts_since_as_old_name_of_after(ctl, api):
    """A hint names the new one."""
    api.events = [event(seq) for seq in range(1, 31)]
    ran = ctl("events", "--since", "28")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["29", "30"]
    assert ran.err == "hint: --since is called --after now; the old name is taken for this version only\n"
    assert "--since" not in ctl("events", "--help").out


def test_older_pages_are_read_until_enough_events_match(ctl, api):
    """Few of the newest events are of the plugin."""
    api.events = [event(seq, target="acme.other") for seq in range(1, 31)]
    api.events[0] |= {"target": "acme.demo"}
    api.events[1] |= {"actor": "plugin:acme.demo", "action": "host.call"}
    api.override["GET status"] = (200, {"audit": {"seq": 30}})
    assert len(ctl("events", "--last", "2", "--plugin", "acme.demo").out.splitlines()) == 1
    out = ctl("events", "--last", "2", "--plugin", "acme.demo", "--host-calls").out
    assert [line.split()[0] for line in out.splitlines()] == ["1", "2"]


def test_events_as_json_are_one_object_per_line(ctl, api):
    api.events = [event(1), event(2, reason="\u202e\x1b[2J")]
    ran = ctl("events", "--after", "0", "--format", "json")
    assert ran.data.isascii()
    assert [json.loads(line) for line in ran.out.splitlines()] == api.events


def test_text_of_plugins_in_events_is_escaped(ctl, api):
    api.events = [event(1, reason="\x1b[2Jgone", code="crashed")]
    out = ctl("events", "--after", "0").out
    assert "crashed: \\x1b[2Jgone" in out
    assert "\x1b" not in out


def test_events_show_no_detail_to_scope_read(ctl, api):
    row = event(1)
    del row["detail"]
    api.streams = [(200, sse(row, upto=1))]
    assert ctl("events", "--after", "0").out.split()[0] == "1"


@pytest.mark.parametrize("words", [(), ("--after", "1"), ("--last", "3", "--host-calls")])
def test_events_of_a_plugin_that_nobody_knows_are_an_error(ctl, api, words):
    """One that is there, or of which anything is on record, may have none to be shown."""
    api.events = [event(1, target="acme.gone")]
    ran = ctl("events", "--plugin", "acme.none", *words)
    assert (ran.code, ran.out, "error: no plugin acme.none\n" in ran.err) == (4, "", True)
    api.add("acme.quiet")
    for plugin_id in ("acme.quiet", "acme.gone"):
        assert ctl("events", "--plugin", plugin_id, "--after", "1").code == 0


def test_follow_says_that_there_is_no_such_plugin_yet_and_goes_on(ctl, api, hurried):
    """Its bundle may be about to come."""
    api.streams = [(200, sse(event(3, target="acme.soon"))), problem(403, "access_denied", "over")]
    ran = ctl("events", "-f", "--plugin", "acme.soon")
    assert (ran.code, ran.out.split()[2]) == (5, "plugin.status"), ran
    assert "there is no plugin acme.soon yet\n" in ran.err


def test_follow_resumes_after_a_restart_of_the_daemon(ctl, api, hurried):
    """No event is lost or shown twice; the pauses grow."""
    api.streams = [
        (200, sse(event(5), upto=6)),
        (200, b": latticed events\n\n"),
        problem(503, "service_unavailable"),
        (200, sse(event(7), event(8), upto=8)),
        problem(403, "access_denied"),
    ]
    ran = ctl("events", "-f", "--after", "4")
    assert ran.code == 5
    assert [line.split()[0] for line in ran.out.splitlines()] == ["5", "7", "8"]
    assert api.resumed == ["4", "6", "6", "6", "8"]


def test_daemon_that_goes_once_the_newest_are_shown_is_waited_for(ctl, api, hurried):
    api.events = [event(1), event(2)]
    api.override["GET status"] = (200, {"audit": {"seq": 2}})
    api.streams = [
        (200, sse(event(1), event(2), upto=2)),
        problem(503, "service_unavailable"),
        (200, sse(event(3), upto=3)),
        problem(403, "access_denied"),
    ]
    ran = ctl("events", "-f", "--last", "2")
    assert [line.split()[0] for line in ran.out.splitlines()] == ["1", "2", "3"]


def test_follow_without_after_starts_at_the_newest_event(ctl, api, hurried):
    """The first request has no Last-Event-ID; later ones have that of the last event."""
    api.streams = [
        (200, sse(upto=6)),
        (200, b""),
        problem(503, "service_unavailable"),
        (200, sse(event(7), upto=8)),
        problem(403, "access_denied"),
    ]
    ran = ctl("events", "-f")
    assert ran.code == 5
    assert [line.split()[0] for line in ran.out.splitlines()] == ["7"]
    assert api.resumed == ["", "6", "6", "6", "8"]
    assert ran.err.splitlines()[:2] == ["the daemon is gone; waiting for it to come back", "the daemon is back"]
    assert hurried == [0.1, 0.2, 0.4, 0.1]


def test_pauses_between_reconnects_are_bounded(ctl, api, hurried):
    """They grow to LONGEST_PAUSE_S and no further; a refusal (403) ends the retries."""
    api.streams = [(200, sse(upto=1)), *[problem(503, "service_unavailable")] * 12, problem(403, "access_denied")]
    assert ctl("events", "-f").code == 5
    assert max(hurried) == stream.LONGEST_PAUSE_S
    assert sorted(hurried) == hurried


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--after", "x"), 2),
        (("--after", "1", "--last", "2"), 2),
        (("--plugin", "NO"), 4),
    ],
)
def test_wrong_use_of_events_is_an_error(ctl, api, words, code):
    assert ctl("events", *words).code == code


@pytest.mark.parametrize(
    "words", [("events",), ("events", "-f"), ("events", "--after", "3"), ("events", "-f", "--after", "3")]
)
def test_daemon_never_reached_is_an_error_at_once(ctl, words):
    ran = ctl(*words, LATTICED_SOCKET="/nowhere/s")
    assert (ran.code, ran.data) == (7, b"")


@pytest.mark.parametrize(
    "said", [b"id: 1\ndata: {\n\n", b"id: 1\ndata: []\n\n", b'id: 1\ndata: {"seq": 1}\n\n', b"id: x\n\n"]
)
def test_event_stream_of_another_format_is_a_bad_reply(ctl, api, said):
    api.streams = [(200, said)]
    ran = ctl("events", "--after", "0")
    assert ran.code == 1
    assert "the daemon's answer has no proper" in ran.err


def test_ctrl_c_exits_130_without_traceback(api):
    """What was printed before the interrupt is flushed."""
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "LATTICED_SOCKET": str(api.socket)}
    api.events = [event(1)]
    child = subprocess.Popen(
        [sys.executable, "-m", "latticed.ctl.main", "events", "-f", "--after", "0"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    api.until_asked(3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert out.split()[0] == b"1"
    assert b"Traceback" not in err


def test_event_line_is_cut_to_the_terminal(api):
    master, slave = os.openpty()
    api.events = [event(1, reason="r" * 300, decision="deny", code="crashed")]
    try:
        environ = {"PYTHONPATH": os.pathsep.join(sys.path), "LATTICED_SOCKET": str(api.socket), "COLUMNS": "100"}
        command = [sys.executable, "-m", "latticed.ctl.main", "events", "--after", "0"]
        subprocess.run(command, stdout=slave, env={**environ, "TERM": "xterm", "LANG": "C.UTF-8"}, check=True)
    finally:
        shown = terminals.shown(master, slave).decode()
    assert "\x1b[31mdeny\x1b[0m" in shown
    (line,) = shown.replace("\x1b[31m", "").replace("\x1b[0m", "").splitlines()
    assert len(line) <= 100
