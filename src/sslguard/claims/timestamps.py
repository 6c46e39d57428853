"""RFC 3161 timestamps: an authority's signed statement that some bytes existed at a time.

The token is over the whole file of a commitment, so that other tools can check it too::

    openssl ts -verify -data commitment.json -in commitment.json.tsr -CAfile authority.pem

What it does not protect against: an authority that lies. The examiner chooses which authorities to believe; no list of
them is built in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard.claims.documents import read_file
from sslguard.errors import ClaimError, SuspectError, UsageError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_TOKEN = 1 << 16  # bytes; authorities send four to eight thousand
MAX_ROOTS = 1 << 20
TIMEOUT = 30.0  # seconds
_SHA256 = "2.16.840.1.101.3.4.2.1"
_GRANTED = 0


def request_token(url: str, content: bytes) -> bytes:
    """Ask an authority for a token. Only the SHA-256 of the content is sent.

    Args:
        url: Address of the authority.
        content: Bytes that the token is over.

    Returns:
        The token, DER.

    Raises:
        UsageError: `url` is not an http or https address, or holds a password.
        ClaimError: The authority gives no token over these bytes.
    """
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    builder = TimestampRequestBuilder().data(content).hash_algorithm(HashAlgorithm.SHA256)
    request = builder.nonce(nonce=True).cert_request(cert_request=True).build()
    shown, token = _post(url, request.as_bytes())
    response = parse_token(token, content, f"the answer of {shown}")
    if response.tst_info.nonce != request.nonce:
        raise ClaimError(f"the answer of {shown} is not to this request: its nonce differs")
    return token


def claimed_time(token: bytes, content: bytes, what: str) -> datetime:
    """Return the time at which a token says that its content existed. No signature is checked.

    Args:
        token: The token, DER.
        content: Bytes that it must be over.
        what: Name of the token, for error messages.

    Raises:
        ClaimError: It is not a granted token over these bytes.
    """
    return _time(parse_token(token, content, what), what)


def verified_time(token: bytes, content: bytes, roots: Sequence[Certificate], what: str) -> datetime:
    """Return the time at which an authority that one of `roots` vouches for says that the content existed.

    Certificates must be valid at that time, not now, so that a token outlives them.

    Args:
        token: The token, DER.
        content: Bytes that it must be over.
        roots: Certificates that must vouch for the authority.
        what: Name of the token, for error messages.

    Raises:
        ClaimError: No such authority signed a token over these bytes.
    """
    from rfc3161_client import VerifierBuilder

    response = parse_token(token, content, what)
    verifier = VerifierBuilder(roots=list(roots)).build()
    try:
        verifier.verify(response, hashlib.sha256(content).digest())
    except Exception:  # a hostile token may fail in any step of foreign parsers
        raise ClaimError(
            f"{what} is not from an authority that the given certificates vouch for, or was forged"
        ) from None
    return _time(response, what)


def read_roots(path: Path) -> list[Certificate]:
    """Read the certificates of authorities from a PEM file.

    Raises:
        UsageError: The file cannot be read, or holds no certificate.
    """
    from cryptography.x509 import load_pem_x509_certificates

    try:
        return load_pem_x509_certificates(read_file(path, MAX_ROOTS))
    except (ValueError, ClaimError) as error:
        raise UsageError(f"{path} must hold certificates of authorities, PEM: {error!s:.160}") from None


def parse_token(token: bytes, content: bytes, what: str) -> Any:
    """Read a granted response of an authority, which must be over these bytes.

    Args:
        token: The response, DER.
        content: Bytes that it must be over.
        what: Name of the token, for error messages.

    Raises:
        ClaimError: The token is anything else, or too large.
    """
    from rfc3161_client import decode_timestamp_response

    if len(token) > MAX_TOKEN:
        raise ClaimError(f"{what} is larger than {MAX_TOKEN} bytes: no timestamp")
    try:
        response = decode_timestamp_response(token)
        status = int(response.status)
        if status != _GRANTED:
            raise ClaimError(f"{what} is no timestamp: the authority refused, with status {status}")
        imprint = response.tst_info.message_imprint
        algorithm, message = imprint.hash_algorithm.dotted_string, bytes(imprint.message)
    except ClaimError:
        raise
    except Exception:  # a hostile token may fail in any step of foreign parsers
        raise ClaimError(f"{what} is no timestamp: a response of RFC 3161 in DER") from None
    if algorithm != _SHA256:
        raise ClaimError(f"{what} must be over a SHA-256 hash, and is over another hash")
    if message != hashlib.sha256(content).digest():
        raise ClaimError(f"{what} is not over this commitment, but over other content")
    return response


def _time(response: Any, what: str) -> datetime:
    """Return the latest time at which a token may have been given; authorities state an accuracy."""
    from datetime import timedelta

    try:
        given = response.tst_info.gen_time
        accuracy = response.tst_info.accuracy
        if given.tzinfo is None:
            given = given.replace(tzinfo=UTC)
        if accuracy is None:
            return given
        parts = {"seconds": accuracy.seconds, "milliseconds": accuracy.millis, "microseconds": accuracy.micros}
        return given + timedelta(**{unit: value or 0 for unit, value in parts.items()})
    except Exception:  # as above
        raise ClaimError(f"{what} is no timestamp: its time cannot be read") from None


def _post(url: str, request: bytes) -> tuple[str, bytes]:
    """Send a request to an authority.

    Return its address as it may be shown, and its answer of at most `MAX_TOKEN` bytes within `TIMEOUT`.
    """
    from sslguard.suspects.http import Call, Exchange

    headers = {
        "Content-Type": "application/timestamp-query",
        "Accept": "application/timestamp-reply",
        "Accept-Encoding": "identity",
    }
    try:
        exchange = Exchange(url, seconds=TIMEOUT, answer_bytes=MAX_TOKEN, connections=1)
    except UsageError:
        raise UsageError(
            "an authority's address begins with http:// or https://, names a host, and holds no user or password"
        ) from None
    try:
        reply = exchange.send(Call(body=request, headers=headers))
    except SuspectError as error:
        raise ClaimError(f"the authority gave no timestamp: {error!s:.300}") from None
    finally:
        exchange.close()
    return exchange.address, reply.body
