"""Write the files of tests/golden anew, all but its `vectors` and the inputs `texts.txt` and `identity.txt`.

PYTHONPATH=src:tests python -m helpers.golden

Run it after a change of a format, and read the difference: what is sealed or timestamped differs in every run, and
nothing else may differ without a reason. What a reader must find in the files is written to `expected.json`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from helpers.claim_bed import AUTHORITY, COMMITTED, SEED, Answers
from sslguard.claims.claim import claim
from sslguard.claims.commitment import commit, publish, timestamp_file
from sslguard.claims.openings import FORMAT, VERSION
from sslguard.crypto.sealing import Seal
from sslguard.crypto.secrets import Secret
from sslguard.data.texts import TextFile
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.rebuild import build
from sslguard.encoders.words import HashedWords
from sslguard.files import canonical_json
from sslguard.schemes.base import Key
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import OPENINGS, Owner, key_hash, open_key, save_key
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import Decoder, Trigger
from sslguard.verification.verdict import score_suspect

GOLDEN = Path(__file__).parents[1] / "golden"
INPUTS = frozenset({"README.md", "texts.txt", "identity.txt", "vectors"})
PASSPHRASE = "public on purpose"
RECIPIENT = "age1j4f5964wwzc7nv8amvavdzfq6lsme4huxt56csmmz8ugn7qgeg0sux4wj8"
OPENED = datetime(2026, 11, 28, 19, 22, 10, tzinfo=UTC)
OWNER = Owner(bytes(range(32)), bytes(range(32, 64)))
PROTOCOL = Protocol(functions=8, rank=2, n_queries=60)


def main() -> None:
    """Replace every golden file."""
    for path in GOLDEN.iterdir():
        if path.name not in INPUTS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with tempfile.TemporaryDirectory() as work:
        clean, marking = _words(), _marking(Path(work))
        marked = {
            "exact": Exact(PROTOCOL, mode="head").watermark(clean, marking, secret=Secret.from_seed(2)),
            "exact-sub-keys": Exact(PROTOCOL, mode="head", sub_keys=2).watermark(
                clean, marking, secret=Secret.from_seed(2)
            ),
        }
        answers = {name: embed_all(one.encoder, _texts()) for name, one in marked.items()}
        keys = {name: _written(one.key, f"key-{name}") for name, one in marked.items()}
        keys["exact-recipient"] = _written(marked["exact"].key, "key-exact-recipient", _to_recipient())
        keys["clear"] = _written(_pictures(), "key-clear")
        keys["recipient"] = _written(_pictures(), "key-recipient", _to_recipient())
        keys["passphrase"] = _written(_pictures(), "key-passphrase", Seal(PASSPHRASE))
        for name, found in answers.items():
            np.save(GOLDEN / f"{name}-answers.npy", found)
        for name, key in keys.items():
            if name.startswith("exact"):
                answered = name.removesuffix("-recipient")
                key |= _shown(marked[answered].key, answers[answered]) | {"answers": f"{answered}-answers.npy"}
        stored = open_key(GOLDEN / "key-clear")
        (GOLDEN / "commitment.json").write_bytes(commit(stored).document.content)
        bundle = _bundle(Path(work), answers["exact-sub-keys"])
    expected = {
        "passphrase": PASSPHRASE,
        "keys": {f"key-{name}": key for name, key in sorted(keys.items())},
        "bundle": bundle,
    }
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def _texts() -> Any:
    return TextFile("text:texts.txt", GOLDEN / "texts.txt")


def _words() -> Encoder:
    """An encoder of texts small enough to be kept in the repository."""
    description = {"backbone": "bag-of-words", "vocabulary": 64, "width": 32}
    module, dim = build(description, seed=1)
    return Encoder(module.eval(), HashedWords(64, 128), dim, description, source="golden")


def _marking(folder: Path) -> Any:
    rng = np.random.default_rng(3)
    lines = (" ".join(f"w{int(word)}" for word in rng.zipf(1.4, 8) % 96) for _ in range(400))
    (folder / "marking.txt").write_text("\n".join(lines) + "\n")
    return TextFile("text:marking.txt", folder / "marking.txt")


def _pictures() -> SSLGuardKey:
    """A key of the scheme sslguard whose decoder is the identity of the plane."""
    decoder, shape = Decoder((2, 2)), (1, 4, 4)
    decoder[0].weight.data, decoder[0].bias.data = torch.eye(2), torch.zeros(2)
    picture = {"kind": "image", "height": 4, "width": 4, "channels": 1, "mean": [0.5], "std": [0.5], "crop": None}
    return SSLGuardKey(
        secret=Secret.from_seed(1),
        decoder=decoder.eval(),
        trigger=Trigger((torch.arange(16).view(shape) % 2).float(), torch.full(shape, 0.7)),
        sk=torch.tensor((1.0, 0.0)),
        preprocess=picture,
        settings={"n_queries": 4},
        clean_hash="c" * 64,
        watermarked_hash="a" * 64,
        n=4,
    )


def _to_recipient() -> Seal:
    return Seal(recipients=(RECIPIENT,))


def _written(key: Key, name: str, seal: Seal | None = None) -> dict[str, Any]:
    save_key(key, GOLDEN / name, seal=seal, owner=OWNER)
    secret = key.to_parts()[0]["secret"]
    return {"key_hash": key_hash(key), "sealed": seal is not None, "id": OWNER.public, "secret": secret}


def _shown(key: Any, answers: Any) -> dict[str, Any]:
    """Bits of the key and of each of its sub-keys on these answers, and what a commitment to it holds."""
    suspect = _suspect(answers)
    folder = GOLDEN / ("key-exact-sub-keys" if key.sub_keys > 1 else "key-exact")
    scores = [score_suspect(one, suspect, _texts()).evidence for one in (key, *key.split())]
    return {"bits": [score.statistic for score in scores], "commitment": list(commit(open_key(folder)).keys)}


def _bundle(work: Path, answers: Any) -> dict[str, Any]:
    """A claim that opens the first sub-key for the second time, dated by the tests' own authority."""
    (GOLDEN / "authority.pem").write_bytes(AUTHORITY.roots())
    shutil.copytree(GOLDEN / "key-exact-sub-keys", work / "key")
    record = canonical_json({"format": FORMAT, "version": VERSION, "opened": {"1": OPENED.isoformat()}}) + b"\n"
    for path in (work / "key" / OPENINGS, GOLDEN / OPENINGS):
        path.write_bytes(record)
    stored = open_key(work / "key")
    made, _ = publish(stored, work / "commitment.json")
    token = AUTHORITY.token(made.document.content, COMMITTED)
    timestamp_file(work / "commitment.json").write_bytes(token)
    verdict = claim(
        stored.opened(1),
        _suspect(answers),
        _texts(),
        seed=SEED,
        commitment=work / "commitment.json",
        out=GOLDEN / "bundle",
        alpha=1e-6,
    )
    return {"statistic": verdict.significance.statistic, "commitment_sha256": made.document.digest}


def _suspect(answers: Any) -> Any:
    known = dict(zip((GOLDEN / "texts.txt").read_text().splitlines(), answers, strict=True))
    return Answers(lambda batch: np.stack([known[text] for text in batch]))


if __name__ == "__main__":
    main()
