"""Values of secrets in the form that the place where they go needs: a key, a UUID, a password.

    value("acme.vpn", "PSK", "key", secrets)         the bound value, which has to be 32 bytes in base64
    value("acme.vpn", "PSK#anna", "key", secrets)    another 32 bytes, derived from it for this plugin and label

Nothing derived is stored: the same secret, plugin and label give the same value again.
"""

from __future__ import annotations

import base64
import re
import uuid
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.secret.references import MAX_EXPANDED_BYTES, REFERENCE
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


def form_of(value: str) -> str:
    """The first form that a value has; empty for none."""
    return next((one for one in _FORMS if _FORMS[one].fullmatch(value)), "")


def value(plugin_id: str, reference: str, form: str, secrets: PluginSecrets) -> tuple[str, str]:
    """Form and value of a reference, `NAME` or `NAME#label`.

    `form` empty: the one that a bound value has; a derived one needs to be told. HostError bad_params: not bound to the
    plugin, or of another form; never with the value.
    """
    name, marked, label = reference.partition("#")
    # Values from files end with a newline.
    bound = secrets.expand(f"${{secret:{name}}}").strip()
    if marked:
        if form not in _FORMS:
            raise _unfit(reference, "a label needs to be told the form of its value")
        return form, derived(bound, plugin_id, label, form)
    found = form or form_of(bound)
    if found not in _FORMS or not _FORMS[found].fullmatch(bound):
        raise _unfit(reference, f"expected {_EXPECTED.get(found) or ', '.join(_EXPECTED.values())}")
    return found, bound


def values(plugin_id: str, forms: Mapping[str, str], secrets: PluginSecrets) -> dict[str, str]:
    """The value of each reference, by reference; HostError as `value`."""
    return {reference: value(plugin_id, reference, form, secrets)[1] for reference, form in forms.items()}


def filled(plain: Any, plugin_id: str, forms: Mapping[str, str], secrets: PluginSecrets) -> Any:
    """`plain` (JSON values) with the values of these references in its texts, in one pass; other text stays.

        filled({"conf": "PresharedKey = ${secret:PSK#anna}"}, "acme.vpn", {"PSK#anna": "key"}, secrets)

    References that `forms` does not name are text of somebody else's. HostError as `value`, and too_large.
    """
    found_values = values(plugin_id, forms, secrets)
    size = 0

    def text(given: str) -> str:
        nonlocal size
        found = REFERENCE.sub(lambda match: found_values.get(match[1], match[0]), given)
        size += len(found) if found != given else 0
        if size > MAX_EXPANDED_BYTES:
            raise HostError(Denial.TOO_LARGE, f"expected at most {MAX_EXPANDED_BYTES} bytes with secrets in place")
        return found

    def within(inner: Any) -> Any:
        if isinstance(inner, str):
            return text(inner)
        if isinstance(inner, dict):
            return {key: within(one) for key, one in inner.items()}
        return [within(one) for one in inner] if isinstance(inner, list) else inner

    return within(plain)


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


def _unfit(reference: str, why: str) -> HostError:
    shown = texts.sanitise(reference, 130)
    return HostError(Denial.BAD_PARAMS, f"the secret {shown!r} cannot be used here: {why}")
