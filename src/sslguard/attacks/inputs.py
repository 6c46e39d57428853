"""Wrappings that change each query before the copy sees it. `wrapping.InputNoise` adds noise to queries.

As there, all randomness is a function of the seed and of the item alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor

from sslguard.attacks.base import Wrapping
from sslguard.attacks.wrapping import ask_about, item_rng, pixels_of
from sslguard.data.base import Batch
from sslguard.encoders.base import Embedder
from sslguard.encoders.wrapped import Wrapped, rows
from sslguard.errors import DataError, UsageError
from sslguard.settings import Range, Seed

Image = Literal["blur", "jpeg", "resize", "crop", "colour"]
Text = Literal["case", "typos", "drop"]


@dataclass(frozen=True)
class EditImages(Wrapping):
    """Change every queried image, keeping its size.

    ======  ==================================================================================
    edit    effect of `strength`
    ======  ==================================================================================
    blur    Gaussian blur of that σ, in pixels
    jpeg    compress at that quality, 1 to 100, and read again
    resize  shrink the sides to that share, and enlarge again
    crop    crop the sides to that share, at a place drawn for each image, and enlarge again
    colour  scale brightness and contrast by factors drawn from 1 − strength to 1 + strength
    ======  ==================================================================================

    Attributes:
        edit: Name of the edit, from the table.
        strength: Strength of the edit; positive, within the range of `_IMAGES`.
        seed: Seed of what is drawn, at least 0.
    """

    edit: Image
    strength: float
    seed: Seed = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _, strengths = _IMAGES[self.edit]
        strengths.check(self.strength, f"strength of {self.edit}")

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return `victim` with edited queries: as many images, of the same shapes, dtypes and devices.

        The result's `embed` raises DataError for texts, and for float images with values outside [0, 1].
        """
        answer = partial(self._answer, victim)
        return Wrapped(victim, answer, "images edited", asdict(self), f"{self.edit} {self.strength:g} of images")

    def _answer(self, victim: Embedder, batch: Batch) -> NDArray[np.floating]:
        return ask_about(victim, batch, f"{self.edit} of images", self._edited)

    def _edited(self, image: Tensor) -> Tensor:
        change, _ = _IMAGES[self.edit]
        return change(torch.from_numpy(pixels_of(image)), self.strength, item_rng("edit", self.seed, image))


def _blurred(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:  # noqa: ARG001
    from torchvision.transforms.functional import gaussian_blur

    # The blur pads by reflection, which can be no wider than the image.
    half = min(math.ceil(3 * strength), min(x.shape[1:]) - 1)
    blurred: Tensor = gaussian_blur(x, [2 * half + 1] * 2, [strength] * 2)
    return blurred


def _compressed(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:  # noqa: ARG001
    pixels, file = (x * 255).round().to(torch.uint8).movedim(0, 2).numpy(), io.BytesIO()
    PIL.Image.fromarray(pixels[:, :, 0] if len(x) == 1 else pixels).save(file, "jpeg", quality=round(strength))
    with PIL.Image.open(file) as read:
        return torch.from_numpy(np.array(read)).reshape(pixels.shape).movedim(2, 0).float() / 255


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return nnf.interpolate(x[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]


def _down_and_up(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:  # noqa: ARG001
    height, width = (max(1, round(strength * side)) for side in x.shape[1:])
    return _resized(_resized(x, height, width), *x.shape[1:])


def _cropped(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    height, width = (max(1, round(strength * side)) for side in x.shape[1:])
    top, left = (int(rng.integers(0, a - b + 1)) for a, b in zip(x.shape[1:], (height, width), strict=True))
    return _resized(x[:, top : top + height, left : left + width], *x.shape[1:])


def _coloured(x: Tensor, strength: float, rng: np.random.Generator) -> Tensor:
    brightness, contrast = rng.uniform(1 - strength, 1 + strength, 2)
    x = x * brightness
    return x.mean() + contrast * (x - x.mean())


_IMAGES: dict[str, tuple[Callable[[Tensor, float, np.random.Generator], Tensor], Range]] = {
    "blur": (_blurred, Range(least=0.1, most=32)),
    "jpeg": (_compressed, Range(least=1, most=100)),
    "resize": (_down_and_up, Range(least=0.01, most=1)),
    "crop": (_cropped, Range(least=0.01, most=1)),
    "colour": (_coloured, Range(least=0.01, most=1)),
}
"""How each edit changes an image, and what strengths it takes."""


@dataclass(frozen=True)
class EditTexts(Wrapping):
    """Change some words of every queried text. Words are separated by white space.

    =====  ========================================================================
    edit   effect on each drawn word
    =====  ========================================================================
    case   swap upper and lower case
    typos  swap two neighbouring letters; double a word of one letter
    drop   remove the word; if all words of a text are drawn, the first one stays
    =====  ========================================================================

    Attributes:
        edit: Name of the edit, from the table.
        share: Probability that a word is drawn, in (0, 1].
        seed: Seed of what is drawn, at least 0.
    """

    edit: Text
    share: Annotated[float, Range(above=0, most=1)]
    seed: Seed = 0

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return `victim` with edited queries. The result's `embed` raises DataError for images."""
        answer = partial(self._answer, victim)
        return Wrapped(victim, answer, "texts edited", asdict(self), f"{self.edit} {self.share:g} of words")

    def _answer(self, victim: Embedder, batch: Batch) -> NDArray[np.floating]:
        texts = []
        for text in batch:
            if not isinstance(text, str):
                raise DataError(f"{self.edit} edits texts, not items of type {type(text).__name__}")
            texts.append(self._edited(text))
        return victim.embed(texts)

    def _edited(self, text: str) -> str:
        rng, words = item_rng("edit", self.seed, text), text.split()
        drawn = rng.random(len(words)) < self.share
        if self.edit == "drop":
            kept = [word for word, out in zip(words, drawn, strict=True) if not out]
            return " ".join(kept or words[:1])
        edit = str.swapcase if self.edit == "case" else partial(_mistyped, rng=rng)
        return " ".join(edit(word) if hit else word for word, hit in zip(words, drawn, strict=True))


def _mistyped(word: str, rng: np.random.Generator) -> str:
    if len(word) < 2:
        return word * 2
    k = int(rng.integers(len(word) - 1))
    return word[:k] + word[k + 1] + word[k] + word[k + 2 :]


@dataclass(frozen=True)
class Smoothed(Wrapping):
    """Answer with the mean over several changed copies of each item, such as rewordings or noisy views.

    Attributes:
        by: Wrapping that changes the items. It must have a seed; copy k uses seed + k.
        copies: Number of copies, at least 2.
    """

    by: Wrapping
    copies: Annotated[int, Range(least=2)] = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self.by, "seed", None), int):
            raise UsageError(f"by must be a wrapping with a seed, not {self.by!r:.200}")

    def __call__(self, victim: Embedder) -> Wrapped:
        """Return `victim`, asked `copies` times about each item: answers are float64 (n, m)."""
        by: Any = self.by
        changed = [replace(by, seed=by.seed + k)(victim) for k in range(self.copies)]
        said = f"mean of {self.copies} by {type(by).__name__}"
        width = getattr(changed[0], "dim", None)
        return Wrapped(victim, partial(_mean, changed), "smoothed", asdict(self), said, width)


def _mean(embedders: list[Wrapped], batch: Batch) -> NDArray[np.float64]:
    return np.asarray(np.mean([rows(each, batch).astype(np.float64) for each in embedders], axis=0))
