"""service.save, saved, revert: copies that are whole, and put back all at once, whatever a program or a crash does."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from latticed.host.call import HostError
from latticed.host.program import saved
from latticed.host.program.save_calls import SaveCalls
from latticed.kit import files
from tests.house import corpora, processes
from tests.unit.host.test_program_data import place
from tests.unit.host.test_program_keeper import A, B, until, world

QUOTA = {"bytes": 64 << 20, "files": 200}
NAMES = ("root.json", "store.json")
WRITER = """
import json, time
n = 0
while True:
    n += 1
    for name in ("root", "store"):
        with open(f"/data/{name}.json", "w") as file:
            for piece in json.dumps({"n": n, "fill": "x" * 20000}).partition("xxx"):
                file.write(piece)
                file.flush()
    if n == 1:
        print("up", flush=True)
    time.sleep(0.02)
"""
"""Writes both files in place, in pieces, one after the other."""


@pytest.fixture
async def here(tmp_path):
    async with world(tmp_path) as opened:
        opened.service |= {one.method: one for one in SaveCalls(opened.programs).calls()}
        yield opened


async def save(here, **more):
    return await here.call("service.save", name="web", files=NAMES, **more)


async def revert(here, copy_id):
    return await here.call("service.revert", name="web", id=copy_id)


def kept(tmp_path, **documents):
    """Write the files of the service while nothing runs."""
    place(tmp_path).mkdir(parents=True, exist_ok=True)
    for name, document in documents.items():
        (place(tmp_path) / f"{name}.json").write_text(json.dumps(document))


# Saving.


async def test_copies_of_files_that_are_being_written_are_whole_and_belong_together(here, tmp_path):
    await here.call("service.put", name="web", program="python", args=("-c", WRITER), data=QUOTA)
    await here.until_said("up", "web")
    seen, copies, deadline = set(), 0, time.monotonic() + processes.PATIENCE_S
    # Each copy holds the program up, which is to write again in between.
    while copies < 10 or len(seen) < 2:
        assert time.monotonic() < deadline, "it writes no more"
        made = await save(here)
        copy = place(tmp_path).parent / "saved" / made["id"]
        numbers = {json.loads((copy / name).read_text())["n"] for name in NAMES}
        assert len(numbers) == 1, "both are of the same moment"
        seen |= numbers
        copies += 1
    assert (await here.status("web"))["restarts"] == 0


async def test_seven_copies_are_kept_newest_first_and_none_twice(here, tmp_path):
    """Another plugin has none of them."""
    ids = []
    for number in range(9):
        kept(tmp_path, root={}, store={"n": number})
        ids.append((await save(here))["id"])
        assert await save(here) | {"new": True} == await save(here) | {"new": True}
        assert (await save(here))["new"] is False
    listed = (await here.call("service.saved", name="web"))["saved"]
    assert {one["id"] for one in listed} == set(ids[2:])
    assert [one["at"] for one in listed] == sorted((one["at"] for one in listed), reverse=True)
    assert (await here.call("service.saved", B, name="web"))["saved"] == []
    kept(tmp_path, store={"n": 99})
    await save(here, keep=2)
    assert len((await here.call("service.saved", name="web"))["saved"]) == 2


async def test_a_missing_file_is_missing_in_the_copy(here, tmp_path):
    with pytest.raises(HostError, match="the service has kept nothing yet"):
        await save(here)
    kept(tmp_path, other={})
    with pytest.raises(HostError, match="not_found"):
        await save(here)
    kept(tmp_path, root={})
    assert [one["name"] for one in (await save(here))["files"]] == ["root.json"]


HOSTILE = {
    "half": lambda path, _: path.write_text('{"subs": ['),
    "empty": lambda path, _: path.write_text(""),
    "two documents": lambda path, _: path.write_text("{}{}"),
    "no UTF-8": lambda path, _: path.write_bytes(b'{"a": "\xff"}'),
    "deep": lambda path, _: path.write_text("[" * 1_000_000),
    "link": lambda path, secret: path.symlink_to(secret),
    "link to itself": lambda path, _: path.symlink_to(path),
    "pipe": lambda path, _: os.mkfifo(path),
    "directory": lambda path, _: path.mkdir(),
    "huge": lambda path, _: path.touch() or os.truncate(path, saved.MAX_BYTES + 1),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_whole_file_of_the_service_is_not_saved(here, tmp_path, monkeypatch, name):
    """It is said which file; copies stay, and nothing is left of the attempt."""
    monkeypatch.setattr(saved, "PAUSE_S", 0.0)
    kept(tmp_path, root={}, store={"good": True})
    first = await save(here)
    secret = tmp_path / "secret.json"
    secret.write_text('{"not": "for it"}')
    (place(tmp_path) / "store.json").unlink()
    HOSTILE[name](place(tmp_path) / "store.json", secret)
    with pytest.raises(HostError, match=r"store\.json") as caught:
        await save(here)
    assert str(tmp_path) not in str(caught.value)
    assert os.listdir(place(tmp_path).parent / "saved") == [first["id"]]


def test_json_is_told_from_what_is_none():
    """As the outside suite has it, but for numbers that no double can carry and duplicate keys, which Node reads."""
    import base64

    lenient = ("i_number", "n_number", "y_object_duplicated_key", "i_structure_500_nested_arrays")
    wrong = [
        row["name"]
        for row in corpora.rows("json_parsing.json")
        if saved._is_json(base64.b64decode(row["bytes_b64"])) != (row["expected"] == "accept")
        and not row["name"].startswith(lenient)
        and row["expected"] != "reject-in-manifest"
    ]
    assert wrong == []


# Reverting.


async def test_reverted_service_has_exactly_the_copy_and_runs_again(here, tmp_path):
    """What else it had kept is gone; the copies stay."""
    kept(tmp_path, root={"n": 1}, store={"n": 1})
    first = (await save(here))["id"]
    script = "ls -A /data; cat /data/*.json; echo; echo ready; sleep 999"
    await here.put("web", f"echo '{{\"n\": 2}}' >/data/root.json; touch /data/more; {script}", data=QUOTA)
    await here.until_said("ready", "web")
    second = (await save(here))["id"]
    await here.put("web", script, data=QUOTA)
    await here.until_said('{"n": 2}', "web")
    before = (await here.until_state("running", "web"))["pid"]
    assert await revert(here, first) == {"ok": True, "id": first}
    await here.until_said('{"n": 1}{"n": 1}\nready', "web")
    assert here.program("web").output()["stdout"] == 'root.json\nstore.json\n{"n": 1}{"n": 1}\nready\n'
    assert (await here.status("web"))["pid"] != before
    await revert(here, second)
    await here.until_said('{"n": 2}', "web")
    assert sorted(os.listdir(place(tmp_path).parent)) == ["data", "saved"]


async def test_nothing_runs_while_files_are_exchanged(here, tmp_path, monkeypatch):
    """Not even a recheck starts it; afterwards it runs, also when the exchange has failed."""
    kept(tmp_path, root={"n": 1})
    first = (await save(here))["id"]
    await here.put("web", "echo up; sleep 999", data=QUOTA)
    await here.until_said("up", "web")
    (place(tmp_path) / "root.json").write_text('{"n": 2}')
    states = []

    def failing(service, prepared):
        here.programs.recheck(A.plugin_id)
        states.append((here.program("web").started, prepared.parent == service))
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(saved, "exchange", failing)
    with pytest.raises(HostError, match="what the service keeps cannot be reached"):
        await revert(here, first)
    assert states == [(False, True)]
    await here.until_said("up", "web")
    assert json.loads((place(tmp_path) / "root.json").read_text()) == {"n": 2}


async def test_damaged_or_unknown_copy_is_not_put_back(here, tmp_path):
    """The program is not even stopped."""
    kept(tmp_path, root={"n": 1})
    first = (await save(here))["id"]
    await here.put("web", "echo up; sleep 999", data=QUOTA)
    await here.until_said("up", "web")
    pid = (await here.until_state("running", "web"))["pid"]
    (place(tmp_path).parent / "saved" / first / "root.json").write_text('{"n": 3}')
    for wanted, word in (
        (first, "is damaged"),
        ("20260101T000000Z-01234567", "no such copy"),
        ("../data", "no such copy"),
    ):
        with pytest.raises(HostError, match=word):
            await revert(here, wanted)
    assert (await here.status("web"))["pid"] == pid
    assert json.loads((place(tmp_path) / "root.json").read_text()) == {"n": 1}


async def test_cancelled_revert_is_carried_through(here, tmp_path):
    kept(tmp_path, root={"n": 1})
    first = (await save(here))["id"]
    kept(tmp_path, root={"n": 2})
    await here.put("web", "trap '' TERM; cat /data/root.json; echo up; sleep 999", data=QUOTA)
    await here.until_said("up", "web")
    asked = asyncio.create_task(revert(here, first))
    await until(lambda: here.program("web").stopping, "the program to be stopped")
    asked.cancel()
    await here.until_said('{"n": 1}', "web")


@pytest.mark.parametrize("failing", ["write_all", "sync_directory"])
async def test_full_disk_leaves_the_copies_that_there_were(here, tmp_path, monkeypatch, failing):
    kept(tmp_path, root={"n": 1})
    first = await save(here)
    kept(tmp_path, root={"n": 2})

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as broken:
        broken.setattr(files, failing, full)
        with pytest.raises(HostError, match="No space left"):
            await save(here)
    assert [one["id"] for one in (await here.call("service.saved", name="web"))["saved"]] == [first["id"]]
    assert (await save(here))["new"]


async def test_copies_take_no_more_than_a_service_may_keep(tmp_path):
    """The oldest go first, the newest stays even if it is more than that alone."""
    async with world(tmp_path, data_bytes=250_000) as here:
        here.service |= {one.method: one for one in SaveCalls(here.programs).calls()}
        for number, size in enumerate((60_000, 60_000, 60_000, 60_000, 60_000, 400_000)):
            kept(tmp_path, root={"n": number, "fill": "x" * size})
            newest = (await save(here))["id"]
            copies = (await here.call("service.saved", name="web"))["saved"]
            assert copies[0]["id"] == newest
            sizes = [sum(file["bytes"] for file in one["files"]) for one in copies]
            assert sum(sizes) <= 250_000 or len(sizes) == 1
        assert sizes[0] > 400_000


async def test_oldest_copy_that_is_about_to_be_put_back_is_spared(here, tmp_path):
    """However often: what there is now is saved before."""
    ids = []
    for number in range(7):
        kept(tmp_path, root={"n": number})
        ids.append((await save(here))["id"])
    for number in (100, 101, 102):
        kept(tmp_path, root={"n": number})
        await save(here, spare=ids[0])
        listed = [one["id"] for one in (await here.call("service.saved", name="web"))["saved"]]
        assert (len(listed), listed[-1]) == (8, ids[0])
    kept(tmp_path, root={"n": 103})
    await save(here)
    assert len((await here.call("service.saved", name="web"))["saved"]) == 7


async def test_nearly_full_disk_gets_no_copy(here, tmp_path, monkeypatch):
    """The daemon keeps its own state there."""
    kept(tmp_path, root={"n": 1})
    monkeypatch.setattr(saved.quota, "RESERVE_BYTES", 1 << 62)
    with pytest.raises(HostError, match="MiB free"):
        await save(here)
    assert os.listdir(place(tmp_path).parent) == ["data"]


KILLED = """
import sys
from pathlib import Path
from latticed.host.program import saved

service, names = Path(sys.argv[1]), ("root.json", "store.json")
ids = [one.id for one in saved.copies(service)]
while True:
    for wanted in ids[-2:]:
        saved.exchange(service, saved.prepare(service, wanted))
        print("x", end="", flush=True)
        saved.clear(service)
        saved.save(service, names, keep=7, most_bytes=1 << 30, now_us=1_900_000_000_000_000)
"""


def test_kill_at_any_moment_leaves_the_old_files_or_the_new_ones(tmp_path):
    """And every copy that is offered can be put back."""
    service = tmp_path / "web"
    for number in (1, 2):
        (service / "data").mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (service / "data" / name).write_text(json.dumps({"n": number, "fill": "x" * 100_000}))
        saved.save(service, NAMES, keep=7, most_bytes=1 << 30, now_us=1_800_000_000_000_000 + number * 1_000_000)
    chance, met = random.Random(13), set()
    for _ in range(25):
        with subprocess.Popen(
            [sys.executable, "-P", "-c", KILLED, str(service)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout.read(1) == b"x", child.stderr.read()
            time.sleep(chance.uniform(0, 0.05))
            child.send_signal(signal.SIGKILL)
            child.wait()
        found = [json.loads((service / "data" / name).read_text())["n"] for name in NAMES]
        assert found in ([1, 1], [2, 2])
        met.add(found[0])
        for copy in saved.copies(service):
            assert saved._is_whole(service, copy)
    assert met == {1, 2}
    saved.clear(service)
    assert sorted(os.listdir(service)) == ["data", "saved"]
    assert not [name for name in os.listdir(service / "saved") if name.startswith(".")]
