"""Who may ask the root helper, and what peers that mean harm get from it."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import subprocess

import pytest

from latticed.plans import protocol
from tests.house import apply_helpers, faults, processes
from tests.house.apply_helpers import APPROVER, BASE, DAEMON, STRANGER, WIDE

pytestmark = [pytest.mark.daemon, pytest.mark.root]
NOBODY = processes.User(uid=65_534, gid=65_534)
NAME = "0" * 64


@pytest.fixture
def place():
    with apply_helpers.place() as place:
        yield place


@pytest.fixture
def helper(place):
    with place.running():
        yield place


@pytest.fixture(scope="module")
def offered_nothing():
    """One helper for those whose requests leave nothing behind."""
    with apply_helpers.place() as place, place.running():
        yield place


def requests():
    plan = {"plan": NAME}
    return [
        protocol.Offer(kind="file", intent=WIDE),
        protocol.Observe(),
        protocol.Review(**plan),
        protocol.Approve(**plan, review=NAME),
        protocol.Refuse(**plan),
        protocol.Apply(**plan),
        protocol.Confirm(**plan),
        protocol.Rollback(**plan),
        protocol.Boot(),
    ]


def allowed(place, user):
    """The verbs that are not denied to a user."""
    asked = requests()
    answers = zip(asked, place.ask_all(asked, user), strict=True)
    return {type(one).__name__.lower() for one, answer in answers if getattr(answer, "code", "") != "denied"}


def test_who_may_ask_what(helper):
    everything = {type(one).__name__.lower() for one in requests()}
    assert allowed(helper, None) == everything
    assert allowed(helper, APPROVER) == everything - {"boot"}
    assert allowed(helper, DAEMON) == {"offer", "observe", "apply"}
    assert allowed(helper, STRANGER) == set()
    assert allowed(helper, NOBODY) == set()


def test_daemons_user_stays_what_it_is_when_it_is_named_an_approver(place):
    """By itself or by a group of its own; and uid 65534 stays nobody. A group makes others approvers."""
    in_group = processes.User(uid=64_200, gid=64_200, groups=(64_300,))
    daemon = processes.User(uid=DAEMON.uid, gid=DAEMON.gid, groups=(64_300,))
    place.settings["approvers"] = [str(DAEMON.uid), "65534", "@64300"]
    with place.running():
        assert allowed(place, daemon) == {"offer", "observe", "apply"}
        assert allowed(place, NOBODY) == set()
        assert "confirm" in allowed(place, in_group)


@pytest.mark.parametrize("user", [DAEMON, STRANGER], ids=["daemon", "stranger"])
def test_forged_state_of_others_changes_nothing(place, user):
    """State, settings and socket are beyond the reach of the daemon's user; forged requests grant nothing."""
    with place.running():
        plan = place.offer(WIDE)
        forged = {"plan": plan, "kind": "file", "intent": WIDE, "macs": {}, "state": "approved", "review": NAME}
        code = (
            "import os, sys\n"
            "for path in sys.argv[2:]:\n"
            "    for call in (lambda: open(path, 'w').write(sys.argv[1]), lambda: os.unlink(path),\n"
            "                 lambda: os.mkdir(path), lambda: os.rename(path, path + '.old'),\n"
            "                 lambda: open(path).read()):\n"
            "        try:\n            call()\n            print(path)\n        except OSError:\n            pass\n"
        )
        held = [place.state / f"plans/{plan}.json", place.state / "targets/file.json", place.state / "key"]
        held += [place.state / "held/x.snapshot", place.config, place.home / "run/apply.sock"]
        words = ["/usr/bin/python3", "-I", "-c", code, json.dumps(forged), *map(str, held)]
        ran = subprocess.run(words, user=user.uid, group=user.gid, capture_output=True, text=True, check=True, cwd="/")
        # Settings are public; everything else, and writing these, is refused.
        assert set(ran.stdout.split()) <= {str(place.config)}
        answers = [place.ask(protocol.Apply(plan=plan), user=user), place.ask(protocol.Apply(plan=plan))]
        assert [answer.code for answer in answers] == ["not_approved" if user is DAEMON else "denied", "not_approved"]
        assert place.content() is None


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b'{"verb":"boot","verb":"observe"}\n',
        b'{"verb":"observe","path":"/etc/shadow"}\n',
        b'{"verb":"shell","argv":["id"]}\n',
        b'{"verb":"apply","plan":"../../etc/shadow"}\n',
        b'{"verb":"apply","plan":"' + b"0" * 64 + b'\\n"}\n',
        b'{"verb":"observe","kind":"../x"}\n',
        b'{"verb":"observe","steps_after":1e999}\n',
        b'{"verb":"observe","steps_after":99999999999999999999}\n',
        b'{"verb":"offer","kind":"file","intent":' + b'{"a":' * 2_000 + b"1" + b"}" * 2_000 + b"}\n",
        b'{"verb":"offer","kind":"file","intent":{"allow":["' + b"a" * 300_000 + b'"]}}\n',
        b"x" * (3 << 20),
        b'{"verb":"offer","kind":"file","intent":{"allow":[1.5]}}\n',
        b'{"verb":"offer","kind":"file","intent":{"allow":["\\ud800"]}}\n',
    ],
    ids=range(19),
)
def test_hostile_lines_get_an_error_or_nothing(offered_nothing, line):
    with contextlib.suppress(ConnectionError):
        raw = apply_helpers.exchanged(offered_nothing.settings["socket"], line, user=DAEMON)
        if raw:
            assert json.loads(raw)["code"] in {"bad_request", "intent_refused"}
    assert offered_nothing.observed().plans == ()
    assert "Traceback" not in offered_nothing.log()
    assert "exc_info" not in offered_nothing.log()


def test_floods_stalls_and_half_requests_do_not_keep_root_waiting(helper):
    """The daemon's user, an approver and a stranger make hundreds of connections, most of which say nothing."""
    path = helper.settings["socket"]
    code = (
        "import socket, sys\nkept = []\n"
        'line = b\'{"verb":"observe","kind":"file","steps_after":0}\\n\'\n'
        "while True:\n"
        "    s = socket.socket(socket.AF_UNIX)\n    s.settimeout(0.05)\n"
        "    try:\n        s.connect(sys.argv[1])\n"
        "        s.sendall((b'{\"verb\"', line, b'x' * 200_000)[len(kept) % 3])\n"
        "    except OSError:\n        pass\n"
        "    kept = kept[-300:] + [s]\n"
    )
    with contextlib.ExitStack() as stack:
        floods = [
            stack.enter_context(
                processes.spawned(
                    ["/usr/bin/python3", "-I", "-c", code, path],
                    user=user,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            for user in (DAEMON, APPROVER, STRANGER)
        ]
        plan = helper.approved(BASE, user=None)
        for _ in range(3):
            helper.observed(kind="file")
        assert helper.ask(protocol.Apply(plan=plan, confirm_within_s=120)).state == "unconfirmed"
        assert helper.ask(protocol.Confirm(plan=plan)).state == "applied"
        assert [flood.poll() for flood in floods] == [None, None, None], "all of it went on beside the floods"
    assert helper.observed().plans[0].state == "applied"


def test_peer_that_reads_nothing_is_cut(helper):
    """Its answer is large, its window small; half a request is cut too."""
    big = {"allow": ["admin", *("a" * 16 for _ in range(9_000))]}
    plan = helper.offer(big)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        silent.connect(helper.settings["socket"])
        silent.sendall(protocol.encode(protocol.Review(plan=plan)))
        # By another than root, who has 30 s for a request.
        assert apply_helpers.exchanged(helper.settings["socket"], b'{"verb":', user=DAEMON) == b""
    assert helper.observed().kinds == ("file", "other")


def test_connections_wait_while_the_helper_has_no_descriptor_for_them(place, shim):
    """It says so about once a second, without being busy, and answers them when it has."""
    line, path = protocol.encode(protocol.Observe()), place.settings["socket"]
    with contextlib.ExitStack() as stack:
        sick = stack.enter_context(faults.attached(place, shim))
        helper = stack.enter_context(place.running())
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
        with sick.failing(errno.EMFILE, faults.ACCEPT, below="/"):
            waiting.connect(path)
            waiting.sendall(line)
            processes.until(lambda: place.log().count("plan_accept_failed") >= 2, what="the helper to say so twice")
            # A second lies between two tries; a busy loop would make thousands.
            assert place.log().count("plan_accept_failed") < 100
            assert "EMFILE" in place.log()
        waiting.settimeout(processes.PATIENCE_S)
        answer = b""
        while chunk := waiting.recv(1 << 16):
            answer += chunk
        assert isinstance(protocol.decode_answer(answer, protocol.Observe()), protocol.Observed)
        assert helper.poll() is None
