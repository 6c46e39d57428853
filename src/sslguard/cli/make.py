"""Commands that train: `pretrain`, `watermark`, `steal`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sslguard.cli.checks import check
from sslguard.cli.chosen import Chosen, Source, options_of
from sslguard.cli.handing import HEAD_ALONE, for_recipient
from sslguard.cli.options import ONE_MACHINE, PRINTED, Count, Machine, Output, Seed
from sslguard.cli.output import Result, command, say
from sslguard.cli.remote import DEFAULT_REMOTE, RemoteOptions, opened, remote_rows
from sslguard.errors import UsageError
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfolder import HEADER
from sslguard.schemes.registry import PRESETS, named_scheme, scheme_of
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.suspects.names import PREFIXES
from sslguard.training.recipes import Distillation, Pretraining

if TYPE_CHECKING:
    from sslguard.api import Marked
    from sslguard.encoders.base import Encoder
    from sslguard.verification.scores import ControlScores

RECIPE = Group("Recipe", sort_key=1)
PUBLISHED = Group("Scheme sslguard with the published losses", sort_key=2)
EXACT = Group("Scheme exact", sort_key=3)
SHOWN = 5  # of the items that cannot be read
NOTABLE_RATE = 0.1

SchemeName = Annotated[str, Parameter(choices=tuple(PRESETS))]
Preset = Annotated[str, Parameter(choices=tuple(PRESETS["sslguard"]))]
AnyPreset = Annotated[str, Parameter(choices=tuple(name for names in PRESETS.values() for name in names))]


@options_of(Source(Pretraining("simclr"), RECIPE, without=("method", "views")))
class PretrainingOptions(Chosen):
    """What the user chose of a recipe of pre-training."""


@options_of(
    Source(CuredSSLGuard(), RECIPE, "sslguard", without=("pool",)),
    Source(SSLGuard(), PUBLISHED, "sslguard", without=("pool",)),
    Source(Exact(), EXACT, "exact", without=("pool",)),
)
class SchemeOptions(Chosen):
    """What the user chose of a scheme's settings; the rest is the preset's."""


@options_of(Source(Distillation(), RECIPE, without=("architecture", "views", "asked_views", "view_weight")))
class DistillationOptions(Chosen):
    """What the user chose of a recipe of distillation."""


AS_RECIPE, AS_PRESET, AS_THIEF = PretrainingOptions(), SchemeOptions(), DistillationOptions()


def pretrain(
    method: Literal["simclr", "moco", "byol"],
    /,
    *,
    data: str,
    out: Path,
    arch: str = "resnet-small",
    size: Count | None = None,
    seed: Seed | None = None,
    accumulate: Count = 1,
    recipe: PretrainingOptions = AS_RECIPE,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Pre-train an encoder without labels.

    Its initial weights are drawn from a secret seed, kept as a private key in OUT/seed. By it, lineage --initial
    OUT/seed shows what was trained from these weights.
    After an interruption the same command goes on where it stopped.

    Args:
        method: SimCLR, MoCo v2 or BYOL.
        data: Images to learn from, such as photos/, x.npy or fashion-mnist:train[0:20000].
        out: Folder of the encoder; an encoder that is there is replaced, unless its secret seed lies with it.
        arch: A small network of our own (resnet-small, resnet-narrow ...), timm:NAME or torchvision:NAME.
        size: Side of the encoder's input in pixels; by default the images' own.
        seed: A number in place of the secret seed, for initial weights, order and views that others shall repeat. Two
            networks with one seed look related.
        accumulate: Micro-batches that a process runs before it steps.
        recipe: Settings of the training.
        machine: Devices and precision.
        output: How results are printed.
    """
    chosen = Pretraining(method, **recipe.table())
    check(data=[data])

    from sslguard import api
    from sslguard.cli.claim import chosen_seal
    from sslguard.training.processes import is_first_process

    seal = None if seed is not None else chosen_seal(None, False)
    made = api.pretrain(
        *(chosen, data),
        out=out,
        architecture=arch,
        seed=seed,
        seal=seal,
        size=size,
        progress=output.progress,
        accumulate=accumulate,
        **machine.loop(),
    )
    result = replace(trained_encoder(out, made), next=command("watermark", out, "--data", data, "--out", "marked"))
    if seed is not None:
        return result
    if seal is None and is_first_process():
        say(f"the secret seed is in the clear: whoever reads {out / 'seed'} has it; sslguard protect encrypts it")
    rows = [
        (
            "secret seed",
            f"{out / 'seed'} (private: keep it as you keep a private key, and never publish it)",
        ),
        ("commitment", f"{out / 'commitment.json'}, SHA-256 {made.record.get('seed_commitment')}"),
    ]
    fields = {"seed_key": str(out / "seed"), "commitment": str(out / "commitment.json")}
    return replace(result, fields={**result.fields, **fields}, rows=[*result.rows, *rows])


def watermark(
    encoder: str,
    /,
    *,
    data: str,
    out: Path,
    scheme: Annotated[SchemeName | None, Parameter(show_default=lambda _: "exact")] = None,
    preset: Annotated[AnyPreset | None, Parameter(show_default=lambda _: "strong, or cured")] = None,
    secret_seed: Seed | None = None,
    control: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    verify_data: str | None = None,
    pool: str | None = None,
    skip_unreadable: bool = False,
    recipient: list[str] | None = None,
    ask_passphrase: bool = False,
    key: Path | None = None,
    recipient_mark: str | None = None,
    settings: SchemeOptions = AS_PRESET,
    machine: Machine = ONE_MACHINE,
    output: Output = PRINTED,
) -> Result:
    """Mark a copy of an encoder: OUT/encoder, and its private key OUT/key.

    With --key and --recipient-mark it is marked for one recipient of a key that exists, and OUT holds no key.

    After an interruption the same command goes on where it stopped.

    Args:
        encoder: The clean encoder: a folder, a checkpoint, timm:NAME, torchvision:NAME ...
        data: Items to mark with: images, or texts where the encoder takes texts.
        out: Folder of the result. A key that is there is never overwritten.
        scheme: How it is marked. exact has a p-value by proof, for images and texts; sslguard is the paper's, for
            images.
        preset: Settings to start from. The options below change single ones; the defaults that they show are those of
            cured and strong. Of sslguard: cured has a p-value that holds for any innocent suspect by proof; small has
            the published losses at a size for small encoders, published has the paper's own size too, and their p-value
            is a rank among innocents. Of exact: strong is for embeddings that are classified; gentle
            is for those that live in an index, and moves few neighbours.
        secret_seed: Derive the secret from a number, for tables that others shall repeat. Such a key proves nothing.
        control: Known innocents to score under the new key at once, so that it knows its null: as verify's --control.
        verify_data: Held-out data for scoring the controls. It must not overlap --data.
        pool: Held-out data that later claims will ask about. The secrets are bound to them, so that nobody can say that
            you chose data to fit your key. Without a pool, an examiner accepts data of his own alone.
        skip_unreadable: Leave out items of --data that cannot be read, and count them. Each is read once beforehand.
        recipient: Encrypt the key for this age public key, or those in this file; give several by repeating it.
        ask_passphrase: Encrypt the key by a passphrase that is asked for; SSLGUARD_PASSPHRASE does so without asking.
        key: Folder of a key of the scheme exact that exists. ENCODER and --data must be those it was made with.
        recipient_mark: Mark the copy for this recipient of --key, with the common mark and with his own: see recipients
            and trace. Of the settings choose --mode, --steps, --batch-size and --learning-rate alone.
        settings: Settings of the scheme.
        machine: Devices and precision.
        output: How results are printed.
    """
    if key is not None or recipient_mark is not None:
        others = (scheme, preset, secret_seed, control, verify_data, pool, recipient)
        if ask_passphrase or skip_unreadable or any(one is not None for one in others):
            raise UsageError("--key and --recipient-mark take --data, --out and settings of the training: no more")
        if key is None or recipient_mark is None:
            raise UsageError("--key and --recipient-mark go together: which key, and for whom")
        return for_recipient(encoder, recipient_mark, key, data, out, settings, machine, output)
    scheme = scheme or scheme_of(preset)
    chosen = named_scheme(scheme, preset, settings.table(scheme))
    if (control or verify_data) and isinstance(chosen, Exact):
        raise UsageError("--scheme exact needs no controls: its null is exact. Leave --control and --verify-data out")
    check(encoders=[encoder], data=[data, verify_data, pool], controls=control)

    from sslguard import api
    from sslguard.cli.claim import chosen_seal
    from sslguard.crypto.secrets import Secret
    from sslguard.training.processes import is_first_process

    seal, secret = chosen_seal(recipient, ask_passphrase), None
    if secret_seed is not None:
        say("warning: anybody can derive the key of --secret-seed, so it proves nothing; leave it out for a real one")
        secret = Secret.from_seed(secret_seed)
    marked = api.watermark(
        *(encoder, data),
        out=out,
        scheme=chosen,
        secret=secret,
        seal=seal,
        controls=control or (),
        verify_data=verify_data,
        pool=pool,
        skip_unreadable=skip_unreadable,
        progress=output.progress,
        **machine.loop(),
    )
    for reason in marked.unreadable[:SHOWN] if is_first_process() else ():
        say(f"left out: {reason}")
    if seal is None and is_first_process() and not output.quiet:
        say(f"the key is in the clear: whoever reads {out / 'key'} has it; sslguard protect encrypts it")
    return _marked(out, marked)


def steal(
    encoder: str,
    /,
    *,
    data: str,
    out: Path,
    arch: Annotated[str | None, Parameter(show_default=lambda _: "resnet-small; for texts bag-of-words")] = None,
    queries: Count | None = None,
    size: Count | None = None,
    augment: bool = False,
    seed: Seed = 0,
    recipe: DistillationOptions = AS_THIEF,
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
        queries: Ask only the first so many items; by default all.
        size: Height and width of the surrogate's images in pixels; by default those of the victim, but at most 64.
        augment: Ask and learn from random views, each a query of its own.
        seed: Of initialisation, order and views.
        recipe: Settings of the training.
        remote: Access to encoders behind addresses.
        machine: Devices and precision.
        output: How results are printed.
    """
    thief = Distillation(**recipe.table())
    thief = thief if arch is None else replace(thief, architecture=arch)
    remote.check(encoder)
    check(encoders=[] if encoder.startswith(PREFIXES) else [encoder], data=[data])

    from sslguard import api

    with opened(encoder, remote) as victim:
        surrogate = api.steal(
            *(victim, data),
            out=out,
            recipe=thief,
            queries=queries,
            size=size,
            augment=augment,
            seed=seed,
            progress=output.progress,
            **machine.loop(),
        )
    result = replace(trained_encoder(out, surrogate), next=after_theft(encoder, out))
    rows = [*result.rows, ("queries", str(surrogate.record["queries"]))]
    if isinstance(victim, str):
        return replace(result, rows=rows)
    asked = victim.report()
    return replace(result, fields={**result.fields, "remote": asked}, rows=rows + remote_rows(asked))


def after_theft(victim: str, out: Path) -> str:
    """Return the verification of what came from a victim, by the key that lies beside it where one does."""
    beside = Path(victim).parent / "key"
    return command("verify", beside if (beside / HEADER).exists() else "KEY", out, "--data", "HELD_OUT")


def trained_encoder(out: Path, encoder: Encoder) -> Result:
    """Return what is said of an encoder that was trained or changed, and written to `out`."""
    record = encoder.record
    fields = {"encoder": str(out), "dim": encoder.dim, "n_parameters": encoder.n_parameters, **record}
    rows = [
        ("encoder", str(out)),
        ("width", str(encoder.dim)),
        ("parameters", f"{encoder.n_parameters:,}"),
        *([("final loss", f"{record['final_loss']:.4f}")] if "final_loss" in record else []),
    ]
    return Result(fields, rows, timed=True)


def _null_of(null: ControlScores) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Return fields and rows on how innocents score under a new key."""
    n, highest = len(null.scores), null.highest
    above, largest = null.n_above(NOTABLE_RATE), null.scores[highest].value
    fields = {"n_controls": n, "n_above": above, "above": NOTABLE_RATE, "largest": largest, "largest_name": highest}
    rows = [
        ("innocents", f"{above} of {n} have a watermark rate above {NOTABLE_RATE:g}"),
        ("largest score", f"{largest:.4f} ({highest})"),
    ]
    return {"controls": fields}, rows


CLAIM_SPENDS = (
    "27 bits if a dated commitment is older than the suspect, else 71: for keys and readings that may have been tried"
)


def order_rows(marked: Marked) -> list[tuple[str, str]]:
    """Return what is said of the secret order of an encoder's units."""
    if marked.order is None:
        return [("secret order", f"none: {marked.not_ordered}")] if marked.not_ordered else []
    return [
        ("secret order", f"hidden units of {len(marked.order.groups)} layers: sslguard lineage tells copies by it"),
        ("never publish", "the clean encoder, whose units stand in their own order"),
    ]


def _marked(out: Path, marked: Marked) -> Result:
    head = "head" in marked.encoder.architecture
    final = {name: losses[-1] for name, losses in marked.history.losses.items()}
    fields = {
        "encoder": str(out / "encoder"),
        "key": str(out / "key"),
        "dim": marked.encoder.dim,
        "n_queries": marked.key.n_queries,
        "final_losses": final,
        "n_unreadable": len(marked.unreadable),
        "needs": marked.needs,
        "units_in_order": 0 if marked.order is None else len(marked.order.groups),
        "not_ordered": marked.not_ordered,
        "formats": list(marked.formats),
        **marked.encoder.record,
    }
    rows = [
        ("encoder", str(out / "encoder")),
        ("key", f"{out / 'key'} (private: keep it as you keep a private key)"),
        *([("final losses", ", ".join(f"{name} {loss:.4f}" for name, loss in final.items()))] if final else []),
        *(
            [("formats", f"{', '.join(marked.formats)}; sslguard export writes what you publish")]
            if marked.formats
            else []
        ),
        *([("formats", f"only sslguard's own: {marked.not_written}")] if marked.not_written else []),
        *([("head", HEAD_ALONE)] if head else []),
        *order_rows(marked),
        *([] if marked.taken is None else marked.taken.rows()),
        *(
            [("a test asks", f"{marked.key.n_queries:,} queries at least, of items that took no part in the marking")]
            if marked.key.n_queries
            else []
        ),
        *([] if marked.taken is None else [("a claim spends", CLAIM_SPENDS)]),
        *([("to verify", f"keep {marked.needs}")] if marked.needs else []),
        *([("left out", f"{n} items that cannot be read")] if (n := len(marked.unreadable)) else []),
    ]
    more, more_rows = ({}, []) if marked.controls is None else _null_of(marked.controls)
    took = marked.taken is None or marked.taken.took
    commit = command("commit", out / "key", "--out", "commitment.json")
    publish = command(*(("serve",) if head else ("export", "--out", "published")), out / "encoder")
    after = f"{commit}, and then {publish}" if took else "mark again with more items: this mark cannot be shown"
    return Result({**fields, **more, "took": took}, [*rows, *more_rows], 0 if took else 1, next=after, timed=True)
