"""The counts in docs/security/model.md are those of the tables in the tests."""

from __future__ import annotations

import re

import pytest

from tests.daemon import test_access as access
from tests.daemon import test_console as console
from tests.daemon import test_console_limits as limits
from tests.daemon import test_process_peers as peers
from tests.hostile import test_artifact_swap as swaps
from tests.hostile import test_bundles_on_disk as on_disk
from tests.hostile import test_crowds as crowds
from tests.hostile import test_escapes as escapes
from tests.hostile import test_hostile_bundles as hostile
from tests.hostile import test_socket_abuse as abuse
from tests.hostile import test_writes_during_install as writes
from tests.house import pages

PAGE = "docs/security/model.md"
COUNTS = {
    "hostile bundles": len(hostile.CASES),
    "revocations": len(hostile.REVOCATIONS) * len(hostile.MAKES),
    "bundles on disk": len(on_disk.CASES),
    "writes during an install": len(writes.WRITES) * len(writes.MOMENTS) * len(writes.VERSIONS),
    "swaps in the store": swaps.SEALED + 3 * swaps.ARMED,
    "escapes": len(escapes.ATTEMPTS) * len(escapes.cases()) + len(escapes.LETHAL) * 2 * len(escapes.USERS),
    "attempts that are real": len(escapes.WORKS_AT_OPEN),
    "scopes": len(access.ROUTES) * len(access.CALLERS),
    "half requests": crowds.USERS * crowds.HALVES,
    "floods of a plugin": len(peers.FLOODS),
    "garbage of a plugin": len(peers.GARBAGE),
    "stalls on the control socket": len(abuse.STALLS),
    "attacks on the console": sum(map(len, (console.FOREIGN, console.ORIGINS, console.BEYOND, console.FORMS))),
    "misuse of the console's port": sum(map(len, (limits.HALF, limits.NO_REQUESTS, limits.FRAMINGS))),
}
LEAST = {"hostile bundles": 200, "writes during an install": 500, "half requests": 12 * 200}
"""The least that each family must have."""


def _rows():
    return {row[0]: row for row in pages.table(PAGE, "family")}


def test_page_lists_every_family_of_attacks():
    assert list(_rows()) == list(COUNTS)


@pytest.mark.parametrize("family", COUNTS)
def test_counts_of_attacks_on_the_page_equal_those_in_tests(family):
    """The last number of the second column; the file of the third exists."""
    _, told, where, _ = _rows()[family]
    assert int(re.findall(r"\d+", told)[-1]) == COUNTS[family]
    assert COUNTS[family] >= LEAST.get(family, 1)
    assert (pages.CHECKOUT / where).is_file()


def test_test_files_that_the_page_names_exist():
    """The page names directories, too."""
    named = re.findall(r"`(tests/[\w/.]+)`", (pages.CHECKOUT / PAGE).read_text())
    assert len(named) > len(COUNTS)
    assert [name for name in named if not (pages.CHECKOUT / name).exists()] == []


def test_every_layer_says_what_it_does_not_stop():
    text = (pages.CHECKOUT / PAGE).read_text().partition("## Layer by layer")[2]
    layers = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    assert len(layers) > 10
    assert [layer.splitlines()[0] for layer in layers if "\nDoes not stop: " not in layer] == []
