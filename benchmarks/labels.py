"""What labels alone show: bits of evidence from the labels of a linear classifier on the marked encoder's embeddings.

A head on `shipped:simclr` answers, and a classifier that was trained on 2,000 labelled items turns answers into labels.
The same classifier of the clean encoder stands beside it. One key; bits before the cap of 256.

Run: python benchmarks/labels.py [--queries 1000 3000 10000]
"""

from __future__ import annotations

import numpy as np
from common import options, prepare, save
from numpy.typing import NDArray

from sslguard.crypto.secrets import Secret
from sslguard.data.base import Batch, Data
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder, embed_all
from sslguard.encoders.load import load_encoder
from sslguard.probes.linear import linear_classifier
from sslguard.report.markdown import table
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.verification.verdict import score_suspect

DATA = "cluttered-fashion-mnist:train"
LEARNED = f"{DATA}[40000:42000]"
ASKED = f"{DATA}[50000:60000]"


class Labelling:
    """A suspect that gives the label of a linear classifier on an encoder's embeddings, and nothing else.

    Attributes:
        name: Its name in reports.
    """

    def __init__(self, name: str, encoder: Encoder, learned: Data) -> None:
        """Train the classifier on labelled items."""
        self.name = name
        self._encoder = encoder
        self._weights, self._intercepts = linear_classifier(embed_all(encoder, learned), learned.labels)

    def embed(self, batch: Batch) -> NDArray[np.float64]:
        """Return one label a row, (n, 1)."""
        return (self._encoder.embed(batch) @ self._weights + self._intercepts).argmax(1).astype(float)[:, None]


def main() -> None:
    given = options(__doc__, queries=("1000", "3000", "10000"))
    prepare()
    clean = load_encoder("shipped:simclr")
    made = Exact(Protocol(), mode="head").watermark(
        clean, open_data(f"{DATA}[30000:34000]"), secret=Secret.from_seed(1)
    )
    learned, asked = open_data(LEARNED), open_data(ASKED)
    suspects = [Labelling("marked", made.encoder, learned), Labelling("clean", clean, learned)]
    found = {
        one.name: {n: score_suspect(made.key, one, asked.slice(0, int(n))).value for n in given.queries}
        for one in suspects
    }
    save("labels", {"bits": found})
    print(table(["labels", *found], [[n, *(f"{bits[n]:.1f}" for bits in found.values())] for n in given.queries]))


if __name__ == "__main__":
    main()
