"""Secrets: encrypted in the ledger, expanded only for plugins they are bound to, redacted in answers."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed import settings as settings_module
from latticed.host.call import HostError
from latticed.host.secret import keeper as secrets
from latticed.host.secret import key as secret_key
from latticed.host.secret import references as redaction
from latticed.host.secret.keeper import MAX_VALUE_BYTES, SecretKeeper
from latticed.host.secret.key import KeyLocation
from latticed.host.secret.references import MAX_EXPANDED_BYTES
from latticed.ledger import Ledger, open_ledger
from latticed.ledger import secrets as rows
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.settings import Settings
from tests.house import hanging_mounts, in_process
from tests.house.clocks import ManualClock

VALUE = 's3cr3t/vålue+with "quotes"\nand lines'
PLUGIN, OTHER = "acme.demo", "acme.other"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path: Path, clock: ManualClock) -> AsyncIterator[Ledger]:
    async with open_ledger(tmp_path / "state", clock=clock) as found:
        yield found


@pytest.fixture
def place(tmp_path: Path) -> KeyLocation:
    return KeyLocation(path=tmp_path / "config" / "secrets.key", ours=True)


@pytest.fixture
def store(ledger: Ledger, place: KeyLocation, clock: ManualClock) -> SecretKeeper:
    return SecretKeeper(ledger, place, clock=clock)


def refused(store: SecretKeeper, text: str, plugin: str = PLUGIN) -> HostError:
    with pytest.raises(HostError) as caught:
        store.for_plugin(plugin).expand(text)
    assert VALUE not in str(caught.value)
    return caught.value


async def bound(store: SecretKeeper, name: str = "TOKEN", value: str = VALUE) -> None:
    await store.set(name, value)
    await store.bind(name, PLUGIN)


async def test_reference_to_bound_secret_is_expanded(store: SecretKeeper) -> None:
    """It is expanded everywhere in the text; malformed references stay."""
    await bound(store)
    text = "Bearer ${secret:TOKEN}, ${secret:TOKEN} ${TOKEN} ${secret:TOKEN $secret:TOKEN"
    expected = f"Bearer {VALUE}, {VALUE} ${{TOKEN}} ${{secret:TOKEN $secret:TOKEN"
    assert store.for_plugin(PLUGIN).expand(text) == expected
    assert store.for_plugin(OTHER).expand("nothing of the kind") == "nothing of the kind"


async def test_secret_values_are_not_expanded_again(store: SecretKeeper) -> None:
    """One pass: a value that contains a reference, or half of one, is text."""
    await bound(store, "TOKEN", "${secret:INNER}")
    await bound(store, "HALF", "${secret:")
    await bound(store, "INNER", "the inner value")
    assert store.for_plugin(PLUGIN).expand("${secret:TOKEN}") == "${secret:INNER}"
    assert store.for_plugin(PLUGIN).expand("${secret:HALF}INNER}") == "${secret:INNER}"


@pytest.mark.parametrize("name", ["ABSENT", "TOKEN", "lower", "", "A" * 65, "A\x1b[2J", "TOKEN "])
async def test_reference_to_secret_that_is_not_bound_is_refused(store: SecretKeeper, name: str) -> None:
    """The same error whether or not the secret exists, so that its existence is not disclosed."""
    await store.set("TOKEN", VALUE)
    await store.bind("TOKEN", OTHER)
    error = refused(store, f"x ${{secret:{name}}}")
    assert error.code is Denial.BAD_PARAMS
    assert error.reason.startswith("the operator has bound no secret ")
    assert name in error.reason or "\x1b" in name or len(name) > 64
    assert error.reason.isprintable()


async def test_secret_is_refused_once_unbound(store: SecretKeeper) -> None:
    """Effective at once; removing a missing binding is not_found."""
    await bound(store)
    await store.unbind("TOKEN", PLUGIN)
    assert refused(store, "${secret:TOKEN}").code is Denial.BAD_PARAMS
    with pytest.raises(Problem) as caught:
        await store.unbind("TOKEN", PLUGIN)
    assert caught.value.code == "not_found"


async def test_secret_list_has_no_values(store: SecretKeeper, clock: ManualClock) -> None:
    """Names, versions, bound plugins, times; deleting with `unbind` removes the bindings."""
    began = clock.now_us
    await bound(store)
    await store.bind("TOKEN", OTHER)
    clock.advance(5)
    assert await store.set("TOKEN", "another value") == 2
    (known,) = store.known()
    assert (known.name, known.version, known.plugins, known.usable) == ("TOKEN", 2, (PLUGIN, OTHER), True)
    assert (known.created_at, known.updated_at) == (began, clock.now_us)
    assert "another value" not in repr(known)
    assert store.for_plugin(PLUGIN).expand("${secret:TOKEN}") == "another value"
    await store.delete("TOKEN", unbind=True)
    assert store.known() == ()
    with pytest.raises(Problem, match="no secret TOKEN"):
        await store.delete("TOKEN")
    await store.set("TOKEN", "made anew")
    assert refused(store, "${secret:TOKEN}").code is Denial.BAD_PARAMS


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("token", "v", "bad_request"),
        ("9A", "v", "bad_request"),
        ("A" * 65, "v", "bad_request"),
        ("A\n", "v", "bad_request"),
        ("A", "", "bad_request"),
        ("A", "\ud800", "bad_request"),
        ("A", "é" * (MAX_VALUE_BYTES // 2 + 1), "too_large"),
    ],
)
async def test_bad_secret_names_and_values_are_refused(store: SecretKeeper, name: str, value: str, code: str) -> None:
    """The longest name and the largest value are accepted."""
    with pytest.raises(Problem) as caught:
        await store.set(name, value)
    assert caught.value.code == code
    assert store.known() == ()
    assert await store.set("A" * 64, "é" * (MAX_VALUE_BYTES // 2)) == 1


async def test_binding_needs_existing_secret_and_valid_plugin_id(store: SecretKeeper) -> None:
    """Otherwise not_found or bad_request. Binding a plugin again does not count against the limit per secret."""
    await store.set("TOKEN", VALUE)
    for name, plugin, code in (("ABSENT", PLUGIN, "not_found"), ("TOKEN", "No Id", "bad_request")):
        with pytest.raises(Problem) as caught:
            await store.bind(name, plugin)
        assert caught.value.code == code
    for number in range(rows.MAX_BINDINGS):
        await store.bind("TOKEN", f"acme.p{number}")
    await store.bind("TOKEN", "acme.p0")
    with pytest.raises(Problem) as caught:
        await store.bind("TOKEN", PLUGIN)
    assert caught.value.code == "quota_exceeded"


async def test_text_with_expanded_secrets_is_bounded(store: SecretKeeper) -> None:
    """Beyond MAX_EXPANDED_BYTES it is too_large."""
    await bound(store, "BIG", "x" * MAX_VALUE_BYTES)
    most = MAX_EXPANDED_BYTES // MAX_VALUE_BYTES
    assert len(store.for_plugin(PLUGIN).expand("${secret:BIG}" * most)) == MAX_EXPANDED_BYTES
    assert refused(store, "${secret:BIG}" * (most + 1)).code is Denial.TOO_LARGE


async def test_no_file_contains_the_secret_value(store: SecretKeeper, tmp_path: Path) -> None:
    """The test reads the state directory with its WAL, and the directory of the key; equal values have different
    ciphertexts.
    """
    value = "needle-in-the-haystack-0123456789"
    await bound(store, "ONE", value)
    await bound(store, "TWO", value)
    one, two = (store._ledger.read(lambda db, name=name: rows.get(db, "operator", name)) for name in ("ONE", "TWO"))
    assert one is not None
    assert two is not None
    assert len(one.nonce) == len(two.nonce) == 12
    assert one.nonce != two.nonce
    assert one.sealed != two.sealed
    looked_at = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"ledger.sqlite3", "ledger.sqlite3-wal", "secrets.key"} <= {path.name for path in looked_at}
    encoded = (
        value.encode(),
        base64.b64encode(value.encode()),
        value.encode("utf-16-le"),
        value.encode().hex().encode(),
    )
    assert not [path for path in looked_at if any(form in path.read_bytes() for form in encoded)]


@pytest.mark.parametrize("column", ["owner", "name", "version", "nonce", "sealed"])
async def test_secret_with_altered_row_is_refused_as_unavailable(
    store: SecretKeeper, ledger: Ledger, column: str
) -> None:
    """Ciphertext that is damaged or moved to another owner, name or version does not decrypt."""
    await bound(store)
    value = {"owner": "'operator'", "name": "'OTHER'", "version": "7"}.get(column, f"zeroblob(length({column}))")
    if column == "owner":
        store._owner = "somebody"
        await store.set("TOKEN", "their value")
        await store.bind("TOKEN", PLUGIN)
        await ledger.write(lambda tx: tx.execute("DELETE FROM secrets WHERE owner = 'operator'"))
        await ledger.write(lambda tx: tx.execute("UPDATE secrets SET owner = 'operator'"))
        store._owner = "operator"
    else:
        statement = f"UPDATE secrets SET {column} = {value}"  # noqa: S608 - the parameters above
        await ledger.write(lambda tx: tx.execute(statement))
    name = "OTHER" if column == "name" else "TOKEN"
    if column == "name":
        keys = store._key()
        mac = keys.mac(secrets._binding_message("operator", "OTHER", PLUGIN))
        binding = rows.Binding(owner="operator", name="OTHER", plugin_id=PLUGIN, mac=mac)
        await ledger.write(lambda tx: rows.bind(tx, binding))
    error = refused(store, f"${{secret:{name}}}")
    assert error.code is Denial.SERVICE_UNAVAILABLE
    assert error.reason.startswith(f"secret_unavailable: {name}")


async def test_secret_binding_copied_in_database_is_refused(store: SecretKeeper, ledger: Ledger) -> None:
    """A binding has a MAC over owner, name and plugin id, made with the key."""
    await bound(store)
    await store.set("OTHER", VALUE)
    copy = "INSERT INTO secret_bindings SELECT owner, ?, ?, mac FROM secret_bindings WHERE plugin_id = 'acme.demo'"
    await ledger.write(lambda tx: tx.execute(copy, ("TOKEN", OTHER)))
    await ledger.write(lambda tx: tx.execute(copy, ("OTHER", "acme.third")))
    assert refused(store, "${secret:TOKEN}", OTHER).code is Denial.SERVICE_UNAVAILABLE
    assert refused(store, "${secret:OTHER}", "acme.third").code is Denial.SERVICE_UNAVAILABLE


async def test_plugin_of_another_publisher_has_no_bindings(store: SecretKeeper, ledger: Ledger) -> None:
    """They are renamed in the transaction that changes the publisher, without the key, and can be renamed back."""
    await bound(store)
    aside = f"{PLUGIN}@acme"
    assert await ledger.write(lambda tx: rows.rename_plugin(tx, PLUGIN, aside)) == 1
    assert refused(store, "${secret:TOKEN}").code is Denial.BAD_PARAMS
    assert await ledger.write(lambda tx: rows.rename_plugin(tx, aside, PLUGIN)) == 1
    assert store.for_plugin(PLUGIN).expand("${secret:TOKEN}") == VALUE


# The key.


async def test_secrets_key_file_is_made_on_first_set(store: SecretKeeper, ledger: Ledger, place: KeyLocation) -> None:
    """It has mode 0600 and is never replaced; another store on the same file decrypts what the first one encrypted."""
    assert store.known() == ()
    assert not place.path.exists()
    await bound(store)
    assert place.path.stat().st_mode & 0o7777 == 0o600
    assert os.listdir(place.path.parent) == ["secrets.key"]
    before = place.path.read_bytes()
    again = SecretKeeper(ledger, place, clock=ManualClock())
    assert again.for_plugin(PLUGIN).expand("${secret:TOKEN}") == VALUE
    await again.set("TOKEN", "a new one")
    assert place.path.read_bytes() == before


async def test_missing_secrets_key_is_not_replaced(store: SecretKeeper, place: KeyLocation) -> None:
    """There are secrets. The operator's error has the key's path, the plugin's has not. Restored, it is used again."""
    await bound(store)
    key = place.path.read_bytes()
    place.path.unlink()
    store.forget_key()
    with pytest.raises(Problem) as caught:
        await store.set("NEW", "some value")
    assert caught.value.code == "secret_unavailable"
    assert str(place.path) in caught.value.reason
    error = refused(store, "${secret:TOKEN}")
    assert error.code is Denial.SERVICE_UNAVAILABLE
    assert str(place.path) not in error.reason
    assert [known.usable for known in store.known()] == [False]
    place.path.write_bytes(key)
    place.path.chmod(0o600)
    assert store.for_plugin(PLUGIN).expand("${secret:TOKEN}") == VALUE


@pytest.mark.skipif(os.getuid() != 0, reason="a file system that stops answering needs uid 0")
async def test_hanging_disk_delays_reading_of_secrets_key_only_once(
    ledger: Ledger, tmp_path: Path, clock: ManualClock
) -> None:
    """One short wait for all callers until the disk answers again."""
    key = {"secrets.key": base64.b64encode(bytes(32))}
    with hanging_mounts.mounted(tmp_path / "mount", key, uid=0) as there:
        store = SecretKeeper(ledger, KeyLocation(path=there.path / "secrets.key", ours=False), clock=clock)
        await bound(store)
        there.stall()
        store.forget_key()
        began = time.monotonic()
        for _ in range(20):
            assert refused(store, "${secret:TOKEN}").code is Denial.SERVICE_UNAVAILABLE
        assert time.monotonic() - began < 1.0
        there.go_on()
        await in_process.until(lambda: [known.usable for known in store.known()] == [True])
        assert store.for_plugin(PLUGIN).expand("${secret:TOKEN}") == VALUE


async def test_secret_encrypted_with_other_key_is_unavailable_until_key_is_back(
    store: SecretKeeper, place: KeyLocation
) -> None:
    """The error says that the key differs; new secrets are encrypted with the new key."""
    await bound(store)
    key = place.path.read_bytes()
    place.path.write_bytes(os.urandom(32))
    store.forget_key()
    with pytest.raises(
        Problem, match=r"TOKEN was sealed with another key \(expected [0-9a-f]{16}, found [0-9a-f]{16}\)"
    ):
        store._open(store._stored()[0])
    assert refused(store, "${secret:TOKEN}").code is Denial.SERVICE_UNAVAILABLE
    await store.set("NEW", "some value")
    assert {known.name: known.usable for known in store.known()} == {"NEW": True, "TOKEN": False}
    await store.bind("NEW", PLUGIN)
    assert store.for_plugin(PLUGIN).expand("${secret:NEW}") == "some value"
    place.path.write_bytes(key)
    assert store.for_plugin(PLUGIN).expand("${secret:TOKEN}") == VALUE


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (b"short", 0o600, "expected a key of 32 bytes"),
        (b"A" * 2000, 0o600, "at most"),
        (base64.b64encode(bytes(31)), 0o600, "expected a key of 32 bytes"),
        (bytes(32), 0o640, "expected mode 0600, found 0640"),
        (bytes(32), 0o604, "expected mode 0600, found 0604"),
        (bytes(32), 0o622, "writable by others"),
    ],
)
def test_malformed_or_readable_secrets_key_is_refused(
    place: KeyLocation, content: bytes, mode: int, words: str
) -> None:
    """The file is left as it is, not replaced by a new key."""
    place.path.parent.mkdir()
    place.path.write_bytes(content)
    place.path.chmod(mode)
    with pytest.raises(Problem, match=words) as caught:
        secret_key.read(place)
    assert caught.value.code == "secret_unavailable"
    assert place.path.read_bytes() == content


def test_secrets_key_in_directory_writable_by_others_is_refused(place: KeyLocation) -> None:
    """They could replace the key."""
    place.path.parent.mkdir()
    place.path.write_bytes(bytes(32))
    place.path.chmod(0o600)
    place.path.parent.chmod(0o777)
    with pytest.raises(Problem, match="cannot be trusted"):
        secret_key.read(place)


def test_secrets_key_may_be_raw_or_base64(place: KeyLocation) -> None:
    """Both forms have the same key id, which contains no part of the key."""
    place.path.parent.mkdir()
    raw = os.urandom(32)
    found = []
    for content in (raw, base64.b64encode(raw) + b"\n"):
        place.path.write_bytes(content)
        place.path.chmod(0o600)
        keys = secret_key.read(place)
        assert keys is not None
        found.append(keys.id)
    assert found[0] == found[1]
    assert bytes.fromhex(found[0]) not in raw


async def test_unwritable_secrets_key_file_is_secret_unavailable(ledger: Ledger, tmp_path: Path) -> None:
    """Nothing is stored."""
    (tmp_path / "file").write_text("")
    store = SecretKeeper(ledger, KeyLocation(path=tmp_path / "file" / "secrets.key", ours=True), clock=ManualClock())
    with pytest.raises(Problem) as caught:
        await store.set("TOKEN", VALUE)
    assert caught.value.code == "secret_unavailable"
    assert store.known() == ()


def settings_at(tmp_path: Path, **environ: str) -> Settings:
    """The settings of a daemon whose file is in tmp_path/config and whose state is in tmp_path/state."""
    file = tmp_path / "config" / "latticed.toml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(environ.pop("text", ""))
    return settings_module.load(file, {"LATTICED_STATE_DIR": str(tmp_path / "state"), **environ}, os.geteuid())


def test_key_is_located_by_credential_then_setting_then_default(tmp_path: Path) -> None:
    """A systemd credential, else `secrets.key_file`, else beside the settings file; a credential is never created."""
    assert secret_key.place(settings_at(tmp_path), {}) == KeyLocation(path=tmp_path / "config/secrets.key", ours=True)
    told = settings_at(tmp_path, text=f'[secrets]\nkey_file = "{tmp_path}/elsewhere.key"\n')
    assert secret_key.place(told, {}) == KeyLocation(path=tmp_path / "elsewhere.key", ours=True)
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert secret_key.place(told, credentials) == KeyLocation(path=tmp_path / "elsewhere.key", ours=True)
    credential = tmp_path / "latticed-secrets.key"
    credential.write_bytes(os.urandom(32))
    credential.chmod(0o440)  # stands for an access list, newer service managers make them
    found = secret_key.place(told, credentials)
    assert found == KeyLocation(path=credential, ours=False)
    assert secret_key.read(found) is not None


async def test_missing_credential_is_not_created(ledger: Ledger, tmp_path: Path) -> None:
    """The service manager provides it."""
    store = SecretKeeper(ledger, KeyLocation(path=tmp_path / "gone", ours=False), clock=ManualClock())
    with pytest.raises(Problem) as caught:
        await store.set("TOKEN", VALUE)
    assert caught.value.code == "secret_unavailable"
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("way", ["plainly", "by a link", "by dots"])
def test_secrets_key_inside_state_directory_is_refused(tmp_path: Path, way: str) -> None:
    """A backup of the state would contain key and ciphertext."""
    (tmp_path / "state").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "state")
    path = {"plainly": "state/a.key", "by a link": "link/a.key", "by dots": "config/../state/sub/a.key"}[way]
    told = settings_at(tmp_path, text=f'[secrets]\nkey_file = "{tmp_path}/{path}"\n')
    with pytest.raises(Problem, match="outside the state directory") as caught:
        secret_key.place(told, {})
    assert caught.value.code == "secret_unavailable"
    with pytest.raises(Problem, match=r"secrets\.key_file: expected an absolute path"):
        secret_key.place(settings_at(tmp_path, text='[secrets]\nkey_file = "a.key"\n'), {})


# Redaction.


async def test_secret_values_are_redacted_in_any_encoding(store: SecretKeeper) -> None:
    """Plain, and as in URLs, JSON, repr() and base64; with `any_case` whatever their case."""
    await bound(store)
    forms = [VALUE, quote(VALUE, safe=""), json.dumps(VALUE), repr(VALUE), base64.b64encode(VALUE.encode()).decode()]
    secrets = store.for_plugin(PLUGIN)
    secrets.expand("${secret:TOKEN}")
    shown = secrets.redact(" | ".join(forms))
    assert "s3cr3t" not in shown
    assert shown.count("${secret:TOKEN}") == 5
    assert secrets.redact(f"X-{VALUE.title()}", any_case=True) == "X-${secret:TOKEN}"


@pytest.mark.parametrize("value", ["a", "12345", "  pin  ", "     \n"])
async def test_secret_values_too_short_to_be_redacted_are_refused(store: SecretKeeper, value: str) -> None:
    """A value below six characters would match other text in answers and errors."""
    with pytest.raises(Problem, match="at least 6 characters") as refused:
        await store.set("PIN", value)
    assert refused.value.code == "bad_request"
    assert store.known() == ()


async def test_old_secret_value_is_redacted_after_change(store: SecretKeeper) -> None:
    """The error of a request that used it may contain it."""
    await bound(store)
    secrets = store.for_plugin(PLUGIN)
    sent = secrets.expand("token=${secret:TOKEN}")
    await store.set("TOKEN", "something else")
    assert secrets.redact(f"refused: {sent}") == "refused: token=${secret:TOKEN}"
    assert store.for_plugin(PLUGIN).redact(sent) == sent


def test_of_values_longer_than_the_text_no_form_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a refusal is redacted on the event loop, and a plugin may have used many long secrets."""
    made: list[str] = []
    real = redaction._forms
    monkeypatch.setattr(redaction, "_forms", lambda value: made.append(value) or real(value))
    values = {"LONG": "a long value " * 1_000, "TOKEN": VALUE, "PADDED": "a token" + "\n" * 1_000}
    assert redaction.redacted(f"{VALUE}: a token", values.items()) == "${secret:TOKEN}: ${secret:PADDED}"
    assert made == [VALUE, values["PADDED"]]
    assert redaction.redacted("", values.items()) == ""
    assert len(made) == 2


@given(st.dictionaries(st.sampled_from(["A", "B", "C"]), st.text(min_size=6, max_size=12)), st.text(max_size=20))
def test_no_secret_value_survives_redaction(values: dict[str, str], around: str) -> None:
    """Values may be any text, adjacent or one within another."""
    text = around + around.join(values.values())
    shown = redaction.redacted(text, values.items())
    left = shown
    for name in values:
        left = left.replace(f"${{secret:{name}}}", "\0")
    assert not [value for value in values.values() if value in left and value not in around and "\0" not in value]


def _by_expression(text: str, values: dict[str, str], *, any_case: bool) -> str:
    """What an expression of all forms replaces: the first, and of those at one place the longest."""
    shown = {form: f"${{secret:{name}}}" for name, value in values.items() for form in redaction._forms(value)}
    forms = sorted(shown, key=len, reverse=True)
    pattern = "|".join(f"({re.escape(form)})" for form in forms)
    return re.sub(
        pattern, lambda found: shown[forms[found.lastindex - 1]], text, flags=re.IGNORECASE if any_case else 0
    )


_LETTERS = st.text(alphabet="abAB/ ", min_size=6, max_size=9).filter(lambda one: len(one.strip()) >= 6)


@given(st.lists(_LETTERS, min_size=1, max_size=3, unique_by=lambda one: one.lower().strip()), st.data())
def test_first_and_longest_form_of_a_value_is_redacted(given: list[str], data: st.DataObject) -> None:
    """Wherever values overlap, or one is within another."""
    values = dict(zip("ABC", given, strict=False))
    pieces = st.sampled_from([*given, *(one[:4] for one in given), "a", "B", "/"])
    text = "".join(data.draw(st.lists(pieces, max_size=12)))
    for any_case in (False, True):
        found = redaction.redacted(text, values.items(), any_case=any_case)
        assert found == _by_expression(text, values, any_case=any_case)


def test_secrets_key_is_read_again_after_failed_thread_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise secrets would be unavailable until a restart."""
    place = KeyLocation(path=tmp_path / "secrets.key", ours=True)
    made, reading = secret_key.make(place), secret_key.KeyReader(place)

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refused)
        with pytest.raises(Problem, match="can't start new thread") as caught:
            reading.get()
    assert caught.value.code == "secret_unavailable"
    found = reading.get()
    assert found is not None
    assert found.id == made.id
