"""Names of the fleet's streams and subjects in the message system: the one place where they are put together.

A node's name is one token of a subject, which is how the engine holds a node to its own subjects.
"""

from __future__ import annotations

import re
from typing import Final

from latticed.model.errors import Problem

DESIRED_STREAM: Final = "KV_desired"
BUNDLES_STREAM: Final = "BUNDLES"
EVENTS_STREAM: Final = "EVENTS"
STATUS_STREAM: Final = "STATUS"
PRESENCE_STREAM: Final = "PRESENCE"
FLEET_STREAM: Final = "KV_fleet"

_NODE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_KEY: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)


def node_name(text: str) -> str:
    """`text` if it may name a node: 1 to 63 of a-z, 0-9 and hyphens within (RFC 1123 §2.1, one label); Problem else.

    No dot, star or > can be in it: in a subject these would name other nodes too.
    """
    if not _NODE.fullmatch(text):
        raise Problem(
            "bad_request",
            f"expected a node's name of 1 to 63 of a-z, 0-9 and hyphens within, found {text[:80]!r}",
            "the host's short name in lower case will do",
        )
    return text


def desired(node: str) -> str:
    """Where a node's desired document is kept."""
    return f"$KV.desired.{node_name(node)}"


def desired_pushed(node: str) -> str:
    """Where it is published again as it changes, for who listens just then."""
    return f"dn.{node_name(node)}"


def events(node: str) -> str:
    return f"ev.{node_name(node)}.audit"


def status(node: str) -> str:
    return f"st.{node_name(node)}"


def presence(node: str) -> str:
    return f"hb.{node_name(node)}"


def by_node(node: str, what: str) -> str:
    """What a node itself publishes to: `desired`, `event`, `status`, `beat`, `renewal`.

    Its account has each of them come to the controllers' one. A server keeps what a client may publish to in memory for
    each connection, by the tokens: so they are few, and all begin alike.
    """
    return f"n.{node_name(node)}.{what}"


def chunk_asked(sha256: str, number: int) -> str:
    """Where a node asks for a chunk."""
    return chunk(sha256, number).replace("bundle", "chunk", 1)


def news(stream: str) -> str:
    """Where it is said, to controllers, that a stream has kept something new: nodes cannot publish there."""
    return f"news.{stream.lower()}"


def invocation(node: str) -> str:
    """Where the controller asks a node for an answer, signed by the operator."""
    return f"rpc.{node_name(node)}.invoke"


def enrolment(nonce: str) -> str:
    """Where a host asks a controller to let it join, by the invitation of this nonce."""
    return f"enrol.{node_name(nonce)}"


def renewal(node: str) -> str:
    """Where a node asks a controller for credentials that last longer."""
    return f"renew.{node_name(node)}"


def inbox(name: str) -> str:
    """What a client's inboxes begin with; nobody but this client may listen there."""
    return f"_INBOX_{node_name(name)}"


def chunk(sha256: str, number: int) -> str:
    """Where chunk `number` (from 0) of the file with this digest is kept."""
    if not _SHA256.fullmatch(sha256) or not 0 <= number < 1 << 20:
        raise ValueError(f"expected 64 hex digits and a number of at most 7 digits, found {sha256[:80]!r}, {number}")
    return f"bundle.{sha256}.{number}"


def sha256(text: str) -> str:
    """`text` if it may name a bundle; ValueError else."""
    if not _SHA256.fullmatch(text):
        raise ValueError(f"expected 64 hex digits, found {text[:80]!r}")
    return text


def fleet(key: str) -> str:
    """Where the controllers keep what they share under `key`: the lease, a rollout's state."""
    if not _KEY.fullmatch(key):
        raise ValueError(f"expected a key of 1 to 64 of a-z, 0-9 and hyphens, found {key[:80]!r}")
    return f"$KV.fleet.{key}"


def newest(stream: str, subject: str) -> str:
    """What to ask for the newest message of `subject` in `stream`, without a consumer (ADR-31 of NATS)."""
    return f"$JS.API.DIRECT.GET.{stream}.{subject}"


def node_of(subject: str) -> str:
    """The node that a subject such as `st.web-1` or `ev.web-1.audit` belongs to; Problem for another."""
    tokens = subject.removeprefix("$KV.").split(".")
    return node_name(tokens[1] if len(tokens) > 1 else "")
