"""--dry-run, trust lift, completion in a real shell."""

from __future__ import annotations

import copy
import json
import subprocess

import pytest

from tests.house import api_server, processes


@pytest.mark.parametrize(
    ("verb", "status", "done"), [("install", "verified", "installed"), ("activate", "installed", "activated")]
)
def test_dry_run_shows_the_result_and_changes_nothing(ctl, api, verb, status, done):
    """It sends `dry_run`, and notes declared capabilities that are not granted, with the option that grants them."""
    api.add(status=status, capabilities=["kv:read", "http:egress"])
    before = copy.deepcopy(api.plugins)
    ran = ctl(verb, "acme.demo", "--dry-run")
    assert ran.code == 0
    assert ran.out.splitlines() == [f"acme.demo would be {done}: version 1.0.0", "granted: kv:read"]
    assert "nothing was changed: this was a dry run" in ran.err
    assert "hint: --accept http:egress" in ran.err
    assert api.plugins == before
    assert json.loads(api.bodies[-1])["dry_run"] is True
    assert "granted: http:egress, kv:read" in ctl(verb, "acme.demo", "--dry-run", "--accept", "http:egress").out
    assert ctl(verb, "acme.demo", "--dry-run", "--format", "json").json["id"] == "acme.demo"
    assert api.plugins == before


def test_dry_run_of_an_upgrade_shows_the_differences(ctl, api):
    api.add(status="active", candidate=copy.deepcopy(api_server.CANDIDATE))
    before = copy.deepcopy(api.plugins)
    assert ctl("upgrade", "acme.demo", "--dry-run").out.startswith("acme.demo would be upgraded: version 1.1.0\n")
    assert api.plugins == before
    api.plugins["acme.demo"]["candidate"]["needs_downgrade"] = True
    assert ctl("upgrade", "acme.demo", "--dry-run").code == 1


def test_dry_run_is_refused_like_the_change_itself(ctl, api):
    api.add(status="verified")
    assert ctl("activate", "acme.demo", "--dry-run").code == 1
    assert ctl("install", "acme.none", "--dry-run").code == 4
    api.add(status="active")
    assert ctl("activate", "acme.demo", "--dry-run").out.startswith("acme.demo already active")


def test_dry_run_field_is_absent_by_default(ctl, api):
    """An older daemon would refuse an unknown field."""
    api.add()
    ctl("install", "acme.demo")
    assert "dry_run" not in json.loads(api.bodies[-1])


@pytest.mark.parametrize(
    ("words", "body"),
    [
        (("--plugin", "acme.demo@1.0.0"), {"kind": "plugin", "value": "acme.demo@1.0.0"}),
        (("--plugin", "acme.demo@*"), {"kind": "plugin", "value": "acme.demo@*"}),
        (("--digest", "AB" * 32), {"kind": "digest", "value": "ab" * 32}),
        (("--key", "1" * 43), {"kind": "key", "value": "1" * 42 + "w="}),
    ],
)
def test_trust_lift_sends_the_revocation_by_kind_and_value(ctl, api, words, body):
    """They are spelt as the daemon does: digests in lower case, keys with padding."""
    if words[0] == "--key":
        words = ("--key", body["value"].rstrip("="))
    ran = ctl("trust", "lift", *words)
    assert (ran.code, ran.out) == (0, f"lifted: {body['kind']} {body['value']}\n")
    assert (api.asked[-1], json.loads(api.bodies[-1])) == ("POST /api/trust/lift", body)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (api_server.problem(404, "not_found"), 4),
        (api_server.problem(409, "still_revoked", hint="take it out of"), 1),
        (api_server.problem(403, "access_denied"), 5),
    ],
)
def test_refused_trust_lift_prints_the_hint_and_exits_with_its_code(ctl, api, answer, code):
    """404 gives exit code 4, 403 gives 5, 409 gives 1; nothing is on stdout."""
    api.override["POST trust/lift"] = answer
    ran = ctl("trust", "lift", "--plugin", "acme.demo@1.0.0")
    assert (ran.code, ran.data) == (code, b"")
    assert answer[1]["hint"] in ran.err


def test_what_the_file_still_revokes_is_answered_with_the_file_and_the_command_after_that(ctl, api):
    api.override["POST trust/lift"] = api_server.problem(409, "still_revoked", hint="take it out of the file first")
    ran = ctl("trust", "lift", "--plugin", "acme.demo@*")
    assert "`revoked.plugins` in /" in ran.err
    assert "trust.json, then: latticectl trust lift --plugin 'acme.demo@*'" in ran.err


@pytest.mark.parametrize(
    "words", [(), ("--plugin", "nonsense"), ("--key", "x"), ("--digest", "ff"), ("--plugin", "a@1", "--key", "x")]
)
def test_trust_lift_requires_exactly_one_value(ctl, api, words):
    assert ctl("trust", "lift", *words).code == 2
    assert api.asked == []


COMPLETE = """
source "$1"
COMP_WORDS=(latticectl {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="${{COMP_WORDS[*]}}"
{function} latticectl "${{COMP_WORDS[-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("exp", {"explain"}),
        ("install --dry", {"--dry-run"}),
        ("trust li", {"lift"}),
        ("events --fo", {"--follow", "--format"}),
    ],
)
def test_completion_works_in_a_real_bash(ctl, tmp_path, words, wanted):
    """The script loads, registers itself and completes verbs, sub-verbs and options."""
    script = tmp_path / "completion.bash"
    script.write_bytes(ctl("completion", "bash").data)
    bash = ["bash", "--norc", "--noprofile"]
    shown = subprocess.run(
        [*bash, "-euc", 'source "$1"; complete -p latticectl', "-", str(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=processes.PATIENCE_S,
    )
    assert shown.stderr == ""
    function = shown.stdout.split("-F ")[1].split()[0]
    ran = subprocess.run(
        [*bash, "-c", COMPLETE.format(words=words, function=function), "-", str(script)],
        capture_output=True,
        text=True,
        check=True,
        timeout=processes.PATIENCE_S,
    )
    assert set(ran.stdout.split()) == wanted, ran


def test_completion_for_fish_names_every_verb(ctl):
    script = ctl("completion", "fish")
    assert script.code == 0
    assert "complete -c latticectl" in script.out
    assert "explain" in script.out
