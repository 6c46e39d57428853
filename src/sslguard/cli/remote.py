"""Options of suspects and victims behind an address, and what commands say about them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from sslguard.cli.options import Count, NotNegative, Positive, Seed
from sslguard.errors import UsageError
from sslguard.suspects.names import PREFIXES

if TYPE_CHECKING:
    from sslguard.suspects.remote import Remote, RemoteSuspect

REMOTE = Group("Encoder behind an address", sort_key=1)
MAX_BODY = 1 << 20  # bytes


@Parameter(name="*", group=REMOTE)
@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """For https://… and http://…. Fields are those of `suspects.remote.Remote`.

    Attributes:
        protocol: oip is the Open Inference Protocol V2, openai its /v1/embeddings, tei text-embeddings-inference's
            /embed, json any other API: see --body. Images go over oip and json. By default what the address tells by
            its end: /v1 or /embeddings, /embed, /v2/models/NAME.
        model: The model's name there, for oip and openai.
        binary: Numbers as bytes: tensors of oip, base64 of openai.
        output: For oip: the tensor to read; by default the first with a row a query.
        scale: For oip: values of images where the model takes floats; unit is [0, 1], signed [-1, 1], bytes [0, 255],
            imagenet ImageNet's mean and deviation.
        body: For json: what is sent, JSON or @FILE of it. The texts {text} or {texts}, {image} or {images} (base64 of
            PNG) stand for queries; an array whose one entry holds {text} or {image} is repeated for each.
        path: For json: where the answers are, as in data[*].embedding.
        auth_env: Environment variable that holds the credential.
        auth_header: Header that carries it; Authorization says Bearer before it.
        cache: Folder that keeps answers, so that the same command goes on after an interruption.
        budget: Queries that may be asked, asking again included; the run ends before it would ask more.
        price: Of one query, for the cost in the result.
        rate: Queries a second at most.
        request_size: Queries of a request.
        workers: Requests at a time.
        attempts: How often a request is sent at most.
        request_seconds: Seconds that a request may take.
        seconds: Seconds that everything may take.
        reask: First queries that are asked again at the end, to see whether answers change; 0 for none.
    """

    protocol: Literal["oip", "openai", "tei", "json"] | None = None
    model: str | None = None
    binary: bool = False
    output: Annotated[str | None, Parameter("--output-tensor")] = None
    scale: Literal["unit", "signed", "bytes", "imagenet"] = "unit"
    body: str | None = None
    path: Annotated[str | None, Parameter("--answers")] = None
    auth_env: str | None = None
    auth_header: str = "Authorization"
    cache: Path | None = None
    budget: Count | None = None
    price: NotNegative = 0.0
    rate: Positive | None = None
    request_size: Count = 16
    workers: Count = 4
    attempts: Count = 5
    request_seconds: Annotated[Positive, Parameter("--request-limit")] = 60.0
    seconds: Annotated[Positive, Parameter("--time-limit")] = 86_400.0
    reask: Seed = 4

    def check(self, spec: str) -> None:
        """Raise UsageError if these options do not go with `spec`, or name a body that cannot be read."""
        if self != RemoteOptions() and not spec.startswith(PREFIXES):
            raise UsageError("--protocol is for suspects behind an http:// or https:// address")
        if self.body is not None:
            _content(self.body)

    def remote(self) -> Remote | None:
        """Return what `open_suspect` takes, or None where no option was given."""
        if self == RemoteOptions():
            return None
        from sslguard.suspects.remote import Remote

        fields: dict[str, Any] = vars(self) | {"body": None if self.body is None else _content(self.body)}
        return Remote(**fields)


DEFAULT_REMOTE = RemoteOptions()


@contextmanager
def opened(spec: str, options: RemoteOptions) -> Iterator[RemoteSuspect | str]:
    """Yield the suspect at an address and close it afterwards; yield any other specification as it is.

    Raises:
        UsageError: Options came without an address, or nothing tells the address's protocol.
    """
    from sslguard.suspects.opening import open_suspect
    from sslguard.suspects.remote import RemoteSuspect

    how = options.remote()
    if how is None and not spec.startswith(PREFIXES):
        yield spec
        return
    found = open_suspect(spec, how)
    assert isinstance(found, RemoteSuspect)
    with found:
        yield found


def remote_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return lines for people from `RemoteSuspect.report`."""
    cost = f", cost {report['cost']:g}" if report["cost"] else ""
    cached = f", {report['n_cached']} from the cache" if report["n_cached"] else ""
    rows = [
        ("asked", f"{report['n_asked']} queries in {report['n_requests']} requests{cached}{cost}"),
        ("unanswered", f"{report['n_missing']} queries, counted as zero"),
    ]
    for label, found in (("asked again", "again"), ("twice at the end", "again_twice")):
        if (agreement := report[found]) is not None:
            rows.append(
                (
                    label,
                    f"{agreement['n_equal']} of {agreement['n']} the same, else 1 - cosine up to "
                    f"{agreement['worst']:.2g}",
                )
            )
    if report["n_changed"]:
        rows.append(("changed", f"{report['n_changed']} answers: another model may answer now"))
    return rows


def _content(body: str) -> str:
    """Return a body as it stands, or the content of the file behind an @."""
    if not body.startswith("@"):
        return body
    path = Path(body[1:])
    try:
        if not path.is_file() or path.stat().st_size > MAX_BODY:
            raise UsageError(f"--body @FILE must name a file of at most {MAX_BODY} bytes, not {str(path)!r:.200}")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--body {body!s:.200} cannot be read: {error!s:.200}") from error
