"""Mail messages: a fixed set of headers, and text that survives the encoding."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import HostError
from latticed.host.mail import message as mail_message

NOW_US = 1_767_323_045_000_000
HEADERS = ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "X-Latticed-Plugin", "Content-Type"]
HEADERS += ["Content-Transfer-Encoding", "MIME-Version"]


def compose(subject="Hello", body="text", to=("ops@example.org",)):
    made, message_id = mail_message.compose(
        sender="host@example.org", to=to, subject=subject, body=body, plugin_id="acme.demo", now_us=NOW_US
    )
    return made, email.message_from_bytes(made, policy=email.policy.default), message_id


def test_message_has_exactly_the_expected_headers():
    """Those of RFC 5322, `Auto-Submitted: auto-generated` (RFC 3834), and the plugin's id in `X-Latticed-Plugin`."""
    raw, message, message_id = compose(to=("a@example.org", "b@example.org"))
    assert sorted(message.keys()) == sorted(HEADERS)
    assert (message["From"], message["To"]) == ("host@example.org", "a@example.org, b@example.org")
    assert (message["Subject"], message["X-Latticed-Plugin"]) == ("Hello", "acme.demo")
    assert (message["Date"], message["Auto-Submitted"]) == ("Fri, 02 Jan 2026 03:04:05 +0000", "auto-generated")
    assert (message["Message-ID"], message_id[-13:]) == (message_id, "@example.org>")
    assert compose()[2] != compose()[2]
    assert raw.isascii()


@pytest.mark.parametrize(
    "given_address",
    ["ops@example.org", "o.p-s+x@example.org", "a!#$%&'*/=?^_`{|}~@example.org", f"{'l' * 64}@example.org"],
)
def test_plain_mail_address_is_unchanged(given_address):
    """Only the receiver interprets a local part (RFC 5321, section 2.4)."""
    assert mail_message.address(given_address) == given_address


def test_domain_of_address_is_normalised():
    """Lower case, ASCII (IDNA), no trailing dot."""
    assert mail_message.address("Ops@Bücher.Example.") == "Ops@xn--bcher-kva.example"


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "ops",
        "@example.org",
        "ops@",
        "Ops <ops@example.org>",
        '"a b"@example.org',
        "ops@example.org\r\nBcc: all@example.org",
        "ops@example.org\n",
        "a,b@example.org",
        "ops@example.org, other@example.org",
        "a@b@example.org",
        ".a@example.org",
        "a..b@example.org",
        "ops@[192.0.2.1]",
        "ops@192.0.2.1",
        "ops@exa mple.org",
        "öps@example.org",
        "${secret:TO}@example.org",
        f"{'l' * 65}@example.org",
        "<ops@example.org>",
        "ops@example.org>",
    ],
)
def test_ambiguous_mail_address_is_refused(odd):
    """It has display names, lists, quotes, line ends or secret references."""
    with pytest.raises(HostError) as caught:
        mail_message.address(odd)
    assert caught.value.code == "bad_params"


def test_mail_recipients_are_bounded_and_unique():
    """`to` is one address or several."""
    assert mail_message.recipients("a@example.org", limit=1) == ("a@example.org",)
    assert mail_message.recipients(("a@x.org", "b@x.org", "a@X.org"), limit=3) == ("a@x.org", "b@x.org")
    for wrong in ((), ("a@x.org",) * 4):
        with pytest.raises(HostError, match="expected 1 to 3 addresses"):
            mail_message.recipients(wrong, limit=3)


@pytest.mark.parametrize(
    "subject", ["", "  ", "a\r\nBcc: x@example.org", "a\nb", "a\rb", "a\0b", "a\u2028b", "a\ud800"]
)
def test_mail_subject_with_line_break_is_refused(subject):
    """bad_params, without the subject in the reason."""
    with pytest.raises(HostError) as caught:
        mail_message.check_subject(subject)
    assert caught.value.code == "bad_params"
    assert "Bcc" not in str(caught.value)


def test_too_large_subject_or_body_is_refused():
    """A subject is counted in characters, a body in bytes of UTF-8; NUL and lone surrogates are bad_params."""
    for check in (
        lambda: mail_message.check_subject("x" * 251),
        lambda: mail_message.check_body("ü" * 6, max_bytes=11),
    ):
        with pytest.raises(HostError) as caught:
            check()
        assert caught.value.code == "too_large"
    mail_message.check_body("ü" * 6, max_bytes=12)
    for odd in ("a\0b", "\ud800"):
        with pytest.raises(HostError, match="bad_params: body"):
            mail_message.check_body(odd, max_bytes=100)


lines = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029"), max_size=1_200)


def is_subject(text):
    try:
        mail_message.check_subject(text)
    except HostError:
        return False
    return True


@given(st.text(max_size=80).filter(is_subject), st.lists(lines, max_size=6))
def test_any_mail_text_survives_encoding(subject, body_lines):
    """Any letters, long lines, leading dots; lines stay below 998 bytes and no header is added."""
    body = "\n".join(body_lines)
    raw, message, _ = compose(subject=subject, body=body)
    assert raw.isascii()
    assert max(map(len, raw.split(b"\r\n"))) <= 998
    assert b"\n" not in raw.replace(b"\r\n", b"")
    assert sorted(message.keys()) == sorted(HEADERS)
    assert message.get_content().replace("\r\n", "\n").removesuffix("\n") == body.removesuffix("\n")
    assert " ".join(message["Subject"].split()) == " ".join(subject.split())
