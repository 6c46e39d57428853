"""The scheme that only puts hidden units in a secret order: no training, no data, no change of the function.

Its key scores weights, not answers: `lineage.verdict.compare` reads it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from sslguard.errors import KeyFileError, UsageError
from sslguard.schemes.base import Key, Scheme, Score, Watermarked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sslguard.crypto.secrets import Secret
    from sslguard.data.base import Batch, Data
    from sslguard.encoders.base import Encoder
    from sslguard.lineage.order import Order


@dataclass(frozen=True, eq=False, repr=False)
class OrderKey(Key):
    """The secret order of an encoder's hidden units.

    Attributes:
        order: The order.
        watermarked_hash: SHA-256 of the weights of the release, hex: see `encoders.folder.weights_hash`.
    """

    scheme: ClassVar[str] = "order"
    needs_controls: ClassVar[bool] = False

    order: Order
    watermarked_hash: str

    @property
    def n_queries(self) -> int:
        """Return 0: nothing is asked."""
        return 0

    def queries(self, data: Data) -> Iterator[Batch]:
        """Raise UsageError: nothing is asked."""
        del data
        _weights_only()

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Raise UsageError: answers show nothing of an order."""
        del answers, data
        _weights_only()

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields, the secret included, and no tensors."""
        return {"order": self.order.to_json(), "watermarked_hash": self.watermarked_hash}, {}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> OrderKey:
        """Rebuild the key from what `to_parts` returned. Raise KeyFileError if the parts do not fit together."""
        from sslguard.lineage.order import Order

        if tensors or fields.keys() != {"order", "watermarked_hash"}:
            raise KeyFileError("the key has other parts than a secret order")
        return cls(Order.from_json(fields["order"]), str(fields["watermarked_hash"]))


@dataclass(frozen=True)
class SecretOrder(Scheme):
    """Put the hidden units of an encoder in an order that is drawn from a secret."""

    name: ClassVar[str] = "order"
    key_home: ClassVar[str] = "sslguard.schemes.order:OrderKey"
    fresh_secrets: ClassVar[bool] = True

    def watermark(
        self, clean: Encoder, data: Data, *, secret: Secret, checkpoint: Path | None = None, **loop: Any
    ) -> Watermarked:
        """Return a copy whose units stand in a secret order, and its key. See `Scheme.watermark`.

        Raises:
            UsageError: None of the encoder's units can be put in another order.
        """
        from sslguard.encoders.folder import weights_hash
        from sslguard.lineage.order import released

        del checkpoint, loop
        made = released(clean, secret, data.take(range(min(2, len(data)))))
        if made.order is None:
            raise UsageError(f"{clean.source} cannot be released in a secret order: {made.reason}")
        record = {"made_by": "watermark", "scheme": self.name, "units": made.units, "moved": made.moved}
        encoder = replace(made.encoder, source=f"in a secret order, {clean.source}", record=record)
        return Watermarked(encoder, OrderKey(made.order, weights_hash(encoder.module)))


def _weights_only() -> NoReturn:
    raise UsageError(
        "a secret order is read from weights, not from answers: sslguard lineage ENCODER SUSPECT --key KEY, where "
        "ENCODER is the released encoder"
    )
