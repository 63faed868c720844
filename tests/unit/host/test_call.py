"""The table of host calls, the text of HostError, keys of kv."""

from __future__ import annotations

import pytest

from latticed.host import call as service
from latticed.host.call import HostError, NoParams, Served
from latticed.host.kv import key_fault
from latticed.model.hostcall import Denial


async def nothing(_caller, _params):
    return {}


def test_table_of_host_calls_refuses_unknown_and_duplicate_calls():
    """It refuses them when it is made, at the daemon's start."""
    served = Served(method="kv.get", params=NoParams, serve=nothing)
    assert list(service.table([served])) == ["kv.get"]
    with pytest.raises(ValueError, match=r"kv\.get"):
        service.table([served, served])
    with pytest.raises(ValueError, match=r"kv\.steal"):
        service.table([Served(method="kv.steal", params=NoParams, serve=nothing)])


def test_table_of_host_calls_is_read_only():
    with pytest.raises(TypeError):
        service.table([])["kv.get"] = None  # type: ignore[index]


def test_host_error_text_is_code_and_reason():
    assert str(HostError(Denial.NOT_FOUND, "there is no such host call")) == "not_found: there is no such host call"


@pytest.mark.parametrize("key", ["a", "a b", "ключ", "k" * 256, "...", "a.b", "~", "plugin:x"])
def test_printable_kv_key_without_slash_is_accepted(key):
    """It may have up to 256 characters."""
    assert key_fault(key) is None


@pytest.mark.parametrize(
    ("key", "found"),
    [
        *(("", "0 characters"), ("k" * 257, "257 characters"), (".", "'.'"), ("..", "'..'")),
        *(("a/b", "a '/'"), ("a\\b", "a '\\'")),
        *((key, "a control character") for key in ("\t", "a\x7f", "a\u200bb", "a\u2029", "\u3164")),
    ],
)
def test_invalid_kv_key_is_refused_with_the_whole_rule(key, found):
    rule = "expected a key of 1 to 256 characters without '/', '\\' and control characters, not '.' or '..'"
    assert key_fault(key) == f"{rule}, found {found}"
