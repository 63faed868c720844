"""The configuration from plain JSON values, strictly (`system.reading`)."""

from __future__ import annotations

import re
from typing import Any, Final

from latticed.model import tunnel as rules
from latticed.system.cloudflared import intent as model
from latticed.system.findings import IntentRefused
from latticed.system.reading import MISSING, Reader, Told

_TEXT: Final = re.compile(r"[^\x00-\x1f\x7f]{0,512}")
_TEXT_EXPECTED: Final = "a text of at most 512 characters on one line"
_TUNNEL_KEYS: Final = "name tunnel credentials token ingress"


def read(plain: Any) -> model.TunnelIntent:
    """The configuration, or IntentRefused with every fault (at most 100) of its form and of each tunnel's rules.

    What only shows when tunnels are compared is for `check`.
    """
    reader = _TunnelReader()
    intent = reader.intent(plain)
    if reader.findings:
        raise IntentRefused(reader.findings)
    return intent


class _TunnelReader(Reader):
    def intent(self, plain: Any) -> model.TunnelIntent:
        fields = self.fields(plain, "", "tunnels monitor_s")
        least, most = model.MONITOR_RANGE
        monitor_s = fields.get("monitor_s", model.MONITOR_S)
        if monitor_s != 0 or isinstance(monitor_s, bool):
            monitor_s = self.integer(monitor_s, "monitor_s", least, most)
        tunnels = self.each(fields, "tunnels", "tunnels", model.MAX_TUNNELS, self.tunnel)
        return model.TunnelIntent(tunnels=tunnels, monitor_s=int(monitor_s))

    def tunnel(self, value: Any, path: str) -> model.WantedTunnel:
        fields = self.fields(value, path, _TUNNEL_KEYS, "name tunnel ingress")
        name = self.name(fields.get("name", MISSING), f"{path}.name")
        files = {key: self._file(fields, key, path) for key in ("credentials", "token")}
        if isinstance(value, dict) and ("credentials" in fields) == ("token" in fields):
            found = "both" if "token" in fields else "none"
            self.refuse("one_secret", path, "exactly one of credentials and token", Told(found))
        return model.WantedTunnel(
            name=name, tunnel=self._id(fields, path), ingress=self._ingress(fields, path), **files
        )

    def _id(self, fields: dict[str, Any], path: str) -> str:
        value = fields.get("tunnel", MISSING)
        if value is MISSING:
            return ""
        plain = rules.normal_id(value) if isinstance(value, str) else None
        if plain is None:
            self.refuse("bad_id", f"{path}.tunnel", rules.ID_EXPECTED, value)
        return plain or ""

    def _file(self, fields: dict[str, Any], key: str, path: str) -> str:
        value = fields.get(key, MISSING)
        if value is MISSING:
            return ""
        if not isinstance(value, str) or not rules.is_file(value):
            hint = "the directory is tunnel.credentials_dir of the settings"
            self.refuse("bad_file", f"{path}.{key}", rules.FILE_EXPECTED, value, hint)
            return ""
        return value

    def _ingress(self, fields: dict[str, Any], path: str) -> tuple[rules.TunnelRule, ...]:
        before = len(self.findings)
        given = self.each(fields, "ingress", f"{path}.ingress", rules.MAX_RULES, self._rule)
        # Rules are compared once each is one: else what was left out of a broken one would be a fault, too.
        if len(self.findings) > before or "ingress" not in fields:
            return ()
        made, faults = rules.judged(given)
        for fault in faults:
            place = f"{path}.ingress" if fault.index is None else f"{path}.ingress[{fault.index}]"
            found = getattr(given[fault.index], fault.field) if fault.index is not None and fault.field else None
            shown = Told("none that does") if fault.code == "no_last_rule" else Told(f"{len(given)} rules")
            if fault.code == "hidden_rule" and fault.index is not None:
                rule = made[fault.index]
                shown = Told(ascii(f"{rule.hostname}{rule.path}" or "everything")[:80])
            place = f"{place}.{fault.field}" if fault.field else place
            self.refuse(fault.code, place, fault.expected, shown if found is None else found)
        return made

    def _rule(self, value: Any, path: str) -> rules.TunnelRule:
        fields = self.fields(value, path, "hostname path service", "service")
        texts = {
            name: self.text(fields[name], f"{path}.{name}", "wrong_type", _TEXT, _TEXT_EXPECTED)
            for name in ("hostname", "path", "service")
            if name in fields
        }
        return rules.TunnelRule(service=texts.pop("service", ""), **texts)
