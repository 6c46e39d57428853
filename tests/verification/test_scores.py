"""Stored scores of controls: the fresh ones bit for bit, never after anything they depend on has changed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sslguard import api
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder
from sslguard.errors import KeyFileError, OutputError, UsageError
from sslguard.schemes.keyfile import key_hash, load_key, save_key
from sslguard.verification import scores as scorefile
from sslguard.verification.scores import MAX_BYTES, MAX_ENTRIES, check_controls, control_scores, queries_hash
from sslguard.verification.verdict import score_suspect

N = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny, key_of):
    """A key and controls of its width, one in half precision."""
    root = tmp_path_factory.mktemp("made")
    for seed in range(N):
        save_encoder(tiny(seed, linear=2), root / f"control-{seed}", half=seed == 0)
    save_key(key_of(), root / "key")
    return root


@pytest.fixture
def root(made, tmp_path, monkeypatch):
    """A copy of it to spoil; controls are named relative to it."""
    shutil.copytree(made, tmp_path / "made")
    monkeypatch.chdir(tmp_path / "made")
    return Path("key")


@pytest.fixture
def data(images):
    return images(9)


CONTROLS = [f"control-{seed}" for seed in range(4)]


def fresh(data, controls=CONTROLS):
    """Scored one by one, as any suspect is."""
    key = load_key(Path("key"))
    found = {name: score_suspect(key, load_folder(Path(name)), data) for name in controls}
    return {name: (score.value, score.watermark_rate) for name, score in found.items()}


def stored_in(folder):
    return json.loads((folder / "controls.json").read_bytes())


def flat(found):
    return {name: (score.value, score.watermark_rate) for name, score in found.scores.items()}


def never_asked(monkeypatch):
    monkeypatch.setattr(Encoder, "embed", lambda *_: pytest.fail("an encoder was asked"))


class TestStored:
    def test_scores_are_the_fresh_ones_bit_for_bit(self, root, data, monkeypatch):
        expected = fresh(data)
        first = api.score_controls(root, data, controls=CONTROLS)
        assert (first.stored, first.kept) == (False, True)
        never_asked(monkeypatch)
        second = api.score_controls(str(root), data, controls=CONTROLS)
        assert (second.stored, second.kept) == (True, True)
        assert flat(first) == flat(second) == expected
        assert list(second.scores) == CONTROLS
        assert len({value for value, _ in expected.values()}) == len(CONTROLS)

    def test_verdict_is_the_same(self, root, data):
        verdicts = [api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2) for _ in range(2)]
        assert [v.stored_controls for v in verdicts] == [False, True]
        said = [{**v.to_json(), "stored_controls": None} for v in verdicts]
        assert said[0] == said[1]
        assert verdicts[0].control_scores == verdicts[1].control_scores == {n: v for n, (v, _) in fresh(data).items()}

    def test_order_of_the_controls_does_not_matter(self, root, data):
        api.score_controls(root, data, controls=CONTROLS)
        found = api.score_controls(root, data, controls=CONTROLS[::-1])
        assert found.stored
        assert list(found.scores) == CONTROLS[::-1]

    def test_sets_lie_side_by_side(self, root, data, images):
        asked = [(data, CONTROLS), (images(9, seed=4), CONTROLS), (data, CONTROLS[:2])]
        for items, controls in asked:
            assert not api.score_controls(root, items, controls=controls).stored
        for items, controls in asked:
            found = api.score_controls(root, items, controls=controls)
            assert found.stored
            assert flat(found) == fresh(items, controls)

    def test_file_is_canonical_and_its_owners_alone(self, root, data):
        before = os.umask(0)
        try:
            api.score_controls(root, data, controls=CONTROLS)
        finally:
            os.umask(before)
        path = root / "controls.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        content = json.loads(path.read_bytes())
        assert path.read_bytes() == json.dumps(content, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        assert (content["format"], content["version"]) == ("sslguard-control-scores", 1)
        assert sorted(p.name for p in root.iterdir()) == ["controls.json", "key.json", "tensors.safetensors"]
        assert load_key(root).secret.reveal().hex() not in path.read_text()

    def test_a_key_object_stores_nothing(self, root, data):
        found = control_scores(load_key(root), CONTROLS, data)
        assert (found.stored, found.kept) == (False, False)
        assert flat(found) == fresh(data)
        assert not (root / "controls.json").exists()

    def test_figures(self, root, data):
        found = api.score_controls(root, data, controls=CONTROLS)
        expected = fresh(data)
        assert found.values == {name: value for name, (value, _) in expected.items()}
        assert found.highest == max(expected, key=lambda name: expected[name][0])
        for rate in (0.0, 0.1, 1.0):
            assert found.n_above(rate) == sum(wr > rate for _, wr in expected.values())


def other_weights(tiny):
    save_encoder(tiny(99, linear=2), Path("control-1"))


def other_preprocessing(tiny):
    encoder = tiny(1, linear=2)
    save_encoder(replace(encoder, preprocess=replace(encoder.preprocess, mean=(0.1,))), Path("control-1"))


def another_key(tiny):
    path = Path("key/key.json")
    description = json.loads(path.read_text())
    description["fields"]["secret"] = "ab" * 32
    path.write_text(json.dumps(description))


def another_decoder(tiny):
    key = load_key(Path("key"))
    with torch.no_grad():
        key.decoder[0].bias += 0.5
    kept = Path("key/controls.json").read_bytes()
    save_key(key, Path("key"))
    Path("key/controls.json").write_bytes(kept)


CHANGES = {
    "a control's weights": other_weights,
    "a control's preprocessing": other_preprocessing,
    "the secret, and with it the queries": another_key,
    "the decoder": another_decoder,
}


class TestStale:
    @pytest.mark.parametrize("change", CHANGES)
    def test_scores_are_scored_anew_and_give_way(self, root, data, tiny, change):
        before = api.score_controls(root, data, controls=CONTROLS)
        CHANGES[change](tiny)
        after = api.score_controls(root, data, controls=CONTROLS)
        assert not after.stored
        assert flat(after) == fresh(data) != flat(before)
        assert len(stored_in(root)["entries"]) == 1
        assert flat(api.score_controls(root, data, controls=CONTROLS)) == flat(after)

    def test_other_items_under_the_same_name(self, root, images):
        one, other = images(9), images(9, seed=1)
        other.spec = one.spec
        api.score_controls(root, one, controls=CONTROLS)
        found = api.score_controls(root, other, controls=CONTROLS)
        assert not found.stored
        assert flat(found) == fresh(other)

    @pytest.mark.parametrize(
        "controls",
        [CONTROLS[:3], [*CONTROLS, "control-4"], [*CONTROLS[:3], "control-4"]],
        ids=["fewer", "more", "other"],
    )
    def test_another_set_of_controls(self, root, data, controls):
        api.score_controls(root, data, controls=CONTROLS)
        found = api.score_controls(root, data, controls=controls)
        assert not found.stored
        assert flat(found) == fresh(data, controls)

    def test_another_version_of_torch(self, root, data, monkeypatch):
        api.score_controls(root, data, controls=CONTROLS)
        monkeypatch.setattr(torch, "__version__", "9.9.9")
        assert not api.score_controls(root, data, controls=CONTROLS).stored
        assert [entry["torch"] for entry in stored_in(root)["entries"]] == ["9.9.9"]

    def test_two_controls_that_swap_their_weights(self, root, data):
        before = flat(api.score_controls(root, data, controls=CONTROLS))
        Path("control-0").rename("aside")
        Path("control-1").rename("control-0")
        Path("aside").rename("control-1")
        after = api.score_controls(root, data, controls=CONTROLS)
        assert not after.stored
        assert (flat(after)["control-0"], flat(after)["control-1"]) == (before["control-1"], before["control-0"])

    def test_a_control_that_changes_while_it_is_asked_is_not_kept(self, root, data, tiny, monkeypatch):
        score = scorefile.score_control

        def meanwhile(key, name, control, items, seen):
            if name == "control-0":
                other_weights(tiny)
            return score(key, name, control, items, seen)

        monkeypatch.setattr(scorefile, "score_control", meanwhile)
        assert not api.score_controls(root, data, controls=CONTROLS).kept
        assert not (root / "controls.json").exists()

    def test_controls_that_are_no_folder(self, root, data, tiny, monkeypatch):
        named = ["random:plain-small:1@16", "random:plain-small:2@16"]
        answering = tiny(1, linear=2)
        monkeypatch.setattr(scorefile, "score_control", lambda key, *_: score_suspect(key, answering, data))
        assert not api.score_controls(root, data, controls=named).stored
        assert api.score_controls(root, data, controls=named).stored


class TestBounds:
    def test_the_oldest_sets_give_way(self, root, images):
        sets = [images(9, seed=seed) for seed in range(MAX_ENTRIES + 2)]
        for items in sets:
            api.score_controls(root, items, controls=CONTROLS[:1])
        assert len(stored_in(root)["entries"]) == MAX_ENTRIES
        stored = [api.score_controls(root, items, controls=CONTROLS[:1]).stored for items in sets[::-1]]
        assert stored == [True] * MAX_ENTRIES + [False] * 2

    def test_in_bytes(self, root, images, monkeypatch):
        api.score_controls(root, images(9), controls=CONTROLS)
        size = (root / "controls.json").stat().st_size
        monkeypatch.setattr(scorefile, "MAX_BYTES", 2 * size)
        for seed in range(1, 4):
            assert api.score_controls(root, images(9, seed=seed), controls=CONTROLS).kept
            assert (root / "controls.json").stat().st_size <= 2 * size
        monkeypatch.setattr(scorefile, "MAX_BYTES", size // 2)
        (root / "controls.json").unlink()
        assert not api.score_controls(root, images(9), controls=CONTROLS).kept
        assert not (root / "controls.json").exists()


def write(content):
    return lambda path: path.write_bytes(content)


def edit(change):
    def spoil(path):
        content = json.loads(path.read_bytes())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def edit_control(**fields):
    return edit(lambda c: c["entries"][0]["controls"]["control-1"].update(fields))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def link(path):
    path.rename("elsewhere.json")
    path.symlink_to(Path("elsewhere.json").absolute())


def dangling(path):
    path.unlink()
    path.symlink_to(Path("nowhere.json").absolute())


HOSTILE = {
    "empty": (write(b""), "damaged"),
    "garbage": (write(b"\xff\x00"), "damaged"),
    "nested too deep": (write(b"[" * 200_000), "damaged"),
    "a list": (write(b"[]"), "damaged"),
    "null": (write(b"null"), "damaged"),
    "oversized": (write(b" " * (MAX_BYTES + 1)), "larger than"),
    "another format": (edit(lambda c: c.update(format="x")), "no scores of controls of version 1"),
    "another version": (edit(lambda c: c.update(version=2)), "no scores of controls of version 1"),
    "no entries": (edit(lambda c: c.pop("entries")), "damaged"),
    "entries that are none": (edit(lambda c: c.update(entries=[1])), "damaged"),
    "too many entries": (edit(lambda c: c.update(entries=c["entries"] * (MAX_ENTRIES + 1))), "no scores"),
    "no controls": (edit(lambda c: c["entries"][0].update(controls={})), "damaged"),
    "controls that are none": (edit(lambda c: c["entries"][0].update(controls=[1, 2])), "damaged"),
    "a key that is none": (edit(lambda c: c["entries"][0].update(key=7)), "damaged"),
    "NaN": (edit_control(score=float("nan")), "damaged"),
    "infinity": (edit_control(score=float("inf")), "damaged"),
    "a score as text": (edit_control(score="0.5"), "damaged"),
    "a rate beyond one": (edit_control(watermark_rate=1.5), "damaged"),
    "no weights": (edit_control(weights=None), "damaged"),
    "a pipe": (pipe, "not a plain file"),
    "a link": (link, "not a plain file"),
    "a link to nothing": (dangling, "not a plain file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "not a plain file"),
}


class TestHostileFiles:
    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("name", HOSTILE)
    def test_is_refused_in_one_sentence_and_nobody_is_asked(self, root, data, monkeypatch, name):
        expected = fresh(data)
        api.score_controls(root, data, controls=CONTROLS)
        spoil, message = HOSTILE[name]
        spoil(root / "controls.json")
        with monkeypatch.context() as patch:
            never_asked(patch)
            with pytest.raises(KeyFileError, match=message) as caught:
                api.score_controls(root, data, controls=CONTROLS)
        assert "\n" not in str(caught.value)
        assert "--rescore" in str(caught.value)
        elsewhere = Path("elsewhere.json")
        before = elsewhere.read_bytes() if elsewhere.exists() else b""
        healed = api.score_controls(root, data, controls=CONTROLS, rescore=True)
        assert flat(healed) == expected
        assert healed.kept is (message != "not a plain file")
        assert (elsewhere.read_bytes() if elsewhere.exists() else b"") == before
        assert not Path("nowhere.json").exists()

    def test_of_which_a_key_without_one_knows_nothing(self, root, data):
        assert not (root / "controls.json").exists()
        assert not api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2).stored_controls


class TestFoldersThatCannotBeWritten:
    def test_verify_as_well(self, root, data, monkeypatch):
        def full(*_, **__):
            raise OutputError("no space left")

        monkeypatch.setattr(scorefile, "write_atomic", full)
        for _ in range(2):
            found = api.score_controls(root, data, controls=CONTROLS)
            assert (found.stored, found.kept) == (False, False)
            assert flat(found) == fresh(data)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
    def test_by_their_mode(self, root, data):
        root.chmod(0o500)
        try:
            assert not api.score_controls(root, data, controls=CONTROLS).kept
            assert api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2).decision
        finally:
            root.chmod(0o700)


class TestTrust:
    def test_an_edited_score_is_believed_until_it_is_scored_anew(self, root, data):
        honest = api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2)
        edit_control(score=-1.0)(root / "controls.json")
        edited = api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2)
        assert edited.control_scores["control-1"] == -1.0
        assert edited.stored_controls
        anew = api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2, rescore=True)
        assert anew.control_scores == honest.control_scores
        assert not anew.stored_controls
        assert api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2).control_scores == honest.control_scores

    def test_the_verdict_says_so_and_holds_nothing_of_the_key(self, root, data):
        said = json.dumps(api.verify(root, "control-5", data, controls=CONTROLS, alpha=0.2).to_json())
        key = load_key(root)
        assert '"stored_controls": false' in said
        for secret in (key.secret.reveal().hex(), key_hash(key), queries_hash(key, data)):
            assert secret not in said


class TestHashes:
    def test_of_a_key_covers_every_part_and_no_file(self, root, key_of):
        assert key_hash(load_key(root)) == key_hash(key_of())
        assert key_hash(key_of(n=5)) != key_hash(key_of()) != key_hash(key_of(secret=2))

    def test_of_queries_covers_items_order_and_batches(self, key_of):
        class Asks:
            def __init__(self, *batches):
                self.batches = batches

            def queries(self, data):
                return iter(self.batches)

        picture = torch.arange(4, dtype=torch.uint8).reshape(1, 2, 2)
        asked = {
            "one": Asks(torch.stack([picture, picture + 1])),
            "turned": Asks(torch.stack([picture + 1, picture])),
            "in two": Asks(picture[None], picture[None] + 1),
            "of another shape": Asks(torch.stack([picture, picture + 1]).reshape(2, 1, 1, 4)),
            "of another type": Asks(torch.stack([picture, picture + 1]).float()),
            "in a list": Asks([picture, picture + 1]),
            "texts": Asks(["a", "bc"]),
            "other texts": Asks(["ab", "c"]),
            "a lone surrogate": Asks(["\ud800", "c"]),
        }
        hashes = {name: queries_hash(key, None) for name, key in asked.items()}
        assert len(set(hashes.values())) == len(asked)
        assert queries_hash(asked["one"], None) == hashes["one"]


class TestBeforeLongWork:
    def test_controls_of_one_width_pass(self, root):
        check_controls(CONTROLS, 2)

    @pytest.mark.parametrize(
        ("controls", "message"),
        [
            (["control-0", "control-0"], "given twice"),
            (["control-0", "random:resnet-narrow"], "answers in 64 dimensions and the encoder in 2"),
            (["cut"], "a control cannot be used: .*weights"),
        ],
    )
    def test_what_could_not_be_scored_is_refused(self, root, controls, message):
        shutil.copytree("control-0", "cut")
        weights = Path("cut/weights.safetensors")
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(UsageError, match=message):
            check_controls(controls, 2)

    def test_a_name_given_twice_ends_a_scoring_before_it_begins(self, root, data, monkeypatch):
        never_asked(monkeypatch)
        with pytest.raises(UsageError, match="'control-0' is given twice"):
            api.score_controls(root, data, controls=["control-0", "control-0"])

    def test_one_network_under_two_names_is_refused(self, root, data):
        """A copy of a control says nothing that the control did not: the floor would sink by itself."""
        shutil.copytree("control-0", "copy")
        for twice in (["control-0", "copy"], ["control-0", "./control-0"]):
            with pytest.raises(UsageError, match="has the weights of control 'control-0': each must count once"):
                api.score_controls(root, data, controls=twice)
            with pytest.raises(UsageError, match="has the weights of control 'control-0'"):
                check_controls(twice, 2)


def test_answers_differ_between_controls(root, data):
    """The tests above would see one control's score taken for another's."""
    batch = next(iter(load_key(root).queries(data)))
    answers = [load_folder(Path(name)).embed(batch) for name in CONTROLS]
    assert not any(np.array_equal(a, b) for i, a in enumerate(answers) for b in answers[:i])
