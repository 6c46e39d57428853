"""SSLGuard on the test bed, whole: every key, every thief, every removal and wrapping, and the whole null population.

Work is cut in cells, kept in OUT: a run that is killed goes on where it stopped. When the cells are done, or with
`--table` at once, what is there is written to `benchmarks/results/whole.json` and
`docs/results/results-sslguard.md`; with `--quick` both go to OUT. Exit code 1 where a cell failed.

Run: python benchmarks/whole.py OUT [--workers 2] [--only GROUP ...] [--brief | --quick] [--table]

--brief measures one key a variant and a few attacks; its files are `whole-brief.json` and
`docs/results/results-sslguard-brief.md`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cells import Outcome, chosen, read_cells, run_cells
from common import RESULTS
from whole_plan import BRIEF, FULL, GROUPS, QUICK, Settings, make_plan
from whole_rows import gather
from whole_tables import page
from whole_targets import as_json
from whole_work import Work, prepare

from sslguard.files import write_atomic

DOCS = Path(__file__).parents[1] / "docs" / "results"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of cells, encoders and keys")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=[], help="these groups, and what they need")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--brief", action="store_true", help="one key a variant and a few attacks")
    sizes.add_argument("--quick", action="store_true", help="a few cells of two steps; figures mean nothing")
    parser.add_argument("--table", action="store_true", help="write the tables of what is there, and run nothing")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be at least 1")
    return options


def report(outcome: Outcome) -> None:
    """What failed and why, on standard error."""
    for name, error in outcome.failed.items():
        print(f"\n{name} failed:\n{error}", file=sys.stderr)
    for name, reason in outcome.skipped.items():
        print(f"{name} was not begun: it {reason}", file=sys.stderr)


def settings_of(options: argparse.Namespace) -> Settings:
    """How much is measured."""
    if options.quick:
        return QUICK
    return BRIEF if options.brief else FULL


def write_tables(options: argparse.Namespace) -> None:
    """The results as JSON and as a page, of the cells that are there."""
    settings, suffix = settings_of(options), "-brief" if options.brief else ""
    results = gather(settings, make_plan(settings, options.out), options.out)
    json_path, page_path = RESULTS / f"whole{suffix}.json", DOCS / f"results-sslguard{suffix}.md"
    if options.quick:
        json_path, page_path = options.out / "whole.json", options.out / "results.md"
    content = json.dumps(as_json(results), indent=1, sort_keys=True, allow_nan=False)
    write_atomic(json_path, content.encode() + b"\n")
    write_atomic(page_path, page(results).encode())
    print(f"wrote {json_path} and {page_path}")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    settings = settings_of(options)
    outcome = Outcome()
    if not options.table:
        cells = chosen(make_plan(settings, options.out), options.only)
        _, foreign = read_cells(options.out, cells)
        if foreign:
            print(
                f"{options.out} holds {len(foreign)} cells that were made by other settings, {foreign[0]} among them: "
                "choose another folder, or delete them and what was made from them",
                file=sys.stderr,
            )
            return 2
        work = Work(options.out, settings)
        try:
            outcome = run_cells(cells, options.out, work, workers=options.workers, prepare=prepare)
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here", file=sys.stderr)
            return 130
    write_tables(options)
    report(outcome)
    return 1 if outcome.failed or outcome.skipped else 0


if __name__ == "__main__":
    sys.exit(main())
