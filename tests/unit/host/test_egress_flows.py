"""http.do with public addresses, redirects and DNS, in a network namespace of the test."""

from __future__ import annotations

import pytest

from tests.house import flows, netns, outside

WHY_NOT = netns.why_not()
pytestmark = [pytest.mark.root, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


@pytest.mark.parametrize("name", flows.FLOWS)
def test_egress_flow_connects_and_refuses_as_expected(name):
    """Each flow of tests/house/flows.py asserts what is connected to, what arrives, and the code of each refusal."""
    netns.run(outside.ADDRESSES, flows.FLOWS[name])
