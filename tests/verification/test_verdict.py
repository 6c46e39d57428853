"""Verdicts: what is asked, what a p-value can support, and what must not be dropped."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from sslguard import api
from sslguard.controls.members import Control
from sslguard.errors import DataError, RefusedError, SuspectError, UsageError
from sslguard.suspects.logged import LoggedAnswers
from sslguard.verification.nulls import RankNull
from sslguard.verification.verdict import ask, score_controls, score_suspect, verify


class Says:
    """Answers every query at one cosine to the secret vector, and remembers what it was asked.

    `signs` are those of the other number, query by query.
    """

    def __init__(self, cosine: float, name: str | None = None, signs: str = "+") -> None:
        self.row, self.signs = [cosine, (1 - cosine**2) ** 0.5], signs
        self.asked: list[torch.Tensor] = []
        if name is not None:
            self.name = name

    def embed(self, batch, /):
        self.asked.append(batch)
        answers = np.tile(self.row, (len(batch), 1))
        answers[:, 1] *= [1 if self.signs[i % len(self.signs)] == "+" else -1 for i in range(len(batch))]
        return answers


class Untouchable:
    """Fails the test that asks it anything."""

    def embed(self, batch, /):
        raise AssertionError("asked although the null cannot support the claim")


class Answers:
    """Answers with whatever a function of the batch makes."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def embed(self, batch, /):
        return self.answer(batch)


@pytest.fixture
def data(images):
    return images(9)


@pytest.fixture
def key(key_of):
    return key_of()


def controls(n, value=0.0):
    return {f"control {i}": value for i in range(n)}


class TestFloor:
    @pytest.mark.parametrize("alpha", ["0.5", "0.1", "0.05", "0.03", "0.01", "0.001"])
    @pytest.mark.parametrize("n_claims", [1, 2, 3, 10])
    def test_is_exact_and_the_number_that_is_named_suffices(self, alpha, n_claims):
        level = Fraction(alpha) / n_claims
        enough = math.ceil(1 / level) - 1
        RankNull(enough).check(float(alpha), n_claims)
        RankNull(enough + 1).check(float(alpha), n_claims)
        if enough > 1:
            with pytest.raises(RefusedError, match=f"at least {enough} controls"):
                RankNull(enough - 1).check(float(alpha), n_claims)

    @pytest.mark.parametrize("alpha", [0.5, 0.999999])
    def test_without_controls_there_is_none(self, alpha):
        with pytest.raises(RefusedError, match="name known innocents with --control"):
            RankNull(0).check(alpha)

    @pytest.mark.parametrize("alpha", [0, 1, -0.1, 2, float("nan"), float("inf")])
    def test_alpha_lies_between_0_and_1(self, alpha):
        with pytest.raises(UsageError, match=r"alpha must be (a finite number )?above 0 and below 1"):
            RankNull(1000).check(alpha)

    def test_claims_are_counted_from_one(self):
        with pytest.raises(UsageError, match="n_claims must be at least 1, not 0"):
            RankNull(1000).check(0.05, 0)

    @pytest.mark.parametrize(("n", "n_claims"), [(98, 1), (198, 2), (0, 1)])
    def test_nothing_is_asked_when_it_lies_above_alpha(self, key, data, n, n_claims):
        with pytest.raises(RefusedError) as caught:
            verify(key, Untouchable(), data, control_scores=controls(n), alpha=0.01, n_claims=n_claims)
        assert caught.value.exit_code == 4

    def test_neither_are_the_controls(self, key, data, monkeypatch):
        monkeypatch.setattr(Control, "load", lambda self: pytest.fail("a control was loaded"))
        monkeypatch.setattr(api, "open_suspect", lambda spec: pytest.fail("the suspect was loaded"))
        with pytest.raises(
            RefusedError, match=r"this null can give, 0\.333 with 2 controls: give at least 99 controls"
        ):
            api.verify(key, "some/suspect", data, controls=["random:resnet-narrow@16"] * 2, alpha=0.01)


class TestVerdict:
    @pytest.mark.parametrize(
        ("suspect", "scores", "alpha", "n_claims", "pvalue", "decision"),
        [
            (0.9, [0.1] * 99, 0.01, 1, 1 / 100, "derived"),
            (0.9, [0.1] * 98 + [0.95], 0.01, 1, 2 / 100, "not shown"),
            (0.9, [0.1] * 98 + [0.95], 0.02, 1, 2 / 100, "derived"),
            (1.0, [1.0] + [0.1] * 98, 0.01, 1, 2 / 100, "not shown"),
            (0.1, [0.2] * 99, 0.5, 1, 1.0, "not shown"),
            (-1.0, [0.2] * 99, 0.5, 1, 1.0, "not shown"),
            (0.9, [0.1] * 199, 0.01, 2, 1 / 200, "derived"),
            (0.9, [0.1] * 198 + [0.95], 0.01, 2, 2 / 200, "not shown"),
            (0.9, [0.1] * 198 + [0.95], 0.01, 1, 2 / 200, "derived"),
        ],
        ids=[
            "above all",
            "one above",
            "one above, larger alpha",
            "a tie",
            "below all",
            "opposite",
            "two claims",
            "two claims, one above",
            "one claim, one above",
        ],
    )
    def test_by_rank(self, key, data, suspect, scores, alpha, n_claims, pvalue, decision):
        named = {f"control {i}": score for i, score in enumerate(scores)}
        verdict = verify(key, Says(suspect), data, control_scores=named, alpha=alpha, n_claims=n_claims)
        assert verdict.significance.pvalue == pytest.approx(pvalue)
        assert verdict.significance.floor == pytest.approx(1 / (len(scores) + 1))
        assert verdict.decision == decision
        assert verdict.exit_code == (0 if decision == "derived" else 1)
        assert verdict.significance.null == "controls"

    def test_json_holds_every_figure_and_no_single_answer(self, key, data):
        verdict = verify(key, Says(0.8, name="S"), data, control_scores=controls(19), alpha=0.05)
        written = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
        assert written["suspect"] == "S"
        assert written["decision"] == "derived"
        assert written["statistic"] == pytest.approx(0.8)
        assert written["log2_pvalue"] == pytest.approx(math.log2(1 / 20))
        assert written["floor"] == pytest.approx(1 / 20)
        assert (written["n_queries"], written["n_controls"], written["null"]) == (4, 19, "controls")
        assert (written["watermark_rate"], written["alpha"], written["n_claims"]) == (1, 0.05, 1)
        assert [name for name, value in written.items() if isinstance(value, list)] == ["warnings"]
        assert "cosines" not in repr(verdict)

    def test_names(self, key, data, tiny):
        judge = lambda suspect, **k: verify(key, suspect, data, control_scores=controls(1), alpha=0.5, **k).suspect  # noqa: E731
        assert judge(Says(0.5, name="own"), name="given") == "given"
        assert judge(Says(0.5, name="own")) == "own"
        assert judge(Says(0.5)) == "Says"
        assert judge(tiny(3, linear=2)) == "random:resnet-narrow:3"

    def test_innocents_are_shown_at_most_as_often_as_alpha_says(self, key, data):
        """Suspects that are exchangeable with 19 controls reach p ≤ 0.05 one time in 20."""
        rng, shown, trials = np.random.default_rng(0), 0, 400
        for _ in range(trials):
            values = rng.uniform(-1, 1, 20)
            named = {str(i): value for i, value in enumerate(values[1:])}
            shown += verify(key, Says(values[0]), data, control_scores=named, alpha=0.05).decision == "derived"
        assert 0.02 < shown / trials < 0.09


class TestAsking:
    def test_the_keys_queries_in_order_and_nothing_else(self, key_of, images):
        key, data, suspect = key_of(n=200), images(300), Says(0.5)
        score = score_suspect(key, suspect, data)
        assert score.n_queries == 200
        assert all(torch.equal(a, b) for a, b in zip(suspect.asked, key.queries(data), strict=True))

    @pytest.mark.parametrize(
        "answer",
        [
            lambda b: np.ones((len(b), 3)),
            lambda b: np.ones((len(b) + 1, 2)),
            lambda b: np.ones((len(b) - 1, 2)),
            lambda b: np.ones(len(b)),
            lambda b: np.full((len(b), 2), np.nan),
            lambda b: np.full((len(b), 2), np.inf),
            lambda b: np.full((len(b), 2), "x"),
            lambda b: None,
            lambda b: [[1, 2], [3]],
            lambda b: np.ones((len(b), 2), complex),
        ],
        ids=["width", "more", "fewer", "flat", "NaN", "infinite", "text", "nothing", "ragged", "complex"],
    )
    def test_unusable_answers_end_it(self, key, data, answer):
        with pytest.raises(SuspectError) as caught:
            verify(key, Answers(answer), data, control_scores=controls(1), alpha=0.5)
        assert caught.value.exit_code == 3

    def test_a_width_that_changes_between_batches_ends_it(self, key_of, images):
        widths = iter((2, 3))
        with pytest.raises(SuspectError, match="answered 2 numbers a query before, and now 3"):
            list(ask(key_of(n=200), Answers(lambda b: np.ones((len(b), next(widths)))), images(300)))

    def test_a_suspect_that_refuses_the_items_has_failed(self, key, data):
        def refuse(batch):
            raise DataError("this encoder takes texts")

        with pytest.raises(SuspectError, match="takes texts"):
            verify(key, Answers(refuse), data, control_scores=controls(1), alpha=0.5)

    def test_a_suspect_that_breaks_has_failed(self, key, data):
        def breaks(batch):
            return {}[len(batch)]

        with pytest.raises(SuspectError, match="failed on a batch of 4: KeyError: 4"):
            verify(key, Answers(breaks), data, control_scores=controls(1), alpha=0.5)

    def test_missing_answers_count_as_zero_and_are_said(self, key, data, tmp_path):
        rows = np.array([[1.0, 0], [np.nan, np.nan], [1, 0], [np.nan, np.nan]])
        np.save(tmp_path / "log.npy", rows)
        suspect = LoggedAnswers(tmp_path / "log.npy")
        verdict = verify(key, suspect, data, control_scores=controls(1), alpha=0.5)
        assert (verdict.significance.statistic, verdict.watermark_rate) == (0.5, 0.5)
        assert verdict.significance.n_queries == 4
        assert verdict.n_missing == 2

    def test_answers_left_over_end_it(self, key, data, tmp_path):
        np.save(tmp_path / "log.npy", np.ones((5, 2)))
        with pytest.raises(SuspectError, match="holds 5 answers for 4 queries"):
            score_suspect(key, LoggedAnswers(tmp_path / "log.npy"), data)

    def test_too_little_data(self, key, images):
        with pytest.raises(UsageError, match="has only 3"):
            verify(key, Untouchable(), images(3), control_scores=controls(1), alpha=0.5)


class TestControls:
    def test_each_is_scored_as_a_suspect_is(self, key, data):
        given = [("a", Says(0.25, signs="+-")), ("b", Says(-0.5, signs="++--"))]
        assert score_controls(key, iter(given), data) == pytest.approx({"a": 0.25, "b": -0.5})
        assert all(torch.equal(x, y) for x, y in zip(given[0][1].asked, given[1][1].asked, strict=True))

    @pytest.mark.parametrize(
        "answer", [lambda b: np.ones((len(b), 3)), lambda b: np.full((len(b), 2), np.nan)], ids=["width", "NaN"]
    )
    def test_one_that_cannot_be_scored_is_an_error_and_not_dropped(self, key, data, answer):
        given = [("good", Says(0.1, signs="+-")), ("bad", Answers(answer)), ("other", Says(0.2))]
        with pytest.raises(UsageError, match="control 'bad' cannot be scored"):
            score_controls(key, given, data)

    def test_one_given_twice_is_an_error(self, key, data):
        with pytest.raises(UsageError, match="control 'a' is given twice"):
            score_controls(key, [("a", Says(0.1, signs="+-")), ("b", Says(0.2)), ("a", Says(0.1))], data)

    @pytest.mark.parametrize(
        "other",
        [
            Says(0.1, signs="+-"),  # the same function
            Says(0.1, signs="-+"),  # mirrored
            Says(0.9, signs="+-"),  # the same, smaller, elsewhere
            Answers(lambda b: 1e-30 * Says(0.1, signs="+-").embed(b)),
            Answers(lambda b: 1e30 * Says(0.1, signs="+-").embed(b)),
            Answers(lambda b: Says(0.1, signs="+-").embed(b) @ [[0.6, -0.8], [0.8, 0.6]]),  # turned
            Answers(lambda b: Says(0.1, signs="+-").embed(b) + 1e-3 * np.arange(2 * len(b)).reshape(-1, 2)),  # noise
        ],
        ids=["same", "mirrored", "moved", "small", "large", "turned", "noise"],
    )
    def test_copies_of_one_network_are_one_control(self, key, data, other):
        with pytest.raises(UsageError, match=r"control 'b' answers as control 'a' does .* are one control"):
            score_controls(key, [("a", Says(0.1, signs="+-")), ("b", other)], data)

    def test_two_that_answer_everything_alike_are_one_control(self, key, data):
        with pytest.raises(UsageError, match="are one control"):
            score_controls(key, [("a", Says(0.1)), ("b", Says(0.2))], data)


class TestRank:
    def found(self, key, data, cosine, values, **kinds):
        scores = {f"c{i}": value for i, value in enumerate(values)}
        known = dict(zip(scores, (kind for kind, n in kinds.items() for _ in range(n)), strict=False))
        judged = verify(key, Says(cosine), data, control_scores=scores, control_kinds=known, alpha=0.5)
        return judged.to_json()

    def test_the_verdict_names_rank_gap_and_kinds(self, key, data):
        found = self.found(key, data, 0.75, [0.25, 0.5, 0.5, 0.25], independent=1, pruned=3)
        assert (found["rank"], found["control_kinds"], found["warnings"]) == (1, {"independent": 1, "pruned": 3}, [])
        assert found["gap"] == pytest.approx(0.25)
        assert found["gap_deviations"] == pytest.approx(2)

    def test_below_the_largest(self, key, data):
        found = self.found(key, data, 0.5, [0.25, 0.75, 0.5, 0.0], independent=2, pruned=2)
        assert (found["rank"], found["gap"]) == (3, pytest.approx(-0.25))

    @pytest.mark.parametrize(
        ("kinds", "words"),
        [({"pruned": 3}, "one kind, pruned"), ({"pruned": 2}, "how 1 of the controls"), ({}, "how 3 of")],
    )
    def test_controls_of_one_kind_are_a_warning(self, key, data, kinds, words):
        (warning,) = self.found(key, data, 0.5, [0.25, 0.125, 0.0], **kinds)["warnings"]
        assert words in warning

    def test_controls_that_do_not_vary(self, key, data):
        found = self.found(key, data, 0.5, [0.25, 0.25], independent=1, pruned=1)
        assert (found["gap"], found["gap_deviations"]) == (pytest.approx(0.25), None)
