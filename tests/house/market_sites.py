"""Sources of a marketplace on a scripted https server, and the daemon that takes from them: one for each test.

site = Site(daemon=daemon, web=web, name="s1", parent=tmp_path)
bundle = site.bundle()
site.refreshed(site.offer(bundle))
assert site.install(bundle).status == 200
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from dataclasses import dataclass, field
from typing import Any

from tests.house import bundles, daemons, index_servers, indexes
from tests.house.tuf_repositories import Repository

SOURCE = bundles.author("source")
ACME = bundles.author("acme")
STRANGER = bundles.author("stranger")
FETCH_S = 3
numbered = itertools.count()


@dataclass
class Site:
    """One source of its own for each test: index, files, and what the daemon makes of it."""

    daemon: daemons.Daemon
    web: index_servers.IndexServer
    name: str
    parent: Any

    @property
    def base(self) -> str:
        return f"{self.web.base}{self.name}/"

    @property
    def state(self):
        return self.daemon.place.state

    def path(self, bundle, file="artifact", version=None) -> str:
        return f"/{self.name}/{bundle.id}/{version or bundle.raw['version']}/{file}"

    def bundle(self, plugin_id=None, *, author=ACME, **fields):
        """A bundle with an id of its own, whose files are served."""
        plugin_id = plugin_id or f"acme.plugin{next(numbered)}"
        made = bundles.drop(self.parent, f"{next(numbered)}", author=author, id=plugin_id, **fields)
        for file in ("manifest.json", "artifact"):
            self.put(f"{made.id}/{made.raw['version']}/{file}", (made.path / file).read_bytes())
        return made

    def offer(self, bundle, **fields):
        """The entry of a bundle."""
        return indexes.entry(bundle, f"{self.base}{bundle.id}/{bundle.raw['version']}/", **fields)

    def publish(self, *entries, signers=(SOURCE,), **fields):
        """Serve an index; without `at` each is newer than the one before."""
        fields.setdefault("at", time.time() - 1000 + next(numbered))
        made = indexes.index(*entries, signers=signers, **fields)
        self.serve(made)
        return made

    def serve(self, made):
        self.put("plugins.json", made if isinstance(made, bytes) else indexes.encoded(made))

    def take_back(self, *entries, signers=(SOURCE,), at=None):
        """Serve revocations, each newer than the ones before unless `at` says when they are from."""
        raw = {
            "schema": "latticed.market.revocations.v1",
            "generated_at": indexes.moment(at or time.time() - 1000 + next(numbered)),
            "revocations": list(entries),
        }
        signed = indexes.sign(raw, *signers, domain=b"LATTICED-MARKET-REVOCATIONS-V1\n")
        self.put("revocations.json", indexes.encoded(signed))

    def put(self, name, data):
        """Serve a file beside the bundles."""
        self.web.files[f"/{self.name}/{name}"] = data

    def refresh(self):
        return self.daemon.post("/api/market/refresh", {"source": self.name})

    def refreshed(self, *entries, **fields):
        """Publish and take in an index."""
        made = self.publish(*entries, **fields)
        assert self.refresh().status == 200, self.refresh()
        return made

    def install(self, bundle, **fields):
        return self.daemon.post("/api/market/install", {"id": bundle.id, "source": self.name, **fields})

    def code(self, answer):
        return json.loads(answer.body)["code"] if answer.status != 200 else "ok"

    def row(self):
        rows = json.loads(self.daemon.get("/api/market").body)["sources"]
        return next(one for one in rows if one["name"] == self.name)

    def placed(self, bundle):
        """What lies in the market's directory under the bundle's id: its version, None for nothing."""
        manifest = self.state / "bundles" / bundle.id / "manifest.json"
        return json.loads(manifest.read_bytes())["version"] if manifest.exists() else None

    def leftovers(self):
        """Files that nobody should find after a failure."""
        hidden = [one.name for one in (self.state / "bundles").iterdir() if one.name.startswith(".")]
        market = self.state / "market" / self.name
        there = [one.name for one in market.iterdir()] if market.exists() else []
        return hidden + [name for name in there if name not in {"plugins.json", "repository"}]

    def events(self, action):
        return self.daemon.events(action=action, newest="1", limit="20")


@dataclass
class TufSite(Site):
    """One whose files are targets of a TUF repository, which is signed anew whenever one is put."""

    repository: Repository = None
    served: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.repository = self.repository or Repository(prefix=f"{self.name}/")
        self.pin()

    @property
    def base(self):
        return f"{self.web.base}{self.name}/targets/"

    @property
    def root_file(self):
        return self.daemon.place.home / f"{self.name}.root.json"

    def pin(self, root=None):
        """Have the operator trust this root."""
        self.daemon.place.write(self.root_file, root or self.repository.root)

    def path(self, bundle, file="artifact", version=None):
        return self.served[f"{bundle.id}/{version or bundle.raw['version']}/{file}"]

    def put(self, name, data):
        self.served[name] = "/" + self.repository.put(name, data)
        # Manifests and artifacts come with the index that names them.
        if "/" not in name:
            self.repository.publish()
            self.sync()

    def sync(self):
        """Serve what the repository has now."""
        self.web.files.update({f"/{path}": data for path, data in self.repository.files.items()})


def settings(web, names, *, tuf=(), home=None):
    """Sources of both formats; the roots of `tuf` are in `home`."""
    # Of a repository it is the time of all metadata together.
    fetch_s = 2 * FETCH_S if tuf else FETCH_S
    lines = [f"[market]\nfetch_s = {fetch_s}\nindex_bytes = 300000\n[limits]\nartifact_bytes = 300000"]
    lines += [
        f'[market.sources.{name}]\nurl = "{web.base}{name}/plugins.json"\nkeys = ["{SOURCE.public}"]\n'
        f'origins = ["{web.origin}"]'
        for name in names
    ]
    lines += [
        f'[market.sources.{name}]\nformat = "tuf"\nurl = "{web.base}{name}"\nroot = "{home}/{name}.root.json"\n'
        f'origins = ["{web.origin}"]'
        for name in tuf
    ]
    return "\n".join(lines)


@contextlib.contextmanager
def trading(web, names, *, tuf=()):
    """A place whose daemon knows these sources, and trusts acme and the tests' authority."""
    with daemons.placed() as place:
        place.trust_us(ACME)
        place.write(place.home / "authority.pem", web.authority.read_bytes())
        place.env["SSL_CERT_FILE"] = str(place.home / "authority.pem")
        place.set(settings(web, names, tuf=tuf, home=place.home))
        yield place
