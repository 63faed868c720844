"""The sources of the settings, checked: a source that is set wrongly is refused, and nothing is fetched from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.egress import url as urls
from latticed.model import egress
from latticed.model.egress import EgressRights
from latticed.model.errors import Problem
from latticed.trust import index, keys, policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.model.egress import Origin
    from latticed.settings.market import SourceSettings


_FOREVER_S: Final = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketSource:
    """One source. `url` is that of its index, or of its TUF repository; `keys` in canonical base64, none of a
    repository; `root` is the path of the file with its pinned root.
    """

    name: str
    format: str
    url: str
    keys: frozenset[str]
    threshold: int
    root: str
    max_age_s: int
    origins: tuple[Origin, ...]

    @property
    def base(self) -> str:
        """The URL of the directory in which the index is, or of the repository, with a slash at its end."""
        return self.url.rstrip("/") + "/" if self.format == "tuf" else self.url.rpartition("/")[0] + "/"

    @property
    def index_age_s(self) -> int:
        """How old its index may be, in seconds. That of a repository may be of any age: its roles say that it is the
        newest.
        """
        return _FOREVER_S if self.format == "tuf" else self.max_age_s

    @property
    def is_file(self) -> bool:
        """Whether it is a directory of this host (`file:`)."""
        return self.url.startswith("file:")

    def rights(self, url: str) -> EgressRights:
        """Where a fetch of `url` may connect to: its own host, redirects to any public host on its usual ports, and
        the private mirrors that the operator bound. HostError for what is no plain URL.
        """
        target = urls.parse(url)
        return EgressRights(hosts=(egress.ANY, target.shown), origins=self.origins)

    def url_fault(self, url: str) -> str:
        """Why an address that this source's index names is not fetched; empty for one that may be."""
        if url.startswith("file:") and not (self.is_file and url.startswith(self.base)):
            return f"expected https://, or a file beneath the index of a file: source, found {url[:80]!r}"
        return index.url_fault(url)


def of(name: str, given: SourceSettings) -> MarketSource:
    """The source `name` as it is set; Problem source_invalid names the key that is wrong."""
    where = f"market.sources.{name}"
    if fault := index.url_fault(given.url):
        raise _invalid(f"{where}.url", fault)
    try:
        pinned = frozenset(policy.public_key(one, f"{where}.keys") for one in given.keys)
    except Problem as problem:
        raise _invalid(f"{where}.keys", problem.reason) from problem
    if given.format == "tuf" and (given.keys or not given.root.startswith("/")):
        if given.keys:
            raise _invalid(f"{where}.keys", "expected none, as the roles of a TUF repository have their own")
        raise _invalid(f"{where}.root", f"expected the path of a file, from / on, found {given.root[:80]!a}")
    if given.format == "static" and pinned and given.threshold > len(pinned):
        raise _invalid(
            f"{where}.threshold", f"expected at most {len(pinned)}, the number of keys, found {given.threshold}"
        )
    try:
        bound = tuple(egress.origin(one) for one in given.origins)
    except ValueError as error:
        raise _invalid(f"{where}.origins", str(error)) from error
    return MarketSource(
        name=name,
        format=given.format,
        url=given.url,
        keys=pinned,
        threshold=given.threshold,
        root=given.root,
        max_age_s=given.max_age_days * 86_400,
        origins=bound,
    )


def of_settings(given: Mapping[str, SourceSettings]) -> dict[str, MarketSource | Problem]:
    """Each source of the settings, or why it cannot be used."""
    found: dict[str, MarketSource | Problem] = {}
    for name, one in given.items():
        try:
            found[name] = of(name, one)
        except (Problem, HostError) as error:
            found[name] = Problem.of(error.fault)
    return found


def short(pinned: Iterable[str]) -> list[str]:
    """Short forms of pinned keys, to compare."""
    return sorted(keys.fingerprint(one) for one in pinned)


def _invalid(where: str, reason: Any) -> Problem:
    return Problem("source_invalid", f"{where}: {reason}", "correct it in the settings; see docs/operate/market.md")
