"""The artifact is swapped while its plugin starts: the verified bytes run, or none."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from latticed.broker.gate import Broker, GateLimits
from latticed.bundle import read
from latticed.catalog.store import Store
from latticed.kit.clock import SystemClock
from latticed.model import restart
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Verified
from latticed.runners.contract import PluginToRun
from latticed.runners.kept_copies import KeptCopies
from latticed.runners.noop import NoopInstance, NoopRunner
from latticed.runners.process import ProcessRunner
from latticed.supervisor.deps import HandleDeps
from latticed.trust import verify
from tests.house import bundles, catalogs, confined, processes, runner_deps, supervisors, swapper

SEALED, ARMED = 760, 80
"""Number of races up to the sealed bytes, and for each of three kinds of program: a thousand in all."""
NUDGED = 0.5
"""Share of the swaps that are triggered right after a verdict; the others come at random moments."""
DEADLINE_S = 40.0
FILLER_BYTES = 300_000
"""More than one read takes, so that a swap can happen between two reads."""
GOOD, EVIL = "verified", "tampered"
LATE = {
    "rename": "digest_mismatch",
    "in_place": "digest_mismatch",
    "mapped": "digest_mismatch",
    "rewrite": "digest_mismatch",
    "append": "digest_mismatch",
    "empty": "digest_mismatch",
    "huge": "artifact_too_large",
    "link": "artifact_not_regular",
    "hard_link": "digest_mismatch",
    "fifo": "artifact_not_regular",
    "unlink": "artifact_missing",
    "directory": "digest_mismatch",
    "directory_link": "unreadable",
    "no_directory": "manifest_missing",
}
"""The expected code for each way of swapping between the verdict and the start."""

SCRIPT = """#!/bin/sh
echo {mark} >&2
{filler}
echo {mark} >&2
while read -r line; do
    case $line in
    *jsonrpc*)
        id=${{line#*'"id":'}}
        echo '{{"jsonrpc":"2.0","id":'"${{id%%,*}}"',"result":{{"ok":true,"message":"{mark}"}}}}'
        ;;
    *) echo '{{"ok":true,"message":"{mark}","result":null,"error":null}}' ;;
    esac
done
"""
FILLER = "# nothing\n" * (FILLER_BYTES // 10)


def script(mark: str) -> bytes:
    """Prints `mark` first and last, so that a mixture of two scripts would show."""
    return SCRIPT.format(mark=mark, filler=FILLER).encode()


def program(mark: str) -> bytes:
    found = confined.compiled("marked")
    assert found.count(b"MARK:verified") == 1
    return found.replace(b"MARK:verified", b"MARK:" + mark.encode()) + bytes(FILLER_BYTES)


class Sealing(NoopRunner):
    """Starts as the process runner does, up to the moment at which there would be a process."""

    hashes_artifact = True

    def __init__(self, good: bytes, copies: KeptCopies) -> None:
        super().__init__("sealed by a test")
        self._good = good
        self._copies = copies

    async def start(self, plugin, pair, gate, on_exit) -> NoopInstance:
        sha256 = hashlib.sha256(self._good).hexdigest()
        with await self._copies.sealed(plugin.identity, pair, sha256=sha256) as sealed:
            found = os.pread(sealed.fd, len(self._good) + 1, 0)
        assert found == self._good, "other bytes than those that were verified"
        return await super().start(plugin, pair, gate, on_exit)


@dataclass(slots=True, kw_only=True)
class Stage:
    """A stored plugin, and the way in which the supervisor starts it. `between` happens after each verdict."""

    plugin: PluginToRun
    store: Store
    policy: object
    pair: Path
    aside: Path
    runner: object
    verified: int = 0
    between: Callable[[], object] = lambda: None
    outcomes: Counter[str] = field(default_factory=Counter)
    refused: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    deadline: float = field(default_factory=lambda: time.monotonic() + DEADLINE_S)

    async def race(self):
        """One start: the running instance, or None if it was refused with a known code."""
        tools, before = self._tools(), self.verified
        try:
            instance = await tools.start(self.plugin, tools.gate(self.plugin, frozenset()), lambda code, message: None)
        except Problem as problem:
            Code(problem.code)  # or a ValueError
            self.outcomes[problem.code] += 1
            self.outcomes["late" if self.verified > before else "early"] += 1
            return None
        self.outcomes["started"] += 1
        return instance

    def over(self, races: int) -> bool:
        """Whether there were enough races and each of the three outcomes occurred."""
        ends = [self.outcomes[end] for end in ("started", "early", "late")]
        assert time.monotonic() < self.deadline, self.outcomes
        return sum(ends) >= races and all(ends)

    async def _judge(self, identity: str, sha256: str | None):
        def judged():
            return self.store.verify(identity, self.policy, host_version=catalogs.HOST_VERSION, sha256=sha256)

        verdict = await asyncio.to_thread(judged)
        self.verified += isinstance(verdict, Verified)
        self.between()
        return verdict

    def _tools(self) -> HandleDeps:
        clock = SystemClock()

        def record(_event, done):

            done(1, None)

        return HandleDeps(
            runners={"system": self.runner},
            broker=Broker({}, record=record, clock=clock, gate_limits=GateLimits()),
            store=self.store,
            judge=self._judge,
            record=lambda event: None,
            clock=clock,
            restart=restart.RestartPolicy(),
            start_deadline_s=10,
            stop_grace_s=5,
            refused=self.refused,
        )


@pytest.fixture
def staged(tmp_path):
    """A function that makes a Stage for the artifact bytes `make(mark)`, run by `runner`."""

    def stage(make: Callable[[str], bytes], runner, **manifest) -> Stage:
        acme = bundles.author()
        store, policy, aside = Store(tmp_path / "store"), catalogs.trusting(acme), tmp_path / "aside"
        aside.mkdir()
        (aside / "evil").write_bytes(make(EVIL))
        bundles.drop(aside, "other", author=acme, artifact=make(EVIL), v2=True, **manifest)  # signed, all the same
        bundle = bundles.drop(tmp_path, author=acme, artifact=make(GOOD), v2=True, **manifest)
        with read.open_bundle(bundle.path, limits=read.ReadLimits(), owners=supervisors.owners()) as found:
            verdict = verify.verify(found, policy, host_version=catalogs.HOST_VERSION)
            assert isinstance(verdict, Verified), verdict
            store.keep(found, verdict)
        plugin = PluginToRun(id=bundle.id, identity=verdict.identity, manifest=verdict.manifest)
        pair = store.path(plugin.identity)
        return Stage(plugin=plugin, store=store, policy=policy, pair=pair, aside=aside, runner=runner)

    return stage


@contextlib.contextmanager
def swapped(stage: Stage, *, seed: int) -> Iterator[None]:
    """Another process swaps the artifact and puts it back: at random moments, and right after verdicts."""
    with pipe() as (nudges, nudge):
        arguments = [str(stage.pair), str(stage.aside), str(nudges), str(seed)]
        with processes.spawned([sys.executable, "-ISB", swapper.__file__, *arguments], pass_fds=[nudges]) as process:
            assert process.stdout.readline() == b"ready\n", process.stderr.read()
            dice = random.Random(seed)
            stage.between = lambda: dice.random() < NUDGED and os.write(nudge, b"!")
            yield
            assert process.poll() is None, process.stderr.read()  # else the last races were none


@contextlib.contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@pytest.fixture(params=[0, 64 << 20], ids=["anew", "kept"])
async def copies(request):
    """What starts take their copy from: one that keeps none, and one that keeps them for the next start."""
    with contextlib.closing(KeptCopies(request.param)) as found:
        yield found


@pytest.mark.parametrize("way", LATE)
async def test_artifact_swapped_between_verdict_and_start_is_refused(staged, copies, way):
    """The lifecycle hears of it, unless a later read may succeed; once the artifact is restored, the plugin starts.

    That it has been started before, and its copy was kept, changes nothing.
    """
    stage = staged(script, Sealing(script(GOOD), copies))
    stranger = swapper.Swapper(stage.pair, stage.aside)
    assert await stage.race() is not None
    stage.between = stranger.ways[way]
    assert await stage.race() is None
    assert (stage.verified, stage.outcomes[LATE[way]]) == (2, 1), stage.outcomes
    assert stage.refused.qsize() == (LATE[way] != "unreadable")  # the lifecycle hears of it, unless it may pass
    stranger.back()
    stage.between = lambda: None
    assert await stage.race() is not None


def test_racing_swapper_has_the_same_ways_as_the_test_above(staged):
    stage = staged(script, Sealing(script(GOOD), KeptCopies()))
    assert set(swapper.Swapper(stage.pair, stage.aside).ways) == set(LATE)


@pytest.mark.slow
async def test_sealed_bytes_equal_the_verified_ones_while_swapping(staged):
    """Another process swaps the files at any moment: each start seals the verified bytes or is refused."""
    stage = staged(script, Sealing(script(GOOD), KeptCopies()))
    with swapped(stage, seed=1):
        while not stage.over(SEALED):
            await stage.race()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "protocol"), [(script, "latticed-stdio-1"), (script, "stdio-json-v1"), (program, "latticed-stdio-1")]
)
async def test_executed_bytes_equal_the_verified_ones_while_swapping(staged, make, protocol):
    """Each process writes a mark from its bytes to stderr, those of later invocations too. Copies are kept."""
    told: list[tuple[str, str]] = []
    with contextlib.closing(KeptCopies(64 << 20)) as kept:
        runner = ProcessRunner(runner_deps.spawner(), runner_deps.outputs(told), kept)
        stage = staged(make, runner, runtime={"protocol": protocol})
        with swapped(stage, seed=2):
            while not stage.over(ARMED):
                if (instance := await stage.race()) is not None:
                    reply = await instance.invoke("who", None)
                    await instance.stop(5.0)
                    assert reply["message"] == GOOD
        assert kept.bytes > FILLER_BYTES
    assert {line for _, line in told} == {GOOD}
    assert len(told) >= stage.outcomes["started"]
