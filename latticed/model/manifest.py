"""A decoded manifest (contracts §2 and §3).

The shapes double as msgspec schemas, so `latticed.bundle.decode` needs no second description of them.
Text rules that a schema cannot express live there too. latticectl's online verbs never import this module.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from latticed.model import ids

SCHEMA_V2: Final = "latticed.manifest.v2"

PluginType = Literal["system", "wasm", "worker"]
"""What the artifact is: a program, a WebAssembly module, a template."""
SandboxLevel = Literal["filtered", "isolated", "dedicated"]
Positive = Annotated[int, Meta(ge=1)]


class _Part(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a manifest: unknown fields are errors."""


class HealthSpec(_Part, frozen=True, kw_only=True):
    """How a plugin is asked for its health."""

    interval_s: Positive = 30
    """Seconds between two questions."""
    timeout_s: Positive = 5
    """Seconds that the answer may take."""
    failures: Positive = 3
    """So many bad answers in a row stop the plugin; it has failed then, and is restarted after a pause."""


class ManifestLimits(_Part, frozen=True, kw_only=True):
    """Limits that the manifest asks for; None leaves a limit to the settings."""

    memory_mib: Positive | None = None
    """Memory of one process, in MiB."""
    cpu_percent: Positive | None = None
    """Processor time, in percent of one core."""
    processes: Positive | None = None
    """Threads and processes together."""
    open_files: Positive | None = None
    """Open descriptors of one process."""
    invoke_timeout_s: Positive | None = None
    """Longest invocation, in seconds."""
    host_calls_per_s: Positive | None = None
    """Host calls in a second, sustained."""
    stdout_kib: Positive | None = None
    """Longest line on stdout, in KiB (stdio-json-v1)."""
    fuel: Positive | None = None
    """Instructions for one message (wasm)."""


class SandboxSpec(_Part, frozen=True, kw_only=True):
    """The least sandbox level (None: that of the settings), and features it asks for (docs/security/sandbox.md)."""

    level: SandboxLevel | None = None
    """The least level; absent: that of the settings (sandbox.floor)."""
    features: tuple[Literal["processes", "threads", "workdir"], ...] = ()
    """What it needs besides: to start processes, to start threads, a directory /scratch."""


class RuntimeSpec(_Part, frozen=True, kw_only=True):
    """How a plugin is run; `protocol` None stands for the usual one of its type (`model.accepted.protocol_of`)."""

    protocol: Literal["latticed-stdio-1", "stdio-json-v1"] | None = None
    """How it speaks to the host; absent: latticed-stdio-1."""
    args: tuple[str, ...] = ()
    """Arguments that it is started with."""
    health: HealthSpec = HealthSpec()
    """How its health is asked for."""
    limits: ManifestLimits = ManifestLimits()
    """Limits that it asks for; absent ones are those of the settings."""
    sandbox: SandboxSpec = SandboxSpec()
    """How it is to be confined."""


class Egress(_Part, frozen=True, kw_only=True):
    """Hosts that the plugin needs to reach, as patterns with a port (`model.egress`)."""

    hosts: tuple[str, ...] = ()
    """Each as api.example.org:443 or *.example.net:443."""


class RouteDeclaration(_Part, frozen=True, kw_only=True):
    """What a worker serves."""

    prefixes: tuple[str, ...] = ()
    """Paths below which it answers, each beginning with /."""
    content_type: str = "text/plain"
    """Content-Type of its answers."""


class Dependency(_Part, frozen=True, kw_only=True):
    """Another plugin that this one needs; `version` is a range (`model.semver_range`).

    An `optional` one does not keep this plugin from starting.
    """

    id: str
    """Id of the other plugin."""
    version: str = "*"
    """Range of versions, as >=1.2.0 <2.0.0."""
    optional: bool = False
    """Whether this plugin starts without it."""


class Schedule(_Part, frozen=True, kw_only=True):
    """When the daemon has the plugin carry out `action`; one of `every_s`, `daily` ("HH:MM") and `cron` is set.

    `daily` and `cron` are in the host's time zone (`model.schedule`). `payload` is any JSON.
    """

    name: str
    """1 to 64 of a-z 0-9 _ -; another one in each of at most 16 schedules."""
    every_s: int | None = None
    """Seconds, 10 or more, from the beginning of one run to that of the next; the first is at once."""
    daily: str | None = None
    """HH:MM in the host's time zone."""
    cron: str | None = None
    """Minute, hour, day of month, month, day of week in the host's time zone: *, */5, 1-5, MON, 1,15, L (last
    day), MON#1 (first Monday).
    """
    action: str
    """The action that is invoked: 1 to 128 of A-Z a-z 0-9 . _ -."""
    payload: Any = None
    """What the action is given, up to 16 KiB; null when absent."""


class Manifest(_Part, frozen=True, kw_only=True):
    """One manifest of either version; `schema` None means v1. Absent strings are empty.

    What a schema cannot express has been checked by `bundle.decode`.
    """

    schema: Literal["latticed.manifest.v2"] | None = None
    """Absent in version 1."""
    id: str
    """3 to 128 of a-z 0-9 . -, a letter or digit at both ends; latticed and latticed.* are reserved."""
    name: str
    """1 to 80 visible characters, for people."""
    type: PluginType
    """What the artifact is: a program or script, a WebAssembly module, a template."""
    capabilities: tuple[str, ...]
    """What it may ask of the host, at least one, each once."""
    version: str = ""
    """At most 64 characters; SemVer in version 2, and to have an order in version 1."""
    entrypoint: str = ""
    """At most 255 characters; version 1 only, kept for other tooling."""
    publisher: str = ""
    """Who signs it, as the trust policy names it; of the form of an id."""
    digest_sha256: str = ""
    """SHA-256 of the artifact, 64 hex digits; latticectl sign writes it."""
    signature_ed25519: str = ""
    """Ed25519 in base64; latticectl sign writes it."""
    description: str = ""
    """For people."""
    homepage: str = ""
    """For people."""
    license: str = ""
    """For people."""
    critical: bool = False
    """While it is not healthy, the health of the daemon is 503."""
    runtime: RuntimeSpec = RuntimeSpec()
    """How it is run, and confined."""
    egress: Egress = Egress()
    """Hosts that it needs to reach."""
    routes: RouteDeclaration = RouteDeclaration()
    """What a worker serves."""
    config: dict[str, Any] = {}
    """JSON Schema of what an operator may set, complete in itself."""
    dependencies: tuple[Dependency, ...] = ()
    """Other plugins that it needs."""
    schedules: tuple[Schedule, ...] = ()
    """When the host invokes an action by itself; at most 16, none in a worker."""
    requires_host: str = ""
    """Range of versions of latticed, as >=0.1.0."""

    @property
    def is_v2(self) -> bool:
        """Whether the manifest has `schema`, so whether it is of version 2."""
        return self.schema is not None

    @property
    def declared_hosts(self) -> tuple[str, ...] | None:
        """The patterns that hosts have to be within to be granted; None: any host may be (docs/adr/0019).

        A v1 manifest cannot declare hosts. A built-in plugin that declares none connects to what its operator names.
        """
        named_by_operator = ids.is_reserved_plugin(self.id) and not self.egress.hosts
        return self.egress.hosts if self.is_v2 and not named_by_operator else None

    @property
    def signed(self) -> bool:
        """Whether it carries a signature; not whether that is valid."""
        return bool(self.signature_ed25519)


V1_FIELDS: Final = frozenset(
    {
        "id",
        "name",
        "type",
        "capabilities",
        "version",
        "entrypoint",
        "publisher",
        "digest_sha256",
        "signature_ed25519",
    }
)
"""The fields that a manifest without `schema` may have."""
V2_REQUIRED: Final = ("version", "publisher", "digest_sha256", "signature_ed25519")
"""Fields that v2 requires besides those that both versions require."""
