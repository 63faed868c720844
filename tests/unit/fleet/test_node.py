"""The node beside a daemon that has nothing: what it asks of its link, and what it keeps."""

from __future__ import annotations

import errno
import threading
import time

import msgspec
import pytest

from latticed.fleet import convergence, documents, judging, kept_state, messages, node, node_daemon
from latticed.fleet.engine import STATUS_BYTES
from latticed.model.errors import Problem
from tests.house import fleets, processes


def until(condition):
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < processes.PATIENCE_S
        time.sleep(0.01)


class EmptyDaemon(node_daemon.Daemon):
    """It has no plugin; `asked` is what was to be changed."""

    def __init__(self):
        super().__init__("/nowhere")
        self.asked = []
        self.answer = {}
        self.refuses = {}

    def ask(self, method, *parts, body=None, query=None):
        if method != "GET":
            self.asked.append((method, parts))
            if problem := self.refuses.get(parts[0]):
                raise problem
            return self.answer
        if parts == ("secrets",):
            return {"secrets": []}
        raise Problem("not_found", "expected a plugin, found none" + " of this name" * 20)


class Beside:
    def __init__(self, directory):
        self.fleet, self.directory = fleets.Fleet(), directory
        operators = (fleets.public(fleets.OPERATOR), fleets.public(fleets.SECOND))
        token = documents.sign(self.fleet.token(operators=operators), fleets.OPERATOR)
        self.fleet.node_key = kept_state.enrol(directory, token, now_s=fleets.NOW)
        self.kept = kept_state.opened(directory)
        self.daemon, self.sent = EmptyDaemon(), []
        self.node = node.FleetNode(self.kept, self.daemon, self.sent.append, now_s=lambda: fleets.NOW)

    def desire(self, generation, count, **fields):
        """Plugins of these numbers, each with a bundle."""
        names = [f"acme.p{number}" for number in range(count)]
        plugins = tuple(fleets.plugin(one, identity=None, versions="*", publisher="acme") for one in names)
        bundles = tuple(
            documents.BundleSource(id=one, sha256=f"{number:064x}", urls=()) for number, one in enumerate(names)
        )
        intent = self.fleet.intent(generation, plugins=plugins)
        return self.fleet.desired(generation, intent=intent, bundles=bundles, **fields)

    def needed(self):
        return [one.sha256 for one in self.sent if isinstance(one, messages.BundleNeeded)]

    def kept_numbers(self):
        last = [one.sha256s for one in self.sent if isinstance(one, messages.BundlesKept)][-1]
        return [int(one, 16) for one in last]

    def answers(self):
        done = [one.document for one in self.sent if isinstance(one, messages.InvocationDone)]
        return [documents.read(one, documents.InvocationResult).document for one in done]

    def status(self):
        last = [one.document for one in self.sent if isinstance(one, messages.NewStatus)][-1]
        assert len(last) <= STATUS_BYTES
        return documents.read(last, documents.NodeStatus).document


@pytest.fixture
def beside(tmp_path):
    return Beside(tmp_path / "node")


def test_bundle_whose_asking_was_lost_is_asked_for_again(beside, monkeypatch):
    """The link keeps 64 that wait and drops the others, as it does with answers that are too many."""
    beside.node.received(messages.NewDesired(document=beside.desire(1, 2)))
    beside.node.converge()
    beside.node.converge()
    assert beside.needed() == [f"{0:064x}", f"{1:064x}"]
    now_s = convergence.time.monotonic()
    monkeypatch.setattr(convergence.time, "monotonic", lambda: now_s + node.RECONCILE_S)
    beside.node.converge()
    assert len(beside.needed()) == 4


def test_bundle_that_is_nowhere_is_not_asked_for_in_a_circle(beside):
    """The link says so at once: looking again because of that, and asking again, would never pause."""
    beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
    beside.node.converge()
    for _ in range(5):
        beside.node.received(messages.BundleMissing(sha256="0" * 64, reason="nobody has it"))
        beside.node.converge()
    assert beside.needed() == ["0" * 64]
    assert [one.reason for one in beside.status().plugins] == ["nobody has it"]


def test_file_that_is_not_the_bundle_is_not_imported_in_a_circle(beside):
    """By a link that says again and again that it is here."""
    beside.daemon.refuses["market"] = Problem("import_invalid", "expected another file")
    beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
    for _ in range(5):
        beside.node.converge()
        beside.node.received(messages.BundleHere(sha256="0" * 64))
    assert len(beside.daemon.asked) == 1


def test_file_that_is_not_the_bundle_is_asked_for_anew(beside, monkeypatch):
    """As it was damaged on the disk: the link has it, and would say so at once."""
    beside.daemon.refuses["market"] = Problem("import_invalid", "expected another file")
    beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
    clock = convergence.time.monotonic()
    for minute in range(3):
        monkeypatch.setattr(convergence.time, "monotonic", lambda minute=minute: clock + 60 * minute)
        beside.node.converge()
        if minute != 1:  # then nothing is heard of it
            beside.node.received(messages.BundleHere(sha256="0" * 64))
            beside.node.converge()
    assert [one.anew for one in beside.sent if isinstance(one, messages.BundleNeeded)] == [False, True, False]


def test_link_is_told_which_bundles_it_has_to_keep(beside):
    """Those that are awaited or were not tried yet; what turned out not to be wanted goes as well."""
    beside.daemon.refuses["market"] = Problem("unreachable", "the daemon is not there")
    beside.node.received(messages.NewDesired(document=beside.desire(1, 3)))
    beside.node.converge()
    assert beside.kept_numbers() == [0, 1, 2]
    beside.node.received(messages.BundleHere(sha256=f"{1:064x}"))
    with pytest.raises(Problem, match="unreachable"):
        beside.node.converge()
    assert beside.kept_numbers() == [0, 1, 2]
    beside.daemon.refuses["market"] = Problem("busy", "another one is taken")
    beside.node.converge()
    assert beside.kept_numbers() == [0, 1, 2]
    beside.daemon.refuses["market"] = Problem("needs_consent", "expected consent")
    beside.node.converge()
    assert beside.kept_numbers() == [0, 2]
    beside.node.received(messages.BundleHere(sha256=f"{2:064x}"))
    beside.node.received(messages.NewDesired(document=beside.desire(2, 1)))
    beside.node.converge()
    assert beside.kept_numbers() == [0]


def test_link_is_told_that_what_was_needed_before_is_not_any_more(beside):
    for generation in (1, 2):
        beside.node.received(messages.NewDesired(document=beside.desire(generation, 1)))
        beside.node.converge()
    kinds = (messages.NothingNeeded, messages.BundleNeeded)
    assert [type(one) for one in beside.sent if isinstance(one, kinds)] == [*kinds, *kinds]


def test_file_that_is_never_the_bundle_is_fetched_ever_more_rarely(beside, monkeypatch):
    """Who stole a controller assigns a file that is not what the operator signed: hosts do not fetch on and on."""
    beside.daemon.refuses["market"] = Problem("import_invalid", "expected another file")
    beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
    clock = convergence.time.monotonic()
    for minute in range(24 * 60):
        monkeypatch.setattr(convergence.time, "monotonic", lambda minute=minute: clock + 60 * minute)
        beside.node.converge()
        beside.node.received(messages.BundleHere(sha256="0" * 64))
    assert 25 <= len(beside.needed()) <= 35


def test_bundle_that_is_another_one_than_is_wanted_is_fetched_once(beside, monkeypatch):
    """The file is whole: to fetch it anew brings the same. What is assigned anew is looked at anew."""
    beside.daemon.refuses["market"] = Problem("import_mismatch", "expected the identity to be 1, found 2")
    clock = convergence.time.monotonic()
    for generation in (1, 2):
        beside.node.received(messages.NewDesired(document=beside.desire(generation, 1)))
        for minute in range(180):
            monkeypatch.setattr(convergence.time, "monotonic", lambda minute=minute: clock + 60 * minute)
            beside.node.converge()
            beside.node.received(messages.BundleHere(sha256="0" * 64))
        assert len(beside.needed()) == len(beside.daemon.asked) == generation
        (row,) = beside.status().plugins
        assert (row.code, row.reason) == ("bundle_unknown", "expected the identity to be 1, found 2")
    assert [one.anew for one in beside.sent if isinstance(one, messages.BundleNeeded)] == [False, True]


def test_bundle_that_another_plugin_was_assigned_too_is_taken_by_whose_it_is(beside):
    beside.daemon.refuses["market"] = Problem("import_mismatch", "expected another plugin")
    plugins = tuple(fleets.plugin(one, identity=None, versions="*", publisher="acme") for one in ("acme.a", "acme.b"))
    bundles = tuple(documents.BundleSource(id=one.id, sha256="0" * 64, urls=()) for one in plugins)
    intent = beside.fleet.intent(1, plugins=plugins)
    beside.node.received(messages.NewDesired(document=beside.fleet.desired(1, intent=intent, bundles=bundles)))
    beside.node.converge()
    beside.node.received(messages.BundleHere(sha256="0" * 64))
    for _ in range(3):
        beside.node.converge()
    assert len(beside.daemon.asked) == 2  # once for each


def test_assignments_without_end_are_taken_up_and_looked_for_at_a_bounded_pace(beside, monkeypatch):
    """Who stole a controller may sign one after the other: each counts, and the daemon is asked no more for that."""
    looks = []
    monkeypatch.setattr(beside.node, "converge", lambda: looks.append(beside.kept.state.generation))
    began_s = time.monotonic()
    working = threading.Thread(target=beside.node.work)
    working.start()
    try:
        intent = beside.fleet.intent(1)
        for generation in range(1, 80):
            beside.node.received(messages.NewDesired(document=beside.fleet.desired(generation, intent=intent)))
        until(lambda: looks[-1:] == [79])
    finally:
        beside.node.stop()
        working.join()
    # A look costs a second at least, of which ten may be spent at once.
    assert len(looks) <= 12 + (time.monotonic() - began_s)


def test_refused_documents_in_turn_have_the_node_look_at_a_bounded_pace(beside, monkeypatch):
    """Whoever has the engine can send two documents for ever; what is genuine is acted on meanwhile."""
    looks = []
    monkeypatch.setattr(beside.node, "converge", lambda: looks.append(beside.kept.state.generation))
    working = threading.Thread(target=beside.node.work)
    working.start()
    try:
        until(lambda: looks == [0])
        for number in range(150):
            beside.node.received(messages.NewDesired(document=b"[%d]" % (number % 2)))
        assert looks == [0]
        beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
        until(lambda: looks == [0, 1])
    finally:
        beside.node.stop()
        working.join()


def test_document_that_the_disk_does_not_take_is_taken_up_later(beside, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(kept_state.files, "replace", full)
        with pytest.raises(OSError, match="No space"):
            beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
    assert beside.kept.state.generation == 0
    monkeypatch.setattr(beside.node, "converge", beside.node.stop)
    beside.node.work()
    assert beside.kept.state.generation == 1


def test_event_that_is_added_while_waiting_ones_are_repeated_keeps_its_file(beside):
    """They are repeated at each connection, and events are added by other threads meanwhile."""
    added = []

    def add():
        said = kept_state.EventSaid(at=fleets.NOW, action="fleet.asked", target="")
        added.extend(beside.kept.add_event(said).number for _ in range(40))

    adding = threading.Thread(target=add)
    adding.start()
    while adding.is_alive():
        beside.kept.events()
    adding.join()
    assert [one.number for one in beside.kept.events()] == added == list(range(1, 41))


def test_nothing_follows_from_an_intent_that_was_revoked(beside):
    beside.node.received(messages.NewDesired(document=beside.desire(1, 1)))
    beside.node.converge()
    beside.node.received(messages.BundleHere(sha256="0" * 64))
    found = documents.unpack(beside.desire(1, 1), most=64 << 10)
    revoked = beside.fleet.revocations(intents=(beside.kept.state.present.intent,))
    desired = fleets.packed(
        assignment=found.assignment,
        intent=found.intent,
        controller=found.controller,
        revocations=documents.sign(revoked, fleets.OPERATOR),
    )
    beside.node.received(messages.NewDesired(document=desired))
    beside.node.converge()
    assert beside.daemon.asked == []
    status = beside.status()
    assert [one.code for one in status.plugins] == ["intent_revoked"]
    assert status.lists == (documents.name_of(revoked),)


def test_status_of_many_plugins_is_one_that_the_engine_takes(beside):
    plugins = tuple(
        documents.PluginStatus(
            id=f"acme.p{number}",
            version="1.0.0",
            identity="a" * 64,
            status="active",
            state="armed",
            health="healthy",
            restarts=0,
            denied=0,
            code="" if number else "needs_consent",
            reason="r" * 400,
        )
        for number in range(500)
    )
    beside.node._tell_status({one.id: one for one in plugins})
    assert [one.id for one in beside.status().plugins] == ["acme.p0"]
    beside.node._tell_status({one.id: one for one in plugins[:100]})
    assert len(beside.status().plugins) == 100
    beside.node._tell_status({one.id: one for one in plugins[:10]})
    assert [one.reason for one in beside.status().plugins] == ["r" * 400] * 10


def test_status_is_newer_than_the_last_one_though_the_clock_was_set_back(beside):
    """A controller takes none that is older: the node would seem to say nothing any more, and rollouts to go wrong."""
    told = []
    for now_s in (fleets.NOW, fleets.NOW - 3_600, fleets.NOW - 3_599, fleets.NOW + 60):
        beside.node._now_s = lambda now_s=now_s: now_s
        beside.node.converge()
        told.append(beside.status().at)
    assert told == sorted(told)
    assert (told[0], told[-1]) == (fleets.NOW, fleets.NOW + 60)
    # Also by an agent that was started anew since.
    later = node.FleetNode(beside.kept, beside.daemon, beside.sent.append, now_s=lambda: fleets.NOW - 3_600)
    later.converge()
    assert beside.status().at >= fleets.NOW + 60
    # What is damaged, as by a power cut, is as if it were not there.
    (beside.directory / kept_state.SAID).write_text("x")
    assert kept_state.opened(beside.directory).said_s() == 0


def test_what_an_operator_signed_whom_the_pinned_token_does_not_name_decides_nothing_more(beside):
    fleet = beside.fleet
    certified = documents.sign(fleet.node_certificate(labels={"role": "db"}, serial=7), fleets.OPERATOR)
    for_databases = fleet.intent(1, selector=documents.Selector(labels={"role": "db"}, nodes=()))
    wanted = documents.unpack(fleet.desired(1, intent=for_databases))
    desired = documents.pack(msgspec.structs.replace(wanted, node=certified))
    state, _ = judging.judge(beside.kept.state, desired, now_s=fleets.NOW)
    beside.kept.keep(state)
    for operators, labels, withdrawn in (
        ((fleets.OPERATOR, fleets.SECOND), "db", False),
        ((fleets.SECOND,), "web", True),
    ):
        pinned = fleet.token(operators=tuple(map(fleets.public, operators)))
        found = kept_state.opened(beside.directory, pinned).state
        assert (found.labels, found.withdrawn) == ({"role": labels}, withdrawn)
        # What was used up stays so.
        assert (found.generation, found.highest) == (1, 1)
    again = documents.sign(fleet.node_certificate(labels={"role": "db"}), fleets.SECOND)
    other = documents.pack(msgspec.structs.replace(wanted, node=again))
    assert judging.judge(found, other, now_s=fleets.NOW)[0].labels == {"role": "db"}


def test_answer_that_is_too_large_is_said_to_be(beside):
    beside.daemon.answer = {"text": "x" * STATUS_BYTES}
    carried = judging.Carried(invocation=beside.fleet.invocation(), operator=fleets.public(fleets.OPERATOR))
    beside.node._carry_out(1, carried)
    (done,) = [one for one in beside.sent if isinstance(one, messages.InvocationDone)]
    assert len(done.document) <= STATUS_BYTES
    assert documents.read(done.document, documents.InvocationResult).document.code == "too_large"


@pytest.mark.parametrize("why", ["invocation_expired", "operator_revoked"])
def test_invocation_that_counts_no_more_when_its_turn_comes_is_not_begun(beside, why):
    """Those before it may take ten minutes each."""
    now_s, began, slow = [fleets.NOW], [], threading.Event()
    beside.node._now_s = lambda: now_s[0]

    class Slow(EmptyDaemon):
        def ask(self, method, *parts, body=None, query=None):
            if parts[-1] != "invoke":
                return super().ask(method, *parts, body=body, query=query)
            began.append(body["action"])
            assert slow.wait(processes.PATIENCE_S)
            return {"ok": True}

    beside.node._daemon = Slow()
    working = threading.Thread(target=beside.node.invoke)
    working.start()
    try:
        for number, operator in enumerate((fleets.OPERATOR, fleets.OPERATOR, fleets.SECOND)):
            wanted = beside.fleet.invocation(nonce=f"{number:032x}", action=f"restart-{number}")
            asked = documents.sign(wanted, operator)
            beside.node.received(messages.InvocationAsked(number=number, document=asked))
        until(lambda: began)
        if why == "invocation_expired":
            now_s[0] += 60
        else:
            revoked = beside.fleet.revocations(fleets.public(fleets.OPERATOR))
            found = documents.unpack(beside.desire(1, 1))
            desired = documents.pack(
                msgspec.structs.replace(found, revocations=documents.sign(revoked, fleets.OPERATOR))
            )
            beside.node.received(messages.NewDesired(document=desired))
        slow.set()
        until(lambda: len(beside.answers()) == 3)
    finally:
        slow.set()
        beside.node.stop()
        working.join()
    another = "" if why == "operator_revoked" else why
    assert [one.code for one in beside.answers()] == ["", why, another]
    assert began == ["restart-0"] + ["restart-2"] * (not another)
