"""What is asked: every suspect under the key, every encoder about the downstream tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import Run
from items import Item
from make import new_network
from settings import ITSELF, DownstreamTask

from sslguard.controls import open_controls
from sslguard.data.specs import open_data
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.probes import baseline, probe_encoder
from sslguard.verification.verdict import score_controls, score_suspect

UNTRAINED_SEED = 2**33
CONTROLS = Path("controls.json")


def score_path(origin: str, name: str) -> Path:
    """Where a suspect's score lies below OUT."""
    return Path(origin, name, "score.json")


def probe_path(origin: str, name: str, task: str) -> Path:
    """Where an encoder's accuracy on a task lies below OUT; F's network untrained, for the baseline."""
    return Path(origin, name, f"downstream-{task}.json")


def score_items(run: Run, chosen: Iterable[Item], marked: Item) -> None:
    """Mean cosine and WR of each item under the key of F*, on images that nothing was trained on."""
    for item in chosen:
        _score(run, marked, score_path(item.origin, item.name), item.made_of(), partial(run.load, item))


def score_negatives(run: Run, marked: Item, clean: Item) -> None:
    """The same of innocents that no attack makes: untrained networks, independent encoders, further controls."""
    untrained: dict[str, dict[str, Any] | None] = {ITSELF: None, **run.recipe.steal.networks()}
    for name, architecture in untrained.items():
        settings = {"architecture": architecture, "seed": UNTRAINED_SEED, "like": clean.made_of()}
        load = partial(_untrained, run, clean, architecture)
        _score(run, marked, score_path("untrained", name), settings, load)
    for number, spec in enumerate(run.recipe.verify.independent, 1):
        load = partial(_independent, run, spec)
        _score(run, marked, score_path("independent", str(number)), {"encoder": spec}, load)
    if specs := list(run.recipe.verify.controls):
        ranked: dict[str, Any] = {"controls": specs, "key": marked.made_of(), "data": run.recipe.verify.data}
        run.result(CONTROLS, ranked, partial(_controls, run, marked, specs))


def whole(encoder: Encoder) -> Encoder:
    """The encoder, shown whole images as all of a run are: a crop would cut the trigger's rim off."""
    if not isinstance(encoder.preprocess, ImagePreprocess):
        return encoder
    return replace(encoder, preprocess=replace(encoder.preprocess, crop=None))


def probe_items(run: Run, chosen: Iterable[Item], clean: Item) -> None:
    """Accuracy of each item on every task; first the baseline, the better of raw pixels and F's network untrained."""
    suspects = list(chosen)
    for name, task in run.recipe.downstream.tasks.items():
        settings = {**asdict(task), "method": run.recipe.downstream.method}
        path = probe_path("untrained", ITSELF, name)
        run.result(path, {**settings, "of": clean.made_of()}, partial(_baseline, run, clean, task))
        for item in suspects:
            path = probe_path(item.origin, item.name, name)
            run.result(path, {**settings, "of": item.made_of()}, partial(_probe, run, item, task))


def _score(run: Run, marked: Item, path: Path, of: dict[str, Any], load: Callable[[], Embedder]) -> None:
    data = run.recipe.verify.data

    def measure() -> dict[str, Any]:
        score = score_suspect(run.key(marked), load(), open_data(data))
        return {"cosine": score.value, "watermark_rate": score.watermark_rate, "n_queries": score.n_queries}

    run.result(path, {"of": of, "key": marked.made_of(), "data": data}, measure)


def _untrained(run: Run, clean: Item, architecture: dict[str, Any] | None) -> Encoder:
    like = run.encoder(clean)
    if architecture is not None:
        return run.machine.place(new_network(architecture, like, seed=UNTRAINED_SEED))
    module, _ = build(like.architecture, seed=UNTRAINED_SEED)
    return run.machine.place(replace(like, module=module.eval(), source="untrained", record={}))


def _independent(run: Run, spec: str) -> Encoder:
    return run.machine.place(whole(load_encoder(spec)))


def _controls(run: Run, marked: Item, specs: list[str]) -> dict[str, Any]:
    def placed() -> Iterator[tuple[str, Encoder]]:
        for name, encoder in open_controls(specs):
            yield name, run.machine.place(whole(encoder))

    return {"cosines": score_controls(run.key(marked), placed(), open_data(run.recipe.verify.data))}


def _baseline(run: Run, clean: Item, task: DownstreamTask) -> dict[str, Any]:
    method = run.recipe.downstream.method
    found = baseline(run.encoder(clean), open_data(task.train), open_data(task.test), method=method)
    return {"accuracy": found.accuracy, "untrained": found.random.accuracy}


def _probe(run: Run, item: Item, task: DownstreamTask) -> dict[str, Any]:
    method = run.recipe.downstream.method
    return probe_encoder(run.load(item), open_data(task.train), open_data(task.test), method=method).to_json()
