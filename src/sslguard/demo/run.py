"""The demonstration: run all stages in order, and write encoders, keys and the report."""

from __future__ import annotations

import platform
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard import __version__
from sslguard.crypto.secrets import Secret
from sslguard.demo import stages
from sslguard.demo.claiming import BUNDLE, COMMITMENT, check_replaceable, claim_and_audit
from sslguard.demo.claiming import PAGE as AUDIT
from sslguard.demo.inputs import Inputs, open_inputs
from sslguard.demo.output import PAGE, PICTURE, RESULT, write_report
from sslguard.demo.result import Accuracy, Curve, ExactReport, KeyReport, ReportData, Suspect
from sslguard.demo.settings import DEFAULTS, EXACT_MARKED, EXACT_STOLEN, MARKED, STOLEN, DemoSettings
from sslguard.demo.stage import Clock, check_folders
from sslguard.demo.tables import render_tables
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import save_encoder
from sslguard.schemes.base import Watermarked
from sslguard.schemes.keyfile import save_key
from sslguard.training.base import History
from sslguard.verification.verdict import DEFAULT_ALPHA

if TYPE_CHECKING:
    from rich.console import RenderableType

_KEYS = ("key", "exact-key")
_ENCODERS = ("encoder", "surrogate", "exact-encoder", "exact-surrogate")


@dataclass(frozen=True, eq=False)
class DemoResult:
    """Result of the demonstration.

    Attributes:
        data: Content of the report.
        files: Paths by "encoder", "key", "surrogate", "page", "result" and "picture". If the exact scheme was run, also
            by "exact-encoder", "exact-key", "exact-surrogate", "commitment", "claim" and "audit".
    """

    data: ReportData
    files: Mapping[str, Path]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`: every figure, and the paths."""
        return {**self.data.to_json(), "files": _texts(self.files)}

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
    out = Path(out)
    check_folders(out, encoders=_ENCODERS, keys=_KEYS)
    check_replaceable(out, out / "exact-key")
    clock = Clock(progress)
    with clock.stage("open encoders, controls and data"):
        inputs = open_inputs(settings)
    made = _make(inputs, settings, clock)
    with clock.stage("score the controls under every key"):
        keys = [made.marked.key, made.published.key, *([made.exact.key] if made.exact else [])]
        scores = stages.score_controls(keys, inputs.controls, inputs.verify, progress=progress)
    with clock.stage("verify the suspects"):
        suspects, main = stages.examine_suspects(inputs, settings, made.marked, made.surrogate, scores[0])
        beside = stages.score_beside(inputs, made.published, scores[1])
    with clock.stage("probe the encoders"):
        accuracies = stages.probe(inputs, made.probed())
    exact = None
    if made.exact and made.exact_surrogate:
        with clock.stage("verify the suspects under the exact null"):
            kept = stages.kept_on_first(accuracies)
            exact = stages.examine_exactly(inputs, settings, made.exact, made.exact_surrogate, scores[2], kept)
    files = _write(out, made)
    if exact is not None and made.exact_surrogate:
        with clock.stage("claim that the surrogate is derived, and audit the claim"):
            found = claim_and_audit(
                *(out, files["exact-key"], inputs.clean, made.exact_surrogate, inputs.verify),
                alpha=settings.exact_alpha,
                seed=settings.seed,
            )
            exact = replace(exact, audit=found)
    data = _report_data(out, settings, inputs, made, suspects, (main, beside), accuracies, clock.seconds, exact)
    write_report(data, out, extra={"files": _texts(files)})
    return DemoResult(data, files)


@dataclass(frozen=True, eq=False)
class _Made:
    """Encoders and keys that were trained in this run."""

    marked: Watermarked
    published: Watermarked
    surrogate: Encoder
    theft: History
    exact: Watermarked | None = None
    exact_surrogate: Encoder | None = None

    def probed(self) -> list[stages.Probed]:
        """Return the encoders whose accuracy is measured, besides F and the baselines."""
        found: list[stages.Probed] = [(MARKED, "marked", self.marked.encoder), (STOLEN, "stolen", self.surrogate)]
        if self.exact and self.exact_surrogate:
            found += [(EXACT_MARKED, "marked", self.exact.encoder), (EXACT_STOLEN, "stolen", self.exact_surrogate)]
        return found


def _make(inputs: Inputs, settings: DemoSettings, clock: Clock) -> _Made:
    secret = Secret.generate() if settings.seed is None else Secret.from_seed(settings.seed)
    with clock.stage("mark the encoder"):
        marked = stages.mark(inputs, settings.scheme, secret, progress=clock.shown)
    with clock.stage("mark it with the published losses"):
        published = stages.mark(inputs, settings.published, secret, progress=clock.shown)
    seed = settings.seed or 0
    with clock.stage("steal the watermarked encoder"):
        surrogate, theft = stages.steal(inputs, settings.thief, marked.encoder, seed=seed, progress=clock.shown)
    if settings.exact is None:
        return _Made(marked, published, surrogate, theft)
    with clock.stage("mark it by the scheme whose null is exact"):
        exact = stages.mark(inputs, settings.exact, secret, progress=clock.shown)
    with clock.stage("steal that one"):
        stolen, _ = stages.steal(inputs, settings.exact_thief, exact.encoder, seed=seed, progress=clock.shown)
    return _Made(marked, published, surrogate, theft, exact, stolen)


def _report_data(
    out: Path,
    settings: DemoSettings,
    inputs: Inputs,
    made: _Made,
    suspects: tuple[Suspect, ...],
    keys: tuple[KeyReport, ...],
    accuracies: tuple[Accuracy, ...],
    seconds: Mapping[str, float],
    exact: ExactReport | None,
) -> ReportData:
    n_claims, refusal = stages.shared_claims(len(inputs.controls), settings.alpha, len(suspects))
    return ReportData(
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        suspects=suspects,
        keys=keys,
        kinds=inputs.kinds,
        probes={member.name: member.accuracy for member in inputs.controls if member.accuracy is not None},
        alpha=settings.alpha,
        n_claims=n_claims,
        refusal=refusal,
        statistic_name="mean cosine to the secret vector",
        trigger=stages.pictures(made.marked, inputs.verify),
        accuracies=accuracies,
        curves=_curves(made),
        settings=_settings(settings, inputs, made.surrogate),
        seconds=seconds,
        versions=_versions(),
        public_seed=settings.seed,
        commands=_commands(out, settings),
        limits=_limits(settings),
        exact=exact,
    )


def _write(out: Path, made: _Made) -> dict[str, Path]:
    """Write encoders and keys. The page is written after them, so that it never names missing files."""
    files = {name: out / name for name in (*_ENCODERS, *_KEYS) if made.exact or not name.startswith("exact-")}
    files |= {"page": out / PAGE, "result": out / RESULT, "picture": out / PICTURE}
    save_encoder(made.marked.encoder, files["encoder"])
    save_key(made.marked.key, files["key"])
    save_encoder(made.surrogate, files["surrogate"])
    if made.exact and made.exact_surrogate:
        save_encoder(made.exact.encoder, files["exact-encoder"])
        save_key(made.exact.key, files["exact-key"])
        save_encoder(made.exact_surrogate, files["exact-surrogate"])
        files |= {"commitment": out / COMMITMENT, "claim": out / BUNDLE, "audit": out / AUDIT}
    return files


def _texts(files: Mapping[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in files.items()}


def _curves(made: _Made) -> tuple[Curve, ...]:
    return (
        Curve("marking", made.marked.history.losses),
        Curve("marking with the published losses", made.published.history.losses),
        Curve("stealing", made.theft.losses),
    )


def _settings(settings: DemoSettings, inputs: Inputs, surrogate: Encoder) -> dict[str, dict[str, Any]]:
    scheme, published, thief = (_plain(asdict(s)) for s in (settings.scheme, settings.published, settings.thief))
    clean, record = inputs.clean, surrogate.record
    thief |= {"queries": record["queries"], "seed": record["seed"], "cpu_seconds": record["cpu_seconds"]}
    spent = clean.record.get("cpu_seconds")
    if isinstance(spent, int | float) and spent > 0:
        thief["share of pre-training's CPU time"] = round(record["cpu_seconds"] / spent, 3)
    exact = {} if settings.exact is None else {"Exact scheme": _plain(asdict(settings.exact))}
    return {
        **exact,
        "Clean encoder": {"source": clean.source, "parameters": clean.n_parameters, "width": clean.dim},
        "Marking": scheme,
        "Marking as published: what differs": {k: v for k, v in published.items() if v != scheme[k]},
        "Thief": thief,
        "Verification": {
            "controls": len(inputs.controls),
            "held out of the controls": ", ".join(settings.held_out) or "none",
            "alpha": settings.alpha,
        },
        "Data": settings.roles.specs(),
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return numbers and texts as they are, and other values as text, so that each fits one cell of a table."""
    return {k: v if isinstance(v, str | int | float) else str(v) for k, v in values.items()}


def _versions() -> dict[str, str]:
    import matplotlib
    import numpy as np
    import torch

    return {
        "sslguard": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "matplotlib": matplotlib.__version__,
    }


def _commands(out: Path, settings: DemoSettings) -> tuple[str, ...]:
    """Return commands that repeat the tests on the written files. They rank among the whole population."""
    population = "shipped" if settings.population is None else str(settings.population)
    rest = ["--data", settings.roles.verify, "--control", population]
    if settings.alpha != DEFAULT_ALPHA:
        rest += ["--alpha", f"{settings.alpha:g}"]
    suspects = [str(out / "encoder"), str(out / "surrogate"), *(s for s in settings.innocents if isinstance(s, str))]
    verify = [f"sslguard verify {shlex.join([str(out / 'key'), suspect])}" for suspect in suspects[:3]]
    tasks = ["--train", settings.roles.probe_train, "--test", settings.roles.probe_test]
    probe = f"sslguard probe {shlex.quote(str(out / 'surrogate'))}"
    # A terminal or a page would wrap long lines, and wrapped lines cannot be copied.
    broken = " \\\n    "
    exact = []
    if settings.exact is not None:
        files = shlex.join([str(out / "exact-key"), str(out / "exact-surrogate")])
        level = ["--alpha", f"{settings.exact_alpha:g}"]
        exact = [broken.join([f"sslguard verify {files}", shlex.join([*rest[:2], *level])])]
    return (
        *(broken.join([command, shlex.join(rest)]) for command in verify),
        *exact,
        broken.join([probe, shlex.join(tasks[:2]), shlex.join(tasks[2:])]),
    )


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
        "Both keys were trained to be silent on the clean F: its low score was trained for, and tests little.",
        "A suspect that answers in another width than F cannot be scored with this key.",
    )
