"""Write tests/golden/vectors anew: small examples with which another program can check what it computes.

PYTHONPATH=src:tests python -m helpers.vectors

docs/reference/vectors.md says what each file holds and how to compare. Everything is public and drawn from fixed seeds,
so two runs differ in nothing but the last digits of figures that a linear algebra library computes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.claims.commitment import OF_COMMITMENTS
from sslguard.claims.documents import sign_document
from sslguard.crypto.secrets import Secret
from sslguard.data.pool import pool_of
from sslguard.data.texts import TextFile
from sslguard.data.watched import digest
from sslguard.encoders.base import Encoder
from sslguard.encoders.words import HashedWords
from sslguard.schemes.exact.bank import Bank, draw_left, draw_right, on_sphere, stream_context, sub_secrets
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.keyfile import Owner
from sslguard.stats.corrections import bonferroni, fisher
from sslguard.stats.direction import direction_test
from sslguard.stats.left import left_test, left_witnesses
from sslguard.stats.moments import Moments
from sslguard.stats.spectra import Spectra
from sslguard.stats.witness import witnesses

FOLDER = Path(__file__).parents[1] / "golden" / "vectors"
SECRET = Secret(bytes(range(32)))
Array = NDArray[np.float64]


def streams() -> dict[str, Any]:
    """Return what two streams give, draw after draw."""
    cases = []
    for name, context in (("golden", b"context"), ("carrier", b"")):
        stream = SECRET.stream(name, context)
        draws: list[dict[str, Any]] = [
            {"draw": "uniform", "shape": [2, 3], "values": stream.uniform((2, 3)).tolist()},
            {"draw": "normal", "shape": [4], "values": stream.normal((4,)).tolist()},
            {"draw": "permutation", "n": 8, "values": stream.permutation(8).tolist()},
            {"draw": "words", "n": 3, "values": stream.words(3).tolist()},
            {"draw": "integer", "value": str(stream.integer())},
        ]
        derived = SECRET.derive(name, context).reveal().hex()
        cases.append({"name": name, "context": context.hex(), "derived": derived, "draws": draws})
    return {"secret": SECRET.reveal().hex(), "streams": cases}


def secrets() -> dict[str, Any]:
    """Return the context, the bank's digest, and A and G of a key with two sub-keys over a tiny bank."""
    protocol, bank, redraw, sub_keys = Protocol(functions=4, rank=2, n_queries=8), _bank(), 3, 2
    module, description = torch.nn.Linear(2, 3), {"backbone": "linear", "width": 3}
    module.load_state_dict({"weight": torch.arange(6.0).reshape(3, 2) / 4, "bias": torch.tensor([0.5, -0.5, 0.25])})
    clean = Encoder(module.eval(), HashedWords(4, 8), 3, description, source="vectors")
    context = stream_context(clean, protocol)
    bound = context + redraw.to_bytes(8, "big")
    keys = []
    for one in sub_secrets(SECRET, sub_keys, context):
        left = draw_left(one, protocol, bank, bound)
        right = draw_right(one, protocol, bank, left, bound)
        keys.append({"secret": one.reveal().hex(), "left": left.tolist(), "right": right.tolist()})
    rank = protocol.rank * sub_keys
    return {
        "secret": SECRET.reveal().hex(),
        "weights": {name: _tensor(tensor) for name, tensor in sorted(module.state_dict().items())},
        "architecture": description,
        "preprocess": clean.preprocess.to_json(),
        "protocol": protocol.to_json(),
        "redraw": redraw,
        "bank": {name: array.tolist() for name, array in bank.to_arrays().items()},
        "protocol_sha256": protocol.digest().hex(),
        "clean_hash": context[:64].decode(),
        "context_sha256": hashlib.sha256(context).hexdigest(),
        "bank_sha256": bank.digest().hex(),
        "sub_keys": keys,
        "A": on_sphere(np.hstack([np.array(key["left"]) for key in keys]), rank).tolist(),
        "G": on_sphere(np.vstack([np.array(key["right"]) for key in keys]), rank).tolist(),
    }


def left_tests() -> dict[str, Any]:
    """Return p-values of left witnesses S against left secrets A, deep and shallow."""
    rng = np.random.default_rng(1)
    left = rng.standard_normal((6, 2))
    near = np.linalg.qr(left + 1e-3 * rng.standard_normal(left.shape))[0]
    pairs = {
        "independent": (np.linalg.qr(rng.standard_normal((6, 2)))[0], left),
        "one direction": (near[:, :1], left),
        "near": (near, left),
        "as many directions as functions": (np.eye(6), left),
        "nothing carried": (np.zeros((6, 2)), left),
        "deep": _deep(rng),
    }
    return {
        "cases": [
            {"case": name, "S": s.tolist(), "A": a.tolist(), "log2_p": left_test(s, a)}
            for name, (s, a) in pairs.items()
        ]
    }


def right_tests() -> dict[str, Any]:
    """Return p-values of right witnesses V against right secrets G."""
    rng = np.random.default_rng(2)
    right = rng.standard_normal((2, 5))
    basis = np.linalg.qr(rng.standard_normal((5, 3)))[0]
    cases: list[tuple[str, Array, Array, Array | None]] = [
        ("independent", rng.standard_normal((2, 5)), right, None),
        ("along G", right + 0.1 * rng.standard_normal((2, 5)), right, None),
        ("against G", -right + 0.1 * rng.standard_normal((2, 5)), right, None),
        ("within a subspace", right @ basis @ basis.T + 0.1 * rng.standard_normal((2, 3)) @ basis.T, right, basis),
        ("nothing carried", np.zeros((2, 5)), right, None),
    ]
    deep = rng.standard_normal((4, 64))
    cases.append(("deep", deep + 0.02 * rng.standard_normal((4, 64)), deep, None))
    return {
        "cases": [
            {
                "case": name,
                "V": v.tolist(),
                "G": g.tolist(),
                "basis": None if q is None else q.tolist(),
                "log2_p": direction_test(v, g, n_queries=1, basis=q).details["log2_tail"],
            }
            for name, v, g, q in cases
        ]
    }


def verdicts() -> dict[str, Any]:
    """Return all witnesses and both sides' p-values of three tiny suspects."""
    rng = np.random.default_rng(3)
    n, q, b, rank = 48, 3, 6, 2
    h, psi = rng.standard_normal((n, q)) * (1.0, 0.7, 0.4), rng.standard_normal((n, b))
    spread, weights = np.array([1.3, 1.0, 0.5]), np.linspace(1.2, 0.8, b)
    left = on_sphere(rng.standard_normal((b, rank)), rank)
    right = on_sphere(rng.standard_normal((rank, q)), rank)
    marked = h + 0.5 * (psi * weights) @ left @ right * spread
    wide = marked @ rng.standard_normal((q, 5)) + 0.2 * rng.standard_normal((n, 5)) + 1.0
    public = {"h": h, "psi": psi, "spread": spread, "weights": weights, "A": left, "G": right}
    innocent = h @ rng.standard_normal((q, 5)) + psi @ rng.standard_normal((b, 5)) + rng.standard_normal((n, 5))
    suspects = {
        "marked, as wide as h": (marked, True),
        "marked, behind a linear map": (wide, False),
        "innocent": (innocent, False),
    }
    return {
        **{name: array.tolist() for name, array in public.items()},
        "suspects": [
            {"suspect": name, "g": g.tolist(), **_sides(h, psi, g, same, spread, weights, left, right)}
            for name, (g, same) in suspects.items()
        ],
    }


def pools() -> dict[str, Any]:
    """Return hashes of items, and the pools of the first 1, 2, … of them."""
    texts = ["a", "b b", "Schlüssel", "d", "e", "f", "g"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.txt"
        path.write_text("\n".join(texts), encoding="utf-8")
        data = TextFile("text:texts.txt", path)
        found = [{"items": n, "pool": pool_of(data.slice(0, n))} for n in range(1, len(texts) + 1)]
    picture = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4)
    return {
        "picture": {"dtype": "|u1", "shape": [1, 3, 4], "values": picture.flatten().tolist(), "sha256": _hex(picture)},
        "texts": [{"text": text, "sha256": _hex(text)} for text in texts],
        "pools": found,
    }


def _hex(item: Any) -> str:
    return digest(item).hex()


def _tensor(tensor: torch.Tensor) -> dict[str, Any]:
    kind = str(tensor.dtype).removeprefix("torch.")
    return {"dtype": kind, "shape": list(tensor.shape), "values": tensor.flatten().tolist()}


def _bank() -> Bank:
    """Return a bank of 4 functions of 3 statistics, over embeddings of width 3 that vary along 2 axes."""
    return Bank.from_arrays(
        {
            "mean": np.array([0.5, -0.25, 0.125]),
            "axes": np.array([[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0]]),
            "deviations": np.array([0.75, 0.5]),
            "spread": np.array([1.25, 0.625]),
            "centre": np.array([1.0, 2.0, 3.0]),
            "mixing": np.arange(12, dtype=float).reshape(3, 4) / 8 - 0.5,
            "linear": np.arange(8, dtype=float).reshape(2, 4) / 16,
            "weights": np.array([1.5, 1.0, 0.75, 0.25]),
        }
    )


def _deep(rng: np.random.Generator) -> tuple[Array, Array]:
    """Return a pair whose p-value lies below the smallest double."""
    left = rng.standard_normal((120, 4))
    return np.linalg.qr(left + 1e-6 * rng.standard_normal(left.shape))[0], left


def _sides(
    h: Array, psi: Array, g: Array, same: bool, spread: Array, weights: Array, left: Array, right: Array
) -> dict[str, Any]:
    moments = Moments(h.shape[1], psi.shape[1], g.shape[1], same=same)
    moments.update(h, psi, g)
    spectra = Spectra(moments)
    lefts = {name: (s, left_test(s, left)) for name, s in left_witnesses(spectra).items()}
    mixed = spectra.mixed(weights[:, None] * left)
    rights = {}
    for name, (v, basis) in witnesses(mixed, spread).items():
        found = direction_test(v, right, n_queries=len(h), basis=basis)
        rights[name] = v / (np.linalg.norm(v) or 1.0), min(0.0, found.details["log2_tail"])
    sides = [min(p for _, p in side.values()) for side in (lefts, rights)]
    tails = [float(bonferroni([p], n=len(side))[0]) for p, side in zip(sides, (lefts, rights), strict=True)]
    return {
        "left": {name: {"projector": (s @ s.T).tolist(), "log2_p": p} for name, (s, p) in lefts.items()},
        "right": {name: {"V": v.tolist(), "log2_p": p} for name, (v, p) in rights.items()},
        "left_log2_p": tails[0],
        "right_log2_p": tails[1],
        "log2_p": float(fisher(tails)),
    }


def envelope() -> dict[str, Any]:
    """Return a commitment under a public test key, and what is signed of it."""
    owner = Owner(salt=bytes(range(32)), signing_key=bytes(range(32, 64)))
    said = {"keys": [hashlib.sha256(bytes([i])).hexdigest() for i in range(3)], "owner": owner.public}
    document = sign_document(owner, OF_COMMITMENTS, said)
    found = json.loads(document.content)
    payload = base64.b64decode(found["payload"])
    kind = found["payloadType"].encode()
    (signature,) = found["signatures"]
    return {
        "private_key": owner.signing_key.hex(),
        "public_key": owner.public,
        "statement": payload.decode(),
        "signed": (b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)).hex(),
        "signature": base64.b64decode(signature["sig"]).hex(),
        "keyid": signature["keyid"],
        "document": document.content.decode(),
        "sha256": document.digest,
    }


VECTORS: Mapping[str, Callable[[], dict[str, Any]]] = {
    "streams": streams,
    "secrets": secrets,
    "left": left_tests,
    "right": right_tests,
    "verdicts": verdicts,
    "pools": pools,
    "envelope": envelope,
}


def main() -> None:
    """Write every file of vectors."""
    FOLDER.mkdir(exist_ok=True)
    for name, made in VECTORS.items():
        text = json.dumps(made(), indent=1)
        # A row of numbers stands on one line.
        text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda row: f"[{re.sub(chr(10) + ' *', ' ', row[1])}]", text)
        (FOLDER / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
