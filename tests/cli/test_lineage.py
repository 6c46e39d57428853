"""`lineage` and `release` on the command line: results, exit codes, pages, refusals."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers.command_line import done, sslguard

A, B = "random:resnet-narrow:1", "random:resnet-narrow:2"


def test_the_same_initial_weights_are_shared() -> None:
    ran = sslguard("lineage", A, A, "--quiet")
    assert ran.code == 0
    assert "shared weights" in ran.out
    assert "look the same" in ran.out  # descent, ancestor, seed
    assert "224 of 224 units in 6 groups" in ran.out


def test_independent_networks_show_nothing() -> None:
    ran = sslguard("lineage", A, B, "--json")
    assert ran.code == 1
    assert ran.json["decision"] == "not shown"
    assert ran.json["log2_pvalue"] > -20
    assert "no evidence of innocence" in ran.json["meaning"]
    assert [group["size"] for group in ran.json["tests"][0]["groups"]] == [16, 32, 64, 16, 32, 64]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((A, "random:resnet-wide"), 4, "says nothing about descent"),
        ((A, "random:plain-small"), 4, "says nothing about descent"),
        ((A, "nowhere/encoder"), 3, "no encoder"),
        ((A, A, "--key", "nowhere"), 3, "not a key"),
        ((A, A, "--alpha", "2"), 2, "below 1"),
        ((A, A, "--groups", "nowhere.json"), 2, "no groups"),
        ((A, A, "--alpha", "1e-900"), 2, ""),
    ],
)
def test_refusals_have_their_codes(arguments: tuple[str, ...], code: int, words: str) -> None:
    ran = sslguard("lineage", *arguments, "--quiet")
    assert (ran.code, ran.out) == (code, "")
    assert words in ran.err


def test_a_page_shows_every_group(tmp_path) -> None:
    page = tmp_path / "page.html"
    found = done("lineage", A, A, "--ancestor", A, "--initial", A, "--report", page)
    tests = [one["test"] for one in found["tests"]]
    assert tests == ["in place", "streams", "aligned", "initial weights", "initial weights, aligned"]
    text = page.read_text()
    assert "default-src 'none'" in text
    assert text.count("5.shortcut.0") >= 2
    assert "explains it" in text
    (tmp_path / "mine.html").write_text("mine")
    assert sslguard("lineage", A, A, "--report", tmp_path / "mine.html").code == 2
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_names_of_layers_cannot_write_to_the_page_or_the_terminal(tmp_path) -> None:
    name = "\x1b[31m<script>"
    state = {f"{name}.fc1.weight": torch.randn(20, 9), f"{name}.fc2.weight": torch.randn(9, 20)}
    save_file(state, tmp_path / "w.safetensors")
    ran = sslguard("lineage", *[tmp_path / "w.safetensors"] * 2, "--report", tmp_path / "p.html", "--quiet")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert "<script>" not in (tmp_path / "p.html").read_text()


def test_a_release_and_its_key(tmp_path) -> None:
    released = done("release", A, "--out", tmp_path / "r")
    assert released["moved"] < 1e-5
    encoder, key = tmp_path / "r" / "encoder", tmp_path / "r" / "key"
    ran = sslguard("lineage", encoder, encoder, "--key", key, "--quiet")
    assert ran.code == 0
    assert "256.0 bits" in ran.out
    unreleased = sslguard("lineage", encoder, A, "--key", key, "--json")
    assert unreleased.code == 1
    assert unreleased.json["log2_lineage"] < -100
    assert sslguard("lineage", A, encoder, "--key", key).code == 3
    assert "already done" in sslguard("release", A, "--out", tmp_path / "r").err
    assert sslguard("release", B, "--out", tmp_path / "r").code == 2
    assert "secret order" in sslguard("release", A, "--out", tmp_path / "s", "--quiet").out


def test_what_cannot_be_put_in_order_is_said(tmp_path) -> None:
    ran = sslguard("release", "random:bag-of-words", "--out", tmp_path / "r")
    assert ran.code == 2
    assert "cannot be released in a secret order" in ran.err
    assert not (tmp_path / "r").exists()


def test_groups_may_be_described(tmp_path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        generator = torch.Generator().manual_seed(seed)
        state = {
            "p.weight": torch.randn(30, 8, generator=generator),
            "q.weight": torch.randn(4, 30, generator=generator),
        }
        save_file(state, tmp_path / f"{name}.safetensors")
    (tmp_path / "g.json").write_text(json.dumps([{"name": "h", "parts": ["p.weight:0", "q.weight:1"]}]))
    a, b = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert sslguard("lineage", a, a).code == 4
    assert sslguard("lineage", a, a, "--groups", tmp_path / "g.json").code == 0
    assert sslguard("lineage", a, b, "--groups", tmp_path / "g.json").code == 1
