"""Certificates and keys: the authority of one federation, its server's certificate, and a key for each device.

There is no authority but the federation's own, which every bundle carries; so a device trusts one server and nothing
else. A device is known by its key alone (EC P-384, OpenSSH, what Flower asks for); no certificate is made for it. The
authority's key is needed only when the server's certificate is renewed.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from fedgen.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825
SKEW = datetime.timedelta(days=1)
"""Certificates are valid from a day ago on: a device's clock may be a little behind."""

PUBLIC_KEY = re.compile(r"ecdsa-sha2-nistp384 [A-Za-z0-9+/]{40,400}={0,2}")


@final
@dataclass(frozen=True)
class Pair:
    """What may be shown, and the secret that belongs to it.

    Attributes:
        public: a certificate (PEM), or a public key (OpenSSH, one line without its end).
        private: the key.
    """

    public: bytes
    private: bytes


def new_authority() -> Pair:
    """A certificate authority (P-384) that may sign servers and nothing else."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("fedgen authority")
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(AUTHORITY_DAYS)
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Pair(_pem(certificate), _pkcs8(key))


def new_server(authority: Pair, hosts: Sequence[str], days: int = SERVER_DAYS) -> Pair:
    """A server's certificate (P-256), signed by the authority.

    Args:
        authority: what ``new_authority`` gave.
        hosts: names and addresses under which the server is reached; the first is its common name.
        days: how long it is valid.

    Raises:
        ConfigError: the authority's files are damaged or do not belong together.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = _certificate(authority.public)
    try:
        signer = serialization.load_pem_private_key(authority.private, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError("the authority's key (ca.key) is damaged. Restore it from a copy") from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != issuer.public_key():
        raise ConfigError("ca.key does not belong to ca.crt. Restore both from one copy")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(days)
        .subject_name(_name(hosts[0][:64]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return Pair(_pem(certificate), _pkcs8(key))


def new_identity() -> Pair:
    """The key by which one device is known."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    encoding, form = serialization.Encoding, serialization.PrivateFormat
    return Pair(
        key.public_key().public_bytes(encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
        key.private_bytes(encoding.PEM, form.OpenSSH, serialization.NoEncryption()),
    )


def pem(public_key: str) -> bytes:
    """A public key (OpenSSH) in the form that Flower sends.

    Raises:
        ConfigError: it is none.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        key = serialization.load_ssh_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{public_key[:60]} is no public key: restore fleet.json from a copy") from error
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def public_half(private: bytes) -> bytes:
    """The public key (OpenSSH) that belongs to a device's private one.

    Raises:
        ConfigError: it is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_ssh_private_key(private, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the device's key (node.key) is damaged. Unpack its bundle again") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError("the device's key (node.key) is not of the kind EC P-384. Unpack its bundle again")
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


@final
@dataclass(frozen=True)
class Standing:
    """How a server's certificate stands.

    Attributes:
        hosts: names and addresses for which it speaks.
        days_left: until it ends; negative once it has.
        signed: whether it is the authority's, and the key beside it is its own.
    """

    hosts: frozenset[str]
    days_left: float
    signed: bool


def standing(server: Pair, authority: bytes) -> Standing:
    """Looks at a server's certificate.

    Args:
        server: certificate and key.
        authority: the certificate of the authority.

    Raises:
        ConfigError: one of the files is damaged.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization

    certificate, issuer = _certificate(server.public), _certificate(authority)
    try:
        key = serialization.load_pem_private_key(server.private, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError("the server's key (server.key) is damaged. Restore it from a copy") from error
    try:
        certificate.verify_directly_issued_by(issuer)
        signed = key.public_key() == certificate.public_key()
    except (InvalidSignature, ValueError, TypeError):
        signed = False
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return Standing(frozenset(hosts), left / datetime.timedelta(days=1), signed)


def _certificate(pem: bytes) -> "x509.Certificate":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise ConfigError("a certificate (ca.crt or server.pem) is damaged. Restore it from a copy") from error


def _builder(days: int) -> "x509.CertificateBuilder":
    from cryptography import x509

    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _name(text: str) -> "x509.Name":
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: "x509.Certificate") -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _pkcs8(key: "ec.EllipticCurvePrivateKey") -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
