"""Attacks by name, made from the plain values of a TOML or JSON file and told in them again.

    build("fine-tune", {"epochs": 10, "recipe": {"layers": "last"}})

Settings are the fields of the attack's dataclass. What is left out is the attack's own default, in a table of a
nested dataclass too. A scheme is a table with its name under `scheme`, an attack within an attack one with its name
under `attack`.
"""

from __future__ import annotations

from typing import Any, get_args

from sslguard.attacks.adaptive import CSE, FilterQueries, ProjectOnto, RemoveTriggers
from sslguard.attacks.base import Attack
from sslguard.attacks.inputs import EditImages, EditTexts, Smoothed
from sslguard.attacks.mapping import (
    Classify,
    LeadingComponents,
    LinearMap,
    ProductQuantise,
    SignBits,
    SubtractFeatures,
    SubtractStatistics,
)
from sslguard.attacks.outputs import AverageWith, EditAnswers
from sslguard.attacks.removal import (
    FineTune,
    LoRA,
    Overwrite,
    Prune,
    PruneFilters,
    Quantise,
    SelfSupervised,
    Soup,
    WeightNoise,
)
from sslguard.attacks.stealing import RDA, ContSteal, Distil, StolenEncoder
from sslguard.attacks.wrapping import InputNoise, OutputNoise
from sslguard.schemes.base import Scheme
from sslguard.schemes.registry import CHOICES as SCHEME_CHOICES
from sslguard.settings import Choices, Named, read_named, to_table

ATTACKS: dict[str, type[Attack]] = {
    "distil": Distil,
    "cont-steal": ContSteal,
    "stolen-encoder": StolenEncoder,
    "rda": RDA,
    "fine-tune": FineTune,
    "lora": LoRA,
    "soup": Soup,
    "self-supervised": SelfSupervised,
    "overwrite": Overwrite,
    "prune": Prune,
    "prune-filters": PruneFilters,
    "quantise": Quantise,
    "weight-noise": WeightNoise,
    "input-noise": InputNoise,
    "edit-images": EditImages,
    "edit-texts": EditTexts,
    "smoothed": Smoothed,
    "output-noise": OutputNoise,
    "edit-answers": EditAnswers,
    "average-with": AverageWith,
    "linear-map": LinearMap,
    "leading-components": LeadingComponents,
    "sign-bits": SignBits,
    "product-quantise": ProductQuantise,
    "classify": Classify,
    "subtract-features": SubtractFeatures,
    "subtract-statistics": SubtractStatistics,
    "project-onto": ProjectOnto,
    "cse": CSE,
    "remove-triggers": RemoveTriggers,
    "filter-queries": FilterQueries,
}
_ATTACKS = Choices("attack", ATTACKS)
_NAMED: Named = {Scheme: SCHEME_CHOICES, **dict.fromkeys(get_args(Attack), _ATTACKS)}


def build(name: str, settings: object) -> Attack:
    """Return the attack called `name` with these settings.

    Raises:
        UsageError: no such attack or setting, a value of another type, or settings that the attack refuses.
    """
    attack: Attack = read_named(_ATTACKS, name, settings, named=_NAMED)
    return attack


def describe(attack: Attack) -> dict[str, Any]:
    """Return the attack's name under `attack` and all of its settings, JSON values: `build` makes an equal one of them.

    Raises:
        UsageError: the attack is not in the registry.
    """
    table: dict[str, Any] = to_table(attack, named=_NAMED)
    return table
