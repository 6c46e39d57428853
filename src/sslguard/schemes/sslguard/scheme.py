"""The scheme with the published losses, and the cured one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.sslguard.settings import CuredSettings, SSLGuardSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Data
    from sslguard.encoders.base import Encoder
    from sslguard.schemes.sslguard.key import CuredKey
    from sslguard.training.base import History


@dataclass(frozen=True)
class SSLGuard(SSLGuardSettings, Scheme):
    """SSLGuard by the paper's losses: see `SSLGuardSettings`."""

    name: ClassVar[str] = "sslguard"
    key_home: ClassVar[str] = "sslguard.schemes.sslguard.key:SSLGuardKey"
    saw_clean: ClassVar[bool] = True

    def bound_to(self, pool: str) -> Self:
        """Return the scheme with its secrets bound to data; see `Scheme.bound_to`."""
        return replace(self, pool=pool)

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Train F*, trigger and decoder together; return F* and its key. See `Scheme.watermark`."""
        from sslguard.encoders.folder import weights_hash
        from sslguard.schemes.sslguard.key import SSLGuardKey
        from sslguard.schemes.sslguard.task import SSLGuardTask
        from sslguard.training.base import Loop
        from sslguard.training.loop import run

        task = SSLGuardTask(self, clean, data, secret)
        seed = secret.stream("training", task.context).integer()
        training = Loop(self.steps, self.batch_size, seed, checkpoint=checkpoint, title="watermark", **loop)
        history = run(task, training)
        encoder = _recorded(self, task.watermarked, clean, data, history)
        key = SSLGuardKey(
            secret=secret,
            decoder=task.decoder.eval().to("cpu"),
            trigger=task.trigger.to("cpu"),
            sk=task.sk.cpu(),
            preprocess=clean.preprocess.to_json(),
            settings=asdict(self),
            clean_hash=weights_hash(clean.module),
            watermarked_hash=weights_hash(encoder.module),
            n=self.n_queries,
        )
        return Watermarked(encoder, key, history)


@dataclass(frozen=True)
class CuredSSLGuard(CuredSettings, Scheme):
    """SSLGuard with the cure: what is tested is fixed before the secret directions are drawn. See `CuredSettings`."""

    name: ClassVar[str] = "sslguard-cured"
    key_home: ClassVar[str] = "sslguard.schemes.sslguard.key:CuredKey"
    fresh_secrets: ClassVar[bool] = True

    def bound_to(self, pool: str) -> Self:
        """Return the scheme with its secrets bound to data; see `Scheme.bound_to`."""
        return replace(self, pool=pool)

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Draw the key, then train F* alone; return both. See `Scheme.watermark`."""
        from sslguard.encoders.folder import weights_hash
        from sslguard.schemes.sslguard.cured import CuredTask
        from sslguard.training.base import Loop
        from sslguard.training.loop import run

        task = CuredTask(self, clean, data, secret)
        seed = secret.stream("training", task.key.context).integer()
        training = Loop(self.steps, self.batch_size, seed, checkpoint=checkpoint, title="watermark", **loop)
        history = run(task, training)
        encoder = _recorded(self, task.watermarked, clean, data, history)
        task.key.trigger.to("cpu")
        return Watermarked(encoder, replace(task.key, watermarked_hash=weights_hash(encoder.module)), history)

    def draw_key(self, clean: Encoder, secret: Secret, answers: NDArray[np.floating]) -> CuredKey:
        """Return the key of a secret, without the hash of F*, which no test depends on.

        Args:
            clean: F.
            secret: The master secret.
            answers: Of `clean` to items of the owner's, (n, d).

        Raises:
            UsageError: The answers leave no place for a mark.
        """
        from sslguard.schemes.sslguard.cured import draw_key

        return draw_key(self, clean, secret, answers)


def _recorded(scheme: Any, marked: Encoder, clean: Encoder, data: Data, history: History) -> Encoder:
    """Return the marked encoder on the CPU, with the record of how it was made."""
    record = {
        "made_by": "watermark",
        "scheme": scheme.name,
        "settings": asdict(scheme),
        "data": data.spec,
        **history.times(),
    }
    marked.module.eval().requires_grad_(True).to("cpu")
    return replace(marked, source=f"sslguard-marked {clean.source}", record=record)
