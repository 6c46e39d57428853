"""Commands of evidence from weights: `lineage`, `release`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sslguard.cli.checks import check
from sslguard.cli.options import PRINTED, Count, Output, within
from sslguard.cli.output import Result, command, say
from sslguard.report.text import bits
from sslguard.schemes.keyfolder import is_key
from sslguard.settings import Range

if TYPE_CHECKING:
    from rich.table import Table

    from sslguard.lineage.verdict import LineageVerdict

Alpha = Annotated[float, Parameter(validator=within(Range(above=0, below=1)))]
_ALPHA = 2.0**-20


def lineage(
    a: str,
    b: str,
    /,
    *,
    key: Path | None = None,
    commitment: Path | None = None,
    not_after: str | None = None,
    authority_roots: Path | None = None,
    ancestor: str | None = None,
    initial: str | None = None,
    groups: Path | None = None,
    alpha: Alpha = _ALPHA,
    claims: Count = 1,
    report: Path | None = None,
    output: Output = PRINTED,
) -> Result:
    """Test whether the weights of two networks of one architecture have a common origin.

    No mark is needed: the hidden units of each network are matched with those of the other, and units that match in
    place are counted. Between independent networks one unit in each group does so by chance. The p-value is exact if
    the initial weights of one of them were drawn at random. Copies that were fine-tuned, pruned or rounded keep their
    units in place.
    Exit code 0 shared weights, 1 not shown, 3 weights or key damaged, 4 refused: no units of one kind in both.

    Args:
        a: Your network: an encoder as in other commands, or the folder hf:FOLDER of any network, read shard by shard.
        b: The suspect, named likewise.
        key: Folder of the key that A was released with. Only its secret order counts then. What shares an ancestor, a
            seed or data with A, and was not made from the release, does not have this order.
        commitment: File that commit wrote for the key, for an examiner: 20 bits are subtracted for other orders that
            were tried if its timestamp is older than the suspect, else 64.
        not_after: When the suspect could first be read, such as 2026-11-30.
        authority_roots: Certificates, PEM, that must vouch for the timestamp.
        ancestor: A network that both may come from: does it explain what they share?
        initial: The folder seed that pretrain wrote with A, or A's weights before training, drawn from a seed that was
            secret. Against a thief who puts hidden units in another order. Never give weights that were trained.
        groups: Description of the groups of units, JSON, for networks whose layers have unknown names.
        alpha: Level of the decision; by default 2^-20.
        claims: How many claims (suspects, keys, looks) share that level.
        report: File of a page with a picture of the matched units of each layer, HTML.
        output: How results are printed.
    """
    seeded = initial is not None and is_key(Path(initial))
    check(encoders=[a, b, ancestor, None if seeded else initial], key=key)

    from sslguard import api
    from sslguard.cli.claim import moment

    verdict = api.compare_weights(
        *(a, b),
        key=key,
        commitment=commitment,
        not_after=moment("--not-after", not_after),
        authority_roots=authority_roots,
        ancestor=ancestor,
        initial=initial,
        groups=groups,
        alpha=alpha,
        n_claims=claims,
        report=report,
        progress=output.progress,
    )
    fields: dict[str, Any] = verdict.to_json()
    rows = lineage_rows(verdict)
    if report is not None:
        fields["report"] = str(report)
        rows.append(("report", str(report)))
    return Result(fields, rows, verdict.exit_code, _table(verdict))


def release(
    encoder: str,
    /,
    *,
    out: Path,
    data: str | None = None,
    recipient: list[str] | None = None,
    ask_passphrase: bool = False,
    output: Output = PRINTED,
) -> Result:
    """Put the hidden units of an encoder in a secret order for its release: OUT/encoder, and its private key OUT/key.

    Nothing is trained, and the answers change by rounding alone. `lineage OUT/encoder SUSPECT --key OUT/key` tells what
    was made from the weights. `watermark` does the same to every encoder that it marks.

    Args:
        encoder: The encoder in its own order. Never publish it: who has both can tell the order.
        out: Folder of the result. A key that is there is never overwritten.
        data: A few items that the encoder takes, to compare the answers; made up unless given.
        recipient: Encrypt the key for this age public key, or those in this file; give several by repeating it.
        ask_passphrase: Encrypt the key by a passphrase that is asked for; SSLGUARD_PASSPHRASE does so without asking.
        output: How results are printed.
    """
    check(encoders=[encoder], data=[data])

    from sslguard import api
    from sslguard.cli.claim import chosen_seal
    from sslguard.cli.make import order_rows

    seal = chosen_seal(recipient, ask_passphrase)
    marked = api.release(encoder, out=out, data=data, seal=seal)
    if seal is None and not output.quiet:
        say(f"the key is in the clear: whoever reads {out / 'key'} has it; sslguard protect encrypts it")
    record = marked.encoder.record
    fields = {"encoder": str(out / "encoder"), "key": str(out / "key"), **record}
    rows = [
        ("encoder", str(out / "encoder")),
        ("key", f"{out / 'key'} (private: keep it as you keep a private key)"),
        *order_rows(marked),
        ("answers", f"moved by {record['moved']:.1e} of their length: rounding"),
    ]
    return Result(fields, rows, next=command("export", out / "encoder", "--out", "published"))


def lineage_rows(verdict: LineageVerdict) -> list[tuple[str, str]]:
    """Return what people read of a verdict."""
    first, *others = verdict.tests
    counts = f"{first.matched} of {first.size} units in {len(first.rows)} groups; by chance about {len(first.rows)}"
    shared = f", shared among {_many(verdict.n_claims)} claims" if verdict.n_claims > 1 else ""
    rows = [
        ("decision", verdict.decision),
        ("evidence", f"{bits(verdict.log2_pvalue)} bits (p = 2^-{bits(verdict.log2_pvalue)})"),
        ("in place", counts),
        *((one.test, f"{one.matched} of {one.size} units, {bits(one.log2_pvalue)} bits") for one in others),
    ]
    if verdict.secret is not None:
        one = verdict.secret
        rows.append(("secret order", f"{one.matched} of {one.size} units in place, {bits(one.log2_pvalue)} bits"))
        rows.append(("without key", f"{bits(verdict.log2_lineage)} bits"))
    rows.append(("meaning", verdict.meaning))
    if verdict.secret is None and all(name.startswith("shipped:") for name in (verdict.a, verdict.b)):
        rows.append(("shipped", "the encoders of this package began with one seed: each looks related to the others"))
    if verdict.ancestor is not None:
        rows.append(("ancestor", f"{verdict.ancestor.name} {verdict.ancestor.meaning}"))
    if first.left_out:
        name, reason = first.left_out[0]
        rows.append(("left out", f"{len(first.left_out)} groups, the first {name}: {reason}"))
    if verdict.dated:
        rows.append(("commitment", verdict.dated))
    rows.append(("alpha", f"{verdict.alpha:.3g}{shared}"))
    return rows


def _many(n: int) -> str:
    return f"{n:,}" if n < 1 << 20 else f"2^{n.bit_length() - 1}"


def _table(verdict: LineageVerdict) -> Table:
    from rich.table import Table

    from sslguard.cli.output import printable

    table = Table("group", "units", "in place", "bits", "compared as")
    for row in verdict.tests[0].rows:
        cells = (row.group, str(row.size), str(row.matched), bits(row.log2_pvalue), row.why)
        table.add_row(*(printable(cell).replace("[", r"\[") for cell in cells))
    return table
