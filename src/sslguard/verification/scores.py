"""Scores of a key's controls, kept in the key's folder and used again while nothing has changed.

The file is `controls.json`, mode 0600: JSON with sorted keys and no white space, UTF-8, one trailing newline.

    entries   at most 16, the newest last; each holds
                  controls   name → score (the statistic), watermark_rate (in [0, 1], or null) and weights, the
                             control's fingerprint
                  key        SHA-256 of the key's parts
                  queries    SHA-256 of what was asked, batch by batch
                  torch      version of torch that the answers were computed by
    format    "sslguard-control-scores"
    version   1

An entry is used if key, queries, torch, and the names and fingerprints of all controls are the same. Otherwise all
controls are scored again, and a new entry is added. Stored scores equal fresh ones bit for bit; on a machine that
rounds differently, fresh ones may differ in their last bits. If the folder cannot be written to, verification works
without keeping scores. A file that is damaged, of another version, or not a plain file raises a KeyFileError. Nothing
is read from it, and it is replaced only if the caller asks to score again.

What it does not protect against: anybody who may write to the folder may write any score there. Stored scores save
their owner's time and prove nothing to anybody else. An examiner scores the controls again (`rescore`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslguard.controls.alike import SeenAnswers
from sslguard.controls.making import progress_bar
from sslguard.controls.members import Control, SeenWeights, list_controls
from sslguard.data.base import Data
from sslguard.errors import EncoderError, KeyFileError, OutputError, UsageError
from sslguard.files import write_atomic
from sslguard.schemes.base import Key
from sslguard.schemes.keyfile import SCORES, key_hash, tensor_bytes
from sslguard.verification.verdict import check_names, score_control

FILE = SCORES
FORMAT = "sslguard-control-scores"
VERSION = 1
MAX_ENTRIES = 16
MAX_BYTES = 1 << 22


@dataclass(frozen=True)
class ControlScore:
    """Score of one known innocent.

    Attributes:
        value: Statistic that suspects are ranked by.
        watermark_rate: The paper's WR on the same answers, in [0, 1]; None in a scheme that has none.
    """

    value: float
    watermark_rate: float | None


@dataclass(frozen=True)
class ControlScores:
    """Scores of known innocents under one key on one set of queries.

    Attributes:
        scores: Score of each control, by name.
        stored: Whether they were read from the key's folder, not measured now.
        kept: Whether the key's folder holds them now.
        kinds: Kind of each control, such as "independent", by name.
    """

    scores: Mapping[str, ControlScore]
    stored: bool
    kept: bool
    kinds: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> dict[str, float]:
        """Statistic of each control, by name."""
        return {name: score.value for name, score in self.scores.items()}

    @property
    def highest(self) -> str:
        """Name of the control with the largest statistic."""
        return max(self.scores, key=lambda name: self.scores[name].value)

    def n_above(self, rate: float) -> int:
        """Return how many controls have a watermark rate above `rate`."""
        return sum((score.watermark_rate or 0) > rate for score in self.scores.values())


@dataclass(frozen=True)
class _Binding:
    """Everything that scores depend on. `weights` maps a control's name to its fingerprint."""

    key: str
    queries: str
    torch: str
    weights: Mapping[str, str]


@dataclass(frozen=True)
class _Entry:
    binding: _Binding
    scores: Mapping[str, ControlScore]

    def to_json(self) -> dict[str, Any]:
        b = self.binding
        controls = {
            name: {"score": s.value, "watermark_rate": s.watermark_rate, "weights": b.weights[name]}
            for name, s in self.scores.items()
        }
        return {"key": b.key, "queries": b.queries, "torch": b.torch, "controls": controls}

    @classmethod
    def from_json(cls, found: Any) -> _Entry:
        """Return the entry that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: `to_json` does not write such content.
        """
        controls = found["controls"].items()
        weights = {name: _text(c["weights"]) for name, c in controls}
        scores = {name: ControlScore(_number(c["score"]), _rate(c["watermark_rate"])) for name, c in controls}
        if not scores or not all(0 <= (score.watermark_rate or 0) <= 1 for score in scores.values()):
            raise ValueError("an entry holds at least one control, and watermark rates lie in [0, 1]")
        return cls(_Binding(_text(found["key"]), _text(found["queries"]), _text(found["torch"]), weights), scores)

    def supersedes(self, other: _Entry) -> bool:
        """Return whether this entry makes `other` useless."""
        new, old = self.binding, other.binding
        if (new.key, new.torch) != (old.key, old.torch):
            return True
        return new.queries == old.queries and new.weights.keys() == old.weights.keys()


def control_scores(
    key: Key,
    specs: Sequence[str],
    data: Data,
    *,
    folder: Path | None = None,
    rescore: bool = False,
    progress: bool = False,
) -> ControlScores:
    """Return the scores of controls under a key; stored scores are used while nothing has changed.

    Args:
        key: Key whose queries are asked.
        specs: Specifications of the controls.
        data: Items that the queries are made from.
        folder: Folder of the key; None neither reads nor stores scores.
        rescore: Score again, whatever the folder holds, and keep the new scores.
        progress: Show a progress bar on standard error.

    Raises:
        KeyFileError: The folder's stored scores are damaged. Not raised with `rescore`.
        UsageError: A control is named twice, has the weights of another, answers as another does, or cannot be scored.
        EncoderError: A control cannot be loaded.
    """
    controls = list_controls(specs)
    check_names(control.name for control in controls)
    kinds = {control.name: control.kind for control in controls}
    if folder is None:
        return ControlScores(_scored(key, controls, data, progress), stored=False, kept=False, kinds=kinds)
    binding = _Binding(key_hash(key), queries_hash(key, data), str(torch.__version__), _fingerprints(controls))
    entries = _read_or_nothing(folder) if rescore else read_entries(folder)
    for entry in [] if rescore else entries:
        if entry.binding == binding:
            scores = {control.name: entry.scores[control.name] for control in controls}
            return ControlScores(scores, stored=True, kept=True, kinds=kinds)
    entry = _Entry(binding, _scored(key, controls, data, progress))
    # If a control changed meanwhile, its score may belong to the old or the new weights, so it is not kept.
    kept = _fingerprints(controls) == binding.weights and _keep(folder, entries, entry)
    return ControlScores(entry.scores, stored=False, kept=kept, kinds=kinds)


def check_controls(specs: Sequence[str], width: int) -> None:
    """Load every control once, to find errors before long work that ends in scoring the controls.

    Args:
        specs: Specifications of the controls.
        width: Width of the encoder that they are compared with.

    Raises:
        UsageError: There is no control, or one is named twice, has the weights of another, cannot be loaded, or answers
            in another width than `width`.
    """
    controls = list_controls(specs)
    if not controls:
        raise UsageError(f"{', '.join(specs)} holds no control: name known innocents")
    check_names(control.name for control in controls)
    weights = SeenWeights()
    for control in controls:
        try:
            network = control.load()
        except EncoderError as error:
            raise UsageError(f"a control cannot be used: {error}") from error
        weights.check(control.name, network)
        if network.dim != width:
            raise UsageError(
                f"control {control.name!r} answers in {network.dim} dimensions and the encoder in {width}: it "
                "cannot be scored"
            )


def queries_hash(key: Key, data: Data) -> str:
    """Return SHA-256, hex, of the bytes of every query of `key` on `data`, in the order in which they are asked."""
    digest = hashlib.sha256()
    for batch in key.queries(data):
        parts = [batch] if isinstance(batch, Tensor) else batch
        digest.update(f"{type(batch).__name__} {len(parts)}\n".encode())
        for part in parts:
            content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else tensor_bytes(part)
            digest.update(f"{type(part).__name__} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def read_entries(folder: Path) -> list[_Entry]:
    """Read the entries of `controls.json` in a key's folder; an empty list if there is no such file.

    Raises:
        KeyFileError: The file is damaged, oversized, of another version, or no plain file.
    """
    path = folder / FILE
    remedy = "delete it, or score the controls anew (--rescore)"
    try:
        if not path.exists() and not path.is_symlink():
            return []
        if not _is_plain(path):
            raise KeyFileError(f"{path} is not a plain file: {remedy}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise KeyFileError(f"{path} is larger than {MAX_BYTES} bytes: {remedy}")
    try:
        found = json.loads(content)
        version = found["version"]
        if found["format"] == FORMAT and version == VERSION:
            entries = [_Entry.from_json(entry) for entry in found["entries"]]
            if len(entries) <= MAX_ENTRIES:
                return entries
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise KeyFileError(f"{path} is damaged: {remedy}") from None
    raise KeyFileError(f"{path} holds no scores of controls of version {VERSION}: {remedy}")


def _read_or_nothing(folder: Path) -> list[_Entry]:
    try:
        return read_entries(folder)
    except KeyFileError:
        return []


def _keep(folder: Path, entries: Iterable[_Entry], new: _Entry) -> bool:
    """Write `new` and those of `entries` that are still useful; return False if the folder cannot take it."""
    path = folder / FILE
    kept = [*(entry for entry in entries if not new.supersedes(entry)), new][-MAX_ENTRIES:]
    while len(content := _canonical(kept)) > MAX_BYTES and kept:
        kept = kept[1:]
    # In a folder that came from elsewhere, a link could point to any file of the user.
    if not kept or path.is_symlink() or (path.exists() and not _is_plain(path)):
        return False
    try:
        write_atomic(path, content, private=True)
    except OutputError:
        return False
    return True


def _canonical(entries: Sequence[_Entry]) -> bytes:
    content = {"format": FORMAT, "version": VERSION, "entries": [entry.to_json() for entry in entries]}
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _fingerprints(controls: Sequence[Control]) -> dict[str, str]:
    return {control.name: control.fingerprint() for control in controls}


def _scored(key: Key, controls: Sequence[Control], data: Data, progress: bool) -> dict[str, ControlScore]:
    """Score the controls one after another, with one network in memory at a time."""
    scores, weights, answers = {}, SeenWeights(), SeenAnswers()
    with progress_bar(len(controls), shown=progress) as advance:
        for control in controls:
            network = control.load()
            weights.check(control.name, network)
            score = score_control(key, control.name, network, data, answers)
            scores[control.name] = ControlScore(score.value, score.watermark_rate)
            advance(control.name)
    return scores


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("must be a text")
    return value


def _rate(value: Any) -> float | None:
    return None if value is None else _number(value)


def _number(value: Any) -> float:
    if not isinstance(value, float) or not math.isfinite(value):
        raise TypeError("must be a finite number")
    return value
