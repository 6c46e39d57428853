"""Killed outright before any one of its file operations, a command leaves the old state or the new one.

An audit hook in a forked child counts what touches a file below the working folder, and kills the child at the n-th,
for every n that the command gets to. Each next run finds what the killed ones left, and the last one finishes.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyrage
import pytest

from helpers.claim_bed import AUTHORITY, COMMITTED, SEED, TERMS
from helpers.command_line import done, sslguard
from sslguard.claims.audit import audit
from sslguard.claims.commitment import commit, timestamp_file
from sslguard.claims.openings import read_openings
from sslguard.claims.timestamps import verified_time
from sslguard.crypto.sealing import IDENTITY
from sslguard.data.specs import open_data
from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.schemes.keyfile import key_hash, load_key, open_key

TOUCHING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "ctypes.dlsym", "shutil.rmtree")
SMALL = ("--n-queries", 60, "--functions", 8, "--rank", 2)


def killed_before(number: int, work: Path, *command: object) -> bool:
    """Run a command in a child, killed before its file operation `number`, from 0; False where it ended first."""
    pid = os.fork()
    if pid == 0:
        left = itertools.count(number, -1)

        def hook(event: str, args: tuple[Any, ...]) -> None:
            written = event == "open" and bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
            ours = event == "ctypes.dlsym" or (bool(args) and str(args[0]).startswith(str(work)))
            if (written or event in TOUCHING) and ours and next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        code = 70
        try:
            code = sslguard(*command).code
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def kill_everywhere(work: Path, command: tuple[object, ...], check: Callable[[], None], *results: str) -> None:
    """Kill `command` before each of its operations in `work` as it is now, and `check` what it left.

    After every fifth the same command runs to its end, or says that its result is there.
    """
    before = work.with_name("before")
    shutil.copytree(work, before)
    names = {path.name for path in before.iterdir()} | set(results)
    for number in itertools.count():
        shutil.rmtree(work)
        shutil.copytree(before, work)
        killed = killed_before(number, work, *command)
        check()
        strange = {path.name for path in work.iterdir()} - names
        assert all(name.endswith((".partial", ".unfinished")) for name in strange), strange
        if number % 5 == 0 or not killed:
            assert sslguard(*command).code in (0, 2)
            check()
            assert all((work / name).exists() for name in results)
        if not killed:
            break
    assert number > 5


@pytest.fixture(scope="module")
def start(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start")
    save_encoder(tiny(7), folder / "clean")
    pictures = np.random.default_rng(0).integers(0, 256, (160, 16, 16), dtype=np.uint8)
    np.save(folder / "pictures.npy", pictures)
    return folder


@pytest.fixture(scope="module")
def marking(start):
    exact = ("--scheme", "exact", "--mode", "head", "--sub-keys", 2, *SMALL)
    return ("watermark", start / "clean", "--data", f"{start}/pictures.npy[0:80]", *exact)


@pytest.fixture
def work(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def key(marking, work):
    """A key in a folder of work."""
    done(*marking, "--out", work / "marked")
    return work / "marked" / "key"


def test_watermark(marking, work):
    out = work / "marked"

    def check() -> None:
        if out.exists():
            assert load_key(out / "key").watermarked_hash == weights_hash(load_folder(out / "encoder").module)

    kill_everywhere(work, (*marking, "--out", out), check, "marked")


def test_protect(key, work, tmp_path, monkeypatch):
    identity, whole = pyrage.x25519.Identity.generate(), key_hash(load_key(key))
    (tmp_path / "identity").write_text(str(identity))
    monkeypatch.setenv(IDENTITY, str(tmp_path / "identity"))

    def check() -> None:
        assert key_hash(load_key(key)) == whole

    kill_everywhere(work, ("protect", key, "--recipient", identity.to_public()), check)
    assert open_key(key).sealed


def test_commit(key, work, tmp_path):
    out, wanted = work / "c.json", commit(open_key(key)).document.content
    (tmp_path / "token").write_bytes(AUTHORITY.token(wanted, COMMITTED))

    def check() -> None:
        if out.exists():
            token = timestamp_file(out).read_bytes()
            assert out.read_bytes() == wanted
            assert verified_time(token, wanted, [AUTHORITY.root], "it") == COMMITTED

    command = ("commit", key, "--out", out, "--token", tmp_path / "token")
    kill_everywhere(work, command, check, "c.json", "c.json.tsr")


def test_claim(key, work, start):
    bundle, asked, whole = work / "bundle", f"{start}/pictures.npy[80:160]", key_hash(load_key(key))
    done("commit", key, "--out", work / "c.json")
    suspect, rest = work / "marked" / "encoder", ("--commitment", work / "c.json", "--sub-key", 1, "--out", bundle)

    def check() -> None:
        assert key_hash(load_key(key)) == whole
        if bundle.exists():
            found = audit(bundle, open_data(asked), TERMS, clean=load_encoder(start / "clean"))
            assert not found.of("failed")
            assert read_openings(key).keys() == {1}

    kill_everywhere(work, ("claim", key, suspect, "--data", asked, "--seed", SEED, *rest), check, "bundle")
