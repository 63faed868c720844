"""@schedule in a plugin's class, and what `latticectl sign` reads of it, without running anything."""

from __future__ import annotations

from typing import Any

import pytest

from latticed.bundle import code_schedules, decode, pack
from latticed.model.errors import Problem
from latticed.sdk import Plugin, schedule

HEAD = "#!/usr/bin/env python3\nraise SystemExit('it was run')\n"
SOURCE = (
    HEAD
    + """
from latticed.sdk import Plugin, schedule

class Disk(Plugin):
    @schedule(every_s=60)
    def do_check(self, payload):
        pass

    @schedule(daily="03:30", name="nightly", payload={"full": True})
    @schedule(cron="0 * * * *")
    def do_report(self, payload):
        pass

    def do_nothing(self, payload):
        pass
"""
)
FOUND = [
    {"name": "check", "every_s": 60, "action": "check"},
    {"name": "nightly", "daily": "03:30", "payload": {"full": True}, "action": "report"},
    {"name": "report", "cron": "0 * * * *", "action": "report"},
]


def test_what_is_read_equals_what_the_class_says():
    """The source is never run; run by the test, its decorators say the same."""
    assert code_schedules.declared(SOURCE.encode()) == FOUND
    scope: dict[str, object] = {}
    exec(SOURCE.removeprefix(HEAD), scope)  # noqa: S102 - the test's own source
    disk = scope["Disk"]
    said = [entry for name in ("do_check", "do_report") for entry in getattr(disk, name).schedules]
    assert sorted(said, key=str) == sorted(FOUND, key=str)
    assert decode.decode(_manifest(FOUND))[1].schedules[1].payload == {"full": True}


def _manifest(schedules):
    import json

    from tests.house import bundles

    signed = {"publisher": "acme", "digest_sha256": "ab" * 32, "signature_ed25519": "x"}
    return json.dumps(bundles.manifest_v2(**signed, schedules=schedules)).encode()


@pytest.mark.parametrize(
    ("imported", "used"),
    [
        ("from latticed.sdk import schedule as every", "every"),
        ("from latticed import sdk", "sdk.schedule"),
        ("from latticed import sdk as kit", "kit.schedule"),
        ("import latticed.sdk", "latticed.sdk.schedule"),
        ("import latticed.sdk as kit", "kit.schedule"),
        ("from latticed.sdk.schedule import schedule", "schedule"),
        ("from latticed.sdk import *", "schedule"),
        ("import latticed.sdk.schedule", "latticed.sdk.schedule"),
        ("import latticed.sdk.schedule as every", "every"),
        ("import latticed.sdk.testing", "latticed.sdk.schedule"),
    ],
)
def test_decorator_is_known_by_whatever_name_it_was_imported(imported, used):
    source = f"{HEAD}{imported}\nclass A:\n    @{used}(every_s=60)\n    def do_check(self, p): pass\n"
    scope: dict[str, Any] = {}
    exec(source.removeprefix(HEAD), scope)  # noqa: S102 - the test's own source
    assert scope["A"].do_check.schedules == FOUND[:1]
    assert code_schedules.declared(source.encode()) == FOUND[:1]


@pytest.mark.parametrize(
    "source",
    [
        SOURCE.replace("from latticed.sdk import Plugin, schedule", "from celery import schedule  # latticed"),
        SOURCE.replace("python3", "ruby"),
        SOURCE.removeprefix("#!/usr/bin/env python3\n"),
        SOURCE + "def (",
        f"{HEAD}# latticed schedule\n" + "(" * 5_000,
    ],
)
def test_what_is_none_of_ours_declares_nothing(source):
    assert code_schedules.declared(source.encode()) == []


@pytest.mark.parametrize(
    "code",
    [
        "from latticed.sdk import *\nfrom apscheduler import schedule\n@schedule('cron')\ndef sweep(): pass\n",
        "from latticed.sdk import *\ndef schedule(x): return x\nschedule(3)\n",
        "from latticed.sdk import *\ndef run(plan): return schedule(plan)\n",
        "from latticed.sdk import schedule\ndef run(schedule): return schedule(1)\n",
        "from latticed import sdk\nfor sdk in (): sdk.schedule(2)\n",
    ],
    ids=["import", "function", "builtin of others", "parameter", "loop"],
)
def test_another_thing_of_the_same_name_is_none_of_ours(code):
    ours = "class A(Plugin):\n    @{}(every_s=60)\n    def do_check(self, p): pass\n"
    used = "sdk.schedule" if "sdk.schedule" in code else "schedule"
    source = f"{HEAD}from latticed.sdk import Plugin\n{code}"
    assert code_schedules.declared(source.encode()) == []
    assert code_schedules.declared(f"{source}{ours.format(used)}".encode()) == FOUND[:1]


def test_times_that_are_not_written_out_are_refused_beside_another_thing_of_the_same_name():
    """Such a schedule would be signed away: the SDK takes it, and the host goes by the manifest."""
    code = "EVERY = {'every_s': 60}\ndef run(schedule): return schedule(1)\n"
    ours = "class A(Plugin):\n    @schedule(**EVERY)\n    def do_check(self, p): pass\n"
    source = f"{HEAD}from latticed.sdk import Plugin, schedule\n{code}{ours}"
    with pytest.raises(Problem, match="schedule_unreadable"):
        code_schedules.declared(source.encode())


def test_modules_of_a_packed_artifact_are_read():
    files = {"__main__.py": b"import shop\n", "shop/disk.py": SOURCE.encode(), "shop/data.bin": b"\xff"}
    assert code_schedules.declared(pack.zipapp(files, interpreter="/usr/bin/env python3")) == FOUND


@pytest.mark.parametrize(
    ("decorator", "told"),
    [
        ("@schedule(every_s=MINUTE)", "expected every_s to be a literal"),
        ("@schedule(60)", "arguments by name"),
        ("@schedule(**HOW)", "found **"),
        ("@schedule(weekly=1)", "found weekly"),
    ],
)
def test_decorator_that_cannot_be_read_without_running_it_is_an_error(decorator, told):
    source = f"{HEAD}from latticed.sdk import schedule\nclass A:\n    {decorator}\n    def do_check(self, p): pass\n"
    with pytest.raises(Problem, match="artifact:5") as caught:
        code_schedules.declared(source.encode())
    assert told in caught.value.reason
    helper = source.replace(decorator, "@schedule(every_s=60)").replace("do_check", "check")
    with pytest.raises(Problem, match="do_ACTION"):
        code_schedules.declared(helper.encode())


def test_decorator_that_is_made_elsewhere_is_an_error():
    """It works when the code runs, and would be passed over."""
    source = f"{HEAD}from latticed.sdk import schedule\nhourly = schedule(every_s=3600)\nclass A:\n    @hourly\n"
    with pytest.raises(Problem, match=r"artifact:4: expected @schedule above a method"):
        code_schedules.declared(f"{source}    def do_check(self, p): pass\n".encode())


def test_zipapp_with_any_byte_damaged_is_never_a_traceback():
    whole = pack.zipapp({"__main__.py": SOURCE.encode()}, interpreter="/usr/bin/env python3")
    codes = []
    for place in range(whole.index(b"\n") + 1, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        try:
            code_schedules.declared(bytes(damaged))
        except Problem as problem:
            codes.append(problem.code)
    assert set(codes) == {"schedule_unreadable"}
    assert len(codes) > len(whole) // 2


def test_class_with_a_wrong_decorator_is_not_made():
    with pytest.raises(ValueError, match="found none"):
        schedule()
    with pytest.raises(ValueError, match="found every_s, daily"):
        schedule(every_s=60, daily="03:30")
    with pytest.raises(ValueError, match="do_ACTION"):

        class _Wrong(Plugin):
            @schedule(every_s=60)
            def check(self, payload):
                pass
