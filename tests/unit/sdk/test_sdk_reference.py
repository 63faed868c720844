"""What the SDK says of its calls can be read by programs, and is true: returns, errors, limits."""

from __future__ import annotations

import ast
import inspect
import os
import re
from pathlib import Path

import pytest

from latticed import settings
from latticed.model import hostcall
from latticed.model.hostcall import Denial
from latticed.sdk import Plugin, answers
from latticed.sdk.calls import HostError

UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "": 1}


def _methods():
    for group, found in vars(Plugin).items():
        if isinstance(found, property):
            kind = type(getattr(Plugin(), group))
            for name, method in inspect.getmembers(kind, inspect.isfunction):
                if not name.startswith("_"):
                    yield pytest.param(kind, method, id=f"{group}.{name}")


def _part(method, word):
    """The text after `word:` up to the next such word or the end; None without."""
    text = inspect.getdoc(method)
    found = re.search(rf"^{word}: (.*?)(?=^\w+: |\Z)", text, re.MULTILINE | re.DOTALL)
    return found and " ".join(found[1].split())


@pytest.mark.parametrize(("kind", "method"), [*_methods()])
def test_a_call_names_its_capability_once_and_its_errors(kind, method):
    """One that is like another names that one, which has them."""
    text = inspect.getdoc(method)
    first = " ".join(text.partition("\n\n")[0].split())
    assert re.search(r"\(\w+:\w+\)\.$", first), first
    if same := re.match(r"As (\w+)", first):
        assert _part(getattr(kind, same[1]), "Errors")
        return
    errors = _part(method, "Errors")
    assert errors is not None
    codes = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", re.sub(r"`[^`]*`", "", errors)))
    assert codes <= {one.value for one in Denial}


def test_settings_that_calls_name_exist_with_the_default_that_is_given(tmp_path):
    file = tmp_path / "latticed.toml"
    file.write_text("")
    defaults = settings.load(file, {"HOME": str(tmp_path)}, os.geteuid())
    found = 0
    for method in (one.values[1] for one in _methods()):
        named = re.findall(r"`([a-z_]+)\.([a-z_]+)`(?: \(([\d,]+)(?: (KiB|MiB))?\))?", inspect.getdoc(method))
        for section, name, number, unit in named:
            if f"{section}.{name}" not in hostcall.CAPABILITY_OF and hasattr(defaults, section):
                value = getattr(getattr(defaults, section), name)
                assert not number or value == int(number.replace(",", "")) * UNITS[unit], f"{section}.{name}"
                found += 1
    assert found > 20


def test_every_error_of_a_host_call_is_told():
    """What any call may come to in HostError, the others where they come from."""
    told = set(re.findall(r"^ *([a-z_]+)  +\w", HostError.__doc__, re.MULTILINE))
    rest = {"not_found", "quota_exceeded", "egress_blocked"}
    assert told | rest == {one.value for one in Denial}
    assert told & rest == set()
    for code in rest:
        assert f"`{code}`" in HostError.__doc__
        assert any(code in (_part(one.values[1], "Errors") or "") for one in _methods())


def test_every_host_call_has_its_answer():
    assert set(answers.ANSWERS) == set(hostcall.CAPABILITY_OF)
    assert [name for name, kind in answers.ANSWERS.items() if not kind.__doc__] == []


@pytest.mark.parametrize(("kind", "method"), [*_methods()])
def test_a_call_says_what_it_returns_and_takes(kind, method):
    """No `Any` but where a payload is any JSON, no parameters that only the documentation names."""
    signature = inspect.signature(method)
    assert signature.return_annotation not in {"Any", inspect.Signature.empty}
    for name, one in signature.parameters.items():
        if name != "self":
            assert one.annotation not in {"Any", inspect.Parameter.empty}
            assert one.kind is not one.VAR_KEYWORD or method.__module__ == "latticed.sdk.calls"  # fields of a log line


def test_answers_are_not_loaded_by_a_plugin():
    """They are for type checkers: `typing` is slow to import."""
    package = Path(inspect.getfile(answers)).parent
    for module in package.glob("*.py"):
        if module.stem == "answers":
            continue
        for node in ast.parse(module.read_text()).body:
            for one in ast.walk(node) if not isinstance(node, ast.If) else ():
                if isinstance(one, ast.ImportFrom):
                    assert "answers" not in {alias.name for alias in one.names}, module
