"""What an operator is shown and told of a tunnel."""

from __future__ import annotations

import datetime as dt

import pytest

from latticed.system.cloudflared import alerts, decode, render, states
from latticed.system.cloudflared.alerts import KnownTrouble
from tests.house import edges

REST = {"service": "http_status:404"}
(WANTED,) = decode.read(
    {"tunnels": [{"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json", "ingress": [REST]}]}
).tunnels
OTHER_RULES = [{"hostname": "a.example.com", "path": "", "service": "http_status:404"}, *render.ingress(WANTED)]


def view(state="connected", code="", *, trying=False, **more):
    error = {"code": code, "message": f"about {code}", "at": "2026-01-01T00:00:00Z"} if code else None
    plain = {"name": "main", "tunnel": edges.TUNNEL, "state": state, "trying": trying, "last_error": error}
    return {**plain, "version": "2026.1.0", **more}


def seen(found, *, refused=None, in_force=None):
    state = states.of_tunnel(WANTED, found, refused=refused, in_force=in_force)
    return state.level, state.code


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, ("pending", "")),
        (view("starting"), ("pending", "")),
        (view("starting", "change_interrupted"), ("pending", "")),
        (view("starting", "no_name_service"), ("down", "no_name_service")),
        (view("connecting", "exited"), ("pending", "")),
        (view("connecting", "edge_unreachable"), ("down", "edge_unreachable")),
        (view("waiting", "no_name_service"), ("down", "no_name_service")),
        (view("waiting", "exited"), ("down", "exited")),
        (view("failed", "credentials_refused"), ("down", "credentials_refused")),
        (view("failed", "remotely_managed"), ("down", "remotely_managed")),
        (view("stopped", "exited"), ("down", "stopped")),
        (view("connected", "exited"), ("ok", "")),
        (view("connected", trying=True), ("pending", "")),
        (view("connected", tunnel="7ff42ae2-765d-4adf-8112-31c55c1551ef"), ("degraded", "change_undone")),
    ],
)
def test_state_of_a_tunnel_by_what_its_process_does(found, expected):
    assert seen(found) == expected


def test_rules_that_are_not_the_configured_ones_are_not_in_order():
    """Also when the error that said why was followed by another one."""
    assert seen(view(), in_force=render.ingress(WANTED)) == ("ok", "")
    assert seen(view("connected", "change_undone"), in_force=OTHER_RULES) == ("degraded", "change_undone")
    assert seen(view("connected", "exited"), in_force=OTHER_RULES) == ("degraded", "change_undone")
    assert seen(view("connected", "change_undone"), in_force=render.ingress(WANTED)) == ("ok", "")


def test_refused_put_is_told_whether_or_not_something_runs():
    refused = ("service_unavailable", "main.json has mode 0644")
    assert seen(None, refused=refused) == ("down", "service_unavailable")
    assert seen(view(), refused=refused) == ("degraded", "service_unavailable")
    assert seen(view("waiting", "no_name_service"), refused=refused) == ("down", "no_name_service")


@pytest.mark.parametrize(
    ("version", "today", "noted"),
    [
        ("2025.11.1", (2026, 11, 30), False),
        ("2025.11.1", (2026, 12, 1), True),
        ("2024.12.0", (2025, 12, 31), False),
        ("2024.12.0", (2026, 1, 1), True),
        ("2025.13.0", (2030, 1, 1), False),
        ("DEV", (2030, 1, 1), False),
        ("", (2030, 1, 1), False),
    ],
)
def test_version_older_than_a_year_is_noted(version, today, noted):
    assert bool(states.age_note(version, dt.date(*today))) is noted


def state(level="down", code="no_name_service", at=""):
    return states.TunnelState(name="main", level=level, code=code, message="why", at=at)


def play(*moments):
    """Titles told over (seconds, state) moments."""
    known, told = KnownTrouble(), []
    for now_s, one in moments:
        known, alert = alerts.after(known, one, "node1", now_s=now_s)
        told += [(alert.event, alert.severity)] if alert else []
    return told


OK = state("ok", "")
DOWN, UP = ("tunnel.down", "error"), ("tunnel.up", "info")


def test_trouble_is_told_once_it_lasts_and_so_is_its_end():
    assert play((0, OK), (1, state()), (30, state()), (50, OK), (51, state()), (90, state())) == []
    assert play((0, state()), (61, state()), (62, state()), (500, state()), (501, OK), (502, OK)) == [DOWN, UP]


def test_trouble_that_only_a_person_ends_is_told_at_once():
    assert play((0, state(code="credentials_refused")), (5, state(code="credentials_refused"))) == [DOWN]
    assert play((0, state("degraded", "change_undone")), (1, OK)) == [("tunnel.not_as_configured", "warning"), UP]


def test_cause_that_changes_is_told_again_only_where_something_else_has_to_be_done():
    unreachable, refused = state(code="edge_unreachable"), state(code="credentials_refused")
    assert play((0, state()), (61, state()), (70, unreachable), (200, unreachable)) == [DOWN]
    assert play((0, state()), (61, state()), (70, refused), (200, refused)) == [DOWN, DOWN]


def test_waiting_is_neither_trouble_nor_its_end():
    waiting = state("pending", "")
    assert play((0, waiting), (100, waiting), (101, state()), (130, waiting), (162, state())) == [DOWN]


def test_same_trouble_after_a_restart_is_the_same_message():
    _, first = alerts.after(KnownTrouble(), state(code="change_undone", at="T1"), "", now_s=0)
    _, again = alerts.after(KnownTrouble(), state(code="change_undone", at="T1"), "", now_s=0)
    _, later = alerts.after(KnownTrouble(), state(code="change_undone", at="T2"), "", now_s=0)
    assert first.dedupe == again.dedupe != later.dedupe


@pytest.mark.parametrize("code", sorted(states.FIXES))
def test_every_code_says_what_to_do(code):
    assert state(code=code).fix
