"""Marking by the settings of the scheme."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.sslguard.settings import SSLGuardSettings

if TYPE_CHECKING:
    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Data
    from sslguard.encoders.base import Encoder
    from sslguard.schemes.sslguard.cured import CuredTask
    from sslguard.schemes.sslguard.task import SSLGuardTask


@dataclass(frozen=True)
class SSLGuard(SSLGuardSettings, Scheme):
    """SSLGuard, by the paper's losses or, with a carrier, by those of the cure: see `SSLGuardSettings`."""

    name: ClassVar[str] = "sslguard"
    key_home: ClassVar[str] = "sslguard.schemes.sslguard.key:SSLGuardKey"
    saw_clean: ClassVar[bool] = True

    def task(self, clean: Encoder, data: Data, secret: Secret) -> SSLGuardTask | CuredTask:
        """Return what `watermark` trains."""
        from sslguard.schemes.sslguard.cured import CuredTask
        from sslguard.schemes.sslguard.task import SSLGuardTask

        return (CuredTask if self.carrier else SSLGuardTask)(self, clean, data, secret)

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Train F*, trigger and decoder together; return F* and its key. See `Scheme.watermark`."""
        from sslguard.encoders.folder import weights_hash
        from sslguard.schemes.sslguard.cured import CuredTask
        from sslguard.schemes.sslguard.key import SSLGuardKey
        from sslguard.training.base import Loop
        from sslguard.training.loop import run

        task = self.task(clean, data, secret)
        seed = secret.stream("training", task.context).integer()
        training = Loop(self.steps, self.batch_size, seed, checkpoint=checkpoint, title="watermark", **loop)
        history = run(task, training)
        encoder = replace(
            task.watermarked,
            source=f"sslguard-marked {clean.source}",
            record={
                "made_by": "watermark",
                "scheme": "sslguard",
                "settings": asdict(self),
                "data": data.spec,
                **history.times(),
            },
        )
        encoder.module.eval().requires_grad_(True).to("cpu")
        key = SSLGuardKey(
            secret=secret,
            decoder=task.decoder.eval().to("cpu"),
            trigger=task.trigger.to("cpu"),
            sk=task.sk.cpu(),
            preprocess=clean.preprocess.to_json(),
            settings=asdict(self),
            clean_hash=weights_hash(clean.module),
            watermarked_hash=weights_hash(encoder.module),
            carrier=task.carrier.to("cpu") if isinstance(task, CuredTask) else None,
            n=self.n_queries,
        )
        return Watermarked(encoder, key, history)
