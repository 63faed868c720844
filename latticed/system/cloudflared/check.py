"""Whether the configuration means something, beyond what each tunnel of it shows by itself. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.system.findings import Finding, shown

if TYPE_CHECKING:
    from latticed.system.cloudflared.intent import TunnelIntent

MAX_ORIGINS: Final = 100
"""Different origins of all tunnels: each has a monitor, and the operator allows one plugin so many by default."""


def check(intent: TunnelIntent) -> tuple[Finding, ...]:
    """Every fault: names and ids that are there twice, public names that two tunnels want, too many origins."""
    found: list[Finding] = []
    named: dict[str, str] = {}
    known: dict[str, str] = {}
    served: dict[str, str] = {}
    for number, tunnel in enumerate(intent.tunnels):
        path = f"tunnels[{number}]"
        for field, value, before in (("name", tunnel.name, named), ("tunnel", tunnel.tunnel, known)):
            _once(found, before, value, f"{path}.{field}", "duplicate", "each once")
        # The provider's DNS leads a name to one tunnel: rules for it in another one would never be asked.
        for hostname in dict.fromkeys(rule.hostname for rule in tunnel.ingress if rule.hostname):
            index = next(i for i, rule in enumerate(tunnel.ingress) if rule.hostname == hostname)
            place = f"{path}.ingress[{index}].hostname"
            _once(found, served, hostname, place, "two_tunnels", "a hostname of one tunnel")
    if intent.monitor_s and len(intent.origins) > MAX_ORIGINS:
        count = str(len(intent.origins))
        hint = "monitor_s = 0 leaves them unchecked"
        found.append(
            Finding(
                code="too_many_origins",
                path="tunnels",
                expected=f"at most {MAX_ORIGINS} origins",
                found=count,
                hint=hint,
            )
        )
    return tuple(found)


def _once(found: list[Finding], before: dict[str, str], value: str, path: str, code: str, expected: str) -> None:
    if value in before:
        hint = f"{before[value]} has it, too"
        found.append(Finding(code=code, path=path, expected=expected, found=shown(value), hint=hint))
    before.setdefault(value, path)
