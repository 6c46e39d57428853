"""Commands that look at an encoder: `embed`, `probe`, `power`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sslguard.cli.arrays import check_rows, write_rows
from sslguard.cli.checks import check
from sslguard.cli.chosen import Chosen, Source, options_of
from sslguard.cli.make import EXACT
from sslguard.cli.options import EMBEDDING, PRINTED, Count, NotNegative, Output, Positive, Running, Seed
from sslguard.cli.output import Result, tracked
from sslguard.schemes.exact.protocol import Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sslguard.report.charts import Series, Theme


@options_of(Source(Protocol(), EXACT))
class ProtocolOptions(Chosen):
    """What the user chose of the exact scheme's protocol."""


DEFAULT_PROTOCOL = ProtocolOptions()


def embed(
    encoder: str,
    /,
    *,
    data: str,
    out: Path,
    running: Running = EMBEDDING,
    output: Output = PRINTED,
) -> Result:
    """Write an encoder's answers to a file.

    They are float32 (n, width), in the order of the data.

    Args:
        encoder: A folder, a checkpoint, timm:NAME, torchvision:NAME ...
        data: What is embedded. For logged answers: the file that `queries` wrote.
        out: File of the answers, FILE.npy.
        running: What encoders run on.
        output: How results are printed.
    """
    check(encoders=[encoder], data=[data])
    check_rows(out)

    from sslguard.data.specs import open_data
    from sslguard.encoders.load import load_encoder

    running.start()
    loaded, items = load_encoder(encoder), open_data(data)
    n, size = len(items), running.batch_size or loaded.together
    batches = tracked(items.batches(size), -(-n // size), "embed", shown=output.progress)
    shape = write_rows(out, n, (loaded.embed(batch) for batch in batches))
    fields = {"out": str(out), "encoder": loaded.source, "data": items.spec, "shape": list(shape), "dtype": "float32"}
    return Result(fields, [("answers", str(out)), ("shape", f"{shape[0]} x {shape[1]}"), ("encoder", loaded.source)])


def probe(
    encoder: str,
    /,
    *,
    train: str,
    test: str,
    method: Literal["linear", "mlp", "knn"] = "linear",
    per_class: Count | None = None,
    seed: list[Seed] | None = None,
    baseline: bool = False,
    running: Running = EMBEDDING,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Measure the accuracy of a classifier on an encoder's answers.

    Args:
        encoder: A folder, a checkpoint, timm:NAME, torchvision:NAME ...
        train: Labelled items to train the classifier on.
        test: Labelled items to measure it on, none of them in --train.
        method: Logistic regression, the paper's MLP, or nearest neighbours.
        per_class: Train on so many items of each class.
        seed: One probe each, averaged; give several by repeating it. [default: 0]
        baseline: Also probe raw pixels and the same network untrained.
        running: What encoders run on.
        output: How results are printed.
    """
    check(encoders=[encoder], data=[train, test])

    from sslguard.data.specs import open_data
    from sslguard.encoders.load import load_encoder
    from sslguard.probes.baselines import baseline as probe_baselines
    from sslguard.probes.evaluate import probe_encoder

    running.start()
    loaded, train_items, test_items = load_encoder(encoder), open_data(train), open_data(test)
    settings: dict[str, Any] = {"method": method, "per_class": per_class, "seeds": tuple(seed or (0,))}
    result = probe_encoder(loaded, train_items, test_items, **settings)
    # JSON's names are texts.
    per_class_accuracy = {str(label): accuracy for label, accuracy in result.per_class.items()}
    fields: dict[str, Any] = {"encoder": loaded.source, **result.to_json(), "per_class": per_class_accuracy}
    rows = [("accuracy", f"{result.accuracy:.4f}"), ("method", method), ("trained on", f"{result.n_train} items")]
    if baseline:
        floor = probe_baselines(loaded, train_items, test_items, **settings)
        pixels = None if floor.pixels is None else floor.pixels.accuracy
        fields["baseline"] = {"pixels": pixels, "random": floor.random.accuracy, "better": floor.accuracy}
        rows += [
            ("raw pixels", "-" if pixels is None else f"{pixels:.4f}"),
            ("untrained", f"{floor.random.accuracy:.4f}"),
            ("above baseline", f"{100 * (result.accuracy - floor.accuracy):.1f} points"),
        ]
    return Result(fields, rows)


def power(
    encoder: str,
    /,
    *,
    data: str,
    bits: list[Positive] | None = None,
    fidelity: list[NotNegative] | None = None,
    exact: ProtocolOptions = DEFAULT_PROTOCOL,
    out: Path | None = None,
    running: Running = EMBEDDING,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Estimate the queries that a claim under --scheme exact will need, before anything is trained.

    A model of suspects that answer in the clean encoder's own space. Less is to be had where answers are rotated,
    reduced or rounded; `verify` says what there is.

    Args:
        encoder: The clean encoder.
        data: Items to mark with.
        bits: Evidence that is wanted, -log2 of the p-value; give several by repeating it. 64, 128 and 256 by default.
        fidelity: How well a suspect keeps the mark: the cosine between what its answers add to the clean embeddings
            and the mark. 1, 0.8, 0.6 and 0.4 by default.
        out: File of a picture of bits against queries, .png or .svg.
        running: What encoders run on.
        exact: Settings of the exact scheme.
        output: How results are printed.
    """
    check(encoders=[encoder], data=[data])

    from sslguard.data.specs import open_data
    from sslguard.encoders.base import embed_all
    from sslguard.encoders.load import load_encoder
    from sslguard.report.charts import write
    from sslguard.schemes.exact.features import all_statistics
    from sslguard.schemes.exact.power import expected_power
    from sslguard.schemes.exact.scheme import GEOMETRY_ITEMS

    running.start()
    wanted, fidelities = bits or [64, 128, 256], fidelity or [1.0, 0.8, 0.6, 0.4]
    protocol = Protocol(**exact.table())
    loaded, items = load_encoder(encoder), open_data(data)
    chosen = items.slice(0, min(len(items), GEOMETRY_ITEMS))
    found = expected_power(embed_all(loaded, chosen), all_statistics(loaded, chosen), protocol)
    table = {str(f): {str(b): found.n_queries(b, f) for b in wanted} for f in fidelities}
    if out is not None:
        counts = [found.dim * max(100.0, 1e5 / found.dim) ** (step / 150) for step in range(151)]
        curves = {f"fidelity {f:g}": (counts, [found.bits(n, f) for n in counts]) for f in fidelities}
        write(out, _bits_by_queries, curves, wanted)
    rows = [("encoder", loaded.source), ("width", str(found.dim))]
    for f in fidelities:
        needs = (f"{b:g} bits: {_queries(found.n_queries(b, f))}" for b in wanted)
        rows.append((f"fidelity {f:g}", ", ".join(needs)))
    fields = {"encoder": loaded.source, "data": chosen.spec, "queries": table, "picture": str(out) if out else None}
    return Result(fields, rows)


def _bits_by_queries(curves: Series, wanted: Sequence[float], theme: Theme) -> Figure:
    """Return a curve for each fidelity, and a line for each number of bits that is wanted."""
    from sslguard.report.charts import figure, plot

    drawn = figure(7.8, 4.2)
    axes = drawn.subplots()
    for bits in wanted:
        axes.axhline(bits, color=theme.muted, linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(xlabel="queries", ylabel="bits to be expected, at most 256", ylim=(0, 265))
    plot(axes, curves, theme, "lines")
    return drawn


def _queries(n: int | None) -> str:
    return "out of reach" if n is None else f"{n:,} queries"
