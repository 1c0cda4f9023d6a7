"""Certificates of every kind, made with openssl, and openssl as a server and as the referee."""

from __future__ import annotations

import contextlib
import functools
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.components import need

LIMIT_S = 30
LEAF = """basicConstraints=CA:FALSE
extendedKeyUsage=serverAuth
subjectAltName={names}
"""
AUTHORITY = """basicConstraints=critical,CA:TRUE
keyUsage=critical,keyCertSign,cRLSign
"""
CONFIG = """[ca]
default_ca=here
[here]
database={place}/index
serial={place}/serial
new_certs_dir={place}
default_md=sha256
policy=any
unique_subject=no
email_in_dn=yes
[any]
"""
FIELDS = "countryName stateOrProvinceName localityName organizationName organizationalUnitName commonName emailAddress"


def openssl(*arguments: object, text: str | None = None) -> str:
    """Run openssl and return what it printed; its failure is an error that says why."""
    done = subprocess.run(
        ["openssl", *map(str, arguments)], input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class Pki:
    """A directory of keys and certificates: ``NAME.key``, ``NAME.pem``."""

    def __init__(self, place: Path) -> None:
        need(shutil.which("openssl") is not None, "openssl")
        self.place = place
        (place / "index").write_text("")
        (place / "serial").write_text("1000")
        optional = "".join(f"{field}=optional\n" for field in FIELDS.split())
        (place / "config").write_text(CONFIG.format(place=place) + optional)

    def path(self, name: str, kind: str = "pem") -> Path:
        return self.place / f"{name}.{kind}"

    def make(
        self,
        name: str,
        extensions: str,
        *,
        issuer: str | None = None,
        subject: str | None = None,
        key: str = "EC",
        digest: str = "sha256",
        starts: str = "20200101000000Z",
        ends: str = "20991231235959Z",
    ) -> Path:
        """Make a key and a certificate; issuer None: self-signed."""
        kinds = {"EC": ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")}
        kind = kinds.get(key) or ("-algorithm", "RSA", "-pkeyopt", f"rsa_keygen_bits:{key}")
        openssl("genpkey", *kind, "-out", self.path(name, "key"))
        request, extension_file = self.path(name, "csr"), self.path(name, "ext")
        extension_file.write_text(extensions)
        openssl("req", "-new", "-utf8", "-key", self.path(name, "key"), "-subj", subject or f"/CN={name}",
                "-out", request)  # fmt: skip
        signer = ["-selfsign", "-keyfile", self.path(name, "key")]
        if issuer is not None:
            signer = ["-cert", self.path(issuer), "-keyfile", self.path(issuer, "key")]
        openssl("ca", "-batch", "-notext", "-utf8", "-preserveDN", "-config", self.place / "config", *signer,
                "-in", request,
                "-md", digest, "-startdate", starts, "-enddate", ends, "-extfile", extension_file,
                "-out", self.path(name))  # fmt: skip
        return self.path(name)

    def verify(self, name: str, root: str, *sent: str, host: str | None = None) -> str | None:
        """What ``openssl verify`` says against a certificate, as a TLS client would; None: nothing."""
        words = ["verify", "-auth_level", "2", "-purpose", "sslserver", "-no-CApath", "-CAfile", self.path(root)]
        for certificate in sent:
            words += ["-untrusted", self.path(certificate)]
        if host is not None:
            words += ["-verify_ip" if host[0].isdigit() else "-verify_hostname", host]
        done = subprocess.run(
            ["openssl", *map(str, words), str(self.path(name))],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        if done.returncode == 0:
            return None
        return re.findall(r"error \d+ at \d+ depth lookup: ?(.*)", done.stderr + done.stdout)[0]

    @contextlib.contextmanager
    def server(self, name: str, *options: str, sends: tuple[str, ...] = ()) -> Iterator[int]:
        """A TLS server with a certificate and the others that it sends; yield its port."""
        chain = self.path(f"{name}-sent", "chain")
        chain.write_text("".join(self.path(sent).read_text() for sent in sends))
        given = ["-cert", self.path(name), "-key", self.path(name, "key")] if name else ["-nocert"]
        if sends:
            given += ["-cert_chain", chain]
        with serving("s_server", "-accept", "127.0.0.1:0", *given, *options) as port:
            yield port


@contextlib.contextmanager
def serving(*words: object) -> Iterator[int]:
    """Run ``openssl s_server``; yield the port that it says it accepts on."""
    process = subprocess.Popen(
        ["openssl", *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        yield _port_of(process)
    finally:
        process.kill()
        process.wait(LIMIT_S)
        process.stdout.close()
        if process.stdin is not None:
            process.stdin.close()


def _port_of(process: subprocess.Popen[bytes]) -> int:
    seen = b""
    deadline = time.monotonic() + LIMIT_S
    while (found := re.search(rb"ACCEPT .*:(\d+)\s", seen)) is None:
        assert process.stdout is not None
        ready = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
        data = process.stdout.read1(4096) if ready else b""
        assert data, f"openssl s_server ended: {seen.decode()}"
        seen += data
    return int(found[1])


@functools.cache
def version() -> str:
    return openssl("version")
