"""monitor.put: parameters are validated once, and kept in normal form."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import HostError
from latticed.host.monitor import spec as specs

WEB = {"name": "web", "kind": "http", "target": "https://example.org/"}


def asked(**params):
    return msgspec.convert({**WEB, **params}, specs.MonitorPut, strict=True)


def checked(**params):
    return specs.checked(asked(**params), least_interval_s=10.0)


def test_monitor_spec_without_options_has_defaults():
    """30 s, 5 s, two in a row, 200 to 399, nothing of the body, no certificate rule, for the owner alone."""
    spec = checked()
    assert (spec.interval_s, spec.timeout_s, spec.failures, spec.statuses) == (30.0, 5.0, 2, ())
    assert (spec.body, spec.certificate_days, spec.shared) == ("", 0, False)


@pytest.mark.parametrize(
    ("kind", "given_target", "kept", "shown"),
    [
        ("http", "HTTP://Example.ORG:80/a b".replace(" ", "%20") + "?token=x#y", None, "http://example.org/a%20b"),
        ("http", "https://[::1]:8443", "https://[::1]:8443/", "https://[::1]:8443/"),
        ("tcp", "Example.org:22", "example.org:22", "example.org:22"),
        ("tcp", "[2001:DB8::1]:22", "[2001:db8::1]:22", "[2001:db8::1]:22"),
        ("ping", "bücher.example", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("ping", "[::1]", "::1", "::1"),
        ("ping", "2001:DB8::1", "2001:db8::1", "2001:db8::1"),
        ("ping", "192.0.2.1", "192.0.2.1", "192.0.2.1"),
    ],
)
def test_monitor_targets_are_normalised(kind, given_target, kept, shown):
    """Equal targets compare equal; the form that is shown has no query."""
    spec = checked(kind=kind, target=given_target)
    assert spec.target == (kept or "http://example.org/a%20b?token=x")
    assert spec.shown == shown
    assert specs.decode(specs.encode(spec)) == spec


@pytest.mark.parametrize(
    ("target", "parts"), [("a.example:1", ("a.example", 1)), ("[2001:db8::1]:65535", ("2001:db8::1", 65535))]
)
def test_tcp_target_splits_into_host_and_port(target, parts):
    """IPv6 addresses without brackets, as the guard takes them."""
    assert specs.host_and_port(checked(kind="tcp", target=target).target) == parts


@pytest.mark.parametrize(
    "params",
    [
        *({"name": name} for name in ("", "a b", "a/b", ".a", "x" * 65, "a\n")),
        *({"interval_s": value} for value in (9.9, 86_401, math.nan, math.inf, -1)),
        *({"timeout_s": value} for value in (0, 0.09, 61, math.nan)),
        {"interval_s": 10, "timeout_s": 11},
        *({"failures": value} for value in (0, 11)),
        *({"statuses": value} for value in ([99], [600], list(range(200, 217)))),
        *({"body": value} for value in ("x" * 257, "a\nb")),
        *({"certificate_days": value} for value in (366, 1000)),
        *(
            {"kind": "tcp", "target": value}
            for value in ("example.org", ":80", "a:0", "a:65536", "a:b", "::1:80", "a b:1")
        ),
        *({"kind": "ping", "target": value} for value in ("", "127.1", "0x7f000001", "a:80", "http://a/", "a/b")),
        {"target": "http://a.example/" + "ü" * 1_000},
        {"target": "http://a.example/?t=${secret:token}"},
        *({"target": value} for value in ("example.org", "http://u:p@a.example/", "http://a.example/\n", "x" * 2_049)),
        *({"kind": "ping", "target": "a.example", key: value} for key, value in (("body", "x"), ("statuses", [200]))),
        {"kind": "tcp", "target": "a.example:1", "certificate_days": 1},
    ],
)
def test_bad_monitor_parameters_are_refused(params):
    """Each parameter just outside of its range or form; the error says what was expected."""
    with pytest.raises(HostError, match=r"^bad_params: .*expected"):
        checked(**params)


@pytest.mark.parametrize("target", ["ftp://a.example/", "http://127.1/", "http://0x7f000001/"])
def test_forbidden_monitor_urls_are_blocked(target):
    """The error has the egress guard's code and reason."""
    with pytest.raises(HostError, match=r"^egress_blocked: "):
        checked(target=target)


@pytest.mark.parametrize(
    "params", [{"kind": "icmp"}, {"method": "POST"}, {"failures": 1.5}, {"statuses": ["200"]}, {"certificate_days": -1}]
)
def test_parameters_of_wrong_type_are_refused(params):
    """Kinds are a closed set; the method is always GET."""
    with pytest.raises(msgspec.ValidationError):
        asked(**params)


@given(
    target=st.text(max_size=80),
    kind=st.sampled_from(["http", "tcp", "ping"]),
    name=st.text(max_size=10),
    body=st.text(max_size=20),
)
def test_any_monitor_parameters_give_a_spec_or_bad_params(target, kind, name, body):
    """A spec that survives encoding, or a HostError; no other exception."""
    try:
        spec = checked(target=target, kind=kind, name=name, body=body)
    except HostError:
        return
    assert specs.decode(specs.encode(spec)) == spec
    assert spec.target.isascii()
    assert checked(target=spec.target, kind=kind, name=name, body=body) == spec
