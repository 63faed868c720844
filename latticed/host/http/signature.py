"""Signatures of webhooks as standardwebhooks.com has them: HMAC-SHA256 over id, time and body, in base64."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from typing import Final

from latticed.host.call import HostError
from latticed.model.hostcall import Denial

ID: Final = "Webhook-Id"
TIMESTAMP: Final = "Webhook-Timestamp"
SIGNATURE: Final = "Webhook-Signature"
_PREFIX: Final = "whsec_"
# A dot in it would move the border between the parts that are signed.
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")


def headers(secret: str, message_id: str, body: bytes, *, now_s: int) -> tuple[tuple[str, str], ...]:
    """The three headers of a signed webhook. HostError bad_params for an id or a secret of another form.

    A secret that begins with `whsec_` is base64 from there on, any other one is the key as it is.
    """
    if not _ID.fullmatch(message_id):
        raise HostError(Denial.BAD_PARAMS, "sign.id: expected 1 to 128 of A-Z, a-z, 0-9, '_', '-'")
    signed = f"{message_id}.{now_s}.".encode("ascii") + body
    digest = hmac.new(_key(secret.strip()), signed, hashlib.sha256).digest()
    made = "v1," + base64.b64encode(digest).decode("ascii")
    return (ID, message_id), (TIMESTAMP, str(now_s)), (SIGNATURE, made)


def _key(secret: str) -> bytes:
    if not secret.startswith(_PREFIX):
        return secret.encode("utf-8")
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HostError(Denial.BAD_PARAMS, "sign.secret: expected base64 after whsec_") from error
