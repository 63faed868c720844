"""The pages that people read first: the tasks that they answer, and what they say that a plugin sees."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from latticed.bundle import decode
from latticed.sdk.testing import Harness
from tests.house import bundles, pages

TASKS = pages.CHECKOUT / "docs/internals/reader-tasks.md"
AUTHORS = pages.CHECKOUT / "docs/write/README.md"
TUTORIAL = pages.CHECKOUT / "docs/start/tutorial.md"

MEETS = """#!/usr/bin/env python3
import os, socket, subprocess, threading

from latticed.sdk import Plugin


def said(attempt):
    try:
        attempt()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "fine"


class Meets(Plugin):
    def do_all(self, payload):
        return [
            said(lambda: subprocess.run(["true"])),
            said(os.fork),
            said(threading.Thread(target=print).start),
            said(lambda: open("/file", "w")),
            said(lambda: open("/tmp/file", "w")),
            said(lambda: socket.getaddrinfo("example.org", 80)),
            said(lambda: socket.create_connection(("192.0.2.1", 80), 2)),
            said(lambda: bytearray(1 << 30)),
            said(lambda: [open("/dev/null") for _ in range(200)]),
        ]


if __name__ == "__main__":
    Meets().run()
"""
FORKS = """#!/bin/sh
read -r request
names=$(ls / | head -1)
"""


def test_each_task_of_readers_has_its_section():
    """Test of links holds that page and heading exist."""
    rows = [line for line in pages.prose(TASKS).splitlines() if re.match(r"\| [A-Z\"]", line)]
    operators, authors = (part.count("\n| ") - 1 for part in pages.prose(TASKS).split("\n## ")[1:])
    assert (operators, authors) == (27, 15)
    assert len(rows) == 42
    for row in rows:
        assert re.search(r"\]\([^)]+#[^)]+\)", row), f"no section: {row}"


def test_the_readmes_plugin_is_that_of_the_tutorial():
    words = ("python", "tutorial", "acme.disks/artifact")
    short, whole = (block for block in pages.named(*words))
    assert {short.page, whole.page} == {pages.CHECKOUT / "README.md", TUTORIAL}
    assert short.text == whole.text


def test_parts_of_manifests_are_valid():
    for block in pages.named("json", "manifest-part"):
        signed = {"publisher": "acme", "digest_sha256": "ab" * 32, "signature_ed25519": "x"}
        raw = bundles.manifest_v2(**signed, **json.loads("{" + block.text + "}"))
        decode.decode(json.dumps(raw).encode())
    assert len(pages.named("json", "manifest-part")) == 2


def test_example_of_the_authors_guide_tells_once_and_shows_a_page():
    (block,) = [one for one in pages.blocks(AUTHORS) if one.language == "python"]
    names: dict[str, object] = {"__name__": "watch"}
    exec(compile(block.text, str(AUTHORS), "exec"), names)  # noqa: S102 - the page's own
    statuses = iter([200, 500, 500])
    answers = {
        "route.put": {"ok": True, "path": "/acme.watch/", "url": None, "message": ""},
        "http.do": lambda params: {"status_code": next(statuses), "header": {}, "body_base64": ""},
        "notify.send": {"ok": True, "id": "1", "duplicate": False},
    }
    declared = ["kv:read", "kv:write", "notify:send", "worker:route", "http:egress"]
    host = Harness(names["Watch"](), capabilities=declared, answers=answers)
    for _ in range(3):
        assert host.invoke("look")["ok"]
    assert [one.params["title"] for one in host.gate.calls if one.method == "notify.send"] == ["the API is down"]
    assert host.invoke("page", {})["result"]["body"] == "<h1>The API is down</h1>"


@pytest.mark.slow
def test_what_the_authors_guide_says_a_plugin_sees_is_what_it_sees(tmp_path):
    """In the real sandbox, without any feature."""
    tmp_path.chmod(0o755)
    stdio = {"protocol": "stdio-json-v1"}
    for name, text, runtime in (("meets", MEETS, {}), ("forks", FORKS, {"runtime": stdio})):
        (tmp_path / name).mkdir()
        fields = {"schema": "latticed.manifest.v2", "id": f"acme.{name}", "name": name, "type": "system"}
        manifest = {**fields, "version": "1.0.0", "capabilities": ["log:write"], **runtime}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
        (tmp_path / name / "artifact").write_text(text)
    met = _run(tmp_path / "meets", "all")
    said = [*json.loads(met.stdout), _run(tmp_path / "forks", "all").stderr]
    assert "fine" not in said
    section = pages.prose(AUTHORS).partition('### "Cannot fork"')[2]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    shown = {one for row in rows for one in re.findall(r"`([A-Za-z' -]+)`", row)}
    for text in said:
        assert any(one in text for one in shown), f"not on the page: {text}"


def _run(bundle, action):
    command = [sys.executable, "-P", "-m", "latticed.ctl.main", "run", str(bundle), action]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd="/")
