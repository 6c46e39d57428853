"""The demonstration over addresses: an encoder is stolen through its API, and the thief's API is verified.

There are three servers on 127.0.0.1, each in its own process. The owner's serves an encoder with the head of a key. The
thief's serves what was learned from those answers alone. The innocent's serves the same public encoder without a head.
The owner asks the other two.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sslguard import __version__, api
from sslguard.crypto.secrets import Secret
from sslguard.data.base import check_unseen
from sslguard.data.specs import open_data
from sslguard.demo.output import FORMAT, PAGE, RESULT, Clock, begin, write_report
from sslguard.demo.serving import served
from sslguard.report.html import render
from sslguard.report.table import Table, terminal
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import save_key
from sslguard.suspects.remote import Remote, RemoteSuspect, open_remote
from sslguard.training.recipes import Distillation

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sslguard.verification.verdict import Verdict

STOLEN, INNOCENT = "the thief's address", "an innocent's address"
FILES = {"key": "key", "surrogate": "surrogate", "page": PAGE, "result": RESULT}
"""Name in the folder of everything that is written."""


@dataclass(frozen=True)
class ApiSettings:
    """Settings of the demonstration.

    Attributes:
        encoder: The owner's encoder of texts. It is public, so innocents use it too.
        mark: Texts for marking.
        thief: Texts that the thief sends to the owner's server.
        verify: Texts that suspects are asked.
        recipe: How the thief trains.
        n_queries: Number of queries that the key asks.
        alpha: Level of the test, shared between both suspects.
        seed: Makes the run repeatable and the key public; None takes the secret from the operating system.
    """

    encoder: str = "package:all-minilm-l6-v2"
    mark: str = "vader:mark[0:2000]"
    thief: str = "vader:thief[0:4000]"
    verify: str = "vader:verify[0:1000]"
    recipe: Distillation = field(
        default_factory=lambda: Distillation(architecture="bag-of-words", loss="mse", steps=1000)
    )
    n_queries: int = 1000
    alpha: float = 1e-6
    seed: int | None = None


@dataclass(frozen=True)
class Asked:
    """A suspect behind an address.

    Attributes:
        name: Name in the report.
        story: How it was made, one sentence.
        address: Where it was asked.
        verdict: Verdict of the key.
        remote: Counts of queries, requests and failures; see `RemoteSuspect.report`.
    """

    name: str
    story: str
    address: str
    verdict: Verdict
    remote: Mapping[str, Any]

    @property
    def bits(self) -> float:
        """Bits of evidence, −log₂ p."""
        return abs(self.verdict.significance.log2_pvalue)

    @property
    def wrong(self) -> bool:
        """Whether the verdict is not the truth, which is known here."""
        return self.verdict.decision != ("derived" if self.name == STOLEN else "not shown")

    def sentence(self) -> str:
        """Return what is shown of it."""
        missing, n = self.remote["n_missing"], self.verdict.significance.n_queries
        asked = f"From {n:,} ordinary queries{f', {missing} of them unanswered' if missing else ''}, "
        if self.verdict.decision == "derived":
            return (
                f"{asked}{self.name} is shown to be derived from the owner's encoder: {self.bits:.0f} bits. Had it "
                "nothing to do with the key, that would come about once in "
                f"2^{self.bits:.0f} draws of the key's secret."
            )
        return (
            f"{asked}nothing is shown of {self.name}: {self.bits:.1f} bits, as of any encoder that has nothing to do "
            "with the key."
        )

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return {**vars(self), "verdict": self.verdict.to_json()}


@dataclass(frozen=True)
class ApiResult:
    """Result of the demonstration.

    Attributes:
        settings: Settings of the run.
        theft: The surrogate's record, with the counts of queries and requests as `remote`.
        suspects: Suspects that were verified.
        seconds: Wall-clock seconds by stage.
        files: Paths by the names in `FILES`.
    """

    settings: ApiSettings
    theft: Mapping[str, Any]
    suspects: tuple[Asked, ...]
    seconds: Mapping[str, float]
    files: Mapping[str, Path]

    def shown(self) -> list[str]:
        """Return what was shown, in sentences."""
        wrong = [suspect.name for suspect in self.suspects if suspect.wrong]
        last = f"This result is wrong for {' and '.join(wrong)}."
        if not wrong:
            last = "Derived does not mean stolen: a licensee's fine-tuned copy is derived, too."
        return [
            f"An encoder behind an address was copied by {self.theft['remote']['n_asked']:,} queries: the copy is of "
            "another architecture and has none of its weights.",
            *(suspect.sentence() for suspect in self.suspects),
            last,
        ]

    def commands(self) -> list[str]:
        """Return the commands that repeat the test by hand."""
        key, surrogate = (shlex.quote(str(self.files[name])) for name in ("key", "surrogate"))
        return [
            f"sslguard serve {self.settings.encoder} --head {key} --port 8000 &",
            f"sslguard serve {surrogate} --port 8001 &",
            f"sslguard verify {key} http://127.0.0.1:8001/v1 --protocol openai --model encoder "
            f"--data '{self.settings.verify}' --alpha {self.settings.alpha:g}",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the content of `result.json`."""
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "theft": dict(self.theft),
            "suspects": [suspect.to_json() for suspect in self.suspects],
            "shown": self.shown(),
            "seconds": dict(self.seconds),
            "files": {name: str(path) for name, path in self.files.items()},
        }

    def table(self) -> RenderableType:
        """Return verdicts and sentences, for rich to print."""
        from rich.console import Group
        from rich.text import Text

        rows = tuple(
            (one.name, one.verdict.decision, f"{one.bits:.1f}", str(one.remote["n_asked"])) for one in self.suspects
        )
        title = f"Suspects behind addresses, alpha {self.settings.alpha:g} for both"
        table = Table(title, "", ("suspect", "decision", "bits", "queries"), rows)
        return Group(terminal(table), *(Text(sentence) for sentence in self.shown()))


def run_api_demo(out: Path, *, settings: ApiSettings | None = None, progress: bool = False) -> ApiResult:
    """Serve an encoder, steal it, serve the copy, and verify; write key, surrogate and report to a folder.

    Args:
        out: Folder; it is made if missing. An earlier demonstration in it is replaced; other files are left alone.
        settings: Settings of the run; None takes the defaults.
        progress: Print each stage on standard error.

    Raises:
        OutputError: `out` cannot be written to, or holds something else under a name that is needed.
        UsageError: Encoder and data do not fit together.
        SuspectError: A server does not start or does not answer.
    """
    chosen, clock = settings or ApiSettings(), Clock(progress)
    check_unseen(open_data(chosen.verify), open_data(chosen.mark), open_data(chosen.thief))
    begin(Path(out), FILES.values())
    files = {name: Path(out) / place for name, place in FILES.items()}
    with clock.stage("mark the encoder by a head"):
        secret = None if chosen.seed is None else Secret.from_seed(chosen.seed)
        scheme = Exact(Protocol(n_queries=chosen.n_queries), mode="head")
        key = api.watermark(chosen.encoder, chosen.mark, scheme=scheme, secret=secret, progress=progress).key
        save_key(key, files["key"])
    with clock.stage("serve it, and steal it through its address"):
        theft = _stolen(chosen, files, progress)
    suspects = []
    for name, story, spec in (
        (STOLEN, "serves what was learned from the owner's answers", str(files["surrogate"])),
        (INNOCENT, "serves the same public encoder, which nobody marked", chosen.encoder),
    ):
        with clock.stage(f"serve and verify {name}"), _behind_address(spec) as suspect:
            verdict = api.verify(key, suspect, chosen.verify, controls=(), alpha=chosen.alpha, n_claims=2)
            suspects.append(Asked(name, story, suspect.name, verdict, suspect.report()))
    result = ApiResult(chosen, theft, tuple(suspects), clock.seconds, files)
    write_report(Path(out), result.to_json(), {PAGE: render_page(result).encode()})
    return result


@contextmanager
def _behind_address(*arguments: str) -> Iterator[RemoteSuspect]:
    """Serve an encoder with the arguments of `sslguard serve`, and yield it as somebody who asks its address."""
    options = Remote(protocol="openai", model="encoder", binary=True, request_size=64, request_limit=120.0)
    with served(*arguments) as address, open_remote(f"{address}/v1", options) as suspect:
        yield suspect


def _stolen(settings: ApiSettings, files: Mapping[str, Path], progress: bool) -> dict[str, Any]:
    """Steal the served encoder and write the surrogate; return its record, with counts of queries and requests."""
    with _behind_address(settings.encoder, "--head", str(files["key"])) as victim:
        seed, out = settings.seed or 0, files["surrogate"]
        surrogate = api.steal(victim, settings.thief, out=out, recipe=settings.recipe, seed=seed, progress=progress)
        return {**surrogate.record, "n_parameters": surrogate.n_parameters, "remote": victim.report()}


def render_page(result: ApiResult) -> str:
    """Return the page, HTML5. The template escapes every text, and the page loads nothing from any address."""
    return render("demo/api.html.j2", result=result, version=__version__)
