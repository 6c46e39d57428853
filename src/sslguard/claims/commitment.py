"""Commitments: what an owner publishes before any suspect is seen, and opens when one is.

A commitment is a document (`documents`) with, beside the owner's public key::

    format   "sslguard-commitment"
    keys     the key and each of its sub-keys: SHA-256(salt ‖ canonical JSON of its description), hex; the salt is 32
             bytes of its own
    version  1

The description of a key is all of it but the weights of F, which its hash stands for::

    fields   of the key, the secret, protocol or settings, and the hashes of F and F* among them
    scheme   "exact" or "sslguard"
    tensors  name → SHA-256 of `keyfile.tensor_bytes`

The commitment is public and hides all of that. It is a function of the key's folder, so it can be written again.
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
    hex_bytes,
    parse_document,
    read_file,
    sign_document,
)
from sslguard.claims.timestamps import MAX_TOKEN, claimed_time, request_token, verified_time
from sslguard.encoders.base import Encoder
from sslguard.errors import ClaimError, OutputError, UsageError
from sslguard.files import canonical_json, write_atomic
from sslguard.schemes.base import Key
from sslguard.schemes.exact import ExactKey
from sslguard.schemes.keyfile import Owner, StoredKey, kind_of, tensor_bytes

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

FORMAT = "sslguard-commitment"
VERSION = 1
MAX_KEYS = 64
# Parts of an exact key that are F's and travel with F.
_OF_CLEAN = ("clean.", "file.")
_CLEAN_FIELDS = ("architecture", "preprocess", "dim")


@dataclass(frozen=True, eq=False, repr=False)
class OpenedKey:
    """A key as it is shown to an examiner: without F, which is shown beside it.

    Attributes:
        fields: JSON values, the secret among them.
        tensors: All but those of F.
    """

    scheme: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, key: Key) -> OpenedKey:
        """Paths and records of F, which nothing depends on, are left out."""
        fields, tensors = key.to_parts()
        if isinstance(fields.get("clean"), dict):
            fields = {**fields, "clean": {name: fields["clean"][name] for name in _CLEAN_FIELDS}}
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items() if not name.startswith(_OF_CLEAN)}
        # As it will come back from a file: tuples as lists.
        return cls(key.scheme, json.loads(canonical_json(fields)), kept)

    def digest(self, salt: bytes) -> str:
        """SHA-256, hex, that commits to it."""
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
        """SHA-256 of the weights of the F that it was made for, as it says, hex."""
        return str(self.fields.get("clean_hash"))

    def with_clean(self, clean: Encoder) -> Key:
        """The key itself, F put back.

        Raises:
            ClaimError: `clean` is described otherwise than the key's F.
            KeyFileError: The parts do not fit together.
        """
        preprocess = clean.preprocess.to_json()
        ours = {"architecture": clean.architecture, "preprocess": preprocess, "dim": clean.dim}
        described, wanted = (
            (self.fields.get("clean"), ours)
            if issubclass(self.kind, ExactKey)
            else (self.fields.get("preprocess"), preprocess)
        )
        # As it was committed to: tuples as lists.
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
            raise ClaimError("the opened key brings weights of F along: F comes from the examiner alone")
        return self.kind.from_parts(fields, {**self.tensors, **weights, **files})


@dataclass(frozen=True)
class Commitment:
    """What an owner published: `document`, and the digests of the keys in it."""

    document: Document
    keys: tuple[str, ...]


def commit(stored: StoredKey) -> Commitment:
    """Return the commitment of an owner to a key and its sub-keys."""
    owner, key = stored.owner, stored.key
    keys = [key, *(key.split() if isinstance(key, ExactKey) else [])]
    digests = [OpenedKey.of(one).digest(key_salt(owner, number)) for number, one in enumerate(keys)]
    document = sign_document(owner, {"format": FORMAT, "version": VERSION, "keys": digests})
    return Commitment(document, tuple(digests))


def publish(
    stored: StoredKey,
    out: Path,
    *,
    authority: str | None = None,
    token: Path | None = None,
    roots: Sequence[Certificate] = (),
) -> tuple[Commitment, datetime | None]:
    """Write the commitment to `out`, and a timestamp of it beside, `out` and ".tsr".

    The same key gives the same commitment, so a timestamp can be added later; none is ever replaced, nor another
    commitment.

    Args:
        authority: Address of an RFC 3161 authority that is asked for a token.
        token: A file with a token over the commitment that was got otherwise.
        roots: Whom the authority must be vouched for by; none means that its signature is not checked now.

    Returns:
        The commitment, and the time that its timestamp says, where it has one.

    Raises:
        OutputError: Something else stands there.
        ClaimError: The authority gave no timestamp, or what stands there is of something else.
        UsageError: Both kinds of token are given.
    """
    if authority is not None and token is not None:
        raise UsageError("a timestamp comes from an authority or from a file, not from both")
    commitment = commit(stored)
    content, beside = commitment.document.content, timestamp_file(out)
    there, stamped = os.path.lexists(out), os.path.lexists(beside)
    if there and read_file(out, MAX_DOCUMENT) != content:
        raise OutputError(f"{out} is there and is not this key's commitment: choose another name")
    # A timestamp without its commitment is what was left when an earlier run was killed.
    if there and stamped and (authority or token):
        raise OutputError(f"{beside} is there already, and an earlier timestamp is worth more than a later one")
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
    # The commitment last: where it stands, its timestamp does.
    if found is not None and not stamped:
        write_atomic(beside, found)
    write_atomic(out, content)
    return commitment, when


def timestamp_file(commitment: Path) -> Path:
    """Where the timestamp of a commitment's file stands."""
    return commitment.with_name(f"{commitment.name}.tsr")


def key_salt(owner: Owner, number: int = 0) -> bytes:
    """The salt of the sub-key of this number, of the whole key at 0, from the owner's: one says nothing of others."""
    return hmac.new(owner.salt, f"sslguard commitment, key {number}".encode(), hashlib.sha256).digest()


def parse_commitment(content: bytes, what: str) -> Commitment:
    """A commitment from the bytes of its file.

    Raises:
        ClaimError: They are anything else.
    """
    document = parse_document(content, what, format_=FORMAT, version=VERSION)
    keys = document.signed.get("keys")
    if document.signed.keys() != {"format", "version", "keys", "owner"} or not isinstance(keys, list):
        raise ClaimError(f"{what} holds something else than a commitment")
    if not 1 <= len(keys) <= MAX_KEYS or len(set(map(str, keys))) != len(keys):
        raise ClaimError(f"{what} must commit to 1 to {MAX_KEYS} keys, each once")
    for digest in keys:
        hex_bytes(digest, 32, f"a key in {what}")
    return Commitment(document, tuple(keys))
