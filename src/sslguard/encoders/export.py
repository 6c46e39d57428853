"""An encoder as an ONNX file, which other programs run without torch and without this package.

Images come in as `images`, float32 (n, C, H, W) in [0, 1] of the encoder's own size; tokens as `input_ids` and
`attention_mask`, int64 (n, L), with the tokenizer.json beside the file. `embeddings` (n, dim) come out. Normalising,
and a head where the encoder has one, are part of the file. The metadata entry `input.preprocess` holds what
`rebuild.preprocess_from_json` makes items into inputs with.
"""

from __future__ import annotations

import io
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sslguard.encoders.base import Encoder, evaluating
from sslguard.encoders.own import Called, Characters, Items
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.errors import EncoderError, OutputError, first_line, required_by
from sslguard.files import write_atomic

METADATA = "input.preprocess"
OPSET = 18
TOLERANCE = 1e-3
"""Of the largest number in an embedding."""
_TOKENS = ("input_ids", "attention_mask")


class _Images(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.module, self.preprocess = encoder.module, encoder.preprocess

    def forward(self, images: Tensor) -> Tensor:
        return self.module(self.preprocess.normalise(images))


class _Tokens(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.module = encoder.module

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.module(torch.stack((ids, mask), 1))


def export_onnx(encoder: Encoder, path: Path) -> None:
    """Write `encoder`, in evaluation mode, to the ONNX file `path`, and beside it the files that its texts need.

    The file is run on inputs of other sizes than it was traced with before it is written.

    Raises:
        EncoderError: it holds an operation that ONNX has no name for, or the file answers otherwise.
        OutputError: the file cannot be written, or one beside it is there already and is another.
        MissingExtraError: onnx or onnxruntime is not installed.
    """
    runtime, beside = _libraries(), encoder.preprocess.files()
    for name, content in beside.items():
        check_free(path.parent / name, content)
    with evaluating(encoder.module), torch.no_grad():
        model = _model(encoder)
        _check(encoder, model, runtime)
    for name, content in beside.items():
        write_atomic(path.parent / name, content)
    write_atomic(path, model)


def check_free(path: Path, content: bytes) -> None:
    """Raise OutputError where something else than `content` stands at `path`."""
    if not os.path.lexists(path):
        return
    try:
        same = path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        same = False
    if not same:
        raise OutputError(f"{path} is there already and is another one: export into a folder of its own")


def _model(encoder: Encoder) -> bytes:
    """Return the content of the file."""
    import onnx

    network, content = whole_network(encoder), io.BytesIO()
    tokens = _takes_tokens(encoder)
    names, axes = (list(_TOKENS), {0: "n", 1: "length"}) if tokens else (["images"], {0: "n"})
    with traceable():
        try:
            torch.onnx.export(
                network,
                example_inputs(encoder, 2),
                content,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=["embeddings"],
                dynamic_axes={**dict.fromkeys(names, axes), "embeddings": {0: "n"}},
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise _cannot_write(encoder, error) from error
    model = onnx.load_model_from_string(content.getvalue())
    onnx.helper.set_model_props(model, {METADATA: json.dumps(_seen_from_outside(encoder), sort_keys=True)})
    return model.SerializeToString()


def _check(encoder: Encoder, model: bytes, runtime: Any) -> None:
    """Raise EncoderError where the file does not answer as the encoder does."""
    inputs = example_inputs(encoder, 3)
    expected = whole_network(encoder)(*inputs).float().cpu().numpy()
    settings = runtime.SessionOptions()
    settings.log_severity_level = 4
    try:
        session = runtime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        names = [one.name for one in session.get_inputs()]
        feeds = {name: value.cpu().numpy() for name, value in zip(names, inputs, strict=True)}
        (found,) = session.run(None, feeds)
    except Exception as error:  # onnxruntime's own errors have no common class but this
        raise _cannot_write(encoder, error) from error
    far = np.abs(found - expected).max() > TOLERANCE * max(1e-6, float(np.abs(expected).max()))
    if found.shape != expected.shape or far:
        raise EncoderError(f"{encoder.source} cannot be written as ONNX: the file would answer otherwise")


def _cannot_write(encoder: Encoder, error: Exception) -> EncoderError:
    return EncoderError(f"{encoder.source} cannot be written as ONNX: {first_line(error)}")


def _libraries() -> Any:
    # Read when the library loads.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    with required_by("writing ONNX", "onnx"):
        import onnx  # noqa: F401
        import onnxruntime
    return onnxruntime


@contextmanager
def traceable() -> Iterator[None]:
    """Keep torch from fusing layers, which ONNX has no name for, and send what it prints to standard error."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    # Written by compiled code, past sys.stdout. The name is torch's own and may go.
    if (redirect := getattr(torch._C, "_jit_set_onnx_log_output_stream", None)) is not None:
        redirect("stderr")
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            # The exporter that torch recommends takes a package more; what tracing warns of are sizes that are fixed.
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def is_of_images(encoder: Encoder) -> bool:
    """Return whether an encoder takes images."""
    return isinstance(encoder.preprocess, ImagePreprocess)


def _takes_tokens(encoder: Encoder) -> bool:
    preprocess = encoder.preprocess
    return not is_of_images(encoder) and not (isinstance(preprocess, Items) and preprocess.shape)


def whole_network(encoder: Encoder) -> nn.Module:
    """Return the network as a file shall hold it: of images in [0, 1], of ids and mask, or of what an item is."""
    if is_of_images(encoder):
        return _Images(encoder).eval()
    return (_Tokens(encoder) if _takes_tokens(encoder) else encoder.module).eval()


def example_inputs(encoder: Encoder, n: int) -> tuple[Tensor, ...]:
    """Return inputs of n items for `whole_network`; texts grow longer with n.

    Raises:
        EncoderError: What comes before the network is a function of the user's, which no file can hold.
    """
    preprocess = encoder.preprocess
    if isinstance(preprocess, Called | Characters):
        raise EncoderError(f"{encoder.source} has a function before its network, which no file can hold")
    if isinstance(preprocess, Items) and not preprocess.shape:
        ids = torch.arange(1, n * (n + 1) + 1, device=encoder.device).reshape(n, n + 1) % 50
        return ids, torch.ones_like(ids)
    if isinstance(preprocess, Items | ImagePreprocess):
        sides = preprocess.shape
        ramp = torch.linspace(0, 1, n * math.prod(sides), device=encoder.device)
        return (ramp.reshape(n, *sides),)
    texts: list[str] = ["a b c d e"[: 2 * i + 1] for i in range(n)]
    return preprocess.prepare(texts).to(encoder.device).unbind(1)


def _seen_from_outside(encoder: Encoder) -> dict[str, object]:
    """Return the preprocessing without its normalising, which the file holds."""
    fields = encoder.preprocess.to_json()
    if isinstance(encoder.preprocess, ImagePreprocess):
        channels = encoder.preprocess.channels
        fields |= {"mean": [0.0] * channels, "std": [1.0] * channels}
    return fields
