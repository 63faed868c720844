"""docs/reference/sdk.md: the public classes of the SDK, by inspection, with what their docstrings say."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from typing import Any, NamedTuple

from generate import codes
from generate.markdown import Page, code, plain, sentence, slug
from latticed import sdk
from latticed.model import hostcall
from latticed.sdk import Plugin, base, calls, messages, testing

EXAMPLE = """#!/usr/bin/env python3
from latticed.sdk import Plugin, schedule


class Disk(Plugin):
    @schedule(every_s=60)
    def do_check(self, payload):
        self.kv.put("checked", "yes")
        return {"ok": True}


Disk().run()"""


INTERNAL = ("connect", "answer", "check")
"""Methods of a plugin that the protocols and the test harness call."""


class Method(NamedTuple):
    """One public method: `calls` are the host calls that it makes, `about` its docstring without errors and limits."""

    name: str
    anchor: str
    signature: str
    about: str
    example: str
    errors: str
    limits: str
    calls: tuple[str, ...]
    capability: str


def groups() -> dict[str, type]:
    """The groups of host calls by the attribute of a plugin that has them."""
    found = {}
    for name, one in vars(Plugin).items():
        if isinstance(one, property):
            found[name] = type(getattr(Plugin(), name))
    return found


@functools.cache
def methods() -> dict[str, list[Method]]:
    """The methods of each group."""
    return {
        group: [
            _method(f"self.{group}.{name}", one)
            for name, one in vars(kind).items()
            if inspect.isfunction(one) and not name.startswith("_")
        ]
        for group, kind in groups().items()
    }


def methods_of(call: str) -> list[Method]:
    """The methods for a host call, first the one that is called as it."""
    group, _, verb = call.partition(".")
    those = methods().get(group, [])
    return [one for one in those if one.name.endswith(f".{verb}")] + [
        one for one in those if call in one.calls and not one.name.endswith(f".{verb}")
    ]


def _method(name: str, one: Any) -> Method:
    text = inspect.getdoc(one) or ""
    said = _parts(text)
    named = re.search(r"\((\w+:\w+)\)", said["about"])
    tree = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(one))))
    made = {
        node.value
        for node in tree
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in hostcall.CAPABILITY_OF
    }
    return Method(
        name=name,
        anchor=slug(name),
        signature=signature(name, one),
        about=re.sub(r" \(\w+:\w+\)", "", said["about"]),
        example=said["example"],
        errors=said["Errors"],
        limits=said["Limits"],
        calls=tuple(sorted(made)),
        capability=named[1] if named else "",
    )


def _parts(text: str) -> dict[str, str]:
    """A docstring as what it is about, an indented example, and what follows `Errors:` and `Limits:`."""
    found = {"about": "", "example": "", "Errors": "", "Limits": ""}
    place = "about"
    for line in text.splitlines():
        label, _, rest = line.partition(": ")
        if line.startswith("    "):
            found["example"] += f"{line}\n"
        elif label in {"Errors", "Limits"}:
            place = label
            found[place] = rest
        else:
            found[place] += f" {line.strip()}"
    return {name: said if name == "example" else plain(said) for name, said in found.items()}


def signature(name: str, one: Any) -> str:
    """A signature as it is written, with the annotations as they stand in the source."""
    parts = []
    for key, each in inspect.signature(one).parameters.items():
        if key == "self":
            continue
        if each.kind is each.KEYWORD_ONLY and "*" not in parts and not any(part.startswith("*") for part in parts):
            parts.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        default = "" if each.default is each.empty else f" = {each.default!r}"
        hint = "" if each.annotation is each.empty else f": {each.annotation}"
        parts.append(f"{stars}{key}{hint}{default}")
        if each.kind is each.POSITIONAL_ONLY:  # once, after the last of them
            parts = [*(one for one in parts if one != "/"), "/"]
    answer = inspect.signature(one).return_annotation
    returns = "" if answer is inspect.Signature.empty else f" -> {answer}"
    shown = f"{name}({', '.join(parts)}){returns}".replace("answers.", "")
    if len(shown) > 110:
        lines = "".join(f"    {part},\n" for part in parts)
        shown = f"{name}(\n{lines}){returns}".replace("answers.", "")
    return shown


def page() -> str:
    """The page."""
    found = Page(
        "SDK for Python", "`latticed.sdk` imports the standard library of Python 3.9 or newer and nothing else:"
    )
    found.block("text", EXAMPLE)
    found.text(
        "The operator grants what the [manifest](manifest.md) declares. A call that is refused raises `HostError`; its"
        f" `code` is one of {', '.join(map(_denial, hostcall.Denial))}."
        " What a method answers is the JSON of its [host call](host-calls.md)."
    )
    _plugin(found)
    for one in (base.Health, base.Reply, base.PluginError, calls.HostError, messages.Response):
        _class(found, one)
    found.heading("schedule", anchor="schedule")
    found.block("text", signature("@schedule", sdk.schedule))
    found.text(sentence(inspect.getdoc(sdk.schedule)))
    found.heading("Host calls by group", anchor="groups")
    found.table(
        ("group", "methods", "capabilities"),
        [
            (
                f"[`self.{group}`](#{slug('self', group)})",
                ", ".join(f"[`{one.name.rpartition('.')[2]}`](#{one.anchor})" for one in those),
                ", ".join(code(one) for one in sorted({each.capability for each in those} - {""})),
            )
            for group, those in methods().items()
        ],
    )
    for group, those in methods().items():
        found.heading(f"self.{group}", anchor=slug("self", group))
        found.text(sentence(inspect.getdoc(groups()[group])))
        for one in those:
            _described(found, one)
    found.heading("Testing", anchor="testing")
    found.text("In `latticed.sdk.testing`; nothing of it runs in a plugin.")
    for one in (testing.Harness, testing.Gate, testing.Called, testing.LongLived, testing.ProgramError):
        _class(found, one)
    found.heading("run_once", level=3, anchor="run_once")
    found.block("text", signature("run_once", testing.run_once))
    found.text(sentence(inspect.getdoc(testing.run_once)))
    return str(found)


def _denial(name: str) -> str:
    return f"[`{name}`](../troubleshooting.md#{codes.anchor(name)})"


def _plugin(found: Page) -> None:
    found.heading("Plugin", anchor="plugin")
    found.text(sentence(inspect.getdoc(Plugin)))
    found.text(f"The SDK itself calls {', '.join(code(name) for name in INTERNAL)}: define none of them.")
    own = {
        name: one
        for kind in (base.PluginBase, Plugin)
        for name, one in vars(kind).items()
        if inspect.isfunction(one) and not name.startswith("_") and name not in INTERNAL
    }
    for name, one in own.items():
        _described(found, _method(f"Plugin.{name}", one))


def _described(found: Page, one: Method) -> None:
    found.heading(one.name, level=3, anchor=one.anchor)
    found.block("text", one.signature)
    found.text(sentence(one.about))
    if one.example:
        found.block("text", textwrap.dedent(one.example))
    if one.calls:
        made = ", ".join(f"[`{each}`](host-calls.md#{slug('call', each)})" for each in one.calls)
        found.text(f"Capability: `{one.capability}`. Host call: {made}.")
    if one.errors:
        found.text(f"Errors: {sentence(one.errors)}")
    if one.limits:
        found.text(f"Limits: {sentence(one.limits)}")


def _class(found: Page, kind: type) -> None:
    found.heading(kind.__name__, level=3, anchor=slug(kind.__name__))
    if "__init__" in vars(kind):
        found.block("text", signature(kind.__name__, kind.__init__).removesuffix(" -> None"))
    said = _parts(inspect.getdoc(kind) or "")
    found.text(sentence(said["about"]))
    if said["example"]:
        found.block("text", textwrap.dedent(said["example"]))
    for name, one in vars(kind).items():
        if inspect.isfunction(one) and not name.startswith("_"):
            found.items(
                [f"`{' '.join(signature(name, one).split())}`: {sentence(_parts(inspect.getdoc(one) or '')['about'])}"]
            )
