"""Networks of the user's own: a `torch.nn.Module`, or a function from a batch to an array of embeddings.

A description is {"backbone": "own", "dim": …} with one of these, by which it is built again:

- "program": the network as `torch.export` sees it, see `program`. Nothing else must be at hand.
- "factory" and "state": the name of the user's own function that makes the network, "package.module:function", and what
  the network's weights are called. It is code, and a description may come from anybody. So it is called only where the
  user names the same function himself (`confirm`); until then the network is `Unbuilt`, and embeds nothing.

With neither, the encoder lives in this process alone.
"""

from __future__ import annotations

import importlib
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslguard.data.base import Batch
from sslguard.data.own import input_of
from sslguard.encoders.base import Encoder, evaluating
from sslguard.encoders.names import REFERENCE
from sslguard.encoders.preprocess import ImagePreprocess, Preprocess
from sslguard.encoders.program import NotWritableError, Program, register, state_of, traced
from sslguard.encoders.text import TextPreprocess
from sslguard.encoders.words import HashedWords, check_whole, no_frame, stacked, texts_of
from sslguard.errors import DataError, UsageError, first_line

_MAX_RANK = 8
_MAX_WIDTH = 1 << 20
_confirmed: dict[str, Callable[[], Any]] = {}


@dataclass(frozen=True)
class Items:
    """Items that a network of the user's takes as they are; bytes are scaled to [0, 1].

    Attributes:
        shape: Of one item; none of them for tokens (2, L), whose length changes.
    """

    shape: tuple[int, ...] = ()

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return items as float32 (n, *shape), or tokens as int64 (n, 2, L).

        Raises:
            DataError: They have another shape.
        """
        if not isinstance(batch, Tensor):
            shapes = {tuple(item.shape) for item in batch if isinstance(item, Tensor)}
            raise DataError(
                f"this encoder takes items of one shape, {self.shape}; these are "
                f"{f'of {len(shapes)} shapes, such as {min(shapes)}' if shapes else 'texts'}"
            )
        if not self.shape and not batch.is_floating_point() and batch.dim() == 3 and batch.shape[1] == 2:
            return batch.long()
        if tuple(batch.shape[1:]) != self.shape:
            raise DataError(f"this encoder takes items of shape {self.shape}, not {tuple(batch.shape[1:])}")
        return batch.float() / 255 if batch.dtype == torch.uint8 else batch.float()

    def framed(self, prepared: Tensor, batch: Batch, /) -> Tensor:
        """Raise UsageError: such an encoder has no room for a trigger."""
        raise no_frame(prepared, batch)

    def normalise(self, prepared: Tensor, /) -> Tensor:
        """Return the same."""
        return prepared

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"kind": "items", "shape": list(self.shape)}

    def files(self) -> dict[str, bytes]:
        """Return no file."""
        return {}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Items:
        """Invert `to_json`. Raise UsageError for fields that do not fit."""
        shape = fields.get("shape")
        if not isinstance(shape, list) or len(shape) > _MAX_RANK:
            raise UsageError(f"not the shape of an item: {shape!r:.80}")
        for side in shape:
            check_whole("side of an item", side, 1, 1 << 24)
        return cls(tuple(shape))


@dataclass(frozen=True)
class Characters(Items):
    """Texts for a function that takes texts: int64 (n, 2, L).

    First come the numbers of a text's characters, with 2 as their mask, then ids of its words, as `HashedWords` makes
    them, with 1: by these an input's statistics are told.
    """

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return numbers, ids and mask. Raise DataError for items that are no texts."""
        letters = stacked([[ord(letter) + 1 for letter in text] for text in texts_of(batch)], 0)
        letters[:, 1] *= 2
        return torch.cat([letters, HashedWords().prepare(batch)], 2)

    @staticmethod
    def texts(prepared: Tensor) -> list[str]:
        """Return the texts of which `prepare` made this."""
        kept = torch.where(prepared[:, 1] == 2, prepared[:, 0], 0).tolist()
        return ["".join(chr(one - 1) for one in row if one) for row in kept]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"kind": "characters"}


@dataclass(frozen=True)
class Called(Items):
    """A function of the user's that makes a network's input of a batch, such as a tokenizer.

    Attributes:
        function: Batch → floats with a row for each item, or a mapping with `input_ids` and `attention_mask`.
        factory: Name of the factory that gives it beside the network; "" where none does.
    """

    function: Callable[[Any], Any] | None = None
    factory: str = ""

    def prepare(self, batch: Batch, /) -> Tensor:
        """Return what the function makes of a batch. Raise UsageError for something else than it may return."""
        if self.function is None:
            raise _not_confirmed(self.factory)
        found = self.function(batch)
        found = torch.as_tensor(input_of(found))
        if not found.is_floating_point() and found.dim() == 3 and found.shape[:2] == (len(batch), 2):
            return found.long()
        if len(found) != len(batch) or not found.is_floating_point():
            raise UsageError(
                f"preprocess must return floats with a row for each of the {len(batch)} items, or input_ids and "
                f"attention_mask, not {found.dtype} of shape {tuple(found.shape)}"
            )
        return found.float()

    def to_json(self) -> dict[str, Any]:
        """Return the name of the factory."""
        return {"kind": "own", "factory": self.factory}


class OwnModule(nn.Module):
    """A module of the user's, `net`, called as it wants to be: prepared items → embeddings (n, dim).

    Tokens go to `net(input_ids=…, attention_mask=…)` where it has arguments of these names, else to `net(ids, mask)`,
    or to `net(ids)` where it takes one. `constants` are what its program needs beside its state.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.constants = net, nn.Module()
        taken = inspect.signature(net.forward).parameters
        self._named = "input_ids" in taken
        self._single = len(taken) == 1 or (self._named and "attention_mask" not in taken)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module gives for prepared items."""
        if x.is_floating_point():
            return self.net(x)
        ids, mask = x.unbind(1)
        if self._single:
            return self.net(ids)
        return self.net(input_ids=ids, attention_mask=mask) if self._named else self.net(ids, mask)


class OwnFunction(nn.Module):
    """A function of the user's from a batch to an array (n, dim); it has no weights that are known here.

    A batch is a float32 tensor (bytes are scaled to [0, 1]), or a list of texts.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def __deepcopy__(self, memo: dict[int, Any]) -> OwnFunction:
        """Return one that calls the same function: it is not ours to copy."""
        return OwnFunction(self.function)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the function gives for prepared items."""
        with torch.inference_mode(False), torch.no_grad():
            found = self.function(x.clone() if x.is_floating_point() else Characters.texts(x))
        return found if isinstance(found, Tensor) else torch.from_numpy(np.asarray(found))


class Unbuilt(nn.Module):
    """The weights of a network whose factory nobody has named here: it embeds nothing."""

    def __init__(self, state: object, factory: str) -> None:
        super().__init__()
        register(self, state)
        self.factory = factory

    def forward(self, x: Tensor) -> Tensor:
        """Raise UsageError: the factory must be named first."""
        del x
        raise _not_confirmed(self.factory)


def _not_confirmed(factory: str) -> UsageError:
    return UsageError(
        f"this encoder is built by {factory or 'a function of its owner'}, whose code runs only where you name it "
        f"yourself: add --factory {factory}, or factory={factory!r} in Python, if you trust it"
    )


def check_writable(encoder: Encoder) -> None:
    """Raise UsageError where an encoder of the user's own lives in this process alone: before it is marked."""
    described = encoder.architecture
    if described.get("backbone") == "own" and not described.keys() & {"program", "factory"}:
        network(described)


def needed(encoder: Encoder) -> str:
    """Return what must be at hand to build an encoder again, in words; "" for nothing beside its files."""
    described = encoder.architecture
    if described.get("backbone") != "own" or "program" in described:
        return ""
    if "factory" in described:
        name = described["factory"]
        return f"the module of {name}, which must be named: --factory {name}, or factory={name!r} in Python"
    return "this process: the encoder is not kept in files"


def check_built(encoder: Encoder) -> None:
    """Raise UsageError where an encoder's factory has not been named: before anybody is asked anything."""
    for part in encoder.module.modules():
        if isinstance(part, Unbuilt):
            raise _not_confirmed(part.factory)


def confirm(factory: str | Callable[[], Any]) -> str:
    """Let networks of a factory be built in this process, and return the factory's name, "package.module:function".

    Args:
        factory: A function without arguments that returns a module, a function that embeds, either of them and its
            preprocessing, or an `Encoder`; or its name, which is imported now, from this folder too.

    Raises:
        UsageError: There is no such function, or nobody else could import it.
    """
    if not isinstance(factory, str):
        name = f"{getattr(factory, '__module__', '')}:{getattr(factory, '__qualname__', '')}"
        if not REFERENCE.fullmatch(name) or name.startswith("__main__:"):
            raise UsageError(f"a factory must be a function at the top of a module that can be imported, not {name}")
        _confirmed[name] = factory
        return name
    name = factory.removeprefix("python:")
    if not REFERENCE.fullmatch(name):
        raise UsageError(f"a factory is named package.module:function, not {factory!r:.80}")
    module, _, function = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that nothing here stands before what is installed
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:
        raise UsageError(f"{name} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    if not callable(found):
        raise UsageError(f"{name} is no function")
    _confirmed[name] = found
    return name


def network(architecture: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return the network of a description, and its width. The code of a factory runs only after `confirm`.

    Raises:
        UsageError: The description is damaged, or says nothing of how the network is built.
    """
    dim, factory = architecture.get("dim"), architecture.get("factory")
    check_whole("dim", dim, 1, _MAX_WIDTH)
    assert isinstance(dim, int)
    if "program" in architecture:
        return Program(architecture["program"]), dim
    if not isinstance(factory, str):
        raise UsageError(
            "this network of your own is known in this process alone "
            f"({architecture.get('reason', 'it calls a function')}): to keep it in files give load_encoder(…, "
            "factory='package.module:function'), a function of yours that makes it anew"
        )
    if factory not in _confirmed:
        return Unbuilt(architecture.get("state"), factory), dim
    with torch.device("cpu"):
        return _made(factory)[0], dim


def preprocess_of(fields: dict[str, Any]) -> Preprocess:
    """Return a preprocessing of the kinds "items", "characters" and "own". Raise UsageError for wrong fields."""
    if fields["kind"] == "characters":
        return Characters()
    if fields["kind"] == "items":
        return Items.from_json(fields)
    factory = fields.get("factory")
    if not isinstance(factory, str) or not REFERENCE.fullmatch(factory):
        raise UsageError(f"a preprocessing of one's own needs the name of its factory, not {factory!r:.80}")
    found = _made(factory)[1] if factory in _confirmed else None
    return Called(function=found.function if isinstance(found, Called) else None, factory=factory)


def _made(factory: str) -> tuple[nn.Module, Preprocess | None]:
    """Return what a confirmed factory makes, as a network here, with its preprocessing if it gives one."""
    made = _confirmed[factory]()
    if isinstance(made, Encoder):
        return made.module, made.preprocess
    thing, preprocess = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    return _wrapped(thing), None if preprocess is None else _as_preprocess(preprocess, factory)


def _wrapped(thing: Any) -> OwnModule | OwnFunction:
    """Return a module or a function of the user's as a network here.

    Raises:
        UsageError: It is neither, or is not ready to embed.
    """
    if isinstance(thing, nn.Module):
        places = {str(tensor.device) for tensor in [*thing.parameters(), *thing.buffers()]}
        if len(places) > 1 or "meta" in places:
            raise UsageError(f"the module's weights lie on {' and '.join(sorted(places))}: move all to one device")
        if thing.training:
            raise UsageError("the module is in training mode: call its eval() first")
        return OwnModule(thing)
    if not callable(function := getattr(thing, "embed", thing)):
        raise UsageError(f"an encoder is a torch.nn.Module, or a function embed(batch) -> array, not {thing!r:.80}")
    return OwnFunction(function)


def _as_preprocess(preprocess: Any, factory: str) -> Preprocess:
    if isinstance(preprocess, Items | ImagePreprocess | TextPreprocess | HashedWords):
        return preprocess
    if not callable(preprocess):
        raise UsageError(f"preprocess must be an ImagePreprocess or a function of a batch, not {preprocess!r:.80}")
    return Called(function=preprocess, factory=factory)


def own_encoder(
    thing: Any,
    *,
    preprocess: Any = None,
    dim: int | None = None,
    example: Batch | None = None,
    factory: str | Callable[[], Any] | None = None,
) -> Encoder:
    """Return an encoder around a module or a function of the user's, tried out on one batch.

    Args:
        thing: Module in evaluation mode, or function from a batch to an array (n, dim), or "python:" with the name of a
            factory.
        preprocess: An `ImagePreprocess` or another preprocessing of this package, or a function from a batch to the
            module's input. By default items go in as they are, bytes scaled to [0, 1].
        dim: Width of an embedding; by default what the network gives.
        example: Some items of the kind that it takes; needed unless the preprocessing says what that is.
        factory: Function that makes the network anew, or its name: see above. By default a module is kept as the
            program that `torch.export` makes of it.

    Raises:
        UsageError: The network does not embed the items, or gives something else than (n, dim) floats.
        DataError: The items do not go with the preprocessing.
    """
    factory = thing if isinstance(thing, str) else factory
    name = "" if factory is None else confirm(factory)
    if isinstance(thing, str):
        source = f"python:{name}"
        module, given = _made(name)
        preprocess = preprocess or given
    else:
        named = thing if hasattr(thing, "__qualname__") else type(thing)
        source = f"{named.__module__}.{named.__qualname__}"
        module = _wrapped(thing)
    if preprocess is None:
        preprocess = _as_they_are(example, module, source)
    preprocess = _as_preprocess(preprocess, name)
    inputs = _inputs(preprocess, example, source)
    parameter = next(module.parameters(), None)
    inputs = inputs if parameter is None else inputs.to(parameter.device)
    architecture: dict[str, Any] = {"backbone": "own", "dim": _tried(module, inputs, source, dim)}
    if name:
        architecture |= {"factory": name, "state": state_of(module.state_dict(keep_vars=True))}
    elif isinstance(module, OwnModule) and not isinstance(preprocess, Called):
        architecture |= _as_program(module, inputs)
    return Encoder(module, preprocess, architecture["dim"], architecture, source)


def _as_they_are(example: Batch | None, module: nn.Module, source: str) -> Preprocess:
    """Return the preprocessing of items that go in as they are."""
    if example is None:
        raise UsageError(
            f"{source}: say what it takes, by preprocess=ImagePreprocess(height, width) or by example=, some items"
        )
    if isinstance(example, list) and isinstance(example[0], str):
        if isinstance(module, OwnFunction):
            return Characters()
        raise UsageError(
            f"{source} is a module, and the items are texts: give its tokenizer, preprocess=lambda texts: "
            "tokenizer(texts, padding=True, truncation=True, return_tensors='pt'), or a function from texts to an array"
        )
    if not isinstance(example, Tensor):
        raise DataError(f"{source} takes items of one shape: resize them, or give preprocess=ImagePreprocess(…)")
    if not example.is_floating_point() and example.dtype != torch.uint8:
        return Items()
    pixels = example.dtype == torch.uint8 or (float(example.min()) >= 0 and float(example.max()) <= 1)
    if pixels and example.dim() == 4 and example.shape[1] in (1, 3):
        channels, height, width = example.shape[1:]
        return ImagePreprocess(height, width, channels, (0.0,) * channels, (1.0,) * channels, resample="none")
    return Items(tuple(example.shape[1:]))


def _inputs(preprocess: Preprocess, example: Batch | None, source: str) -> Tensor:
    """Return inputs of two items at least."""
    if example is None and isinstance(preprocess, ImagePreprocess):
        example = torch.linspace(0, 1, 2 * math.prod(preprocess.shape)).reshape(2, *preprocess.shape)
    elif example is None and isinstance(preprocess, TextPreprocess | HashedWords | Characters):
        example = ["a", "a b c"]
    elif example is None and isinstance(preprocess, Items) and preprocess.shape:
        example = torch.rand(2, *preprocess.shape, generator=torch.Generator().manual_seed(0))
    if example is None:
        raise UsageError(f"{source}: give example=, some items of the kind that it takes")
    prepared = preprocess.normalise(preprocess.prepare(example))
    return torch.cat([prepared, prepared]) if len(prepared) == 1 else prepared


def _tried(module: nn.Module, inputs: Tensor, source: str, dim: int | None) -> int:
    """Return the width of what a network gives. Raise UsageError where it is no embedding."""
    shape = tuple(inputs.shape)
    try:
        with evaluating(module), torch.no_grad():
            found = module(inputs)
    except Exception as error:  # the user's code
        raise UsageError(
            f"{source} failed on a batch of shape {shape}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(found, Tensor):
        raise UsageError(f"{source} must return one tensor (n, dim), not a {type(found).__name__}: wrap it so")
    if found.dim() != 2 or len(found) != len(inputs) or not found.is_floating_point():
        raise UsageError(
            f"{source} must return floats (n, dim) for n items; for a batch of shape {shape} it returned "
            f"{found.dtype} of shape {tuple(found.shape)}"
        )
    if dim is not None and found.shape[1] != dim:
        raise UsageError(f"{source} gives {found.shape[1]} numbers an item, not dim={dim}")
    if not bool(found.isfinite().all()):
        raise UsageError(f"{source} gives numbers that are not finite")
    return found.shape[1]


def _as_program(module: OwnModule, inputs: Tensor) -> dict[str, Any]:
    """Return the part of a description that holds a module's program, or the reason why there is none."""
    auto = torch.export.Dim.AUTO
    example = inputs[:2]
    try:
        with evaluating(module):
            program, constants = traced(
                module, example, {0: auto} if inputs.is_floating_point() else {0: auto, 2: auto}
            )
            for name, value in constants.items():
                module.constants.register_buffer(name.removeprefix("constants."), value)
            again = Program(program).to(inputs.device).eval()
            again.load_state_dict(module.state_dict())
            # More items than it was traced with: it may have been fixed to two.
            more = torch.cat([example, example[:1].flip(-1) if inputs.is_floating_point() else example[:1]])
            with torch.no_grad():
                wanted, found = module(more).float(), again(more).float()
    except NotWritableError as error:
        return {"reason": str(error)}
    except (RuntimeError, UsageError) as error:
        return {"reason": f"its program does not run: {first_line(error)}"}
    if not torch.allclose(wanted, found, rtol=1e-4, atol=1e-4 * float(wanted.abs().max())):
        return {"reason": "its program answers otherwise than it does"}
    return {"program": program}
