"""What an audit ends in: checks in plain words, and a decision that is their worst.

==============  ======================================================================================
passed          it was checked and holds
against         it was checked, and speaks against the claim
not checkable   something is missing without which no verdict can be given
failed          what was handed in contradicts itself, or was changed
assumed         it was not checked; the verdict stands on it
==============  ======================================================================================

Forged comes before not checkable, that before not shown, and that before derived.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sslguard.errors import UsageError
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

Status = Literal["passed", "against", "not checkable", "failed", "assumed"]
Decision = Literal["derived", "not shown", "forged", "not checkable"]
_EXIT = {"derived": 0, "not shown": 1, "forged": 3, "not checkable": 4}


def foretold(verdict: Verdict, *, dated: bool) -> Decision:
    """Return what an audit will make of a claim's verdict, if all else is as the claimant says.

    Every answer is then not zero, and the commitment shown to be older than the suspect, or not (`dated`).
    """
    if verdict.null.objection(dated=dated) is not None:
        return "not checkable"
    spent = math.log2(verdict.null.charge(dated=dated)) + math.log2(verdict.n_claims / verdict.alpha)
    return "derived" if verdict.significance.log2_pvalue <= -spent else "not shown"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: Of a word or two.
        words: What was found, for people.
    """

    name: str
    status: Status
    words: str


@dataclass(frozen=True)
class Terms:
    """What the examiner decides by.

    Attributes:
        alpha: Level of the test.
        n_claims: How many claims (suspects, keys, looks) share it.
        seed: What the examiner gave the claimant.
        not_after: When the suspect could first be asked; a later commitment shows nothing. None: not known.
        opened: When this key was opened or lost; it does not count against suspects dated later.
        commitment: Digest, hex, of the one that the examiner saw before giving the seed. None: not compared.
        roots: Certificates that the timestamp's authority must be vouched for by.
        controls: Known innocents, by specification, for a key whose null they are.
    """

    seed: str
    alpha: float = DEFAULT_ALPHA
    n_claims: int = 1
    not_after: datetime | None = None
    opened: datetime | None = None
    commitment: str | None = None
    roots: Sequence[Certificate] = ()
    controls: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("not_after", "opened"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                raise UsageError(f"{name} must say its time zone")
        if self.n_claims < 1 or not 0 < self.alpha < 1:
            raise UsageError("n_claims must be at least 1, and alpha lie strictly between 0 and 1")


@dataclass(frozen=True)
class Audit:
    """What an examiner found.

    Attributes:
        checks: In the order in which they were made.
        verdict: Recomputed; None where it could not be.
        n_tries: How many claims alpha was shared among: the terms', one for every key in the commitment, and what
            is charged for keys that may have been tried, dated or not, and for answers left out.
        facts: Of the bundle, for a report: owner, suspect, seed, hashes, versions.
    """

    checks: tuple[Check, ...]
    verdict: Verdict | None
    n_tries: int
    terms: Terms
    facts: dict[str, Any]

    @property
    def decision(self) -> Decision:
        found = {check.status for check in self.checks}
        if "failed" in found:
            return "forged"
        if "not checkable" in found or self.verdict is None:
            return "not checkable"
        return "not shown" if "against" in found else "derived"

    def of(self, *statuses: Status) -> list[Check]:
        """The checks that ended so."""
        return [check for check in self.checks if check.status in statuses]

    @property
    def exit_code(self) -> int:
        """0 derived, 1 not shown, 3 forged, 4 not checkable."""
        return _EXIT[self.decision]

    def to_json(self) -> dict[str, Any]:
        """All of it, JSON values only."""
        return {
            "decision": self.decision,
            "checks": [{"name": c.name, "status": c.status, "words": c.words} for c in self.checks],
            "alpha": self.terms.alpha,
            "n_claims": self.terms.n_claims,
            "log2_tries": math.log2(self.n_tries),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            **self.facts,
        }
