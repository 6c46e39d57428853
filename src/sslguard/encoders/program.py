"""A network as data: the operations that `torch.export` finds in it, in JSON, run one by one. No code is kept or run.

A description has three fields:

- "state": name of a weight or buffer → "parameter float32 64 3 7 7", or "buffer …", or "same NAME" for one that shares
  another's memory;
- "nodes": one JSON text for each operation, such as '["conv2d.default", [{"x": 0}, {"w": "net.first.weight"}], {}]'.
  {"n": 3} is the result of node 3, {"x": 0} the input, {"w": NAME} a weight; {"dtype": …}, {"format": …}, {"device":
  0} (where the input lies) and {"float": "inf"} are what JSON has no word for;
- "output": the result, as an argument of a node.

Operations are those of torch's own that compute from tensors alone: they open no file and draw no random number.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sslguard.errors import UsageError, first_line

MAX_NODES = 1 << 15
MAX_TENSOR = 1 << 28
"""Numbers in one result, for each item."""
_MAX_STATE = 1 << 14
_MAX_RANK = 8
_ARITHMETIC: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {f.__name__: f for f in (operator.getitem, operator.mul, operator.add, operator.sub, operator.floordiv)}
    | {f.__name__: f for f in (operator.truediv, operator.mod, operator.neg, math.floor, math.ceil)}
)
# Operations of torch that are made of the basic ones, which carry torch's mark `core`.
_COMPOSED = frozenset(
    (
        *("batch_norm", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "group_norm"),
        *("instance_norm", "layer_norm", "linear", "rms_norm", "scaled_dot_product_attention", "einsum", "matmul"),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool1d", "adaptive_max_pool2d", "avg_pool1d"),
        *("avg_pool2d", "max_pool1d", "max_pool2d", "max_pool3d", "feature_dropout", "dropout", "alpha_dropout"),
        *("flatten", "unflatten", "reshape", "reshape_as", "view_as", "expand_as", "transpose", "t", "numpy_T"),
        *("movedim", "swapaxes", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "stack", "hstack"),
        *("vstack", "concat", "contiguous", "to", "type_as", "narrow", "squeeze", "unsqueeze", "select", "roll"),
        *("flip", "tile", "repeat_interleave", "meshgrid", "pad", "one_hot", "take_along_dim", "gather", "index_put"),
        *("softmax", "log_softmax", "norm", "linalg_vector_norm", "cosine_similarity", "std", "var", "std_mean"),
        *("var_mean", "mean", "sum", "addmm", "baddbmm", "bmm", "mm", "mv", "dot", "outer", "tril", "triu", "cumsum"),
        *("masked_fill", "where", "detach", "alias", "clone", "lift_fresh_copy", "lift_fresh", "zeros", "ones"),
        *("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "empty_like", "linspace"),
        *("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d", "glu", "prelu", "pixel_shuffle"),
        *("pixel_unshuffle", "channel_shuffle", "unfold", "im2col", "square", "relu6", "amax", "amin", "rsub"),
        *("broadcast_to", "argsort", "sort", "topk", "embedding", "bucketize", "sym_size", "_unsafe_view"),
        *("__and__", "__or__", "fill", "zero", "copy", "logsumexp", "index", "ravel", "unsafe_chunk", "arange"),
        *("multiply", "divide", "true_divide", "subtract", "concatenate", "celu", "unsafe_split", "diff", "kron"),
        *(
            "mT",
            "mH",
            "matrix_H",
            "adjoint",
            "frobenius_norm",
            "nuclear_norm",
            "swapdims",
            "moveaxis",
            "constant_pad_nd",
        ),
        *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "is_nonzero", "avg_pool3d", "adaptive_avg_pool3d"),
        *("hardswish", "hardsigmoid", "lstm", "gru", "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "std_mean"),
        *("linalg_norm", "fft_rfft2", "fft_irfft2", "nan_to_num", "silu", "logical_not", "isin", "clamp"),
    )
)
# What checks sizes while it runs, and makes nothing.
_CHECKS = ("_assert", "sym_constrain")


class NotWritableError(Exception):
    """A network cannot be written as a program."""


def traced(network: nn.Module, example: Tensor, dynamic: Mapping[int, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description of a network in evaluation mode, and the constants that it needs beside its state.

    Args:
        network: It takes one tensor and returns one.
        example: Its input, of two items at least.
        dynamic: Axes of the input that may have any length, as `torch.export` takes them.

    Raises:
        NotWritableError: `torch.export` cannot follow the network, or it needs what no program may hold.
    """
    try:
        with torch.no_grad():
            found = torch.export.export(network, (example,), dynamic_shapes=(dict(dynamic),), strict=False)
    except Exception as error:  # torch.export raises what it likes
        raise NotWritableError(f"torch.export cannot follow it: {first_line(error)}") from error
    constants = {name: value for name, value in found.constants.items() if isinstance(value, Tensor)}
    places, inputs = {}, []
    for spec in found.graph_signature.input_specs:
        kind, name = spec.kind.name, str(getattr(spec.arg, "name", ""))
        if kind in ("PARAMETER", "BUFFER") and spec.target in network.state_dict():
            places[name] = {"w": spec.target}
        elif spec.target in constants:
            places[name] = {"w": _constant(spec.target)}
        elif kind == "USER_INPUT":
            places[name] = {"x": len(inputs)}
            inputs.append(name)
        else:
            raise NotWritableError(f"it needs {spec.target or name!r:.80}, which is no tensor")
    try:
        nodes, output = _nodes(found.graph, places)
    except UsageError as error:
        raise NotWritableError(str(error)) from error
    kept = {_constant(name): value.detach().clone() for name, value in constants.items()}
    whole = {**network.state_dict(keep_vars=True), **kept}
    return {"state": state_of(whole), "nodes": nodes, "output": output}, kept


def _constant(name: str) -> str:
    return "constants." + re.sub(r"\W", "_", name)


def _nodes(graph: torch.fx.Graph, places: dict[str, dict[str, Any]]) -> tuple[list[str], Any]:
    nodes: list[str] = []
    for node in graph.nodes:
        if node.op == "output":
            return nodes, _written(node.args[0][0], places)
        if node.op == "placeholder":
            continue
        if node.op != "call_function":
            raise UsageError(f"it needs {node.target!s:.80}, which is no operation on tensors")
        name = str(getattr(node.target, "__name__", node.target))
        if name.startswith(_CHECKS) or not (node.users or name.partition(".")[0].endswith("_")):
            continue
        if isinstance(node.target, torch._ops.OpOverload):
            name = str(node.target).removeprefix("aten.")
        _operation(name)
        args = _written(list(node.args), places)
        places[node.name] = {"n": len(nodes)}
        named = {k: _written(v, places) for k, v in node.kwargs.items() if k not in ("pin_memory", "layout")}
        nodes.append(json.dumps([name, args, named]))
    raise UsageError("it has no output")


def _written(value: Any, places: Mapping[str, dict[str, Any]]) -> Any:
    """Return an argument as JSON."""
    if isinstance(value, torch.fx.Node):
        if value.name not in places:
            raise UsageError(f"it needs the result of {value.target!s:.80}")
        return places[value.name]
    if isinstance(value, list | tuple):
        return [_written(one, places) for one in value]
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.memory_format):
        return {"format": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": 0}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or value is torch.strided:
        return None
    if isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"it needs {value!r:.80}, which cannot be written")


def state_of(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return a description's "state" of a state dict, taken with `keep_vars`."""
    first: dict[int, str] = {}
    found = {}
    for name, tensor in tensors.items():
        other = first.setdefault(id(tensor), name) if isinstance(tensor, nn.Parameter) else name
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
        words = [kind, str(tensor.dtype).removeprefix("torch."), *map(str, tensor.shape)]
        found[name] = f"same {other}" if other != name else " ".join(words)
    return found


class Step(NamedTuple):
    """One operation of a program.

    Attributes:
        name: Name of the operation, such as "conv2d".
        args: Its arguments, as a description has them.
        kwargs: Its named arguments, likewise.
        result: What it gives for two items, on torch's meta device.
    """

    name: str
    args: list[Any]
    kwargs: dict[str, Any]
    result: Any


class Program(nn.Module):
    """The network of a description, without its values: its state dict has the names of the network's own.

    Args:
        description: See above.

    Raises:
        UsageError: It is none, or names an operation that no program may hold.
    """

    def __init__(self, description: object) -> None:
        super().__init__()
        if not isinstance(description, dict) or description.keys() != {"state", "nodes", "output"}:
            raise UsageError(f"a program has state, nodes and an output, not {description!r:.80}")
        self._places = register(self, description["state"])
        nodes = description["nodes"]
        if not isinstance(nodes, list) or len(nodes) > MAX_NODES:
            raise UsageError(f"a program must have a list of {MAX_NODES} operations at most")
        self._nodes = [_node(text) for text in nodes]
        self._output = description["output"]
        try:
            uses = [list(_references([args, *kwargs.values()])) for _, args, kwargs in self._nodes]
            kept = set(_references(self._output))
        except RecursionError:
            raise UsageError("an argument of a program is nested too deeply") from None
        last = {k: place for place, used in enumerate(uses) for k in used if k not in kept}
        self._done = [[k for k in set(used) if last.get(k) == place] for place, used in enumerate(uses)]
        if any(not 0 <= k < place for place, used in enumerate([*uses, kept]) for k in used):
            raise UsageError("an operation of a program needs the result of a later one")
        self._seen: set[tuple[int, ...]] = set()

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the program, (n, dim).

        Raises:
            UsageError: The program does not run on an input of this shape, or would take too much memory.
        """
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
        if not exporting and (shape := tuple(x.shape[1:])) not in self._seen:
            self._check(x)
            self._seen.add(shape)
        return self._run(x, {name: self._weight(name) for name in self._places}, most=None)

    def walk(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[list[Step], Any]:
        """Return the operations in order with what they give for two items, and the output as an argument.

        Args:
            shape: Of one item.
            dtype: Of the items.

        Raises:
            UsageError: The program does not run on such items.
        """
        found = self._check(torch.empty((2, *shape), dtype=dtype, device="meta"), keep=True)
        named = [str(getattr(call, "__name__", call)).partition(".")[0] for call, _, _ in self._nodes]
        steps = [
            Step(name.removesuffix("_"), args, kwargs, found[place])
            for place, (name, (_, args, kwargs)) in enumerate(zip(named, self._nodes, strict=True))
        ]
        return steps, self._output

    def _check(self, x: Tensor, *, keep: bool = False) -> dict[int, Any]:
        """Run on shapes alone, for two items. Return the results, on torch's meta device, if they are kept."""
        blank = torch.empty((2, *x.shape[1:]), dtype=x.dtype, device="meta")
        weights = {name: torch.empty_like(self._weight(name), device="meta") for name in self._places}
        results: dict[int, Any] = {}
        try:
            with torch.no_grad():
                self._run(blank, weights, most=2 * MAX_TENSOR, results=results, keep=keep)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"the program does not run on {tuple(x.shape)}: {first_line(error)}") from error
        return results

    def _run(
        self,
        x: Tensor,
        weights: Mapping[str, Tensor],
        *,
        most: int | None,
        results: dict[int, Any] | None = None,
        keep: bool = False,
    ) -> Tensor:
        results = {} if results is None else results

        def value(written: Any) -> Any:
            if isinstance(written, list):
                return [value(one) for one in written]
            if not isinstance(written, dict):
                return written
            ((kind, name),) = written.items()
            return _READ[kind](name, x, weights, results)

        for place, (call, args, kwargs) in enumerate(self._nodes):
            found = call(*value(args), **{name: value(one) for name, one in kwargs.items()})
            results[place] = found
            if most is not None and any(
                isinstance(one, Tensor) and one.numel() > most
                for one in (found if isinstance(found, list | tuple) else [found])
            ):
                raise UsageError(f"a result inside the program would have more than {MAX_TENSOR} numbers an item")
            for done in () if keep else self._done[place]:
                del results[done]
        return value(self._output)

    def _weight(self, name: str) -> Tensor:
        inner, _, last = name.rpartition(".")
        return getattr(self.get_submodule(inner), last)


_READ: Mapping[str, Callable[[Any, Tensor, Mapping[str, Tensor], dict[int, Any]], Any]] = MappingProxyType(
    {
        "n": lambda name, _x, _weights, results: results[name],
        "x": lambda _name, x, _weights, _results: x,
        "w": lambda name, _x, weights, _results: weights[name],
        "dtype": lambda name, _x, _weights, _results: _DTYPES[name],
        "format": lambda name, _x, _weights, _results: _FORMATS[name],
        "device": lambda _name, x, _weights, _results: x.device,
        "float": lambda name, _x, _weights, _results: float(name),
    }
)
_DTYPES = {
    str(one).removeprefix("torch."): one
    for one in (
        *(torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    )
}
_FORMATS = {
    str(one).removeprefix("torch."): one
    for one in (torch.contiguous_format, torch.channels_last, torch.preserve_format)
}


def register(module: nn.Module, state: object) -> list[str]:
    """Register the weights and buffers of a description's "state", with no values, and return their names.

    Raises:
        UsageError: It is no such description.
    """
    if not isinstance(state, dict) or len(state) > _MAX_STATE:
        raise UsageError(f"the state of a program must be a table of {_MAX_STATE} tensors at most")
    # JSON sorts names: those that share another's memory come when that is there.
    for name, said in sorted(state.items(), key=lambda one: str(one[1]).startswith("same ")):
        kind, *rest = said.split(" ") if isinstance(said, str) else ("",)
        inner, _, last = name.rpartition(".")
        if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", name) or hasattr(holder := _holder(module, inner), last):
            raise UsageError(f"a program cannot have a weight {name!r:.80}")
        if kind == "same" and rest and rest[0] in state and not str(state[rest[0]]).startswith("same "):
            there, _, one = rest[0].rpartition(".")
            tensor = getattr(module.get_submodule(there), one)
        elif kind in ("parameter", "buffer") and rest and rest[0] in _DTYPES and len(rest) <= 1 + _MAX_RANK:
            if not all(size.isascii() and size.isdigit() and len(size) < 12 for size in rest[1:]):
                raise UsageError(f"not the shape of a weight: {said!r:.80}")
            tensor = torch.zeros([int(size) for size in rest[1:]], dtype=_DTYPES[rest[0]])
        else:
            raise UsageError(f"not the description of a weight: {said!r:.80}")
        if kind == "parameter":
            tensor = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(last, tensor)
        else:
            holder.register_buffer(last, tensor)
    return list(state)


def _holder(module: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path, made where there is none."""
    for part in path.split(".") if path else []:
        if not isinstance(getattr(module, part, None), nn.Module):
            if hasattr(module, part):
                raise UsageError(f"a program cannot have a part {part!r:.80}")
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module


def _node(text: object) -> tuple[Callable[..., Any], list[Any], dict[str, Any]]:
    """Return function, arguments and named arguments of a node."""
    try:
        name, args, kwargs = json.loads(text) if isinstance(text, str) else (None, None, None)
    except (ValueError, RecursionError, TypeError):
        name, args, kwargs = None, None, None
    if not isinstance(name, str) or not isinstance(args, list) or not isinstance(kwargs, dict):
        raise UsageError(f"not an operation of a program: {text!r:.80}")
    return _operation(name), args, kwargs


def _operation(name: str) -> Callable[..., Any]:
    """Return torch's operation of a name such as "conv2d.default". Raise UsageError where no program may hold it."""
    if name in _ARITHMETIC:
        return _ARITHMETIC[name]
    packet, _, overload = name.partition(".")
    found = None
    if re.fullmatch(r"[A-Za-z_]\w*", packet) and re.fullmatch(r"\w+", overload):
        found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if isinstance(found, torch._ops.OpOverload) and _computes(packet, found.tags):
        return found
    raise UsageError(f"it needs the operation {name!r:.80}, which is not known here")


def _computes(packet: str, tags: list[Any]) -> bool:
    if torch.Tag.nondeterministic_seeded in tags and "dropout" not in packet:
        return packet == "scaled_dot_product_attention"
    in_place = packet.removesuffix("_")
    return packet in _COMPOSED or in_place in _COMPOSED or torch.Tag.core in tags or torch.Tag.pointwise in tags


def _references(written: Any) -> Iterator[int]:
    """Yield the nodes whose results an argument needs. Raise UsageError for what is no argument."""
    if isinstance(written, list):
        for one in written:
            yield from _references(one)
    elif isinstance(written, dict):
        for kind, name in written.items():
            number = kind in ("n", "x", "device")
            known = {"dtype": _DTYPES, "format": _FORMATS, "float": ("inf", "-inf", "nan")}.get(kind)
            fits = isinstance(name, int) if number else isinstance(name, str) and (known is None or name in known)
            if len(written) != 1 or kind not in _READ or not fits:
                raise UsageError(f"not an argument of an operation: {written!r:.80}")
            if kind == "n":
                yield int(name)
