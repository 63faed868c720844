"""The values of secrets that a plan is offered with: typed, in memory, for the root helper alone (contracts §12)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.host.call import HostError
from latticed.host.network import intents
from latticed.host.secret import typed
from latticed.host.secret.references import REFERENCE
from latticed.model.hostcall import Denial
from latticed.plans import protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.host.secret.references import PluginSecrets


def names(intent: dict[str, Any], forms: Mapping[str, str]) -> tuple[str, ...]:
    """The references of an intent, sorted: those in its texts, and those that its kind makes of names in it."""
    written = {found[1] for text in intents.references(intent) for found in REFERENCE.finditer(text)}
    return tuple(sorted(written | forms.keys()))


def opened(references: Iterable[str], secrets: PluginSecrets) -> PluginSecrets:
    """`secrets` with all bound values read that these need, so that `values` may derive them on another thread."""
    for name in sorted({one.partition("#")[0] for one in references}):
        secrets.expand(f"${{secret:{name}}}")
    return secrets


def values(
    plugin_id: str, intent: dict[str, Any], secrets: PluginSecrets, forms: Mapping[str, str]
) -> tuple[protocol.SecretValue, ...]:
    """The value of each reference of an intent, once, by its name; also of those that its kind makes of names in it.

        {"psk": "${secret:PSK}"}      ->  (SecretValue(reference="PSK", form="key", value="…"),)
        {"id": "${secret:USERS#ada}"} ->  the same of a UUID that is derived from USERS for the label `ada`

    `forms`: the form of each reference where the kind is known here; else it is the first of `protocol.SECRET_FORMS`
    that the value has, and the helper's kind says whether that is what it expects. HostError bad_params: not bound to
    the plugin, or of another form; never with the value.
    """
    found = names(intent, forms)
    if len(found) > protocol.MAX_SECRETS:
        detail = f"expected at most {protocol.MAX_SECRETS} secrets in a plan, found {len(found)}"
        raise HostError(Denial.BAD_PARAMS, detail)
    return tuple(_value(plugin_id, reference, forms.get(reference, ""), secrets) for reference in found)


def _value(plugin_id: str, reference: str, form: str, secrets: PluginSecrets) -> protocol.SecretValue:
    found, value = typed.value(plugin_id, reference, form, secrets)
    return protocol.SecretValue(reference=reference, form=found, value=value)
