"""The three updates of an iteration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.data.base import Data
from sslguard.encoders.architectures import build
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import UsageError
from sslguard.schemes.sslguard.parts import (
    Carrier,
    Decoder,
    Trigger,
    drifted,
    freeze_batch_norm,
    mean_cosine,
    stranger,
)
from sslguard.secrets import Secret
from sslguard.training import Task, Update, isolated_rng, set_learning_rate

if TYPE_CHECKING:
    from sslguard.schemes.sslguard.scheme import SSLGuard

CARRIER_ITEMS = 4096


@dataclass(eq=False)
class _Microbatch:
    plain: Tensor
    verification: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict)


class SSLGuardTask(Task):
    """Three updates an iteration: L_s over S, L_t over G and T, L_w over F*."""

    def __init__(self, scheme: SSLGuard, clean: Encoder, data: Data, secret: Secret) -> None:
        if not isinstance(clean.preprocess, ImagePreprocess):
            raise UsageError("the scheme sslguard puts its trigger on images; this encoder takes none")
        if len(data) <= scheme.n_verification:
            raise UsageError(
                f"{data.spec} has {len(data)} items: D_v takes {scheme.n_verification}, "
                "and some must be left to train on"
            )
        self.scheme, self.data = scheme, data
        clean_hash = weights_hash(clean.module)
        self.context = clean_hash.encode()
        order = secret.stream("verification", self.context).permutation(len(data))
        self._verification, self._plain = np.split(order, [scheme.n_verification])
        self.n_items = len(self._plain)
        self._fingerprint = {"scheme": asdict(scheme), "clean": clean_hash, "data": data.spec}
        self._setup_networks(clean, secret)
        self._setup_optimizers()

    def _setup_networks(self, clean: Encoder, secret: Secret) -> None:
        scheme = self.scheme
        self.clean, self.watermarked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        freeze_batch_norm(self.watermarked.module)
        self.shadow = self._new_shadow(secret.stream("shadow", self.context).integer())
        shape = clean.preprocess.shape  # type: ignore[attr-defined]
        mask = secret.stream("mask", self.context).uniform(shape) > 1 - scheme.mask_probability
        noise = secret.stream("trigger", self.context).normal(shape)
        pattern = (noise - noise.min()) / (noise.max() - noise.min())
        self.trigger = Trigger(torch.from_numpy(mask).float(), torch.from_numpy(pattern).float())
        with isolated_rng(secret.stream("decoder", self.context).integer()):
            self.decoder = Decoder((clean.dim, *scheme.decoder_hidden, scheme.secret_dim))
        self.sk = torch.from_numpy(secret.stream("sk", self.context).normal((scheme.secret_dim,))).float()
        self.modules = {
            "clean": self.clean.module,
            "watermarked": self.watermarked.module,
            "shadow": self.shadow.module,
            "decoder": self.decoder,
            "trigger": self.trigger,
        }
        if scheme.negatives == "shadow":
            self.negative = self._new_shadow(secret.stream("negative", self.context).integer())
            self.modules["negative"] = self.negative.module
        self.carrier: Carrier | None = None
        if scheme.carrier:
            some = self.data.slice(0, min(len(self.data), CARRIER_ITEMS))
            stream = secret.stream("carrier", self.context)
            self.carrier = Carrier(embed_all(self.clean, some), scheme.carrier, stream)
            self.modules["carrier"] = self.carrier

    def _new_shadow(self, seed: int) -> Encoder:
        description: dict[str, Any] = dict(self.clean.architecture)
        if self.scheme.shadow is not None:
            description = {
                "backbone": self.scheme.shadow,
                "channels": self.clean.architecture.get("channels", 3),
                "linear": self.clean.dim,
            }
        module, dim = build(description, seed=seed)
        if dim != self.clean.dim:
            raise UsageError(f"the shadow answers in {dim} dimensions and the encoder in {self.clean.dim}")
        return replace(self.clean, module=module, architecture=description, source="shadow")

    def _setup_optimizers(self) -> None:
        scheme = self.scheme

        def make(parameters: Iterable[nn.Parameter], rate: float, momentum: float = 0.9) -> torch.optim.Optimizer:
            chosen = [p for p in parameters if p.requires_grad]
            if scheme.optimizer == "adam":
                return torch.optim.Adam(chosen, lr=rate)
            return torch.optim.SGD(chosen, lr=rate, momentum=momentum)

        self.optimizers = {
            "shadow": make(self.shadow.module.parameters(), scheme.shadow_rate),
            "decoder": make(self.decoder.parameters(), scheme.decoder_rate),
            "trigger": make(self.trigger.parameters(), scheme.trigger_rate, momentum=0.0),
            "watermarked": make(self.watermarked.module.parameters(), scheme.encoder_rate),
        }
        if scheme.negatives == "shadow":
            self.optimizers["negative"] = make(self.negative.module.parameters(), scheme.shadow_rate)

    def fingerprint(self) -> dict[str, Any]:
        return self._fingerprint

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        plain = self.clean.prepare(self.data.take(self._plain[indices]))
        size = max(1, round(len(indices) * self.scheme.trigger_batch / self.scheme.batch_size))
        chosen = torch.randint(len(self._verification), (size,)).numpy()
        return _Microbatch(plain, self.clean.prepare(self.data.take(self._verification[chosen])))

    def begin_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        epoch = step * self.scheme.batch_size // self.n_items
        self.sk = self.sk.to(self.device)
        self.clean.module.eval()
        self.watermarked.module.eval()
        for name in ("shadow", "negative"):
            if name in self.optimizers:
                set_learning_rate(self.optimizers[name], self.scheme.shadow_decay**epoch)

    def updates(self) -> Sequence[Update]:
        released = self.scheme.gradients == "released"
        collected = tuple(p for p in self.watermarked.module.parameters() if p.requires_grad) if released else ()
        shadow = tuple(self.shadow.module.parameters())
        decoder = (*self.decoder.parameters(), *self.trigger.parameters())
        updates = [
            Update("shadow", self._shadow_loss, ("shadow",), (*shadow, *collected)),
            Update("decoder", self._decoder_loss, ("decoder", "trigger"), (*decoder, *collected)),
            Update("watermark", self._watermark_loss, ("watermarked",)),
        ]
        if self.scheme.negatives == "shadow":
            updates.insert(1, Update("negative", self._negative_loss, ("negative",)))
        return updates

    def _clean_features(self, batch: _Microbatch) -> Tensor:
        """F(x), once an iteration: F does not change."""
        if "clean" not in batch.cache:
            with torch.no_grad():
                batch.cache["clean"] = self.clean.forward(batch.plain)
        return batch.cache["clean"]

    def _watermarked_features(self, batch: _Microbatch) -> Tensor:
        """F*(x) before F* steps; with a graph only where the released gradients want one."""
        if self.scheme.gradients == "released":
            return self.watermarked.forward(batch.plain)
        if "watermarked" not in batch.cache:
            with torch.no_grad():
                batch.cache["watermarked"] = self.watermarked.forward(batch.plain)
        return batch.cache["watermarked"]

    def _match(self, answers: Tensor, target: Tensor) -> Tensor:
        """c̄ of two batches of answers; about the clean mean where there is a carrier, to which c̄ is nearly blind."""
        if self.carrier is None:
            return mean_cosine(answers, target)
        return mean_cosine(answers - self.carrier.mean, target - self.carrier.mean)

    def _marked(self, clean: Tensor) -> Tensor:
        """What F* shall answer where F answers `clean`."""
        return clean if self.carrier is None else clean + self.carrier(clean)

    def _decode(self, answers: Tensor) -> Tensor:
        """c̄(G e, sk); with a carrier, of answers that drifted at random (`drifted`)."""
        if self.carrier is not None:
            drift, noise = self.scheme.drift, self.scheme.decoder_noise
            answers = drifted(answers, self.carrier.mean, self.carrier.spread, drift=drift, noise=noise)
        return mean_cosine(self.decoder(answers), self.sk)

    def _shadow_loss(self, batch: _Microbatch) -> Tensor:
        """L_s = −c̄(F*(x), S(x)); S in training mode."""
        self.shadow.module.train()
        return -self._match(self.shadow.forward(batch.plain), self._watermarked_features(batch))

    def _negative_loss(self, batch: _Microbatch) -> Tensor:
        """The same for the negative shadow, of the clean F."""
        self.negative.module.train()
        return -self._match(self.negative.forward(batch.plain), self._clean_features(batch))

    def _decoder_loss(self, batch: _Microbatch) -> Tensor:
        """L_t = −c̄(G F*(x'), sk) − c̄(G S(x'), sk) + Σ c̄(·)² over G F(x'), G F(x), G F*(x), G S(x)."""
        self.shadow.module.eval()
        x = self.trigger(batch.verification)
        triggered = {"clean": self.clean, "marked": self.watermarked, "shadow": self.shadow}
        answers = {name: encoder.forward(x) for name, encoder in triggered.items()}
        with torch.no_grad():
            shadow_plain = self.shadow.forward(batch.plain)
        loss = (
            -self._decode(answers["marked"])
            - self._decode(answers["shadow"])
            + self._decode(answers["clean"]) ** 2
            + self._decode(self._clean_features(batch)) ** 2
            + self._decode(self._watermarked_features(batch)) ** 2
            + self._decode(shadow_plain) ** 2
        )
        if self.scheme.negatives == "none":
            return loss
        self.negative.module.eval()
        answers["negative"] = self.negative.forward(x)
        with torch.no_grad():
            negative_plain = self.negative.forward(batch.plain)
        loss = loss + self._control_loss(batch, x, answers["negative"], negative_plain)
        if self.carrier is None:
            return loss
        return loss + self._carrier_loss(batch, answers, negative_plain, self.carrier)

    def _control_loss(self, batch: _Microbatch, x: Tensor, negative: Tensor, negative_plain: Tensor) -> Tensor:
        """The negative shadow N and a fresh random network, on triggered and plain images, held at 0."""
        seed = int(torch.randint(2**62, ()))
        drawn = replace(self.clean, module=self._new_shadow(seed).module.to(self.device).eval())
        with torch.no_grad():
            drawn_plain = drawn.forward(batch.plain)
        loss = self._decode(negative) ** 2 + self._decode(drawn.forward(x)) ** 2
        return loss + self._decode(negative_plain) ** 2 + self._decode(drawn_plain) ** 2

    def _carrier_loss(
        self, batch: _Microbatch, answers: dict[str, Tensor], negative_plain: Tensor, carrier: Carrier
    ) -> Tensor:
        """What teaches G to read the carrier, and T to move every copy alike.

        Answers with the carrier put on (N's to the trigger, and `Carrier.pairs`) at sk; the same without, and
        strangers made of F*'s answers, at 0; and the distance between each shadow and its teacher on triggered
        images, which only T can lessen here.
        """
        loss = -self._decode(answers["negative"] + carrier(answers["clean"]))
        with torch.no_grad():
            plain = torch.cat([negative_plain, self._clean_features(batch)])
            marked, unmarked = carrier.pairs(plain, answers["clean"].mean(0))
            sources = (answers["marked"], self.watermarked.forward(batch.verification))
            strangers = [stranger(sources[k % 2]) for k in range(self.scheme.strangers)]
        loss = loss - self._decode(marked) + self._decode(unmarked) ** 2
        for some in strangers:
            loss = loss + mean_cosine(self.decoder(some), self.sk) ** 2
        gaps = [answers["shadow"] - answers["marked"], answers["negative"] - answers["clean"]]
        distance = sum(gap.norm(dim=1).mean() for gap in gaps) / (carrier.spread * self.clean.dim**0.5)
        return loss + self.scheme.agreement * distance

    def _watermark_loss(self, batch: _Microbatch) -> Tensor:
        """L_w = −c̄(F(x), F*(x)) + c̄(G F*(x), sk)² − c̄(G F*(x'), sk)."""
        features = self.watermarked.forward(batch.plain)
        with torch.no_grad():
            triggered = self.trigger(batch.verification)
        marked_triggered = self.watermarked.forward(triggered)
        loss = (
            -self._match(features, self._marked(self._clean_features(batch)))
            + mean_cosine(self.decoder(features), self.sk) ** 2
            - mean_cosine(self.decoder(marked_triggered), self.sk)
        )
        if self.carrier is None:
            return loss
        with torch.no_grad():
            target = self._marked(self.clean.forward(triggered))
        return loss - self._match(marked_triggered, target)
