"""What the arithmetic of one verification costs by the width of the embeddings: seconds and memory, of random numbers.

10,000 answers of a suspect that is as wide as the clean encoder, from the moment that they and the clean embeddings are
there to the p-value. Each width has a process of its own; its peak of memory is that of the whole process, with Python
and its libraries. Wall-clock seconds; the clean embeddings' own time is not in it.

Run: python benchmarks/exact_width.py [--widths 128 256 ...]   (writes docs/results/exact-width.svg too; some minutes)
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from common import options, save
from matplotlib.figure import Figure

from sslguard.crypto.secrets import Secret
from sslguard.data.own import own_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.statistics import N_IMAGE
from sslguard.report.charts import Series, Theme, figure, plot, write
from sslguard.report.markdown import table
from sslguard.schemes.exact.bank import MOST_AXES, Bank
from sslguard.schemes.exact.key import ExactKey
from sslguard.schemes.exact.protocol import Protocol

WIDTHS = ("128", "256", "512", "1024", "2048", "4096", "8192")
QUERIES, BATCH = 10_000, 128
MOST_SECONDS, MOST_GIB, AT = 30, 2, 4096
PICTURE = Path(__file__).parent.parent / "docs" / "results" / "exact-width.svg"


def made(width: int) -> ExactKey:
    """Return a key of an encoder of this width that does nothing else."""
    random, axes, protocol = np.random.default_rng(width), min(width, MOST_AXES), Protocol()
    size = protocol.functions
    bank = Bank(
        mean=np.zeros(width),
        axes=np.linalg.qr(random.standard_normal((width, axes)))[0].T,
        deviations=np.geomspace(1, 0.01, axes) * axes**-0.5,
        spread=np.ones(axes),
        centre=np.zeros(N_IMAGE),
        mixing=random.standard_normal((N_IMAGE, size)),
        linear=np.zeros((axes, size)),
        weights=np.ones(size),
    )
    clean = Encoder(torch.nn.Linear(3, width), ImagePreprocess(1, 1), width, {"backbone": "none"}, "")
    return ExactKey(Secret.from_seed(1), protocol, bank, clean, 0.05, "0" * 64)


def measured(width: int) -> dict[str, float]:
    """Return seconds and the peak of memory of one verification, in this process."""
    key, random = made(width), np.random.default_rng(1)
    placed = random.standard_normal((QUERIES, len(key.bank.axes))) * key.bank.deviations
    functions = random.standard_normal((QUERIES, key.bank.size))
    noise = 0.02 * width**-0.5
    answers = [  # as they come from an encoder
        (rows @ key.bank.axes + noise * random.standard_normal((len(rows), width))).astype(np.float32)
        for rows in np.split(placed, range(BATCH, QUERIES, BATCH))
    ]
    asked = own_data(torch.zeros(QUERIES, 1, 1, 1))
    key._embedded[asked.spec, len(asked)] = placed, functions  # as they stay after the first suspect
    begun = time.perf_counter(), time.process_time()
    key.statistic(iter(answers), asked)
    spent = time.perf_counter() - begun[0], time.process_time() - begun[1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": spent[0], "cpu_seconds": spent[1], "peak_gib": peak / 2**20}


def draw(found: dict[str, dict[str, float]], theme: Theme) -> Figure:
    """Return two panels by width: seconds, and the peak of memory, with what is allowed at a width of 4,096."""
    drawn = figure(7.8, 3.4)
    allowed = {"seconds": MOST_SECONDS, "peak_gib": MOST_GIB}
    labels = {"seconds": "seconds", "peak_gib": "GiB"}
    for axes, (name, label) in zip(drawn.subplots(1, 2), labels.items(), strict=True):
        series: Series = {label: ([int(width) for width in found], [row[name] for row in found.values()])}
        plot(axes, series, theme, "lines")
        axes.get_legend().remove()
        axes.plot([AT], [allowed[name]], "v", color=theme.muted)
        where = {"xytext": (-8, 0), "textcoords": "offset points"}
        axes.annotate("at most", (AT, allowed[name]), ha="right", va="center", **where)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(xlabel="width of the embeddings", ylabel=label, ylim=(0, None))
    return drawn


def main() -> None:
    given = options(__doc__, widths=WIDTHS, alone=0)
    if given.alone:  # one width, in a process of its own
        print(json.dumps(measured(given.alone)))
        return
    found = {}
    for width in given.widths:
        line = (sys.executable, __file__, "--alone", width)
        found[width] = json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout)
        print(width, found[width], flush=True)
    names = ("seconds", "cpu_seconds", "peak_gib")
    rows = [[width, *(f"{row[name]:.2f}" for name in names)] for width, row in found.items()]
    print(table(["width", "seconds", "CPU seconds", "GiB"], rows))
    write(PICTURE, draw, found)
    save("exact_width", {"queries": QUERIES, "widths": found})


if __name__ == "__main__":
    main()
