"""The kind nginx with real nginx on loopback: what it observes, commits, proves and puts back."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from latticed.model.errors import Problem
from latticed.plans import nginx
from latticed.plans.programs import ProgramTools
from latticed.system.proxy import sources as proxy_sources
from tests.house import nginx_places, nginxes, processes, strangers

pytestmark = pytest.mark.root


@pytest.fixture
def web(tmp_path) -> Iterator[nginx_places.Web]:
    with nginx_places.web(tmp_path) as made:
        yield made


def shop(status=410, **changes):
    return nginxes.site(answer=status, **changes)


def test_nothing_is_observed_where_nothing_is(web):
    live = web.live()
    assert live.text == ""
    assert live.facts["sites"] == []
    assert "127.0.0.1" in live.facts["addresses"]
    assert web.kind.snapshot(web.tools) == b""
    assert web.kind.holds(web.kind.render(nginxes.document(), None, {}), live)


def test_sites_are_served_changed_without_another_master_and_gone(web):
    rendering = web.committed(web.intent(shop()))
    assert web.get("shop.example.org") == 410
    assert web.live().text.encode() == rendering
    master = web.pid()
    web.committed(web.intent(shop(404), nginxes.site("wiki", answer=403)))
    assert (web.get("shop.example.org"), web.get("wiki.example.org")) == (404, 403)
    assert web.pid() == master
    web.committed(web.intent(shop(410)))
    # What is served, and what an undoing goes back to.
    assert len(list((web.directory / "generations").iterdir())) == 2
    web.committed(web.intent())
    with pytest.raises(OSError):
        web.get("shop.example.org")


def test_a_change_is_done_when_no_worker_of_before_takes_connections(web):
    """After a reload old and new workers take them side by side: this old one is late."""
    web.committed(web.intent(nginxes.site(answer=404)))
    changed = web.kind.render(web.intent(nginxes.site(answer=410)), None, {})
    worker = int(Path(f"/proc/{web.pid()}/task/{web.pid()}/children").read_text().split()[0])
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        os.kill(worker, signal.SIGSTOP)
        try:
            commit = threads.submit(web.kind.commit, changed, web.tools)
            processes.until(lambda: web.get("shop.example.org") == 410, what="the new worker")
            # Asked at the probe as well, and answered by the new worker: that alone would end it within this time.
            assert concurrent.futures.wait([commit], timeout=0.5).not_done
        finally:
            os.kill(worker, signal.SIGCONT)
        commit.result()
    assert web.get("shop.example.org") == 410


def test_a_snapshot_is_put_back_twice_and_after_none(web):
    web.kind.restore(b"", web.tools)
    web.committed(web.intent(shop()))
    before = web.kind.snapshot(web.tools)
    web.committed(web.intent(shop(404)))
    for _ in range(2):
        web.kind.restore(before, web.tools)
        assert web.get("shop.example.org") == 410
        assert web.kind.holds(before, web.live())


def test_a_port_that_is_taken_is_refused_before_and_undone_where_it_was_not_seen(web):
    web.committed(web.intent(shop()))
    before = web.kind.snapshot(web.tools)
    with nginxes.backend("other") as other:
        intent = web.intent(shop(404), listen={"addresses": ["127.0.0.1"], "http": other.port, "https": web.ports[1]})
        assert [one.code for one in web.kind.check(intent, web.live(), "")] == ["port_taken"]
        rendering = web.kind.render(intent, None, {})
        web.kind.validate(rendering, web.tools)  # nginx's own test finds nothing
        with pytest.raises(Problem) as caught:
            web.kind.commit(rendering, web.tools)
        assert caught.value.code == "apply_failed"
        assert web.get("shop.example.org") == 410  # the master goes on with what it had
        web.kind.restore(before, web.tools)
    assert web.get("shop.example.org") == 410
    assert web.kind.holds(before, web.live())


def test_a_taken_port_keeps_nginx_from_starting_and_nothing_is_left(web):
    with nginxes.backend("other") as other:
        intent = web.intent(shop(), listen={"addresses": ["127.0.0.1"], "http": other.port, "https": web.ports[1]})
        with pytest.raises(Problem) as caught:
            web.kind.commit(web.kind.render(intent, None, {}), web.tools)
        assert caught.value.code == "tool_failed"
        assert "Address already in use" in caught.value.reason
        web.kind.restore(b"", web.tools)
    assert web.live().text == ""


def test_a_site_without_its_certificate_answers_503_and_is_named_and_no_other_is_touched(web):
    lost = shop(tls=nginxes.tls(live=str(web.directory / "live")))
    web.committed(web.intent(lost, nginxes.site("wiki", answer=410)))
    assert (web.get("shop.example.org"), web.get("wiki.example.org")) == (503, 410)
    assert {one["name"]: one["served"] for one in web.live().facts["sites"]} == {"shop": False, "wiki": True}


def test_a_certificate_that_nginx_does_not_take_is_its_site_s_503(web):
    live = web.directory / "live" / "shop"
    live.mkdir(parents=True)
    for name in ("fullchain.pem", "privkey.pem"):
        (live / name).write_text("nothing")
    web.committed(web.intent(shop(tls=nginxes.tls(live=str(live.parent))), nginxes.site("wiki", answer=410)))
    assert (web.get("shop.example.org"), web.get("wiki.example.org")) == (503, 410)


def test_more_certificates_that_cannot_be_used_than_are_tried_take_down_no_other_site(web):
    live = web.directory / "live"
    names = [f"s{number}" for number in range(nginx.TRIES + 2)]
    for name in names:
        (live / name).mkdir(parents=True)
        for file in ("fullchain.pem", "privkey.pem"):
            (live / name / file).touch()
    broken = [nginxes.site(name, answer=404, tls=nginxes.tls(name, live=str(live))) for name in names]
    web.committed(web.intent(shop(), *broken))
    assert (web.get("shop.example.org"), web.get("s0.example.org")) == (410, 503)
    assert {one["name"] for one in web.live().facts["sites"] if not one["served"]} == {*names}


@pytest.fixture
def live(web, monkeypatch) -> Path:
    """A directory of certificates, which count at once."""
    monkeypatch.setattr(nginx, "QUIET_NS", 0)
    return web.directory / "live"


def due(web) -> bool:
    (one,) = web.live().facts["sites"]
    return one["due"]


def test_a_certificate_that_is_older_than_what_was_applied_is_taken_up_when_it_comes(web, live):
    """As by a mount that comes later, or a directory that was moved away and back."""
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    live.rename(web.directory / "away")
    rendering = web.committed(web.intent(shop(tls=nginxes.tls(live=str(live), force=False))))
    assert (web.get("shop.example.org"), due(web)) == (503, False)
    (web.directory / "away").rename(live)
    assert due(web)
    assert not web.kind.holds(rendering, web.live())
    web.kind.commit(rendering, web.tools)
    assert (web.get("shop.example.org"), due(web)) == (410, False)


def test_a_renewal_is_taken_up_also_where_the_clock_was_ahead_before(web, live):
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    web.committed(web.intent(shop(tls=nginxes.tls(live=str(live)))))
    assert not due(web)
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    (web.directory / "conf" / "rendering").chmod(0o600)  # it has a later time now than the renewal
    assert due(web)


def test_files_that_are_written_again_as_they_were_are_no_renewal(web, live):
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    web.committed(web.intent(shop(tls=nginxes.tls(live=str(live)))))
    for file in (live / "shop").iterdir():
        file.write_bytes(file.read_bytes())
    assert not due(web)


def test_what_a_version_applied_that_kept_no_digests_is_compared_by_time(web, live):
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    web.committed(web.intent(shop(tls=nginxes.tls(live=str(live)))))
    (web.directory / "conf" / "certificates").unlink()
    assert not due(web)
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    assert due(web)


def test_a_certificate_that_nginx_alone_refuses_is_tried_once(web, live, tmp_path):
    """As where something keeps nginx from reading it."""
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    refusing = tmp_path / "refusing"
    refused = (
        f'echo "nginx: [emerg] cannot load certificate \\"{live}/shop/fullchain.pem\\": BIO_new_file() failed" >&2'
    )
    served = f"grep -qs ssl_certificate {web.directory}/generations/*/sites/shop.conf"
    refusing.write_text(
        f'#!/bin/sh\nif [ "$1" = -t ] && {served}; then {refused}; exit 1; fi\nexec {nginxes.NGINX} "$@"\n'
    )
    refusing.chmod(0o755)
    web.tools = ProgramTools({**web.kind.programs, "nginx": str(refusing)})
    web.committed(web.intent(shop(tls=nginxes.tls(live=str(live)))))
    assert (web.get("shop.example.org"), due(web)) == (503, False)
    nginx_places.issued(live / "shop", "shop.example.org", trustme.CA())
    assert due(web)


@pytest.mark.parametrize("size", [None, 2 << 20])
def test_a_pipe_or_a_huge_file_in_a_certificate_s_place_keeps_nobody(web, size):
    """None: a pipe that nobody writes to. Who renews certificates need not be root."""
    live = web.directory / "live" / "shop"
    live.mkdir(parents=True)
    web.committed(web.intent(shop(tls=nginxes.tls(live=str(live.parent)))))
    for name in ("fullchain.pem", "privkey.pem"):
        if size is None:
            os.mkfifo(live / name)
        else:
            (live / name).write_bytes(bytes(size))
    (one,) = web.live().facts["sites"]
    assert (one["served"], one["due"], one["unusable"], one["expires_at"]) == (False, False, True, None)


@pytest.mark.parametrize("change", ["edited", "added", "removed", "killed", "orphaned"])
def test_what_somebody_else_changes_is_drift(web, change):
    rendering = web.committed(web.intent(shop()))
    conf = web.directory / "conf"
    match change:
        case "edited":
            (conf / "sites" / "shop.conf").write_text("server { listen 127.0.0.1:1; }")
        case "added":
            (conf / "sites" / "more.conf").write_text("")
        case "removed":
            (conf / "nginx.conf").unlink()
        case "killed" | "orphaned":
            killed(web, workers=change == "killed")
    assert not web.kind.holds(rendering, web.live())
    if change not in {"killed", "orphaned"}:
        with pytest.raises(Problem, match="edited by hand"):
            web.kind.snapshot(web.tools)
    # What is left of ours is nobody else's: its ports can be planned with.
    assert web.kind.check(web.intent(shop()), web.live(), "") == ()
    web.kind.commit(rendering, web.tools)
    web.kind.self_check(rendering, web.tools)
    assert web.get("shop.example.org") == 410


def killed(web, *, workers=True):
    """kill -9 of the master, and of workers: a boot finds their pid file and socket. Workers alone go on for ever."""
    master = web.pid()
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    for pid in (master, *map(int, children if workers else ())):
        os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + nginxes.PATIENCE_S
    while web.live().facts["nginx"]["running"]:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_an_nginx_that_hangs_is_ended_with_its_workers(web, monkeypatch):
    web.committed(web.intent(shop()))
    monkeypatch.setattr(nginx, "STOP_S", 0.2)
    os.kill(web.pid(), signal.SIGSTOP)
    web.committed(web.intent())
    with pytest.raises(OSError):
        web.get("shop.example.org")


def test_a_pid_file_that_names_somebody_else_signals_nobody(web):
    with subprocess.Popen(["/usr/bin/sleep", "60"]) as other:
        (web.directory / "nginx.pid").write_text(str(other.pid))
        assert not web.live().facts["nginx"]["running"]
        web.committed(web.intent(shop()))
        web.kind.restore(b"", web.tools)
        assert other.poll() is None
        other.kill()


def test_another_nginx_s_files_and_processes_are_left_alone(web, tmp_path_factory):
    directory = tmp_path_factory.mktemp("foreign")
    with nginxes.running(directory, nginxes.document(nginxes.site("foreign", answer=403))) as foreign:
        before = {path: path.read_bytes() for path in directory.rglob("*.conf")}
        etc = {path: path.stat().st_mtime_ns for path in Path("/etc/nginx").rglob("*")}
        web.committed(web.intent(shop()))
        theirs = {"addresses": ["127.0.0.1"], "http": foreign.http, "https": web.ports[1]}
        assert [one.code for one in web.kind.check(web.intent(shop(), listen=theirs), web.live(), "")] == ["port_taken"]
        web.committed(web.intent())
        assert foreign.get("foreign.example.org")[0] == 403
        assert {path: path.read_bytes() for path in directory.rglob("*.conf")} == before
        assert {path: path.stat().st_mtime_ns for path in Path("/etc/nginx").rglob("*")} == etc


@pytest.mark.parametrize("hides", [False, True], ids=["rows", "same-path"])
def test_a_socket_whose_name_a_stranger_chose_ends_and_keeps_nobody(web, tmp_path_factory, hides):
    """A row for another nginx's socket, forged by newlines of an abstract name; our path, in mounts of its own."""
    theirs = nginxes.document(nginxes.site("foreign", answer=403))
    with nginxes.running(tmp_path_factory.mktemp("foreign"), theirs) as foreign:
        ours = f"{web.directory}/probe.sock".encode()
        forged = b"\0\n0 0 0 0 0 0 %d %s" % (strangers.listening_inode(foreign.http), ours)
        with strangers.bound(ours if hides else forged, over=web.directory if hides else None):
            rendering = web.committed(web.intent(shop()))
            assert web.get("shop.example.org") == 410
            killed(web, workers=False)
            web.kind.commit(rendering, web.tools)
            web.committed(web.intent())
            assert foreign.get("foreign.example.org")[0] == 403
            assert foreign.child.poll() is None


def test_a_process_s_name_makes_no_listener(web):
    """ss prints it as it is, newlines included."""
    with strangers.named(b"\na a a *:9 a"):
        assert 9 not in {one["port"] for one in web.live().facts["listeners"]}
    for name in (b"\ntcp a a a :9 ", b"\nudp a a a :9 "):
        with strangers.named(name):
            printed = web.tools.run("ss", "-Hlntup").stdout
            assert name in printed
            assert 9 not in {one.port for one in proxy_sources.sockets(printed)}
    with strangers.named(b'a",pid=1,fd=1,"') as pid:
        found = proxy_sources.sockets(web.tools.run("ss", "-Hlntup").stdout)
        assert not any({1, pid} <= one.pids for one in found)


@pytest.mark.parametrize(
    "does", ["exec sleep 60", "kill -9 $$", "exec head -c 10485760 /dev/zero"], ids=["hangs", "dies", "floods"]
)
def test_a_tool_that_misbehaves_leaves_the_sites_as_they_were(web, tmp_path, does):
    rendering = web.committed(web.intent(shop()))
    broken = tmp_path / "broken"
    broken.write_text(f"#!/bin/sh\n{does}\n")
    broken.chmod(0o755)
    tools = ProgramTools({**web.kind.programs, "nginx": str(broken)}, deadline_s=0.5)
    other = web.kind.render(web.intent(shop(404)), None, {})
    for effect in (web.kind.validate, web.kind.commit):
        with contextlib.suppress(Problem):
            effect(other, tools)
            pytest.fail("it is taken for good")
    assert web.get("shop.example.org") == 410
    assert web.kind.holds(rendering, web.live())


def test_hostile_intents_are_findings_and_never_reach_nginx(web):
    for word in ("x;", "x}", "$host", 'x"', "x\ny", "../x", "x#", "x y", "x\\"):
        intent = web.intent(nginxes.site(domains=[word]))
        codes = {one.code for one in web.kind.check(intent, None, "")}
        assert codes == {"bad_domain"}
        assert json.dumps(intent)
