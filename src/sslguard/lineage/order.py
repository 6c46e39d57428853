"""A secret order of hidden units: the mark of an encoder whose units were put in a random order before its release.

The order of each group is drawn from a stream of the key that is bound to the weights in their own order, which nobody
else ever sees. Whatever was not derived from the release is independent of it, whatever seeds, ancestors or data it
shares with the encoder. The function of the encoder does not change, apart from rounding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sslguard.crypto.secrets import SECRET_BYTES, Secret
from sslguard.data.base import Batch
from sslguard.encoders.base import Encoder
from sslguard.errors import DataError, KeyFileError, RefusedError
from sslguard.lineage.groups import find_groups
from sslguard.lineage.matching import Places, reordered
from sslguard.lineage.parts import MAX_GROUPS, Group
from sslguard.lineage.weights import Weights, open_weights

CLOSE = 5e-5
"""How far outputs may move, relative to their length: rounding moves them by 1e-6, a lost bias by far more."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False, repr=False)
class Order:
    """What the owner keeps of a secret order.

    Attributes:
        secret: Secret that the order is drawn from.
        own_hash: SHA-256, hex, of the weights in their own order: see `Weights.digest`. The order is bound to it, so
            that no order can be chosen to turn these weights into given ones.
        groups: Names of the groups that were put in order.
    """

    secret: Secret
    own_hash: str
    groups: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the hash and the names."""
        if not _SHA256.fullmatch(self.own_hash) or not 1 <= len(self.groups) <= MAX_GROUPS:
            raise KeyFileError("the key's secret order is damaged: it lacks the hash of the weights, or groups")

    def of(self, group: Group) -> Places:
        """Return the order of a group, (n,): the unit that stands in each place of the release."""
        stream = self.secret.stream(f"order of the units of {group.name}", bytes.fromhex(self.own_hash))
        return stream.permutation(group.size)

    def chosen(self, weights: Weights) -> list[Group]:
        """Return the groups of a network that were put in order, in the order of the test.

        Raises:
            KeyFileError: The network lacks one.
        """
        found = {group.name: group for group in find_groups(weights)}
        if missing := [name for name in self.groups if name not in found]:
            raise KeyFileError(f"{weights.name} lacks the units of {missing[0]:.80}, which this key put in order")
        return [group for name, group in found.items() if name in set(self.groups)]

    def check(self, weights: Weights) -> list[Group]:
        """Return the groups that were put in order, after a check that these weights are the release.

        The order is undone, and the hash of what results compared with that in the key.

        Raises:
            KeyFileError: They are not.
        """
        groups = self.chosen(weights)
        back = {group.name: np.argsort(self.of(group)) for group in groups}

        def undone(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
            for group in groups:
                values = reordered(group, {name: values}, back[group.name])[name]
            return values

        if weights.digest(undone) != self.own_hash:
            raise KeyFileError(
                f"{weights.name} is not the encoder that was released with this key: give the folder `encoder` that "
                "was written beside it"
            )
        return groups

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, the secret included."""
        return {"secret": self.secret.reveal().hex(), "own_hash": self.own_hash, "groups": list(self.groups)}

    @classmethod
    def from_json(cls, found: Any) -> Order:
        """Return the order that `to_json` told of. Raise KeyFileError for anything else."""
        try:
            secret, own_hash, groups = bytes.fromhex(found["secret"]), found["own_hash"], found["groups"]
            if len(secret) != SECRET_BYTES or not isinstance(groups, list):
                raise ValueError
            if not all(isinstance(name, str) for name in (own_hash, *groups)):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            raise KeyFileError("the key's secret order is damaged") from None
        return cls(Secret(secret), own_hash, tuple(groups))

    def __repr__(self) -> str:
        """Return a text without the secret."""
        return f"Order({len(self.groups)} groups)"


@dataclass(frozen=True)
class Release:
    """An encoder for release.

    Attributes:
        encoder: Copy whose hidden units stand in the secret order; the same as before where `order` is None.
        order: What the owner keeps; None where no units can be put in another order.
        reason: Why there is none, in words; "" where there is one.
        units: Number of units that were put in order.
        moved: How far the outputs moved, relative to their length.
    """

    encoder: Encoder
    order: Order | None
    reason: str = ""
    units: int = 0
    moved: float = 0.0


def released(encoder: Encoder, secret: Secret, items: Batch) -> Release:
    """Return a copy of an encoder whose hidden units stand in an order drawn from a secret.

    Groups whose order changes what the encoder answers to `items` are left as they are: their units have parts that are
    not known here.

    Args:
        encoder: Encoder in its own order. It is left as it is, and must never be published.
        secret: Master secret of the key.
        items: A few items, to compare the answers.
    """
    weights = open_weights(encoder)
    whole = [group for group in find_groups(weights) if group.whole]
    if not whole:
        return Release(encoder, None, "none of its units are known to be movable without a change of the function")
    own_hash, before = weights.digest(), encoder.embed(items)
    order = Order(secret.derive("secret order"), own_hash, tuple(group.name for group in whole))
    made, moved = _in_order(encoder, order, whole, items, before)
    if moved > CLOSE:
        whole = [group for group in whole if _in_order(encoder, order, [group], items, before)[1] <= CLOSE]
        if not whole:
            return Release(encoder, None, "another order of its units changes what it answers")
        order = replace(order, groups=tuple(group.name for group in whole))
        made, moved = _in_order(encoder, order, whole, items, before)
        if moved > CLOSE:
            return Release(encoder, None, "another order of its units changes what it answers")
    return Release(made, order, units=sum(group.size for group in whole), moved=moved)


def _in_order(
    encoder: Encoder, order: Order, groups: Sequence[Group], items: Batch, before: NDArray[np.floating]
) -> tuple[Encoder, float]:
    """Return a copy with these groups in order, and how far its answers are from those before."""
    made = encoder.clone()
    state: Mapping[str, torch.Tensor] = made.module.state_dict()
    with torch.no_grad():
        for group in groups:
            units = order.of(group)
            for part in group.parts:
                tensor, moved = state[part.tensor], torch.from_numpy(part.places(units))
                tensor.copy_(tensor.index_select(part.axis, moved.to(tensor.device)))
    made.module.eval()
    after = made.embed(items)
    length = float(np.linalg.norm(before))
    return made, float(np.linalg.norm(after - before)) / (length or 1.0)


def sample(encoder: Encoder) -> Batch:
    """Return two items that an encoder takes, drawn from a fixed seed.

    Raises:
        RefusedError: It is not known what this encoder takes: give items.
    """
    from sslguard.encoders.own import Items
    from sslguard.encoders.preprocess import ImagePreprocess

    preprocess = encoder.preprocess
    generator = torch.Generator().manual_seed(0)
    if isinstance(preprocess, ImagePreprocess):
        sides = (2, preprocess.channels, preprocess.height, preprocess.width)
        return torch.randint(0, 256, sides, dtype=torch.uint8, generator=generator)
    if type(preprocess) is Items and preprocess.shape:
        return torch.rand((2, *preprocess.shape), generator=generator)
    try:
        texts = ["An encoder reads this sentence.", "Another one, of other words and length, for a comparison"]
        preprocess.prepare(texts)
    except DataError:
        raise RefusedError(f"it is not known what {encoder.source} takes: give some of its items with --data") from None
    return texts
