"""The settings of SSLGuard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from sslguard.errors import UsageError


@dataclass(frozen=True)
class SSLGuardSettings:
    """Settings of the three-step training. Defaults suit small encoders; `published()` gives the paper's.

    Attributes:
        steps: iterations; each takes `batch_size` plain images and `trigger_batch` of D_v.
        encoder_rate, shadow_rate, decoder_rate, trigger_rate: learning rates of F*, S, G and T.
        shadow_decay: factor on the shadow's learning rate after every epoch.
        optimizer: "sgd" (momentum 0.9; plain for the trigger) as published, or "adam".
        shadow: architecture of S, with a linear layer into F's space; None means F's own.
        decoder_hidden, secret_dim: widths of G after its input.
        mask_probability: share of channel-pixels under the trigger.
        gradients: "clean" takes each loss's gradient for its own step; "released" lets F* also collect those of
            L_s and L_t before it steps, as the released code does.
        negatives: "none" as published; "shadow" adds to L_t a shadow of the clean F and freshly drawn random
            networks, both held at cosine 0.
        shadow_weights: an encoder, by specification, whose weights S starts from; None draws them. The paper starts
            from ImageNet's.
        carrier: size of a mark on plain answers that surrogates inherit, as a share of the answers' own in the space
            where it is read; 0 as published. With one, F* is marked by `CuredTask`, which has no shadows; the next
            four belong to it.
        directions: how many secret directions the carrier is made of.
        shift: how far triggered answers are moved, in units of the embedding's spread.
        shift_weight: weight in L_w of what concerns triggered answers.
        law_steps: steps of G alone on made evidence, before the first iteration.
        n_verification: images of D_v, set aside from the marking data.
        n_queries: images that a verification asks.
    """

    steps: int = 200
    batch_size: int = 32
    trigger_batch: int = 32
    encoder_rate: float = 3e-4
    shadow_rate: float = 3e-3
    decoder_rate: float = 1e-3
    trigger_rate: float = 1e-2
    shadow_decay: float = 0.96
    optimizer: Literal["sgd", "adam"] = "adam"
    shadow: str | None = None
    decoder_hidden: tuple[int, ...] = (512, 256)
    secret_dim: int = 256
    mask_probability: float = 0.35
    gradients: Literal["clean", "released"] = "clean"
    negatives: Literal["none", "shadow"] = "none"
    shadow_weights: str | None = None
    carrier: float = 0.0
    directions: int = 4
    shift: float = 8.0
    shift_weight: float = 0.1
    law_steps: int = 2000
    n_verification: int = 1000
    n_queries: int = 512

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.trigger_batch, self.n_verification, self.n_queries) < 1:
            raise UsageError("steps, batch sizes, n_verification and n_queries must be at least 1")
        if not 0 < self.mask_probability < 1:
            raise UsageError(f"mask_probability must lie in (0, 1), not {self.mask_probability}")
        for name, allowed in (
            ("gradients", ("clean", "released")),
            ("negatives", ("none", "shadow")),
            ("optimizer", ("sgd", "adam")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not (self.carrier >= 0 and self.shift > 0 and self.shift_weight > 0):
            raise UsageError("carrier must not be negative; shift and shift_weight must be positive")
        if min(self.directions, self.law_steps) < 1:
            raise UsageError("directions and law_steps must be at least 1")
        uncured = self.gradients, self.negatives, self.optimizer, self.shadow, self.shadow_weights
        if self.carrier and uncured != ("clean", "none", "adam", None, None):
            raise UsageError(
                "with a carrier there are no shadows to set: leave gradients, negatives, optimizer, shadow and "
                "shadow_weights as they are"
            )
        if self.shadow_weights and not self.shadow:
            raise UsageError("shadow_weights needs shadow, the architecture that they are of")

    @classmethod
    def published(cls) -> Self:
        """The paper's settings: batches of 2 + 2, 50 epochs of 50,000 images, SGD."""
        return cls(
            steps=1_250_000,
            batch_size=2,
            trigger_batch=2,
            encoder_rate=1e-5,
            shadow_rate=1e-2,
            decoder_rate=1e-3,
            trigger_rate=1e-3,
            optimizer="sgd",
            shadow="torchvision:resnet50",
            shadow_weights="torchvision:resnet50",
            gradients="released",
        )

    @classmethod
    def cured(cls) -> Self:
        """Not the paper's: a carrier that surrogates inherit, a shift that copies of weights keep, and a decoder that
        reads nothing else."""
        return cls(
            steps=800,
            batch_size=64,
            trigger_batch=16,
            encoder_rate=2e-3,
            decoder_rate=1e-3,
            trigger_rate=3e-3,
            decoder_hidden=(64,),
            carrier=1.0,
        )
