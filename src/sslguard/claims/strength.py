"""How strong the evidence of an audit is, in the terms of forensic science.

A p-value is not a likelihood ratio. It bounds likelihood ratios from both sides:

- **At least.** 1/(2√p) is an e-value [1]_: whoever claims it as his likelihood ratio claims, of innocent suspects, at
  most 1 on average. It holds whatever the alternative is.
- **At most.** 1/(−e·p·ln p) [2]_: where larger evidence is never less probable under the alternative than smaller, no
  alternative gives a larger likelihood ratio.

The verbal scale is that of the European Network of Forensic Science Institutes [3]_, and is applied to the lower bound.

References:
    .. [1] V. Vovk, R. Wang, "E-values: calibration, combination and applications", Annals of Statistics 49, 2021.
    .. [2] T. Sellke, M. J. Bayarri, J. O. Berger, "Calibration of p values for testing precise null hypotheses", The
       American Statistician 55, 2001.
    .. [3] ENFSI Guideline for Evaluative Reporting in Forensic Science, version 3.0, 2015, table of verbal equivalents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SCALE = (
    (math.log10(2), "no"),
    (1.0, "weak"),
    (2.0, "moderate"),
    (3.0, "moderately strong"),
    (4.0, "strong"),
    (6.0, "very strong"),
    (math.inf, "extremely strong"),
)
"""log10 of the likelihood ratio below which the findings give this support."""


@dataclass(frozen=True)
class Strength:
    """Evidence after all charges.

    Attributes:
        log2_pvalue: Base-2 logarithm of the p-value, times the number of claims that may have been tried; at most 0.
        least: log10 of the likelihood ratio that may be claimed whatever the alternative is; at least 0.
        most: log10 of the largest likelihood ratio that any alternative gives.
        support: How strongly the findings support the first proposition, in the words of the scale.
    """

    log2_pvalue: float
    least: float
    most: float
    support: str

    @classmethod
    def of(cls, log2_pvalue: float, n_tries: int) -> Strength:
        """Return the strength of a p-value that is shared among `n_tries` claims."""
        log2 = min(0.0, log2_pvalue + math.log2(n_tries))
        log10 = -log2 * math.log10(2)
        least = max(0.0, log10 / 2 - math.log10(2))
        # Above p = 1/e the bound is 1.
        most = max(0.0, log10 - math.log10(math.e * -log2 * math.log(2))) if -log2 * math.log(2) > 1 else 0.0
        return cls(log2, least, most, next(words for below, words in SCALE if least < below))

    def __str__(self) -> str:
        """Return the figures in words."""
        ratios = f"a likelihood ratio of at least 10^{self.least:.1f} and at most 10^{self.most:.1f}"
        return f"{self.support} for the claim: {ratios}, after all charges"

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "log2_pvalue_charged": self.log2_pvalue,
            "log10_likelihood_ratio_at_least": self.least,
            "log10_likelihood_ratio_at_most": self.most,
            "support": self.support,
        }
