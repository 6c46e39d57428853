"""Tracing: which recipients' marks a suspect shows, each with a p-value that is corrected for all who were compared.

1. The left witnesses of the suspect are computed once. All recipients' left secrets are compared with them.
2. Those with the smallest tails, at most 1,000, also take the right test, by the witnesses that are quick to compute.
3. The best of these take both tests in full. Whoever is left out at a step has p = 1.

The p-value of step 3 is the one that the recipient's key gives by itself, and it is corrected for all secrets of all
recipients, whether they came so far or not. Leaving some out can only make p-values larger, so the result is valid.

The level is shared by halves: one half is the common mark's, the other is shared among all recipients' secrets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from typing import Any, NamedTuple

from sslguard.data.base import Data
from sslguard.encoders.base import Embedder
from sslguard.encoders.wrapped import as_suspect
from sslguard.errors import UsageError
from sslguard.report.card import card
from sslguard.schemes.exact.bank import LEFT, recipient_stream
from sslguard.schemes.exact.key import ExactKey, Sides
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.significance import Significance
from sslguard.stats.spectra import Spectra
from sslguard.tracing.recipients import Recipient
from sslguard.tracing.screening import BLOCK, Drawing, Shortlist, merged, screen
from sslguard.verification.nulls import null_of
from sslguard.verification.verdict import ask

SHORTLIST, FINALISTS, MOST_FINALISTS = 1000, 16, 64
"""Secrets that take the right test, those that take it in full at least, and at most where so many are named before."""
QUICK = ("own_space", "difference", "own_whitened", "procrustes", "whitened")
"""Right witnesses that take milliseconds."""
SHOWN = 10
PIECES = 4
"""Pieces for each worker, so that none waits long for the last one."""


class Given(NamedTuple):
    """One secret of a recipient.

    Attributes:
        recipient: Whose it is.
        rotation: How many he had before.
    """

    recipient: Recipient
    rotation: int

    @property
    def stream(self) -> str:
        """What the secret is called."""
        return recipient_stream(self.recipient.name, self.rotation)


@dataclass(frozen=True)
class Compared:
    """What a suspect shows of one recipient's secret.

    Attributes:
        name: The recipient.
        rotation: Number of the secret, 0 for the first.
        given: When it was given out, ISO 8601.
        revoked: When the recipient was revoked; None while he is served.
        log2_pvalue: Base-2 logarithm of the p-value, corrected for all secrets, the common mark and all claims.
        left_bits, right_bits: Evidence of either side, before that correction.
        named: Whether the corrected p-value is at most the level.
    """

    name: str
    rotation: int
    given: str
    revoked: str | None
    log2_pvalue: float
    left_bits: float
    right_bits: float
    named: bool

    def to_json(self) -> dict[str, Any]:
        """Return every field as JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Traced:
    """Result of a trace.

    Attributes:
        suspect: Name of the suspect.
        compared: Best of the recipients' secrets, the strongest evidence first, at least those that are named.
        n_compared: Number of secrets that were compared.
        n_recipients: Number of recipients that have them.
        common: Significance of the common mark, before its correction.
        common_log2_pvalue: Its p-value's base-2 logarithm, corrected for its half of the level and all claims.
        alpha: Level, shared by halves.
        n_claims: Number of claims that share it.
        n_missing: Number of queries that the suspect left unanswered.
        n_overlap: Number of items asked about that took part in marking.
    """

    suspect: str
    compared: Sequence[Compared]
    n_compared: int
    n_recipients: int
    common: Significance
    common_log2_pvalue: float
    alpha: float
    n_claims: int = 1
    n_missing: int = 0
    n_overlap: int = field(default=0)

    @property
    def named(self) -> list[str]:
        """Names of the recipients that are shown, each once."""
        return list(dict.fromkeys(one.name for one in self.compared if one.named))

    @property
    def derived(self) -> bool:
        """Whether the common mark is shown."""
        return self.common_log2_pvalue <= math.log2(self.alpha)

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 where a recipient is named, 1 where none is."""
        return 0 if self.named else 1

    def _repr_html_(self) -> str:
        rows = {
            "suspect": self.suspect,
            "named": ", ".join(self.named) or "nobody",
            "common mark": f"{abs(self.common_log2_pvalue):.1f} bits",
            "compared": f"{self.n_compared:,} secrets of {self.n_recipients:,} recipients",
        }
        return card("trace", rows.items())

    def to_json(self) -> dict[str, Any]:
        """Return every figure as JSON values."""
        return {
            "suspect": self.suspect,
            "named": self.named,
            "compared": [one.to_json() for one in self.compared],
            "n_compared": self.n_compared,
            "n_recipients": self.n_recipients,
            "common": {
                "decision": "derived" if self.derived else "not shown",
                "log2_pvalue": self.common_log2_pvalue,
                "left_bits": self.common.details["left_bits"],
                "right_bits": self.common.details["right_bits"],
            },
            "alpha": self.alpha,
            "n_claims": self.n_claims,
            "n_queries": self.common.n_queries,
            "n_missing": self.n_missing,
            "n_overlap": self.n_overlap,
        }


def trace_suspect(
    key: ExactKey,
    suspect: Embedder,
    data: Data,
    recipients: Sequence[Recipient],
    *,
    alpha: float,
    n_claims: int = 1,
    pool: Executor | None = None,
    workers: int = 1,
) -> Traced:
    """Ask a suspect the key's queries, and compare its answers with the common mark and with every recipient's.

    Args:
        key: The owner's key.
        suspect: Who is asked.
        data: Items that the queries are made from.
        recipients: Who was given the encoder.
        alpha: Level, in (0, 1), shared by halves.
        n_claims: Number of claims that share it.
        pool: What runs the pieces; None runs them here.
        workers: Pieces that run at a time.

    Raises:
        UsageError: There are no recipients.
        RefusedError: No p-value could reach the level. The suspect was not asked then.
        SuspectError: The suspect gave no usable answers.
    """
    n = sum(len(one.secrets) for one in recipients)
    if not n:
        raise UsageError("this key has no recipients: `sslguard recipients add KEY NAME` adds one; `verify` needs none")
    null_of(key, 0).check(alpha, 2 * n * n_claims)
    asked = as_suspect(suspect)
    answers = list(ask(key, asked, data))
    asked.finish()
    common = key.test(*key.spectra(iter(answers), data))
    # What the common mark adds would cover small shares of a coalition's members.
    spectra, _ = key.spectra(iter(answers), data, known=key.mixtures())
    compared = trace_spectra(
        *(key, spectra, recipients),
        alpha=alpha,
        n_claims=n_claims,
        charge=common.details["charged_bits"],
        pool=pool,
        workers=workers,
    )
    return Traced(
        suspect=asked.name,
        compared=compared,
        n_compared=n,
        n_recipients=len(recipients),
        common=common,
        common_log2_pvalue=corrected_common(common, n_claims),
        alpha=alpha,
        n_claims=n_claims,
        n_missing=asked.n_missing,
    )


def trace_spectra(
    key: ExactKey,
    spectra: Spectra,
    recipients: Sequence[Recipient],
    *,
    alpha: float,
    n_claims: int = 1,
    charge: float = 0.0,
    pool: Executor | None = None,
    workers: int = 1,
) -> list[Compared]:
    """Compare what a suspect answered with every secret of every recipient.

    Args:
        key: The owner's key.
        spectra: Of the suspect's answers to the key's queries, less the common mark's functions.
        recipients: Who was given the encoder.
        alpha: Level, half of which is for recipients.
        n_claims: Number of claims that share it.
        charge: Bits that are subtracted beside, such as for answers whose kind was chosen by hand.
        pool: What runs the pieces, such as processes; None runs them here.
        workers: Pieces that run at a time.

    Returns:
        The strongest ten, and all that are named beyond; fewer where there are fewer. None for no recipients.
    """
    given = [Given(one, rotation) for one in recipients for rotation in range(len(one.secrets))]
    if not given:
        return []
    listed = shortlist(key, spectra, [one.stream for one in given], pool=pool, workers=workers)
    bare = _without_encoder(key)
    best = [given[place] for place in listed.places]

    def tested(some: Sequence[Given], right: Sequence[str] | None) -> list[Sides]:
        pieces = _pieces(len(some), workers, 1)
        found = _each(pool, _sides, [(bare, spectra, some[a:b], right) for a, b in pieces])
        return [one for part in found for one in part]

    quick = tested(best, QUICK)
    corrected = math.log2(2 * len(given) * n_claims) + charge
    shown = sum(one.both + corrected <= math.log2(alpha) for one in quick)
    order = sorted(range(len(best)), key=lambda i: (quick[i].both, i))
    finalists = [best[i] for i in order[: min(max(FINALISTS, shown), MOST_FINALISTS)]]
    found = [
        _compared(one, sides, corrected, alpha) for one, sides in zip(finalists, tested(finalists, None), strict=True)
    ]
    found.sort(key=lambda one: one.log2_pvalue - 1e-9 * (one.left_bits + one.right_bits))
    return [one for i, one in enumerate(found) if one.named or i < SHOWN]


def shortlist(
    key: ExactKey, spectra: Spectra, secrets: Sequence[str], *, pool: Executor | None = None, workers: int = 1
) -> Shortlist:
    """Return the secrets that take the right test: those with the smallest left tails.

    Args:
        key: The owner's key.
        spectra: Of the suspect's answers.
        secrets: Names of all secrets: see `Given.stream`.
        pool: What runs the pieces; None runs them here.
        workers: Pieces that run at a time.
    """
    drawing = Drawing.bound(
        *(key.secret.reveal(), key.context, key.draw_context + key.bank.digest()),
        stream=LEFT,
        functions=key.bank.size,
        rank=key.protocol.rank,
    )
    witnesses = list(key.left_witnesses(spectra).values())
    pieces = _pieces(len(secrets), workers * PIECES if pool else 1, BLOCK)
    given = [(witnesses, drawing, secrets[a:b], a) for a, b in pieces]
    return merged(_each(pool, _screened, given), SHORTLIST)


@contextmanager
def processes(workers: int) -> Iterator[Executor | None]:
    """Yield what runs pieces in so many processes of this machine; None for one, which runs them here."""
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=one_thread) as pool:
        yield pool


def one_thread() -> None:
    """Let this process compute on one thread: there are as many processes as cores."""
    import torch

    torch.set_num_threads(1)


def corrected_common(found: Significance, n_claims: int) -> float:
    """Return log2 of the common mark's p-value, corrected for its half of the level and for all claims."""
    return min(0.0, found.log2_pvalue + math.log2(2 * n_claims))


def _screened(witnesses: Sequence[Any], drawing: Drawing, secrets: Sequence[str], start: int) -> Shortlist:
    return screen(witnesses, drawing, secrets, most=SHORTLIST, start=start)


def _sides(key: ExactKey, spectra: Spectra, given: Sequence[Given], right: Sequence[str] | None) -> list[Sides]:
    return [key.recipient(one.recipient.name, one.rotation).sides(spectra, right) for one in given]


def _compared(one: Given, sides: Sides, correction: float, alpha: float) -> Compared:
    log2_pvalue = min(0.0, max(sides.both, -float(SECRET_BITS)) + correction)
    return Compared(
        name=one.recipient.name,
        rotation=one.rotation,
        given=one.recipient.secrets[one.rotation],
        revoked=one.recipient.revoked,
        log2_pvalue=log2_pvalue,
        left_bits=-sides.left,
        right_bits=-sides.right,
        named=log2_pvalue <= math.log2(alpha),
    )


def _pieces(n: int, count: int, step: int) -> list[tuple[int, int]]:
    """Return where to cut n things into at most so many pieces, each but the last a multiple of a step."""
    blocks = math.ceil(n / step)
    size = max(1, math.ceil(blocks / count)) * step
    return [(start, min(n, start + size)) for start in range(0, n, size)]


def _each(pool: Executor | None, function: Callable[..., Any], given: Sequence[tuple[Any, ...]]) -> list[Any]:
    if pool is None:
        return [function(*one) for one in given]
    found = [job.result() for job in [pool.submit(function, *one) for one in given]]
    if lost := [one for one in found if isinstance(one, str)]:
        raise UsageError(f"a part of the trace was lost: {lost[0]:.300}")
    return found


def _without_encoder(key: ExactKey) -> ExactKey:
    """Return what the test needs of a key, small enough to be sent to many processes."""
    nothing: Any = None
    bare = replace(key, clean=nothing, _embedded={})
    vars(bare).update(context=key.context, clean_hash=key.clean_hash)
    return bare
