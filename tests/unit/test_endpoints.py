"""Addresses that plugins' routes may be served on, and host names."""

from __future__ import annotations

import os

import pytest

from latticed import settings
from latticed.model.errors import Problem
from latticed.settings import endpoints


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("127.0.0.1:8787", ("127.0.0.1", 8787)),
        ("127.1.2.3:0", ("127.1.2.3", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[0:0:0:0:0:0:0:1]:1", ("::1", 1)),
    ],
)
def test_loopback_listen_address_is_parsed(value, found):
    assert endpoints.loopback(value) == found


BAD = [
    *("0.0.0.0:8787", "192.0.2.1:8787", "[::]:8787", "[::ffff:127.0.0.1]:8787", "[fe80::1]:1", "10.0.0.1:1"),
    *("127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", ":8787", "8787", "", "localhost:8787", "::1:8787"),
    *("127.1:80", "0127.0.0.1:80", "[127.0.0.1]:80", "127.0.0.1:80 ", "127.0.0.1:8o", "[::1%lo]:80", "unix:/x", "*:80"),
]


@pytest.mark.parametrize("value", BAD)
def test_listen_address_that_is_not_loopback_is_refused_by_settings(tmp_path, value):
    """The problem has the key, the file, and what was expected."""
    file = tmp_path / "latticed.toml"
    file.write_text(f'[http]\nlisten = "{value}"\n')
    with pytest.raises(Problem, match=r"http\.listen: expected a loopback address and a port") as caught:
        settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())
    assert caught.value.code == "settings_invalid"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("localhost", ("localhost", None)),
        ("LocalHost:8787", ("localhost", 8787)),
        ("app.example.org:", ("app.example.org", None)),
        ("[::1]:80", ("[::1]", 80)),
        ("127.0.0.1", ("127.0.0.1", None)),
    ],
)
def test_host_name_is_normalised(value, found):
    """It is returned in lower case, with the port apart, or None without one."""
    assert endpoints.host(value) == found


@pytest.mark.parametrize(
    "value",
    ["", "a b", "a/b", "a@b", "a:b", "a:1:2", "a:65536", "::1", "[::1", "-a", "a.", "ä", "a,b", "a\n", "a" * 300],
)
def test_invalid_host_name_is_refused_by_settings(tmp_path, value):
    assert endpoints.host(value) is None
    file = tmp_path / "latticed.toml"
    file.write_text(f"[http]\nhosts = ['ok', {value!r}]\n" if "\n" not in value else "[http]\nhosts = ['a b']\n")
    with pytest.raises(Problem, match=r"http\.hosts: expected names"):
        settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())


def test_service_listen_is_loopback_or_empty(tmp_path):
    """It is empty by default; then there is no listener."""
    file = tmp_path / "latticed.toml"
    for value in ("", "127.0.0.1:8788", "[::1]:0"):
        file.write_text(f'[http]\nservice_listen = "{value}"\n')
        assert settings.load(file, {"HOME": str(tmp_path)}, os.geteuid()).http.service_listen == value
    for value in ("0.0.0.0:8788", " ", "127.0.0.1"):
        file.write_text(f'[http]\nservice_listen = "{value}"\n')
        with pytest.raises(Problem, match=r"http\.service_listen: expected a loopback address and a port"):
            settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())
