"""Commitments: what an owner publishes before a suspect is found, and opens to an examiner afterwards.

A commitment is a signed document (see `documents`). Its predicate has the owner's public key and::

    keys     for the key and each of its sub-keys: SHA-256(salt ‖ canonical JSON of its description), hex; each has its
             own salt of 32 bytes
    order    the same for the secret order of the encoder's units, if it has one, as a key of the scheme "order"

A commitment to a recipient's key alone is his receipt (see `receipts`). Its `keys` hold that key, and it has a further
field::

    recipient  an object: `name`, `rotation` (how many secrets he had before), and `given`, the time of this one

The description of a key is all of it except the weights of F, which are represented by their hash::

    fields   of the key, including the secret, protocol or settings, and the hashes of F and F*
    scheme   "exact", "sslguard", "order" or "initial"
    tensors  name → SHA-256 of `keyfile.tensor_bytes`

The commitment is public and reveals none of that. It is a function of the key's folder, so it can be written again.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sslguard.claims.documents import (
    MAX_DOCUMENT,
    Document,
    Kind,
    hex_bytes,
    moment,
    parse_document,
    read_file,
    sign_document,
)
from sslguard.claims.timestamps import MAX_TOKEN, claimed_time, request_token, verified_time
from sslguard.encoders.base import Encoder
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.files import canonical_json, write_atomic
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.keyfile import Handed, Owner, StoredKey, kind_of, tensor_bytes
from sslguard.schemes.order import OrderKey
from sslguard.tracing.recipients import checked_name

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_KEYS = 64
MOST_ROTATIONS = 1 << 20
# Prefixes of the tensors in an exact key that belong to F. The examiner gets them with F.
_OF_CLEAN = ("clean.", "file.")
_CLEAN_FIELDS = ("architecture", "preprocess", "dim")


def _hashes(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the digests in a commitment by the names of what they commit to."""
    keys = predicate.get("keys")
    named = {f"sub-key {i}" if i else "key": digest for i, digest in enumerate(keys if isinstance(keys, list) else [])}
    return {**named, **({"order": predicate["order"]} if "order" in predicate else {})}


OF_COMMITMENTS = Kind("commitment", _hashes)


@dataclass(frozen=True, eq=False, repr=False)
class OpenedKey:
    """A key as it is shown to an examiner: without F, which is handed over separately.

    Attributes:
        scheme: Name of the key's scheme.
        fields: JSON values, including the secret.
        tensors: All tensors except those of F.
    """

    scheme: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, key: Key) -> OpenedKey:
        """Return the opened form of a key. Paths and records of F are left out, because nothing depends on them."""
        fields, tensors = key.to_parts()
        if isinstance(fields.get("clean"), dict):
            fields = {**fields, "clean": {name: fields["clean"][name] for name in _CLEAN_FIELDS}}
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items() if not name.startswith(_OF_CLEAN)}
        # Written and read as JSON, so that tuples become lists, as in a file.
        return cls(key.scheme, json.loads(canonical_json(fields)), kept)

    def digest(self, salt: bytes) -> str:
        """Return the digest, SHA-256 in hex, that commits to this key with a salt."""
        description = {
            "scheme": self.scheme,
            "fields": self.fields,
            "tensors": {
                name: hashlib.sha256(tensor_bytes(tensor)).hexdigest() for name, tensor in self.tensors.items()
            },
        }
        return hashlib.sha256(salt + canonical_json(description)).hexdigest()

    @property
    def kind(self) -> type[Key]:
        """Class of the key."""
        return kind_of(self.scheme)

    @property
    def clean_hash(self) -> str:
        """SHA-256, hex, of the weights of F, as the key states it."""
        return str(self.fields.get("clean_hash"))

    def with_clean(self, clean: Encoder) -> Key:
        """Return the complete key, with F put back.

        Raises:
            ClaimError: `clean` has another architecture or preprocessing than the key's F.
            KeyFileError: The parts do not fit together.
        """
        preprocess = clean.preprocess.to_json()
        ours = {"architecture": clean.architecture, "preprocess": preprocess, "dim": clean.dim}
        described, wanted = (
            (self.fields.get("clean"), ours)
            if issubclass(self.kind, ExactKey)
            else (self.fields.get("preprocess"), preprocess)
        )
        # Compared as JSON, in which tuples are lists, because the commitment is to JSON.
        if described != json.loads(canonical_json(wanted)):
            raise ClaimError("the committed key's F has another architecture or preprocessing than this one")
        if not issubclass(self.kind, ExactKey):
            return self.kind.from_parts(dict(self.fields), dict(self.tensors))
        fields = {**self.fields, "clean": {**ours, "source": "", "record": {}}}
        weights = {f"clean.{name}": tensor for name, tensor in clean.module.state_dict().items()}
        files = {
            f"file.{name}": torch.frombuffer(bytearray(content), dtype=torch.uint8)
            for name, content in clean.preprocess.files().items()
        }
        if any(name.startswith(_OF_CLEAN) for name in self.tensors):
            raise ClaimError("the opened key must not hold weights of F: they come from the examiner alone")
        return self.kind.from_parts(fields, {**self.tensors, **weights, **files})


@dataclass(frozen=True)
class Commitment:
    """What an owner published.

    Attributes:
        document: The signed document.
        keys: Digests of the keys in it, hex.
        order: Digest of the secret order of the encoder's units, hex; None where it has none.
        recipient: Whose secret the one key in it is; None unless it is a receipt.
    """

    document: Document
    keys: tuple[str, ...]
    order: str | None = None
    recipient: Handed | None = None

    @property
    def n_tests(self) -> int:
        """Number of tests that an owner commits to: keys, and the secret order. All of them share the level."""
        return len(self.keys) + (self.order is not None and self.order not in self.keys)

    def holds(self, digest: str) -> bool:
        """Return whether a digest is that of a key, or of the secret order."""
        return digest in self.keys or digest == self.order


def commit(stored: StoredKey) -> Commitment:
    """Return the commitment of an owner to a key, its sub-keys, and the secret order of its encoder.

    Of a recipient's key it is the receipt that he signs.
    """
    owner, key = stored.owner, stored.key
    if stored.handed is not None:
        digest = OpenedKey.of(key).digest(key_salt(owner, stored.number))
        said = {"keys": [digest], "recipient": stored.handed._asdict()}
        return Commitment(sign_document(owner, OF_COMMITMENTS, said), (digest,), recipient=stored.handed)
    keys = [key, *(key.split() if isinstance(key, ExactKey) else [])]
    digests = [OpenedKey.of(one).digest(key_salt(owner, number)) for number, one in enumerate(keys)]
    order = order_digest(stored)
    content = {"keys": digests, **({} if order is None else {"order": order})}
    return Commitment(sign_document(owner, OF_COMMITMENTS, content), tuple(digests), order)


def order_digest(stored: StoredKey) -> str | None:
    """Return the digest, hex, that commits to the secret order of a key's encoder; None where it has none."""
    if stored.order is None and not isinstance(stored.key, OrderKey):
        return None
    ordered = stored.of_weights()
    return OpenedKey.of(ordered.key).digest(key_salt(stored.owner, ordered.number))


def publish(
    stored: StoredKey,
    out: Path,
    *,
    authority: str | None = None,
    token: Path | None = None,
    roots: Sequence[Certificate] = (),
) -> tuple[Commitment, datetime | None]:
    """Write the commitment to `out`, and its timestamp to a file beside it, whose name adds ".tsr".

    The same key gives the same commitment, so a timestamp can be added later. Neither a timestamp nor another
    commitment is ever replaced.

    Args:
        stored: The key, with its owner.
        out: File of the commitment.
        authority: Address of an RFC 3161 authority that is asked for a token.
        token: File with a token over the commitment that was obtained otherwise.
        roots: Certificates that must vouch for the authority; without any, its signature is not checked now.

    Returns:
        The commitment, and the time in its timestamp, or None if it has none.

    Raises:
        OutputError: `out` holds something else, or a timestamp exists already.
        ClaimError: The authority gave no timestamp, or a timestamp is not over this commitment.
        UsageError: Both an authority and a token are given.
    """
    if authority is not None and token is not None:
        raise UsageError("a timestamp comes from an authority or from a file, not from both")
    commitment = commit(stored)
    content, beside = commitment.document.content, timestamp_file(out)
    there, stamped = os.path.lexists(out), os.path.lexists(beside)
    if there and read_file(out, MAX_DOCUMENT) != content:
        raise OutputError(f"{out} exists and is not this key's commitment: choose another name")
    # A timestamp without its commitment remains when an earlier run is killed.
    if there and stamped and (authority or token):
        raise OutputError(f"{beside} exists. It is kept, because an earlier timestamp is worth more than a later one")
    found = None
    if stamped:
        found = read_file(beside, MAX_TOKEN)
    elif authority is not None:
        found = request_token(authority, content)
    elif token is not None:
        found = read_file(token, MAX_TOKEN)
    when = None
    if found is not None:
        what = str(beside if stamped else authority or token)
        when = verified_time(found, content, roots, what) if roots else claimed_time(found, content, what)
    # The commitment is written last, so that a commitment is never without the timestamp that belongs to it.
    if found is not None and not stamped:
        write_atomic(beside, found)
    write_atomic(out, content)
    return commitment, when


def timestamp_file(commitment: Path) -> Path:
    """Return the path of the timestamp of a commitment's file."""
    return commitment.with_name(f"{commitment.name}.tsr")


def key_salt(owner: Owner, number: int | str = 0) -> bytes:
    """Derive the salt of a key from its owner's salt. One salt reveals nothing about the others.

    Args:
        owner: Owner of the key.
        number: Number of the sub-key; 0 for the whole key, `ORDER` for the secret order, the name of a recipient's
            secret for his key.

    Returns:
        32 bytes.
    """
    return hmac.new(owner.salt, f"sslguard commitment, key {number}".encode(), hashlib.sha256).digest()


def parse_commitment(content: bytes, what: str) -> Commitment:
    """Read a commitment from the content of its file.

    Args:
        content: Content of the file.
        what: Its name, for error messages.

    Raises:
        ClaimError: The content is not a commitment, or its signature is not valid.
    """
    document = parse_document(content, what, OF_COMMITMENTS)
    said = document.predicate
    keys, order = said.get("keys"), said.get("order")
    if said.keys() - {"order", "recipient"} != {"keys", "owner"} or not isinstance(keys, list):
        raise ClaimError(f"{what} is not a commitment: its predicate must have the fields keys and owner")
    if not 1 <= len(keys) <= MAX_KEYS or len(set(map(str, keys))) != len(keys):
        raise ClaimError(f"{what} must commit to 1 to {MAX_KEYS} keys, each once")
    for digest in keys:
        hex_bytes(digest, 32, f"a key in {what}")
    if "order" in said:
        hex_bytes(order, 32, f"the order in {what}")
    recipient = _handed(said["recipient"], what) if "recipient" in said else None
    if recipient is not None and (len(keys) > 1 or order is not None):
        raise ClaimError(f"{what} must commit to one key, since it is a recipient's receipt")
    return Commitment(document, tuple(keys), order, recipient)


def _handed(found: Any, what: str) -> Handed:
    if not isinstance(found, dict) or found.keys() != set(Handed._fields):
        raise ClaimError(f"the recipient in {what} must have the fields {', '.join(Handed._fields)}")
    name, rotation, given = (found[field] for field in Handed._fields)
    try:
        named = isinstance(name, str) and checked_name(name) == name
    except UsageError:
        named = False
    if not named or type(rotation) is not int or not 0 <= rotation < MOST_ROTATIONS:
        raise ClaimError(f"the recipient in {what} must have a name in its normal form, and a number of his secret")
    moment(given, f"the time at which {what} was given")
    return Handed(name, rotation, given)
