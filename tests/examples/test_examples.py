"""Every script in examples/ runs as it stands, in an empty folder, and comes to the right verdicts."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
VERDICTS = {
    "mark_and_verify.py": {"marked/encoder": "derived", "shipped:simclr": "not shown"},
    "steal_and_detect.py": {"copy of the marked encoder": "derived", "copy of the clean encoder": "not shown"},
    "claim_and_audit.py": {"derivation": "passed", "commitment": "passed", "decision": "derived"},
    "own_module.py": {"marked": "derived", "clean": "not shown", "the same without sslguard": "True"},
    "served_api.py": {"marked": "derived", "clean": "not shown"},
    "weights.py": {"copy": "shared weights", "same seed": "not shown", "original": "not shown"},
}
LEFT = {"mark_and_verify.py": ["marked"], "claim_and_audit.py": ["bundle", "commitment.json", "marked"]}
LEFT["own_module.py"] = ["marked"]
LEFT["weights.py"] = ["released"]


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        *VERDICTS,
        "verify_bundle.py",
    }  # which has tests of its own


@pytest.mark.parametrize("script", VERDICTS)
def test_example(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [script])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    out = capsys.readouterr().out
    said = dict(line.split(": ", 1) for line in out.splitlines())
    found = {
        name: re.match("derived|shared weights|not shown|passed|True|$", said.get(name, ""))[0]
        for name in VERDICTS[script]
    }
    assert found == VERDICTS[script], out
    assert sorted(path.name for path in tmp_path.iterdir()) == LEFT.get(script, [])
