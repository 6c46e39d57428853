"""The command line's verbs as functions: what `import sslguard` offers.

One call does what one command does. Encoders, keys and data may be given as objects or as the texts that the command
line takes. Functions that train take `out`, the folder of the result. The result appears there whole or not at all, and
after an interruption the same call goes on where it stopped: see `training.unfinished`. Without `out` nothing is
written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from sslguard.controls.members import count_controls
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data, overlap, without_unreadable
from sslguard.data.own import own_data
from sslguard.data.pool import pool_of
from sslguard.data.specs import open_data
from sslguard.data.watched import NOTHING, Fingerprints, Watched
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.folder import is_encoder_folder, save_encoder
from sslguard.encoders.load import load_encoder
from sslguard.encoders.names import TEXT_NETWORKS
from sslguard.encoders.own import check_built, check_writable, confirm, needed
from sslguard.encoders.wrapped import LocalSuspect
from sslguard.errors import EncoderError, KeyFileError, RefusedError, UsageError
from sslguard.report.card import card
from sslguard.schemes.base import Key, Scheme, Watermarked
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.keyfile import StoredKey, open_key, save_key
from sslguard.schemes.order import InitialKey, OrderKey, WeightsKey
from sslguard.schemes.registry import key_class, named_scheme, scheme_of
from sslguard.schemes.sslguard.scheme import CuredSSLGuard, SSLGuard
from sslguard.suspects.names import PREFIXES
from sslguard.suspects.opening import open_suspect
from sslguard.suspects.remote import RemoteSuspect
from sslguard.suspects.wrappers import Complete
from sslguard.training.augmentation import MILD
from sslguard.training.processes import shared
from sslguard.training.recipes import Distillation, Pretraining
from sslguard.training.unfinished import InterruptedRun, unfinished
from sslguard.verification.nulls import null_of
from sslguard.verification.scores import ControlScores, check_controls, control_scores
from sslguard.verification.verdict import DEFAULT_ALPHA, Verdict
from sslguard.verification.verdict import verify as verify_key

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from datetime import datetime

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset

    from sslguard.attacks.base import Removal, Stealing
    from sslguard.claims.commitment import Commitment
    from sslguard.claims.outcome import Audit
    from sslguard.controls.members import Member
    from sslguard.controls.recipes import Kind
    from sslguard.crypto.sealing import Seal
    from sslguard.lineage.order import Order
    from sslguard.lineage.parts import Group
    from sslguard.lineage.verdict import LineageVerdict
    from sslguard.lineage.weights import Weights
    from sslguard.planning import Plan
    from sslguard.tracing.trace import Traced

    AnyData: TypeAlias = "Data | str | Path | NDArray[Any] | Tensor | Sequence[Any] | Dataset[Any] | DataLoader[Any]"
    AnyEncoder: TypeAlias = "Encoder | nn.Module | Callable[[Any], NDArray[np.floating] | Tensor] | str | Path"
    Factory: TypeAlias = "str | Callable[[], Any]"
    AnySuspect: TypeAlias = "Embedder | AnyEncoder"
    AnyWeights: TypeAlias = "Weights | Encoder | nn.Module | Mapping[str, Tensor] | str | Path"


SURROGATE_SIDE = 64
"""Pixels of a surrogate's images at most, unless more are asked for: at 224 a small network trains for hours."""


@dataclass(frozen=True)
class Marked(Watermarked):
    """A watermarked encoder, its key, and where they were saved.

    Attributes:
        needs: What a verification needs beside the key, in words; "" for nothing.
        formats: What `folder`/encoder holds besides: the formats of the library that the encoder came from.
        not_written: Why there is none of them, in words; "" where there is nothing to say.
        order: Secret order of the hidden units of `embedder`; None where they stand in their own order.
        not_ordered: Why they do, in words; "" where there is nothing to say.
        folder: Folder that holds `encoder` and `key`; None if nothing was saved.
        controls: Scores of known innocents under the key; None if none were asked.
        unreadable: One message for each item that could not be read and was left out.
    """

    folder: Path | None = None
    controls: ControlScores | None = None
    unreadable: tuple[str, ...] = ()
    needs: str = ""
    formats: tuple[str, ...] = ()
    not_written: str = ""
    order: Order | None = None
    not_ordered: str = ""

    def _repr_html_(self) -> str:
        rows = {
            "scheme": self.key.scheme,
            "saved": "" if self.folder is None else f"{self.folder}/encoder and {self.folder}/key",
            "formats": ", ".join(self.formats),
            "a verification needs": self.needs,
            "unreadable items": len(self.unreadable) or "",
        }
        return card("marked encoder and its key", rows.items())


class Attacked(NamedTuple):
    """What an attack leaves.

    Attributes:
        encoder: Encoder after the attack.
        probed: Accuracies, each in [0, 1]: "accuracy" of `encoder`, "victim", and if a clean encoder was given "clean",
            "baseline" and "kept"; beside them the data, "train" and "test". None if no probe was asked for.
    """

    encoder: Encoder
    probed: dict[str, Any] | None


class Population(NamedTuple):
    """Known innocents that `make_controls` made.

    Attributes:
        members: Encoders, by name and kind.
        width: Dimensions of their embeddings.
    """

    members: list[Member]
    width: int


def as_data(data: AnyData) -> Data:
    """Return a data set, opened where it is a specification, and around what the program has: see `data.own`."""
    if isinstance(data, Data):
        return data
    return open_data(str(data)) if isinstance(data, str | Path) else own_data(data)


def as_encoder(encoder: AnyEncoder, items: Data | None = None) -> Encoder:
    """Return an encoder, loaded where it is a specification, and around a network of the user's own.

    Args:
        encoder: What the user gave.
        items: What shows a network of his own how its items look.
    """
    if isinstance(encoder, Encoder):
        return encoder
    own = not isinstance(encoder, str | Path) or (isinstance(encoder, str) and encoder.startswith("python:"))
    return load_encoder(encoder, example=items if own else None)


def pretrain(
    method: Literal["simclr", "moco", "byol"] | Pretraining,
    data: AnyData,
    *,
    out: str | Path | None = None,
    architecture: str = "resnet-small",
    size: int | None = None,
    seed: int | None = None,
    secret: Secret | None = None,
    seal: Seal | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    **loop: Any,
) -> Encoder:
    """Pre-train an encoder of images without labels.

    The initial weights are drawn from a secret. It is kept as a key in `out`/seed, with a commitment to it in
    `out`/commitment.json: `compare_weights(..., initial=out/seed)` shows by it what was trained from these weights.

    Args:
        method: Name of the method, or a recipe.
        data: Images to learn from.
        out: Folder of the encoder; an encoder that is there is replaced, unless its secret seed lies with it.
        architecture: Network, as in `pretraining.new_encoder`.
        size: Side of the encoder's input in pixels; the images' own unless given.
        seed: Seed of initialisation, order and views, that others can repeat. No secret is drawn then.
        secret: Secret seed; a fresh one from the operating system unless given.
        seal: Encryption of the key in `out`/seed; None leaves it in the clear.
        checkpoint: File from which an interrupted run goes on, without `out`.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`, `accumulate`; see `training.base.Loop`.

    Raises:
        UsageError: A setting is out of range, or the data cannot be learned from.
        OutputError: `out` holds something else, or cannot be written.
    """
    from sslguard.training import pretraining

    recipe = method if isinstance(method, Pretraining) else Pretraining(method)
    images = as_data(data)
    loop |= {"progress": progress}

    def train(kept: Path | None, chosen: int | Secret) -> Encoder:
        return pretraining.pretrain(
            recipe, images, architecture=architecture, seed=chosen, size=size, checkpoint=kept, **loop
        )[0]

    if seed is not None:
        if secret is not None or seal is not None:
            raise UsageError("seed and secret exclude each other: a seed that others can repeat is kept by no key")
        return _saved(lambda kept: train(kept, seed), out, checkpoint)
    if out is None:
        return train(checkpoint, secret or shared(Secret.generate, **loop))
    with unfinished(Path(out), replaces=is_encoder_folder) as work:
        chosen = secret or work.secret()
        encoder = train(work.checkpoint, chosen)
        return encoder if work.result is None else _saved_with_seed(encoder, chosen, work.result, seal)


def watermark(
    encoder: AnyEncoder,
    data: AnyData,
    *,
    out: str | Path | None = None,
    scheme: Scheme | str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    secret: Secret | None = None,
    seal: Seal | None = None,
    controls: Sequence[str] = (),
    verify_data: AnyData | None = None,
    pool: AnyData | None = None,
    skip_unreadable: bool = False,
    checkpoint: Path | None = None,
    progress: bool = False,
    **loop: Any,
) -> Marked:
    """Mark a copy of `encoder` and return it with its secret key.

    Where the mark lies in the weights, hidden units of the copy also stand in a secret order: see `lineage.order`.

    Args:
        encoder: Clean encoder. It is left as it is.
        data: Unlabelled items to mark with.
        out: Folder that `encoder` and `key` are written to. Nothing may be there. `encoder` also holds the files of
            the library that the encoder came from: see `encoders.formats`.
        scheme: Scheme with its settings, or a name: "exact" (the default, unless the preset is one of "sslguard"),
            "sslguard", or another of `schemes.registry`.
        preset: Settings that the scheme starts from: of "sslguard" "cured", "small" or "published", of "exact" "strong"
            or "gentle". Other schemes have none.
        settings: Settings that replace those of the preset, by field, as in a configuration file.
        secret: Master secret; a fresh one from the operating system unless given.
        seal: Encryption of the key that is written; None leaves it in the clear.
        controls: Known innocents to score under the new key, as in `verify`.
        verify_data: Held-out data for scoring the controls. It must not overlap `data`.
        pool: Held-out data that later claims will ask about. The secrets are bound to them: see `data.pool`.
        skip_unreadable: Whether items of `data` that cannot be read are left out, and counted; else they are an error.
            Each item is then read once more, beforehand.
        checkpoint: File from which an interrupted run goes on, without `out`.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.base.Loop`.

    Raises:
        UsageError: A setting is out of range, or encoder, data and controls do not go together.
        EncoderError: The encoder cannot be loaded.
        OutputError: `out` is taken, or cannot be written.
    """
    if not isinstance(scheme, Scheme):
        scheme = named_scheme(scheme or scheme_of(preset), preset, settings or {})
    chosen = scheme
    if out is not None and key_class(chosen.name) is None:
        raise UsageError(f"keys of the scheme {chosen.name} are not kept in files: call without `out`")
    items, bad = as_data(data), list[str]()
    if skip_unreadable:
        items, bad = without_unreadable(items)
    clean = as_encoder(encoder, items)
    if out is not None:
        check_writable(clean)
    asked = None if verify_data is None else as_data(verify_data)
    if pool is not None:
        chosen = chosen.bound_to(pool_of(as_data(pool)))
    if controls or asked is not None:
        _check_ranking(chosen, controls, asked, items, clean.dim)
    loop |= {"progress": progress}
    watched = Watched(items)
    with nullcontext() if out is None else unfinished(Path(out)) as work:
        if work is not None:
            checkpoint, secret = work.checkpoint, secret or work.secret()
        elif secret is None:
            secret = shared(Secret.generate, **loop)
        # A resumed run, or one of several processes, does not take all the items that the marking takes.
        several = max(loop.get("devices", 1), loop.get("nodes", 1)) > 1
        partly = several or (checkpoint is not None and checkpoint.exists())
        marked = chosen.watermark(clean, watched, secret=secret, checkpoint=checkpoint, **loop)
        if isinstance(made := marked.embedder, Encoder):
            came = {name: clean.record[name] for name in ("checkpoint",) if name in clean.record}
            marked = replace(marked, embedder=replace(made, record={**made.record, **came, "base": clean.source}))
        marked, order, not_ordered = _in_secret_order(marked, secret, items)
        formats: tuple[str, ...] = ()
        reason = ""
        folder = None if work is None or work.result is None else work.result
        if folder is not None:
            from sslguard.encoders.formats import write_usual
            from sslguard.encoders.model_card import write_card

            save_encoder(marked.encoder, folder / "encoder")
            try:
                formats = write_usual(marked.encoder, folder / "encoder")
            except (EncoderError, UsageError) as error:
                reason = str(error)
            write_card(marked.encoder, folder / "encoder", formats[0] if formats else None)
            if partly:
                watched.take_all()
            save_key(marked.key, folder / "key", seal=seal, marked=watched.fingerprints, order=order)
        scores = None
        if asked is not None and (out is None or folder is not None):
            kept = None if folder is None else folder / "key"
            scores = control_scores(marked.key, controls, asked, folder=kept, progress=progress)
    parts = {field.name: getattr(marked, field.name) for field in fields(marked)}
    return Marked(
        **parts,
        folder=None if out is None else Path(out),
        controls=scores,
        unreadable=tuple(bad),
        needs=needed(clean),
        formats=formats,
        not_written=reason,
        order=order,
        not_ordered=not_ordered,
    )


def watermark_for(
    recipient: str,
    key: str | Path,
    data: AnyData,
    *,
    encoder: AnyEncoder | None = None,
    out: str | Path | None = None,
    mode: Literal["head", "distilled"] = "head",
    settings: Mapping[str, Any] | None = None,
    checkpoint: Path | None = None,
    factory: Factory | None = None,
    progress: bool = False,
    **loop: Any,
) -> Marked:
    """Mark a copy of a key's clean encoder for one recipient: with the common mark and his own, half of the size each.

    The key finds the common mark in it, and `trace` the recipient's own.

    Args:
        recipient: Name of the recipient, in the list of the key: see `tracing.recipients`.
        key: Folder of the key, of the scheme exact.
        data: Items that the key was made with.
        encoder: Clean encoder, only to check that it is the key's; the key holds it.
        out: Folder that `encoder` is written to. Nothing may be there.
        mode: Whether the marks are a head on the output, or are trained into the weights.
        settings: Settings of that training: `steps`, `batch_size`, `learning_rate`.
        checkpoint: File from which an interrupted run goes on, without `out`.
        factory: Your own function that makes the key's network, or its name: see `load_encoder`.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.base.Loop`.

    Returns:
        What is handed out, with the key of the recipient's own mark, which is stored nowhere.

    Raises:
        UsageError: There is no such recipient, he was revoked, or encoder, key and data do not go together.
        OutputError: `out` is taken, or cannot be written.
    """
    from sslguard.lineage.order import released
    from sslguard.tracing.handing import check_handed, marked_for, scheme_for
    from sslguard.tracing.recipients import find, read_recipients

    _confirm(factory)
    scheme, stored = scheme_for(mode, settings or {}), _stored(key)
    one = find(read_recipients(Path(key)), recipient)
    items = as_data(data)
    check_handed(stored, one, None if encoder is None else as_encoder(encoder, items), items)
    loop |= {"progress": progress}
    with nullcontext() if out is None else unfinished(Path(out)) as work:
        kept = checkpoint if work is None else work.checkpoint
        marked = marked_for(stored, one, items, scheme, checkpoint=kept, **loop)
        if mode == "distilled":
            # Copies whose units stand in different orders cannot be averaged as they are.
            secret = cast("ExactKey", marked.key).secret
            ordered = released(marked.encoder, secret, items.take(range(min(2, len(items)))))
            marked = replace(marked, embedder=ordered.encoder)
        if work is not None and work.result is not None:
            from sslguard.encoders.model_card import write_card

            save_encoder(marked.encoder, work.result / "encoder")
            write_card(marked.encoder, work.result / "encoder", None)
    parts = {field.name: getattr(marked, field.name) for field in fields(marked)}
    return Marked(**parts, folder=None if out is None else Path(out))


def release(
    encoder: AnyEncoder,
    *,
    out: str | Path | None = None,
    data: AnyData | None = None,
    secret: Secret | None = None,
    seal: Seal | None = None,
) -> Marked:
    """Return a copy of an encoder for release, its hidden units in a secret order, and the key: `watermark` by "order".

    Args:
        encoder: Encoder in its own order. It is left as it is, and must not be published.
        out: Folder that `encoder` and `key` are written to, as in `watermark`.
        data: A few items, to compare the answers; made up unless given.
        secret: Master secret, as in `watermark`.
        seal: Encryption of the key, as in `watermark`.

    Raises:
        UsageError: None of the encoder's units can be put in another order.
        RefusedError: It is not known what items the encoder takes: give some.
    """
    from sslguard.lineage.order import sample

    items = None if data is None else as_data(data)
    clean = as_encoder(encoder, items)
    return watermark(
        clean, sample(clean) if items is None else items, out=out, scheme="order", secret=secret, seal=seal
    )


def plan(
    encoder: AnyEncoder,
    data: AnyData,
    *,
    task: Literal["watermark", "steal", "verify"] = "watermark",
    scheme: Scheme | str | None = None,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    recipe: Distillation | None = None,
) -> Plan:
    """Tell what a task will take, from a sample of some seconds: time, memory, queries, items. See `planning.plan`.

    Args:
        encoder: Encoder that is marked or stolen, or as fast as which the suspect is.
        data: Items to mark with, to ask about, or to verify with.
        task: What is planned.
        scheme: Scheme, as in `watermark`.
        preset: Settings that the scheme starts from, as in `watermark`.
        settings: Settings that replace those of the preset, as in `watermark`.
        recipe: How the surrogate learns, as in `steal`.

    Raises:
        UsageError: There are too few items to tell, or no plan is made of this scheme.
    """
    from sslguard.planning import plan as planned

    if not isinstance(scheme, Scheme):
        scheme = named_scheme(scheme or scheme_of(preset), preset, settings or {})
    items = as_data(data)
    loaded, learns = as_encoder(encoder, items), _for_items(recipe or Distillation(), items)
    return planned(task, loaded, items, scheme=scheme, recipe=learns, size=_surrogate_side(loaded, items))


def steal(
    victim: AnySuspect,
    data: AnyData,
    *,
    out: str | Path | None = None,
    recipe: Distillation | None = None,
    queries: int | None = None,
    size: int | None = None,
    augment: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
    **loop: Any,
) -> Encoder:
    """Train a surrogate on the victim's answers alone.

    Args:
        victim: Encoder, address, or what `suspects.remote.open_remote` gives for one, which must answer every query.
        data: What the victim is asked.
        out: Folder of the surrogate; an encoder that is there is replaced.
        recipe: How the surrogate learns; `Distillation()` unless given. Where it names no network and the items are
            texts, the surrogate is a bag of words.
        queries: Number of items of `data`, from the first, that are asked; None for all.
        size: Height and width of the surrogate's images in pixels; unless given those of the victim, but at most 64.
        augment: Whether to ask and learn from random views, each a query of its own.
        seed: Seed of initialisation, order and views.
        checkpoint: File from which an interrupted run goes on, without `out`.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.base.Loop`.

    Raises:
        UsageError: A setting is out of range, or victim and data do not go together.
        SuspectError: The victim gave no usable answer.
        OutputError: `out` holds something else, or cannot be written.
    """
    from sslguard.attacks.stealing import Distil

    chosen = recipe or Distillation()
    if augment:
        chosen = replace(chosen, augmentation=MILD)
    asked = as_data(data)
    chosen = _for_items(chosen, asked)
    if queries is not None:
        asked = asked.slice(0, queries)
    loop |= {"seed": seed, "progress": progress}
    with _opened(
        victim, lambda spec: open_suspect(spec) if spec.startswith(PREFIXES) else load_encoder(spec), asked
    ) as target:
        loop["size"] = size or _surrogate_side(target, asked)

        def train(kept: Path | None) -> Encoder:
            if not isinstance(target, RemoteSuspect):
                return Distil(chosen)(target, asked, checkpoint=kept, **loop)
            surrogate = Distil(chosen)(Complete(target), asked, checkpoint=kept, **loop)
            target.finish()
            return surrogate

        return _saved(train, out, checkpoint)


def attack(
    victim: AnyEncoder,
    attack: Removal | Stealing | str,
    data: AnyData | None = None,
    *,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    probe: tuple[AnyData, AnyData] | None = None,
    clean: AnyEncoder | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
    **loop: Any,
) -> Attacked:
    """Attack an encoder whose weights the attacker holds, and measure what that leaves of its use.

    Attacks in a row are one call after another.

    Args:
        victim: Encoder to attack. It is left as it is.
        attack: Attack with its settings, or its name in `attacks.registry`, such as "fine-tune" or "prune".
        data: Items of the attacker's own, if the attack needs any.
        out: Folder of the result; an encoder that is there is replaced.
        settings: Settings of a named attack, by field, as in a configuration file.
        seed: Seed of all randomness, at least 0.
        probe: Labelled data to train and test a linear probe on; None measures nothing.
        clean: Clean encoder; with it, the probe measures the accuracy kept above the better baseline.
        checkpoint: File from which an interrupted run goes on, without `out`.
        progress: Whether to show bars on standard error.
        loop: `devices`, `nodes`, `accelerator`, `precision`; see `training.base.Loop`.

    Raises:
        UsageError: A setting is out of range, the attack leaves no weights, or `data` is not what it needs.
        OutputError: `out` holds something else, or cannot be written.
    """
    from sslguard.attacks.base import Removal, Stealing
    from sslguard.attacks.registry import build
    from sslguard.attacks.yardstick import Yardstick

    name, chosen = (
        (attack, build(attack, settings or {})) if isinstance(attack, str) else (type(attack).__name__, attack)
    )
    if not isinstance(chosen, Removal | Stealing):
        raise UsageError(f"{name} leaves no weights to write: it is for Python and for `sslguard bench`")
    if (data is None) != (chosen.needs == "nothing"):
        raise UsageError(f"{name} needs {chosen.needs}: {'give --data' if data is None else 'leave --data out'}")
    items: Any = None if data is None else as_data(data)
    if chosen.needs == "labels" and items.labels is None:
        raise UsageError(f"{name} needs labels, and {items.spec} has no labels; self-supervised training needs none")
    if out is not None and isinstance(victim, str | Path) and os.path.realpath(out) == os.path.realpath(victim):
        raise UsageError("--out is the victim, which an attack leaves as it is: choose another folder")
    loaded = as_encoder(victim)
    task = None if probe is None else (as_data(probe[0]), as_data(probe[1]))
    yardstick = Yardstick.of(task, loaded, None if clean is None else as_encoder(clean))
    loop |= {"seed": seed, "progress": progress}
    left = _saved(lambda kept: chosen(loaded, items, checkpoint=kept, **loop), out, checkpoint)
    return Attacked(left, None if yardstick is None else yardstick.measure(left))


def score_controls(
    key: Key | str | Path,
    data: AnyData,
    *,
    controls: Sequence[str] = ("shipped",),
    folder: Path | None = None,
    rescore: bool = False,
    factory: Factory | None = None,
    progress: bool = False,
) -> ControlScores:
    """Return what known innocents score under a key on `data`: the null that `verify` ranks suspects in.

    A key given by its folder keeps them there, so that later verifications on the same data need not ask the
    controls again: see `verification.scores`.

    Args:
        key: Key, or its folder.
        data: Items to ask about, as in `verify`.
        controls: Known innocents, as in `verify`.
        folder: Folder of a key that is given as an object.
        rescore: Whether to score anew what the key's folder may hold.
        factory: Your own function that makes the key's network, or its name: see `load_encoder`.
        progress: Whether to show bars on standard error.
    """
    _confirm(factory)
    loaded, found, _ = _parts(key)
    folder = folder or found
    return control_scores(loaded, controls, as_data(data), folder=folder, rescore=rescore, progress=progress)


def verify(
    key: StoredKey | Key | str | Path,
    suspect: AnySuspect,
    data: AnyData,
    *,
    controls: Sequence[str] | None = None,
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    sub_key: int | None = None,
    allow_overlap: bool = False,
    answers: Literal["auto", "embeddings", "logits", "probabilities", "labels"] = "auto",
    stop_early: bool = False,
    rescore: bool = False,
    factory: Factory | None = None,
    progress: bool = False,
) -> Verdict:
    """Test whether `suspect` is derived from the key's watermarked encoder.

    Where the suspect's weights are at hand, and the released encoder lies beside the key's folder as `watermark` wrote
    it, the verdict also tells whether the suspect has the secret order of its units.

    Args:
        key: Key, or its folder. The controls' scores are kept in the folder and used again while nothing has changed.
        suspect: What embeds, or a specification: see `suspects.opening.open_suspect`.
        data: Items to ask about, none of which took part in marking.
        controls: Known innocents to rank among: encoders, folders of populations, or "shipped", the population
            of the test bed, which is the default. A key with an exact null needs none; where some are given, the rank
            is reported beside the p-value that decides.
        alpha: Level of the test, in (0, 1), shared among `n_claims`.
        n_claims: Number of claims (suspects, keys, looks) that share the level; with `sub_key`, times the N + 1 keys
            that there are.
        sub_key: Number of the sub-key to test by, from 1, in a key that is given by its folder; None for the whole key.
        allow_overlap: Whether items that took part in marking may be asked about. The verdict then counts them. A key's
            folder knows these items, a key that is given as an object does not.
        answers: What the suspect's answers are, under a key of the scheme exact. "auto" tells it by a public rule,
            which costs nothing; a choice of your own takes 2 bits off the evidence.
        stop_early: Whether to ask no more once the evidence suffices, at one of the numbers of queries that the key
            fixes. That takes some 2 to 4 bits off the evidence, and often saves most of the queries.
        rescore: Whether to score the controls anew, as an examiner must who does not trust the folder's owner.
        factory: Your own function that makes the key's network, or its name: see `load_encoder`.
        progress: Whether to show bars on standard error.

    Raises:
        RefusedError: The controls cannot support alpha. Nothing is asked then.
        SuspectError: The suspect gave no usable answer.
        KeyFileError: The key is damaged, or does not fit what it is asked about.
        UsageError: A control or an argument cannot be used.
    """
    _confirm(factory)
    if sub_key is not None:
        whole = _stored(key)
        key = whole.opened(sub_key)
        n_claims *= 1 + whole.sub_keys
    loaded, folder, marked = _parts(key)
    if answers != "auto":
        if not isinstance(loaded, ExactKey):
            raise UsageError(f"a key of the scheme {loaded.scheme} takes embeddings alone: leave --answers out")
        loaded = replace(loaded, answers=answers)
    _check_key(loaded)
    asked = Watched(as_data(data), marked, allowed=allow_overlap)
    if controls is None:
        controls = ("shipped",) if loaded.needs_controls else ()
    null_of(loaded, count_controls(controls)).check(alpha, n_claims)
    with _opened(suspect, open_suspect, asked) as target:
        null = ControlScores({}, stored=False, kept=False)
        if controls:
            try:
                null = control_scores(loaded, controls, asked, folder=folder, rescore=rescore, progress=progress)
            except EncoderError as error:
                raise UsageError(f"a control cannot be used: {error}") from error
        verdict = verify_key(
            *(loaded, target, asked),
            control_scores=null.values,
            control_kinds=null.kinds,
            alpha=alpha,
            n_claims=n_claims,
            stop_early=stop_early,
        )
    found = _lineage_of(key, target, n_claims)
    return replace(verdict, stored_controls=null.stored, n_overlap=asked.n_known, lineage=found)


def trace(
    key: str | Path,
    suspect: AnySuspect,
    data: AnyData,
    *,
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    allow_overlap: bool = False,
    answers: Literal["auto", "embeddings", "logits", "probabilities", "labels"] = "auto",
    workers: int = 1,
    pool: Executor | None = None,
    factory: Factory | None = None,
) -> Traced:
    """Find the recipients whose copy or answers a suspect was made from. See `tracing.trace`.

    The suspect is asked what `verify` asks. All recipients in the key's list are compared, the revoked ones too.

    Args:
        key: Folder of the key, of the scheme exact.
        suspect: Suspect, as in `verify`.
        data: Items to ask about, as in `verify`.
        alpha: Level of the test, in (0, 1): one half is the common mark's, the other is shared among all recipients.
        n_claims: Number of claims (suspects, keys, looks) that share the level.
        allow_overlap: Whether items that took part in marking may be asked about, as in `verify`.
        answers: What the suspect's answers are, as in `verify`.
        workers: Processes that compare recipients.
        pool: Executor that runs the pieces, `workers` at a time, in place of processes of this machine.
        factory: Your own function that makes the key's network, or its name: see `load_encoder`.

    Raises:
        UsageError: The key has no recipients, is of another scheme, or an argument cannot be used.
        RefusedError: No p-value could reach the level. Nothing is asked then.
        SuspectError: The suspect gave no usable answer.
        KeyFileError: The key or the list is damaged.
    """
    from sslguard.tracing.recipients import read_recipients
    from sslguard.tracing.trace import processes, trace_suspect

    _confirm(factory)
    stored = _stored(key)
    if not isinstance(stored.key, ExactKey):
        raise UsageError(f"a key of the scheme {stored.key.scheme} has no recipients: only those of exact trace")
    loaded = stored.key if answers == "auto" else replace(stored.key, answers=answers)
    _check_key(loaded)
    asked = Watched(as_data(data), stored.marked, allowed=allow_overlap)
    recipients = read_recipients(Path(key))
    with (
        _opened(suspect, open_suspect, asked) as target,
        processes(1 if pool is not None else workers) as here,
    ):
        found = trace_suspect(
            *(loaded, target, asked, recipients),
            alpha=alpha,
            n_claims=n_claims,
            pool=pool or here,
            workers=workers,
        )
    return replace(found, n_overlap=asked.n_known)


def compare_weights(
    a: AnyWeights,
    b: AnyWeights,
    *,
    key: StoredKey | str | Path | None = None,
    commitment: str | Path | None = None,
    not_after: datetime | None = None,
    authority_roots: str | Path | None = None,
    ancestor: AnyWeights | None = None,
    initial: AnyWeights | None = None,
    groups: str | Path | None = None,
    alpha: float | None = None,
    n_claims: int = 1,
    report: str | Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> LineageVerdict:
    """Test whether the weights of two networks of one architecture have a common origin: see `lineage.compare`.

    Args:
        a: Your network, or its specification. Files of weights are read tensor by tensor; any network in a folder
            `hf:FOLDER` will do.
        b: The suspect.
        key: Key that `a` was released with: only its secret order counts then.
        commitment: File of the commitment to the key, as an examiner asks for it. Bits are subtracted for other orders
            that the owner may have tried: 20 if it is shown to be older than the suspect, else 64.
        not_after: When the suspect could first be read.
        authority_roots: File of the certificates, PEM, that must vouch for the commitment's timestamp.
        ancestor: A network that both may come from.
        initial: Weights of `a` before training, from a seed that was secret: the key that `pretrain` kept in
            `out`/seed, or weights. Never weights that were trained.
        groups: Description of the groups of units, JSON, for networks whose layers have unknown names.
        alpha: Level of the decision, in (0, 1); 2^-20 unless given.
        n_claims: Number of claims that share the level.
        report: File of a page, HTML.
        seed: Seed that breaks ties.
        progress: Whether to show a bar on standard error.

    Raises:
        RefusedError: The networks have no units that can be compared, or too few for this level.
        KeyFileError: `a` was not released with this key, or the key has no secret order.
        ClaimError: The commitment is not to this key's order, or its timestamp is not good.
        EncoderError: Weights are missing or damaged.
        UsageError: An argument cannot be used.
    """
    from sslguard.claims.lineage import dated as dated_order
    from sslguard.claims.page import check_page
    from sslguard.claims.timestamps import read_roots
    from sslguard.files import write_atomic
    from sslguard.lineage.groups import described
    from sslguard.lineage.verdict import DEFAULT_ALPHA as LINEAGE_ALPHA
    from sslguard.lineage.verdict import compare
    from sslguard.lineage.weights import open_weights

    if report is not None:
        check_page(Path(report))
    order = None if key is None else _order(_stored(key))
    dated = None
    if commitment is not None:
        if key is None:
            raise UsageError("a commitment is to a key's secret order: give the key too")
        roots = () if authority_roots is None else read_roots(Path(authority_roots))
        dated = dated_order(_stored(key), Path(commitment), not_after=not_after, roots=roots)
        n_claims <<= dated.bits
    ours, theirs = open_weights(a), open_weights(b)
    verdict = compare(
        *(ours, theirs),
        order=order,
        ancestor=None if ancestor is None else open_weights(ancestor),
        initial=None if initial is None else _initial(initial),
        groups=None if groups is None else described(Path(groups), ours),
        alpha=LINEAGE_ALPHA if alpha is None else alpha,
        n_claims=n_claims,
        seed=seed,
        watch=_shown if progress else None,
    )
    if dated is not None:
        verdict = replace(verdict, dated=dated.words)
    if report is not None:
        from sslguard.lineage.page import render_page

        write_atomic(Path(report), render_page(verdict).encode())
    return verdict


def make_controls(
    victims: Mapping[str, str],
    *,
    data: str,
    pretrain_data: str,
    labelled_data: str,
    out: str | Path,
    workers: int = 1,
    steps: int = 100,
    thief_steps: int = 600,
    without: Sequence[Kind] = (),
    half: bool = True,
    probe: tuple[str, str] | None = None,
    progress: bool = False,
) -> Population:
    """Make a population of known innocents, for `controls` of `verify`.

    Members that are there are kept, so the same call goes on after an interruption.

    Args:
        victims: Specifications of the clean encoders by name, all of one width.
        data: What the innocents who distil the clean encoders ask.
        pretrain_data: What independent encoders are pre-trained on.
        labelled_data: Labelled items for supervised training and fine-tuning.
        out: Folder of the population.
        workers: Processes that make members side by side.
        steps: Optimiser steps of the cheap recipes.
        thief_steps: Optimiser steps of the full-strength surrogates.
        without: Kinds that are left out.
        half: Whether to store float16 weights, not float32.
        probe: Labelled data to train and test a linear probe of every member on.
        progress: Whether to show bars on standard error.

    Raises:
        UsageError: No member is left, or encoders and data do not go together. Nothing was trained then.
        InterruptedRun: In place of a KeyboardInterrupt.
    """
    from sslguard.controls.making import make_population, probe_population
    from sslguard.controls.members import read_population
    from sslguard.controls.recipes import Bed, population

    folder = Path(out)
    chosen = [r for r in population(victims, steps=steps, thief_steps=thief_steps) if r.kind not in without]
    if not chosen:
        raise UsageError("--without leaves no member of the population")
    # Everything is opened now rather than after an hour of training.
    for spec in (data, pretrain_data, labelled_data, *(probe or ())):
        open_data(spec)
    for spec in sorted({recipe.parent for recipe in chosen if recipe.parent} - set(victims.values())):
        load_encoder(spec)
    (first, width), *others = ((name, load_encoder(spec).dim) for name, spec in victims.items())
    for name, other in others:
        if other != width:
            raise UsageError(
                f"--victim {name} answers in {other} dimensions and {first} in {width}: one key scores one width, so "
                "make a population for each"
            )
    bed = Bed(pretrain=pretrain_data, thief=data, labelled=labelled_data)
    try:
        make_population(chosen, bed, folder, width=width, workers=workers, half=half, progress=progress)
        if probe is not None:
            probe_population(folder, *probe, workers=workers, progress=progress)
    except KeyboardInterrupt:
        kept = f"interrupted; the members made so far are in {out}, the same command goes on"
        raise InterruptedRun(kept) from None
    return Population(read_population(folder), width)


def commit(
    key: StoredKey | str | Path,
    out: str | Path,
    *,
    authority: str | None = None,
    token: str | Path | None = None,
    authority_roots: str | Path | None = None,
    card: str | Path | None = None,
) -> tuple[Commitment, datetime | None]:
    """Write a commitment that hides a key and binds its owner: see `claims.commitment.publish`.

    Args:
        key: Folder of the key, or what `keyfile.open_key` gave.
        out: File of the commitment; its timestamp stands beside it as `out` and ".tsr".
        authority: Address of a timestamp authority (RFC 3161).
        token: File of a timestamp that was got otherwise.
        authority_roots: File of the certificates, PEM, that must vouch for the authority; without them its signature
            is not checked.
        card: Model card, or the folder that it lies in, that then says that the encoder is watermarked, and names the
            commitment by its SHA-256. Only `card` tells others of the mark.

    Returns:
        The commitment, and the time that its timestamp says, if it has one.
    """
    from sslguard.claims.commitment import publish
    from sslguard.claims.timestamps import read_roots
    from sslguard.encoders.model_card import check_card, name_commitment

    roots = () if authority_roots is None else read_roots(Path(authority_roots))
    found = None if token is None else Path(token)
    if card is not None:
        check_card(Path(card))
    made, when = publish(_stored(key), Path(out), authority=authority, token=found, roots=roots)
    if card is not None:
        name_commitment(Path(card), made.document.digest)
    return made, when


def claim(
    key: StoredKey | str | Path,
    suspect: AnySuspect | AnyWeights,
    data: AnyData | None = None,
    *,
    seed: str | None = None,
    commitment: str | Path,
    out: str | Path,
    lineage: bool = False,
    released: AnyWeights | None = None,
    sub_key: int | None = None,
    controls: Sequence[str] = (),
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    factory: Factory | None = None,
    progress: bool = False,
) -> Verdict:
    """Ask a suspect what an examiner's seed draws, and write the evidence to `out`: see `claims.claim`.

    With `lineage`, and by a key that is compared with weights, nothing is asked: see `claims.lineage.claim_weights`.

    Args:
        key: Folder of the key, or what `keyfile.open_key` gave. The bundle opens it.
        suspect: Suspect, as in `verify`; of a claim by weights, as in `compare_weights`.
        data: What the examiner agreed to draw from. None of a claim by weights, as `seed`, `sub_key` and `controls`.
        seed: Seed of the examiner, given after the commitment was seen.
        commitment: File that `commit` wrote, or a recipient's receipt, whose key alone is opened then.
        out: Folder of the bundle.
        lineage: Whether to claim by the secret order of the hidden units, which the bundle opens then, and no mark.
        released: The encoder that was released, for a secret order; the one beside the key's folder unless given.
        sub_key: Number of the sub-key that is opened, from 1; None opens the whole key.
        controls: Known innocents, as in `verify`.
        alpha: Level of the test, in (0, 1).
        n_claims: Number of claims that share the level.
        factory: Your own function that makes the key's network, or its name: see `load_encoder`.
        progress: Whether to show bars on standard error.
    """
    from sslguard.claims.claim import claim as make_claim
    from sslguard.claims.lineage import claim_weights
    from sslguard.lineage.weights import open_weights

    _confirm(factory)
    stored = _stored(key)
    terms: dict[str, Any] = {"commitment": Path(commitment), "out": Path(out), "alpha": alpha, "n_claims": n_claims}
    if lineage or isinstance(stored.key, WeightsKey):
        if data is not None or seed is not None or sub_key is not None or controls:
            raise UsageError("a claim by weights asks nothing: leave data, seed, sub-key and controls out")
        beside = None if stored.folder is None else stored.folder.parent / "encoder"
        if released is None and beside is not None and beside.is_dir():
            released = beside
        theirs: Any = suspect
        ours = None if released is None else open_weights(released)
        return claim_weights(stored, open_weights(theirs), released=ours, **terms)
    if data is None or seed is None:
        raise UsageError("a claim needs the data and the seed that the examiner gave; only one by weights asks nothing")
    _check_key(stored.key)
    items, asked = as_data(data), cast("AnySuspect", suspect)
    with _opened(asked, open_suspect, items) as target:
        return make_claim(
            stored if sub_key is None else stored.opened(sub_key),
            target,
            items,
            seed=seed,
            controls=controls,
            progress=progress,
            **terms,
        )


def audit(
    bundle: str | Path,
    data: AnyData | None = None,
    *,
    seed: str | None = None,
    own_data: bool = False,
    clean: AnyEncoder | None = None,
    suspect: AnySuspect | AnyWeights | None = None,
    released: AnyWeights | None = None,
    commitment: str | Path | None = None,
    not_after: datetime | None = None,
    opened: datetime | None = None,
    authority_roots: str | Path | None = None,
    receipt: str | Path | None = None,
    recipient_key: str | None = None,
    controls: Sequence[str] = (),
    alpha: float = DEFAULT_ALPHA,
    n_claims: int = 1,
    report: str | Path | None = None,
    statement: str | Path | None = None,
    signing_key: str | Path | None = None,
    factory: Factory | None = None,
    progress: bool = False,
) -> Audit:
    """Check a bundle and decide anew, by an examiner's terms: see `claims.audit`.

    Args:
        bundle: Folder of the bundle.
        data: What the examiner agreed to draw queries from. None of a claim by weights, as `seed`.
        seed: What the examiner gave the claimant after seeing the commitment.
        own_data: Whether the examiner chose the data and the claimant could not influence the choice. Otherwise they
            must be the pool that the key is bound to: see `watermark`.
        clean: Clean encoder F; without it there is no verdict on answers.
        suspect: Suspect to ask again, where the examiner can. Of a claim by weights, the suspect's, as in
            `compare_weights`; without them there is no verdict.
        released: Encoder that was released, for a claim by a secret order.
        commitment: File of the commitment that the examiner saw before giving the seed.
        not_after: When the suspect could first be asked. Without it, the audit assumes that up to 2^64 keys were
            tried, and subtracts 64 bits.
        opened: When this key was opened in another claim, or lost.
        authority_roots: File of the certificates, PEM, that the examiner trusts to vouch for a timestamp.
        receipt: File of the receipt that the recipient signed, for a claim on one recipient.
        recipient_key: The Ed25519 public key, hex, that the examiner knows as the recipient's.
        controls: Known innocents, as in `verify`. They are scored anew.
        alpha: Level of the test, in (0, 1).
        n_claims: Number of claims that share the level.
        report: File of a report in plain words, HTML.
        statement: File of the outcome, signed by `signing_key`: see `claims.statement`.
        signing_key: File of the examiner's Ed25519 private key, PEM.
        factory: Your own function that makes the key's network, or its name: see `load_encoder`.
        progress: Whether to show bars on standard error.
    """
    from sslguard.claims.audit import audit as audit_bundle
    from sslguard.claims.bundle import read_bundle
    from sslguard.claims.commitment import parse_commitment
    from sslguard.claims.documents import MAX_DOCUMENT, read_file
    from sslguard.claims.lineage import audit_weights
    from sslguard.claims.outcome import Terms
    from sslguard.claims.page import check_page, write_page
    from sslguard.claims.receipts import parse_signed
    from sslguard.claims.statement import Examiner
    from sslguard.claims.timestamps import read_roots
    from sslguard.lineage.weights import open_weights

    _confirm(factory)
    seen = None
    if commitment is not None:
        content = read_file(Path(commitment), MAX_DOCUMENT)
        seen = parse_commitment(content, str(commitment)).document.digest
    terms = Terms(
        seed=seed or "",
        own_data=own_data,
        alpha=alpha,
        n_claims=n_claims,
        not_after=not_after,
        opened=opened,
        commitment=seen,
        roots=() if authority_roots is None else tuple(read_roots(Path(authority_roots))),
        controls=tuple(controls),
        receipt=None if receipt is None else parse_signed(read_file(Path(receipt), MAX_DOCUMENT), str(receipt)),
        recipient_key=recipient_key,
    )
    if (statement is None) != (signing_key is None):
        raise UsageError("a signed outcome needs both its file and the key that signs it (statement and signing_key)")
    examiner = None if statement is None or signing_key is None else Examiner(Path(signing_key), Path(statement))
    if report is not None:
        check_page(Path(report))
    read = read_bundle(Path(bundle))
    if read.weights is not None:
        if data is not None or seed is not None or clean is not None or controls:
            raise UsageError("this claim is by weights, and asks nothing: leave data, seed, clean and controls out")
        if receipt is not None or recipient_key is not None:
            raise UsageError("this claim is by weights, and on no recipient: leave the receipt and his key out")
        theirs: Any = suspect
        opened_weights = (None if one is None else open_weights(one) for one in (theirs, released))
        found = audit_weights(read, terms, **dict(zip(("suspect", "released"), opened_weights, strict=True)))
    elif data is None or seed is None:
        raise UsageError("an audit of answers needs the data and the seed that you gave")
    else:
        items, asked = as_data(data), cast("AnySuspect", suspect)
        with nullcontext() if suspect is None else _opened(asked, open_suspect, items) as target:
            found = audit_bundle(
                *(read, items, terms),
                clean=None if clean is None else as_encoder(clean),
                suspect=target,
                progress=progress,
            )
    if report is not None:
        write_page(found, Path(report))
    if examiner is not None:
        examiner.sign(found)
    return found


def _for_items(recipe: Distillation, items: Data) -> Distillation:
    """Return a recipe whose default network is one of texts where the items are texts."""
    texts = recipe.architecture == Distillation.architecture and isinstance(items.take([0])[0], str)
    return replace(recipe, architecture=TEXT_NETWORKS[0]) if texts else recipe


def _surrogate_side(victim: Any, items: Data) -> int | None:
    """Return the side of a surrogate's images where the victim's, or else those of the items, are large."""
    shape = getattr(items.take([0])[0], "shape", (0,))
    side = getattr(getattr(victim, "preprocess", None), "height", max(shape))
    return SURROGATE_SIDE if side > SURROGATE_SIDE else None


def _saved(train: Callable[[Path | None], Encoder], out: str | Path | None, checkpoint: Path | None) -> Encoder:
    """Return what `train` makes, given the file of its checkpoint; save it in `out`, if that is given."""
    if out is None:
        return train(checkpoint)
    with unfinished(Path(out), replaces=is_encoder_folder) as work:
        encoder = train(work.checkpoint)
        if work.result is not None:
            save_encoder(encoder, work.result)
    return encoder


def _saved_with_seed(encoder: Encoder, secret: Secret, folder: Path, seal: Seal | None) -> Encoder:
    """Save an encoder in `folder`, the secret seed of its initial weights as a key, and a commitment to that.

    Return the encoder with the commitment's hash in its record.
    """
    from sslguard.claims.commitment import commit, publish
    from sslguard.schemes.keyfile import Owner

    stored = StoredKey(InitialKey(secret, encoder.architecture), Owner.generate(), seal is not None)
    committed = commit(stored).document.digest
    encoder = replace(encoder, record={**encoder.record, "seed_commitment": committed})
    save_encoder(encoder, folder)
    save_key(stored.key, folder / "seed", seal=seal, owner=stored.owner)
    publish(stored, folder / "commitment.json")
    return encoder


@contextmanager
def _opened(embedder: Any, load: Callable[[str], Embedder], items: Data) -> Iterator[Embedder]:
    """Yield what embeds; what was given as a specification is loaded, and closed afterwards if it is an address."""
    if not isinstance(embedder, str | Path):
        yield embedder if hasattr(embedder, "embed") else as_encoder(embedder, items)
        return
    found = load(str(embedder))
    with found if isinstance(found, RemoteSuspect) else nullcontext():
        yield found


def _confirm(factory: Factory | None) -> None:
    if factory is not None:
        confirm(factory)


def _check_key(key: Key) -> None:
    """Raise, before anybody is asked, the error that a key's clean encoder would raise when it is."""
    if isinstance(key, ExactKey):
        check_built(key.clean)


def _parts(key: StoredKey | Key | str | Path) -> tuple[Key, Path | None, Fingerprints]:
    """Return the key, opened where it is a folder, that folder, and the fingerprints of the items of the marking."""
    if isinstance(key, Key):
        return key, None, NOTHING
    stored = _stored(key)
    return stored.key, stored.folder, stored.marked


def _stored(key: StoredKey | Key | str | Path) -> StoredKey:
    """Return the key in a folder, with its owner."""
    if isinstance(key, Key):
        raise UsageError("a key that was never saved has no owner and no sub-keys: give the key's folder")
    return key if isinstance(key, StoredKey) else open_key(Path(key))


def _in_secret_order(marked: Watermarked, secret: Secret, items: Data) -> tuple[Watermarked, Order | None, str]:
    """Return what was marked with its hidden units in a secret order, that order, and why there is none, in words."""
    from sslguard.encoders.folder import weights_hash
    from sslguard.lineage.order import released

    if isinstance(marked.key, OrderKey):
        return marked, marked.key.order, ""
    if not isinstance(marked.embedder, Encoder):
        return marked, None, ""
    made = released(marked.embedder, secret, items.take(range(min(2, len(items)))))
    if made.order is None:
        return marked, None, made.reason
    key: Any = marked.key
    if hasattr(key, "watermarked_hash"):
        key = replace(key, watermarked_hash=weights_hash(made.encoder.module))
    return replace(marked, embedder=made.encoder, key=key), made.order, ""


def _order(stored: StoredKey) -> Order:
    """Return a key's secret order. Raise KeyFileError where it has none."""
    if stored.order is None:
        raise KeyFileError("this key has no secret order: the units of its encoder stand in their own order")
    return stored.order


def _initial(given: AnyWeights) -> Weights:
    """Return initial weights, drawn again where they are given by the folder of a secret seed."""
    from sslguard.lineage.weights import open_weights
    from sslguard.schemes.keyfolder import is_key

    if not isinstance(given, str | Path) or not is_key(Path(given)):
        return open_weights(given)
    key = open_key(Path(given)).key
    if not isinstance(key, InitialKey):
        raise KeyFileError(f"{given} is a key of the scheme {key.scheme}: give the folder `seed` that pretrain wrote")
    return key.weights()


def _lineage_of(key: StoredKey | Key | str | Path, suspect: Embedder, n_claims: int) -> LineageVerdict | None:
    """Return how a suspect's weights compare with the release that lies beside the key; None where they cannot be."""
    from sslguard.lineage.verdict import compare
    from sslguard.lineage.weights import open_weights

    inner = suspect.embedder if isinstance(suspect, LocalSuspect) else suspect
    if isinstance(key, Key) or not isinstance(inner, Encoder):
        return None
    stored = _stored(key)
    beside = None if stored.folder is None else stored.folder.parent / "encoder"
    if stored.order is None or beside is None or not beside.is_dir():
        return None
    try:
        return compare(open_weights(beside), open_weights(inner), order=stored.order, n_claims=n_claims)
    except (RefusedError, KeyFileError, EncoderError):
        return None


def _shown(groups: Iterable[Group], total: int) -> Iterator[Group]:
    """Yield groups of units with a bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    yield from track(groups, description="compare", total=total, console=Console(stderr=True), transient=True)


def _check_ranking(scheme: Scheme, controls: Sequence[str], asked: Data | None, marking: Data, width: int) -> None:
    """Raise, before the marking, the error that would stop the controls from being scored after it."""
    if not isinstance(scheme, SSLGuard | CuredSSLGuard):
        raise UsageError(f"--scheme {scheme.name} needs no controls: leave --control and --verify-data out")
    if not controls or asked is None:
        raise UsageError("--control and --verify-data go together: innocents, and what they are asked")
    if shared_items := overlap(asked, marking):
        raise UsageError(
            f"--verify-data and --data share {shared_items} images: verify on images that took no part in marking"
        )
    if len(asked) < scheme.n_queries:
        raise UsageError(
            f"a verification asks about {scheme.n_queries} images, and --verify-data has only {len(asked)}"
        )
    check_controls(controls, width)
