"""The kinds of plans that this version can apply, by name. The one list; each is a `kind.Kind`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.plans.kind import Kind
    from latticed.settings import Settings
    from latticed.settings.programs import ApplySettings, ProxySettings
    from latticed.settings.shapes import HttpSettings


class Kinds(Mapping[str, "Kind"]):
    """Kinds by name, each made when it is asked for first: whoever lists them, as the daemon does at its start, loads
    no code of theirs.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Kind]]) -> None:
        self._makers = {name: functools.cache(make) for name, make in makers.items()}

    def __getitem__(self, name: str) -> Kind:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def _nft() -> Kind:
    from latticed.plans.nft import NftKind

    return NftKind()


def _wireguard() -> Kind:
    from latticed.plans.wireguard import WireguardKind

    return WireguardKind()


def _nginx(apply: ApplySettings | None = None, http: HttpSettings | None = None) -> Kind:
    from latticed.plans.nginx import NginxKind, place
    from latticed.settings.programs import NginxSettings
    from latticed.settings.shapes import HttpSettings

    return NginxKind(place(apply.nginx if apply else NginxSettings(), http or HttpSettings()))


def _proxy(chosen: ProxySettings | None = None) -> Kind:
    from latticed.plans.proxy import ProxyKind

    if chosen is None:
        return ProxyKind()
    return ProxyKind(directory=chosen.directory, user=chosen.user, batch_s=chosen.batch_s, unit=chosen.unit)


_MAKERS: Final = {"nft": _nft, "nginx": _nginx, "proxy": _proxy, "wireguard": _wireguard}
KINDS: Final = Kinds(_MAKERS)
"""A kind that is not here is kept as a plan and reviewed by nobody; `latticed-apply` says so (`kind_unknown`)."""


def configured(settings: Settings) -> Kinds:
    """The same, as the settings have them: where nginx is, what of latticed it forwards to, and who a proxy core is."""
    made = {
        "nginx": lambda: _nginx(settings.apply, settings.http),
        "proxy": lambda: _proxy(settings.apply.proxy),
    }
    return Kinds({**_MAKERS, **made})
