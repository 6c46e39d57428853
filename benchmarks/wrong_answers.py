"""What wrong answers cost the evidence of the exact scheme: a share of the answers is replaced, or all change a little.

A head on the clean SimCLR encoder, and a surrogate that was stolen from it, answer a verification. Then a share of the
answers is replaced, or all of them are changed, and the same answers are scored again: bits of evidence, uncapped. An
audit needs 8 bits for a level of 1 in 250, and 28 if the key was dated.

Run: python benchmarks/wrong_answers.py [--queries 1900] [--steps 600]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from common import data, options, prepare, save
from numpy.typing import NDArray

from sslguard.attacks.stealing import Distil
from sslguard.crypto.secrets import Secret
from sslguard.encoders.load import load_encoder
from sslguard.report.markdown import table
from sslguard.schemes.base import Key
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.training.recipes import Distillation
from sslguard.verification.verdict import ask

Answers = NDArray[np.float64]
Change = Callable[[Answers, np.random.Generator], Answers]
SHARES = (0.1, 0.3, 0.5, 0.9, 1.0)
NOISE = (0.1, 0.3, 1.0, 3.0)


def replaced(share: float, make: Change) -> Change:
    """Return a change of a random share of the answers."""

    def change(answers: Answers, rng: np.random.Generator) -> Answers:
        chosen = rng.random(len(answers)) < share
        return np.where(chosen[:, None], make(answers, rng), answers)

    return change


def others(answers: Answers, rng: np.random.Generator) -> Answers:
    """Return the answers to other queries."""
    return answers[rng.permutation(len(answers))]


def drawn(answers: Answers, rng: np.random.Generator) -> Answers:
    """Return normal numbers with the answers' mean and deviation."""
    return rng.normal(answers.mean(0), answers.std(0), answers.shape)


def permuted(answers: Answers, rng: np.random.Generator) -> Answers:
    """Return answers whose numbers stand in another order at each query."""
    return rng.permuted(answers, axis=1)


def noisy(size: float) -> Change:
    """Return a change that adds normal noise of `size` deviations to every number."""
    return lambda answers, rng: answers + size * answers.std(0) * rng.normal(size=answers.shape)


def main() -> None:
    given = options(__doc__, queries=1900, steps=600)
    prepare()
    scheme = Exact(Protocol(n_queries=given.queries), mode="head")
    clean = load_encoder("shipped:simclr")
    made = scheme.watermark(clean, data("mark").slice(0, 4000), secret=Secret.from_seed(1))
    stolen = Distil(Distillation(steps=given.steps))(made.encoder, data("thief"), seed=0)
    asked = data("verify")

    def clean_answers(answers: Answers, rng: np.random.Generator) -> Answers:  # noqa: ARG001
        return np.concatenate(list(ask(made.key, clean, asked))).astype(float)

    kinds: dict[str, Change] = {
        "answers to other queries": others,
        "the clean encoder's answers": clean_answers,
        "normal numbers": drawn,
        "zeros": lambda answers, rng: np.zeros_like(answers),  # noqa: ARG005
        "numbers in another order at each query": permuted,
    }
    changes = {(name, f"{share:.0%}"): replaced(share, make) for name, make in kinds.items() for share in SHARES}
    changes |= {("noise on every number", f"{size:g} deviations"): noisy(size) for size in NOISE}
    rows = {}
    for name, suspect in (("head", made.encoder), ("surrogate", stolen)):
        answers = np.concatenate(list(ask(made.key, suspect, asked))).astype(float)
        found = {"as they are": {"": score(made.key, answers)}}
        for (kind, size), change in changes.items():
            found.setdefault(kind, {})[size] = score(made.key, change(answers, np.random.default_rng(1)))
        rows[name] = found
    save("wrong_answers", {"bits": rows, "queries": given.queries, "steps": given.steps})
    head, surrogate = rows["head"], rows["surrogate"]
    print(
        table(
            ["answers", "share or size", "head", "surrogate"],
            [[k, size, f"{head[k][size]:.0f}", f"{surrogate[k][size]:.0f}"] for k in head for size in head[k]],
        )
    )


def score(key: Key, answers: Answers) -> float:
    """Return the bits of evidence of answers (n, m), uncapped."""
    asked = data("verify")

    def batches() -> Iterator[Answers]:
        start = 0
        for batch in key.queries(asked):
            yield answers[start : start + len(batch)]
            start += len(batch)

    return float(key.statistic(batches(), asked).value)


if __name__ == "__main__":
    main()
