"""Requests about one plugin that several verbs make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

from latticed.ctl import decode, replies
from latticed.model import ids
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed import wire
    from latticed.client.control import ControlClient


_BAD_GATEWAY: Final = 502


class Asked(Protocol):
    """Somebody who can be asked: latticectl's client, or the console's, which asks for less."""

    def get(self, *parts: str, query: Mapping[str, str | int | None] | None = None) -> Any:
        """The decoded answer to a GET."""

    def health(self) -> Any:
        """The health report, whatever it says."""


def known_id(plugin_id: str) -> str:
    """`plugin_id`; Problem("not_found") when it is not a valid id, so no plugin can have it."""
    if not ids.is_valid(plugin_id):
        hint = "ids are 3 to 128 of a-z, 0-9, '.' and '-'; latticectl list shows them"
        raise Problem("not_found", f"no plugin is named {plugin_id[:150]!r}", hint)
    return plugin_id


def about(client: Asked, plugin_id: str, **query: str) -> dict[str, Any]:
    """`{"plugin", "verdict", "grants", "denials"}` of one plugin, as the daemon sent it; Problem not_found.

    `explain="1"` as query adds `causes`.
    """
    return replies.mapping(client.get("plugins", "by-id", known_id(plugin_id), query=query or None), "plugin")


def plugin(client: ControlClient, plugin_id: str) -> tuple[dict[str, Any], wire.PluginView]:
    """One plugin's record, as it was sent and decoded; Problems not_found, bad_reply."""
    plain = replies.mapping(about(client, plugin_id).get("plugin"), "plugin")
    return plain, decode.plugin(plain)


def invoke(client: ControlClient, plugin_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The plugin's reply to an action, whatever it says.

    The ApiRefusal of one that ended instead, or did not keep to its protocol, has `where_it_tells` as its hint.
    """
    from latticed.client.control import ApiRefusal

    try:
        return replies.mapping(client.post("plugins", "by-id", plugin_id, "invoke", body=body), "reply")
    except ApiRefusal as refusal:
        if refusal.status != _BAD_GATEWAY or refusal.hint:
            raise
        hint = where_it_tells(client, plugin_id)
        raise ApiRefusal(refusal.status, refusal.code, refusal.reason, hint) from refusal


def where_it_tells(client: ControlClient, plugin_id: str) -> str:
    """The command that shows more about a failure of a plugin, for a hint: its log, or what it was denied.

    Empty when there is neither, or the daemon does not say.
    """
    try:
        found = replies.mapping(client.get("plugins", "by-id", plugin_id, "logs", query={"limit": 1}), "logs")
        if found.get("lines"):
            return f"latticectl logs {plugin_id} shows what it says"
        if about(client, plugin_id).get("denials"):
            return f"latticectl explain {plugin_id} shows which of its calls were denied"
    except Problem:  # the failure itself is what is to be told
        pass
    return ""
