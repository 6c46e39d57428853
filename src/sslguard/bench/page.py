"""Render the results of a benchmark: Markdown, and one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sslguard import __version__
from sslguard.bench import figures
from sslguard.bench.config import Config
from sslguard.bench.headline import evidence, grouped_by_kind, kinds_table, lead, sentences
from sslguard.bench.rows import Row
from sslguard.bench.summary import outcomes
from sslguard.bench.tables import all_tables
from sslguard.report.charts import Chart, chart
from sslguard.report.html import render
from sslguard.report.markdown import section
from sslguard.report.table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """The results of a benchmark.

    Attributes:
        config: Its configuration.
        rows: A row for each suspect.
        done, total: Numbers of cells.
        references: Result file of each clean encoder's cell, by the encoder's name.
        undone: `Plan.about` of each cell that is not done, with its `group`.
    """

    config: Config
    rows: Sequence[Row]
    done: int
    total: int
    references: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    undone: Sequence[Mapping[str, Any]] = ()

    @property
    def headline(self) -> list[str]:
        """What a reader should know first, in sentences."""
        return sentences(self.config, self.rows)

    @property
    def first(self) -> list[Table]:
        """The table that stands beside them; none without rows."""
        return [table for table in (kinds_table(self.config, self.rows),) if table.rows]

    @property
    def tables(self) -> list[Table]:
        """All other tables of the page, in their order."""
        return all_tables(self.config, self.rows, self.references, self.undone)

    @property
    def dates(self) -> str:
        """Dates of the first and the last result."""
        days = sorted({row.date for row in self.rows})
        return "never" if not days else days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for readers of the page, and what was left out."""
        missing = self.total - self.done
        undone = [f"{missing:,} of {self.total:,} cells are not done yet."] if missing else []
        return (*self.config.notes, *(f"Left out: {one.why}" for one in self.config.without), *undone)

    def facts(self) -> dict[str, str]:
        """Return facts about the run, such as seeds and the hash of the configuration, as texts by name."""
        config = self.config
        return {
            "run": f"{self.dates}; {self.done} of {self.total} cells",
            "seeds": ", ".join(map(str, config.seeds)),
            "encoders": ", ".join(f"{name} ({entry.load})" for name, entry in config.encoders.items()),
            "configuration": config.digest(),
            "attacks": config.attacks_digest(),
            "sslguard": __version__,
        }


def render_markdown(run: Run, command: str) -> str:
    """Return all tables as Markdown.

    Args:
        run: The results.
        command: Command that writes the page, for its first line.
    """
    head = f"<!-- Written by `{command}`. Do not edit. -->\n\n# {run.config.title}"
    said = [" ".join(run.headline)] if run.headline else []
    notes = "\n".join(f"- {note}" for note in run.notes) or "Nothing."
    facts = "\n".join(f"- {name}: {value}" for name, value in run.facts().items())
    end = [f"## What is left out, and what to know\n\n{notes}", f"## The run\n\n{facts}"]
    return "\n\n".join([head, *said, *map(section, (*run.first, *run.tables)), *end]) + "\n"


def render_html(run: Run) -> str:
    """Return the whole page as HTML5, with all pictures inside."""
    return render("bench/page.html.j2", run=run, picture=_picture(run), charts=_charts(run))


def _picture(run: Run) -> Chart | None:
    """Return the picture beside the headline; None where nothing counts."""
    scheme = lead(run.config, run.rows)
    if scheme is None:
        return None
    rows = [row for row in run.rows if row.scheme == scheme]
    attacked = [row for row in rows if row.kind == "attack" and row.kept is not None and evidence(row) is not None]
    innocents = [row.uncapped_bits for row in rows if row.kind == "innocent" and row.uncapped_bits is not None]
    alt = f"Bits left of {scheme} against the accuracy that attacks keep; the tables hold its numbers"
    return chart(figures.headline, grouped_by_kind(run.config, attacked), innocents, alt=alt)


def _charts(run: Run) -> list[tuple[str, str, Chart]]:
    """Return the title, caption and picture of each chart."""
    config, rows, schemes = run.config, run.rows, list(run.config.schemes)

    def made(title: str, caption: str, draw: Callable[..., Figure], *data: Any) -> tuple[str, str, Chart]:
        return title, caption, chart(draw, *data, alt=f"{title}; the tables hold its numbers")

    heats = [
        made(f"Detection on {encoder}", "", figures.heat, found, list(config.attacks), schemes, config.rates[0])
        for encoder in config.encoders
        if (found := outcomes(rows, config.rates, encoders=[encoder]))
    ]
    ranked = "Attacks that keep at least 90 % of the accuracy, each ranked among the innocents of its own key."
    return [
        *heats,
        made("Accuracy against evidence, all schemes", "A suspect a point.", figures.scatter, rows, schemes),
        made("ROC on the null population", ranked, figures.curves, rows, schemes),
        made("Cost of attacks", "Those that keep at least 90 %.", figures.cost, rows, schemes),
    ]
