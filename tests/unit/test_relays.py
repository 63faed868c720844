"""Mail relays in the settings."""

from __future__ import annotations

import pytest

from latticed.settings import relays


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("smtps://Mail.Example.org:465", ("smtps", "mail.example.org", 465, False)),
        ("smtp://mail.lan:25=10.0.0.7", ("smtp", "mail.lan", 25, True)),
        ("smtp://127.0.0.1:25", ("smtp", "127.0.0.1", 25, False)),
        ("smtp://[2001:DB8::1]:587", ("smtp", "2001:db8::1", 587, False)),
    ],
)
def test_relay_is_parsed_into_scheme_host_and_port(value, found):
    """The fourth value is whether the address of a name is pinned (`=address`)."""
    assert relays.parsed(value) == found
    assert relays.relay_fault(value) == ""


@pytest.mark.parametrize(
    "value",
    [
        "mail.example.org",
        "smtp://mail.example.org",
        "smtp://mail.example.org:0",
        "smtp://mail.example.org:65536",
        "http://mail.example.org:25",
        "smtp://user@mail.example.org:25",
        "smtp://mail.example.org:25/",
        "smtp://mail.lan:25=nowhere",
        "smtp://mail.lan:25=0.0.0.0",
        "smtp://127.0.0.1:25=10.0.0.7",
        "smtp://127.1:25",
        " smtp://mail.example.org:25",
        "smtp://mail.example.org:25\n",
    ],
)
def test_invalid_relay_is_refused_by_settings(value):
    """The fault says what was expected."""
    assert relays.parsed(value) is None
    assert "smtps://host:port" in relays.relay_fault(value)


def test_empty_relay_is_valid_and_turns_mail_off():
    assert relays.relay_fault("") == ""


def test_allowed_mail_recipients_are_addresses_or_domains():
    assert relays.allow_fault(("ops@example.org", "@example.org")) == ""
    for odd in ("example.org", "ops@", "ops@ex ample.org", "ops@Example.org", "a@b@c"):
        assert "@example.org" in relays.allow_fault((odd,))
