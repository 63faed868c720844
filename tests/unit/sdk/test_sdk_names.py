"""Names that the SDK itself uses are refused where a plugin's class takes one."""

from __future__ import annotations

import inspect

import pytest

from latticed.sdk import Health, Plugin
from latticed.sdk.base import OVERRIDABLE, SET_BY_HOST
from latticed.sdk.testing import Harness

OWN = sorted(
    {name for kind in Plugin.__mro__[:-1] for name in vars(kind) if not name.startswith("__")}
    - OVERRIDABLE
    - SET_BY_HOST
)


def test_the_sdks_own_names_are_known():
    assert {"check", "answer", "connect", "call", "run", "kv", "log", "task", "_ask"} <= set(OWN)
    groups = {name for name, one in vars(Plugin).items() if isinstance(one, property)}
    assert groups <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_a_class_with_a_name_of_the_sdk_is_refused_with_another_name(name):
    """A method, an attribute, one of a class that is mixed in."""
    mixed = type("Mixed", (), {name: 1})
    for bases, body in (((Plugin,), {name: lambda self: None}), ((Plugin,), {name: 1}), ((mixed, Plugin), {})):
        owner = "Mixed" if mixed in bases else "Disk"
        with pytest.raises(
            TypeError, match=rf"^{owner}\.{name}: latticed\.sdk\.Plugin has a {name} of its own \(.+\),"
        ):
            type("Disk", bases, body)


def test_a_method_check_does_not_replace_the_health_check():
    """It did so silently; the refusal says what `check` is, and what to call an action."""
    with pytest.raises(TypeError, match=r"What `health` returns.*do_check if it is an action"):

        class _Disk(Plugin):
            def check(self):
                return 90


@pytest.mark.parametrize("name", sorted(SET_BY_HOST))
def test_what_the_host_sets_may_have_a_value_and_no_method(name):
    type("Disk", (Plugin,), {name: None})
    for value in (lambda self: None, property(lambda self: None)):
        with pytest.raises(TypeError, match="the host sets it"):
            type("Disk", (Plugin,), {name: value})


def test_an_attribute_that_replaces_a_name_is_refused_before_the_plugin_starts():
    class Disk(Plugin):
        def __init__(self):
            self.check = {}

    with pytest.raises(TypeError, match=r"^Disk\.check: "):
        Harness(Disk())


def test_what_is_meant_to_be_written_is_not_refused():
    """Also by a class above the plugin's, and when it is connected twice."""

    class Base(Plugin):
        def started(self):
            self.seen = 0

        def health(self):
            return Health("degraded", "slow")

        def helper(self):
            return 1

    class Disk(Base):
        config = {"path": "/"}  # noqa: RUF012 - as a plugin's author would write it

        def do_check(self, payload):
            return self.helper()

        def do_run(self, payload):
            return 2

    for _ in range(2):
        host = Harness(plugin := Disk())
        assert host.invoke("check")["result"] == 1
        assert host.invoke("run")["result"] == 2
        assert host.health().status == "degraded"
    plugin.connect(host.gate.call)


def test_every_name_says_what_it_is_for():
    for name in OWN:
        found = next(vars(kind)[name] for kind in Plugin.__mro__ if name in vars(kind))
        assert found.__doc__ or inspect.getdoc(found), name
