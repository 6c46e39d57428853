"""Compare what `sslguard power` foretells of stolen copies with what the key's test then shows of real ones.

Each encoder is marked by a head and stolen twice with 12,000 queries, by the two losses that `power` knows. The copies
answer 7,500 items that nobody trained on, in every kind that `power` knows. Foretold and came are bits before the cap.
The constants of `power` were fitted to SimCLR's two copies; other encoders are a check.

Run: OMP_NUM_THREADS=1 python benchmarks/exact_power.py [--encoders shipped:simclr ...]
(writes docs/results/power.md too; some five minutes an encoder and loss)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import data, options, prepare, save

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Joined
from sslguard.data.specs import open_data
from sslguard.encoders.base import embed_all
from sslguard.encoders.load import load_encoder
from sslguard.files import write_atomic
from sslguard.probes.linear import linear_classifier
from sslguard.report.markdown import table
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.power import KINDS, THEFTS, answered, foretell
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.moments import unit_rows
from sslguard.training.distillation import distil
from sslguard.training.recipes import Distillation

ENCODERS = ("shipped:simclr", "shipped:moco", "shipped:byol")
ASKED = "cluttered-fashion-mnist:train[50000:60000]"
SEED, CLASSIFIED = 1, 2000
QUERIES = 7500  # the most of the grid in half of what is marked and asked
SCHEME = Exact(mode="head")
PAGE = Path(__file__).parent.parent / "docs" / "results" / "power.md"


def came(spec: str) -> dict[str, dict[str, float]]:
    """Return loss → kind of answers → bits of a real copy."""
    clean, asked, thief = load_encoder(spec), open_data(ASKED).slice(0, QUERIES), data("thief")
    made = SCHEME.watermark(clean, data("mark"), secret=Secret.from_seed(SEED))
    h, statistics = unit_rows(embed_all(clean, asked).astype(np.float64)), all_statistics(clean, asked)
    placed, functions = made.key.bank.placed(h), made.key.bank.functions(h, statistics)
    labelled, found = thief.slice(0, CLASSIFIED), {}
    for loss in THEFTS:
        copy, _ = distil(Distillation("resnet-small", loss=loss, steps=400), made.encoder, thief, seed=SEED)
        classifier = linear_classifier(embed_all(copy, labelled), labelled.labels)
        answers, random = embed_all(copy, asked).astype(np.float64), np.random.default_rng(SEED)
        found[loss] = {}
        for kind in KINDS:
            spectra, _ = made.key.spectra_of(answered(kind, answers, classifier, random), placed, functions)
            found[loss][kind] = -made.key.sides(spectra).both
    return found


def foretold(spec: str) -> dict[str, dict[str, float]]:
    """Return the same, as `power` foretells it from the marking items and those that are asked, of 7,500 queries."""
    bits = foretell(load_encoder(spec), Joined([data("mark"), open_data(ASKED)]), SCHEME).bits
    return {loss: {kind: by[QUERIES] for kind, by in kinds.items()} for loss, kinds in bits.items()}


def main() -> None:
    given = options(__doc__, encoders=ENCODERS)
    prepare()
    found = {spec: {"foretold": foretold(spec), "came": came(spec)} for spec in given.encoders}
    rows = [
        [spec, loss, *(f"{both['foretold'][loss][k]:.0f} / {both['came'][loss][k]:.0f}" for k in KINDS)]
        for spec, both in found.items()
        for loss in THEFTS
    ]
    printed = table(["encoder", "loss", *KINDS], rows)
    print(printed)
    words = (
        "Written by `benchmarks/exact_power.py`. Bits before the cap: foretold by `sslguard power` / of a real copy."
    )
    write_atomic(PAGE, f"# What power foretells, and what came\n\n{words}\n\n{printed}\n".encode())
    save("exact_power", {"encoders": found})


if __name__ == "__main__":
    main()
