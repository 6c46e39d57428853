"""docs/how-to/signed-documents.md is followed: tools of others verify a commitment, and refuse a forged one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from securesystemslib.exceptions import VerificationError

from helpers.documents import blocks
from helpers.envelopes import enveloped, statement_of
from sslguard.claims.commitment import OF_COMMITMENTS
from sslguard.claims.documents import sign_document
from sslguard.schemes.keyfile import Owner

PAGE = "how-to/signed-documents.md"


@pytest.fixture(autouse=True)
def commitment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The commitment that the page verifies, in the present folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "commitment.json"
    path.write_bytes(sign_document(Owner(b"s" * 32, b"k" * 32), OF_COMMITMENTS, {"keys": ["ab" * 32]}).content)
    return path


def spoil(path: Path) -> None:
    """Let a document say something else under its signature."""
    content = path.read_bytes()
    statement = statement_of(content)
    statement["predicate"]["keys"] = ["cd" * 32]
    path.write_bytes(enveloped(statement, content))


def test_a_library(commitment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks(PAGE, "python")
    exec(compile(code, "signed-documents.md", "exec"), {})
    assert capsys.readouterr().out == f"{OF_COMMITMENTS.type} ['key']\n"
    spoil(commitment)
    with pytest.raises(VerificationError):
        exec(compile(code, "signed-documents.md", "exec"), {})


def test_openssl(commitment: Path) -> None:
    if missing := [name for name in ("openssl", "jq", "xxd") if shutil.which(name) is None]:
        pytest.skip(f"no {missing[0]} here")
    (commands,) = blocks(PAGE, "sh")
    good = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True)
    assert (good.returncode, good.stdout.strip()) == (0, "Signature Verified Successfully"), good.stderr
    spoil(commitment)
    bad = subprocess.run(["sh", "-ec", commands], capture_output=True, text=True)
    assert bad.returncode != 0
    assert "Verified Successfully" not in bad.stdout
