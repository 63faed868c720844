"""Secrets of the tests, as `host.secrets` lends them: by plugin and name, seen by nobody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latticed.host.call import HostError
from latticed.host.secret.references import REFERENCE, redacted
from latticed.model.hostcall import Denial


class Loan:
    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self._lent: dict[str, str] = {}

    def expand(self, text: str) -> str:
        return REFERENCE.sub(lambda found: self._value(found[1]), text)

    def redact(self, text: str, *, any_case: bool = False) -> str:
        return redacted(text, self._lent.items(), any_case=any_case)

    def _value(self, name: str) -> str:
        if name not in self._values:
            raise HostError(Denial.BAD_PARAMS, f"the operator has bound no secret {name!r} to this plugin")
        self._lent[name] = self._values[name]
        return self._values[name]


def lender(values: dict[str, dict[str, str]]) -> Callable[[str], Loan]:
    """Lends what `values` has under the plugin's id, as it is when it is asked."""
    return lambda plugin_id: Loan(values.get(plugin_id, {}))
