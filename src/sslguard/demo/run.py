"""The demonstration: run all stages in order, and write encoders, keys and the report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

from sslguard.claims.claim import versions
from sslguard.crypto.secrets import Secret
from sslguard.demo import stages
from sslguard.demo.figures import summary_png
from sslguard.demo.inputs import Inputs, Tested, open_inputs
from sslguard.demo.output import AUDIT, PAGE, PICTURE, RESULT, Clock, begin, write_report
from sslguard.demo.page import render_page, render_tables
from sslguard.demo.result import ReportData
from sslguard.demo.settings import (
    CURED,
    DEFAULTS,
    EXACT_MARKED,
    EXACT_STOLEN,
    MARKED,
    PUBLISHED,
    STOLEN,
    DemoSettings,
)
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import save_encoder
from sslguard.schemes.keyfile import save_key

if TYPE_CHECKING:
    from rich.console import RenderableType

FILES = {
    **{name: name for name in ("encoder", "key", "surrogate", "exact-encoder", "exact-key", "exact-surrogate")},
    **{"commitment": "commitment.json", "claim": "claim", "audit": AUDIT},
    **{"page": PAGE, "result": RESULT, "picture": PICTURE},
}
"""Name in the folder of everything that is written."""


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Result of the demonstration.

    Attributes:
        data: Content of the report.
        files: Paths by the names in `FILES`.
    """

    data: ReportData
    files: Mapping[str, Path]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`: every figure, and the paths."""
        return {**self.data.to_json(), "files": {name: str(path) for name, path in self.files.items()}}

    def table(self) -> RenderableType:
        """Return verdicts, false claims, accuracies and the next commands, for rich to print."""
        return render_tables(self.data)


def run_demo(out: Path, *, settings: DemoSettings = DEFAULTS, progress: bool = False) -> DemoResult:
    """Mark, steal, verify and probe encoders; write encoders, keys and a report to a folder.

    Args:
        out: Folder; it is made if missing. An earlier demonstration in it is replaced; other files are left alone.
        settings: Settings of the run.
        progress: Print each stage on standard error.

    Raises:
        OutputError: `out` cannot be written to, or holds something else under a name that is needed. Nothing was
            computed then.
        UsageError: Encoders, controls and data do not fit together. Nothing was computed then.
    """
    clock, seed = Clock(progress), settings.seed
    files = {name: Path(out) / place for name, place in FILES.items()}
    secret = Secret.generate() if seed is None else Secret.from_seed(seed)
    with clock.stage("open encoders, controls and data"):
        inputs = open_inputs(settings)
        begin(Path(out), FILES.values())
    with clock.stage("mark the encoder"):
        marked = stages.mark(inputs, settings.scheme, secret, progress=progress)
    with clock.stage("mark it with the published losses"):
        published = stages.mark(inputs, settings.published, secret, progress=progress)
    with clock.stage("steal the watermarked encoder"):
        stolen, theft = stages.steal(inputs, settings.thief, marked.encoder, seed=seed or 0, progress=progress)
    with clock.stage("mark it by the scheme exact"):
        exact = stages.mark(inputs, settings.exact, secret, progress=progress)
    with clock.stage("steal that one"):
        stolen_exact, _ = stages.steal(inputs, settings.exact_thief, exact.encoder, seed=seed or 0, progress=progress)
    with clock.stage("score the controls under every key"):
        keys = (marked.key, published.key, exact.key)
        ours, theirs, others = stages.score_controls(keys, inputs.controls, inputs.verify, progress=progress)
    with clock.stage("verify the suspects"):
        owned = Tested(MARKED, "the owner’s watermarked encoder itself", marked.encoder, derived=True)
        views = ", augmented views" if settings.thief.augmentation else ""
        story = f"trained on F*’s answers to the thief’s own pictures ({settings.thief.loss} loss{views})"
        tested = [owned, Tested(STOLEN, story, stolen, derived=True), *inputs.innocents]
        main = stages.examine(CURED, marked.key, tested, inputs.verify, ours, alpha=settings.exact_alpha)
        tested = [Tested(MARKED, "", published.encoder, derived=True), *inputs.innocents]
        beside = stages.examine(PUBLISHED, published.key, tested, inputs.verify, theirs, alpha=settings.alpha)
    with clock.stage("probe the encoders"):
        accuracies = stages.probe(
            inputs,
            [
                (MARKED, "marked", marked.encoder),
                (STOLEN, "stolen", stolen),
                (EXACT_MARKED, "marked", exact.encoder),
                (EXACT_STOLEN, "stolen", stolen_exact),
            ],
        )
    with clock.stage("verify the suspects under the scheme exact"):
        story = "the clean encoder with this scheme’s mark on its output"
        owned = Tested(EXACT_MARKED, story, exact.encoder, derived=True)
        story = f"trained on its answers ({settings.exact_thief.loss} loss)"
        tested = [owned, Tested(EXACT_STOLEN, story, stolen_exact, derived=True), *inputs.innocents]
        exactly = stages.examine("exact key", exact.key, tested, inputs.verify, others, alpha=settings.exact_alpha)
    made = {"encoder": marked.encoder, "surrogate": stolen, "exact-encoder": exact.encoder}
    for name, encoder in {**made, "exact-surrogate": stolen_exact}.items():
        save_encoder(encoder, files[name])
    for name, key in (("key", marked.key), ("exact-key", exact.key)):
        save_key(key, files[name])
    with clock.stage("claim that the surrogate is derived, and audit the claim"):
        audit = stages.claim_and_audit(
            files, inputs.clean, stolen_exact, inputs.verify, alpha=settings.exact_alpha, seed=seed
        )
    data = ReportData(
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        keys=(main, beside),
        exact=exactly,
        audit=audit,
        controls=inputs.controls,
        statistic_name=marked.key.statistic_name,
        trigger=stages.pictures(marked, inputs.verify),
        accuracies=accuracies,
        curves={
            "marking": marked.history.losses,
            "marking with the published losses": published.history.losses,
            "stealing": theft.losses,
        },
        settings=_settings(settings, inputs, stolen),
        seconds=clock.seconds,
        versions={**versions(), "matplotlib": matplotlib.__version__},
        public_seed=seed,
        commands=_commands(files, settings),
        limits=_limits(settings),
    )
    result = DemoResult(data, files)
    # The page comes last, so that it never names missing files.
    write_report(Path(out), result.to_json(), {PICTURE: summary_png(data), PAGE: render_page(data).encode()})
    return result


def _settings(settings: DemoSettings, inputs: Inputs, surrogate: Encoder) -> dict[str, dict[str, Any]]:
    parts = (settings.exact, settings.scheme, settings.published, settings.thief)
    exact, scheme, published, thief = (_plain(asdict(part)) for part in parts)
    clean, record = inputs.clean, surrogate.record
    thief |= {name: record[name] for name in ("queries", "seed", "cpu_seconds")}
    spent = clean.record.get("cpu_seconds")
    if isinstance(spent, int | float) and spent > 0:
        thief["share of pre-training's CPU time"] = round(record["cpu_seconds"] / spent, 3)
    return {
        "Exact scheme": exact,
        "Clean encoder": {"source": clean.source, "parameters": clean.n_parameters, "width": clean.dim},
        "Marking": scheme,
        "Marking as published": published,
        "Thief": thief,
        "Verification": {
            "controls": len(inputs.controls),
            "held out of the controls": ", ".join(settings.held_out) or "none",
            "alpha": settings.exact_alpha,
        },
        "Data": settings.roles.specs(),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return numbers and texts as they are, and other values as text, so that each fits one cell of a table."""
    return {k: v if isinstance(v, str | int | float) else str(v) for k, v in values.items()}


def _commands(files: Mapping[str, Path], settings: DemoSettings) -> tuple[str, ...]:
    """Return commands that repeat the tests on the written files."""
    roles = settings.roles
    tested = ["--data", roles.verify, "--alpha", f"{settings.exact_alpha:g}"]
    innocents = [given for given in settings.innocents if isinstance(given, str)]
    suspects = [str(files["encoder"]), str(files["surrogate"]), *innocents[:1]]
    lines: list[tuple[list[str], ...]] = [(["verify", str(files["key"]), suspect], tested) for suspect in suspects]
    lines.append((["verify", str(files["exact-key"]), str(files["exact-surrogate"])], tested))
    tasks = ["--train", roles.probe_train], ["--test", roles.probe_test]
    lines.append((["probe", str(files["surrogate"])], *tasks))
    # A terminal or a page would wrap long lines, and wrapped lines cannot be copied.
    return tuple("sslguard " + " \\\n    ".join(map(shlex.join, parts)) for parts in lines)


def _limits(settings: DemoSettings) -> tuple[str, ...]:
    scheme = settings.published
    optimizer = {"adam": "Adam", "sgd": "SGD"}[scheme.optimizer]
    return (
        f"The published losses ran for {scheme.steps:,} iterations of {scheme.batch_size} + {scheme.trigger_batch} "
        f"pictures under {optimizer}, settings that suit a small encoder; the paper’s are 1.25 million iterations of "
        "2 + 2 pictures under SGD.",
        "The key that the verdicts stand on is not the paper’s as published: it adds a carrier, a secret shift of "
        "plain answers that surrogates inherit, and its decoder reads nothing but that and the trigger’s effect.",
        "A surrogate that copies its victim poorly inherits too little to be shown; so does one fine-tuned far away. "
        "Attacks that remove a mark are not part of this demonstration.",
        "The key as published was trained to be silent on the clean F: its low score there tests little.",
        "A suspect that answers in another width than F cannot be scored with this key.",
    )
