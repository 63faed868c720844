"""Each cause that keeps a plugin from working is removed by the command that `latticectl explain` names.

One daemon for all. Where a file or the bundle has to change first, as explain says, the test does that.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from latticed.ctl import main
from latticed.trust import key_files
from tests.house import bundles, daemons, processes, programs
from tests.house.daemons import Daemon

ACME = bundles.author("acme")
OTHER = bundles.author("other")
LAPSED = bundles.author("lapsed")
RENEWED = bundles.author("lapsed")
STRANGER = bundles.author("stranger")
KNOWN = (ACME, OTHER, LAPSED)
SETTINGS = """
[supervision]
backoff_base_s = 0.05
backoff_ceiling_s = 0.1
breaker_failures = 2

[watch]
quiet_s = 0.01

[http]
listen = "127.0.0.1:0"
service_listen = "127.0.0.1:0"

[service.programs]
sh = "/bin/sh"
"""
SH = 'sh = "/bin/sh"\n'
MORE = 'more = "/bin/sh"\n'
"""A program that is named besides, or is not."""
SPEAKS = bundles.ARTIFACT
"""A program that starts and keeps running."""
REVOKED = bundles.ARTIFACT + b"# revoked\n"
LACKING = b"#!/usr/bin/env python3\nimport not_packed\n"
FORKING = rb"""#!/bin/sh
while read -r line; do
    id=${line#*'"id":'}
    case $line in
    *invoke*) (/bin/true) & wait; ;;
    esac
    echo '{"jsonrpc":"2.0","id":'"${id%%,*}"',"result":{"status":"healthy","ok":true}}'
done
"""


@dataclass
class World:
    """The daemon and its directories; `port` is that of a web server on the loopback address."""

    place: daemons.Place
    port: int
    key: Path
    config: Path
    daemon: Daemon = field(init=False)

    def drop(self, name: str, *, author: bundles.Author | None = ACME, **fields: Any) -> bundles.Bundle:
        return self.place.drop(name, author=author, **{"id": f"acme.{name}", "v2": True, **fields})

    def path(self, name: str) -> Path:
        return self.place.plugins / name

    def seen(self, plugin_id: str) -> None:
        self.daemon.until(lambda: (self.daemon.plugin(plugin_id) or {}).get("available"), f"{plugin_id} available")

    def decide(self, plugin_id: str, *statuses: str, **more: Any) -> None:
        for status in statuses:
            answer = self.daemon.set_status(status, plugin_id, **(more if status == "installed" else {}))
            assert answer.status == 200, answer

    def up(self, plugin_id: str, **more: Any) -> None:
        self.seen(plugin_id)
        self.decide(plugin_id, "installed", "active", **more)

    def invoke(self, plugin_id: str, action: str, payload: Any = None) -> Any:
        answer = self.daemon.post(f"/api/plugins/by-id/{plugin_id}/invoke", {"action": action, "payload": payload})
        return answer.json()

    def latticectl(self, *words: str) -> tuple[int, str]:
        """Run latticectl in this process, which is faster; its exit code and stdout. A value is on stdin."""
        out, given = io.StringIO(), io.TextIOWrapper(io.BytesIO(b"a long secret value"))
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            patch.setattr("sys.stdin", given)
            code = main.main(["--socket", str(self.place.socket), "--config", str(self.config), *words])
        return code, out.getvalue()

    def explain(self, target: str) -> dict[str, Any]:
        code, said = self.latticectl("explain", target, "--format", "json")
        assert code == 0, said
        return json.loads(said)

    def run(self, command: str) -> None:
        """What explain printed, as an operator would: `verify` of what is bad says so, everything else succeeds."""
        if command == "latticed --check-config":
            checked = self.place.once("--check-config")
            assert checked.returncode == 0, checked
            return
        if not command.startswith("latticectl "):
            subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True, cwd="/")
            return
        for one in command.split(" && "):
            words = shlex.split(one)[1:]
            if words[:2] == ["trust", "add"] or words[0] == "verify":  # the policy's owner is the daemon's user
                ran = self.daemon.ctl(*words, "--trust", str(self.place.trust))
                code, said = ran.returncode, ran.stdout + ran.stderr
            else:
                code, said = self.latticectl(*words)
            assert code == 0, f"{one}: {said}"


def good(world: World, name: str, **fields: Any) -> bundles.Bundle:
    return world.drop(name, **fields)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`before` the daemon starts, `after` it has seen all; `act` is done before the command, which `fill` completes.

    `left` is what explain advises once it is cured: nothing, or the next step; None: the plugin is no more.
    """

    name: str
    command: str
    code: str = ""
    before: Callable[[World, str], Any] = good
    after: Callable[[World, str], Any] = lambda world, name: None
    act: Callable[[World, str], Any] = lambda world, name: None
    target: str = "acme.{name}"
    fill: dict[str, str] = field(default_factory=dict)
    left: str | None = "latticectl install acme.{name}"


def again(**fields: Any) -> Callable[[World, str], Any]:
    """The publisher's mended bundle in place, a version later."""

    def put(world: World, name: str) -> None:
        world.drop(name, **{"version": "1.1.0", **fields})
        world.daemon.until(lambda: (world.daemon.plugin(f"acme.{name}") or {}).get("candidate"), "the candidate")

    return put


def afresh(world: World, name: str, **fields: Any) -> None:
    """The publisher's own copy in place of a bundle that is refused."""
    shutil.rmtree(world.path(name))
    world.drop(name, **fields)
    world.seen(f"acme.{name}")


def broken(name: str, code: str, command: str, spoil: Callable[[World, str], Any], **more: Any) -> Case:
    """A bundle that is refused because of its files; its publisher's own copy mends it."""

    def before(world: World, name: str) -> None:
        good(world, name)
        spoil(world, name)

    return Case(name=name, command=command, code=code, before=before, **{"act": afresh, "target": "{name}", **more})


def manifest(**fields: Any) -> Callable[[World, str], None]:
    """A manifest that is signed as it is, whatever it says."""

    def spoil(world: World, name: str) -> None:
        raw = bundles.manifest_v2(id=f"acme.{name}", **fields)
        bundles.write(world.path(name), bundles.signed(raw, SPEAKS, ACME), SPEAKS)

    return spoil


def unsigned(**fields: Any) -> Callable[[World, str], None]:
    """A v1 manifest without what signing gives it, but for `fields`."""

    def spoil(world: World, name: str) -> None:
        bundles.write(world.path(name), bundles.manifest_v1(id=f"acme.{name}", **fields), SPEAKS)

    return spoil


def link(file: str) -> Callable[[World, str], None]:
    def spoil(world: World, name: str) -> None:
        path = world.path(name) / file
        path.rename(path.with_name("real"))
        path.symlink_to("real")

    return spoil


def edit(file: str, change: Callable[[Path], Any]) -> Callable[[World, str], None]:
    return lambda world, name: change(world.path(name) / file)


def opened(world: World, name: str) -> None:
    """Let the daemon's user read it again."""
    (world.path(name) / "manifest.json").chmod(0o644)


def renamed(path: Path) -> None:
    """Give the plugin another name than the one that was signed."""
    path.write_bytes(path.read_bytes().replace(b'"Demo"', b'"Other"'))


VERIFY, LOOK = "latticectl verify {dir}", "ls -la {dir}"
SIGN = "latticectl sign --key KEYFILE {dir}"
TAMPERED = b"#!/bin/sh\nexit 1\n"

REFUSED = (
    broken("unreadable", "unreadable", LOOK, edit("manifest.json", lambda p: p.chmod(0)), act=opened),
    broken("no-manifest", "manifest_missing", LOOK, edit("manifest.json", Path.unlink)),
    broken("manifest-link", "manifest_not_regular", LOOK, link("manifest.json")),
    broken("big-manifest", "manifest_too_large", LOOK, edit("manifest.json", lambda p: p.write_bytes(b" " * 70_000))),
    broken(
        "foreign",
        "foreign_owner",
        "chown root {dir}/manifest.json {dir}/artifact",
        edit("manifest.json", lambda p: os.chown(p, 4711, 4711)),
        act=lambda world, name: None,
    ),
    broken("no-json", "manifest_invalid_json", VERIFY, edit("manifest.json", lambda p: p.write_bytes(b"{"))),
    broken("invalid", "manifest_invalid", VERIFY, manifest(version="one")),
    broken("schema", "manifest_invalid", "latticectl version", manifest(schema="lattice.plugin.manifest.v2")),
    broken("unknown", "unknown_capability", "latticectl caps list", manifest(capabilities=["kv:reed"])),
    broken("twice", "duplicate_capability", VERIFY, manifest(capabilities=["kv:read", "kv:read"])),
    broken(
        "risky", "capability_not_allowed", "latticectl trust show", manifest(type="worker", capabilities=["kv:write"])
    ),
    broken(
        "anonymous",
        "publisher_missing",
        "latticectl sign --key KEYFILE --publisher NAME {dir}",
        unsigned(),
        act=lambda world, name: None,
    ),
    broken("unsigned", "signature_missing", SIGN, unsigned(publisher="acme"), act=lambda world, name: None),
    broken(
        "ill-signed",
        "signature_malformed",
        SIGN,
        unsigned(publisher="acme", digest_sha256="ab" * 32, signature_ed25519="?"),
        act=lambda world, name: None,
    ),
    broken("forged", "signature_invalid", VERIFY, edit("manifest.json", renamed)),
    broken("no-artifact", "artifact_missing", LOOK, edit("artifact", Path.unlink)),
    broken("artifact-link", "artifact_not_regular", LOOK, link("artifact")),
    broken("big-artifact", "artifact_too_large", LOOK, edit("artifact", lambda p: os.truncate(p, (64 << 20) + 1))),
    broken("tampered", "digest_mismatch", VERIFY, edit("artifact", lambda p: p.write_bytes(TAMPERED))),
    broken("newer", "host_incompatible", "latticectl version", manifest(requires_host=">=99.0.0")),
)


# Trust policy, and claims to an id.


def by(author: bundles.Author) -> Callable[[World, str], Any]:
    return lambda world, name: world.drop(name, author=author)


def handed_over(world: World, name: str) -> None:
    world.up(f"acme.{name}")
    shutil.rmtree(world.path(name))
    world.drop(f"{name}-two", author=OTHER, id=f"acme.{name}", version="1.1.0")
    world.daemon.until_rejected(f"{name}-two", "publisher_changed")


def two(world: World, name: str) -> None:
    world.drop(name)
    world.drop(f"{name}-two", id=f"acme.{name}", version="1.1.0")


def gone(*statuses: str) -> Callable[[World, str], None]:
    def after(world: World, name: str) -> None:
        world.seen(f"acme.{name}")
        world.decide(f"acme.{name}", *statuses)
        shutil.rmtree(world.path(name))
        world.daemon.until(lambda: not world.daemon.plugin(f"acme.{name}")["available"], "it to be gone")

    return after


TRUST = (
    Case(
        name="untrusted",
        code="publisher_untrusted",
        command="latticectl trust add stranger KEY",
        before=by(STRANGER),
        target="untrusted",
        fill={"KEY": STRANGER.public},
    ),
    Case(
        name="old-key",
        code="key_revoked",
        command="latticectl trust add lapsed NEWKEY",
        before=by(LAPSED),
        act=lambda world, name: world.drop(name, author=RENEWED),
        target="old-key",
        fill={"NEWKEY": RENEWED.public},
    ),
    Case(name="old", code="plugin_revoked", command="latticectl trust lift --plugin acme.old@1.0.0", target="old"),
    Case(
        name="bad",
        code="digest_revoked",
        command="latticectl trust lift --digest SHA256",
        before=lambda world, name: world.drop(name, artifact=REVOKED),
        target="bad",
        fill={"SHA256": hashlib.sha256(REVOKED).hexdigest()},
    ),
    Case(
        name="sold",
        command="latticectl upgrade acme.sold --accept-publisher other",
        after=handed_over,
        left="",
    ),
    Case(name="claimed", code="duplicate_id", command="rm -r {dir}-two", before=two),
    Case(
        name="gone-active",
        command="latticectl disable acme.gone-active",
        after=gone("installed", "active"),
        left="latticectl forget acme.gone-active",
    ),
    Case(name="gone", command="latticectl forget acme.gone", after=gone("installed"), left=None),
)

# Decisions, and what refuses the next step.


def decided(*statuses: str, **more: Any) -> Callable[[World, str], None]:
    def after(world: World, name: str) -> None:
        world.seen(f"acme.{name}")
        world.decide(f"acme.{name}", *statuses, **more)

    return after


def dropped(**fields: Any) -> Callable[[World, str], Any]:
    return lambda world, name: world.drop(name, **fields)


def lower_than_before(world: World, name: str) -> None:
    world.seen(f"acme.{name}")
    world.decide(f"acme.{name}", "installed")
    shutil.rmtree(world.path(name))
    world.daemon.until(lambda: not world.daemon.plugin(f"acme.{name}")["available"], "it to be gone")
    assert world.daemon.post(f"/api/plugins/by-id/acme.{name}/forget").status == 200
    world.drop(name, version="0.9.0")
    world.seen(f"acme.{name}")


def same_route(world: World, name: str) -> None:
    for one in (name, f"{name}-holder"):
        world.seen(f"acme.{one}")
        world.decide(f"acme.{one}", "installed")
        grants = f"/api/plugins/by-id/acme.{one}/grants"
        assert world.daemon.ask("PUT", grants, {"permits": ["prefix=/shared/"]}).status == 200
    world.decide(f"acme.{name}-holder", "active")


ROUTED = {
    "type": "worker",
    "capabilities": ["worker:route"],
    "artifact": b"hello",
    "routes": {"prefixes": ["/shared/"]},
}
NEEDS = {"dependencies": [{"id": "acme.needed", "version": "*"}]}


def two_workers(world: World, name: str) -> None:
    for one in (name, f"{name}-holder"):
        world.drop(one, **ROUTED)


def needs(world: World, name: str) -> None:
    world.drop("needed")
    world.drop(name, **NEEDS)


def upgraded(world: World, name: str) -> None:
    """Its publisher asks for less, and the operator agrees."""
    again(runtime={"sandbox": {"level": "isolated"}})(world, name)
    world.run(f"latticectl upgrade acme.{name} --accept level=isolated")


ACTIVATE = "latticectl activate acme.{name}"
UPGRADE = "latticectl upgrade acme.{name}"
DECIDED = (
    Case(name="new", command="latticectl install acme.new", left=ACTIVATE),
    Case(name="taken-in", command=ACTIVATE, after=decided("installed"), left=""),
    Case(name="off", command=ACTIVATE, after=decided("installed", "active", "disabled"), left=""),
    Case(
        name="dependent",
        command="latticectl install acme.needed && latticectl activate acme.needed",
        before=needs,
        after=decided("installed"),
        left=ACTIVATE,
    ),
    Case(
        name="lower",
        command="latticectl install acme.lower --allow-downgrade",
        after=lower_than_before,
        left=ACTIVATE,
    ),
    Case(
        name="dedicated",
        command="latticectl health",
        before=dropped(runtime={"sandbox": {"level": "dedicated"}}),
        after=decided("installed"),
        act=upgraded,
        left=ACTIVATE,
    ),
    Case(
        name="blocked",
        command=UPGRADE,
        before=dropped(**{**ROUTED, "artifact": b"{{ nonsense("}),
        after=decided("installed"),
        act=again(**ROUTED),
        left=ACTIVATE,
    ),
    Case(
        name="routed",
        command="latticectl disable acme.routed-holder",
        before=two_workers,
        after=same_route,
        left=ACTIVATE,
    ),
    Case(
        name="mute",
        command=UPGRADE,
        before=dropped(type="wasm", artifact=b"\0asm", runtime={"protocol": "stdio-json-v1"}),
        after=decided("installed"),
        act=again(),
        left=ACTIVATE,
    ),
)


# Plugins that fail or are unhealthy.


def failing(world: World, name: str) -> None:
    """A plugin that was activated and failed for good: while it is tried again, nothing is to be done about it."""
    world.seen(f"acme.{name}")
    world.decide(f"acme.{name}", "installed", "active")
    world.daemon.until(lambda: broke(world, name), f"{name} to have failed for good")


def broken_down(world: World, name: str) -> None:
    """The plugin exits at each health check until its breaker opens; from then on it would keep running."""
    world.up(f"acme.{name}")
    world.daemon.until(lambda: world.daemon.until_state("failed", f"acme.{name}") and broke(world, name), "the breaker")
    well(world, name)


def broke(world: World, name: str) -> bool:
    runtime = world.daemon.plugin(f"acme.{name}")["runtime"]
    return runtime["state"] == "failed" and "next_retry_at" not in runtime


def unwell(world: World, name: str) -> None:
    world.up(f"acme.{name}")
    world.daemon.until(lambda: world.daemon.plugin(f"acme.{name}")["runtime"]["health"] == "unhealthy", "its health")


def well(world: World, name: str) -> None:
    assert world.daemon.ask("PUT", f"/api/kv/plugin:acme.{name}/well", b"yes").status in {200, 204}


def when_well(otherwise: bytes) -> bytes:
    """A plugin that is healthy once `well` is stored."""
    return (
        programs.SDK
        + b"""
    def health(self):
        if self.kv.get("well") is None:
            """
        + otherwise
        + b"""
        return Health()

Test().run()
"""
    )


ALIVE = (
    Case(
        name="no-program",
        code="artifact_not_executable",
        command=UPGRADE,
        before=dropped(artifact=b"print('hello')\n"),
        after=failing,
        act=again(),
        left="",
    ),
    Case(
        name="ruby",
        code="interpreter_not_allowed",
        command=UPGRADE,
        before=dropped(artifact=b"#!/usr/bin/env ruby\n"),
        after=failing,
        act=again(),
        left="",
    ),
    Case(
        name="lacking",
        code="exited",
        command=UPGRADE,
        before=dropped(artifact=LACKING),
        after=failing,
        act=again(),
        left="",
    ),
    Case(
        name="no-module",
        code="wasm_invalid",
        command=UPGRADE,
        before=dropped(type="wasm", artifact=b"no module"),
        after=failing,
        act=again(type="system"),
        left="",
    ),
    Case(
        name="babbling",
        code="protocol_error",
        command=UPGRADE,
        before=dropped(artifact=b"#!/bin/sh\necho hello\nread -r line\n"),
        after=failing,
        act=again(),
        left="",
    ),
    Case(
        name="crashing",
        code="exited",
        command="latticectl restart acme.crashing",
        before=dropped(artifact=when_well(b"os._exit(3)")),
        after=broken_down,
        left="",
    ),
    Case(
        name="unwell",
        command="latticectl restart acme.unwell",
        before=dropped(artifact=when_well(b'return Health("unhealthy", "not well")')),
        after=unwell,
        act=well,
        left="",
    ),
    Case(name="newer-one", command=UPGRADE, after=lambda w, n: (w.up(f"acme.{n}"), again()(w, n)), left=""),
    Case(
        name="older-one",
        command=UPGRADE + " --allow-downgrade",
        after=lambda w, n: (w.up(f"acme.{n}"), again(version="0.9.0")(w, n)),
        left="",
    ),
    Case(
        name="forking",
        command="latticectl caps grant acme.forking feature=processes",
        before=dropped(artifact=FORKING),
        after=lambda w, n: (w.up(f"acme.{n}"), w.invoke(f"acme.{n}", "fork")),
        left="",
    ),
)

# Denied host calls.


def denied(call: str, accept: tuple[str, ...] = (), **params: Any) -> Callable[[World, str], None]:
    """A plugin that runs and was denied this call; `{port}` in its parameters is that of the web server."""

    def after(world: World, name: str) -> None:
        world.up(f"acme.{name}", accept=list(accept))
        attempt(world, name, call, params)

    return after


def attempt(world: World, name: str, call: str, params: dict[str, Any]) -> Any:
    filled = json.loads(json.dumps(params).replace("PORT", str(world.port)))
    return world.invoke(f"acme.{name}", "try", {"call": call, "params": filled})


HOME = "http://127.0.0.1:PORT/"
TRYING = (
    programs.SDK
    + b"""
    def do_try(self, payload):
        return self.call(payload["call"], **payload["params"])

Test().run()
"""
)
TRIES = {"artifact": TRYING, "capabilities": ["http:egress", "kv:read", "kv:write", "log:write"]}
HOSTLY = ("static:write", "task:run")
PUTS = {"artifact": TRYING, "capabilities": ["static:read", *HOSTLY, "worker:route"]}
WEB = ("http.do", ("http:egress",))
DENIED = (
    Case(
        name="masked",
        command="latticectl caps grant acme.masked cap=http:egress",
        before=dropped(**TRIES),
        after=denied("http.do", url=HOME),
        left="",
    ),
    Case(
        name="undeclared",
        command=UPGRADE + " --accept node:read",
        before=dropped(**TRIES),
        after=denied("node.facts"),
        act=again(artifact=TRYING, capabilities=["node:read"]),
        left="",
    ),
    Case(
        name="far",
        command="latticectl caps grant acme.far host=8.8.8.8:443",
        before=dropped(**TRIES, v2=False),
        after=denied(*WEB, url="https://8.8.8.8/"),
        left="",
    ),
    Case(
        name="unnamed",
        command=UPGRADE,
        before=dropped(**TRIES, egress={"hosts": ["api.example.org:443"]}),
        after=denied(*WEB, url="https://8.8.8.8/"),
        act=again(**TRIES, egress={"hosts": ["8.8.8.8:443"]}),
        left="",
    ),
    Case(
        name="private",
        command="latticectl caps grant acme.private origin=http://127.0.0.1:PORT",
        before=dropped(**TRIES, v2=False),
        after=lambda w, n: (
            w.up(f"acme.{n}", accept=["http:egress"], accept_hosts=[f"127.0.0.1:{w.port}"]),
            attempt(w, n, "http.do", {"url": HOME}),
        ),
        left="",
    ),
    Case(
        name="secretless",
        command="latticectl secret bind TOKEN acme.secretless",
        before=dropped(**TRIES, v2=False),
        after=lambda w, n: (
            w.up(f"acme.{n}", accept=["http:egress"], accept_hosts=["8.8.8.8:443"]),
            w.daemon.ask("PUT", "/api/secrets/TOKEN", b"a long secret value"),
            attempt(w, n, "http.do", {"url": "https://8.8.8.8/", "header": {"Authorization": "${secret:TOKEN}"}}),
        ),
        left=None,
    ),
    Case(
        name="unset",
        command="latticectl secret set UNSET && latticectl secret bind UNSET acme.unset",
        before=dropped(**TRIES, v2=False),
        after=lambda w, n: (
            w.up(f"acme.{n}", accept=["http:egress"], accept_hosts=["8.8.8.8:443"]),
            attempt(w, n, "http.do", {"url": "https://8.8.8.8/", "header": {"Authorization": "${secret:UNSET}"}}),
        ),
        left=None,
    ),
    Case(
        name="metadata",
        command="latticectl caps grant acme.metadata origin=http://169.254.169.254:80 --force",
        before=dropped(**TRIES, v2=False),
        after=lambda w, n: (
            w.up(f"acme.{n}", accept=["http:egress"], accept_hosts=["169.254.169.254:80"]),
            attempt(w, n, "http.do", {"url": "http://169.254.169.254/"}),
        ),
        left="",
    ),
    Case(
        name="curious",
        command="latticectl caps grant acme.curious bucket=plugin:acme.other",
        before=dropped(**TRIES),
        after=denied("kv.get", key="a", bucket="plugin:acme.other"),
        left="",
    ),
    Case(
        name="elsewhere",
        command="latticectl caps grant acme.elsewhere prefix=/elsewhere/",
        before=dropped(**PUTS),
        after=denied("route.put", path="/elsewhere/", target="template", template="hello"),
        left="",
    ),
    Case(
        name="in-front",
        command="latticectl caps grant acme.in-front publish=http://127.0.0.1:PORT",
        before=dropped(**PUTS),
        after=denied("route.put", path="/acme.in-front/", target="service", origin=HOME.rstrip("/"), public=["/**"]),
        left="",
    ),
    Case(
        name="coloured",
        command="latticectl caps grant acme.coloured env=COLOUR",
        before=dropped(**PUTS),
        after=denied("service.put", HOSTLY, name="n", program="sh", environment={"COLOUR": "red"}),
        left="",
    ),
    Case(
        name="borrower",
        command="latticectl caps grant acme.borrower share=acme.lender",
        before=lambda w, n: (w.drop(n, **PUTS), w.drop("lender", **PUTS)),
        after=lambda w, n: (
            w.up("acme.lender", accept=HOSTLY),
            w.up(f"acme.{n}", accept=HOSTLY),
            attempt(w, n, "static.list", {"plugin": "acme.lender"}),
        ),
        left="",
    ),
    Case(
        name="ahead",
        command="latticectl version",
        before=dropped(**TRIES),
        after=denied("kv.steal"),
        act=lambda w, n: (again(**TRIES)(w, n), w.run(UPGRADE.format(name=n))),
        left="",
    ),
    Case(
        name="clumsy",
        command="latticectl logs acme.clumsy",
        before=dropped(**TRIES),
        after=denied("kv.put", key="a/b", value="x"),
        act=lambda w, n: attempt(w, n, "kv.put", {"key": "ab", "value": "x"}),
        left="",
    ),
)

# Services that do not run.

PUTTING = (
    programs.SDK
    + b"""
    def started(self):
        args = ["-c", "sleep 600" if self.kv.get("well") else "exit 3"]
        self.call("service.put", name="n", program="sh", args=args)

Test().run()
"""
)
SERVES = {"artifact": PUTTING, "capabilities": ["kv:read", "kv:write", "task:run"]}


LETTER = {"to": ["a@example.org"], "subject": "s", "body": "t"}
TUNNEL = {
    "name": "t",
    "tunnel": "6ff42ae2-765d-4adf-8112-31c55c1551ef",
    "credentials": "t.json",
    "ingress": [{"hostname": "a.example.org", "service": HOME.rstrip("/")}, {"service": "http_status:404"}],
}


def service_is(world: World, name: str, code: str) -> None:
    def error() -> Any:
        rows = world.daemon.get(f"/api/services?plugin=acme.{name}").json()["services"]
        return rows and rows[0]["state"] in {"failed", "stopped"} and rows[0]["last_error"]

    world.daemon.until(lambda: (error() or {}).get("code") == code, f"the service of {name} to be {code}")


def looping(world: World, name: str) -> None:
    world.up(f"acme.{name}", accept=["kv:read", "task:run"])
    service_is(world, name, "crash_loop")
    well(world, name)


def named(world: World, more: str) -> None:
    """Have the settings name the program `more`, or not."""
    changed(world, SH + MORE, SH)
    changed(world, SH, SH + more)


def changed(world: World, before: str, after: str) -> None:
    """Change the settings, and reload them."""
    config = world.place.config
    config.write_text(config.read_text().replace(before, after))
    world.daemon.process.send_signal(signal.SIGHUP)


def taken(world: World, name: str, **params: Any) -> None:
    """Its service is taken, once the settings are in force."""
    put = {"name": "n", "args": ["-c", "sleep 600"], **params}
    world.daemon.until(lambda: "code" not in attempt(world, name, "service.put", put), "the service to be taken")


def unnamed(world: World, name: str) -> None:
    named(world, MORE)
    world.up(f"acme.{name}", accept=["task:run"])
    taken(world, name, program="more")
    named(world, "")
    service_is(world, name, "program_not_allowed")


SERVICES = (
    Case(
        name="looping",
        command="latticectl restart acme.looping",
        before=dropped(**SERVES),
        after=looping,
        left="",
    ),
    Case(
        name="program-gone",
        command="latticed --check-config",
        before=dropped(**PUTS),
        after=unnamed,
        act=lambda w, n: named(w, MORE),
        left="",
    ),
    Case(
        name="program-missing",
        command="latticed --check-config",
        before=dropped(**PUTS),
        after=denied("service.put", ("task:run",), name="n", program="other"),
        act=lambda w, n: (changed(w, SH, SH + 'other = "/bin/sh"\n'), taken(w, n, program="other")),
        left="",
    ),
    Case(
        name="network-kept",
        command="latticed --check-config",
        before=dropped(**PUTS),
        after=denied("service.put", ("task:run",), name="n", program="sh", network="host"),
        act=lambda w, n: (
            changed(w, "[service.programs]", '[service]\nhost_network = ["sh"]\n\n[service.programs]'),
            taken(w, n, program="sh", network="host"),
        ),
        left=None,
    ),
    Case(
        name="mailless",
        command="latticed --check-config",
        before=dropped(**TRIES),
        after=denied("mail.send", ("http:egress",), **LETTER),
        left=None,
    ),
    Case(
        name="tunnelled",
        command="latticed --check-config",
        before=dropped(artifact=TRYING, capabilities=["tunnel:admin"]),
        after=lambda w, n: (
            w.up(f"acme.{n}", accept=["tunnel:admin"]),
            w.run(f"latticectl caps grant acme.{n} origin=http://127.0.0.1:{w.port}"),
            attempt(w, n, "tunnel.put", TUNNEL),
        ),
        left=None,
    ),
)

CASES = (*REFUSED, *TRUST, *DECIDED, *ALIVE, *DENIED, *SERVICES)


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextlib.contextmanager
def web() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Web) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every case prepared, the policy's revocations taken out of the file again: the daemon remembers them."""
    with daemons.placed(settings=SETTINGS) as place, web() as port:
        key = tmp_path_factory.mktemp("keys") / "acme.key"
        key_files.create(key, ACME.key)
        config = key.with_name("latticectl.toml")  # ours: latticectl reads no settings of other users
        config.write_text(f'plugin_dir = "{place.plugins}"\n[access]\nsocket_owner = "{place.uid}"\n')
        found = World(place=place, port=port, key=key, config=config)
        for case in CASES:
            case.before(found, case.name)
        revoked = {
            "keys": [LAPSED.public],
            "plugins": ["acme.old@1.0.0"],
            "digests": [hashlib.sha256(REVOKED).hexdigest()],
        }
        place.trust_us(*KNOWN, revoked=revoked)
        with place.running() as daemon:
            found.daemon = daemon
            place.trust_us(*KNOWN)
            for case in CASES:
                case.after(found, case.name)
            yield found


@pytest.mark.root
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_explain_names_a_command_that_fixes_each_cause(world, case):
    target, plugin_id = case.target.format(name=case.name), f"acme.{case.name}"
    words = {"name": case.name, "dir": str(world.path(case.name))}
    found = world.explain(target)
    command = case.command.format(**words).replace("PORT", str(world.port))
    assert found["what_to_do"] == command, found["why"]
    codes = {row["code"] for row in found["rejected"]}
    codes |= {found["plugin"]["runtime"].get("last_error", {}).get("code")} if found["plugin"] else set()
    assert not case.code or case.code in codes
    case.act(world, case.name)
    if (
        command.startswith(UPGRADE.format(**words)) and "publisher" not in command
    ):  # with the bundle there, what it takes
        advice = f"{case.name}: {command}"  # not while it is just being tried again
        processes.until(lambda: (world.explain(target)["what_to_do"] or command).startswith(command), what=advice)
        command = world.explain(target)["what_to_do"] or command
    for word, value in {"KEYFILE": str(world.key), "NAME": "acme", **case.fill}.items():
        command = command.replace(word, value)
    world.run(command)
    if case.left is None:
        return
    left = case.left.format(**words)
    world.daemon.until(lambda: is_left(advised(world, plugin_id), left), f"{case.name} cured, {left or 'nothing'} left")


def is_left(found: Any, left: str) -> bool:
    """Whether explain advises nothing (`left` empty), or a command that begins with `left`, with whatever consent it
    takes.
    """
    return str(found).startswith(left) if left else found is None


def advised(world: World, plugin_id: str) -> Any:
    code, said = world.latticectl("explain", plugin_id, "--format", "json")
    return json.loads(said)["what_to_do"] if code == 0 else code


@pytest.mark.root
def test_granted_prefix_of_a_plugin_that_puts_routes_itself_counts_at_once(world):
    """Nothing is said of its next start, and it puts the route."""
    route = {"path": "/at-once/", "target": "template", "template": "hello"}
    world.drop("prompt", **PUTS)
    world.up("acme.prompt")
    code, said = world.latticectl("caps", "grant", "acme.prompt", "prefix=/at-once/")
    assert (code, "next start" in said) == (0, False), said
    assert "code" not in attempt(world, "prompt", "route.put", route)


def test_at_least_forty_causes_of_explain_are_tested():
    assert len({case.name for case in CASES}) == len(CASES) >= 40
