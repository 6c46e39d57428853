"""Commands of a thief: `attack fine-tune`, `prune`, `self-supervised`, `overwrite`, and `apply` for all the others."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sslguard.cli.checks import check
from sslguard.cli.chosen import Chosen, Source, options_of
from sslguard.cli.make import RECIPE, Preset, is_encoder
from sslguard.cli.options import ONE_MACHINE, PRINTED, Machine, Output, Rate, Seed
from sslguard.cli.output import Result
from sslguard.cli.unfinished import unfinished
from sslguard.errors import UsageError
from sslguard.schemes.registry import PRESETS, build_scheme
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.recipes import GENTLE, Supervised

if TYPE_CHECKING:
    from sslguard.data.base import Data
    from sslguard.encoders.base import Encoder

HELP = """Try to be rid of a mark, as a thief does who holds the weights; the victim is left as it is.

Attacks in a row are one command after another: steal, then fine-tune what was stolen, then prune that. A thief who \
has answers alone begins with `sslguard steal`. What stands before or behind an encoder that is served (noise, \
rotations, filters) changes no weights, so that there is nothing to write: it is in Python, sslguard.attacks.registry, \
and in the configurations of `sslguard bench`."""

PROBE = Group("Probe", sort_key=2)


@options_of(Source(Supervised(), RECIPE))
class FineTuningOptions(Chosen):
    """What the user chose of a recipe of training on labels."""


@options_of(Source(GENTLE, RECIPE, without=("method", "views")))
class FurtherOptions(Chosen):
    """What the user chose of a recipe that goes on with pre-training."""


@options_of(Source(SSLGuard(), RECIPE))
class MarkingOptions(Chosen):
    """What the user chose of the scheme that a thief marks with; the rest is the preset's."""


@Parameter(name="*", group=PROBE)
@dataclass(frozen=True, kw_only=True)
class Probing:
    """What the attack leaves of an encoder's use.

    Attributes:
        probe_train: Labelled data of a linear probe on the result, with --probe-test.
        probe_test: What its accuracy is measured on.
        clean: The clean encoder: also print how much of its accuracy above the better baseline (raw pixels, the
            untrained network) is kept.
    """

    probe_train: str | None = None
    probe_test: str | None = None
    clean: str | None = None


UNPROBED = Probing()
TUNING, FURTHER, MARKING = FineTuningOptions(), FurtherOptions(), MarkingOptions()


def fine_tune(
    victim: str,
    /,
    *,
    data: str,
    out: Path,
    epochs: Rate | None = None,
    seed: Seed = 0,
    recipe: FineTuningOptions = TUNING,
    probing: Probing = UNPROBED,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Train an encoder on labels of the thief's own.

    After an interruption the same command goes on where it stopped.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        data: Labelled items.
        out: Folder of the result; an encoder that is there is replaced.
        epochs: Passes over the data in place of --steps, such as 0.5 or 10.
        seed: Of the classifier and of the order.
    """
    table = recipe.table()
    if "steps" in table and epochs is not None:
        raise UsageError("--steps and --epochs both say how long to train: give one of them")
    chosen = Supervised(**table)
    _check(victim, probing, data)

    from sslguard.attacks.removal import FineTune
    from sslguard.data.specs import open_data

    attack, items = FineTune(chosen, epochs), open_data(data)
    if items.labels is None:
        raise UsageError(f"{data} has no labels to fine-tune on; without labels there is `attack self-supervised`")

    def run(encoder: Encoder, checkpoint: Path) -> Encoder:
        return attack(encoder, items, seed=seed, checkpoint=checkpoint, progress=output.progress, **machine.loop())

    return _attacked(victim, out, probing, run)


def prune(
    victim: str,
    /,
    *,
    out: Path,
    amount: Rate = 0.5,
    scope: Literal["global", "layer"] = "global",
    probing: Probing = UNPROBED,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Set the smallest weights of an encoder to zero.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        out: Folder of the result; an encoder that is there is replaced.
        amount: Share of the weights of convolutions and linear layers, between 0 and 1.
        scope: Rank the weights of the whole network together, or take that share of every layer.
    """
    _check(victim, probing)

    from sslguard.attacks.removal import Prune

    attack = Prune(amount, scope)
    return _attacked(victim, out, probing, lambda encoder, _: attack(encoder))


def self_supervised(
    victim: str,
    /,
    *,
    data: str,
    out: Path,
    method: Literal["simclr", "moco", "byol"] = "simclr",
    seed: Seed = 0,
    recipe: FurtherOptions = FURTHER,
    probing: Probing = UNPROBED,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Go on pre-training an encoder, without labels: 200 steps at half the rate that trains from scratch.

    After an interruption the same command goes on where it stopped.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        data: Images of the thief's own.
        out: Folder of the result; an encoder that is there is replaced.
        method: SimCLR, MoCo v2 or BYOL.
        seed: Of the projection head, order and views.
    """
    chosen = replace(GENTLE, method=method, **recipe.table())
    _check(victim, probing, data)

    from sslguard.attacks.removal import SelfSupervised
    from sslguard.data.specs import open_data

    attack, images = SelfSupervised(chosen), open_data(data)

    def run(encoder: Encoder, checkpoint: Path) -> Encoder:
        return attack(encoder, images, seed=seed, checkpoint=checkpoint, progress=output.progress, **machine.loop())

    return _attacked(victim, out, probing, run)


def overwrite(
    victim: str,
    /,
    *,
    data: str,
    out: Path,
    preset: Preset = "small",
    seed: Seed = 0,
    settings: MarkingOptions = MARKING,
    probing: Probing = UNPROBED,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Mark an encoder once more, under a key of the thief's own that is thrown away.

    After an interruption the same command goes on where it stopped.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        data: Images of the thief's own.
        out: Folder of the result; an encoder that is there is replaced.
        preset: Settings to start from, as for `watermark`; the help shows the defaults of small.
        seed: Of the thief's secret, which is none that --secret-seed draws.
    """
    chosen = build_scheme(PRESETS["sslguard"][preset], settings.table())
    _check(victim, probing, data)

    from sslguard.attacks.removal import Overwrite
    from sslguard.data.specs import open_data

    attack, images = Overwrite(chosen), open_data(data)

    def run(encoder: Encoder, checkpoint: Path) -> Encoder:
        return attack(encoder, images, seed=seed, checkpoint=checkpoint, progress=output.progress, **machine.loop())

    return _attacked(victim, out, probing, run)


def apply(
    victim: str,
    /,
    *,
    attack: str,
    out: Path,
    data: str | None = None,
    settings: Annotated[list[str] | None, Parameter(name="--set")] = None,
    seed: Seed = 0,
    probing: Probing = UNPROBED,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Apply any attack that leaves an encoder, by its name in sslguard.attacks.registry.

    Wrappings and mappings leave no weights and are refused: they are in Python, and in `sslguard bench`. After an
    interruption the same command goes on where it stopped.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        attack: Its name, such as quantise, prune-filters, weight-noise, cont-steal, stolen-encoder or rda.
        out: Folder of the result; an encoder that is there is replaced.
        data: Items of the thief's own, where the attack needs any.
        settings: KEY=VALUE, as often as wanted; a dot leads into a table: --set bits=4, --set recipe.steps=300.
        seed: Of all that is drawn.
    """
    tables = _tables(settings or [])
    _check(victim, probing, data)

    from sslguard.attacks.base import Removal, Stealing
    from sslguard.attacks.registry import build
    from sslguard.data.specs import open_data

    chosen = build(attack, tables)
    if not isinstance(chosen, Removal | Stealing):
        raise UsageError(f"{attack} leaves no weights to write: it is for Python and for `sslguard bench`")
    if (data is None) != (chosen.needs == "nothing"):
        raise UsageError(f"{attack} needs {chosen.needs}: {'leave --data out' if data else 'give --data'}")
    items: Any = None if data is None else open_data(data)
    if chosen.needs == "labels" and items.labels is None:
        raise UsageError(f"{attack} needs labels, and {data} has none")

    def run(encoder: Encoder, checkpoint: Path) -> Encoder:
        return chosen(encoder, items, seed=seed, checkpoint=checkpoint, progress=output.progress, **machine.loop())

    return _attacked(victim, out, probing, run)


COMMANDS: tuple[Callable[..., Result], ...] = (fine_tune, prune, self_supervised, overwrite, apply)


def _check(victim: str, probing: Probing, data: str | None = None) -> None:
    check(encoders=[victim, probing.clean], data=[data, probing.probe_train, probing.probe_test])


def _tables(settings: list[str]) -> dict[str, Any]:
    """KEY=VALUE lines as TOML reads them; a value that is none of TOML's is a text."""
    lines = []
    for line in settings:
        key, equals, value = line.partition("=")
        if not equals:
            raise UsageError(f"--set takes KEY=VALUE, not {line!r:.80}")
        try:
            tomllib.loads(f"key = {value}")
        except tomllib.TOMLDecodeError:
            value = json.dumps(value)
        lines.append(f"{key} = {value}")
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--set cannot be read: {error}") from error


def _attacked(victim: str, out: Path, probing: Probing, run: Callable[[Encoder, Path], Encoder]) -> Result:
    """Load the victim, `run` the attack with its checkpoint, keep what is left of it, and say what that is worth."""
    from sslguard.encoders.folder import save_encoder
    from sslguard.encoders.load import load_encoder

    if os.path.realpath(out) == os.path.realpath(victim):
        raise UsageError("--out is the victim, which an attack leaves as it is: choose another folder")
    encoder = load_encoder(victim)
    yardstick = _Yardstick.of(probing, encoder)
    with unfinished(out, replaces=is_encoder) as work:
        left = run(encoder, work.checkpoint)
        if work.result is not None:
            save_encoder(left, work.result)
    fields: dict[str, Any] = {"encoder": str(out), "dim": left.dim, "n_parameters": left.n_parameters, **left.record}
    rows = [("encoder", str(out)), ("width", str(left.dim)), ("seconds", f"{left.record['seconds']:.1f}")]
    if "final_loss" in left.record:
        rows.insert(2, ("final loss", f"{left.record['final_loss']:.4f}"))
    if yardstick is not None:
        found, lines = yardstick.measure(left)
        fields["probe"] = found
        rows += lines
    return Result(fields, rows)


@dataclass(frozen=True)
class _Yardstick:
    """A probe's task, the victim's accuracy on it and, with a clean encoder, its A_F and the better baseline's A₀."""

    train: Data
    test: Data
    victim: float
    clean: float | None = None
    baseline: float | None = None

    @classmethod
    def of(cls, probing: Probing, victim: Encoder) -> _Yardstick | None:
        """None where no probe is asked for, and in all processes but the first.

        Raises:
            UsageError: options are missing, the data cannot be probed on, or the clean encoder is no better than the
                baseline: all before any training.
        """
        from sslguard import probes
        from sslguard.data.specs import open_data
        from sslguard.encoders.load import load_encoder
        from sslguard.training import is_first_process

        if (probing.probe_train is None) != (probing.probe_test is None):
            raise UsageError("--probe-train and --probe-test go together")
        if probing.probe_train is None or probing.probe_test is None:
            if probing.clean is not None:
                raise UsageError("--clean is what a probe compares with: give --probe-train and --probe-test too")
            return None
        if not is_first_process():
            return None
        train, test = open_data(probing.probe_train), open_data(probing.probe_test)
        task = cls(train, test, probes.probe_encoder(victim, train, test).accuracy)
        if probing.clean is None:
            return task
        clean = load_encoder(probing.clean)
        accuracy = probes.probe_encoder(clean, train, test).accuracy
        floor = probes.baseline(clean, train, test).accuracy
        probes.accuracy_kept(accuracy, accuracy, floor)
        return replace(task, clean=accuracy, baseline=floor)

    def measure(self, encoder: Encoder) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        """Fields and rows on an encoder's accuracy and, with a clean one, on how much of that one's is kept."""
        from sslguard import probes

        accuracy = probes.probe_encoder(encoder, self.train, self.test).accuracy
        fields = {"train": self.train.spec, "test": self.test.spec, "accuracy": accuracy, "victim": self.victim}
        rows = [("accuracy", f"{accuracy:.4f}, of the victim {self.victim:.4f}")]
        if self.clean is not None and self.baseline is not None:
            kept = probes.accuracy_kept(accuracy, self.clean, self.baseline)
            fields |= {"clean": self.clean, "baseline": self.baseline, "kept": kept}
            of_clean = f"of the clean encoder's {self.clean:.4f} above the baseline's {self.baseline:.4f}"
            rows.append(("accuracy kept", f"{100 * kept:.1f} % {of_clean}"))
        return fields, rows
