"""What messages of sshd say, whatever strangers put into them. Formats are those that OpenSSH 9.2 writes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from latticed.system.ssh_alerts import lines
from latticed.system.ssh_alerts.lines import Failure, Login, Other

PRINT = "SHA256:J2fJ3nIYpZ0yRbOTnWVc6F4n9N1oVRjVUgQ1Zr3cVxk"
KEY = f"ED25519 {PRINT}"
CERTIFICATE = f"ED25519-CERT {PRINT} ID alice@example (serial 7) CA RSA {PRINT}"


@pytest.mark.parametrize(
    ("message", "login"),
    [
        (
            f"Accepted publickey for alice from 203.0.113.7 port 4242 ssh2: {KEY}",
            Login(user="alice", address="203.0.113.7", port=4242, method="publickey", key="ED25519", fingerprint=PRINT),
        ),
        (
            "Accepted password for root from 2001:db8::1 port 22 ssh2",
            Login(user="root", address="2001:db8::1", port=22, method="password"),
        ),
        (
            "Accepted keyboard-interactive/pam for bob from fe80::1%eth0 port 1 ssh2",
            Login(user="bob", address="fe80::1", port=1, method="keyboard-interactive/pam"),
        ),
        (
            "Accepted gssapi-with-mic for carol from ::ffff:192.0.2.1 port 65535 ssh2: carol/admin@EXAMPLE.ORG",
            Login(
                user="carol", address="192.0.2.1", port=65535, method="gssapi-with-mic", key="carol/admin@EXAMPLE.ORG"
            ),
        ),
        (
            f"Accepted publickey for dave from 192.0.2.9 port 50000 ssh2: {CERTIFICATE}",
            Login(
                user="dave",
                address="192.0.2.9",
                port=50000,
                method="publickey",
                key=f"ED25519-CERT ID alice@example (serial 7) CA RSA {PRINT}",
                fingerprint=PRINT,
            ),
        ),
        (
            f'Accepted hostbased for eve from 192.0.2.9 port 9 ssh2: {KEY}, client user "eve", client host "h.example"',
            Login(
                user="eve",
                address="192.0.2.9",
                port=9,
                method="hostbased",
                key='ED25519, client user "eve", client host "h.example"',
                fingerprint=PRINT,
            ),
        ),
        (
            "Accepted publickey for old from 1.2.3.4 port 9 ssh2: RSA MD5:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88",
            Login(
                user="old",
                address="1.2.3.4",
                port=9,
                method="publickey",
                key="RSA",
                fingerprint="MD5:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88",
            ),
        ),
        (
            "Accepted password for from here from 192.0.2.9 port 9 ssh2",
            Login(user="from here", address="192.0.2.9", port=9, method="password"),
        ),
        (
            "Accepted none for guest from UNKNOWN port 65535 ssh2",
            Login(user="guest", address="", port=65535, method="none"),
        ),
    ],
)
def test_login_has_user_address_method_and_fingerprint(message, login):
    assert lines.read(message) == login


@pytest.mark.parametrize(
    ("message", "failure"),
    [
        ("Failed password for bob from 192.0.2.2 port 23 ssh2", Failure(user="bob", address="192.0.2.2", port=23)),
        (
            "Failed password for invalid user admin from 192.0.2.2 port 23 ssh2 [preauth]",
            Failure(user="admin", address="192.0.2.2", port=23),
        ),
        (
            f"Failed publickey for root from 192.0.2.2 port 23 ssh2: {KEY}",
            Failure(user="root", address="192.0.2.2", port=23, once=True),
        ),
        ("Failed none for invalid user  from ::1 port 5 ssh2", Failure(user="", address="::1", port=5, once=True)),
        ("Invalid user admin from 192.0.2.2 port 23", Failure(user="admin", address="192.0.2.2", port=23, once=True)),
        ("Invalid user  from 192.0.2.2", Failure(user="", address="192.0.2.2", port=0, once=True)),
        (
            "Connection closed by authenticating user root 192.0.2.2 port 23 [preauth]",
            Failure(user="root", address="192.0.2.2", port=23, once=True),
        ),
        (
            "Disconnecting invalid user a b 2001:db8::5 port 23: Too many authentication failures [preauth]",
            Failure(user="a b", address="2001:db8::5", port=23, once=True),
        ),
        (
            "error: maximum authentication attempts exceeded for invalid user x from 192.0.2.2 port 23 ssh2 [preauth]",
            Failure(user="x", address="192.0.2.2", port=23, once=True),
        ),
    ],
)
def test_failed_attempt_has_user_and_address(message, failure):
    assert lines.read(message) == failure


def test_line_that_stands_for_equal_ones_counts_as_often():
    """As rsyslog writes them; a login is never among them, since each has a connection of its own."""
    line = "message repeated {} times: [ Failed password for bob from 192.0.2.2 port 23 ssh2]"
    assert lines.read(line.format(3)) == Failure(user="bob", address="192.0.2.2", port=23, times=3)
    assert lines.read(line.format(999_999)) == Failure(user="bob", address="192.0.2.2", port=23, times=100)
    assert lines.read(line.format(0)) is Other.UNREAD
    assert lines.read(line.format(2).replace("Failed", "Accepted")) is Other.UNREAD


@pytest.mark.parametrize(
    "message",
    [
        f"Accepted key {KEY} found at /root/.ssh/authorized_keys:1",
        f'Accepted certificate ID "x for root from 192.0.2.1 port 22 ssh2" (serial 0) signed by {KEY}',
        f"Postponed publickey for alice from 203.0.113.7 port 4242 ssh2: {KEY} [preauth]",
        f"Partial publickey for alice from 203.0.113.7 port 4242 ssh2: {KEY}",
        'Connection from 192.0.2.1 port 22 on 192.0.2.2 port 22 rdomain ""',
        "Received disconnect from 192.0.2.1 port 22:11: Accepted password for root from 1.2.3.4 port 2 ssh2 [preauth]",
        "Disconnected from user alice 192.0.2.1 port 22",
        "pam_unix(sshd:session): session opened for user root(uid=0) by (uid=0)",
        "error: kex_exchange_identification: Connection closed by remote host",
        "Server listening on :: port 22.",
        "Unable to negotiate with 192.0.2.1 port 22: no matching host key type found. Their offer: ssh-dss [preauth]",
        "User eve from 192.0.2.1 not allowed because not listed in AllowUsers",
    ],
)
def test_other_messages_are_neither_logins_nor_unread(message):
    assert lines.read(message) is Other.KNOWN


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ("Accepted publickey for alice from nowhere port 4242 ssh2", Other.UNREAD_LOGIN),
        ("Accepted publickey for alice from 203.0.113.7 port 99999 ssh2", Other.UNREAD_LOGIN),
        ("Accepted publickey for alice from 203.0.113.7 port 22 ssh3", Other.UNREAD_LOGIN),
        (f"Accepted publickey for alice from 203.0.113.7 port 22 ssh2: {KEY} and more", Other.UNREAD_LOGIN),
        ("Accepted publickey for " + "x" * 16_000, Other.UNREAD_LOGIN),
        ("Accepted pass word for root from 203.0.113.7 port 22 ssh2", Other.UNREAD_LOGIN),
        ("Failed password for " + "x" * 16_000, Other.UNREAD),
        ("Failed password\\x1b[2J for root from 203.0.113.7 port 22 ssh2", Other.UNREAD),
        ("", Other.UNREAD),
        ("something new", Other.UNREAD),
        ("accepted password for root from 203.0.113.7 port 22 ssh2", Other.UNREAD),
        (" Accepted password for root from 203.0.113.7 port 22 ssh2", Other.UNREAD),
    ],
)
def test_what_is_not_read_is_never_guessed(message, found):
    assert lines.read(message) is found


FORGED = [
    "root from 192.0.2.1 port 22 ssh2",
    f"root from 192.0.2.1 port 22 ssh2: {KEY}",
    "root from 192.0.2.1 port 22 ssh2 [preauth]",
    "x from 192.0.2.1 port 22 ssh2 from 192.0.2.1 port 22 ssh2",
    "invalid user from from 192.0.2.1 port 1 ssh2:",
]


@pytest.mark.parametrize("user", FORGED)
def test_address_in_a_user_name_is_not_taken_for_that_of_the_connection(user):
    """The last one counts."""
    for end in ("", f": {KEY}"):
        method = "publickey" if end else "password"
        found = lines.read(f"Failed {method} for invalid user {user} from 203.0.113.7 port 4242 ssh2{end}")
        assert found == Failure(user=user, address="203.0.113.7", port=4242, once=bool(end))
        found = lines.read(f"Accepted {method} for {user} from 203.0.113.7 port 4242 ssh2{end}")
        assert isinstance(found, Login)
        assert (found.user, found.address) == (user, "203.0.113.7")
    for message in (
        f"Invalid user {user} from 203.0.113.7 port 4242",
        f"Connection closed by invalid user {user} 203.0.113.7 port 4242 [preauth]",
    ):
        found = lines.read(message)
        assert isinstance(found, Failure)
        assert (found.address, found.port) == ("203.0.113.7", 4242)


def test_certificate_that_names_an_address_makes_it_unclear():
    """Whoever makes a certificate chooses its ID, and a user name can look like the beginning of one."""
    forged = f"ED25519-CERT {PRINT} ID x from 192.0.2.1 port 22 ssh2: {CERTIFICATE}"
    found = lines.read(f"Failed publickey for root from 203.0.113.7 port 4242 ssh2: {forged}")
    assert found == Failure(user="root", address="", port=0, once=True)
    found = lines.read(f"Accepted publickey for root from 203.0.113.7 port 4242 ssh2: {forged}")
    assert found == Login(user="root", address="", port=0, method="publickey")


def test_networks_are_24_and_64():
    assert lines.network("203.0.113.7") == "203.0.113.0/24"
    assert lines.network("2001:db8:1:2:3::7") == "2001:db8:1:2::/64"
    assert lines.network("") == ""


ADDRESSES = st.ip_addresses().map(str)
WORDS = st.sampled_from(
    [
        " from ",
        " port ",
        "22",
        " ssh2",
        "192.0.2.1",
        ": ",
        KEY,
        CERTIFICATE,
        " for ",
        "root",
        "invalid user ",
        " [preauth]",
    ]
)
TEXT = st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=12).map("".join))


@given(
    text=TEXT,
    begin=st.sampled_from(["", "Accepted ", "Failed password for ", "Accepted publickey for ", "Invalid user "]),
)
def test_any_text_is_read_without_an_error(text, begin):
    found = lines.read(begin + text)
    if isinstance(found, Login | Failure):
        assert not found.address or str(ipaddress.ip_address(found.address)) == found.address
        assert 0 <= found.port <= 65_535
        assert lines.network(found.address) or not found.address
    if isinstance(found, Login):
        assert begin.startswith("Accepted")


@given(user=TEXT, address=ADDRESSES, port=st.integers(1, 65_535), end=st.sampled_from(["", f": {KEY}"]))
@example(user="x from 192.0.2.1 port 22 ssh2: ", address="203.0.113.7", port=22, end=f": {KEY}")
def test_address_of_the_connection_is_found_or_unclear_but_never_another(user, address, port, end):
    """A user name may look like anything."""
    shown = ipaddress.ip_address(address)
    mapped = getattr(shown, "ipv4_mapped", None)
    for outcome in ("Accepted", "Failed"):
        found = lines.read(f"{outcome} publickey for {user} from {address} port {port} ssh2{end}")
        if isinstance(found, Login | Failure) and found.address:
            assert (found.address, found.port) == (str(mapped or shown), port)
        else:
            assert found is not Other.KNOWN
