"""Commands that hand encoders to other programs: `serve`, `export`."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Group, Parameter

from sslguard.cli.checks import check
from sslguard.cli.options import EMBEDDING, PRINTED, Count, NotNegative, Output, Running, Seed
from sslguard.cli.output import Result, say
from sslguard.errors import MissingExtraError, UsageError
from sslguard.serve.headers import checked_header

LIMITS = Group("Limits", sort_key=1)
_MIB = 1 << 20
Format = Literal["hf", "sentence-transformers", "timm", "state-dict", "onnx", "torch-export"]


def serve(
    encoder: str,
    /,
    *,
    head: Path | None = None,
    recipient_header: str | None = None,
    name: str = "encoder",
    host: str = "127.0.0.1",
    port: Seed = 8000,
    auth_env: str | None = None,
    max_batch: Annotated[Count, Parameter(group=LIMITS)] = 64,
    max_wait: Annotated[NotNegative, Parameter(group=LIMITS)] = 2.0,
    max_items: Annotated[Count, Parameter(group=LIMITS)] = 1024,
    max_megabytes: Annotated[Count, Parameter(group=LIMITS)] = 32,
    running: Running = EMBEDDING,
    output: Output = PRINTED,
) -> Result:
    """Answer queries over HTTP until ^C or SIGTERM.

    Over the Open Inference Protocol V2 (/v2/models/NAME/infer; JSON tensors or bytes), and for texts as OpenAI
    (/v1/embeddings) and text-embeddings-inference (/embed) do; /v1/embed takes {"texts": [...]} or
    {"images": [base64, ...]}. An encoder marked by a head answers with its head. Whoever reaches the port may ask.

    Args:
        encoder: The encoder.
        head: Folder of a key of the scheme exact: its mark is put on the answers of its clean encoder, which ENCODER
            must be.
        recipient_header: Header that names the recipient who asks, as X-Customer: his answers also hold his own mark.
            Nobody but recipients of the key is answered: status 400 no name, 403 unknown or revoked. The server
            believes the header. What stands in front must authenticate callers, remove the header from what they send,
            and set it.
        name: Of the model, in addresses and answers.
        host: Address of this machine to listen on; 0.0.0.0 for all.
        port: Port; 0 for any that is free.
        auth_env: Environment variable that holds a token; callers send it as Authorization: Bearer.
        max_batch: Items that go through the encoder together.
        max_wait: Milliseconds that a request waits for others.
        max_items: Items of a request.
        max_megabytes: Size of a request.
        running: What encoders run on.
        output: How results are printed.
    """
    check(encoders=[encoder], key=head)
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise MissingExtraError("serving an encoder", "serve")
    token = None if auth_env is None else os.environ.get(auth_env, "").strip()
    if token == "":
        raise UsageError(f"the environment variable {auth_env!r:.80} holds no token: set it")
    if recipient_header is not None:
        checked_header(recipient_header)
        if head is None:
            raise UsageError("--recipient-header needs --head KEY, whose recipients it names")

    from sslguard.encoders.load import load_encoder
    from sslguard.schemes.keyfile import open_key
    from sslguard.serve import open_server
    from sslguard.serve.app import Settings
    from sslguard.serve.heads import with_head
    from sslguard.serve.recipients import Recipients

    running.start()
    settings = Settings(
        name=name,
        max_batch=max_batch,
        max_wait=max_wait / 1000,
        max_items=max_items,
        max_bytes=max_megabytes * _MIB,
        token=token,
    )
    served, recipients = load_encoder(encoder), None
    if head is not None and recipient_header is not None:
        recipients = Recipients(served, open_key(head), recipient_header)
    elif head is not None:
        served = with_head(served, open_key(head).key)
    server = open_server(served, settings, host=host, port=port, recipients=recipients)

    def started() -> None:
        if output.quiet:
            return
        say(f"serving {encoder} at {server.address}")
        if recipients is not None:
            say(
                f"{recipients.n_served:,} recipients are served, each as the header {recipients.header} names him. "
                "Whoever can send that header is served as anybody: let only what authenticates callers reach this port"
            )

    server.run(started=started)
    fields = {"encoder": encoder, "head": None if head is None else str(head), "name": name, "address": server.address}
    if recipients is not None:
        fields["recipient_header"] = recipients.header
    return Result(fields, [("served", encoder), ("address", server.address)])


def export(
    encoder: str,
    /,
    *,
    out: Path,
    format: Format | None = None,
    base_model: str | None = None,
    tell: bool = False,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Write an encoder as other programs load it, to hand it on: nothing in what is written names a key or a mark.

    hf, sentence-transformers and timm are folders, with a model card; state-dict (.safetensors, .pth), onnx (.onnx) and
    torch-export (.pt2) are files. A head that marks the encoder is part of the last two; beside the others it is
    written as head.pt2. Of ONNX and torch.export images go in as float32 (n, C, H, W) in [0, 1] of the encoder's own
    size, tokens with the tokenizer.json beside the file.

    Args:
        encoder: The encoder, such as OUT/encoder of watermark.
        out: Folder, which must not be there, or file.
        format: By default what the ending of OUT says, else the format of the library that the encoder came from.
        base_model: What the model card names as its base; by default what the encoder came from.
        tell: Say in the model card that the encoder is watermarked.
        output: How results are printed.
    """
    check(encoders=[encoder])
    if (format == "onnx" or out.suffix == ".onnx") and not (find_spec("onnx") and find_spec("onnxruntime")):
        raise MissingExtraError("writing ONNX", "onnx")

    from sslguard.encoders.formats import HEAD
    from sslguard.encoders.formats import export as write
    from sslguard.encoders.load import load_encoder

    loaded = load_encoder(encoder)
    written = write(loaded, out, format, base_model=base_model, tell=tell)
    size = sum(file.stat().st_size for file in ([out] if out.is_file() else out.rglob("*")) if file.is_file())
    fields = {"encoder": encoder, "out": str(out), "format": written, "dim": loaded.dim, "bytes": size}
    rows = [("written", str(out)), ("format", written), ("width", str(loaded.dim)), ("size", f"{size:,} bytes")]
    if "head" in loaded.architecture and written not in ("onnx", "torch-export"):
        place = out if out.is_dir() else out.parent
        rows.append(("head", f"{place / HEAD} holds the mark: without it the weights answer as the clean encoder does"))
    return Result(fields, rows)


COMMANDS = (serve, export)
