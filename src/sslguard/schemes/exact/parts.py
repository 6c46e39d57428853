"""The parts that the file of an exact key holds: read from anybody, checked, and put together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sslguard.crypto.secrets import SECRET_BYTES, Secret
from sslguard.encoders.base import Encoder
from sslguard.encoders.rebuild import build, preprocess_from_json
from sslguard.errors import EncoderError, KeyFileError
from sslguard.schemes.exact.bank import Bank
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.settings import MAX_SUB_KEYS

_SHA256 = re.compile(r"[0-9a-f]{64}")


def taken_apart(bank: Bank, clean: Encoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON field and the tensors that `put_together` rebuilds a bank and a clean encoder from."""
    described = {
        "architecture": clean.architecture,
        "preprocess": clean.preprocess.to_json(),
        "dim": clean.dim,
        "source": clean.source,
        "record": clean.record,
    }
    tensors = {f"bank.{name}": torch.from_numpy(array) for name, array in bank.to_arrays().items()}
    for name, content in clean.preprocess.files().items():
        tensors[f"file.{name}"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return {"clean": described}, {**tensors, **{f"clean.{n}": t for n, t in clean.module.state_dict().items()}}


def put_together(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of an `ExactKey`, from the fields and tensors of a key's file.

    Raises:
        KeyFileError: A part is missing, out of range, or does not fit the others.
    """
    try:
        bank = Bank.from_arrays({n[5:]: t.numpy() for n, t in tensors.items() if n.startswith("bank.")})
        files = {n[5:]: t.numpy().tobytes() for n, t in tensors.items() if n.startswith("file.")}
        weights = {n[6:]: t for n, t in tensors.items() if n.startswith("clean.")}
        found = {
            "secret": _secret(fields["secret"]),
            "protocol": Protocol.from_json(fields["protocol"]),
            "bank": bank,
            "clean": _clean_encoder(fields["clean"], weights, files),
            "size": float(fields["size"]),
            "watermarked_hash": str(fields["watermarked_hash"]),
            "redraw": int(fields["redraw"]),
            "sub_keys": int(fields["sub_keys"]),
        }
    except KeyError as error:
        raise KeyFileError(f"the key lacks {error}") from None
    except (TypeError, ValueError, OverflowError, RuntimeError, EncoderError) as error:
        raise KeyFileError(f"the key's parts do not fit together: {error!s:.300}") from None
    if not 1 <= found["sub_keys"] <= MAX_SUB_KEYS:
        raise KeyFileError(f"the key's sub_keys must lie in 1 to {MAX_SUB_KEYS}")
    fits = len(bank.mean) == found["clean"].dim and bank.size <= found["protocol"].functions
    if not fits or not 0 < found["size"] <= 1:
        raise KeyFileError("the key's functions, its protocol, its size and its clean encoder do not fit together")
    if not _SHA256.fullmatch(found["watermarked_hash"]) or not 0 <= found["redraw"] < 1 << 63:
        raise KeyFileError("the key's clean encoder is not the one that its streams are bound to")
    return found


def _secret(text: str) -> Secret:
    value = bytes.fromhex(text)
    if len(value) != SECRET_BYTES:
        raise ValueError("the secret has another length")
    return Secret(value)


def _clean_encoder(found: Mapping[str, Any], weights: Mapping[str, Tensor], files: Mapping[str, bytes]) -> Encoder:
    """Files are the preprocessing's, a tokenizer's for one."""
    module, dim = build(found["architecture"], seed=0)
    if dim != found["dim"]:
        raise ValueError("the clean encoder's width is not what its description says")
    module.load_state_dict(dict(weights))
    return Encoder(
        module=module.eval(),
        preprocess=preprocess_from_json(found["preprocess"], files),
        dim=dim,
        architecture=found["architecture"],
        source=found["source"],
        record=found["record"],
    )
