"""What the message system needs to serve a fleet: identities, accounts, permissions, streams and configuration. Pure.

    CTRL   has the streams; the controllers are its users
    NODES  has the nodes, which see of CTRL what is exported here and nothing else; no streams
    SYS    the server's own; whoever revokes a node's credentials connects there

A node's permissions stand in the signing key of its account, as a template with the node's name: whoever enrols nodes
holds that key, and can make no other user with it. In one account with the controllers, a node could overwrite the
document of another by naming its subject as the one to reply to.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.fleet import nkeys, subjects
from latticed.fleet.engine import BEAT_BYTES, CHUNK_BYTES, DESIRED_BYTES, DOCUMENT_BYTES, EVENT_BYTES, STATUS_BYTES
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed.fleet.signers import Identities, Signers

LOWEST_VERSION: Final = (2, 14)
"""Of nats-server: per-message TTL, quotas per subject and republishing are there, and were tested."""
EVENTS_PER_NODE: Final = 256
HEADER_BYTES: Final = 1 << 10
"""What the engine's own headers may add to a message."""
PRESENT_S: Final = 60
"""How long a beat counts."""
STATUSES_PER_NODE: Final = 60
STATUS_S: Final = 300
"""Of one node so many statuses are kept for so long, and no further one is taken meanwhile: so it can say something
every five seconds, and a flood of it costs nobody else. One a minute is usual.
"""
BEATS_PER_NODE: Final = 12
"""Within `PRESENT_S`, in the same way. Four are usual."""
_NODE_BYTES: Final = 48 << 10
"""Of a server's memory for each node: connection, TLS, permissions, subscriptions and stacks."""
_FEW: Final = 1_000
_MANY_NODE_BYTES: Final = 80 << 10
"""For each beyond so few. To collect is the dearer the more there are, and is due as often: with 48 KiB for each of
10,000 a server spent a third of its time on that.
"""
_SERVER_BYTES: Final = 56 << 20
"""Of it for what does not depend on nodes: itself, and two buffers of 4 MiB for each stream that is written to. With 28
MiB a server of 1,000 nodes did little but collect garbage after four changes. Its executable comes on top.
"""
DUPLICATES_S: Final = 120
"""Within which an event of the same id is stored once."""
_SHORTEST_NS: Final = 100_000_000
"""Of a stream's memory of ids (a server takes no less). Where none counts it would keep each that a node makes up, of
any length, for two minutes: one node could fill the memory of all.
"""
_EVENTS_AGE_S: Final = 7 * 86_400
_MOST_SUBSCRIPTIONS: Final = 16
_OTHER_CONNECTIONS: Final = 1_024
_NAME: Final = "{{name()}}"
FOR_GOOD: Final = 253_402_300_799
"""Up to when what is signed for a revoked user does not count: the end of the year 9999. A moment that is now would let
in what is signed for it later.
"""
_UNLIMITED: Final = {"subs": -1, "data": -1, "payload": -1}
_NS: Final = 1_000_000_000
_ANSWER_S: Final = 30
# Printable ASCII without what ends or escapes a quoted string of nats-server's configuration.
_PLAIN: Final = re.compile(r"[ !#-\[\]-~]{1,4096}")

# What crosses from CTRL to NODES, with the kind of export (a node asks: "service"; or hears: "stream"), and what it is
# in NODES: $1 is the first token that a star stands for.
_EXPORTS: Final = (
    ("desired", subjects.newest(subjects.DESIRED_STREAM, "$KV.desired.*"), "service", "n.$1.desired"),
    ("bundles", subjects.newest(subjects.BUNDLES_STREAM, "bundle.*.*"), "service", "chunk.$1.$2"),
    ("events", "ev.*.audit", "service", "n.$1.event"),
    ("status", "st.*", "service", "n.$1.status"),
    ("presence", "hb.*", "service", "n.$1.beat"),
    ("enrolment", "enrol.*", "service", "enrol.$1"),
    ("renewal", "renew.*", "service", "n.$1.renewal"),
    ("pushed", "dn.*", "stream", ""),
)
NODE_MAY_PUBLISH: Final = (f"n.{_NAME}.*", "chunk.*.*")
"""A server has some 400 bytes for each token of these, for each node."""
NODE_MAY_SUBSCRIBE: Final = (f"_INBOX_{_NAME}.>", f"dn.{_NAME}", f"rpc.{_NAME}.invoke")
UPDATE_CLAIMS: Final = "$SYS.REQ.CLAIMS.UPDATE"
"""Where servers take tokens of accounts."""
INVITED_MAY_PUBLISH: Final = (f"enrol.{_NAME}",)
INVITED_MAY_SUBSCRIBE: Final = (f"_INBOX_{_NAME}.>",)
"""Of who has an invitation and is no node yet; the user's name is the invitation's nonce."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfiguredServer:
    """One nats-server. Paths are on its own host; `route` (host:port) is where the others of a cluster reach it."""

    name: str
    listen: str
    directory: str
    certificate: str
    private_key: str
    ca: str
    route: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """For how many nodes, and how much space bundles may take."""

    nodes: int = 1_000
    bundles_bytes: int = 4 << 30

    @property
    def disk_bytes(self) -> int:
        """What the streams may come to: every node with all its events, of the largest size."""
        events = EVENTS_PER_NODE * (EVENT_BYTES + HEADER_BYTES)
        statuses = STATUSES_PER_NODE * (STATUS_BYTES + HEADER_BYTES)
        return self.bundles_bytes + self.nodes * (events + statuses + 2 * DESIRED_BYTES) + (64 << 20)

    @property
    def connections(self) -> int:
        """Most connections of all nodes together."""
        return 4 * self.nodes + 32

    @property
    def memory_bytes(self) -> int:
        """What a server is to keep its memory near: `server_environment`."""
        more = max(0, self.nodes - _FEW) * (_MANY_NODE_BYTES - _NODE_BYTES)
        return _SERVER_BYTES + self.nodes * _NODE_BYTES + more


SIZES: Final = Sizes()


def operator_token(identities: Identities, *, now_s: int) -> str:
    claims = {"type": "operator", "version": 2, "system_account": identities.system.public}
    return nkeys.token(identities.operator, identities.operator.public, "latticed", claims, now_s=now_s)


def account_tokens(
    identities: Identities, *, now_s: int, revoked: Mapping[str, int] | None = None, sizes: Sizes = SIZES
) -> dict[str, str]:
    """The tokens of the three accounts by their public keys. `revoked`: users' public keys, and the moment (seconds
    since 1970) up to which what was signed for them does not count. `sizes`: those of the configuration.

    A server that finds two of one account at a start, or with another server, takes the one of the later `now_s`; one
    that is pushed counts in any case.
    """
    claims = account_claims(identities.signers, sizes=sizes)
    if revoked:
        claims["NODES"]["revocations"] = dict(revoked)
    return {
        identities.control.public: _account(identities, identities.control, "CTRL", claims["CTRL"], now_s=now_s),
        identities.nodes.public: _account(identities, identities.nodes, "NODES", claims["NODES"], now_s=now_s),
        identities.system.public: _account(identities, identities.system, "SYS", {"limits": _limits()}, now_s=now_s),
    }


def account_claims(signers: Signers, *, sizes: Sizes = SIZES) -> dict[str, dict[str, Any]]:
    """What the accounts CTRL and NODES have to have: limits, signing keys, exports, imports; as in `nats` of a JWT."""
    return {"CTRL": _control(signers), "NODES": _nodes(signers, sizes)}


def node_token(
    signer: nkeys.Key, account: str, user: str, node: str, *, now_s: int, expires_s: int | None = None
) -> str:
    """What lets the holder of the key `user` (public) connect as `node`; its permissions come from `signer`'s scope."""
    nkeys.check_public(user, nkeys.KeyKind.USER)
    claims = {"type": "user", "version": 2, "issuer_account": account, "pub": {}, "sub": {}}
    return nkeys.token(signer, user, subjects.node_name(node), claims, now_s=now_s, expires_s=expires_s)


def invitation_credentials(
    signer: nkeys.Key, account: str, nonce: str, *, now_s: int, expires_s: int
) -> nkeys.UserCredentials:
    """What lets a host ask to be enrolled by the invitation of this nonce, and nothing else; `signer` is
    `Identities.enrol_signer`, `account` the public key of `nodes`.
    """
    key = nkeys.Key.generate(nkeys.KeyKind.USER)
    token = node_token(signer, account, key.public, nonce, now_s=now_s, expires_s=expires_s)
    return nkeys.UserCredentials(token=token, key=key, name=nonce, expires_s=expires_s)


def controller_credentials(
    signers: Signers, name: str, *, now_s: int, expires_s: int | None = None
) -> nkeys.UserCredentials:
    """UserCredentials of a controller: all of the account CTRL, nothing of the server's own."""
    return _user(signers.control_signer, signers.control, name, now_s=now_s, expires_s=expires_s)


def system_credentials(identities: Identities, *, now_s: int, expires_s: int | None = None) -> nkeys.UserCredentials:
    """UserCredentials for the account SYS, to revoke with (`$SYS.REQ.CLAIMS.UPDATE`) and to look at the servers."""
    return _user(identities.system, None, "operator", now_s=now_s, expires_s=expires_s)


def revoking_credentials(
    identities: Identities, name: str, *, now_s: int, expires_s: int | None = None
) -> nkeys.UserCredentials:
    """UserCredentials for the account SYS that can hand over tokens of accounts, and ask which token NODES has: what
    the message system's operator signed, and nothing else.
    """
    may = {
        "pub": {"allow": [UPDATE_CLAIMS, claims_of(identities.nodes.public)]},
        "sub": {"allow": [f"{subjects.inbox(name)}.>"]},
        "allowed_connection_types": ["STANDARD"],
    }
    return _user(identities.system, None, name, now_s=now_s, expires_s=expires_s, may=may)


def claims_of(account: str) -> str:
    """The subject where the servers say which token of an account they have."""
    return f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.LOOKUP"


def streams(sizes: Sizes, *, replicas: int) -> tuple[dict[str, Any], ...]:
    """The streams as the JetStream API takes them (STREAM.CREATE)."""
    disk = {"storage": "file", "num_replicas": replicas, "retention": "limits", "max_consumers": 16}
    return (
        {
            **disk,
            "name": subjects.DESIRED_STREAM,
            "subjects": ["$KV.desired.*"],
            "max_msgs_per_subject": 2,
            "max_msg_size": DESIRED_BYTES + HEADER_BYTES,
            "allow_direct": True,
            "deny_delete": True,
            "republish": {"src": "$KV.desired.*", "dest": "dn.{{wildcard(1)}}"},
        },
        {
            **disk,
            "name": subjects.BUNDLES_STREAM,
            "subjects": ["bundle.*.*"],
            "max_msgs_per_subject": 1,
            "max_bytes": sizes.bundles_bytes,
            "max_msg_size": CHUNK_BYTES + HEADER_BYTES,
            # Written once: what is there is never replaced, and never goes to make place.
            "discard": "new",
            "discard_new_per_subject": True,
            "allow_direct": True,
        },
        {
            **disk,
            "name": subjects.EVENTS_STREAM,
            "subjects": ["ev.*.audit"],
            # A quota per node: one that floods is refused itself, and pushes out nobody's events, its own neither.
            "max_msgs_per_subject": EVENTS_PER_NODE,
            "discard": "new",
            "discard_new_per_subject": True,
            "max_age": _EVENTS_AGE_S * _NS,
            "max_msg_size": EVENT_BYTES + HEADER_BYTES,
            "duplicate_window": DUPLICATES_S * _NS,
            "allow_direct": True,
            "republish": _news(subjects.EVENTS_STREAM, "ev.*.audit"),
        },
        {
            **disk,
            # Nodes say it again, and controllers keep it: syncing each one would have every node wait for all others.
            # A server takes that for no stream with replicas.
            **({"persist_mode": "async"} if replicas == 1 else {}),
            "name": subjects.STATUS_STREAM,
            "subjects": ["st.*"],
            "max_msgs_per_subject": STATUSES_PER_NODE,
            "max_age": STATUS_S * _NS,
            "discard": "new",
            "discard_new_per_subject": True,
            "max_msg_size": STATUS_BYTES + HEADER_BYTES,
            "duplicate_window": _SHORTEST_NS,
            "allow_direct": True,
            "republish": _news(subjects.STATUS_STREAM, "st.*"),
        },
        {
            **disk,
            "name": subjects.PRESENCE_STREAM,
            "subjects": ["hb.*"],
            "storage": "memory",
            "max_msgs_per_subject": BEATS_PER_NODE,
            "max_age": PRESENT_S * _NS,
            "discard": "new",
            "discard_new_per_subject": True,
            "duplicate_window": _SHORTEST_NS,
            "max_msg_size": BEAT_BYTES + HEADER_BYTES,
            "allow_direct": True,
        },
        {
            **disk,
            "name": subjects.FLEET_STREAM,
            "subjects": ["$KV.fleet.*"],
            "max_msgs_per_subject": 1,
            "max_msg_size": 1 << 20,
            "allow_direct": True,
            "allow_msg_ttl": True,
        },
    )


def _news(stream: str, subject: str) -> dict[str, Any]:
    """Say that something was kept, without what it is: a controller that heard nodes' own messages would get a flood of
    one whole, also what the stream refuses.
    """
    return {"src": subject, "dest": subjects.news(stream), "headers_only": True}


def configuration(
    server: ConfiguredServer, cluster: Sequence[ConfiguredServer], identities: Identities, *, sizes: Sizes, now_s: int
) -> str:
    """The configuration of `server`, one of `cluster` (itself alone, or three); Problem `bad_request`.

    Whatever changes later in accounts is pushed to the running servers, and kept in `jwt`; nothing here need change.
    """
    if len(cluster) not in {1, 3} or server not in cluster:
        raise Problem("bad_request", f"expected one server or three, this one among them, found {len(cluster)}")
    tls = f"cert_file: {_quoted(server.certificate)}, key_file: {_quoted(server.private_key)}"
    lines = [
        f"server_name: {_quoted(server.name)}",
        f"listen: {_quoted(server.listen)}",
        # Before a byte of NATS: a client must not be told by a stranger that TLS is not wanted here.
        f"tls {{ {tls}, handshake_first: true, timeout: 10 }}",
        # More than all nodes may have: nothing that they do keeps a controller from connecting.
        f"max_connections: {max(65_536, sizes.connections + _OTHER_CONNECTIONS)}",
        'write_deadline: "20s"',
        'ping_interval: "60s"',  # clients ask every ten seconds by themselves
        "jetstream {",
        f"  store_dir: {_quoted(server.directory)}",
        f"  max_memory_store: {64 << 20}",
        f"  max_file_store: {sizes.disk_bytes}",
        # By default what was acknowledged is on disk two minutes later.
        "  sync_interval: always",
        "}",
        f"operator: {_quoted(operator_token(identities, now_s=now_s))}",
        f"system_account: {identities.system.public}",
        "resolver {",
        f'  type: full, dir: {_quoted(server.directory + "/jwt")}, allow_delete: false, interval: "2m"',
        "}",
        "resolver_preload {",
        *(f"  {account}: {token}" for account, token in account_tokens(identities, now_s=now_s, sizes=sizes).items()),
        "}",
    ]
    if len(cluster) == 3:
        if any(not one.route for one in cluster):
            raise Problem("bad_request", "expected a route (host:port) for each server of a cluster, found none")
        routes = ", ".join(_quoted(f"nats-route://{one.route}") for one in cluster if one is not server)
        lines += [
            "cluster {",
            "  name: latticed",
            f"  listen: {_quoted(server.route)}",
            f"  tls {{ {tls}, ca_file: {_quoted(server.ca)}, verify: true, timeout: 10 }}",
            f"  routes: [{routes}]",
            "}",
        ]
    return "\n".join(lines) + "\n"


def server_environment(sizes: Sizes) -> str:
    """What a server is started with, as lines NAME=VALUE.

    Whoever writes to a connection, in nats-server, needs 32 KiB of stack, because of one array of 24 KiB in
    `flushOutbound`; Go gives it back only while it collects garbage, which an idle server does every two minutes. Each
    ping brings it back: with no limit that comes to 32 to 64 KiB for each node. With one, a server that comes near it
    collects more often; it is a wish and no bound, so nobody is refused because of it.
    """
    return f"GOMEMLIMIT={sizes.memory_bytes}\n"


def _quoted(text: str) -> str:
    if not _PLAIN.fullmatch(text):
        raise Problem("bad_request", f"expected printable ASCII without quotes and backslashes, found {text[:80]!r}")
    return f'"{text}"'


def _limits(*, with_streams: bool = False, connections: int = -1) -> dict[str, Any]:
    storage = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1) if with_streams else {}
    # No leaf nodes: they would bring connections that no scope holds.
    return {**_UNLIMITED, "imports": -1, "exports": -1, "wildcards": True, "conn": connections, "leaf": 0, **storage}


def _account(identities: Identities, account: nkeys.Key, name: str, claims: dict[str, Any], *, now_s: int) -> str:
    return nkeys.token(
        identities.operator, account.public, name, {"type": "account", "version": 2, **claims}, now_s=now_s
    )


def _control(signers: Signers) -> dict[str, Any]:
    return {
        "limits": _limits(with_streams=True),
        "signing_keys": [signers.control_signer.public],
        "exports": [{"name": name, "subject": subject, "type": kind} for name, subject, kind, _ in _EXPORTS],
        "imports": [_import("invoke", "rpc.*.invoke", "service", signers.nodes)],
    }


def _nodes(signers: Signers, sizes: Sizes) -> dict[str, Any]:
    node = {
        **_template(NODE_MAY_PUBLISH, NODE_MAY_SUBSCRIBE, subscriptions=_MOST_SUBSCRIPTIONS),
        "resp": {"max": 1, "ttl": _ANSWER_S * _NS},
    }
    invited = _template(INVITED_MAY_PUBLISH, INVITED_MAY_SUBSCRIBE, subscriptions=2)
    return {
        # A server has no limit of connections for a user (nats-server's issue 1552): these are all nodes' together.
        "limits": {**_limits(connections=sizes.connections), "disallow_bearer": True},
        "signing_keys": [
            {"kind": "user_scope", "key": signers.node_signer.public, "role": "node", "template": node},
            {"kind": "user_scope", "key": signers.enrol_signer.public, "role": "invited", "template": invited},
        ],
        "imports": [
            _import(name, subject, kind, signers.control, local=local) for name, subject, kind, local in _EXPORTS
        ],
        "exports": [{"name": "invoke", "subject": "rpc.*.invoke", "type": "service"}],
    }


def _template(publish: Sequence[str], subscribe: Sequence[str], *, subscriptions: int) -> dict[str, Any]:
    """What users of a scoped signing key may do."""
    return {
        **_UNLIMITED,
        "payload": DOCUMENT_BYTES + HEADER_BYTES,
        "subs": subscriptions,
        "pub": {"allow": list(publish)},
        "sub": {"allow": list(subscribe)},
        "allowed_connection_types": ["STANDARD"],
    }


def _import(name: str, subject: str, kind: str, account: str, *, local: str = "") -> dict[str, Any]:
    """`local`: what it is in the account that imports it; the same without."""
    renamed = {"local_subject": local} if local else {}
    return {"name": name, "subject": subject, "account": account, "type": kind, **renamed}


def _user(
    signer: nkeys.Key,
    account: str | None,
    name: str,
    *,
    now_s: int,
    expires_s: int | None,
    may: Mapping[str, Any] | None = None,
) -> nkeys.UserCredentials:
    """`may`: what it is held to; all of its account without."""
    key = nkeys.Key.generate(nkeys.KeyKind.USER)
    claims: dict[str, Any] = {"type": "user", "version": 2, "pub": {}, "sub": {}, **_UNLIMITED, **(may or {})}
    if account is not None:
        claims["issuer_account"] = account
    token = nkeys.token(signer, key.public, name, claims, now_s=now_s, expires_s=expires_s)
    return nkeys.UserCredentials(token=token, key=key, name=name, expires_s=expires_s)
