"""What is trained: marking, stealing, fine-tuning, overwriting."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from bench import Run
from items import Item

from sslguard.attacks.removal import FineTune, Overwrite
from sslguard.crypto.secrets import Secret
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import save_encoder
from sslguard.encoders.rebuild import build
from sslguard.schemes.keyfile import save_key
from sslguard.training import Loop, is_first_process, isolated_rng, shared
from sslguard.training import run as train
from sslguard.training.distillation import DistillationTask


def make(run: Run, item: Item) -> None:
    """Train an item that does not stand yet, and store it.

    Every process of the run takes part in the training; the first one writes, and the others wait for it.
    """
    if run.stands(item):
        return
    run.say(f"{item.step} {item}")
    encoder = {"itself": _marked, "surrogate": _stolen, "fine-tune": _attacked, "overwrite": _attacked}[item.kind](
        run, item
    )
    if is_first_process():
        save_encoder(encoder, run.folder(item) / "encoder")
        run.keep(item, encoder.record)
    run.machine.wait()


def _marked(run: Run, item: Item) -> Encoder:
    marking = run.recipe.scheme
    marked = marking.scheme().watermark(
        run.recipe.encoder.load(), open_data(marking.data), secret=Secret.from_seed(item.seed), **_training(run, item)
    )
    if is_first_process():
        save_key(marked.key, run.folder(item) / "key")
    return marked.encoder


def _attacked(run: Run, item: Item) -> Encoder:
    attacks = run.recipe.attacks
    attack: FineTune | Overwrite = (
        attacks.fine_tune.attack(item.settings["epochs"])
        if item.kind == "fine-tune"
        else Overwrite(attacks.overwrite.marking.scheme())
    )
    data = open_data(item.settings["data"])
    return attack(_parent(run, item), data, seed=item.seed, **_training(run, item))


def _stolen(run: Run, item: Item) -> Encoder:
    """As `Distil` does, with a network that it does not build: one without its first max-pool."""
    recipe = replace(run.recipe.steal.distillation(), architecture=item.settings["architecture"]["backbone"])
    victim, queries = _parent(run, item), open_data(item.settings["queries"])
    asked_once = recipe.augmentation is None
    answers = shared(lambda: embed_all(victim, queries), **run.machine.loop()) if asked_once else None
    student = new_network(item.settings["architecture"], victim, seed=item.seed)
    with isolated_rng(item.seed, 2):
        task = DistillationTask(recipe, victim, student, queries, answers=answers)
    loop = Loop(recipe.steps, recipe.batch_size, item.seed, title="steal", **_training(run, item))
    history = train(task, loop)
    student.module.eval()
    record = {
        "made_by": "distil",
        "recipe": asdict(recipe),
        "teacher": victim.source,
        "data": queries.spec,
        "queries": recipe.n_queries(len(queries)),
        "seed": item.seed,
        "seconds": round(history.seconds, 1),
        "final_loss": history.losses["loss"][-1],
    }
    return replace(student, source=f"distilled from {victim.source}", record=record)


def new_network(architecture: dict[str, Any], like: Encoder, *, seed: int) -> Encoder:
    """An untrained encoder that takes what `like` takes and answers as wide, by a linear layer on top."""
    description = {**architecture, "channels": like.architecture["channels"], "linear": like.dim}
    module, dim = build(description, seed=seed)
    source = f"{architecture['backbone']}, untrained (seed {seed})"
    return replace(like, module=module.eval(), dim=dim, architecture=description, source=source, record={})


def _parent(run: Run, item: Item) -> Encoder:
    assert item.parent is not None
    return run.encoder(item.parent)


def _training(run: Run, item: Item) -> dict[str, Any]:
    """What every training takes: a file to go on from, a bar, and the machine."""
    return {"checkpoint": run.checkpoint(item), "progress": run.machine.progress, **run.machine.loop()}
