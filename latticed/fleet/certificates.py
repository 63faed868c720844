"""An authority of a fleet's own, and certificates for its servers (RFC 5280): agents trust no other authority. Pure.

Agents and controllers need no certificate, they show who they are by their tokens. Servers show theirs to each other.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

AUTHORITY_DAYS: Final = 3_650
SERVER_DAYS: Final = 825
"""Longer than that some TLS libraries take no certificate."""
_SKEW: Final = timedelta(hours=1)
"""Clocks of hosts may be behind that of the one where it is made."""
_MOST_HOSTS: Final = 16
_HOST: Final = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII
)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A certificate and its private key, both PEM; the key is not encrypted."""

    certificate: bytes
    private_key: bytes


def authority(fleet: str, *, now_s: int) -> IssuedCertificate:
    """A new one, which issues certificates of servers and no further authorities. `fleet` is a name for people."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"latticed fleet {fleet}"[:64])
    builder = (
        _builder(name, name, key.public_key(), now_s=now_s, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _issued(builder.sign(key, hashes.SHA256()), key)


def server(issuer: IssuedCertificate, hosts: Sequence[str], *, now_s: int) -> IssuedCertificate:
    """A new certificate for a server that is reached under `hosts`, names or addresses; Problem `bad_request`."""
    names = [_host(one) for one in hosts]
    if not 0 < len(names) <= _MOST_HOSTS:
        raise Problem("bad_request", f"expected 1 to {_MOST_HOSTS} names or addresses of a server, found {len(names)}")
    by = x509.load_pem_x509_certificate(issuer.certificate)
    signer = serialization.load_pem_private_key(issuer.private_key, password=None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise Problem("key_invalid", f"expected a key of the curve P-256, found {type(signer).__name__}")
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(hosts[0][:64]), by.subject, key.public_key(), now_s=now_s, days=SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        # The others of a cluster ask it for its certificate when it connects to them.
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
    )
    return _issued(builder.sign(signer, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, now_s: int, days: int
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(now_s, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if not _HOST.fullmatch(text):
            raise Problem(
                "bad_request", f"expected a server's name in lower case or its address, found {text[:80]!r}"
            ) from None
        return x509.DNSName(text)


def _issued(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> IssuedCertificate:
    return IssuedCertificate(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        private_key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
