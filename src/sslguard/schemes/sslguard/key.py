"""The keys: of the published losses, and of the cure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

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
from sslguard.schemes.sslguard.carrier import N_KINDS, Array, Directions, Reader, Witnesses
from sslguard.schemes.sslguard.parts import Decoder, Trigger, stream_context
from sslguard.stats.corrections import fisher
from sslguard.stats.direction import SECRET_BITS, direction_test
from sslguard.stats.significance import Significance

WATERMARK_THRESHOLD = 0.5
MAX_QUERIES = 10_000_000
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False, repr=False)
class SSLGuardKey(Key):
    """The key tuple: what draws D_v, M and T, G, sk; and what it was made from.

    Attributes:
        clean_hash, watermarked_hash: SHA-256 of the weights of F and F*, hex.
        n: How many images of the caller's data a verification asks about.
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
    n: int

    @cached_property
    def context(self) -> bytes:
        """What the secret's streams are bound to: F, and all settings that the test depends on."""
        return stream_context(self.clean_hash, self.preprocess, self.settings)

    @property
    def pool(self) -> str:
        """Data that the secrets are bound to; see `Key.pool`."""
        return str(self.settings.get("pool", ""))

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return self.n

    @property
    def width(self) -> int:
        """Width of the answers that this key can score."""
        return self.decoder.widths[0]

    def queries(self, data: Data) -> Iterator[Tensor]:
        """Yield triggered images as bytes, uint8 (≤ 128, C, H, W): what a suspect is sent, alive or on file.

        They have the size that the watermarked encoder's own preprocessing cuts without resizing (`Preprocess.framed`).
        """
        for _, triggered in self._pairs(data):
            yield triggered

    def _pairs(self, data: Data) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images as bytes, without the trigger and with it."""
        preprocess = preprocess_from_json(self.preprocess)
        order = drawn(self.secret.stream("queries", self.context), data, self.n)
        for start in range(0, self.n, QUERY_BATCH):
            batch = data.take(order[start : start + QUERY_BATCH])
            prepared = preprocess.prepare(batch)
            with torch.inference_mode():
                triggered = self.trigger(prepared)
            yield as_bytes(preprocess.framed(prepared, batch)), as_bytes(preprocess.framed(triggered, batch))

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data | None = None) -> Score:  # noqa: ARG002
        """Return the mean cosine to sk of the decoded answers; zero rows, the missing answers, count as 0.

        What was asked has no part in it.

        Raises:
            SuspectError: The answers have another width than this key scores, or are not finite.
        """
        rows = gathered(answers, self.n_queries, width=self.width)
        cosines = self._cosines(rows, np.asarray(rows.any(1)))
        return Score(float(cosines.mean()), self.n_queries, _rate(cosines), cosines)

    def _cosines(self, rows: Array, given: NDArray[np.bool_]) -> Array:
        """Return the cosine of each decoded row with sk, (n,); 0 where nothing was given."""
        with torch.inference_mode():
            decoded = self.decoder(torch.from_numpy(rows.astype(np.float32)))
            cosine = nnf.cosine_similarity(decoded, self.sk.expand_as(decoded), dim=1).double().numpy()
        return np.where(given, cosine, 0.0)

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
        return fields, {**tensors, "sk": self.sk}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        """Rebuild the key from what `to_parts` returned. Raise KeyFileError if the parts do not fit together."""
        try:
            # Without memory or random numbers of its own: widths come from a file.
            widths = [int(w) for w in fields["decoder_widths"]]
            if len(widths) < 2:
                raise ValueError("a decoder has a width at either end")
            with torch.device("meta"):
                decoder = Decoder(widths)
            decoder.load_state_dict({k: v.float() for k, v in _below("decoder.", tensors).items()}, assign=True)
            mask, pattern = tensors["trigger.mask"], tensors["trigger.pattern"].clone()
            if not (mask.is_floating_point() and pattern.is_floating_point() and tensors["sk"].is_floating_point()):
                raise TypeError("mask, pattern and secret vector are of floating point numbers")
            key = cls(
                secret=Secret(bytes.fromhex(fields["secret"])),
                decoder=decoder.eval(),
                trigger=Trigger(mask, pattern),
                sk=tensors["sk"],
                preprocess=dict(fields["preprocess"]),
                settings=dict(fields["settings"]),
                clean_hash=str(fields["clean_hash"]),
                watermarked_hash=str(fields["watermarked_hash"]),
                n=int(fields["n"]),
                **cls._more(tensors),
            )
            # Numbers without end have no spelling to hash.
            _ = key.context
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, IndexError) as error:
            raise KeyFileError(f"the key's parts do not fit together ({type(error).__name__})") from None
        key._check()
        return key

    @classmethod
    def _more(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:  # noqa: ARG003
        """Return what a subclass has besides."""
        return {}

    def _check(self) -> None:
        """Raise KeyFileError where parts that a file may hold contradict each other."""
        if self.sk.shape != (self.decoder.widths[-1],) or not bool(self.sk.any()):
            raise KeyFileError("the key's secret vector does not fit its decoder, or is zero")
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
        return f"{type(self).__name__}(width={self.width}, n={self.n}, clean_hash={self.clean_hash[:12]}…)"


@dataclass(frozen=True, eq=False, repr=False)
class CuredKey(SSLGuardKey):
    """A key with an exact p-value, by the two secret directions v and b of `carrier.Directions`.

    They are stored nowhere, but drawn from the secret, bound to all that is read of a suspect. Each image is asked
    twice, as it is and with the trigger. The decoder reads the evidence of such a pair (`Reader.evidence`) instead of
    the answer to x'; the watermark rate that it gives is reported beside the p-value. The paper asks one image a query.

    Attributes:
        reader: How answers are read.
    """

    scheme: ClassVar[str] = "sslguard-cured"
    needs_controls: ClassVar[bool] = False
    statistic_name: ClassVar[str] = "bits of both direction tests"

    reader: Reader

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks: two of each image."""
        return 2 * self.n

    @property
    def width(self) -> int:
        """Width of the answers that this key can score."""
        return self.reader.width

    @cached_property
    def directions(self) -> Directions:
        """V and b, b from a later stream than v, both bound to F, settings, trigger, decoder and reader."""
        digest = hashlib.sha256(self.context + self.reader.digest())
        for tensor in (self.sk, *self.trigger.state_dict().values(), *self.decoder.state_dict().values()):
            digest.update(str(tuple(tensor.shape)).encode() + tensor.detach().numpy().astype("<f8").tobytes())
        fixed, sizes = digest.digest(), (len(self.reader.read), self.reader.rank)
        return Directions.draw(self.secret.stream("carrier", fixed), self.secret.stream("shift", fixed), *sizes)

    def queries(self, data: Data) -> Iterator[Tensor]:
        """Yield images as bytes, uint8 (≤ 128, C, H, W): each batch without the trigger, then with it."""
        for pair in self._pairs(data):
            yield from pair

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data | None = None) -> Score:  # noqa: ARG002
        """Return the bits of both direction tests with their p-value; see `Key.statistic`.

        A pair with a missing answer counts as 0.

        Raises:
            SuspectError: The answers have another width than this key scores, or are not finite.
        """
        plain, triggered = self.split(gathered(answers, self.n_queries, width=self.width))
        found = combined(self.reader.witnesses(plain, triggered), self.directions, n_queries=self.n_queries)
        evidence = self.reader.evidence(plain, triggered, self.directions)
        cosines = self._cosines(evidence, np.asarray(plain.any(1) & triggered.any(1)))
        return Score(-found.details["log2_pvalue_uncapped"], self.n_queries, _rate(cosines), cosines, found)

    def split(self, rows: Array) -> tuple[Array, Array]:
        """Split answers (2n, d) in the order of the queries into those without the trigger and with it, (n, d) each."""
        place = np.arange(len(rows)) % (2 * QUERY_BATCH)
        last = len(rows) // (2 * QUERY_BATCH) * (2 * QUERY_BATCH)
        place[last:] += QUERY_BATCH * (place[last:] >= (len(rows) - last) // 2)
        return rows[place < QUERY_BATCH], rows[place >= QUERY_BATCH]

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields and tensors that `from_parts` rebuilds the key from, including the secret."""
        fields, tensors = super().to_parts()
        return fields, {**tensors, **{f"reader.{name}": tensor for name, tensor in self.reader.to_tensors().items()}}

    @classmethod
    def _more(cls, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {"reader": Reader.from_tensors(_below("reader.", tensors))}

    def _check(self) -> None:
        super()._check()
        if self.decoder.widths[0] != N_KINDS:
            raise KeyFileError(f"the key's decoder must read {N_KINDS} kinds of evidence")


def combined(witnesses: Witnesses, directions: Directions, *, n_queries: int) -> Significance:
    """Test whether answers show v and b, and combine both by Fisher's sum.

    Args:
        witnesses: Made of a suspect's answers without the directions.
        directions: v and b.
        n_queries: Queries that the suspect was asked, at least 1.

    Returns:
        Result with null "exact", floor 2**-256, the entropy of the secret. The statistic is the larger z of the two;
        details are `z of the carrier`, `z of the shift` and `log2_pvalue_uncapped`, the base-2 logarithm of Fisher's
        p-value: where it lies below −256 it is a score, not a probability.

    Notes:
        Null hypothesis: The suspect is independent of v and b. Given its answers both witnesses are fixed, v and b are
        independent and uniform on spheres, so both p-values are uniform and independent, and so is Fisher's exact. A
        witness of zero has p = 1, which only makes the test conservative. The proof is in
        docs/explanation/theory-sslguard.md.

        Randomness: None is drawn here. The probability is over the draw of v and b.
    """
    names = ("carrier", "shift")
    each = {
        name: direction_test(witness, direction, n_queries=n_queries)
        for name, witness, direction in zip(names, witnesses, directions, strict=True)
    }
    uncapped = min(0.0, fisher([found.details["log2_tail"] for found in each.values()]))
    best = max(each, key=lambda name: each[name].statistic)
    return Significance(
        statistic=each[best].statistic,
        log2_pvalue=max(uncapped, -float(SECRET_BITS)),
        floor=2.0**-SECRET_BITS,
        null="exact",
        n_queries=n_queries,
        statistic_name=f"z of the {best}",
        details={**{f"z of the {n}": found.statistic for n, found in each.items()}, "log2_pvalue_uncapped": uncapped},
    )


def _rate(cosines: Array) -> float:
    return float((cosines > WATERMARK_THRESHOLD).mean())


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
