"""The settings of SSLGuard, as published and cured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from sslguard.errors import UsageError
from sslguard.settings import Checked, Count, Positive, Share


@dataclass(frozen=True)
class SSLGuardSettings(Checked):
    """Settings of SSLGuard. The defaults are the published losses at a size that suits small encoders.

    Attributes:
        steps: Number of iterations. Each takes `batch_size` plain images and `trigger_batch` triggered ones.
        batch_size: Plain images an iteration.
        trigger_batch: Images an iteration that get the trigger, of those set aside for it.
        encoder_rate: Learning rate of the watermarked encoder (F*).
        shadow_rate: Learning rate of the shadow encoder (S).
        decoder_rate: Learning rate of the decoder (G).
        trigger_rate: Learning rate of the trigger (T).
        shadow_decay: Factor on the shadow's learning rate after every epoch.
        optimizer: "sgd" as published, with momentum 0.9 except for the trigger, or "adam".
        shadow: Architecture of the shadow encoder, under a linear layer to the encoder's width; by default (None)
            the encoder's own.
        decoder_hidden: Widths of the decoder's hidden layers.
        secret_dim: Width of the secret vector (sk), which the decoder answers with.
        mask_probability: Share of the pixels under the trigger, of each channel by itself, in (0, 1).
        gradients: "clean" takes each loss's gradient for its own step; "released" lets the watermarked encoder also
            collect those of the shadow's and the decoder's losses before it steps, as the released code does.
        negatives: "none" as published; "shadow" also trains the decoder to answer a shadow of the clean encoder and
            freshly drawn random networks with cosine 0.
        shadow_weights: Encoder whose weights the shadow starts from; by default (None) they are drawn. The paper starts
            from ImageNet's.
        n_verification: Images of the data set aside for the trigger (D_v).
        n_queries: Images that a verification asks about.
        pool: Data that the secrets are bound to, as `data.pool.pool_of` gives them; "" where there are none.
    """

    steps: Count = 200
    batch_size: Count = 32
    trigger_batch: Count = 32
    encoder_rate: Positive = 3e-4
    shadow_rate: Positive = 3e-3
    decoder_rate: Positive = 1e-3
    trigger_rate: Positive = 1e-2
    shadow_decay: Positive = 0.96
    optimizer: Literal["sgd", "adam"] = "adam"
    shadow: str | None = None
    decoder_hidden: tuple[Count, ...] = (512, 256)
    secret_dim: Count = 256
    mask_probability: Share = 0.35
    gradients: Literal["clean", "released"] = "clean"
    negatives: Literal["none", "shadow"] = "none"
    shadow_weights: str | None = None
    n_verification: Count = 1000
    n_queries: Count = 512
    pool: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shadow_weights and not self.shadow:
            raise UsageError("shadow_weights needs shadow, the architecture that they are of")

    @classmethod
    def published(cls) -> Self:
        """Return the paper's settings: batches of 2 + 2, 50 epochs of 50,000 images, SGD."""
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


@dataclass(frozen=True)
class CuredSettings(Checked):
    """Settings of the cured scheme, which detects stolen copies and accuses innocents no more often than its level.

    It is not the paper's: plain answers carry a secret mark that surrogates inherit (the carrier), triggered ones a
    secret shift that copies of the weights keep, and nothing else is tested.

    Attributes:
        steps: Number of iterations. Each takes `batch_size` images, of which `trigger_batch` are asked with the trigger
            too.
        batch_size: Images an iteration.
        trigger_batch: Images an iteration that also get the trigger.
        encoder_rate: Learning rate of the watermarked encoder (F*).
        carrier: Size of the mark on plain answers that surrogates inherit, as a share of the answers' own size in the
            space where it is read.
        directions: Secret directions of the carrier.
        shift: How far triggered answers are moved, in units of the embedding's spread.
        shift_weight: Weight of the loss on triggered answers.
        mask_probability: Share of the pixels under the trigger, of each channel by itself, in (0, 1).
        decoder_hidden: Widths of the decoder's hidden layers.
        secret_dim: Width of the secret vector (sk), which the decoder answers with.
        law_steps: Steps that train the decoder, on made evidence alone.
        n_queries: Images that a verification asks about, twice each.
        pool: Data that the secrets are bound to, as `data.pool.pool_of` gives them; "" where there are none.
    """

    steps: Count = 800
    batch_size: Count = 64
    trigger_batch: Count = 16
    encoder_rate: Positive = 2e-3
    carrier: Positive = 1.0
    directions: Count = 4
    shift: Positive = 8.0
    shift_weight: Positive = 0.1
    mask_probability: Share = 0.35
    decoder_hidden: tuple[Count, ...] = (64,)
    secret_dim: Count = 256
    law_steps: Count = 2000
    n_queries: Count = 512
    pool: str = ""
