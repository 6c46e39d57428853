"""What the proof needs: no secret reaches its own witness, and p-values of innocents are uniform and independent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax

from helpers.claim_bed import Answers
from sslguard.crypto.secrets import Secret
from sslguard.encoders.base import embed_all
from sslguard.schemes.exact import key as module
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.stats.corrections import holm
from sslguard.stats.direction import direction_test
from sslguard.stats.left import FAMILY, left_test
from sslguard.stats.witness import witness
from sslguard.verification.verdict import score_suspect

HEAD = Exact(Protocol(functions=24, rank=3, n_queries=200), mode="head", overlap=0)
D, N = 16, 300
LEFT, RIGHT = FAMILY[0].name, "procrustes"


def gaussian(d: int, m: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((d, m))


def remembered(suspect, data, change=lambda g: g):
    """The suspect, asked about each item of `data` once: no embedding depends on the batch that it is in."""
    items = (item.numpy().tobytes() for item in data.take(range(len(data))))
    answers = dict(zip(items, change(embed_all(suspect, data).astype(float)), strict=True))
    return Answers(lambda batch: np.stack([answers[item.numpy().tobytes()] for item in batch]))


@pytest.fixture(scope="module")
def clean(tiny):
    return tiny(7, linear=D)


@pytest.fixture(scope="module")
def marked(clean, images):
    return HEAD.watermark(clean, images(400), secret=Secret.from_seed(1))


@pytest.fixture(scope="module")
def asked(images):
    return images(N, seed=5)


@pytest.fixture(scope="module")
def suspects(clean, marked, tiny, asked):
    """Innocents of every kind of answers: none of them saw the secrets that are then drawn."""
    other, logits = tiny(8, linear=D), gaussian(D, 10)
    noise = np.random.default_rng(4).standard_normal((N, D))

    def classes(g: np.ndarray) -> np.ndarray:
        return 3 * ((g - g.mean(0)) / g.std()) @ logits / 4

    return {
        "independent": remembered(other, asked),
        "rotated": remembered(clean, asked, lambda g: (g + 0.02 * g.std() * noise) @ np.linalg.qr(gaussian(D, D))[0]),
        "another key's": remembered(marked.encoder, asked),
        "logits": remembered(other, asked, classes),
        "probabilities": remembered(other, asked, lambda g: np.round(softmax(classes(g), axis=1), 4)),
        "labels": remembered(clean, asked, lambda g: classes(g + 0.3 * g.std() * noise).argmax(1)[:, None]),
    }


class Seen:
    """Every witness that a verification tests, as the tests get them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[np.ndarray] = []
        self.right: list[np.ndarray] = []

        def left(w, secret):
            self.left.append(w.copy())
            return left_test(w, secret)

        def right(w, secret, *, n_queries, basis):
            self.right += [w.copy(), np.zeros(0) if basis is None else basis.copy()]
            return direction_test(w, secret, n_queries=n_queries, basis=basis)

        monkeypatch.setattr(module, "left_test", left)
        monkeypatch.setattr(module, "direction_test", right)

    def of(self, key: ExactKey, suspect, data) -> tuple[list[bytes], list[bytes], tuple[float, float]]:
        """Run a whole verification; return the bytes of its witnesses, and the evidence of each side."""
        self.left.clear()
        self.right.clear()
        details = score_suspect(replace(key, _embedded={}), suspect, data).evidence.details
        found = [[w.tobytes() for w in side] for side in (self.left, self.right)]
        assert any(w.any() for w in self.left)
        assert any(w.any() for w in self.right)
        return *found, (details["left_bits"], details["right_bits"])


def shuffled(name: str):
    """Streams of another secret for A or G alone."""
    whole = getattr(module, name)
    return lambda secret, *rest: whole(Secret.from_seed(977), *rest)


SUSPECTS = ("marked", "independent", "rotated", "another key's", "logits", "probabilities", "labels")


class TestWhatWitnessesSee:
    @pytest.mark.parametrize("name", SUSPECTS)
    def test_left_ones_are_the_same_to_the_bit_under_other_secrets(self, name, marked, suspects, asked, monkeypatch):
        suspect, seen = {**suspects, "marked": marked.encoder}[name], Seen(monkeypatch)
        left, right, bits = seen.of(marked.key, suspect, asked)
        for part in ("draw_left", "draw_right", "both"):
            with pytest.MonkeyPatch.context() as patch:
                for stream in ("draw_left", "draw_right") if part == "both" else (part,):
                    patch.setattr(module, stream, shuffled(stream))
                other_left, other_right, other_bits = seen.of(marked.key, suspect, asked)
            assert other_left == left, part
            if part == "draw_right":  # the same A and another G
                assert other_right == right
                assert other_bits[0] == bits[0]
            else:
                assert other_right != right  # they know A

    def test_another_draw_of_both_leaves_the_queries_and_left_witnesses(self, marked, asked, suspects, monkeypatch):
        one, two, seen = marked.key, replace(marked.key, redraw=1), Seen(monkeypatch)
        for a, b in zip(one.queries(asked), two.queries(asked), strict=True):
            assert torch.equal(a, b)
        for name in ("left", "right"):
            drawn, other = getattr(one, name)(), getattr(two, name)()
            assert abs(np.corrcoef(drawn.ravel(), other.ravel())[0, 1]) < 0.5
        assert seen.of(one, suspects["independent"], asked)[0] == seen.of(two, suspects["independent"], asked)[0]

    @pytest.mark.parametrize("secret", [2, 3])
    def test_another_secret_asked_the_same_queries(self, secret, marked, suspects, asked, monkeypatch):
        seen, whole = Seen(monkeypatch), module.drawn
        monkeypatch.setattr(module, "drawn", lambda _, data, n: whole(Secret.from_seed(0).stream("x", b""), data, n))
        one = seen.of(marked.key, suspects["independent"], asked)
        two = seen.of(replace(marked.key, secret=Secret.from_seed(secret)), suspects["independent"], asked)
        assert one[0] == two[0]
        assert one[1] != two[1]

    def test_the_size_of_the_mark_reaches_nothing(self, marked, asked, monkeypatch):
        seen = Seen(monkeypatch)
        one, two = (seen.of(replace(marked.key, size=size), marked.encoder, asked) for size in (1e-6, 1.0))
        assert one == two

    def test_a_witness_that_knew_its_secret_would_show(self, marked, suspects, asked, monkeypatch):
        """The comparison of this class finds what it looks for."""

        def peeked(self, spectra):
            return {"peeked": np.linalg.qr(self.left() + 0.1)[0]}

        monkeypatch.setattr(ExactKey, "left_witnesses", peeked)
        seen, suspect = Seen(monkeypatch), suspects["independent"]
        assert seen.of(marked.key, suspect, asked)[0] != seen.of(replace(marked.key, redraw=1), suspect, asked)[0]


def never_below_uniform(p: np.ndarray) -> float:
    """Return the p-value of a test that small values come no more often than by chance."""
    return float(stats.kstest(p, "uniform", alternative="greater").pvalue)


def whole_pipelines(marked, suspects, asked, seeds: int) -> None:
    each = {name: [] for name in suspects}
    for seed in range(seeds):
        key = replace(marked.key, secret=Secret.from_seed(5000 + seed), _embedded={})
        for name, suspect in suspects.items():
            found = score_suspect(key, suspect, asked).evidence
            single = (found.details[f"log2 p of left, {LEFT}"], found.details[f"log2 p of right, {RIGHT}"])
            sides = (-found.details["left_bits"], -found.details["right_bits"])
            each[name].append((*single, *sides, found.log2_pvalue))
    cells: dict[tuple[str, str], float] = {}
    for name, rows in each.items():
        left, right, left_side, right_side, both = 2.0 ** np.array(rows).T
        cells[name, "left"] = stats.kstest(left, "uniform").pvalue
        cells[name, "right"] = stats.kstest(right, "uniform").pvalue
        cells[name, "independent"] = stats.spearmanr(left, right).pvalue
        for side, p in (("left side", left_side), ("right side", right_side), ("both", both)):
            cells[name, side] = never_below_uniform(p)
    adjusted = 2 ** holm(np.log2(list(cells.values())))
    assert adjusted.min() > 0.01, min(cells.items(), key=lambda cell: cell[1])


def test_pvalues_of_innocents_over_whole_pipelines(marked, suspects, asked):
    """Fresh master secrets: other queries, A and G. Single witnesses uniform, combined ones never below uniform."""
    whole_pipelines(marked, suspects, asked, 24)


@pytest.mark.slow
def test_pvalues_of_innocents_over_many_whole_pipelines(marked, suspects, asked):
    whole_pipelines(marked, suspects, asked, 400)


def redrawn_secrets(marked, suspects, asked, n: int) -> None:
    cells, pairs = {}, []
    for name, suspect in suspects.items():
        spectra, _ = marked.key.spectra((suspect.embed(batch) for batch in marked.key.queries(asked)), asked)
        s, found = marked.key.left_witnesses(spectra)[LEFT], []
        for redraw in range(1, n + 1):
            key = replace(marked.key, redraw=redraw)
            left, right = key.left(), key.right()
            v, basis = witness(RIGHT, spectra.mixed(key.bank.weights[:, None] * left), key.bank.spread)
            tail = direction_test(v, right, n_queries=200, basis=basis).details["log2_tail"]
            found.append((left_test(s, left), tail))
        left, right = 2.0 ** np.array(found).T
        cells |= {(name, "left"): stats.kstest(left, "uniform").pvalue}
        cells |= {(name, "right"): stats.kstest(right, "uniform").pvalue}
        cells |= {(name, "both"): stats.kstest(left * right * (1 - np.log(left * right)), "uniform").pvalue}
        cells |= {(name, "independent"): stats.spearmanr(left, right).pvalue}
        pairs.append((left, right))
    adjusted = 2 ** holm(np.log2(list(cells.values())))
    assert adjusted.min() > 0.01, min(cells.items(), key=lambda cell: cell[1])
    # Suspects of one draw are not independent: as if there were only one.
    assert abs(np.corrcoef(*np.concatenate(pairs, axis=1))[0, 1]) < 3.5 / np.sqrt(n)


def test_pvalues_of_innocents_over_redrawn_secrets(marked, suspects, asked):
    """The same answers, and fresh A and G from the key's own streams: either side and both uniform, and independent."""
    redrawn_secrets(marked, suspects, asked, 80)


@pytest.mark.slow
def test_pvalues_of_innocents_over_many_redrawn_secrets(marked, suspects, asked):
    redrawn_secrets(marked, suspects, asked, 2000)


def test_kinds_came_as_they_were_meant(marked, suspects, asked):
    kinds = {
        name: score_suspect(marked.key, suspect, asked).evidence.statistic_name.rsplit(" ", 1)[1]
        for name, suspect in suspects.items()
    }
    own = {"probabilities": "probabilities", "labels": "labels"}
    assert kinds == {name: own.get(name, "embeddings") for name in suspects}
