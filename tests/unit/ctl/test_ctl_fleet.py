"""What the operator of a fleet does without a network: keys, a directory, signatures, invitations, revocations."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import time

import pytest

from latticed.fleet import deployment, documents, enrolment, fleet_directory, nkeys
from latticed.fleet.controller import settings as controller_settings
from latticed.trust import key_files
from tests.house import nats_servers

INTENT = """
[selector]
labels = { role = "web" }

[[plugins]]
id = "acme.demo"
versions = ">=1.2, <2"
publisher = "acme"
accept = ["kv:read", "http:egress", "host=api.example.org:443"]
secrets = ["TOKEN"]
config = { interval_s = 60 }
"""


@pytest.fixture
def home(ctl, tmp_path, monkeypatch):
    """The directory of a new fleet; the operator's key is beside it."""
    monkeypatch.chdir(tmp_path)
    made = ctl("fleet", "key", "operator.key")
    assert made.code == 0, made.err
    key = made.out.strip()
    ran = ctl("fleet", "init", "home", "--operator", key, "--server", "fleet.example.org")
    assert ran.code == 0, ran.err
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


SIGNED = ("--key", "../operator.key", "--yes")


def signed(path, kind):
    return documents.read(path.read_bytes().strip(), kind)


def operator(home):
    return fleet_directory.opened(home).facts.operators[0]


def test_key_is_made_once_and_for_one_s_own_eyes(ctl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = ctl("fleet", "key", "operator.key", "--format", "json")
    shown = ctl("fleet", "key", "operator.key", "--show")
    assert json.loads(made.data)["public_key"] == shown.out.strip()
    assert stat.S_IMODE((tmp_path / "operator.key").stat().st_mode) == 0o600
    again = ctl("fleet", "key", "operator.key")
    assert (again.code, "never overwritten" in again.err) == (1, True)
    before = (tmp_path / "operator.key").read_bytes()
    assert ctl("fleet", "key", "operator.key", "--show").code == 0
    assert (tmp_path / "operator.key").read_bytes() == before


@pytest.mark.parametrize("count", [1, 3])
def test_directory_has_what_real_servers_take(ctl, tmp_path, count):
    key = ctl("fleet", "key", str(tmp_path / "operator.key")).out.strip()
    servers = [word for number in range(count) for word in ("--server", f"127.0.0.1:{14_000 + number}")]
    place = tmp_path / "home"
    ran = ctl(
        *("fleet", "init", str(place), "--operator", key, *servers, "--controller", "c1", "--controller", "c2"),
        *("--server-files", str(place / "servers"), "--server-data", str(tmp_path / "data"), "--format", "json"),
    )
    assert ran.code == 0, ran.err
    told = json.loads(ran.data)
    assert (told["fleet"], len(told["servers"]), told["controllers"]) == (
        "home",
        count,
        ["controllers/c1", "controllers/c2"],
    )
    for below in told["servers"]:
        configuration = place / below / "nats-server.conf"
        checked = subprocess.run(
            [nats_servers.PROGRAM, "-t", "-c", configuration], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stderr
        assert "sync_interval: always" in configuration.read_text()
        assert re.fullmatch(r"GOMEMLIMIT=\d{9}\n", (place / below / "nats-server.env").read_text())
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    secret = [place / one for one in told["files"] if re.search(r"key$|creds$|signer|secret/", one)]
    assert {stat.S_IMODE(one.stat().st_mode) for one in secret} == {0o600}
    assert len(secret) == 3 + count + 2 * 4
    # Each controller has a key and credentials of its own, and none what is the operator's.
    keys = {(place / f"controllers/{one}/key").read_bytes() for one in ("c1", "c2")}
    assert len(keys) == 2
    seeds = json.loads((place / "secret/identities.json").read_text())
    given = b"".join(one.read_bytes() for one in (place / "controllers").rglob("*") if one.is_file())
    assert [name for name, seed in seeds.items() if seed.encode() in given] == ["node_signer"]
    for one in ("c1", "c2"):
        found = controller_settings.read(place / f"controllers/{one}/controller.toml")
        assert (found.fleet, found.controller, found.operators, found.engine.replicas) == ("home", one, (key,), count)
        signer = nkeys.Key.from_seed((place / f"controllers/{one}/node-signer").read_text().strip())
        assert signer.public == nkeys.Key.from_seed(seeds["node_signer"]).public
        assert found.enrolment.account == nkeys.Key.from_seed(seeds["nodes"]).public
    assert ctl("fleet", "init", str(place), "--operator", key, *servers).code == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--server", "a", "--server", "b"), "one server or three"),
        (("--server", "a", "--server", "a", "--server", "a"), "one server or three"),
        (("--server", "a:0"), "HOST:PORT"),
        (("--server", "a:70000"), "HOST:PORT"),
        (("--server", "a b"), "server's name"),
        (("--server", "a", "--controller", "C.1"), "node's name"),
        (("--server", "a", "--controller", "c1", "--controller", "c1"), "each once"),
        (("--server", "a", "--name", "Home"), "node's name"),
        (("--server", "a", "--server-files", "etc"), "absolute path"),
        (("--server", "a", "--server-data", '/var/"x'), "printable ASCII"),
        (("--server", "a", "--operator", "x"), "--operator"),
    ],
)
def test_fleet_that_cannot_be_is_not_made(ctl, tmp_path, words, said):
    key = ctl("fleet", "key", str(tmp_path / "operator.key")).out.strip()
    ran = ctl("fleet", "init", str(tmp_path / "home"), "--operator", key, *words)
    assert ran.code in {1, 2}
    assert said in ran.err
    assert [one.name for one in tmp_path.iterdir()] == ["operator.key"]


def test_intent_is_shown_with_what_to_look_at_and_signed(ctl, home):
    (home / "web.toml").write_text(INTENT)
    ran = ctl("fleet", "sign", "web.toml", *SIGNED)
    assert ran.code == 0, ran.err
    for said in ("hosts with role=web", ">=1.2, <2 by acme", "http:egress (host)", '{"interval_s": 60}', "TOKEN"):
        assert said in ran.out
    assert "look: acme.demo can act on its host or reach others: http:egress, host=api.example.org:443" in ran.out
    found = signed(home / "web.intent", documents.Intent)
    assert found.key == operator(home)
    made = found.document
    assert (made.fleet, made.generation, made.back_to, made.plugins[0].config) == ("home", 1, (), {"interval_s": 60})
    assert abs(made.expires - time.time() - 30 * 86_400) < 3_600
    # The next one is of a higher generation, and a controller may go back from it to this one.
    assert ctl("fleet", "sign", "web.toml", "--out", "next.intent", *SIGNED).code == 0
    later = signed(home / "next.intent", documents.Intent).document
    assert (later.generation, later.back_to) == (2, (found.sha256,))


def test_way_back_is_to_what_was_signed_for_the_same_hosts_and_beyond_one_that_was_bad(ctl, home):
    def made(text):
        (home / "next.toml").write_text(text)
        assert ctl("fleet", "sign", "next.toml", *SIGNED).code == 0
        found = signed(home / "next.intent", documents.Intent)
        (home / "next.intent").unlink()
        return found.sha256, found.document.back_to

    db, one = INTENT.replace('"web"', '"db"'), INTENT.replace("[selector]", '[selector]\nnodes = ["web-1"]')
    first, _ = made(INTENT)
    _, of_db = made(db)
    assert of_db == ()
    second, of_second = made(INTENT)
    assert of_second == (first,)
    # Where the second went back, hosts have the first when the third comes.
    third, of_third = made(INTENT)
    assert of_third == (second, first)
    canary, of_canary = made(one)
    assert of_canary == (third,)
    fourth, of_fourth = made(INTENT)
    assert of_fourth == (canary, third, second, first)
    _, of_fifth = made(INTENT)
    assert of_fifth == (fourth, third, second)


def test_nothing_is_signed_without_a_yes(ctl, home, monkeypatch):
    (home / "web.toml").write_text(INTENT)
    refused = ctl("fleet", "sign", "web.toml", "--key", "../operator.key")
    assert (refused.code, "--yes" in refused.err) == (1, True)
    dry = ctl("fleet", "sign", "web.toml", "--dry-run", "--key", "../operator.key", "--format", "json")
    assert (dry.code, json.loads(dry.data)["signed"]) == (0, False)
    assert not (home / "web.intent").exists()
    assert not list((home / "signed").iterdir())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('id = "acme.demo"', 'id = "Acme demo"'), "id of a plugin"),
        (('publisher = "acme"', ""), "versions and a publisher"),
        (('">=1.2, <2"', '">=1.2 or so"'), "acme.demo"),
        (('"kv:read"', '"kv:reed"'), "kv:reed"),
        (('"host=api.example.org:443"', '"hots=api.example.org:443"'), "hots"),
        (("accept =", "acept ="), "acept"),
        (("config = { interval_s = 60 }", "config = 7"), "config"),
        (('role = "web"', 'role = "we b"'), "selector.labels"),
        (("[selector]", "generation = 0\n[selector]"), "generation"),
        (("[selector]", 'kind = "other"\n[selector]'), "the kind 'other'"),
        (("[selector]", 'fleet = "elsewhere"\n[selector]'), "expected home"),
        (("[selector]", 'back_to = ["abc"]\n[selector]'), "back_to"),
        (("[selector]", "days = 0\n[selector]"), "days"),
        (("[selector]", "["), "web.toml"),
        (("interval_s = 60", f'interval_s = "{"x" * 60_000}"'), "bytes"),
    ],
)
def test_intent_that_no_host_would_take_is_not_signed(ctl, home, change, said):
    (home / "web.toml").write_text(INTENT.replace(*change))
    ran = ctl("fleet", "sign", "web.toml", *SIGNED)
    assert (ran.code, said in ran.err) == (1, True), ran.err
    assert "Traceback" not in ran.err
    assert not (home / "web.intent").exists()
    assert not list((home / "signed").iterdir())


def test_stranger_s_key_signs_nothing(ctl, home):
    (home / "web.toml").write_text(INTENT)
    ctl("fleet", "key", "../other.key")
    for words in (
        ("sign", "web.toml", "--yes"),
        ("sign", "controllers/c1/request.json", "--yes"),
        ("enroll", "web-1"),
        ("revoke", "0" * 64, "--yes"),
    ):
        ran = ctl("fleet", *words, "--key", "../other.key")
        assert (ran.code, "operator of the fleet home" in ran.err) == (1, True), ran.err
    assert not list((home / "signed").iterdir())


def joined(ctl, home, name="web-1"):
    """What a controller says of a host that has joined by an invitation: its view, and its user."""
    place = home / f"{name}.invitation"
    assert ctl("fleet", "enroll", name, "--key", "../operator.key").code == 0
    invited = enrolment.read_invitation(place.read_bytes(), now_s=int(time.time()))
    place.unlink()
    key = key_files.public_text(key_files.generate())
    user = nkeys.Key.generate(nkeys.KeyKind.USER).public
    asked = enrolment.request(invited, key, user).decode()
    return {"key": key, "node": {"name": name}, "enrolments": [asked]}, user


def test_host_is_revoked_with_its_connection_by_what_the_controller_can_prove(ctl, home):
    view, user = joined(ctl, home)
    (home / "web-1.json").write_text(json.dumps(view))
    ran = ctl("fleet", "revoke", "web-1.json", *SIGNED)
    assert ran.code == 0, ran.err
    assert f"{user}, a user of the message system" in ran.out
    assert "latticectl fleet send" in ran.err
    assert signed(home / "signed/revocations.json", documents.Revocations).document.keys == (view["key"],)
    made = signed(home / "signed/users.json", documents.UserRevocations).document
    assert made.users == (user,)
    identities = fleet_directory.opened(home).identities()
    claims = nkeys.verified(made.account, frozenset({identities.operator.public}))
    assert (claims["sub"], list(claims["nats"]["revocations"])) == (identities.nodes.public, [user])
    # Everything else of the account is as the servers have it.
    present = deployment.account_tokens(identities, now_s=1)[identities.nodes.public]
    assert {**claims["nats"], "revocations": None} == {**nkeys.unverified(present)["nats"], "revocations": None}
    # The next list has this one, and its token comes after, though of the same second.
    again, second = joined(ctl, home, "web-2")
    (home / "web-2.json").write_text(json.dumps(again))
    assert ctl("fleet", "revoke", "web-2.json", *SIGNED).code == 0
    later = signed(home / "signed/users.json", documents.UserRevocations).document
    assert (later.serial, later.users) == (2, (user, second))
    assert nkeys.unverified(later.account)["iat"] > claims["iat"]
    # A key alone leaves the connection, which is said.
    alone = ctl("fleet", "revoke", key_files.public_text(key_files.generate()), *SIGNED)
    assert "stays connected until its credentials end" in alone.err
    assert ctl("fleet", "revoke", "web-2.json", *SIGNED).code == 1


@pytest.mark.parametrize("lie", ["of another host", "by nobody's invitation", "no view"])
def test_controller_has_no_other_host_cut_off_instead(ctl, home, lie):
    view, user = joined(ctl, home)
    other, _ = joined(ctl, home, "web-2")
    if lie == "of another host":
        other["enrolments"] += view["enrolments"]
    elif lie == "by nobody's invitation":
        other["enrolments"] = [other["enrolments"][0].replace('"signature":"', '"signature":"AAAA')]
    (home / "web-2.json").write_text("{}" if lie == "no view" else json.dumps(other))
    before = sorted(one.name for one in (home / "signed").iterdir())
    ran = ctl("fleet", "revoke", "web-2.json", *SIGNED)
    if lie == "of another host":
        assert user not in signed(home / "signed/users.json", documents.UserRevocations).document.users
        return
    assert (ran.code, sorted(one.name for one in (home / "signed").iterdir())) == (2 if lie == "no view" else 1, before)


def test_controller_is_certified_and_revoked_by_name(ctl, home):
    request = json.loads((home / "controllers/c1/request.json").read_text())
    ran = ctl("fleet", "sign", "controllers/c1/request.json", *SIGNED)
    assert ran.code == 0, ran.err
    found = signed(home / "controllers/c1/certificate.json", documents.ControllerCertificate).document
    assert (found.controller, found.controller_key, found.epoch) == ("c1", request["controller_key"], 1)
    revoked = ctl("fleet", "revoke", "c1", *SIGNED)
    assert revoked.code == 0, revoked.err
    assert "epoch = 2" in revoked.err
    (home / "controllers/c1/request.json").write_text(json.dumps({**request, "epoch": 2}))
    ctl("fleet", "sign", "controllers/c1/request.json", *SIGNED)
    assert signed(home / "controllers/c1/certificate.json", documents.ControllerCertificate).document.epoch == 2


def test_revocations_grow_and_take_nothing_back(ctl, home):
    first, second = "ab" * 32, "cd" * 32
    path = home / "signed/revocations.json"
    assert ctl("fleet", "revoke", first, *SIGNED).code == 0
    assert ctl("fleet", "revoke", second, operator(home), *SIGNED).code == 0
    found = signed(path, documents.Revocations).document
    assert (found.serial, found.intents, found.keys) == (2, (first, second), (operator(home),))
    again = ctl("fleet", "revoke", first, *SIGNED)
    assert (again.code, "counts still" in again.err) == (1, True)
    wrong = ctl("fleet", "revoke", "web-1", *SIGNED)
    assert (wrong.code, "latticectl fleet node" in wrong.err) == (2, True)
    assert signed(path, documents.Revocations).document.serial == 2


def test_revocations_that_one_list_has_no_room_for_are_signed_into_another(ctl, home):
    keys = [key_files.public_text(key_files.generate()) for _ in range(500)]
    intents = [f"{number:064x}" for number in range(10)]
    assert ctl("fleet", "revoke", *keys[:400], *SIGNED).code == 0
    full = signed(home / "signed/revocations.json", documents.Revocations).document
    ran = ctl("fleet", "revoke", *keys[400:499], *intents, *SIGNED)
    assert ran.code == 0, ran.err
    assert "signed/revocations.json home/signed/revocations-2.json" in ran.err.replace(f"{home}/", "home/")
    first = (home / "signed/revocations.json").read_bytes()
    ran = ctl("fleet", "revoke", keys[499], *SIGNED)
    assert ran.code == 0, ran.err
    # The full one is not signed again: it is the same for whoever has it.
    assert (home / "signed/revocations.json").read_bytes() == first
    lists = fleet_directory.opened(home).revocations()
    assert list(lists) == ["revocations.json", "revocations-2.json"]
    found = [one.document for one in lists.values()]
    assert set(full.keys) < set(found[0].keys)
    assert [key for one in found for key in one.keys] == keys
    assert [sha256 for one in found for sha256 in one.intents] == intents
    assert full.serial < found[0].serial < found[1].serial
    again = ctl("fleet", "revoke", keys[0], *SIGNED)
    assert (again.code, "counts still" in again.err) == (1, True)


def test_revocations_of_one_command_fill_as_many_lists_as_they_need(ctl, home):
    keys = [key_files.public_text(key_files.generate()) for _ in range(1_000)]
    assert ctl("fleet", "revoke", *keys, *SIGNED).code == 0
    lists = fleet_directory.opened(home).revocations()
    assert list(lists) == ["revocations.json", "revocations-2.json", "revocations-3.json"]
    assert [key for one in lists.values() for key in one.document.keys] == keys
    assert [one.document.serial for one in lists.values()] == [1, 2, 3]


def test_labels_of_a_node_are_certified_with_growing_serials(ctl, home):
    key = operator(home)
    (home / "web-1.json").write_text(
        json.dumps({"kind": "node", "node": "web-1", "node_key": key, "labels": {"role": "db"}})
    )
    for serial in (1, 2):
        ran = ctl("fleet", "sign", "web-1.json", *SIGNED)
        assert ran.code == 0, ran.err
        found = signed(home / "web-1.certificate", documents.NodeCertificate).document
        assert (found.node, found.labels, found.serial) == ("web-1", {"role": "db"}, serial)
    # Of a node whose name this one begins with, serials begin anew.
    (home / "web.json").write_text(json.dumps({"kind": "node", "node": "web", "node_key": key, "labels": {}}))
    assert ctl("fleet", "sign", "web.json", *SIGNED).code == 0
    assert signed(home / "web.certificate", documents.NodeCertificate).document.serial == 1


def test_invitation_is_a_secret_for_one_host(ctl, home):
    ran = ctl("fleet", "enroll", "web-1", "--label", "role=web", "--label", "site=oslo", "--key", "../operator.key")
    assert ran.code == 0, ran.err
    place = home / "web-1.invitation"
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    found = enrolment.read_invitation(place.read_bytes(), now_s=int(time.time()))
    token = found.document
    assert (token.node, token.labels, token.operators) == (
        "web-1",
        {"role": "web", "site": "oslo"},
        (operator(home),),
    )
    assert token.addresses == ("tls://fleet.example.org:4222",)
    assert token.certificates == (home / "ca.pem").read_text()
    claims = nkeys.unverified(found.credentials.token)
    assert claims["exp"] == token.expires
    assert found.token.sha256 in ran.err
    again = ctl("fleet", "enroll", "web-1", "--key", "../operator.key")
    assert (again.code, "exists" in again.err or "found one" in again.err) == (1, True)


def test_nothing_is_signed_by_an_operator_who_is_revoked_and_no_host_told_to_believe_him(ctl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ada, bob = (ctl("fleet", "key", f"{name}.key").out.strip() for name in ("ada", "bob"))
    made = ("fleet", "init", "home", "--operator", ada, "--operator", bob, "--server", "fleet.example.org")
    assert ctl(*made).code == 0
    monkeypatch.chdir(tmp_path / "home")
    (tmp_path / "home/web.toml").write_text(INTENT)
    assert ctl("fleet", "revoke", bob, "--key", "../ada.key", "--yes").code == 0
    for words in (("sign", "web.toml", "--yes"), ("enroll", "web-1"), ("revoke", ada, "--yes")):
        ran = ctl("fleet", *words, "--key", "../bob.key")
        assert (ran.code, "who is not revoked" in ran.err) == (1, True), words
    assert ctl("fleet", "enroll", "web-1", "--key", "../ada.key").code == 0
    invited = enrolment.read_invitation((tmp_path / "home/web-1.invitation").read_bytes(), now_s=int(time.time()))
    assert invited.document.operators == (ada,)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("Web.1",), "node's name"),
        (("w", "--label", "role"), "NAME=VALUE"),
        (("w", "--label", "a=1", "--label", "a=2"), "each label once"),
        (("w", "--label", "a=b c"), "letters, digits"),
        (("w", "--days", "31"), "1 to 30"),
        (("w", "--days", "0"), "1 to 30"),
    ],
)
def test_host_that_cannot_be_is_not_invited(ctl, home, words, said):
    ran = ctl("fleet", "enroll", *words, "--key", "../operator.key")
    assert (ran.code in {1, 2}, said in ran.err) == (True, True), ran.err
    assert not list(home.glob("*.invitation"))


def test_directory_is_found_around_and_named_where_it_is_not(ctl, home, tmp_path, monkeypatch):
    (home / "below").mkdir()
    monkeypatch.chdir(home / "below")
    assert ctl("fleet", "enroll", "web-1", "--key", "../../operator.key").code == 0
    monkeypatch.chdir(tmp_path)
    lost = ctl("fleet", "enroll", "web-2", "--key", "operator.key")
    assert (lost.code, "--fleet DIR" in lost.err) == (4, True)
    assert ctl("fleet", "enroll", "web-2", "--key", "operator.key", "--fleet", "home").code == 0


def test_damaged_record_of_signatures_stops_signing(ctl, home):
    """A generation that was given away must not be given away again."""
    (home / "web.toml").write_text(INTENT)
    assert ctl("fleet", "sign", "web.toml", *SIGNED).code == 0
    (kept,) = (home / "signed").iterdir()
    kept.write_bytes(kept.read_bytes().replace(b"payload", b"payloda"))
    ran = ctl("fleet", "sign", "web.toml", *SIGNED)
    assert (ran.code, "fleet's directory" in ran.err) == (1, True), ran.err
