"""The validation study and the rates in the package are what the recorded results say."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_tables_and_rates_are_those_of_the_recorded_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import validation

    try:
        wanted = validation.PAGE.read_bytes(), validation.RATES.read_bytes()
        for name in ("PAGE", "RATES"):
            copied = tmp_path / name
            copied.write_bytes(getattr(validation, name).read_bytes())
            monkeypatch.setattr(validation, name, copied)
        validation.main()
        rates = json.loads(wanted[1])
        assert set(rates["copies"]) == {"head", "gentle", "weights"}
        assert sum(rate["n"] for kinds in rates["copies"].values() for rate in kinds.values()) > 100
        assert (validation.PAGE.read_bytes(), validation.RATES.read_bytes()) == wanted
    finally:
        for name in ("validation", "common"):
            sys.modules.pop(name, None)
