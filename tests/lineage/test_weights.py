"""Weights out of files that nobody vouches for: read one by one, and refused in one sentence."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sslguard.encoders.folder import save_encoder
from sslguard.errors import EncoderError, UsageError
from sslguard.lineage.weights import Weights, corresponding, of_files, open_weights

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(3, 2, dtype=torch.bfloat16)}


@pytest.fixture
def folder(tmp_path):
    """A network in two shards, as transformers writes them."""
    places = {}
    for number, (name, tensor) in enumerate(STATE.items()):
        places[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, tmp_path / places[name])
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def test_shards_are_read_as_one_network(folder) -> None:
    found = open_weights(f"hf:{folder}")
    assert dict(found.shapes) == {"a.weight": (2, 3), "b.weight": (3, 2)}
    assert found.read("b.weight").dtype == np.float32
    assert (found.read("a.weight") == STATE["a.weight"].numpy()).all()


def test_every_source_gives_the_same(tiny, tmp_path) -> None:
    encoder = tiny(3)
    save_encoder(encoder, tmp_path / "e")
    torch.save(encoder.module.state_dict(), tmp_path / "w.pth")
    save_file({n: t.contiguous() for n, t in encoder.module.state_dict().items()}, tmp_path / "w.safetensors")
    sources = [encoder, encoder.module, encoder.module.state_dict(), "random:resnet-narrow:3"]
    sources += [str(tmp_path / name) for name in ("e", "w.pth", "w.safetensors")]
    assert len({open_weights(source).digest() for source in sources}) == 1
    assert open_weights(tiny(4)).digest() != open_weights(encoder).digest()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "model-0.safetensors").write_bytes(b"\xff" * 40), "damaged"),
        (lambda f: (f / "model-0.safetensors").write_bytes((f / "model-0.safetensors").read_bytes()[:-4]), "damaged"),
        (lambda f: (f / "model-0.safetensors").unlink(), "not there"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'), "outside"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[" * 9999), "JSON"),
        (lambda f: save_file({"a.weight": STATE["a.weight"]}, f / "model-1.safetensors"), "another file"),
    ],
)
def test_hostile_shards_are_refused(folder, spoil, words: str) -> None:
    spoil(folder)
    with pytest.raises(EncoderError, match=words):
        open_weights(f"hf:{folder}").digest()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_what_is_not_finite_is_refused_when_it_is_read(value: float) -> None:
    found = open_weights({"a.weight": torch.full((2, 2), value, dtype=torch.float64)})
    with pytest.raises(EncoderError, match=r"a\.weight is not finite"):
        found.read("a.weight")


def test_a_file_that_changes_under_our_hands_is_refused() -> None:
    found = Weights("x", {"a": (2, 2)}, lambda _: torch.ones(3, 3))
    with pytest.raises(EncoderError, match="not the plain tensor"):
        found.read("a")


class _Bomb:
    def __reduce__(self):
        return print, ("run",)


def test_pickles_that_run_code_are_refused(tmp_path, capsys) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"a.weight": _Bomb()}))
    with pytest.raises(EncoderError):
        open_weights(str(tmp_path / "w.pth"))
    torch.save({"a.weight": torch.ones(2, 2), 3: "x"}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="no plain tensor"):
        of_files("x", [tmp_path / "pytorch_model.bin"])
    assert "run" not in capsys.readouterr().out


def test_shards_of_torch_files(tmp_path) -> None:
    for number, (name, tensor) in enumerate(STATE.items()):
        torch.save({name: tensor}, tmp_path / f"{number}.bin")
    found = of_files("x", [tmp_path / "0.bin", tmp_path / "1.bin"])
    assert found.digest() == open_weights(STATE).digest()


@pytest.mark.parametrize("spec", ["", "nothing-here", "hf:/does/not/exist", "folder/that/is/not"])
def test_a_source_that_is_none(spec: str) -> None:
    with pytest.raises((UsageError, EncoderError)):
        open_weights(spec)


def test_names_correspond_whatever_stands_before_them() -> None:
    def of(*names: str) -> Weights:
        return open_weights({name: torch.ones(2, 2) for name in names})

    plain, deep = of("layer.0.w", "layer.1.w", "x"), of("model.encoder.layer.0.w", "model.encoder.layer.1.w", "y.z")
    assert corresponding(plain, deep) == {f"layer.{i}.w": f"model.encoder.layer.{i}.w" for i in range(2)}
    assert corresponding(deep, plain) == {f"model.encoder.layer.{i}.w": f"layer.{i}.w" for i in range(2)}
    assert corresponding(plain, plain) == {name: name for name in plain.shapes}
    assert corresponding(plain, of("q.r.s")) == {}
