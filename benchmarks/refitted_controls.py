"""What a trained trigger and decoder show without a date: an honest mark and fitted keys, ranked in two ways.

A key of the published losses is made honestly, and others are fitted to innocents. Each ranks its suspect among
controls that it was not made for, and among controls that got trigger and decoder of their own (`claims.refitting`), by
a tenth of the steps and by all of them. Controls are evenly chosen from the shipped population.

Run: python benchmarks/refitted_controls.py [--controls 12] [--steps 200]
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from common import options, prepare, save

from sslguard.claims.refitting import fitted_key, refitted_controls
from sslguard.controls.members import list_controls
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.load import load_encoder
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.stats.significance import control_rank_test
from sslguard.verification.verdict import score_controls, score_suspect

CLEAN, INNOCENTS = "shipped:simclr", ("shipped:moco", "shipped:byol")
MARK, VERIFY = "cluttered-fashion-mnist:train[30000:33000]", "cluttered-fashion-mnist:train[50000:50512]"


def main() -> None:
    given = options(__doc__, controls=12, steps=200)
    prepare()
    scheme = SSLGuard(steps=given.steps)
    clean, data, asked = load_encoder(CLEAN), open_data(MARK), open_data(VERIFY)
    population = list_controls(["shipped"])
    every = [population[k * len(population) // given.controls] for k in range(given.controls)]
    controls = [(control.name, control.load()) for control in every]

    def among(score: float, scores: dict[str, float]) -> dict[str, float]:
        found = control_rank_test(score, list(scores.values()), n_queries=scheme.n_queries)
        return {"p": found.pvalue, "largest": max(scores.values()), "median": sorted(scores.values())[len(scores) // 2]}

    started = time.process_time()
    marked = scheme.watermark(clean, data, secret=Secret.from_seed(1))
    seconds: dict[str, Any] = {"marking": time.process_time() - started}
    print(f"marked in {seconds['marking']:.0f} s of CPU", flush=True)
    suspects = {"honest": (marked.key, marked.encoder)}
    for number, spec in enumerate(INNOCENTS):
        target = load_encoder(spec)
        suspects[f"fitted to {spec}"] = (
            fitted_key(target, clean, data, scheme=scheme, secret=Secret.from_seed(2 + number)),
            target,
        )
    likewise: dict[int, dict[str, float]] = {}
    for steps in (given.steps // 10, given.steps):
        started = time.process_time()
        fit = replace(scheme, steps=steps)
        likewise[steps] = refitted_controls(controls, clean, data, asked, scheme=fit, seed=3)
        seconds[f"a control, {steps} steps"] = (time.process_time() - started) / len(controls)
        print(f"{len(controls)} controls fitted with {steps} steps", flush=True)
    found: dict[str, Any] = {}
    for name, (key, suspect) in suspects.items():
        score = score_suspect(key, suspect, asked)
        found[name] = {"score": score.value, "watermark_rate": score.watermark_rate}
        found[name]["ordinary controls"] = among(score.value, score_controls(key, controls, asked))
        for steps, scores in likewise.items():
            found[name][f"fitted with {steps} steps"] = among(score.value, scores)
    result = {"controls": given.controls, "steps": given.steps, "cpu_seconds": seconds, "suspects": found}
    save("refitted_controls", result)
    print(json.dumps(result, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
