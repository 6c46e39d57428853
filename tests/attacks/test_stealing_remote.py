"""Theft through an address: what it asks, what it spends, and where it goes on."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx2
import pytest

from helpers.command_line import sslguard, weights
from helpers.remote_servers import ADDRESS, WIDTH, Server, some_texts, tei_reply
from sslguard import steal
from sslguard.cli.remote import RemoteOptions
from sslguard.data.specs import open_data
from sslguard.errors import SuspectError
from sslguard.suspects.remote import Remote
from sslguard.training.distillation import Distillation

QUERIES = some_texts(10)
RECIPE = Distillation(architecture="bag-of-words", steps=2, batch_size=4)


@pytest.fixture
def texts(tmp_path: Path) -> str:
    (tmp_path / "texts.txt").write_text("\n".join(QUERIES))
    return f"text:{tmp_path}/texts.txt"


@pytest.fixture
def command(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`sslguard steal` of a server in this process."""
    from sslguard.suspects import opening as places

    def run(server: Server, *options: object) -> Any:
        def opening(address: str, how: Remote) -> Any:
            settings = {name: value for name, value in vars(how).items() if name != "attempts"}
            return server.suspect(address, **settings)

        monkeypatch.setattr(places, "open_remote", opening)
        return sslguard(
            *("steal", ADDRESS, "--protocol", "tei", "--data", texts, "--out", tmp_path / "thief", "--json"),
            *("--arch", "bag-of-words", "--steps", 2, "--batch-size", 4, "--cache", tmp_path / "cache", *options),
        )

    return run


def test_each_query_is_asked_once_and_the_surrogate_is_that_of_the_same_answers(command: Any, tmp_path: Path) -> None:
    server = Server()
    said = command(server, "--reask", 0, "--price", 0.5).json
    assert sorted(server.asked) == sorted(QUERIES)
    assert (said["dim"], said["queries"], said["teacher"]) == (WIDTH, 10, ADDRESS)
    assert (said["remote"]["n_asked"], said["remote"]["cost"]) == (10, 5.0)
    first = weights(tmp_path / "thief")
    again = command(Server(), "--reask", 0).json
    assert (again["remote"]["n_asked"], again["remote"]["n_cached"]) == (0, 10)
    assert weights(tmp_path / "thief") == first


def test_a_budget_ends_it_and_what_was_answered_is_not_asked_again(command: Any, tmp_path: Path) -> None:
    server = Server()
    ran = command(server, "--reask", 0, "--budget", 6, "--request-size", 2, "--workers", 1)
    assert (ran.code, "budget of 6" in ran.err, (tmp_path / "thief").exists()) == (3, True, False)
    assert command(server, "--reask", 0).code == 0
    assert sorted(server.asked) == sorted(QUERIES)


def test_unanswered_queries_are_not_learned_as_zero(texts: str) -> None:
    def silent(request: httpx2.Request) -> httpx2.Response:
        answered = QUERIES[5] not in json.loads(request.content)["inputs"]
        return tei_reply(request) if answered else httpx2.Response(500)

    with Server(silent).suspect() as victim, pytest.raises(SuspectError, match="left 4 of 10 queries unanswered"):
        steal(victim, open_data(texts), recipe=RECIPE)


def test_an_address_needs_a_protocol_and_a_protocol_an_address(texts: str, tmp_path: Path) -> None:
    for victim, options in ((ADDRESS, ()), ("random:bag-of-words", ("--protocol", "tei"))):
        ran = sslguard("steal", victim, "--data", texts, "--out", tmp_path / "thief", *options)
        assert (ran.code, "--protocol" in ran.err) == (2, True), ran.err


def test_options_of_the_command_line_are_those_of_the_library() -> None:
    """What was not given is None, and is left to `Remote`, whose defaults the help page shows."""
    assert {field.name for field in fields(RemoteOptions)} == {field.name for field in fields(Remote)} - {"patience"}
    assert RemoteOptions().table() == {}
    shown = sslguard("steal", "--help").out
    described = shown[shown.index("--request-size INT") :].split("--", 2)[1]
    assert f"[default: {Remote().request_size}]" in described
