"""latticectl's verbs for authors: keys with a passphrase, on descriptors and on a terminal; packing."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.bundle.read import ReadLimits

WORDS = "correct horse battery staple"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def on_fd():
    """Open a descriptor to read `data` from, as `3<<<` does; its number as an argument."""
    opened = []

    def open_on(data: str | bytes) -> str:
        out, into = os.pipe()
        opened.append(out)
        os.write(into, data if isinstance(data, bytes) else data.encode())
        os.close(into)
        return str(out)

    yield open_on
    for fd in opened:
        os.close(fd)


@pytest.fixture
def encrypted(ctl, on_fd):
    """The public half of acme.key, whose passphrase is WORDS."""
    assert ctl("key", "generate", "--passphrase-fd", on_fd(f"{WORDS}\n"), "acme.key").code == 0
    return ctl("key", "show", "--passphrase-fd", on_fd(WORDS), "acme.key").out.strip()


def test_encrypted_key_signs_with_its_passphrase_alone(ctl, on_fd, encrypted):
    """Without it, or with another one, nothing is signed, and the message says which."""
    assert Path("acme.key").read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert ctl("new", "system", "acme.demo", "--publisher", "acme").code == 0
    unsigned = Path("acme.demo/manifest.json").read_bytes()
    ran = ctl("sign", "--key", "acme.key", "acme.demo")
    assert (ran.code, "--passphrase-fd 3" in ran.err) == (1, True)
    ran = ctl("sign", "--key", "acme.key", "--passphrase-fd", on_fd("another one"), "acme.demo")
    assert (ran.code, "the passphrase is another one" in ran.err) == (1, True)
    assert Path("acme.demo/manifest.json").read_bytes() == unsigned
    assert ctl("sign", "--key", "acme.key", "--passphrase-fd", on_fd(f"{WORDS}\r\n"), "acme.demo").code == 0
    assert ctl("trust", "add", "acme", encrypted, "--trust", "trust.json").code == 0
    assert ctl("verify", "--trust", "trust.json", "acme.demo").code == 0


def test_openssl_reads_what_we_encrypt_and_we_what_it_encrypts(ctl, on_fd, encrypted):
    """PKCS #8 in PEM is common to both (RFC 5958)."""
    shown = subprocess.check_output(
        ["openssl", "pkey", "-in", "acme.key", "-passin", f"pass:{WORDS}", "-pubout", "-outform", "DER"]
    )
    assert base64.b64encode(shown[-32:]).decode() == encrypted
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:word", "-out", "theirs.key"],
        check=True,
        capture_output=True,
    )
    theirs = subprocess.check_output(
        ["openssl", "pkey", "-in", "theirs.key", "-passin", "pass:word", "-pubout", "-outform", "DER"]
    )
    shown = ctl("key", "show", "--passphrase-fd", on_fd("word"), "theirs.key").out.strip()
    assert shown == base64.b64encode(theirs[-32:]).decode()


def test_key_is_read_from_a_descriptor_and_never_lies_in_a_file(ctl, on_fd, encrypted):
    pem = Path("acme.key").read_bytes()
    ran = ctl("key", "show", "--key-fd", on_fd(pem), "--passphrase-fd", on_fd(WORDS))
    assert ran.out.strip() == encrypted
    assert ctl("new", "worker", "acme.page", "--publisher", "acme").code == 0
    ran = ctl("sign", "--key-fd", on_fd(pem), "--passphrase-fd", on_fd(WORDS), "acme.page", "--format", "json")
    assert ran.json[0]["public_key"] == encrypted


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["key", "show"], "found neither"),
        (["key", "show", "acme.key", "--key-fd", "0"], "found both"),
        (["key", "show", "acme.key", "--passphrase-fd", "999999"], "cannot read descriptor 999999"),
        (["key", "show", "acme.key", "--passphrase-fd", "three"], "expected the number of a descriptor"),
        (["key", "show", "acme.key", "--passphrase-fd", "-1"], ""),
        (["key", "show", "--key-fd", "{}", "--passphrase-fd", "{}"], "found one for both"),
        (["key", "show", "--key-fd", "{}"], "no PEM private key"),
        (["key", "generate", "--passphrase", "new.key"], "expected a terminal"),
        (["key", "generate", "--passphrase-fd", "{}", "new.key"], "at least 12 characters"),
        (["sign", "acme.demo"], "--key"),
        (["sign", "--key", "acme.key", "--key-fd", "0", "acme.demo"], "not allowed with"),
        (["sign", "--key", "acme.key", "--passphrase", WORDS, "acme.demo"], "passphrase"),
    ],
)
def test_unusable_ways_to_give_a_key_are_errors(ctl, on_fd, encrypted, words, told):
    """No passphrase on the command line, ever; `{}` is a descriptor with a few bytes."""
    fd = on_fd("a word") if "{}" in words else ""
    ran = ctl(*(word.format(fd) for word in words))
    assert ran.code in {1, 2}
    assert told in ran.err
    assert not Path("new.key").exists()


@pytest.mark.parametrize("data", [b"", b"\n", b"x" * 1100])
def test_passphrase_has_to_have_a_length_that_openssl_takes(ctl, on_fd, encrypted, data):
    ran = ctl("key", "show", "--passphrase-fd", on_fd(data), "acme.key")
    assert (ran.code, ran.out) == (2, "")


def test_several_keys_are_made_at_once_or_none(ctl):
    ran = ctl("key", "generate", "acme.key", "index.key", "--format", "json")
    assert [one["path"] for one in ran.json] == ["acme.key", "index.key"]
    assert len({one["public_key"] for one in ran.json}) == 2
    before = Path("index.key").read_bytes()
    assert ctl("key", "generate", "third.key", "index.key").code == 1
    assert sorted(os.listdir()) == ["acme.key", "index.key"]
    assert Path("index.key").read_bytes() == before


def test_passphrase_is_asked_for_on_a_terminal_without_showing_it(ctl):
    """Twice for a new key, once to use it; two different ones make no key."""
    assert _typed(["key", "generate", "--passphrase", "acme.key"], [WORDS, "another"])[0] == 2
    assert not Path("acme.key").exists()
    code, shown = _typed(["key", "generate", "--passphrase", "acme.key"], [WORDS, WORDS])
    assert (code, WORDS in shown) == (0, False)
    code, shown = _typed(["key", "show", "acme.key"], [WORDS])
    assert (code, "passphrase of acme.key" in shown, WORDS in shown) == (0, True, False)


def _typed(words: list[str], lines: list[str]) -> tuple[int, str]:
    """Run latticectl on a terminal of its own, and type a line at each prompt; its exit code, and what it showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-P", "-m", "latticed.ctl.main", *words]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as child:
        os.close(theirs)
        shown = b""
        try:
            while chunk := _shown(ours):
                shown += chunk
                # Typed at the prompt only: getpass drops what was typed before.
                if lines and shown.endswith(b": "):
                    os.write(ours, lines.pop(0).encode() + b"\n")
        finally:
            os.close(ours)
        return child.wait(), shown.decode()


def _shown(terminal: int) -> bytes:
    """What the terminal shows next; empty when its last user is gone, which Linux reports as EIO."""
    assert select.select([terminal], [], [], 60)[0], "nothing was shown for a minute"
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


def _with_config(properties: int, *, title: str = "") -> bytes:
    """Give acme.demo a schema of so many properties, written without white space."""
    names = {f"p{i}": {"type": "string", "enum": ["a", "b", "c"]} for i in range(properties)}
    path = Path("acme.demo/manifest.json")
    raw = {**json.loads(path.read_text()), "config": {"type": "object", "title": title, "properties": names}}
    path.write_text(json.dumps(raw, separators=(",", ":")))
    return path.read_bytes()


def test_manifest_that_is_too_large_when_indented_is_signed_without_white_space(ctl):
    """Hosts take it, and it can be signed again."""
    ctl("key", "generate", "acme.key")
    ctl("new", "system", "acme.demo", "--publisher", "acme")
    written = _with_config(900)
    public = ctl("key", "show", "acme.key").out.strip()
    assert ctl("trust", "add", "acme", public, "--trust", "trust.json").code == 0
    for _ in range(2):
        assert ctl("sign", "--key", "acme.key", "acme.demo").code == 0
        assert ctl("verify", "--trust", "trust.json", "acme.demo").code == 0
    assert json.loads(Path("acme.demo/manifest.json").read_bytes())["config"] == json.loads(written)["config"]


def test_manifest_that_is_too_large_with_its_signature_is_left_as_it_was(ctl):
    """It is one that can be read without: 65,536 bytes."""
    ctl("key", "generate", "acme.key")
    ctl("new", "system", "acme.demo", "--publisher", "acme")
    room = ReadLimits().manifest_bytes - len(_with_config(900))
    written = _with_config(900, title="x" * room)
    ran = ctl("sign", "--key", "acme.key", "acme.demo")
    assert (ran.code, "expected manifest.json to be at most 65536 bytes" in ran.err) == (1, True), ran.err
    assert Path("acme.demo/manifest.json").read_bytes() == written


def test_pack_makes_an_artifact_that_signs_and_verifies(ctl):
    """Packed again it is left alone; what was signed before says that it is to be signed again."""
    Path("src").mkdir()
    Path("src/__main__.py").write_text("print('hello')\n")
    assert ctl("key", "generate", "acme.key").code == 0
    assert ctl("new", "system", "acme.demo", "--publisher", "acme").code == 0
    ran = ctl("pack", "src", "acme.demo")
    assert "latticectl sign --key FILE acme.demo" in ran.err
    assert subprocess.check_output([sys.executable, "acme.demo/artifact"]) == b"hello\n"
    signed = ctl("sign", "--key", "acme.key", "acme.demo", "--format", "json").json
    before = os.stat("acme.demo/artifact")
    ran = ctl("pack", "src", "acme.demo", "--format", "json")
    assert ran.json == {
        "path": "acme.demo",
        "artifact_sha256": signed[0]["digest_sha256"],
        "bytes": before.st_size,
        "files": 1,
        "changed": False,
    }
    assert os.stat("acme.demo/artifact") == before
    assert ctl("pack", "src", "acme.demo").err == ""
    Path("src/__main__.py").write_text("print('bye')\n")
    assert "sign it" in ctl("pack", "src", "acme.demo").err


def test_pack_refuses_what_it_cannot_pack_and_changes_nothing(ctl):
    assert ctl("new", "system", "acme.demo").code == 0
    assert ctl("new", "worker", "acme.page").code == 0
    before = Path("acme.demo/artifact").read_bytes()
    Path("src").mkdir()
    for words, told in (
        (("none", "acme.demo"), "expected a directory"),
        (("src", "acme.demo"), "found neither"),
        (("src", "none"), "manifest_missing"),
        (("src", "acme.page"), "expected acme.page/manifest.json to be of type system"),
        ((".", "acme.demo"), "expected a bundle outside"),
        (("acme.demo", "acme.demo"), "expected a bundle outside"),
    ):
        ran = ctl("pack", *words)
        assert ran.code != 0
        assert told in ran.err or told == "manifest_missing"
    assert Path("acme.demo/artifact").read_bytes() == before
