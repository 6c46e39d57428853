"""Nulls as objects: what each checks, charges and refuses, and suspects that only embed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sslguard.encoders.base import Suspect
from sslguard.encoders.wrapped import Wrapped, as_suspect
from sslguard.errors import RefusedError, UsageError
from sslguard.schemes.base import Score
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.stats.significance import Significance
from sslguard.verification.nulls import ExactNull, RankNull, null_of


class OnlyEmbeds:
    def embed(self, batch):
        return np.ones((len(batch), 2))


class Ended(OnlyEmbeds):
    name, n_missing, ended = "ended", 3, False

    def finish(self):
        self.ended = True


def test_each_key_names_its_null(key_of):
    assert isinstance(null_of(ExactKey), ExactNull)
    assert null_of(key_of(), 3, [0.1, 0.2, 0.3]) == RankNull(3, [0.1, 0.2, 0.3], "mean cosine to the secret vector")
    assert isinstance(null_of(SSLGuardKey, 7), RankNull)


def test_an_exact_null_ends_at_the_entropy_of_the_secret():
    ExactNull().check(2.0**-255, 2)
    with pytest.raises(RefusedError, match="below the smallest p-value"):
        ExactNull().check(2.0**-255, 3)
    with pytest.raises(UsageError, match="no p-value of its own"):
        ExactNull().significance(Score(1.0, 4))


def test_a_rank_counts_ties_against_the_claim_and_keeps_what_was_published():
    found = RankNull(3, [0.1, 0.2, 0.9]).significance(Score(0.9, 4, watermark_rate=0.5, published_log2_pvalue=-9.0))
    assert (found.pvalue, found.null, found.n_controls) == (2 / 4, "controls", 3)
    assert (found.details["watermark_rate"], found.details["published_log2_pvalue"]) == (0.5, -9.0)
    with pytest.raises(RefusedError, match="no controls were given"):
        RankNull(0).significance(Score(0.9, 4))


def test_charges():
    for null, undated, dated in ((ExactNull(), 64 + 6, 20 + 6), (RankNull(9), 64, 0)):
        assert null.charge(dated=False) == 1 << undated
        assert null.charge(dated=True) == 1 << dated
        assert null.charge(dated=True, n_queries=60, n_zero=3) == math.comb(60, 3) << dated
        assert null.charge(dated=True, n_queries=10**6, n_zero=10**5) > 1 << 256
        assert null.objection(dated=True) is None
    assert ExactNull().objection(dated=False) is None
    assert "may be fitted to it" in RankNull(9).objection(dated=False)


def test_what_only_embeds_becomes_a_suspect(tiny):
    plain = as_suspect(OnlyEmbeds())
    assert isinstance(plain, Suspect)
    assert (plain.name, plain.n_missing, plain.finish()) == ("OnlyEmbeds", 0, None)
    assert plain.embed([1, 2, 3]).shape == (3, 2)
    encoder = tiny(1)
    assert as_suspect(encoder) is encoder
    assert (encoder.name, encoder.n_missing) == (encoder.source, 0)
    for attribute in ("name", "source"):
        told = OnlyEmbeds()
        setattr(told, attribute, "told")
        assert as_suspect(told).name == "told"


def test_a_wrapping_is_a_suspect_as_much_as_its_victim():
    victim = Ended()
    wrapped = Wrapped(victim, victim.embed, "served", {}, "served")
    assert as_suspect(wrapped) is wrapped
    wrapped.finish()
    assert (wrapped.name, wrapped.n_missing, victim.ended) == ("ended, served", 3, True)


def test_numbers_that_are_out_of_range_are_refused():
    with pytest.raises(UsageError, match="one score for each of 1000 controls, not 2"):
        RankNull(1000, (0.1, 0.2))
    for n, zero in ((10, 20), (-1, 0), (10, -1)):
        with pytest.raises(UsageError, match="can be zero"):
            ExactNull().charge(dated=True, n_queries=n, n_zero=zero)
    with pytest.raises(RefusedError, match="smallest p-value"):
        ExactNull().check(0.01, 10**400)


def test_what_cannot_embed_is_no_suspect():
    with pytest.raises(UsageError, match="a suspect needs a method embed"):
        as_suspect(object())


def test_an_exact_verdict_has_no_rank():
    found = ExactNull().findings(Significance(1.0, -9.0, 2.0**-256, "exact", 4))
    assert found == {"rank": None, "gap": None, "gap_deviations": None, "control_kinds": {}, "warnings": []}
