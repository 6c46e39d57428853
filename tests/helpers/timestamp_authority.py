"""A timestamp authority of the tests' own (RFC 3161, CMS by RFC 5652), in hand-made DER: it gives any time it likes."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

SHA256, RSA = "2.16.840.1.101.3.4.2.1", "1.2.840.113549.1.1.1"
SIGNED_DATA, TST_INFO = "1.2.840.113549.1.7.2", "1.2.840.113549.1.9.16.1.4"
CONTENT_TYPE, DIGEST, CERTIFICATE_V2 = "1.2.840.113549.1.9.3", "1.2.840.113549.1.9.4", "1.2.840.113549.1.9.16.2.47"
YEARS = timedelta(days=3650)


@dataclass
class Authority:
    """A root and an authority that it vouches for."""

    name: str = "an authority"
    root_key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    key: rsa.RSAPrivateKey = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def __post_init__(self) -> None:
        """Make both certificates."""
        root, own = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{self.name}{n}")]) for n in (", root", ""))
        self.root = self._certificate(root, root, self.root_key.public_key(), ca=True)
        self.certificate = self._certificate(own, root, self.key.public_key(), ca=False)

    def _certificate(self, subject, issuer, public, *, ca):
        builder = (
            x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - YEARS)
            .not_valid_after(datetime.now(UTC) + YEARS)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        )
        if not ca:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self.root_key, hashes.SHA256())

    def roots(self) -> bytes:
        """Return the PEM of the root."""
        return self.root.public_bytes(Encoding.PEM)

    def token(self, content: bytes, when: datetime, *, nonce: int | None = None, algorithm: str = SHA256) -> bytes:
        """Return a granted response over `content` that says `when`."""
        return self.token_over(hashlib.sha256(content).digest(), when, nonce=nonce, algorithm=algorithm)

    def token_over(self, digest: bytes, when: datetime, *, nonce: int | None = None, algorithm: str = SHA256) -> bytes:
        """Return a granted response over a digest."""
        info = sequence(
            integer(1),
            oid("1.2.3.4"),
            sequence(sequence(oid(algorithm), NULL), octets(digest)),
            integer(secrets.randbits(63)),
            tlv(0x18, when.astimezone(UTC).strftime("%Y%m%d%H%M%SZ").encode()),
            *([] if nonce is None else [integer(nonce)]),
        )
        return sequence(sequence(integer(0)), self._signed(info))

    def _signed(self, info: bytes) -> bytes:
        der = self.certificate.public_bytes(Encoding.DER)
        attributes = [
            sequence(oid(CONTENT_TYPE), tlv(0x31, oid(TST_INFO))),
            sequence(oid(DIGEST), tlv(0x31, octets(hashlib.sha256(info).digest()))),
            sequence(
                oid(CERTIFICATE_V2), tlv(0x31, sequence(sequence(sequence(octets(hashlib.sha256(der).digest())))))
            ),
        ]
        body = b"".join(sorted(attributes))
        signature = self.key.sign(tlv(0x31, body), padding.PKCS1v15(), hashes.SHA256())
        issuer = sequence(self.certificate.issuer.public_bytes(), integer(self.certificate.serial_number))
        signer = sequence(
            integer(1),
            issuer,
            sequence(oid(SHA256), NULL),
            tlv(0xA0, body),
            sequence(oid(RSA), NULL),
            octets(signature),
        )
        signed = sequence(
            integer(3),
            tlv(0x31, sequence(oid(SHA256), NULL)),
            sequence(oid(TST_INFO), tlv(0xA0, octets(info))),
            tlv(0xA0, der),
            tlv(0x31, signer),
        )
        return sequence(oid(SIGNED_DATA), tlv(0xA0, signed))


def refusal() -> bytes:
    """Return what an authority answers that will not."""
    return sequence(sequence(integer(2)))


@contextmanager
def serving(answer) -> Iterator[str]:
    """Yield the address of an authority on this machine that answers `answer(request bytes)`: status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/tsr"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def asked(request: bytes) -> tuple[bytes, int]:
    """Return digest and nonce of a request (DER)."""
    parts = children(children(request)[0][1])
    imprint = children(parts[1][1])
    nonce = next(int.from_bytes(value, "big") for tag, value in parts[2:] if tag == 2)
    return imprint[1][1], nonce


def children(der: bytes) -> list[tuple[int, bytes]]:
    """Return tag and value of each element in a row."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        found.append((tag, der[at : at + length]))
        at += length
    return found


def tlv(tag: int, value: bytes) -> bytes:
    """Return a DER element."""
    n = len(value)
    size = (
        bytes([n]) if n < 128 else (lambda b: bytes([0x80 | len(b)]) + b)(n.to_bytes((n.bit_length() + 7) // 8, "big"))
    )
    return bytes([tag]) + size + value


def sequence(*parts: bytes) -> bytes:
    """Return a DER sequence."""
    return tlv(0x30, b"".join(parts))


def integer(value: int) -> bytes:
    """Return a DER integer."""
    return tlv(2, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def octets(value: bytes) -> bytes:
    """Return a DER octet string."""
    return tlv(4, value)


def oid(text: str) -> bytes:
    """Return a DER object identifier."""
    first, second, *rest = (int(part) for part in text.split("."))
    out = bytearray()
    for number in (40 * first + second, *rest):
        chunk = [number & 0x7F]
        while number := number >> 7:
            chunk.append(0x80 | number & 0x7F)
        out += bytes(reversed(chunk))
    return tlv(6, bytes(out))


NULL = tlv(5, b"")
