"""The messages that the control API and latticectl share (contracts §7).

Standard library only: latticectl imports this at every start. Encoding leaves absent values out; decoding ignores
fields it does not know, so that an older latticectl can talk to a newer daemon.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BODY_BYTES: Final = 1 << 20
"""Largest body of a request; a larger one is 413 (contracts §7)."""
MAX_CONFIG_BYTES: Final = 256 << 10
"""A plugin's configuration, as compact JSON."""
MAX_CONFIG_DEPTH: Final = 32
"""How deeply a configuration may be nested, itself included."""
PROBLEM_TYPE: Final = "application/problem+json"
"""Content type of an error (RFC 9457, section 3)."""

T = TypeVar("T")


def encode(message: Any) -> dict[str, Any]:
    """A dataclass as a JSON object without its absent (None) fields; nested dataclasses included.

    `ErrorInfo(code="a", message="b")` becomes `{"code": "a", "message": "b"}`. Lists and dicts are passed on as they
    are.
    """
    plain: dict[str, Any] = {}
    for field in fields(message):
        value = getattr(message, field.name)
        if value is not None:
            plain[field.name] = encode(value) if hasattr(value, "__dataclass_fields__") else value
    return plain


def decode(kind: type[T], plain: Mapping[str, Any]) -> T:
    """The dataclass `kind` from a JSON object; fields it does not know are ignored.

    Types are not checked, and nested objects stay dicts; TypeError when a field without a default is missing.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in plain.items() if name in known})


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """The last failure of a plugin: `code` for programs, `message` for people."""

    code: str
    """Stable, for programs."""
    message: str
    """For people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeView:
    """What runs of a plugin now; times are RFC 3339 in UTC.

    `state`: `armed`, `stopped` or `failed`. `health`: `unknown`, `healthy`, `degraded` or `unhealthy`. `sandbox`: the
    level that confines it. `next_retry_at`: when a failed one is started again.
    """

    state: str
    """`armed`, `stopped` or `failed`."""
    runner: str
    """What runs it: `process`, `wasm`, `worker`, `builtin` or `noop`."""
    health: str
    """`unknown`, `healthy`, `degraded` or `unhealthy`."""
    message: str
    """What its health check said, or why it is as it is."""
    plugin_id: str = ""
    """Its id."""
    pid: int | None = None
    """The process, for those that have one."""
    restart_count: int | None = None
    """Restarts by itself since an operator started it last."""
    next_retry_at: str | None = None
    """When a failed one is started again."""
    last_error: ErrorInfo | None = None
    """Why it failed last."""
    started_at: str | None = None
    stopped_at: str | None = None
    updated_at: str | None = None
    sandbox: str | None = None
    """The level that confines it: `filtered`, `isolated` or `dedicated`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadView:
    """Why a version was given up, and when: `rolled_back` by an operator, else what a gate saw."""

    code: str
    reason: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeView:
    """The last change of versions since the daemon started; times are RFC 3339 in UTC.

    `state`: `gating` while the new version is watched, until `until` (absent: it is not armed yet); then `committed` or
    `rolled_back`, `at` that time. `version` is the one that was taken, `before` the other one. `code` and `reason`: why
    it was given up.
    """

    state: str
    version: str
    before: str
    until: str | None = None
    at: str | None = None
    code: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateView:
    """Another identity of an installed plugin that is on disk and verifies: what an upgrade would take.

    `identity` and `artifact_sha256` are lowercase hex. `adds` and `drops`: capabilities by name, the rest as
    `kind=value`. `must_name`: what has to be accepted by name before it can start. `needs_downgrade`: it takes
    `allow_downgrade`. `bad`: why it was given up before; it takes `retry`.
    """

    version: str | None = None
    artifact_sha256: str
    identity: str
    adds: list[str]
    drops: list[str]
    needs_downgrade: bool
    must_name: list[str] | None = None
    bad: BadView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginView:
    """One row of `GET /api/plugins/lifecycle`; times are RFC 3339 in UTC.

    `status` is the operator's decision (`verified`, `installed`, `active`, `disabled`), `available` whether the bundle
    verifies now. `capabilities` are declared, `granted` those that were granted. `withheld`: what else of the manifest
    was not accepted, as `kind=value`. `candidate`: what an upgrade would take; `upgrade`: what became of the last one.
    `adds`, `drops` and `identity`: of a dry run. `changed`: in the answer to a request, false where it was so already.
    """

    id: str
    """Its id."""
    name: str
    """Its name, for people."""
    type: str
    """`system`, `wasm` or `worker`."""
    version: str | None = None
    """The version that was accepted, or verifies."""
    entrypoint: str | None = None
    publisher: str | None = None
    """Who signed it."""
    capabilities: list[str]
    """Capabilities that it declares."""
    artifact_sha256: str
    """SHA-256 of its artifact."""
    available: bool
    """Whether its bundle verifies now."""
    status: str
    """What the operator decided: `verified` (nothing yet), `installed`, `active` or `disabled`."""
    runtime: RuntimeView
    """What runs of it now."""
    candidate: CandidateView | None = None
    """What an upgrade would take."""
    upgrade: UpgradeView | None = None
    """What became of the last upgrade."""
    granted: list[str]
    """Those of its capabilities that were granted."""
    withheld: list[str] | None = None
    """What else of the manifest was not accepted, as `kind=value`."""
    adds: list[str] | None = None
    """What a dry run would add."""
    drops: list[str] | None = None
    """What a dry run would drop."""
    identity: str | None = None
    """What a dry run would take, or has: a request with this `identity` takes nothing else."""
    changed: bool | None = None
    """False where what was asked for with `already_so` was so already."""
    unrecorded: bool | None = None
    """True while the ledger has not taken the decision that stopped it: the next start could run it again."""
    builtin: bool
    """Whether latticed brings it."""
    verified_at: str | None = None
    installed_at: str | None = None
    activated_at: str | None = None
    disabled_at: str | None = None
    created_at: str | None = None
    updated_at: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedView:
    """One bundle that is refused: `name` is its directory's name (escaped), the last three what it claims to be."""

    name: str
    code: str
    reason: str
    hint: str
    id: str | None = None
    version: str | None = None
    publisher: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictView:
    """The judgement of one bundle by `verify`, offline or over the API.

    `code`, `reason` and `hint` are null when it is `ok`; `id`, `version` and `digest_sha256` when the manifest cannot
    be read. `capabilities` rows are {"name", "risk"}.
    """

    path: str
    ok: bool
    code: str | None
    reason: str | None
    hint: str | None
    id: str | None
    version: str | None
    digest_sha256: str | None
    capabilities: list[dict[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One event of an audit chain; see contracts §11. `chain` is not hashed, and absent for decisions."""

    seq: int
    """Its number in its chain, from 1 on."""
    ts: str
    """When, RFC 3339 in UTC."""
    actor: str
    """Who: `uid:1000 user:ada pid:4711`, `plugin:acme.demo` or `latticed`."""
    action: str
    """What: one of the actions above."""
    target: str
    """About what: a plugin, host call, value, plan or file."""
    decision: str
    """`allow`, `deny`, or `-` where nothing was decided."""
    code: str
    """Why it was denied or failed; empty otherwise."""
    reason: str
    """The same for people."""
    detail: dict[str, Any]
    prev: str
    hash: str
    chain: str = "decisions"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemView:
    """An RFC 9457 problem document.

    `status` is the HTTP status, `code` the kind of error for programs; `detail` says what was expected and what was
    found, `hint` what can be done about it.

    `errors` (`config_invalid`): all that is wrong with a document, each `{"path", "expected", "found"}`, the path
    as in `rules[3].port`, empty for the document itself; `more` when there is more than is listed.
    """

    type: str
    """Always `about:blank`."""
    title: str
    """The phrase of the status."""
    status: int
    """The HTTP status."""
    code: str
    """The kind of error, for programs."""
    detail: str
    """What was expected and what was found."""
    hint: str
    """What can be done about it; may be empty."""
    errors: list[dict[str, str]] | None = None
    more: bool | None = None
