"""Marking with the cure: what F* is taught, and a decoder that knows nothing but how evidence is counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.encoders.base import embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.schemes.sslguard.carrier import N_KINDS, Mark, Reader
from sslguard.schemes.sslguard.key import CuredKey
from sslguard.schemes.sslguard.parts import (
    Decoder,
    check_images,
    draw_decoder,
    draw_sk,
    draw_trigger,
    freeze_batch_norm,
    stream_context,
)
from sslguard.training.base import Task, cosine_schedule, isolated_rng, set_learning_rate

if TYPE_CHECKING:
    import numpy as np

    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Data
    from sslguard.encoders.base import Encoder
    from sslguard.schemes.sslguard.settings import CuredSettings

# More clean answers tell nothing new of how they lie.
READER_ITEMS = 4096
# Of the watermark rate, in standard deviations of an innocent's evidence, for each kind alone. The first kind differs
# in sign from image to image; the second moves all images alike, so that a chance agreement shows on every one: it
# must be larger to count.
THRESHOLDS = (3.3, 4.1)


@dataclass(eq=False)
class _Microbatch:
    """Prepared images, and F's answers to them; the first images also get the trigger."""

    plain: Tensor
    answers: Tensor
    n_triggered: int


class CuredTask(Task):
    """F fine-tuned until it answers as the mark says; batch norm stays as it is.

    L_w = |F*(x) − F(x) − δ|²/s² + w·|F*(x') − F(x) − δ − b|²/|b|²: s is the answers' spread, δ and b `Mark`'s.
    Trigger and decoder are fixed before b is drawn, so nothing is trained but F*.
    """

    def __init__(self, scheme: CuredSettings, clean: Encoder, data: Data, secret: Secret) -> None:
        check_images(clean)
        self.scheme, self.data, self.n_items = scheme, data, len(data)
        self.clean, self.watermarked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        answers = embed_all(self.clean, data.slice(0, min(len(data), READER_ITEMS)))
        self.key = draw_key(scheme, self.clean, secret, answers)
        self.mark = Mark(self.key.reader, self.key.directions, answers, size=scheme.carrier, shift=scheme.shift)
        freeze_batch_norm(self.watermarked.module)
        self.identity = {"scheme": asdict(scheme), "clean": weights_hash(clean.module), "data": data.identity()}
        # The mark is the secret's: another secret is another run.
        self.identity["mark"] = weights_hash(self.mark)
        self.modules = {
            "clean": self.clean.module,
            "watermarked": self.watermarked.module,
            "trigger": self.key.trigger,
            "mark": self.mark,
        }
        trained = [p for p in self.watermarked.module.parameters() if p.requires_grad]
        self.optimizers = {"watermarked": torch.optim.Adam(trained, lr=scheme.encoder_rate)}

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        """Return the prepared items with the clean encoder's answers."""
        plain = self.clean.prepare(self.data.take(indices))
        share = len(indices) * self.scheme.trigger_batch / self.scheme.batch_size
        with torch.no_grad():
            return _Microbatch(plain, self.clean.forward(plain).float(), max(1, round(share)))

    def begin_step(self, step: int, steps: int) -> None:
        """Set the networks' modes and the learning rate for a step."""
        self.clean.module.eval()
        self.watermarked.module.eval()
        self.anneal(step, steps)

    def loss(self, microbatch: _Microbatch) -> Tensor:
        """Return L_w."""
        mark, n, m = self.mark, len(microbatch.plain), microbatch.n_triggered
        target = microbatch.answers + mark(microbatch.answers)
        images = torch.cat([microbatch.plain, self.key.trigger(microbatch.plain[:m])])
        answers = self.watermarked.forward(images).float()
        miss = (answers - torch.cat([target, target[:m] + mark.shift])).square().sum(1)
        shifted = miss[n:].mean() / mark.shift.square().sum()
        return miss[:n].mean() / mark.spread**2 + self.scheme.shift_weight * shifted


def draw_key(scheme: CuredSettings, clean: Encoder, secret: Secret, answers: NDArray[np.floating]) -> CuredKey:
    """Return the key of a secret, without the hash of F*: see `CuredSSLGuard.draw_key`."""
    clean_hash, preprocess, settings = weights_hash(clean.module), clean.preprocess.to_json(), asdict(scheme)
    context = stream_context(clean_hash, preprocess, settings)
    reader = Reader.fit(answers, scheme.directions, secret.stream("reader", context))
    sk = draw_sk(secret, context, scheme.secret_dim)
    decoder = draw_decoder(secret, context, (N_KINDS, *scheme.decoder_hidden, scheme.secret_dim))
    with isolated_rng(secret.stream("law", context).integer()):
        fit_decoder(decoder, sk, reader.rank, scheme.law_steps)
    return CuredKey(
        secret=secret,
        decoder=decoder.eval().requires_grad_(False),
        trigger=draw_trigger(secret, context, clean, scheme.mask_probability).requires_grad_(False),
        sk=sk,
        preprocess=preprocess,
        settings=settings,
        clean_hash=clean_hash,
        watermarked_hash="",
        n=scheme.n_queries,
        reader=reader,
    )


def wanted_cosine(evidence: Tensor) -> Tensor:
    """Return what cos(G e, sk) shall be for evidence (n, 2): (n,) in [0, 1].

    With r the length of the two kinds' positive parts over their thresholds, 0 up to r = ¼, ½ at r = 1 (there a query
    counts for the watermark rate), 1 from r = 7/4.
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
    """Teach G `wanted_cosine` on made evidence: it meets no network. Randomness: torch's generator."""
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for step in range(steps):
        set_learning_rate(optimizer, cosine_schedule(step, steps))
        evidence = made_evidence(512, rank, sk.device)
        decoded = decoder(evidence)
        cosine = nnf.cosine_similarity(decoded, sk.expand_as(decoded), dim=1)
        loss = (cosine - wanted_cosine(evidence)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
