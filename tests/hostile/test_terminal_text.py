"""Terminal escapes, bidi and invisible characters reach no terminal, log line or audit row raw, by any way in."""

from __future__ import annotations

import json
import unicodedata
from urllib.parse import quote

import pytest

from tests.house import bundles, corpora, daemons, raw_http

pytestmark = pytest.mark.daemon

ROWS = corpora.rows("text_injection.json")
ACME = bundles.author("acme")
UNSEEN = {"Cc", "Cf", "Zl", "Zp"}


def _raw(text):
    """The characters of `text` that must not reach a terminal."""
    return sorted({char for char in text if unicodedata.category(char) in UNSEEN and char != "\n"})


@pytest.fixture(scope="module")
def told():
    """A daemon to which every string of the suite was given in every place that takes one."""
    with daemons.placed() as place:
        place.trust_us(ACME)
        for number, row in enumerate(ROWS):
            text = row["s"]
            bundles.write(place.plugins / f"name-{number}", bundles.manifest_v1(name=text))
            bundles.write(place.plugins / f"key-{number}", bundles.manifest_v1(**{text: ""}))
            bundles.write(place.plugins / f"capability-{number}", bundles.manifest_v1(capabilities=[text]))
            if "/" not in text and "\0" not in text and text not in {"", ".", ".."} and len(text.encode()) < 250:
                (place.plugins / text).mkdir(exist_ok=True)
        with place.running() as daemon:
            for row in ROWS:
                _tell(daemon, row["s"])
            yield daemon


def _tell(daemon, text):
    answers = [
        daemon.post("/api/plugins/verify", {"name": text}),
        daemon.set_status("installed", text),
        daemon.set_status(text, "acme.demo"),
        daemon.set_status("installed", "acme.demo", accept=[text]),
        daemon.post("/api/plugins/lifecycle", {text: 1}),
        daemon.post("/api/trust/lift", {"kind": text, "value": text}),
        daemon.get(f"/api/plugins?{quote(text)}=1"),
        daemon.get(f"/api/plugins/by-id/{quote(text, safe='')}"),
        daemon.get(f"/api/audit?target={quote(text)}"),
        daemon.get(f"/api/audit?since={quote(text)}"),
        daemon.ask("PUT", f"/api/kv/default/{quote(text, safe='')}", b"x"),
        raw_http.ask(daemon.place.socket, "GET", f"/api/{quote(text, safe='')}"),
    ]
    for answer in answers:
        assert answer.status < 500, (text, answer)
        assert answer.body.isascii(), answer
        assert not _raw(answer.body.decode()), answer


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["status"],
        ["rejected"],
        ["audit", "query"],
        ["audit", "query", "--format", "json"],
        ["rejected", "--format", "json"],
        ["kv", "list", "default"],
        ["health"],
    ],
    ids=" ".join,
)
def test_latticectl_prints_no_raw_control_characters(told, words):
    """It prints none as text or as JSON, on either stream."""
    ran = told.ctl(*words)
    assert ran.returncode == 0, ran
    assert _raw(ran.stdout + ran.stderr) == []
    if "json" in words:
        json.loads(ran.stdout)


def test_latticectl_escapes_its_own_arguments_in_errors(told):
    one_of_each = {row["cls"]: row["s"] for row in ROWS}
    for text in one_of_each.values():
        if "\0" not in text and not text.startswith("-"):
            ran = told.ctl("info", text)
            assert ran.returncode in {2, 4}, ran
            assert _raw(ran.stdout + ran.stderr) == [], (text, ran)


def test_log_has_no_raw_control_characters(told):
    """Every line is JSON and printable, and none is forged."""
    text = told.log_file.read_bytes().decode()
    assert _raw(text) == []
    for entry in told.log():
        assert {"ts", "level", "event"} <= set(entry)


def test_audit_events_have_no_raw_control_characters(told):
    """Refused text is recorded escaped; the chain verifies."""
    events = told.events()
    assert events
    for event in events:
        assert _raw(json.dumps(event, ensure_ascii=False)) == [], event
    assert told.get("/api/audit/verify").json()["ok"] is True
