"""Plans of proxies at the real root helper: kills, a port that is taken, tools that fail, secrets that change."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from latticed.plans import protocol
from latticed.plans.proxy import ProxyKind
from tests.house import apply_helpers, cores, processes, proxies
from tests.house.nft_places import NftPlace

pytestmark = [pytest.mark.root, pytest.mark.skipif(cores.sing_box() is None, reason=cores.NO_SING_BOX)]
USER = "daemon"


@dataclass
class CorePlace(NftPlace):
    """A helper that runs a core on loopback, by a script that may fail as it is told."""

    around: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="proxy-")))

    def __post_init__(self) -> None:
        self.around.chmod(0o755)
        tool = self.around / "sing-box"
        tool.write_text(
            "#!/bin/sh\n"
            f'case "$(cat {self.around}/fault 2>/dev/null)$1" in\n'
            "hangcheck) exec sleep 60;;\n"
            "killedcheck) kill -9 $$;;\n"
            "floodcheck) exec head -c 10485760 /dev/zero;;\n"
            "esac\n"
            f'exec {cores.sing_box()} "$@"\n'
        )
        tool.chmod(0o755)
        self.settings = {
            "kinds": ["proxy"],
            "programs": {"sing-box": str(tool)},
            "proxy": {"directory": str(self.around / "proxy"), "user": USER},
            **self.settings,
        }
        super().__post_init__()

    def fault(self, name: str) -> None:
        (self.around / "fault").write_text(name)

    def document(self, *users: str, port: int = 0, **changes: Any) -> dict[str, Any]:
        inbound = proxies.shadowsocks(listen="127.0.0.1", port=port or cores.free_port())
        api = {**proxies.API, "port": cores.free_port()}
        named = [proxies.user(one) for one in users or ("anna",)]
        return proxies.document(inbound, users=named, host="127.0.0.1", api=api, reach_private=True, **changes)

    def pid(self) -> int:
        return int((self.around / "proxy/core.pid").read_text())


def secrets_of(intent, salt=""):
    forms = ProxyKind().secrets(intent)
    return [
        protocol.SecretValue(reference=one, form=form, value=proxies.value(salt + one, form))
        for one, form in forms.items()
    ]


def answers(intent) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", intent["inbounds"][0]["port"])) == 0


@pytest.fixture(scope="module")
def place():
    with apply_helpers.place() as made:
        found = CorePlace(home=made.home)
        try:
            yield found
        finally:
            for pid in found.dead_men():
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError, ValueError):
                os.kill(found.pid(), signal.SIGKILL)
            shutil.rmtree(found.around)


@pytest.fixture
def foreign(place):
    """A process of the core's user, and a file beside the core's, which nothing may touch."""
    path = place.around / "theirs.json"
    path.write_text("{}")
    with subprocess.Popen(["/usr/bin/sleep", "300"], user=USER) as other:
        yield
        assert other.poll() is None
        assert path.read_text() == "{}"
        other.kill()


def test_kill_9_of_the_helper_brings_the_confirmed_core_back(place, foreign):
    old, new = place.document("anna"), place.document("anna", "ben")
    with place.running() as helper:
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        assert answers(old)
        plan = place.approved(new, kind="proxy", secrets=secrets_of(new))
        assert place.ask(protocol.Apply(plan=plan, confirm_within_s=3)).state == "unconfirmed"
        assert (answers(old), answers(new)) == (False, True)
        helper.kill()
        helper.wait()
        processes.until(lambda: answers(old) and not answers(new), what="the core of before", deadline_s=30)


def test_after_a_boot_the_confirmed_core_is_started_again(place):
    """Its directory is on a file system in memory: nothing of it is there then."""
    intent = place.document("anna")
    with place.running():
        place.applied(intent, kind="proxy", secrets=secrets_of(intent))
    # The core outlives the helper; a boot ends it.
    assert answers(intent)
    os.kill(place.pid(), signal.SIGKILL)
    shutil.rmtree(place.around / "proxy")
    processes.until(lambda: not answers(intent), what="the end of the core")
    with place.running("--boot"):
        assert answers(intent)


def test_a_bad_bind_is_undone_and_the_old_core_answers(place, foreign):
    old, new = place.document("anna"), place.document("ben")
    with place.running():
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        plan = place.approved(new, kind="proxy", secrets=secrets_of(new))
        with socket.create_server(("127.0.0.1", new["inbounds"][0]["port"])):
            answer = place.ask(protocol.Apply(plan=plan))
            assert answer.code in {"apply_failed", "intent_refused"}, answer
        assert answers(old)
        assert not answers(new)


@pytest.mark.parametrize("fault", ["killed", "flood", "hang"])
def test_a_tool_that_fails_is_said_and_nothing_is_touched(place, fault):
    old, new = place.document("anna"), place.document("ben")
    with place.running():
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        before = place.pid()
        plan = place.approved(new, kind="proxy", secrets=secrets_of(new))
        place.fault(fault)
        answer = place.ask(protocol.Apply(plan=plan))
        place.fault("")
        assert answer.code == "tool_failed", answer
        assert (place.pid(), answers(old), answers(new)) == (before, True, False)


def test_secrets_of_another_value_are_another_review_and_of_another_form_none(place):
    intent = place.document("anna")
    with place.running():
        plan = place.approved(intent, kind="proxy", secrets=secrets_of(intent))
        assert place.state_of(plan) == "approved"
        place.offer(intent, kind="proxy", secrets=secrets_of(intent, "another "))
        assert place.state_of(plan) == "planned"
        assert place.ask(protocol.Apply(plan=plan)).code == "not_approved"
        for broken in (secrets_of(intent)[1:], [*secrets_of(intent)[:-1], _unfit(secrets_of(intent)[-1])]):
            answer = place.ask(protocol.Offer(kind="proxy", intent=intent, secrets=tuple(broken)))
            assert answer.code in {"bad_request", "intent_refused"}, answer
            assert secrets_of(intent)[-1].value not in str(answer)


def _unfit(secret):
    return protocol.SecretValue(reference=secret.reference, form=secret.form, value="not of that form")


def test_a_full_disk_is_said_and_the_old_core_answers(place):
    old, new = place.document("anna"), place.document("ben")
    with place.running():
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        plan = place.approved(new, kind="proxy", secrets=secrets_of(new))
        directory = place.around / "proxy"
        kept = place.around / "kept"
        shutil.copytree(directory, kept, copy_function=shutil.copy2)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=711", "tmpfs", directory], check=False)
        if mounted.returncode:
            pytest.skip("no disk of its own can be made here")
        try:
            for one in kept.iterdir():
                shutil.copy2(one, directory / one.name)
                os.chown(directory / one.name, one.stat().st_uid, -1)
            with contextlib.suppress(OSError):
                (directory / "full").write_bytes(b"x" * (1 << 20))
            os.chown(directory / "started.json", processes.User(uid=1, gid=1).uid, -1)
            answer = place.ask(protocol.Apply(plan=plan))
            assert isinstance(answer, protocol.ErrorAnswer), answer
            (directory / "full").unlink()
            processes.until(lambda: answers(old) and not answers(new), what="the core of before", deadline_s=40)
        finally:
            subprocess.run(["umount", "-l", directory], check=True)
