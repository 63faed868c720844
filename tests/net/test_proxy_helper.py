"""Plans of proxies at the real root helper: kills, a port that is taken, tools that fail, secrets that change."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
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
from latticed.plans.proxy_runs import Child
from tests.house import apply_helpers, cores, faults, long, ports, processes, proxies
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
        inbound = proxies.shadowsocks(listen="127.0.0.1", port=port or ports.free())
        api = {**proxies.API, "port": ports.free()}
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


def until(holds, what):
    processes.until(holds, what=what, deadline_s=40.0)


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
    with subprocess.Popen(["/usr/bin/sleep", "infinity"], user=USER) as other:
        try:
            yield
            assert other.poll() is None
            assert path.read_text() == "{}"
        finally:
            other.kill()


def test_kill_9_of_the_helper_brings_the_confirmed_core_back(place, foreign):
    old, new = place.document("anna"), place.document("anna", "ben")
    with place.running() as helper:
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        assert answers(old)
        plan = place.approved(new, kind="proxy", secrets=secrets_of(new))
        assert place.ask(protocol.Apply(plan=plan, confirm_within_s=8)).state == "unconfirmed"
        assert (answers(old), answers(new)) == (False, True)
        helper.kill()
        helper.wait()
        processes.until(lambda: answers(old) and not answers(new), what="the core of before", deadline_s=30)


def test_a_kill_at_any_moment_of_an_apply_ends_in_the_old_core(place, foreign):
    """Of the helper, its dead-man, both, or the core itself; where both are gone, the next start puts it back."""
    rng, old = random.Random(14), place.document("anna")
    # A core that is killed before the change has begun would be left for the operator.
    place.settings["restore"] = ["proxy"]
    with place.running():
        place.applied(old, kind="proxy", secrets=secrets_of(old))
    for turn in range(long.times(4, 60)):
        victims = ("helper", "dead-man", "both", "core")[turn % 4]
        new = place.document("anna", f"ben-{turn}")
        # Every third one has no inbound, which ends the core.
        bad = {**new, "inbounds": [], "users": []} if turn % 3 == 1 else new
        with place.running() as helper:
            plan = place.approved(bad, kind="proxy", secrets=secrets_of(bad))
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(place.settings["socket"])
                sock.sendall(protocol.encode(protocol.Apply(plan=plan, confirm_within_s=8)))
                apply_helpers.pause(rng.uniform(0, 2))
                if victims in {"dead-man", "both"}:
                    for pid in place.dead_men():
                        os.kill(pid, signal.SIGKILL)
                if victims in {"helper", "both"}:
                    helper.kill()
                    helper.wait()
                elif victims == "core":
                    with contextlib.suppress(OSError, ValueError):
                        os.kill(place.pid(), signal.SIGKILL)
                is_up = victims in {"dead-man", "core"} and apply_helpers.is_answered(sock, helper)
                if is_up:
                    until(lambda new=new: is_back(place, old, new), f"the old core ({victims}, turn {turn})")
        if not is_up:
            with place.running():
                until(lambda new=new: is_back(place, old, new), f"the old core ({victims}, turn {turn})")
        assert len(cores_of(place)) == 1, f"{victims}, turn {turn}"
    del place.settings["restore"]


def test_a_core_that_a_killed_helper_left_without_a_pid_is_ended(place, foreign):
    """It was about to be started when the helper was killed: the next start finds it by its words alone."""
    old, new = place.document("anna"), place.document("anna", "ben")
    with place.running():
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        (place.around / "proxy/core.pid").unlink()
        place.applied(new, kind="proxy", secrets=secrets_of(new))
        assert (answers(old), answers(new), len(cores_of(place))) == (False, True, 1)


def cores_of(place) -> list[int]:
    """The processes that were started with the core's file."""
    return Child(place.around / "proxy/core.pid", USER)._strays()


def is_back(place, old, new) -> bool:
    (target,) = place.observed().targets
    return not target.unconfirmed and answers(old) and not (new["inbounds"] and answers(new))


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
    """The review shows the file with references in place of secrets, and its SHA-256."""
    intent = place.document("anna")
    given = secrets_of(intent)
    with place.running():
        plan = place.approved(intent, kind="proxy", secrets=secrets_of(intent))
        assert place.state_of(plan) == "approved"
        reviewed = place.review(plan)
        told = ProxyKind().render(intent, None, {one.reference: f"${{secret:{one.reference}}}" for one in given})
        assert reviewed.rendering == hashlib.sha256(told).hexdigest()
        assert "${secret:PROXY_USERS#" in reviewed.diff
        assert not any(one.value in str(reviewed) for one in given)
        place.offer(intent, kind="proxy", secrets=secrets_of(intent, "another "))
        assert place.state_of(plan) == "planned"
        assert place.ask(protocol.Apply(plan=plan)).code == "not_approved"
        for broken in (secrets_of(intent)[1:], [*secrets_of(intent)[:-1], _unfit(secrets_of(intent)[-1])]):
            answer = place.ask(protocol.Offer(kind="proxy", intent=intent, secrets=tuple(broken)))
            assert answer.code in {"bad_request", "intent_refused"}, answer
            assert secrets_of(intent)[-1].value not in str(answer)


def _unfit(secret):
    return protocol.SecretValue(reference=secret.reference, form=secret.form, value="not of that form")


def test_a_full_disk_of_the_helper_at_each_step_changes_nothing_or_is_undone(place, foreign):
    """Offer, approval and apply are refused; what cannot be confirmed any more comes back."""
    filler = place.state / "filler"
    place.state.mkdir(exist_ok=True)
    with faults.small_disk(place.state, kib=3_072, uid=0), place.running():
        old, new = place.document("anna"), place.document("anna", "ben")
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        before = place.pid()
        offer = protocol.Offer(kind="proxy", intent=new, secrets=tuple(secrets_of(new)))
        steps = [lambda: offer, lambda: protocol.Approve(plan=plan, review=place.review(plan).review)]
        steps.append(lambda: protocol.Apply(plan=plan, confirm_within_s=8))
        plan = ""
        for step in steps:
            request = step()
            faults.fill(filler)
            assert place.ask(request).code == "state_unusable", request
            assert (place.pid(), answers(old), answers(new)) == (before, True, False)
            filler.unlink()
            answer = place.ask(request)
            plan = plan or answer.plan
        assert (answer.state, answers(old), answers(new)) == ("unconfirmed", False, True)
        faults.fill(filler)
        assert place.ask(protocol.Confirm(plan=plan)).code == "state_unusable"
        until(lambda: answers(old) and not answers(new), "the core of before")
        filler.unlink()
        until(lambda: place.state_of(plan) == "rolled_back", "the record")


@pytest.mark.parametrize("filled", ["before", "meanwhile"])
def test_a_full_disk_of_the_core_is_said_and_undone_while_it_is_full(place, filled):
    """Filled before the apply, or between it and its undoing; of a change of the core's file, and of its end."""
    old = place.document("anna")
    directory, kept = place.around / "proxy", place.around / "kept"
    with place.running():
        place.applied(old, kind="proxy", secrets=secrets_of(old))
        shutil.copytree(directory, kept, copy_function=shutil.copy2)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=711", "tmpfs", directory], check=False)
        if mounted.returncode:
            pytest.skip("no disk of its own can be made here")
        try:
            for one in map(kept.joinpath, ("wanted.json", "started.json", "core.pid")):
                shutil.copy2(one, directory / one.name)
                os.chown(directory / one.name, one.stat().st_uid, -1)
            for new in (place.document("ben"), {**place.document("ben"), "inbounds": [], "users": []}):
                plan = place.approved(new, kind="proxy", secrets=secrets_of(new))
                if filled == "before" and new["inbounds"]:
                    faults.fill(directory / "full")
                    answer = place.ask(protocol.Apply(plan=plan))
                    assert isinstance(answer, protocol.ErrorAnswer), answer
                else:
                    assert place.ask(protocol.Apply(plan=plan)).state == "unconfirmed"
                    faults.fill(directory / "full")
                    assert not answers(old)
                    assert place.ask(protocol.Rollback(plan=plan)).state == "rolled_back"
                until(lambda new=new: is_back(place, old, new), "the core of before")
                (directory / "full").unlink()
        finally:
            # Its pid is known to this disk alone.
            with contextlib.suppress(OSError, ValueError):
                os.kill(place.pid(), signal.SIGKILL)
            subprocess.run(["umount", "-l", directory], check=True)
            shutil.rmtree(kept)
