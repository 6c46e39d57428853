"""Settings of the demonstration, and who is tested in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

from sslguard.controls.members import TESTBED
from sslguard.data.roles import ROLES, Roles
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.settings import Checked, Count, Seed, Share
from sslguard.training.recipes import Distillation, Supervised


@dataclass(frozen=True)
class Innocent:
    """An encoder that has nothing of the marked one.

    Attributes:
        name: Name, unique in the report.
        story: How it was made, one sentence.
        spec: Specification of an encoder, the name of a member of the test bed after "testbed:", or "pixels", which
            embeds a picture as a smaller one.
    """

    name: str
    story: str
    spec: str


PIXELS, MEMBER = "pixels", "testbed:"
INNOCENTS = (
    Innocent("clean encoder", "what the owner had before the marking", "shipped:simclr"),
    Innocent("moco", "another encoder, trained by itself on the same pictures", "shipped:moco"),
    Innocent("byol", "another encoder, trained by itself on the same pictures", "shipped:byol"),
    Innocent("random network", "the same architecture, never trained", "random:resnet-small:1@48"),
    Innocent("raw pixels", "no network: each picture at 12 × 12 pixels", PIXELS),
)
FROM_TESTBED = (
    Innocent(
        "copy of the clean encoder",
        "trained on the clean encoder's answers, as a thief would, before the marking",
        f"{MEMBER}surrogate-simclr-centred-augmented",
    ),
    Innocent(
        "fine-tuned clean encoder",
        "the clean encoder's weights, trained further with labels",
        f"{MEMBER}fine-tuned-simclr-all-50",
    ),
    Innocent(
        "independent encoder",
        "the same architecture and method, from another start",
        f"{MEMBER}independent-simclr-resnet-small-first",
    ),
)
"""Innocents that stand closer to the marked encoder. They come with the package sslguard-testbed."""


def _thief(steps: int) -> Distillation:
    return Distillation(architecture="resnet-narrow", loss="centred", steps=steps)


@dataclass(frozen=True)
class DemoSettings(Checked):
    """Settings of the demonstration.

    Attributes:
        encoder: The clean encoder.
        scheme: Scheme that marks it: a head, since it is served as an API.
        thief: How its answers are stolen.
        copier: How its copied weights are trained further.
        paper: The scheme of the paper, without its false claims; None leaves it out.
        paper_thief: How the encoder that it marked is stolen.
        innocents: Innocent suspects.
        alpha: Level of all tests together.
        roles: Data of owner, thief and verification. Of `mark`, `thief` and `verify` no two share an item.
        probe_items: Items that a linear probe is trained on, and measured on.
        seed: Makes the run repeatable and its keys public; None takes the secrets from the operating system.
    """

    encoder: str = "shipped:simclr"
    scheme: Exact = field(default_factory=lambda: Exact(Protocol(n_queries=1000), mode="head"))
    thief: Distillation = field(
        default_factory=lambda: Distillation(architecture="resnet-narrow", loss="centred", steps=250)
    )
    copier: Supervised = field(default_factory=lambda: Supervised(steps=60))
    paper: CuredSSLGuard | None = field(default_factory=lambda: CuredSSLGuard(steps=400))
    paper_thief: Distillation = field(
        default_factory=lambda: Distillation(architecture="resnet-narrow", loss="centred", steps=150)
    )
    innocents: tuple[Innocent, ...] = INNOCENTS
    alpha: Share = 2.0**-20
    roles: Roles = ROLES
    probe_items: Count = 1000
    seed: Seed | None = None

    @classmethod
    def here(cls) -> DemoSettings:
        """Return the demonstration for this machine: without the test bed, it has fewer parts."""
        if find_spec(TESTBED) is not None:
            return cls(innocents=INNOCENTS + FROM_TESTBED)
        return cls(paper=None)

    @property
    def n_tests(self) -> int:
        """Number of tests that share the level: by answers and by weights, of each suspect of each scheme."""
        n = len(self.innocents)
        return 2 * (n + 3) + (0 if self.paper is None else 2 * (n + 2))

    def plain(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {**asdict(self), "n_tests": self.n_tests}
