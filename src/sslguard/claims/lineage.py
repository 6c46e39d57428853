"""Lineage in claims: a secret order or a secret seed, opened to an examiner who has the suspect's weights.

It counts only by a commitment that is older than the suspect. Without one, a claimant could put the units of his own
network in the order of an innocent's, and call that secret.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sslguard.claims.audit import facts
from sslguard.claims.bundle import Bundle, text
from sslguard.claims.claim import Opening
from sslguard.claims.commitment import order_digest, parse_commitment, timestamp_file
from sslguard.claims.documents import MAX_DOCUMENT, read_file
from sslguard.claims.log import Log
from sslguard.claims.outcome import Audit, Terms
from sslguard.claims.timestamps import MAX_TOKEN, verified_time
from sslguard.errors import ClaimError, EncoderError, KeyFileError, RefusedError, UsageError
from sslguard.files import atomic_folder
from sslguard.lineage.weights import Weights
from sslguard.schemes.keyfile import StoredKey
from sslguard.schemes.order import WeightsKey
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.significance import Significance
from sslguard.verification.nulls import DATED_TRIES, UNDATED_TRIES, null_of
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict

if TYPE_CHECKING:
    from cryptography.x509 import Certificate


class Dated(NamedTuple):
    """What a commitment to a secret order is worth.

    Attributes:
        bits: Bits that are subtracted for other orders that the owner may have tried.
        words: Why, in words.
    """

    bits: int
    words: str


def dated(
    stored: StoredKey, commitment: Path, *, not_after: datetime | None = None, roots: Sequence[Certificate] = ()
) -> Dated:
    """Check a commitment to a key's secret order, and say how many bits an examiner subtracts.

    Args:
        stored: The key.
        commitment: File of the commitment; its timestamp lies beside it.
        not_after: When the suspect could first be read.
        roots: Certificates that must vouch for the timestamp.

    Raises:
        ClaimError: The commitment is not to this order, or its timestamp is not good.
    """
    found = parse_commitment(read_file(commitment, MAX_DOCUMENT), str(commitment))
    if found.document.owner != stored.owner.public or found.order is None or found.order != order_digest(stored):
        raise ClaimError(
            f"{commitment} does not commit to the secret order of this key: give the file that sslguard commit wrote"
        )
    beside = timestamp_file(commitment)
    if not beside.exists() or not roots or not_after is None:
        missing = "a timestamp" if not beside.exists() else "certificates for it" if not roots else "the suspect's date"
        return Dated(
            UNDATED_TRIES, f"without {missing} it proves no date: up to 2^{UNDATED_TRIES} orders may have been tried"
        )
    when = verified_time(read_file(beside, MAX_TOKEN), found.document.content, roots, str(beside))
    if when > not_after:
        words = f"it is of {when:%Y-%m-%d}, and the suspect is older: the order may have been chosen to fit"
        return Dated(UNDATED_TRIES, words)
    return Dated(DATED_TRIES, f"it is of {when:%Y-%m-%d}, older than the suspect")


def claim_weights(
    stored: StoredKey,
    suspect: Weights,
    *,
    commitment: Path,
    out: Path,
    released: Weights | None = None,
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
) -> Verdict:
    """Compare a suspect's weights with what the key keeps secret, and write a bundle from which others decide again.

    The bundle opens the secret order or the secret seed, and no mark. The key's folder records that.

    Args:
        stored: The key, with its owner and folder.
        suspect: The suspect's weights.
        commitment: File of the commitment; its timestamp, if any, lies beside it.
        out: Folder of the bundle.
        released: Weights of the encoder that was released, for a secret order.
        alpha: Level of the test, in (0, 1).
        n_claims: Number of claims that share the level; times the tests in the commitment.

    Raises:
        ClaimError: The commitment is not to this key.
        KeyFileError: The key has nothing that is compared with weights, or `released` is not its release.
        RefusedError: The networks have no units that can be compared, or too few for this level.
        EncoderError: A weight cannot be read.
        OutputError: The bundle cannot be written.
    """
    stored = stored.of_weights()
    found = Opening(stored, commitment)
    found.check()
    with atomic_folder(out) as partial:
        verdict = _compared(stored.key, suspect, released, alpha, n_claims * found.committed.n_tests)
        name = text(suspect.name)
        claimed = {**verdict.to_json(), "suspect": name, "lineage": None}  # of large networks too much for a document
        said = {"seed": "", "data": {}, "controls": [], "answers": {}, "suspect": name, "claimed": claimed}
        found.fill(partial, {**said, "weights": suspect.digest()}, None)
    return verdict


def _compared(key: Any, suspect: Weights, released: Weights | None, alpha: float, n_claims: int) -> Verdict:
    """Return the verdict on a suspect's weights."""
    found = key.compare(suspect, released, alpha=alpha, n_claims=n_claims)
    counted = [found.secret] if found.secret is not None else found.tests
    significance = Significance(
        statistic=float(max(one.matched for one in counted)),
        log2_pvalue=found.log2_pvalue,
        floor=2.0**-SECRET_BITS,
        null="exact",
        n_queries=0,
        statistic_name="units in place",
    )
    return Verdict(
        suspect=suspect.name,
        decision="derived" if found.decision == "shared weights" else "not shown",
        significance=significance,
        null=null_of(key),
        alpha=alpha,
        n_claims=n_claims,
        watermark_rate=None,
        cosines=np.empty(0),
        control_scores={},
        lineage=found,
    )


def audit_weights(
    bundle: Bundle, terms: Terms, *, suspect: Weights | None = None, released: Weights | None = None
) -> Audit:
    """Check a claim by weights and decide again: see `claims.audit`.

    Args:
        bundle: The bundle.
        terms: What the examiner decides by.
        suspect: The suspect's weights, as the examiner has them. Without them there is no verdict.
        released: Weights of the encoder that was released, as the claimant handed it over, for a secret order.
    """
    log = _WeightsLog(bundle, terms)
    log.identity()
    dated = log.date()
    log.openings()
    n_tries = terms.n_claims * bundle.commitment.n_tests * log.null.charge(dated=dated)
    key = log.key(released)
    verdict = None if key is None else log.decide(key, suspect, released, n_tries, dated=dated)
    log.assumptions()
    return Audit(tuple(log.checks), verdict, n_tries, terms, {**facts(bundle, ""), "committed": log.committed})


class _WeightsLog(Log):
    """Checks of a claim by weights."""

    def key(self, released: Weights | None) -> WeightsKey | None:
        """Check that the opened key belongs to the encoder that was released; return it, or None if it does not."""
        opened = self.bundle.opened
        try:
            key: Any = opened.kind.from_parts(dict(opened.fields), dict(opened.tensors))
            if not key.needs_release:
                return key
            if released is None:
                words = (
                    "The released encoder was not given. The suspect's units are compared with the order of its units."
                )
                self.add("released encoder", "not checkable", words)
                return None
            key.order.check(released)
        except KeyFileError as error:
            self.add("released encoder", "failed", f"The opened key does not belong to it: {error}.")
            return None
        words = "The released encoder that was handed over has the committed order, and the committed weights in it."
        self.add("released encoder", "passed", words)
        return key

    def decide(
        self, key: WeightsKey, suspect: Weights | None, released: Weights | None, n_tries: int, *, dated: bool
    ) -> Verdict | None:
        """Return the verdict on the suspect's weights; None if none can be given."""
        objection = self.null.objection(dated=dated)
        if objection is not None:
            self.add("verdict", "not checkable", objection)
            return None
        if suspect is None:
            words = "The suspect's weights were not given. The claim holds their hash alone, and the test needs them."
            self.add("suspect", "not checkable", words)
            return None
        if math.log2(n_tries) > SECRET_BITS:
            words = "The level would be shared among more claims than there are secrets."
            self.add("verdict", "not checkable", words)
            return None
        try:
            same = suspect.digest() == self.bundle.weights
            found = _compared(key, suspect, released, self.terms.alpha, n_tries)
        except (RefusedError, KeyFileError, EncoderError, UsageError) as error:
            self.add("verdict", "not checkable", f"No verdict can be supported: {error}.")
            return None
        words = "are those that the claim names" if same else "are others than the claim names; the verdict is on these"
        self.add("suspect", "passed", f"The suspect's weights that were given {words}.")
        found = replace(found, suspect=self.bundle["suspect"][:200])
        self.conclude(found, n_tries)
        return found

    def assumptions(self) -> None:
        """List what no check can show."""
        words = "The weights that were given are the suspect's, and it was there on its date in this order of units."
        self.add("suspect's weights", "assumed", words)
        if self.terms.roots and self.bundle.token is not None:
            self.add("authority", "assumed", "The timestamp authority told the truth about the time.")
        words = "The claimant's network is his own: whose its weights were first is another question."
        self.add("owner", "assumed", words)
