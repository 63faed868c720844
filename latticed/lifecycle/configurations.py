"""Operators' configurations of plugins: checked against the manifest's schema, kept in the ledger, read at each start.

A configuration that was checked against the schema of this very manifest is not checked again. After an upgrade, a
recovery or a restore the schema may be another one, or the document gone: then a start or an activation checks what is
there, and an active plugin is never started with a configuration that does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.bundle import config_schema
from latticed.kit.value import Value
from latticed.ledger import configs as rows
from latticed.ledger import versions
from latticed.model import accepted
from latticed.model.errors import Problem
from latticed.runners import configuration
from latticed.runners.configuration import EMPTY, ConfigInvalid, Configuration, takes_config

if TYPE_CHECKING:
    from latticed.ledger import Ledger
    from latticed.ledger.configs import ConfigRow
    from latticed.model.manifest import Manifest
    from latticed.runners.config_checker import ConfigChecker
    from latticed.runners.contract import PluginToRun

_SHOWN: Final = 3
"""Faults that the reason of a refused start names; `latticectl config check` lists all."""


class Configurations(Value, frozen=True):
    """Reads configurations from the ledger and checks them; `Decisions.configure` stores them."""

    ledger: Ledger
    checker: ConfigChecker

    def stored(self, plugin_id: str) -> ConfigRow | None:
        """The row with the configuration that is set for a plugin, or None."""
        return self.ledger.read(lambda db: rows.get(db, plugin_id))

    async def check(self, manifest: Manifest, document: dict[str, Any]) -> Configuration:
        """Check `document` against the manifest's schema; returns it in the form in which it is stored.

        Problems: bad_request for a plugin that takes no configuration, config_invalid (ConfigInvalid), too_large, and
        those of `ConfigChecker.check`.
        """
        need_schema(manifest)
        wanted = Configuration.of(document)
        await self.checker.check(configuration.schema_of(manifest), wanted)
        return wanted

    async def for_start(self, plugin: PluginToRun) -> bytes:
        """The configuration, as JSON, that `plugin` is started with: `{}` when none is set. Problem needs_config when
        it does not fit the schema. A version that stands by has its own, as its values.
        """
        number = self.ledger.read(lambda db: versions.standing_by(db, plugin.id, plugin.identity))
        if number:
            return await self.fitting(
                plugin.manifest, self.ledger.read(lambda db: versions.config_of(db, plugin.id, number))
            )
        return await self.fitting(plugin.manifest, self.stored(plugin.id))

    async def fitting(self, manifest: Manifest, row: ConfigRow | None, *, upgrading: bool = False) -> bytes:
        """The document of `row` as JSON, `{}` without one or for a plugin that takes none; Problem needs_config when it
        does not fit the manifest's schema.

        `upgrading`: the plugin is active with another manifest, for which its configuration is meant; the hint is then
        another.
        """
        if not takes_config(manifest) or (row is None and config_schema.takes_empty(manifest.config)):
            return EMPTY
        schema = configuration.schema_of(manifest)
        if row is not None and row.schema_sha256 == schema.sha256:
            return row.document
        kept = Configuration(data=row.document, sha256=row.sha256) if row else Configuration.of({})
        try:
            await self.checker.check(schema, kept)
        except ConfigInvalid as invalid:
            raise _needs_config(manifest, invalid, is_set=row is not None, upgrading=upgrading) from invalid
        return kept.data

    def document(self, row: ConfigRow | None) -> dict[str, Any]:
        """The document of `row`, decoded; empty without one."""
        document: dict[str, Any] = msgspec.json.decode(row.document) if row else {}
        return document


def need_schema(manifest: Manifest) -> None:
    """Problem bad_request unless the plugin takes a configuration (`takes_config`); it says why not."""
    if takes_config(manifest):
        return
    if manifest.config:
        protocol = accepted.protocol_of(manifest) or "a template"
        found = f"expected a plugin that speaks latticed-stdio-1, found {protocol}, which gets no configuration"
    else:
        found = "expected a plugin whose manifest has a `config` schema, found none"
    raise Problem("bad_request", f"{manifest.id} takes no configuration: {found}")


def _needs_config(manifest: Manifest, invalid: ConfigInvalid, *, is_set: bool, upgrading: bool) -> Problem:
    """The Problem needs_config for a configuration that does not fit. It goes to the audit and to callers who may not
    see the configuration, so it names no value of it.
    """
    named = "; ".join(fault.discreet for fault in invalid.faults[:_SHOWN])
    more = "; and more" if len(invalid.faults) > _SHOWN or not invalid.whole else ""
    found = "one that does not" if is_set else "none set, and the empty one does not"
    detail = f"cannot start {manifest.id} {manifest.version}: expected a configuration that fits its schema, found"
    hint = f"latticectl config set {manifest.id} -f FILE"
    if upgrading:
        # What fits the new schema need not fit that of the version that runs.
        before, after = (f"latticectl {verb} {manifest.id}" for verb in ("disable", "activate"))
        hint = f"{before} && latticectl upgrade {manifest.id} && {hint} && {after}"
    return Problem("needs_config", f"{detail} {found}: {named}{more}", hint)
