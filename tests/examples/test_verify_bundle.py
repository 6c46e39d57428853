"""The independent verifier on bundles of `claim`: it agrees with what audits find, and sees what was changed."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from helpers.claim_bed import SEED, Answers, Bed
from helpers.envelopes import forged, predicate_of
from sslguard.claims.bundle import npy
from sslguard.claims.commitment import OpenedKey
from sslguard.crypto.secrets import Secret
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact

SCRIPT = Path(__file__).parents[2] / "examples" / "verify_bundle.py"
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_bundle", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run it on a bundle; return exit code and output."""

    def running(bundle: Path, *options: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", [str(SCRIPT), str(bundle), *options])
        try:
            script.main()
        except SystemExit as ended:
            return int(ended.code or 0), capsys.readouterr().out
        return 0, capsys.readouterr().out

    return running


@pytest.fixture(scope="module")
def marked(tiny, images):
    return {
        n: Exact(Protocol(n_queries=200), mode="head", sub_keys=n).watermark(
            tiny(7), images(400), secret=Secret.from_seed(1)
        )
        for n in (1, 2)
    }


@pytest.fixture(scope="module")
def claimed(marked, tiny, images, tmp_path_factory):
    """Claim a suspect's answers, once for all tests; return who claimed."""

    @functools.cache
    def claiming(suspect: str, sub_keys: int = 1, sub_key: int = 0) -> Bed:
        made, random = marked[sub_keys], np.random.default_rng(0)
        d = made.key.clean.dim
        turn = np.linalg.qr(random.standard_normal((d, d)))[0]
        centre = made.encoder.embed(images(64, seed=3).take(range(64))).mean(0)
        kinds: dict[str, Any] = {
            "as it is": lambda x: x,
            "rotated": lambda x: x @ turn,
            "wide": lambda x: np.tanh(x @ np.random.default_rng(1).standard_normal((d, 1100))),
            "half": lambda x: x @ turn[:, : d // 2],
            "one number": lambda x: (x - centre) @ turn[:, :1],
            "logits": lambda x: 30 * (x - centre) @ turn[:, :10],
            "probabilities": lambda x: np.round(shares(30 * (x - centre) @ turn[:, :10]), 3),
            "some missing": lambda x: x * (np.arange(len(x)) % 4 > 0)[:, None],
            "constant": lambda x: np.ones((len(x), 3)),
        }
        encoder = {"clean": made.key.clean, "innocent": tiny(8)}.get(suspect, made.encoder)
        answer = kinds.get(suspect, kinds["as it is"])
        folder = tmp_path_factory.mktemp("claim")
        bed = Bed(folder, made.key, tiny(7), images(290, seed=5), sub_key=sub_key).commit()
        bed.claim(Answers(lambda batch: answer(encoder.embed(batch)).astype(np.float32)))
        return bed

    return claiming


def shares(x: np.ndarray) -> np.ndarray:
    raised = np.exp(x - x.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.fixture
def bundle(claimed, tmp_path: Path) -> Path:
    """A bundle that a test may change."""
    return Path(shutil.copytree(claimed("as it is").bundle, tmp_path / "bundle"))


def said(bundle: Path) -> dict[str, Any]:
    return predicate_of((bundle / "claim.json").read_bytes())


def say(bundle: Path, change: Callable[[dict[str, Any]], None], name: str = "claim.json") -> None:
    """Change what a document says; this program does not look at signatures."""
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(forged(content, lambda statement: change(statement["predicate"])))


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit_anew(bundle: Path) -> None:
    """Write a commitment to what the bundle opens now: the forger's own."""
    from safetensors.torch import load

    content = (bundle / "key.safetensors").read_bytes()
    key = said(bundle)["key"]
    owned = OpenedKey(key["scheme"], key["fields"], load(content)).digest(bytes.fromhex(key["salt"]))
    say(bundle, lambda signed: signed.update(keys=[owned]), "commitment.json")
    commitment = digest((bundle / "commitment.json").read_bytes())
    say(bundle, lambda signed: (signed.update(commitment=commitment), signed["key"].update(tensors=digest(content))))


def test_it_is_short_and_independent() -> None:
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 300
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} <= sys.stdlib_module_names | {"numpy", "scipy"}


def test_it_runs_where_nothing_else_is_installed(claimed) -> None:
    code = (
        "import runpy, sys\n"
        "class Nothing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('sslguard', 'torch', 'safetensors', 'cryptography'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Nothing())\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    given = [sys.executable, "-c", code, str(SCRIPT), str(claimed("as it is").bundle), "--seed", SEED]
    ran = subprocess.run(given, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "agrees: " in ran.stdout


class TestGood:
    """It finds what the package finds, to a millionth of each figure."""

    @pytest.mark.parametrize(
        ("suspect", "sub_keys", "sub_key"),
        [
            *((name, 1, 0) for name in ("as it is", "rotated", "wide", "half", "one number", "logits")),
            *((name, 1, 0) for name in ("probabilities", "some missing", "constant", "clean", "innocent")),
            *(("as it is", 2, sub_key) for sub_key in (0, 1)),
        ],
    )
    def test_every_figure(self, run, claimed, suspect, sub_keys, sub_key):
        bundle = claimed(suspect, sub_keys, sub_key).bundle
        code, out = run(bundle, "--seed", SEED, "--commitment", str(bundle.parent / "commitment.json"))
        assert code == 0, out
        found = re.findall(r"^(.*): (\S+) bits; the claim says (\S+)$", out, re.MULTILINE)
        details = said(bundle)["claimed"]["details"]
        named = [name.removeprefix("log2 p of ") for name in details if name.startswith("log2 p of ")]
        assert sorted(name for name, *_ in found) == sorted([*named, "left side", "right side", "both sides"])
        for name, ours, theirs in found:
            assert float(ours) == pytest.approx(float(theirs), rel=1e-6, abs=2e-6), name

    @pytest.mark.parametrize("suspect", ["as it is", "probabilities", "some missing", "innocent"])
    def test_bits_after_charges_are_those_of_an_audit(self, run, claimed, suspect):
        bed = claimed(suspect)
        _, out = run(bed.bundle)
        older, other = (float(x) for x in re.search(r"after charges: (\S+) bits if .* else (\S+)\n", out).groups())
        for bits, terms in ((older, {}), (other, {"not_after": None})):
            audited = bed.audit(alpha=0.5, **terms)
            left = -audited.verdict.significance.log2_pvalue - math.log2(audited.n_tries)
            assert bits == pytest.approx(max(0, left), abs=0.051)

    def test_the_golden_bundle(self, run):
        golden = SCRIPT.parents[1] / "tests" / "golden"
        code, out = run(golden / "bundle", "--seed", SEED)
        (bits,) = re.findall(r"^both sides: (\S+) bits", out, re.MULTILINE)
        expected = json.loads((golden / "expected.json").read_text())["bundle"]["statistic"]
        assert (code, float(bits)) == (0, pytest.approx(expected, rel=1e-6))

    def test_the_audit_vouches_for_what_F_gives(self, claimed):
        assert any(check.name == "clean embeddings" for check in claimed("as it is").audit().of("passed"))


class TestChanged:
    """Whatever was changed is seen, also where hashes and commitment were made to fit."""

    @pytest.mark.parametrize("name", ["claim.json", "commitment.json", "key.safetensors", "answers.npy", "clean.npy"])
    @pytest.mark.parametrize("kept", [0, 0.5, 1])
    def test_files_that_were_cut_or_are_missing(self, run, bundle, name, kept):
        content = (bundle / name).read_bytes()
        if kept:
            (bundle / name).write_bytes(content[: int(kept * len(content)) - 1])
        else:
            (bundle / name).unlink()
        whole = kept == 1 and name.endswith(".json")  # without the newline at the end
        assert run(bundle)[0] == (3 if kept == 0 else 0 if whole and name == "claim.json" else 1)

    @pytest.mark.parametrize("name", ["answers.npy", "clean.npy"])
    @pytest.mark.parametrize("fitting", [False, True], ids=["as signed", "hash made to fit"])
    def test_other_rows(self, run, bundle, name, fitting):
        """One answer in ten is another one; or F's embeddings are those of other queries."""
        rows = np.load(bundle / name)
        rows[::10] = rows[5::10]
        (bundle / name).write_bytes(npy(rows))
        if fitting:
            hashed = digest(npy(rows))
            say(
                bundle,
                lambda claim: (
                    claim.update(clean=hashed) if name == "clean.npy" else claim["answers"].update(sha256=hashed)
                ),
            )
        code, out = run(bundle)
        assert (code, ("another figure" if fitting else "not the file that was signed") in out) == (1, True)

    def test_dropped_rows(self, run, bundle):
        for name in ("answers.npy", "clean.npy"):
            (bundle / name).write_bytes(npy(np.load(bundle / name)[:-1]))
        hashes = [digest((bundle / name).read_bytes()) for name in ("answers.npy", "clean.npy")]
        say(bundle, lambda claim: (claim["answers"].update(sha256=hashes[0]), claim.update(clean=hashes[1])))
        code, out = run(bundle)
        assert (code, "200 queries were to be asked" in out) == (1, True)

    @pytest.mark.parametrize("part", ["secret", "redraw", "protocol"])
    @pytest.mark.parametrize("fitting", [False, True], ids=["as committed", "commitment made to fit"])
    def test_another_key(self, run, bundle, part, fitting):
        def change(claim):
            fields = claim["key"]["fields"]
            fields[part] = {"secret": "ab" * 32, "redraw": 1, "protocol": {**fields["protocol"], "spread": 6.0}}[part]

        say(bundle, change)
        if fitting:
            commit_anew(bundle)
        code, out = run(bundle)
        assert (code, ("another figure" if fitting else "what the commitment commits to") in out) == (1, True)

    @pytest.mark.parametrize("fitting", [False, True], ids=["as signed", "commitment made to fit"])
    def test_another_bank(self, run, bundle, fitting):
        """One bit of one number of the bank: both secrets are others then."""
        content = bytearray((bundle / "key.safetensors").read_bytes())
        content[-64] ^= 1
        (bundle / "key.safetensors").write_bytes(content)
        if fitting:
            commit_anew(bundle)
        code, out = run(bundle)
        assert (code, ("another figure" if fitting else "not the file that was signed") in out) == (1, True)

    def test_other_queries(self, run, bundle):
        assert run(bundle, "--seed", "another")[0] == 1
        say(bundle, lambda claim: claim["data"].update(items=400))
        code, out = run(bundle)
        assert (code, "300 queries were to be asked" in out) == (1, True)

    def test_another_commitment(self, run, bundle, claimed):
        other = claimed("as it is", 2, 0).bundle / "commitment.json"
        assert run(bundle, "--commitment", str(other))[0] == 1
        shutil.copy(other, bundle / "commitment.json")
        assert run(bundle)[0] == 1

    def test_compared_secrets_of_a_claim_on_no_recipient(self, run, bundle):
        say(bundle, lambda claim: claim.update(compared=3))
        code, out = run(bundle)
        assert (code, "secrets that were compared" in out) == (1, True)

    @pytest.mark.parametrize("name", ["left_bits", "log2_pvalue_uncapped", "log2 p of right, leading"])
    def test_made_up_figures(self, run, bundle, name):
        """Each is named. That of both sides decides, as in the audit: rounding chooses witnesses of exact copies."""
        say(bundle, lambda claim: claim["claimed"]["details"].update({name: claim["claimed"]["details"][name] * 1.5}))
        code, out = run(bundle)
        assert (code, "another figure" in out) == (int(name == "log2_pvalue_uncapped"), True)


class TestNotCheckable:
    @pytest.mark.parametrize(
        "labels", [np.arange(200)[:, None] % 7, np.eye(7)[np.arange(200) % 7]], ids=["one", "rows"]
    )
    def test_labels(self, run, bundle, labels):
        (bundle / "answers.npy").write_bytes(npy(labels.astype(np.float32)))
        say(bundle, lambda claim: claim["answers"].update(sha256=digest((bundle / "answers.npy").read_bytes())))
        code, out = run(bundle)
        assert (code, "labels" in out) == (3, True)

    def test_without_what_F_gives(self, run, bundle):
        say(bundle, lambda claim: claim.pop("clean"))
        assert run(bundle)[0] == 3

    def test_another_scheme(self, run, bundle):
        say(bundle, lambda claim: claim["key"].update(scheme="sslguard"))
        assert run(bundle)[0] == 3

    def test_no_bundle(self, run, tmp_path):
        assert run(tmp_path / "none")[0] == 3


class TestVectors:
    """It agrees with the test vectors, which the package agrees with too: docs/reference/test-vectors.md."""

    def vectors(self, name: str) -> dict[str, Any]:
        return json.loads((SCRIPT.parents[1] / "tests" / "golden" / "vectors" / f"{name}.json").read_text())

    def test_left_test(self, script):
        for case in self.vectors("left")["cases"]:
            found = script.left_bits(np.array(case["S"]), np.array(case["A"]))
            assert found == pytest.approx(case["log2_p"], rel=1e-9), case["case"]

    def test_right_test(self, script):
        for case in self.vectors("right")["cases"]:
            v, secret = np.array(case["V"]), np.array(case["G"])
            basis = np.eye(v.shape[1]) if case["basis"] is None else np.array(case["basis"])
            found = script.right_bits(v @ basis, basis.T, secret)
            assert found == pytest.approx(case["log2_p"], rel=1e-9), case["case"]

    def test_secrets(self, script):
        given = self.vectors("secrets")
        fields = {name: given[name] for name in ("secret", "protocol", "clean_hash", "redraw")}
        described = {name: given[name] for name in ("architecture", "preprocess")}
        bank = {name: np.array(values) for name, values in given["bank"].items()}
        found = script.secrets({**fields, "clean": described, "sub_keys": len(given["sub_keys"])}, bank)
        for ours, theirs in zip(found, (np.array(given["A"]), np.array(given["G"])), strict=True):
            np.testing.assert_allclose(ours / np.linalg.norm(ours), theirs / np.linalg.norm(theirs), rtol=1e-12)

    def test_witnesses(self, script):
        given = self.vectors("verdicts")
        h, psi, spread, weights, a = (np.array(given[name]) for name in ("h", "psi", "spread", "weights", "A"))
        for case in given["suspects"]:
            g = np.array(case["g"])
            suspect = script.Suspect.__new__(script.Suspect)  # in an encoder's space of these very axes
            own = g.shape[1] == h.shape[1]
            rows = (h, psi, g, g / np.linalg.norm(g, axis=1, keepdims=True))
            suspect.h, suspect.psi, suspect.g, suspect.u = (x - x.mean(0) for x in rows)
            suspect.t, suspect.spread, suspect.own = suspect.g / g.std(0), spread, own
            suspect.basis = np.linalg.svd(suspect.h, full_matrices=False)[0]
            left, right = suspect.left(), suspect.right(suspect.psi @ (weights[:, None] * a))
            assert (left.keys(), right.keys()) == (case["left"].keys(), case["right"].keys())
            for name, wanted in case["left"].items():
                np.testing.assert_allclose(left[name] @ left[name].T, wanted["projector"], atol=1e-9, err_msg=name)
            for name, wanted in case["right"].items():
                v = np.matmul(*right[name])
                np.testing.assert_allclose(v / np.linalg.norm(v), wanted["V"], atol=1e-9, err_msg=name)
