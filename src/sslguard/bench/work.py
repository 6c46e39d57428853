"""Compute the cells of a plan.

Encoders are written to `OUT/encoders`, keys to `OUT/keys`, and training checkpoints of peers to `OUT/checkpoints`, each
under the name of its cell.

If sslguard refuses an operation, such as scoring answers of another width, the reason becomes the result of the cell
under `refused`, and of all cells that depend on it. The next run tries cells again that failed for any other reason.
Costs are CPU seconds of a process with one thread.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.attacks.chain import Chain
from sslguard.attacks.registry import build
from sslguard.bench.beds import opened
from sslguard.bench.cells import Cell, path_of
from sslguard.bench.plan import seed_of
from sslguard.controls.members import list_controls, read_population, shipped_population
from sslguard.controls.recipes import ARCHITECTURES
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.encoders.words import NETWORKS
from sslguard.encoders.wrapped import Wrapped
from sslguard.errors import DataError, MissingExtraError, OutputError, SslguardError, SuspectError
from sslguard.probes.baselines import baseline
from sslguard.probes.evaluate import probe_encoder
from sslguard.schemes.base import Key, Watermarked
from sslguard.schemes.exact.features import all_statistics
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.schemes.peers.base import Peer
from sslguard.schemes.queries import QUERY_BATCH, as_bytes
from sslguard.schemes.registry import build_scheme
from sslguard.schemes.sslguard.scheme import CuredSSLGuard
from sslguard.training.pretraining import new_encoder
from sslguard.training.processes import is_first_process, shared
from sslguard.verification.verdict import score_suspect

INNOCENT_ITEMS = 1000
"""Number of items that an innocent's key is made from, for a scheme whose null needs a fresh secret for each."""

Result = dict[str, Any]
Tasks = Mapping[str, Mapping[str, Any]]
NO_TASKS: Tasks = MappingProxyType({})
# Faults of this machine, not of the cell: the next run tries again.
_NOT_KEPT = (DataError, OutputError, MissingExtraError)


def prepare() -> None:
    """Set this process to one thread, and silence its messages about precision."""
    torch.set_num_threads(1)
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Work:
    """Computes cells. Instances are picklable, so that other processes can use them.

    Attributes:
        out: Folder of the benchmark.
        accelerator: Device type that training runs on; it does not enter the names of cells.
        devices: Number of devices. With several, each process of a run computes the same cells in the same order, and
            only the first one has results.
    """

    out: Path
    accelerator: str = "cpu"
    devices: int = 1

    def __call__(self, cell: Cell) -> Result | None:
        """Compute a cell. Return its result, or None in any process but the first."""
        # No process starts before the first one has written the cell before.
        shared(lambda: None, **self._place())
        for need in cell.needs:
            if refused := self._content(need)["result"].get("refused"):
                return {"refused": refused}
        try:
            found: Result = getattr(self, cell.function)(cell.name, **cell.args)
            if not is_first_process():
                return None
            rests = rests_on(cell.function, cell.args, self._content)
            return found if rests is None else {**found, "marked": rests}
        except _NOT_KEPT:
            raise
        except SslguardError as error:
            return {"refused": f"{type(error).__name__}: {error}"}

    def kept(self, cell: Cell) -> bool:
        """Return whether the encoder, key or checkpoint that a cell made still exists."""
        return "refused" in self._content(cell.name)["result"] or all(
            (self.out / kind / cell.name).exists() for kind in kinds_of(cell)
        )

    def current(self, cell: Cell) -> bool:
        """Return whether a result comes from the current mark; true if that cannot be determined. See `is_current`."""
        try:
            return is_current(cell, self._content)
        except FileNotFoundError:
            return True

    def reference(self, name: str, clean: str, probe: Sequence[str], tasks: Tasks = NO_TASKS) -> Result:
        """Measure a clean encoder: accuracy, baselines (see `probes.baseline`), size, cost of pre-training."""
        del name
        encoder = self.load(clean)
        found = {
            **_referred(encoder, probe),
            "pretraining_seconds": encoder.record.get("cpu_seconds"),
            "parameters": encoder.n_parameters,
        }
        return {**found, "tasks": {title: _referred(encoder, **task) for title, task in tasks.items()}}

    def mark(
        self,
        name: str,
        clean: str,
        scheme: str,
        settings: Mapping[str, Any],
        data: str,
        seed: int,
        precision: str,
        probe: Sequence[str],
        verify: str,
        tasks: Tasks = NO_TASKS,
    ) -> Result:
        """Watermark an encoder, save it and its key, and measure accuracy and score."""
        built, begun = build_scheme(scheme, settings), time.process_time()
        secret, kept = secret_of(clean, scheme, settings, seed), bool(built.key_home)
        if not kept and not is_first_process():  # peers train in one process
            return {}
        # Peers train from the start, so that the whole cost is counted. Their checkpoint stands in for a key file.
        checkpoint = self._unfinished(name) if kept else _checkpoint(self, name)
        if not kept:
            checkpoint.unlink(missing_ok=True)
        loop = {**self._place(), "precision": precision}
        made = built.watermark(self.load(clean), opened(data), secret=secret, checkpoint=checkpoint, **loop)
        if not is_first_process():
            return {}
        spent, weights = time.process_time() - begun, None
        if built.injects and isinstance(made.embedder, Encoder):
            weights = weights_hash(made.embedder.module)
        if built.key_home:
            save_key(made.key, self.out / "keys" / name)
            save_encoder(made.encoder, self.out / "encoders" / name)
            checkpoint.unlink(missing_ok=True)
        return {
            "seconds": spent,
            "weights": weights,
            **accuracies(made.embedder, probe, tasks),
            **scored(made.key, made.embedder, opened(verify)),
        }

    def make(self, name: str, victim: Mapping[str, str], steps: Sequence[Mapping[str, Any]], precision: str) -> Result:
        """Run a chain of attacks that ends in training or in a change of weights, and save the encoder."""
        attacked, begun = self.victim(victim), time.process_time()
        made = applied(attacked, steps, **self._place(), precision=precision, checkpoint=self._unfinished(name))
        assert isinstance(made, Encoder)
        if not is_first_process():
            return {}
        save_encoder(made, self.out / "encoders" / name)
        self._unfinished(name).unlink(missing_ok=True)
        return {"seconds": time.process_time() - begun, "queries": made.record.get("queries")}

    def measure(
        self,
        name: str,
        mark: str,
        victim: Mapping[str, str],
        steps: Sequence[Mapping[str, Any]],
        verify: str,
        probe: Sequence[str] = (),
        tasks: Tasks = NO_TASKS,
    ) -> Result:
        """Run a chain of attacks, and measure the suspect's score and, with `probe`, its accuracy.

        Without `probe` the suspect is an innocent.
        """
        attacked, begun = self.victim(victim), time.process_time()
        suspect = applied(attacked, steps)
        spent = time.process_time() - begun
        if probe:
            found = {"seconds": spent, **accuracies(suspect, probe, tasks)}
            return {**found, **scored(self.protected(mark).key, suspect, opened(verify))}
        return scored(self.key_for(name, mark, verify), suspect, opened(verify))

    def innocents(self, name: str, mark: str, population: Sequence[str], members: Sequence[int], verify: str) -> Result:
        """Score members of the population, counted from 0. Numbers beyond the population are untrained networks."""
        controls, found = list_controls(population), {}
        args = self._content(mark)["args"]
        derived = set() if build_scheme(args["scheme"], args["settings"]).injects else made_from(args["clean"])
        for number in range(*members):
            title = controls[number].name if number < len(controls) else f"untrained {number}"
            if title in derived:
                continue
            if number < len(controls):
                innocent = self.placed(controls[number].load())
            else:
                innocent = self.placed(untrained(load_encoder(args["clean"]), opened(verify), number))
            found[title] = scored(self.key_for(f"{name} {title}", mark, verify), innocent, opened(verify))
        return {"innocents": found}

    def victim(self, named: Mapping[str, str]) -> Embedder:
        """Return the model that an attack starts from: {"clean": spec}, {"mark": cell} or {"made": cell}."""
        ((kind, which),) = named.items()
        if kind == "clean":
            return self.load(which)
        if kind == "made":
            return self.placed(_made(self.out / "encoders" / which))
        served, args = self.protected(which).embedder, self._content(which)["args"]
        if build_scheme(args["scheme"], args["settings"]).on_answers:
            return Wrapped(served, served.embed, "served", {}, "served")
        return served

    def load(self, spec: str) -> Encoder:
        """Return the clean encoder that `spec` names, on this process's device."""
        return self.placed(load_encoder(spec))

    def placed(self, encoder: Encoder) -> Encoder:
        """Return the encoder, its network moved to this process's device."""
        if self.accelerator == "mps":
            encoder.module.to("mps")
        elif self.accelerator != "cpu" and torch.cuda.is_available():
            encoder.module.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        return encoder

    def _place(self) -> dict[str, Any]:
        return {"accelerator": self.accelerator, "devices": self.devices}

    def _unfinished(self, name: str) -> Path:
        """Return the path of the checkpoint from which a killed training resumes."""
        return self.out / "unfinished" / f"{name}.pt"

    def protected(self, mark: str) -> Watermarked:
        """Return the protected encoder and the key that a cell of the group "mark" made."""
        return _protected(self, mark)

    def key_for(self, innocent: str, mark: str, verify: str) -> Key:
        """Return the key that an innocent of this name is tested with, on items of the data set `verify`."""
        args = self._content(mark)["args"]
        scheme = build_scheme(args["scheme"], args["settings"])
        if not scheme.fresh_secrets:
            return self.protected(mark).key
        secret = Secret.from_seed(seed_of("innocent", innocent))
        clean, answers, statistics = _owned(args["clean"], args["data"], verify)
        # Made without training: the test is the same for all keys of the scheme.
        if isinstance(scheme, CuredSSLGuard):
            return scheme.draw_key(clean, secret, answers)
        assert isinstance(scheme, Exact)
        return scheme.draw_key(clean, secret, answers, statistics)

    def _content(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path_of(self.out, name).read_bytes())
        return found


def kinds_of(cell: Cell) -> tuple[str, ...]:
    """Return the folders in which a cell writes a file beside its result."""
    if cell.function == "make":
        return ("encoders",)
    if cell.function != "mark":
        return ()
    scheme = build_scheme(cell.args["scheme"], cell.args["settings"])
    if scheme.key_home:
        return ("encoders", "keys")
    return ("checkpoints",) if isinstance(scheme, Peer) and scheme.trains else ()


def rests_on(function: str, args: Mapping[str, Any], content: Callable[[str], Mapping[str, Any]]) -> str | None:
    """Return the hash of the watermarked weights that a cell's result depends on.

    A watermark that is retrained on another machine may differ. Innocents that were scored under the former key must
    not be ranked with suspects that are scored under the new one.

    Args:
        function: Function of the cell.
        args: Its arguments.
        content: Returns the result file of a cell, by name.

    Returns:
        The hash; None if the result depends on no watermark, or if an innocent is tested with a fresh key.
    """
    if function in ("measure", "innocents"):
        marked = content(args["mark"])
        scheme = build_scheme(marked["args"]["scheme"], marked["args"]["settings"])
        if scheme.fresh_secrets and not args.get("probe"):
            return None
        return _weights_of(marked)
    if function != "make":
        return None
    ((kind, which),) = args["victim"].items()
    if kind == "made":
        return rests_on("make", content(which)["args"], content)
    return _weights_of(content(which)) if kind == "mark" else None


def _weights_of(marked: Mapping[str, Any]) -> str | None:
    found: str | None = marked["result"].get("weights")
    return found


def is_current(cell: Cell, content: Callable[[str], Mapping[str, Any]]) -> bool:
    """Return whether the result of a cell comes from the watermark that is there now.

    Args:
        cell: A cell that is done.
        content: Returns the result file of a cell, by name.
    """
    result = content(cell.name)["result"]
    return "refused" in result or result.get("marked") == rests_on(cell.function, cell.args, content)


@dataclass(frozen=True, eq=False)
class Remembering(Encoder):
    """An encoder that stores its embedding of each item and returns the same bits when asked again.

    Attacks that post-process one surrogate ask it the same items, and the keys of innocents draw the same items, each
    in another order. A clone stores nothing, because it may be trained.
    """

    known: dict[bytes, NDArray[np.float32]] = field(default_factory=dict)

    def embed(self, batch: Batch, /) -> NDArray[np.float32]:
        """Return embeddings of shape (items, dim), from the store if it holds all items of the batch."""
        names = [_digest(item) for item in batch]
        if not self.known.keys() >= set(names):
            self.known.update(zip(names, super().embed(batch), strict=True))
        return np.stack([self.known[name] for name in names])

    def clone(self) -> Encoder:
        """Return a copy that can be trained, without the store."""
        return Encoder(**{name: value for name, value in vars(self).items() if name != "known"}).clone()


def remembering(encoder: Encoder, data: Data) -> Remembering:
    """Return `encoder` with stored embeddings of `data`. Images are rounded to bytes first, as queries are."""
    found = Remembering(**vars(encoder))
    for batch in data.batches(QUERY_BATCH):
        found.embed(as_bytes(batch) if isinstance(batch, Tensor) else batch)
    return found


def _digest(item: Any) -> bytes:
    content = item.encode() if isinstance(item, str) else np.ascontiguousarray(item).tobytes()
    return hashlib.sha256(content).digest()


@lru_cache(maxsize=2)
def _owned(clean: str, data: str, verify: str) -> tuple[Remembering, NDArray[np.floating], NDArray[np.floating]]:
    """Return a clean encoder that stores embeddings of `verify`, its answers to the owner's items, their statistics."""
    encoder, items = load_encoder(clean), opened(data)
    first = items.slice(0, min(len(items), INNOCENT_ITEMS))
    return remembering(encoder, opened(verify)), embed_all(encoder, first), all_statistics(encoder, first)


@lru_cache(maxsize=2)
def _made(folder: Path) -> Remembering:
    return Remembering(**vars(load_folder(folder)))


@lru_cache(maxsize=24)
def _protected(work: Work, mark: str) -> Watermarked:
    args = work._content(mark)["args"]
    scheme = build_scheme(args["scheme"], args["settings"])
    if scheme.key_home:
        return Watermarked(work.placed(load_folder(work.out / "encoders" / mark)), load_key(work.out / "keys" / mark))
    # Keys of peers are not saved; the same secret gives the same key.
    secret = secret_of(args["clean"], args["scheme"], args["settings"], args["seed"])
    return scheme.watermark(
        load_encoder(args["clean"]), opened(args["data"]), secret=secret, checkpoint=_checkpoint(work, mark)
    )


def _checkpoint(work: Work, mark: str) -> Path:
    """Return the path of the checkpoint of a peer that trains."""
    return work.out / "checkpoints" / mark


def secret_of(clean: str, scheme: str, settings: Mapping[str, Any], seed: int) -> Secret:
    """Return the owner's secret, different for each scheme: with a shared one, each would detect the other's mark."""
    return Secret.from_seed(seed_of("mark", clean, scheme, dict(settings), seed))


def applied(victim: Embedder, steps: Sequence[Mapping[str, Any]], **loop: Any) -> Embedder:
    """Return the model after a chain of attacks. Each step has its own seed, so that a chain can be split anywhere.

    Args:
        victim: Model that is attacked.
        steps: Arguments of the steps: `attack`, `settings`, `data`, `seed`.
        loop: Options of the training loop.
    """
    for step in steps:
        attack = build(step["attack"], step["settings"])
        given = None if step["data"] is None else opened(step["data"])
        victim = Chain((attack,))(victim, [given], seed=step["seed"], **loop)
    return victim


def accuracies(embedder: Embedder, probe: Sequence[str], tasks: Tasks) -> Result:
    """Return the probe accuracy under "accuracy", and that of further tasks, if there are any, under "tasks"."""
    found = {title: accuracy(embedder, **task) for title, task in tasks.items()}
    return {"accuracy": accuracy(embedder, probe), **({"tasks": found} if found else {})}


def accuracy(embedder: Embedder, probe: Sequence[str], **labels: Any) -> float:
    """Return the accuracy of a probe, in [0, 1].

    Args:
        embedder: Model to evaluate.
        probe: Data specs for training and test, and the method of the probe unless it is linear.
        labels: `per_class` and `seeds` of `probe_encoder`.
    """
    train, test, *method = probe
    return probe_encoder(embedder, opened(train), opened(test), method=(*method, "linear")[0], **labels).accuracy


def _referred(encoder: Encoder, probe: Sequence[str], **labels: Any) -> Result:
    """Return the accuracy of a clean encoder, of raw pixels and of the untrained network on a task."""
    train, test, *method = probe
    found = baseline(encoder, opened(train), opened(test), method=(*method, "linear")[0], **labels)
    return {
        "accuracy": accuracy(encoder, probe, **labels),
        "floor": found.accuracy,
        "pixels": None if found.pixels is None else found.pixels.accuracy,
        "untrained": found.random.accuracy,
    }


def scored(key: Key, suspect: Embedder, data: Data) -> Result:
    """Return statistic, p-values and number of queries, or why the suspect cannot be scored, as JSON values."""
    try:
        score = score_suspect(key, suspect, data)
    except SuspectError as error:
        return {"unscored": str(error)}
    evidence, published = score.evidence, score.published_log2_pvalue
    return {
        "statistic": score.value,
        "asked": score.n_queries,
        "log2_pvalue": None if evidence is None else evidence.log2_pvalue,
        "published_log2_pvalue": published,
        "watermark_rate": score.watermark_rate,
        "details": {} if evidence is None else dict(evidence.details),
    }


def made_from(clean: str) -> set[str]:
    """Return the names of shipped controls made from a clean encoder. They are not innocent if a scheme claims it."""
    return {member.name for member in read_population(shipped_population()) if member.parent == clean}


def untrained(clean: Encoder, data: Data, seed: int) -> Encoder:
    """Return an untrained network with the embedding width of `clean`; `seed` chooses architecture and weights."""
    texts = isinstance(data.take([0])[0], str)
    known = sorted(NETWORKS) if texts else ARCHITECTURES
    made = new_encoder(known[seed % len(known)], data, seed=seed, linear=clean.dim)
    made.module.eval()
    return made
