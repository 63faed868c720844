"""Documents as an operator writes them, in TOML or JSON, made into those that are signed. Pure.

An intent, for example:

    [selector]
    labels = { role = "web" }

    [[plugins]]
    id = "acme.demo"
    versions = ">=1.2, <2"
    publisher = "acme"
    accept = ["http:egress", "host=api.example.org:443"]
    secrets = ["token"]
    config = { interval_s = 60 }
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from latticed.fleet import documents
from latticed.fleet.documents import Intent, Name, Selector, WantedPlugin
from latticed.model import capability, consents
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from latticed.fleet.documents import Signed

PREVIOUS: Final = "previous"
"""In `back_to`: the intents that were signed last before this one for the same nodes, and the last one for some of
them: a rollout goes back to what nodes have, which is not the one before where that was bad itself.
"""
_WAYS_BACK: Final = 3
DAY_S: Final = 86_400
Days = Annotated[int, Meta(ge=1, le=3_650)]


class _Written(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A word that is misspelt is an error."""


class WrittenSelector(_Written, frozen=True, kw_only=True):
    """Which nodes: with all these labels; where nodes are named, these alone."""

    labels: documents.Labels = {}
    nodes: tuple[Name, ...] = ()


class WrittenPlugin(_Written, frozen=True, kw_only=True):
    """One plugin; `identity`, or `versions` and `publisher`, or neither for one that latticed brings."""

    id: str
    status: Literal["installed", "active", "disabled"] = "active"
    identity: str | None = None
    versions: str | None = None
    publisher: str | None = None
    accept: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    secrets: tuple[str, ...] = ()


class WrittenIntent(_Written, frozen=True, kw_only=True):
    """Which plugins run where. Absent: `fleet` and `generation` come from the fleet's directory, `back_to` is
    `PREVIOUS`.
    """

    kind: Literal["intent"] = "intent"
    fleet: Name | None = None
    generation: documents.Number | None = None
    selector: WrittenSelector
    plugins: tuple[WrittenPlugin, ...]
    back_to: tuple[str, ...] = (PREVIOUS,)
    days: Days = 30


class WrittenController(_Written, frozen=True, kw_only=True):
    """A request for a certificate, as `latticectl fleet init` writes it. `epoch` is in the directory's certificates."""

    kind: Literal["controller"]
    fleet: Name
    controller: Name
    controller_key: documents.Key
    epoch: documents.Number | None = None
    days: Days = 30


class WrittenNode(_Written, frozen=True, kw_only=True):
    """Labels of a node that has joined; its key is in `latticectl fleet node NAME`."""

    kind: Literal["node"]
    fleet: Name | None = None
    node: Name
    node_key: documents.Key
    labels: documents.Labels
    serial: documents.Number | None = None


Written = WrittenIntent | WrittenController | WrittenNode
_KINDS: Final[dict[str, type[Written]]] = {
    "intent": WrittenIntent,
    "controller": WrittenController,
    "node": WrittenNode,
}


def read(data: Mapping[str, Any], where: str) -> Written:
    """What an operator wrote, by its `kind` (default intent); Problem written_invalid, which names the field."""
    kind = _KINDS.get(str(data.get("kind", "intent")))
    if kind is None:
        raise invalid(where, f"the kind {str(data.get('kind'))[:40]!r}")
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise invalid(where, str(error)) from error


def invalid(where: str, found: str) -> Problem:
    """What is said of a file that cannot be signed."""
    hint = "latticectl fleet sign --help, and docs/operate/fleet-hosts.md, show how it is written"
    return Problem(
        "written_invalid", f"{where}: expected an intent, a controller or a node to sign, found: {found}", hint
    )


def intent(written: WrittenIntent, before: Sequence[Signed], *, fleet: str, now_s: int) -> Intent:
    """The intent, after those that were signed `before` (by generation); Problem written_invalid.

    It is whole: every rule that a node judges it by holds, as far as they can be known here.
    """
    highest = max((one.document.generation for one in before), default=0)
    generation = written.generation or highest + 1
    if generation <= highest:
        raise invalid("generation", f"{generation}, expected one above {highest}, which was signed already")
    if written.fleet not in {None, fleet}:
        raise invalid("fleet", f"{written.fleet}, expected {fleet}")
    selector = Selector(labels=written.selector.labels, nodes=written.selector.nodes)
    back_to = []
    for one in written.back_to:
        if one != PREVIOUS:
            back_to.append(one)
        else:
            back_to += _previous(selector, before)
    try:
        made = Intent(
            fleet=fleet,
            generation=generation,
            selector=selector,
            plugins=tuple(_plugin(one) for one in written.plugins),
            back_to=tuple(dict.fromkeys(back_to)),
            expires=now_s + written.days * DAY_S,
        )
    except (ValueError, msgspec.ValidationError) as error:
        raise invalid("intent", str(error)) from error
    for plugin in made.plugins:
        if unknown := [one for one in consents_of(plugin).caps if one not in capability.RISKS]:
            raise invalid(plugin.id, f"accept: the capability {unknown[0]!r}, which there is none of")
    return made


def _previous(selector: Selector, before: Sequence[Signed]) -> list[str]:
    """What `PREVIOUS` stands for, the newest first."""
    same = [one for one in before if one.document.selector == selector][-_WAYS_BACK:]
    shared = [one for one in before if _may_share(one.document.selector, selector)][-1:]
    found = {one.sha256: one.document.generation for one in (*same, *shared)}
    return sorted(found, key=found.__getitem__, reverse=True)


def _may_share(one: Selector, other: Selector) -> bool:
    """Whether a node can be meant by both."""
    if one.nodes and other.nodes and set(one.nodes).isdisjoint(other.nodes):
        return False
    return all(other.labels.get(name, value) == value for name, value in one.labels.items())


def consents_of(plugin: WantedPlugin) -> consents.Named:
    """What is consented to for one plugin; Problem written_invalid."""
    try:
        return consents.parse(plugin.accept)
    except consents.BadConsent as error:
        raise invalid(plugin.id, f"accept: {error}") from error


def risky(plugin: WantedPlugin) -> tuple[str, ...]:
    """Of what is consented to, that by which a plugin can change its host or reach others."""
    return tuple(one for one in plugin.accept if _is_risky(one))


def _is_risky(text: str) -> bool:
    named = consents.parse([text])
    return named.needs_host_scope or bool(
        capability.host_risk(tuple(one for one in named.caps if one in capability.RISKS))
    )


def which(plugin: WantedPlugin) -> str:
    """Which bundle of a plugin is meant, in words."""
    if plugin.identity is not None:
        return f"identity {plugin.identity[:16]}…"
    if plugin.versions is not None:
        return f"{plugin.versions} by {plugin.publisher}"
    return "as this latticed brings it"


def warnings(made: Intent) -> Iterator[str]:
    """What an operator should look at twice before he signs."""
    for plugin in made.plugins:
        if found := risky(plugin):
            yield f"{plugin.id} can act on its host or reach others: {', '.join(found)}"
        if plugin.identity is None and plugin.versions is not None and plugin.status == "active":
            yield f"{plugin.id}: any release in {plugin.versions} by {plugin.publisher}, those to come too"
    if not made.selector.labels and not made.selector.nodes:
        yield "no label and no node is named: it is for every host of the fleet"
    if not made.back_to and made.generation > 1:
        yield "back_to is empty: no way back by itself, each needs the operator's key"


def _plugin(written: WrittenPlugin) -> WantedPlugin:
    return msgspec.convert(msgspec.to_builtins(written), WantedPlugin)
