"""On the command line: a marked encoder's key learns its null, and a verification reads it there or scores anew."""

from __future__ import annotations

import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from helpers.command_line import done, interrupt_at, sslguard, weights
from sslguard import api
from sslguard.encoders.folder import save_encoder
from sslguard.schemes.sslguard.scheme import SSLGuard
from sslguard.training.pretraining import new_encoder
from sslguard.verification import scores as scorefile

MARK = (
    *("--preset", "small", "--steps", 3, "--batch-size", 8, "--trigger-batch", 8),
    *("--n-verification", 20, "--n-queries", 12, "--quiet"),
)


class Bed(NamedTuple):
    root: Path
    data: str
    clean: Path
    innocents: list[Path]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    root = tmp_path_factory.mktemp("bed")
    np.save(root / "data.npy", np.random.default_rng(0).integers(0, 256, (90, 1, 16, 16), dtype=np.uint8))
    data = f"{root}/data.npy"
    encoders = [new_encoder("resnet-narrow", api.as_data(data), seed=seed) for seed in range(5)]
    for seed, encoder in enumerate(encoders):
        save_encoder(replace(encoder, module=encoder.module.eval()), root / f"encoder-{seed}")
    clean, *innocents = (root / f"encoder-{seed}" for seed in range(5))
    return Bed(root, data, clean, innocents)


def marking(bed: Bed, out: Path, *more: object) -> tuple[object, ...]:
    return ("watermark", bed.clean, "--data", f"{bed.data}[0:60]", "--out", out, *MARK, *more)


def null(bed: Bed, *more: object) -> tuple[object, ...]:
    return ("--verify-data", f"{bed.data}[60:90]", "--control", *bed.innocents, *more)


@pytest.fixture(scope="module")
def marked(bed: Bed) -> Path:
    out = bed.root / "marked"
    said = done(*marking(bed, out, *null(bed)))["controls"]
    found = api.score_controls(out / "key", f"{bed.data}[60:90]", controls=[str(path) for path in bed.innocents])
    assert found.stored
    assert said == {
        "n_controls": 4,
        "n_above": sum(score.watermark_rate > 0.1 for score in found.scores.values()),
        "above": 0.1,
        "largest": max(found.values.values()),
        "largest_name": found.highest,
    }
    return out


def test_the_key_knows_its_null(bed: Bed, marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE((marked / "key" / "controls.json").stat().st_mode) == 0o600
    monkeypatch.setattr(scorefile, "score_control", lambda *_: pytest.fail("a control was asked"))
    common = ("verify", marked / "key", marked / "encoder", "--data", f"{bed.data}[60:90]", "--alpha", 0.2)
    said = sslguard(*common, "--control", *bed.innocents, "--json").json
    assert said["stored_controls"] is True
    assert said["n_controls"] == 4
    lines = sslguard(*common, "--control", *bed.innocents).out
    assert "rank among 4 controls, stored in the key's folder" in lines


def test_what_is_printed(bed: Bed, tmp_path: Path) -> None:
    lines = sslguard(*marking(bed, tmp_path / "o", *null(bed))).out.splitlines()
    assert any(
        line.startswith("innocents ") and line.endswith("of 4 have a watermark rate above 0.1") for line in lines
    )
    assert any(line.startswith("largest score ") and "encoder-" in line for line in lines)


def test_scored_anew(bed: Bed, marked: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.copytree(marked / "key", key)
    common = ("verify", key, marked / "encoder", "--data", f"{bed.data}[60:90]", "--alpha", 0.2, "--json")

    def verdict(*more: str) -> dict[str, Any]:
        return sslguard(*common, "--control", *bed.innocents, *more).json

    before = verdict()
    content = json.loads((key / "controls.json").read_bytes())
    for value, pvalue in ((2.0, 1.0), (-2.0, 0.2)):
        for score in content["entries"][0]["controls"].values():
            score["score"] = value
        (key / "controls.json").write_text(json.dumps(content))
        assert verdict()["pvalue"] == pytest.approx(pvalue)
    assert verdict("--rescore") == {**before, "stored_controls": False}
    assert verdict() == before


def test_damaged_scores_stop_a_verification(bed: Bed, marked: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    shutil.copytree(marked / "key", key)
    (key / "controls.json").write_bytes(b"{")
    common = ("verify", key, marked / "encoder", "--data", f"{bed.data}[60:90]", "--alpha", 0.2, "--quiet")
    ran = sslguard(*common, "--control", *bed.innocents, "--json")
    assert (ran.code, ran.json["kind"]) == (3, "KeyFileError")
    assert ran.err.count("\n") == 1
    assert "controls.json is damaged: delete it, or score the controls anew (--rescore)" in ran.err
    assert sslguard(*common, "--control", *bed.innocents, "--rescore").code in (0, 1)


BAD = {
    "controls alone": ("--control {innocent}", "go together"),
    "data alone": ("--verify-data {data}[60:90]", "go together"),
    "data of the marking": ("--control {innocent} --verify-data {data}[50:90]", "share 10 images"),
    "too little data": (
        "--control {innocent} --verify-data {data}[80:90]",
        "12 images, and --verify-data has only 10",
    ),
    "no such data": ("--control {innocent} --verify-data {data}x", "does not exist"),
    "no such control": ("--control {root}/nothing --verify-data {data}[60:90]", "nothing"),
    "a control twice": ("--control {innocent} {innocent} --verify-data {data}[60:90]", "given twice"),
    "a control of another width": ("--control random:resnet-small --verify-data {data}[60:90]", "128 dimensions"),
    "a population of nothing": ("--control {root}/empty --verify-data {data}[60:90]", "no control"),
}


@pytest.mark.parametrize(("line", "words"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_the_marking(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, words: str
) -> None:
    empty = bed.root / "empty"
    empty.mkdir(exist_ok=True)
    (empty / "population.json").write_text('{"members": []}')
    monkeypatch.setattr(SSLGuard, "watermark", lambda *_, **__: pytest.fail("marked all the same"))
    more = line.format(data=bed.data, innocent=bed.innocents[0], root=bed.root).split()
    ran = sslguard(*marking(bed, tmp_path / "o", *more), "--json")
    assert ran.code == 2
    assert words in ran.err
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_interrupted_while_scoring_it_goes_on(bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is half there, the marking is not done again, and the key is the one that was drawn."""
    command = marking(bed, tmp_path / "o", *null(bed))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(scorefile, "score_control", interrupt)
        ran = sslguard(*command)
    assert ran.code == 130
    assert [p.name for p in tmp_path.iterdir()] == ["o.unfinished"]
    secret = (tmp_path / "o.unfinished" / "secret").read_bytes().hex()
    interrupt_at(monkeypatch, 0)  # a step would be interrupted
    done(*command)
    assert json.loads((tmp_path / "o" / "key" / "key.json").read_text())["fields"]["secret"] == secret
    assert (tmp_path / "o" / "key" / "controls.json").exists()
    assert weights(tmp_path / "o" / "encoder") != weights(bed.clean)
    assert [p.name for p in tmp_path.iterdir()] == ["o"]
