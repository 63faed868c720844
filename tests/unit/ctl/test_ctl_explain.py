from __future__ import annotations

from typing import Any

import pytest

from latticed.ctl import advice, decode
from latticed.model.verdict import OTHER_SCHEMA, Code
from tests.house import api_server
from tests.house.api_server import event, plugin

DIGEST = "ab" * 32


def facts(view: dict[str, Any] | None = None, **known: Any) -> advice.RemedyFacts:
    """The daemon's answers about acme.demo."""
    code = known.pop("code", None)
    rejected = [
        {"name": "bad", "hint": "", "reason": "r", "id": "acme.demo", **row} for row in known.pop("rejected", [])
    ]
    return advice.RemedyFacts(
        plugin_id="acme.demo",
        view=decode.plugin(view) if view else None,
        verdict={"ok": code is None, "code": code, "reason": "r"},
        grants={
            "masked": known.get("masked", []),
            "declared": known.pop("masked", []),
            "hosts": known.pop("hosts", []),
            "permits": known.pop("permits", []),
            "withheld": known.pop("withheld", []),
        },
        causes=known.pop("causes", {}),
        denials=[decode.event(event(9 - at, **row)) for at, row in enumerate(known.pop("denials", []))],
        rejected=list(decode.rejected(rejected)),
        policy=known.pop("policy", ""),
        directory="/plugins",
    )


def active(state: str = "armed", **more: Any) -> dict[str, Any]:
    runtime = {"state": state, "runner": "noop", "health": "unknown", "message": "", **more.pop("runtime", {})}
    return plugin(status="active", runtime=runtime, **more)


def denied(code: str = "capability_not_granted", target: str = "http.do") -> dict[str, Any]:
    return {"action": "host.call", "decision": "deny", "code": code, "target": target}


def causes(**found: Any) -> dict[str, Any]:
    return {"refusal": None, "signs": [], "working": [], **found}


def refused(code: str, hint: str = "") -> dict[str, Any]:
    return causes(refusal={"code": code, "detail": "expected a, found b", "hint": hint})


def fixed(fix: str, **more: Any) -> dict[str, Any]:
    return {**denied("egress_blocked"), "detail": {"fix": fix}, "reason": "host not granted: x", **more}


UPGRADE = "latticectl upgrade acme.demo"
BAD = {"code": "exited", "reason": "status 3", "at": "2026-01-31T08:00:00Z"}
GRANT = "latticectl caps grant acme.demo"


@pytest.mark.parametrize(
    ("found", "command"),
    [
        # What would refuse the next step: the daemon's command, else what we know of the code.
        (
            facts(plugin(status="installed"), causes=refused("needs_consent", f"{UPGRADE} --accept x")),
            f"{UPGRADE} --accept x",
        ),
        (
            facts(plugin(status="installed"), causes=refused("dependency_unmet", "latticectl activate b")),
            "latticectl activate b",
        ),
        (facts(plugin(), causes=refused("version_downgrade")), "latticectl install acme.demo --allow-downgrade"),
        (facts(plugin(status="disabled"), causes=refused("sandbox_unavailable", "sysctl x")), "latticectl health"),
        (facts(plugin(status="disabled"), causes=refused("a_later_code", "do it")), "latticectl info acme.demo"),
        (
            facts(
                active(candidate=api_server.CANDIDATE),
                causes=causes(upgrade={"code": "needs_consent", "detail": "d", "hint": f"{UPGRADE} --accept level=x"}),
            ),
            f"{UPGRADE} --accept level=x",
        ),
        # What was accepted is refused, and the plugin directory has another version that verifies.
        (facts(active("failed", candidate=api_server.CANDIDATE), code="key_revoked"), UPGRADE),
        (facts(plugin(status="disabled", candidate=api_server.CANDIDATE), code="plugin_revoked"), UPGRADE),
        (
            facts(
                active("failed", candidate={**api_server.CANDIDATE, "bad": BAD}),
                code="key_revoked",
                causes=causes(upgrade={"code": "candidate_bad", "detail": "d", "hint": f"{UPGRADE} --retry"}),
            ),
            f"{UPGRADE} --retry",
        ),
        # What stderr gives away, dead or alive, until it is granted.
        (facts(active(), causes=causes(signs=[{"sign": "cannot_fork", "value": ""}])), f"{GRANT} feature=processes"),
        (facts(active(), causes=causes(signs=[{"sign": "cannot_thread", "value": ""}])), f"{GRANT} feature=threads"),
        (
            facts(active(), causes=causes(signs=[{"sign": "cannot_fork", "value": ""}]), permits=["feature=processes"]),
            "",
        ),
        (facts(active("failed"), causes=causes(signs=[{"sign": "missing_module", "value": "x"}])), UPGRADE),
        (facts(active(runtime={"health": "degraded"})), "latticectl logs acme.demo"),
        (
            facts(
                active(), causes=causes(denied_records=[{"name": "home.example.org", "code": "denied", "reason": "r"}])
            ),
            "latticectl ddns retry acme.demo home.example.org",
        ),
        # Denials: what a grant lifts comes first, what is granted or went well since is over.
        (facts(active(), denials=[fixed("host=a.example:443")]), f"{GRANT} host=a.example:443"),
        (facts(active(), denials=[fixed("host=a.example:443")], hosts=["a.example:443"]), ""),
        (facts(active(), denials=[fixed("host=a.example:443")], hosts=["*.example:443"]), ""),
        (facts(active(), denials=[fixed("host=a.example:443")], hosts=["*"]), ""),
        (
            facts(active(), denials=[fixed("host=a.example:25", reason="port not granted: 25")], hosts=["*"]),
            f"{GRANT} host=a.example:25",
        ),
        (facts(active(), denials=[fixed("origin=http://b:80=10.0.0.5")]), f"{GRANT} origin=http://b:80=10.0.0.5"),
        (facts(active(), denials=[fixed("origin=http://b:80=10.0.0.5")], permits=["origin=http://b:80=10.0.0.5"]), ""),
        (
            facts(active(), denials=[fixed("secret=TOKEN", code="bad_params")]),
            "latticectl secret bind TOKEN acme.demo",
        ),
        (facts(active(), denials=[denied("rate_limited")]), "latticectl top"),
        (facts(active(), denials=[denied("rate_limited")], causes=causes(working=["http.do"])), ""),
        (facts(active(), denials=[denied("not_found", "static.get")]), ""),
        (facts(active(), denials=[denied("not_found", "kv.steal")]), "latticectl version"),
        (facts(active(), denials=[denied("bad_params")]), "latticectl logs acme.demo"),
        (
            facts(active(runtime={"started_at": "2026-01-01T00:00:00.000000Z"}), denials=[denied("bad_params")]),
            "",
        ),
        (
            facts(active(), denials=[denied("bad_params", "kv.put"), fixed("host=a.example:443")]),
            f"{GRANT} host=a.example:443",
        ),
        (
            facts(rejected=[{"code": "manifest_invalid", "hint": OTHER_SCHEMA}]),
            "latticectl version",
        ),
    ],
)
def test_explain_names_the_command_for_each_cause(found, command):
    assert advice.advice(found).command == command


@pytest.mark.parametrize(
    ("found", "command"),
    [
        (
            facts(
                active("failed", builtin=True, candidate=api_server.CANDIDATE),
                code="version_downgrade",
                causes=causes(upgrade={"code": "version_downgrade", "detail": "d", "hint": ""}),
            ),
            f"{UPGRADE} --allow-downgrade",
        ),
        (
            facts(
                active("failed", builtin=True, candidate=api_server.CANDIDATE),
                code="needs_consent",
                causes=causes(
                    upgrade={"code": "needs_consent", "detail": "d", "hint": f"{UPGRADE} --accept dependency=acme.b"}
                ),
            ),
            f"{UPGRADE} --accept dependency=acme.b",
        ),
        (facts(active("failed", builtin=True), code="manifest_missing"), "latticectl disable acme.demo"),
        (facts(plugin(status="disabled", builtin=True), code="manifest_missing"), "latticectl forget acme.demo"),
        (
            facts(active("failed", builtin=True), code="plugin_revoked"),
            "latticectl trust lift --plugin acme.demo@1.0.0",
        ),
        (facts(plugin(builtin=True), code="manifest_invalid"), "latticectl version"),
    ],
)
def test_explain_of_a_built_in_plugin_names_no_bundle(found, command):
    """It lies in no plugin directory: latticed is what to run another version of."""
    said = advice.advice(found)
    assert said.command == command
    assert "/plugins" not in said.command + said.why


@pytest.mark.parametrize(
    ("error", "withheld", "command"),
    [
        (("out_of_memory", "m"), ["limit=memory_mib:512"], f"{GRANT} limit=memory_mib:512"),
        (("cpu_exceeded", "m"), ["limit=cpu_percent:default"], f"{GRANT} limit=cpu_percent:default"),
        (("output_too_large", "m"), ["limit=stdout_kib:4096"], f"{GRANT} limit=stdout_kib:4096"),
        (("fuel_exhausted", "m"), ["limit=memory_mib:9", "limit=fuel:1000"], f"{GRANT} limit=fuel:1000"),
        (("deadline_exceeded", "m"), ["limit=invoke_timeout_s:20"], f"{GRANT} limit=invoke_timeout_s:20"),
        (("file_too_large", "m"), ["feature=workdir"], f"{GRANT} feature=workdir"),
        # Nothing that a grant would lift was withheld: the limit is the manifest's own, or that of the settings.
        (("out_of_memory", "m"), ["limit=open_files:512"], "latticectl restart acme.demo"),
        (("out_of_memory", "m"), [], "latticectl restart acme.demo"),
        (("output_too_large", "m"), [], UPGRADE),
        (("too_many_host_calls", "m"), ["limit=memory_mib:512"], "latticectl restart acme.demo"),
    ],
)
def test_explain_names_the_grant_that_lifts_a_limit(error, withheld, command):
    code, message = error
    view = active("failed", runtime={"last_error": {"code": code, "message": message}})
    assert advice.advice(facts(view, withheld=withheld)).command == command


def test_explain_gives_no_advice_for_a_running_plugin():
    assert advice.advice(facts(active())).command == ""


@pytest.mark.parametrize(
    ("found", "command"),
    [
        (facts(plugin()), "latticectl install acme.demo"),
        (facts(plugin(status="installed")), "latticectl activate acme.demo"),
        (facts(plugin(status="disabled")), "latticectl activate acme.demo"),
        (facts(active("stopped")), "latticectl wait acme.demo --for active"),
        (facts(active("failed")), "latticectl restart acme.demo"),
        (
            facts(active("failed", runtime={"last_error": {"code": "breaker_open", "message": "5 times"}})),
            "latticectl restart acme.demo",
        ),
        (
            facts(active("failed", runtime={"next_retry_at": "2099-01-01T00:00:00Z"})),
            "latticectl wait acme.demo --for active",
        ),
        (facts(active(runtime={"health": "unhealthy"})), "latticectl restart acme.demo"),
        (facts(active(candidate=api_server.CANDIDATE)), "latticectl upgrade acme.demo"),
        (facts(active(candidate={**api_server.CANDIDATE, "bad": BAD})), ""),
        (facts(active(upgrade={"state": "gating", "version": "2", "before": "1"})), ""),
        (
            facts(active(candidate={**api_server.CANDIDATE, "needs_downgrade": True})),
            "latticectl upgrade acme.demo --allow-downgrade",
        ),
        (
            facts(active(), denials=[denied()], masked=["http:egress"]),
            "latticectl caps grant acme.demo cap=http:egress",
        ),
        (
            facts(active(), denials=[denied("rate_limited", "kv.get"), denied()], masked=["http:egress"]),
            "latticectl caps grant acme.demo cap=http:egress",
        ),
        (facts(active(), denials=[denied()], masked=[]), ""),
        (facts(active(), denials=[denied("capability_denied")], masked=["http:egress"]), ""),
        (facts(active(), denials=[denied("capability_denied")]), "latticectl upgrade acme.demo --accept http:egress"),
        (
            facts(active(), rejected=[{"code": "publisher_changed", "publisher": "other"}]),
            "latticectl upgrade acme.demo --accept-publisher other",
        ),
        (facts(active(), rejected=[{"code": "duplicate_id", "name": "twin"}]), "rm -r /plugins/twin"),
        (
            facts(
                plugin(available=False),
                code="publisher_changed",
                rejected=[{"code": "publisher_changed", "publisher": "other"}],
            ),
            "latticectl upgrade acme.demo --accept-publisher other",
        ),
        (facts(active("failed"), code="manifest_missing"), "latticectl disable acme.demo"),
        (facts(plugin(status="disabled"), code="manifest_missing"), "latticectl forget acme.demo"),
        (
            facts(active("failed"), code="digest_mismatch", rejected=[{"code": "digest_mismatch"}]),
            "latticectl verify /plugins/bad",
        ),
        (
            facts(active("failed"), code="digest_mismatch"),
            "latticectl disable acme.demo && latticectl forget acme.demo && latticectl install acme.demo",
        ),
        (facts(rejected=[{"code": "foreign_owner"}]), "chown root /plugins/bad/manifest.json /plugins/bad/artifact"),
        (
            facts(rejected=[{"code": "publisher_untrusted", "publisher": "acme"}]),
            "latticectl trust add acme KEY",
        ),
        (
            facts(rejected=[{"code": "key_revoked", "publisher": "acme"}]),
            "latticectl trust add acme NEWKEY",
        ),
        (
            facts(rejected=[{"code": "publisher_untrusted", "hint": "if it may: latticectl trust add a K --ids b"}]),
            "latticectl trust add a K --ids b",
        ),
        (
            facts(rejected=[{"code": "capability_not_allowed", "hint": "drop the capability"}]),
            "latticectl trust show",
        ),
        (
            facts(rejected=[{"code": "plugin_revoked", "version": "1.2.0"}]),
            "latticectl trust lift --plugin acme.demo@1.2.0",
        ),
        (facts(plugin(), code="digest_revoked"), f"latticectl trust lift --digest {DIGEST}"),
        (facts(rejected=[{"code": "duplicate_id", "name": n} for n in ("a", "b", "c")]), "rm -r /plugins/b /plugins/c"),
        (
            facts(rejected=[{"code": "manifest_invalid", "name": "a b; rm -rf $HOME"}]),
            "latticectl verify '/plugins/a b; rm -rf $HOME'",
        ),
        (facts(rejected=[{"code": "code_of_a_later_daemon"}]), "latticectl rejected --hints"),
        (facts(rejected=[{"code": "publisher_untrusted"}], policy="no such file"), "latticectl trust show"),
        (facts(plugin(status="installed"), policy="no such file"), "latticectl trust show"),
        (facts(active(), policy="no such file"), ""),
        (facts(rejected=[{"code": "digest_mismatch"}], policy="no such file"), "latticectl verify /plugins/bad"),
    ],
)
def test_explain_names_the_command_for_each_situation(found, command):
    assert advice.advice(found).command == command


@pytest.mark.parametrize("code", Code)
@pytest.mark.parametrize("view", [None, plugin(available=False), active("failed")], ids=["none", "verified", "active"])
def test_explain_has_a_reason_and_a_command_for_each_verdict_code(code, view):
    """It has them with and without a record; placeholders are in capitals only."""
    found = advice.advice(facts(view, code=code.value, rejected=[{"code": code.value, "publisher": "acme"}]))
    assert found.why
    assert found.command
    assert "{" not in found.command


def test_explain_prints_artifact_to_retry_line_by_line(ctl, api):
    """Artifact, verdict, decision, runtime, last denial, next retry; then why and what to do."""
    api.add(
        status="active",
        activated_at="2025-01-31T08:00:00Z",
        capabilities=["kv:read", "http:egress"],
        runtime={"state": "armed", "runner": "noop", "health": "healthy", "message": "fine", "restart_count": 1},
    )
    api.denials = [event(4, **denied(), reason="not granted")]
    ran = ctl("explain", "acme.demo", "--abs-time")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        f"artifact     version 1.0.0 from acme, sha256 {DIGEST}",
        "verdict      verified",
        "decision     active (2025-01-31T08:00:00Z)",
        "not granted  http:egress",
        "runtime      armed (noop), health healthy; fine; 1 restart",
        "last denial  http.do 2025-01-31T08:00:00Z: capability_not_granted: not granted",
        "next retry   -",
        "why          it was denied http:egress, which it declares and nobody granted",
        "what to do: latticectl caps grant acme.demo cap=http:egress",
    ]
    plain = ctl("explain", "acme.demo", "--format", "json").json
    assert plain["what_to_do"] == "latticectl caps grant acme.demo cap=http:egress"
    assert plain["plugin"] == api.plugins["acme.demo"]


@pytest.mark.parametrize("word", ["acme.demo", "bundle"])
def test_refused_bundle_without_a_record_is_explained(ctl, api, word):
    """It is named by the id it claims, or by its directory's name if it claims none."""
    row = {"name": "bundle", "code": "digest_mismatch", "reason": "expected aa, found bb", "hint": "h"}
    api.rejected = [{"name": "other", "code": "unreadable", "reason": "r", "hint": "h"}]
    api.rejected += [{**row, "id": "acme.demo"} if word == "acme.demo" else {**row, "code": "manifest_invalid"}]
    ran = ctl("explain", word, LATTICE_PLUGIN_DIR="/some/where")
    assert ran.code == 0
    assert "refused      bundle bundle: " in ran.out
    assert "unreadable" not in ran.out
    assert ran.out.splitlines()[-1] == "what to do: latticectl verify /some/where/bundle"


@pytest.mark.parametrize("plugin_id", ["acme.none", "..", "A", "x" * 300, "acme.d\x1bmo"])
def test_explain_of_unknown_id_is_not_found(ctl, api, plugin_id):
    api.rejected = [{"name": "bad", "code": "unreadable", "reason": "r", "hint": "h", "id": "acme.demo"}]
    ran = ctl("explain", plugin_id)
    assert (ran.code, ran.data) == (4, b"")


def test_code_is_explained_without_the_daemon(ctl):
    done = ctl("explain", "digest_mismatch", "--socket", "/nonexistent/control.sock")
    assert done.code == 0, done.err
    assert "seen as" in done.out
    assert "The plugin is refused" in done.out
    assert done.out.splitlines()[-1].split() == ["what", "to", "do:", "latticectl", "verify", "BUNDLE"]


def test_explain_names_trust_policy_problem_as_the_cause(ctl, api):
    api.rejected = [{"name": "bad", "code": "publisher_untrusted", "reason": "r", "hint": "h", "id": "acme.demo"}]
    api.health = (503, {"status": "degraded", "problems": [{"code": "policy_missing", "detail": "found no such file"}]})
    out = ctl("explain", "acme.demo").out
    assert "the daemon's trust policy is not in force: found no such file" in out
    assert out.splitlines()[-1] == "what to do: latticectl trust show"


def test_explain_escapes_text_from_bundles(ctl, api):
    api.rejected = [{"name": "a\x1b[2J", "code": "manifest_invalid", "reason": "\x9b", "hint": "h", "id": "acme.demo"}]
    assert not {"\x1b", "\x9b"} & set(ctl("explain", "acme.demo").out)
