"""Commands that train: `pretrain`, `watermark`, `steal`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sslguard.cli.options import ONE_MACHINE, PRINTED, Count, Machine, Output, Rate, Seed, Share, given
from sslguard.cli.output import Result, say
from sslguard.cli.remote import DEFAULT_REMOTE, RemoteOptions, opened, remote_rows
from sslguard.cli.unfinished import unfinished
from sslguard.errors import UsageError

if TYPE_CHECKING:
    from sslguard.crypto.sealing import Seal
    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Data
    from sslguard.schemes.base import Scheme, Watermarked
    from sslguard.schemes.exact import Exact
    from sslguard.schemes.sslguard import SSLGuard
    from sslguard.verification.scores import ControlScores

RECIPE = Group("Recipe", sort_key=1)
EXACT = Group("Scheme exact", sort_key=2)
NOTABLE_RATE = 0.1


@Parameter(name="*", group=RECIPE)
@dataclass(frozen=True, kw_only=True)
class PretrainingOptions:
    """What is left out is the recipe's own default.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images a step, over all devices and accumulation.
        learning_rate: Of AdamW, at its peak.
        weight_decay: Of AdamW.
        temperature: Of the contrastive losses.
        momentum: Of the key (moco) or target (byol) network.
        queue: Length of moco's queue.
        projection: Width of the projection head.
    """

    steps: Count | None = None
    batch_size: Count | None = None
    learning_rate: Rate | None = None
    weight_decay: Share | None = None
    temperature: Rate | None = None
    momentum: Share | None = None
    queue: Count | None = None
    projection: Count | None = None


@Parameter(name="*", group=RECIPE)
@dataclass(frozen=True, kw_only=True)
class SchemeOptions:
    """What is left out is the preset's.

    Attributes:
        steps: Iterations.
        batch_size: Plain images an iteration.
        trigger_batch: Triggered images an iteration.
        encoder_rate: Learning rate of the watermarked encoder.
        shadow_rate: Learning rate of the shadow encoder.
        decoder_rate: Learning rate of the decoder.
        trigger_rate: Learning rate of the trigger.
        shadow_decay: Factor on the shadow's learning rate after every epoch.
        optimizer: sgd as published, or adam.
        shadow: Architecture of the shadow encoder; by default the encoder's own.
        gradients: clean takes each loss's gradient for its own step; released collects them as the released code does.
        negatives: none as published; shadow also trains the decoder away from innocents.
        carrier: Size of the mark on plain answers; 0 as published, and then with shadows.
        shadow_weights: Encoder whose weights the shadow starts from; by default they are drawn.
        directions: Secret directions of the carrier.
        shift: How far triggered answers are moved, in units of the embedding's spread; needs a carrier.
        secret_dim: Width of the secret vector.
        mask_probability: Share of the pixels under the trigger.
        n_verification: Images of the data set aside for the trigger.
        n_queries: Images that a verification asks.
    """

    steps: Count | None = None
    batch_size: Count | None = None
    trigger_batch: Count | None = None
    encoder_rate: Rate | None = None
    shadow_rate: Rate | None = None
    decoder_rate: Rate | None = None
    trigger_rate: Rate | None = None
    shadow_decay: Rate | None = None
    optimizer: Literal["sgd", "adam"] | None = None
    shadow: str | None = None
    gradients: Literal["clean", "released"] | None = None
    negatives: Literal["none", "shadow"] | None = None
    carrier: float | None = None
    shadow_weights: str | None = None
    directions: Count | None = None
    shift: Rate | None = None
    secret_dim: Count | None = None
    mask_probability: Rate | None = None
    n_verification: Count | None = None
    n_queries: Count | None = None


@Parameter(name="*", group=EXACT)
@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """For --scheme exact, which also takes --steps, --batch-size, --encoder-rate and --n-queries.

    Attributes:
        epsilon: Length of the mark beside an embedding of length 1.
        components: Leading principal components that the secret features read.
        n_features: Secret features of the embedding.
        n_statistics: Secret features of the input, which copies learn first.
        frequency: Of the features over those components.
        spread_power: 0 marks all directions alike, 1 along the embedding's own spread.
    """

    epsilon: Rate | None = None
    components: Count | None = None
    n_features: Count | None = None
    n_statistics: int | None = None
    frequency: Rate | None = None
    spread_power: Share | None = None


@Parameter(name="*", group=RECIPE)
@dataclass(frozen=True, kw_only=True)
class DistillationOptions:
    """What is left out is the recipe's own default.

    Attributes:
        loss: How answers are learned.
        steps: Optimiser steps.
        batch_size: Queries a step.
        learning_rate: Of AdamW, at its peak.
        weight_decay: Of AdamW.
    """

    loss: Literal["cosine", "centred", "mse", "infonce"] | None = None
    steps: Count | None = None
    batch_size: Count | None = None
    learning_rate: Rate | None = None
    weight_decay: Share | None = None


def pretrain(
    method: Literal["simclr", "moco", "byol"],
    /,
    *,
    data: str,
    out: Path,
    arch: str = "resnet-small",
    size: Count | None = None,
    seed: Seed = 0,
    accumulate: Count = 1,
    recipe: PretrainingOptions = PretrainingOptions(),
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Pre-train an encoder without labels.

    After an interruption the same command goes on where it stopped.

    Args:
        method: SimCLR, MoCo v2 or BYOL.
        data: Images to learn from, such as photos/, x.npy or fashion-mnist:train[0:20000].
        out: Folder of the encoder; an encoder that is there is replaced.
        arch: A small network of our own (resnet-small, resnet-narrow ...), timm:NAME or torchvision:NAME.
        size: Side of the encoder's input in pixels; by default the images' own.
        seed: Of initialisation, order and views.
        accumulate: Micro-batches that a process runs before it steps.
    """
    from sslguard.data.specs import open_data
    from sslguard.encoders.folder import save_encoder
    from sslguard.training import pretraining
    from sslguard.training.recipes import Pretraining

    images = open_data(data)
    chosen = Pretraining(method, **given(recipe))
    with unfinished(out, replaces=is_encoder) as work:
        encoder, _ = pretraining.pretrain(
            chosen,
            images,
            architecture=arch,
            seed=seed,
            size=size,
            checkpoint=work.checkpoint,
            progress=output.progress,
            accumulate=accumulate,
            **machine.loop(),
        )
        if work.result is not None:
            save_encoder(encoder, work.result)
    return _trained(out, encoder.dim, encoder.n_parameters, encoder.record)


def watermark(
    encoder: str,
    /,
    *,
    data: str,
    out: Path,
    scheme: Literal["sslguard", "exact"] = "sslguard",
    preset: Literal["cured", "small", "published"] = "cured",
    secret_seed: Seed | None = None,
    control: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    verify_data: str | None = None,
    recipient: list[str] | None = None,
    ask_passphrase: bool = False,
    settings: SchemeOptions = SchemeOptions(),
    mode: Annotated[Literal["head", "distilled"] | None, Parameter(group=EXACT)] = None,
    sub_keys: Annotated[Count | None, Parameter(group=EXACT)] = None,
    exact: ProtocolOptions = ProtocolOptions(),
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Mark a copy of an encoder: OUT/encoder, and its private key OUT/key.

    After an interruption the same command goes on where it stopped.

    Args:
        encoder: The clean encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        data: Items to mark with: images, or texts where the encoder takes texts.
        out: Folder of the result. A key that is there is never overwritten.
        scheme: How it is marked. The p-value of sslguard is a rank among innocents; that of exact is a theorem.
        preset: Of sslguard: cured writes what surrogates inherit and reads what innocents do not share; small has the
            published losses at a size for small encoders; published has the paper's own size too.
        secret_seed: Derive the secret from a number, for tables that others shall repeat. Such a key proves nothing.
        control: Known innocents to score under the new key at once, so that it knows its null: as verify's --control.
        mode: head puts the mark on the output, without training, for an API; distilled, the default, trains it into
            the weights.
        sub_keys: Independent sub-keys that share the mark: a claim opens one of them, the others stay secret.
        verify_data: What they are asked, with --control: the --data of verifications to come, no image of --data.
        recipient: Encrypt the key for this age public key, or those in this file; give several by repeating it.
        ask_passphrase: Encrypt the key by a passphrase that is asked for; SSLGUARD_PASSPHRASE does so without asking.
    """
    from sslguard import api
    from sslguard.cli.claim import chosen_seal
    from sslguard.crypto.secrets import Secret
    from sslguard.data.specs import open_data
    from sslguard.encoders.load import load_encoder

    chosen: Scheme
    if scheme == "exact":
        chosen, n_asked = exact_of(settings, exact, mode, sub_keys, ranked=bool(control or verify_data))
    else:
        if foreign := [*given(exact), *(["mode"] if mode else []), *(["sub_keys"] if sub_keys else [])]:
            raise UsageError(f"--{_option(foreign[0])} belongs to --scheme exact")
        chosen = sslguard = scheme_of(preset, settings)
        n_asked = sslguard.n_queries
    seal = chosen_seal(recipient, ask_passphrase)
    clean, images = load_encoder(encoder), open_data(data)
    if control or verify_data:
        _check_null(control, verify_data, images, clean.dim, n_asked)
    null: ControlScores | None = None
    known: Secret | None = None
    if secret_seed is not None:
        say("warning: anybody can derive the key of --secret-seed, so it proves nothing; leave it out for a real one")
        known = Secret.from_seed(secret_seed)
    with unfinished(out) as work:
        marked = api.watermark(
            clean,
            images,
            scheme=chosen,
            secret=known or work.secret(),
            checkpoint=work.checkpoint,
            progress=output.progress,
            **machine.loop(),
        )
        if work.result is not None:
            _save_marked(marked, work.result, seal)
            if control and verify_data:
                null = api.score_controls(
                    *(marked.key, verify_data),
                    controls=control,
                    folder=work.result / "key",
                    progress=output.progress,
                )
            if seal is None:
                say(f"the key is in the clear: whoever reads {out / 'key'} has it; sslguard protect encrypts it")
    return _marked(out, marked, null)


def steal(
    encoder: str,
    /,
    *,
    data: str,
    out: Path,
    arch: str = "resnet-small",
    queries: Count | None = None,
    augment: bool = False,
    seed: Seed = 0,
    recipe: DistillationOptions = DistillationOptions(),
    remote: RemoteOptions = DEFAULT_REMOTE,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Train a surrogate from an encoder's answers alone.

    After an interruption the same command goes on where it stopped.

    Args:
        encoder: The victim: a folder, a checkpoint, timm:NAME, torchvision:NAME ..., or an address, https://..., with
            --protocol.
        data: What the victim is asked.
        out: Folder of the surrogate; an encoder that is there is replaced.
        arch: The surrogate's network; a linear layer maps it to the victim's width.
        queries: Ask only the first so many items.
        augment: Ask and learn from random views, each a query of its own.
        seed: Of initialisation, order and views.
    """
    from sslguard import api
    from sslguard.data.specs import open_data
    from sslguard.encoders.folder import save_encoder
    from sslguard.encoders.load import load_encoder
    from sslguard.training.recipes import Distillation

    asked = open_data(data)
    with opened(encoder, remote) as target:
        victim = load_encoder(target) if isinstance(target, str) else target
        with unfinished(out, replaces=is_encoder) as work:
            surrogate = api.steal(
                victim,
                asked,
                recipe=Distillation(architecture=arch, **given(recipe)),
                queries=queries,
                augment=augment,
                seed=seed,
                checkpoint=work.checkpoint,
                progress=output.progress,
                **machine.loop(),
            )
            if not isinstance(target, str):
                target.finish()
            if work.result is not None:
                save_encoder(surrogate, work.result)
    result = _trained(out, surrogate.dim, surrogate.n_parameters, surrogate.record)
    rows = [*result.rows, ("queries", str(surrogate.record["queries"]))]
    if isinstance(target, str):
        return replace(result, rows=rows)
    return replace(
        result, fields={**result.fields, "remote": target.report()}, rows=rows + remote_rows(target.report())
    )


def scheme_of(preset: str, settings: SchemeOptions) -> SSLGuard:
    """Return the preset, with what the user chose instead."""
    from sslguard.schemes.sslguard import SSLGuard

    presets = {"cured": SSLGuard.cured, "small": SSLGuard, "published": SSLGuard.published}
    return replace(presets[preset](), **given(settings))


def exact_of(
    settings: SchemeOptions,
    exact: ProtocolOptions,
    mode: Literal["head", "distilled"] | None,
    sub_keys: int | None,
    *,
    ranked: bool,
) -> tuple[Exact, int]:
    """Return the exact scheme as the user chose it, and how many queries its key asks."""
    from sslguard.schemes.exact import Exact, Protocol

    if ranked:
        raise UsageError("--scheme exact needs no controls: its null is exact. Leave --control and --verify-data out")
    shared = {"steps": "steps", "batch_size": "batch_size", "encoder_rate": "learning_rate"}
    asked, protocol = given(settings), given(exact)
    if "n_queries" in asked:
        protocol["n_queries"] = asked.pop("n_queries")
    if foreign := set(asked) - set(shared):
        raise UsageError(f"--{_option(min(foreign))} belongs to --scheme sslguard")
    training = {shared[name]: value for name, value in asked.items()}
    scheme = Exact(Protocol(**protocol), mode or "distilled", sub_keys=sub_keys or 1, **training)
    return scheme, scheme.protocol.n_queries


def _option(field: str) -> str:
    return field.replace("_", "-")


def is_encoder(folder: Path) -> bool:
    """Return whether a folder holds an encoder of ours and nothing else."""
    from sslguard.encoders.folder import FILES, WEIGHTS
    from sslguard.encoders.names import DESCRIPTION

    return {DESCRIPTION, WEIGHTS} <= {entry.name for entry in folder.iterdir()} <= set(FILES)


def _trained(out: Path, dim: int, n_parameters: int, record: Mapping[str, Any]) -> Result:
    fields = {"encoder": str(out), "dim": dim, "n_parameters": n_parameters, **record}
    rows = [
        ("encoder", str(out)),
        ("width", str(dim)),
        ("parameters", f"{n_parameters:,}"),
        ("final loss", f"{record['final_loss']:.4f}"),
        ("seconds", f"{record['seconds']:.1f}"),
    ]
    return Result(fields, rows)


def _save_marked(marked: Watermarked, folder: Path, seal: Seal | None) -> None:
    from sslguard.encoders.folder import save_encoder
    from sslguard.schemes.keyfile import save_key

    save_encoder(marked.encoder, folder / "encoder")
    save_key(marked.key, folder / "key", seal=seal)


def _check_null(control: list[str] | None, spec: str | None, marking: Data, width: int, n_images: int) -> None:
    """Check before the marking what would stop the controls from being scored after it."""
    from sslguard.data.base import overlap
    from sslguard.data.specs import open_data
    from sslguard.verification.scores import check_controls

    if not (control and spec):
        raise UsageError("--control and --verify-data go together: innocents, and what they are asked")
    asked = open_data(spec)
    if shared := overlap(asked, marking):
        raise UsageError(
            f"--verify-data and --data share {shared} images: verify on images that took no part in marking"
        )
    if len(asked) < n_images:
        raise UsageError(f"a verification asks about {n_images} images, and --verify-data has only {len(asked)}")
    check_controls(control, width)


def _null_of(null: ControlScores) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Fields and rows on how innocents score under a new key."""
    n, highest = len(null.scores), null.highest
    above, largest = null.n_above(NOTABLE_RATE), null.scores[highest].value
    fields = {"n_controls": n, "n_above": above, "above": NOTABLE_RATE, "largest": largest, "largest_name": highest}
    rows = [
        ("innocents", f"{above} of {n} have a watermark rate above {NOTABLE_RATE:g}"),
        ("largest score", f"{largest:.4f} ({highest})"),
    ]
    return {"controls": fields}, rows


def _marked(out: Path, marked: Watermarked, null: ControlScores | None) -> Result:
    final = {name: losses[-1] for name, losses in marked.history.losses.items()}
    fields = {
        "encoder": str(out / "encoder"),
        "key": str(out / "key"),
        "dim": marked.encoder.dim,
        "n_queries": marked.key.n_queries,
        "final_losses": final,
        **marked.encoder.record,
    }
    rows = [
        ("encoder", str(out / "encoder")),
        ("key", f"{out / 'key'} (private: keep it as you keep a private key)"),
        *([("final losses", ", ".join(f"{name} {loss:.4f}" for name, loss in final.items()))] if final else []),
        ("seconds", f"{marked.history.seconds:.1f}"),
    ]
    more, more_rows = _null_of(null) if null is not None else ({}, [])
    return Result({**fields, **more}, [*rows, *more_rows])
