"""The one place where descriptions become networks and preprocessing again.

A network's description is a JSON object: {"backbone": NAME} with an optional "linear": WIDTH, a linear layer on top, as
a thief adds who wants answers in the victim's space, and an optional "head", a mark's (`heads`). What else it holds is
the family's own, whose module says it: `architectures` (small networks of images), `words` (small networks of texts),
`libraries` (timm and torchvision), `transformer` (texts) and `vision` (images; both Hugging Face's transformers),
`sentences` (tables of vectors), `own` (networks of the user's). A new family is a module with a function from a
description to a network and its width, and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from sslguard.crypto.secrets import Secret
from sslguard.encoders import architectures, libraries, own, sentences, transformer, vision, words
from sslguard.encoders.heads import Headed, StatisticsHead
from sslguard.encoders.preprocess import ImagePreprocess, Preprocess
from sslguard.encoders.size import MAX_PARAMETERS, bounded, check_size
from sslguard.encoders.statistics import N_IMAGE
from sslguard.encoders.text import TextPreprocess
from sslguard.errors import UsageError

FAMILIES: Mapping[str, Callable[[dict[str, Any]], tuple[nn.Module, int]]] = MappingProxyType(
    {
        **dict.fromkeys(architectures.SMALL, architectures.network),
        **dict.fromkeys(words.NETWORKS, words.network),
        "timm:": libraries.from_timm,
        "torchvision:": libraries.from_torchvision,
        "hf": transformer.network,
        "hf-vision": vision.network,
        "static": sentences.static,
        "own": own.network,
    }
)
"""A backbone's name, up to its first colon where it has one → what builds it."""


_TWISTER = slice(24, 24 + 8 * 624)
"""Where torch keeps the words of the Mersenne twister in the bytes of its generator's state."""


def build(architecture: dict[str, Any], *, seed: int | Secret, most: int = MAX_PARAMETERS) -> tuple[nn.Module, int]:
    """Return the freshly initialised network of a description and the width of its embedding.

    Args:
        architecture: the description: see above.
        seed: of the initial weights. Of a number, torch uses the last 32 bits; a secret gives all of its 256. Global
            random state is left as it was.
        most: parameters that the network may have; it is counted before memory is taken for it.

    Raises:
        UsageError: no such architecture, a field out of range, or too large a network.
        MissingExtraError: it takes a library that is not installed.
    """
    # torch.manual_seed would seed every accelerator too, and nothing puts those back.
    with torch.random.fork_rng(devices=[]):
        check_size(lambda: _network(architecture)[0], most=most)
        _seed(torch.default_generator, seed)
        with bounded():
            module, width = _network(architecture)
    images = all(parameter.dim() < 5 for parameter in module.parameters())  # others have no such order
    return module.to(memory_format=torch.channels_last) if images else module, width


def _seed(generator: torch.Generator, seed: int | Secret) -> None:
    """Put torch's generator for the CPU, a Mersenne twister, in the state of a seed.

    A secret fills the whole state. `manual_seed` takes 32 bits, so that anybody could try all seeds.
    """
    if isinstance(seed, int):
        generator.manual_seed(seed)
        return
    state = generator.manual_seed(0).get_state()
    words = state.numpy()[_TWISTER].view("<u8")
    if words.shape != (624,) or words[1] != 1:  # the second word of the twister's state for seed 0
        raise UsageError("this version of torch keeps its random state otherwise: give a number as seed")
    words[:] = seed.stream("state of the generator").words(len(words))
    generator.set_state(state)


def _network(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return the network of a description and its width, on torch's default device, by torch's own generator."""
    if "head" in architecture:
        return _headed(architecture)
    name = architecture.get("backbone")
    linear = architecture.get("linear")
    if not isinstance(name, str) or not (linear is None or _whole(linear, 65536)):
        raise UsageError(f"not the description of a network: {architecture!r:.200}")
    family = name[: name.find(":") + 1] or name
    if family not in FAMILIES:
        known = ", ".join([*architectures.SMALL, *words.NETWORKS])
        raise UsageError(f"no architecture {name!r:.80}; known: {known}, timm:NAME, torchvision:NAME")
    if architecture.keys() & libraries.RESNET_FIELDS and family != "torchvision:":
        raise UsageError(f"only torchvision's ResNets have a stem and a max-pool to choose, not {name}")
    module, width = FAMILIES[family](architecture)
    if linear is not None:
        module = nn.Sequential(OrderedDict(backbone=module, linear=nn.Linear(width, linear)))
        width = linear
    return module, width


def _headed(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return the network of the description without its head, with a `StatisticsHead` that changes nothing yet."""
    encoder, width = _network({name: value for name, value in architecture.items() if name != "head"})
    sizes = architecture["head"]
    if (
        not isinstance(sizes, dict)
        or sizes.keys() != {"statistics", "functions"}
        or not _whole(sizes["statistics"], N_IMAGE)
        or not _whole(sizes["functions"], 65536)
    ):
        raise UsageError(f"not the description of a head: {sizes!r:.200}")
    return Headed(encoder, StatisticsHead(width, **sizes)), width


def _whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def preprocess_from_json(fields: object, files: Mapping[str, bytes] | None = None) -> Preprocess:
    """Return the preprocessing that `Preprocess.to_json` described.

    Args:
        fields: the description.
        files: what `Preprocess.files` returned, by name.

    Raises:
        UsageError: not such a description, of a kind that this version does not know, or without a file of its own.
    """
    if not isinstance(fields, dict):
        raise UsageError(f"the description of a preprocessing must be a JSON object, not {fields!r:.80}")
    kind = fields.get("kind")
    if kind == "image":
        return ImagePreprocess.from_json(fields)
    if kind == "words":
        return words.HashedWords.from_json(fields)
    if kind in ("items", "characters", "own"):
        return own.preprocess_of(fields)
    if kind == "text":
        return TextPreprocess.from_json(fields, files or {})
    raise UsageError(f"no preprocessing of kind {kind!r:.80}; known: image, text, words")
