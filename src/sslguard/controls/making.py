"""A population made, and probed, member by member; a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch

from sslguard.controls.members import ACCURACIES, Member, names_a_folder, read_population
from sslguard.controls.recipes import Bed, Recipe, make
from sslguard.data.specs import open_data
from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.encoders.names import DESCRIPTION
from sslguard.errors import UsageError
from sslguard.files import canonical_json, write_atomic
from sslguard.probes.evaluate import probe_encoder

T = TypeVar("T")

_MADE = "made_from"  # in a member's record


def make_population(
    chosen: Sequence[Recipe],
    bed: Bed,
    folder: Path,
    *,
    width: int,
    workers: int = 1,
    half: bool = True,
    progress: bool = False,
) -> None:
    """Make every member that `folder` does not hold yet; a killed run goes on where it stopped.

    Each member is a folder that `load_encoder` reads, stored in half precision unless told otherwise, and used
    as it is stored. `population.json` lists them with their kinds.

    Args:
        chosen: Recipes of the members.
        bed: Data that they are trained on.
        folder: Where they are written.
        width: Dimensions of their embeddings.
        workers: Number of processes, of one thread each.
        half: Whether weights are stored in half precision.
        progress: Whether a bar is shown on standard error.

    Raises:
        UsageError: Two members have one name, or one that is there was made otherwise: from another encoder, data, or
            settings, whatever it is called.
    """
    names = [recipe.name for recipe in chosen]
    if len(set(names)) != len(names):
        raise UsageError("two members of the population have the same name")
    bad = [name for name in names if not names_a_folder(name)]
    if bad:
        raise UsageError(f"a member's name is the name of its folder, which {bad[0]!r:.80} cannot be")
    marks = _marks(chosen, bed, width, half)
    missing = [recipe for recipe in chosen if not (folder / recipe.name / DESCRIPTION).exists()]
    for recipe in chosen:
        if recipe not in missing and load_folder(folder / recipe.name).record.get(_MADE) != marks[recipe.name]:
            raise UsageError(
                f"{folder / recipe.name} is there and was made otherwise, from another encoder, other data, by other "
                "settings or an earlier version: choose another folder, or delete it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(chosen), done=len(chosen) - len(missing), shown=progress) as advance:
        given = {recipe.name: (recipe, bed, folder, width, half, marks[recipe.name]) for recipe in missing}
        for name, _ in _each(_make_one, given, workers):
            advance(name)
    index = {"width": width, "bed": asdict(bed), "members": [asdict(recipe) for recipe in chosen]}
    write_atomic(folder / "population.json", json.dumps(index, indent=1, sort_keys=True).encode())


def _make_one(recipe: Recipe, bed: Bed, folder: Path, width: int, half: bool, mark: str) -> None:
    made = make(recipe, bed, width=width)
    save_encoder(replace(made, record={**made.record, _MADE: mark}), folder / recipe.name, half=half)


def _marks(chosen: Sequence[Recipe], bed: Bed, width: int, half: bool) -> dict[str, str]:
    """Return, by member's name, a hash of all that it is made from."""
    data = {name: open_data(spec).identity() for name, spec in asdict(bed).items()}
    parents = {recipe.parent for recipe in chosen if recipe.parent is not None}
    weights = {parent: weights_hash(load_encoder(parent).module) for parent in parents}
    found = {}
    for recipe in chosen:
        parent = None if recipe.parent is None else weights[recipe.parent]
        described = {"recipe": asdict(recipe), "bed": data, "width": width, "half": half, "parent": parent}
        found[recipe.name] = hashlib.sha256(canonical_json(described)).hexdigest()
    return found


def probe_population(folder: Path, train: str, test: str, *, workers: int = 1, progress: bool = False) -> None:
    """Measure the linear-probe accuracy of every member; a killed run goes on where it stopped.

    The accuracies, in [0, 1], are kept in the folder beside the members.

    Args:
        folder: Folder that `make_population` wrote.
        train: Specification of the labelled data that probes are trained on.
        test: Specification of the labelled data that they are measured on. Accuracies on other data are measured anew.
        workers: Number of processes.
        progress: Whether a bar is shown on standard error.

    Raises:
        UsageError: The folder holds no population, or its accuracies are damaged.
    """
    path = folder / ACCURACIES
    members = read_population(folder)
    fields: dict[str, Any] = {"probe": "linear", "train": train, "test": test}
    known = {m.name: m.accuracy for m in members if m.accuracy is not None}
    if known and {k: v for k, v in json.loads(path.read_bytes()).items() if k != "accuracy"} != fields:
        known = {}
    missing = [m for m in members if m.name not in known]
    with progress_bar(len(members), done=len(known), shown=progress) as advance:
        for name, accuracy in _each(_probe_one, {m.name: (m, train, test) for m in missing}, workers):
            known[name] = accuracy
            write_atomic(path, json.dumps({**fields, "accuracy": known}, indent=1, sort_keys=True).encode())
            advance(name)


def _probe_one(member: Member, train: str, test: str) -> float:
    return probe_encoder(member.load(), open_data(train), open_data(test)).accuracy


def _each(
    function: Callable[..., T], arguments: Mapping[str, tuple[Any, ...]], workers: int
) -> Iterator[tuple[str, T]]:
    """Yield name and `function(*arguments)` of each as it is done: here, or in several processes of one thread each."""
    if workers == 1:
        for name, given in arguments.items():
            yield name, function(*given)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        jobs = {pool.submit(function, *given): name for name, given in arguments.items()}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        except BaseException:
            # What is done stays; what has not begun is left for the next run.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _one_thread() -> None:
    torch.set_num_threads(1)


@contextmanager
def progress_bar(total: int, *, done: int = 0, shown: bool) -> Iterator[Callable[[str], None]]:
    """Show a bar over `total` controls on standard error, if `shown`; yield a function that counts one, by its name."""
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        row = bar.add_task("controls", total=total, completed=done)
        yield lambda name: bar.update(row, advance=1, description=name)
