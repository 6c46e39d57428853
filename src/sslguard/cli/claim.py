"""Commands of claims that a third party can check: `protect`, `commit`, `claim`, `audit`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from sslguard.cli.checks import check
from sslguard.cli.options import EMBEDDING, PRINTED, Count, Output, Positive, Running
from sslguard.cli.output import Result, command, say
from sslguard.cli.remote import DEFAULT_REMOTE, RemoteOptions
from sslguard.cli.remote import opened as asking
from sslguard.errors import SslguardError, UsageError
from sslguard.report.text import bits

if TYPE_CHECKING:
    from sslguard.crypto.sealing import Seal
    from sslguard.schemes.base import Key
    from sslguard.verification.verdict import Verdict


def protect(
    key: Path,
    /,
    *,
    recipient: list[str] | None = None,
    ask_passphrase: bool = False,
    clear: bool = False,
    output: Output = PRINTED,  # noqa: ARG001 - `main` reads it
) -> Result:
    """Encrypt a key with age where it stands, encrypt it anew, or take the encryption off.

    Without options it is encrypted by the passphrase in SSLGUARD_PASSPHRASE. An encrypted key is opened by that
    passphrase, by the age identity file that SSLGUARD_IDENTITY names, or by a passphrase asked for on the terminal.

    Args:
        key: Folder of the key.
        recipient: Encrypt it for this age public key, or those in this file; give several by repeating it.
        ask_passphrase: Encrypt it by a passphrase that is asked for.
        clear: Leave it in the clear.
        output: How results are printed.
    """
    check(key=key)
    seal = chosen_seal(recipient, ask_passphrase)
    if clear and (recipient or ask_passphrase):
        raise UsageError("--clear takes the encryption off; leave --recipient and --ask-passphrase out")
    if seal is None and not clear:
        raise UsageError("say how to protect the key: --recipient, --ask-passphrase, SSLGUARD_PASSPHRASE or --clear")

    from sslguard.schemes.keyfile import reseal_key

    stored = reseal_key(key, None if clear else seal)
    state = "encrypted with age" if stored.sealed else "in the clear"
    return Result({"key": str(key), "sealed": stored.sealed}, [("key", str(key)), ("protection", state)])


def commit(
    key: Path,
    /,
    *,
    out: Path,
    authority: str | None = None,
    token: Path | None = None,
    authority_roots: Path | None = None,
    card: Path | None = None,
    output: Output = PRINTED,
) -> Result:
    """Commit to a key in public, before any suspect is seen: a file that hides the key and binds its owner.

    Publish the file and its timestamp, or keep both: the timestamp alone proves when it was made. The same key gives
    the same file, so a timestamp can be added by the same command later.

    Args:
        key: Folder of the key.
        out: File of the commitment; its timestamp stands beside it as OUT.tsr.
        authority: Address of a timestamp authority (RFC 3161). It sees a hash, nothing else.
        token: File of a timestamp that was got otherwise, as by openssl ts and curl.
        authority_roots: Certificates, PEM, that must vouch for the authority; without them its signature is not
            checked here.
        card: Model card, or the folder with it, as OUT/encoder of watermark. It then tells its readers that the encoder
            is watermarked, and names the commitment by its SHA-256. By default no card says anything of a mark.
        output: How results are printed.
    """
    check(key=key)

    from sslguard import api
    from sslguard.claims.commitment import timestamp_file

    made, when = api.commit(key, out, authority=authority, token=token, authority_roots=authority_roots, card=card)
    if when is None and not output.quiet:
        say("the commitment has no timestamp: without one it proves no date. See --authority and --token")
    stamped = None if when is None else when.isoformat()
    fields = {
        "commitment": str(out),
        "owner": made.document.owner,
        "sha256": made.document.digest,
        "timestamp": stamped,
        "timestamp_file": None if when is None else str(timestamp_file(out)),
    }
    rows = [("commitment", str(out)), ("SHA-256", made.document.digest), ("owner", made.document.owner)]
    checked = "" if authority_roots else " (by an authority that was not checked)"
    rows.append(("timestamp", "none" if stamped is None else f"{stamped}{checked}"))
    return Result(
        fields, rows, next=f"{command('verify', key, 'SUSPECT', '--data', 'HELD_OUT')}, once there is a suspect"
    )


def claim(
    key: Path,
    suspect: str,
    /,
    *,
    data: str | None = None,
    seed: str | None = None,
    commitment: Path,
    out: Path,
    lineage: bool = False,
    released: str | None = None,
    sub_key: Count | None = None,
    control: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    alpha: Positive = 0.01,
    claims: Count = 1,
    remote: RemoteOptions = DEFAULT_REMOTE,
    running: Running = EMBEDDING,
    output: Output = PRINTED,
) -> Result:
    """Ask a suspect what an examiner's seed draws, and write the evidence as a bundle that decides again elsewhere.

    The bundle opens the key: it shows the secret, and must go to nobody but the examiner. The key's folder keeps when
    it was opened. Where the commitment is a recipient's receipt, only his secret is opened and tested, and the level is
    shared among all secrets of all recipients.
    Exit code as of verify; an audit decides more strictly, and the last line foretells what.
    With --lineage, or by the key of release or the secret seed of pretrain, the suspect's weights are compared and
    nothing is asked.

    Args:
        key: Folder of the key.
        suspect: An encoder, answers:FILE.npy, or an address with --protocol: as verify's. Its weights with --lineage.
        data: What the examiner agreed to draw from, none of which took part in marking.
        seed: What the examiner gave you after seeing the commitment.
        commitment: File of the commitment, or of a receipt; its timestamp is taken from FILE.tsr.
        out: Folder of the bundle.
        lineage: Claim by the secret order of the hidden units. The bundle opens this order and no mark.
        released: The released encoder, if it does not lie beside the key as watermark and release wrote it.
        sub_key: Open this sub-key alone, 1 for the first; the others stay secret. Without it the whole key is opened.
        control: Known innocents, for a key of the scheme sslguard: as verify's.
        alpha: Level of the test.
        claims: How many claims (suspects, keys, looks) share that level; times the keys in the commitment.
        running: What encoders run on.
        remote: Access to encoders behind addresses.
        output: How results are printed.
    """
    check(key=key, data=[data], encoders=[released], suspect=suspect, controls=control)
    remote.check(suspect)

    from sslguard import api
    from sslguard.claims.commitment import parse_commitment
    from sslguard.claims.documents import MAX_DOCUMENT, read_file
    from sslguard.claims.outcome import foretold
    from sslguard.schemes.exact.bank import recipient_stream
    from sslguard.schemes.keyfile import open_key

    running.start()
    stored = open_key(key)
    recipient = parse_commitment(read_file(commitment, MAX_DOCUMENT), str(commitment)).recipient
    if recipient is not None:
        say(f"this opens the secret {recipient.rotation + 1} of the recipient {recipient.name!r}, and no other")
        say_opened(key, recipient_stream(recipient.name, recipient.rotation))
    else:
        say_opened(key, sub_key)
    if recipient is None and sub_key is None and stored.sub_keys > 1:
        say(f"this opens the whole key, all of its {stored.sub_keys} sub-keys: --sub-key 1 opens the first alone")
    with asking(suspect, remote) as target:
        verdict = api.claim(
            *(stored, target, data),
            seed=seed,
            commitment=commitment,
            out=out,
            lineage=lineage,
            released=released,
            sub_key=sub_key,
            controls=control or (),
            alpha=alpha,
            n_claims=claims,
            progress=output.progress,
        )
    audited = {name: foretold(verdict, dated=name == "dated") for name in ("dated", "undated")}
    fields = {"bundle": str(out), **verdict.to_json(), "audit": audited}
    rows = [
        ("bundle", f"{out} (it holds the opened key: for the examiner alone)"),
        ("decision", verdict.decision),
        ("suspect", verdict.suspect),
        ("evidence", f"{bits(verdict.significance.log2_pvalue)} bits"),
        *_asked(verdict, pool=bool(stored.key.pool)),
        ("an audit", f"{audited['dated']} if the commitment is shown to be older; undated, {audited['undated']}"),
    ]
    if verdict.lineage is not None:
        given: tuple[object, ...] = ("--released", "RELEASED_ENCODER", "--suspect", suspect)
    else:
        whose = () if stored.key.pool else ("--own-data",)
        given = ("--clean", _clean_of(stored.key), "--data", data, *whose, "--seed", seed)
    if recipient is not None:
        rows.insert(2, ("recipient", f"{recipient.name}, secret {recipient.rotation + 1}, given {recipient.given}"))
        given = (*given, "--receipt", "SIGNED_RECEIPT", "--recipient-key", "HIS_PUBLIC_KEY")
    audit_it = command("audit", out, *given, "--commitment", commitment, "--report", "audit.html")
    return Result(fields, rows, verdict.exit_code, next=audit_it)


_WHOSE = {
    True: "an audit accepts the pool that the key is bound to, or the examiner's own data (--own-data)",
    False: "the key is bound to no pool, so an audit accepts the examiner's own data alone (--own-data)",
}


def _clean_of(key: Key) -> str:
    """Return what names a key's clean encoder on this machine, as far as the key tells."""
    source = str(getattr(getattr(key, "clean", None), "source", ""))
    try:
        check(encoders=[source])
    except SslguardError:
        return "CLEAN_ENCODER"
    return source


def _asked(verdict: Verdict, *, pool: bool) -> list[tuple[str, str]]:
    found = verdict.significance
    if verdict.lineage is not None:
        return [("in place", f"{found.statistic:.0f} units")]
    return [("queries", f"{found.n_queries}, {verdict.n_missing} unanswered"), ("the data", _WHOSE[pool])]


def audit(
    bundle: Path,
    /,
    *,
    data: str | None = None,
    seed: str | None = None,
    own_data: bool = False,
    clean: str | None = None,
    suspect: str | None = None,
    released: str | None = None,
    commitment: Path | None = None,
    not_after: str | None = None,
    opened: str | None = None,
    authority_roots: Path | None = None,
    receipt: Path | None = None,
    recipient_key: str | None = None,
    control: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    alpha: Positive = 0.01,
    claims: Count = 1,
    report: Path | None = None,
    statement: Path | None = None,
    signing_key: Path | None = None,
    remote: RemoteOptions = DEFAULT_REMOTE,
    running: Running = EMBEDDING,
    output: Output = PRINTED,
) -> Result:
    """Check a bundle as an examiner, and decide anew: nothing that the claimant computed is believed.

    Exit code 0 derived, 1 not shown, 3 forged or damaged, 4 not checkable, as without the clean encoder.

    Args:
        bundle: Folder of the bundle.
        data: What you agreed to draw queries from: the data that the owner's key is bound to (watermark --pool), or
            data of your own.
        seed: What you gave the claimant after seeing the commitment.
        own_data: Say that you chose the data, and that the claimant could not influence the choice. Data that nobody
            vouches for so, and that the key is not bound to, make the claim not checkable.
        clean: The clean encoder F, handed over by the claimant. The test is recomputed by running it.
        suspect: Ask the suspect again, as verify does; the decision is then taken on these answers. Of a claim by
            weights: the suspect's, named as lineage does, which the decision needs.
        released: The encoder that was released, handed over by the claimant, for a claim by its secret order.
        commitment: File of the commitment that you saw before giving the seed: the bundle's must be the same.
        not_after: When the suspect could first be asked, as 2026-01-31 (its beginning, UTC) or 2026-01-31T12:00+01:00.
            A later commitment shows nothing, and one whose date cannot be verified, as without --authority-roots, makes
            the claim not checkable. Without --not-after, the audit assumes that up to 2^64 keys were tried, and
            subtracts 64 bits.
        opened: When this key was opened in another claim, or lost: it does not count against suspects dated later.
        authority_roots: Certificates, PEM, that you trust to vouch for the timestamp's authority.
        receipt: The receipt that the recipient signed, for a claim on one recipient. It shows which secret went to whom
            and when, not that the owner, who holds all secrets, did not use it himself. Without it that is assumed.
        recipient_key: The recipient's Ed25519 public key, hex, which you know to be his.
        control: Known innocents, for a key of the scheme sslguard. They are scored anew.
        alpha: Level of the test.
        claims: How many claims (suspects, keys, looks) share that level.
        report: File of a report in plain words, HTML.
        statement: File of the outcome, signed by --signing-key: an in-toto statement in a DSSE envelope.
        signing_key: Your Ed25519 private key, PEM without a password, as openssl genpkey -algorithm ed25519 writes it.
        running: What encoders run on.
        remote: Access to encoders behind addresses.
        output: How results are printed.
    """
    if suspect is None and remote.remote() is not None:
        raise UsageError("options of a suspect behind an address need --suspect: nobody else is asked in an audit")
    check(data=[data], encoders=[clean, released], suspect=suspect, controls=control)
    if suspect is not None:
        remote.check(suspect)
    first_asked, first_opened = moment("--not-after", not_after), moment("--opened", opened)

    from sslguard import api

    running.start()
    with nullcontext() if suspect is None else asking(suspect, remote) as target:
        found = api.audit(
            *(bundle, data),
            seed=seed,
            own_data=own_data,
            clean=clean,
            suspect=target,
            released=released,
            commitment=commitment,
            not_after=first_asked,
            opened=first_opened,
            authority_roots=authority_roots,
            receipt=receipt,
            recipient_key=recipient_key,
            controls=control or (),
            alpha=alpha,
            n_claims=claims,
            report=report,
            statement=statement,
            signing_key=signing_key,
            progress=output.progress,
        )
    support = [] if found.strength is None else [("support", str(found.strength))]
    rows = [("decision", found.decision), *support, *((c.name, f"{c.status}: {c.words}") for c in found.checks)]
    return Result(found.to_json(), rows, found.exit_code)


def moment(option: str, text: str | None) -> datetime | None:
    """Return a date or a time; UTC where no zone is given."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{option} must be a date as 2026-01-31 or 2026-01-31T12:00+01:00, not {text!r:.60}") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def say_opened(folder: Path, part: int | str | None) -> None:
    """Say so where the key in a folder, or that sub-key or recipient's secret, was opened in an earlier claim."""
    from sslguard.claims.openings import opened_at

    when = opened_at(folder, part or 0)
    if when is not None:
        which = "this key, or a part of it," if part is None else f"sub-key {part}"
        which = f"the secret called {part!r}" if isinstance(part, str) else which
        say(f"{which} was opened on {when:%Y-%m-%d %H:%M %Z}: it says nothing of suspects that are younger")


def chosen_seal(recipient: list[str] | None, ask_passphrase: bool) -> Seal | None:
    """Return what a new key is encrypted by: recipients, a passphrase asked for or of the environment, or None."""
    from sslguard.crypto.sealing import Seal, read_recipients, seal_from_environment, seal_from_prompt

    if recipient and ask_passphrase:
        raise UsageError("--recipient and --ask-passphrase exclude each other: age takes one kind")
    if recipient:
        return Seal(recipients=read_recipients(recipient))
    return seal_from_prompt() if ask_passphrase else seal_from_environment()


COMMANDS: tuple[Callable[..., Result], ...] = (protect, commit, claim, audit)
