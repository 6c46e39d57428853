"""The null of a claimant who may have fitted: every known innocent gets a trigger and a decoder of its own.

Trigger and decoder of the scheme sslguard are trained, and nothing keeps a claimant from training them on the suspect.
A key made so gives its suspect a higher score than any innocent that it was not made for: ranks among those do not
refuse it. Here the examiner does to each control what the claimant could have done to the suspect.

Null: suspect and controls are exchangeable, and the claimant trained on the suspect as the examiner does on each
control, with a secret of the same law; the rank of the suspect's score is uniform then. Of what a claimant can train
on, only −c̄(G E(x'), sk) raises the score: the other terms of L_t hold it back elsewhere, and are left out here. So
a claimant who kept them, or trained less, ranks lower. One who trained longer, on more, or kept the best of many
secrets ranks higher: give the examiner's recipe at least what a claimant could afford.

What it costs an honest owner: fitted controls soon score as an honest F* does. Then neither stands out, and the score
is no evidence for anybody; the date of the commitment is what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.errors import UsageError
from sslguard.schemes.sslguard import SSLGuard, SSLGuardKey
from sslguard.schemes.sslguard.parts import (
    check_markable,
    draw_decoder,
    draw_sk,
    draw_trigger,
    mean_cosine,
    stream_context,
)
from sslguard.training import Loop, Task, Update, run
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
    """What each known innocent scores under a key that was fitted to it: rank the suspect's score among these.

    Cost: for each control `scheme.steps` times `scheme.trigger_batch` images forward and backward through it, a tenth
    to a third of the time of a marking by the published losses, and one verification.

    Args:
        controls: Name and encoder, each as wide as `clean`.
        clean: F of the claimed key, by which mask, secret vector and the first trigger and decoder are drawn.
        data: What is fitted with: like what the claimant may have had, and no less.
        asked: What the claimed key asked about; nothing in it is in `data`.
        scheme: Recipe and budget. A claimed key's `settings` are what its owner says.
        seed: The examiner's, at least 0; each control's secret follows from it and the control's name.

    Returns:
        Name → mean cosine to the secret vector, in [−1, 1].

    Raises:
        UsageError: There is no control, one is named twice or is not as wide as `clean`; or `scheme` has a carrier.
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
    """The key of a claimant who trains trigger and decoder on `target` and says that it is F*: for examiners.

    All that a secret gives is what `secret` gives with `clean`, so that nothing but the date tells this key from an
    honest one.

    Raises:
        UsageError: `scheme` has a carrier, or `target` is not as wide as `clean`.
    """
    if scheme.carrier:
        raise UsageError("a key with a carrier is not refitted: give the settings of a key with the published losses")
    if target.dim != clean.dim:
        raise UsageError(f"an encoder of width {target.dim} cannot stand for F*, which answers in {clean.dim}")
    check_markable(clean, data, 0)
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
    """−c̄(G E(x'), sk) over G and T, with E as it is and x' as a verification sends it."""

    def __init__(self, scheme: SSLGuard, clean: Encoder, target: Encoder, data: Data, secret: Secret) -> None:
        self.context = stream_context(weights_hash(clean.module), clean.preprocess.to_json(), asdict(scheme))
        self.data, self.n_items, self.clean, self.target = data, len(data), clean, target.clone()
        self.target.module.eval().requires_grad_(False)
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

    def fingerprint(self) -> dict[str, Any]:
        return {"fitted": weights_hash(self.target.module)}

    def load(self, indices: NDArray) -> Batch:
        return self.data.take(indices)

    def updates(self) -> Sequence[Update]:
        return [Update("fit", self._loss, ("fit",))]

    def _loss(self, batch: Batch) -> Tensor:
        sent = self.clean.preprocess.framed(self.trigger(self.clean.prepare(batch)), batch)
        return -mean_cosine(self.decoder(self.target.features(sent)), self.sk)
