"""One set of certificates for all tests of TLS: making them takes less than a second."""

from __future__ import annotations

import pytest

from tests.probe.tls.pki import AUTHORITY, LEAF, Pki

NAMES = "DNS:good.test,IP:127.0.0.1"


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    pki = Pki(tmp_path_factory.mktemp("pki"))
    leaf = LEAF.format(names=NAMES)
    pki.make("root", AUTHORITY)
    pki.make("issuer", AUTHORITY, issuer="root")
    pki.make("constrained", AUTHORITY + "nameConstraints=critical,permitted;DNS:allowed.test\n", issuer="root")
    pki.make("short", AUTHORITY.replace("CA:TRUE", "CA:TRUE,pathlen:0"), issuer="root")
    pki.make("below-short", AUTHORITY, issuer="short")
    pki.make("expired-issuer", AUTHORITY, issuer="root", ends="20210101000000Z")
    pki.make("sha1-issuer", AUTHORITY, issuer="root", digest="sha1")
    pki.make("small-issuer", AUTHORITY, issuer="root", key="1024")
    pki.make("no-authority", leaf, issuer="root")
    pki.make("good", leaf, issuer="root")
    pki.make("behind", leaf, issuer="issuer")
    pki.make("expired", leaf, issuer="root", ends="20210101000000Z")
    pki.make("early", leaf, issuer="root", starts="20980101000000Z")
    pki.make("client", leaf.replace("serverAuth", "clientAuth"), issuer="root")
    pki.make("sha1", leaf, issuer="root", digest="sha1")
    pki.make("small", leaf, issuer="root", key="1024")
    pki.make("critical", leaf + "1.3.6.1.4.1.55555.1=critical,ASN1:UTF8String:x\n", issuer="root")
    pki.make("outside", leaf, issuer="constrained")
    pki.make("deep", leaf, issuer="below-short")
    pki.make("by-expired", leaf, issuer="expired-issuer")
    pki.make("by-sha1", leaf, issuer="sha1-issuer")
    pki.make("by-small", leaf, issuer="small-issuer")
    pki.make("by-leaf", leaf, issuer="no-authority")
    pki.make("self", leaf)
    pki.make("other-root", AUTHORITY)
    pki.make("by-other", leaf, issuer="other-root")
    # Python 3.13's own context refuses these two, OpenSSL does not: no key identifiers, basicConstraints not critical.
    pki.make("loose-root", "basicConstraints=CA:TRUE\n")
    pki.make("by-loose", f"subjectAltName={NAMES}\n", issuer="loose-root")
    return pki


@pytest.fixture
def trusting(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> Pki:
    """The machine trusts "root" and "loose-root", and nothing else."""
    both = pki.path("trusted")
    both.write_text(pki.path("root").read_text() + pki.path("loose-root").read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(both))  # SSL_CTX_set_default_verify_paths(3)
    monkeypatch.setenv("SSL_CERT_DIR", str(pki.place / "nothing"))
    return pki
