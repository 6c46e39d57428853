"""The result of an audit: checks in plain words, and the decision that follows from the worst of them.

==============  ======================================================================================
passed          was checked and holds
against         was checked and speaks against the claim
not checkable   could not be checked, because something is missing; there is no verdict without it
failed          the submitted files contradict themselves, or were changed
assumed         was not checked; the verdict depends on it
==============  ======================================================================================

Any failed check makes the decision "forged". Otherwise any check that is not checkable makes it "not checkable".
Otherwise any check against the claim makes it "not shown". Otherwise it is "derived".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from sslguard.claims.strength import Strength
from sslguard.errors import UsageError
from sslguard.report.card import card
from sslguard.schemes.order import WeightsKey
from sslguard.schemes.registry import key_class
from sslguard.settings import Range
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from sslguard.claims.receipts import SignedReceipt

Status = Literal["passed", "against", "not checkable", "failed", "assumed"]
Decision = Literal["derived", "not shown", "forged", "not checkable"]
PROPOSITIONS = {
    "claim": "The suspect's answers depend on the key's secret: the suspect is the marked encoder F*, or was made from "
    "F* or from its answers.",
    "alternative": "The suspect's answers do not depend on the key's secret: the suspect was made without F* and "
    "without its answers.",
    "derived": "The suspect's answers depend on the secret mark in a way that those of an independently made encoder "
    "would not.",
}
"""What an audit weighs against each other, and what its decision "derived" says."""
OF_WEIGHTS = {
    "claim": "The suspect's weights depend on what the owner kept secret: the suspect is the owner's encoder, or was "
    "made from its weights.",
    "alternative": "The suspect's weights do not depend on what the owner kept secret: the suspect was made without "
    "the owner's weights.",
    "derived": "The order or the values of the suspect's weights depend on the secret in a way that those of an "
    "independently made network would not.",
}
"""The same of a claim by weights."""
OF_RECIPIENT = {
    "claim": "The suspect's answers depend on the secret that the owner names as one recipient's: the suspect is a "
    "copy that holds this secret's mark, or was made from one or from its answers.",
    "alternative": "The suspect's answers do not depend on that secret: the suspect was made without any copy or "
    "answers that hold its mark.",
    "derived": "The suspect's answers depend on this secret in a way that those of other encoders, and of what other "
    "recipients were given, would not. It does not say who leaked, nor that the owner did not do it himself.",
}
"""The same of a claim on one recipient's secret."""
_EXIT = {"derived": 0, "not shown": 1, "forged": 3, "not checkable": 4}


def foretold(verdict: Verdict, *, dated: bool) -> Decision:
    """Return what an audit will decide on a claim's verdict, if everything else is as the claimant says.

    It assumes that no answer is zero.

    Args:
        verdict: Verdict of the claim.
        dated: Whether the commitment is shown to be older than the suspect.
    """
    if verdict.null.objection(dated=dated) is not None:
        return "not checkable"
    spent = math.log2(verdict.null.charge(dated=dated)) + math.log2(verdict.n_claims / verdict.alpha)
    return "derived" if verdict.significance.log2_pvalue <= -spent else "not shown"


@dataclass(frozen=True)
class Check:
    """One check of an audit.

    Attributes:
        name: Name of one to three words.
        status: Outcome; see the module.
        words: What was found, in sentences.
    """

    name: str
    status: Status
    words: str


@dataclass(frozen=True)
class Terms:
    """What the examiner decides by.

    Attributes:
        seed: Seed that the examiner gave the claimant.
        alpha: Level of the test, in (0, 1).
        n_claims: How many claims (suspects, keys, looks) share the level.
        not_after: When the suspect could first be asked, with a time zone. A commitment that is later shows nothing.
            None if it is not known.
        opened: When this key was opened or lost, with a time zone. The key shows nothing about suspects of later date.
        commitment: Digest, hex, of the commitment that the examiner saw before giving the seed; None is not compared.
        roots: Certificates that must vouch for the authority of the timestamp.
        controls: Specifications of known innocents, for a key that needs controls.
        own_data: Whether the examiner chose the data, and the claimant could not influence the choice.
        receipt: The receipt that the recipient signed, of a claim on one recipient; None without one.
        recipient_key: The recipient's public key, hex, as the examiner knows it; None if he does not.
    """

    seed: str
    alpha: float = DEFAULT_ALPHA
    n_claims: int = 1
    not_after: datetime | None = None
    opened: datetime | None = None
    commitment: str | None = None
    roots: Sequence[Certificate] = ()
    controls: Sequence[str] = ()
    own_data: bool = False
    receipt: SignedReceipt | None = None
    recipient_key: str | None = None

    def __post_init__(self) -> None:
        """Check time zones, level and number of claims."""
        for name in ("not_after", "opened"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                raise UsageError(f"{name} must say its time zone")
        if self.recipient_key is not None and not re.fullmatch("[0-9a-f]{64}", self.recipient_key):
            raise UsageError(f"a recipient's key must have 64 hexadecimal digits, unlike {self.recipient_key!r:.70}")
        if self.recipient_key is not None and self.receipt is None:
            raise UsageError("a recipient's key checks the receipt that he signed: give that receipt too (--receipt)")
        Range(least=1).check(self.n_claims, "n_claims")
        Range(above=0, below=1).check(self.alpha, "alpha")


@dataclass(frozen=True)
class Audit:
    """Result of an audit.

    Attributes:
        checks: All checks, in the order in which they were made.
        verdict: Recomputed verdict; None if it could not be recomputed.
        n_tries: How many claims alpha was shared among: the product of `terms.n_claims`, the number of keys in the
            commitment, and what the null charges for keys that may have been tried and answers left out.
        terms: What the examiner decided by.
        facts: Facts about the bundle for a report: owner, suspect, seed, hashes, versions.
    """

    checks: tuple[Check, ...]
    verdict: Verdict | None
    n_tries: int
    terms: Terms
    facts: dict[str, Any]

    @property
    def decision(self) -> Decision:
        """Decision that follows from the worst check."""
        found = {check.status for check in self.checks}
        if "failed" in found:
            return "forged"
        if "not checkable" in found or self.verdict is None:
            return "not checkable"
        return "not shown" if "against" in found else "derived"

    @property
    def by_weights(self) -> bool:
        """Whether the claim is by weights."""
        kind = key_class(self.facts.get("scheme"))
        return kind is not None and issubclass(kind, WeightsKey)

    @property
    def propositions(self) -> dict[str, str]:
        """What is weighed against each other, and what "derived" says."""
        if self.facts.get("recipient") is not None:
            return OF_RECIPIENT
        return OF_WEIGHTS if self.by_weights else PROPOSITIONS

    @property
    def strength(self) -> Strength | None:
        """How strong the evidence is after all charges; None where no verdict stands on it."""
        if self.verdict is None or self.decision in ("forged", "not checkable"):
            return None
        return Strength.of(self.verdict.significance.log2_pvalue, self.n_tries)

    def of(self, *statuses: Status) -> list[Check]:
        """Return the checks with one of these statuses."""
        return [check for check in self.checks if check.status in statuses]

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 derived, 1 not shown, 3 forged, 4 not checkable."""
        return _EXIT[self.decision]

    def _repr_html_(self) -> str:
        return card(self.decision, ((check.name, f"{check.status}: {check.words}") for check in self.checks))

    def to_json(self) -> dict[str, Any]:
        """Return the whole result as JSON values."""
        return {
            "decision": self.decision,
            "checks": [{"name": c.name, "status": c.status, "words": c.words} for c in self.checks],
            "alpha": self.terms.alpha,
            "n_claims": self.terms.n_claims,
            "log2_tries": math.log2(self.n_tries),
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            "propositions": self.propositions,
            "strength": None if self.strength is None else self.strength.to_json(),
            **self.facts,
        }
