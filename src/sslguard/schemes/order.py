"""Keys that are read from weights, not from answers: a secret order of hidden units, a secret seed of initial weights.

The scheme "order" only puts hidden units in a secret order: no training, no data, no change of the function. A key of
the kind "initial" is what `pretrain` keeps of the seed that it drew.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from sslguard.crypto.secrets import SECRET_BYTES, Secret
from sslguard.errors import KeyFileError, UsageError
from sslguard.schemes.base import Key, Scheme, Score, Watermarked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from sslguard.data.base import Batch, Data
    from sslguard.encoders.base import Encoder
    from sslguard.lineage.order import Order
    from sslguard.lineage.verdict import LineageVerdict
    from sslguard.lineage.weights import Weights


class WeightsKey(Key):
    """A key that is compared with a suspect's weights. Nothing is asked.

    Attributes:
        needs_release: Whether the comparison takes the released encoder too.
    """

    needs_controls: ClassVar[bool] = False
    needs_release: ClassVar[bool] = False

    @property
    def n_queries(self) -> int:
        """Return 0: nothing is asked."""
        return 0

    def queries(self, data: Data) -> Iterator[Batch]:
        """Raise UsageError: nothing is asked."""
        del data
        _weights_only()

    def statistic(self, answers: Iterable[NDArray[np.floating]], data: Data) -> Score:
        """Raise UsageError: answers show nothing of weights."""
        del answers, data
        _weights_only()

    @abstractmethod
    def compare(self, suspect: Weights, released: Weights | None, *, alpha: float, n_claims: int) -> LineageVerdict:
        """Compare a suspect's weights.

        Args:
            suspect: The suspect's weights.
            released: Weights of the encoder that the owner released, where `needs_release`.
            alpha: Level of the decision, in (0, 1), shared among `n_claims`.
            n_claims: Number of claims.

        Raises:
            RefusedError: The networks have no units that can be compared, or too few for this level.
            KeyFileError: `released` does not belong to this key.
            EncoderError: A weight cannot be read.
        """


@dataclass(frozen=True, eq=False, repr=False)
class OrderKey(WeightsKey):
    """The secret order of an encoder's hidden units.

    Attributes:
        order: The order.
        watermarked_hash: SHA-256 of the weights of the release, hex: see `encoders.folder.weights_hash`.
    """

    scheme: ClassVar[str] = "order"
    needs_release: ClassVar[bool] = True

    order: Order
    watermarked_hash: str

    def compare(self, suspect: Weights, released: Weights | None, *, alpha: float, n_claims: int) -> LineageVerdict:
        """Compare a suspect's weights with the release, in the groups of the secret order. See `WeightsKey.compare`."""
        from sslguard.lineage.verdict import compare

        if released is None:
            raise UsageError("a secret order is compared between a suspect and the released encoder: give both")
        return compare(released, suspect, order=self.order, alpha=alpha, n_claims=n_claims)

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


@dataclass(frozen=True, eq=False, repr=False)
class InitialKey(WeightsKey):
    """The secret seed of an encoder's initial weights.

    Attributes:
        secret: What `training.pretraining.pretrain` was given as seed.
        architecture: Description of the network: see `encoders.rebuild`.
    """

    scheme: ClassVar[str] = "initial"

    secret: Secret
    architecture: dict[str, Any]

    def weights(self, *, again: bool = False) -> Weights:
        """Return the weights before training, drawn again.

        Args:
            again: Draw them from another seed.

        Raises:
            KeyFileError: The description is of no network.
        """
        from sslguard.encoders.rebuild import build
        from sslguard.lineage.weights import open_weights
        from sslguard.training.pretraining import initial_seed

        try:
            secret = self.secret.derive("another draw") if again else self.secret
            module, _ = build(self.architecture, seed=initial_seed(secret))
        except UsageError as error:
            raise KeyFileError(f"the key's initial weights cannot be drawn: {error}") from error
        return replace(open_weights(module), name="initial weights")

    def compare(self, suspect: Weights, released: Weights | None, *, alpha: float, n_claims: int) -> LineageVerdict:
        """Compare a suspect's weights with the initial ones. See `WeightsKey.compare`."""
        from sslguard.lineage.verdict import compare_initial

        del released
        return compare_initial(self.weights(), self.weights(again=True), suspect, alpha=alpha, n_claims=n_claims)

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return JSON fields, the secret included, and no tensors."""
        return {"secret": self.secret.reveal().hex(), "architecture": self.architecture}, {}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> InitialKey:
        """Rebuild the key from what `to_parts` returned. Raise KeyFileError if the parts do not fit together."""
        try:
            secret, architecture = bytes.fromhex(fields["secret"]), fields["architecture"]
        except (KeyError, TypeError, ValueError):
            raise KeyFileError("the key lacks the secret seed of initial weights, or their network") from None
        if tensors or len(fields) != 2 or len(secret) != SECRET_BYTES or not isinstance(architecture, dict):
            raise KeyFileError("the key has other parts than a secret seed and a network")
        return cls(Secret(secret), architecture)


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
        "this key is compared with weights, not with answers: sslguard lineage ENCODER SUSPECT --key KEY for a secret "
        "order, where ENCODER is the released encoder, and --initial KEY for a secret seed"
    )
