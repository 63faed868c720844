"""An intent from plain JSON values, strictly: unknown keys, wrong types, names and numbers out of bounds are findings.

All findings are collected, so that an operator mends a document once (`system.reading`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.system.findings import IntentRefused
from latticed.system.nft_guard import intent as model
from latticed.system.reading import MISSING, NAME, Reader, Told

if TYPE_CHECKING:
    from latticed.model.addresses import Network


def read(plain: Any) -> model.Intent:
    """The intent in plain JSON values, or IntentRefused with every fault of its form (at most 100).

    What the form cannot show (names that nothing has, a firewall that locks out) is for `check`.
    """
    reader = _Reader()
    intent = reader.intent(plain)
    if reader.findings:
        raise IntentRefused(reader.findings)
    return intent


class _Reader(Reader):
    def intent(self, plain: Any) -> model.Intent:
        fields = self.fields(plain, "", "zones groups bindings bans never")
        zones = self.each(fields, "zones", "zones", model.MAX_ZONES, self.zone)
        groups = self.each(fields, "groups", "groups", model.MAX_GROUPS, self.group)
        bindings = self.bindings(fields.get("bindings", MISSING), "bindings")
        bans = self.each(fields, "bans", "bans", model.MAX_BANS, self.ban)
        never = self.each(fields, "never", "never", model.MAX_NETWORKS, self.network)
        self.unique([zone.name for zone in zones], "zones", ".name")
        self.unique([group.name for group in groups], "groups", ".name")
        if not self.findings:  # what stands for unreadable addresses is the same for all
            self.unique([str(ban.network) for ban in bans], "bans", ".address")
        count = sum(len(group.rules) for group in groups) + len(bindings.overrides)
        if count > model.MAX_BOUND_RULES:
            expected = f"at most {model.MAX_BOUND_RULES} rules in all"
            self.refuse("too_many", "groups", expected, Told(str(count)))
        return model.Intent(zones=zones, groups=groups, bindings=bindings, bans=bans, never=never)

    def zone(self, value: Any, path: str) -> model.Zone:
        fields = self.fields(value, path, "name interfaces cidrs forward", "name")
        return model.Zone(
            name=self.name(fields.get("name", MISSING), f"{path}.name"),
            interfaces=self.each(fields, "interfaces", f"{path}.interfaces", model.MAX_INTERFACES, self.interface),
            cidrs=self.each(fields, "cidrs", f"{path}.cidrs", model.MAX_NETWORKS, self.network),
            forward=self.choice(fields, "forward", path, model.Forward.LEAVE),
        )

    def group(self, value: Any, path: str) -> model.Group:
        fields = self.fields(value, path, "name rules", "name")
        rules = self.each(fields, "rules", f"{path}.rules", model.MAX_RULES, self.rule)
        ports = sum(ports.high - ports.low + 1 for rule in rules for ports in rule.ports)
        if ports > model.MAX_PORTS:
            expected = f"at most {model.MAX_PORTS} ports in a group"
            self.refuse("too_many_ports", f"{path}.rules", expected, Told(str(ports)), "divide the group")
        return model.Group(name=self.name(fields.get("name", MISSING), f"{path}.name"), rules=rules)

    def bindings(self, value: Any, path: str) -> model.Bindings:
        if value is MISSING:
            return model.Bindings()
        fields = self.fields(value, path, "groups overrides trusted_zones managed")
        groups = self.each(fields, "groups", f"{path}.groups", model.MAX_GROUPS, self.name)
        trusted = self.each(fields, "trusted_zones", f"{path}.trusted_zones", model.MAX_ZONES, self.name)
        self.unique(groups, f"{path}.groups")
        self.unique(trusted, f"{path}.trusted_zones")
        overrides = self.each(fields, "overrides", f"{path}.overrides", model.MAX_RULES, self.rule)
        ports = sum(ports.high - ports.low + 1 for rule in overrides for ports in rule.ports)
        if ports > model.MAX_PORTS:
            expected = f"at most {model.MAX_PORTS} ports in all overrides"
            self.refuse("too_many_ports", f"{path}.overrides", expected, Told(str(ports)), "put rules into groups")
        managed = self.boolean(fields, "managed", path, default=True)
        return model.Bindings(groups=groups, overrides=overrides, trusted_zones=trusted, managed=managed)

    def rule(self, value: Any, path: str) -> model.Rule:
        fields = self.fields(value, path, "dir action proto ports remote rate log comment")
        remotes = self.each(fields, "remote", f"{path}.remote", model.MAX_NETWORKS, self.remote)
        return model.Rule(
            direction=self.choice(fields, "dir", path, model.Direction.IN),
            action=self.choice(fields, "action", path, model.Action.ACCEPT),
            proto=self.choice(fields, "proto", path, model.Proto.ANY),
            ports=self.each(fields, "ports", f"{path}.ports", model.MAX_PORT_ENTRIES, self.port_range),
            remotes=tuple(one for one in remotes if not isinstance(one, str)),
            remote_zones=tuple(one for one in remotes if isinstance(one, str)),
            rate=self.rate(fields["rate"], f"{path}.rate") if "rate" in fields else None,
            log=self.boolean(fields, "log", path, default=False),
            comment=self.comment(fields, path),
        )

    def rate(self, value: Any, path: str) -> model.Rate:
        fields = self.fields(value, path, "packets per burst", "packets")
        packets = self.integer(fields.get("packets", 1), f"{path}.packets", 1, model.MAX_RATE)
        per = self.choice(fields, "per", path, model.Per.SECOND)
        burst = self.integer(fields.get("burst", 5), f"{path}.burst", 1, model.MAX_RATE)
        return model.Rate(packets=packets, per=per, burst=burst)

    def ban(self, value: Any, path: str) -> model.Ban:
        fields = self.fields(value, path, "address expires_at comment", "address expires_at")
        network = self.network(fields.get("address", "0.0.0.0"), f"{path}.address")  # noqa: S104 - stands for none
        expires_at = self.integer(fields.get("expires_at", 0), f"{path}.expires_at", 0, model.MAX_EXPIRY_S)
        # An address of IPv6 stands for its /64; as a set of plain /64s and addresses, the bans of a table need no
        # intervals, which nft 1.0.6 refuses to overlap.
        if network.version == 6 and network.prefixlen == 128:
            network = network.supernet(new_prefix=64)
        if network.prefixlen != (32 if network.version == 4 else 64):
            hint = "ban wider networks with an override that drops"
            self.refuse("bad_ban", f"{path}.address", "an IPv4 address, or an IPv6 address or /64", str(network), hint)
        return model.Ban(network=network, expires_at=expires_at, comment=self.comment(fields, path))

    def remote(self, value: Any, path: str) -> Network | str:
        """A network, or the name of a zone: names begin with a letter and have no `:`, so no text is both."""
        if isinstance(value, str) and NAME.fullmatch(value):
            return value
        return self.network(value, path)

    def port_range(self, value: Any, path: str) -> model.Ports:
        return model.Ports(*self.ports(value, path))
