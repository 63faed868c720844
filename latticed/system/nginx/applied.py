"""A rendering as the files that nginx is given: pure, for whoever puts them into place.

    files = applied.read(rendering)
    bad = [site.name for site in applied.sites(files) if not all(map(exists, site.pair))]
    tree = applied.tree(files, bad)

A site in `bad` is on disk as it answers 503; the rendering itself is kept whole, and tried again at the next start.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.model import ids
from latticed.system.nginx import file_sets, syntax
from latticed.system.nginx.render import MAIN, MARK, PUBLISHED, SITES, UNSERVED
from latticed.system.nginx.syntax import Directive

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

_NAME: Final = re.compile(rf"(?:{SITES}|{UNSERVED})/([a-z][a-z0-9_-]{{0,31}})\.conf")
_TROUBLE: Final = re.compile(rb" in [^ \n]*/sites/([a-z][a-z0-9_-]{0,31})\.conf:[0-9]+")


@dataclass(frozen=True, slots=True)
class ServedSite:
    """What a site needs from disk to be served. `pair`: its certificate and key; empty without TLS. `copies`: names of
    copies of published files.
    """

    name: str
    domains: tuple[str, ...]
    pair: tuple[str, ...]
    copies: tuple[str, ...] = ()


def read(rendering: bytes) -> Mapping[str, str]:
    """The files that `render.render` wrote, by name; ValueError for anything else."""
    start, *parts = rendering.decode("ascii").split(MARK)
    files: dict[str, str] = {}
    for part in parts:
        name, _, text = part.partition("\n")
        plugin = name.removeprefix(f"{PUBLISHED}/")
        if name in files or not (name == MAIN or _NAME.fullmatch(name) or (plugin != name and ids.is_valid(plugin))):
            raise ValueError("no rendering of nginx")
        (syntax.read if plugin == name else file_sets.read)(text)
        files[name] = text
    names = {kind: {one for one in files if one.startswith(f"{kind}/")} for kind in (SITES, UNSERVED)}
    if start or MAIN not in files or {f"{UNSERVED}{one[len(SITES) :]}" for one in names[SITES]} != names[UNSERVED]:
        raise ValueError("no rendering of nginx")
    return files


def sites(files: Mapping[str, str]) -> tuple[ServedSite, ...]:
    """The sites of a rendering, by name."""
    found, known = [], {one.digest for one in listings(files)}
    for path, text in files.items():
        if path.startswith(f"{SITES}/"):
            directives = [inner for server in syntax.read(text) for inner in server.block or ()]
            domains = {name for one in directives if one.name == "server_name" for name in one.args}
            pair = tuple(_of(directives, "ssl_certificate", "ssl_certificate_key"))
            roots = {one.rpartition("/")[2] for one in _of([*_all(directives)], "root")}
            copies = tuple(sorted(roots & known))
            found.append(ServedSite(path[len(SITES) + 1 : -len(".conf")], tuple(sorted(domains)), pair, copies))
    return tuple(found)


def listings(files: Mapping[str, str]) -> tuple[file_sets.Listed, ...]:
    """What has to be copied before the sites can be served."""
    return tuple(file_sets.read(text) for path, text in files.items() if path.startswith(f"{PUBLISHED}/"))


def ports(files: Mapping[str, str]) -> frozenset[int]:
    """The TCP ports that nginx listens at."""
    (http,) = (one.block or () for one in syntax.read(files[MAIN]) if one.name == "http")
    servers = (one.block or () for one in http if one.name == "server")
    listens = (inner.args[0] for server in servers for inner in server if inner.name == "listen")
    return frozenset(int(one.rpartition(":")[2]) for one in listens)


def tree(files: Mapping[str, str], bad: Collection[str]) -> Mapping[str, str]:
    """What is written to disk, by path below our directory. `bad`: names of sites that are not served."""
    return {
        path: files[f"{UNSERVED}{path[len(SITES) :]}"] if path[len(SITES) + 1 : -len(".conf")] in bad else text
        for path, text in files.items()
        if not path.startswith((f"{UNSERVED}/", f"{PUBLISHED}/"))
    }


def probe(socket: str, generation: str) -> str:
    """The text of `probe.conf`: only workers that have read these very files answer so."""
    answer = (Directive("listen", (f"unix:{socket}",)), Directive("return", ("200", generation)))
    return syntax.text([Directive("server", block=answer)])


def blamed(files: Mapping[str, str], stderr: bytes) -> frozenset[str]:
    """The sites that `nginx -t` complains of; none when it is something else, or it does not say."""
    lines = [line for line in stderr.splitlines() if b"[emerg]" in line]
    if not lines:
        return frozenset()
    found = _TROUBLE.search(lines[-1])
    if found is not None:
        return frozenset({found[1].decode("ascii")})
    # Of a certificate it names the file alone.
    return frozenset(
        one.name for one in sites(files) if any(f'"{path}"'.encode("ascii") in lines[-1] for path in one.pair)
    )


def _all(directives: Iterable[Directive]) -> Iterator[Directive]:
    """The directives and those within them."""
    for one in directives:
        yield one
        yield from _all(one.block or ())


def _of(directives: list[Directive], *names: str) -> Iterator[str]:
    for one in directives:
        if one.name in names:
            yield from one.args
