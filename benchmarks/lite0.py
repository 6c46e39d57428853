"""A real, public encoder: EfficientNet-Lite0 marked and stolen once, beside what innocents score.

The encoder is supervised on ImageNet and 1,280 wide; its surrogates are small ResNets. Too few controls for a p-value
at 1 %: scores stand beside each other, and no verdict is given.

Run: python benchmarks/lite0.py
"""

from __future__ import annotations

import time
from dataclasses import replace

from common import FEW, data, keep_freed_memory, save, table

from sslguard.attacks.stealing import Distil
from sslguard.crypto.secrets import Secret
from sslguard.encoders.load import load_encoder
from sslguard.probes import probe_encoder
from sslguard.schemes.sslguard import SSLGuard
from sslguard.training.distillation import Distillation
from sslguard.training.pretraining import new_encoder
from sslguard.verification.verdict import score_suspect

QUERIES = 6000
SCHEME = replace(SSLGuard.cured(), batch_size=32, trigger_batch=8)
THIEF = Distillation(loss="centred", steps=400)


def main() -> None:
    started = time.time()
    keep_freed_memory()
    clean = load_encoder("package:efficientnet-lite0")
    marked = SCHEME.watermark(clean, data("mark").slice(0, 4000), secret=Secret.from_seed(0), progress=True)
    queries = data("thief").slice(0, QUERIES)
    suspects = {
        "F*": marked.encoder,
        "surrogate of F*": Distil(THIEF)(marked.encoder, queries, seed=1),
        "F": clean,
        "surrogate of F": Distil(THIEF)(clean, queries, seed=2),
        "surrogate of F, again": Distil(THIEF)(clean, queries, seed=3),
        "untrained": new_encoder("resnet-small", queries, seed=4, linear=clean.dim),
    }
    figures = {}
    for name, suspect in suspects.items():
        score = score_suspect(marked.key, suspect, data("verify"))
        train, test = data("probe_train").slice(0, 2000), data("probe_test").slice(0, 2000)
        knn = probe_encoder(suspect, train, test, method="knn").accuracy
        few = probe_encoder(suspect, train, test, per_class=FEW, seeds=(0, 1, 2)).accuracy
        figures[name] = {"WR": score.watermark_rate, "cosine": score.value, "knn": knn, "few": few}
    print(
        table(
            ["suspect", "WR", "mean cosine", "kNN", f"{FEW} labels a class"],
            [[k, *v.values()] for k, v in figures.items()],
        )
    )
    save("lite0", {"suspects": figures, "marking seconds": marked.history.seconds}, started=started)


if __name__ == "__main__":
    main()
