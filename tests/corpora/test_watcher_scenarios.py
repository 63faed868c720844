"""What other watchers' test suites found hard, run against the catalog.

Each scenario of the outside suite is a function here; after it, the catalog and what its reader was told must equal
what a catalog sees that looks at the directory for the first time.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from latticed.bundle.refusal import BundleRefused
from latticed.catalog import Store
from latticed.model.verdict import Verified
from latticed.trust import claims
from tests.house import bundles, catalogs, claimants
from tests.house.catalogs import until

SUITE = Path(__file__).resolve().parents[2].parent / "shared" / "corpora" / "watcher_scenarios.json"
ACME = bundles.author()

ELSEWHERE = {
    "perm-loss-dir": "needs another uid: tests/unit/catalog/test_watcher.py",
    "perm-loss-root": "needs another uid: tests/unit/catalog/test_watcher.py",
    "watch-limit": "needs a user namespace: tests/unit/catalog/test_watcher.py",
    "two-watchers": "the lock on the state directory is the ledger's: tests/daemon; two readers are tried here",
    "suspend-resume": "needs a process to stop: tests/daemon",
}


class Stage:
    """A plugin directory R with one bundle p, a bundle B beside it, and a catalog watching R."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.r = place / "R"
        self.seen: catalogs.Seen

    def spare(self, name: str = "B", **fields: object) -> Path:
        """A signed bundle outside of R."""
        return bundles.drop(self.place / "spare", name, author=ACME, **{"id": "acme.spare", **fields}).path

    def drop(self, name: str, **fields: object) -> bundles.Bundle:
        return bundles.drop(self.r, name, author=ACME, **fields)

    def sh(self, script: str) -> None:
        """Run a piece of shell with $R, $B and $OUT."""
        names = {"R": str(self.r), "B": str(self.place / "spare" / "B"), "OUT": str(self.place)}
        subprocess.run(["sh", "-euc", script], check=True, env={**os.environ, **names}, cwd=self.r)

    def code(self, name: str) -> str | None:
        return self.seen.code(f"plugins/{name}")

    async def becomes(self, name: str, code: str | None) -> None:
        await until(lambda: self.code(name) == code, f"{name} is {code}, not {self.code(name)}")

    async def settled(self) -> None:
        await catalogs.settled(self.seen, self.r, ACME)


Scenario = Callable[[Stage], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str) -> Callable[[Scenario], Scenario]:
    def register(function: Scenario) -> Scenario:
        SCENARIOS[name] = function
        return function

    return register


def scripted(name: str, script: str) -> None:
    """A scenario that is only its shell script."""

    async def run(stage: Stage) -> None:
        stage.sh(script)

    SCENARIOS[name] = run


@scenario("atomic-rename-file")
async def _(stage: Stage) -> None:
    newer = stage.spare("B", id="acme.p", version="2.0.0")
    stage.sh(f"cp {newer}/manifest.json p/.manifest.json.tmp && mv p/.manifest.json.tmp p/manifest.json")
    await until(lambda: _version(stage, "p") == "2.0.0")
    assert len(stage.seen.told("plugins/p")) == 2


@scenario("atomic-rename-dir-in")
async def _(stage: Stage) -> None:
    stage.spare()
    stage.sh("mv $B new")
    await stage.becomes("new", "verified")
    assert len(stage.seen.told("plugins/new")) == 1


@scenario("dir-move-out")
async def _(stage: Stage) -> None:
    stage.sh("mv p $OUT/elsewhere")
    await stage.becomes("p", None)


@scenario("dir-rename-inside")
async def _(stage: Stage) -> None:
    stage.sh("mv p q")
    await stage.becomes("q", "verified")
    await stage.becomes("p", None)


@scenario("swap-dirs")
async def _(stage: Stage) -> None:
    a, b = stage.drop("a", id="acme.a"), stage.drop("b", id="acme.b")
    await stage.becomes("b", "verified")
    stage.sh("mv a .t && mv b a && mv .t b")
    await until(lambda: _id(stage, "a") == b.id and _id(stage, "b") == a.id)
    bundles.tamper(stage.r / "a" / "artifact")
    await stage.becomes("a", "digest_mismatch")
    assert stage.code("b") == "verified"


@scenario("mv-then-symlink")
async def _(stage: Stage) -> None:
    stage.sh("mv p q && ln -s q p")
    await stage.becomes("q", "verified")
    await stage.becomes("p", None)


scripted("mkdir-mv-chain", "touch a && mkdir d1 d2 && mv d1 d2 && mv d2/d1 . && mv a d1")
scripted(
    "move-shuffle",
    "mkdir d1 d2 && touch d1/a && mkdir d3 && mv d1 d2 d3 && mv d3/* . && mv d1 d2 d3 && mv d3/* . && mv d1/a d2",
)


@scenario("nested-mkdir-race")
async def _(stage: Stage) -> None:
    stage.spare()
    stage.sh("mkdir -p n/x/y/z && cp $B/* n/")
    await stage.becomes("n", "verified")


@scenario("create-delete-fast")
async def _(stage: Stage) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(200):
        os.mkdir(stage.r / f"t{number}")
        os.rmdir(stage.r / f"t{number}")
    await stage.settled()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)
    assert stage.seen.catalog.counters["watcher_restarts"] == 0


@scenario("late-double-delete")
async def _(stage: Stage) -> None:
    for _ in range(20):
        stage.sh("mkdir -p d/e && touch d/a d/b d/e/artifact && rm -r d")
    await stage.becomes("d", None)
    assert stage.seen.catalog.counters["watcher_restarts"] == 0


@scenario("partial-write")
async def _(stage: Stage) -> None:
    source = stage.spare("B", artifact=os.urandom(1000))
    target = stage.r / "slow"
    target.mkdir()
    shutil.copy(source / "manifest.json", target)
    data = (source / "artifact").read_bytes()
    with (target / "artifact").open("wb", buffering=0) as file:
        for start in range(0, 1000, 100):
            file.write(data[start : start + 100])
            await asyncio.sleep(0.2)
    await stage.becomes("slow", "verified")


@scenario("write-manifest-last")
async def _(stage: Stage) -> None:
    stage.spare()
    stage.sh("mkdir late && cp $B/artifact late/ && cp $B/manifest.json late/")
    await stage.becomes("late", "verified")
    assert sum(len(said) == 64 for said in stage.seen.told("plugins/late")) == 1


@scenario("delete-while-writing")
async def _(stage: Stage) -> None:
    target = stage.r / "slow"
    target.mkdir()
    with (target / "artifact").open("wb", buffering=0) as file:
        file.write(b"half")
        shutil.rmtree(target)
        file.write(b"of it")
    await stage.becomes("slow", None)


@scenario("update-then-delete")
async def _(stage: Stage) -> None:
    (stage.r / "p" / "artifact").write_bytes(b"other")
    shutil.rmtree(stage.r / "p")
    await stage.becomes("p", None)


@scenario("editor-swap")
async def _(stage: Stage) -> None:
    stage.sh("touch p/.manifest.json.swp p/4913 p/manifest.json~ 'p/#manifest.json#'")
    await _passes(stage)
    assert len(stage.seen.told("plugins/p")) == 1


@scenario("rsync-temp")
async def _(stage: Stage) -> None:
    newer = stage.spare("B", id="acme.p", version="2.0.0")
    stage.sh(f"cp {newer}/manifest.json p/.manifest.json.AbC123 && mv p/.manifest.json.AbC123 p/manifest.json")
    await until(lambda: _version(stage, "p") == "2.0.0")
    assert len(stage.seen.told("plugins/p")) == 2


@scenario("stray-files-in-bundle")
async def _(stage: Stage) -> None:
    stage.sh("touch p/extra")
    await _passes(stage)
    assert stage.code("p") == "verified"


@scenario("file-replaces-dir")
async def _(stage: Stage) -> None:
    stage.sh("rm -r p && touch p")
    await stage.becomes("p", None)


@scenario("dir-replaces-file")
async def _(stage: Stage) -> None:
    stage.spare()
    stage.sh("touch f")
    await _passes(stage)
    stage.sh("rm f && mkdir f && cp $B/* f/")
    await stage.becomes("f", "verified")


@scenario("root-delete-recreate")
async def _(stage: Stage) -> None:
    stage.spare()
    shutil.rmtree(stage.r)
    await stage.becomes("p", None)
    assert any("found nothing" in problem for problem in stage.seen.catalog.problems())
    stage.r.mkdir()
    stage.sh("mv $B p")
    await stage.becomes("p", "verified")
    assert stage.seen.catalog.problems() == ()
    bundles.tamper(stage.r / "p" / "artifact")
    await stage.becomes("p", "digest_mismatch")


@scenario("root-rename")
async def _(stage: Stage) -> None:
    stage.sh("mv $R $R.old; mkdir $R")
    await stage.becomes("p", None)
    bundles.drop(stage.place / "R.old", "ghost", author=ACME, id="acme.ghost")
    stage.drop("real", id="acme.real")
    await stage.becomes("real", "verified")
    assert stage.seen.told("plugins/ghost") == []


@scenario("root-symlink-swap")
async def _(stage: Stage) -> None:
    v1, v2 = stage.place / "v1", stage.place / "v2"
    stage.r.rename(v1)
    v2.mkdir()
    bundles.drop(v2, "p", author=ACME, id="acme.p", version="2.0.0")
    bundles.drop(v2, "only2", author=ACME, id="acme.only2")
    stage.r.symlink_to(v1)
    await _passes(stage)
    for target, version in ((v2, "2.0.0"), (v1, "1.0.0"), (v2, "2.0.0")):
        (stage.place / "link").symlink_to(target)
        (stage.place / "link").rename(stage.r)
        await until(lambda: _version(stage, "p") == version)  # noqa: B023
        await until(lambda: stage.code("only2") == ("verified" if target == v2 else None))  # noqa: B023
    bundles.tamper(v2 / "p" / "artifact")
    await stage.becomes("p", "digest_mismatch")


@scenario("plugin-dir-symlink")
async def _(stage: Stage) -> None:
    stage.spare()
    stage.sh("ln -s $B link")
    await _passes(stage)
    assert stage.seen.told("plugins/link") == []


@scenario("symlink-target-outside")
async def _(stage: Stage) -> None:
    stage.sh("mkdir l1 l2 && ln -s /etc/passwd l1/manifest.json && ln -s /dev/zero l1/artifact")
    stage.sh("cp p/manifest.json l2/ && ln -s /dev/zero l2/artifact")
    await stage.becomes("l1", "manifest_not_regular")
    await stage.becomes("l2", "artifact_not_regular")


@scenario("symlink-cycle")
async def _(stage: Stage) -> None:
    stage.sh("ln -s . p/loop && ln -s . loop")
    await _passes(stage)
    assert stage.code("p") == "verified"
    assert stage.seen.told("plugins/loop") == []


@scenario("symlink-broken")
async def _(stage: Stage) -> None:
    stage.sh("ln -s /nonexistent broken")
    await _passes(stage)
    assert stage.seen.told("plugins/broken") == []


@scenario("special-files")
async def _(stage: Stage) -> None:
    stage.sh("mkdir fifo fifo2 && cp p/manifest.json fifo2/")
    stage.sh("mkfifo fifo/manifest.json fifo/artifact fifo2/artifact")
    await stage.becomes("fifo", "manifest_not_regular")
    await stage.becomes("fifo2", "artifact_not_regular")
    if os.geteuid() == 0:
        stage.sh("mkdir node && mknod node/manifest.json c 1 5 && cp p/artifact node/")
        await stage.becomes("node", "manifest_not_regular")
    await _passes(stage)


@scenario("toctou-swap")
async def _(stage: Stage) -> None:
    verified = stage.seen.now["plugins/p"]
    assert isinstance(verified, Verified)
    evil = stage.spare("evil")
    bundles.write(evil, (stage.r / "p" / "manifest.json").read_bytes(), b"#!/bin/sh\nevil\n")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            os.rename(stage.r / "p", stage.place / "aside")
            os.rename(evil, stage.r / "p")
            os.rename(stage.r / "p", evil)
            os.rename(stage.place / "aside", stage.r / "p")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for attempt in range(60):
            store = Store(stage.place / f"store{attempt}")
            stage.seen.catalog._store = store
            try:
                await stage.seen.catalog.keep("plugins/p", verified)
            except BundleRefused:
                continue
            stored = store.verify(verified.identity, catalogs.trusting(ACME), host_version=catalogs.HOST_VERSION)
            assert stored == verified
    finally:
        stop.set()
        swapper.join()
    await stage.becomes("p", "verified")


@scenario("chmod-only")
async def _(stage: Stage) -> None:
    stage.sh("chmod 600 p/manifest.json")
    await _passes(stage)
    assert len(stage.seen.told("plugins/p")) == 1


@scenario("touch-only")
async def _(stage: Stage) -> None:
    stage.sh("touch p/manifest.json p/artifact")
    await _passes(stage)
    assert len(stage.seen.told("plugins/p")) == 1


@scenario("rapid-updates")
async def _(stage: Stage) -> None:
    manifest = stage.r / "p" / "manifest.json"
    judged = stage.seen.catalog.counters["judged"]
    last = stage.spare("B", id="acme.p", version="500.0.0")
    for number in range(499):
        manifest.write_text(json.dumps({"number": number}))
        await asyncio.sleep(0.001)
    shutil.copy(last / "manifest.json", manifest)
    await until(lambda: _version(stage, "p") == "500.0.0")
    assert stage.seen.catalog.counters["judged"] - judged < 50


@scenario("queue-overflow")
async def _(stage: Stage) -> None:
    (directory,) = stage.seen.catalog._directories.values()
    inotify = directory._watcher._inotify
    assert inotify is not None
    with inotify._lock:  # the reader of events stands still while they pile up
        for number in range(9_000):
            os.close(os.open(stage.r / "p" / f"file{number}", os.O_WRONLY | os.O_CREAT))
        stage.drop("late", id="acme.late")
    await until(lambda: stage.seen.catalog.counters["overflows"] > 0)
    await stage.becomes("late", "verified")


@scenario("unmount")
async def _(stage: Stage) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs uid 0")
    stage.spare()
    mounted = False
    try:
        subprocess.run(["mount", "-t", "tmpfs", "none", stage.r], check=True)
        mounted = True
        await stage.becomes("p", None)
        subprocess.run(["cp", "-r", stage.place / "spare" / "B", stage.r / "m"], check=True)
        await stage.becomes("m", "verified")
        await until(lambda: subprocess.run(["umount", stage.r], check=False, stderr=subprocess.DEVNULL).returncode == 0)
        mounted = False
        await stage.becomes("m", None)
        await stage.becomes("p", "verified")
    finally:
        if mounted:
            subprocess.run(["umount", "-l", stage.r], check=True)


@scenario("nonexistent-root")
async def _(stage: Stage) -> None:
    root = stage.place / "later"
    async with catalogs.watching(root, ACME) as seen:
        assert seen.now == {}
        assert len(seen.catalog.problems()) == 1
        root.mkdir()
        bundles.drop(root, "p", author=ACME)
        await until(lambda: seen.code("plugins/p") == "verified")
        assert seen.catalog.problems() == ()


@scenario("root-is-file")
async def _(stage: Stage) -> None:
    root = stage.place / "file"
    root.write_text("not a directory")
    async with catalogs.watching(root, ACME) as seen:
        assert seen.now == {}
        assert "found a regular file" in seen.catalog.problems()[0]
        root.unlink()
        root.mkdir()
        bundles.drop(root, "p", author=ACME)
        await until(lambda: seen.code("plugins/p") == "verified")


@scenario("unicode-name")
async def _(stage: Stage) -> None:
    source = stage.spare()
    names = [b"\xff\xfe", "caf\u00e9".encode(), "cafe\u0301".encode()]
    for name in names:
        subprocess.run(["cp", "-r", source, os.fsencode(stage.r) + b"/" + name], check=True)
    for name in names:
        await stage.becomes(os.fsdecode(name), "verified")
    bundles.tamper(Path(os.fsdecode(os.fsencode(stage.r) + b"/\xff\xfe/artifact")))
    await stage.becomes(os.fsdecode(b"\xff\xfe"), "digest_mismatch")
    assert isinstance(await stage.seen.catalog.judge("caf\u00e9"), Verified)


@scenario("glob-name")
async def _(stage: Stage) -> None:
    for number, name in enumerate(("nota[glob]", "*", "?", "nota")):
        stage.drop(name, id=f"acme.glob{number}")
    for name in ("nota[glob]", "*", "?", "nota"):
        await stage.becomes(name, "verified")
    bundles.tamper(stage.r / "*" / "artifact")
    await stage.becomes("*", "digest_mismatch")
    assert stage.code("nota[glob]") == stage.code("nota") == stage.code("p") == "verified"


@scenario("case-rename")
async def _(stage: Stage) -> None:
    stage.sh("mv p P")
    await stage.becomes("P", "verified")
    await stage.becomes("p", None)


@scenario("hardlink-artifact")
async def _(stage: Stage) -> None:
    outside = stage.place / "outside"
    shutil.copy(stage.r / "p" / "artifact", outside)
    (stage.r / "p" / "artifact").unlink()
    os.link(outside, stage.r / "p" / "artifact")
    await stage.settled()
    assert stage.code("p") == "verified"
    verified = stage.seen.now["plugins/p"]
    assert isinstance(verified, Verified)
    store = stage.seen.catalog._store = Store(stage.place / "store")
    await stage.seen.catalog.keep("plugins/p", verified)
    bundles.tamper(outside)  # no event says so: the name that was written is not in the plugin directory
    stage.seen.catalog._store = Store(stage.place / "another")
    with pytest.raises(BundleRefused):
        await stage.seen.catalog.keep("plugins/p", verified)
    assert store.verify(verified.identity, catalogs.trusting(ACME), host_version=catalogs.HOST_VERSION) == verified
    stage.seen.catalog.rescan()
    await stage.becomes("p", "digest_mismatch")


@scenario("stop-during-burst")
async def _(stage: Stage) -> None:
    async with catalogs.watching(stage.r, ACME):
        for number in range(100):
            stage.drop(f"burst{number}", id=f"acme.burst{number}")


@scenario("prefix-dir")
async def _(stage: Stage) -> None:
    stage.drop("ab", id="acme.ab")
    stage.drop("abc", id="acme.abc")
    await stage.becomes("ab", "verified")
    await stage.becomes("abc", "verified")
    stage.sh("rm -r ab")
    await stage.becomes("ab", None)
    bundles.tamper(stage.r / "abc" / "artifact")
    await stage.becomes("abc", "digest_mismatch")
    assert len(stage.seen.told("plugins/abc")) == 2


@scenario("dup-id-two-dirs")
async def _(stage: Stage) -> None:
    def resolved() -> claimants.Settled:
        rivals = [
            claims.IdClaim(name=name, verdict=verdict)
            for name, verdict in stage.seen.now.items()
            if isinstance(verdict, Verified) and verdict.manifest.id == "acme.p"
        ]
        return claimants.resolve(rivals, None)

    stage.sh("cp -r p twin")
    await stage.becomes("twin", "verified")
    assert {name: refused.code.value for name, refused in resolved().refused.items()} == {
        "plugins/p": "duplicate_id",
        "plugins/twin": "duplicate_id",
    }
    stage.sh("rm -r p")
    await stage.becomes("p", None)
    winner = resolved().winner
    assert winner is not None
    assert winner.name == "plugins/twin"


@pytest.mark.parametrize("name", sorted({*SCENARIOS} - ELSEWHERE.keys()))
async def test_catalog_after_each_scenario_equals_a_fresh_scan(name: str, tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.r.mkdir()
    (tmp_path / "spare").mkdir()
    stage.drop("p", id="acme.p")
    async with catalogs.watching(stage.r, ACME) as stage.seen:
        await SCENARIOS[name](stage)
        await stage.settled()


async def test_two_catalogs_of_one_directory_see_the_same_change(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    stage.r.mkdir()
    stage.drop("p", id="acme.p")
    async with catalogs.watching(stage.r, ACME) as one, catalogs.watching(stage.r, ACME) as other:
        bundles.tamper(stage.r / "p" / "artifact")
        for seen in (one, other):
            await until(lambda: seen.code("plugins/p") == "digest_mismatch")  # noqa: B023


def test_every_scenario_of_the_suite_is_run_or_named_elsewhere() -> None:
    if not SUITE.exists():
        pytest.skip("outside test suites are not here")
    wanted = {row["id"] for row in json.loads(SUITE.read_text())}
    assert wanted - SCENARIOS.keys() - ELSEWHERE.keys() == set()


def _version(stage: Stage, name: str) -> str | None:
    verdict = stage.seen.now.get(f"plugins/{name}")
    return verdict.manifest.version if isinstance(verdict, Verified) else None


def _id(stage: Stage, name: str) -> str | None:
    verdict = stage.seen.now.get(f"plugins/{name}")
    return verdict.manifest.id if isinstance(verdict, Verified) else None


async def _passes(stage: Stage) -> None:
    """Wait until a later change was seen, so all earlier ones were seen too."""
    stage.drop("marker", id="acme.marker")
    await stage.becomes("marker", "verified")
