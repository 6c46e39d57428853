"""The demonstration: mark an encoder, steal it twice, ask thieves and innocents, claim, and write the report."""

from __future__ import annotations

import secrets
import shlex
import shutil
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard import api
from sslguard.attacks.removal import FineTune
from sslguard.claims.claim import versions
from sslguard.claims.commitment import timestamp_file
from sslguard.crypto.secrets import Secret
from sslguard.data.base import check_unseen
from sslguard.data.specs import open_data
from sslguard.demo import paper
from sslguard.demo.output import AUDIT, PAGE, PICTURE, Clock, Stages, write_report
from sslguard.demo.settings import DemoSettings
from sslguard.demo.suspects import COPIED, MARKED, STOLEN, Pixels, Tested, asked, innocents
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.load import load_encoder
from sslguard.probes.evaluate import probe_encoder
from sslguard.schemes.keyfile import open_key

if TYPE_CHECKING:
    from rich.console import RenderableType

FILES = {
    **{name: name for name in ("marked", "stolen", "copied", "claim", "paper")},
    **{"commitment": "commitment.json", "audit": AUDIT, "page": PAGE, "picture": PICTURE},
}
"""Name in the folder of everything that is written besides `result.json`."""


@dataclass(frozen=True)
class DemoResult:
    """Result of the demonstration.

    Attributes:
        fields: Every figure, JSON values: the content of `result.json`.
        out: Folder of the demonstration.
        again: Whether it was all there before.
    """

    fields: Mapping[str, Any]
    out: Path
    again: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return every figure, and whether they were there before."""
        return {**self.fields, "already_done": self.again}

    def table(self) -> RenderableType:
        """Return what was found and the next commands, for rich to print."""
        from sslguard.demo.page import tables

        return tables(self.fields)


def run_demo(out: Path, *, settings: DemoSettings | None = None, progress: bool = False) -> DemoResult:
    """Mark, steal, verify, claim and audit; write encoders, key and a report to a folder.

    What an earlier run left there is used: one that was killed goes on, one that is complete is only read.

    Args:
        out: Folder; it is made if missing.
        settings: Settings of the run; None takes those for this machine.
        progress: Print each stage on standard error.

    Raises:
        OutputError: `out` cannot be written to, or holds something else. Nothing was computed then.
        UsageError: Data and settings do not fit together. Nothing was computed then.
        DataError: The pictures are not on this machine, and could not be downloaded.
    """
    chosen = settings or DemoSettings.here()
    stages = Stages(Path(out), FILES.values(), chosen.plain(), shown=progress)
    done = "created" in stages.fields and (Path(out) / PAGE).exists()
    if not done:
        with Clock(progress).stage("open the pictures; where this machine has none, download them (30 MB)"):
            roles = chosen.roles
            check_unseen(*(open_data(spec) for spec in (roles.verify, roles.mark, roles.thief)))
        with nullcontext() if chosen.paper is None else paper.beside(Path(out) / "paper", chosen):
            _prove(stages, chosen)
        if chosen.paper is not None:
            stages.fields["paper"] = paper.run(Path(out) / "paper", chosen, progress=progress)
        _report(stages, chosen)
    return DemoResult(stages.fields, Path(out), again=done)


def _prove(stages: Stages, settings: DemoSettings) -> None:
    """Go through the stages of the scheme exact."""
    out, roles, seed = stages.out, settings.roles, settings.seed or 0
    marked, stolen, copied = (out / name for name in ("marked", "stolen", "copied"))
    secret = None if settings.seed is None else Secret.from_seed(settings.seed)

    def mark() -> dict[str, Any]:
        if not marked.exists():
            bound = {"pool": roles.verify, "secret": secret}
            api.watermark(settings.encoder, roles.mark, out=marked, scheme=settings.scheme, **bound)
        return load_encoder(marked / "encoder").record["taken"]

    def steal() -> dict[str, Any]:
        if not stolen.exists():
            loop = {"seed": seed, "precision": paper.precision()}
            api.steal(str(marked / "encoder"), roles.thief, out=stolen, recipe=settings.thief, **loop)
        record = load_encoder(stolen).record
        return {name: record[name] for name in ("queries", "cpu_seconds")}

    def copy() -> dict[str, Any]:
        if not copied.exists():
            victim, attack = headless(load_encoder(marked / "encoder")), FineTune(settings.copier)
            api.attack(victim, attack, roles.tune, out=copied, seed=seed, precision=paper.precision())
        return {"cpu_seconds": load_encoder(copied).record["cpu_seconds"]}

    stages.do("mark the encoder", mark)
    stages.do("steal it through its answers", steal)
    stages.do("copy its weights, and train them further", copy)
    key = open_key(marked / "key")
    for one in suspects(settings, out):
        stages.do(f"ask {one.name}", lambda one=one: asked(key, one, settings))
    stages.do("claim, and audit the claim", lambda: _claim(out, settings))
    stages.do("measure what the copies are worth", lambda: _worth(out, settings))


def headless(encoder: Encoder) -> Encoder:
    """Return a marked encoder without the head that holds the mark, as a thief who has the weights would leave it."""
    architecture = {name: value for name, value in encoder.architecture.items() if name != "head"}
    network: Any = encoder.module
    return replace(encoder, module=network.encoder, architecture=architecture, source="weights without the head")


def suspects(settings: DemoSettings, out: Path) -> list[Tested]:
    """Return who is tested, in the order of the report."""
    return [
        Tested(MARKED, "what the owner serves", True, str(out / "marked" / "encoder")),
        Tested(STOLEN, "another network, trained on the marked encoder's answers alone", True, str(out / "stolen")),
        Tested(COPIED, "its weights without the mark's layer, trained further with labels", True, str(out / "copied")),
        *innocents(settings.innocents),
    ]


def _claim(out: Path, settings: DemoSettings) -> dict[str, Any]:
    """Commit to the key, claim the stolen copy on queries that an examiner's seed draws, and audit the claim.

    The key is bound to the pictures that are drawn from. Owner, examiner and thief are one program here, so nothing
    shows the date of the commitment. The audit subtracts 70 bits for that, and for what might have been tried.
    """
    key, commitment, bundle = (out / name for name in ("marked/key", "commitment.json", "claim"))
    for old in (commitment, timestamp_file(commitment)):
        old.unlink(missing_ok=True)
    shutil.rmtree(bundle, ignore_errors=True)
    seed = secrets.token_hex(16) if settings.seed is None else f"demonstration {settings.seed}"
    suspect, data = str(out / "stolen"), settings.roles.verify
    api.commit(key, commitment)
    api.claim(key, suspect, data, seed=seed, commitment=commitment, out=bundle, alpha=settings.alpha)
    audit = api.audit(
        *(bundle, data),
        seed=seed,
        commitment=commitment,
        clean=settings.encoder,
        suspect=suspect,
        alpha=settings.alpha,
        report=out / AUDIT,
    )
    found = None if audit.verdict is None else abs(round(audit.verdict.significance.log2_pvalue, 2))
    checks = [[check.name, check.status, check.words] for check in audit.checks]
    return {"decision": audit.decision, "bits": found, "seed": seed, "checks": checks}


def _worth(out: Path, settings: DemoSettings) -> dict[str, float]:
    """Return the accuracy of a linear probe on the embeddings of each encoder, in [0, 1]."""
    train, test = (open_data(spec) for spec in (settings.roles.probe_train, settings.roles.probe_test))
    train, test = (data.slice(0, min(len(data), settings.probe_items)) for data in (train, test))
    probed: dict[str, Embedder] = {"clean encoder": load_encoder(settings.encoder), "raw pixels": Pixels()}
    probed |= {MARKED: load_encoder(out / "marked" / "encoder")}
    probed |= {name: load_encoder(out / place) for name, place in ((STOLEN, "stolen"), (COPIED, "copied"))}
    return {name: probe_encoder(one, train, test).accuracy for name, one in probed.items()}


def _report(stages: Stages, settings: DemoSettings) -> None:
    from sslguard.demo.page import picture_png, render_page

    fields = stages.fields
    fields["created"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    fields["versions"] = versions()
    fields["commands"] = _commands(stages.out, settings)
    # The page comes last: where it is, everything is.
    write_report(stages.out, fields, {PICTURE: picture_png(fields), PAGE: render_page(fields).encode()})


def _commands(out: Path, settings: DemoSettings) -> list[str]:
    """Return commands that repeat the tests on the written files."""
    key, marked, stolen, copied = (str(out / name) for name in ("marked/key", "marked/encoder", "stolen", "copied"))
    tested = ["--data", settings.roles.verify, "--alpha", f"{settings.alpha:.2g}"]
    lines = [(["verify", key, suspect], tested) for suspect in (stolen, "shipped:moco")]
    lines.append((["lineage", marked, copied], ["--key", key]))
    # A terminal or a page would wrap long lines, and wrapped lines cannot be copied.
    return ["sslguard " + " \\\n    ".join(map(shlex.join, parts)) for parts in lines]
