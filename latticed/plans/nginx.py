"""Plans of kind `nginx`: web sites, by an nginx of latticed's own that nothing else configures.

    /var/lib/latticed-nginx/conf -> generations/6f0c…/     what nginx reads, replaced as a whole
        rendering, not-served                              as it was applied; names of sites that answer 503
        certificates                                       SHA-256 of the certificate and key of each site, as read
        nginx.conf, probe.conf, sites/*.conf

What is decided is pure and in `latticed.system.nginx`. nginx goes on running by itself. `nginx -s reload` says nothing
of whether the files were taken: each generation has a server on a socket of its own that says its name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509

from latticed.kit import files
from latticed.model.errors import Problem
from latticed.plans import unix_sockets
from latticed.plans.effects import finding, parsed, ran, signalled
from latticed.plans.kind import Live
from latticed.plans.nginx_copies import Copies
from latticed.plans.programs import failed
from latticed.settings import endpoints
from latticed.system.findings import IntentRefused
from latticed.system.nft_guard import sources
from latticed.system.nginx import applied, decode
from latticed.system.nginx import check as checker
from latticed.system.nginx import narrows as narrower
from latticed.system.nginx import render as renderer
from latticed.system.nginx.facts import NginxPlace, from_plain
from latticed.system.nginx.intent import Own

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from latticed.plans.kind import Intent, ProgramEnd, Tools
    from latticed.plans.protocol import Finding
    from latticed.settings.programs import NginxSettings
    from latticed.settings.shapes import HttpSettings
    from latticed.system.nft_guard.facts import Listener

PACKAGES: Final = MappingProxyType({"nginx": "nginx-light", "ip": "iproute2", "ss": "iproute2"})
RELOAD_S: Final = 8.0
"""How long new workers may take to answer, and killed ones to be gone."""
STOP_S: Final = 5.0
"""How long nginx may take to end before it is killed; it waits for no request (nginx(8), TERM)."""
TRIES: Final = 20
"""Sites that nginx may find fault with one by one, besides those whose certificates are missing or do not fit."""
SETTLE_S: Final = 2.0
"""How long the right answer is asked for before another one, or none, is believed."""
QUIET_NS: Final = 2_000_000_000
"""How long a renewed certificate and its key have to be as they are: two files are not replaced at once."""
_POLL_S: Final = 0.02
_CERTIFICATE_BYTES: Final = 1 << 20
_MAX_BYTES: Final = 8 << 20
_RENDERING: Final = "rendering"
_NOT_SERVED: Final = "not-served"
_CERTIFICATES: Final = "certificates"
_MAX_ANSWER: Final = 64


def place(wanted: NginxSettings, http: HttpSettings) -> NginxPlace:
    """Where it is, and where latticed's own listeners are; a port of 0 is none."""
    given = {Own.HTTP: endpoints.loopback(http.listen), Own.SERVICES: endpoints.loopback(http.service_listen)}
    return NginxPlace(
        directory=wanted.directory,
        user=wanted.user,
        certificates=wanted.certificates,
        files=wanted.files,
        static=wanted.static_dir,
        own=MappingProxyType({own: there for own, there in given.items() if there and there[1]}),
    )


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is on disk and runs. `rendering`: empty for nothing. `pid`: of nginx, 0 for none. `answers`: it serves this
    very generation. `intact`: the files are as we wrote them.
    """

    rendering: bytes = b""
    not_served: tuple[str, ...] = ()
    intact: bool = True
    pid: int = 0
    answers: bool = False


@dataclass(frozen=True, slots=True)
class NginxKind:
    """An nginx whose configuration is all ours; files, sockets and processes of another one are never touched."""

    place: NginxPlace

    @property
    def name(self) -> str:
        return "nginx"

    @property
    def target(self) -> str:
        return f"nginx of latticed, {self.place.directory}"

    @property
    def programs(self) -> Mapping[str, str]:
        return {"nginx": "/usr/sbin/nginx", "ip": "/usr/bin/ip", "ss": "/usr/bin/ss"}

    # Pure

    def secrets(self, intent: Intent) -> Mapping[str, str]:
        """None: certificates and keys are files that stay where they are."""
        del intent
        return {}

    def check(self, intent: Intent, live: Live | None, source: str) -> tuple[Finding, ...]:
        """As `nginx.check` has them."""
        del source
        try:
            read = decode.read(intent)
        except IntentRefused as refused:
            return tuple(finding(one) for one in refused.findings)
        facts = None if live is None else from_plain(live.facts)
        return tuple(finding(one) for one in checker.check(read, self.place, facts))

    def render(self, intent: Intent, live: Live | None, secrets: Mapping[str, str]) -> bytes:
        del live, secrets
        return renderer.render(decode.read(intent), self.place)

    def narrows(self, approved: Intent, new: Intent, *, now_s: int) -> bool:
        """See `nginx.narrows`."""
        del now_s
        return narrower.narrows(decode.read(approved), decode.read(new))

    def holds(self, rendering: bytes, live: Live) -> bool:
        """Whether nginx serves this rendering, with certificates as they are on disk.

        A site that answers 503 for want of one is no drift; one that has come, or was renewed, is.
        """
        return live.basis == _basis_of(rendering) and not any(one["due"] for one in live.facts["sites"])

    # On the host

    def observe(self, tools: Tools) -> Live:
        """Sites with whether they are served, whether nginx runs, and what others listen at.

        Facts: `addresses` and `listeners` as `nginx.facts.from_plain` takes them, `nginx`: `{running, intact}`,
        `sites`: `[{name, domains, served, due, unusable, expires_at}]`. `due`: a certificate or key has come or been
        renewed since; applying the same plan again takes it up. `unusable`: one is there that cannot be. The end is
        that of the file, in seconds since 1970, None without one.
        """
        found = self._seen()
        listeners = [
            {"address": str(address), "port": one.port, "whose": _whose(one.process, is_ours=is_ours)}
            for one, is_ours in self._listening(tools)[: sources.MAX_LISTENERS]
            for address in ((one.address,) if one.address is not None else ("0.0.0.0", "::"))  # noqa: S104 - as seen
        ]
        interfaces = parsed(sources.interfaces, ran(tools, PACKAGES, "ip", "-j", "address", "show").stdout, ())
        sites = applied.sites(applied.read(found.rendering)) if found.rendering else ()
        read = self._certificates()
        return Live(
            facts={
                "addresses": sorted({str(address) for one in interfaces for address in one.addresses}),
                "listeners": listeners,
                "nginx": {"running": found.pid != 0, "intact": found.intact},
                "sites": [self._site(one, found, read) for one in sites],
            },
            basis=_basis(found),
            text=found.rendering.decode("ascii"),
        )

    def validate(self, rendering: bytes, tools: Tools) -> None:
        """`nginx -t`, of files beside those that are read; and that published files are as they were planned."""
        if not _sites(rendering):
            return
        for listed in applied.listings(applied.read(rendering)):
            self._copies.look(listed)
        candidate = self._written(rendering, "candidate")
        try:
            self._served(candidate, rendering, tools)
        finally:
            shutil.rmtree(candidate, ignore_errors=True)

    def snapshot(self, tools: Tools) -> bytes:
        """The rendering that is served; empty when there is none. Problem apply_failed for files that were edited."""
        del tools
        found = self._seen()
        if not found.intact:
            raise Problem(
                "apply_failed",
                f"the files below {self._current} were edited by hand and could not be put back as they are",
                f"rm {self._current}, then apply again",
            )
        return found.rendering

    def commit(self, rendering: bytes, tools: Tools, *, may_wait: bool = False, live: Live | None = None) -> None:
        """Files of a new generation, then nginx is started, or reads them anew; without sites it is stopped.

        A site without its certificate or published files, or that nginx does not take, answers 503; the others are
        served.
        """
        del may_wait, live
        if not _sites(rendering):
            self._stop()
            return
        generation = os.urandom(8).hex()
        written = self._written(rendering, generation)
        before = self._generation()
        needed = self._copied(rendering) | self._copied_before()
        self._served(written, rendering, tools)
        _sync(written)
        self._serve(generation, tools)
        # Those of before are what an undoing goes back to.
        for other in self._generations.iterdir():
            if other.name not in {generation, before}:
                shutil.rmtree(other, ignore_errors=True)
        self._copies.keep(needed)

    def _serve(self, generation: str, tools: Tools) -> None:
        """Have nginx read the files of a generation, and wait until workers answer that have, and no others."""
        self._switch(generation)
        pid = self._pid()
        before = self._workers(pid) if pid else []
        if pid:
            signalled(pid, signal.SIGHUP, lambda: self._pid() == pid)
        else:
            # A killed nginx leaves its socket, and the next one would not start.
            self._end_orphans()
            self._socket.unlink(missing_ok=True)
            ran(tools, PACKAGES, "nginx", "-e", os.devnull, "-c", str(self._main), stays=True)
        if not _within(lambda: self._answer() == generation and not self._accepts(before)):
            why = "does not take the files: another program may have an address or port of it"
            raise Problem("apply_failed", f"nginx {why}", "journalctl -t latticed_nginx")

    def self_check(self, rendering: bytes, tools: Tools) -> None:
        """That workers which have read these files answer, and that each address and port of them is listened at."""
        found = self._seen()
        if _basis(found) != _basis_of(rendering):
            raise Problem("apply_failed", "nginx does not serve what was applied")
        if not found.rendering:
            return
        bound = {one.port for one, is_ours in self._listening(tools) if is_ours}
        if missing := applied.ports(applied.read(rendering)) - bound:
            raise Problem("apply_failed", f"nginx does not listen at port {min(missing)}")

    def restore(self, snapshot: bytes, tools: Tools) -> None:
        """Serve what was served before, or nothing; without writing files, which a full disk would not let us."""
        if not snapshot:
            self._stop()
        elif _basis(self._seen()) != _basis_of(snapshot):
            kept = self._kept(snapshot)
            if kept and _tried(self._generations / kept / renderer.MAIN, tools).status == 0:
                self._serve(kept, tools)
            else:
                self.commit(snapshot, tools)

    # Files

    @property
    def _current(self) -> Path:
        return Path(self.place.directory, "conf")

    @property
    def _main(self) -> Path:
        return self._current / renderer.MAIN

    @property
    def _generations(self) -> Path:
        return Path(self.place.directory, "generations")

    @property
    def _socket(self) -> Path:
        return Path(self.place.directory, "probe.sock")

    @property
    def _copies(self) -> Copies:
        return Copies(Path(self.place.published), Path(self.place.static))

    def _copied(self, rendering: bytes) -> set[str]:
        """Copy what the sites of a rendering publish; its names. What cannot be had is its sites' 503. OSError."""
        listings = applied.listings(applied.read(rendering))
        for listed in listings:
            with contextlib.suppress(Problem):  # `validate` has said so, unless it has just changed, or is gone
                self._copies.put(listed)
        return {one.digest for one in listings}

    def _copied_before(self) -> set[str]:
        """The names of what the present sites publish."""
        before = self._seen().rendering
        return {one.digest for one in applied.listings(applied.read(before))} if before else set()

    def _site(self, site: applied.ServedSite, found: _Seen, read: Mapping[str, str] | None) -> dict[str, Any]:
        """A site as `observe` tells of it. `read`: as `_certificates`."""
        digest = _digest(site.pair)
        return {
            "name": site.name,
            "domains": list(site.domains),
            "served": site.name not in found.not_served,
            "due": bool(digest) and self._is_other(site, digest, read),
            "unusable": bool(site.pair) and not digest,
            "expires_at": _ends_at(site.pair[0]) if site.pair else None,
        }

    def _is_other(self, site: applied.ServedSite, digest: str, read: Mapping[str, str] | None) -> bool:
        """Whether the certificate or key of a site is another than nginx has read, and none has changed just now."""
        try:
            # A link that leads elsewhere is a renewal too, and a file that is put back has an old mtime.
            changed_ns = max(max(Path(one).lstat().st_ctime_ns, Path(one).stat().st_ctime_ns) for one in site.pair)
            if read is None:
                other = changed_ns > (self._current / _RENDERING).stat().st_ctime_ns
            else:
                # By what is in them: files of a mount that comes later are old, and a clock may have been ahead.
                other = digest != read.get(site.name)
        except OSError:
            return False
        # One of the future is that of a clock which was set back.
        return other and not 0 <= time.time_ns() - changed_ns < QUIET_NS

    def _certificates(self) -> Mapping[str, str] | None:
        """The digests of what nginx has read, by site; None where a version wrote the files that kept none."""
        try:
            read: Mapping[str, str] = json.loads(files.read_at_most(self._current / _CERTIFICATES, _MAX_BYTES))
        except (OSError, ValueError):
            return None
        return read

    def _written(self, rendering: bytes, generation: str) -> Path:
        """The files of a rendering in a new directory, in which no site is left out yet."""
        # Workers, which are not root, go through it to what they keep there, and to published files.
        self._generations.parent.mkdir(parents=True, exist_ok=True)
        self._generations.parent.chmod(0o755)
        self._generations.mkdir(mode=0o700, exist_ok=True)
        made = self._generations / generation
        shutil.rmtree(made, ignore_errors=True)
        (made / renderer.SITES).mkdir(mode=0o700, parents=True)
        probe = applied.probe(str(self._socket), generation)
        _write(made / _RENDERING, rendering)
        _write(made / renderer.PROBE, probe.encode("ascii"))
        return made

    def _served(self, directory: Path, rendering: bytes, tools: Tools) -> None:
        """Put the sites into place that can be served, and for the others that they cannot. Problem tool_failed."""
        wanted = applied.read(rendering)
        sites = applied.sites(wanted)
        # Before nginx reads them: what changes until then is another one, and is taken up later.
        digests = {one.name: _digest(one.pair) for one in sites if one.pair}
        _write(directory / _CERTIFICATES, json.dumps(digests).encode("ascii"))
        bad = {name for name, digest in digests.items() if not digest}
        bad |= {one.name for one in sites if not all(map(self._copies.has, one.copies))}
        for _ in range(TRIES):
            for name, text in applied.tree(wanted, bad).items():
                _write(directory / name, text.encode("ascii"))
            _write(directory / _NOT_SERVED, json.dumps(sorted(bad)).encode("ascii"))
            ended = _tried(directory / renderer.MAIN, tools)
            if ended.status == 0:
                return
            if not (blamed := applied.blamed(wanted, ended.stderr) - bad):
                raise failed("nginx", ended)
            bad |= blamed
        raise Problem("tool_failed", f"nginx finds fault with more than {TRIES} sites")

    def _switch(self, generation: str) -> None:
        made = self._current.with_name("conf.new")
        made.unlink(missing_ok=True)
        made.symlink_to(Path(self._generations.name, generation))
        made.replace(self._current)
        files.sync_directory(self._current.parent)

    def _generation(self) -> str:
        """The name of the generation that nginx reads; empty when there is none."""
        try:
            return os.readlink(self._current).rpartition("/")[2]
        except FileNotFoundError:
            return ""

    def _kept(self, rendering: bytes) -> str:
        """The name of a generation that is there with this rendering, its files as we wrote them; or empty."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._generations):
                found, _, intact = self._files_of(self._generations / name)
                if intact and found == rendering:
                    return name
        return ""

    def _stop(self) -> None:
        pid = self._pid()
        if pid:
            signalled(pid, signal.SIGTERM, lambda: self._pid() == pid)
            if not _within(lambda: not self._pid(), STOP_S):
                signalled(pid, signal.SIGKILL, lambda: self._pid() == pid)
        # Its workers too, where it was killed.
        self._end_orphans()
        self._current.unlink(missing_ok=True)
        shutil.rmtree(self._generations, ignore_errors=True)

    # What is there

    def _seen(self) -> _Seen:
        pid, generation = self._pid(), self._generation()
        if not generation:
            return _Seen(pid=pid)
        rendering, not_served, intact = self._files_of(self._current)
        # Asked again: on a machine with much to do an answer may take longer than one question waits for.
        answers = pid != 0 and _within(lambda: self._answer() == generation, SETTLE_S)
        return _Seen(rendering, not_served, intact, pid, answers)

    def _files_of(self, directory: Path) -> tuple[bytes, tuple[str, ...], bool]:
        """What was applied, sites that answer 503, and whether the files are as we wrote them; of a generation."""
        try:
            rendering = files.read_at_most(directory / _RENDERING, _MAX_BYTES)
            not_served = json.loads(files.read_at_most(directory / _NOT_SERVED, _MAX_BYTES))
            probe = applied.probe(str(self._socket), directory.resolve().name)
            tree = {**applied.tree(applied.read(rendering), not_served), renderer.PROBE: probe}
            intact = all(
                files.read_at_most(directory / name, _MAX_BYTES) == text.encode("ascii") for name, text in tree.items()
            )
            there = {f"{renderer.SITES}/{name}" for name in os.listdir(directory / renderer.SITES)}
            intact = intact and there | {renderer.MAIN, renderer.PROBE} == tree.keys()
        except (OSError, ValueError, TypeError):
            return b"", (), False
        return rendering, tuple(not_served), intact

    def _pid(self) -> int:
        """Our nginx's process, 0 when it does not run: one that has our socket, whatever the file with its pid says."""
        try:
            pid = int(files.read_at_most(Path(self.place.directory, "nginx.pid"), 32))
        except (OSError, ValueError):
            return 0
        return pid if self._is_ours(pid, self._sockets()) else 0

    def _sockets(self) -> set[str]:
        """Our socket and those of its name that were unlinked, as links of descriptors show them (proc(5))."""
        return {f"socket:[{inode}]" for inode in unix_sockets.listening(str(self._socket))}

    def _workers(self, pid: int) -> list[int]:
        """The workers of a master process (proc(5), children)."""
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
        return []

    def _accepts(self, workers: Sequence[int]) -> bool:
        """Whether one of them still takes connections.

        A worker that ends closes what it listens at, in the order of its files: our socket comes last. After a reload
        old and new ones take connections side by side until the old ones have got so far.
        """
        sockets = self._sockets()
        return any(self._is_ours(one, sockets) for one in workers)

    def _is_ours(self, pid: int, sockets: set[str]) -> bool:
        with contextlib.suppress(OSError):  # it has ended, or a descriptor was closed
            return any(os.readlink(one) in sockets for one in Path("/proc", str(pid), "fd").iterdir())
        return False

    def _listening(self, tools: Tools) -> list[tuple[Listener, bool]]:
        """All that listens, and whether that is our nginx: also workers whose master was killed, and no other nginx."""
        sockets = self._sockets()
        found: dict[Listener, bool] = {}
        for one, pids in parsed(sources.owned, ran(tools, PACKAGES, "ss", "-Htlnp").stdout):
            is_ours = one.process == "nginx" and any(self._is_ours(pid, sockets) for pid in pids)
            found[one] = is_ours and found.get(one, True)
        return list(found.items())

    def _end_orphans(self) -> None:
        """End workers whose master was killed: they would keep addresses and ports for themselves, for ever."""
        sockets = self._sockets()
        for pid in [int(one) for one in os.listdir("/proc") if one.isdecimal()] if sockets else ():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text("utf-8", "replace") == "nginx\n":
                    signalled(pid, signal.SIGKILL, functools.partial(self._is_ours, pid, sockets))
        if not _within(lambda: not self._sockets()):
            raise Problem("apply_failed", f"another process has {self._socket} open")

    def _answer(self) -> str:
        """The generation that answers at the socket; empty when none does."""
        connection = _UnixConnection(str(self._socket))
        try:
            connection.request("GET", "/")
            return connection.getresponse().read(_MAX_ANSWER).decode("ascii", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP to a socket file."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=1.0)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _sites(rendering: bytes) -> bool:
    return bool(applied.sites(applied.read(rendering)))


def _basis_of(rendering: bytes) -> bytes:
    """What `_basis` is where this rendering is served."""
    return _basis(_Seen(rendering, (), True, 1, True) if _sites(rendering) else _Seen())


def _basis(found: _Seen) -> bytes:
    digest = hashlib.sha256(found.rendering).hexdigest() if found.rendering else ""
    running = "answers" if found.answers else "runs" if found.pid else "none"
    return json.dumps([digest, found.intact, running]).encode("ascii")


def _digest(pair: Sequence[str]) -> str:
    """The SHA-256 of a certificate and its key; empty unless TLS can be spoken with them: they can be read, and belong
    together.
    """
    if not pair:
        return ""
    try:
        # A pipe or a huge file would keep us: who renews certificates need not be root.
        found = b"".join(files.read_at_most(Path(one), _CERTIFICATE_BYTES) for one in pair)
        certificate, key = pair
        # An empty password: without one OpenSSL would ask for it at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(found).hexdigest()


def _ends_at(certificate: str) -> int | None:
    """When a certificate ends, in seconds since 1970; None when there is none that can be read."""
    try:
        data = files.read_at_most(Path(certificate), _CERTIFICATE_BYTES)
        return int(x509.load_pem_x509_certificate(data).not_valid_after_utc.timestamp())
    except (OSError, ValueError):
        return None


def _whose(process: str, *, is_ours: bool) -> str:
    if is_ours:
        return "nginx"
    return "latticed" if process.startswith("latticed") else ""


def _tried(main: Path, tools: Tools) -> ProgramEnd:
    return ran(tools, PACKAGES, "nginx", "-t", "-e", os.devnull, "-c", str(main), ends=(0, 1))


def _within(true: Callable[[], bool], within_s: float = RELOAD_S) -> bool:
    until = time.monotonic() + within_s
    while not true():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_S)
    return True


def _write(path: Path, data: bytes) -> None:
    """A new file, or an own one anew: nobody reads the directory yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with files.closing(fd):
        files.write_all(fd, data)


def _sync(directory: Path) -> None:
    """Make the files below a directory survive a power cut."""
    for parent, _, names in os.walk(directory):
        for name in names:
            with files.closing(os.open(Path(parent, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
                os.fsync(fd)
        files.sync_directory(Path(parent))
