"""docs/how-to/adding-an-attack.md is followed: its attack is made, named, and run in a chain."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import numpy as np

from sslguard.attacks import registry
from sslguard.encoders.base import embed_all

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "adding-an-attack.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_page_s_attack_works_by_name(monkeypatch, tiny, images):
    victim, data = tiny(1), images(24)
    # Dataclasses look up the module that they are made in.
    monkeypatch.setitem(sys.modules, "page", page := ModuleType("page"))
    room = vars(page)
    room |= {"victim": victim, "data": data}
    made, used = blocks("python")
    exec(made, room)
    monkeypatch.setitem(registry.ATTACKS, "ranks", room["Ranks"])
    exec(used, room)
    answers = embed_all(room["served"], data)
    assert answers.shape == (24, victim.dim)
    np.testing.assert_allclose(np.sort(answers), np.tile(np.sort(answers[0]), (24, 1)))
    assert [step["made_by"] for step in room["served"].record["steps"]] == ["quantise", "ranks"]
    (entry,) = tomllib.loads(blocks("toml")[0])["attacks"].values()
    for step in entry["steps"]:
        registry.build(step.pop("attack"), {k: v for k, v in step.items() if k != "data"})
