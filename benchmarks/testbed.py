"""Does self-supervision matter on the test bed? Linear probes of the shipped encoders beside their baselines.

Run: python benchmarks/testbed.py
"""

from __future__ import annotations

import time

from common import FEW, FEW_SEEDS, VICTIMS, accuracy, data, keep_freed_memory, save, table

from sslguard.encoders.load import load_encoder
from sslguard.probes import Baseline, baseline


def main() -> None:
    started = time.time()
    keep_freed_memory()
    figures: dict[str, dict[str, float]] = {}
    rows: list[list[object]] = []
    baselines: dict[tuple[str, str], Baseline] = {}  # the encoders share one architecture, so they share these
    architectures = {str(load_encoder(f"shipped:{victim}").architecture) for victim in VICTIMS}
    assert len(architectures) == 1, "encoders of several architectures need a baseline each"
    for victim in VICTIMS:
        encoder = load_encoder(f"shipped:{victim}")
        row: dict[str, float] = {"parameters": encoder.n_parameters, "seconds": encoder.record["seconds"]}
        for domain, train, test in (
            ("garments", "probe_train", "probe_test"),
            ("digits", "digits_probe_train", "digits_probe_test"),
        ):
            for labels, per_class in (("all", None), ("few", FEW)):
                seeds = (0,) if per_class is None else FEW_SEEDS
                if (domain, labels) not in baselines:
                    base = baseline(encoder, data(train), data(test), per_class=per_class, seeds=seeds)
                    baselines[domain, labels] = base
                base = baselines[domain, labels]
                assert base.pixels is not None
                row[f"{domain} {labels}"] = accuracy(encoder, domain=domain, per_class=per_class)
                row[f"{domain} {labels} pixels"] = base.pixels.accuracy
                row[f"{domain} {labels} random"] = base.random.accuracy
        figures[victim] = row
        for domain in ("garments", "digits"):
            for labels in ("all", "few"):
                key = f"{domain} {labels}"
                gain = row[key] - max(row[f"{key} pixels"], row[f"{key} random"])
                rows.append([victim, key, row[key], row[f"{key} pixels"], row[f"{key} random"], gain])
    print(table(["encoder", "task", "probe", "raw pixels", "untrained", "gain"], rows))
    save("testbed", {"encoders": figures}, started=started)


if __name__ == "__main__":
    main()
