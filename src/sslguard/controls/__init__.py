"""The null population: encoders that nobody derived from the watermarked one, made once and cached.

Three kinds stand in it: independent encoders (self-supervised, supervised, untrained, a public one), and what
innocents make of the *clean* encoders: surrogates by every stealing recipe, fine-tuned and pruned copies. The last
are the hard ones: they agree with F as much as a thief's surrogate agrees with F*.

Every member answers in the same width, so that one key can score them all. What each is worth downstream stands beside
it: a null of useless encoders would resemble no suspect.
"""

from sslguard.controls.making import make_population, probe_population, progress_bar
from sslguard.controls.members import (
    Control,
    Member,
    SeenWeights,
    count_controls,
    list_controls,
    open_controls,
    read_population,
    shipped_population,
)
from sslguard.controls.recipes import ARCHITECTURES, Bed, Kind, Recipe, make, population

__all__ = [
    "ARCHITECTURES",
    "Bed",
    "Control",
    "Kind",
    "Member",
    "Recipe",
    "SeenWeights",
    "count_controls",
    "list_controls",
    "make",
    "make_population",
    "open_controls",
    "population",
    "probe_population",
    "progress_bar",
    "read_population",
    "shipped_population",
]
