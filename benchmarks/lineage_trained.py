"""Lineage of copies that were trained: fine-tuned on labels, LoRA merged, and what a release costs in accuracy.

Parts (`--parts`):
  fine-tuned  a release of shipped:simclr in a secret order, trained on 2,000 labelled images for 1 and 10 epochs in
              batches of 128, and on 400 of them for 50 epochs in batches of 32
  lora        all-MiniLM-L6-v2 with updates of rank 8 on all linear layers, trained on labelled texts and merged; and
              with half of its layers drawn anew
  accuracy    shipped:simclr before and after its release: outputs, and a vote of nearest neighbours

Each part is added to `results/lineage_trained.json`.

Run: python benchmarks/lineage_trained.py [--parts fine-tuned lora accuracy] [--epochs 1 10 50] [--steps 300]
"""

from __future__ import annotations

import json
import re
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from common import RESULTS, data, options, prepare, save
from lineage import State, by_thief, initial_of, of_streams
from torch import Tensor, nn

from sslguard.attacks.removal import FineTune
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.load import load_encoder
from sslguard.lineage.compare import agreement, in_place
from sslguard.lineage.order import Release, released, sample
from sslguard.lineage.verdict import compare
from sslguard.lineage.weights import open_weights
from sslguard.probes.knn import knn_probe
from sslguard.training.base import isolated_rng
from sslguard.training.low_rank import add_updates, merge_updates
from sslguard.training.recipes import Supervised

RANK = 8
LENGTH = 160  # characters of a text
CLASSES = 8


def release() -> Release:
    encoder = load_encoder("shipped:simclr")
    return released(encoder, Secret.from_seed(0), sample(encoder))


def plain(encoder: Encoder) -> State:
    return {n: t.detach().clone() for n, t in encoder.module.state_dict().items() if t.is_floating_point()}


def row(made: Release, copy: Encoder) -> dict[str, Any]:
    """Bits of a copy of the release, in place and behind a thief, and how far its weights moved."""
    assert made.order is not None
    ours, state = open_weights(made.encoder), plain(copy)
    before = plain(made.encoder)
    matrices = [name for name in state if state[name].dim() > 1]
    moved = sum(float((state[n] - before[n]).square().sum()) for n in matrices)
    size = sum(float(before[n].square().sum()) for n in matrices)
    thief = open_weights(by_thief(state))
    return {
        "moved": (moved / size) ** 0.5,
        "in_place": in_place(ours, open_weights(state)).log2_pvalue,
        "thief": of_streams(in_place(ours, thief)),
        "initial": agreement(open_weights(initial_of("simclr")), thief).log2_pvalue,
        "order": compare(ours, open_weights(state), order=made.order).log2_pvalue,
    }


def fine_tuned(epochs: tuple[str, ...]) -> dict[str, Any]:
    made, found = release(), {}
    for number in epochs:
        many = float(number) > 10
        attack = FineTune(Supervised(batch_size=32 if many else 128), epochs=float(number))
        copy = attack(made.encoder, data("thief").slice(0, 400 if many else 2000), seed=1)
        found[f"{number} epochs"] = row(made, copy)
        print(number, found[f"{number} epochs"], flush=True)
    return found


def lora(steps: int) -> dict[str, Any]:
    encoder = load_encoder("package:all-minilm-l6-v2")
    before = plain(encoder)
    texts = open_data("vader:probe_train")
    assert texts.labels is not None
    generator, rng = torch.Generator().manual_seed(1), np.random.default_rng(1)
    with isolated_rng(1, 4):
        layers = add_updates(encoder.module, RANK)
    classifier = nn.Linear(encoder.dim, CLASSES)
    trained = [p for p in (*encoder.module.parameters(), *classifier.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses, begun = [], time.perf_counter()
    for _ in range(steps):
        chosen = np.sort(rng.choice(len(texts), 8, replace=False))
        batch = encoder.prepare([text[:LENGTH] for text in texts.take(chosen)])
        loss = nnf.cross_entropy(classifier(encoder.forward(batch)), torch.from_numpy(texts.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    merge_updates(encoder.module)
    after = plain(encoder)
    half = {n: torch.randn(t.shape, generator=generator) * t.std() if redrawn(n, t) else t for n, t in before.items()}
    found = {"layers": layers, "steps": steps, "first_losses": float(np.mean(losses[:20]))}
    found |= {"last_losses": float(np.mean(losses[-20:])), "training_seconds": time.perf_counter() - begun}
    moved = [float((after[n] - before[n]).norm() / before[n].norm()) for n in before if before[n].dim() == 2]
    found["moved"] = [float(np.median(moved)), max(moved)]
    for name, state in (("lora", after), ("half of the layers drawn anew", half)):
        one = in_place(open_weights(before), open_weights(state))
        found[name] = {"in_place": one.log2_pvalue, "matched": one.matched, "units": one.size}
    print(found, flush=True)
    return found


def redrawn(name: str, tensor: Tensor) -> bool:
    layer = re.search(r"layer\.(\d+)\.", name)
    return layer is not None and int(layer[1]) >= 3 and tensor.dim() == 2


def accuracy() -> dict[str, Any]:
    made, clean = release(), load_encoder("shipped:simclr")
    train, test = data("probe_train"), data("probe_test").slice(0, 2000)
    found = {}
    embedded = {}
    for name, encoder in (("clean", clean), ("released", made.encoder)):
        x, y = (encoder.embed(part.take(range(len(part)))) for part in (train, test))
        embedded[name] = y
        assert train.labels is not None
        assert test.labels is not None
        found[name] = knn_probe(x, train.labels, y, test.labels).accuracy
    difference = embedded["released"] - embedded["clean"]
    found["outputs_move_by"] = float(np.linalg.norm(difference) / np.linalg.norm(embedded["clean"]))
    print(found, flush=True)
    return found


def main() -> None:
    given = options(__doc__, parts=("fine-tuned", "lora", "accuracy"), epochs=("1", "10", "50"), steps=300)
    prepare()
    path = RESULTS / "lineage_trained.json"
    figures = {n: v for n, v in json.loads(path.read_text()).items() if n != "run"} if path.exists() else {}
    for part in given.parts:
        if part == "fine-tuned":
            figures[part] = {**figures.get(part, {}), **fine_tuned(given.epochs)}
        else:
            figures[part] = lora(given.steps) if part == "lora" else accuracy()
        save("lineage_trained", figures)


if __name__ == "__main__":
    main()
