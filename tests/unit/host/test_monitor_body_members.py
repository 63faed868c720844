"""How much of a body that is compressed in many pieces a monitor looks into."""

from __future__ import annotations

import gzip

import pytest

from latticed.host.egress.body import MAX_MEMBERS
from latticed.host.monitor.body_search import BodySearch

EMPTY, WORDS = gzip.compress(b""), gzip.compress(b"all is well")


@pytest.mark.parametrize("piece", [7, 64 << 10])
@pytest.mark.parametrize(("empty", "kind"), [(MAX_MEMBERS - 1, "found"), (MAX_MEMBERS + 1, "too_large")])
def test_words_are_looked_for_in_so_many_members_of_gzip(piece, empty, kind):
    """However the body is split: each member takes a decompressor and a copy of what follows it."""
    search, sent = BodySearch("is well", coding="gzip", charset=None, limit=256 << 10), EMPTY * empty + WORDS
    for start in range(0, len(sent), piece):
        search.feed(sent[start : start + piece])
    assert search.end().kind == kind
