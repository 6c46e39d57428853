"""Marking by the settings of the exact scheme."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.exact.settings import ExactSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Data
    from sslguard.encoders.base import Encoder
    from sslguard.schemes.exact.key import ExactKey

# More clean embeddings tell nothing new of their mean and principal components.
GEOMETRY_ITEMS = 20_000


@dataclass(frozen=True)
class Exact(ExactSettings, Scheme):
    """h*(x) = h(x) + ε·K^(−1/2)·Σ_k φ_k(x)·M u_k, with h = F(x)/|F(x)|: see `ExactSettings`."""

    name: ClassVar[str] = "exact"
    key_home: ClassVar[str] = "sslguard.schemes.exact.key:ExactKey"
    fresh_secrets: ClassVar[bool] = True

    @property
    def on_answers(self) -> bool:
        """Return whether the mark is put on answers, so that a thief with the weights can remove it."""
        return self.mode == "head"

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Mark F with secret directions; return F* and its key. See `Scheme.watermark`."""
        from sslguard.encoders.base import embed_all
        from sslguard.encoders.folder import weights_hash
        from sslguard.schemes.exact.features import all_statistics
        from sslguard.schemes.exact.marking import DistilMark, headed
        from sslguard.training.base import History, Loop
        from sslguard.training.loop import run

        clean = clean.clone()
        clean.module.eval()
        first = data.slice(0, min(len(data), GEOMETRY_ITEMS))
        answers = embed_all(clean, first)
        statistics = all_statistics(clean, first)
        key = self.draw_key(clean, secret, answers, statistics)
        encoder = headed(clean, key.bank, key.directions(), self.protocol.epsilon)
        history = History()
        if self.mode == "distilled":
            task = DistilMark(self, clean, encoder, data, answers, statistics)
            seed = secret.stream("training", key.context).integer()
            training = Loop(self.steps, self.batch_size, seed, checkpoint=checkpoint, title="watermark", **loop)
            history = run(task, training)
            encoder = task.watermarked
            encoder.module.eval().requires_grad_(True).to("cpu")
        record = {
            "made_by": "watermark",
            "scheme": self.name,
            "settings": asdict(self),
            "data": data.spec,
            **history.times(),
        }
        encoder = replace(encoder, source=f"exact-marked {clean.source}", record=record)
        return Watermarked(encoder, replace(key, watermarked_hash=weights_hash(encoder.module)), history)

    def draw_key(
        self, clean: Encoder, secret: Secret, answers: NDArray[np.floating], statistics: NDArray[np.floating]
    ) -> ExactKey:
        """Return the key of a secret, without the hash of F*, which no test depends on.

        Args:
            clean: F.
            secret: The master secret.
            answers: Of `clean` to items of the owner's, (n, d).
            statistics: `input_statistics` of these items, (n, 96).
        """
        from sslguard.schemes.exact.bank import Bank
        from sslguard.schemes.exact.key import ExactKey, stream_context, sub_secrets

        context = stream_context(clean, self.protocol)
        banks = [
            Bank.draw(one, answers, statistics, self.protocol, context, share=(i, self.sub_keys))
            for i, one in enumerate(sub_secrets(secret, self.sub_keys, context))
        ]
        return ExactKey(secret, self.protocol, Bank.joined(banks), clean, "", sub_keys=self.sub_keys)
