"""Parameters of service.put, validated once, and what tunnels share of that (`check_name`, `encode`, `bad`).

A `ProgramPut` is what a plugin asks for, a `ProgramSpec` what is stored and run.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from latticed.host.call import HostError, Params
from latticed.host.program import hosts as reachable
from latticed.host.program.rules import Restart
from latticed.host.secret.references import REFERENCE
from latticed.kit import text
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from latticed.model.egress import EgressRights
    from latticed.settings.programs import ServiceSettings as Settings

Network = Literal["none", "own", "host"]
# Bounds of one program; MAX_CHARACTERS is for each argument and each value.
MAX_ARGS: Final = 64
MAX_VARIABLES: Final = 32
MAX_CHARACTERS: Final = 4_096
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class DataQuota(Params, frozen=True):
    """What a service may keep in its directory: bytes, and files and directories together."""

    bytes: Annotated[int, msgspec.Meta(ge=1, le=2**53)]
    files: Annotated[int, msgspec.Meta(ge=1, le=2**53)]


class ProgramPut(Params, frozen=True):
    """Parameters of service.put."""

    name: str
    """Name of the service; names are a plugin's own."""
    program: str
    """A name under `[service] programs` of the settings."""
    args: tuple[str, ...] = ()
    """Its arguments."""
    environment: dict[str, str] = {}
    """Variables by name; each has to be granted, as `env=NAME`."""
    restart: Restart = "always"
    """When it is started again after it ended."""
    network: Network = "none"
    """None, its own loopback, or the host's."""
    data: DataQuota | None = None
    """Have it keep a directory; null: nothing is kept."""
    hosts: tuple[str, ...] = ()
    """What it may reach from its own network, as api.example.org:443."""


class ProgramSpec(msgspec.Struct, frozen=True, kw_only=True):
    """As `ProgramPut`, checked.

    Its JSON is stored in the ledger (`encode`): a field that is added needs a default, or stored rows no longer decode.
    """

    program: str
    args: tuple[str, ...]
    environment: dict[str, str]
    restart: Restart
    network: Network
    data: DataQuota | None = None
    hosts: tuple[str, ...] = ()


def checked(
    asked: ProgramPut, settings: Settings, variables: frozenset[str], rights: EgressRights | None
) -> ProgramSpec:
    """The spec; HostError bad_params names the field and what was expected, egress_blocked says that it may not have
    that network, or not reach one of its hosts. `rights`: where the plugin may connect to, None while it may not.

    `variables` are the names that the operator lets this plugin set. No list of harmless ones is possible: `BASH_ENV`,
    `NODE_OPTIONS`, `PYTHONWARNINGS` and many others make a program run code of the plugin.
    """
    check_name(asked.name)
    if asked.program not in settings.programs:
        names = ", ".join(sorted(settings.programs)) or "none"
        raise bad("program", f"one of those that the operator allows ({names})", fix="setting=service.programs")
    if (reason := not_allowed(asked.program, asked.network, settings)) is not None:
        raise HostError(Denial.EGRESS_BLOCKED, f"network: {reason}", fix="setting=service.host_network")
    if len(asked.args) > MAX_ARGS or len(asked.environment) > MAX_VARIABLES:
        raise bad("args", f"at most {MAX_ARGS}, and at most {MAX_VARIABLES} variables")
    # Only granted variables, and no secrets in them or in arguments: see `_check_text`.
    for name, value in asked.environment.items():
        if name not in variables:
            shown = text.sanitise(name, 80)
            expected = f"variables that the operator granted, found {shown} (caps grant ID env={shown})"
            raise bad("environment", expected, fix=f"env={name}")
        _check_text("environment", value)
    for one in asked.args:
        _check_text("args", one)
    if asked.data is not None and (asked.data.bytes > settings.data_bytes or asked.data.files > settings.data_files):
        raise bad("data", f"at most {settings.data_bytes} bytes and {settings.data_files} files (service.data_*)")
    return ProgramSpec(
        program=asked.program,
        args=asked.args,
        environment=asked.environment,
        restart=asked.restart,
        network=asked.network,
        data=asked.data,
        hosts=_checked_hosts(asked, rights),
    )


def _checked_hosts(asked: ProgramPut, rights: EgressRights | None) -> tuple[str, ...]:
    """The hosts in normal form; HostError bad_params, egress_blocked, capability_not_granted."""
    if not asked.hosts:
        return ()
    if asked.network != "own":
        raise bad("hosts", "the network own, from which they are reached")
    return reachable.checked(asked.hosts, rights)


def not_allowed(program: str, network: Network, settings: Settings) -> str | None:
    """Why the settings do not let a program run with this network, in words; None when they do."""
    if program not in settings.programs:
        return f"the operator's list has no program {program} (service.programs)"
    if network == "host" and program not in settings.host_network:
        return f"the operator does not let {program} have the host's network (service.host_network)"
    return None


def check_name(name: str) -> None:
    """HostError bad_params unless `name` is one that a program or tunnel may have."""
    if not NAME.fullmatch(name):
        raise bad("name", "1 to 64 letters, digits, '.', '_', '-', first a letter or digit")


def encode(spec: msgspec.Struct) -> str:
    """A spec as it is stored in a row of the ledger: JSON."""
    return msgspec.json.encode(spec).decode("utf-8")


def decode(stored: str) -> ProgramSpec:
    """What `encode` wrote; msgspec.ValidationError or DecodeError for anything else."""
    return msgspec.json.decode(stored, type=ProgramSpec)


def bad(name: str, expected: str, *, fix: str = "") -> HostError:
    """HostError bad_params for a field: `name: expected …`; `fix` as in HostError."""
    return HostError(Denial.BAD_PARAMS, f"{name}: expected {expected}", fix=fix)


def _check_text(what: str, value: str) -> None:
    """HostError bad_params unless `value` can be an argument or the value of a variable; `what` names the field."""
    if len(value) > MAX_CHARACTERS or any(text.is_control(c) and c not in "\n\t" for c in value):
        raise bad(what, f"texts of at most {MAX_CHARACTERS} characters without control characters")
    try:
        # JSON can carry lone surrogates (RFC 8259, section 8.2); execve(2) takes bytes.
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(what, "text without lone surrogates") from error
    # /proc/PID/cmdline can be read by every user (proc(5)), unless /proc is mounted with hidepid.
    if REFERENCE.search(value):
        raise bad(
            what, "no ${secret:NAME}: arguments and environments of processes can be listed, so none is filled in"
        )
