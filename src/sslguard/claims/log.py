"""Checks of a claim that do not depend on what is claimed: owner, commitment, date, openings, and the conclusion."""

from __future__ import annotations

import math
from datetime import datetime

from sslguard.claims.bundle import Bundle
from sslguard.claims.outcome import Check, Status, Terms
from sslguard.claims.timestamps import claimed_time, verified_time
from sslguard.controls.members import count_controls
from sslguard.errors import ClaimError
from sslguard.schemes.keyfile import Handed
from sslguard.verification.nulls import DATED_TRIES, UNDATED_TRIES, null_of
from sslguard.verification.verdict import Verdict


class Log:
    """Checks of one bundle, in order."""

    def __init__(self, bundle: Bundle, terms: Terms) -> None:
        """Begin without any check."""
        self.bundle, self.terms = bundle, terms
        self.null = null_of(bundle.opened.kind, count_controls(terms.controls))
        self.checks: list[Check] = []
        self.committed: str | None = None

    def add(self, name: str, status: Status, words: str) -> None:
        """Add a check."""
        self.checks.append(Check(name, status, words))

    def identity(self) -> None:
        """Check that claim and commitment have the same owner, and that the opened key is the committed one."""
        claim, commitment = self.bundle.claim, self.bundle.commitment
        if claim.owner != commitment.document.owner:
            self.add("signature", "failed", "The claim is signed by somebody else than the commitment.")
        else:
            self.add("signature", "passed", "Claim and commitment carry good signatures of one owner.")
        if self.bundle["commitment"] != commitment.document.digest:
            self.add("commitment", "failed", "The claim was made for another commitment than the one in the bundle.")
        elif self.terms.commitment not in (None, commitment.document.digest):
            words = "The commitment in the bundle is not the one that the examiner saw before giving the seed."
            self.add("commitment", "failed", words)
        elif not commitment.holds(self.bundle.opened.digest(self.bundle.salt)):
            self.add("commitment", "failed", "The opened key is not what the commitment commits to.")
        else:
            n = commitment.n_tests
            shared = f", one of {n} keys and secret orders that share the level; the others were not opened here"
            among = shared if n > 1 else ""
            words = f"The opened key is, to the last bit, what the commitment commits to{among}."
            self.add("commitment", "passed", words)

    @property
    def charged(self) -> bool:
        """Whether a dated key is charged for other keys that its owner may have dated. Ranks could not bear that."""
        return self.null.charge(dated=True) > 1

    def date(self) -> bool:
        """Check and return whether the commitment is shown to be older than the suspect."""
        token, content, wanted = self.bundle.token, self.bundle.commitment.document.content, self.terms.not_after
        missing: Status = "assumed" if wanted is None else "not checkable"
        charge = "" if wanted else f" The audit assumes that up to 2^{UNDATED_TRIES} keys were tried."
        if token is None:
            self.add("date", missing, f"The commitment has no timestamp, so nothing shows when it was made.{charge}")
            return False
        try:
            claimed = claimed_time(token, content, "the timestamp")
            if not self.terms.roots:
                words = f"The timestamp says {day(claimed)}, and no certificates came with which to check that."
                self.add("date", missing, words + charge)
                return False
            when = verified_time(token, content, self.terms.roots, "the timestamp")
        except ClaimError as error:
            self.add("date", "failed", f"The timestamp was not accepted: {error}.")
            return False
        words, self.committed = f"The commitment is from {day(when)}", when.isoformat()
        if wanted is None:
            self.add("date", "assumed", f"{words}; when the suspect could first be asked was not given.{charge}")
            return False
        if when > wanted:
            words += f"; the suspect could be asked already on {day(wanted)}: the key may have been made for it."
            self.add("date", "against", words)
            return False
        words += f"; the suspect could first be asked on {day(wanted)}, not earlier."
        if self.charged:
            words += f" The audit assumes that its owner may have dated up to 2^{DATED_TRIES} keys."
        self.add("date", "passed", words)
        return True

    def openings(self) -> None:
        """Check that the key was still secret when the suspect was made.

        After a key is opened, anybody can put its mark into a model, so the key shows nothing about younger suspects.
        """
        known = [when for when in (self.terms.opened, self.bundle.opened_before) if when is not None]
        opened, dated = min(known, default=None), self.terms.not_after
        name = "key still secret"
        if opened is None:
            self.add(name, "assumed", "Nobody but the owner knew this key when the suspect was made.")
        elif dated is None:
            words = f"The key was opened or lost on {day(opened)}, and no date of the suspect was given."
            self.add(name, "not checkable", words)
        elif dated >= opened:
            words = f"The key was opened or lost on {day(opened)}, before the suspect: anybody could have marked it."
            self.add(name, "not checkable", words)
        else:
            words = f"The suspect could be asked on {day(dated)}, before the key was opened or lost on {day(opened)}."
            self.add(name, "passed", words)

    def recipient(self) -> None:
        """Check whether the recipient whose secret was opened signed for it. The evidence stands without that."""
        named = self.bundle.commitment.recipient
        if named is None:
            return
        words = f"The claimant says that {self.bundle.compared:,} secrets of recipients were compared. "
        words += "They share the level with the common mark. Each one more would be another try."
        self.add("secrets compared", "assumed", words)
        words = "The owner did not put this mark into the suspect himself, and gave the secret to nobody else. "
        words += "He holds all secrets; a receipt shows only which one went to whom, and when."
        self.add("owner", "assumed", words)
        self.add("recipient", *self._signed_for(named))

    def _signed_for(self, named: Handed) -> tuple[Status, str]:
        signed, wanted, latest = self.terms.receipt, self.terms.recipient_key, self.terms.not_after
        said = f"the owner says that this secret was given to {named.name!r} on {named.given[:40]}"
        if signed is None:
            return "assumed", f"To whom is not checkable: {said}, and no receipt came that he signed."
        if signed.receipt.document.digest != self.bundle.commitment.document.digest:
            other = signed.recipient.name
            return "failed", f"The signed receipt is of another secret than the one that was opened, for {other!r}."
        if wanted not in (None, signed.signer):
            return "failed", f"The receipt is signed by the key {signed.signer}, which is not the recipient's."
        when = f"{named.name!r} signed for this secret on {day(signed.time)}, by his own clock"
        if latest is not None and signed.time > latest:
            late = f"after the suspect could be asked on {day(latest)}: who had the secret before is not shown."
            return "assumed", f"{when}, {late}"
        if wanted is None:
            return "assumed", f"{when}, if {signed.signer} is his public key, which the examiner did not give."
        return "passed", f"{when}, with his key."

    def conclude(self, found: Verdict, n_tries: int) -> None:
        """Say what a verdict on `n_tries` claims comes to."""
        shared = f", shared among {tries(n_tries)}" if n_tries > 1 else ""
        bits = f"{abs(found.significance.log2_pvalue):.1f} bits of evidence, {found.null.explain()}"
        what = f"{bits}; alpha {self.terms.alpha:g}{shared}."
        if found.decision == "derived":
            self.add("verdict", "passed", f"Derived: {what}")
        else:
            self.add("verdict", "against", f"Not shown: {what}")


def tries(n: int) -> str:
    """Return a number of claims in words."""
    return f"{n:,} claims" if n < 1 << 20 else f"2^{math.log2(n):.0f} that may have been tried"


def day(when: datetime) -> str:
    """Return a time to the minute."""
    return when.strftime("%Y-%m-%d %H:%M %Z").strip()
