"""Whatever the daemon's user forges (state, ledger, socket), nothing that root keeps or does for nft guard changes."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator

import pytest

from latticed.ledger import state
from latticed.plans import protocol
from tests.house import apply_helpers, firewalled, processes
from tests.house.nft_places import BASE, WIDE
from tests.net.test_nft_guard_plugin import ID, Site, set_up

pytestmark = [pytest.mark.root, pytest.mark.daemon]

_ATTEMPTS = """
import os, sys
for path in sys.argv[2:]:
    for call in (lambda: open(path, "w").write(sys.argv[1]), lambda: os.unlink(path), lambda: os.mkdir(path),
                 lambda: os.rename(path, path + ".old"), lambda: os.symlink("/etc/passwd", path),
                 lambda: os.chmod(path, 0o666), lambda: open(path).read()):
        try:
            call()
            print(path)
        except OSError:
            pass
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """BASE is applied; WIDE waits for an approval."""
    with firewalled.network() as net, set_up(net) as site, site.helper.running():
        site.put(BASE)
        site.applied()
        site.put(WIDE)
        site.wide = site.do("plan")["sha256"]
        yield site


def of_root(site):
    """The ruleset, and what the helper keeps but for marks of reading."""
    kept = {}
    for path in sorted(site.helper.state.rglob("*")):
        if path.is_file() and path.parent.name != "steps":
            found = path.read_bytes()
            if path.parent.name == "plans":
                found = {k: v for k, v in json.loads(found).items() if k not in {"reviewed", "updated_us"}}
            kept[path] = found
    return site.net.run("r", "nft", "-s", "-a", "list", "ruleset"), kept


def daemons(site):
    uid = site.host.daemon.place.uid
    return processes.User(uid=uid, gid=uid)


def asked(site, line):
    """The helper's answer to a line of the daemon's user; the daemon, who asks as well, may keep it busy."""

    def answer():
        said = json.loads(apply_helpers.exchanged(site.helper.settings["socket"], line, user=daemons(site)) or b"{}")
        return [] if said.get("code") == "busy" else [said]

    return processes.until(answer, what="the helper's answer")[0]


def test_files_of_the_helper_are_beyond_the_daemons_user(site):
    """Approvals, targets, snapshots and renderings, the key, the chain, settings and socket."""
    before = of_root(site)
    forged = {"plan": site.wide, "kind": "nft", "intent": WIDE, "macs": {}, "state": "approved", "review": "0" * 64}
    held = [path for path in site.helper.state.rglob("*") if path.is_file()]
    held += [site.helper.state / "held/0000000000000000.snapshot", site.helper.state / "targets/x.json"]
    held += [site.helper.config, site.helper.home / "run/apply.sock", site.helper.home / "run/other"]
    words = ["/usr/bin/python3", "-I", "-c", _ATTEMPTS, json.dumps(forged), *map(str, held)]
    user = daemons(site)
    ran = subprocess.run(words, user=user.uid, group=user.gid, capture_output=True, text=True, check=True, cwd="/")
    # Settings are public; everything else, and writing these, is refused.
    assert set(ran.stdout.split()) <= {str(site.helper.config)}
    assert len(held) > 10
    assert of_root(site) == before


FORGED = (
    {"verb": "approve", "review": "0" * 64},
    {"verb": "approve", "review": "0" * 64, "overrides": ["lockout"]},
    {"verb": "confirm"},
    {"verb": "rollback"},
    {"verb": "refuse"},
    {"verb": "review"},
    {"verb": "apply"},
    {"verb": "apply", "review": "0" * 64},
    {"verb": "apply", "confirm_within_s": 0, "source": "10.9.0.2"},
    {"verb": "apply", "state": "approved"},
    {"verb": "apply", "rendering": "table inet x {}"},
    {"verb": "apply", "snapshot": "{}"},
)
OFFERED = (
    {"intent": {**WIDE, "path": "/etc/nftables.conf"}},
    {"intent": {**WIDE, "table": "filter"}},
    {"intent": {**WIDE, "bindings": {**WIDE["bindings"], "overridden": ["lockout"]}}},
    {"intent": WIDE, "approved": True},
    {"intent": WIDE, "plan": "0" * 64},
    {"intent": WIDE, "secrets": [{"reference": "PSK", "form": "password", "value": "hunter22"}]},
    {"intent": {**WIDE, "groups": [{"name": "web", "rules": [{"comment": "${secret:PSK}"}]}]}},
    {"intent": "table inet x {}"},
    {"intent": WIDE, "argv": ["-f", "/tmp/x"]},
)


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
def test_forged_request_changes_nothing(site, forged):
    before = of_root(site)
    answer = asked(site, json.dumps({"plan": site.wide, **forged}).encode() + b"\n")
    assert answer["code"] in {"denied", "not_approved", "bad_request"}
    assert of_root(site) == before


@pytest.mark.parametrize("forged", OFFERED, ids=range(len(OFFERED)))
def test_forged_offer_changes_nothing(site, forged):
    before = of_root(site)
    answer = asked(site, json.dumps({"verb": "offer", "kind": "nft", **forged}).encode() + b"\n")
    assert answer["code"] in {"intent_refused", "bad_request"}
    assert of_root(site) == before


def test_offered_again_and_again_a_plan_stays_unapproved(site):
    """The name is the helper's own hash: an intent cannot be another plan's."""
    offer = protocol.Offer(kind="nft", intent=WIDE)
    for _ in range(3):
        answer = site.helper.ask(offer, user=daemons(site))
        assert (answer.plan, answer.state) == (site.wide, "planned")
    assert asked(site, protocol.encode(protocol.Apply(plan=site.wide)))["code"] == "not_approved"


def test_forged_rows_of_the_ledger_change_nothing(site):
    """The daemon's own user says there that the plan is approved, and that the applied one has another intent."""
    before, place = of_root(site), site.host.daemon.place
    review = site.helper.review(site.wide).review
    site.host.daemon.process.send_signal(signal.SIGTERM)
    site.host.daemon.process.wait(30)
    database = str(place.state / state.DATABASE)
    intent = json.dumps({"kind": "nft", "intent": WIDE})
    code = "import apsw, sys; apsw.Connection(sys.argv[1]).execute(sys.argv[2], ('approved', *sys.argv[3:]))"
    forged = "UPDATE plans SET state = ?, review = ?, intent = ?"
    ran = place.ran([*place.python(), "-c", code, database, forged, review, intent])
    assert ran.returncode == 0, ran.stderr
    with place.running() as daemon:
        daemon.until_state("armed", ID)
        daemon.until(
            lambda: daemon.get(f"/api/plans/{site.wide}").json()["state"] == "planned", "the row to be put right"
        )
        assert of_root(site) == before
        # Nor does the plugin get it applied: with a ban it would be the forged intent and more.
        site.host.daemon = daemon
        assert "not_approved" in site.refused("ban", {"address": "198.51.100.7", "seconds": 60})
    assert of_root(site)[0] == before[0]
