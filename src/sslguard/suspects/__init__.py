"""Suspects: encoders that run here, ONNX files, answers that were logged elsewhere, and servers."""

from sslguard.lazy import exports

__getattr__, __dir__ = exports(__name__, {"opening": ("open_suspect",)})
