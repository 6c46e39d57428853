"""The key tuple."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.errors import KeyFileError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.schemes.queries import QUERY_BATCH, as_bytes, drawn, gathered
from sslguard.schemes.sslguard.carrier import N_KINDS, Carrier
from sslguard.schemes.sslguard.parts import Decoder, Trigger, stream_context

WATERMARK_THRESHOLD = 0.5
MAX_QUERIES = 10_000_000
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False, repr=False)
class SSLGuardKey(Key):
    """The key tuple: what draws D_v, M and T, G, sk; and what it was made from.

    With a carrier each image is asked twice, as it is and with the trigger, and G reads the evidence of the pair
    (`Carrier.evidence`) instead of the answer to x'. That departs from the paper, where a query is one image.

    Attributes:
        clean_hash, watermarked_hash: SHA-256 of the weights of F and F*, hex.
        n: How many images of the caller's data a verification asks about.
        carrier: Of a key made with the cure; None where G reads answers, as published.
    """

    scheme: ClassVar[str] = "sslguard"
    statistic_name: ClassVar[str] = "mean cosine to the secret vector"

    secret: Secret
    decoder: Decoder
    trigger: Trigger
    sk: Tensor
    preprocess: dict[str, Any]
    settings: dict[str, Any]
    clean_hash: str
    watermarked_hash: str
    n: int = 512
    carrier: Carrier | None = None

    @cached_property
    def context(self) -> bytes:
        """What the secret's streams are bound to: F, and all settings that the test depends on."""
        return stream_context(self.clean_hash, self.preprocess, self.settings)

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return self.n if self.carrier is None else 2 * self.n

    @property
    def width(self) -> int:
        """Width of the answers that this key can score."""
        return self.decoder.widths[0] if self.carrier is None else len(self.carrier.mean)

    def queries(self, data: Data) -> Iterator[Tensor]:
        """Yield images as bytes, uint8 (≤ 128, C, H, W): what a suspect is sent, alive or on file.

        Triggered ones; with a carrier, each batch of them comes after the same images without the trigger. They have
        the size that the watermarked encoder's own preprocessing cuts without resizing (`Preprocess.framed`).
        """
        preprocess = preprocess_from_json(self.preprocess)
        order = drawn(self.secret.stream("queries", self.context), data, self.n)
        for start in range(0, self.n, QUERY_BATCH):
            batch = data.take(order[start : start + QUERY_BATCH])
            prepared = preprocess.prepare(batch)
            if self.carrier is not None:
                yield as_bytes(preprocess.framed(prepared, batch))
            with torch.inference_mode():
                triggered = self.trigger(prepared)
            yield as_bytes(preprocess.framed(triggered, batch))

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data | None = None) -> Score:  # noqa: ARG002
        """Return the mean cosine to sk of the decoded answers; zero rows, the missing answers, count as 0.

        What was asked has no part in it.

        Raises:
            SuspectError: The answers have another width than this key scores, or are not finite.
        """
        rows = torch.from_numpy(gathered(answers, self.n_queries, width=self.width).astype(np.float32))
        with torch.inference_mode():
            given = rows.abs().sum(1) > 0
            if self.carrier is not None:
                rows, given = self._pairs(rows, given, self.carrier)
            decoded = self.decoder(rows)
            cosine = nnf.cosine_similarity(decoded, self.sk.expand_as(decoded), dim=1).double()
        every = torch.where(given, cosine, 0.0).numpy()
        return Score(float(every.mean()), self.n_queries, float((every > WATERMARK_THRESHOLD).mean()), every)

    def _pairs(self, rows: Tensor, given: Tensor, carrier: Carrier) -> tuple[Tensor, Tensor]:
        """Evidence (n, 2) of the answers (2n, d) in the order of the queries, and which pairs are complete, (n,)."""
        triggered = torch.zeros(len(rows), dtype=torch.bool)
        for start in range(0, self.n, QUERY_BATCH):
            size = min(QUERY_BATCH, self.n - start)
            triggered[2 * start + size : 2 * start + 2 * size] = True
        plain, moved = rows[~triggered], rows[triggered]
        present = given[~triggered]
        background = carrier.background(plain[present] if bool(present.any()) else plain)
        evidence = carrier.evidence(plain, moved, background)
        return evidence, present & given[triggered]

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields and tensors that `from_parts` rebuilds the key from, including the secret."""
        fields = {
            "secret": self.secret.reveal().hex(),
            "decoder_widths": list(self.decoder.widths),
            "preprocess": self.preprocess,
            "settings": self.settings,
            "clean_hash": self.clean_hash,
            "watermarked_hash": self.watermarked_hash,
            "n": self.n,
        }
        tensors = {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}
        tensors |= {f"trigger.{k}": v for k, v in self.trigger.state_dict().items()}
        if self.carrier is not None:
            tensors |= {f"carrier.{k}": v for k, v in self.carrier.state_dict().items()}
        return fields, {**tensors, "sk": self.sk}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> SSLGuardKey:
        """Rebuild the key from what `to_parts` returned. Raise KeyFileError if the parts do not fit together."""
        try:
            # Without memory or random numbers of its own: widths come from a file.
            widths = [int(w) for w in fields["decoder_widths"]]
            if len(widths) < 2:
                raise ValueError("a decoder has a width at either end")
            with torch.device("meta"):
                decoder = Decoder(widths)
            parts = {k[8:]: v.float() for k, v in tensors.items() if k.startswith("decoder.")}
            decoder.load_state_dict(parts, assign=True)
            carrier = {k[8:]: v for k, v in tensors.items() if k.startswith("carrier.")}
            mask, pattern = tensors["trigger.mask"], tensors["trigger.pattern"].clone()
            if not (mask.is_floating_point() and pattern.is_floating_point() and tensors["sk"].is_floating_point()):
                raise TypeError("mask, pattern and secret vector are of floating point numbers")
            trigger = Trigger(mask, pattern)
            key = cls(
                secret=Secret(bytes.fromhex(fields["secret"])),
                decoder=decoder.eval(),
                trigger=trigger,
                sk=tensors["sk"],
                preprocess=dict(fields["preprocess"]),
                settings=dict(fields["settings"]),
                clean_hash=str(fields["clean_hash"]),
                watermarked_hash=str(fields["watermarked_hash"]),
                n=int(fields["n"]),
                carrier=Carrier.from_tensors(carrier) if carrier else None,
            )
            # Numbers without end have no spelling to hash.
            _ = key.context
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, IndexError) as error:
            raise KeyFileError(f"the key's parts do not fit together ({type(error).__name__})") from None
        key._check()
        return key

    def _check(self) -> None:
        """Raise KeyFileError where parts that a file may hold contradict each other."""
        if self.sk.shape != (self.decoder.widths[-1],) or not bool(self.sk.any()):
            raise KeyFileError("the key's secret vector does not fit its decoder, or is zero")
        if bool(self.settings.get("carrier")) != (self.carrier is not None):
            raise KeyFileError("the key's settings and its tensors do not fit: only one of them has a carrier")
        if self.carrier is not None and self.decoder.widths[0] != N_KINDS:
            raise KeyFileError(f"the key's decoder must read {N_KINDS} kinds of evidence, as its carrier gives them")
        if self.settings.get("n_queries") != self.n:
            raise KeyFileError("the key's number of queries is not that of the settings that its streams are bound to")
        if not 1 <= self.n <= MAX_QUERIES:
            raise KeyFileError(f"the key's number of queries, n, must lie in 1 to {MAX_QUERIES:,}")
        try:
            preprocess = preprocess_from_json(self.preprocess)
        except UsageError as error:
            raise KeyFileError(f"the key's preprocessing cannot be read: {error}") from None
        mask, pattern = self.trigger.mask, self.trigger.pattern
        shape = getattr(preprocess, "shape", None)
        if mask.shape != shape or pattern.shape != shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise KeyFileError(f"the key's trigger must have shape {shape} under a mask of 0 and 1")
        if not all(_HASH.fullmatch(h) for h in (self.clean_hash, self.watermarked_hash)):
            raise KeyFileError("the key's hashes of weights must be 64 hexadecimal digits each")

    def __repr__(self) -> str:
        return f"SSLGuardKey(width={self.width}, n={self.n}, clean_hash={self.clean_hash[:12]}…)"
