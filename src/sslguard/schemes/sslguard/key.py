"""The key tuple."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.data.base import Data
from sslguard.encoders.preprocess import preprocess_from_json
from sslguard.errors import KeyFileError, SuspectError, UsageError
from sslguard.schemes.base import Key, Score
from sslguard.schemes.sslguard.parts import Decoder, Trigger
from sslguard.secrets import Secret
from sslguard.stats.significance import Significance, control_rank_test

WATERMARK_THRESHOLD = 0.5
QUERY_BATCH = 128
MAX_QUERIES = 10_000_000
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False, repr=False)
class SSLGuardKey(Key):
    """The key tuple: what draws D_v, M and T, G, sk; and what it was made from.

    Attributes:
        clean_hash, watermarked_hash: SHA-256 of the weights of F and F*, hex.
        n: how many images of the caller's data a verification asks for.
    """

    scheme: ClassVar[str] = "sslguard"

    secret: Secret
    decoder: Decoder
    trigger: Trigger
    sk: Tensor
    preprocess: dict[str, Any]
    settings: dict[str, Any]
    clean_hash: str
    watermarked_hash: str
    n: int = 512

    @property
    def n_queries(self) -> int:
        return self.n

    @property
    def width(self) -> int:
        """Width of the answers that the decoder takes."""
        return self.decoder.widths[0]

    def queries(self, data: Data) -> Iterator[Tensor]:
        """Triggered images as bytes, uint8 (≤ 128, C, H, W): what a suspect is sent, alive or on file."""
        if len(data) < self.n:
            raise UsageError(f"this key asks {self.n} queries, but {data.spec} has only {len(data)} items")
        preprocess = preprocess_from_json(self.preprocess)
        order = self.secret.stream("queries", self.clean_hash.encode()).permutation(len(data))[: self.n]
        for start in range(0, self.n, QUERY_BATCH):
            prepared = preprocess.prepare(data.take(order[start : start + QUERY_BATCH]))
            with torch.inference_mode():
                yield (self.trigger(prepared) * 255).round().to(torch.uint8)

    def statistic(self, answers: Iterable[NDArray[np.floating]]) -> Score:
        """Mean cosine to sk of the decoded answers; zero rows, which stand for missing answers, count as 0.

        Raises:
            SuspectError: the answers have another width than the decoder takes, or are not finite.
        """
        cosines: list[NDArray[np.float64]] = []
        for part in answers:
            rows = np.asarray(part, dtype=np.float32)
            if rows.ndim != 2 or rows.shape[1] != self.width:
                raise SuspectError(
                    f"this key's decoder takes answers of width {self.width}, but the suspect's have shape "
                    f"{rows.shape}: it cannot be scored with this key"
                )
            if not np.isfinite(rows).all():
                raise SuspectError("the suspect answered with values that are not finite")
            with torch.inference_mode():
                decoded = self.decoder(torch.from_numpy(rows))
                cosine = nnf.cosine_similarity(decoded, self.sk.expand_as(decoded), dim=1).double().numpy()
            cosines.append(np.where(np.abs(rows).sum(1) > 0, cosine, 0.0))
        if not cosines:
            raise SuspectError("the suspect gave no answers")
        every = np.concatenate(cosines)
        if len(every) != self.n:
            raise SuspectError(f"this key asks {self.n} queries, but {len(every)} answers came")
        return Score(float(every.mean()), len(every), float((every > WATERMARK_THRESHOLD).mean()), every)

    def score_value(self, score: Score, *, controls: Sequence[float] = ()) -> Significance:
        """Rank among controls' mean cosines. Raises RefusedError without controls: there is no null then."""
        return control_rank_test(
            score.value,
            controls,
            n_queries=score.n_queries,
            statistic_name="mean cosine to the secret vector",
            details={"watermark_rate": score.watermark_rate},
        )

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
        return fields, {**tensors, "sk": self.sk}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> SSLGuardKey:
        try:
            # Without memory or random numbers of its own: widths come from a file.
            with torch.device("meta"):
                decoder = Decoder([int(w) for w in fields["decoder_widths"]])
            parts = {k[8:]: v.float() for k, v in tensors.items() if k.startswith("decoder.")}
            decoder.load_state_dict(parts, assign=True)
            trigger = Trigger(tensors["trigger.mask"], tensors["trigger.pattern"].clone())
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
            )
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise KeyFileError(f"the key's parts do not fit together ({type(error).__name__})") from None
        key._check()
        return key

    def _check(self) -> None:
        """Raises KeyFileError where parts that a file may hold contradict each other."""
        if self.sk.shape != (self.decoder.widths[-1],) or not bool(self.sk.any()):
            raise KeyFileError("the key's secret vector does not fit its decoder, or is zero")
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
