"""Commands of tracing: `recipients`, `trace`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sslguard.cli.checks import check
from sslguard.cli.options import EMBEDDING, PRINTED, Count, Output, Positive, Running
from sslguard.cli.output import Result, command
from sslguard.cli.remote import DEFAULT_REMOTE, RemoteOptions, opened, remote_rows
from sslguard.errors import MissingExtraError, UsageError
from sslguard.report.text import bits

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from sslguard.tracing.recipients import Recipient
    from sslguard.tracing.trace import Compared, Traced

HELP = """Keep the names of those who receive the encoder: `trace` tells whose copy a suspect was made from.

Each recipient's secrets are derived from the key and from his name. The names stand beside the key, not encrypted."""
_MOST_NAMES = 1 << 28  # bytes


def add(key: Path, /, *name: str, names: Path | None = None, output: Output = PRINTED) -> Result:  # noqa: ARG001
    """Add recipients to a key.

    Args:
        key: Folder of the key, of the scheme exact.
        name: Names of recipients, of at most 128 printable characters.
        names: File of more names, one a line.
        output: How results are printed.
    """
    check(key=key)
    from sslguard.claims.openings import check_not_opened
    from sslguard.files import read_plain
    from sslguard.tracing import recipients

    given = list(name)
    if names is not None:
        try:
            given += read_plain(names, _MOST_NAMES, UsageError).decode().splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"{names} is no text in UTF-8: save it as such") from None
    if not given:
        raise UsageError("name at least one recipient, or a file of names with --names")
    _check_exact(key)
    check_not_opened(key, given)
    added = recipients.add(key, given)
    words = command("watermark", "ENCODER", "--data", "DATA", "--key", key, "--recipient-mark", added[0].name)
    rows = [
        ("key", str(key)),
        ("added", ", ".join(one.name for one in added[:10])),
        ("number", f"{len(added):,}"),
    ]
    return Result({"key": str(key), "added": len(added)}, rows, next=f"{words} --out OUT")


def list_(key: Path, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001
    """List the recipients of a key, with the dates of their secrets.

    Args:
        key: Folder of the key.
        output: How results are printed.
    """
    check(key=key)
    from sslguard.tracing.recipients import read_recipients

    found = read_recipients(key)
    fields = [{"name": one.name, "secrets": list(one.secrets), "revoked": one.revoked} for one in found]
    rows = [(one.name, _dates(one)) for one in found] or [("recipients", "none")]
    return Result({"key": str(key), "recipients": fields}, rows)


def revoke(key: Path, name: str, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001
    """Revoke a recipient: nothing more is marked for him. He is still compared in every trace.

    Args:
        key: Folder of the key.
        name: Name of the recipient.
        output: How results are printed.
    """
    check(key=key)
    from sslguard.tracing import recipients

    return _one(key, recipients.revoke(key, name))


def rotate(key: Path, name: str, /, *, output: Output = PRINTED) -> Result:  # noqa: ARG001
    """Draw a fresh secret for a recipient; one who was revoked is served again. His former secrets are still compared.

    Args:
        key: Folder of the key.
        name: Name of the recipient.
        output: How results are printed.
    """
    check(key=key)
    from sslguard.tracing import recipients

    return _one(key, recipients.rotate(key, name))


def receipt(
    key: Path,
    name: str,
    /,
    *,
    out: Path,
    secret: Count | None = None,
    authority: str | None = None,
    token: Path | None = None,
    authority_roots: Path | None = None,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Write a receipt for a recipient to sign: a hash of his secret with his name and the date. It opens nothing.

    Signed, it shows which secret went to whom and when. It does not show that the owner, who holds all secrets, did not
    put the mark into a model himself. It is also the commitment that a claim on this recipient needs.

    Args:
        key: Folder of the key.
        name: Name of the recipient.
        secret: Number of his secret, 1 for the first; by default the one that he has now.
        out: File of the receipt; its timestamp stands beside it as OUT.tsr.
        authority: As in commit: address of a timestamp authority (RFC 3161).
        token: As in commit: file of a timestamp that was got otherwise.
        authority_roots: As in commit: certificates, PEM, that must vouch for the authority.
        output: How results are printed.
    """
    check(key=key)
    _check_exact(key)
    from sslguard.claims.receipts import write_receipt
    from sslguard.claims.timestamps import read_roots
    from sslguard.schemes.keyfile import open_key

    roots = () if authority_roots is None else read_roots(authority_roots)
    rotation = None if secret is None else secret - 1
    dated = {"authority": authority, "token": token, "roots": roots}
    made, when = write_receipt(open_key(key), name, out, rotation=rotation, **dated)
    one = made.recipient
    assert one is not None
    stamped = None if when is None else when.isoformat()
    fields = {"receipt": str(out), **one._asdict(), "sha256": made.document.digest, "timestamp": stamped}
    rows = [
        ("receipt", str(out)),
        ("recipient", f"{one.name}, secret {one.rotation + 1}, given {one.given}"),
        ("SHA-256", made.document.digest),
        ("owner", made.document.owner),
        ("timestamp", stamped or "none"),
    ]
    signing = command("recipients", "sign", out, "--signing-key", "PRIVATE.pem", "--out", "SIGNED")
    return Result({**fields, "owner": made.document.owner}, rows, next=f"let the recipient run: {signing}")


def sign(
    receipt: Path,
    /,
    *,
    signing_key: Path,
    out: Path,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Sign a receipt as its recipient: you say that the owner gave you this secret, whose hash the receipt holds.

    Keep a copy. Later the owner cannot say that you were given another secret.

    Args:
        receipt: File of the receipt.
        signing_key: Your Ed25519 private key, PEM without a password, as openssl genpkey -algorithm ed25519 writes it.
            Let the owner know its public key, which is printed, in a way that others can check.
        out: File of the signed receipt, for the owner.
        output: How results are printed.
    """
    from sslguard.claims.receipts import sign_receipt

    found = sign_receipt(receipt, signing_key, out)
    one, when = found.recipient, found.time.isoformat()
    fields = {"signed": str(out), **one._asdict(), "owner": found.receipt.document.owner, "signer": found.signer}
    rows = [
        ("signed", str(out)),
        ("recipient", f"{one.name}, secret {one.rotation + 1}, given {one.given}"),
        ("owner", found.receipt.document.owner),
        ("your public key", found.signer),
        ("time", when),
    ]
    return Result({**fields, "time": when}, rows)


def trace(
    key: Path,
    suspect: str,
    /,
    *,
    data: str,
    alpha: Positive = 0.01,
    claims: Count = 1,
    allow_overlap: bool = False,
    answers: Literal["auto", "embeddings", "logits", "probabilities", "labels"] = "auto",
    workers: Count = 1,
    cluster: Literal["slurm", "local", "debug"] | None = None,
    remote: RemoteOptions = DEFAULT_REMOTE,
    running: Running = EMBEDDING,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Find whose copy or answers a suspect was made from, among all recipients of a key.

    The suspect is asked what verify asks. Each p-value is corrected for all recipients that were compared, revoked ones
    too. Whoever holds the key could have marked a suspect for any recipient: keep proof of what was handed to whom.
    Exit code 0 a recipient is named, 1 none is, 3 suspect or key failed, 4 refused: too many claims for this alpha.

    Args:
        key: Folder of the key.
        suspect: As in verify: an encoder, onnx:FILE, answers:FILE.npy, or an address with --protocol.
        data: Items to ask about, none of which took part in marking.
        alpha: Level of the test. One half is the common mark's, the other is shared among all recipients.
        claims: How many claims (suspects, keys, looks) share that level.
        allow_overlap: Also ask about items that took part in marking, as in verify.
        answers: What the suspect's answers are, as in verify.
        workers: Processes that compare recipients, or jobs at a time of --cluster.
        cluster: Compare in jobs of a cluster, by submitit: slurm, local for processes of this machine, debug for this
            one. Meanwhile a folder in the present one, which you alone may read, holds the key's secret for them.
        running: What encoders run on.
        remote: Access to encoders behind addresses.
        output: How results are printed.
    """
    check(key=key, data=[data], suspect=suspect)
    remote.check(suspect)
    if cluster is not None and find_spec("submitit") is None:
        raise MissingExtraError("running on a cluster", "bench")

    from sslguard import api

    running.start()
    with opened(suspect, remote) as target, _jobs(cluster, workers) as pool:
        found = api.trace(
            *(key, target, data),
            alpha=alpha,
            n_claims=claims,
            allow_overlap=allow_overlap,
            answers=answers,
            workers=workers,
            pool=pool,
        )
    fields, rows = found.to_json(), _rows(found)
    if not isinstance(target, str):
        fields["remote"] = target.report()
        rows += remote_rows(fields["remote"])
    return Result(fields, rows, found.exit_code)


COMMANDS = (add, list_, revoke, rotate, receipt, sign)


@contextmanager
def _jobs(cluster: str | None, workers: int) -> Iterator[Executor | None]:
    """Yield what runs pieces as jobs of a cluster; None without one."""
    if cluster is None:
        yield None
        return
    from tempfile import TemporaryDirectory

    from sslguard.bench.cluster import cluster_pool
    from sslguard.tracing.trace import one_thread

    with TemporaryDirectory(prefix=".sslguard-trace-", dir=Path.cwd()) as folder:
        pool = cluster_pool(cluster, Path(folder))(workers, one_thread)
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _check_exact(key: Path) -> None:
    from sslguard.schemes.keyfile import read_header

    scheme = read_header(key).get("scheme")
    if scheme != "exact":
        raise UsageError(f"a key of the scheme {scheme!s:.40} has no recipients: only those of exact trace")


def _one(key: Path, one: Recipient) -> Result:
    fields = {"key": str(key), "name": one.name, "secrets": list(one.secrets), "revoked": one.revoked}
    return Result(fields, [("recipient", one.name), ("secrets", _dates(one))])


def _dates(one: Recipient) -> str:
    since = one.secrets[-1] + (f", {len(one.secrets)} secrets since {one.secrets[0]}" if one.rotation else "")
    return since if one.revoked is None else f"{since}, revoked {one.revoked}"


def _rows(found: Traced) -> list[tuple[str, str]]:
    best = [one for one in found.compared if one.named] or list(found.compared[:1])
    shared = f", shared among {found.n_claims} claims" if found.n_claims > 1 else ""
    common = "derived" if found.derived else "not shown"
    sides = (bits(found.common.details[f"{side}_bits"], digits=0) for side in ("left", "right"))
    return [
        ("named", ", ".join(found.named) or "nobody"),
        ("suspect", found.suspect),
        *((("shown" if one.named else "nearest"), _shown(one)) for one in best),
        ("common mark", f"{common}: {bits(found.common_log2_pvalue)} bits ({' left, '.join(sides)} right)"),
        ("compared", f"{found.n_compared:,} secrets of {found.n_recipients:,} recipients; all bits are corrected for"),
        ("queries", str(found.common.n_queries)),
        *([("overlap", f"{found.n_overlap} of them took part in marking")] if found.n_overlap else []),
        ("alpha", f"{found.alpha:g}, half for the common mark and half for all recipients{shared}"),
    ]


def _shown(one: Compared) -> str:
    sides = f"{bits(one.left_bits, digits=0)} left, {bits(one.right_bits, digits=0)} right"
    secret = f", secret {one.rotation + 1}, given {one.given}" + (f", revoked {one.revoked}" if one.revoked else "")
    return f"{one.name}: {bits(one.log2_pvalue)} bits ({sides}){secret}"
