"""Operators, controllers and nodes of a fleet with real keys, and valid sets of documents to begin from.

fleet = fleets.Fleet()
state, verdict = judging.judge(fleet.state(), fleet.desired(), now_s=fleets.NOW)
"""

from __future__ import annotations

import base64
import json
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.fleet import documents, judging

NOW = 1_800_000_000
DAY = 86_400
IDENTITY = "7f" * 32


def key(number: int) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(number.to_bytes(32, "big"))


def public(private: Ed25519PrivateKey) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


OPERATOR, SECOND, CONTROLLER, OTHER_CONTROLLER, NODE, OTHER_NODE, STRANGER = map(key, range(1, 8))


def plugin(plugin_id: str = "acme.demo", **fields: Any) -> documents.WantedPlugin:
    plain = {
        "id": plugin_id,
        "status": "active",
        "identity": IDENTITY,
        "versions": None,
        "publisher": None,
        "accept": (),
        "config": None,
        "secrets": (),
    }
    return documents.WantedPlugin(**{**plain, **fields})


class Fleet:
    """Makes documents; each can be told otherwise by its fields."""

    def __init__(self, name: str = "home", *, now: int = NOW, node: str = "n1") -> None:
        self.name, self.now, self.node = name, now, node
        self.node_key = public(NODE)

    def state(self, **fields: Any) -> judging.NodeState:
        plain = {
            "fleet": self.name,
            "operators": (public(OPERATOR), public(SECOND)),
            "node": self.node,
            "node_key": self.node_key,
            "labels": {"role": "web"},
        }
        return judging.NodeState(**{**plain, **fields})

    def intent(self, generation: int = 1, **fields: Any) -> documents.Intent:
        plain = {
            "fleet": self.name,
            "generation": generation,
            "selector": documents.Selector(labels={"role": "web"}, nodes=()),
            "plugins": (plugin(),),
            "back_to": (),
            "expires": self.now + 30 * DAY,
        }
        return documents.Intent(**{**plain, **fields})

    def assignment(self, meant: documents.Intent, generation: int = 1, **fields: Any) -> documents.Assignment:
        plain = {
            "fleet": self.name,
            "node": self.node,
            "node_key": self.node_key,
            "epoch": 1,
            "generation": generation,
            "intent": documents.name_of(meant),
            "bundles": (),
            "expires": self.now + DAY,
        }
        return documents.Assignment(**{**plain, **fields})

    def certificate(self, **fields: Any) -> documents.ControllerCertificate:
        plain = {
            "fleet": self.name,
            "controller": "c1",
            "controller_key": public(CONTROLLER),
            "epoch": 1,
            "expires": self.now + 7 * DAY,
        }
        return documents.ControllerCertificate(**{**plain, **fields})

    def node_certificate(self, **fields: Any) -> documents.NodeCertificate:
        plain = {
            "fleet": self.name,
            "node": self.node,
            "node_key": self.node_key,
            "labels": {"role": "web"},
            "serial": 1,
        }
        return documents.NodeCertificate(**{**plain, **fields})

    def revocations(self, *keys: str, serial: int = 1, intents: tuple[str, ...] = ()) -> documents.Revocations:
        return documents.Revocations(fleet=self.name, serial=serial, keys=keys, intents=intents)

    def invocation(self, **fields: Any) -> documents.Invocation:
        plain = {
            "fleet": self.name,
            "node": self.node,
            "node_key": self.node_key,
            "nonce": "ab" * 16,
            "expires": self.now + 60,
            "plugin": "acme.demo",
            "action": "check",
            "payload": {},
        }
        return documents.Invocation(**{**plain, **fields})

    def token(self, **fields: Any) -> documents.EnrolmentToken:
        plain = {
            "fleet": self.name,
            "token": "cd" * 16,
            "addresses": ("tls://engine.example.org:4222",),
            "certificates": "-----BEGIN CERTIFICATE-----\n",
            "operators": (public(OPERATOR),),
            "node": self.node,
            "labels": {"role": "web"},
            "expires": self.now + DAY,
        }
        return documents.EnrolmentToken(**{**plain, **fields})

    def desired(
        self,
        generation: int = 1,
        *,
        intent: documents.Intent | None = None,
        operator: Ed25519PrivateKey = OPERATOR,
        controller: Ed25519PrivateKey = CONTROLLER,
        epoch: int = 1,
        **assigned: Any,
    ) -> bytes:
        """A valid desired document of this generation, of the assignment and of the intent unless one is given."""
        intent = intent or self.intent(generation)
        certificate = self.certificate(controller_key=public(controller), epoch=epoch)
        return packed(
            assignment=documents.sign(self.assignment(intent, generation, epoch=epoch, **assigned), controller),
            intent=documents.sign(intent, operator),
            controller=documents.sign(certificate, OPERATOR),
        )


def packed(**envelopes: bytes) -> bytes:
    return documents.pack(documents.DesiredDocument(**envelopes))


def forged(payload: Any, domain: bytes, private: Ed25519PrivateKey, *, named: str | None = None) -> bytes:
    """An envelope of anything, signed as an attacker who has `private` would; `named`: the key that it says."""
    data = payload if isinstance(payload, bytes) else rfc8785.dumps(payload)
    encoded = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    signature = base64.b64encode(private.sign(domain + data)).decode()
    return json.dumps({"payload": encoded, "signature": signature, "key": named or public(private)}).encode()


def opened(envelope: bytes) -> dict[str, Any]:
    """The payload of an envelope, as JSON."""
    text = json.loads(envelope)["payload"]
    plain: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return plain
