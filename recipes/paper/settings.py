"""What a recipe says. A table of its TOML file is a frozen dataclass here, field for key.

`settings` and `recipe` are settings of the package's own dataclasses (`SSLGuard`, `Distillation`, `Supervised`), by
their own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from reading import read, read_table

from sslguard.attacks.removal import FineTune, Prune
from sslguard.attacks.wrapping import InputNoise
from sslguard.encoders.base import Encoder
from sslguard.encoders.checkpoint import load_checkpoint
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import EncoderError, UsageError
from sslguard.schemes.sslguard import SSLGuard
from sslguard.training.distillation import Distillation
from sslguard.training.supervised import Supervised

Preset = Literal["published", "released-gradients", "clean-gradients", "cured"]
ITSELF = "itself"


def preset(name: Preset) -> SSLGuard:
    """The scheme's settings at the paper's size.

    "published" and "released-gradients" are one: F* steps on the gradients of all three losses, as in the released
    code. "cured" is the package's own scheme, over as many plain images as the published one; nobody has tried it at
    this size.
    """
    published = SSLGuard.published()
    if name == "clean-gradients":
        return replace(published, gradients="clean")
    if name != "cured":
        return published
    cured = SSLGuard.cured()
    return replace(cured, steps=published.steps * published.batch_size // cured.batch_size)


@dataclass(frozen=True)
class Victim:
    """The clean encoder F.

    Attributes:
        checkpoint: the file that its authors publish.
        format: as `encoders.checkpoint` must recognise it, so that no other file is taken for it.
        architecture: torchvision's name of the network in it.
        maxpool: keep the network's first max-pool, or leave it out.
        size: height and width of its input in pixels. Whole images are resized to it, and nothing is normalised.
    """

    checkpoint: str
    format: str
    architecture: str
    maxpool: bool
    size: int

    def load(self) -> Encoder:
        """F, on the CPU.

        Raises:
            EncoderError: the file is missing, damaged, or another than the recipe names.
        """
        path = Path(self.checkpoint)
        if not path.is_file():
            raise EncoderError(
                f"encoder.checkpoint: there is no file {path}; download it from where the recipe says, or name it by "
                "--set encoder.checkpoint=FILE"
            )
        # Without a crop: what was prepared once, to carry a trigger, must pass unchanged when it is asked.
        whole = ImagePreprocess(self.size, self.size)
        encoder, report = load_checkpoint(path, architecture=self.architecture, maxpool=self.maxpool, preprocess=whole)
        if report.format != self.format:
            raise EncoderError(
                f"encoder.checkpoint: {path} has the format {report.format}, not {self.format} as encoder.format says"
            )
        return encoder


@dataclass(frozen=True)
class Marking:
    """How an encoder is marked, and on which data; D_v is set aside from them.

    Attributes:
        settings: fields of `SSLGuard` that differ from the preset.
    """

    preset: Preset
    data: str
    settings: Mapping[str, Any]

    def scheme(self, where: str = "scheme") -> SSLGuard:
        """The preset with its changes; `where` the marking stands in the recipe, for messages."""
        return read(SSLGuard, self.settings, f"{where}.settings", base=preset(self.preset))


@dataclass(frozen=True)
class Theft:
    """Surrogates, one for each architecture and query set.

    Attributes:
        architectures: of the surrogates, as `encoders.architectures` names them.
        maxpool: keep the first max-pool of those from torchvision.
        queries: name → data that the victim is asked about.
        recipe: fields of `Distillation`.
    """

    architectures: tuple[str, ...]
    maxpool: bool
    queries: Mapping[str, str]
    recipe: Mapping[str, Any]

    def networks(self) -> dict[str, dict[str, Any]]:
        """Name → description for `encoders.rebuild.build` of each architecture."""
        return {
            name.rpartition(":")[2]: {"backbone": name}
            | ({"maxpool": self.maxpool} if name.startswith("torchvision:") else {})
            for name in self.architectures
        }

    def distillation(self) -> Distillation:
        """The thief's recipe. The architecture is not read from it: `architectures` holds several."""
        return read(Distillation, self.recipe, "steal.recipe", base=Distillation(), without=("architecture",))


@dataclass(frozen=True)
class Pruning:
    """`attacks.removal.Prune`, at several amounts. `on`, here and below, names what is attacked: the encoder "itself",
    and surrogates such as "resnet50-stl10"."""

    on: tuple[str, ...]
    amounts: tuple[float, ...]
    scope: Literal["global", "layer"]


@dataclass(frozen=True)
class FineTuning:
    """`attacks.removal.FineTune`, over several numbers of epochs; `recipe` holds fields of `Supervised`."""

    on: tuple[str, ...]
    data: str
    epochs: tuple[float, ...]
    recipe: Mapping[str, Any]

    def attack(self, epochs: float) -> FineTune:
        """One of them."""
        recipe = read(Supervised, self.recipe, "attacks.fine_tune.recipe", base=Supervised(), without=("steps",))
        return FineTune(recipe, epochs=epochs)


@dataclass(frozen=True)
class Overwriting:
    """The whole scheme once more, with a secret and data of the thief's own."""

    on: tuple[str, ...]
    marking: Marking


@dataclass(frozen=True)
class Noise:
    """`attacks.wrapping`'s noise, at several standard deviations each."""

    on: tuple[str, ...]
    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


@dataclass(frozen=True)
class Attacks:
    """What is done to F* and its surrogates, and alike to F and its surrogates. An empty `on` leaves an attack out."""

    prune: Pruning
    fine_tune: FineTuning
    overwrite: Overwriting
    noise: Noise


@dataclass(frozen=True)
class Verification:
    """What suspects are asked, and beside whom.

    Attributes:
        data: images that nothing was trained on.
        independent: encoders that have nothing to do with F, by specification.
        controls: further innocents to rank among: encoders, or folders of populations.
        alpha: level of a decision, where the null supports one.
    """

    data: str
    independent: tuple[str, ...]
    controls: tuple[str, ...]
    alpha: float


@dataclass(frozen=True)
class DownstreamTask:
    """Labelled data of one classification."""

    train: str
    test: str


@dataclass(frozen=True)
class Downstream:
    """What encoders are worth; "mlp" is the paper's classifier."""

    method: Literal["mlp", "linear", "knn"]
    tasks: Mapping[str, DownstreamTask]


@dataclass(frozen=True)
class Recipe:
    """The whole file.

    Attributes:
        seed: everything random in a run is a function of it. So is the master secret: its keys prove nothing.
    """

    name: str
    seed: int
    encoder: Victim
    scheme: Marking
    steal: Theft
    attacks: Attacks
    verify: Verification
    downstream: Downstream


def read_recipe(path: Path, changes: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with changes such as "steal.recipe.steps=100".

    Raises:
        UsageError: the file cannot be read, or a key or a value is not one of a recipe.
    """
    recipe = read(Recipe, read_table(path, changes), "")
    if recipe.seed < 0:
        raise UsageError(f"seed must not be negative, but is {recipe.seed}")
    # What the package's own classes refuse is better known now than after a week of training.
    recipe.scheme.scheme()
    recipe.attacks.overwrite.marking.scheme("attacks.overwrite.marking")
    recipe.steal.distillation()
    for epochs in recipe.attacks.fine_tune.epochs or (1.0,):
        recipe.attacks.fine_tune.attack(epochs)
    for amount in recipe.attacks.prune.amounts:
        Prune(amount)
    for std in (*recipe.attacks.noise.inputs, *recipe.attacks.noise.outputs):
        InputNoise(std)
    if not 0 < recipe.verify.alpha < 1:
        raise UsageError(f"verify.alpha must lie between 0 and 1, not {recipe.verify.alpha}")
    return recipe
