"""Commands that look at an encoder: `embed`, `probe`, `power`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cyclopts import Parameter

from sslguard.cli.arrays import check_rows, write_rows
from sslguard.cli.checks import check
from sslguard.cli.chosen import Chosen, Source, options_of
from sslguard.cli.make import EXACT
from sslguard.cli.options import EMBEDDING, PRINTED, Count, Output, Running, Seed, within
from sslguard.cli.output import Result, tracked
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.registry import PRESETS, named_scheme
from sslguard.settings import Range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sslguard.report.charts import Series, Theme


WantedBits = Annotated[float, Parameter(validator=within(Range(above=0, most=256)))]
TheftName = Literal["centred", "mse"]
PowerPreset = Annotated[str, Parameter(choices=tuple(PRESETS["exact"]))]
_NO_MATTER = ("steps", "batch_size", "learning_rate", "overshoot", "pool", "sub_keys", "redraw")


@options_of(Source(Exact(), EXACT, without=_NO_MATTER))
class MarkOptions(Chosen):
    """What the user chose of the exact scheme's mark and protocol."""


AS_MARK = MarkOptions()


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
    bits: list[WantedBits] | None = None,
    theft: list[TheftName] | None = None,
    preset: PowerPreset | None = None,
    exact: MarkOptions = AS_MARK,
    out: Path | None = None,
    running: Running = EMBEDDING,
    output: Output = PRINTED,
) -> Result:
    """Estimate the bits that a claim under --scheme exact will show, and the queries that it will need.

    Nothing is trained: copies of the marked encoder are simulated, and tested as `verify` does, with public secrets.
    Half of --data stands for what the mark is made with; the other half is asked. A real copy shows more or less.

    Args:
        encoder: The clean encoder.
        data: Items to mark with and to ask about. Their labels, if there are any, are what a copy's classifier learns.
        bits: Evidence that is wanted, -log2 of the p-value; give several by repeating it. 32, 64, 128 and 256 by
            default.
        theft: What the copy is trained by; give several by repeating it. centred learns most of a mark, mse least.
            Both by default.
        preset: Settings to start from: strong (default), or gentle, for vectors that live in an index.
        exact: Settings of the exact scheme.
        out: File of a picture of bits against queries, .png or .svg.
        running: What encoders run on.
        output: How results are printed.
    """
    chosen = cast(Exact, named_scheme("exact", preset, exact.table()))
    check(encoders=[encoder], data=[data])

    from sslguard.data.specs import open_data
    from sslguard.encoders.load import load_encoder
    from sslguard.report.charts import write
    from sslguard.schemes.exact.power import foretell

    running.start()
    wanted, thefts = bits or [32, 64, 128, 256], list(dict.fromkeys(theft or ("centred", "mse")))
    loaded, items = load_encoder(encoder), open_data(data)

    def watched(steps: Iterator[int], total: int) -> Iterator[int]:
        return tracked(steps, total, "power", shown=output.progress)

    found = foretell(loaded, items, chosen, thefts=thefts, watch=watched)
    shown = {t: {k: {str(n): b for n, b in by.items()} for k, by in kinds.items()} for t, kinds in found.bits.items()}
    needed = {t: {k: {f"{b:g}": found.n_queries(t, k, b) for b in wanted} for k in kinds} for t, kinds in shown.items()}
    if out is not None:
        write(out, _bits_by_queries, found.bits, wanted)
    most = max(found.bits[thefts[0]]["embeddings"])
    rows = [("encoder", loaded.source), ("mark", f"{found.size:.4f} of an embedding's square")]
    for name, kinds in found.bits.items():
        for kind, by in kinds.items():
            needs = (f"{b:g} bits: {_queries(needed[name][kind][f'{b:g}'], most)}" for b in wanted)
            rows.append((f"{name}, {kind}", f"{min(by[most], 256):.0f} bits of {most:,} queries; " + ", ".join(needs)))
    fields = {"encoder": loaded.source, "data": items.spec, "size": found.size, "bits": shown, "queries": needed}
    return Result({**fields, "picture": str(out) if out else None}, rows)


def _bits_by_queries(
    bits: Mapping[str, Mapping[str, Mapping[int, float]]], wanted: Sequence[float], theme: Theme
) -> Figure:
    """Return a panel for each theft: a curve for each kind of answers, and a line for each number of wanted bits."""
    from sslguard.report.charts import figure, plot

    drawn = figure(3.2 + 3.4 * len(bits), 3.8)
    panels = drawn.subplots(1, len(bits), sharey=True, squeeze=False)[0]
    for axes, (theft, kinds) in zip(panels, bits.items(), strict=True):
        for one in wanted:
            axes.axhline(one, color=theme.muted, linewidth=0.8, linestyle=":")
        curves: Series = {kind: (list(by), [min(b, 256) for b in by.values()]) for kind, by in kinds.items()}
        plot(axes, curves, theme, "lines")
        if axes is not panels[-1]:
            axes.get_legend().remove()
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.set(title=f"a copy trained by {theft}", xlabel="queries", ylim=(0, 265))
    panels[0].set_ylabel("bits to be expected, at most 256")
    return drawn


def _queries(n: int | None, most: int) -> str:
    return f"more than {most:,} queries" if n is None else f"{n:,} queries"
