"""Fetches the texts that benchmarks of text encoders use, and checks their hash: see `sslguard.data.vader`.

Run: python benchmarks/texts.py   (prints the files)
"""

from __future__ import annotations

from sslguard.data.vader import FILES, texts_file

__all__ = ["texts_file"]

if __name__ == "__main__":
    for role in FILES:
        print(texts_file(role))
