"""Settings for asking a suspect behind an address. Command line and Python share them; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from sslguard.errors import UsageError
from sslguard.settings import Checked, Count, NotNegative, Positive, Range

Scale = Literal["unit", "signed", "bytes", "imagenet"]


@dataclass(frozen=True)
class Remote(Checked):
    """Settings for asking a suspect behind an address. A `time_limit` of None sets no limit.

    Attributes:
        protocol: oip is the Open Inference Protocol V2, openai its /v1/embeddings, tei text-embeddings-inference's
            /embed, json any other API: see --body. Images go over oip and json. By default what the address tells by
            its end: /v1 or /embeddings, /embed, /v2/models/NAME.
        model: The model's name there, for oip and openai.
        binary: Numbers as bytes: tensors of oip, base64 of openai.
        output_tensor: For oip: the tensor to read; by default the first with a row a query.
        scale: For oip: values of images where the model takes floats; unit is [0, 1], signed [-1, 1], bytes [0, 255],
            imagenet ImageNet's mean and deviation.
        body: For json: what is sent, JSON or @FILE of it. The texts {text} or {texts}, {image} or {images} (base64 of
            PNG) stand for queries; an array whose one entry holds {text} or {image} is repeated for each.
        found_at: For json: where the answers are, as in data[*].embedding.
        auth_env: Environment variable that holds the credential.
        auth_header: Header that carries it; Authorization says Bearer before it.
        cache: Folder that keeps answers, so that the same command goes on after an interruption.
        budget: Queries that may be asked, asking again included; the run ends before it would ask more.
        price: Of one query, for the cost in the result.
        rate: Queries a second at most.
        pace: Mean seconds between two requests, which then come at random times, in sizes up to --request-size, and in
            random order, as those of a client that the program draws: a job, a worker, an application or an import.
            Name the pace and the largest request of the suspect's usual clients.
        user_agent: Header User-Agent, by which a suspect may tell clients apart; by default that of the HTTP library.
        request_size: Queries of a request.
        workers: Requests at a time.
        attempts: How often a request is sent at most.
        patience: Unanswered requests in a row after which asking ends with an error.
        request_limit: Seconds that a request may take.
        time_limit: Seconds that everything may take.
        reask: First queries that are asked again at the end, to see whether answers change; 0 for none.
    """

    protocol: Literal["oip", "openai", "tei", "json"] | None = None
    model: str | None = None
    binary: bool = False
    output_tensor: str | None = None
    scale: Scale = "unit"
    body: str | None = field(default=None, repr=False)
    found_at: str | None = None
    auth_env: str | None = None
    auth_header: str = "Authorization"
    cache: Path | None = None
    budget: Annotated[int, Range(least=0)] | None = None
    price: NotNegative = 0.0
    rate: Positive | None = None
    pace: Positive | None = None
    user_agent: str | None = None
    request_size: Count = 16
    workers: Count = 4
    attempts: Count = 5
    patience: Count = 8
    request_limit: Annotated[float, Range(above=0, most=86_400)] = 60.0
    time_limit: Positive | None = 86_400.0
    reask: Annotated[int, Range(least=0)] = 4

    def __post_init__(self) -> None:
        """Check the ranges, the user agent, and that one pace was given at most."""
        super().__post_init__()
        if self.rate is not None and self.pace is not None:
            raise UsageError("--rate sends requests evenly and --pace at random times: give one of them")
        agent = self.user_agent
        if agent is not None and not (0 < len(agent) <= 200 and agent.isascii() and agent.isprintable()):
            raise UsageError("--user-agent takes 1 to 200 printable ASCII characters")
