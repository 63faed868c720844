"""The rows of the controller's database: what is read at a start, and each change. All run on the database's thread."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.fleet import documents
from latticed.fleet.controller import observing, records
from latticed.fleet.controller.assigning import FleetNodeKey, KeptAssignment, KeptBundle, Turn
from latticed.fleet.controller.chains import ChainHead
from latticed.fleet.controller.records import JoinedRecord
from latticed.fleet.controller.shelf import KINDS, KeptDocument
from latticed.fleet.documents import BundleSource
from latticed.kit.value import Value, field

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from latticed.fleet.controller.chains import KeptEvent
    from latticed.fleet.controller.database import Connection
    from latticed.fleet.controller.observing import SeenStatus
    from latticed.fleet.controller.records import RolloutRecord

EVENTS_PER_NODE: Final = 1_000
"""Events of a node that are kept; the oldest go."""
MOST_ALARMS: Final = 5_000


class KeptAlarm(Value, frozen=True, kw_only=True):
    """Something that happened and somebody has to look at; `node` is empty where it is about the fleet."""

    code: str
    reason: str
    hint: str = ""
    node: str = ""
    since: int = 0


class KeptFleet(Value, frozen=True, kw_only=True):
    """All that is held in memory, as it was read."""

    documents: list[KeptDocument] = field(default_factory=list)
    nodes: dict[str, FleetNodeKey] = field(default_factory=dict)
    tokens: dict[str, JoinedRecord] = field(default_factory=dict)
    floors: dict[tuple[str, str], Turn] = field(default_factory=dict)
    assignments: dict[str, KeptAssignment] = field(default_factory=dict)
    sources: dict[str, tuple[BundleSource, ...]] = field(default_factory=dict)
    rollouts: dict[str, RolloutRecord] = field(default_factory=dict)
    statuses: dict[str, SeenStatus] = field(default_factory=dict)
    heads: dict[str, ChainHead] = field(default_factory=dict)
    bundles: dict[str, KeptBundle] = field(default_factory=dict)
    alarms: dict[tuple[str, str], KeptAlarm] = field(default_factory=dict)
    revoked: dict[str, int] = field(default_factory=dict)


def load(connection: Connection) -> KeptFleet:
    """Everything but events."""
    return KeptFleet(
        documents=[
            KeptDocument(kind=kind, signed=documents.read(bytes(envelope), KINDS[kind]), received=received)
            for kind, envelope, received in connection.execute(
                "SELECT kind, envelope, received FROM documents ORDER BY received, kind = 'revocations' DESC, rowid"
            )
        ],
        nodes={
            name: FleetNodeKey(name=name, key=key, labels=json.loads(labels), serial=serial, since=since)
            for name, key, labels, serial, since in connection.execute("SELECT * FROM nodes")
        },
        tokens={
            token: JoinedRecord(
                token=token, node=node, key=key, labels=json.loads(labels), expires=expires, request=request
            )
            for token, node, key, labels, expires, request in connection.execute("SELECT * FROM tokens")
        },
        floors={
            (node, key): (epoch, generation)
            for node, key, epoch, generation in connection.execute("SELECT * FROM floors")
        },
        assignments={
            node: KeptAssignment(
                node=node,
                epoch=epoch,
                generation=generation,
                intent=intent,
                key=key,
                signer=signer,
                expires=expires,
                made=made,
                envelope=bytes(envelope),
            )
            for node, epoch, generation, intent, key, signer, expires, made, envelope in connection.execute(
                "SELECT * FROM assignments"
            )
        },
        sources={
            intent: msgspec.json.decode(bundles, type=tuple[BundleSource, ...])
            for intent, bundles in connection.execute("SELECT * FROM sources")
        },
        rollouts={
            name: records.decode(record) for name, record in connection.execute("SELECT name, record FROM rollouts")
        },
        statuses={node: observing.decode(seen) for node, seen in connection.execute("SELECT * FROM statuses")},
        heads={
            node: ChainHead(node=node, key=key, number=number, hash=found, missed=missed)
            for node, key, number, found, missed in connection.execute("SELECT * FROM heads")
        },
        bundles={
            row[0]: KeptBundle(
                sha256=row[0],
                plugin=row[1],
                version=row[2],
                identity=row[3],
                publisher=row[4],
                size=row[5],
                received=row[6],
            )
            for row in connection.execute("SELECT * FROM bundles")
        },
        alarms={
            (code, node): KeptAlarm(code=code, node=node, reason=reason, hint=hint, since=since)
            for code, node, reason, hint, since in connection.execute("SELECT * FROM alarms")
        },
        revoked=dict(connection.execute("SELECT key, since FROM revoked")),
    )


def put_document(connection: Connection, kept: KeptDocument, *, now_s: int) -> None:
    node = kept.signed.document.node if kept.kind == "node" else ""
    if node:  # the newest certificate of a node alone counts
        connection.execute("DELETE FROM documents WHERE node = ?", (node,))
    if kept.kind == "users":  # and the newest list of users
        connection.execute("DELETE FROM documents WHERE kind = ?", (kept.kind,))
    connection.execute(
        "INSERT OR IGNORE INTO documents VALUES (?, ?, ?, ?, ?)",
        (kept.signed.sha256, kept.kind, node, kept.signed.envelope, now_s),
    )


def keep_lists(connection: Connection, lists: Collection[str], revoked: Mapping[str, int]) -> None:
    """Have no lists of revocations but these, by SHA-256; `revoked`: keys, and since when each of them is."""
    for (sha256,) in connection.execute("SELECT sha256 FROM documents WHERE kind = 'revocations'").fetchall():
        if sha256 not in lists:
            connection.execute("DELETE FROM documents WHERE sha256 = ?", (sha256,))
    connection.executemany("INSERT OR IGNORE INTO revoked VALUES (?, ?)", list(revoked.items()))


def drop_intents(connection: Connection, intents: Iterable[str]) -> None:
    """With where their bundles are."""
    connection.executemany("DELETE FROM documents WHERE sha256 = ? AND kind = 'intent'", [(one,) for one in intents])
    connection.executemany("DELETE FROM sources WHERE intent = ?", [(one,) for one in intents])


def put_nodes(connection: Connection, nodes: Iterable[FleetNodeKey]) -> None:
    """What another host of the same name said before goes."""
    nodes = list(nodes)
    connection.executemany(
        "DELETE FROM statuses WHERE node = (SELECT name FROM nodes WHERE name = ? AND key <> ?)",
        [(node.name, node.key) for node in nodes],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO nodes VALUES (?, ?, ?, ?, ?)",
        [(node.name, node.key, json.dumps(node.labels), node.serial, node.since) for node in nodes],
    )


def put_token(connection: Connection, joined: JoinedRecord) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO tokens VALUES (?, ?, ?, ?, ?, ?)",
        (joined.token, joined.node, joined.key, json.dumps(joined.labels), joined.expires, joined.request),
    )


def raise_floors(connection: Connection, floors: Mapping[tuple[str, str], Turn]) -> None:
    """Of nodes' names and keys. No floor ever goes down."""
    connection.executemany(
        "INSERT INTO floors VALUES (?, ?, ?, ?) ON CONFLICT (node, key) DO UPDATE SET epoch = excluded.epoch, "
        "generation = excluded.generation WHERE (excluded.epoch, excluded.generation) > (epoch, generation)",
        [(*place, *turn) for place, turn in floors.items()],
    )


def put_assignments(connection: Connection, made: Iterable[KeptAssignment]) -> None:
    """With their generations, which count as used from now on."""
    made = list(made)
    raise_floors(connection, {(one.node, one.key): one.turn for one in made})
    connection.executemany(
        "INSERT OR REPLACE INTO assignments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [(one.node, *one.turn, one.intent, one.key, one.signer, one.expires, one.made, one.envelope) for one in made],
    )


def put_sources(connection: Connection, intent: str, sources: tuple[BundleSource, ...]) -> None:
    connection.execute("INSERT OR REPLACE INTO sources VALUES (?, ?)", (intent, msgspec.json.encode(sources)))


def put_rollout(connection: Connection, record: RolloutRecord) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO rollouts VALUES (?, ?, ?)", (record.name, record.step, records.encode(record))
    )


def put_statuses(connection: Connection, seen: Mapping[str, SeenStatus]) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO statuses VALUES (?, ?)",
        [(node, msgspec.json.encode(one)) for node, one in seen.items()],
    )


def put_bundle(connection: Connection, bundle: KeptBundle) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO bundles VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            bundle.sha256,
            bundle.plugin,
            bundle.version,
            bundle.identity,
            bundle.publisher,
            bundle.size,
            bundle.received,
        ),
    )


def drop(connection: Connection, *, rollouts: Iterable[str], tokens: Iterable[str], bundles: Iterable[str]) -> None:
    """By name, token and SHA-256."""
    connection.executemany("DELETE FROM rollouts WHERE name = ?", [(one,) for one in rollouts])
    connection.executemany("DELETE FROM tokens WHERE token = ?", [(one,) for one in tokens])
    connection.executemany("DELETE FROM bundles WHERE sha256 = ?", [(one,) for one in bundles])


def put_alarms(connection: Connection, alarms: Iterable[KeptAlarm]) -> None:
    """The first word about something is kept; of too many the oldest go."""
    connection.executemany(
        "INSERT OR IGNORE INTO alarms VALUES (?, ?, ?, ?, ?)",
        [(one.code, one.node, one.reason, one.hint, one.since) for one in alarms],
    )
    connection.execute(
        "DELETE FROM alarms WHERE (code, node) IN "
        "(SELECT code, node FROM alarms ORDER BY since DESC LIMIT -1 OFFSET ?)",
        (MOST_ALARMS,),
    )


def drop_alarms(connection: Connection, *, before_s: int) -> None:
    connection.execute("DELETE FROM alarms WHERE since < ?", (before_s,))


def event_hash(connection: Connection, node: str, key: str, number: int) -> str | None:
    """The hash of an event that is kept; None for none."""
    row = connection.execute(
        "SELECT hash FROM events WHERE node = ? AND key = ? AND number = ? ORDER BY id LIMIT 1", (node, key, number)
    ).fetchone()
    return None if row is None else str(row[0])


def put_event(connection: Connection, kept: KeptEvent, head: ChainHead) -> None:
    event = kept.event
    connection.execute(
        "INSERT OR IGNORE INTO events (node, key, number, at, seq, actor, decision, action, target, code, reason, "
        "hash, prev, received, envelope) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            event.node,
            kept.key,
            event.number,
            event.at,
            event.seq,
            event.actor,
            event.decision,
            event.action,
            event.target,
            event.code,
            event.reason,
            kept.hash,
            event.prev,
            kept.received,
            kept.envelope,
        ),
    )
    connection.execute(
        "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?)",
        (head.node, head.key, head.number, head.hash, head.missed),
    )


def drop_events(connection: Connection, node: str) -> None:
    """Of a node that has more than may be kept, the oldest."""
    connection.execute(
        "DELETE FROM events WHERE node = ? AND id <= (SELECT id FROM events WHERE node = ? ORDER BY id DESC "
        "LIMIT 1 OFFSET ?)",
        (node, node, EVENTS_PER_NODE),
    )


EventRow = tuple[int, str, int, int, int, str, str, str, str, str, str, int, str, str]
_EVENT: Final = (
    "SELECT id, node, number, at, seq, actor, decision, action, target, code, reason, received, hash, prev FROM events"
)


def events(connection: Connection, *, node: str, after: int | None, limit: int) -> list[EventRow]:
    """Events in order: those that follow `after`, or without it the newest. Empty `node`: of all."""
    found: list[Any]
    if after is None:
        query = f"{_EVENT} WHERE (? = '' OR node = ?) ORDER BY id DESC LIMIT ?"
        found = connection.execute(query, (node, node, limit)).fetchall()[::-1]
    else:
        query = f"{_EVENT} WHERE (? = '' OR node = ?) AND id > ? ORDER BY id LIMIT ?"
        found = connection.execute(query, (node, node, after, limit)).fetchall()
    return found


def position(connection: Connection, stream: str) -> tuple[str, int]:
    """Which stream was read last under this name, and how far."""
    row = connection.execute("SELECT created, last FROM positions WHERE stream = ?", (stream,)).fetchone()
    return ("", 0) if row is None else (str(row[0]), int(row[1]))


def put_position(connection: Connection, stream: str, created: str, last: int) -> None:
    connection.execute("INSERT OR REPLACE INTO positions VALUES (?, ?, ?)", (stream, created, last))
