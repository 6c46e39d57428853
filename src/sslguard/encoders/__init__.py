"""What an encoder is and where it comes from: loading, saving, preprocessing. Libraries load on use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslguard.lazy import exports

if TYPE_CHECKING:
    from sslguard.encoders.base import Embedder, Encoder, embed_all
    from sslguard.encoders.checkpoint import CheckpointReport, load_checkpoint
    from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
    from sslguard.encoders.load import load_encoder
    from sslguard.encoders.names import shipped_names
    from sslguard.encoders.preprocess import ImagePreprocess, Preprocess
else:
    __getattr__ = exports(
        __name__,
        {
            "checkpoint": ("CheckpointReport", "load_checkpoint"),
            "base": ("Embedder", "Encoder", "embed_all"),
            "preprocess": ("ImagePreprocess", "Preprocess"),
            "load": ("load_encoder",),
            "folder": ("load_folder", "save_encoder", "weights_hash"),
            "names": ("shipped_names",),
        },
    )

__all__ = [
    "CheckpointReport",
    "Embedder",
    "Encoder",
    "ImagePreprocess",
    "Preprocess",
    "embed_all",
    "load_checkpoint",
    "load_encoder",
    "load_folder",
    "save_encoder",
    "shipped_names",
    "weights_hash",
]
