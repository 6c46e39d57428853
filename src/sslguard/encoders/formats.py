"""Encoders written as the libraries that they came from write them, so that those load them without this package.

====================  ==============================================================================================
hf                    a folder of transformers: config.json, model.safetensors, and the tokenizer or image processor
sentence-transformers the same with modules.json: pooling, layers behind it, prompt
timm                  a folder of timm's: config.json, model.safetensors; timm.create_model("local-dir:FOLDER")
state-dict            a file of weights (.safetensors, .pth) under the names of the file or the library they came from
onnx                  a file for onnxruntime: see `export`
torch-export          a file for `torch.export.load` (.pt2), with the inputs of the ONNX file
====================  ==============================================================================================

The mark of the scheme "exact" may be a head behind the network: a function of its output and of its input, which no
linear layer can hold. In the last two formats it is part of the file. In the others it stands beside the weights as
head.pt2, a program of `torch.export` that takes embeddings and the network's inputs and returns what is to be served;
in a folder of sentence-transformers a module, head.py, calls it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sslguard.encoders.base import Encoder, evaluating
from sslguard.encoders.checkpoint import checkpoint_heads, checkpoint_names
from sslguard.encoders.export import TOLERANCE, check_free, example_inputs, export_onnx, traceable, whole_network
from sslguard.encoders.heads import Headed
from sslguard.encoders.huggingface import save_model, write_sentences, write_transformer
from sslguard.encoders.model_card import parts, write_card
from sslguard.encoders.names import HEAD
from sslguard.encoders.own import OwnFunction, OwnModule
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.processors import described
from sslguard.encoders.program import Program
from sslguard.encoders.published import plain, write_timm
from sslguard.encoders.sentences import Behind, StaticModule
from sslguard.encoders.text import TextModule
from sslguard.encoders.vision import VisionModule
from sslguard.errors import EncoderError, OutputError, UsageError, first_line
from sslguard.files import atomic_folder, write_atomic

FOLDERS = ("hf", "sentence-transformers", "timm")
FILES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "state-dict": (".safetensors", ".pth", ".pt", ".bin", ".tar"),
        "onnx": (".onnx",),
        "torch-export": (".pt2",),
    }
)
"""Formats that are files → how their names may end."""
FORMATS = (*FOLDERS, *FILES)


def usual_formats(encoder: Encoder) -> tuple[str, ...]:
    """Return the formats of the library that an encoder came from; none for networks of this package's own."""
    base, _ = parts(encoder)
    if "linear" in encoder.architecture:
        return ()
    if isinstance(base, TextModule | StaticModule):
        return ("sentence-transformers",) if not isinstance(base, TextModule) or _pools(base) else ("hf",)
    if isinstance(base, VisionModule):
        return ("hf",)
    family = str(encoder.architecture.get("backbone")).partition(":")[0]
    if family == "timm":
        came = encoder.record.get("checkpoint") or {}
        return ("timm", "state-dict") if came.get("prefix") or came.get("container") else ("timm",)
    return ("state-dict",) if family in ("torchvision", "own") and not isinstance(base, OwnFunction) else ()


def write_usual(encoder: Encoder, folder: Path) -> tuple[str, ...]:
    """Write an encoder into a folder that is there, in its `usual_formats`, and return these.

    Raises:
        EncoderError, UsageError: A format cannot hold it.
    """
    formats = usual_formats(encoder)
    for name in formats:
        _WRITERS[name](encoder, folder / _file_name(encoder) if name in FILES else folder)
    # A module of sentence-transformers holds its head. Without a format there are no weights to put one behind.
    if formats and parts(encoder)[1] is not None and formats != ("sentence-transformers",):
        _write_head(encoder, folder)
    return formats


def guessed_format(encoder: Encoder, out: Path) -> str:
    """Return the format that the end of a name says; else the first of the usual ones.

    Raises:
        UsageError: There is none.
    """
    by_end = [name for name, ends in FILES.items() if out.suffix in ends]
    if found := [*by_end, *usual_formats(encoder)]:
        return found[0]
    raise UsageError(f"name a format: {encoder.source} came from no library's, so give --format onnx or torch-export")


def export(
    encoder: Encoder, out: Path, form: str | None = None, *, base_model: str | None = None, tell: bool = False
) -> str:
    """Write an encoder to the folder or the file `out`, and return the format's name.

    Args:
        encoder: What is written; it stays as it is.
        out: A folder that is not there yet, for hf, sentence-transformers and timm; else a file.
        form: One of `FORMATS`; `guessed_format` unless given.
        base_model: What the model card names as its base; what the encoder came from unless given.
        tell: Whether the model card says that the encoder is watermarked.

    Raises:
        UsageError: There is no such format, or it cannot hold this encoder.
        EncoderError: The encoder cannot be written so, or answers otherwise when it is.
        OutputError: `out` is taken, or cannot be written.
    """
    form = form or guessed_format(encoder, out)
    if form not in FORMATS:
        raise UsageError(f"the format must be one of {', '.join(FORMATS)}, not {form!r:.80}")
    if form in FILES:
        if out.suffix not in FILES[form]:
            raise UsageError(f"a file of {form} ends in {' or '.join(FILES[form])}: {out} does not")
        if form == "state-dict" and parts(encoder)[1] is not None:
            check_free(out.parent / HEAD, b"")
            _write_head(encoder, out.parent)
        _WRITERS[form](encoder, out)
        return form
    with atomic_folder(out) as partial:
        _WRITERS[form](encoder, partial)
        if form != "sentence-transformers" and parts(encoder)[1] is not None:
            _write_head(encoder, partial)
        write_card(encoder, partial, form, base_model, tell=tell)
    return form


def _pools(module: TextModule) -> bool:
    return module.pooling not in ("pooler", "projection")


def _write_hf(encoder: Encoder, folder: Path) -> None:
    base, _ = parts(encoder)
    if isinstance(base, TextModule):
        if encoder.architecture.keys() & {"layers", "truncate"}:
            raise _other(encoder, "hf", "transformers alone, and here layers or a cut come behind the pooling")
        write_transformer(encoder, base, folder)
    elif isinstance(base, VisionModule) and isinstance(encoder.preprocess, ImagePreprocess):
        save_model(base.model, folder)
        content = json.dumps(described(encoder.preprocess), indent=2)
        (folder / "preprocessor_config.json").write_text(content + "\n", "utf-8")
    else:
        raise _other(encoder, "hf", "encoders of transformers")


def _write_sentences(encoder: Encoder, folder: Path) -> None:
    base, headed = parts(encoder)
    if not isinstance(base, TextModule | StaticModule):
        raise _other(encoder, "sentence-transformers", "encoders of texts of transformers and sentence-transformers")
    listed = write_sentences(encoder, base, folder)
    if headed is None:
        return
    place = len(listed)
    path = folder / f"{place}_Head"
    path.mkdir()
    (folder / "head.py").write_text(_HEAD_MODULE, "utf-8")
    module = {"idx": place, "name": str(place), "path": path.name, "type": "head.Head"}
    (folder / "modules.json").write_text(json.dumps([*listed, module], indent=2) + "\n", "utf-8")
    # The head comes behind the cut, which sentence-transformers would make last.
    behind = base.behind
    assert isinstance(behind, Behind)
    cut, behind.truncate = behind.truncate, None
    try:
        with evaluating(base), torch.no_grad():
            whole = base(torch.stack(example_inputs(encoder, 1), 1)).shape[1]
    finally:
        behind.truncate = cut
    general = folder / "config_sentence_transformers.json"
    content = json.loads(general.read_text("utf-8"))
    content.pop("truncate_dim", None)
    general.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    _write_head(encoder, path, whole)


def _write_state(encoder: Encoder, file: Path) -> None:
    base, _ = parts(encoder)
    came = encoder.record.get("checkpoint") or {}
    if isinstance(base, OwnFunction):
        raise _other(encoder, "state-dict", "networks, and this is a function")
    if isinstance(base, TextModule | VisionModule):
        state = base.model.state_dict()
    elif isinstance(base, OwnModule):
        state = base.net.state_dict()
    elif isinstance(base, Program):
        state = {n.removeprefix("net."): t for n, t in base.state_dict().items() if n.startswith("net.")}
    else:
        state = base.state_dict()
    names = checkpoint_names(came, state)
    tensors = plain({**{names[name]: tensor for name, tensor in state.items()}, **checkpoint_heads(came)})
    if file.suffix == ".safetensors":
        with _as_output(file):
            save_file(tensors, file)
        return
    content: Any = tensors
    for part in reversed(came.get("container", "").split("/") if came.get("container") else []):
        content = {part: content}
    with _as_output(file):
        torch.save(content, file)


def _write_program(encoder: Encoder, file: Path) -> None:
    inputs = example_inputs(encoder, 2)
    network, more = whole_network(encoder), example_inputs(encoder, 3)
    program = _exported(encoder, network, inputs)
    try:
        with evaluating(network), torch.no_grad(), traceable():
            wanted, found = network(*more), program.module()(*more)
    except Exception as error:
        raise EncoderError(f"{encoder.source} cannot be written by torch.export: {first_line(error)}") from error
    if (found - wanted).abs().max() > TOLERANCE * wanted.abs().max():
        raise EncoderError(f"{encoder.source} cannot be written by torch.export: the file would answer otherwise")
    for name, content in encoder.preprocess.files().items():
        check_free(file.parent / name, content)
        write_atomic(file.parent / name, content)
    _save_program(program, file)


def _exported(encoder: Encoder, network: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """Return the program of a network, for any number of items and tokens."""
    auto = torch.export.Dim.AUTO
    inputs = tuple(one.contiguous() for one in inputs)  # as tokenizers and processors give them
    shapes = tuple({0: auto} if one.is_floating_point() else {0: auto, 1: auto} for one in inputs)
    try:
        with evaluating(network), torch.no_grad(), traceable():
            return torch.export.export(network, inputs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises what it likes
        raise EncoderError(f"{encoder.source} cannot be written by torch.export: {first_line(error)}") from error


def _write_head(encoder: Encoder, folder: Path, width: int | None = None) -> None:
    """Write an encoder's head as a program, for embeddings of `width`, of which it takes the first numbers."""
    assert isinstance(encoder.module, Headed)
    inputs = example_inputs(encoder, 2)
    behind = _HeadAlone(encoder.module, encoder.dim)
    sample = torch.ones(2, width or encoder.dim, device=encoder.device)
    _save_program(_exported(encoder, behind, (sample, *inputs)), folder / HEAD)


def _save_program(program: Any, file: Path) -> None:
    """Write a program, without the lines of code that it was traced from."""
    for node in program.graph.nodes:
        node.meta = {name: value for name, value in node.meta.items() if name in ("val", "tensor_meta")}
    with _as_output(file), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights that are views of others
        torch.export.save(program, file)


class _HeadAlone(nn.Module):
    """A head without its network: embeddings and the network's inputs → what is to be served, (n, dim)."""

    def __init__(self, headed: Headed, dim: int) -> None:
        super().__init__()
        self.head, self.statistics, self.dim = headed.head, headed.statistics, dim

    def forward(self, embeddings: Tensor, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        inputs = inputs if mask is None else torch.stack((inputs, mask), 1)
        return self.head(embeddings[:, : self.dim], self.statistics(inputs))


def _write_timm(encoder: Encoder, folder: Path) -> None:
    if not str(encoder.architecture.get("backbone")).startswith("timm:") or "linear" in encoder.architecture:
        raise _other(encoder, "timm", "networks of timm")
    write_timm(encoder, parts(encoder)[0], folder)


def _file_name(encoder: Encoder) -> str:
    came = str((encoder.record.get("checkpoint") or {}).get("path", ""))
    return "checkpoint.safetensors" if came.endswith(".safetensors") or not came else "checkpoint.pth"


def _other(encoder: Encoder, form: str, what: str) -> UsageError:
    usual = " or ".join((*usual_formats(encoder), "onnx", "torch-export"))
    return UsageError(f"{form} is for {what}: for {encoder.source} choose {usual}")


@contextmanager
def _as_output(path: Path) -> Iterator[None]:
    """Make the folder of a file; inside the block an error of the system is one of the place that is written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error


_WRITERS: Mapping[str, Callable[[Encoder, Path], None]] = MappingProxyType(
    {
        "hf": _write_hf,
        "sentence-transformers": _write_sentences,
        "timm": _write_timm,
        "state-dict": _write_state,
        "onnx": export_onnx,
        "torch-export": _write_program,
    }
)


_HEAD_MODULE = '''"""The last step of an encoder of texts: a program of torch.export, of embeddings and tokens."""

import shutil
from pathlib import Path

import torch
from torch import nn


class Head(nn.Module):
    """A module of sentence-transformers around the file head.pt2."""

    def __init__(self, file):
        super().__init__()
        self.file = Path(file)
        self.program = torch.export.load(self.file).module()

    def forward(self, features, **_):
        """Replace the embeddings of texts by what the program makes of them and of their tokens."""
        tokens = features["input_ids"], features["attention_mask"]
        features["sentence_embedding"] = self.program(features["sentence_embedding"].float(), *tokens)
        return features

    def save(self, output_path, *_, **__):
        """Copy the program."""
        shutil.copy(self.file, output_path)

    @staticmethod
    def load(path, subfolder="", **_):
        """Return the module in a folder."""
        return Head(Path(path) / subfolder / "head.pt2")
'''
