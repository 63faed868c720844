"""latticectl's own main(), called like from a shell, with a simulated daemon on a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from latticed.ctl import main
from tests.house import api_server


@dataclass(frozen=True)
class Ran:
    """The result of one run: exit code, stdout as bytes and text, stderr."""

    code: int
    data: bytes
    err: str

    @property
    def out(self) -> str:
        return self.data.decode()

    @property
    def json(self) -> Any:
        assert self.data.isascii(), "JSON output must be ASCII"
        return json.loads(self.data)


Ctl = Callable[..., Ran]


@pytest.fixture
def ctl(monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]) -> Ctl:
    """Run latticectl with the given arguments; keywords are environment variables."""
    for name in ("LATTICECTL_FORMAT", "LATTICED_SOCKET", "LATTICED_TRUST", "NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str, **environ: str) -> Ran:
        capsysbinary.readouterr()
        with monkeypatch.context() as patches:
            for name, value in environ.items():
                patches.setenv(name, value)
            code = main.main(list(words))
        out, err = capsysbinary.readouterr()
        return Ran(code=int(code), data=out, err=err.decode())

    return run


@pytest.fixture
def api(
    ctl: Ctl, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[api_server.Api]:
    """A simulated daemon that LATTICED_SOCKET leads to."""
    socket = tmp_path_factory.mktemp("s") / "c.sock"
    monkeypatch.setenv("LATTICED_SOCKET", str(socket))
    with api_server.serving(socket) as served:
        yield served
