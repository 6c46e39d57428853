"""The examiner's side of a claim: check a bundle and decide again, without believing anything the claimant computed.

What no check can show is listed among the report's assumptions; see `_Log.assumptions`. `claims.lineage` has the audit
of claims by weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslguard.claims.bundle import Bundle, check_answers, read_bundle, read_clean
from sslguard.claims.claim import Recorded, versions
from sslguard.claims.derivation import undue_freedom
from sslguard.claims.log import Log, tries
from sslguard.claims.outcome import Audit, Terms
from sslguard.claims.queries import ExaminerData, items_hash, n_items
from sslguard.data.base import Data
from sslguard.data.kept import Kept
from sslguard.data.pool import pool_of
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.errors import ClaimError, EncoderError, KeyFileError, RefusedError, SuspectError, UsageError
from sslguard.schemes.base import Key
from sslguard.schemes.exact.key import ExactKey
from sslguard.stats.direction import SECRET_BITS
from sslguard.suspects.logged import LoggedAnswers
from sslguard.verification.scores import control_scores
from sslguard.verification.verdict import Verdict, verify

# Relative, because another machine rounds differently: of answers, and of the statistic, some of whose witnesses turn a
# rounding into one or two per cent where a suspect answers with the mark itself.
_TOLERANCE, _STATISTIC = 1e-3, 0.05


def audit(
    bundle: Bundle | Path,
    data: Data,
    terms: Terms,
    *,
    clean: Encoder | None = None,
    suspect: Embedder | None = None,
    progress: bool = False,
) -> Audit:
    """Check a bundle and decide again.

    Args:
        bundle: The bundle, or its folder.
        data: Data set that examiner and claimant agreed to draw queries from.
        terms: What the examiner decides by.
        clean: F, as the claimant handed it over. It is run to recompute the test; without it there is no verdict.
        suspect: The suspect, if the examiner can ask it again. The decision then depends on these answers alone.
        progress: Show a progress bar on standard error.

    Raises:
        ClaimError: The bundle cannot be read, or a signature in it is not valid.
        UsageError: `data` holds items that the key cannot ask about, or a receipt came with a claim on no recipient.
    """
    bundle = bundle if isinstance(bundle, Bundle) else read_bundle(bundle)
    if bundle.weights is not None:
        raise UsageError("this claim is by weights, and asks nothing: leave the data out")
    if bundle.commitment.recipient is None and (terms.receipt is not None or terms.recipient_key is not None):
        raise UsageError("this claim is on no recipient: leave the receipt and the recipient's key out")
    data = Kept(data)  # taken for the pool's root, for what was asked, and by F
    log = _Log(bundle, terms)
    log.identity()
    dated = log.date()
    log.openings()
    log.recipient()
    key = log.key(clean)
    shared = terms.n_claims * bundle.n_tests
    verdict, n_tries = None, shared * log.null.charge(dated=dated)
    if key is not None:
        log.data(key, data)
        chosen = log.queries(key, data)
        n_zero = None if chosen is None else log.answers(key.asks(len(chosen)))
        if chosen is not None and n_zero is not None:
            if suspect is None:
                n_tries = shared * log.null.charge(dated=dated, n_queries=key.asks(len(chosen)), n_zero=n_zero)
            verdict = log.decide(key, chosen, suspect, n_tries, dated=dated, progress=progress)
    log.assumptions(data, suspect)
    return Audit(tuple(log.checks), verdict, n_tries, terms, {**facts(bundle, data.spec), "committed": log.committed})


class _Log(Log):
    """Checks of a claim by answers."""

    def key(self, clean: Encoder | None) -> Key | None:
        """Check that the opened key follows from its secret and the examiner's F; return it, or None if it does not."""
        opened = self.bundle.opened
        if clean is None:
            words = "The clean encoder F was not given. The test needs its answers, and cannot take them on trust."
            self.add("clean encoder", "not checkable", words)
            return None
        if weights_hash(clean.module) != opened.clean_hash:
            self.add("clean encoder", "failed", "The clean encoder that was handed over is not the committed one.")
            return None
        self.add("clean encoder", "passed", "The clean encoder that was handed over is the committed one.")
        try:
            key = opened.with_clean(clean)
            freedom = undue_freedom(key, clean)
        except (ClaimError, KeyFileError, UsageError) as error:
            self.add("derivation", "failed", f"The opened key does not belong to this F: {error}.")
            return None
        if freedom is not None:
            self.add("derivation", "failed", f"The key does not follow from its secret: {freedom}.")
            return None
        words = "All parts of the key that must follow from its secret and this F do so."
        if key.needs_controls:
            words += " Its trained parts are bound by the commitment's date alone."
        self.add("derivation", "passed", words)
        return key

    def data(self, key: Key, data: Data) -> None:
        """Check that the claimant could not choose the data to fit the key.

        Whoever knows the secrets can pick items on which an innocent suspect agrees with them, also as a set that a
        fair seed then draws from.
        """
        if key.pool and key.pool == pool_of(data):
            words = f"The key's secrets are bound to these {len(data):,} items: other items would be another key."
            self.add("data", "passed", words)
        elif self.terms.own_data:
            words = f"The examiner chose {data.spec}, and the claimant could not influence the choice."
            self.add("data", "assumed", words)
        else:
            bound = "to other data" if key.pool else "to no data"
            words = (
                f"The claimant may have chosen {data.spec} to fit the key, whose secrets are bound {bound}. A verdict "
                "needs the data that they are bound to (watermark --pool), or data of the examiner's own (--own-data)."
            )
            self.add("data", "not checkable", words)

    def queries(self, key: Key, data: Data) -> ExaminerData | None:
        """Check that the examiner's seed draws what was asked; return the drawn items, or None if it does not."""
        if self.bundle["seed"] != self.terms.seed:
            self.add("queries", "failed", "The claim was drawn by another seed than the examiner's.")
            return None
        n, spec = n_items(key, data), data.spec
        if len(data) < n:
            self.add("queries", "not checkable", f"The key asks about {n:,} items, and {spec} has only {len(data):,}.")
            return None
        chosen = ExaminerData(data, n, seed=self.terms.seed, commitment=self.bundle.commitment.document.digest)
        if self.bundle["data"].get("asked") != items_hash(chosen):
            words = (
                f"The seed draws other items from {spec} than were asked: the claimant chose them, or used other data."
            )
            self.add("queries", "failed", words)
            return None
        self.add(
            "queries", "passed", f"{n:,} items were asked about, those that the examiner's seed draws from {spec}."
        )
        return chosen

    def answers(self, n: int) -> int | None:
        """Check that the signed file has an answer to each query; return how many are zero, or None if it does not.

        Somebody who knows the key could leave out the answers that disagree. If the suspect is not asked again, the
        claim is therefore charged for all ways to leave out that many. The p-value is valid for each of them.
        """
        try:
            n_zero = check_answers(self.bundle, n)
        except ClaimError as error:
            self.add("answers", "failed", f"{str(error)[:1].upper()}{str(error)[1:]}.")
            return None
        words = f"The bundle has an answer to each of {n:,} queries; none is missing."
        if n_zero:
            words = f"The bundle has all {n:,} queries; {n_zero:,} answers are zero, as missing ones are."
            words += " Unless the suspect is asked again, the audit assumes that the claimant chose which ones."
        self.add("answers", "passed", words)
        return n_zero

    def decide(
        self,
        key: Key,
        chosen: ExaminerData,
        suspect: Embedder | None,
        n_tries: int,
        *,
        dated: bool,
        progress: bool,
    ) -> Verdict | None:
        """Return the verdict on the answers in the bundle, or on new answers if the suspect is asked again.

        Return None if no verdict can be given.
        """
        objection = self.null.objection(dated=dated)
        if objection is not None:
            self.add("verdict", "not checkable", objection)
            return None
        if math.log2(n_tries) > SECRET_BITS:
            words = f"The level would be shared among {tries(n_tries)}, more than there are secrets."
            self.add("verdict", "not checkable", words)
            return None
        terms, scores, kinds = self.terms, dict[str, float](), dict[str, str]()

        def decided(asked: Embedder) -> Verdict:
            known: dict[str, Any] = {"control_scores": scores, "control_kinds": kinds}
            found = verify(key, asked, chosen, **known, alpha=terms.alpha, n_claims=n_tries)
            return replace(found, suspect=self.bundle["suspect"][:200])

        try:
            self.null.check(terms.alpha, n_tries)
            if key.needs_controls:
                innocents = control_scores(key, terms.controls, chosen, progress=progress)
                scores.update(innocents.values)
                kinds.update(innocents.kinds)
            self.clean(key, chosen)
            found = decided(LoggedAnswers(self.bundle.answers, name="the answers in the bundle"))
            self._compare(found)
        except RefusedError as error:
            self.add("verdict", "not checkable", f"No verdict can be supported: {error}.")
            return None
        except (SuspectError, EncoderError) as error:
            self.add("verdict", "failed", f"The answers cannot be scored: {error}.")
            return None
        if suspect is not None:
            recorded = Recorded(suspect)
            try:
                found = self._asked_again(found, decided(recorded), recorded.answers())
            except SuspectError as error:
                words = f"It was to be asked again, and gave no answers that can be scored: {error}."
                self.add("suspect", "not checkable", words)
                return None
        self.conclude(found, n_tries)
        return found

    def clean(self, key: Key, chosen: ExaminerData) -> None:
        """Compare what the bundle says that the test took of F with F's own, which the verdict stands on."""
        if self.bundle.clean is None or not isinstance(key, ExactKey):
            return
        try:
            then = read_clean(self.bundle, key.asks(len(chosen)))
        except ClaimError as error:
            self.add("clean embeddings", "failed", f"{str(error)[:1].upper()}{str(error)[1:]}.")
            return
        now, d = key.recorded(chosen), key.clean.dim
        parts = ((now[:, :d], then[:, :d]), (now[:, d:], then[:, d:])) if now.shape == then.shape else ()
        if not parts or any(_differing(*pair) for pair in parts):
            words = "The clean embeddings or the input statistics in the bundle are not those of F and these queries."
            self.add("clean embeddings", "failed", words)
        else:
            words = "The clean embeddings and input statistics in the bundle are those of F and these queries."
            self.add("clean embeddings", "passed", words)

    def _compare(self, found: Verdict) -> None:
        """Compare the claimant's statistic with ours. It decides nothing, but one that differs was made up."""
        claimed, ours = self.bundle["claimed"].get("statistic"), found.significance.statistic
        if isinstance(claimed, float) and abs(claimed - ours) <= _STATISTIC * max(1.0, abs(ours)):
            self.add("statistic", "passed", f"Recomputed from the answers: {ours:.4f}, as the claimant says.")
            return
        said = f"{claimed:.4f}" if isinstance(claimed, float) else "nothing"
        self.add("statistic", "failed", f"The answers give a statistic of {ours:.4f}; the claimant says {said}.")

    def _asked_again(self, claimed: Verdict, own: Verdict, now: NDArray[np.floating]) -> Verdict:
        """Compare the answers that the examiner got, `now`, with those in the bundle; return the verdict on the former.

        If they differ, nobody can tell whether the claimant changed the answers or the suspect answers differently now.
        """
        then = np.asarray(np.lib.format.open_memmap(self.bundle.answers, mode="r"))
        differing = len(now) if now.shape != then.shape else _differing(now, then)
        silent = int((~now.any(axis=1)).sum())
        words = f"The suspect was asked again: {differing:,} of {len(now):,} answers differ"
        if silent:
            words += f", {silent:,} of them are missing or zero now"
        if own.decision != "derived" and claimed.decision == "derived":
            words += ", and the new ones do not show what those in the bundle do"
            why = "Those in the bundle are not its own, or were chosen among many, or it has changed since."
            self.add("suspect", "against", f"{words}. {why}")
        elif differing:
            self.add("suspect", "passed", f"{words}. The verdict is on the new ones.")
        else:
            self.add("suspect", "passed", "The suspect was asked again and gave the same answers.")
        return own

    def assumptions(self, data: Data, suspect: Embedder | None) -> None:
        """List what no check can show."""
        if suspect is None:
            words = "The answers are the suspect's own, at the first asking. Asking it again would show that."
            self.add("suspect", "assumed", words)
        this = "the" if self.terms.commitment is None else "this"
        self.add(
            "seed", "assumed", f"The seed was drawn by the examiner after seeing {this} commitment, and by chance."
        )
        if not self.charged:
            words = "The claimant dated no other commitment that this one was chosen from: each would be another try."
            self.add("other commitments", "assumed", words)
            words = "The suspect was not read in several ways, of which this one was chosen: each would be another try."
            self.add("other readings", "assumed", words)
        self.add("marking", "assumed", f"No item of {data.spec} took part in marking.")
        if self.terms.roots and self.bundle.token is not None:
            self.add("authority", "assumed", "The timestamp authority told the truth about the time.")
        self.add(
            "F", "assumed", "The clean encoder F is the claimant's to mark: whose it was first is another question."
        )


def facts(bundle: Bundle, data: str) -> dict[str, Any]:
    """Return what a report says of a bundle that was audited on the data set of this specification."""
    fields = bundle.opened.fields
    hashes = {name: str(fields[name])[:64] if name in fields else None for name in ("clean_hash", "watermarked_hash")}
    answers, asked = bundle["answers"], bundle["data"].get("asked")
    times = " to ".join(str(answers.get(name, "not said"))[:40] for name in ("begun", "ended"))
    return {
        "owner": bundle.claim.owner,
        "suspect": bundle["suspect"][:200],
        "scheme": bundle.opened.scheme,
        "recipient": None if bundle.commitment.recipient is None else bundle.commitment.recipient._asdict(),
        "seed": bundle["seed"][:256],
        "data": data,
        "commitment_sha256": bundle.commitment.document.digest,
        "claim_sha256": bundle.claim.digest,
        "answers_sha256": None if bundle.weights is not None else str(answers.get("sha256"))[:64],
        "asked_sha256": None if bundle.weights is not None else str(asked)[:64],
        "asked_at": None if bundle.weights is not None else times,
        **hashes,
        "claimed_by": {str(name)[:40]: str(value)[:80] for name, value in list(bundle["versions"].items())[:16]},
        "audited_by": versions(),
    }


def _differing(one: NDArray[np.floating], other: NDArray[np.floating]) -> int:
    """Return how many rows differ by more than rounding."""
    # Rows of one size, so that no square overflows.
    largest = np.maximum(np.abs(one).max(axis=1), np.abs(other).max(axis=1)).astype(np.float64)
    sizes = np.where(largest > 0, largest, 1.0)[:, None]
    one, other = one / sizes, other / sizes
    lengths = np.maximum(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    return int((np.linalg.norm(one - other, axis=1) > _TOLERANCE * lengths).sum())
