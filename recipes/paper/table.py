"""What was measured, as a Markdown page: every detection figure beside its negatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from ask import CONTROLS, probe_path, score_path
from bench import Run
from items import SYMBOL, Item
from settings import ITSELF

from sslguard.errors import UsageError
from sslguard.probes import accuracy_kept
from sslguard.schemes.base import Score
from sslguard.stats.significance import rejects, supports
from sslguard.verification.nulls import null_of

ABSENT = "–"


def page(run: Run, made: Sequence[Item]) -> str:
    """The page of a run; what was not measured yet is a dash."""
    recipe = run.recipe
    scheme = recipe.scheme.scheme()
    head = (
        f"# {recipe.name}\n\n"
        f"Preset {recipe.scheme.preset}, {scheme.steps:,} iterations of {scheme.batch_size} plain and "
        f"{scheme.trigger_batch} triggered images, seed {recipe.seed}. WR and mean cosine are of {scheme.n_queries} "
        f"images of {recipe.verify.data}. {ABSENT}: not measured.\n"
    )
    return "\n".join([head, *_downstream(run, made), *_detection(run, made)])


def _downstream(run: Run, made: Sequence[Item]) -> list[str]:
    tasks = list(run.recipe.downstream.tasks)
    rows = [["raw pixels or an untrained network", *(_accuracy(run, "untrained", ITSELF, task) for task in tasks)]]
    for item in made:
        row = [_title(item), *(_accuracy(run, item.origin, item.name, task) for task in tasks)]
        # What is made of F by removal and noise stands under the key alone: nobody probes it.
        if item.origin == "marked" or any(cell != ABSENT for cell in row[1:]):
            rows.append(row)
    return [
        "## Downstream accuracy\n",
        f"Accuracy ({run.recipe.downstream.method}), and in parentheses the share of F's that is kept above the first "
        "row.\n",
        _table(["encoder", *tasks], rows),
    ]


def _accuracy(run: Run, origin: str, name: str, task: str) -> str:
    found = run.known(probe_path(origin, name, task))
    if found is None:
        return ABSENT
    accuracy = float(found["accuracy"])
    clean, floor = run.known(probe_path("clean", ITSELF, task)), run.known(probe_path("untrained", ITSELF, task))
    if clean is None or floor is None or origin == "untrained":
        return f"{accuracy:.3f}"
    try:
        return f"{accuracy:.3f} ({accuracy_kept(accuracy, clean['accuracy'], floor['accuracy']):.0%})"
    except UsageError:  # F is no better than the baseline
        return f"{accuracy:.3f}"


def _detection(run: Run, made: Sequence[Item]) -> list[str]:
    controls = _null(run, made)
    header = [
        "suspect",
        "of F\\*: WR (cosine)",
        "of F, made the same way",
        "F",
        "untrained, same network",
        "independent",
        "p",
        "decision",
    ]
    clean = _figures(run.known(score_path("clean", ITSELF)))
    independent = _largest(
        run.known(score_path("independent", str(number))) for number, _ in enumerate(run.recipe.verify.independent, 1)
    )
    rows = []
    for item in made:
        if item.origin == "marked":
            found = run.known(score_path("marked", item.name))
            same = _figures(run.known(score_path("clean", item.name)))
            untrained = _figures(run.known(score_path("untrained", _network(item))))
            judged = _judged(run, made[0], found, list(controls.values()))
            rows.append([_name(item), _figures(found), same, clean, untrained, independent, *judged])
    floor = f"{1 / (len(controls) + 1):.3g}" if controls else "none, without controls"
    return [
        "\n## Detection\n",
        "Share of answers with cosine above ½, and mean cosine, under the key of F\\*; of independent encoders the one "
        "with the largest cosine. A claim by WR alone is worth what the columns of innocents leave of it.\n",
        _table(header, rows),
        f"\np is the rank of the mean cosine among {len(controls)} innocents: surrogates of F, untrained networks, "
        "independent encoders and further controls. F and copies of its weights are left out: F took part in marking. "
        f"Smallest possible p: {floor}. A decision at {run.recipe.verify.alpha:g}, each row for itself, is given where "
        "that allows one.\n",
    ]


def _null(run: Run, made: Iterable[Item]) -> dict[str, float]:
    """Mean cosines by name of the innocents to rank among. F took part in marking: neither it nor copies of it."""
    paths = [score_path("clean", item.name) for item in made if item.origin == "clean" and item.kind == "surrogate"]
    paths += [score_path("untrained", name) for name in (ITSELF, *run.recipe.steal.networks())]
    paths += [score_path("independent", str(n)) for n, _ in enumerate(run.recipe.verify.independent, 1)]
    found = {str(path.parent): run.known(path) for path in paths}
    cosines = {name: float(score["cosine"]) for name, score in found.items() if score is not None}
    further = run.known(CONTROLS)
    return cosines if further is None else {**cosines, **further["cosines"]}


def _judged(run: Run, marked: Item, found: dict[str, Any] | None, controls: Sequence[float]) -> tuple[str, str]:
    """p and decision."""
    if found is None or not controls:
        return ABSENT, ABSENT
    score = Score(found["cosine"], found["n_queries"], found["watermark_rate"], np.empty(0))
    alpha = run.recipe.verify.alpha
    significance = null_of(run.key(marked), len(controls), controls).significance(score)
    shown = f"{significance.pvalue:.3g}"
    if not supports(significance, alpha):
        return shown, "null too small"
    return shown, "derived" if rejects(significance, alpha) else "not shown"


def _network(item: Item) -> str:
    """Name of the untrained network that the item's is one of."""
    while item.kind not in ("itself", "surrogate"):
        assert item.parent is not None
        item = item.parent
    return ITSELF if item.kind == "itself" else item.settings["architecture"]["backbone"].rpartition(":")[2]


def _figures(found: dict[str, Any] | None) -> str:
    return ABSENT if found is None else f"{found['watermark_rate']:.3f} ({found['cosine']:.3f})"


def _largest(found: Iterable[dict[str, Any] | None]) -> str:
    known = [score for score in found if score is not None]
    return _figures(max(known, key=lambda score: float(score["cosine"]), default=None))


def _title(item: Item) -> str:
    symbol = SYMBOL[item.origin].replace("*", "\\*")
    return symbol if item.name == ITSELF else f"{_name(item)}, of {symbol}"


def _name(item: Item) -> str:
    return "the encoder itself" if item.name == ITSELF else item.name.removeprefix(f"{ITSELF}+")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
