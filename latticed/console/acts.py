"""What a form of a page comes to: one request of the table, or a Problem. Pure.

{"act": "grant", "name": "kv:write"}  →  PUT plugins/by-id/acme.demo/grants {"grant": ["kv:write"]}
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Answer = Literal["", "reply", "record", "upgrade"]
MOST_FORM_BYTES: Final = 256 << 10
_PLAIN: Final[Mapping[str, Answer]] = {"restart": "record", "forget": ""}
_STATUSES: Final = {"install": "installed", "activate": "active", "disable": "disabled"}


class ActRequest(NamedTuple):
    """`said`: what was done, for the page that follows; `answer`: what the answer is, where it says what it came to:
    an action's reply, the plugin's record, or that record after a version was to be taken.
    """

    method: str
    parts: tuple[str, ...]
    body: dict[str, Any]
    said: str
    answer: Answer = ""


def on_plugin(plugin_id: str, form: Mapping[str, Sequence[str]]) -> ActRequest:
    """What a form of a plugin's page asks for; Problem bad_form."""
    act = one(form, "act")
    here = ("plugins", "by-id", plugin_id)
    if act in _STATUSES:
        body = {"id": plugin_id, "status": _STATUSES[act], **_accepted(form), **_shown(form)}
        return ActRequest("POST", ("plugins", "lifecycle"), body, f"{plugin_id} is {_STATUSES[act]}", "record")
    if act in _PLAIN:
        return ActRequest("POST", (*here, act), {}, f"{act} of {plugin_id} was carried out", _PLAIN[act])
    match act:
        case "rollback":
            to = one(form, "to")
            said = f"{plugin_id} is back at {to or 'what it was'}"
            return ActRequest("POST", (*here, act), {"to": to} if to else {}, said, "record")
        case "retry_dns":
            name = one(form, "name")
            return ActRequest("POST", ("ddns", plugin_id, name, "retry"), {}, f"the records of {name} are tried again")
        case "upgrade":
            body = {**_accepted(form), **_shown(form)}
            return ActRequest("POST", (*here, act), body, f"{plugin_id} takes its new version", "upgrade")
        case "grant" | "trim":
            name = one(form, "name")
            said = f"{name} was {'granted to' if act == 'grant' else 'withdrawn from'} {plugin_id}"
            return ActRequest("PUT", (*here, "grants"), {act: [name]}, said)
        case "invoke":
            body = {"action": one(form, "action"), "payload": _payload(one(form, "payload"))}
            return ActRequest("POST", (*here, "invoke"), body, f"{plugin_id} answered", "reply")
    raise Problem("bad_form", f"the console knows no act {act[:80]!r}", "open the page anew")


def on_offer(plugin_id: str, form: Mapping[str, Sequence[str]]) -> ActRequest:
    """What a form of an offer's page asks for: to take it from the market, or to hold the version that is here."""
    match one(form, "act"):
        case "hold":
            return ActRequest(
                "PUT", ("market", "holds", plugin_id), {}, f"{plugin_id} is held at the version that it has"
            )
        case "release":
            return ActRequest("DELETE", ("market", "holds", plugin_id), {}, f"{plugin_id} is not held any more")
    named = {name: one(form, name) for name in ("source", "version") if one(form, name)}
    said = f"{plugin_id} was taken, and waits for a decision"
    return ActRequest("POST", ("market", "install"), {"id": plugin_id, **named, **_accepted(form)}, said)


def refresh(form: Mapping[str, Sequence[str]]) -> ActRequest:
    """Fetch the indexes of one source, or of all."""
    source = one(form, "source")
    return ActRequest(
        "POST", ("market", "refresh"), {"source": source} if source else {}, "the indexes are as new as can be"
    )


def one(form: Mapping[str, Sequence[str]], name: str) -> str:
    """The only value of a field, or empty; Problem bad_form for two."""
    values = form.get(name, ())
    if len(values) > 1:
        raise Problem("bad_form", f"{name[:40]} is there twice", "open the page anew")
    return values[0] if values else ""


def _accepted(form: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {"accept": list(form["accept"])} if form.get("accept") else {}


def _shown(form: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The version that the page showed, for an act that takes it: no other one is taken."""
    identity = one(form, "identity")
    return {"identity": identity} if identity else {}


def _payload(text: str) -> Any:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError) as error:
        raise Problem("bad_form", f"payload: expected JSON, found {text[:80]!r}", 'such as {"name": "Ada"}') from error
