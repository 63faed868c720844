"""The values of secrets that a plan is offered with: typed, in memory, for the root helper alone (contracts §12)."""

from __future__ import annotations

import base64
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.network import intents
from latticed.host.secret.references import REFERENCE
from latticed.kit import text as texts
from latticed.model.hostcall import Denial
from latticed.plans import protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.host.secret.references import PluginSecrets

_FORMS: Final = {form: re.compile(pattern) for form, pattern in protocol.SECRET_FORMS.items()}
_EXPECTED: Final = {
    "key": "a key of 32 bytes in base64",
    "uuid": "a UUID in lower case",
    "password": "6 to 256 characters without spaces and quotes",
}
_DERIVATION: Final = b"LATTICED-PLAN-SECRET-V1"
"""Salt of the derivation (RFC 5869, section 3.1): a value derived for something else is another one."""


def values(
    plugin_id: str, intent: dict[str, Any], secrets: PluginSecrets, forms: Mapping[str, str]
) -> tuple[protocol.SecretValue, ...]:
    """The value of each reference of an intent, once, by its name.

        {"psk": "${secret:PSK}"}      ->  (SecretValue(reference="PSK", form="key", value="…"),)
        {"id": "${secret:USERS#ada}"} ->  the same of a UUID that is derived from USERS for the label `ada`

    `forms`: the form of each reference where the kind is known here; else it is the first of `protocol.SECRET_FORMS`
    that the value has, and the helper's kind says whether that is what it expects. HostError bad_params: not bound to
    the plugin, or of another form; never with the value.
    """
    names = sorted({found[1] for text in intents.references(intent) for found in REFERENCE.finditer(text)})
    if len(names) > protocol.MAX_SECRETS:
        detail = f"expected at most {protocol.MAX_SECRETS} secrets in a plan, found {len(names)}"
        raise HostError(Denial.BAD_PARAMS, detail)
    return tuple(_value(plugin_id, reference, secrets, forms.get(reference, "")) for reference in names)


def derived(value: str, plugin_id: str, label: str, form: str) -> str:
    """A value of `form` for one label of a secret: HKDF-SHA256 over plugin id and label (contracts §9).

    Another label gives another value, so one bound secret serves any number of users.
    """
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    # NUL is in no id and no label: no other pair gives the same bytes.
    info = f"{plugin_id}\0{label}\0{form}".encode()
    key = HKDF(algorithm=SHA256(), length=32, salt=_DERIVATION, info=info).derive(value.encode("utf-8"))
    match form:
        case "uuid":
            return str(uuid.UUID(bytes=key[:16], version=4))
        case "password":
            return base64.urlsafe_b64encode(key).decode("ascii").rstrip("=").replace("-", ".")
        case _:
            return base64.b64encode(key).decode("ascii")


def _value(plugin_id: str, reference: str, secrets: PluginSecrets, form: str) -> protocol.SecretValue:
    name, marked, label = reference.partition("#")
    # Values from files end with a newline.
    value = secrets.expand(f"${{secret:{name}}}").strip()
    if marked:
        if not form:
            raise _unfit(reference, "a label needs a kind of plans that this version has")
        return _checked(reference, form, derived(value, plugin_id, label, form))
    return _checked(reference, form or next((one for one in _FORMS if _FORMS[one].fullmatch(value)), ""), value)


def _checked(reference: str, form: str, value: str) -> protocol.SecretValue:
    if form not in _FORMS or not _FORMS[form].fullmatch(value):
        raise _unfit(reference, f"expected {_EXPECTED.get(form) or ', '.join(_EXPECTED.values())}")
    return protocol.SecretValue(reference=reference, form=form, value=value)


def _unfit(reference: str, why: str) -> HostError:
    shown = texts.sanitise(reference, 130)
    return HostError(Denial.BAD_PARAMS, f"the secret {shown!r} cannot be in a plan: {why}")
