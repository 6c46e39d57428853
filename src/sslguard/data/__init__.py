"""Streams of batches from files, packages and torchvision, opened by a text such as `fashion-mnist:train[0:20000]`."""
