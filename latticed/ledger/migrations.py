"""The schema, as numbered steps: step N takes a ledger from user_version N-1 to N, in one transaction.

A step that has been released is never edited; add another one.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    import apsw

_RECORDS_KV_AUDIT: Final = """
CREATE TABLE records (
    id TEXT PRIMARY KEY, status TEXT NOT NULL,
    name TEXT NOT NULL, type TEXT NOT NULL, version TEXT NOT NULL, publisher TEXT NOT NULL, signed INTEGER NOT NULL,
    capabilities TEXT NOT NULL, identity TEXT NOT NULL, artifact_sha256 TEXT NOT NULL, manifest BLOB NOT NULL,
    source BLOB NOT NULL, masked TEXT NOT NULL, hosts TEXT NOT NULL, floor TEXT NOT NULL, forgotten INTEGER NOT NULL,
    verified_at INTEGER NOT NULL, installed_at INTEGER NOT NULL, activated_at INTEGER NOT NULL,
    disabled_at INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE kv (
    bucket TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (bucket, key)
) STRICT;
CREATE TABLE kv_usage (
    bucket TEXT PRIMARY KEY, keys INTEGER NOT NULL, bytes INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY, ts TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL,
    decision TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    prev TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE heads (
    id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, hash TEXT NOT NULL, ts TEXT NOT NULL, signature TEXT NOT NULL
) STRICT;
CREATE TABLE revocations (
    kind TEXT NOT NULL, value TEXT NOT NULL, seen_at INTEGER NOT NULL, PRIMARY KEY (kind, value)
) STRICT, WITHOUT ROWID;
"""
"""In all tables times are microseconds since the epoch, except `ts` (RFC 3339), and lists are JSON.

STRICT: SQLite refuses a value of another type (sqlite.org/stricttables.html).
"""

_RETENTION: Final = """
ALTER TABLE heads ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
CREATE TABLE checkpoints (
    seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, ts TEXT NOT NULL, signature TEXT NOT NULL, size INTEGER NOT NULL
) STRICT;
"""
"""`size`: bytes of the canonical form of all events up to `seq`, those that are gone included."""

_SECRETS: Final = """
CREATE TABLE secrets (
    owner TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, key_id TEXT NOT NULL, nonce BLOB NOT NULL,
    sealed BLOB NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, PRIMARY KEY (owner, name)
) STRICT;
CREATE TABLE secret_bindings (
    owner TEXT NOT NULL, name TEXT NOT NULL, plugin_id TEXT NOT NULL, mac BLOB NOT NULL,
    PRIMARY KEY (owner, name, plugin_id)
) STRICT, WITHOUT ROWID;
"""
"""`owner` is the scope of the name; `sealed` and `mac` are made and checked by `host.secrets`."""

_NODE_LABELS: Final = """
CREATE TABLE node_labels (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
"""

_NOTIFICATIONS: Final = """
CREATE TABLE notifications (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, plugin_id TEXT NOT NULL, dedupe TEXT NOT NULL,
    event TEXT NOT NULL, severity TEXT NOT NULL, title TEXT NOT NULL, body TEXT NOT NULL, size INTEGER NOT NULL,
    status TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL,
    waited_s INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX notifications_dedupe ON notifications (plugin_id, dedupe) WHERE dedupe <> '';
CREATE INDEX notifications_open ON notifications (plugin_id, seq) WHERE status IN ('queued', 'delivering');
CREATE INDEX notifications_due ON notifications (next_at) WHERE status = 'queued';
CREATE INDEX notifications_delivering ON notifications (id) WHERE status = 'delivering';
CREATE INDEX notifications_ended ON notifications (updated_at) WHERE status IN ('done', 'failed');
CREATE TABLE notification_usage (
    plugin_id TEXT PRIMARY KEY, items INTEGER NOT NULL, bytes INTEGER NOT NULL, served INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
"""
"""`served`: number of the last turn of the plugin; the lowest is next.

The indices for delivering are partial: ended rows, of which many may be kept, are in none of them.
"""

_MONITORS: Final = """
CREATE TABLE monitors (
    key INTEGER PRIMARY KEY AUTOINCREMENT, plugin_id TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'unknown', against INTEGER NOT NULL DEFAULT 0, since INTEGER NOT NULL,
    checks INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    UNIQUE (plugin_id, name)
) STRICT;
CREATE TABLE monitor_results (
    monitor INTEGER NOT NULL REFERENCES monitors (key) ON DELETE CASCADE, number INTEGER NOT NULL, at INTEGER NOT NULL,
    outcome TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, took_us INTEGER NOT NULL,
    http_status INTEGER NOT NULL, expires_at INTEGER NOT NULL, PRIMARY KEY (monitor, number)
) STRICT, WITHOUT ROWID;
"""
"""A monitor whose target changes is a new row with a new key; keys are never used again."""

_PERMITS: Final = "ALTER TABLE records ADD COLUMN permits TEXT NOT NULL DEFAULT '[]'"
"""Grants beyond capabilities, as a JSON list of names (`docs/adr/0008`)."""

_DDNS: Final = """
CREATE TABLE ddns_records (
    key INTEGER PRIMARY KEY AUTOINCREMENT, plugin_id TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL,
    spec TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'pending', published TEXT NOT NULL DEFAULT '',
    changed_at INTEGER NOT NULL DEFAULT 0, flaps INTEGER NOT NULL DEFAULT 0, succeeded_at INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    failed_at INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, UNIQUE (name, type)
) STRICT;
CREATE INDEX ddns_records_owner ON ddns_records (plugin_id);
"""
"""One row per name and type: two plugins publishing different addresses would overwrite each other."""

_ROUTES: Final = """
CREATE TABLE routes (
    plugin_id TEXT NOT NULL, path TEXT NOT NULL, spec TEXT NOT NULL, created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL, PRIMARY KEY (plugin_id, path)
) STRICT;
"""
"""Rows of `ledger.routes`: a path is unique within a plugin only."""

_PLANS: Final = """
CREATE TABLE plans (
    number INTEGER PRIMARY KEY AUTOINCREMENT, plugin_id TEXT NOT NULL, sha256 TEXT NOT NULL, kind TEXT NOT NULL,
    intent TEXT NOT NULL, state TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    UNIQUE (plugin_id, sha256)
) STRICT;
"""
"""Rows of `ledger.plans`: the same intent of one plugin is one row."""

_TASKS_PROGRAMS: Final = """
CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, plugin_id TEXT NOT NULL, name TEXT NOT NULL,
    interpreter TEXT NOT NULL, script TEXT NOT NULL, sha256 TEXT NOT NULL, targets TEXT NOT NULL,
    timeout_s INTEGER NOT NULL, state TEXT NOT NULL, approved_sha256 TEXT NOT NULL DEFAULT '',
    approved_by TEXT NOT NULL DEFAULT '', run_id TEXT NOT NULL DEFAULT '', code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '', exit_code INTEGER, signal INTEGER, stdout TEXT NOT NULL DEFAULT '',
    stderr TEXT NOT NULL DEFAULT '', stdout_bytes INTEGER NOT NULL DEFAULT 0, stderr_bytes INTEGER NOT NULL DEFAULT 0,
    truncated INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL, approved_at INTEGER NOT NULL DEFAULT 0,
    started_at INTEGER NOT NULL DEFAULT 0, ended_at INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX tasks_open ON tasks (plugin_id, seq) WHERE state IN ('submitted', 'approved', 'running');
CREATE INDEX tasks_ended ON tasks (ended_at) WHERE ended_at > 0;
CREATE TABLE programs (
    plugin_id TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL,
    candidate TEXT NOT NULL DEFAULT '', created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (plugin_id, kind, name)
) STRICT, WITHOUT ROWID;
"""
"""`run_id` is on disk before its run begins. `candidate`: a spec that is being tried in place of `spec`."""

_CONTACTS: Final = """
CREATE TABLE contacts (
    plugin_id TEXT NOT NULL, host TEXT NOT NULL, last_at INTEGER NOT NULL, PRIMARY KEY (plugin_id, host)
) STRICT, WITHOUT ROWID;
"""
"""`last_at`: when the plugin last connected to this host (host:port)."""

_CALLS: Final = """
CREATE TABLE calls (
    seq INTEGER PRIMARY KEY, ts TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL, target TEXT NOT NULL,
    decision TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL, detail TEXT NOT NULL,
    prev TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE call_heads (
    id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, hash TEXT NOT NULL, ts TEXT NOT NULL, signature TEXT NOT NULL,
    size INTEGER NOT NULL
) STRICT;
CREATE TABLE call_checkpoints (
    seq INTEGER PRIMARY KEY, hash TEXT NOT NULL, ts TEXT NOT NULL, signature TEXT NOT NULL, size INTEGER NOT NULL
) STRICT;
CREATE INDEX heads_seq ON heads (seq);
CREATE INDEX call_heads_seq ON call_heads (seq);
CREATE INDEX audit_denied ON audit (actor, seq) WHERE decision = 'deny';
CREATE INDEX calls_denied ON calls (actor, seq) WHERE decision = 'deny';
CREATE TABLE audit_horizons (
    plugin_id TEXT PRIMARY KEY, decisions INTEGER NOT NULL, calls INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT OR IGNORE INTO audit_horizons
    SELECT substr(bucket, 8, instr(bucket, '@') - 8), (SELECT coalesce(max(seq), 0) FROM audit), 0
    FROM kv_usage WHERE bucket LIKE 'plugin:%@%';
"""
"""Host calls in a chain of their own (contracts §11); those of before stay where they are, so no hash changes.

`audit_horizons`: how far both chains were when a plugin passed to another publisher. Of such changes before this
step only those are known by which a bucket was set aside. Its name is `plugin:<id>@…`, of which `substr` takes the id:
what stands from the 8th character up to the `@`.
"""

_TERMS: Final = """
ALTER TABLE records ADD COLUMN interpreter TEXT NOT NULL DEFAULT '';
ALTER TABLE records ADD COLUMN terms TEXT NOT NULL DEFAULT '';
"""
"""Without terms a record is of before: what its stored manifest has was accepted (`lifecycle.presence.migrated`)."""

_CONFIGS: Final = """
CREATE TABLE configs (
    plugin_id TEXT PRIMARY KEY, document BLOB NOT NULL, sha256 TEXT NOT NULL, schema_sha256 TEXT NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
"""
"""`schema_sha256`: of the schema that the document was checked against; another one is a reason to check again."""

_PLAN_REPORTS: Final = """
ALTER TABLE plans ADD COLUMN review TEXT NOT NULL DEFAULT '';
ALTER TABLE plans ADD COLUMN code TEXT NOT NULL DEFAULT '';
ALTER TABLE plans ADD COLUMN reason TEXT NOT NULL DEFAULT '';
CREATE INDEX plans_named ON plans (sha256);
CREATE TABLE plan_steps_read (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL, hash TEXT NOT NULL) STRICT;
"""
"""What the root helper reported of a plan. `plan_steps_read`: how far its chain of steps was copied into ours."""

_DELIVERIES: Final = """
ALTER TABLE notifications ADD COLUMN handed INTEGER NOT NULL DEFAULT 0;
CREATE TABLE deliveries (
    item TEXT NOT NULL, channel TEXT NOT NULL, seq INTEGER NOT NULL, urgent INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0, next_at INTEGER NOT NULL,
    code TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', bundle TEXT NOT NULL DEFAULT '',
    message TEXT NOT NULL DEFAULT '', PRIMARY KEY (item, channel)
) STRICT, WITHOUT ROWID;
CREATE INDEX deliveries_waiting ON deliveries (channel, urgent, next_at) WHERE state = 'waiting';
CREATE INDEX deliveries_message ON deliveries (channel, message) WHERE state = 'waiting' AND message <> '';
CREATE TRIGGER notifications_removed AFTER DELETE ON notifications
    BEGIN DELETE FROM deliveries WHERE item = OLD.id; END;
CREATE TABLE channels (
    name TEXT PRIMARY KEY, paused_until INTEGER NOT NULL DEFAULT 0, crowded INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0, failing_since INTEGER NOT NULL DEFAULT 0,
    degraded INTEGER NOT NULL DEFAULT 0, told_at INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '', last_success INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TABLE delivery_windows (
    channel TEXT NOT NULL, bundle TEXT NOT NULL, opened_at INTEGER NOT NULL, PRIMARY KEY (channel, bundle)
) STRICT, WITHOUT ROWID;
CREATE TABLE notified_events (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL) STRICT;
"""
"""`handed`: the item waits for channels, which are in `deliveries`, and counts against no quota of its sender.

A trigger, as items are removed in several ways: rows of one that is gone would wait for ever.
"""

_SCHEDULES: Final = """
CREATE TABLE schedules (
    plugin_id TEXT NOT NULL, name TEXT NOT NULL, word TEXT NOT NULL, since INTEGER NOT NULL,
    began_at INTEGER NOT NULL DEFAULT 0, ended_at INTEGER NOT NULL DEFAULT 0, code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT '', runs INTEGER NOT NULL DEFAULT 0, failures INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (plugin_id, name)
) STRICT, WITHOUT ROWID;
"""
"""Rows of `ledger.schedules`."""

_KEPT_VERSIONS: Final = """
CREATE TABLE kept_versions (
    plugin_id TEXT NOT NULL, number INTEGER NOT NULL, version TEXT NOT NULL, identity TEXT NOT NULL,
    record BLOB NOT NULL, config BLOB, gate BLOB, kept_at INTEGER NOT NULL, PRIMARY KEY (plugin_id, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE bad_versions (
    plugin_id TEXT NOT NULL, identity TEXT NOT NULL, version TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL,
    marked_at INTEGER NOT NULL, PRIMARY KEY (plugin_id, identity)
) STRICT, WITHOUT ROWID;
"""
"""`gate` is set while the version that replaced this one may still be given up; the values of that time are in the
bucket `kv.aside` of the row's number.
"""

_MARKET: Final = """
CREATE TABLE market_sources (
    name TEXT PRIMARY KEY, generated_at TEXT NOT NULL, generated_s INTEGER NOT NULL, sha256 TEXT NOT NULL,
    keys TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE market_releases (
    source TEXT NOT NULL, id TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, first_seen INTEGER NOT NULL,
    PRIMARY KEY (source, id, version, sha256)
) STRICT, WITHOUT ROWID;
CREATE TABLE market_taken (
    id TEXT PRIMARY KEY, source TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE market_holds (id TEXT PRIMARY KEY, by TEXT NOT NULL, at INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
"""`id` is a plugin's, `sha256` an artifact's, in `market_sources` that of what the newest index's signatures cover,
in `market_releases` one of artifact and signature (`trust.index.Release.sha256`).

`first_seen`: when this host read of a release first, from which its age counts, whatever the index says.
"""

_MARKET_REVOCATIONS: Final = """
CREATE TABLE market_revocations (
    source TEXT NOT NULL, kind TEXT NOT NULL, value TEXT NOT NULL, action TEXT NOT NULL, reason TEXT NOT NULL,
    at INTEGER NOT NULL, PRIMARY KEY (source, kind, value, action)
) STRICT, WITHOUT ROWID;
"""
"""What sources have taken back; a row stays when its source names it no more (`market.MOST_REVOCATIONS`)."""

_MARKET_TAKEN: Final = """
ALTER TABLE market_taken RENAME TO market_taken_last;
CREATE TABLE market_taken (
    id TEXT NOT NULL, source TEXT NOT NULL, version TEXT NOT NULL, sha256 TEXT NOT NULL, at INTEGER NOT NULL,
    PRIMARY KEY (id, source, version, sha256)
) STRICT, WITHOUT ROWID;
INSERT INTO market_taken SELECT id, source, version, sha256, at FROM market_taken_last;
DROP TABLE market_taken_last;
"""
"""Every release that was taken: one that runs, or is kept for a rollback, may be of another source than the last."""

_KV_VERSIONS: Final = """
ALTER TABLE kv ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE kv_usage ADD COLUMN version INTEGER NOT NULL DEFAULT 1;
"""
"""In `kv_usage` the last version that a value of the bucket was given, so that none is given twice."""

_UNASKED: Final = "ALTER TABLE records ADD COLUMN unasked TEXT NOT NULL DEFAULT '[]';"
"""Of what was masked before, nobody knows whether an operator had taken it back: then it counts as if."""

MIGRATIONS: Final = (
    _RECORDS_KV_AUDIT,
    _RETENTION,
    _SECRETS,
    _NODE_LABELS,
    _NOTIFICATIONS,
    _MONITORS,
    _PERMITS,
    _DDNS,
    _ROUTES,
    _PLANS,
    _TASKS_PROGRAMS,
    _CONTACTS,
    _CALLS,
    _TERMS,
    _CONFIGS,
    _PLAN_REPORTS,
    _DELIVERIES,
    _SCHEDULES,
    _KEPT_VERSIONS,
    _MARKET,
    _MARKET_REVOCATIONS,
    _MARKET_TAKEN,
    _KV_VERSIONS,
    _UNASKED,
)
"""In order; only ever appended to. The version of a ledger is how many of these it has taken."""


def version_of(connection: apsw.Connection) -> int:
    """How many steps this ledger has taken: SQLite's user_version, 0 for an empty file."""
    return int(connection.pragma("user_version"))


def migrate(connection: apsw.Connection, *, steps: tuple[str, ...] = MIGRATIONS) -> int:
    """Take the steps that are missing and return the version reached; Problem ledger_newer for an unknown version.

    Each step is a transaction of its own, so an interrupted migration goes on at the next start. An empty file takes
    all of them in one: that is one commit instead of two dozen, and there is nothing to go on with.
    """
    found = version_of(connection)
    # Written by a newer version, in a form that this one does not know: nothing is read or changed.
    if found > len(steps):
        raise Problem(
            "ledger_newer",
            f"expected a ledger of version {len(steps)} or lower, found {found}",
            "it was written by a newer latticed: run that one, or restore a backup made before the upgrade",
        )
    with connection if found == 0 else contextlib.nullcontext():
        for number, script in enumerate(steps[found:], start=found + 1):
            with connection:  # the step and its number are one transaction
                connection.execute(script)
                connection.execute(f"PRAGMA user_version={number}")
    return len(steps)
