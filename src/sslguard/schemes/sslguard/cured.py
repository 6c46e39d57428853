"""Marking with the cure: what F* is taught is fixed by the secret, and the decoder cannot learn anybody by heart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.schemes.sslguard.carrier import N_KINDS, Background, Carrier
from sslguard.schemes.sslguard.parts import (
    Decoder,
    check_markable,
    draw_decoder,
    draw_sk,
    draw_trigger,
    freeze_batch_norm,
    mean_cosine,
    split_items,
    stream_context,
)
from sslguard.schemes.sslguard.settings import SSLGuardSettings
from sslguard.training import Task, Update, cosine_schedule, isolated_rng, set_learning_rate

if TYPE_CHECKING:
    import numpy as np

CARRIER_ITEMS = 4096
LAW_BATCH = 512
LAW_WEIGHT = 100.0
# Of the watermark rate, in standard deviations of an innocent's evidence, for each kind alone. The first kind differs
# in sign from image to image; the second moves all images alike, so that a chance agreement shows on every one: it
# must be larger to count.
THRESHOLDS = (3.3, 4.1)


@dataclass(eq=False)
class _Microbatch:
    plain: Tensor
    verification: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict)


class CuredTask(Task):
    """Two updates an iteration: L_t over G and T, L_w over F*. See `Carrier` for what is written and read.

    L_t = −c̄(G e(F*), sk) + c̄(G e(F), sk)² + w·(cos(G e₀, sk) − c(e₀))², with e the evidence of pairs of answers to D_v
    without and with the trigger, e₀ made evidence, and c what evidence is worth (`wanted_cosine`). The last term is
    what G learns, from before the first iteration; the others move T. Shadows have no part: what surrogates inherit
    is δ, which is known, and what innocents show has a known law.
    L_w = |F*(x) − F(x) − δ|²/s² + |F*(x') − F(v) − δ − b|²/|b|² − c̄(G e(F*), sk), s the spread of F's answers, v the
    image of D_v that x' is made of.
    """

    def __init__(self, scheme: SSLGuardSettings, clean: Encoder, data: Data, secret: Secret) -> None:
        check_markable(clean, data, scheme.n_verification)
        self.scheme, self.data = scheme, data
        clean_hash = weights_hash(clean.module)
        self.context = stream_context(clean_hash, clean.preprocess.to_json(), asdict(scheme))
        self._verification, self._plain = split_items(secret, self.context, len(data), scheme.n_verification)
        self.n_items = len(self._plain)
        self._fingerprint = {"scheme": asdict(scheme), "clean": clean_hash, "data": data.identity()}
        self.clean, self.watermarked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        freeze_batch_norm(self.watermarked.module)
        self.trigger = draw_trigger(secret, self.context, clean, scheme.mask_probability)
        self.decoder = draw_decoder(secret, self.context, (N_KINDS, *scheme.decoder_hidden, scheme.secret_dim))
        self.sk = draw_sk(secret, self.context, scheme.secret_dim)
        answers = embed_all(self.clean, data.slice(0, min(len(data), CARRIER_ITEMS)))
        self.carrier = Carrier(
            answers,
            scheme.carrier,
            directions=scheme.directions,
            shift=scheme.shift,
            stream=secret.stream("carrier", self.context),
        )
        self._background = self.carrier.background(torch.from_numpy(answers))
        with isolated_rng(secret.stream("law", self.context).integer()):
            fit_decoder(self.decoder, self.sk, self.carrier.rank, scheme.law_steps)
        self.modules = {
            "clean": self.clean.module,
            "watermarked": self.watermarked.module,
            "decoder": self.decoder,
            "trigger": self.trigger,
            "carrier": self.carrier,
        }
        trained = [p for p in self.watermarked.module.parameters() if p.requires_grad]
        self.optimizers = {
            "decoder": torch.optim.Adam(self.decoder.parameters(), lr=scheme.decoder_rate),
            "trigger": torch.optim.Adam(self.trigger.parameters(), lr=scheme.trigger_rate),
            "watermarked": torch.optim.Adam(trained, lr=scheme.encoder_rate),
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON values that identify this run. See `Task.fingerprint`."""
        return self._fingerprint

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        """Return prepared items of the plain part, and random ones of the verification part."""
        plain = self.clean.prepare(self.data.take(self._plain[indices]))
        size = max(1, round(len(indices) * self.scheme.trigger_batch / self.scheme.batch_size))
        chosen = torch.randint(len(self._verification), (size,)).numpy()
        return _Microbatch(plain, self.clean.prepare(self.data.take(self._verification[chosen])))

    def begin_step(self, step: int, steps: int) -> None:
        """Set the networks' modes and the learning rates for a step."""
        self.sk = self.sk.to(self.device)
        self._background = Background._make(part.to(self.device) for part in self._background)
        self.clean.module.eval()
        self.watermarked.module.eval()
        factor = cosine_schedule(step, steps, warmup=steps // 20)
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, factor)

    def updates(self) -> Sequence[Update]:
        """Return the update of decoder and trigger, then that of the watermarked encoder."""
        return [
            Update("decoder", self._decoder_loss, ("decoder", "trigger")),
            Update("watermark", self._watermark_loss, ("watermarked",)),
        ]

    def _clean_answers(self, batch: _Microbatch) -> tuple[Tensor, Tensor]:
        """F(x) and F(v), once an iteration: F does not change."""
        if "clean" not in batch.cache:
            with torch.no_grad():
                both = self.clean.forward(torch.cat([batch.plain, batch.verification]))
            batch.cache["clean"] = both.float()
        n = len(batch.plain)
        return batch.cache["clean"][:n], batch.cache["clean"][n:]

    def _decode(self, evidence: Tensor) -> Tensor:
        """c̄(G e, sk)."""
        return mean_cosine(self.decoder(evidence), self.sk)

    def _decoder_loss(self, batch: _Microbatch) -> Tensor:
        x, carrier = self.trigger(batch.verification), self.carrier
        _, clean_plain = self._clean_answers(batch)
        with torch.no_grad():
            marked_plain = self.watermarked.forward(batch.verification).float()
        marked = carrier.evidence(marked_plain, self.watermarked.forward(x).float(), self._background)
        clean = carrier.evidence(clean_plain, self.clean.forward(x).float(), self._background)
        law = law_loss(self.decoder, self.sk, made_evidence(LAW_BATCH, carrier.rank, self.device))
        return LAW_WEIGHT * law - self._decode(marked) + self._decode(clean) ** 2

    def _watermark_loss(self, batch: _Microbatch) -> Tensor:
        n, carrier = len(batch.plain), self.carrier
        with torch.no_grad():
            triggered = self.trigger(batch.verification)
        plain, verification = self._clean_answers(batch)
        target = torch.cat([plain + carrier(plain), verification + carrier(verification) + carrier.shift])
        answers = self.watermarked.forward(torch.cat([batch.plain, triggered])).float()
        miss = (answers - target).square().sum(1)
        evidence = carrier.evidence(verification + carrier(verification), answers[n:], self._background)
        fidelity = miss[:n].mean() / carrier.spread**2
        shifted = miss[n:].mean() / carrier.shift.square().sum()
        return fidelity + self.scheme.shift_weight * shifted - self.scheme.shift_weight * self._decode(evidence)


def wanted_cosine(evidence: Tensor) -> Tensor:
    """Return what cos(G e, sk) shall be for evidence (n, 2): (n,) in [0, 1].

    With r the length of the two kinds' positive parts over their thresholds, 0 up to r = ¼, ½ at r = 1 (there a query
    counts for the watermark rate), 1 from r = 7/4: it rises slowly, so that what lies below the threshold still ranks.
    """
    thresholds = torch.tensor(THRESHOLDS, device=evidence.device)
    r = (evidence.clamp_min(0) / thresholds).norm(dim=1)
    return ((r - 0.25) / 1.5).clamp(0, 1)


def made_evidence(n: int, rank: int, device: torch.device) -> Tensor:
    """Draw evidence (n, 2) anywhere that it can lie, half of it where `wanted_cosine` rises, by torch's generator.

    Each kind is uniform from −√D to √D, or up to twice its threshold.
    """
    most = rank**0.5
    wide = most * (2 * torch.rand(n, N_KINDS, device=device) - 1)
    near = torch.tensor(THRESHOLDS, device=device) * (3 * torch.rand(n, N_KINDS, device=device) - 1)
    return torch.where(torch.rand(n, 1, device=device) < 0.5, wide, near)


def fit_decoder(decoder: Decoder, sk: Tensor, rank: int, steps: int) -> None:
    """Teach G `wanted_cosine` before there is any network to learn by heart. Randomness: torch's generator."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for step in range(steps):
        set_learning_rate(optimizer, cosine_schedule(step, steps))
        loss = law_loss(decoder, sk, made_evidence(512, rank, sk.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def law_loss(decoder: Decoder, sk: Tensor, evidence: Tensor) -> Tensor:
    """Return the mean squared distance of cos(G e, sk) from what it shall be."""
    decoded = decoder(evidence)
    cosine = nnf.cosine_similarity(decoded, sk.expand_as(decoded), dim=1)
    return (cosine - wanted_cosine(evidence)).square().mean()
