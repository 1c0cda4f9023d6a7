"""A certificate from DER, for showing: nothing is verified here. Pure.

It reads what OpenSSL reads, and also what libraries refuse: a certificate is shown because something is wrong with it.
Each field is read by itself, so that one that is malformed hides no other.

Facts: RFC 5280 sections 4.1 and 4.2, RFC 8017 appendix A, RFC 5480, RFC 8410.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import TypeVar

from portbook.probe.tls import der
from portbook.probe.tls.der import DerValue
from portbook.probe.tls.names import distinguished_name, general_name
from portbook.probe.tls.records import Certificate

DAY_S = 86_400
SIGNATURES = {
    "1.2.840.113549.1.1.2": "md2WithRSAEncryption",
    "1.2.840.113549.1.1.4": "md5WithRSAEncryption",
    "1.2.840.113549.1.1.5": "sha1WithRSAEncryption",
    "1.2.840.113549.1.1.10": "RSASSA-PSS",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
    "1.2.840.113549.1.1.14": "sha224WithRSAEncryption",
    "1.2.840.10040.4.3": "dsa-with-SHA1",
    "2.16.840.1.101.3.4.3.2": "dsa-with-SHA256",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.3.101.112": "Ed25519",
    "1.3.101.113": "Ed448",
    "2.16.840.1.101.3.4.3.17": "ML-DSA-44",
    "2.16.840.1.101.3.4.3.18": "ML-DSA-65",
    "2.16.840.1.101.3.4.3.19": "ML-DSA-87",
}
KEYS = {
    "1.2.840.113549.1.1.1": "RSA",
    "1.2.840.113549.1.1.10": "RSA-PSS",
    "1.2.840.10040.4.1": "DSA",
    "1.2.840.10045.2.1": "EC",
    **{oid: name for oid, name in SIGNATURES.items() if name.startswith(("Ed", "ML"))},
}
CURVES = {
    "1.2.840.10045.3.1.1": "P-192",
    "1.3.132.0.33": "P-224",
    "1.2.840.10045.3.1.7": "P-256",
    "1.3.132.0.34": "P-384",
    "1.3.132.0.35": "P-521",
    "1.3.132.0.10": "secp256k1",
    "1.3.36.3.3.2.8.1.1.7": "brainpoolP256r1",
}
USAGES = {
    "2.5.29.37.0": "any",
    "1.3.6.1.5.5.7.3.1": "serverAuth",
    "1.3.6.1.5.5.7.3.2": "clientAuth",
    "1.3.6.1.5.5.7.3.3": "codeSigning",
    "1.3.6.1.5.5.7.3.4": "emailProtection",
    "1.3.6.1.5.5.7.3.8": "timeStamping",
    "1.3.6.1.5.5.7.3.9": "OCSPSigning",
    "1.3.6.1.4.1.311.10.3.3": "msSGC",
    "2.16.840.1.113730.4.1": "nsSGC",
}
ALT_NAMES, CONSTRAINTS, NAME_CONSTRAINTS, USAGE = "2.5.29.17", "2.5.29.19", "2.5.29.30", "2.5.29.37"
# The extensions that OpenSSL handles when they are critical (X509_supported_extension(3)).
HANDLED = {
    "2.5.29.15": "keyUsage",
    ALT_NAMES: "subjectAltName",
    CONSTRAINTS: "basicConstraints",
    NAME_CONSTRAINTS: "nameConstraints",
    "2.5.29.31": "cRLDistributionPoints",
    "2.5.29.32": "certificatePolicies",
    "2.5.29.33": "policyMappings",
    "2.5.29.36": "policyConstraints",
    USAGE: "extKeyUsage",
    "2.5.29.54": "inhibitAnyPolicy",
    "2.16.840.1.113730.1.1": "nsCertType",
    "1.3.6.1.5.5.7.1.14": "proxyCertInfo",
    "1.3.6.1.5.5.7.1.7": "ipAddrBlocks",
    "1.3.6.1.5.5.7.1.8": "autonomousSysIds",
}
OTHER_EXTENSIONS = {
    "2.5.29.14": "subjectKeyIdentifier",
    "2.5.29.35": "authorityKeyIdentifier",
    "1.3.6.1.5.5.7.1.1": "authorityInfoAccess",
    "1.3.6.1.5.5.7.1.24": "tlsFeature",
    "1.3.6.1.4.1.11129.2.4.3": "ctPoison",
}
SUBTREES = {0xA0: "permitted", 0xA1: "excluded"}

T = TypeVar("T")


def parse(encoded: bytes, now: datetime | None = None) -> Certificate:
    """Read a certificate. Never raises: what cannot be read is empty or None.

    :param now: the time that ``days_left`` is counted from; None: the present
    """
    fields: list[DerValue] = _attempt(lambda: _fields(encoded), [])
    extensions: dict[str, _Extension] = _attempt(lambda: _extensions(fields), {})
    valid_from, expires = _time(fields, 0), _time(fields, 1)
    return Certificate(
        subject=_attempt(lambda: distinguished_name(fields[SUBJECT]), ""),
        issuer=_attempt(lambda: distinguished_name(fields[ISSUER]), ""),
        names=_attempt(lambda: _alternative_names(extensions[ALT_NAMES].content), ()),
        valid_from=valid_from,
        expires=expires,
        days_left=None if expires is None else days_between(now or datetime.now(UTC), expires),
        serial=_attempt(lambda: _serial(fields[SERIAL]), ""),
        key=_attempt(lambda: _key(fields[PUBLIC_KEY]), "unknown"),
        signature=_attempt(lambda: _algorithm(fields[SIGNATURE], SIGNATURES), "unknown"),
        authority=_attempt(lambda: _is_authority(extensions[CONSTRAINTS].content), False),
        usages=_attempt(lambda: _usages(extensions[USAGE].content), ()),
        constraints=_attempt(lambda: _name_constraints(extensions[NAME_CONSTRAINTS].content), ()),
        critical=tuple(_extension_name(oid) for oid, extension in extensions.items() if extension.critical),
        sha256=sha256(encoded).hexdigest(),
    )


def days_between(now: datetime, then: datetime) -> int:
    """Whole days from one time to another, negative when it has passed, rounded towards zero."""
    return int((then - now).total_seconds() / DAY_S)


def _attempt(read: Callable[[], T], otherwise: T) -> T:
    try:
        return read()
    except (ValueError, IndexError, KeyError):
        return otherwise


# --- fields --------------------------------------------------------------------------------------------------------

SERIAL, SIGNATURE, ISSUER, VALIDITY, SUBJECT, PUBLIC_KEY = range(6)  # of tbsCertificate, behind the version
VERSION_TAG, EXTENSIONS_TAG = 0xA0, 0xA3


def _fields(encoded: bytes) -> list[DerValue]:
    certificate = der.read_one(encoded).expect(der.SEQUENCE)
    fields = der.read_one(certificate.content).expect(der.SEQUENCE).parts()
    return fields[1:] if fields[0].tag == VERSION_TAG else fields


def _time(fields: Sequence[DerValue], index: int) -> datetime | None:
    return _attempt(lambda: der.time_of(fields[VALIDITY].parts()[index]), None)


def _algorithm(identifier: DerValue, names: dict[str, str]) -> str:
    oid = der.oid_text(identifier.parts()[0].expect(der.OID).content)
    return names.get(oid, oid)


def _serial(number: DerValue) -> str:
    return number.expect(der.INTEGER).content.hex()


def _key(info: DerValue) -> str:
    algorithm, bits = info.parts()
    name = _algorithm(algorithm, KEYS)
    if name == "EC":
        oid = der.oid_text(algorithm.parts()[1].expect(der.OID).content)
        return f"EC {CURVES.get(oid, oid)}"
    if name.startswith("RSA"):
        modulus = der.read_one(bits.content[1:]).parts()[0].expect(der.INTEGER)
        return f"{name} {int.from_bytes(modulus.content, 'big').bit_length()} bits"
    return name


# --- extensions ----------------------------------------------------------------------------------------------------


class _Extension:
    __slots__ = ("content", "critical")

    def __init__(self, critical: bool, content: bytes) -> None:
        self.critical, self.content = critical, content


def _extensions(fields: Sequence[DerValue]) -> dict[str, _Extension]:
    extensions: dict[str, _Extension] = {}
    for field in fields[PUBLIC_KEY + 1 :]:
        if field.tag != EXTENSIONS_TAG:
            continue
        for extension in der.read_one(field.content).parts():
            oid, *critical, content = extension.parts()
            is_critical = bool(critical and critical[0].content.strip(b"\0"))
            extensions[der.oid_text(oid.content)] = _Extension(is_critical, content.content)
    return extensions


def _extension_name(oid: str) -> str:
    return HANDLED.get(oid) or OTHER_EXTENSIONS.get(oid) or oid


def _alternative_names(content: bytes) -> tuple[str, ...]:
    return tuple(general_name(name) for name in der.read_one(content).parts())


def _is_authority(content: bytes) -> bool:
    parts = der.read_one(content).parts()
    return bool(parts) and parts[0].tag == der.BOOLEAN and parts[0].content != b"\0"


def _usages(content: bytes) -> tuple[str, ...]:
    oids = [der.oid_text(usage.content) for usage in der.read_one(content).parts()]
    return tuple(USAGES.get(oid, oid) for oid in oids)


def _name_constraints(content: bytes) -> tuple[str, ...]:
    constraints: list[str] = []
    for subtrees in der.read_one(content).parts():
        kind = SUBTREES.get(subtrees.tag, "unknown")
        constraints += [f"{kind} {general_name(subtree.parts()[0])}" for subtree in subtrees.parts()]
    return tuple(constraints)


# --- a chain -------------------------------------------------------------------------------------------------------


def in_order(sent: Sequence[Certificate]) -> tuple[Certificate, ...]:
    """The server's own certificate, its issuer, the issuer's issuer and so on, without what else the server sent."""
    chain = list(sent[:1])
    rest = list(sent[1:])
    while chain and chain[-1].subject != chain[-1].issuer:
        issuers = [certificate for certificate in rest if certificate.subject == chain[-1].issuer]
        if not issuers:
            break
        chain.append(issuers[0])
        rest.remove(issuers[0])
    return tuple(chain)


def first_to_expire(chain: Sequence[Certificate]) -> int | None:
    """The index of the certificate that expires first; None when no expiry is known."""
    known = [(certificate.expires, index) for index, certificate in enumerate(chain) if certificate.expires is not None]
    if not known:
        return None
    return min(known)[1]
