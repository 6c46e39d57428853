"""A key's controls scored once: their scores are kept in the key's folder and used while nothing has changed.

They stand in `controls.json`, mode 0600: JSON with sorted keys and no white space, UTF-8, one trailing newline.

    entries   at most 16, the newest last; each holds
                  controls   name → score (the statistic), watermark_rate (in [0, 1], or null) and weights, the
                             control's fingerprint
                  key        SHA-256 of the key's parts
                  queries    SHA-256 of what was asked, batch by batch
                  torch      version of torch that the answers were computed by
    format    "sslguard-control-scores"
    version   1

An entry is used where key, queries, torch, and the names and fingerprints of all controls are the ones at hand; else
all controls are scored anew and kept beside it. Stored scores are the fresh ones bit for bit; on a machine that rounds
otherwise, fresh ones may differ in their last bits. A folder that cannot be written to verifies as well, and keeps
nothing. A file that is damaged, of another version, or not a plain file is a KeyFileError: no figure is taken from
it, and it is not replaced unless the caller asks to score anew.

What it does not protect against: whoever may write to the folder may write any score there. Stored scores spare their
owner's time and prove nothing to anybody else; an examiner scores the controls anew (`rescore`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslguard.controls import Control, SeenWeights, list_controls, progress_bar
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
    """What one known innocent scores.

    Attributes:
        value: the statistic that suspects are ranked by.
        watermark_rate: the paper's WR on the same answers, in [0, 1]; None in a scheme that has none.
    """

    value: float
    watermark_rate: float | None


@dataclass(frozen=True)
class ControlScores:
    """What known innocents score under one key on one set of queries.

    Attributes:
        scores: by control's name.
        stored: they were found in the key's folder, not measured now.
        kept: the key's folder holds them now.
    """

    scores: Mapping[str, ControlScore]
    stored: bool
    kept: bool

    @property
    def values(self) -> dict[str, float]:
        """Control's name → statistic."""
        return {name: score.value for name, score in self.scores.items()}

    @property
    def highest(self) -> str:
        """Name of the control with the largest statistic."""
        return max(self.scores, key=lambda name: self.scores[name].value)

    def n_above(self, rate: float) -> int:
        """How many controls have a watermark rate above `rate`."""
        return sum((score.watermark_rate or 0) > rate for score in self.scores.values())


@dataclass(frozen=True)
class _Binding:
    """All that scores depend on; `weights` is control's name → fingerprint."""

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
        """Raises KeyError, TypeError or ValueError for what `to_json` does not write."""
        controls = found["controls"].items()
        weights = {name: _text(c["weights"]) for name, c in controls}
        scores = {name: ControlScore(_number(c["score"]), _rate(c["watermark_rate"])) for name, c in controls}
        if not scores or not all(0 <= (score.watermark_rate or 0) <= 1 for score in scores.values()):
            raise ValueError("an entry holds at least one control, and watermark rates lie in [0, 1]")
        return cls(_Binding(_text(found["key"]), _text(found["queries"]), _text(found["torch"]), weights), scores)

    def supersedes(self, other: _Entry) -> bool:
        """Whether `other` can be of no use any more, now that this one stands."""
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
    """What the controls that `specs` names score under `key` on `data`: stored ones where they still hold.

    Args:
        folder: the key's; None stores nothing and looks nowhere.
        rescore: score anew whatever the folder holds, and keep that.

    Raises:
        KeyFileError: the folder's stored scores are damaged; not with `rescore`.
        UsageError: a control is named twice, has the weights of another, or cannot be scored.
        EncoderError: a control cannot be loaded.
    """
    controls = list_controls(specs)
    check_names(control.name for control in controls)
    if folder is None:
        return ControlScores(_scored(key, controls, data, progress), stored=False, kept=False)
    binding = _Binding(key_hash(key), queries_hash(key, data), str(torch.__version__), _fingerprints(controls))
    entries = _read_or_nothing(folder) if rescore else read_entries(folder)
    for entry in [] if rescore else entries:
        if entry.binding == binding:
            return ControlScores({c.name: entry.scores[c.name] for c in controls}, stored=True, kept=True)
    entry = _Entry(binding, _scored(key, controls, data, progress))
    # A control that changed meanwhile may have been read before or after: its score is good for now, not for later.
    kept = _fingerprints(controls) == binding.weights and _keep(folder, entries, entry)
    return ControlScores(entry.scores, stored=False, kept=kept)


def check_controls(specs: Sequence[str], width: int) -> None:
    """Load every control once, before long work that ends in scoring them.

    Raises:
        UsageError: there is none, or one is named twice, has the weights of another, cannot be loaded, or answers in
            another width than `width`.
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
    """SHA-256, hex, of the bytes of every query, batch by batch, in the order in which they are asked."""
    digest = hashlib.sha256()
    for batch in key.queries(data):
        parts = [batch] if isinstance(batch, Tensor) else batch
        digest.update(f"{type(batch).__name__} {len(parts)}\n".encode())
        for part in parts:
            content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else tensor_bytes(part)
            digest.update(f"{type(part).__name__} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def read_entries(folder: Path) -> list[_Entry]:
    """What `controls.json` in a key's folder holds; nothing where there is no such file.

    Raises:
        KeyFileError: it is damaged, oversized, of another version, or no plain file.
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
    """Write `new` beside what of `entries` may still be of use; False where the folder cannot take it."""
    path = folder / FILE
    kept = [*(entry for entry in entries if not new.supersedes(entry)), new][-MAX_ENTRIES:]
    while kept:
        content = _canonical(kept)
        if len(content) <= MAX_BYTES:
            break
        kept = kept[1:]
    # A link in a folder from elsewhere could point to any file of the user's.
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
    """Each network is read, asked and let go."""
    scores, weights = {}, SeenWeights()
    with progress_bar(len(controls), shown=progress) as advance:
        for control in controls:
            network = control.load()
            weights.check(control.name, network)
            score = score_control(key, control.name, network, data)
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
