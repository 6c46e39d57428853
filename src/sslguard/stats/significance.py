"""P-values under a stated null hypothesis, from ranks among controls, and comparison with a level.

P-values are kept as base-2 logarithms: they do not underflow, and −log2 p reads as bits of evidence. Every result
carries its floor, the smallest p-value that its null can give. A level below the floor is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.errors import RefusedError, UsageError
from sslguard.settings import Range
from sslguard.stats.arguments import count, finite, finite_vector

# Kinds of null by their names in JSON, and whether each consists of controls.
_OF_CONTROLS = {"exact": False, "controls": True}
# Tolerance for rounding in a quotient of two floats. It is far below any difference between two ranks.
_MANY = 1 << 900
"""Claims beyond which no level can be reached; floats have no place for many more."""
_RELATIVE_SLACK = 4 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Significance:
    """A statistic, its p-value, and the null distribution that the p-value refers to.

    Attributes:
        statistic: The suspect's value; large values speak for the claim (the test is one-sided).
        log2_pvalue: Base-2 logarithm of the p-value, in bits, log2(floor) ≤ log2_pvalue ≤ 0.
        floor: The smallest p-value this null can give, 0 < floor ≤ 1: 1/(n+1) for n controls, 2**-entropy of
            the secret for a direction test.
        null: Kind of null. "exact": the distribution follows by proof from the secret's own randomness. "controls": the
            distribution is that of known innocents, and it is no better than their choice.
        n_queries: Queries that the suspect was asked, failed ones included; 0 where its weights were compared.
        n_controls: Controls ranked against; 0 for an exact null.
        statistic_name: What the statistic is, for people.
        details: Further finite numbers for a report; no decision reads them.

    Raises:
        UsageError: A field contradicts another or its own range, such as a p-value below its floor.
    """

    statistic: float
    log2_pvalue: float
    floor: float
    null: Literal["exact", "controls"]
    n_queries: int
    n_controls: int = 0
    statistic_name: str = "statistic"
    details: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every field."""
        details = {str(name): finite(f"details[{name!r}]", value) for name, value in self.details.items()}
        object.__setattr__(self, "details", details)
        object.__setattr__(self, "statistic", finite("statistic", self.statistic))
        object.__setattr__(self, "log2_pvalue", self.log2_pvalue + 0.0)  # -0.0 is no sign of anything
        least = 0 if self.null == "exact" else 1
        object.__setattr__(self, "n_queries", count("n_queries", self.n_queries, minimum=least))
        object.__setattr__(self, "n_controls", count("n_controls", self.n_controls, minimum=0))
        if self.null not in _OF_CONTROLS:
            raise UsageError(f"null must be 'exact' or 'controls', not {self.null!r}")
        if _OF_CONTROLS[self.null] != (self.n_controls > 0):
            raise UsageError(f"a null of kind {self.null!r} does not go with n_controls = {self.n_controls}")
        if not 0 < self.floor <= 1:
            raise UsageError(f"floor must lie in (0, 1], not {self.floor}")
        lowest = math.log2(self.floor)
        if not lowest - 1e-9 <= self.log2_pvalue <= 0:
            raise UsageError(f"log2_pvalue must lie between log2(floor) = {lowest:.6g} and 0, not {self.log2_pvalue}")

    @property
    def pvalue(self) -> float:
        """The p-value, for reading: 0.0 when it is too small for a float. `rejects` compares logarithms."""
        return float(2.0**self.log2_pvalue)

    def to_json(self) -> dict[str, Any]:
        """Return every field under its own name, and `pvalue`. All values are JSON values."""
        return {**asdict(self), "pvalue": self.pvalue}


def control_rank_test(
    statistic: float,
    controls: Sequence[float] | NDArray[np.floating],
    *,
    n_queries: int,
    statistic_name: str = "statistic",
    details: Mapping[str, float] | None = None,
) -> Significance:
    """Rank a suspect among controls, to test whether its statistic is larger than an innocent's would be.

    The p-value is (1 + #{control ≥ statistic}) / (1 + n): the suspect is counted among the values it is
    compared with, and a tie counts against the claim.

    Args:
        statistic: The suspect's value, finite.
        controls: Shape (n,). The same statistic, from the same key and queries, of n known innocents, finite.
        n_queries: Queries that each of them was asked, at least 1.
        statistic_name: What the statistic is, for people.
        details: Further finite numbers to keep with the result.

    Returns:
        Result with null "controls", floor 1/(n+1). Its details add `controls_at_least` (a count), `controls_median`
        and `controls_max`.

    Raises:
        RefusedError: There are no controls: without a null there is no p-value.
        UsageError: The statistic or a control is not a finite number, or the controls are not one-dimensional.

    Notes:
        Null hypothesis: The suspect was not derived from the marked encoder, and its statistic is exchangeable with the
        controls': every order of the n + 1 values is equally likely. Then P(p ≤ a) ≤ a for every a, with equality at
        multiples of 1/(n+1) where there are no ties [1]_, [2]_.

        Assumptions: Exchangeability is what the choice of controls has to earn; the test cannot check it. Controls that
        the key was trained against, or that differ from a suspect in kind (architecture, data, training), are not
        exchangeable with it. Key, queries and statistic were fixed before any of the values was seen.

        Randomness: None is drawn here. The probability is over the draw of suspect and controls from one population of
        innocents; one key's p-values on many suspects share controls and are dependent.

    References:
        .. [1] M. Dwass, "Modified randomization tests for nonparametric hypotheses", Annals of Mathematical
               Statistics 28(1), 181-187 (1957).
        .. [2] B. Phipson and G. K. Smyth, "Permutation p-values should never be zero", Statistical Applications
               in Genetics and Molecular Biology 9(1), article 39 (2010).

    Examples:
        >>> from sslguard.stats.significance import control_rank_test
        >>> result = control_rank_test(0.9, [0.1, 0.4, 0.2], n_queries=256, statistic_name="mean cosine")
        >>> result.pvalue, result.floor
        (0.25, 0.25)
        >>> control_rank_test(0.4, [0.1, 0.4, 0.2], n_queries=256).pvalue
        0.5
    """
    own = finite("statistic", statistic)
    innocent = finite_vector("controls", controls)
    n = len(innocent)
    if n == 0:
        raise RefusedError(
            "no controls were given. Without a null there is no p-value: name known innocent encoders as controls"
        )
    at_least = int((innocent >= own).sum())
    found = {
        "controls_at_least": at_least,
        "controls_median": float(np.median(innocent)),
        "controls_max": float(innocent.max()),
    }
    return Significance(
        statistic=own,
        log2_pvalue=math.log2((1 + at_least) / (1 + n)),
        floor=1 / (1 + n),
        null="controls",
        n_queries=n_queries,
        n_controls=n,
        statistic_name=statistic_name,
        details={**found, **(details or {})},
    )


def rejects(significance: Significance, alpha: float, *, n_claims: int = 1) -> bool:
    """Return whether innocence is rejected at level `alpha`, each of `n_claims` claims at alpha / n_claims.

    Args:
        significance: Result of a test.
        alpha: Level of the test, 0 < alpha < 1.
        n_claims: How many claims share the level (Bonferroni), at least 1.

    Returns:
        Whether p ≤ alpha / n_claims, decided on logarithms: `pvalue` may be off by its last bit.

    Raises:
        RefusedError: The floor lies above alpha / n_claims: no statistic, however large, could be significant.
        UsageError: `alpha` or `n_claims` is out of range.

    Examples:
        >>> from sslguard.stats.significance import control_rank_test, rejects
        >>> rejects(control_rank_test(1.0, [0.0] * 19, n_queries=1), 0.05)
        True
    """
    level = _level(alpha, n_claims)
    check_floor(significance.floor, alpha, n_claims=n_claims, n_controls=significance.n_controls)
    return significance.log2_pvalue <= math.log2(level * (1 + _RELATIVE_SLACK))


def check_floor(floor: float, alpha: float, *, n_claims: int = 1, n_controls: int = 0) -> None:
    """Refuse a level that no outcome under this null could reach. `rejects` does the same, but after asking.

    Args:
        floor: The smallest p-value that the null can give; 1/(n + 1) for n controls.
        alpha: As in `rejects`.
        n_claims: As in `rejects`.
        n_controls: How many controls the null is made of, 0 for an exact one; the message says how many are needed.

    Raises:
        RefusedError: The floor lies above alpha / n_claims.
        UsageError: `alpha` or `n_claims` is out of range.

    Examples:
        >>> from sslguard.stats.significance import check_floor
        >>> check_floor(1 / 100, 0.01)
    """
    level = _level(alpha, n_claims)
    if floor <= level * (1 + _RELATIVE_SLACK):
        return
    need = math.ceil(min(n_claims, _MANY) / alpha * (1 - _RELATIVE_SLACK)) - 1
    remedy = ""
    if n_controls:
        remedy = f" with {n_controls} controls: give at least {need} controls, or a larger alpha"
    raise RefusedError(
        f"alpha = {alpha:g} over {n_claims} claim(s) asks for p <= {level:.3g}, below the smallest "
        f"p-value that this null can give, {floor:.3g}{remedy}"
    )


def _level(alpha: float, n_claims: int) -> float:
    Range(above=0, below=1).check(alpha, "alpha")
    return alpha / min(count("n_claims", n_claims, minimum=1), _MANY)
