"""Commands of pages that the long run alone runs, on a machine with latticed installed from a checkout (unit.md)."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.booted import test_pages
from tests.house import bundles, long, machines, packages, pages, processes

SUITE = "trixie"
TOOLS = "python3-venv,curl"
TREES = "latticed systemd packaging setup.cfg pyproject.toml README.md LICENSE"
BLOCKS = {
    "operate/unit.md": 2,
    "operate/monitoring.md": 1,
    "operate/plans.md": 3,
    "operate/recovery.md": 1,
    "operate/trust.md": 1,
    "operate/upgrades.md": 2,
    "system-plugins/nft-guard.md": 2,
}
"""How many blocks marked `checkout` a page has."""


def blocks(page):
    return [one for one in pages.blocks(test_pages.DOCS / page) if one.words == ("sh", "checkout")]


def test_every_block_for_a_checkout_is_known():
    found = [one for page in pages.PAGES for one in pages.blocks(page) if "checkout" in one.words]
    names = [str(one.page.relative_to(test_pages.DOCS)) for one in found]
    assert {name: names.count(name) for name in names} == BLOCKS


def typed(machine, text, **words):
    """Run commands of a page with what stands for ids there replaced."""
    for name, value in words.items():
        text = text.replace({"plan": "3f0c91ab", "review": "91aa…"}[name], value)
    return machine.check("sh", "-ec", f"cd /root\n{text}", within_s=packages.BUILD_S)


def _read_until(fd, text):
    seen = ""
    while text not in seen:
        seen += os.read(fd, 4096).decode()
    return seen


def on_a_terminal(machine, text):
    """Commands that ask, each answered with the first digits of its review and with Enter; an own process group, for
    a terminal has one.
    """
    ours, theirs = pty.openpty()
    command = [*machine._inside, "sh", "-ec", f"cd /root\n{text}"]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as sitting:
        os.close(theirs)
        for _ in text.splitlines():
            seen = _read_until(ours, "digits of the review: ")
            review = seen.rpartition("review")[0].rpartition("review")[2]
            os.write(ours, re.search(r"[0-9a-f]{64}", review)[0][:8].encode() + b"\n")
            _read_until(ours, "it is undone in")
            os.write(ours, b"\n")
        assert sitting.wait(machines.BOOT_S) == 0
    os.close(ours)


def _wheels(suite):
    """What `pip install .` takes from an index: latticed's needs, and what builds it."""
    made_of = f"{packages.wheels(suite)} setuptools, wheel and their needs"

    def fetch(place):
        place.mkdir()
        for one in packages.wheels(suite).iterdir():
            os.link(one, place / one.name)
        pip = [sys.executable, "-m", "pip", "--quiet", "download", "--only-binary=:all:"]
        subprocess.run([*pip, "--dest", str(place), "setuptools", "wheel"], check=True, timeout=packages.BUILD_S)

    return machines._kept(f"wheels-build-{suite}", made_of, fetch)


if long.LONG:

    @pytest.fixture(scope="module")
    def checkout(tmp_path_factory):
        """A machine with latticed of this checkout, as docs/operate/unit.md installs it."""
        with machines.booted(SUITE, tmp_path_factory.mktemp("checkout"), TOOLS, bare=True) as machine:
            there = Path(f"/proc/{machine.leader}/root/root")
            for source, names in ((pages.CHECKOUT, TREES.split()), (_wheels(SUITE).parent, [_wheels(SUITE).name])):
                (there / source.name).mkdir()
                copy = 'tar -C "$1" --exclude=__pycache__ -cf - $3 | tar -C "$2" -xf -'
                subprocess.run(
                    ["sh", "-ec", copy, "sh", str(source), str(there / source.name), " ".join(names)], check=True
                )
            index = f"/root/{_wheels(SUITE).parent.name}/{_wheels(SUITE).name}"
            install, newer = (one.text for one in blocks("operate/unit.md"))
            reload = "systemctl daemon-reload\n"
            assert install.count(reload) == 1
            (settings,) = [
                one.text for one in pages.blocks(test_pages.DOCS / "operate/unit.md") if one.language == "toml"
            ]
            machine.write(
                "/etc/latticed/latticed.toml", f'{settings}\n[apply]\nkinds = ["nft"]\n[upgrade]\ngate_s = 1\n'
            )
            machine.write("/etc/latticed/trust.json", json.dumps(bundles.policy(machines.AUTHOR)))
            offline = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={index}\ncd /root/{pages.CHECKOUT.name}\n"
            typed(machine, offline + install.replace(reload, newer + reload))
            yield machine

    def test_daemon_of_a_checkout_is_that_of_the_page(checkout):
        """As its user, confined, with its key and its metrics; what the page takes from an index is in a directory."""
        checkout.check("latticectl", "health", "--check")
        pid = checkout.property("latticed.service", "MainPID")
        assert checkout.check("ps", "-o", "user=", "-p", pid).strip() == "latticed"
        assert checkout.property("latticed.service", "Type") == "notify-reload"
        checkout.check("latticectl", "secret", "set", "TOKEN", stdin="sealed")
        (scrape,) = blocks("operate/monitoring.md")
        assert "\nlatticed_healthy 1\n" in typed(checkout, scrape.text)

    def test_firewall_is_planned_applied_and_lifted_as_the_pages_type_it(checkout):
        """On a terminal, without one, and step by step."""
        apply, bans = blocks("system-plugins/nft-guard.md")
        sitting, script, steps = blocks("operate/plans.md")
        (guard,) = [
            one.text for one in pages.blocks(test_pages.DOCS / "system-plugins/nft-guard.md") if one.language == "toml"
        ]
        checkout.write("/root/guard.toml", guard)
        checkout.check(
            "latticectl", "install", "latticed.nft-guard", "--accept", "network:plan", "--accept", "network:apply"
        )
        checkout.check("latticectl", "activate", "latticed.nft-guard")
        on_a_terminal(checkout, sitting.text)
        assert "dport { 80, 443 }" in checkout.check("nft", "list", "table", "inet", "latticed_guard")
        typed(checkout, apply.text)  # it is as the file says
        typed(checkout, bans.text)

        def planned(port):
            """A plan that waits, and its review."""
            checkout.write("/root/guard.toml", guard.replace("443", port))
            checkout.check("latticectl", "config", "set", "latticed.nft-guard", "-f", "/root/guard.toml")
            asked = checkout.run("latticectl", "apply", "latticed.nft-guard")
            assert asked.returncode == 1, asked
            waiting = json.loads(checkout.check("latticectl", "plan", "list", "--state", "planned", "--format", "json"))
            (plan,) = [one["sha256"] for one in waiting["plans"]]
            return {"plan": plan[:8], "review": re.search(r"--review ([0-9a-f]{64})", asked.stderr)[1]}

        typed(checkout, script.text, **planned("8443"))
        show, approve, apply_, confirm, rollback, refuse = steps.text.splitlines()
        typed(checkout, f"{show}\n{approve}\n{apply_}\n{confirm}", **planned("8444"))
        assert "8444" in checkout.check("nft", "list", "table", "inet", "latticed_guard")
        typed(checkout, f"{approve}\n{apply_}\n{rollback}", **planned("8445"))
        assert "8444" in checkout.check("nft", "list", "table", "inet", "latticed_guard")
        typed(checkout, refuse, **planned("8446"))

    def test_upgrade_and_the_ways_back_of_the_page(checkout):
        upgrade, back = blocks("operate/upgrades.md")

        def version():
            return json.loads(checkout.check("latticectl", "info", "acme.demo", "--format", "json"))["plugin"][
                "version"
            ]

        checkout.drop("acme.demo", machines.SLEEPER, version="1.2.0")
        typed(checkout, "latticectl install acme.demo\nlatticectl activate acme.demo")
        checkout.drop("acme.demo", machines.SLEEPER, version="1.3.0")
        processes.until(
            lambda: "1.3.0" in checkout.check("latticectl", "info", "acme.demo"), what="the candidate to be seen"
        )
        *towards, away = upgrade.text.splitlines()
        typed(checkout, "\n".join(towards))
        assert version() == "1.3.0"
        typed(checkout, away)
        assert version() == "1.2.0"
        typed(checkout, "latticectl upgrade acme.demo --retry --wait")
        typed(checkout, back.text)
        assert version() == "1.2.0"

    def test_revocation_is_taken_back_as_the_page_says(checkout):
        (lift,) = blocks("operate/trust.md")
        checkout.check("latticectl", "trust", "revoke", "--plugin", "acme.demo@1.2.0")
        show, edit, lifting = lift.text.splitlines()
        assert "acme.demo@1.2.0" in typed(checkout, show)
        assert edit.startswith("sudoedit /etc/latticed/trust.json ")
        assert "still revoked" in checkout.run("sh", "-c", lifting).stderr
        checkout.write("/etc/latticed/trust.json", json.dumps(bundles.policy(machines.AUTHOR)))
        processes.until(
            lambda: checkout.run("sh", "-c", lifting).returncode == 0, what="the file to be read", deadline_s=30.0
        )
        typed(checkout, "latticectl wait acme.demo --for available")

    def test_first_steps_of_troubleshooting_are_answered(checkout):
        """Whatever they find: none is wrong use."""
        stands_for = {"-f FILE": "-f guard.toml", "FILE": "backup.tar", "ID": "acme.demo"}
        stands_for["BUNDLE"] = "/var/lib/latticed-plugins/acme.demo"
        for block in pages.blocks(test_pages.DOCS / "troubleshooting.md"):
            text = block.text
            for name, value in stands_for.items():
                text = re.sub(rf"(?<![\w.]){name}\b", value, text)
            for line in text.splitlines():
                ran = checkout.run("sh", "-c", f"cd /root\n{line}")
                assert ran.returncode not in {2, 126, 127}, f"{line}\n{ran.stderr}"
                assert "Traceback" not in ran.stderr, line

    def test_older_ledger_is_gone_on_with_as_the_page_says(checkout):
        (go_on,) = blocks("operate/recovery.md")
        state = "/var/lib/latticed"
        stop = "systemctl stop latticed.service latticed.socket\n"
        typed(checkout, f"{stop}mkdir older && cp -a {state}/ledger.sqlite3* older/\nsystemctl start latticed.socket")
        checkout.check("latticectl", "secret", "set", "LATER", stdin="a decision")
        typed(checkout, "latticectl disable acme.demo")
        typed(checkout, f"{stop}rm {state}/ledger.sqlite3*\ncp -a older/* {state}/\nsystemctl start latticed.socket")
        processes.until(
            lambda: checkout.run("systemctl", "start", "latticed.service").returncode != 0, what="the refusal"
        )
        assert checkout.property("latticed.service", "ExecMainStatus") == "74"
        first, accept, start = go_on.text.splitlines()
        # Its Ctrl-C, once it is ready.
        ended = "until latticectl status >/dev/null 2>&1; do sleep 0.2; done; kill -INT $!; wait $!"
        typed(checkout, f"{first}\n{accept.partition(' #')[0]} &\n{ended}\n{start}")
        checkout.check("latticectl", "audit", "query", "--action", "ledger.rollback_accepted")
        assert "ledger.rollback_accepted" in checkout.check("latticectl", "audit", "query", "--last", "50")
        told = checkout.run("latticectl", "audit", "verify", "--journal").stderr
        assert "ledger.rollback_accepted at " in told, told
