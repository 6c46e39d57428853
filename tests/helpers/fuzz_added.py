"""More readers of what strangers write: claims by weights, pools, settings, caches, pictures, requests and replies."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cyclopts import CycloptsError
from PIL import Image

import sslguard
from helpers.claim_bed import AUTHORITY, COMMITTED, SEEN
from helpers.fuzz_targets import AcceptedForgeryError, Target, void
from helpers.images import random_images
from sslguard.bench.config import read_config
from sslguard.claims.bundle import read_bundle
from sslguard.claims.commitment import publish, timestamp_file
from sslguard.cli.entry import app
from sslguard.crypto.secrets import Secret
from sslguard.data.pool import pool_of
from sslguard.data.specs import open_data
from sslguard.encoders.folder import load_folder
from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import Owner, open_key, save_key
from sslguard.serve import wire
from sslguard.suspects.cached import AnswerStore
from sslguard.suspects.http import Reply
from sslguard.suspects.protocols import OIP, TEI, OpenAI, Template
from sslguard.suspects.protocols.oip import LENGTH_HEADER
from sslguard.suspects.remote import HTTPSuspect
from sslguard.training.pretraining import new_encoder

BENCH = Path(__file__).parents[2] / "benchmarks" / "small.toml"
SETTINGS = """
[embed]
encoder = "random:resnet-narrow@16"
data = "pictures.npy[0:10]"
out = "answers.npy"
batch-size = 4
quiet = true
"""


def added_targets(root: Path) -> Iterator[Target]:
    """Yield every target of this module, its good files below `root`."""
    yield from _of_weights(root)
    yield from _of_pools(root)
    yield from _of_settings(root)
    yield from _of_answers(root)
    yield from _of_wire(root)


def _of_weights(root: Path) -> Iterator[Target]:
    """Yield readers of keys to a secret order, and of claims by weights."""
    place = root / "weights"
    place.mkdir()
    encoder = new_encoder("resnet-narrow", random_images(1), seed=7)
    sslguard.release(encoder, out=place / "released")
    released, suspect = place / "released" / "encoder", load_folder(place / "released" / "encoder")
    key = place / "released" / "key"
    made, _ = publish(open_key(key), place / "c.json")
    timestamp_file(place / "c.json").write_bytes(AUTHORITY.token(made.document.content, COMMITTED))
    sslguard.claim(key, suspect, commitment=place / "c.json", out=place / "bundle")
    (place / "roots.pem").write_bytes(AUTHORITY.roots())
    said = read_bundle(place / "bundle").claim.predicate

    def audited(folder: Path) -> None:
        found = sslguard.audit(
            folder, suspect=suspect, released=released, not_after=SEEN, authority_roots=place / "roots.pem"
        )
        if found.decision == "derived" and read_bundle(folder).claim.predicate != said:
            raise AcceptedForgeryError("a damaged bundle was taken for a claim by weights")

    files = ("claim.json", "commitment.json", "commitment.json.tsr", "key.safetensors")
    yield Target("claim by weights", place / "bundle", files, audited)
    files = tuple(sorted(path.name for path in key.iterdir()))
    shutil.copytree(key, root / "order")
    yield Target("key with a secret order", root / "order", files, lambda folder: void(open_key(folder)))


def _of_pools(root: Path) -> Iterator[Target]:
    """Yield the reader of a key whose secrets are bound to a pool."""
    clean, pool = new_encoder("resnet-narrow", random_images(1), seed=7), random_images(80, seed=5)
    protocol = Protocol(n_queries=60, functions=8, rank=2, pool=pool_of(pool))
    marked = Exact(protocol, mode="head").watermark(clean, random_images(200), secret=Secret.from_seed(1))
    save_key(marked.key, root / "pool", owner=Owner(b"s" * 32, b"k" * 32))
    good = marked.key.left()

    def read(folder: Path) -> None:
        key: Any = open_key(folder).key
        if key.pool != protocol.pool and np.array_equal(key.left(), good):
            raise AcceptedForgeryError("a key of another pool has the same secrets")

    yield Target("key of a pool", root / "pool", ("key.json",), read)


def _of_settings(root: Path) -> Iterator[Target]:
    """Yield readers of settings: the options of a command, and a benchmark."""
    (root / "settings").mkdir()
    (root / "settings" / "run.toml").write_text(SETTINGS)
    shutil.copyfile(BENCH, root / "settings" / "bench.toml")

    def options(folder: Path) -> None:
        tokens = ["embed", "--config", str(folder / "run.toml")]
        try:
            app.parse_args(tokens, print_error=False, exit_on_error=False)
        except CycloptsError as error:
            raise UsageError(str(error)[:3000] or "no such option") from error

    yield Target("options in a file", root / "settings", ("run.toml",), options)
    yield Target(
        "benchmark", root / "settings", ("bench.toml",), lambda folder: void(read_config(folder / "bench.toml"))
    )


def _of_answers(root: Path) -> Iterator[Target]:
    """Yield readers of stored answers and of folders of pictures."""
    query = b"q" * 32
    store = AnswerStore(root / "answers", "suspect")
    store.put([query, b"r" * 32], np.ones((2, 8), np.float32))
    store.close()

    def answers(folder: Path) -> None:
        store = AnswerStore(folder, "suspect")
        try:
            len(store)
            store.get(query)
        finally:
            store.close()

    yield Target("stored answers", root / "answers", (store.path.name,), answers)
    (root / "folder" / "a").mkdir(parents=True)
    kinds = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "PPM", "TIFF")
    for kind in kinds:
        Image.new("RGB", (6, 5), (250, 3, 80)).save(root / "folder" / "a" / f"one.{kind.lower()}", kind)

    def pictures(folder: Path) -> None:
        data = open_data(str(folder))
        for place in range(len(data)):
            data.take([place])

    yield Target("folder of pictures", root / "folder", tuple(f"a/one.{kind.lower()}" for kind in kinds), pictures)


def _of_wire(root: Path) -> Iterator[Target]:
    """Yield readers of what comes over a network: requests to `serve`, and replies of suspects."""
    requests, replies = root / "requests", root / "replies"
    requests.mkdir()
    replies.mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (6, 5)).save(picture, "PNG")
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 1, 2, 2], "data": [0, 1, 2, 3]}
    head = json.dumps({"inputs": [{**tensor, "data": None, "parameters": {"binary_data_size": 4}}]}).encode()
    asked: dict[str, Any] = {
        "openai.json": {"input": ["one", "two"], "model": "m", "encoding_format": "base64", "dimensions": 2},
        "tei.json": {"inputs": ["one", "two"], "truncate": True},
        "either.json": {"images": [base64.b64encode(picture.getvalue()).decode()]},
        "oip.json": {"inputs": [tensor]},
    }
    for name, content in asked.items():
        (requests / name).write_text(json.dumps(content))
    (requests / "oip.bin").write_bytes(head.replace(b'"data": null, ', b"") + bytes(4))
    read: dict[str, Callable[[bytes], wire.Ask]] = {
        "openai.json": lambda body: wire.openai_ask(body, 64),
        "tei.json": lambda body: wire.tei_ask(body, 64),
        "either.json": lambda body: wire.either_ask(body, 64),
        "oip.json": lambda body: wire.oip_ask(body, {}, 64),
        "oip.bin": lambda body: wire.oip_ask(body, {LENGTH_HEADER: str(len(body) - 4)}, 64),
    }

    def request(name: str) -> Callable[[Path], None]:
        def one(folder: Path) -> None:
            for item in read[name]((folder / name).read_bytes()).items:
                if isinstance(item, wire.Picture):
                    item.decoded()

        return one

    for name in read:
        yield Target(f"request, {name}", requests, (name,), request(name))
    yield from _of_replies(replies)


def _of_replies(folder: Path) -> Iterator[Target]:
    answers, batch = [[1.0, 2.0], [3.0, 4.5]], ["one", "two"]
    output = {"name": "embeddings", "datatype": "FP32", "shape": [2, 2]}
    packed = json.dumps({"outputs": [{**output, "parameters": {"binary_data_size": 16}}]}).encode()
    coded = [base64.b64encode(np.array(row, "<f4").tobytes()).decode() for row in answers]
    said = {
        "openai": {"data": [{"index": n, "embedding": row} for n, row in enumerate(coded)]},
        "tei": answers,
        "oip": {"outputs": [{**output, "data": [1.0, 2.0, 3.0, 4.5]}]},
        "json": {"found": [{"vector": row} for row in answers]},
    }
    for name, content in said.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "oip, bytes").write_bytes(packed + np.array(answers, "<f4").tobytes())
    spoken = {
        "openai": OpenAI("m", "base64"),
        "tei": TEI(),
        "oip": OIP("m"),
        "json": Template('{"texts": ["{text}"]}', "found[*].vector"),
        "oip, bytes": OIP("m", binary=True),
    }

    def reply(name: str) -> Callable[[Path], None]:
        def one(place: Path) -> None:
            body = (place / name).read_bytes()
            headers = {LENGTH_HEADER: str(len(body) - 16)} if name == "oip, bytes" else {}
            exchange: Any = SimpleNamespace(address="http://x", send=lambda *_, **__: Reply(body, headers))
            found = HTTPSuspect(exchange, spoken[name]).embed(batch if "oip" not in name else torch.zeros(2, 1, 2, 2))
            if found.shape[0] != len(batch) or not np.isfinite(found).all():
                raise AcceptedForgeryError("answers that are none were taken")

        return one

    for name in spoken:
        yield Target(f"reply, {name}", folder, (name,), reply(name))
