"""Networks of the user's own: tried out, kept as programs or by a factory's name, and never run unasked."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sslguard
from sslguard.data.own import own_data
from sslguard.encoders import own
from sslguard.encoders.program import Program
from sslguard.errors import DataError, UsageError

SETTINGS = {"mode": "head", "protocol": {"n_queries": 256}}


class Net(nn.Module):
    """A network with a batch norm, shared weights, and a constant that its state dict lacks."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 16, 5, 4), nn.BatchNorm2d(16), nn.Linear(16, width)
        self.again = self.last  # earlier in the alphabet, and later here
        self.register_buffer("shift", torch.full((width,), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.relu_(self.norm(self.first(x))).mean((2, 3))) + self.shift


class Reads(nn.Module):
    """A network of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.words(input_ids) * attention_mask[:, :, None]).sum(1) / attention_mask.sum(1, keepdim=True)


class Branches(nn.Module):
    """A network that `torch.export` cannot follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :8] if float(x.sum()) > -1e9 else x


def net(width: int = 24) -> Net:
    torch.manual_seed(0)
    return Net(width).eval()


def pictures(n: int) -> np.ndarray:
    coarse = np.random.default_rng(3).integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
    return coarse.repeat(4, 2).repeat(4, 3)


def make_branches() -> nn.Module:
    return Branches().eval()


class TestKinds:
    @pytest.mark.parametrize("kind", ["array", "channels last", "tensor", "dataset", "loader", "list", "dict"])
    def test_data(self, kind: str) -> None:
        array = pictures(20)
        floats = (torch.from_numpy(array).float() / 255 - 0.5) / 0.2
        items: Any = {
            "array": array,
            "channels last": np.ascontiguousarray(array.transpose(0, 2, 3, 1)),
            "tensor": floats,
            "dataset": TensorDataset(floats, torch.zeros(20)),
            "loader": DataLoader(TensorDataset(floats, torch.zeros(20)), batch_size=3, shuffle=True),
            "list": list(array),
            "dict": [{"label": 1, "image": one} for one in floats],
        }[kind]
        data = own_data(items)
        wanted = torch.from_numpy(array) if kind in ("array", "channels last", "list") else floats
        assert torch.equal(data.take([3, 0]), wanted[[3, 0]])
        encoder = sslguard.load_encoder(net(), example=items)
        expected = net()(wanted.float() / 255 if wanted.dtype == torch.uint8 else wanted)
        np.testing.assert_allclose(encoder.embed(data.take(range(20))), expected.detach().numpy(), rtol=1e-5, atol=1e-6)

    def test_data_of_one_name_are_the_same(self) -> None:
        one, other = pictures(20), pictures(20)
        other[7, 0, 0, 0] ^= 1
        assert own_data(one).spec == own_data(one.copy()).spec != own_data(other).spec

    def test_a_collate_function_is_used(self) -> None:
        loader = DataLoader(list(range(9)), collate_fn=lambda rows: {"input_ids": torch.tensor([[r, 5] for r in rows])})
        assert own_data(loader).take([4, 2]).tolist() == [[[4, 5], [1, 1]], [[2, 5], [1, 1]]]

    def test_a_stream_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Stream(IterableDataset):
            def __iter__(self):
                return iter([(torch.full((3, 4, 4), float(k)), k) for k in range(5)])

        assert own_data(DataLoader(Stream())).take([4])[0, 0, 0, 0] == 4
        monkeypatch.setattr("sslguard.data.own.MAX_STREAM", 100)
        with pytest.raises(DataError, match="tar shards"):
            own_data(Stream())

    def test_random_augmentation_is_told(self) -> None:
        class Noisy(Dataset):
            def __len__(self) -> int:
                return 5

            def __getitem__(self, k: int) -> Tensor:
                return torch.rand(3, 4, 4)

        with pytest.raises(DataError, match="leave random augmentation out"):
            own_data(Noisy())

    def test_texts(self) -> None:
        texts = ["one two", "", "Grüße 🙂 two two"]
        prepared = own.Characters().prepare(texts)
        assert own.Characters.texts(prepared) == texts
        seen = []

        def embed(batch):
            seen.extend(batch)
            return np.array([[len(one), one.count("two"), 1.0] for one in batch])

        encoder = sslguard.load_encoder(embed, example=texts)
        assert encoder.embed(texts).tolist() == [[7, 1, 1], [0, 0, 1], [15, 2, 1]]
        assert set(seen) == set(texts)

    def test_a_network_of_tokens(self) -> None:
        def tokenize(texts):
            ids = [[1 + len(word) for word in text.split()] for text in texts]
            longest = max(map(len, ids))
            rows = [one + [0] * (longest - len(one)) for one in ids]
            return {"input_ids": torch.tensor(rows), "attention_mask": (torch.tensor(rows) > 0).long()}

        torch.manual_seed(0)
        module, texts = Reads().eval(), ["a bb ccc", "dddd e", "f"]
        encoder = sslguard.load_encoder(module, preprocess=tokenize, example=texts)
        found = tokenize(texts)
        np.testing.assert_allclose(encoder.embed(texts), module(**found).detach().numpy(), rtol=1e-6)
        of_tokens = sslguard.load_encoder(module, example=[{name: t[k] for name, t in found.items()} for k in range(3)])
        again = Program(json.loads(json.dumps(of_tokens.architecture["program"])))
        again.load_state_dict(of_tokens.module.state_dict())
        tokens = torch.stack((found["input_ids"], found["attention_mask"]), 1)
        np.testing.assert_allclose(again(tokens).detach(), encoder.embed(texts), rtol=1e-6)


class TestFiles:
    def test_a_module_needs_nothing_but_its_key(self, tmp_path: Path) -> None:
        items = pictures(900)
        marked = sslguard.watermark(net(), items[:600], scheme="exact", settings=SETTINGS, out=tmp_path / "m")
        assert marked.needs == ""
        key = sslguard.load_key(tmp_path / "m" / "key")
        assert sslguard.verify(key, tmp_path / "m" / "encoder", items[600:]).decision == "derived"
        assert sslguard.verify(key, net(), items[600:]).decision == "not shown"
        again = sslguard.load_encoder(tmp_path / "m" / "encoder")
        batch = torch.from_numpy(items[:5])
        np.testing.assert_allclose(again.embed(batch), marked.encoder.embed(batch), rtol=1e-5, atol=1e-6)

    def test_distilled_weights_have_the_modules_names(self) -> None:
        items, own_net = pictures(600), net()
        settings = {**SETTINGS, "mode": "distilled", "steps": 2}
        marked = sslguard.watermark(own_net, items, scheme="exact", settings=settings)
        module: Any = marked.encoder.module
        assert type(module.net) is Net
        assert module.net.state_dict().keys() == own_net.state_dict().keys()
        assert not torch.equal(module.net.last.weight, own_net.last.weight)

    def test_a_function_is_marked_here_and_not_kept(self, tmp_path: Path) -> None:
        items, inner = pictures(900), net()
        embed = lambda batch: inner(batch).numpy()  # noqa: E731 - a function as a user may give it
        marked = sslguard.watermark(embed, items[:600], scheme="exact", settings=SETTINGS)
        assert sslguard.verify(marked.key, marked.encoder, items[600:]).decision == "derived"
        assert sslguard.verify(marked.key, embed, items[600:]).decision == "not shown"
        with pytest.raises(UsageError, match=r"factory='package.module:function'"):
            sslguard.watermark(embed, items[:600], scheme="exact", settings=SETTINGS, out=tmp_path / "m")
        assert not list(tmp_path.iterdir())

    def test_a_factory_runs_only_where_it_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "ownnets.py").write_text(
            "import torch\nfrom torch import nn\nclass B(nn.Module):\n"
            "    def forward(self, x):\n"
            "        return x.flatten(1)[:, :64:8] if float(x.sum()) > -1e9 else x\n"
            "def make():\n    return B().eval()\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [*sys.path])
        items = pictures(900)
        clean = sslguard.load_encoder("python:ownnets:make", example=items)
        marked = sslguard.watermark(clean, items[:600], scheme="exact", settings=SETTINGS, out=tmp_path / "m")
        assert "ownnets:make" in marked.needs
        monkeypatch.setattr(own, "_confirmed", {})
        sys.modules.pop("ownnets")
        for ask in (
            lambda: sslguard.verify("m/key", "answers:none.npy", items[600:]),
            lambda: sslguard.load_encoder("m/encoder"),
            lambda: sslguard.verify("m/key", clean, items[600:], factory="os:getcwd"),
        ):
            with pytest.raises(UsageError, match=r"runs only where you name it yourself: add --factory ownnets:make"):
                ask()
        assert "ownnets" not in sys.modules
        named = sslguard.load_encoder("m/encoder", factory="ownnets:make")
        assert sslguard.verify("m/key", named, items[600:], factory="ownnets:make").decision == "derived"

    @pytest.mark.parametrize("name", ["os.system", "os:", "no_such_module_at_all:make", "os:no_such_function", "a b:c"])
    def test_what_is_no_factory(self, name: str) -> None:
        with pytest.raises(UsageError, match=r"factory|cannot be imported"):
            own.confirm(name)

    def test_what_cannot_be_followed_says_so(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"torch\.export cannot follow it.*factory="):
            sslguard.watermark(make_branches(), pictures(20), scheme="exact", out=tmp_path / "m")


class TestRefused:
    @pytest.mark.parametrize(
        ("module", "words"),
        [
            (Net(), "training mode"),
            (nn.Conv2d(3, 4, 3).eval(), r"must return floats \(n, dim\)"),
            (nn.Sequential(nn.Flatten(), nn.Linear(5, 4)).eval(), "failed on a batch of shape"),
            (lambda batch: {"pooled": batch}, "failed|must return"),
            (lambda batch: (batch.flatten(1)[:, :4] > 0).numpy(), "must return floats"),
            (lambda batch: np.full((len(batch), 4), np.nan), "not finite"),
            (nn.Linear(4, 4, device="meta").eval(), "weights lie on meta"),
            (7, "or a function embed"),
        ],
    )
    def test_networks(self, module: Any, words: str) -> None:
        with pytest.raises(UsageError, match=words):
            sslguard.load_encoder(module, example=pictures(4))

    def test_width_and_items(self) -> None:
        with pytest.raises(UsageError, match="24 numbers an item, not dim=25"):
            sslguard.load_encoder(net(), example=pictures(4), dim=25)
        with pytest.raises(UsageError, match="say what it takes"):
            sslguard.load_encoder(net())
        with pytest.raises(UsageError, match="give its tokenizer"):
            sslguard.load_encoder(net(), example=["a", "b"])
        with pytest.raises(UsageError, match="for a network of your own"):
            sslguard.load_encoder("shipped:simclr", dim=3)
        by_size = sslguard.load_encoder(net(), preprocess=sslguard.ImagePreprocess(32, 32))
        assert by_size.embed(torch.zeros(2, 3, 50, 40)).shape == (2, 24)
        with pytest.raises(DataError, match=r"of shape \(3, 32, 32\), not \(3, 16, 16\)"):
            sslguard.load_encoder(net(), example=torch.randn(4, 3, 32, 32)).embed(torch.zeros(2, 3, 16, 16))

    @pytest.mark.parametrize(
        "change",
        [
            {"nodes": ['["from_file.default", ["/etc/passwd", false, 10], {}]']},
            {"nodes": ['["__class__.default", [], {}]']},
            {"nodes": ['["rand.default", [[2, 3]], {}]']},
            {"nodes": ['["relu.default", [{"n": 0}], {}]']},
            {"nodes": ['["relu.default", [{"w": 3}], {}]']},
            {"nodes": ["not JSON"]},
            {"nodes": [7]},
            {"state": {"net.__class__.x y": "parameter float32 3"}},
            {"state": {"forward": "parameter float32 3"}},
            {"state": {"a": "parameter object 3"}},
            {"state": {"a": "parameter float32 -3"}},
            {"state": {"a": "same b"}},
            {"state": {"a": "same b", "b": "same a"}},
            {"nodes": ['["relu.default", [' + "[" * 5000 + "]" * 5000 + "], {}]"]},
            {"output": {"n": 0}},
            {"output": [{"n": 0}]},
            {"state": []},
            {"more": 1},
        ],
    )
    def test_a_programs_description(self, change: dict[str, Any]) -> None:
        with pytest.raises(UsageError):
            Program({"state": {}, "nodes": [], "output": {"x": 0}} | change)

    @pytest.mark.parametrize(
        ("nodes", "words"),
        [
            (['["expand.default", [{"x": 0}, [100000, 100000, 2, 8]], {}]'], "more than"),
            (['["mm.default", [{"x": 0}, {"x": 0}], {}]'], "does not run"),
            (['["relu.default", [{"w": "none"}], {}]'], "does not run"),
        ],
    )
    def test_a_programs_run(self, nodes: list[str], words: str) -> None:
        program = Program({"state": {}, "nodes": nodes, "output": {"n": 0}})
        with pytest.raises(UsageError, match=words):
            program(torch.zeros(2, 8))
