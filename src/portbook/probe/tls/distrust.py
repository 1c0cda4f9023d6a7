"""Why OpenSSL does not trust a server, in words, with the certificate that it is about. Pure.

OpenSSL reports a number (X509_STORE_CTX_get_error(3)), the first reason that it met. What the number is about is found
again in the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from portbook.probe.tls.certificate import HANDLED
from portbook.probe.tls.records import Certificate

SERVER_USAGES = frozenset(("any", "serverAuth"))
EXTENSIONS_OF_OPENSSL = frozenset(HANDLED.values())


class Case(Struct, frozen=True):
    """What is known when a certificate was refused."""

    chain: tuple[Certificate, ...]  # the server's own first
    server_name: str
    now: datetime


def reason(code: int, message: str, chain: Sequence[Certificate], server_name: str) -> str:
    """Describe why a chain is not trusted.

    :param code: OpenSSL's number; 0: unknown
    :param message: OpenSSL's text, for numbers that are not in REASONS
    """
    case = Case(tuple(chain), server_name, datetime.now(UTC))
    describe = REASONS.get(code)
    if describe is None or not chain:
        return message
    return describe(case)


def _subject(certificate: Certificate) -> str:
    return certificate.subject or f"serial {certificate.serial}"


def _that(case: Case, is_meant: Callable[[Certificate], bool], among: slice = slice(None)) -> Certificate:
    """The first certificate of the chain that is meant; its last where none is: then it is one that was not sent."""
    return next(filter(is_meant, case.chain[among]), case.chain[-1])


def _unknown_issuer(case: Case) -> str:
    """The issuer of the last certificate that was sent; whether that is a root or a missing link is not known."""
    last = case.chain[-1]
    issuer = last.issuer or _subject(last)
    return f"unknown issuer, neither an authority of this machine nor sent by the server: {issuer}"


def _self_signed(case: Case) -> str:
    return f"self-signed, and not an authority of this machine: {_subject(case.chain[0])}"


def _unknown_root(case: Case) -> str:
    return f"self-signed certificate in the chain, not an authority of this machine: {_subject(case.chain[-1])}"


def _not_yet_valid(case: Case) -> str:
    meant = _that(case, lambda c: c.valid_from is not None and c.valid_from > case.now)
    return f"not valid before {_date(meant.valid_from)}: {_subject(meant)}"


def _expired(case: Case) -> str:
    meant = _that(case, lambda c: c.expires is not None and c.expires <= case.now)
    if meant.expires is None or meant.expires > case.now:
        return "a certificate of the chain that the server did not send has expired"
    return f"expired on {_date(meant.expires)}: {_subject(meant)}"


def _date(time: datetime | None) -> str:
    return "an unknown date" if time is None else f"{time:%Y-%m-%d %H:%M} UTC"


def _purpose(case: Case) -> str:
    meant = _that(case, lambda c: bool(c.usages) and not SERVER_USAGES.intersection(c.usages))
    usages = ", ".join(meant.usages) or "restricted"
    return f"not for servers: the extended key usage of {_subject(meant)} is {usages}, and not serverAuth"


def _not_an_authority(case: Case) -> str:
    meant = _that(case, lambda c: not c.authority, slice(1, None))
    return f"signed by a certificate that is not of an authority: {_subject(meant)}"


def _critical(case: Case) -> str:
    for certificate in case.chain:
        unknown = [name for name in certificate.critical if name not in EXTENSIONS_OF_OPENSSL]
        if unknown:
            return f"critical extension that OpenSSL does not know, {', '.join(unknown)}: {_subject(certificate)}"
    return "critical extension that OpenSSL does not know"


def _name_constraints(case: Case) -> str:
    meant = _that(case, lambda c: bool(c.constraints), slice(1, None))
    constraints = ", ".join(meant.constraints) or "unknown"
    return f"outside the name constraints of its issuer, {_subject(meant)}: {constraints}"


def _wrong_name(case: Case) -> str:
    return f"not valid for the name {case.server_name}"


def _wrong_address(case: Case) -> str:
    return f"not valid for the address {case.server_name}"


def _small_key(case: Case) -> str:
    return f"key too small, {case.chain[0].key}: {_subject(case.chain[0])}"


def _small_key_of_issuer(case: Case) -> str:
    meant = _that(case, _has_small_key, slice(1, None))
    return f"key of an issuer too small, {meant.key}: {_subject(meant)}"


def _has_small_key(certificate: Certificate) -> bool:
    """Less than 112 bits of security (openssl SSL_CTX_set_security_level(3), level 2)."""
    kind, _, size = certificate.key.partition(" ")
    bits = size.partition(" ")[0]
    if kind in ("RSA", "RSA-PSS") and bits.isdigit():
        return int(bits) < 2048
    return certificate.key == "EC P-192"


def _weak_signature(case: Case) -> str:
    weak = ("md2", "md5", "sha1", "dsa-with-SHA1", "ecdsa-with-SHA1")
    meant = _that(case, lambda c: c.signature.startswith(weak) and c.subject != c.issuer)
    return f"signature too weak, {meant.signature}: {_subject(meant)}"


def _bad_signature(case: Case) -> str:
    return "a signature in the chain is wrong, or made with another key than that of the issuer"


def _too_long(case: Case) -> str:
    return "more certificates below an issuer than it allows (pathlen)"


UNKNOWN_AUTHORITY = frozenset((2, 18, 19, 20, 21))
REASONS: dict[int, Callable[[Case], str]] = {  # X509_V_ERR_…: openssl/x509_vfy.h
    2: _unknown_issuer,
    7: _bad_signature,
    9: _not_yet_valid,
    10: _expired,
    18: _self_signed,
    19: _unknown_root,
    20: _unknown_issuer,
    21: _unknown_issuer,
    24: _not_an_authority,
    25: _too_long,
    26: _purpose,
    34: _critical,
    47: _name_constraints,
    48: _name_constraints,
    62: _wrong_name,
    64: _wrong_address,
    66: _small_key,
    67: _small_key_of_issuer,
    68: _weak_signature,
    79: _not_an_authority,
}
