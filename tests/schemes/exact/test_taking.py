"""Whether a mark took: how large it may be, what is measured on held-out items, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.command_line import sslguard
from sslguard.crypto.secrets import Secret
from sslguard.data.sources import ArrayData
from sslguard.encoders.base import embed_all
from sslguard.encoders.folder import save_encoder
from sslguard.errors import UsageError
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.marking import moved
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.exact.taking import Held, Taken, held_out, neighbours_kept
from sslguard.stats.moments import unit_rows
from sslguard.verification.verdict import score_suspect

HEAD = Exact(Protocol(functions=24, rank=3, n_queries=200), mode="head", overlap=0)
SECRET = Secret.from_seed(1)


@pytest.fixture(scope="module")
def clean(tiny):
    return tiny(7, linear=16)


@pytest.fixture(scope="module")
def marked(clean, images):
    return HEAD.watermark(clean, images(1000), secret=SECRET)


class TestHeldOut:
    def test_each_tenth_item_takes_no_part(self):
        kept, held = held_out(1005)
        assert held.tolist() == list(range(9, 1005, 10))
        assert sorted([*kept, *held]) == list(range(1005))
        kept, held = held_out(50_000)
        assert (len(kept), len(held)) == (48_000, 2000)

    def test_what_is_held_out_does_not_change_the_bank(self, clean, images):
        data = images(400)
        pictures = torch.stack(list(data.take(range(400)))).numpy().copy()
        pictures[9::10] = 255 - pictures[9::10]
        changed = ArrayData("changed", pictures, None)
        one, two = (HEAD.watermark(clean, d, secret=SECRET).key.bank for d in (data, changed))
        assert one.digest() == two.digest()
        pictures[10] = 255 - pictures[10]
        assert (
            HEAD.watermark(clean, ArrayData("other", pictures, None), secret=SECRET).key.bank.digest() != one.digest()
        )

    def test_fewer_than_ten_items_are_refused(self, clean, images):
        with pytest.raises(UsageError, match="at least 10 items, and got 9"):
            HEAD.watermark(clean, images(9), secret=SECRET)


class TestWhatIsMeasured:
    def test_against_its_definitions(self, marked, clean, images):
        taken, key, held = marked.taken, marked.key, np.arange(9, 1000, 10)
        assert (taken.n_items, taken.n_held, taken.size) == (900, 100, key.size)
        before, after = (unit_rows(embed_all(e, images(1000)).astype(float)) for e in (clean, marked.encoder))
        assert taken.cosine == pytest.approx((before[held] * after[held]).sum(1).mean(), abs=1e-6)
        assert taken.expected == pytest.approx(1 / np.sqrt(1 + key.size))
        assert taken.gain == pytest.approx(1, abs=1e-3)
        near = [np.argsort(-rows[held] @ rows[held].T, axis=1)[:, 1:11] for rows in (before, after)]
        overlap = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(*near, strict=True)])
        assert taken.overlap == pytest.approx(overlap, abs=0.011)
        assert taken.took

    def test_bits_are_those_of_its_own_verification(self, marked, clean, images, monkeypatch):
        monkeypatch.setattr("sslguard.schemes.exact.key.drawn", lambda *_: np.arange(9, 1000, 10))
        monkeypatch.setattr(ExactKey, "asks", lambda *_: 100)
        found = score_suspect(replace(marked.key, _embedded={}), marked.encoder, images(1000)).evidence
        assert found.n_queries == 100
        assert found.statistic == pytest.approx(marked.taken.bits, rel=1e-3)

    def test_too_few_items_to_tell(self, clean, images):
        found = HEAD.watermark(clean, images(200), secret=SECRET).taken
        assert found.bits is None
        assert found.took  # by its gain
        assert "too few items to tell" in dict(found.rows())["own test"]

    @pytest.mark.parametrize(
        ("bits", "gain", "took"),
        [(32.0, 0.0, True), (31.9, 1.0, False), (0.0, 1.0, False), (None, 0.2, True), (None, 0.19, False)],
    )
    def test_what_counts_as_taken(self, bits, gain, took):
        found = Taken(900, 100, 0.05, 0.97, 0.976, 0.5, gain, bits)
        assert found.took == took
        assert ("IT DID NOT TAKE" in dict(found.rows())["own test"]) == (not took)

    def test_neighbours(self):
        rng = np.random.default_rng(0)
        a = rng.standard_normal((200, 8))
        sought = np.arange(0, 200, 7)
        assert neighbours_kept(a, 3 * a @ np.linalg.qr(rng.standard_normal((8, 8)))[0], sought) == 1
        assert neighbours_kept(a, rng.standard_normal((200, 8)), sought) < 0.2
        assert neighbours_kept(a[:5], a[:5], np.arange(5)) == 1  # of fewer than ten others, all


class TestSize:
    def test_neighbours_that_must_stay_make_it_smaller(self, clean, images, marked):
        sizes, kept = [], []
        for overlap in (0.0, 0.5, 0.8, 0.95):
            made = replace(HEAD, overlap=overlap).watermark(clean, images(1000), secret=SECRET)
            sizes.append(made.key.size)
            kept.append(made.taken.overlap)
            assert made.taken.overlap > overlap - 0.1  # measured among fewer others than it was set by
            assert np.array_equal(made.key.left(), marked.key.left())  # the draw does not change with it
            assert np.array_equal(made.key.right(), marked.key.right())
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[-1] < sizes[0] / 5
        assert kept == sorted(kept)

    def test_has_two_upper_ends(self, clean, images, marked):
        bank = marked.key.bank
        assert marked.key.size <= min(HEAD.largest, HEAD.share * bank.variance) * (1 + 1e-9)
        small = replace(HEAD, largest=1e-4).watermark(clean, images(1000), secret=SECRET)
        assert small.key.size <= 1e-4
        half = replace(HEAD, share=HEAD.share / 2).watermark(clean, images(1000), secret=SECRET)
        assert half.key.size == pytest.approx(marked.key.size / 2)

    def test_held_out_items_get_no_more_than_it_says(self, clean, images):
        for n in (60, 200, 1000):
            made = HEAD.watermark(clean, images(n), secret=SECRET)
            new = images(1000, seed=4)
            h = unit_rows(embed_all(clean, new).astype(float))
            functions = made.key.bank.functions(h, all_statistics(clean, new))
            added = np.square(made.key.mark(functions)).sum(1).mean()
            assert added < 1.35 * made.key.size, n


class TestSpoiling:
    def test_answers_far_from_the_clean_ones_are_refused_with_a_number_of_items(self, clean, images, tiny):
        """As a distillation on few items would leave them: here, another encoder stands for the marked one."""
        data, made = images(400), HEAD.watermark(clean, images(400), secret=SECRET)
        answers, statistics = embed_all(clean, data), all_statistics(clean, data)
        held = Held(made.key, data, held_out(400)[1], answers, statistics)
        assert held.taken(made.key, made.encoder).cosine > 0.9
        bent = replace(clean, module=Bent(clean.module))
        with pytest.raises(UsageError, match=r"marked with 360 items.*it would be spoilt") as refused:
            held.taken(made.key, bent)
        needed = int(re.search(r"Give some ([\d,]+) items", str(refused.value))[1].replace(",", ""))
        assert 1_000 <= needed <= 100_000

    def test_a_distillation_that_spoils_the_encoder_is_refused(self, clean, images):
        scheme = Exact(HEAD.protocol, steps=12, learning_rate=0.5, overlap=0)
        with pytest.raises(UsageError, match="would be spoilt"):
            scheme.watermark(clean, images(200), secret=SECRET)


class Bent(torch.nn.Module):
    """Answers of another direction than the network's."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answers = self.module(x)
        return answers + 0.8 * answers.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(
            answers.roll(1, 1), dim=1
        )


class TestDistilled:
    def test_learns_the_head_and_moves_no_statistics(self, clean, images):
        """On noise little carries over to other images, so it is read off those that it was learned on."""
        scheme = Exact(HEAD.protocol, steps=250, batch_size=32, learning_rate=3e-3, overlap=0)
        made = scheme.watermark(clean, images(400), secret=SECRET)
        losses = made.history.losses["loss"]
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:10])
        assert made.encoder.architecture == clean.architecture
        before, after = clean.module.state_dict(), made.encoder.module.state_dict()
        assert all(torch.equal(before[n], after[n]) for n in before if "running" in n or "batches" in n)
        assert made.key.watermarked_hash != made.key.clean_hash
        own, clean_score = (score_suspect(made.key, e, images(400)).evidence for e in (made.encoder, clean))
        assert own.log2_pvalue < -20 < clean_score.log2_pvalue

    def test_a_few_steps_say_that_it_did_not_take(self, clean, images):
        made = Exact(HEAD.protocol, steps=2, overlap=0).watermark(clean, images(1000), secret=SECRET)
        assert not made.taken.took
        assert made.taken.gain < 0.2
        assert "IT DID NOT TAKE" in dict(made.taken.rows())["own test"]

    def test_copies_are_flipped_and_shifted_by_chance(self):
        x = torch.arange(3 * 2 * 16 * 16).float().view(3, 2, 16, 16)
        torch.manual_seed(0)
        seen = torch.cat([moved(x[:1]) for _ in range(200)])
        assert seen.shape == (200, 2, 16, 16)
        assert len({part.numpy().tobytes() for part in seen}) > 30  # of 2 flips and 5 × 5 shifts
        assert set(seen.unique().tolist()) <= set(x[0].unique().tolist())
        assert any(torch.equal(part, x[0]) for part in seen)
        assert any(torch.equal(part, x[0].flip(2)) for part in seen)
        assert moved(x.to(torch.float32)).dtype == x.dtype


@pytest.mark.trains
def test_command_says_what_did_not_take_and_exits_with_1(clean, tmp_path: Path):
    save_encoder(clean, tmp_path / "clean")
    np.save(tmp_path / "pictures.npy", np.random.default_rng(0).integers(0, 256, (1000, 16, 16), dtype=np.uint8))
    line = ("watermark", tmp_path / "clean", "--data", tmp_path / "pictures.npy", "--scheme", "exact")
    small = ("--functions", "24", "--rank", "3", "--n-queries", "200")
    ran = sslguard(*line, *small, "--steps", "2", "--out", tmp_path / "marked")
    assert ran.code == 1
    assert "IT DID NOT TAKE" in ran.out
    assert (tmp_path / "marked/key").is_dir()
    ran = sslguard(*line, *small, "--steps", "2", "--out", tmp_path / "again", "--json")
    assert (ran.code, ran.json["took"]) == (1, False)
    ran = sslguard(*line, *small, "--mode", "head", "--out", tmp_path / "head")
    assert (ran.code, "IT DID NOT TAKE" in ran.out) == (0, False)
    assert "of the 10 nearest stay" in ran.out
