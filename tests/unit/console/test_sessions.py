"""One-time links and sessions."""

from __future__ import annotations

from latticed.console import sessions
from latticed.console.sessions import SessionKeys


def test_a_link_opens_one_session():
    keys = SessionKeys()
    link = keys.link(0)
    secret = keys.opened(link, 1)
    assert secret is not None
    assert keys.opened(link, 1) is None
    assert keys.session(secret, 2) is not None


def test_two_links_open_two_sessions_with_secrets_of_their_own():
    keys = SessionKeys()
    links = [keys.link(0), keys.link(0)]
    opened = [keys.opened(one, 1) for one in links]
    assert len({*links, *opened}) == 4


def test_a_link_is_too_old_after_ten_minutes():
    keys = SessionKeys()
    link = keys.link(0)
    assert keys.opened(link, sessions.LINK_S + 1) is None
    assert keys.opened(link, 1) is None


def test_a_cookie_that_this_start_did_not_give_is_no_session():
    """Cookie fixation: what somebody else planted never becomes a session, nor does one of an earlier start."""
    keys, before = SessionKeys(), SessionKeys()
    planted = before.opened(before.link(0), 0)
    opened = keys.opened(keys.link(0), 0)
    assert opened not in {planted, "planted"}
    for cookie in (planted, "planted", "", None, "x" * 10_000, "\udcff"):
        assert keys.session(cookie, 1) is None


def test_a_link_is_no_session_and_a_session_no_link():
    keys = SessionKeys()
    link = keys.link(0)
    assert keys.session(link, 0) is None
    secret = keys.opened(link, 0)
    assert keys.opened(secret or "", 0) is None


def test_a_session_ends_when_it_rests_for_long():
    keys = SessionKeys()
    secret = keys.opened(keys.link(0), 0)
    assert keys.session(secret, sessions.IDLE_S) is not None
    assert keys.session(secret, 2 * sessions.IDLE_S) is not None
    assert keys.session(secret, 3 * sessions.IDLE_S + 1) is None
    assert keys.session(secret, 3 * sessions.IDLE_S + 1) is None


def test_a_session_can_be_ended():
    keys = SessionKeys()
    secret = keys.opened(keys.link(0), 0)
    keys.close(secret)
    keys.close(None)
    assert keys.session(secret, 0) is None


def test_the_oldest_go_when_there_are_too_many():
    keys = SessionKeys()
    secrets = [keys.opened(keys.link(0), 0) for _ in range(sessions.MOST_SESSIONS + 1)]
    assert keys.session(secrets[0], 0) is None
    assert keys.session(secrets[-1], 0) is not None
    links = [keys.link(0) for _ in range(sessions.MOST_LINKS + 1)]
    assert keys.opened(links[0], 0) is None
    assert keys.opened(links[-1], 0) is not None
