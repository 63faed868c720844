"""More bundles than allowed: recorded ones need no slot, the rest share slots by owner, empty directories take none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.catalog import Catalog
from latticed.catalog.slots import BundleSlots
from latticed.kit.clock import SystemClock
from latticed.model.verdict import Verified
from tests.house import bundles, catalogs
from tests.house.catalogs import until

ACME = bundles.author()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    place = tmp_path / "plugins"
    place.mkdir()
    return place


async def test_empty_directories_take_no_slot_from_bundles(plugins: Path) -> None:
    """There are many more of them than slots, with names that sort first: at the start and later."""
    bundles.drop(plugins, "installed", author=ACME, id="acme.installed")
    for number in range(60):
        (plugins / f"{number:05}").mkdir()
    async with catalogs.watching(plugins, ACME, max_bundles=10) as seen:
        assert seen.code("plugins/installed") == "verified"
        bundles.drop(plugins, "newcomer", author=ACME, id="acme.newcomer")
        await until(lambda: seen.code("plugins/newcomer") == "verified")
        codes = [seen.code(name) for name in seen.now]
        assert codes.count("manifest_missing") <= 10
        assert len(codes) <= 2 + 10 + 10, "what is too much is a number"
        assert any("at most 10 bundles, found 50 more" in problem for problem in seen.catalog.problems())


async def test_recorded_bundle_is_judged_beyond_all_limits(plugins: Path) -> None:
    """There are more bundles than slots and more names than a listing takes, all sorting before it."""
    original = bundles.drop(plugins, "zz-installed", author=ACME, id="acme.installed").path
    for number in range(60):
        shutil.copytree(original, plugins / f"{number:05}", copy_function=os.link)
    trusted = catalogs.trusting(ACME)
    catalog = Catalog(
        {"plugins": plugins},
        policy=lambda: trusted,
        host_version=catalogs.HOST_VERSION,
        clock=SystemClock(),
        watch=catalogs.SWIFT,
        max_bundles=4,
    )
    catalog.mark_recorded("plugins/zz-installed")
    async with catalog:
        held = "plugins/zz-installed"
        assert isinstance(catalogs.verdicts(catalog)[held], Verified)
        assert sum(isinstance(verdict, Verified) for verdict in catalogs.verdicts(catalog).values()) == 4
        bundles.tamper(original / "artifact")
        await until(lambda: not isinstance(catalogs.verdicts(catalog)[held], Verified))
        assert any("found 57 more" in problem for problem in catalog.problems())


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to give directories to others")
async def test_unrecorded_bundles_share_slots_by_owner(plugins: Path) -> None:
    """An owner with all slots loses some to a second and a third owner, up to equal shares."""

    def crowd(uid: int, prefix: str, count: int) -> None:
        for number in range(count):
            bundle = bundles.drop(plugins, f"{prefix}{number}", author=ACME, id=f"acme.{prefix}{number}")
            os.chown(bundle.path, uid, uid)

    crowd(1001, "a", 12)
    async with catalogs.watching(plugins, ACME, max_bundles=8) as seen:

        def verified(prefix: str) -> int:
            return sum(seen.code(name) == "verified" for name in seen.now if name.startswith(f"plugins/{prefix}"))

        assert verified("a") == 8
        crowd(1002, "b", 1)
        await until(lambda: verified("b") == 1)
        crowd(1003, "c", 9)
        await until(lambda: (verified("a"), verified("b"), verified("c")) == (4, 1, 3), "a fair share")


@given(
    most=st.integers(0, 6),
    asked=st.lists(st.tuples(st.sampled_from("abcdefghij"), st.integers(0, 3), st.booleans()), max_size=60),
)
def test_bundle_slots_are_bounded_and_shared_fairly(most: int, asked: list[tuple[str, int, bool]]) -> None:
    """In any order of takes and releases, an owner who was refused had at most one slot less than the one with the
    most.
    """
    slots = BundleSlots(most)
    held: dict[str, int] = {}
    for name, owner, comes in asked:
        if not comes:
            slots.release(name)
            held.pop(name, None)
            continue
        took = slots.take(name, owner)
        for lost in slots.evicted():
            held.pop(lost, None)
        if took:
            held[name] = owner
        else:
            held.pop(name, None)
            mine = sum(one == owner for one in held.values())
            richest = max((sum(one == other for one in held.values()) for other in held.values()), default=0)
            assert len(held) == most
            assert richest <= mine + 1
        assert len(slots) == len(held) <= most
