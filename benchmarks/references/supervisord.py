"""supervisord over a unix socket, driven by its own XML-RPC calls."""

from __future__ import annotations

import contextlib
import time
import xmlrpc.client
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import processes

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

_SETTINGS = """\
[supervisord]
nodaemon = true
user = root
directory = /
logfile = {home}/supervisord.log
pidfile = {home}/supervisord.pid
childlogdir = {home}
minfds = {minfds}
[unix_http_server]
file = {home}/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl = unix://{home}/supervisor.sock
[include]
files = {home}/conf.d/*.conf
"""
_PROGRAM = """\
[program:{name}]
command = /bin/sleep 1000
autostart = {autostart}
startsecs = 0
stdout_logfile = NONE
stderr_logfile = NONE
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervisord:
    """One that answers, `start_s` seconds after it was started."""

    process: subprocess.Popen[bytes]
    client: processes.UnixHttp
    start_s: float

    def call(self, method: str, *arguments: Any) -> Any:
        """One XML-RPC call, the answer decoded."""
        return xmlrpc.client.loads(self.call_raw(xmlrpc.client.dumps(arguments, method).encode()))[0][0]

    def call_raw(self, body: bytes) -> bytes:
        return self.client.ask("POST", "/RPC2", body, **{"Content-Type": "text/xml"})


def prepare(home: Path, *, minfds: int = 1_024) -> Path:
    """Write the settings; where they are. `minfds` is what it needs besides its own: five for each program."""
    (home / "conf.d").mkdir(parents=True)
    settings = home / "supervisord.conf"
    settings.write_text(_SETTINGS.format(home=home, minfds=minfds))
    return settings


def program(home: Path, name: str, *, autostart: bool) -> None:
    """One more program in the configuration."""
    text = _PROGRAM.format(name=name, autostart="true" if autostart else "false")
    (home / "conf.d" / f"{name}.conf").write_text(text)


@contextlib.contextmanager
def running(programs: Path, home: Path) -> Iterator[Supervisord]:
    """supervisord over the configuration that `prepare` wrote to `home`."""
    command = [str(programs / "supervisord"), "-n", "-c", str(home / "supervisord.conf")]
    socket = home / "supervisor.sock"
    began_s = time.perf_counter()
    with processes.running(command, home / "log") as process:
        processes.until(lambda: processes.accepts(socket) or process.poll() is not None, "supervisord")
        start_s = time.perf_counter() - began_s
        client = processes.UnixHttp(socket)
        with contextlib.closing(client):
            yield Supervisord(process=process, client=client, start_s=start_s)
