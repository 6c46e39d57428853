"""Readers of files that may come from anybody, each with a good file to damage: what tests and the long run share.

A target reads a folder. It may return, or end in an `SslguardError` of one line; everything else is a fault. What it
returns is compared with what the undamaged folder gave: where that must not be possible, it says so by `Accepted`.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyrage
import torch
from safetensors.torch import save_file

from helpers.claim_bed import AUTHORITY, COMMITTED, SEED, TERMS, Bed
from helpers.envelopes import predicate_of, statement_of
from helpers.images import random_images
from helpers.texts import tokenizer_json
from sslguard.claims.audit import audit
from sslguard.claims.bundle import OF_CLAIMS, read_bundle
from sslguard.claims.commitment import parse_commitment
from sslguard.claims.documents import MAX_DOCUMENT, PAYLOAD_TYPE, read_file, sign_document
from sslguard.claims.openings import read_openings, record_opening
from sslguard.claims.receipts import OF_RECEIPTS, parse_signed, write_receipt
from sslguard.claims.timestamps import verified_time
from sslguard.controls.members import read_population
from sslguard.crypto.sealing import IDENTITY, Seal
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.files import read_state_dict
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import SslguardError
from sslguard.files import canonical_json
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import Owner, is_key_folder, key_hash, open_key, save_key
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import Decoder, Trigger
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.suspects.logged import LoggedAnswers
from sslguard.suspects.opening import open_suspect
from sslguard.tracing.recipients import add, read_recipients
from sslguard.training.pretraining import new_encoder
from sslguard.verification.scores import read_entries

N = 60
GOLDEN = Path(__file__).parents[1] / "golden"


class AcceptedForgeryError(AssertionError):
    """A damaged file was taken for a good one where its owner's signature, or a seal, should have prevented that."""


@dataclass(frozen=True)
class Target:
    """A reader and the files that are damaged for it.

    Attributes:
        folder: the good ones.
        files: those among them that are damaged.
        read: what is tried on a damaged copy; it may return.
    """

    name: str
    folder: Path
    files: tuple[str, ...]
    read: Callable[[Path], None]

    def try_one(self, work: Path, file: str, content: bytes) -> str:
        """Read the good folder with one file replaced, in `work`: "read" or "refused". Raises for any fault."""
        place = work / self.name
        if not place.exists():
            shutil.copytree(self.folder, place)
        path = place / file
        path.write_bytes(content)
        before = _names(place)
        try:
            self.read(place)
        except SslguardError as error:
            said = str(error)
            assert said, "an error without words"
            assert len(said) < 4000, f"an error of {len(said)} characters"
            return "refused"
        finally:
            assert _names(place) == before, "a reader wrote something"
            shutil.copyfile(self.folder / file, path)
        return "read"


def _names(folder: Path) -> list[str]:
    return sorted(f"{where}/{name}" for where, _, names in os.walk(folder) for name in names)


def mutated(content: bytes, random: Random) -> bytes:
    """Make a few random edits: bits, bytes, cuts, repeats, numbers that are large, and words of the formats."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(9)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            del data[at : at + random.choice((1, 2, 8, 64, 4096))]
        elif kind == 3:
            data[at:at] = random.randbytes(random.choice((1, 4, 64)))
        elif kind == 4:
            data[at:at] = data[at : at + random.randrange(1, 200)]
        elif kind == 5:
            data[at : at + 8] = struct.pack("<q", random.choice((-1, 0, 1, 2**31, 2**62, 2**63 - 1)))
        elif kind == 6:
            data[at:at] = random.choice(WORDS)
        elif kind == 7:
            del data[at:]
        elif data:
            other = random.randrange(len(data))
            span = random.randrange(1, 64)
            data[at : at + span] = data[other : other + span]
    return bytes(data)


WORDS = (
    *(b"null", b"NaN", b"-1", b"1e999", b"[[[[", b'{"', b"true", b'""', b"\\ud800", b"../../etc/passwd", b"\x00"),
    *(
        b"9" * 400,
        b'"shape":[9999999999,9999999999]',
        b"[" * 2000,
        b"-> scrypt AAAAAAAAAAAAAAAAAAAAAA 63\n",
        b"<script>",
    ),
)


def make_targets(root: Path) -> list[Target]:
    """Return every target, its good files below `root`. Sets the environment variable that opens the sealed key."""
    from helpers.fuzz_added import added_targets

    identity = pyrage.x25519.Identity.generate()
    (root / "identity").write_text(str(identity))
    os.environ[IDENTITY] = str(root / "identity")
    encoder = new_encoder("resnet-narrow", random_images(1), seed=7)
    encoder.module.eval()
    targets = [*_keys(root, identity), *_claims(root, encoder), *_encoders(root, encoder), *_others(root)]
    targets += [*_packed(root), *_of_libraries(root), *added_targets(root)]
    for target in targets:  # each reads its good files
        with _copied(target.folder) as place:
            target.read(place)
    return targets


def _keys(root: Path, identity: Any) -> Iterator[Target]:
    key, owner = _small_key(), Owner(b"s" * 32, b"k" * 32)
    good = key_hash(key)
    save_key(key, root / "clear", owner=owner)
    save_key(key, root / "sealed", owner=owner, seal=Seal(recipients=(str(identity.to_public()),)))
    entry = {"score": 0.5, "watermark_rate": None, "weights": "ab"}
    scores = {"controls": {"a": entry}, "key": good, "queries": "q", "torch": "t"}
    (root / "clear" / "controls.json").write_text(
        json.dumps({"format": "sslguard-control-scores", "version": 1, "entries": [scores]})
    )

    def sealed(folder: Path) -> None:
        is_key_folder(folder)
        if key_hash(open_key(folder).key) != good:
            raise AcceptedForgeryError("a sealed key was changed and opened")

    def clear(folder: Path) -> None:
        is_key_folder(folder)
        open_key(folder)

    for name, folder in (("golden key", GOLDEN / "key-clear"), ("cured key", root / "cured")):
        if not folder.exists():
            save_key(_cured_key(), folder, owner=owner)
        yield Target(name, folder, ("key.json", "tensors.safetensors"), clear)
    yield Target("key in the clear", root / "clear", ("key.json", "tensors.safetensors"), clear)
    yield Target("sealed key", root / "sealed", ("key.json", "secret.json.age", "tensors.safetensors.age"), sealed)
    yield Target("stored scores", root / "clear", ("controls.json",), lambda folder: void(read_entries(folder)))


def _claims(root: Path, clean: Any) -> Iterator[Target]:
    scheme = Exact(Protocol(n_queries=N, functions=8, rank=2), mode="head", sub_keys=2)
    marked = scheme.watermark(clean, random_images(200), secret=Secret.from_seed(1))
    bed = Bed(root / "bed", marked.key, clean, random_images(80, seed=5), terms=replace(TERMS, alpha=0.01))
    bed = replace(bed, sub_key=1, key_folder=root / "exact")
    bed.folder.mkdir()
    save_key(bed.key, root / "exact", owner=bed.owner)
    record_opening(bed.stored.opened(1))
    bed.commit().claim(marked.encoder, alpha=0.01)
    found = bed.audit()
    assert found.decision == "derived", found.checks
    signed = predicate_of((bed.bundle / "claim.json").read_bytes())

    def audited(folder: Path) -> Any:
        return audit(folder, bed.data, bed.terms, clean=clean)

    def bundle(folder: Path) -> None:
        if audited(folder).decision == "derived" and read_bundle(folder).claim.predicate != signed:
            raise AcceptedForgeryError("a damaged bundle was taken for a claim")

    def token(folder: Path) -> None:
        content = (folder / "commitment.json").read_bytes()
        when = verified_time((folder / "commitment.json.tsr").read_bytes(), content, [AUTHORITY.root], "it")
        if when != COMMITTED:
            raise AcceptedForgeryError("a timestamp was changed and believed")

    def commitment(folder: Path) -> None:
        good = (bed.bundle / "commitment.json").read_bytes()
        if parse_commitment((folder / "commitment.json").read_bytes(), "it").document.content != good:
            raise AcceptedForgeryError("a commitment was changed and believed")

    def payload(folder: Path) -> None:
        """Sign whatever bytes there are as a commitment: only its owner's can be read."""
        from securesystemslib.dsse import Envelope
        from securesystemslib.signer import CryptoSigner

        envelope = Envelope((folder / "payload.json").read_bytes(), PAYLOAD_TYPE, {})
        envelope.sign(CryptoSigner(bed.owner.private_key()))
        if parse_commitment(canonical_json(envelope.to_dict()) + b"\n", "it").document.owner != bed.owner.public:
            raise AcceptedForgeryError("a signature was taken for another owner's")

    def cheat(folder: Path) -> None:
        """Sign whatever `said.json` holds, as a claimant may: no fault, and nothing that decides may differ."""
        try:
            said = json.loads((folder / "said.json").read_bytes())
            document = sign_document(bed.owner, OF_CLAIMS, said)
        except (ValueError, TypeError, RecursionError):
            return
        place = folder / "bundle" / "claim.json"
        good = place.read_bytes()
        place.write_bytes(document.content)
        try:
            if audited(folder / "bundle").decision == "derived":
                for name in ("commitment", "seed", "data", "key", "answers"):
                    if _deciding(said[name]) != _deciding(signed[name]):
                        raise AcceptedForgeryError(f"a claim with another {name} was believed")
        finally:
            place.write_bytes(good)

    (root / "payload").mkdir()
    statement = statement_of((bed.bundle / "commitment.json").read_bytes())
    (root / "payload" / "payload.json").write_bytes(canonical_json(statement))
    (root / "cheat").mkdir()
    shutil.copytree(bed.bundle, root / "cheat" / "bundle")
    (root / "cheat" / "said.json").write_text(json.dumps(signed, indent=0))
    files = ("key.json", "tensors.safetensors")
    yield Target("key with sub-keys", root / "exact", files, lambda folder: void(open_key(folder)))
    yield Target("openings", root / "exact", ("openings.json",), lambda folder: void(read_openings(folder)))
    add(root / "exact", ["acme", "Zo\u00eb AG"])
    yield Target("recipients", root / "exact", ("recipients.jsonl",), lambda folder: void(read_recipients(folder)))
    yield Target("commitment", bed.bundle, ("commitment.json",), commitment)
    yield Target("statement that is signed again", root / "payload", ("payload.json",), payload)
    (root / "receipt").mkdir()
    write_receipt(bed.stored, "acme", root / "receipt" / "receipt.json")
    told = {"receipt": (root / "receipt" / "receipt.json").read_text(), "time": "2025-03-01T00:00:00+00:00"}
    intact = sign_document(bed.owner, OF_RECEIPTS, told)
    (root / "receipt" / "signed.json").write_bytes(intact.content)

    def receipt(folder: Path) -> None:
        found = parse_signed(read_file(folder / "signed.json", MAX_DOCUMENT), "the receipt")
        if found.document.predicate != intact.predicate:
            raise AcceptedForgeryError("a signed receipt was changed and believed")

    yield Target("signed receipt", root / "receipt", ("signed.json",), receipt)
    yield Target("timestamp", bed.bundle, ("commitment.json.tsr",), token)
    files = ("claim.json", "commitment.json", "commitment.json.tsr", "key.safetensors", "answers.npy", "clean.npy")
    yield Target("bundle", bed.bundle, files, bundle)
    yield Target("claim that is signed again", root / "cheat", ("said.json",), cheat)


def _deciding(value: Any) -> Any:
    """Return what decides in a field of a claim: not how the data are called, nor how many answers were missing."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if k in ("asked", "scheme", "fields", "salt", "tensors", "sha256")}
    return value


def _encoders(root: Path, encoder: Any) -> Iterator[Target]:
    save_encoder(encoder, root / "encoder", half=True)
    words = open_key(GOLDEN / "key-exact").key
    assert isinstance(words, ExactKey)
    save_encoder(words.clean, root / "words")
    files = ("encoder.json", "weights.safetensors")
    for name in ("encoder", "words"):
        kind = "encoder" if name == "encoder" else "encoder of texts"
        yield Target(kind, root / name, files, lambda folder: void(load_folder(folder)))
    (root / "population").mkdir()
    members = [{"name": f"c{n}", "kind": "random", "parent": None, "settings": {}} for n in range(3)]
    (root / "population" / "population.json").write_text(json.dumps({"width": 4, "bed": {}, "members": members}))
    accuracies = {"probe": "linear", "train": "a", "test": "b", "accuracy": {"c0": 0.5, "c1": 1.0}}
    (root / "population" / "accuracies.json").write_text(json.dumps(accuracies))

    def population(folder: Path) -> None:
        for member in read_population(folder):
            # Whatever it says, a member lies inside.
            if member.folder.parent != folder or not member.folder.name.strip("."):
                raise AcceptedForgeryError(f"a member lies in {member.folder}")

    yield Target("population", root / "population", ("population.json", "accuracies.json"), population)


def _others(root: Path) -> Iterator[Target]:
    (root / "files").mkdir()
    np.save(root / "files" / "answers.npy", np.ones((4, 3), np.float32))
    np.save(root / "files" / "pictures.npy", np.zeros((3, 4, 4), np.uint8))
    buffer = io.BytesIO()
    torch.save({"state_dict": {"conv1.weight": torch.zeros(2, 3, 3, 3)}}, buffer)
    (root / "files" / "checkpoint.pth").write_bytes(buffer.getvalue())
    assert zipfile.is_zipfile(root / "files" / "checkpoint.pth")
    (root / "files" / "texts.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    np.savez(root / "files" / "pictures.npz", images=np.zeros((3, 4, 4), np.uint8), labels=np.arange(3))
    save_file({"model.conv1.weight": torch.zeros(2, 3, 3, 3)}, root / "files" / "checkpoint.safetensors")
    (root / "files" / "labelled.jsonl").write_text('{"text": "one", "label": "a"}\n{"text": "two", "label": "b"}\n')
    (root / "files" / "table.csv").write_text('text,label\n"one, and ""more""",1\ntwo,2\n')

    def answers(folder: Path) -> None:
        LoggedAnswers(folder / "answers.npy").embed(torch.zeros(4))

    def pictures(folder: Path) -> None:
        for name in ("pictures.npy", "pictures.npz"):
            data = open_data(str(folder / name))
            data.take(range(min(2, len(data))))

    def checkpoint(folder: Path) -> None:
        for name in ("checkpoint.pth", "checkpoint.safetensors"):
            read_state_dict(folder / name)

    def texts(folder: Path) -> None:
        for name in _TEXTS:
            open_data(f"text:{folder / name}").take([0])

    yield Target("logged answers", root / "files", ("answers.npy",), answers)
    yield Target("pictures", root / "files", ("pictures.npy", "pictures.npz"), pictures)
    yield Target("checkpoint", root / "files", ("checkpoint.pth", "checkpoint.safetensors"), checkpoint)
    yield Target("texts", root / "files", _TEXTS, texts)


def _packed(root: Path) -> Iterator[Target]:
    """Yield readers of archives: tar shards, texts packed by gzip, Parquet."""
    import pyarrow
    from PIL import Image
    from pyarrow import parquet

    folder = root / "packed"
    folder.mkdir()
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    members = {"a.txt": b"one", "a.cls": b"1", "b.txt": b"two", "b.cls": b"0"}
    for name, content in (("texts.tar", members), ("pictures.tar", {"a.png": picture.getvalue(), "a.cls": b"3"})):
        with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 30}) as archive:
            for member, data in content.items():
                entry = tarfile.TarInfo(member)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    (folder / "texts.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n" * 20))
    parquet.write_table(pyarrow.table({"text": ["one", "two"], "label": [0, 1]}), folder / "table.parquet")

    def read(spec: str) -> Callable[[Path], None]:
        return lambda place: void(open_data(spec.format(place)).take([0]))

    yield Target("shards of texts", folder, ("texts.tar",), read("wds:{}/texts.tar"))
    yield Target("shards of pictures", folder, ("pictures.tar",), read("wds:{}/pictures.tar"))
    yield Target("packed texts", folder, ("texts.txt.gz",), read("text:{}/texts.txt.gz"))
    yield Target("Parquet", folder, ("table.parquet",), read("text:{}/table.parquet"))


def _of_libraries(root: Path) -> Iterator[Target]:
    """Yield readers of what other libraries write: a transformer's folder, a tokenizer, an ONNX file."""
    import onnx
    from onnx import TensorProto, helper
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=40, max_position_embeddings=64, **sizes)).save_pretrained(root / "transformer")
    (root / "transformer" / "tokenizer.json").write_text(tokenizer_json())
    (root / "transformer" / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 32}')
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "tokenizer.json").write_text(tokenizer_json())
    (root / "onnx").mkdir()
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("ReduceSum", ["f", "axes"], ["s"], keepdims=1),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *side])
        for name, side in (("x", [3, 4, 4]), ("y", [48]))
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [axes])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, root / "onnx" / "model.onnx")

    def tokenizer(folder: Path) -> None:
        TextPreprocess((folder / "tokenizer.json").read_bytes().decode(errors="replace"), 12).prepare(["a cat", "?"])

    files = ("config.json", "model.safetensors", "tokenizer_config.json")
    yield Target("transformer", root / "transformer", files, lambda folder: void(load_encoder(f"hf:{folder}")))
    yield Target("tokenizer", root / "tokenizer", ("tokenizer.json",), tokenizer)
    yield Target(
        *("ONNX", root / "onnx", ("model.onnx",)),
        lambda folder: void(open_suspect(f"onnx:{folder}/model.onnx").embed(torch.zeros(2, 3, 4, 4))),
    )


_TEXTS = ("texts.jsonl", "labelled.jsonl", "table.csv")


def void(_: object) -> None:
    """Drop what a reader returned."""


def _cured_key() -> Any:
    scheme = CuredSSLGuard(steps=1, law_steps=1, batch_size=4, trigger_batch=4, n_queries=4, directions=2)
    encoder = new_encoder("resnet-narrow", random_images(1), seed=7, linear=8)
    return scheme.watermark(encoder, random_images(20), secret=Secret.from_seed(1)).key


def _small_key() -> SSLGuardKey:
    decoder, shape = Decoder((2, 2)), (1, 4, 4)
    return SSLGuardKey(
        secret=Secret.from_seed(1),
        decoder=decoder.eval(),
        trigger=Trigger((torch.arange(16).view(shape) % 2).float(), torch.full(shape, 0.7)),
        sk=torch.tensor((1.0, 0.0)),
        preprocess={"kind": "image", "height": 4, "width": 4, "channels": 1, "mean": [0.5], "std": [0.5], "crop": None},
        settings={"n_queries": 4},
        clean_hash="c" * 64,
        watermarked_hash="a" * 64,
        n=4,
    )


@contextmanager
def _copied(folder: Path) -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory() as work:
        shutil.copytree(folder, Path(work) / "copy")
        yield Path(work) / "copy"


__all__ = ["SEED", "AcceptedForgeryError", "Target", "make_targets", "mutated"]
