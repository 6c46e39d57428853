"""Marking with the cure: what F* is taught is fixed by the secret, and the decoder cannot learn anybody by heart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.schemes.sslguard.carrier import N_KINDS, Background, Carrier
from sslguard.schemes.sslguard.parts import Decoder, MarkingTask, Microbatch, draw_decoder
from sslguard.schemes.sslguard.settings import SSLGuardSettings
from sslguard.training.base import Update, cosine_schedule, isolated_rng, set_learning_rate

CARRIER_ITEMS = 4096
LAW_BATCH = 512
LAW_WEIGHT = 100.0
# Of the watermark rate, in standard deviations of an innocent's evidence, for each kind alone. The first kind differs
# in sign from image to image; the second moves all images alike, so that a chance agreement shows on every one: it
# must be larger to count.
THRESHOLDS = (3.3, 4.1)


class CuredTask(MarkingTask):
    """Two updates an iteration: L_t over G and T, L_w over F*. See `Carrier` for what is written and read.

    L_t = −c̄(G e(F*), sk) + c̄(G e(F), sk)² + w·(cos(G e₀, sk) − c(e₀))², with e the evidence of pairs of answers to D_v
    without and with the trigger, e₀ made evidence, and c what evidence is worth (`wanted_cosine`). The last term is
    what G learns, from before the first iteration; the others move T. Shadows have no part: what surrogates inherit
    is δ, which is known, and what innocents show has a known law.
    L_w = |F*(x) − F(x) − δ|²/s² + |F*(x') − F(v) − δ − b|²/|b|² − c̄(G e(F*), sk), s the spread of F's answers, v the
    image of D_v that x' is made of.
    """

    def __init__(self, scheme: SSLGuardSettings, clean: Encoder, data: Data, secret: Secret) -> None:
        super().__init__(scheme, clean, data, secret)
        self.decoder = draw_decoder(secret, self.context, (N_KINDS, *scheme.decoder_hidden, scheme.secret_dim))
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

    def begin_step(self, step: int, steps: int) -> None:
        """Set the networks' modes and the learning rates for a step."""
        super().begin_step(step, steps)
        self._background = Background._make(part.to(self.device) for part in self._background)
        self.anneal(step, steps)

    def updates(self) -> Sequence[Update]:
        """Return the update of decoder and trigger, then that of the watermarked encoder."""
        return [
            Update("decoder", self._decoder_loss, ("decoder", "trigger")),
            Update("watermark", self._watermark_loss, ("watermarked",)),
        ]

    def _clean_answers(self, batch: Microbatch) -> tuple[Tensor, Tensor]:
        """F(x) and F(v), once an iteration: F does not change."""
        if "clean" not in batch.cache:
            with torch.no_grad():
                both = self.clean.forward(torch.cat([batch.plain, batch.verification]))
            batch.cache["clean"] = both.float()
        n = len(batch.plain)
        return batch.cache["clean"][:n], batch.cache["clean"][n:]

    def _decoder_loss(self, batch: Microbatch) -> Tensor:
        x, carrier = self.trigger(batch.verification), self.carrier
        _, clean_plain = self._clean_answers(batch)
        with torch.no_grad():
            marked_plain = self.watermarked.forward(batch.verification).float()
        marked = carrier.evidence(marked_plain, self.watermarked.forward(x).float(), self._background)
        clean = carrier.evidence(clean_plain, self.clean.forward(x).float(), self._background)
        law = law_loss(self.decoder, self.sk, made_evidence(LAW_BATCH, carrier.rank, self.device))
        return LAW_WEIGHT * law - self.decode(marked) + self.decode(clean) ** 2

    def _watermark_loss(self, batch: Microbatch) -> Tensor:
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
        return fidelity + self.scheme.shift_weight * shifted - self.scheme.shift_weight * self.decode(evidence)


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
