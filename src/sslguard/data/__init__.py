"""Streams of batches from files, packages and torchvision, each opened by a text.

Such as `fashion-mnist:train[0:20000]`: see `sslguard.data.specs`.
"""
