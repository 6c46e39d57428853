"""Evidence bundles: a folder with all that an examiner needs to decide again, except F.

=====================  ==================================================================================
`claim.json`           a signed document: the claim, with hashes of all the rest
`commitment.json`      the commitment, and `commitment.json.tsr`, its timestamp if it has one
`key.safetensors`      the tensors of the opened key, except those of F
`answers.npy`          the suspect's answers, (n, m); row i answers query i; a missing answer is zero
`clean.npy`            what the exact test takes of F: its embeddings of the queries, and statistics of these inputs
=====================  ==================================================================================

A claim by weights has no answers: its field `weights` is the hash of the suspect's. Only claims under an exact key have
`clean.npy`, up to 256 MiB of it: from there programs that cannot run F take it, and an audit compares it with F's own.

docs/reference/key-format.md lists the fields. The opened key is not encrypted: anybody who has the bundle has the key.

The reader trusts nothing in it. File names are fixed, no link is followed, sizes are bounded, the document has one
spelling, and what it says is compared with what is there.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslguard.claims.commitment import Commitment, OpenedKey, parse_commitment, timestamp_file
from sslguard.claims.documents import MAX_DOCUMENT, Document, Kind, hex_bytes, moment, parse_document, read_file
from sslguard.claims.timestamps import MAX_TOKEN
from sslguard.errors import ClaimError, KeyFileError
from sslguard.files import write_atomic
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.keyfile import MAX_TENSOR_BYTES, kind_of, parse_tensors, serialise_tensors
from sslguard.schemes.order import WeightsKey
from sslguard.suspects.base import MAX_WIDTH

CLAIM, COMMITMENT, TENSORS, ANSWERS = "claim.json", "commitment.json", "key.safetensors", "answers.npy"
CLEAN = "clean.npy"
TIMESTAMP = timestamp_file(Path(COMMITMENT)).name
FILES = frozenset({CLAIM, COMMITMENT, TIMESTAMP, TENSORS, ANSWERS, CLEAN})
MAX_ANSWERS, MAX_CLEAN = 1 << 33, 1 << 28  # bytes
_ROWS = 256  # of answers that are read together: the file may be larger than the memory
_FIELDS: dict[str, type] = {
    "answers": dict,
    "claimed": dict,
    "commitment": str,
    "controls": list,
    "data": dict,
    "key": dict,
    "seed": str,
    "suspect": str,
    "versions": dict,
}
_OPTIONAL: dict[str, type] = {"clean": str, "compared": int, "opened": str, "weights": str}
MOST_COMPARED = 1 << 40


def _hashes(predicate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hashes in a claim by the names of the bundle's files, and that of a suspect's weights."""
    answers, key = (each if isinstance(each := predicate.get(name), dict) else {} for name in ("answers", "key"))
    found = {
        ANSWERS: answers.get("sha256"),
        COMMITMENT: predicate.get("commitment"),
        TENSORS: key.get("tensors"),
        CLEAN: predicate.get("clean"),
        "the suspect's weights": predicate.get("weights"),
    }
    return {name: digest for name, digest in found.items() if digest is not None}


OF_CLAIMS = Kind("claim", _hashes)


@dataclass(frozen=True, eq=False, repr=False)
class Bundle:
    """A bundle as it was read: what its owner says, not yet checked.

    Attributes:
        folder: Folder of the bundle.
        claim: Document of the claim, with a valid signature.
        commitment: Commitment, with a valid signature.
        token: Bytes of the timestamp; None if there is none.
        opened: The opened key.
        salt: Salt that the key is said to be committed with.
    """

    folder: Path
    claim: Document
    commitment: Commitment
    token: bytes | None
    opened: OpenedKey
    salt: bytes

    @property
    def opened_before(self) -> datetime | None:
        """When the claimant says that an earlier claim opened this key; None if it does not say so."""
        return moment(self["opened"], "the claim's opened") if "opened" in self.claim.predicate else None

    @property
    def answers(self) -> Path:
        """Path of the suspect's answers."""
        return self.folder / ANSWERS

    @property
    def clean(self) -> str | None:
        """SHA-256, hex, of what the test took of F; None where the bundle does not show it."""
        return self.claim.predicate.get("clean")

    @property
    def compared(self) -> int | None:
        """Number of recipients' secrets that were compared, as the claimant says; None of a claim on no recipient."""
        return self.claim.predicate.get("compared")

    @property
    def n_tests(self) -> int:
        """Number of tests that share the level: see `n_tests`."""
        return n_tests(self.commitment, self.compared)

    @property
    def weights(self) -> str | None:
        """Hash of the suspect's weights, of a claim by weights; None where answers are claimed."""
        return self.claim.predicate.get("weights")

    def __getitem__(self, name: str) -> Any:
        """Return a field of the claim."""
        return self.claim.predicate[name]


def fill_bundle(
    folder: Path,
    *,
    claim: Document,
    commitment: bytes,
    token: bytes | None,
    opened: OpenedKey,
    answers: NDArray[np.floating] | None,
    clean: NDArray[np.float32] | None,
) -> None:
    """Write the files of a bundle into an empty folder, readable by their owner alone.

    Args:
        folder: Empty folder.
        claim: Signed document of the claim.
        commitment: Content of the commitment's file.
        token: Content of the timestamp's file; None writes no timestamp.
        opened: The opened key.
        answers: The suspect's answers, float (n, m); None of a claim by weights.
        clean: What the exact test takes of F, float32 (n, d + p); None where it is not shown.
    """
    content = {
        COMMITMENT: commitment,
        **({} if token is None else {TIMESTAMP: token}),
        TENSORS: serialise_tensors(opened.tensors),
        **({} if answers is None else {ANSWERS: npy(answers)}),
        **({} if clean is None else {CLEAN: npy(clean)}),
        CLAIM: claim.content,
    }
    folder.chmod(0o700)
    for name, part in content.items():
        write_atomic(folder / name, part, private=True)


def npy(answers: NDArray[np.floating]) -> bytes:
    """Return the content of an array's `.npy` file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(answers), allow_pickle=False)
    return buffer.getvalue()


def read_bundle(folder: Path) -> Bundle:
    """Read the parts of a bundle. Each is checked alone; the audit checks whether they fit together.

    Raises:
        ClaimError: A file is missing, damaged, oversized, a link, or no part of a bundle.
    """
    names = _names(folder)
    if strange := sorted(names - FILES):
        raise ClaimError(f"{folder!s:.200} holds {strange[0]!r:.80}, which is no part of a bundle")
    claim = parse_document(read_file(folder / CLAIM, MAX_DOCUMENT), f"{folder!s:.200}/{CLAIM}", OF_CLAIMS)
    _check_fields(claim)
    commitment = parse_commitment(read_file(folder / COMMITMENT, MAX_DOCUMENT), f"{folder!s:.200}/{COMMITMENT}")
    token = read_file(folder / TIMESTAMP, MAX_TOKEN) if TIMESTAMP in names else None
    opened, salt = _opened(folder, claim.predicate["key"])
    by_weights = issubclass(opened.kind, WeightsKey)
    if by_weights != ("weights" in claim.predicate) or (by_weights and ANSWERS in names):
        raise ClaimError(
            f"{folder!s:.200} must hold answers, or the hash of weights where its key is compared with these"
        )
    if (commitment.recipient is not None) != ("compared" in claim.predicate):
        raise ClaimError(
            f"{folder!s:.200} must say how many secrets were compared where it opens a recipient's, and only then"
        )
    if commitment.recipient is not None and opened.scheme != ExactKey.scheme:
        raise ClaimError(f"{folder!s:.200} must open a key of the scheme exact, as recipients' keys are")
    if (CLEAN in names) != ("clean" in claim.predicate):
        raise ClaimError(f"{folder!s:.200} must hold {CLEAN} if its claim names it, and only then")
    return Bundle(folder, claim, commitment, token, opened, salt)


def n_tests(commitment: Commitment, compared: int | None) -> int:
    """Return the number of tests that share the level: of committed keys, or of recipients and the common mark."""
    return commitment.n_tests if compared is None else compared + 1


def check_answers(bundle: Bundle, n: int) -> int:
    """Check the file of answers and return how many of its rows are zero.

    Args:
        bundle: Bundle with the answers.
        n: Number of queries.

    Raises:
        ClaimError: The file is not the one that was signed, or does not hold `n` rows of finite numbers.
    """
    wanted = hex_bytes(bundle["answers"].get("sha256"), 32, "the hash of the answers").hex()
    rows = _signed_rows(bundle.answers, wanted, "the answers", MAX_ANSWERS)
    if not 1 <= rows.shape[1] <= MAX_WIDTH:
        raise ClaimError(f"the answers must have 1 to {MAX_WIDTH} numbers each, not {rows.shape[1]}")
    if len(rows) != n:
        raise ClaimError(
            f"{n} queries were to be asked, and the bundle has {len(rows)} answers: some were dropped or added"
        )
    n_zero = 0
    for start in range(0, n, _ROWS):
        part = rows[start : start + _ROWS]
        if not np.isfinite(part).all():
            raise ClaimError("answers hold NaN or infinities, which a claim never records: a missing answer is zero")
        # Schemes compute in float32 or float64, and a number that rounds to zero in float32 counts as missing there.
        with np.errstate(over="ignore", under="ignore"):
            n_zero += int((~part.astype(np.float32).any(axis=1)).sum())
    return n_zero


def read_clean(bundle: Bundle, n: int) -> NDArray[np.floating]:
    """Return what the bundle says that the test took of F, float (n, d + p).

    Args:
        bundle: Bundle that shows it.
        n: Number of queries.

    Raises:
        ClaimError: The file is not the one that was signed, or does not hold `n` rows of finite numbers.
    """
    rows = _signed_rows(bundle.folder / CLEAN, bundle.clean or "", "the clean embeddings", MAX_CLEAN)
    if len(rows) != n or not np.isfinite(rows).all():
        raise ClaimError(f"the clean embeddings must be {n} rows of finite numbers")
    return rows


def _signed_rows(path: Path, wanted: str, what: str, most: int) -> NDArray[np.floating]:
    """Return the floats (n, m) of a file of this SHA-256, hex. Raise ClaimError for anything else."""
    if _file_hash(path, most) != wanted:
        raise ClaimError(f"{what} are not those that were signed: the file was changed")
    try:
        rows = np.lib.format.open_memmap(path, mode="r")
    except Exception:  # a hostile header may fail in any step of numpy's parser
        raise ClaimError(f"{what} are not a valid .npy array") from None
    if rows.dtype not in (np.float32, np.float64) or rows.ndim != 2:
        raise ClaimError(f"{what} must be floats (n, m), not {rows.dtype} of shape {rows.shape}")
    return rows


def _opened(folder: Path, found: Mapping[str, Any]) -> tuple[OpenedKey, bytes]:
    if found.keys() != {"fields", "salt", "scheme", "tensors"} or not isinstance(found["fields"], dict):
        raise ClaimError("the claim must open one key: fields, salt, scheme and tensors")
    try:
        kind_of(found["scheme"])
    except KeyFileError as error:
        raise ClaimError(str(error)) from None
    content = read_file(folder / TENSORS, MAX_TENSOR_BYTES)
    if hashlib.sha256(content).hexdigest() != found["tensors"]:
        raise ClaimError("the tensors of the opened key are not those that were signed: the file was changed")
    try:
        tensors = parse_tensors(content, f"{folder!s:.200}/{TENSORS}")
    except KeyFileError as error:
        raise ClaimError(str(error)) from None
    return OpenedKey(found["scheme"], found["fields"], tensors), hex_bytes(found["salt"], 32, "the salt")


def _check_fields(claim: Document) -> None:
    said = claim.predicate
    if said.keys() - _OPTIONAL.keys() != {"owner", *_FIELDS}:
        raise ClaimError("the claim must have exactly the fields of a claim: some are missing or unknown")
    for name, kind in (_FIELDS | _OPTIONAL).items():
        if name in said and not isinstance(said[name], kind):
            raise ClaimError(f"the claim's {name} must be of type {kind.__name__}")
    hex_bytes(said["commitment"], 32, "the claim's commitment")
    for name in ("clean", "weights"):
        if name in said:
            hex_bytes(said[name], 32, f"the claim's {name}")
    if "compared" in said and not (type(said["compared"]) is int and 1 <= said["compared"] <= MOST_COMPARED):
        raise ClaimError(f"the claim's compared must be a whole number from 1 to {MOST_COMPARED:,}")
    if "opened" in said:
        moment(said["opened"], "the claim's opened")


def _names(folder: Path) -> set[str]:
    try:
        names: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                names.append(entry.name)
                if len(names) > len(FILES):
                    break
    except OSError as error:
        raise ClaimError(f"{folder!s:.200} cannot be read as a bundle: {error.strerror}") from None
    return set(names)


def _file_hash(path: Path, most: int) -> str:
    """Return SHA-256, hex, of a plain file of bounded size. Raise ClaimError for anything else."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > most:
            raise ClaimError(f"{path!s:.200} is missing, no plain file, or larger than {most} bytes")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ClaimError(f"{path!s:.200} cannot be read: {error.strerror}") from None


def text(value: object, most: int = 200) -> str:
    """Return a value as ASCII text for a claim, other characters escaped, cut to `most` characters."""
    return str(value).encode("ascii", "backslashreplace").decode()[:most]
