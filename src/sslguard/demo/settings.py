"""Settings of the demonstration, and the names of its parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sslguard.data.roles import ROLES, Roles
from sslguard.encoders.base import Encoder
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.settings import Checked, Count, Seed, Share
from sslguard.training.recipes import Distillation, augmented
from sslguard.verification.verdict import DEFAULT_ALPHA

MARKED, STOLEN, CLEAN = "F* (watermarked)", "surrogate of F*", "F (clean)"
EXACT_MARKED, EXACT_STOLEN = "F* (exact scheme)", "surrogate of that F*"
CURED, PUBLISHED = "key with the cure", "key as published"


@dataclass(frozen=True)
class DemoSettings(Checked):
    """Settings of the demonstration. The defaults use the shipped encoder and controls.

    Attributes:
        encoder: The clean encoder F.
        population: Folder of the controls; None takes the shipped ones.
        scheme: Scheme that marks F*.
        published: The same scheme with the published losses. Its encoder is scored, but not kept.
        exact: Scheme whose null is exact, on the same encoder.
        thief: How F* is stolen.
        exact_thief: How the exact scheme's F* is stolen.
        innocents: Further innocent suspects besides F.
        held_out: Members of the population that are tested instead of serving as controls. They are named before
            anything is scored, because members that are chosen by their scores would be no test.
        alpha: Level of the test among controls, under the key as published.
        exact_alpha: Level of the exact tests, not limited by the number of controls. At 1e-6, one demonstration in a
            million claims an innocent.
        roles: Data of owner, thief and verification.
        few_labels: Labels per class of a second, harder task.
        seed: Makes the run repeatable and its key public; None takes the secret from the operating system.
    """

    encoder: Encoder | str = "shipped:simclr"
    population: Path | None = None
    scheme: CuredSSLGuard = field(default_factory=CuredSSLGuard)
    published: SSLGuard = field(default_factory=SSLGuard)
    exact: Exact = field(default_factory=lambda: Exact(Protocol(n_queries=1000), mode="head"))
    thief: Distillation = field(default_factory=lambda: augmented(Distillation(loss="centred")))
    exact_thief: Distillation = field(default_factory=lambda: Distillation(loss="mse"))
    innocents: tuple[Encoder | str, ...] = ("shipped:moco", "shipped:byol")
    held_out: tuple[str, ...] = ("surrogate-simclr-centred-augmented", "independent-simclr-resnet-small-first")
    alpha: Share = DEFAULT_ALPHA
    exact_alpha: Share = 1e-6
    roles: Roles = ROLES
    few_labels: Count = 10
    seed: Seed | None = None


DEFAULTS = DemoSettings()
