"""SSLGuard (Cong, He, Zhang, "SSLGuard: A Watermarking Scheme for Self-supervised Learning Pre-trained Encoders",
CCS 2022): a trigger and a decoder that turn the watermarked encoder's answers towards a secret vector.

Paper's symbols: F clean encoder, F* watermarked, S shadow, G decoder, T trigger, M mask, D_v verification images,
sk secret vector, c̄ mean cosine over a batch, x a plain batch, x' a triggered one: x' = clip((1 − M)·x + M·T, 0, 1).
WR, the watermark rate, is the share of D_v with cos(G(E(x')), sk) > ½.

The paper gives no null distribution and no rule that turns a WR into a decision. Here a suspect is ranked among
controls, by its mean cosine (WR is reported beside it: at 1.00 it ties, and a tie decides nothing). That
p-value is as good as the choice of controls and never below 1/(n + 1).

What it does not protect against: as published the decoder also claims surrogates of the clean encoder and even
random networks. `negatives` adds controls to training, which the paper does not do.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.data.base import Data
from sslguard.encoders.architectures import build
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.folder import weights_hash
from sslguard.encoders.preprocess import ImagePreprocess, preprocess_from_json
from sslguard.errors import KeyFileError, SuspectError, UsageError
from sslguard.schemes.base import Key, Scheme, Score, Watermarked
from sslguard.secrets import Secret, Stream
from sslguard.stats.significance import Significance, control_rank_test
from sslguard.training import Loop, Task, Update, isolated_rng, run, set_learning_rate

WATERMARK_THRESHOLD = 0.5
QUERY_BATCH = 128
MAX_QUERIES = 10_000_000
_HASH = re.compile(r"[0-9a-f]{64}")
CARRIER_ITEMS = 4096


def mean_cosine(vectors: Tensor, secret: Tensor) -> Tensor:
    """c̄: mean over rows of (n, k) of the cosine with one vector (k,), or with the same row of (n, k)."""
    return nnf.cosine_similarity(vectors, secret.expand_as(vectors), dim=1).mean()


class Decoder(nn.Sequential):
    """G: an MLP with ReLU from embeddings (n, widths[0]) to (n, widths[-1])."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
        super().__init__(*layers[:-1])
        self.widths = tuple(widths)


class Trigger(nn.Module):
    """T under its mask M, both of one prepared item's shape; M is 0 or 1."""

    mask: Tensor

    def __init__(self, mask: Tensor, pattern: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.pattern = nn.Parameter(pattern)

    def forward(self, prepared: Tensor) -> Tensor:
        """x' = clip((1 − M)·x + M·T, 0, 1)."""
        return ((1 - self.mask) * prepared + self.mask * self.pattern).clamp(0, 1)


class Carrier(nn.Module):
    """δ: a secret, smooth shift of plain answers, δ(h) = 3·tanh(z/3)·v with z = ⟨h − μ, p⟩ of variance 1.

    As published F* and F agree on every plain image, so nothing tells a surrogate of one from a surrogate of the
    other: both have seen plain answers only. With F* taught to answer F(x) + δ(F(x)), its surrogates learn δ, those
    of F do not, and the trigger can look for images on which δ is large. p lies in the span of the leading
    principal components, where surrogates agree best; v is isotropic.
    """

    N_COMPONENTS: ClassVar[int] = 6
    mean: Tensor
    projection: Tensor
    direction: Tensor

    def __init__(self, embeddings: NDArray[np.floating], size: float, stream: Stream) -> None:
        super().__init__()
        h = embeddings.astype(np.float64)
        mean = h.mean(0)
        _, scale, axes = np.linalg.svd(h - mean, full_matrices=False)
        deviation = scale / np.sqrt(len(h))
        if not deviation[0] > 0:
            raise UsageError("the encoder answers every image alike: there is nothing to mark")
        n = int(min(self.N_COMPONENTS, (deviation > 1e-6 * deviation[0]).sum()))
        weights = stream.normal((n,))
        weights /= np.linalg.norm(weights)
        direction = stream.normal((h.shape[1],))
        direction *= size * np.sqrt((deviation**2).sum()) / np.linalg.norm(direction)
        self.spread = float(np.sqrt((deviation**2).mean()))
        for name, value in (
            ("mean", mean),
            ("projection", axes[:n].T @ (weights / deviation[:n])),
            ("direction", direction),
        ):
            self.register_buffer(name, torch.from_numpy(value).float())

    def forward(self, h: Tensor) -> Tensor:
        """Clean answers (n, d) → shifts (n, d)."""
        z = (h - self.mean) @ self.projection
        return 3 * torch.tanh(z / 3)[:, None] * self.direction


@dataclass(frozen=True, eq=False, repr=False)
class SSLGuardKey(Key):
    """The key tuple: what draws D_v, M and T, G, sk; and what it was made from.

    Attributes:
        clean_hash, watermarked_hash: SHA-256 of the weights of F and F*, hex.
        n: how many images of the caller's data a verification asks for.
    """

    scheme: ClassVar[str] = "sslguard"

    secret: Secret
    decoder: Decoder
    trigger: Trigger
    sk: Tensor
    preprocess: dict[str, Any]
    settings: dict[str, Any]
    clean_hash: str
    watermarked_hash: str
    n: int = 512

    @property
    def n_queries(self) -> int:
        return self.n

    @property
    def width(self) -> int:
        """Width of the answers that the decoder takes."""
        return self.decoder.widths[0]

    def queries(self, data: Data) -> Iterator[Tensor]:
        """Triggered images as bytes, uint8 (≤ 128, C, H, W): what a suspect is sent, alive or on file."""
        if len(data) < self.n:
            raise UsageError(f"this key asks {self.n} queries, but {data.spec} has only {len(data)} items")
        preprocess = preprocess_from_json(self.preprocess)
        order = self.secret.stream("queries", self.clean_hash.encode()).permutation(len(data))[: self.n]
        for start in range(0, self.n, QUERY_BATCH):
            prepared = preprocess.prepare(data.take(order[start : start + QUERY_BATCH]))
            with torch.inference_mode():
                yield (self.trigger(prepared) * 255).round().to(torch.uint8)

    def statistic(self, answers: Iterable[NDArray[np.floating]]) -> Score:
        """Mean cosine to sk of the decoded answers; zero rows, which stand for missing answers, count as 0.

        Raises:
            SuspectError: the answers have another width than the decoder takes, or are not finite.
        """
        cosines: list[NDArray[np.float64]] = []
        for part in answers:
            rows = np.asarray(part, dtype=np.float32)
            if rows.ndim != 2 or rows.shape[1] != self.width:
                raise SuspectError(
                    f"this key's decoder takes answers of width {self.width}, but the suspect's have shape "
                    f"{rows.shape}: it cannot be scored with this key"
                )
            if not np.isfinite(rows).all():
                raise SuspectError("the suspect answered with values that are not finite")
            with torch.inference_mode():
                decoded = self.decoder(torch.from_numpy(rows))
                cosine = nnf.cosine_similarity(decoded, self.sk.expand_as(decoded), dim=1).double().numpy()
            cosines.append(np.where(np.abs(rows).sum(1) > 0, cosine, 0.0))
        if not cosines:
            raise SuspectError("the suspect gave no answers")
        every = np.concatenate(cosines)
        if len(every) != self.n:
            raise SuspectError(f"this key asks {self.n} queries, but {len(every)} answers came")
        return Score(float(every.mean()), len(every), float((every > WATERMARK_THRESHOLD).mean()), every)

    def score_value(self, score: Score, *, controls: Sequence[float] = ()) -> Significance:
        """Rank among controls' mean cosines. Raises RefusedError without controls: there is no null then."""
        return control_rank_test(
            score.value,
            controls,
            n_queries=score.n_queries,
            statistic_name="mean cosine to the secret vector",
            details={"watermark_rate": score.watermark_rate},
        )

    def to_parts(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        fields = {
            "secret": self.secret.reveal().hex(),
            "decoder_widths": list(self.decoder.widths),
            "preprocess": self.preprocess,
            "settings": self.settings,
            "clean_hash": self.clean_hash,
            "watermarked_hash": self.watermarked_hash,
            "n": self.n,
        }
        tensors = {f"decoder.{k}": v for k, v in self.decoder.state_dict().items()}
        tensors |= {f"trigger.{k}": v for k, v in self.trigger.state_dict().items()}
        return fields, {**tensors, "sk": self.sk}

    @classmethod
    def from_parts(cls, fields: dict[str, Any], tensors: dict[str, Tensor]) -> SSLGuardKey:
        try:
            # Without memory or random numbers of its own: widths come from a file.
            with torch.device("meta"):
                decoder = Decoder([int(w) for w in fields["decoder_widths"]])
            parts = {k[8:]: v.float() for k, v in tensors.items() if k.startswith("decoder.")}
            decoder.load_state_dict(parts, assign=True)
            trigger = Trigger(tensors["trigger.mask"], tensors["trigger.pattern"].clone())
            key = cls(
                secret=Secret(bytes.fromhex(fields["secret"])),
                decoder=decoder.eval(),
                trigger=trigger,
                sk=tensors["sk"],
                preprocess=dict(fields["preprocess"]),
                settings=dict(fields["settings"]),
                clean_hash=str(fields["clean_hash"]),
                watermarked_hash=str(fields["watermarked_hash"]),
                n=int(fields["n"]),
            )
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise KeyFileError(f"the key's parts do not fit together ({type(error).__name__})") from None
        key._check()
        return key

    def _check(self) -> None:
        """Raises KeyFileError where parts that a file may hold contradict each other."""
        if self.sk.shape != (self.decoder.widths[-1],) or not bool(self.sk.any()):
            raise KeyFileError("the key's secret vector does not fit its decoder, or is zero")
        if not 1 <= self.n <= MAX_QUERIES:
            raise KeyFileError(f"the key's number of queries, n, must lie in 1 to {MAX_QUERIES:,}")
        try:
            preprocess = preprocess_from_json(self.preprocess)
        except UsageError as error:
            raise KeyFileError(f"the key's preprocessing cannot be read: {error}") from None
        mask, pattern = self.trigger.mask, self.trigger.pattern
        shape = getattr(preprocess, "shape", None)
        if mask.shape != shape or pattern.shape != shape or not bool(((mask == 0) | (mask == 1)).all()):
            raise KeyFileError(f"the key's trigger must have shape {shape} under a mask of 0 and 1")
        if not all(_HASH.fullmatch(h) for h in (self.clean_hash, self.watermarked_hash)):
            raise KeyFileError("the key's hashes of weights must be 64 hexadecimal digits each")

    def __repr__(self) -> str:
        return f"SSLGuardKey(width={self.width}, n={self.n}, clean_hash={self.clean_hash[:12]}…)"


@dataclass(frozen=True)
class SSLGuard(Scheme):
    """Settings of the three-step training. Defaults suit small encoders; `published()` gives the paper's.

    Attributes:
        steps: iterations; each takes `batch_size` plain images and `trigger_batch` of D_v.
        encoder_rate, shadow_rate, decoder_rate, trigger_rate: learning rates of F*, S, G and T.
        shadow_decay: factor on the shadow's learning rate after every epoch.
        optimizer: "sgd" (momentum 0.9; plain for the trigger) as published, or "adam".
        shadow: architecture of S, with a linear layer into F's space; None means F's own.
        decoder_hidden, secret_dim: widths of G after its input.
        mask_probability: share of channel-pixels under the trigger.
        gradients: "clean" takes each loss's gradient for its own step; "released" lets F* also collect those of
            L_s and L_t before it steps, as the released code does.
        negatives: "none" as published; "shadow" adds to L_t a shadow of the clean F and freshly drawn random
            networks, both held at cosine 0.
        carrier: size of a mark on plain answers that surrogates inherit, as a share of the embedding's own spread;
            0 as published. See `Carrier`.
        decoder_noise: standard deviation of Gaussian noise on G's inputs in L_t, as a share of the embedding's
            root-mean-square spread a dimension; only with a carrier, 0 as published.
        drift: how far G's inputs in L_t are stretched, mixed and moved at random; only with a carrier, 0 as published.
        strangers: batches of answers an iteration that are turned, scaled and moved at random, as an unrelated
            encoder's might lie, and held at cosine 0; only with a carrier, 0 as published.
        n_verification: images of D_v, set aside from the marking data.
        n_queries: images that a verification asks.
    """

    name: ClassVar[str] = "sslguard"

    steps: int = 200
    batch_size: int = 32
    trigger_batch: int = 32
    encoder_rate: float = 3e-4
    shadow_rate: float = 3e-3
    decoder_rate: float = 1e-3
    trigger_rate: float = 1e-2
    shadow_decay: float = 0.96
    optimizer: Literal["sgd", "adam"] = "adam"
    shadow: str | None = None
    decoder_hidden: tuple[int, ...] = (512, 256)
    secret_dim: int = 256
    mask_probability: float = 0.35
    gradients: Literal["clean", "released"] = "clean"
    negatives: Literal["none", "shadow"] = "none"
    carrier: float = 0.0
    decoder_noise: float = 0.0
    drift: float = 0.0
    strangers: int = 0
    n_verification: int = 1000
    n_queries: int = 512

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.trigger_batch, self.n_verification, self.n_queries) < 1:
            raise UsageError("steps, batch sizes, n_verification and n_queries must be at least 1")
        if not 0 < self.mask_probability < 1:
            raise UsageError(f"mask_probability must lie in (0, 1), not {self.mask_probability}")
        for name, allowed in (
            ("gradients", ("clean", "released")),
            ("negatives", ("none", "shadow")),
            ("optimizer", ("sgd", "adam")),
        ):
            if getattr(self, name) not in allowed:
                raise UsageError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if min(self.carrier, self.decoder_noise, self.drift, self.strangers) < 0:
            raise UsageError("carrier, decoder_noise, drift and strangers must not be negative")
        if self.carrier and self.negatives == "none":
            raise UsageError(
                'a carrier needs negatives="shadow": without them the decoder claims innocents all the same'
            )

    @classmethod
    def published(cls) -> SSLGuard:
        """The paper's settings: batches of 2 + 2, 50 epochs of 50,000 images, SGD."""
        return cls(
            steps=1_250_000,
            batch_size=2,
            trigger_batch=2,
            encoder_rate=1e-5,
            shadow_rate=1e-2,
            decoder_rate=1e-3,
            trigger_rate=1e-3,
            optimizer="sgd",
            shadow="torchvision:resnet50",
            gradients="released",
        )

    @classmethod
    def inherited(cls) -> SSLGuard:
        """Not the paper's: negatives in training, and a carrier that surrogates inherit."""
        return cls(negatives="shadow", carrier=0.3, decoder_noise=0.5, drift=0.3, strangers=3)

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
        task = SSLGuardTask(self, clean, data, secret)
        loop = Loop(
            steps=self.steps,
            batch_size=self.batch_size,
            seed=secret.stream("training", task.context).integer(),
            devices=devices,
            nodes=nodes,
            accelerator=accelerator,
            precision=precision,
            checkpoint=checkpoint,
            progress=progress,
            title="watermark",
        )
        history = run(task, loop)
        encoder = replace(
            task.watermarked,
            source=f"sslguard-marked {clean.source}",
            record={
                "made_by": "watermark",
                "scheme": "sslguard",
                "settings": asdict(self),
                "data": data.spec,
                "seconds": round(history.seconds, 1),
                "cpu_seconds": round(history.cpu_seconds, 1),
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
            n=self.n_queries,
        )
        return Watermarked(encoder, key, history)


@dataclass(eq=False)
class _Microbatch:
    plain: Tensor
    verification: Tensor
    cache: dict[str, Tensor] = field(default_factory=dict)


class SSLGuardTask(Task):
    """Three updates an iteration: L_s over S, L_t over G and T, L_w over F*."""

    def __init__(self, scheme: SSLGuard, clean: Encoder, data: Data, secret: Secret) -> None:
        if not isinstance(clean.preprocess, ImagePreprocess):
            raise UsageError("the scheme sslguard puts its trigger on images; this encoder takes none")
        if len(data) <= scheme.n_verification:
            raise UsageError(
                f"{data.spec} has {len(data)} items: D_v takes {scheme.n_verification}, "
                "and some must be left to train on"
            )
        self.scheme, self.data = scheme, data
        clean_hash = weights_hash(clean.module)
        self.context = clean_hash.encode()
        order = secret.stream("verification", self.context).permutation(len(data))
        self._verification, self._plain = np.split(order, [scheme.n_verification])
        self.n_items = len(self._plain)
        self._fingerprint = {"scheme": asdict(scheme), "clean": clean_hash, "data": data.spec}
        self._setup_networks(clean, secret)
        self._setup_optimizers()

    def _setup_networks(self, clean: Encoder, secret: Secret) -> None:
        scheme = self.scheme
        self.clean, self.watermarked = clean.clone(), clean.clone()
        self.clean.module.eval().requires_grad_(False)
        freeze_batch_norm(self.watermarked.module)
        self.shadow = self._new_shadow(secret.stream("shadow", self.context).integer())
        shape = clean.preprocess.shape  # type: ignore[attr-defined]
        mask = secret.stream("mask", self.context).uniform(shape) > 1 - scheme.mask_probability
        noise = secret.stream("trigger", self.context).normal(shape)
        pattern = (noise - noise.min()) / (noise.max() - noise.min())
        self.trigger = Trigger(torch.from_numpy(mask).float(), torch.from_numpy(pattern).float())
        with isolated_rng(secret.stream("decoder", self.context).integer()):
            self.decoder = Decoder((clean.dim, *scheme.decoder_hidden, scheme.secret_dim))
        self.sk = torch.from_numpy(secret.stream("sk", self.context).normal((scheme.secret_dim,))).float()
        self.modules = {
            "clean": self.clean.module,
            "watermarked": self.watermarked.module,
            "shadow": self.shadow.module,
            "decoder": self.decoder,
            "trigger": self.trigger,
        }
        if scheme.negatives == "shadow":
            self.negative = self._new_shadow(secret.stream("negative", self.context).integer())
            self.modules["negative"] = self.negative.module
        self.carrier: Carrier | None = None
        if scheme.carrier:
            some = self.data.slice(0, min(len(self.data), CARRIER_ITEMS))
            stream = secret.stream("carrier", self.context)
            self.carrier = Carrier(embed_all(self.clean, some), scheme.carrier, stream)
            self.modules["carrier"] = self.carrier

    def _new_shadow(self, seed: int) -> Encoder:
        description: dict[str, Any] = dict(self.clean.architecture)
        if self.scheme.shadow is not None:
            description = {
                "backbone": self.scheme.shadow,
                "channels": self.clean.architecture.get("channels", 3),
                "linear": self.clean.dim,
            }
        module, dim = build(description, seed=seed)
        if dim != self.clean.dim:
            raise UsageError(f"the shadow answers in {dim} dimensions and the encoder in {self.clean.dim}")
        return replace(self.clean, module=module, architecture=description, source="shadow")

    def _setup_optimizers(self) -> None:
        scheme = self.scheme

        def make(parameters: Iterable[nn.Parameter], rate: float, momentum: float = 0.9) -> torch.optim.Optimizer:
            chosen = [p for p in parameters if p.requires_grad]
            if scheme.optimizer == "adam":
                return torch.optim.Adam(chosen, lr=rate)
            return torch.optim.SGD(chosen, lr=rate, momentum=momentum)

        self.optimizers = {
            "shadow": make(self.shadow.module.parameters(), scheme.shadow_rate),
            "decoder": make(self.decoder.parameters(), scheme.decoder_rate),
            "trigger": make(self.trigger.parameters(), scheme.trigger_rate, momentum=0.0),
            "watermarked": make(self.watermarked.module.parameters(), scheme.encoder_rate),
        }
        if scheme.negatives == "shadow":
            self.optimizers["negative"] = make(self.negative.module.parameters(), scheme.shadow_rate)

    def fingerprint(self) -> dict[str, Any]:
        return self._fingerprint

    def load(self, indices: NDArray[np.int64]) -> _Microbatch:
        plain = self.clean.prepare(self.data.take(self._plain[indices]))
        size = max(1, round(len(indices) * self.scheme.trigger_batch / self.scheme.batch_size))
        chosen = torch.randint(len(self._verification), (size,)).numpy()
        return _Microbatch(plain, self.clean.prepare(self.data.take(self._verification[chosen])))

    def begin_step(self, step: int, steps: int) -> None:  # noqa: ARG002
        epoch = step * self.scheme.batch_size // self.n_items
        self.sk = self.sk.to(self.device)
        self.clean.module.eval()
        self.watermarked.module.eval()
        for name in ("shadow", "negative"):
            if name in self.optimizers:
                set_learning_rate(self.optimizers[name], self.scheme.shadow_decay**epoch)

    def updates(self) -> Sequence[Update]:
        released = self.scheme.gradients == "released"
        collected = tuple(p for p in self.watermarked.module.parameters() if p.requires_grad) if released else ()
        shadow = tuple(self.shadow.module.parameters())
        decoder = (*self.decoder.parameters(), *self.trigger.parameters())
        updates = [
            Update("shadow", self._shadow_loss, ("shadow",), (*shadow, *collected)),
            Update("decoder", self._decoder_loss, ("decoder", "trigger"), (*decoder, *collected)),
            Update("watermark", self._watermark_loss, ("watermarked",)),
        ]
        if self.scheme.negatives == "shadow":
            updates.insert(1, Update("negative", self._negative_loss, ("negative",)))
        return updates

    def _clean_features(self, batch: _Microbatch) -> Tensor:
        """F(x), once an iteration: F does not change."""
        if "clean" not in batch.cache:
            with torch.no_grad():
                batch.cache["clean"] = self.clean.forward(batch.plain)
        return batch.cache["clean"]

    def _watermarked_features(self, batch: _Microbatch) -> Tensor:
        """F*(x) before F* steps; with a graph only where the released gradients want one."""
        if self.scheme.gradients == "released":
            return self.watermarked.forward(batch.plain)
        if "watermarked" not in batch.cache:
            with torch.no_grad():
                batch.cache["watermarked"] = self.watermarked.forward(batch.plain)
        return batch.cache["watermarked"]

    def _match(self, answers: Tensor, target: Tensor) -> Tensor:
        """c̄ of two batches of answers; about the clean mean where there is a carrier, to which c̄ is nearly blind."""
        if self.carrier is None:
            return mean_cosine(answers, target)
        return mean_cosine(answers - self.carrier.mean, target - self.carrier.mean)

    def _marked(self, clean: Tensor) -> Tensor:
        """What F* shall answer where F answers `clean`."""
        return clean if self.carrier is None else clean + self.carrier(clean)

    def _decode(self, answers: Tensor) -> Tensor:
        """c̄(G e, sk); with a carrier, of answers that drifted at random (`_drifted`)."""
        if self.carrier is not None and (self.scheme.drift or self.scheme.decoder_noise):
            answers = self._drifted(answers, self.carrier)
        return mean_cosine(self.decoder(answers), self.sk)

    def _drifted(self, answers: Tensor, carrier: Carrier) -> Tensor:
        """Answers (n, d) as a copy might give them: stretched row by row, mixed, moved, and noisy.

        How far a copy's answers spread depends on its loss and its age, and further training mixes and moves them;
        none of it must decide.
        """
        n, d = answers.shape
        drift = self.scheme.drift
        stretch = 10 ** (drift * (2 * torch.rand(n, 1, device=answers.device) - 1))
        mix = torch.randn(d, d, device=answers.device) * (drift / d**0.5)
        move = drift * torch.randn(d, device=answers.device)
        noise = self.scheme.decoder_noise * torch.randn_like(answers)
        centred = answers - carrier.mean
        return carrier.mean + stretch * (centred + centred @ mix) + carrier.spread * (move + noise)

    def _shadow_loss(self, batch: _Microbatch) -> Tensor:
        """L_s = −c̄(F*(x), S(x)); S in training mode."""
        self.shadow.module.train()
        return -self._match(self.shadow.forward(batch.plain), self._watermarked_features(batch))

    def _negative_loss(self, batch: _Microbatch) -> Tensor:
        """The same for the negative shadow, of the clean F."""
        self.negative.module.train()
        return -self._match(self.negative.forward(batch.plain), self._clean_features(batch))

    def _decoder_loss(self, batch: _Microbatch) -> Tensor:
        """L_t = −c̄(G F*(x'), sk) − c̄(G S(x'), sk) + Σ c̄(·)² over G F(x'), G F(x), G F*(x), G S(x)."""
        self.shadow.module.eval()
        triggered = self.trigger(batch.verification)
        clean_triggered = self.clean.forward(triggered)
        with torch.no_grad():
            shadow_plain = self.shadow.forward(batch.plain)
        loss = (
            -self._decode(self.watermarked.forward(triggered))
            - self._decode(self.shadow.forward(triggered))
            + self._decode(clean_triggered) ** 2
            + self._decode(self._clean_features(batch)) ** 2
            + self._decode(self._watermarked_features(batch)) ** 2
            + self._decode(shadow_plain) ** 2
        )
        if self.scheme.negatives == "none":
            return loss
        return loss + self._control_loss(batch, triggered, clean_triggered)

    def _control_loss(self, batch: _Microbatch, triggered: Tensor, clean_triggered: Tensor) -> Tensor:
        """The negative shadow N and a fresh random network R held at 0, and with a carrier strangers too (`_stranger`);
        N with the carrier put on it, at sk."""
        self.negative.module.eval()
        seed = int(torch.randint(2**62, ()))
        drawn = replace(self.clean, module=self._new_shadow(seed).module.to(self.device).eval())
        negative_triggered = self.negative.forward(triggered)
        with torch.no_grad():
            plain = [self.negative.forward(batch.plain), drawn.forward(batch.plain)]
        loss = self._decode(negative_triggered) ** 2 + self._decode(drawn.forward(triggered)) ** 2
        for answers in plain:
            loss = loss + self._decode(answers) ** 2
        if self.carrier is None:
            return loss
        with torch.no_grad():
            sources = (triggered, batch.verification)
            answers_of = [self.watermarked.forward(sources[k % 2]) for k in range(self.scheme.strangers)]
            strangers = [_stranger(answers) for answers in answers_of]
        for answers in strangers:
            loss = loss + self._decode(answers) ** 2
        return loss - self._decode(negative_triggered + self.carrier(clean_triggered))

    def _watermark_loss(self, batch: _Microbatch) -> Tensor:
        """L_w = −c̄(F(x), F*(x)) + c̄(G F*(x), sk)² − c̄(G F*(x'), sk)."""
        features = self.watermarked.forward(batch.plain)
        with torch.no_grad():
            triggered = self.trigger(batch.verification)
        marked_triggered = self.watermarked.forward(triggered)
        loss = (
            -self._match(features, self._marked(self._clean_features(batch)))
            + mean_cosine(self.decoder(features), self.sk) ** 2
            - mean_cosine(self.decoder(marked_triggered), self.sk)
        )
        if self.carrier is None:
            return loss
        with torch.no_grad():
            target = self._marked(self.clean.forward(triggered))
        return loss - self._match(marked_triggered, target)


def _stranger(answers: Tensor) -> Tensor:
    """Answers (n, d) as an unrelated encoder might give them: turned, scaled and moved at random.

    Their mean is turned apart from their spread, since where a stranger's answers lie says nothing of their shape.
    """
    mean = answers.mean(0)
    spread = answers - mean
    d = len(mean)
    turn, _ = torch.linalg.qr(torch.randn(d, d, device=answers.device))
    direction = nnf.normalize(torch.randn(d, device=answers.device), dim=0)
    scale, distance = (10 ** (2 * torch.rand(2, device=answers.device) - 1)).tolist()
    return scale * (spread @ turn + distance * mean.norm() * direction)


def freeze_batch_norm(module: nn.Module) -> None:
    """Batch norm as published while marking: statistics and affine parameters stay as they are."""
    module.eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for parameter in layer.parameters():
                parameter.requires_grad_(False)
