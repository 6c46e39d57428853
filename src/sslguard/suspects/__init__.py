"""Suspects: encoders that run here, ONNX files, answers that were logged elsewhere, and servers."""
