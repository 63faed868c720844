"""docs/reference/host-calls.md: parameters, answers, errors and limits of every host call."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
from typing import TYPE_CHECKING, Any

from generate import codes, sdk, shapes, source
from generate.markdown import Page, plain, sentence, slug
from latticed import host
from latticed.ctl import limits
from latticed.model import capability, hostcall
from latticed.sdk import answers
from latticed.settings import load

if TYPE_CHECKING:
    from latticed.host.call import Served

EXAMPLE = (
    'plugin {"jsonrpc":"2.0","id":1,"method":"kv.get","params":{"key":"count"}}\n'
    'host   {"jsonrpc":"2.0","id":1,"result":{"ok":true,"value":"1","value_base64":"MQ==","version":1}}'
)


@functools.cache
def served() -> dict[str, Served]:
    """Every call with its parameters and handler, as the services declare them; no service is started for that."""
    found: dict[str, Served] = {}
    for one in pkgutil.walk_packages(host.__path__, "latticed.host."):
        module = importlib.import_module(one.name)
        for kind in vars(module).values():
            if inspect.isclass(kind) and kind.__module__ == module.__name__ and "calls" in vars(kind):
                found |= {call.method: call for call in kind.__new__(kind).calls()}
    return {name: found[name] for name in hostcall.CAPABILITY_OF}


def anchor(call: str) -> str:
    """Where a call stands on the page."""
    return slug("call", call)


def page() -> str:
    """The page."""
    found = Page(
        "Host calls",
        "What a plugin asks of the host: method and parameters as JSON over its pipe, or methods of [the SDK](sdk.md):",
    )
    found.block("text", EXAMPLE)
    found.text(
        "Each call needs a [capability](manifest.md#capabilities), which the manifest declares and the operator grants."
        " Parameters are decoded strictly: an unknown field is `bad_params`; what has a default may be left out. Times"
        " are RFC 3339 in UTC.",
        f"What every call may be refused with: {_refusals()}. Below stand the codes that mean something particular. All"
        " calls of a plugin share [`host_calls.per_second`](settings.md#setting-host_calls-per_second) and"
        " [`burst`](settings.md#setting-host_calls-burst); parameters are at most"
        " [`request_bytes`](settings.md#setting-host_calls-request_bytes), and one takes at most"
        " [`deadline_s`](settings.md#setting-host_calls-deadline_s).",
    )
    used: dict[str, type] = {}

    def link(shape: type) -> str:
        used.setdefault(shape.__name__, shape)
        return f"[{shape.__name__}](#{slug('shape', shape.__name__)})"

    by_group: dict[str, list[str]] = {}
    for name in served():
        by_group.setdefault(name.partition(".")[0], []).append(name)
    found.table(
        ("group", "calls"),
        [
            (f"[{group}](#{group})", ", ".join(f"[`{one}`](#{anchor(one)})" for one in names))
            for group, names in by_group.items()
        ],
    )
    allowed = limits.of(load(None, {"HOME": "/nonexistent", "CONFIGURATION_DIRECTORY": "/nonexistent"}, os.geteuid()))
    for group, names in by_group.items():
        found.heading(group, anchor=group)
        for name in names:
            _call(found, name, allowed, link)
    _rest(found, used, link)
    return str(found)


def _refusals() -> str:
    return ", ".join(f"[`{one}`](../troubleshooting.md#{codes.anchor(one)})" for one in hostcall.Denial)


def _call(found: Page, name: str, allowed: dict[str, str], link: Any) -> None:
    call, needed = served()[name], hostcall.CAPABILITY_OF[name]
    found.heading(name, level=3, anchor=anchor(name))
    methods = sdk.methods_of(name)
    found.text(sentence(methods[0].about) if methods else sentence(inspect.getdoc(call.serve)))
    risk = capability.RISKS[needed].word
    shown = ", ".join(f"[`{one.name}`](sdk.md#{one.anchor})" for one in methods)
    found.text(
        f"Needs [`{needed}`](manifest.md#{slug('cap', needed)}) ({risk} risk). In the SDK: {shown or '`self.call`'}."
        f" Limit of the capability: {allowed[needed]}."
    )
    rows = shapes.rows(call.params, link, given=True)
    if rows:
        found.table(("parameter", "type", "default", "meaning"), rows)
    else:
        found.text("No parameters.")
    answer = answers.ANSWERS[name]
    found.text(f"Answer: {sentence(shapes.about(answer))}")
    found.table(("field", "type", "when", "meaning"), shapes.rows(answer, link, given=False))
    errors = [one.errors for one in methods if one.errors and not one.errors.startswith("those of every call")]
    bounds = [one.limits for one in methods if one.limits]
    if errors:
        found.text(f"Errors: {sentence(errors[0])}")
    if bounds:
        found.text(f"Limits: {sentence(bounds[0])}")


def _rest(found: Page, used: dict[str, type], link: Any) -> None:
    found.heading("Shapes", anchor="shapes")
    found.text("Objects within parameters and answers.")
    done: set[str] = set()
    while left := sorted(set(used) - done):
        for name in left:
            done.add(name)
            found.heading(name, level=3, anchor=slug("shape", name))
            if about := plain(shapes.about(used[name])):
                found.text(sentence(about))
            found.table(("field", "type", "when", "meaning"), shapes.rows(used[name], link, given=False))


def faults() -> list[str]:
    """Calls without an answer's shape, and parameters without a string below them."""
    found = [f"{name}: no answer in latticed/sdk/answers.py" for name in served() if name not in answers.ANSWERS]
    for name, call in served().items():
        said = source.below(call.params)
        missing = [one.name for one in shapes.fields(call.params) if one.name not in said]
        found += [f"{name}: no string below the parameter {one} of {call.params.__name__}" for one in missing]
    return found
