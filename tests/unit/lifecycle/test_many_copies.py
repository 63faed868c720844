"""Many copies of one bundle: work and log lines grow with the changes, not with the number of copies."""

from __future__ import annotations

import os
import shutil

from latticed.lifecycle.refused_log import MOST_LINES, RefusedLog
from latticed.model.verdict import Code, Refused
from latticed.trust.claims import Claimants
from tests.house import bundles, in_process

ID = "acme.demo"
ACME = bundles.author("acme")
COPIES, RENAMES = 250, 20


class Lines:
    """A logger that keeps its lines."""

    def __init__(self):
        self.said = []

    def warning(self, event, **fields):
        self.said.append((event, fields))


async def test_renaming_one_of_many_copies_judges_one_and_logs_one_line(monkeypatch):
    """The first copies give one line; each rename judges one and logs at most one; the plugin keeps running."""
    async with in_process.opened(author=ACME, policy=bundles.policy_bytes(ACME)) as home:
        home.drop("demo", id=ID)
        await home.seen(ID)
        await home.decide(ID, "installed")
        await home.decide(ID, "active")
        lifecycle, lines, asked = home.app.api.lifecycle, Lines(), []
        lifecycle.registry._refused_log = RefusedLog(lines)
        refusal = Claimants.refusal
        monkeypatch.setattr(Claimants, "refusal", lambda self, *given: asked.append(given) or refusal(self, *given))
        for number in range(COPIES):
            shutil.copytree(home.plugin_dir / "demo", home.plugin_dir / f".{number}", copy_function=os.link)
            os.rename(home.plugin_dir / f".{number}", home.plugin_dir / f"copy-{number}")
        await in_process.until(lambda: len(lifecycle.registry._verdicts) == COPIES + 1, "all copies seen")
        # A batch is told of once all of it is known.
        await in_process.until(
            lambda: sum(one.get("bundles", 0) for _, one in lines.said) == COPIES, "all copies told of"
        )
        assert len(asked) <= COPIES
        lines.said.clear()
        asked.clear()
        for number in range(RENAMES):
            os.rename(home.plugin_dir / f"copy-{number}", home.plugin_dir / f"moved-{number}")
        moved = {f"plugins/moved-{number}" for number in range(RENAMES)}
        await in_process.until(lambda: moved <= set(lifecycle.registry._verdicts), "the renames seen")
        await in_process.until(lambda: len(lifecycle.registry._verdicts) == COPIES + 1, "the old names gone")
        assert len(lines.said) <= RENAMES
        assert len(asked) <= 2 * RENAMES
        assert len(lifecycle.rejected()) == COPIES
        assert (await home.plugin(ID))["runtime"]["state"] == "armed"


def test_batch_of_refused_bundles_logs_bounded_number_of_lines():
    """20,000 broken bundles at a start give MOST_LINES lines, and one that counts the rest."""
    lines = Lines()
    refusals = RefusedLog(lines)
    with refusals.bounded():
        for number in range(20_000):
            refusals.tell(bundle=f"plugins/{number}", code=Code.MANIFEST_MISSING)
    assert len(lines.said) == MOST_LINES + 1
    assert lines.said[-1] == ("verdicts_refused", {"more": 20_000 - MOST_LINES})
    refusals.tell(bundle="plugins/later", code=Code.MANIFEST_MISSING)
    assert lines.said[-1][1]["bundle"] == "plugins/later"


def test_bundle_that_became_a_duplicate_is_logged():
    """One entry counts both: the new claimant of the id, and the bundle that claimed it before."""
    lines = Lines()
    refusals = RefusedLog(lines)
    refusals.newcomer(ID, "plugins/new")
    refusals.update(ID, "plugins/old", lambda _: Refused(code=Code.DUPLICATE_ID, reason="two"))
    assert lines.said == [
        ("verdict_refused", {"bundle": "plugins/new", "bundles": 2, "code": Code.DUPLICATE_ID, "plugin_id": ID})
    ]
