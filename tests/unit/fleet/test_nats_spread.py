"""Agents whose engine was gone for an hour come back spread over half a minute, none of them later.

In virtual time, with the pauses that connections make: what is counted is when each of a thousand tries.
"""

from __future__ import annotations

import random
from collections import Counter

from latticed.fleet.nats_connection import PAUSES

AGENTS = 1_000
GONE_S = 3_600


def tries(roll):
    """When one agent tries after a loss at 0: it fails while the engine is gone, the last one connects."""
    now_s, failures = 0.0, 0
    while True:
        failures += 1
        now_s += PAUSES.delay_s(failures, roll())
        yield now_s
        if now_s >= GONE_S:
            return


def test_no_second_has_more_than_an_eighth_of_the_agents():
    roll = random.Random(20).random
    agents = [list(tries(roll)) for _ in range(AGENTS)]
    connected = Counter(int(one[-1] - GONE_S) for one in agents)
    assert sum(connected.values()) == AGENTS
    assert max(connected) < 30  # the longest pause: nobody waits for the reconciliation beside it
    assert max(connected.values()) < AGENTS / 8
    # While the engine is gone they try seldom: four times a minute each, and never many of them at once.
    tried = Counter(int(moment) for one in agents for moment in one if 120 < moment < GONE_S)
    assert max(tried.values()) < AGENTS / 8


def test_first_tries_after_a_server_has_died_are_spread_too():
    roll = random.Random(20).random
    tried = Counter(int(PAUSES.delay_s(1, roll())) for _ in range(AGENTS))
    assert max(tried.values()) < AGENTS / 8
