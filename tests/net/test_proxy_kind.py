"""The kind proxy with a real sing-box as a user of its own: what it starts, proves, cuts, and puts back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from latticed.model.errors import Problem
from latticed.plans import proxy, proxy_api
from latticed.plans.programs import ProgramTools
from latticed.plans.proxy import ProxyKind
from latticed.system.proxy import decode, devices, ends, subscriptions, usage
from latticed.system.proxy.subscriptions import Format
from tests.house import cores, faults, ports, proxies

pytestmark = [pytest.mark.root, pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX)]
USER = "daemon"


@pytest.fixture
def kind():
    directory = tempfile.mkdtemp()
    made = ProxyKind(directory=f"{directory}/proxy", user=USER, batch_s=600)
    Path(directory).chmod(0o711)
    yield made
    made.restore(b"", tools_of(made))
    assert not made.observe(tools_of(made)).facts["running"]
    shutil.rmtree(directory)


@pytest.fixture
def tools(kind):
    return tools_of(kind)


def tools_of(kind):
    return ProgramTools({**kind.programs, "sing-box": cores.sing_box()})


def document(*users, **changes):
    inbound = proxies.shadowsocks(listen="127.0.0.1", port=ports.free())
    api = {**proxies.API, "port": ports.free()}
    named = [proxies.user(one) for one in users or ("anna", "ben")]
    return proxies.document(inbound, users=named, host="127.0.0.1", api=api, reach_private=True, **changes)


def rendered(kind, intent):
    return kind.render(intent, None, {name: proxies.value(name, form) for name, form in kind.secrets(intent).items()})


def committed(kind, intent, tools):
    assert kind.check(intent, kind.observe(tools), "") == ()
    rendering = rendered(kind, intent)
    kind.validate(rendering, tools)
    kind.commit(rendering, tools)
    kind.self_check(rendering, tools)
    assert kind.holds(rendering, kind.observe(tools))
    return rendering


def pid_of(kind):
    return int(Path(kind.directory, "core.pid").read_text())


def stream(intent, user, tmp_path, origin):
    read = decode.read(intent)
    document = subscriptions.write(devices.links(read, user, proxies.secrets(read)), Format.SING_BOX)
    return cores.stream(document, f"client-{user}", tmp_path, origin)


@pytest.fixture
def echo():
    with cores.echoing() as port:
        yield port


def test_an_intent_becomes_a_core_of_its_user_with_a_file_for_nobody_else(kind, tools):
    intent = document()
    committed(kind, intent, tools)
    status = Path(f"/proc/{pid_of(kind)}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    account = pwd.getpwnam(USER)
    assert fields["Uid"].split() == [str(account.pw_uid)] * 4
    assert fields["Groups"].split() == []
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 1 << 10  # CAP_NET_BIND_SERVICE
    assert os.getsid(pid_of(kind)) != os.getsid(0)
    started, wanted = Path(kind.directory, "started.json").stat(), Path(kind.directory, "wanted.json").stat()
    assert (started.st_mode & 0o777, started.st_uid) == (0o600, account.pw_uid)
    assert (wanted.st_mode & 0o777, wanted.st_uid) == (0o600, 0)
    live = kind.observe(tools)
    assert (live.facts["running"], live.facts["connections"]) == (True, [])
    shown = f"{live.facts} {live.basis!r} {live.text}"
    command = Path(f"/proc/{pid_of(kind)}/cmdline").read_bytes() + Path(f"/proc/{pid_of(kind)}/environ").read_bytes()
    for name, form in kind.secrets(intent).items():
        value = proxies.value(name, form)
        assert value not in shown
        assert value.encode() not in command
    ports = {one["port"] for one in live.facts["listeners"]}
    assert not ports & {intent["inbounds"][0]["port"], intent["api"]["port"]}


def test_who_is_cut_loses_his_connections_and_nobody_else_does(kind, tools, tmp_path, echo):
    intent = document()
    committed(kind, intent, tools)
    before = pid_of(kind)
    with stream(intent, "anna", tmp_path, echo) as anna, stream(intent, "ben", tmp_path, echo) as ben:
        cores.echoed(anna)
        cores.echoed(ben)
        assert {one["user"] for one in kind.observe(tools).facts["connections"]} == {"anna", "ben"}
        cut = ends.cut(intent, {"anna"})
        assert kind.narrows(intent, cut, now_s=0)
        rendering = committed(kind, cut, tools)
        assert cores.is_cut(anna)
        cores.echoed(ben)
        # What she opens anew is there until the next look, which sees it, and closes it again.
        with stream(intent, "anna", tmp_path, echo) as again:
            cores.echoed(again)
            live = kind.observe(tools)
            assert (kind.holds(rendering, live), live.unfinished) == (True, True)
            kind.commit(rendering, tools)
            assert cores.is_cut(again)
            live = kind.observe(tools)
            assert (kind.holds(rendering, live), live.unfinished) == (True, False)
        cores.echoed(ben)
        assert pid_of(kind) == before
        # Then her line goes from the file, which costs everybody his connections.
        late = ProxyKind(directory=kind.directory, user=USER, batch_s=0)
        assert late.observe(tools).unfinished
        late.commit(rendering, tools)
        late.self_check(rendering, tools)
        assert pid_of(kind) != before
        live = late.observe(tools)
        assert (late.holds(rendering, live), live.unfinished) == (True, False)
        assert cores.is_cut(ben)


def test_more_connections_than_an_answer_has_room_for_are_told_in_part_and_all_of_them_closed(
    kind, tools, tmp_path, echo, monkeypatch
):
    intent = document()
    committed(kind, intent, tools)
    monkeypatch.setattr(usage, "MAX_TOLD", 2)
    with (
        stream(intent, "anna", tmp_path, echo) as first,
        cores.tunnel(first, echo) as second,
        cores.tunnel(first, echo) as third,
        stream(intent, "ben", tmp_path, echo) as ben,
    ):
        for one in (first, second, third, ben):
            cores.echoed(one)
        facts = kind.observe(tools).facts
        assert sorted(one["user"] for one in facts["connections"]) == ["anna", "ben"]
        assert facts["untold"] == {"anna": 2}
        committed(kind, ends.cut(intent, {"anna"}), tools)
        assert all(map(cores.is_cut, (first, second, third)))
        cores.echoed(ben)


def test_more_connections_than_can_be_closed_at_once_are_closed_by_the_next_and_cost_nobody_else(
    kind, tools, tmp_path, echo, monkeypatch
):
    intent = document()
    committed(kind, intent, tools)
    core, cut = pid_of(kind), rendered(kind, ends.cut(intent, {"anna"}))
    with (
        stream(intent, "anna", tmp_path, echo) as first,
        cores.tunnel(first, echo) as second,
        cores.tunnel(first, echo) as third,
        stream(intent, "ben", tmp_path, echo) as ben,
    ):
        for one in (first, second, third):
            cores.echoed(one)
        with monkeypatch.context() as patched:
            patched.setattr(proxy_api, "CLOSING_S", 0.0)
            for left in (2, 1):
                kind.commit(cut, tools)
                live = kind.observe(tools)
                assert [one["user"] for one in live.facts["connections"]].count("anna") == left
                assert (kind.holds(cut, live), live.unfinished) == (True, True)
        kind.commit(cut, tools)
        assert all(map(cores.is_cut, (first, second, third)))
        assert not kind.observe(tools).unfinished
        cores.echoed(ben)
    assert pid_of(kind) == core


def test_who_comes_back_waits_for_the_next_batch_and_costs_nobody_else_before(kind, tools, tmp_path, echo):
    """What an operator approved does not wait: who confirms it has to be able to try it."""
    intent = document()
    approved, less = rendered(kind, intent), ends.cut(intent, {"ben"})
    committed(kind, less, tools)
    before = pid_of(kind)
    with stream(intent, "anna", tmp_path, echo) as anna:
        cores.echoed(anna)
        for _ in range(2):
            kind.commit(approved, tools, may_wait=True)
            kind.self_check(approved, tools)
            live = kind.observe(tools)
            assert (kind.holds(approved, live), live.unfinished, live.facts["coming"]) == (True, False, ["ben"])
        # Nor until a clock that was set back has caught up.
        since = Path(kind.directory, "waiting").stat().st_mtime
        os.utime(Path(kind.directory, "waiting"), (since + 3_600, since + 3_600))
        assert kind.observe(tools).unfinished
        os.utime(Path(kind.directory, "waiting"), (since, since))
        cores.echoed(anna)
        assert pid_of(kind) == before
        late = ProxyKind(directory=kind.directory, user=USER, batch_s=0)
        assert late.observe(tools).unfinished
        late.commit(approved, tools, may_wait=True)
        late.self_check(approved, tools)
        live = late.observe(tools)
        assert (late.holds(approved, live), live.unfinished, live.facts["coming"]) == (True, False, [])
        assert pid_of(kind) != before
        assert cores.is_cut(anna)
    with stream(intent, "ben", tmp_path, echo) as ben:
        cores.echoed(ben)
    late.commit(rendered(kind, less), tools)
    before = pid_of(kind)
    committed(kind, intent, tools)
    assert (pid_of(kind) != before, kind.observe(tools).facts["coming"]) == (True, [])


def test_a_core_that_cannot_bind_is_undone_and_the_old_one_answers(kind, tools, tmp_path, echo):
    intent = document()
    committed(kind, intent, tools)
    snapshot = kind.snapshot(tools)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bad = {**intent, "inbounds": [{**intent["inbounds"][0], "port": taken.getsockname()[1]}]}
        assert [one.code for one in kind.check(bad, kind.observe(tools), "")] == ["port_taken"]
        rendering = rendered(kind, bad)
        kind.commit(rendering, tools)
        with pytest.raises(Problem) as failed:
            kind.self_check(rendering, tools)
        assert failed.value.code == "apply_failed"
        for _ in range(2):
            kind.restore(snapshot, tools)
    kind.self_check(rendered(kind, intent), tools)
    assert kind.snapshot(tools) == snapshot
    with stream(intent, "ben", tmp_path, echo) as ben:
        cores.echoed(ben)


def test_what_the_core_refuses_is_said_before_anything_is_touched(kind, tools):
    intent = document()
    committed(kind, intent, tools)
    before = pid_of(kind)
    hysteria = proxies.hysteria(listen="127.0.0.1", tls={**proxies.TLS, "certificate_file": "/etc/latticed-none.pem"})
    with pytest.raises(Problem) as refused:
        kind.validate(rendered(kind, {**intent, "inbounds": [hysteria]}), tools)
    assert refused.value.code == "tool_failed"
    assert "latticed-none.pem" in refused.value.reason
    assert pid_of(kind) == before


def test_a_core_that_was_killed_is_drift_and_comes_back(kind, tools):
    rendering = committed(kind, document(), tools)
    os.kill(pid_of(kind), signal.SIGKILL)
    while kind.observe(tools).facts["running"]:
        pass
    assert not kind.holds(rendering, kind.observe(tools))
    kind.commit(rendering, tools)
    kind.self_check(rendering, tools)
    assert kind.holds(rendering, kind.observe(tools))


def test_an_end_that_is_reached_is_seen_and_cuts(kind, tools, tmp_path, echo):
    intent = document()
    intent["users"][0]["expires_at"] = int(time.time()) + 6
    rendering = committed(kind, intent, tools)
    with stream(intent, "anna", tmp_path, echo) as anna, stream(intent, "ben", tmp_path, echo) as ben:
        cores.echoed(anna)
        until = time.monotonic() + cores.PATIENCE_S
        while not kind.observe(tools).unfinished:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert kind.holds(rendering, kind.observe(tools))
        kind.commit(rendering, tools)
        kind.self_check(rendering, tools)
        assert cores.is_cut(anna)
        cores.echoed(ben)
        assert kind.holds(rendering, kind.observe(tools))
        assert b'"anna"' in Path(kind.directory, "started.json").read_bytes()


def test_the_diff_of_what_is_applied_is_the_secrets_alone(kind, tools):
    intent = document()
    committed(kind, intent, tools)
    told = kind.render(intent, None, {one: f"${{secret:{one}}}" for one in kind.secrets(intent)}).decode()
    assert re.sub(r"\$\{secret:[^}]+\}", "(a secret)", told) == kind.observe(tools).text


def test_a_core_that_hangs_is_drift_and_started_anew(kind, tools):
    rendering = committed(kind, document(), tools)
    before = pid_of(kind)
    os.kill(before, signal.SIGSTOP)
    live = kind.observe(tools)
    # It may be the machine's fault: a start costs everybody his connections.
    assert (kind.holds(rendering, live), live.facts["answers"]) == (True, False)
    until = time.monotonic() + cores.PATIENCE_S
    while kind.holds(rendering, kind.observe(tools)):
        assert time.monotonic() < until
    kind.commit(rendering, tools)
    kind.self_check(rendering, tools)
    assert pid_of(kind) != before
    assert not Path(f"/proc/{before}").exists()


def test_who_comes_back_to_a_core_that_is_silent_costs_nobody_his_connections(kind, tools):
    """It may be late because the machine is busy, and nobody has to go."""
    intent = document()
    committed(kind, ends.cut(intent, {"ben"}), tools)
    before = pid_of(kind)
    os.kill(before, signal.SIGSTOP)
    kind.commit(rendered(kind, intent), tools, may_wait=True)
    assert pid_of(kind) == before
    os.kill(before, signal.SIGCONT)
    assert kind.observe(tools).facts["coming"] == ["ben"]


def test_an_intent_of_nobody_ends_the_core(kind, tools):
    intent = document()
    committed(kind, intent, tools)
    before = pid_of(kind)
    rendering = committed(kind, ends.cut(intent, {"anna", "ben"}), tools)
    assert not Path(f"/proc/{before}").exists()
    assert kind.holds(rendering, kind.observe(tools))
    assert not Path(kind.directory, "started.json").exists()


# What the core's user can do with the core's file, which is the user's.
TAMPERED = {
    "no JSON": "echo nonsense >started.json",
    "another file": 'echo \'{"inbounds": [{"tag": []}]}\' >started.json',
    "deep": "head -c 100000 /dev/zero | tr '\\0' '[' >started.json",
    "longer than is read": "head -c 17000000 /dev/zero >started.json",
    "empty": ": >started.json",
    "for all to read": "chmod 0666 started.json; echo >>started.json",
}


@pytest.mark.parametrize("how", TAMPERED)
def test_a_core_that_writes_its_own_file_is_drift_and_started_anew_undone_and_ended(kind, tools, tmp_path, echo, how):
    intent = document()
    rendering = committed(kind, intent, tools)
    account, file = pwd.getpwnam(USER), Path(kind.directory, "started.json")
    written = file.read_bytes()
    for put_back in (kind.commit, kind.restore):
        before = pid_of(kind)
        as_core(account, kind, TAMPERED[how])
        live = kind.observe(tools)
        assert (kind.holds(rendering, live), live.facts["running"], kind.snapshot(tools)) == (False, True, rendering)
        put_back(rendering, tools)
        kind.self_check(rendering, tools)
        assert kind.holds(rendering, kind.observe(tools))
        assert pid_of(kind) != before
        assert (file.read_bytes(), file.stat().st_mode & 0o777) == (written, 0o600)
    with stream(intent, "anna", tmp_path, echo) as anna:
        cores.echoed(anna)
    before = pid_of(kind)
    as_core(account, kind, TAMPERED[how])
    kind.restore(b"", tools)
    assert not Path(f"/proc/{before}").exists()
    assert os.listdir(kind.directory) == []


def test_a_core_that_fills_the_disk_with_its_own_file_keeps_no_change(kind, tools):
    account = pwd.getpwnam(USER)
    Path(kind.directory).mkdir()
    with faults.small_disk(Path(kind.directory), kib=256, uid=0):
        Path(kind.directory).chmod(0o711)
        for intent in (document("anna"), document("anna", "ben")):
            committed(kind, intent, tools)
            as_core(account, kind, "cat /dev/zero 2>/dev/null >started.json || true")
            with pytest.raises(OSError):
                Path(kind.directory, "more").write_bytes(bytes(8_192))
        kind.restore(b"", tools)
        assert os.listdir(kind.directory) == ["more"]


def as_core(account, kind, command):
    words = [
        "setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--clear-groups",
        "sh",
        "-ec",
        command,
    ]
    subprocess.run(words, cwd=kind.directory, check=True)


def test_a_core_s_file_that_nobody_can_open_keeps_nothing(kind, tools):
    """A lease of its owner: who opens it meanwhile waits, or fails (fcntl(2), F_SETLEASE)."""
    rendering = committed(kind, document(), tools)
    file = Path(kind.directory, "started.json")
    told = signal.signal(signal.SIGIO, signal.SIG_IGN)
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGIO, told)
        fcntl.fcntl(stack.enter_context(file.open("r+")), fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(BlockingIOError):
            os.open(file, os.O_RDONLY | os.O_NONBLOCK)
        assert not kind.holds(rendering, kind.observe(tools))
        kind.commit(rendering, tools)
        kind.self_check(rendering, tools)
        assert kind.holds(rendering, kind.observe(tools))


def test_a_core_of_a_version_that_left_no_mark_goes_on(kind, tools, tmp_path, echo, monkeypatch):
    intent = document()
    end_s = intent["users"][0]["expires_at"] = int(time.time()) + 3_600
    rendering = committed(kind, intent, tools)
    before = pid_of(kind)
    (mark,) = Path(kind.directory).glob("*.started")
    mark.unlink()
    # In a directory that others may write nothing is written.
    Path(kind.directory).chmod(0o777)
    assert kind.holds(rendering, kind.observe(tools))
    assert not mark.exists()
    Path(kind.directory).chmod(0o711)
    with stream(intent, "anna", tmp_path, echo) as anna, stream(intent, "ben", tmp_path, echo) as ben:
        cores.echoed(anna)
        assert kind.holds(rendering, kind.observe(tools))
        assert (mark.stat().st_uid, mark.stat().st_size) == (0, 0)
        monkeypatch.setattr(proxy, "_now_s", lambda: end_s)
        live = kind.observe(tools)
        assert (kind.holds(rendering, live), live.unfinished) == (True, True)
        kind.commit(rendering, tools, may_wait=True)
        assert cores.is_cut(anna)
        cores.echoed(ben)
    assert kind.holds(rendering, kind.observe(tools))
    assert pid_of(kind) == before


def test_a_process_of_others_under_the_kept_pid_is_left_alone(kind, tools):
    rendering = committed(kind, document(), tools)
    with subprocess.Popen(["/usr/bin/sleep", "60"]) as other:
        core = pid_of(kind)
        Path(kind.directory, "core.pid").write_text(f"{other.pid}\n")
        assert not kind.observe(tools).facts["running"]
        kind.restore(b"", tools)
        assert other.poll() is None
        other.kill()
    os.kill(core, signal.SIGKILL)
    assert rendering


def test_a_user_that_is_not_there_is_said(kind, tools):
    absent = ProxyKind(directory=kind.directory, user="latticed-nobody-has-it")
    with pytest.raises(Problem) as missing:
        absent.validate(rendered(kind, document()), tools)
    assert (missing.value.code, "useradd" in missing.value.hint) == ("tool_missing", True)
