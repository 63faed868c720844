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
    """How often a plugin is asked for its health, how long the answer may take, and how many bad ones in a row stop it.

    A plugin that is stopped for that has failed, and is restarted after a pause.
    """

    interval_s: Positive = 30
    timeout_s: Positive = 5
    failures: Positive = 3


class ManifestLimits(_Part, frozen=True, kw_only=True):
    """Limits that the manifest asks for; None leaves a limit to the settings."""

    memory_mib: Positive | None = None
    cpu_percent: Positive | None = None
    processes: Positive | None = None
    open_files: Positive | None = None
    invoke_timeout_s: Positive | None = None
    host_calls_per_s: Positive | None = None
    stdout_kib: Positive | None = None
    fuel: Positive | None = None


class SandboxSpec(_Part, frozen=True, kw_only=True):
    """The least sandbox level (None: that of the settings), and features it asks for (docs/security/sandbox.md)."""

    level: SandboxLevel | None = None
    features: tuple[Literal["processes", "threads", "workdir"], ...] = ()


class RuntimeSpec(_Part, frozen=True, kw_only=True):
    """How a plugin is run; `protocol` None stands for the usual one of its type (`model.accepted.protocol_of`)."""

    protocol: Literal["latticed-stdio-1", "stdio-json-v1"] | None = None
    args: tuple[str, ...] = ()
    health: HealthSpec = HealthSpec()
    limits: ManifestLimits = ManifestLimits()
    sandbox: SandboxSpec = SandboxSpec()


class Egress(_Part, frozen=True, kw_only=True):
    """Hosts that the plugin needs to reach, as patterns with a port (`model.egress`)."""

    hosts: tuple[str, ...] = ()


class RouteDeclaration(_Part, frozen=True, kw_only=True):
    """Paths below which a worker answers, and the Content-Type of its answers."""

    prefixes: tuple[str, ...] = ()
    content_type: str = "text/plain"


class Dependency(_Part, frozen=True, kw_only=True):
    """Another plugin that this one needs; `version` is a range (`model.semver_range`).

    An `optional` one does not keep this plugin from starting.
    """

    id: str
    version: str = "*"
    optional: bool = False


class Schedule(_Part, frozen=True, kw_only=True):
    """When the daemon has the plugin carry out `action`; one of `every_s`, `daily` ("HH:MM") and `cron` is set.

    `daily` and `cron` are in the host's time zone (`model.schedule`). `payload` is any JSON.
    """

    name: str
    every_s: int | None = None
    daily: str | None = None
    cron: str | None = None
    action: str
    payload: Any = None


class Manifest(_Part, frozen=True, kw_only=True):
    """One manifest of either version; `schema` None means v1. Absent strings are empty.

    What a schema cannot express has been checked by `bundle.decode`.
    """

    schema: Literal["latticed.manifest.v2"] | None = None
    id: str
    name: str
    type: PluginType
    capabilities: tuple[str, ...]
    version: str = ""
    entrypoint: str = ""
    publisher: str = ""
    digest_sha256: str = ""
    signature_ed25519: str = ""
    description: str = ""
    homepage: str = ""
    license: str = ""
    critical: bool = False
    runtime: RuntimeSpec = RuntimeSpec()
    egress: Egress = Egress()
    routes: RouteDeclaration = RouteDeclaration()
    config: dict[str, Any] = {}
    dependencies: tuple[Dependency, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    requires_host: str = ""

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
