"""http.do in a hostile world: public addresses, redirects and DNS in a network of the test's own."""

from __future__ import annotations

import pytest

from tests.house import flows, netns, outside

WHY_NOT = netns.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


@pytest.mark.parametrize("name", flows.FLOWS)
def test_a_hostile_world_gets_nothing(name):
    """Each scenario says itself what is dialled, what arrives, and with which code the rest is refused."""
    netns.run(outside.ADDRESSES, flows.FLOWS[name])
