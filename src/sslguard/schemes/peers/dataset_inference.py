"""Dataset inference: an encoder, and whoever copied it, finds its own training items likelier than unseen ones.

Nothing is injected. The suspect is asked about items that the owner pre-trained on, in two parts P₁ and P₂, and about
unseen items N of the same law. With z = g/|g| and p a Gaussian mixture fitted to z(P₁), the test is whether
mean log p(z(P₂)) lies above mean log p(z(N)).

It speaks of the training data, not of the encoder: whoever trained on the same items by themselves is claimed as well,
and where P and N differ in law by anything but having been trained on, every innocent is.

Source: Dziedzic, Duan, Kaleem, Dhawan, Guan, Cattan, Boenisch and Papernot, "Dataset Inference for Self-Supervised
Models", NeurIPS 2022 (arXiv 2209.09024). Deviations:

- Welch's test, one-sided. The paper's is Student's; its released code halves the two-sided p-value whatever the sign
  of the difference, so that unseen items that are likelier count for the claim too.
- A fixed number of items in place of the whole training set, unaugmented, each asked once.
- The mixture starts at rows drawn by the secret, not from k-means. Covariances are diagonal, as the paper's for
  ImageNet; full ones, as for CIFAR-10, are not determined by so few items.
- `test="ranks"`, ours: a sum of ranks, which needs no law of the likelihoods beyond exchangeability.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data, overlap
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.errors import UsageError
from sslguard.schemes.base import Key, Score, Watermarked
from sslguard.schemes.peers.base import Array, Peer, log2_pvalue
from sslguard.schemes.peers.mixture import Mixture
from sslguard.schemes.queries import asked, drawn, gathered
from sslguard.settings import Count, Range
from sslguard.stats.moments import unit_rows


@dataclass(frozen=True)
class DatasetInference(Peer):
    """The defence's settings.

    Attributes:
        members: Spec of the data that the encoder was pre-trained on; None takes what its record names, or, where it
            names none, the data that `protect` is given.
        n_fit: Members that the mixture is fitted to.
        n_tested: Other members, and as many unseen items, whose likelihoods are compared.
        components: Of the mixture; the paper's are 10 to 50.
        test: "welch" compares means, "ranks" the order (Mann-Whitney).
    """

    name: ClassVar[str] = "dataset-inference"
    injects: ClassVar[bool] = False

    members: str | None = None
    n_fit: Count = 2000
    n_tested: Annotated[int, Range(least=2)] = 2000
    components: Count = 20
    test: Literal["welch", "ranks"] = "welch"

    def __post_init__(self) -> None:
        super().__post_init__()
        Range(most=self.n_fit).check(self.components, "components, which are fitted to n_fit items,")

    def watermark(self, clean: Encoder, data: Data, *, secret: Secret, **loop: Any) -> Watermarked:  # noqa: ARG002
        """Return F unchanged, and a key that holds members of its pre-training data. See `Scheme.watermark`."""
        members = self._members(clean, data)
        order = drawn(secret.stream("members", members.spec.encode()), members, self.n_fit + self.n_tested)
        return Watermarked(clean, DatasetInferenceKey(secret, self, members, order))

    def _members(self, clean: Encoder, data: Data) -> Data:
        made_by, recorded = (str(clean.record.get(name) or "") for name in ("made_by", "data"))
        spec = self.members or (recorded if made_by.startswith("pretrain") else "")
        return open_data(spec) if spec else data


@dataclass(frozen=True, eq=False, repr=False)
class DatasetInferenceKey(Key):
    """Two lists of items: members, and unseen ones, which the secret draws from the data of a verification.

    Attributes:
        members: The data that the encoder was pre-trained on.
        order: Which of them are asked, (n_fit + n_tested,); the mixture is fitted to the first.
    """

    scheme: ClassVar[str] = DatasetInference.name
    statistic_name: ClassVar[str] = "members' likelihood above that of unseen items"

    secret: Secret
    settings: DatasetInference
    members: Data
    order: NDArray[np.int64]

    @property
    def n_queries(self) -> int:
        """Number of queries that a verification asks."""
        return self.settings.n_fit + 2 * self.settings.n_tested

    def queries(self, data: Data) -> Iterator[Batch]:
        """Yield members, then unseen items of `data`. Raise UsageError where it overlaps the pre-training data."""
        if shared := overlap(self.members, data):
            raise UsageError(f"{data.spec} must be unseen, but shares {shared} items with {self.members.spec}")
        unseen = drawn(self.secret.stream("unseen", data.spec.encode()), data, self.settings.n_tested)
        return chain(asked(self.members, self.order), asked(data, unseen))

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:  # noqa: ARG002
        """Return Welch's t, or the share of pairs (member, unseen) in which the member is likelier."""
        rows = unit_rows(gathered(answers, self.n_queries))
        fit, tested = rows[: self.settings.n_fit], rows[self.settings.n_fit :]
        mixture = Mixture.fit(fit, self.settings.components, self.secret.stream("mixture"))
        member, unseen = np.split(mixture.log_density(tested), 2)
        value, published = (welch if self.settings.test == "welch" else ranks)(member, unseen)
        return Score(value, self.n_queries, published_log2_pvalue=published)


def welch(one: Array, other: Array) -> tuple[float, float]:
    """Compute Welch's t for mean(one) > mean(other), and log₂ of its one-sided p-value; 0, 0 where nothing varies."""
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return 0.0, 0.0
    found = stats.ttest_ind(one, other, equal_var=False, alternative="greater")
    return float(found.statistic), float(stats.t.logsf(found.statistic, found.df)) / math.log(2)


def ranks(one: Array, other: Array) -> tuple[float, float]:
    """Share of pairs with one > other, ties counted half, in [0, 1]; log₂ of its one-sided normal p-value."""
    found = stats.mannwhitneyu(one, other, alternative="greater", method="asymptotic")
    return float(found.statistic) / (len(one) * len(other)), log2_pvalue(float(found.pvalue))
