"""Secrets of the tests, bound by plugin and name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from latticed.host.call import HostError
from latticed.host.secret.references import PluginSecrets
from latticed.model.hostcall import Denial


def secrets_of(values: Mapping[str, Mapping[str, str]]) -> Callable[[str], PluginSecrets]:
    """The entries of `values` under a plugin's id, looked up at each use."""

    def value_of(plugin_id: str, name: str) -> str:
        try:
            return values[plugin_id][name]
        except KeyError:
            raise HostError(Denial.BAD_PARAMS, f"the operator has bound no secret {name!r} to this plugin") from None

    return lambda plugin_id: PluginSecrets(lambda name: value_of(plugin_id, name))


no_secrets = secrets_of({})
