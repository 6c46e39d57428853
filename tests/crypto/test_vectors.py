"""tests/golden/vectors: the package computes what it published for other programs to check."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.vectors import FOLDER, VECTORS


def compare(found: Any, wanted: Any, where: str) -> None:
    """Texts, whole numbers and shapes are the same; other numbers to within what linear algebra rounds."""
    assert type(found) is type(wanted), where
    if isinstance(found, dict):
        assert found.keys() == wanted.keys(), where
        for name, value in found.items():
            compare(value, wanted[name], f"{where}/{name}")
    elif isinstance(found, list):
        assert len(found) == len(wanted), where
        for place, pair in enumerate(zip(found, wanted, strict=True)):
            compare(*pair, f"{where}/{place}")
    elif isinstance(found, float):
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9), where
    else:
        assert found == wanted, where


@pytest.mark.parametrize("name", sorted(VECTORS))
def test_the_package_agrees_with_its_vectors(name: str) -> None:
    compare(VECTORS[name](), json.loads((FOLDER / f"{name}.json").read_text()), name)


def test_the_published_envelope_is_signed_by_the_published_key() -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = json.loads((FOLDER / "envelope.json").read_text())
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(found["public_key"]))
    signature, signed = bytes.fromhex(found["signature"]), bytes.fromhex(found["signed"])
    key.verify(signature, signed)
    with pytest.raises(InvalidSignature):
        key.verify(signature, signed.replace(b"sub-key 1", b"sub-key 9"))


def test_every_file_of_vectors_is_checked() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in VECTORS}


def test_the_marked_suspects_carry_evidence_and_the_innocent_one_none() -> None:
    suspects = json.loads((FOLDER / "verdicts.json").read_text())["suspects"]
    bits = {suspect["suspect"].split(",")[0]: -suspect["log2_p"] for suspect in suspects}
    assert bits["marked"] > 10
    assert bits["innocent"] < 5
