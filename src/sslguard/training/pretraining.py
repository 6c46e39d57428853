"""Self-supervised pre-training by SimCLR, MoCo v2 or BYOL, of any architecture for images.

Sources: SimCLR, Chen et al. 2020, eq. 1; MoCo v2, Chen et al. 2020, after He et al. 2020, eq. 1; BYOL, Grill et al.
2020, eq. 2. Deviations: networks, batches and schedules are of this project's size; AdamW instead of LARS or SGD;
MoCo's key encoder normalises its batch in shuffled groups on one device, where the original shuffles between devices.
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.load import new_text_encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.words import NETWORKS, HashedWords
from sslguard.errors import UsageError
from sslguard.training.base import History, Loop, Task, isolated_rng
from sslguard.training.loop import run
from sslguard.training.recipes import Pretraining

# Fewest images in a micro-batch: SimCLR needs a negative beside the positive, MoCo two images in each of two groups.
_SMALLEST: dict[str, int] = {"simclr": 2, "moco": 4, "byol": 1}


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return SimCLR's loss of two batches of projections (n, d): scalar, the mean over all 2n views."""
    views = nnf.normalize(torch.cat([first, second]), dim=1)
    similarity = views @ views.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    n = len(first)
    positives = torch.arange(2 * n, device=views.device).roll(n)
    return nnf.cross_entropy(similarity, positives)


def queue_loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return MoCo's InfoNCE loss: scalar. Rows are normalised here.

    Args:
        queries: Projections of the first views, (n, d).
        keys: Projections of the second views by the key encoder, (n, d).
        queue: Keys of past batches, (m, d): the negatives.
        temperature: Divisor of the cosines, positive.
    """
    q, k, past = (nnf.normalize(t, dim=1) for t in (queries, keys, queue))
    logits = torch.cat([(q * k).sum(1, keepdim=True), q @ past.T], dim=1) / temperature
    return nnf.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return BYOL's loss in one direction, 2 − 2·cos, as the mean over the batch: scalar in [0, 4]."""
    return (2 - 2 * nnf.cosine_similarity(predictions, targets, dim=1)).mean()


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out)
    )


class _Queue(nn.Module):
    """MoCo's past keys, newest first: (length, width), rows of norm 1."""

    keys: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", nnf.normalize(torch.randn(length, width), dim=1))


class PretrainingTask(Task):
    """Pre-training of an encoder by one recipe, in place."""

    def __init__(self, recipe: Pretraining, encoder: Encoder, data: Data, *, seed: int) -> None:
        if not isinstance(encoder.preprocess, ImagePreprocess):
            raise UsageError("pre-training makes views of images, and this encoder takes texts: give an image encoder")
        self.recipe, self.encoder, self.data = recipe, encoder, data
        self.n_items = len(data)
        self.identity = {
            "task": "pretrain",
            "recipe": asdict(recipe),
            "architecture": encoder.architecture,
            "data": data.identity(),
            "start": weights_hash(encoder.module),
        }
        self._augment = recipe.views.build(encoder.preprocess.height, encoder.preprocess.width)
        hidden = 2 * encoder.dim
        with isolated_rng(seed, 1):
            projector = _mlp(encoder.dim, hidden, recipe.projection)
            trained: dict[str, nn.Module] = {"encoder": encoder.module, "projector": projector}
            if recipe.method == "byol":
                trained["predictor"] = _mlp(recipe.projection, hidden, recipe.projection)
            self.modules = dict(trained)
            if recipe.method != "simclr":
                self.modules["slow_encoder"] = copy.deepcopy(encoder.module)
                self.modules["slow_projector"] = copy.deepcopy(projector)
            if recipe.method == "moco":
                self._queue = _Queue(recipe.queue, recipe.projection)
                self.modules["queue"] = self._queue
        parameters = [p for module in trained.values() for p in module.parameters()]
        self.optimizers = {
            "all": torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        }
        self._momentum = recipe.momentum

    def load(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Return two views of each image, under "first" and "second": (n, C, H, W). See `Task.load`.

        Raises:
            UsageError: The method needs more images at a time.
        """
        smallest = _SMALLEST[self.recipe.method]
        if len(indices) < smallest:
            raise UsageError(
                f"{self.recipe.method} needs at least {smallest} images at a time, not {len(indices)}: raise "
                "batch_size, or lower accumulate or devices"
            )
        images = self.encoder.prepare(self.data.take(indices))
        return {"first": self._augment(images), "second": self._augment(images)}

    def loss(self, microbatch: dict[str, Tensor]) -> Tensor:
        """Return the method's loss."""
        losses = {"simclr": self._simclr, "moco": self._moco, "byol": self._byol}
        return losses[self.recipe.method](microbatch)

    def begin_step(self, step: int, steps: int) -> None:
        """Set the learning rate, BYOL's momentum, and all networks to training mode."""
        self.anneal(step, steps)
        for module in self.modules.values():
            module.train()
        if self.recipe.method == "byol":
            self._momentum = 1 - (1 - self.recipe.momentum) * 0.5 * (1 + float(np.cos(np.pi * step / steps)))

    def carry(self, microbatch: dict[str, Tensor]) -> Tensor | None:
        """Return the keys of a micro-batch, (n, projection), for MoCo's queue; None for other methods."""
        return microbatch.get("keys")

    def end_step(self, step: int, carried: Tensor | None) -> None:  # noqa: ARG002
        """Update the momentum networks, and put the carried keys at the front of MoCo's queue."""
        if self.recipe.method == "simclr":
            return
        pairs = (("encoder", "slow_encoder"), ("projector", "slow_projector"))
        with torch.no_grad():
            for fast, slow in pairs:
                for p, s in zip(self.modules[fast].parameters(), self.modules[slow].parameters(), strict=True):
                    s.lerp_(p, 1 - self._momentum)
            if carried is not None:
                keys = self._queue.keys
                self._queue.keys = torch.cat([carried.to(keys.dtype), keys])[: len(keys)]

    def _project(self, images: Tensor, prefix: str = "") -> Tensor:
        features = replace(self.encoder, module=self.modules[f"{prefix}encoder"]).forward(images)
        return self.modules[f"{prefix}projector"](features)

    def _simclr(self, batch: dict[str, Tensor]) -> Tensor:
        n = len(batch["first"])
        both = self._project(torch.cat([batch["first"], batch["second"]]))
        return nt_xent(both[:n], both[n:], self.recipe.temperature)

    def _moco(self, batch: dict[str, Tensor]) -> Tensor:
        queries = self._project(batch["first"])
        with torch.no_grad():
            order = torch.randperm(len(queries), device=queries.device)
            # Shuffle, so that keys are normalised in other groups: batch statistics must not give the positive away.
            shuffled = torch.cat([self._project(g, "slow_") for g in batch["second"][order].chunk(2)])
            keys = nnf.normalize(shuffled[order.argsort()], dim=1)
        batch["keys"] = keys
        return queue_loss(queries, keys, self._queue.keys, self.recipe.temperature)

    def _byol(self, batch: dict[str, Tensor]) -> Tensor:
        n = len(batch["first"])
        both = torch.cat([batch["first"], batch["second"]])
        predictions = self.modules["predictor"](self._project(both))
        with torch.no_grad():
            targets = self._project(both, "slow_")
        return (byol_loss(predictions[:n], targets[n:]) + byol_loss(predictions[n:], targets[:n])) / 2


def new_encoder(
    architecture: str, data: Data, *, seed: int | Secret, size: int | None = None, linear: int | None = None
) -> Encoder:
    """Return a freshly initialised encoder for the items of `data`.

    Args:
        architecture: Name of the network; see `encoders.architectures`. "torchvision:resnet18@nopool" leaves out a
            ResNet's first max-pool.
        data: Images or texts. The encoder takes images at the size and channels of the first one.
        seed: Seed of the initial weights, a number or a secret.
        size: For images, height and width in pixels in place of the first image's. For texts, the largest number of
            tokens.
        linear: Width of a linear layer put on top; None puts none.

    Raises:
        UsageError: The data does not hold what the architecture takes.
    """
    architecture, _, option = architecture.partition("@")
    if option not in ("", "nopool"):
        raise UsageError(f"a network's only option is nopool, not {option!r:.80}")
    sample = data.take([0])
    item = sample[0]
    if isinstance(item, str):
        return new_text_encoder(architecture, seed=seed, linear=linear, max_length=size or HashedWords.max_length)
    if not isinstance(item, Tensor) or item.dim() != 3:
        raise UsageError(f"{data.spec} does not hold images")
    if architecture in NETWORKS:
        raise UsageError(f"{architecture} takes texts, and {data.spec} holds images: choose a network for images")
    channels, height, width = (int(v) for v in item.shape)
    if architecture.partition(":")[0] in ("timm", "torchvision"):
        channels = 3
    description: dict[str, Any] = {"backbone": architecture, "channels": channels}
    if linear is not None:
        description["linear"] = linear
    if option:
        description["maxpool"] = False
    module, dim = build(description, seed=seed)
    preprocess = ImagePreprocess(
        height=size or height,
        width=size or width,
        channels=channels,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
    )
    said = "secret" if isinstance(seed, Secret) else seed
    return Encoder(module, preprocess, dim, description, source=f"random:{architecture}:{said}")


def pretrain(
    recipe: Pretraining,
    data: Data,
    *,
    architecture: str = "resnet-small",
    seed: int | Secret = 0,
    size: int | None = None,
    **loop_settings: Any,
) -> tuple[Encoder, History]:
    """Train an encoder from scratch on unlabelled data.

    Args:
        recipe: Method, steps and views.
        data: Images to train on; labels are not used.
        architecture: Name of the network; see `encoders.architectures`.
        seed: Seed of all randomness. Of a secret, initial weights take one stream, order and views another; the record
            then says "secret".
        size: Height and width in pixels; None takes those of the first image.
        loop_settings: Settings of `training.base.Loop`, such as `checkpoint` and `devices`.

    Returns:
        The encoder in evaluation mode, its record filled in, and the history of losses.
    """
    if not isinstance(seed, Secret):
        start = new_encoder(architecture, data, seed=seed, size=size)
        return train_encoder(recipe, start, data, seed=seed, **loop_settings)
    start = new_encoder(architecture, data, seed=initial_seed(seed), size=size)
    encoder, history = train_encoder(
        recipe, start, data, seed=seed.stream("order and views").integer(), **loop_settings
    )
    return replace(encoder, record={**encoder.record, "seed": "secret"}), history


def initial_seed(secret: Secret) -> Secret:
    """Return the seed of the initial weights of a pre-training whose seed is a secret."""
    return secret.derive("initial weights")


def train_encoder(
    recipe: Pretraining, encoder: Encoder, data: Data, *, seed: int, title: str | None = None, **loop_settings: Any
) -> tuple[Encoder, History]:
    """Pre-train `encoder` from its present weights, in place.

    Args:
        recipe: Method, steps and views.
        encoder: Image encoder to start from.
        data: Images to train on; labels are not used.
        seed: Seed of all randomness.
        title: Label of the progress bar; None names the method.
        loop_settings: Settings of `training.base.Loop`, such as `checkpoint` and `devices`.

    Returns:
        The encoder in evaluation mode, its record filled in, and the history of losses.
    """
    task = PretrainingTask(recipe, encoder, data, seed=seed)
    title = title or f"pretrain {recipe.method}"
    history = run(task, Loop(recipe.steps, recipe.batch_size, seed, title=title, **loop_settings))
    encoder.module.eval()
    record = {
        "made_by": f"pretrain {recipe.method}",
        "recipe": asdict(recipe),
        "data": data.spec,
        "seed": seed,
        **history.times(),
        "final_loss": history.losses["loss"][-1],
        "finished": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    return replace(encoder, source=f"{recipe.method} on {data.spec}", record=record), history
