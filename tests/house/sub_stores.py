"""latticed.sub-store on a real daemon, with a Node backend that has Sub-Store's routes, and its clients.

with sub_stores.running() as store:
    store.log_in()
    assert store.ask("GET", "/backend/api/utils/env").status == 200
"""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest

from tests.house import daemons, raw_http
from tests.house.daemons import Daemon

ID = "latticed.sub-store"
NODE = "/usr/bin/node"
BACKEND = Path(__file__).with_name("sub_store.js")
PASSWORD = "correct horse battery"
TOKEN = "a-token-for-subscriptions"
VARIABLES = (
    "SUB_STORE_BACKEND_API_HOST SUB_STORE_BACKEND_API_PORT SUB_STORE_BACKEND_PREFIX SUB_STORE_CORS_ALLOWED_ORIGINS"
    " SUB_STORE_DATA_BASE_PATH SUB_STORE_FRONTEND_BACKEND_PATH"
).split()
PATIENCE_S = 30.0


@dataclass
class Store:
    """A running plugin, seen by its operator (`ctl`, `invoke`) and by visitors (`ask`)."""

    daemon: Daemon
    folder: Path
    cookie: str = ""

    # Operator.

    def ctl(self, *words: str, stdin: str = "") -> str:
        done = self.daemon.ctl(*words, stdin=stdin)
        assert done.returncode == 0, done
        return done.stdout

    def configure(self, version: str, **more: Any) -> None:
        """Have a version of the backend configured; see `bundle`."""
        wanted = {"bundle": str(self.bundle(version)), "login": "${secret:SUB_STORE_LOGIN}", **more}
        self.ctl("config", "set", ID, "-f", "-", stdin=json.dumps({"token": "${secret:SUB_STORE_TOKEN}", **wanted}))

    def bundle(self, version: str) -> Path:
        """The backend's file, saying that it is of `version`."""
        path = self.folder / version / "sub-store.bundle.js"
        path.parent.mkdir(exist_ok=True)
        path.write_text(BACKEND.read_text().replace("2.14.0", version))
        path.chmod(0o644)
        return path

    def invoke(self, action: str, payload: Any = None) -> Any:
        """The result of an action, which must succeed."""
        answer = self.daemon.post(f"/api/plugins/by-id/{ID}/invoke", {"action": action, "payload": payload})
        assert answer.status == 200, answer
        assert answer.json()["ok"] is True, answer
        return answer.json()["result"]

    def until_healthy(self, version: str = "") -> None:
        """Wait until the plugin says that the backend (of `version`) answers."""

        def health() -> bool:
            runtime = (self.daemon.plugin(ID) or {"runtime": {}})["runtime"]
            return runtime.get("health") == "healthy" and version in runtime.get("message", "")

        try:
            self.daemon.until(health, f"Sub-Store {version} to be healthy")
        except pytest.fail.Exception as missed:
            pytest.fail(f"{missed.msg}: {self.daemon.plugin(ID)}\n{self.daemon.ctl('service', 'list').stdout}")

    # Visitors.

    @property
    def url(self) -> str:
        """Where it is served, once it is."""

        def served() -> str:
            rows = self.daemon.get("/api/routes").json()["routes"]
            return next((row["url"] for row in rows if row["plugin"] == ID and row["url"]), "")

        return str(self.daemon.until(served, "its route"))

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> raw_http.Answer:
        """One request below the route, with the cookie if there is one; a TimeoutError is a hang."""
        where = urlsplit(self.url)
        data = json.dumps(body).encode() if body is not None else None
        given = {"Host": where.netloc, **({"Cookie": self.cookie} if self.cookie else {}), **headers}
        if method not in {"GET", "HEAD"}:
            given = {"Origin": f"http://{where.netloc}", "Content-Type": "application/json", **given}
        with contextlib.closing(
            http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE_S)
        ) as client:
            client.request(method, where.path.rstrip("/") + path, body=data, headers=given)
            answer = client.getresponse()
            return raw_http.Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """The data of an answer of the API, which must be a success."""
        answer = self.ask(method, f"/backend/api{path}", body)
        assert answer.status == 200, answer
        return answer.json().get("data")

    def until_serving(self) -> None:
        """Wait until the backend answers: it may have been started again."""
        self.daemon.until(lambda: self.ask("GET", "/backend/api/subs").status == 200, "the backend to answer")

    def run(self, script: str) -> Any:
        """What a script gives that runs inside the backend, as script operators do: JSON."""
        step = {"type": "Script Operator", "args": {"content": script}}
        return json.loads(self.api("POST", "/preview/sub", {"source": "local", "content": "x", "process": [step]}))

    def log_in(self) -> None:
        where = urlsplit(self.url)
        form = urlencode({"password": PASSWORD, "to": where.path})
        with contextlib.closing(
            http.client.HTTPConnection(where.hostname or "", where.port, timeout=PATIENCE_S)
        ) as client:
            kind = "application/x-www-form-urlencoded"
            headers = {"Host": where.netloc, "Origin": f"http://{where.netloc}", "Content-Type": kind}
            client.request("POST", "/.latticed/login", body=form, headers=headers)
            answer = client.getresponse()
            assert answer.status == 303, answer.read()
            self.cookie = answer.getheader("Set-Cookie", "").partition(";")[0]

    # What runs.

    @property
    def backend(self) -> dict[str, Any]:
        """The program as the operator sees it."""
        rows = self.daemon.get("/api/services").json()["services"]
        return dict(next(row for row in rows if row["plugin"] == ID))

    def data(self) -> Path:
        """The directory that the backend keeps."""
        (found,) = self.daemon.place.state.glob(f"services/*/{ID}/backend/data")
        return found


@contextlib.contextmanager
def placed(settings: str = "", *, program: str = NODE) -> Iterator[tuple[daemons.Place, Path]]:
    """A place with a daemon's settings for it, and the folder with versions of the backend."""
    if not Path(NODE).exists():
        pytest.skip("node is not installed here")
    with daemons.placed() as place:
        place.builtins = ()
        folder = place.home / "sub-store"
        folder.mkdir()
        place.own(folder)
        place.set(
            '[http]\nservice_listen = "127.0.0.1:0"\n'
            f'[service]\nprograms = {{ sub-store = "{program}" }}\nreads = {{ sub-store = "{folder}" }}\n'
            f"[watch]\nquiet_s = 0.01\n[supervision]\nbackoff_base_s = 0.2\n{settings}"
        )
        place.trust_us()
        yield place, folder


def prepare(store: Store, *, grants: tuple[str, ...] = (), **config: Any) -> None:
    """What an operator does for the first time; `grants`: more of `caps grant`."""
    store.ctl("secret", "set", "--password", "SUB_STORE_LOGIN", stdin=f"{PASSWORD}\n")
    store.ctl("secret", "set", "SUB_STORE_TOKEN", stdin=f"{TOKEN}\n")
    for name in ("SUB_STORE_LOGIN", "SUB_STORE_TOKEN"):
        store.ctl("secret", "bind", name, ID)
    store.ctl("install", ID, "--accept", "task:run", "--accept", "http:egress")
    store.ctl("caps", "grant", ID, *(f"env={name}" for name in VARIABLES), *grants)
    store.configure("2.14.0", **config)
    store.ctl("activate", ID)
    store.until_healthy("2.14.0")


@contextlib.contextmanager
def running(settings: str = "", *, grants: tuple[str, ...] = (), **config: Any) -> Iterator[Store]:
    """A daemon on which the plugin has been set up."""
    with placed(settings) as (place, folder), place.running() as daemon:
        store = Store(daemon=daemon, folder=folder)
        prepare(store, grants=grants, **config)
        yield store
