"""latticectl task: what is shown before an approval, and what is sent."""

from __future__ import annotations

import json

import pytest

from latticed.ctl import main
from tests.house import api_server

SHA = "ab" * 32
ROW = {
    "seq": 7,
    "id": "5c0f00",
    "plugin": "acme.demo",
    "name": "clean",
    "interpreter": "sh",
    "sha256": SHA,
    "state": "submitted",
    "code": "",
    "reason": "",
    "exit_code": None,
    "signal": None,
    "created_at": "2025-01-31T08:00:00.000000Z",
    "approved_at": None,
    "started_at": None,
    "ended_at": None,
}
WHOLE = {
    **ROW,
    "state": "failed",
    "code": "exited",
    "reason": "exited 3",
    "exit_code": 3,
    "script": "echo \x1b[2Jone\n\tdo two\n",
    "targets": ["web", "db"],
    "timeout_s": 30,
    "approved_by": "uid:0 user:root pid:1",
    "run": "r1",
    "stdout": "tail\n",
    "stderr": "",
    "stdout_bytes": 5_000,
    "stderr_bytes": 0,
    "truncated": True,
}


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The verb, wherever the table of verbs has it."""
    monkeypatch.setattr(main, "VERBS", {**main.VERBS, "task": main.Verb("data", "tasks")})


def test_task_list_shows_a_row_per_task(ctl, api):
    """Filters are sent as query parameters."""
    api.override["GET tasks"] = 200, {"tasks": [ROW, {**ROW, "id": "7d", "state": "failed", "signal": 9}], "next": None}
    ran = ctl("task", "list", "--state", "submitted", "--plugin", "acme.demo")
    assert ran.code == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[1][:5] == ["5c0f00", "submitted", "acme.demo", "clean", "sh"]
    assert "signal 9" in ran.out
    assert ctl("task", "list", "--format", "json").json["tasks"][0] == ROW


def test_task_show_prints_script_digest_and_output(ctl, api):
    """The script escaped, the digest in full, and a note where output was dropped."""
    api.override["GET tasks/5c0f00"] = 200, WHOLE
    out = ctl("task", "show", "5c0f00").out
    assert SHA in out
    assert "script:\n  echo \\x1b[2Jone\n      do two\n" in out
    assert "stdout (the beginning is gone):\n  tail\n" in out
    assert "stderr" not in out
    assert "exited: exited 3" in out
    assert ctl("task", "show", "5c0f00", "--format", "json").json == WHOLE
    api.override["GET tasks/nope"] = api_server.problem(404, "not_found", "there is no task 'nope'")
    assert ctl("task", "show", "nope").code == 4


def test_note_of_dropped_output_counts_bytes_not_characters(ctl, api):
    """Of two outputs only the other one was cut."""
    row = {
        **WHOLE,
        "truncated": True,
        "stdout": "\u00e9\u00e9\n",
        "stdout_bytes": 5,
        "stderr": "tail\n",
        "stderr_bytes": 99,
    }
    api.override["GET tasks/5c0f00"] = 200, row
    out = ctl("task", "show", "5c0f00").out
    assert "stdout:\n" in out
    assert "stderr (the beginning is gone):\n" in out


def test_task_approve_sends_the_digest(ctl, api):
    api.override["POST tasks/5c0f00/approve"] = 200, {**ROW, "state": "approved"}
    assert ctl("task", "approve", "5c0f00", SHA).out == "5c0f00 approved\n"
    assert json.loads(api.bodies[-1]) == {"sha256": SHA}
    assert ctl("task", "approve", "5c0f00").code == 2
    api.override["POST tasks/5c0f00/approve"] = api_server.problem(409, "digest_mismatch", "expected approval of …")
    assert ctl("task", "approve", "5c0f00", SHA).code != 0


def test_task_cancel_requests_one_task_or_all(ctl, api):
    api.override["POST tasks/5c0f00/cancel"] = 200, {**ROW, "state": "cancelled"}
    assert ctl("task", "cancel", "5c0f00").out == "5c0f00 cancelled\n"
    api.override["POST tasks/cancel"] = 200, {"cancelled": 3}
    assert ctl("task", "cancel", "--all").out == "3 cancelled\n"
    for words in ((), ("5c0f00", "--all")):
        assert ctl("task", "cancel", *words).code == 2
