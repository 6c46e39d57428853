"""A secret order in a commitment: dated it costs 20 bits, undated 64, and another order is refused."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

import sslguard
from helpers.command_line import sslguard as run
from helpers.envelopes import disclosed
from helpers.timestamp_authority import Authority
from sslguard.claims.commitment import OF_COMMITMENTS, commit, parse_commitment
from sslguard.claims.documents import sign_document
from sslguard.errors import ClaimError, UsageError
from sslguard.schemes.keyfile import open_key, save_key

DATED, LATER, EARLIER = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 6, 1))


@pytest.fixture(scope="module")
def bed(tiny, tmp_path_factory):
    """A release, its key, its commitment with a timestamp, and the certificates that vouch for that."""
    place, authority = tmp_path_factory.mktemp("release"), Authority()
    sslguard.release(tiny(1), out=place / "r")
    content = commit(open_key(place / "r" / "key")).document.content
    (place / "c.json").write_bytes(content)
    (place / "c.json.tsr").write_bytes(authority.token(content, DATED))
    (place / "undated.json").write_bytes(content)
    (place / "roots.pem").write_bytes(authority.roots())
    return place


def compared(bed, **terms):
    terms = {"commitment": bed / "c.json", "not_after": LATER, "authority_roots": bed / "roots.pem", **terms}
    return sslguard.compare_weights(bed / "r" / "encoder", bed / "r" / "encoder", key=bed / "r" / "key", **terms)


@pytest.mark.parametrize(
    ("terms", "bits", "words"),
    [
        ({}, 20, "2026-03-01, older than the suspect"),
        ({"not_after": EARLIER}, 64, "chosen to fit"),
        ({"not_after": None}, 64, "the suspect's date"),
        ({"authority_roots": None}, 64, "certificates"),
        ({"commitment": "undated.json"}, 64, "a timestamp"),
    ],
)
def test_what_is_subtracted(bed, terms, bits: int, words: str) -> None:
    if "commitment" in terms:
        terms = {"commitment": bed / terms["commitment"]}
    found = compared(bed, **terms)
    assert found.n_claims == 1 << bits
    assert words in found.dated
    assert found.decision == "shared weights"  # 256 bits are enough for either


def test_another_commitment_is_refused(bed, tiny, key_of, tmp_path) -> None:
    sslguard.release(tiny(1), out=tmp_path / "other")
    (tmp_path / "c.json").write_bytes(commit(open_key(tmp_path / "other" / "key")).document.content)
    with pytest.raises(ClaimError, match="does not commit to the secret order"):
        compared(bed, commitment=tmp_path / "c.json")
    with pytest.raises(UsageError, match="give the key too"):
        sslguard.compare_weights(tiny(1), tiny(1), commitment=bed / "c.json")
    (bed / "damaged.json").write_bytes(b"{}")
    with pytest.raises(ClaimError):
        compared(bed, commitment=bed / "damaged.json")


def test_a_marked_key_commits_to_its_order_beside_its_mark(bed, key_of, tmp_path) -> None:
    order = open_key(bed / "r" / "key").order
    save_key(key_of(), tmp_path / "with", order=order)
    save_key(key_of(), tmp_path / "without")
    found = commit(open_key(tmp_path / "with"))
    assert found.order is not None
    assert len(found.keys) == 1  # the mark is charged for no second key
    assert commit(open_key(tmp_path / "without")).order is None
    assert parse_commitment(found.document.content, "c").order == found.order
    assert order.secret.reveal().hex().encode() not in disclosed(found.document.content)


def test_a_damaged_order_in_a_commitment_is_refused(bed) -> None:
    stored = open_key(bed / "r" / "key")
    for order in (3, "zz", ""):
        document = sign_document(stored.owner, OF_COMMITMENTS, {"keys": list(commit(stored).keys), "order": order})
        with pytest.raises(ClaimError, match="the order in c"):
            parse_commitment(document.content, "c")


def test_on_the_command_line(bed) -> None:
    encoder, key = bed / "r" / "encoder", bed / "r" / "key"
    ran = run(
        *("lineage", encoder, encoder, "--key", key, "--commitment", bed / "c.json", "--not-after", "2026-06-01"),
        *("--authority-roots", bed / "roots.pem", "--quiet"),
    )
    assert ran.code == 0
    assert "shared among 2^20 claims" in ran.out
    assert "older than the suspect" in ran.out
    assert run("lineage", encoder, encoder, "--key", key, "--commitment", "none.json").code == 3
    assert run("lineage", encoder, encoder, "--key", key, "--not-after", "soon").code == 2
