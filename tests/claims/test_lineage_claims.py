"""Claims by weights: a secret order or a secret seed counts only by a commitment that is older than the suspect."""

from __future__ import annotations

import stat
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

import sslguard
from helpers.claim_bed import words
from helpers.command_line import sslguard as run
from helpers.envelopes import disclosed, predicate_of
from helpers.timestamp_authority import Authority
from sslguard.claims.bundle import CLAIM, OF_CLAIMS, read_bundle
from sslguard.claims.claim import Opening
from sslguard.claims.commitment import commit, parse_commitment, publish, timestamp_file
from sslguard.claims.documents import sign_document
from sslguard.claims.openings import opened_at, read_openings
from sslguard.claims.outcome import foretold
from sslguard.crypto.secrets import Secret
from sslguard.encoders.folder import save_encoder
from sslguard.errors import ClaimError, KeyFileError, UsageError
from sslguard.files import write_atomic
from sslguard.lineage.groups import find_groups
from sslguard.lineage.order import Order
from sslguard.lineage.weights import open_weights
from sslguard.schemes.keyfile import ORDER, Owner, open_key, save_key
from sslguard.schemes.order import InitialKey, OrderKey
from sslguard.training.pretraining import initial_seed

COMMITTED, SEEN, BEFORE = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 6, 1))
AUTHORITY = Authority()


def noisy(source, share: float, seed: int = 0) -> dict[str, torch.Tensor]:
    weights, generator = open_weights(source), torch.Generator().manual_seed(seed)
    found = {name: torch.from_numpy(weights.read(name)) for name in weights.shapes}
    return {
        n: t + share * t.std() * torch.randn(t.shape, generator=generator) if t.dim() > 1 else t
        for n, t in found.items()
    }


def dated(folder, key, when=COMMITTED):
    """Write a commitment with a timestamp, and return its file."""
    made, _ = publish(open_key(key), folder / "c.json")
    timestamp_file(folder / "c.json").write_bytes(AUTHORITY.token(made.document.content, when))
    return folder / "c.json"


@pytest.fixture(scope="module")
def bed(tiny, tmp_path_factory):
    """A release, its dated commitment, and the bundle of a claim against a noisy copy."""
    place = tmp_path_factory.mktemp("claims")
    sslguard.release(tiny(1), out=place / "r")
    file = dated(place, place / "r" / "key")
    (place / "roots.pem").write_bytes(AUTHORITY.roots())
    sslguard.claim(place / "r" / "key", noisy(place / "r" / "encoder", 0.5), commitment=file, out=place / "bundle")
    return place


def audited(bed, suspect=None, *, bundle="bundle", **terms):
    given = {
        "suspect": noisy(bed / "r" / "encoder", 0.5) if suspect is None else suspect,
        "released": bed / "r" / "encoder",
        "commitment": bed / "c.json",
        "not_after": SEEN,
        "authority_roots": bed / "roots.pem",
        **terms,
    }
    return sslguard.audit(bed / bundle, **given)


class TestOfAnOrder:
    def test_a_copy_is_derived_and_charged(self, bed):
        found = audited(bed)
        assert (found.decision, found.exit_code, found.n_tries) == ("derived", 0, 1 << 20)
        assert found.verdict.significance.log2_pvalue == -256
        assert {c.name for c in found.of("passed")} == {
            *("signature", "commitment", "date", "released encoder", "suspect", "verdict"),
        }
        assert "those that the claim names" in words(found, "passed")
        assert stat.S_IMODE((bed / "bundle").stat().st_mode) == 0o700
        assert sorted(p.name for p in (bed / "bundle").iterdir()) == [
            *("claim.json", "commitment.json", "commitment.json.tsr", "key.safetensors"),
        ]

    def test_weights_that_have_nothing_to_do_with_it_are_not_shown(self, bed, tiny):
        """An independent network, and the encoder that was never released."""
        for other in (tiny(2), tiny(1)):
            found = audited(bed, other)
            assert (found.decision, found.exit_code) == ("not shown", 1)
            assert "others than the claim names" in words(found, "passed")

    @pytest.mark.parametrize(
        ("terms", "reason"),
        [
            ({"not_after": BEFORE}, "the suspect could be asked already on 2026-01-01"),
            ({"not_after": None}, "Unless the commitment is older than the suspect"),
            ({"authority_roots": None}, "no certificates came"),
            ({"opened": COMMITTED}, "before the suspect"),
            ({"released": None}, "The released encoder was not given"),
        ],
    )
    def test_what_is_missing_makes_it_not_checkable(self, bed, terms, reason):
        found = audited(bed, **terms)
        assert (found.decision, found.exit_code, found.verdict is None) == ("not checkable", 4, "opened" not in terms)
        assert reason in words(found, "not checkable", "against")

    def test_without_the_suspects_weights_it_is_not_checkable(self, bed):
        found = sslguard.audit(
            *(bed / "bundle",),
            released=bed / "r" / "encoder",
            not_after=SEEN,
            authority_roots=bed / "roots.pem",
        )
        assert found.decision == "not checkable"
        assert "weights were not given" in words(found, "not checkable")

    def test_another_release_is_forged(self, bed, tiny, tmp_path):
        sslguard.release(tiny(3), out=tmp_path / "other")
        found = audited(bed, released=tmp_path / "other" / "encoder")
        assert (found.decision, found.exit_code) == ("forged", 3)
        assert "is not the encoder that was released" in words(found, "failed")

    def test_another_architecture_is_not_checkable(self, bed):
        found = audited(bed, "random:plain-small")
        assert found.decision == "not checkable"
        assert "says nothing about descent" in words(found, "not checkable")

    def test_an_order_changed_after_the_commitment_is_forged(self, bed, tmp_path):
        """The claimant signs anew, so that only the commitment tells."""
        found = changed(bed, tmp_path, open_key(bed / "r" / "key").owner, secret=Secret.from_seed(9).reveal().hex())
        assert found.decision == "forged"
        assert "not what the commitment commits to" in words(found, "failed")

    def test_a_bundle_that_somebody_else_changed_is_not_read(self, bed, tmp_path):
        content = (bed / "bundle" / CLAIM).read_bytes()
        copied(bed, tmp_path)
        write_atomic(tmp_path / "bundle" / CLAIM, content.replace(b'"weights":"', b'"weights":"0')[:-2] + b"\n")
        with pytest.raises(ClaimError):
            read_bundle(tmp_path / "bundle")


def copied(bed, folder):
    (folder / "bundle").mkdir()
    for path in (bed / "bundle").iterdir():
        (folder / "bundle" / path.name).write_bytes(path.read_bytes())


def changed(bed, folder, owner: Owner, **order):
    """Audit the bundle with its order changed and signed by this owner."""
    copied(bed, folder)
    signed = dict(read_bundle(bed / "bundle").claim.predicate)
    signed["key"]["fields"]["order"] |= order
    signed.pop("owner")
    (folder / "bundle" / CLAIM).write_bytes(sign_document(owner, OF_CLAIMS, signed).content)
    return audited(bed, bundle=folder / "bundle")


class TestReorderedToFit:
    """A claimant without any part in an innocent's network reorders his own units to fit it."""

    @staticmethod
    def fitting(tiny):
        """Return an innocent that shares an ancestor with the claimant's network, and that network with its order.

        Both were made of one public ancestor, so that units of the two match in place without any release.
        """
        return noisy(tiny(5), 0.2, seed=1), noisy(tiny(5), 0.2, seed=2)

    def claimed(self, tmp_path, order: Order, released, innocent, when=COMMITTED):
        owner = Owner.generate()
        save_key(OrderKey(order, ""), tmp_path / "key", owner=owner)
        commitment = dated(tmp_path, tmp_path / "key", when)
        out = tmp_path / "bundle"
        opening = Opening(open_key(tmp_path / "key"), commitment)
        opening.check()
        out.mkdir()
        said = {"seed": "", "data": {}, "controls": [], "answers": {}, "suspect": "innocent", "claimed": {}}
        opening.fill(out, {**said, "weights": open_weights(innocent).digest()}, None)
        (tmp_path / "roots.pem").write_bytes(AUTHORITY.roots())
        return sslguard.audit(
            out, suspect=innocent, released=released, not_after=SEEN, authority_roots=tmp_path / "roots.pem"
        )

    def test_his_network_matches_in_place_without_a_key(self, tiny):
        innocent, own = self.fitting(tiny)
        assert sslguard.compare_weights(own, innocent).decision == "shared weights"

    def test_an_order_that_does_not_lead_to_his_network_is_forged(self, tiny, tmp_path):
        """He publishes the units that fit, and states the hash of whatever the order comes from."""
        innocent, own = self.fitting(tiny)
        weights = open_weights(own)
        names = tuple(group.name for group in find_groups(weights) if group.whole)
        for own_hash in (weights.digest(), "0" * 64):
            folder = tmp_path / own_hash[:4]
            folder.mkdir()
            found = self.claimed(folder, Order(Secret.generate(), own_hash, names), own, innocent)
            assert (found.decision, found.exit_code) == ("forged", 3)
            assert "is not the encoder that was released" in words(found, "failed")

    def test_an_order_that_does_no_longer_fits(self, tiny, tmp_path):
        """Whatever order he begins with: the one that he must publish is drawn from its hash."""
        innocent, own = self.fitting(tiny)
        encoder = tiny(5)
        encoder.module.load_state_dict(own)
        sslguard.release(encoder, out=tmp_path / "r")
        order = open_key(tmp_path / "r" / "key").order
        found = self.claimed(tmp_path, order, tmp_path / "r" / "encoder", innocent)
        assert (found.decision, found.exit_code) == ("not shown", 1)
        assert found.verdict.significance.log2_pvalue > -20


class TestOfASeed:
    def test_what_grew_from_it_is_derived_and_other_networks_are_not(self, tiny, tmp_path):
        place = tmp_path / "place"
        key = InitialKey(Secret.from_seed(3), {"backbone": "resnet-narrow", "channels": 1})
        save_key(key, place / "seed")
        dated(place, place / "seed")
        (place / "roots.pem").write_bytes(AUTHORITY.roots())
        grown = noisy(tiny(initial_seed(Secret.from_seed(3))), 0.5)
        for suspect, decision in ((grown, "derived"), (tiny(0), "not shown")):
            bundle = tmp_path / decision.replace(" ", "-")
            made = sslguard.claim(place / "seed", suspect, commitment=place / "c.json", out=bundle)
            terms = {"not_after": SEEN, "authority_roots": place / "roots.pem", "suspect": suspect}
            found = sslguard.audit(bundle, **terms)
            assert (made.decision, found.decision) == (decision, decision)
            assert foretold(made, dated=True) == decision
            assert foretold(made, dated=False) == "not checkable"
            assert sslguard.audit(bundle, **{**terms, "not_after": BEFORE}).decision == "not checkable"


@pytest.fixture(scope="module")
def place(bed, key_of, tmp_path_factory):
    """A marked key that holds the order of the release; the encoder lies beside it."""
    folder = tmp_path_factory.mktemp("marked")
    order = open_key(bed / "r" / "key").order
    save_key(key_of(), folder / "key", order=order)
    save_key(key_of(), folder / "plain")
    save_encoder(sslguard.load_encoder(bed / "r" / "encoder"), folder / "encoder")
    dated(folder, folder / "key")
    (folder / "roots.pem").write_bytes(AUTHORITY.roots())
    return folder


class TestBesideAMark:
    def test_the_order_is_opened_and_the_mark_is_not(self, place, tmp_path):
        suspect = noisy(place / "encoder", 0.5)
        made = sslguard.claim(place / "key", suspect, commitment=place / "c.json", out=tmp_path / "b", lineage=True)
        assert (made.decision, made.n_claims) == ("derived", 2)  # mark and order share the level
        secret = open_key(place / "key").key.secret.reveal().hex()
        assert secret.encode() not in disclosed((tmp_path / "b" / CLAIM).read_bytes())
        assert read_openings(place / "key").keys() == {ORDER}
        assert opened_at(place / "key", 0) is not None  # whoever has a part of it knows the order
        assert opened_at(place / "key", 1) is None
        found = sslguard.audit(
            *(tmp_path / "b",),
            suspect=suspect,
            released=place / "encoder",
            not_after=SEEN,
            authority_roots=place / "roots.pem",
        )
        assert (found.decision, found.n_tries) == ("derived", 2 << 20)
        assert parse_commitment((place / "c.json").read_bytes(), "c").n_tests == 2

    def test_what_does_not_go_together_is_said(self, place, images, tmp_path):
        out, commitment = tmp_path / "b", place / "c.json"
        with pytest.raises(KeyFileError, match="no secret order"):
            sslguard.claim(place / "plain", place / "encoder", commitment=commitment, out=out, lineage=True)
        with pytest.raises(UsageError, match="asks nothing"):
            sslguard.claim(place / "key", place / "encoder", images(9), commitment=commitment, out=out, lineage=True)
        with pytest.raises(UsageError, match="data and the seed"):
            sslguard.claim(place / "key", place / "encoder", commitment=commitment, out=out)
        with pytest.raises(ClaimError, match="does not commit to this key"):
            sslguard.claim(
                replace(open_key(place / "key"), owner=Owner.generate()),
                *(place / "encoder",),
                released=place / "encoder",
                commitment=commitment,
                out=out,
                lineage=True,
            )
        assert not out.exists()


def test_bundles_of_mixed_kinds_are_not_read(bed, tmp_path) -> None:
    copied(bed, tmp_path)
    np.save(tmp_path / "bundle" / "answers.npy", np.zeros((1, 1)))
    with pytest.raises(ClaimError, match="hash of weights"):
        read_bundle(tmp_path / "bundle")
    (tmp_path / "bundle" / "answers.npy").unlink()
    signed = dict(read_bundle(tmp_path / "bundle").claim.predicate)
    owner = open_key(bed / "r" / "key").owner
    for weights in ("zz", 3, None):
        fields = {name: value for name, value in signed.items() if name not in ("owner", "weights")}
        fields |= {} if weights is None else {"weights": weights}
        (tmp_path / "bundle" / CLAIM).write_bytes(sign_document(owner, OF_CLAIMS, fields).content)
        with pytest.raises(ClaimError):
            read_bundle(tmp_path / "bundle")


def test_on_the_command_line(bed, tmp_path) -> None:
    encoder, key, bundle = bed / "r" / "encoder", bed / "r" / "key", tmp_path / "b"
    ran = run("claim", key, encoder, "--commitment", bed / "c.json", "--out", bundle, "--quiet")
    assert ran.code == 0
    assert "in place" in ran.out
    assert "derived if the commitment is shown to be older; undated, not checkable" in ran.out
    terms = ("--not-after", "2026-06-01", "--authority-roots", bed / "roots.pem", "--suspect", encoder)
    ran = run("audit", bundle, *terms, "--released", encoder, "--report", tmp_path / "p.html", "--json")
    assert (ran.code, ran.json["decision"]) == (0, "derived")
    page = (tmp_path / "p.html").read_text()
    assert "hidden units were put in an order" in page
    assert "asked about items" not in page
    assert run("audit", bundle, *terms, "--quiet").code == 4  # without the release
    assert run("audit", bundle, *terms, "--data", "mnist:test", "--seed", "x").code == 2
    assert run("claim", key, encoder, "--commitment", bed / "c.json", "--out", tmp_path / "c", "--seed", "x").code == 2
    assert predicate_of((bundle / CLAIM).read_bytes())["claimed"]["lineage"] is None
    assert commit(open_key(key)).n_tests == 1
