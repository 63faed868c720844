"""Handlers for secrets: list, set, bind, delete. No route returns a value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.kit.clock import rfc3339
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.rpc.api import QueryParams
from latticed.rpc.plugins import Nothing

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from latticed.rpc.api import Ask
    from latticed.rpc.service_responses import SecretBound, SecretDeleted, SecretList, SecretSet


async def listing(ask: Ask) -> SecretList:
    """Names, versions and bindings of all secrets; never a value."""
    return {
        "secrets": [
            {
                "name": one.name,
                "version": one.version,
                "plugins": list(one.plugins),
                "created_at": rfc3339(one.created_at),
                "updated_at": rfc3339(one.updated_at),
                "usable": one.usable,
            }
            for one in ask.api.secrets.known()
        ]
    }


async def put(ask: Ask) -> SecretSet:
    """Set a secret; the body is its value, UTF-8 text."""
    data = await ask.raw()
    try:
        value = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem("bad_request", "expected the value as UTF-8 text, found other bytes") from error
    async with _recorded(ask, "secret.set"):
        return {"name": ask.part("name"), "version": await ask.api.secrets.set(ask.part("name"), value)}


class Deletion(QueryParams, frozen=True):
    """A secret that is bound to plugins is deleted only with `unbind`."""

    unbind: bool = False


async def delete(ask: Ask) -> SecretDeleted:
    """Delete a secret; one that is bound to plugins only with `unbind`, which removes the bindings too."""
    await ask.body(Nothing)
    async with _recorded(ask, "secret.delete"):
        plugins = await ask.api.secrets.delete(ask.part("name"), unbind=ask.query(Deletion).unbind)
    return {"name": ask.part("name"), "plugins": list(plugins), "deleted": True}


async def bind(ask: Ask) -> SecretBound:
    """Bind a secret to a plugin, whose host calls may then refer to it."""
    await ask.body(Nothing)
    async with _recorded(ask, "secret.bind"):
        await ask.api.secrets.bind(ask.part("name"), ask.part("id"))
    return {"name": ask.part("name"), "plugin": ask.part("id"), "bound": True}


async def unbind(ask: Ask) -> SecretBound:
    """Remove the binding of a secret to a plugin."""
    await ask.body(Nothing)
    async with _recorded(ask, "secret.unbind"):
        await ask.api.secrets.unbind(ask.part("name"), ask.part("id"))
    return {"name": ask.part("name"), "plugin": ask.part("id"), "bound": False}


def _recorded(ask: Ask, action: str) -> AbstractAsyncContextManager[None]:
    """`Ask.recorded` for an action on the secret in the path; the event never has its value."""
    plugin = ask.request.match_info.get("id")
    detail: dict[str, str | int | bool] = {"plugin": plugin} if plugin else {}
    told = Event(actor=str(ask.actor), action=action, target=ask.part("name"), decision="allow", detail=detail)
    return ask.recorded(told)
