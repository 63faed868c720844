"""A fleet over a NATS that somebody runs already: the same commands, and a check of what it must have and must not."""

from __future__ import annotations

import asyncio
import json
import time
import tomllib

import msgspec
import pytest

from latticed.fleet import deployment, documents, enrolment, nkeys, subjects
from latticed.fleet.controller import settings as controller_settings
from latticed.fleet.controller.running import RunningController
from latticed.fleet.nats_connection import NatsConnection
from latticed.fleet.nats_engine import NatsControllerEngine, NatsEngine
from latticed.trust import key_files
from tests.house import fleet_controllers as house
from tests.house import nats_servers, own_nats

WAIT_S = 90
SIGNED = ("--key", "../operator.key", "--yes")
GARBAGE = b"-----BEGIN CERTIFICATE-----\ngarbage\n-----END CERTIFICATE-----\n"


@pytest.fixture
def own(tmp_path):
    return own_nats.configured(tmp_path / "nats")


@pytest.fixture
def home(ctl, own, tmp_path, monkeypatch):
    """The directory of a fleet over these servers; the operator's key is beside it."""
    monkeypatch.chdir(tmp_path)
    key = ctl("fleet", "key", "operator.key").out.strip()
    ran = ctl(
        *("fleet", "init", "home", "--operator", key, "--server", f"127.0.0.1:{own.server.port}", "--ca", str(own.ca)),
        *("--control-account", own.accounts["FLEET"].public, "--nodes-account", own.accounts["HOSTS"].public),
    )
    assert ran.code == 0, ran.err
    assert "to who runs your NATS" in ran.out
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def test_directory_has_nothing_of_servers_and_no_key_that_is_not_its_own(home, own):
    assert not (home / "servers").exists()
    assert sorted(one.name for one in (home / "secret").iterdir()) == ["signers.json"]
    assert sorted(one.name for one in (home / "accounts").iterdir()) == ["CTRL.json", "NODES.json"]
    assert (home / "ca.pem").read_bytes() == own.ca.read_bytes()
    given = b"".join(one.read_bytes() for one in home.rglob("*") if one.is_file())
    assert not any(key.seed.encode() in given for key in (own.operator, *own.accounts.values()))
    shown = b"".join(one.read_bytes() for one in (home / "accounts").iterdir())
    kept = json.loads((home / "secret/signers.json").read_text())
    assert not any(kept[name].encode() in shown for name in ("control_signer", "node_signer", "enrol_signer"))


def settings_of(home, place):
    """The controller's settings as init wrote them, with paths of this test."""
    files = home / "controllers/c1"
    text = (files / "controller.toml").read_text().replace(controller_settings.FILES, str(files))
    text = f'key = "{files}/key"\ncertificate = "{files}/certificate.json"\n{text}'
    plain = {**tomllib.loads(text), "state_dir": str(place / "c1"), "runtime_dir": str(place / "run")}
    return msgspec.convert(plain, controller_settings.ControllerSettings)


def provided(own, home):
    """Have the streams made, as the controller does at its first start."""

    async def provide():
        async with asyncio.timeout(WAIT_S):
            end = own.endpoint(home / "controllers/c1/nats.creds", "c1")
            async with NatsConnection(end, pauses=nats_servers.QUICK) as connection:
                await connection.wait_up()
                sizes = deployment.Sizes(nodes=1_000)
                await NatsControllerEngine(connection).provide(deployment.streams(sizes, replicas=1))

    asyncio.run(provide())


def checked(ctl, *options):
    """The exit code, and what is serious of what is found."""
    ran = ctl("fleet", "check", "--format", "json", *options)
    assert ran.data, ran.err
    rows = json.loads(ran.data)
    return ran.code, [f"{one['expected']}: {one['found']}" for one in rows if one["serious"]], rows


def test_servers_that_grant_what_is_asked_are_fit_and_what_they_can_do_without_is_said(ctl, home, own):
    own.granting(home / "accounts")
    with own_nats.started(own):
        provided(own, home)
        system = ("--system-credentials", str(own.user("SYSTEM", "check")))
        code, serious, rows = checked(ctl, *system)
        assert (code, serious) == (0, [])
        assert [one["found"] for one in rows] == [
            "none: a node that is revoked stays connected until its user is revoked there, or its credentials end"
        ]
        # A resolver in memory takes no token, whatever its user may.
        made = str(own.user("SYSTEM", "c1"))
        code, serious, rows = checked(ctl, *system, "--revoking-credentials", made)
        assert [one["found"] for one in rows if "cut off at once" in one["expected"]], rows
        assert ctl("fleet", "check", *system).code == 0


def without(where, name):
    """One who forgets to export or import something."""

    def change(claims):
        claims[where]["exports" if where == "FLEET" else "imports"] = [
            one for one in claims[where]["exports" if where == "FLEET" else "imports"] if one["name"] != name
        ]

    return change


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("desired", "read its document"),
        ("events", "whose events are kept"),
        ("status", "whose statuses are kept"),
        ("presence", "controllers see as present"),
        ("renewal", "requests for credentials"),
        ("pushed", "hears of a new document at once"),
    ],
)
def test_each_way_that_is_missing_is_named(ctl, home, own, name, said):
    own.granting(home / "accounts", change=without("HOSTS", name))
    with own_nats.started(own):
        provided(own, home)
        code, serious, _ = checked(ctl, "--system-credentials", str(own.user("SYSTEM", "check")))
        assert code == 3
        assert [one for one in serious if said in one], serious


def test_operators_question_that_reaches_no_node_and_missing_streams_are_named(ctl, home, own):
    def change(claims):
        claims["HOSTS"]["exports"] = []
        claims["FLEET"]["imports"] = []

    own.granting(home / "accounts", change=change, sync="2m")
    with own_nats.started(own):
        # A controller makes the streams; before that nothing can be said of nodes.
        code, serious, _ = checked(ctl, "--system-credentials", str(own.user("SYSTEM", "check")))
        assert code == 3
        assert [one for one in serious if "the stream KV_desired: none: a controller makes it at its start" in one]
        provided(own, home)
        code, serious, _ = checked(ctl, "--system-credentials", str(own.user("SYSTEM", "check")))
        assert code == 3
        for said in ("answers what operators ask", "sync_interval"):
            assert [one for one in serious if said in one], serious


def too_much(claims):
    """Templates that let everybody do everything in the accounts of nodes."""
    for one in claims["HOSTS"]["signing_keys"]:
        one["template"] |= {"pub": {"allow": [">"]}, "sub": {"allow": [">"]}, "subs": -1}


def hears_news(claims):
    """An invited host that may hear what only controllers do."""
    (invited,) = [one for one in claims["HOSTS"]["signing_keys"] if one["role"] == "invited"]
    invited["template"]["sub"]["allow"].append("news.*")


def test_each_permission_too_many_is_named(ctl, home, own):
    own.granting(home / "accounts", change=too_much)
    with own_nats.started(own):
        provided(own, home)
        code, serious, _ = checked(ctl, "--system-credentials", str(own.user("SYSTEM", "check")))
        assert code == 3
        for said in ("a node that may not publish to st.check-", "a node that may not listen to >", "an invited host"):
            assert [one for one in serious if said in one], (said, serious)


def test_invited_host_that_hears_more_is_named(ctl, home, own):
    own.granting(home / "accounts", change=hears_news)
    with own_nats.started(own):
        provided(own, home)
        _, serious, _ = checked(ctl, "--system-credentials", str(own.user("SYSTEM", "check")))
        assert [one for one in serious if one.startswith("an invited host that does not reach news.*")], serious


def test_key_of_an_account_that_its_owner_left_out_does_not_connect(ctl, home, own):
    def change(claims):
        claims["FLEET"]["signing_keys"] = []

    own.granting(home / "accounts", change=change)
    with own_nats.started(own):
        ran = ctl("fleet", "check", "--system-credentials", str(own.user("SYSTEM", "check")))
        assert ran.code == 7
        assert "no connection to the message system" in ran.err


@pytest.mark.parametrize("damaged", [GARBAGE, b"", b"\xff"])
def test_damaged_authority_is_named_and_no_other_counts(ctl, home, damaged):
    """Neither is there anything to connect to, nor an invitation made with it."""
    (home / "ca.pem").write_bytes(damaged)
    for words in (("check",), ("enroll", "web-1", *SIGNED[:2])):
        ran = ctl("fleet", *words)
        assert ran.code == 1
        assert "ca.pem: expected a file of a fleet's directory, found: no certificates in PEM" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ca", "ca.pem"), "together"),
        (("--ca", "none.pem", "--control-account", "A", "--nodes-account", "A"), "found no file"),
        (("--ca", "operator.key", "--control-account", "A", "--nodes-account", "A"), "in PEM"),
        (("--ca", "garbage.pem", "--control-account", "A", "--nodes-account", "A"), "in PEM"),
        (("--ca", "empty.pem", "--control-account", "A", "--nodes-account", "A"), "in PEM"),
        (("--ca", "ca.pem", "--control-account", "A", "--nodes-account", "A"), "public keys of two accounts"),
        (("--ca", "ca.pem", "--control-account", "SAME", "--nodes-account", "SAME"), "nodes would reach the streams"),
    ],
)
def test_own_servers_that_cannot_be_are_refused(ctl, own, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").write_bytes(own.ca.read_bytes())
    (tmp_path / "garbage.pem").write_bytes(GARBAGE)
    (tmp_path / "empty.pem").touch()
    key = ctl("fleet", "key", "operator.key").out.strip()
    account = own.accounts["FLEET"].public
    ran = ctl(
        *("fleet", "init", "home", "--operator", key, "--server", "a"),
        *(account if one == "SAME" else one for one in words),
    )
    assert ran.code in {1, 2, 4}
    assert said in ran.err
    assert not (tmp_path / "home").exists()


def test_host_joins_by_an_invitation_and_takes_what_is_rolled_out(ctl, home, own, tmp_path):
    """The commands of the page, with these servers: sign, enroll, join, sign, roll; then revoke, which says more."""
    own.granting(home / "accounts")
    assert ctl("fleet", "sign", "controllers/c1/request.json", *SIGNED).code == 0
    assert ctl("fleet", "enroll", "web-1", "--label", "role=web", "--key", "../operator.key").code == 0
    (home / "web.toml").write_text(
        '[selector]\nlabels = { role = "web" }\n[[plugins]]\nid = "acme.demo"\nversions = ">=1"\npublisher = "acme"\n'
    )
    assert ctl("fleet", "sign", "web.toml", *SIGNED).code == 0
    with own_nats.started(own):
        view = asyncio.run(_joined(home, own, tmp_path))
    (home / "web-1.json").write_text(json.dumps(view))
    ran = ctl("fleet", "revoke", "web-1.json", *SIGNED)
    assert ran.code == 0, ran.err
    assert "have your servers revoke these users of the account NODES: U" in ran.err
    assert (home / "signed/revocations.json").exists()
    assert not (home / "signed/users.json").exists()


async def _joined(home, own, place):
    invited = enrolment.read_invitation((home / "web-1.invitation").read_bytes(), now_s=int(time.time()))
    key, user = key_files.generate(), nkeys.Key.generate(nkeys.KeyKind.USER)
    public = key_files.public_text(key)
    running = RunningController(
        settings_of(home, place), lease=house.LEASE, periods=house.PERIODS, pauses=nats_servers.QUICK
    )
    async with asyncio.timeout(WAIT_S), running:
        await house.until(lambda: running.leader.acts, lambda: str(running.leader.troubles))
        nonce = invited.document.token
        path = place / "invited.creds"
        path.write_bytes(invited.credentials.text())
        asked = enrolment.request(invited, public, user.public)
        async with NatsConnection(own.endpoint(path, nonce), pauses=nats_servers.QUICK) as connection:
            await connection.wait_up()
            answer = (await connection.request(subjects.enrolment(nonce), asked)).data
        granted = enrolment.answered(
            answer,
            fleet="home",
            operators=invited.document.operators,
            node="web-1",
            node_key=public,
            user=user.public,
            now_s=int(time.time()),
        )
        path = place / "web-1.creds"
        credentials = nkeys.UserCredentials(token=granted.jwt, key=user, name="web-1", expires_s=granted.expires)
        path.write_bytes(credentials.text())
        operations = house.FleetOperations(running)
        taken = await operations.take_document((home / "web.intent").read_bytes().strip())
        async with NatsConnection(own.endpoint(path, "web-1"), pauses=nats_servers.QUICK) as connection:
            await connection.wait_up()
            engine = NatsEngine(connection, "web-1")
            await engine.beat(b"{}")
            await operations.begin(house.view.RolloutWanted(intent=taken.sha256))
            await nats_servers.until(engine.desired)
            found = await engine.desired()
            desired = documents.unpack(found, most=len(found))
            assert documents.read(desired.intent, documents.Intent).sha256 == taken.sha256
        return {"key": public, "node": {"name": "web-1"}, "enrolments": [asked.decode()]}
