"""Every command of docs/how-to/checking-a-claim.md runs as it stands; between them the claimant does his part."""

from __future__ import annotations

import os
import runpy
import shlex
import subprocess
from pathlib import Path

import numpy as np

from helpers.claim_bed import AUTHORITY, Bed
from helpers.command_line import sslguard
from helpers.documents import commands
from sslguard.crypto.secrets import Secret
from sslguard.data.pool import pool_of
from sslguard.data.specs import open_data
from sslguard.encoders.folder import save_encoder
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact

ROOT = Path(__file__).parents[2]
PAGE = "how-to/checking-a-claim.md"


def test_every_command(tiny, images, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("pool.npy", images(290, seed=5).take(range(290)).numpy())
    pool = open_data("pool.npy")
    scheme = Exact(Protocol(n_queries=200), mode="head").bound_to(pool_of(pool))
    made = scheme.watermark(tiny(7), images(400), secret=Secret.from_seed(1))
    save_encoder(made.key.clean, tmp_path / "clean")
    (tmp_path / "authority.pem").write_bytes(AUTHORITY.roots())
    bed = Bed(tmp_path, made.key, made.key.clean, pool).commit()

    ended = []
    for program, *words in commands(PAGE):
        if program == "export":
            line = shlex.join([program, *words]).replace("'", "")
            ran = subprocess.run(["sh", "-c", f"{line}; printenv SEED"], capture_output=True, text=True, check=True)
            monkeypatch.setenv("SEED", ran.stdout.strip())
            bed.claim(made.encoder, seed=ran.stdout.strip())
            continue
        given = [os.path.expandvars(word) for word in words]
        if program == "openssl":
            ended.append(subprocess.run([program, *given], capture_output=True, check=False).returncode)
        elif program == "sslguard":
            found = sslguard(*given, "--json")
            assert found.json["decision"] == "derived", found.out
            ended.append(found.code)
        else:
            assert program == "python"
            monkeypatch.setattr("sys.argv", given)
            runpy.run_path(str(ROOT / given[0]), run_name="__main__")
            ended.append(0)
    assert ended == [0, 0, 0, 0]
    assert (tmp_path / "audit.html").exists()
    assert "agrees: " in capsys.readouterr().out
