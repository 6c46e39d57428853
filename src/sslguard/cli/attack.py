"""Commands of a thief: `attack fine-tune`, `prune`, `self-supervised`, `overwrite`, and `apply` for all the others."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sslguard.cli.checks import check
from sslguard.cli.chosen import Chosen, Source, options_of
from sslguard.cli.make import RECIPE, Preset, after_theft, trained_encoder
from sslguard.cli.options import ONE_MACHINE, PRINTED, Machine, Output, Positive, Seed
from sslguard.cli.output import Result
from sslguard.errors import UsageError
from sslguard.schemes.registry import named_scheme
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.recipes import GENTLE, Supervised

if TYPE_CHECKING:
    from sslguard.attacks.base import Removal

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


@options_of(Source(SSLGuard(), RECIPE, without=("pool",)))
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
    epochs: Positive | None = None,
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
        recipe: Settings of the training.
        probing: Probe of the result.
        machine: Devices and precision.
        output: How results are printed.
    """
    table = recipe.table()
    if "steps" in table and epochs is not None:
        raise UsageError("--steps and --epochs both say how long to train: give one of them")
    chosen = Supervised(**table)
    _check(victim, probing, data)

    from sslguard.attacks.removal import FineTune

    return _attacked(victim, FineTune(chosen, epochs), out, probing, output, data, seed, machine)


def prune(
    victim: str,
    /,
    *,
    out: Path,
    amount: Positive = 0.5,
    scope: Literal["global", "layer"] = "global",
    probing: Probing = UNPROBED,
    output: Output = PRINTED,
) -> Result:
    """Set the smallest weights of an encoder to zero.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        out: Folder of the result; an encoder that is there is replaced.
        amount: Share of the weights of convolutions and linear layers, between 0 and 1.
        scope: Rank the weights of the whole network together, or take that share of every layer.
        probing: Probe of the result.
        output: How results are printed.
    """
    _check(victim, probing)

    from sslguard.attacks.removal import Prune

    return _attacked(victim, Prune(amount, scope), out, probing, output)


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
        recipe: Settings of the training.
        probing: Probe of the result.
        machine: Devices and precision.
        output: How results are printed.
    """
    chosen = replace(GENTLE, method=method, **recipe.table())
    _check(victim, probing, data)

    from sslguard.attacks.removal import SelfSupervised

    return _attacked(victim, SelfSupervised(chosen), out, probing, output, data, seed, machine)


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
        settings: Settings of the scheme.
        probing: Probe of the result.
        machine: Devices and precision.
        output: How results are printed.
    """
    chosen = named_scheme("sslguard", preset, settings.table())
    _check(victim, probing, data)

    from sslguard.attacks.removal import Overwrite

    return _attacked(victim, Overwrite(chosen), out, probing, output, data, seed, machine)


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
    """Run any attack that leaves an encoder, by its name in sslguard.attacks.registry.

    Wrappings and mappings leave no weights and are refused: they are in Python, and in `sslguard bench`. After an
    interruption the same command goes on where it stopped.

    Args:
        victim: The encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        attack: Its name, such as quantise, prune-filters, weight-noise, cont-steal, stolen-encoder or rda.
        out: Folder of the result; an encoder that is there is replaced.
        data: Items of the thief's own, where the attack needs any.
        settings: KEY=VALUE, as often as wanted; a dot leads into a table: --set bits=4, --set recipe.steps=300.
        seed: Of all that is drawn.
        probing: Probe of the result.
        machine: Devices and precision.
        output: How results are printed.
    """
    tables = _tables(settings or [])
    _check(victim, probing, data)

    return _attacked(victim, attack, out, probing, output, data, seed, machine, tables)


COMMANDS: tuple[Callable[..., Result], ...] = (fine_tune, prune, self_supervised, overwrite, apply)


def _check(victim: str, probing: Probing, data: str | None = None) -> None:
    if (probing.probe_train is None) != (probing.probe_test is None):
        raise UsageError("--probe-train and --probe-test go together")
    if probing.probe_train is None and probing.clean is not None:
        raise UsageError("--clean is what a probe compares with: give --probe-train and --probe-test too")
    check(encoders=[victim, probing.clean], data=[data, probing.probe_train, probing.probe_test])


def _tables(settings: list[str]) -> dict[str, Any]:
    """Return lines KEY=VALUE as TOML reads them; a value that is none of TOML's is a text."""
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


def _attacked(
    victim: str,
    attack: Removal | str,
    out: Path,
    probing: Probing,
    output: Output,
    data: str | None = None,
    seed: int = 0,
    machine: Machine = ONE_MACHINE,
    settings: Mapping[str, Any] | None = None,
) -> Result:
    """Run the attack and say what is left of the victim."""
    from sslguard import api

    train, test = probing.probe_train, probing.probe_test
    left, probed = api.attack(
        *(victim, attack, data),
        out=out,
        settings=settings,
        seed=seed,
        probe=None if train is None or test is None else (train, test),
        clean=probing.clean,
        progress=output.progress,
        **machine.loop(),
    )
    trained = trained_encoder(out, left)
    fields, rows = dict(trained.fields), [*trained.rows]
    if probed is not None:
        fields["probe"] = probed
        rows.append(("accuracy", f"{probed['accuracy']:.4f}, of the victim {probed['victim']:.4f}"))
        if "kept" in probed:
            floor = f"of the clean encoder's {probed['clean']:.4f} above the baseline's {probed['baseline']:.4f}"
            rows.append(("accuracy kept", f"{100 * probed['kept']:.1f} % {floor}"))
    return replace(trained, fields=fields, rows=rows, next=after_theft(victim, out))
