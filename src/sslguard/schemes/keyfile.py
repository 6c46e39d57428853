"""Keys on disk: a folder that its owner alone may read, sealed with age or in the clear.

docs/reference/key-format.md describes the files. A key in the clear holds the master secret as it is; keep it as you
would keep a private key. Its controls' scores may stand beside the key: see `verification.scores`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sslguard.crypto.sealing import Seal, new_identity, open_with, unseal
from sslguard.data.watched import MAX_FINGERPRINTS, NOTHING, Fingerprints
from sslguard.errors import KeyFileError, OutputError, UsageError
from sslguard.files import atomic_folder, canonical_json, read_plain, write_atomic
from sslguard.lineage.order import Order
from sslguard.schemes.base import Key
from sslguard.schemes.exact.bank import recipient_stream
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.keyfolder import HEADER, check_key
from sslguard.schemes.order import OrderKey, WeightsKey
from sslguard.schemes.registry import key_class

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = "sslguard-key"
VERSION = 1
TENSORS = "tensors.safetensors"
SEALED_BODY, SEALED_TENSORS = "secret.json.age", "tensors.safetensors.age"
SCORES, OPENINGS, RECIPIENTS = "controls.json", "openings.json", "recipients.jsonl"
MARKED = "marked_items"
ORDER = 17
"""Number of the secret order, behind those of sub-keys."""
_FILES = frozenset({HEADER, TENSORS, SEALED_BODY, SEALED_TENSORS, SCORES, OPENINGS, RECIPIENTS})
# Those that can be hashed: numpy's.
_DTYPES = frozenset(
    {
        *(torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    }
)
MAX_JSON_BYTES = 1 << 20
MAX_TENSOR_BYTES = 1 << 30
SALT_BYTES = 32
# What age adds: a header, and 16 bytes in 65,536.
_SEALED = 1.001, 1 << 16


@dataclass(frozen=True, eq=False, repr=False)
class Owner:
    """What an owner commits to a key with. Independent of the key's secret: a claim opens that, and not this.

    Attributes:
        salt: 32 bytes that hide the key in its commitment.
        signing_key: An Ed25519 private key, 32 bytes.
    """

    salt: bytes
    signing_key: bytes

    def __post_init__(self) -> None:
        if len(self.salt) != SALT_BYTES or len(self.signing_key) != SALT_BYTES:
            raise KeyFileError(f"an owner's salt and signing key have {SALT_BYTES} bytes each")

    @classmethod
    def generate(cls) -> Owner:
        """Draw fresh ones from the operating system."""
        return cls(secrets.token_bytes(SALT_BYTES), secrets.token_bytes(SALT_BYTES))

    @property
    def public(self) -> str:
        """The Ed25519 public key, hex: the owner's name to others."""
        return self.private_key().public_key().public_bytes_raw().hex()

    def private_key(self) -> Ed25519PrivateKey:
        """Return the key that signs documents."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.signing_key)

    def to_json(self) -> dict[str, str]:
        """Return the owner's secrets as JSON values; `from_json` reads them."""
        return {"salt": self.salt.hex(), "signing_key": self.signing_key.hex()}

    @classmethod
    def from_json(cls, found: Any) -> Owner:
        """Return the owner that `to_json` told of. Raise KeyFileError for anything else."""
        try:
            return cls(bytes.fromhex(found["salt"]), bytes.fromhex(found["signing_key"]))
        except (KeyError, TypeError, ValueError):
            raise KeyFileError("the key's owner is damaged: it lacks a salt or a signing key") from None


class Handed(NamedTuple):
    """A secret that a recipient was given.

    Attributes:
        name: The recipient.
        rotation: How many secrets he had before this one.
        given: When it was given out, ISO 8601 with its zone, by the owner's list.
    """

    name: str
    rotation: int
    given: str


@dataclass(frozen=True, eq=False, repr=False)
class StoredKey:
    """What a key's folder holds.

    Attributes:
        sealed: Whether the folder is encrypted.
        number: Of the sub-key that `key` is, from 1; 0 for the whole key, `ORDER` for the secret order. Of a
            recipient's key, the name of his secret.
        handed: The recipient's secret that `key` is of; None of any other key.
        folder: Where it lies; None for what was never there.
        marked: Fingerprints of the items that took part in marking, int64 (m,); see `data.watched`.
        order: Secret order of the hidden units of the encoder that was released; None where it has none.
    """

    key: Key
    owner: Owner
    sealed: bool
    number: int | str = 0
    folder: Path | None = None
    marked: Fingerprints = field(default_factory=lambda: NOTHING)
    order: Order | None = None
    handed: Handed | None = None

    @property
    def sub_keys(self) -> int:
        """Return the number of sub-keys of the whole key; 0 if its scheme has none."""
        return self.key.sub_keys if isinstance(self.key, ExactKey) else 0

    def opened(self, number: int) -> StoredKey:
        """Return the sub-key of this number, for a claim that opens no other.

        Raises:
            UsageError: The key has none, or none of this number.
        """
        if not isinstance(self.key, ExactKey):
            raise UsageError(f"keys of the scheme {self.key.scheme} have no sub-keys, only those of exact")
        return replace(self, key=self.key.opened(number), number=number)

    def of_recipient(self, handed: Handed) -> StoredKey:
        """Return the key of a recipient's own mark, for a receipt or a claim that opens no other.

        Raises:
            UsageError: Keys of this scheme, or parts of a key, have no recipients.
        """
        if not isinstance(self.key, ExactKey) or self.number != 0:
            raise UsageError("only a whole key of the scheme exact has recipients")
        number = recipient_stream(handed.name, handed.rotation)
        return replace(self, key=self.key.recipient(handed.name, handed.rotation), number=number, handed=handed)

    def of_weights(self) -> StoredKey:
        """Return what of this key is compared with weights: the key itself, or the secret order that it holds.

        Raises:
            KeyFileError: There is no secret order.
        """
        if isinstance(self.key, WeightsKey):
            return self
        if self.order is None:
            raise KeyFileError("this key has no secret order: the units of its encoder stand in their own order")
        released = OrderKey(self.order, str(self.key.to_parts()[0].get("watermarked_hash", "")))
        return replace(self, key=released, number=ORDER)


def save_key(
    key: Key,
    folder: str | Path,
    *,
    seal: Seal | None = None,
    owner: Owner | None = None,
    marked: Fingerprints = NOTHING,
    order: Order | None = None,
) -> None:
    """Write a key to its folder (mode 0700, files 0600), whole or not at all.

    A key that is there is replaced, with its stored scores.

    Args:
        key: The key.
        folder: Where it is written.
        seal: For whom it is encrypted; None leaves it in the clear.
        owner: A fresh one unless given.
        marked: Fingerprints of the items that took part in marking, which `verify` will not ask about.
        order: Secret order of the hidden units of the encoder that is released.

    Raises:
        OutputError: The folder holds something else, or cannot be written.
    """
    stored = StoredKey(key, owner or Owner.generate(), seal is not None, marked=marked, order=order)
    _write(stored, Path(folder), seal, {})


def reseal_key(folder: Path, seal: Seal | None) -> StoredKey:
    """Write a key again where it stands, sealed or not; owner, stored scores, openings and recipients stay.

    Raises:
        KeyFileError: It cannot be opened.
        OutputError: The folder cannot be written.
    """
    stored = open_key(folder)
    beside = [folder / name for name in (SCORES, OPENINGS, RECIPIENTS)]
    kept = {path.name: path.read_bytes() for path in beside if path.is_file() and not path.is_symlink()}
    _write(stored, folder, seal, kept)
    return replace(stored, sealed=seal is not None)


def load_key(folder: str | Path) -> Key:
    """Return the key that `save_key` wrote; a sealed one is opened as `sealing` says.

    Raises:
        KeyFileError: Something is missing, damaged, oversized or of another version, or does not open. Messages hold
            no secret.
    """
    return open_key(folder).key


def open_key(folder: str | Path) -> StoredKey:
    """Return the key as `load_key` does, with its owner."""
    folder = Path(folder)
    header = read_header(folder)
    sealed = header.get("protection") == "age"
    body = _open_body(folder) if sealed else header
    kind = kind_of(body.get("scheme"))
    fields = body.get("fields")
    if not isinstance(fields, dict):
        raise KeyFileError(f"{folder}/{HEADER} has no fields")
    owner = Owner.from_json(body.get("owner"))
    if (header.get("id"), header.get("scheme")) != (owner.public, kind.scheme):
        raise KeyFileError(f"{folder}/{HEADER} is damaged: its id and its scheme are not those of the key")
    content = _sealed_tensors(folder, body) if sealed else read_plain(folder / TENSORS, MAX_TENSOR_BYTES, KeyFileError)
    tensors = parse_tensors(content, str(folder))
    marked = tensors.pop(MARKED, None)
    if marked is None or marked.dtype != torch.int64 or marked.dim() != 1 or len(marked) > MAX_FINGERPRINTS:
        raise KeyFileError(f"the tensors of {folder} are damaged: {MARKED} is missing or of another kind")
    order = None if body.get("order") is None else Order.from_json(body["order"])
    key = kind.from_parts(fields, tensors)
    return StoredKey(key, owner, sealed, folder=folder, marked=marked.numpy(), order=order)


def key_hash(key: Key) -> str:
    """Return SHA-256, hex, of the key's scheme, fields and tensors: the same however often it is written.

    It covers the secret, which it does not give away; still it belongs beside the key and nowhere else.
    """
    fields, tensors = key.to_parts()
    digest = hashlib.sha256(json.dumps([key.scheme, fields], sort_keys=True, allow_nan=False).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + b"\n" + tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return a line of JSON with dtype and shape, then the values in row-major order, little-endian: for hashes."""
    values = tensor.detach().cpu().numpy()
    head = json.dumps([str(values.dtype), list(values.shape)]).encode()
    return head + b"\n" + np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def is_key_folder(folder: Path) -> bool:
    """Return whether `folder` holds a key of this version, sealed or not. It is not opened."""
    try:
        return read_header(folder)["format"] == FORMAT
    except KeyFileError:
        return False


def kind_of(scheme: object) -> type[Key]:
    """Return the class of the keys of a scheme.

    Raises:
        KeyFileError: There is no scheme of this name, or its keys are not kept in files.
    """
    kind = key_class(scheme)
    if kind is None:
        raise KeyFileError(f"the scheme {scheme!r:.80} is not known here")
    return kind


def read_header(folder: Path) -> dict[str, Any]:
    """Read `key.json`: what can be known of a key without opening it; of one in the clear, all but tensors.

    Raises:
        KeyFileError: It is missing, damaged, oversized or of another version.
    """
    check_key(folder)
    path = folder / HEADER
    try:
        description = json.loads(read_plain(path, MAX_JSON_BYTES, KeyFileError))
    except (ValueError, RecursionError):
        raise KeyFileError(f"{path} is damaged: not JSON") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise KeyFileError(f"{folder} is not a key of this program")
    version = description.get("version")
    # True == 1.
    if isinstance(version, bool) or version != VERSION:
        raise KeyFileError(f"{folder} is a key of version {version!r:.40}; this program reads version {VERSION}")
    if description.get("protection") not in ("none", "age"):
        raise KeyFileError(f"{path} is damaged: a key's protection is none or age")
    return description


def parse_tensors(content: bytes, what: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, all finite.

    Raises:
        KeyFileError: It is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise KeyFileError(f"the tensors of {what} are damaged: {error!s:.200}") from None
    strange = [name for name, tensor in tensors.items() if tensor.dtype not in _DTYPES]
    if strange:
        raise KeyFileError(f"the tensors of {what} are damaged: {strange[0]:.80} is of a type that no key has")
    bad = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise KeyFileError(f"the tensors of {what} are damaged: {bad[0]:.80} holds values that are not finite")
    return tensors


def serialise_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the safetensors file of tensors wherever they are."""
    from safetensors.torch import save

    plain, seen = {}, set[int]()
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().contiguous()
        plain[name] = values.clone() if values.data_ptr() in seen else values  # tied weights share memory
        seen.add(values.data_ptr())
    return save(plain)


def _write(stored: StoredKey, folder: Path, seal: Seal | None, beside: Mapping[str, bytes]) -> None:
    key, owner = stored.key, stored.owner
    fields, tensors = key.to_parts()
    tensors[MARKED] = torch.from_numpy(stored.marked)
    header = {"format": FORMAT, "version": VERSION, "scheme": key.scheme, "id": owner.public}
    body = {"scheme": key.scheme, "fields": fields, "owner": owner.to_json()}
    if stored.order is not None:
        body["order"] = stored.order.to_json()
    _check_nothing_else(folder)
    with atomic_folder(folder, replaces=is_key_folder) as partial:
        partial.chmod(0o700)
        content = serialise_tensors(tensors)
        if seal is None:
            files = {HEADER: _line({**header, **body, "protection": "none"}), TENSORS: content}
        else:
            # A passphrase takes seconds, so it is taken once: for the body, which holds what opens the tensors.
            identity, for_tensors = new_identity()
            files = {
                HEADER: _line({**header, "protection": "age"}),
                SEALED_BODY: seal.close(_line({**body, "identity": identity})),
                SEALED_TENSORS: for_tensors.close(content),
            }
        for name, part in {**files, **beside}.items():
            write_atomic(partial / name, part, private=True)


def _check_nothing_else(folder: Path) -> None:
    """Raise OutputError where a key's folder holds what is no part of a key, and would be lost with the old one."""
    if not is_key_folder(folder):
        return
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}") from error
    # What a killed process left unfinished is nobody's.
    others = sorted(name for name in names - _FILES if not (name[0] == "." and name.endswith(".partial")))
    if others:
        raise OutputError(
            f"{folder} holds {others[0]!r:.80}, which is no part of a key and would be lost: move it away"
        )


def _line(value: Any) -> bytes:
    content = canonical_json(value) + b"\n"
    if len(content) > MAX_JSON_BYTES:
        raise UsageError(f"a key's description must stay below {MAX_JSON_BYTES} bytes, not {len(content)}")
    return content


def _open_body(folder: Path) -> dict[str, Any]:
    path = folder / SEALED_BODY
    content = unseal(read_plain(path, _sealed_size(MAX_JSON_BYTES), KeyFileError), str(path))
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise KeyFileError(f"{path} is damaged: it holds no JSON") from None
    if not isinstance(body, dict) or not isinstance(body.get("identity"), str):
        raise KeyFileError(f"{path} is damaged: it does not open the tensors")
    return body


def _sealed_tensors(folder: Path, body: Mapping[str, Any]) -> bytes:
    path = folder / SEALED_TENSORS
    content = read_plain(path, _sealed_size(MAX_TENSOR_BYTES), KeyFileError)
    return open_with(body["identity"], content, str(path))


def _sealed_size(most: int) -> int:
    factor, header = _SEALED
    return int(most * factor) + header
