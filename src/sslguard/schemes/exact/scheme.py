"""The settings of the exact scheme, and marking by them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.statistics import all_statistics
from sslguard.errors import UsageError
from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.exact.bank import Bank, draw_directions
from sslguard.schemes.exact.key import ExactKey, stream_context
from sslguard.schemes.exact.marking import DistilMark, headed
from sslguard.schemes.exact.protocol import Protocol
from sslguard.secrets import Secret
from sslguard.training import History, Loop, run

# More clean embeddings tell nothing new of their mean and principal components.
GEOMETRY_ITEMS = 20_000


@dataclass(frozen=True)
class Exact(Scheme):
    """h*(x) = h(x) + ε·K^(−1/2)·Σ_k φ_k(x)·M u_k, with h = F(x)/|F(x)|.

    Attributes:
        protocol: q, α, K₁, K₂, frequency, ε, n: all that the test depends on.
        mode: "head" puts the mark on the output, exactly and without training, for an API; "distilled" trains it into
            the weights, for encoders that leave the house.
        steps, batch_size, learning_rate: of the distillation; Adam's, annealed by half a cosine.
    """

    name: ClassVar[str] = "exact"

    protocol: Protocol = field(default_factory=Protocol)
    mode: Literal["head", "distilled"] = "distilled"
    steps: int = 900
    batch_size: int = 64
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if self.mode not in ("head", "distilled"):
            raise UsageError(f"mode must be head or distilled, not {self.mode!r}")
        if min(self.steps, self.batch_size) < 1 or not self.learning_rate > 0:
            raise UsageError("steps, batch_size and learning_rate must be positive")

    def watermark(
        self,
        clean: Encoder,
        data: Data,
        *,
        secret: Secret,
        checkpoint: Path | None = None,
        progress: bool = False,
        devices: int = 1,
        nodes: int = 1,
        accelerator: str = "cpu",
        precision: str = "auto",
    ) -> Watermarked:
        clean = clean.clone()
        clean.module.eval()
        context = stream_context(clean, self.protocol)
        first = data.slice(0, min(len(data), GEOMETRY_ITEMS))
        answers = embed_all(clean, first)
        statistics = all_statistics(clean, first)
        bank = Bank.draw(secret, answers, statistics, self.protocol, context)
        directions = draw_directions(secret, bank.size, clean.dim, context + bank.digest())
        encoder, history = headed(clean, bank, directions, self.protocol.epsilon), History()
        if self.mode == "distilled":
            task = DistilMark(self, clean, encoder, data, answers, statistics)
            loop = Loop(
                steps=self.steps,
                batch_size=self.batch_size,
                seed=secret.stream("training", context).integer(),
                devices=devices,
                nodes=nodes,
                accelerator=accelerator,
                precision=precision,
                checkpoint=checkpoint,
                progress=progress,
                title="watermark",
            )
            history = run(task, loop)
            encoder = task.watermarked
            encoder.module.eval().requires_grad_(True).to("cpu")
        record = {
            "made_by": "watermark",
            "scheme": self.name,
            "settings": asdict(self),
            "data": data.spec,
            "seconds": round(history.seconds, 1),
            "cpu_seconds": round(history.cpu_seconds, 1),
        }
        encoder = replace(encoder, source=f"exact-marked {clean.source}", record=record)
        key = ExactKey(secret, self.protocol, bank, clean, weights_hash(encoder.module))
        return Watermarked(encoder, key, history)
