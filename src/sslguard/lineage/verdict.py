"""The decision: do the weights of two networks have a common origin, and what can explain it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sslguard.errors import RefusedError, UsageError
from sslguard.lineage.compare import Comparison, Watch, agreement, aligned, drawn_groups, in_place, streams
from sslguard.lineage.order import Order
from sslguard.lineage.parts import Group
from sslguard.lineage.weights import Weights
from sslguard.report.card import card
from sslguard.settings import Range
from sslguard.stats.corrections import bonferroni, fisher
from sslguard.stats.direction import SECRET_BITS
from sslguard.stats.fixed_points import log2_fixed_points

DEFAULT_ALPHA = 2.0**-20
"""Level of the decision. Copies show hundreds of bits."""
Decision = Literal["shared weights", "not shown"]

UNEXPLAINED = (
    "Descent, a common ancestor and a common seed of the initial weights look the same. A key with a secret order "
    "tells descent from the others"
)
EXPLAINED = (
    "The order of the units was drawn from a secret and never published otherwise: neither a common ancestor nor a "
    "common seed, data or training explains it"
)
SEEDED = (
    "The initial weights were drawn from a secret. Whatever was not trained from them is independent of them, whatever "
    "its data, ancestors and seeds"
)
NOT_SHOWN = (
    "This is no evidence of innocence: a copy that was made through answers, or whose units were put in another order, "
    "looks the same"
)


@dataclass(frozen=True)
class LineageVerdict:
    """What was found.

    Attributes:
        a: Name of the owner's network.
        b: Name of the suspect.
        tests: Tests that the p-value without a key was taken from: the best of them, times their number.
        secret: Test of the groups in the key's secret order; None without a key.
        ancestor: C, and how A and B compare with it; None without one.
        alpha: Level of the decision, in (0, 1).
        n_claims: Number of claims that share it, those included that an examiner charges for other orders.
        dated: What a commitment to the secret order is worth, in words; "" where none was given.
        seeded: Whether A stands for initial weights from a secret seed, and nothing else was compared.
    """

    a: str
    b: str
    tests: tuple[Comparison, ...]
    secret: Comparison | None
    ancestor: Ancestor | None
    alpha: float
    n_claims: int
    dated: str = ""
    seeded: bool = False

    @property
    def log2_lineage(self) -> float:
        """Base-2 logarithm of the p-value of the tests that need no key, in bits."""
        return float(bonferroni([min(one.log2_pvalue for one in self.tests)], n=len(self.tests))[0])

    @property
    def log2_pvalue(self) -> float:
        """Base-2 logarithm of the p-value of the decision, in bits: at most those of the secret that it rests on."""
        if self.secret is not None:
            return max(self.secret.log2_pvalue, -float(SECRET_BITS))
        return max(self.log2_lineage, -float(SECRET_BITS)) if self.seeded else self.log2_lineage

    @property
    def decision(self) -> Decision:
        """The decision."""
        return "shared weights" if self.log2_pvalue <= math.log2(self.alpha / self.n_claims) else "not shown"

    @property
    def meaning(self) -> str:
        """What the decision says, and what it does not, in words."""
        if self.secret is None:
            if self.decision == "not shown":
                return NOT_SHOWN
            return SEEDED if self.seeded else UNEXPLAINED
        if self.decision == "shared weights":
            return EXPLAINED
        if self.log2_lineage <= math.log2(self.alpha / self.n_claims):
            return (
                "The weights are related, but their order is not that of the release. A common ancestor, a common "
                "seed, the unreleased encoder, or a thief who put hidden units in another order explains it"
            )
        return NOT_SHOWN

    @property
    def exit_code(self) -> int:
        """0 for shared weights, 1 for not shown."""
        return 0 if self.decision == "shared weights" else 1

    def _repr_html_(self) -> str:
        evidence = f"{abs(self.log2_pvalue):.1f} bits (p = 2^{-abs(self.log2_pvalue):.1f})"
        rows = {"network": self.a, "suspect": self.b, "evidence": evidence, "meaning": self.meaning}
        return card(self.decision, rows.items())

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "decision": self.decision,
            "a": self.a,
            "b": self.b,
            "log2_pvalue": self.log2_pvalue,
            "log2_lineage": self.log2_lineage,
            "alpha": self.alpha,
            "n_claims": self.n_claims,
            "dated": self.dated,
            "meaning": self.meaning,
            "tests": [one.to_json() for one in self.tests],
            "secret_order": None if self.secret is None else self.secret.to_json(),
            "ancestor": None if self.ancestor is None else self.ancestor.to_json(),
        }


@dataclass(frozen=True)
class Ancestor:
    """Whether a common ancestor C explains what A and B share.

    Attributes:
        name: C.
        of_a: A compared with C.
        of_b: B compared with C.
        log2_beyond: Base-2 logarithm of the p-value of the groups of A that do not come from C, in bits; 0 if there are
            none.
        alpha: Level of each statement.
    """

    name: str
    of_a: Comparison
    of_b: Comparison
    log2_beyond: float
    alpha: float

    @property
    def meaning(self) -> str:
        """What C explains, in words."""
        bound = math.log2(self.alpha)
        if self.log2_beyond <= bound:
            return "does not explain it all: A and B also share groups that A does not have from it"
        if self.of_a.log2_pvalue <= bound and self.of_b.log2_pvalue <= bound:
            return "explains it: A and B both match it, and nothing that they share is A's own"
        return "does not explain it: " + ("B" if self.of_a.log2_pvalue <= bound else "A") + " does not match it"

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "name": self.name,
            "a": self.of_a.to_json(),
            "b": self.of_b.to_json(),
            "log2_beyond": self.log2_beyond,
            "meaning": self.meaning,
        }


def compare(
    a: Weights,
    b: Weights,
    *,
    order: Order | None = None,
    ancestor: Weights | None = None,
    initial: Weights | None = None,
    groups: Sequence[Group] | None = None,
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    seed: int = 0,
    watch: Watch | None = None,
) -> LineageVerdict:
    """Test whether the weights of two networks have a common origin.

    Args:
        a: The owner's network: the release, where `order` is given.
        b: The suspect.
        order: Secret order of the release. Only the groups in this order count then, and the p-value is exact for every
            suspect that does not come from the release.
        ancestor: A network that both may come from.
        initial: Weights of A before training, from a seed that was secret.
        groups: Groups of A in their order, for networks of unknown names.
        alpha: Level of the decision, in (0, 1), shared among `n_claims`.
        n_claims: Number of claims.
        seed: Seed that breaks ties.
        watch: Shows progress.

    Raises:
        RefusedError: No group of units is known or shared, or they are too few for this level.
        KeyFileError: `a` is not the release of `order`.
        EncoderError: A weight cannot be read.
    """
    Range(above=0, below=1).check(alpha, "alpha")
    if order is not None and groups is not None:
        raise UsageError("--groups and --key do not go together: the key knows its groups")
    in_order = None if order is None else order.check(a)
    tests = [in_place(a, b, groups, seed=seed, watch=watch)]
    _check_reach(tests[0], alpha / n_claims)
    tests += [one for one in (streams(tests[0]), aligned(a, b, groups, seed=seed)) if one is not None]
    if initial is not None:
        tests += [agreement(initial, b, groups, align=align, seed=seed, watch=watch) for align in (False, True)]
    secret = None
    if in_order is not None:
        names = {group.name for group in in_order}
        secret = Comparison("in place", tuple(row for row in tests[0].rows if row.group in names))
        _check_reach(secret, alpha / n_claims)
    common = None if ancestor is None else _with_ancestor(a, b, ancestor, tests[0], groups, alpha, seed)
    return LineageVerdict(a.name, b.name, tuple(tests), secret, common, alpha, n_claims)


def compare_initial(
    initial: Weights, again: Weights, b: Weights, *, alpha: float = DEFAULT_ALPHA, n_claims: int = 1, seed: int = 0
) -> LineageVerdict:
    """Test whether a suspect was trained from initial weights that were drawn from a secret seed.

    Null hypothesis: the suspect is independent of the secret. The order of its units has no part in the test. Weights
    that begin at fixed values are the same in every network of this kind, and are left out.

    Args:
        initial: The initial weights.
        again: Initial weights of the same network from an independent seed.
        b: The suspect.
        alpha: Level of the decision, in (0, 1), shared among `n_claims`.
        n_claims: Number of claims.
        seed: Seed that breaks ties.

    Raises:
        RefusedError: No group with incoming and outgoing weights is known or shared, or they are too few for the level.
        EncoderError: A weight cannot be read.
    """
    Range(above=0, below=1).check(alpha, "alpha")
    groups = drawn_groups(initial, again)
    if not groups:
        raise RefusedError(
            f"the initial weights of {initial.name} do not depend on a seed, or no group of them is known"
        )
    tests = tuple(agreement(initial, b, groups, align=align, seed=seed) for align in (False, True))
    _check_reach(tests[0], alpha / n_claims)
    return LineageVerdict(initial.name, b.name, tests, None, None, alpha, n_claims, seeded=True)


def _check_reach(comparison: Comparison, level: float) -> None:
    """Raise RefusedError where even a perfect copy would not reach the level."""
    best = fisher([log2_fixed_points(row.size, row.size) for row in comparison.rows])
    if best > math.log2(level):
        units = comparison.size
        raise RefusedError(
            f"the {units} units that can be compared show {-best:.0f} bits at most, and this level asks for "
            f"{-math.log2(level):.0f}: choose a larger --alpha"
        )


def _with_ancestor(
    a: Weights,
    b: Weights,
    ancestor: Weights,
    pair: Comparison,
    groups: Sequence[Group] | None,
    alpha: float,
    seed: int,
) -> Ancestor:
    """Return how both compare with an ancestor. A's own groups are chosen by A and C alone, before B is looked at."""
    of_a, of_b = in_place(a, ancestor, groups, seed=seed), in_place(b, ancestor, groups, seed=seed)
    n = len(of_a.rows)
    inherited = {row.group for row in of_a.rows if row.log2_pvalue <= math.log2(alpha / n)}
    beyond = [row.log2_pvalue for row in pair.rows if row.group not in inherited]
    return Ancestor(ancestor.name, of_a, of_b, fisher(beyond), alpha)
