"""What an encoder is and where it comes from: loading, saving, preprocessing. Libraries load on use."""

from sslguard.encoders.base import Embedder, Encoder, embed_all
from sslguard.encoders.checkpoint import CheckpointReport, load_checkpoint
from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
from sslguard.encoders.load import load_encoder, shipped_names
from sslguard.encoders.preprocess import ImagePreprocess, Preprocess

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
