"""The three updates of an iteration, as published."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.encoders.rebuild import build
from sslguard.errors import UsageError
from sslguard.schemes.sslguard.parts import (
    check_images,
    draw_decoder,
    draw_sk,
    draw_trigger,
    freeze_batch_norm,
    mean_cosine,
    stream_context,
)
from sslguard.schemes.sslguard.settings import SSLGuardSettings
from sslguard.training.base import Task, Update, set_learning_rate


@dataclass(eq=False)
class Microbatch:
    """Prepared images of the plain part and of D_v, and what was computed of them once for all updates of a step."""

    plain: Tensor
    verification: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict)


class SSLGuardTask(Task):
    """Three updates an iteration: L_s over S, L_t over G and T, L_w over F*."""

    def __init__(self, scheme: SSLGuardSettings, clean: Encoder, data: Data, secret: Secret) -> None:
        check_images(clean)
        if len(data) <= scheme.n_verification:
            raise UsageError(
                f"{data.spec} has {len(data)} items: D_v takes {scheme.n_verification}, and some must be left "
                "to train on"
            )
        self.scheme, self.data = scheme, data
        clean_hash = weights_hash(clean.module)
        self.context = stream_context(clean_hash, clean.preprocess.to_json(), asdict(scheme))
        self.identity = {"scheme": asdict(scheme), "clean": clean_hash, "data": data.identity()}
        order = secret.stream("verification", self.context).permutation(len(data))
        self._verification, self._plain = np.split(order, [scheme.n_verification])
        self.n_items = len(self._plain)
        self.clean, self.watermarked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        freeze_batch_norm(self.watermarked.module)
        self.trigger = draw_trigger(secret, self.context, clean, scheme.mask_probability)
        self.sk = draw_sk(secret, self.context, scheme.secret_dim)
        self._setup_networks(clean, secret)
        self._setup_optimizers()

    def _setup_networks(self, clean: Encoder, secret: Secret) -> None:
        scheme = self.scheme
        self.shadow = self._new_shadow(secret.stream("shadow", self.context).integer())
        if scheme.shadow_weights is not None:
            _start_from(self.shadow.module, scheme.shadow_weights)
        widths = (clean.dim, *scheme.decoder_hidden, scheme.secret_dim)
        self.decoder = draw_decoder(secret, self.context, widths)
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

    def load(self, indices: NDArray[np.int64]) -> Microbatch:
        """Return prepared items of the plain part, and random ones of the verification part."""
        plain = self.clean.prepare(self.data.take(self._plain[indices]))
        size = max(1, round(len(indices) * self.scheme.trigger_batch / self.scheme.batch_size))
        chosen = torch.randint(len(self._verification), (size,)).numpy()
        return Microbatch(plain, self.clean.prepare(self.data.take(self._verification[chosen])))

    def begin_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        """Set the networks' modes and the learning rates for a step."""
        self.sk = self.sk.to(self.device)
        self.clean.module.eval()
        self.watermarked.module.eval()
        epoch = step * self.scheme.batch_size // self.n_items
        for name in ("shadow", "negative"):
            if name in self.optimizers:
                set_learning_rate(self.optimizers[name], self.scheme.shadow_decay**epoch)

    def updates(self) -> Sequence[Update]:
        """Return the updates of one step, in order."""
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

    def decode(self, answers: Tensor) -> Tensor:
        """Return c̄(G e, sk)."""
        return mean_cosine(self.decoder(answers), self.sk)

    def _clean_features(self, batch: Microbatch) -> Tensor:
        """F(x), once an iteration: F does not change."""
        if "clean" not in batch.cache:
            with torch.no_grad():
                batch.cache["clean"] = self.clean.forward(batch.plain)
        return batch.cache["clean"]

    def _watermarked_features(self, batch: Microbatch) -> Tensor:
        """F*(x) before F* steps; with a graph only where the released gradients want one."""
        if self.scheme.gradients == "released":
            return self.watermarked.forward(batch.plain)
        if "watermarked" not in batch.cache:
            with torch.no_grad():
                batch.cache["watermarked"] = self.watermarked.forward(batch.plain)
        return batch.cache["watermarked"]

    def _shadow_loss(self, batch: Microbatch) -> Tensor:
        """L_s = −c̄(F*(x), S(x)); S in training mode."""
        self.shadow.module.train()
        return -mean_cosine(self.shadow.forward(batch.plain), self._watermarked_features(batch))

    def _negative_loss(self, batch: Microbatch) -> Tensor:
        """Return the same for the negative shadow, of the clean F."""
        self.negative.module.train()
        return -mean_cosine(self.negative.forward(batch.plain), self._clean_features(batch))

    def _decoder_loss(self, batch: Microbatch) -> Tensor:
        """L_t = −c̄(G F*(x'), sk) − c̄(G S(x'), sk) + Σ c̄(·)² over G F(x'), G F(x), G F*(x), G S(x)."""
        self.shadow.module.eval()
        x = self.trigger(batch.verification)
        triggered = {"clean": self.clean, "marked": self.watermarked, "shadow": self.shadow}
        answers = {name: encoder.forward(x) for name, encoder in triggered.items()}
        with torch.no_grad():
            shadow_plain = self.shadow.forward(batch.plain)
        loss = (
            -self.decode(answers["marked"])
            - self.decode(answers["shadow"])
            + self.decode(answers["clean"]) ** 2
            + self.decode(self._clean_features(batch)) ** 2
            + self.decode(self._watermarked_features(batch)) ** 2
            + self.decode(shadow_plain) ** 2
        )
        if self.scheme.negatives == "none":
            return loss
        self.negative.module.eval()
        with torch.no_grad():
            negative_plain = self.negative.forward(batch.plain)
        return loss + self._control_loss(batch, x, self.negative.forward(x), negative_plain)

    def _control_loss(self, batch: Microbatch, x: Tensor, negative: Tensor, negative_plain: Tensor) -> Tensor:
        """Return a loss that holds N and a fresh random network at 0, with and without the trigger."""
        seed = int(torch.randint(2**62, ()))
        drawn = replace(self.clean, module=self._new_shadow(seed).module.to(self.device).eval())
        with torch.no_grad():
            drawn_plain = drawn.forward(batch.plain)
        loss = self.decode(negative) ** 2 + self.decode(drawn.forward(x)) ** 2
        return loss + self.decode(negative_plain) ** 2 + self.decode(drawn_plain) ** 2

    def _watermark_loss(self, batch: Microbatch) -> Tensor:
        """L_w = −c̄(F(x), F*(x)) + c̄(G F*(x), sk)² − c̄(G F*(x'), sk)."""
        features = self.watermarked.forward(batch.plain)
        with torch.no_grad():
            triggered = self.trigger(batch.verification)
        return (
            -mean_cosine(features, self._clean_features(batch))
            + self.decode(features) ** 2
            - self.decode(self.watermarked.forward(triggered))
        )


def _start_from(shadow: nn.Module, spec: str) -> None:
    """Give the shadow's backbone the weights of the encoder that `spec` names.

    Raises:
        UsageError: They are another architecture's.
    """
    weights = load_encoder(spec).module.state_dict()
    try:
        getattr(shadow, "backbone", shadow).load_state_dict(weights)  # pyrefly: ignore[missing-attribute]
    except RuntimeError as error:
        raise UsageError(f"shadow_weights {spec!r} do not fit the shadow's architecture: {error!s:.300}") from error
