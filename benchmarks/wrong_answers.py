"""What wrong answers cost the evidence of the exact scheme: a share of the answers is replaced, or all change a little.

A head on the clean SimCLR encoder, and a surrogate that was stolen from it, answer a verification. Then a share of the
answers is replaced, or all of them are changed, and the same answers are scored again: bits of evidence, uncapped. An
audit needs 8 bits for a level of 1 in 250, and 34 if the key was dated.

Beside the bits stand the queries after which `verify --stop-early` stops at a level of 2^-20; "all" where it does not.

Run: python benchmarks/wrong_answers.py [--steps 600]
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from common import data, options, prepare, save
from numpy.typing import NDArray

from sslguard.attacks.stealing import Distil
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch
from sslguard.encoders.load import load_encoder
from sslguard.report.markdown import table
from sslguard.schemes.base import Key
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.significance import rejects
from sslguard.training.recipes import Distillation
from sslguard.verification.verdict import ask, in_stages, score_suspect

Answers = NDArray[np.float64]
Change = Callable[[Answers, np.random.Generator], Answers]
SHARES = (0.1, 0.3, 0.5, 0.9, 1.0)
NOISE = (0.1, 0.3, 1.0, 3.0)
ASKED = data("verify")
LEVEL = 2.0**-20


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
    given = options(__doc__, steps=600)
    prepare()
    scheme = Exact(Protocol(n_queries=100), mode="head")
    clean = load_encoder("shipped:simclr")
    made = scheme.watermark(clean, data("mark").slice(0, 4000), secret=Secret.from_seed(1))
    stolen = Distil(Distillation(steps=given.steps))(made.encoder, data("thief"), seed=0)
    asked = ASKED

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
    n = made.key.asks(len(asked))
    save("wrong_answers", {"scored": rows, "queries": n, "steps": given.steps, "stages": made.key.stages(len(asked))})
    print(f"{n:,} queries")
    print(
        table(
            ["answers", "share or size", "head: bits", "queries", "surrogate: bits", "queries"],
            [
                [kind, size, *(text for found in rows.values() for text in shown(found[kind][size]))]
                for kind in rows["head"]
                for size in rows["head"][kind]
            ],
        )
    )


def shown(scored: tuple[float, int | None]) -> tuple[str, str]:
    """Return bits and queries as a table's cells."""
    return f"{scored[0]:.0f}", "all" if scored[1] is None else f"{scored[1]:,}"


class Replayed:
    """A suspect that gives recorded answers, row by row."""

    def __init__(self, answers: Answers) -> None:
        self.left = answers

    def embed(self, batch: Batch, /) -> Answers:
        given, self.left = self.left[: len(batch)], self.left[len(batch) :]
        return given


def score(key: Key, answers: Answers) -> tuple[float, int | None]:
    """Return the bits of evidence of answers (n, m), uncapped, and after how many queries early stopping stops."""
    whole = score_suspect(key, Replayed(answers), ASKED)
    found = in_stages(key, Replayed(answers), ASKED, LEVEL, 1)
    assert found.evidence is not None
    return float(whole.value), found.n_queries if rejects(found.evidence, LEVEL) else None


if __name__ == "__main__":
    main()
