"""Marking by the settings of the exact scheme."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from sslguard.schemes.base import Scheme, Watermarked
from sslguard.schemes.exact.settings import ExactSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Data
    from sslguard.encoders.base import Encoder
    from sslguard.schemes.exact.key import ExactKey
    from sslguard.schemes.exact.taking import Held

# More clean embeddings tell nothing new of their mean and principal components.
GEOMETRY_ITEMS = 20_000


@dataclass(frozen=True)
class Exact(ExactSettings, Scheme):
    """h*(x) = h(x) + √(E/r)·(ψ(x)∘s)·A·G·M, with h = F(x)/|F(x)|: see `ExactSettings`."""

    name: ClassVar[str] = "exact"
    key_home: ClassVar[str] = "sslguard.schemes.exact.key:ExactKey"
    fresh_secrets: ClassVar[bool] = True

    @property
    def on_answers(self) -> bool:
        """Return whether the mark is put on answers, so that a thief with the weights can remove it."""
        return self.mode == "head"

    def bound_to(self, pool: str) -> Self:
        """Return the scheme with its secrets bound to data; see `Scheme.bound_to`."""
        return replace(self, protocol=replace(self.protocol, pool=pool))

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Mark F along secret directions; return F*, its key, and whether the mark took. See `Scheme.watermark`.

        A tenth of the items takes no part in the marking. The mark is judged on it.

        Raises:
            UsageError: The items are too few or too much alike, or F* would answer too far from F on others.
        """
        from sslguard.encoders.base import embed_all
        from sslguard.schemes.exact.features import all_statistics
        from sslguard.schemes.exact.marking import headed
        from sslguard.schemes.exact.taking import Held, held_out

        clean = clean.clone()
        clean.module.eval()
        first = data.slice(0, min(len(data), GEOMETRY_ITEMS))
        kept, held = held_out(len(first))
        answers, statistics = embed_all(clean, first), all_statistics(clean, first)
        key = self.draw_key(clean, secret, answers[kept], statistics[kept])
        judge = Held(key, data, held, answers, statistics)
        key = replace(key, size=judge.size(key, self))
        encoder = headed(clean, key.bank, key.mixtures(), key.rows())
        return self._put_on(key, encoder, judge, data, checkpoint, loop)

    def watermark_for(
        self, key: ExactKey, data: Data, *, name: str, rotation: int = 0, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Mark the clean encoder of a key for one recipient: with the common mark and with his own.

        Size, bank and protocol are the key's; of these settings the way of marking and the training count.

        Args:
            key: The owner's key. It stays as it is, and finds the common mark in what is returned.
            data: Items to mark with: those that the key was made with.
            name: Name of the recipient.
            rotation: How many secrets the recipient had before this one.
            checkpoint: As in `watermark`.
            loop: As in `watermark`.

        Returns:
            The recipient's encoder; the key of his own mark alone; and whether that took.

        Raises:
            UsageError: The items are too few or too much alike, or the encoder would answer too far from F on others.
        """
        from sslguard.encoders.base import embed_all
        from sslguard.schemes.exact.features import all_statistics
        from sslguard.schemes.exact.marking import headed
        from sslguard.schemes.exact.taking import Held, held_out

        first = data.slice(0, min(len(data), GEOMETRY_ITEMS))
        one = key.recipient(name, rotation)
        mixtures, rows = key.handed_to(one)
        encoder = headed(key.clean, key.bank, mixtures, rows)
        judge = Held(
            replace(one, size=key.size),
            *(data, held_out(len(first))[1], embed_all(key.clean, first), all_statistics(key.clean, first)),
            mark=lambda functions: functions @ mixtures @ rows,
        )
        made = self._put_on(judge.key, encoder, judge, data, checkpoint, loop)
        return replace(made, key=replace(one, watermarked_hash=cast("ExactKey", made.key).watermarked_hash))

    def _put_on(
        self, key: ExactKey, encoder: Encoder, judge: Held, data: Data, checkpoint: Path | None, loop: dict[str, Any]
    ) -> Watermarked:
        """Return F with the mark as a head, `encoder`, or else distilled into its weights; and how it took."""
        import numpy as np

        from sslguard.data.base import Chosen
        from sslguard.encoders.folder import weights_hash
        from sslguard.schemes.exact.marking import DistilMark
        from sslguard.training.base import History, Loop
        from sslguard.training.loop import run

        history, source = History(), key.clean.source
        if self.mode == "distilled":
            others = np.setdiff1d(np.arange(len(data)), judge.held)
            items = Chosen(data, others, f"{data.spec} but {len(judge.held)} held out")
            task = DistilMark(self, key.clean, encoder, items, key.bank.variance)
            seed = key.secret.stream("training", key.context).integer()
            training = Loop(self.steps, self.batch_size, seed, checkpoint=checkpoint, title="watermark", **loop)
            history = run(task, training)
            encoder = task.watermarked
            encoder.module.eval().requires_grad_(True).to("cpu")
        taken = judge.taken(key, encoder)
        record = {
            "made_by": "watermark",
            "scheme": self.name,
            "settings": asdict(self),
            "data": data.spec,
            "taken": asdict(taken),
            **history.times(),
        }
        encoder = replace(encoder, source=f"exact-marked {source}", record=record)
        key = replace(key, watermarked_hash=weights_hash(encoder.module), _embedded={})
        return Watermarked(encoder, key, history, taken)

    def draw_key(
        self, clean: Encoder, secret: Secret, answers: NDArray[np.floating], statistics: NDArray[np.floating]
    ) -> ExactKey:
        """Return the key of a secret, without the hash of F*, which no test depends on, and of the largest mark.

        Args:
            clean: F.
            secret: The master secret.
            answers: Of `clean` to items of the owner's, (n, d).
            statistics: `input_statistics` of these items, (n, p).
        """
        from sslguard.schemes.exact.bank import Bank
        from sslguard.schemes.exact.key import ExactKey

        bank = Bank.of(answers, statistics, self.protocol)
        size = min(self.largest, self.share * bank.variance)
        return ExactKey(secret, self.protocol, bank, clean, size, "", redraw=self.redraw, sub_keys=self.sub_keys)
