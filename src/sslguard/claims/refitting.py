"""A null for claimants who may have fitted their key to the suspect: a key is fitted to each known innocent as well.

Trigger and decoder of the scheme sslguard are trained, and nothing prevents a claimant from training them on the
suspect. Such a key gives its suspect a higher score than innocents that it was not fitted to, so ranks among those do
not refuse it. Here the examiner does to each control what the claimant could have done to the suspect.

Null hypothesis: suspect and controls are exchangeable, and the claimant trained on the suspect as the examiner trains
on each control, with a secret of the same distribution. The rank of the suspect's score is then uniform. Of the terms
of L_t, only −c̄(G E(x'), sk) raises the score. The other terms limit it, and are left out here. A claimant who kept
them, or trained less, ranks lower. One who trained longer, on more data, or kept the best of many secrets ranks higher,
so the examiner's recipe needs at least the budget that a claimant could afford.

Cost for an honest owner: fitted controls soon score as high as an honest F*. Then the score is no evidence for either
side, and only the date of the commitment counts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict

import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.errors import UsageError
from sslguard.schemes.sslguard.key import SSLGuardKey
from sslguard.schemes.sslguard.parts import (
    check_images,
    draw_decoder,
    draw_sk,
    draw_trigger,
    mean_cosine,
    stream_context,
)
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.base import Loop, Task
from sslguard.training.loop import run
from sslguard.verification.verdict import check_names, score_control


def refitted_controls(
    controls: Iterable[tuple[str, Encoder]],
    clean: Encoder,
    data: Data,
    asked: Data,
    *,
    scheme: SSLGuard,
    seed: int,
    progress: bool = False,
) -> dict[str, float]:
    """Score each known innocent under a key that was fitted to it. Rank the suspect's score among these.

    Cost: for each control, `scheme.steps` times `scheme.trigger_batch` images forward and backward through it, and one
    verification. The fit takes a tenth to a third of the time of a marking by the published losses.

    Args:
        controls: Name and encoder of each innocent, each as wide as `clean`.
        clean: F of the claimed key. Mask, secret vector and the initial trigger and decoder are drawn for it.
        data: Data to fit with: of the kind that the claimant may have had, and at least as much.
        asked: Data that the claimed key asked about; it must not overlap `data`.
        scheme: Recipe and budget. A claimed key's `settings` are what its owner states.
        seed: Seed of the examiner, at least 0. Each control's secret follows from it and the control's name.
        progress: Show a progress bar on standard error.

    Returns:
        Mean cosine to the secret vector, in [−1, 1], by name.

    Raises:
        UsageError: There is no control, one is named twice or is not as wide as `clean`.
    """
    scores: dict[str, float] = {}
    for name, control in controls:
        check_names([*scores, name])
        secret = Secret(hashlib.sha256(f"{seed} {name}".encode()).digest())
        key = fitted_key(control, clean, data, scheme=scheme, secret=secret, progress=progress)
        scores[name] = score_control(key, name, control, asked).value
    if not scores:
        raise UsageError("without controls there is nothing to fit to: name known innocents")
    return scores


def fitted_key(
    target: Encoder, clean: Encoder, data: Data, *, scheme: SSLGuard, secret: Secret, progress: bool = False
) -> SSLGuardKey:
    """Fit a key to an encoder, as a claimant would who trains trigger and decoder on it and states that it is F*.

    Everything that is drawn from a secret is drawn from `secret` with `clean`, so that only the date distinguishes this
    key from an honest one.

    Args:
        target: Encoder to fit the key to.
        clean: F of the claimed key.
        data: Data to fit with.
        scheme: Recipe and budget.
        secret: Secret of the key.
        progress: Show a progress bar on standard error.

    Raises:
        UsageError: `target` is not as wide as `clean`.
    """
    if target.dim != clean.dim:
        raise UsageError(f"an encoder of width {target.dim} cannot stand for F*, which answers in {clean.dim}")
    check_images(clean)
    task = _Fit(scheme, clean, target, data, secret)
    seed = secret.stream("training", task.context).integer()
    run(task, Loop(scheme.steps, scheme.trigger_batch, seed, progress=progress, title="fit"))
    return SSLGuardKey(
        secret=secret,
        decoder=task.decoder.eval().requires_grad_(False),
        trigger=task.trigger.requires_grad_(False),
        sk=task.sk,
        preprocess=clean.preprocess.to_json(),
        settings=asdict(scheme),
        clean_hash=weights_hash(clean.module),
        watermarked_hash=weights_hash(target.module),
        n=scheme.n_queries,
    )


class _Fit(Task):
    """Training of G and T on −c̄(G E(x'), sk), with E fixed and x' as a verification sends it."""

    def __init__(self, scheme: SSLGuard, clean: Encoder, target: Encoder, data: Data, secret: Secret) -> None:
        self.context = stream_context(weights_hash(clean.module), clean.preprocess.to_json(), asdict(scheme))
        self.data, self.n_items, self.clean, self.target = data, len(data), clean, target.clone()
        self.target.module.eval().requires_grad_(False)
        self.identity = {"fitted": weights_hash(self.target.module)}
        self.trigger = draw_trigger(secret, self.context, clean, scheme.mask_probability)
        self.decoder = draw_decoder(secret, self.context, (clean.dim, *scheme.decoder_hidden, scheme.secret_dim))
        self.sk = draw_sk(secret, self.context, scheme.secret_dim)
        self.modules = {"target": self.target.module, "decoder": self.decoder, "trigger": self.trigger}
        groups = [
            {"params": [*self.decoder.parameters()], "lr": scheme.decoder_rate},
            {"params": [*self.trigger.parameters()], "lr": scheme.trigger_rate},
        ]
        adam = scheme.optimizer == "adam"
        self.optimizers = {"fit": torch.optim.Adam(groups) if adam else torch.optim.SGD(groups, momentum=0.9)}

    def load(self, indices: NDArray) -> Batch:
        return self.data.take(indices)

    def loss(self, microbatch: Batch) -> Tensor:
        sent = self.clean.preprocess.framed(self.trigger(self.clean.prepare(microbatch)), microbatch)
        return -mean_cosine(self.decoder(self.target.features(sent)), self.sk)
