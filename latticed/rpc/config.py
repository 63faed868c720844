"""Handlers for operators' configurations of plugins: show, check, set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed import wire
from latticed.kit.clock import rfc3339
from latticed.model.errors import Problem
from latticed.rpc.api import Body
from latticed.runners import configuration

if TYPE_CHECKING:
    from latticed.model.manifest import Manifest
    from latticed.rpc.api import Ask
    from latticed.rpc.responses import ConfigSecret, ConfigSet, ConfigView

BODY_DEPTH = 1 + wire.MAX_CONFIG_DEPTH
"""The object of the request, and the configuration in it."""


class NewConfig(Body, frozen=True):
    """`config` becomes the plugin's whole configuration. With `dry_run` it is only checked."""

    config: dict[str, Any]
    dry_run: bool = False


async def show(ask: Ask) -> ConfigView:
    """The configuration of a plugin, with the schema that it has to fit.

    Secrets in it are references, and stay that.
    """
    plugin_id = ask.part("id")
    manifest = ask.api.lifecycle.decisions.manifest_of(plugin_id)
    kept = ask.api.lifecycle.deps.configurations
    row = kept.stored(plugin_id)
    document = kept.document(row)
    # Judged now, as an upgrade may have brought another schema since it was set.
    problem = await _problem(ask, manifest)
    return {
        "id": plugin_id,
        "is_set": row is not None,
        "config": document,
        "schema": manifest.config if configuration.takes_config(manifest) else None,
        "bytes": len(row.document) if row else None,
        "sha256": row.sha256 if row else None,
        "updated_at": rfc3339(row.updated_at) if row else None,
        "fits": problem is None,
        "problem": problem.reason if problem else None,
        "secrets": _secrets(ask, plugin_id, document),
    }


async def put(ask: Ask) -> ConfigSet:
    """Set the configuration of an installed plugin, and restart an active one when it changes.

    A document that does not fit is `config_invalid`, with all that is wrong in `errors`.
    """
    body, plugin_id = await ask.body(NewConfig, max_depth=BODY_DEPTH), ask.part("id")
    decide = ask.api.lifecycle.decisions
    done = await decide.configure(ask.actor, plugin_id, body.config, dry_run=body.dry_run)
    runtime = ask.api.supervisor.runtime(plugin_id)
    return {
        "id": plugin_id,
        "dry_run": body.dry_run,
        "changed": done.changed,
        "restarted": done.restarted,
        "state": str(runtime.state),
        "message": runtime.message,
        "bytes": len(done.config.data),
        "sha256": done.config.sha256,
        "secrets": _secrets(ask, plugin_id, body.config),
    }


async def _problem(ask: Ask, manifest: Manifest) -> Problem | None:
    """Why the plugin could not start with the configuration that is set; None when it could."""
    kept = ask.api.lifecycle.deps.configurations
    try:
        await kept.fitting(manifest, kept.stored(manifest.id))
    except Problem as problem:
        return problem
    return None


def _secrets(ask: Ask, plugin_id: str, document: dict[str, Any]) -> list[ConfigSecret]:
    """The secrets that a document refers to, and whether each is bound; host calls with an unbound one fail."""
    names = configuration.secrets_of(document)
    bound = {one.name for one in ask.api.secrets.known() if plugin_id in one.plugins} if names else set[str]()
    return [{"name": name, "bound": name in bound} for name in names]
