"""One run of a recipe: mark → steal → remove → wrap → verify → downstream → table.

    python recipes/paper/run.py recipes/paper/moco.toml --out OUT --devices 1 --accelerator cuda

What lies in OUT is not made again, and a killed run goes on where it stopped. OUT/table.md holds the figures; each lies
in a JSON file of its own too, beside what it is of. docs/explanation/paper.md says which claim of the paper a figure
belongs to.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ask import probe_items, score_items, score_negatives
from bench import Machine, Run
from items import Item, items
from make import make
from settings import read_recipe
from table import page

from sslguard.data.base import overlap
from sslguard.data.specs import open_data
from sslguard.encoders.load import load_encoder
from sslguard.errors import SslguardError, UsageError
from sslguard.files import write_atomic
from sslguard.training import is_first_process

STEPS = ("mark", "steal", "remove", "wrap", "verify", "downstream", "table")
TRAINING = ("mark", "steal", "remove")
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 where all went well."""
    chosen = _arguments(argv)
    try:
        machine = Machine(chosen.devices, chosen.accelerator, chosen.precision, not chosen.quiet)
        run = Run(read_recipe(chosen.recipe, chosen.set), chosen.out, machine)
        if chosen.plan:
            _plan(run)
        else:
            _run(run, [step for step in STEPS if step in chosen.only])
    except SslguardError as error:
        sys.stderr.write(f"paper: {' '.join(str(error).split())}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("paper: interrupted; the same command goes on where it stopped\n")
        return INTERRUPTED
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipe", type=Path, help="a TOML file such as recipes/paper/moco.toml")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--plan", action="store_true", help="list what would be made, and what is there")
    parser.add_argument("--devices", type=int, default=1, help="processes, one device each")
    parser.add_argument("--accelerator", choices=("cpu", "cuda", "mps", "auto"), default="auto")
    parser.add_argument("--precision", choices=("32", "bf16", "auto"), default="32")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    return parser.parse_args(argv)


def _plan(run: Run) -> None:
    for item in items(run.recipe):
        state = "" if run.stands(item) else "  (not trained yet)"
        sys.stdout.write(f"{item.step:8}{item}{state}\n")


def _run(run: Run, steps: Sequence[str]) -> None:
    made = items(run.recipe)
    _check_inputs(run, steps)
    marked, clean = (next(i for i in made if i.origin == origin) for origin in ("marked", "clean"))
    # F is probed, and what is stolen from it: that thieves succeed is a claim of its own.
    probed = [i for i in made if i.origin == "marked" or i.step in ("mark", "steal")]
    work: dict[str, Callable[[], None]] = {
        **{step: partial(_make_all, run, [i for i in made if i.step == step and i.stored]) for step in TRAINING},
        "wrap": partial(score_items, run, [i for i in made if i.step == "wrap"], marked),
        "verify": partial(_verify, run, [i for i in made if i.step != "wrap"], marked, clean),
        "downstream": partial(probe_items, run, probed, clean),
        "table": partial(_table, run, made),
    }
    for step in steps:
        # Only trainings are shared among processes, and they come first.
        if step in TRAINING or is_first_process():
            work[step]()


def _make_all(run: Run, chosen: Sequence[Item]) -> None:
    for item in chosen:
        make(run, item)


def _verify(run: Run, chosen: Sequence[Item], marked: Item, clean: Item) -> None:
    score_items(run, chosen, marked)
    score_negatives(run, marked, clean)


def _table(run: Run, made: Sequence[Item]) -> None:
    text = page(run, made)
    write_atomic(run.out / "table.md", text.encode())
    sys.stdout.write(text)


def _check_inputs(run: Run, steps: Sequence[str]) -> None:
    """Open what the steps will need: what is missing is better known now than after a week of training.

    Raises:
        UsageError: data cannot be opened, or suspects would be asked about images that something is trained on.
        EncoderError: an encoder cannot be loaded, or answers in another width than F.
    """
    if set(steps) <= {"table"}:
        return
    recipe, attacks = run.recipe, run.recipe.attacks
    width = recipe.encoder.load().dim
    trained = {"scheme.data": recipe.scheme.data}
    trained |= {f"steal.queries.{name}": spec for name, spec in recipe.steal.queries.items()}
    trained |= {"attacks.fine_tune.data": attacks.fine_tune.data} if attacks.fine_tune.on else {}
    trained |= {"attacks.overwrite.marking.data": attacks.overwrite.marking.data} if attacks.overwrite.on else {}
    asked = open_data(recipe.verify.data)
    for where, spec in trained.items():
        if shared := overlap(asked, open_data(spec)):
            raise UsageError(f"verify.data shares {shared} images with {where}: ask about images nothing is trained on")
    if "verify" in steps:
        for spec in recipe.verify.independent:
            if (other := load_encoder(spec).dim) != width:
                raise UsageError(f"verify.independent: {spec} answers in {other} dimensions and F in {width}")
    if "downstream" in steps:
        for task in recipe.downstream.tasks.values():
            open_data(task.train), open_data(task.test)


if __name__ == "__main__":
    sys.exit(main())
