"""`docs/results/results-sslguard.md`, from the figures of `whole_rows.py`. Nothing on the page is written by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from common import table
from whole_plan import ATTACKED, FLOAT32_STUDENTS, TWIN, removals, suspect_name, wrappings
from whole_rows import KEEPS, WR_LOW, WR_PAPER, Mark, Rate, Results, Row, Scored, mean_and_bound
from whole_targets import above, chosen, counted, high, of, percent, targets

from sslguard.attacks.stealing import STUDENTS

NOT_RUN = "not run"
NOTHING = "–"  # what the plan does not hold
LOST = "†"


def page(results: Results) -> str:
    """The whole page, Markdown."""
    parts = [
        _head(results),
        *_targets(results),
        *_references(results),
        *_marks(results),
        *_null(results),
        *_thieves(results),
        *_removal(results),
        *_wrapping(results),
        *_chains(results),
    ]
    return "\n\n".join(parts) + "\n"


def kept(row: Row | None) -> str:
    """Accuracy kept, marked where the attack has not won."""
    if row is None or not row.run:
        return _absent(row)
    return f"{'n/a' if row.kept is None else percent(row.kept)}{'' if row.won else ' ' + LOST}"


def ranked(row: Row | None, variant: str) -> str:
    """WR and, in parentheses, the rank among controls under a variant's key."""
    score = None if row is None else row.of_key(variant)
    return _absent(row) if score is None else shown(score)


def cost(row: Row | None) -> str:
    """Cost as a share of pre-training."""
    return _absent(row) if row is None or row.share is None else percent(row.share)


def asked(row: Row | None) -> str:
    """How many queries a theft took."""
    return _absent(row) if row is None or row.queries is None else f"{row.queries:,}"


def _absent(row: Row | None) -> str:
    """What stands for a figure that is not there."""
    return NOTHING if row is None else NOT_RUN


def shown(score: Scored) -> str:
    """WR and rank."""
    return f"{score.WR:.2f} ({'no null' if score.rank is None else score.rank})"


def _head(results: Results) -> str:
    run = results.header
    dates = " to ".join(run["dates"]) or "never"
    machines = "; ".join(run["machines"]) or "unknown"
    queries = ", ".join(map(str, run["queries of a verification"])) or "?"
    lines = [
        f"<!-- Written by `{run['command']}`. Do not edit. -->",
        "",
        "# Results",
        "",
        f"SSLGuard on the test bed, by `{run['command']}`. Run {dates}; {machines}; processes of one thread. "
        f"Thieves train in {run['precision of thieves']} ({', '.join(FLOAT32_STUDENTS)} in 32), owners mark in 32. "
        f"{queries} queries a verification. {run['cells done']} of {run['cells']} cells were run, "
        f"in {run['CPU seconds'] / 3600:.1f} CPU hours.",
    ]
    if results.missing:
        lines += ["", f"**{len(results.missing)} cells were not run**; tables say so where their figures would stand."]
    if results.foreign:
        lines += ["", f"{len(results.foreign)} of these were made by other settings and are left out."]
    lines += ["", _legend(results)]
    return "\n".join(lines)


def _legend(results: Results) -> str:
    sizes = {s.of for row in results.rows for s in (row.scores or {}).values() if s.of}
    among = " or ".join(map(str, sorted(sizes))) or "?"
    return (
        "- *cured*: this project's additions, the default of `watermark`; *published*: the published losses; "
        "*released*: the same with the gradients of the released code. Each victim's first cured and first published "
        "key are attacked.\n"
        f"- *WR (rank)*: share of queries with cosine above {WR_PAPER}, and the place of the suspect's mean cosine "
        f"among that key's controls, 1 above all of them; the p-value is rank / {among}.\n"
        "- *kept*: (A − A₀)/(A_F − A₀) on the garments, linear probe, A₀ the better of raw pixels and an untrained "
        "network, A_F of the clean encoder.\n"
        "- *cost*: CPU seconds of the attack, its queries' answers included, over those of the victim's pre-training "
        "at the same precision.\n"
        f"- {LOST}: has not won, since it keeps less than {percent(KEEPS)} or costs more than pre-training.\n"
        "- *twin*: the same attack on the clean F, scored by the same key. All of them are negatives, whatever "
        "they keep.\n"
        "- Brackets: exact (Clopper-Pearson) 95 % intervals; scores under one key are not independent, so read them as "
        "too narrow."
    )


def _targets(results: Results) -> Iterable[str]:
    rows = [[t.aim, t.figure, t.negatives or NOTHING, t.verdict] for t in targets(results)]
    yield "## Targets\n\nCured keys. Negatives: the same figure where no mark is."
    yield table(["aim", "figure", "negatives", ""], rows)


def _references(results: Results) -> Iterable[str]:
    yield "## The clean encoders\n\nLinear probe; floor: the better of raw pixels and an untrained network."
    rows: list[list[object]] = []
    for victim in results.settings.victims:
        found = results.references.get(victim)
        if found is None:
            rows.append([victim, *[NOT_RUN] * 6])
            continue
        accuracies = [found[domain][which] for domain in ("garments", "digits") for which in ("clean", "floor")]
        seconds = [f"{found['pretraining_seconds'][precision]:.0f}" for precision in ("32", "bf16")]
        rows.append([victim, *accuracies, *seconds])
    domains = ["garments", "floor", "digits", "floor"]
    yield table(["encoder", *domains, "pre-training, CPU s, 32 bits", "the same, bf16"], rows)


def _marks(results: Results) -> Iterable[str]:
    yield "## F*: accuracy kept, and what F* and F score"
    rows = []
    for victim in results.settings.victims:
        for variant, seeds in results.settings.seeds.items():
            marks = [m for m in results.marks if (m.victim, m.variant) == (victim, variant)]
            if not seeds:
                continue
            values = [m.kept for m in marks if m.kept is not None]
            mean, bound = mean_and_bound(values) if values else (None, None)
            rows.append(
                [
                    victim,
                    variant,
                    " · ".join(NOT_RUN if m.kept is None else percent(m.kept) for m in marks),
                    NOT_RUN if mean is None else percent(mean),
                    NOTHING if bound is None else percent(bound),
                    " · ".join(NOT_RUN if m.kept_digits is None else percent(m.kept_digits) for m in marks),
                    _scores(marks, lambda m: m.marked),
                    _scores(marks, lambda m: m.clean),
                    " · ".join(NOT_RUN if m.seconds is None else f"{m.seconds:.0f}" for m in marks),
                ]
            )
    yield table(
        [
            "encoder",
            "variant",
            "kept, each key",
            "mean",
            "lower end of its 95 % interval",
            "digits, each key",
            "F*: WR (rank)",
            "F: WR (rank)",
            "CPU seconds",
        ],
        rows,
    )


def _scores(marks: Sequence[Mark], which: Callable[[Mark], Scored | None]) -> str:
    return " · ".join(NOT_RUN if (score := which(mark)) is None else shown(score) for mark in marks)


def _null(results: Results) -> Iterable[str]:
    settings = results.settings
    yield (
        "## The null population\n\nEvery innocent under every key. *other key*: the same encoder marked by somebody "
        "else's key. *false claims*: the share of a family above every control of all other families, so what a claim "
        "at the floor gets wrong where the controls lack that family. Rates in the order: share [95 % interval]."
    )
    rows = [
        [
            row.victim,
            row.variant,
            row.family if row.family != "all" else "**all**",
            f"{row.keys} of {len(settings.seeds[row.variant])}",
            row.low.n,
            _share(row.low),
            _share(row.paper),
            f"{row.largest:.3f}",
            _share(row.claims),
        ]
        for row in results.null
    ]
    present = {(row.victim, row.variant, row.family) for row in results.null}
    for victim in settings.victims:
        for variant, seeds in settings.seeds.items():
            for family in ("all", "other key"):
                if seeds and (victim, variant, family) not in present:
                    rows.append([victim, variant, family, f"0 of {len(seeds)}", *[NOT_RUN] * 5])
    yield table(
        [
            "encoder",
            "variant",
            "family",
            "keys",
            "scores",
            f"WR > {WR_LOW}",
            f"WR > {WR_PAPER}",
            "largest mean cosine",
            "false claims",
        ],
        rows,
    )


def _share(found: Rate) -> str:
    if not found.n:
        return NOTHING
    low, high_end = found.interval()
    return f"{percent(found.share)} [{percent(low)}, {percent(high_end)}]"


def _summary(results: Results, group: str, function: str = "") -> str:
    """How many of those that have won are found, for both keys and their negatives."""
    lines = []
    for variant in ATTACKED:
        rows = chosen(results, group, variant, function)
        if not rows:
            continue
        twins = chosen(results, group, TWIN, function)
        absent = sum(not row.run for row in rows)
        lines.append(
            f"- {variant}: of those that have won, above every control {of(counted(rows, variant, above))}, WR ≥ 0.9 "
            f"{of(counted(rows, variant, high))}"
            + (
                f"; of their twins, above every control {of(counted(twins, variant, above))}, WR ≥ 0.9 "
                f"{of(counted(twins, variant, high))}"
                if twins
                else ""
            )
            + (f"; {absent} {NOT_RUN}" if absent else "")
            + "."
        )
    return "\n".join(lines)


def _thieves(results: Results) -> Iterable[str]:
    settings = results.settings
    yield (
        f"## Surrogates\n\nEvery thief of `grid({settings.thief_steps})` in domain, from the first cured key's F*. "
        "Each cell: WR (rank) / kept / cost."
    )
    for victim in settings.victims:
        rows: list[list[object]] = []
        for thief in dict.fromkeys(name.rpartition("-")[0] for name in settings.recipes):
            rows.append([thief, *(_compact(results, victim, f"{thief}-{size}") for size in STUDENTS)])
        yield f"### {victim}"
        yield table(["thief", *STUDENTS], rows)
    yield "### Other queries and budgets\n\nfrom the same F*."
    labels = [f"{name}-{queries}" for name in settings.query_recipes for queries in settings.query_sets]
    yield _theft_table(results, "thieves", labels, ("cured",))
    yield "### The published losses, and surrogates of the clean F\n\nTwins are scored by both keys."
    labels = list(dict.fromkeys((*settings.published_recipes, *settings.twin_recipes)))
    yield _theft_table(results, "thieves", labels, ATTACKED)
    yield "### Summary\n\n" + _summary(results, "thieves")


def _compact(results: Results, victim: str, label: str) -> str:
    row = results.find(suspect_name("thieves", victim, "cured", label))
    if row is None or not row.run:
        return _absent(row)
    return f"{ranked(row, 'cured')} / {kept(row)} / {cost(row)}"


def _theft_table(results: Results, group: str, labels: Sequence[str], variants: Sequence[str]) -> str:
    """Surrogates, a line each: of F* and, where the plan has them, of F."""
    header = ["encoder", "thief"]
    for variant in variants:
        header += [f"queries, {variant}", f"{variant}: kept", "cost", f"{variant}: WR (rank)"]
    header += ["twin: kept", *(f"twin: {variant} WR (rank)" for variant in variants)]
    rows = []
    for victim in results.settings.victims:
        for label in labels:
            line: list[object] = [victim, label]
            for variant in variants:
                row = results.find(suspect_name(group, victim, variant, label))
                line += [asked(row), kept(row), cost(row), ranked(row, variant)]
            twin = results.find(suspect_name(group, victim, TWIN, label))
            rows.append([*line, kept(twin), *(ranked(twin, variant) for variant in variants)])
    return _without_empty(header, rows)


def _without_empty(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table without the columns in which no line has anything."""
    full = [number for number in range(len(header)) if any(row[number] != NOTHING for row in rows)]
    return table([header[n] for n in full], [[row[n] for n in full] for row in rows])


def _beside(results: Results, group: str, labels: Iterable[str], *, costs: bool = True) -> str:
    """Attacks, a line each, with the victims side by side."""
    victims = results.settings.victims
    header = ["attack"]
    for victim in victims:
        header += [f"{victim}: kept", "cured WR (rank)", "twin WR (rank)", *(["cost"] if costs else [])]
        header += ["published: kept", "published WR (rank)", "twin WR (rank)"]
    rows = []
    for label in labels:
        line: list[object] = [label]
        for victim in victims:
            cured, published, twin = (
                results.find(suspect_name(group, victim, target, label)) for target in (*ATTACKED, TWIN)
            )
            line += [kept(cured), ranked(cured, "cured"), ranked(twin, "cured"), *([cost(cured)] if costs else [])]
            twin_there = twin if published is not None else None
            line += [kept(published), ranked(published, "published"), ranked(twin_there, "published")]
        rows.append(line)
    return _without_empty(header, rows)


def _removal(results: Results) -> Iterable[str]:
    yield (
        "## Removal\n\nAttacks on the weights. `prune-SCOPE-PERCENT`; `fine-tune-DATA-LAYERS-EPOCHS`; `overwrite` "
        "marks once more with the thief's own secret. The twin's rank is under the key of the column before it."
    )
    yield _beside(results, "removal", removals(results.settings))
    yield "### Summary\n\n" + _summary(results, "removal")


def _wrapping(results: Results) -> Iterable[str]:
    yield (
        "## Wrapping\n\nNoise before or behind F* while it is verified: `input` on the [0, 1] scale, `output` as a "
        "share of each answer's root mean square. Accuracy is measured behind the same noise."
    )
    yield _beside(results, "wrapping", wrappings(results.settings), costs=False)
    yield "### Summary\n\n" + _summary(results, "wrapping", "wrap")
    yield "### Stolen from behind a wrapping\n\nby `mse-plain-same`."
    labels = [f"behind-{place}-{std:g}" for place, std in results.settings.behind]
    yield _theft_table(results, "wrapping", labels, ("cured",))
    yield "### Summary\n\n" + _summary(results, "wrapping", "steal")


def _chains(results: Results) -> Iterable[str]:
    epochs, pruned = results.settings.chain_epochs, percent(results.settings.chain_pruned)
    yield (
        f"## Chains\n\nStolen by `mse-plain-same`, then trained on labels (epochs: {epochs}), then {pruned} pruned. "
        "Costs are those of all steps."
    )
    yield _beside(results, "chains", ("steal-tune", "steal-tune-prune"))
    yield "### Summary\n\n" + _summary(results, "chains")
