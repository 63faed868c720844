"""Parameters that cloudflared's own validation accepts and we refuse; malformed credentials."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import HostError
from latticed.host.tunnel import credentials, files
from latticed.host.tunnel import spec as specs
from latticed.model import egress
from latticed.model.errors import Problem

FAKE = Path(__file__).resolve().parents[2] / "house/cloudflared.py"
ID = "6ff42ae2-765d-4adf-8112-31c55c1551ef"
ORIGINS = tuple(
    map(egress.origin, ("http://backend.lan:8080=10.0.0.5", "http://10.0.0.6:81", "tcp://db.lan:5432=10.0.0.7"))
)
GOOD = {"hostname": "a.example.com", "service": "http://backend.lan:8080"}
REST = {"service": "http_status:404"}
SECRET = base64.b64encode(b"s" * 32).decode()


def checked(*ingress, **more):
    plain = {"name": "main", "tunnel": ID, "credentials": "c.json", "ingress": [*ingress], **more}
    return specs.checked(msgspec.convert(plain, specs.TunnelPut), ORIGINS)


REFUSED = [
    ([GOOD, GOOD, REST], "rule 2: expected one that rule 1 leaves something to"),
    ([GOOD, {**GOOD, "hostname": "A.EXAMPLE.com."}, REST], "rule 2"),
    ([GOOD, {**GOOD, "path": "/x"}, REST], "rule 2"),
    ([{**GOOD, "hostname": "*.example.com"}, GOOD, REST], "rule 2"),
    ([REST, GOOD, REST], "rule 2"),
    ([GOOD], "a last rule without hostname and path"),
    ([GOOD, {**REST, "path": "/x"}], "a last rule"),
    ([], "1 to 64 rules"),
    ([REST] * 65, "1 to 64 rules"),
    ([{**GOOD, "hostname": "*"}, REST], "hostname"),
    ([{**GOOD, "hostname": "a.*.com"}, REST], "hostname"),
    ([{**GOOD, "hostname": "localhost"}, REST], "hostname"),
    ([{**GOOD, "hostname": "10.0.0.1"}, REST], "hostname"),
    ([{**GOOD, "hostname": 'a"\n- service: ssh://x'}, REST], "hostname"),
    ([{**GOOD, "path": "("}, REST], "a path"),
    ([{**GOOD, "path": "/../x"}, REST], "a path"),
    ([{**GOOD, "path": "x"}, REST], "a path"),
    *(
        ([{"hostname": "a.example.com", "service": service}, REST], "a service http://host:port")
        for service in (
            "ftp://backend.lan:21", "tcp://db.lan:5432", "ssh://backend.lan:22", "unix:/run/x.sock",
            "rdp://backend.lan",
            "unix+tls:/run/x.sock", "bastion", "socks-proxy", "hello_world", "http_status:99", "http_status:99999", "",
        )
    ),
    *(
        ([{"hostname": "a.example.com", "service": service}, REST], "rule 1")
        for service in (
            "http://backend.lan:8080/admin", "http://backend.lan:8080?x", "http://backend.lan:8080#x",
            "http://u:p@backend.lan:8080", "http://", "http://0x7f000001:80", "http://backend.lan:8080/",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("ingress", "words"), REFUSED)
def test_bad_tunnel_rules_are_refused(ingress, words):
    """A rule that an earlier one hides, a missing last rule, too many, or a malformed hostname, path or service."""
    with pytest.raises(HostError, match="bad_params") as caught:
        checked(*ingress)
    assert words in caught.value.reason


@pytest.mark.parametrize(
    "service",
    [
        "http://other.lan:8080",
        "http://backend.lan:8081",
        "https://backend.lan:8080",
        "http://10.0.0.5:8080",
        "http://db.lan:5432",
        "http://169.254.169.254",
    ],
)
def test_tunnel_to_unbound_origin_is_blocked(service):
    """Another port, scheme or kind of origin, or the address of a bound name."""
    with pytest.raises(HostError, match="egress_blocked"):
        checked({**GOOD, "service": service}, REST)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"tunnel": "my-tunnel"}, "tunnel: expected a tunnel's id"),
        ({"tunnel": f"{{{ID}}}"}, "tunnel"),
        ({"tunnel": f"urn:uuid:{ID}"}, "tunnel"),
        ({"credentials": ""}, "exactly one"),
        ({"token": "t"}, "exactly one"),
        ({"credentials": "../c.json"}, "the name of a file"),
        ({"credentials": ".hidden"}, "the name of a file"),
        ({"name": "a/b"}, "name"),
    ],
)
def test_bad_tunnel_id_name_or_credentials_are_refused(wrong, words):
    """Examples are a name instead of an id, a path instead of a file name, and token and credentials together."""
    with pytest.raises(HostError, match="bad_params") as caught:
        checked(GOOD, REST, **wrong)
    assert words in caught.value.reason


def test_unknown_keys_of_tunnel_rules_are_refused():
    """`originRequest`, and with it bastion and socks, cannot be passed."""
    for more in ({"originRequest": {"proxyType": "socks"}}, {"warp": True}):
        with pytest.raises(msgspec.ValidationError):
            checked({**GOOD, **more}, REST)
        with pytest.raises(msgspec.ValidationError):
            checked(GOOD, REST, **more)


def test_tunnel_rules_that_hide_no_later_one_are_accepted():
    """Their order does not matter."""
    spec = checked({**GOOD, "path": "/api"}, GOOD, {**GOOD, "hostname": "*.example.com"}, REST)
    assert specs.decode(specs.encode(spec)) == spec


@pytest.mark.parametrize("service", ["unix:/run/x.sock", "ftp://backend.lan:21", "bastion", "http_status:99"])
def test_stored_tunnel_rules_are_not_trusted(service):
    """A row of the ledger that somebody changed starts nothing."""
    rule = specs.IngressRule(service=service)
    spec = specs.TunnelSpec(tunnel=ID, ingress=(rule,), file="c.json", is_token=False)
    with pytest.raises(HostError, match="egress_blocked"):
        specs.bound(specs.decode(specs.encode(spec)), ORIGINS)


HOSTNAMES = st.lists(st.text("abcdé-_*.\"\n:{}'# ", max_size=12), max_size=4)


@given(HOSTNAMES, st.text('/abc.~_-"\n({\\', max_size=8))
def test_rendered_configuration_has_only_the_specs_values(hostnames, path):
    """All else is constant, so that nothing else can be passed to cloudflared."""
    rules = [{"hostname": one, "path": path, "service": "http://10.0.0.6:81"} for one in hostnames]
    try:
        spec = checked(*rules, REST)
    except HostError:
        return
    bound = specs.bound(spec, ORIGINS)
    data = files.render(spec, bound, Path("/run/c.json"))
    plain = json.loads(data)
    assert set(plain) == {"tunnel", "credentials-file", "ingress"}
    assert [set(one) - {"hostname", "path"} for one in plain["ingress"]] == [{"service"}] * len(plain["ingress"])
    assert [one.get("hostname", "") for one in plain["ingress"]] == [one.hostname for one in spec.ingress]
    assert data.isascii()


@pytest.mark.parametrize("ingress", [case[0] for case in REFUSED[:2]])
def test_cloudflared_itself_accepts_ingress_that_we_refuse(tmp_path, ingress):
    """This is why `checked` has rules of its own."""
    config = tmp_path / "config.yml"
    config.write_text(json.dumps({"tunnel": "none", "credentials-file": "x", "odd": 1, "ingress": ingress}))
    command = [sys.executable, FAKE, "tunnel", "--config", config, "ingress", "validate"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


# Credentials.

SPEC = specs.TunnelSpec(tunnel=ID, ingress=(), file="c.json", is_token=False)
TOKEN = specs.TunnelSpec(tunnel=ID, ingress=(), file="c.json", is_token=True)
FILE = {"AccountTag": "a" * 32, "TunnelSecret": SECRET, "TunnelID": ID}


@pytest.fixture
def keys(tmp_path):
    directory = tmp_path / "keys"
    directory.mkdir(mode=0o700)
    return directory


def write(keys, data, *, mode=0o600):
    (keys / "c.json").write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    (keys / "c.json").chmod(mode)


def test_token_and_credentials_file_give_the_same_credentials(keys):
    write(keys, FILE)
    found = credentials.load(str(keys), SPEC)
    assert json.loads(found.encode()) == FILE
    assert SECRET not in repr(found)
    write(keys, base64.b64encode(json.dumps({"a": "a" * 32, "t": ID, "s": SECRET}).encode()) + b"\n")
    assert credentials.load(str(keys), TOKEN) == found


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        ({**FILE, "TunnelSecret": "short"}, "is not a JSON object"),
        ({**FILE, "AccountTag": "../x"}, "is not a JSON object"),
        ({**FILE, "TunnelID": ID.replace("6", "7")}, "that of another tunnel"),
        (b"x" * 20_000, "cannot be read"),
    ],
)
def test_malformed_tunnel_credentials_are_refused(keys, data, words):
    """The error does not contain them."""
    write(keys, data)
    with pytest.raises(Problem, match=words) as caught:
        credentials.load(str(keys), SPEC)
    assert caught.value.code == "credentials_unusable"
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_tunnel_credentials_readable_by_others_are_refused(keys, mode):
    write(keys, FILE, mode=mode)
    with pytest.raises(Problem, match=f"has mode {mode:04o}"):
        credentials.load(str(keys), SPEC)


def test_credentials_in_link_or_special_file_are_refused(keys, tmp_path):
    """Symlink, directory, FIFO, directory writable by others, missing directory."""
    write(keys, FILE)
    (keys / "c.json").rename(tmp_path / "real.json")
    (keys / "c.json").symlink_to(tmp_path / "real.json")
    with pytest.raises(Problem, match="cannot be read"):
        credentials.load(str(keys), SPEC)
    (keys / "c.json").unlink()
    os.mkfifo(keys / "c.json", 0o600)
    with pytest.raises(Problem, match="cannot be read"):
        credentials.load(str(keys), SPEC)
    (keys / "c.json").unlink()
    write(keys, FILE)
    keys.chmod(0o770)
    with pytest.raises(Problem, match="can be changed by others"):
        credentials.load(str(keys), SPEC)
    with pytest.raises(Problem, match="named no directory"):
        credentials.load("", SPEC)
