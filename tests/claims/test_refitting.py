"""Controls that get trigger and decoder of their own. What their ranks are worth: TestFittedToAnInnocent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sslguard.claims.derivation import undue_freedom
from sslguard.claims.refitting import fitted_key, refitted_controls
from sslguard.crypto.secrets import Secret
from sslguard.encoders.folder import weights_hash
from sslguard.errors import UsageError
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.verification.verdict import score_suspect

FITTING = SSLGuard(steps=6, trigger_batch=8, decoder_hidden=(16,), secret_dim=4, decoder_rate=5e-3, n_queries=16)


@pytest.fixture
def data(images):
    return images(40)


@pytest.fixture
def asked(images):
    return images(16, seed=1)


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(tiny, data, asked, hashed, untouched_rng):
    controls = [("a", tiny(20)), ("b", tiny(21))]
    before = [hashed(control) for _, control in controls]
    found = [refitted_controls(controls, tiny(7), data, asked, scheme=FITTING, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert list(found[0]) == ["a", "b"]
    assert all(found[0][name] != found[2][name] for name in "ab")
    assert [hashed(control) for _, control in controls] == before
    assert all(p.requires_grad for _, c in controls for p in c.module.parameters())


def test_a_control_scores_what_it_scores_in_any_company(tiny, data, asked):
    def scored(*seeds):
        controls = [(f"c{seed}", tiny(seed)) for seed in seeds]
        return refitted_controls(controls, tiny(7), data, asked, scheme=FITTING, seed=1)

    assert scored(20, 21)["c21"] == scored(21)["c21"]


def test_a_fitted_key_is_derived_but_for_what_was_trained(tiny, data):
    """So that no examiner can tell it from an honest one but by its date."""
    clean, target = tiny(7), tiny(20)
    key = fitted_key(target, clean, data, scheme=FITTING, secret=Secret.from_seed(1))
    assert undue_freedom(key, clean) is None
    assert "secret vector" in (undue_freedom(replace(key, secret=Secret.from_seed(2)), clean) or "")
    assert key.watermarked_hash == weights_hash(target.module)


def test_more_steps_score_higher_and_what_was_sent_is_what_was_trained_on(tiny, data, asked):
    """With a crop, whose queries are framed, and with colours that the suspect makes grey of."""
    clean = tiny(7)
    clean = replace(clean, preprocess=replace(clean.preprocess, crop=0.8))
    target = tiny(20)
    scores = []
    for steps in (1, 60):
        key = fitted_key(target, clean, data, scheme=replace(FITTING, steps=steps), secret=Secret.from_seed(1))
        scores.append(score_suspect(key, target, asked).value)
    assert scores[1] > max(0.95, scores[0])


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_trigger_and_decoder_both_move(tiny, data, optimizer):
    def key(steps):
        scheme = replace(FITTING, steps=steps, optimizer=optimizer)
        return fitted_key(tiny(20), tiny(7), data, scheme=scheme, secret=Secret.from_seed(1))

    one, two = key(1), key(2)
    assert (one.trigger.pattern != two.trigger.pattern).any()
    assert (one.decoder[0].weight != two.decoder[0].weight).any()
    assert (one.trigger.mask == two.trigger.mask).all()
    assert np.array_equal(one.sk, two.sk)


def test_what_is_refused(tiny, data, asked):
    one = [("a", tiny(20))]
    for controls, scheme, message in (
        ([], FITTING, "nothing to fit to"),
        (one * 2, FITTING, "given twice"),
        ([("a", tiny(20, linear=5))], FITTING, "width 5 cannot stand for"),
    ):
        with pytest.raises(UsageError, match=message):
            refitted_controls(controls, tiny(7), data, asked, scheme=scheme, seed=1)
