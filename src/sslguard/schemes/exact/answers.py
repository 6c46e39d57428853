"""What a suspect's answers are, and what of them is tested: embeddings, logits, probabilities or labels.

Everything here sees answers and clean embeddings alone, and no secret: which rule it follows costs a claim nothing.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sslguard.crypto.secrets import Secret
from sslguard.errors import SuspectError
from sslguard.probes.linear import class_shares

Array = NDArray[np.float64]
Kind = Literal["embeddings", "logits", "probabilities", "labels"]
KINDS: tuple[Kind, ...] = ("embeddings", "logits", "probabilities", "labels")

MOST_COLUMNS = 1024
"""Of wider answers the leading principal components of this number are tested: their moments take memory by the square
of the width."""
FOLDED_FROM, FOLDED = 8192, 4096
"""Answers of more columns than the first are folded to the second as they come."""
_ROWS = 1024
_RARE = 10
"""Classes of fewer answers count as one."""
_SMALLEST = 5e-5
"""Probability below which its logarithm says nothing, where the answers are not rounded."""


def kind_of(answers: Array) -> Kind:
    """Return what answers (n, m) are.

    One column of whole numbers, or rows with a single 1, are labels. Rows of shares that sum up to 1 are probabilities;
    so are those whose sum is less, where each names the same number of classes. All else is taken as embeddings, and so
    are logits: the test does not mind a linear map.
    """
    there = answers.any(axis=1)
    given = answers if there.all() else answers[there]
    if answers.shape[1] == 1:
        whole = (answers == np.round(answers)).all() and (answers >= 0).all()
        return "labels" if whole and len(np.unique(answers)) > 1 else "embeddings"
    if not len(given) or (given < 0).any() or (given > 1).any():
        return "embeddings"
    named = (given > 0).sum(1)
    if (named == 1).all() and (given.max(1) == 1).all():
        return "labels"
    sums, slack = given.sum(1), 1e-4 + answers.shape[1] * _unit(given) / 2
    if (np.abs(sums - 1) <= slack).all():
        return "probabilities"
    top = named.min() == named.max() < answers.shape[1] and (sums <= 1 + slack).all()
    return "probabilities" if top else "embeddings"


def scores(kind: Kind, answers: Array, h: Array) -> Array:
    """Return what is tested of answers of a kind, float64 (n, m').

    Embeddings as they are; logits less each row's mean; of probabilities their logarithms less each row's mean; of
    labels what the clean embeddings do not foretell: one-hot less a logistic regression of these labels on h.

    Args:
        kind: What they are.
        answers: Of the suspect, (n, m). A row of 0 is a missing answer and stays one, but for labels in one column.
        h: Clean embeddings of the same queries, (n, q).

    Raises:
        SuspectError: They cannot be of this kind.
    """
    if kind == "embeddings":
        return answers
    there = answers.any(axis=1, keepdims=True)
    if kind == "logits":
        return (answers - answers.mean(1, keepdims=True)) * there
    if kind == "probabilities":
        if (answers < 0).any():
            raise SuspectError("probabilities must not be negative: say --answers logits or embeddings")
        logs = _logarithms(answers)
        return (logs - logs.mean(1, keepdims=True)) * there
    column = answers.shape[1] == 1
    labels = np.unique(answers[:, 0], return_inverse=True)[1] if column else answers.argmax(1)
    found, places, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    if (sizes < _RARE).any():  # all of them as one class, the last
        names = np.where(sizes < _RARE, len(found), np.arange(len(found)))
        found, places = np.unique(names[places], return_inverse=True)
    if len(found) < 2:  # one label for all tells nothing, as one embedding for all does
        return np.zeros((len(answers), 1))
    return (np.eye(len(found))[places] - class_shares(h, places)) * (True if column else there)


def _logarithms(shares: Array) -> Array:
    """Return logarithms; what is missing or rounded to 0 counts as an equal part of what is left, or half a unit."""
    unit = _unit(shares)
    floor = max(unit / 2, _SMALLEST if unit == 0 else 0.0)
    missing = shares <= 0
    rest = np.clip(1 - shares.sum(1, keepdims=True), 0, None) / np.maximum(missing.sum(1, keepdims=True), 1)
    return np.asarray(np.log(np.maximum(np.where(missing, rest, shares), max(floor, 1e-12))))


def _unit(shares: Array) -> float:
    """Return the unit that shares are rounded to, a power of a tenth; 0 where they are not."""
    for digits in range(1, 6):
        scaled = shares[:512] * 10.0**digits
        if np.abs(scaled - np.round(scaled)).max(initial=0) < 1e-6 * 10.0**digits:
            return float(10.0**-digits)
    return 0.0


def reduced(answers: Array) -> Array:
    """Return the leading principal components of answers with many columns, by a randomised range finder.

    Its start is public, so that the result is a function of the answers alone.

    References:
        .. [1] N. Halko, P.-G. Martinsson, J. A. Tropp, "Finding structure with randomness", SIAM Review 53(2) (2011).
    """
    n, m = answers.shape
    if m <= MOST_COLUMNS:
        return answers
    start = np.random.default_rng(m).standard_normal((m, MOST_COLUMNS), dtype=np.float32)
    mean, size = answers.mean(0), np.abs(answers).max() or 1.0
    sketch = np.zeros_like(start)
    # Single precision finds the space well enough: the components along its basis are then exact.
    for part in np.split(answers, range(_ROWS, n, _ROWS)):
        rows = ((part - mean) / size).astype(np.float32)
        sketch += rows.T @ (rows @ start)
    return np.asarray(answers @ np.linalg.qr(sketch.astype(np.float64))[0])


def folded(answers: NDArray[np.floating]) -> Array:
    """Map answers (n, m) to fewer columns, (n, 4096): each column is added to one of them, with a public sign.

    Inner products of rows stay nearly what they were (a count sketch), and columns that are 0 nothing. It depends on m
    alone.
    """
    signs, places = _folds(answers.shape[1])
    found = np.zeros((FOLDED, len(answers)))
    np.add.at(found, places, (answers * signs).T)
    return found.T


@lru_cache(maxsize=4)
def _folds(width: int) -> tuple[Array, NDArray[np.int64]]:
    """Sign of each column, and which of the fewer ones it is added to."""
    stream = Secret.from_seed(0).stream(f"columns of {width}")
    signs = np.where(stream.uniform((width,)) < 0.5, -1.0, 1.0)
    return signs, (stream.uniform((width,)) * FOLDED).astype(np.int64)


def beyond(known: Array, h: Array) -> Array:
    """Return what of known functions of the input (n, K) is not linear in (1, h), with h (n, q)."""
    linear = np.linalg.qr(h - h.mean(0))[0]
    free = known - known.mean(0)
    return np.asarray(free - linear @ (linear.T @ free))


def without(answers: Array, free: Array) -> Array:
    """Return answers (n, m) less their regression on what `beyond` gives of known functions; missing ones stay 0."""
    there = answers.any(axis=1, keepdims=True)
    return np.asarray((answers - free @ np.linalg.lstsq(free, answers - answers.mean(0), rcond=None)[0]) * there)
