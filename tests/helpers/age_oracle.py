"""The age format as its specification has it (https://c2sp.org/age), on cryptography's primitives.

An independent reader of what sslguard seals, and a writer with a cheap scrypt, so that tests need not wait.
"""

from __future__ import annotations

import base64
import os
import re

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MAGIC = b"age-encryption.org/v1\n"
CHUNK = 1 << 16
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def decrypt_to_identity(content: bytes, identity: str) -> bytes:
    """Return the plaintext of an age file sealed to the recipient of `identity`."""
    header, nonce, body = _split(content)
    private = X25519PrivateKey.from_private_bytes(_bech32_bytes(identity))
    public = private.public_key().public_bytes_raw()
    for share, wrapped in re.findall(rb"-> X25519 (\S{43})\n(\S{43})\n", header):
        ephemeral = _b64(share)
        shared = private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        key = _hkdf(shared, ephemeral + public, b"age-encryption.org/v1/X25519")
        return _payload(header, ChaCha20Poly1305(key).decrypt(bytes(12), _b64(wrapped), None), nonce, body)
    raise AssertionError("no stanza of X25519")


def decrypt_by_passphrase(content: bytes, passphrase: str) -> bytes:
    """Return the plaintext of an age file sealed by a passphrase."""
    header, nonce, body = _split(content)
    (salt, factor, wrapped) = re.findall(rb"-> scrypt (\S{22}) (\d+)\n(\S{43})\n", header)[0]
    key = _scrypt(passphrase, _b64(salt), int(factor))
    return _payload(header, ChaCha20Poly1305(key).decrypt(bytes(12), _b64(wrapped), None), nonce, body)


def encrypt_by_passphrase(plain: bytes, passphrase: str, work_factor: int = 6) -> bytes:
    """Return an age file whose scrypt takes no time."""
    file_key, salt, nonce = os.urandom(16), os.urandom(16), os.urandom(16)
    wrapped = ChaCha20Poly1305(_scrypt(passphrase, salt, work_factor)).encrypt(bytes(12), file_key, None)
    header = MAGIC + b"-> scrypt %s %d\n%s\n---" % (_to_b64(salt), work_factor, _to_b64(wrapped))
    sealed = ChaCha20Poly1305(_hkdf(file_key, nonce, b"payload"))
    chunks = [plain[at : at + CHUNK] for at in range(0, len(plain), CHUNK)] or [b""]
    body = b"".join(sealed.encrypt(_counter(i, i == len(chunks) - 1), c, None) for i, c in enumerate(chunks))
    return header + b" " + _to_b64(_mac(file_key, header)) + b"\n" + nonce + body


def _split(content: bytes) -> tuple[bytes, bytes, bytes]:
    match = re.match(rb"(age-encryption\.org/v1\n.*?\n---) \S{43}\n", content, re.DOTALL)
    assert match
    return match[0], content[match.end() : match.end() + 16], content[match.end() + 16 :]


def _payload(header: bytes, file_key: bytes, nonce: bytes, body: bytes) -> bytes:
    signed, mac = header.rsplit(b" ", 1)
    assert _mac(file_key, signed) == _b64(mac.strip())
    cipher, parts = ChaCha20Poly1305(_hkdf(file_key, nonce, b"payload")), []
    starts = range(0, len(body), CHUNK + 16)
    for i, at in enumerate(starts):
        parts.append(cipher.decrypt(_counter(i, i == len(starts) - 1), body[at : at + CHUNK + 16], None))
    return b"".join(parts)


def _counter(i: int, last: bool) -> bytes:
    return i.to_bytes(11, "big") + bytes([last])


def _mac(file_key: bytes, header: bytes) -> bytes:
    mac = hmac.HMAC(_hkdf(file_key, b"", b"header"), hashes.SHA256())
    mac.update(header)
    return mac.finalize()


def _scrypt(passphrase: str, salt: bytes, work_factor: int) -> bytes:
    return Scrypt(b"age-encryption.org/v1/scrypt" + salt, 32, 1 << work_factor, 8, 1).derive(passphrase.encode())


def _hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(secret)


def _b64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4))


def _to_b64(raw: bytes) -> bytes:
    return base64.b64encode(raw).rstrip(b"=")


def _bech32_bytes(text: str) -> bytes:
    """Return the 32 bytes of a Bech32 string; its checksum is the business of whoever wrote it."""
    values = [_BECH32.index(c) for c in text.lower().rpartition("1")[2]][:-6]
    bits = "".join(f"{v:05b}" for v in values)
    return int(bits[:256], 2).to_bytes(32, "big")
