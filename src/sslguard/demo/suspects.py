"""Suspects of the demonstration: who they are, and what is found when they are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard import api
from sslguard.controls.members import read_population, shipped_population
from sslguard.data.base import Batch
from sslguard.demo.settings import MEMBER, PIXELS, DemoSettings, Innocent
from sslguard.encoders.base import Embedder
from sslguard.schemes.keyfile import StoredKey

MARKED, STOLEN, COPIED = "marked encoder", "stolen by its answers", "copied weights"


@dataclass(frozen=True)
class Tested:
    """A suspect.

    Attributes:
        name: Name, unique in the report.
        story: How it was made, one sentence.
        derived: Whether it comes from the marked encoder.
        embedder: What is asked, or its specification.
    """

    name: str
    story: str
    derived: bool
    embedder: Embedder | str


class Pixels:
    """No encoder: a picture is embedded as a smaller one."""

    name = "raw pixels"

    def embed(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return uint8 pictures (n, C, H, W) at 12 × 12 pixels in [0, 1], float32 (n, 144·C)."""
        assert isinstance(batch, torch.Tensor)
        small = torch.nn.functional.adaptive_avg_pool2d(batch.float() / 255, 12)
        return small.flatten(1).numpy()


def innocents(chosen: Sequence[Innocent]) -> list[Tested]:
    """Return innocents as suspects."""
    return [Tested(one.name, one.story, False, _embedder(one.spec)) for one in chosen]


def _embedder(spec: str) -> Embedder | str:
    if spec == PIXELS:
        return Pixels()
    if not spec.startswith(MEMBER):
        return spec
    name = spec.removeprefix(MEMBER)
    return next(str(m.folder) for m in read_population(shipped_population()) if m.name == name)


def asked(key: StoredKey, one: Tested, settings: DemoSettings) -> dict[str, Any]:
    """Ask a suspect, and compare its weights where there are any; return what was found, JSON values.

    Both tests share the level with all others of the demonstration.
    """
    verdict = api.verify(key, one.embedder, settings.roles.verify, alpha=settings.alpha, n_claims=settings.n_tests)
    lineage = verdict.lineage
    units = None if lineage is None else lineage.secret
    return {
        "name": one.name,
        "story": one.story,
        "derived": one.derived,
        "answers": abs(round(verdict.significance.log2_pvalue, 2)),
        "weights": None if lineage is None else abs(round(lineage.log2_pvalue, 2)),
        "units": None if units is None else [units.matched, units.size],
        "decision": "derived" if verdict.exit_code == 0 or (lineage and lineage.exit_code == 0) else "not shown",
    }
