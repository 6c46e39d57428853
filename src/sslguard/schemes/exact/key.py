"""The key of the exact scheme: what it asks, and what the answers are worth."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import SECRET_BYTES, Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build, preprocess_from_json
from sslguard.encoders.statistics import N_STATISTICS
from sslguard.errors import EncoderError, KeyFileError, SuspectError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.schemes.exact.bank import Array, Bank, draw_gaussian, on_sphere
from sslguard.schemes.exact.features import input_statistics
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.settings import MAX_SUB_KEYS
from sslguard.schemes.queries import QUERY_BATCH, asked, drawn
from sslguard.stats.corrections import bonferroni
from sslguard.stats.direction import SECRET_BITS, direction_test
from sslguard.stats.moments import Moments, unit_rows
from sslguard.stats.significance import Significance
from sslguard.stats.witness import witnesses

# Numbers of clean embeddings that are kept between two suspects: 1 GiB.
KEPT_NUMBERS = 1 << 28
MAX_COLUMNS, FOLDED = 4096, 2048
"""Answers of more columns than the first are folded to the second: moments take memory by the square of the width."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False, repr=False)
class ExactKey(Key):
    """Master secret, protocol, bank of features, and the clean encoder, which the test needs at every query.

    The directions are not stored: they are drawn from the secret, bound to all the rest.

    With s > 1 sub-keys the bank is that of s secrets, each derived from the master secret, with K₁ + K₂ features for
    each. One of them can be opened as a key by itself, and says nothing of the others.

    Attributes:
        clean: F. Whoever holds it and the marked encoder sees the span of the mark: keep it as the secret.
        watermarked_hash: SHA-256 of the weights of F*, hex.
        redraw: 0 for the key itself; others name independent directions on the same features, for calibration.
        sub_keys: S, 1 to 16.
        whole_bank: Of an opened sub-key, `Bank.digest` of the whole key's bank, hex; "" of any other key.
    """

    scheme: ClassVar[str] = "exact"
    needs_controls: ClassVar[bool] = False

    secret: Secret
    protocol: Protocol
    bank: Bank
    clean: Encoder
    watermarked_hash: str
    redraw: int = 0
    sub_keys: int = 1
    whole_bank: str = ""
    _embedded: dict[tuple[str, int], tuple[Array, Array]] = field(default_factory=dict)

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return self.protocol.n_queries

    @cached_property
    def clean_hash(self) -> str:
        """SHA-256 of the weights of F, hex."""
        return weights_hash(self.clean.module)

    @cached_property
    def context(self) -> bytes:
        """What the streams of features and queries are bound to."""
        return stream_context(self.clean, self.protocol)

    def directions(self) -> Array:
        """Return U (K, d), rows in the order of the bank's features.

        Sub-keys draw each from a secret of its own, and all numbers are normalised as a whole. So the whole is one
        uniform point on its sphere, and up to its length each sub-key's share is one on its own: either test is exact.
        """
        drawn = [
            draw_gaussian(one.secret, one.bank.size, self.clean.dim, one._bound_to(), redraw=self.redraw)
            for one in self.split() or [self]
        ]
        k = self.protocol.n_features
        return on_sphere(np.concatenate([*(rows[:k] for rows in drawn), *(rows[k:] for rows in drawn)]))

    def _bound_to(self) -> bytes:
        """Return what the stream of directions is bound to: all that V is made of."""
        own = self.bank.digest()
        return self.context + own + (bytes.fromhex(self.whole_bank) or own)

    def split(self) -> list[ExactKey]:
        """Return the key's sub-keys, in order; none where it is its only one."""
        return [self.opened(i + 1) for i in range(self.sub_keys)] if self.sub_keys > 1 else []

    def opened(self, number: int) -> ExactKey:
        """Return the sub-key of this number, 1 to s: a key by itself.

        Nothing of the master secret or of the other sub-keys is in it.

        Its protocol's ε is that of the whole; of the mark its own share is ε/√s.

        Raises:
            UsageError: There is none.
        """
        if self.sub_keys == 1 or not 1 <= number <= self.sub_keys:
            has = "no sub-keys" if self.sub_keys == 1 else f"the sub-keys 1 to {self.sub_keys}"
            raise UsageError(f"there is no sub-key {number}: this key has {has}; watermark --sub-keys makes them")
        secret = sub_secrets(self.secret, self.sub_keys, self.context)[number - 1]
        bank = self.bank.part(number - 1, self.sub_keys)
        whole = self.bank.digest().hex()
        return replace(self, secret=secret, bank=bank, sub_keys=1, whole_bank=whole, _embedded={})

    def queries(self, data: Data) -> Iterator[Batch]:
        """Yield items of `data`, ≤ 128 at a time: nothing marks them as queries."""
        pictures = isinstance(self.clean.preprocess, ImagePreprocess)
        return asked(data, drawn(self.secret.stream("queries", self.context), data, self.n_queries), pictures=pictures)

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Return the statistic of the exact test with its p-value; see `Key.statistic`."""
        moments = self.moments(answers, data)
        significance = self.test(self.witnesses(moments), n_queries=moments.n)
        return Score(
            value=-significance.details["log2_pvalue_uncapped"],
            n_queries=moments.n,
            evidence=significance,
        )

    def moments(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Moments:
        """Return all that the witnesses need of a suspect's answers, in one pass. No direction has a part in it.

        Answers of more than 4,096 columns, in another width than F's, count as `folded` to 2,048.

        Raises:
            SuspectError: The answers are not finite, of changing width, or not as many as the queries.
            KeyFileError: The key was changed, so that its features are not finite.
        """
        moments: Moments | None = None
        width: int | None = None
        rest = iter(answers)
        for h, statistics in self._clean_answers(data):
            g = np.asarray(next(rest, np.empty((0, 0))), dtype=np.float64)
            if g.ndim != 2 or len(g) != len(h):
                raise SuspectError(
                    f"this key asks {self.n_queries} queries in batches of {QUERY_BATCH}; for one of {len(h)} an array "
                    f"of shape {g.shape} came"
                )
            width = g.shape[1] if width is None else width
            if g.shape[1] != width or not np.isfinite(g).all():
                raise SuspectError("the suspect's answers are not finite, or change their width")
            if width > MAX_COLUMNS and width != h.shape[1]:
                g = folded(g)
            if moments is None:
                moments = Moments(h.shape[1], self.bank.size, max(1, g.shape[1]))
            with np.errstate(over="ignore", invalid="ignore"):
                features = self.bank.features(h, statistics)
            if not np.isfinite(features).all():
                raise KeyFileError("the key's features of these items are not finite: the key is damaged")
            moments.update(h, features, g)
        if moments is None or next(rest, None) is not None:
            raise SuspectError(f"this key asks {self.n_queries} queries, but more answers came")
        return moments

    def witnesses(self, moments: Moments) -> dict[str, tuple[Array, Array | None]]:
        """Return V (K, d) and the range it is known to lie in, by witness: all that apply to this width.

        A function of features, clean encoder, spread and answers. The directions stand nowhere on its path.
        """
        return witnesses(moments, self.bank.geometry.spread)

    def test(self, witnesses: Mapping[str, tuple[Array, Array | None]], *, n_queries: int) -> Significance:
        """Return the best witness's significance, corrected for all; bits end at the secret's entropy."""
        directions = self.directions()
        found = {
            name: direction_test(v, directions, n_queries=n_queries, basis=basis)
            for name, (v, basis) in witnesses.items()
        }
        best = min(found, key=lambda name: found[name].details["log2_tail"])
        tail = min(0.0, found[best].details["log2_tail"])
        uncapped = float(bonferroni([tail], n=len(found))[0])
        each = {f"z of {name}": one.statistic for name, one in found.items()}
        return Significance(
            statistic=found[best].statistic,
            log2_pvalue=max(uncapped, -float(SECRET_BITS)),
            floor=2.0**-SECRET_BITS,
            null="exact",
            n_queries=n_queries,
            statistic_name=f"z of the witness {best}",
            details={**each, "n_witnesses": len(found), "log2_pvalue_uncapped": uncapped},
        )

    def _clean_answers(self, data: Data) -> Iterator[tuple[Array, Array]]:
        """Yield h and ψ of the queries, batch by batch; kept for the next suspect where they are few enough."""
        kept = self._embedded.get((data.spec, len(data)))
        if kept is not None:
            cuts = range(QUERY_BATCH, len(kept[0]), QUERY_BATCH)
            yield from zip(*(np.split(array, cuts) for array in kept), strict=True)
            return
        parts = []
        for batch in self.queries(data):
            h = unit_rows(self.clean.embed(batch).astype(np.float64))
            parts.append((h, input_statistics(self.clean, batch)))
            yield parts[-1]
        if self.n_queries * (self.clean.dim + N_STATISTICS) <= KEPT_NUMBERS:
            self._embedded.clear()
            h, statistics = (np.concatenate(each) for each in zip(*parts, strict=True))
            self._embedded[data.spec, len(data)] = h, statistics

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields and tensors that `from_parts` rebuilds the key from, including the secret."""
        fields = {
            "secret": self.secret.reveal().hex(),
            "protocol": self.protocol.to_json(),
            "clean": {
                "architecture": self.clean.architecture,
                "preprocess": self.clean.preprocess.to_json(),
                "dim": self.clean.dim,
                "source": self.clean.source,
                "record": self.clean.record,
            },
            "clean_hash": self.clean_hash,
            "watermarked_hash": self.watermarked_hash,
            "redraw": self.redraw,
            **({} if self.sub_keys == 1 else {"sub_keys": self.sub_keys}),
            **({"whole_bank": self.whole_bank} if self.whole_bank else {}),
        }
        tensors = {f"bank.{name}": torch.from_numpy(array) for name, array in self.bank.to_arrays().items()}
        for name, content in self.clean.preprocess.files().items():
            tensors[f"file.{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return fields, {**tensors, **{f"clean.{n}": t for n, t in self.clean.module.state_dict().items()}}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> ExactKey:
        """Rebuild the key from what `to_parts` returned. Raise KeyFileError if the parts do not fit together."""
        try:
            protocol = Protocol.from_json(fields["protocol"])
            bank = Bank.from_arrays({n[5:]: t.numpy() for n, t in tensors.items() if n.startswith("bank.")})
            files = {n[5:]: t.numpy().tobytes() for n, t in tensors.items() if n.startswith("file.")}
            weights = {n[6:]: t for n, t in tensors.items() if n.startswith("clean.")}
            clean = _clean_encoder(fields["clean"], weights, files)
            key = cls(
                secret=_secret(fields["secret"]),
                protocol=protocol,
                bank=bank,
                clean=clean,
                watermarked_hash=str(fields["watermarked_hash"]),
                redraw=int(fields["redraw"]),
                sub_keys=int(fields.get("sub_keys", 1)),
                whole_bank=str(fields.get("whole_bank", "")),
            )
        except KeyError as error:
            raise KeyFileError(f"the key lacks {error}") from None
        except (TypeError, ValueError, OverflowError, RuntimeError, EncoderError) as error:
            raise KeyFileError(f"the key's parts do not fit together: {error!s:.300}") from None
        if not 1 <= key.sub_keys <= MAX_SUB_KEYS:
            raise KeyFileError(f"the key's sub_keys must lie in 1 to {MAX_SUB_KEYS}")
        if "whole_bank" in fields and (key.sub_keys > 1 or not _SHA256.fullmatch(key.whole_bank)):
            raise KeyFileError("the key's whole_bank is no hash, or not of an opened sub-key")
        sizes = (*bank.frequencies.shape, bank.axes.shape[1])
        promised = (protocol.components, key.sub_keys * protocol.n_features, key.sub_keys * protocol.n_statistics)
        if sizes != promised or len(bank.geometry.mean) != clean.dim:
            raise KeyFileError("the key's features, its protocol and its clean encoder do not fit together")
        if key.clean_hash != fields.get("clean_hash") or not _SHA256.fullmatch(key.watermarked_hash) or key.redraw < 0:
            raise KeyFileError("the key's clean encoder is not the one that its streams are bound to")
        return key


def folded(answers: NDArray[np.floating]) -> Array:
    """Map answers (n, m) to fewer columns, (n, 2048): each column is added to one of them, with a public sign.

    Inner products of rows stay nearly what they were (a count sketch), and columns that are 0 nothing. It depends on m
    alone, so that whatever is tested of the answers is still independent of the directions.
    """
    signs, places = _folds(answers.shape[1])
    found = np.zeros((FOLDED, len(answers)))
    np.add.at(found, places, (answers * signs).T)
    return found.T


@lru_cache(maxsize=4)
def _folds(width: int) -> tuple[Array, NDArray[np.int64]]:
    """Sign of each column, and which of the fewer ones it is added to."""
    stream = Secret.from_seed(0).stream(f"columns of {width}")
    signs = np.where(stream.uniform((width,)) < 0.5, -1.0, 1.0)
    return signs, (stream.uniform((width,)) * FOLDED).astype(np.int64)


def stream_context(clean: Encoder, protocol: Protocol) -> bytes:
    """Return what a secret's streams are bound to before there is a bank: encoder, preprocessing and protocol."""
    preprocess = json.dumps(clean.preprocess.to_json(), sort_keys=True).encode()
    # One set of weights may be those of several networks.
    architecture = json.dumps(clean.architecture, sort_keys=True).encode()
    return weights_hash(clean.module).encode() + protocol.digest() + preprocess + architecture


def sub_secrets(secret: Secret, count: int, context: bytes) -> list[Secret]:
    """Return one secret for each sub-key; the master secret itself where there is one sub-key."""
    return [secret] if count == 1 else [secret.derive(f"sub-key {i + 1}", context) for i in range(count)]


def _secret(text: str) -> Secret:
    value = bytes.fromhex(text)
    if len(value) != SECRET_BYTES:
        raise ValueError("the secret has another length")
    return Secret(value)


def _clean_encoder(found: Mapping[str, Any], weights: Mapping[str, Tensor], files: Mapping[str, bytes]) -> Encoder:
    """Files are the preprocessing's, a tokenizer's for one."""
    module, dim = build(found["architecture"], seed=0)
    if dim != found["dim"]:
        raise ValueError("the clean encoder's width is not what its description says")
    module.load_state_dict(dict(weights))
    return Encoder(
        module=module.eval(),
        preprocess=preprocess_from_json(found["preprocess"], files),
        dim=dim,
        architecture=found["architecture"],
        source=found["source"],
        record=found["record"],
    )
