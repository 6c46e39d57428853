"""Encoders of texts as sentence-transformers and transformers save them: the libraries' own numbers.

What is right is computed one text at a time with transformers and torch, by the formulas that sentence-transformers
documents.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from helpers.command_line import sslguard
from helpers.texts import TEXTS, WORDS, tokenizer_json
from sslguard.encoders import text as text_module
from sslguard.encoders.base import Encoder
from sslguard.encoders.folder import save_encoder
from sslguard.encoders.formats import export
from sslguard.encoders.load import load_encoder
from sslguard.encoders.text import TOKENIZER, TextPreprocess
from sslguard.errors import DataError, EncoderError, UsageError

SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    **{"max_position_embeddings": 64, "vocab_size": 40, "pad_token_id": 0},
}
GROUPED = {**SIZES, "num_key_value_heads": 1, "head_dim": 16}
T5 = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "eurobert": {**SIZES, "num_key_value_heads": 1},
    "gemma": GROUPED,
    "gemma2": GROUPED,
    "gemma3_text": {**GROUPED, "use_bidirectional_attention": True, "sliding_window": 4},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 40},
    "gpt_neox": SIZES,
    "llama": {**GROUPED, "rope_theta": 500.0},
    "mistral": {**GROUPED, "sliding_window": 4},
    "modernbert": SIZES,
    "mpnet": {**SIZES, "pad_token_id": 1},
    "mt5": T5,
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32, "pad_token_id": 1},
    "phi3": {**SIZES, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": GROUPED,
    "qwen3": GROUPED,
    "roberta": {**SIZES, "pad_token_id": 1},
    "t5": {**T5, "feed_forward_proj": "gated-gelu"},
    "umt5": T5,
}
CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}


def model_of(kind: str, **fields: Any) -> Any:
    """Return a model of transformers with random weights that are all unlike."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[kind](**(ARCHITECTURES[kind] | fields))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = (
            getattr(transformers, CLASSES[kind])(config)
            if kind in CLASSES
            else transformers.AutoModel.from_config(config)
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def ids_of(text: str, *, special: bool = True) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_str(tokenizer_json()).encode(text, add_special_tokens=special).ids)


@torch.no_grad()
def tokens_of(model: Any, texts: Sequence[str] = TEXTS) -> list[Tensor]:
    """Return the last layer's vectors of each text's tokens, one text at a time."""
    return [model(input_ids=torch.tensor([ids_of(text)])).last_hidden_state[0] for text in texts]


def put(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def modules(folder: Path, *kinds: str, first: str = "Transformer", **general: Any) -> list[Path]:
    """Write modules.json; return the folders of the modules behind the first."""
    paths = [f"{k}_{kind}" for k, kind in enumerate(kinds, 1)]
    listed = zip(["", *paths], [first, *kinds], strict=True)
    put(
        folder / "modules.json",
        [
            {"idx": k, "name": str(k), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for k, (path, kind) in enumerate(listed)
        ],
    )
    put(folder / "config_sentence_transformers.json", {"similarity_fn_name": "dot", **general})
    for path in paths:
        (folder / path).mkdir(exist_ok=True)
    return [folder / path for path in paths]


def dense(folder: Path, width: int, out: int, function: str, *, bias: bool = True, pickle: bool = False) -> nn.Linear:
    """Write a Dense layer and return it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(out)
        layer = nn.Linear(width, out, bias)
    tensors = {f"linear.{name}": tensor.detach().clone() for name, tensor in layer.state_dict().items()}
    if pickle:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    put(
        folder / "config.json",
        {"in_features": width, "out_features": out, "bias": bias, "activation_function": function},
    )
    return layer


def close(encoder: Encoder, rows: Sequence[Tensor], texts: Sequence[str] = TEXTS) -> None:
    """Assert the answers, all texts in one batch, up to a relative 1e-5."""
    want: NDArray[np.float32] = torch.stack(list(rows)).detach().numpy()
    got = encoder.embed(list(texts))
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    with tempfile.TemporaryDirectory() as place:  # what is written comes back the same
        form = export(encoder, Path(place) / "back")
        # Folders of transformers do not say how vectors are scaled.
        scaled = "" if form == "sentence-transformers" else "@unit" if encoder.architecture["unit"] else "@nounit"
        again = load_encoder(f"hf:{place}/back{scaled}")
        if form != "hf" or again.architecture["pooling"] == encoder.architecture["pooling"]:  # CLIP's has two
            assert np.abs(again.embed(list(texts)) - got).max() <= 1e-5 * np.abs(want).max()
        if form == "sentence-transformers":
            assert written_as_they_say(Path(place) / "back")


def written_as_they_say(folder: Path) -> bool:
    """Whether every module that modules.json lists stands where sentence-transformers looks for it."""
    listed = json.loads((folder / "modules.json").read_text())
    places = [module["path"] for module in listed]
    kinds = [module["type"].removeprefix("sentence_transformers.models.") for module in listed]
    assert places[0] == ""
    assert [f"{k}_{kind}" for k, kind in enumerate(kinds)][1:] == places[1:]
    assert all((folder / place).is_dir() for place in places)
    weights = {"Dense": "linear.weight", "LayerNorm": "norm.weight", "StaticEmbedding": "embedding.weight"}
    for kind, place in zip(kinds, places, strict=True):
        if kind in weights:
            assert weights[kind] in load_file(folder / place / "model.safetensors")
        if kind in ("Dense", "LayerNorm", "Pooling"):
            assert (folder / place / "config.json").is_file()
    return (folder / TOKENIZER).is_file() and (folder / "config_sentence_transformers.json").is_file()


def unit(row: Tensor) -> Tensor:
    return nn.functional.normalize(row, dim=0)


@pytest.fixture(scope="module")
def bert() -> Any:
    return model_of("bert")


@pytest.fixture(scope="module")
def saved(bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    bert.save_pretrained(folder)
    (folder / TOKENIZER).write_text(tokenizer_json())
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(saved, tmp_path / "model")


# --- architectures ---


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_architecture_answers_as_transformers_does(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    (tmp_path / TOKENIZER).write_text(tokenizer_json())
    pooling, _ = modules(tmp_path, "Pooling", "Normalize")
    put(pooling / "config.json", {"pooling_mode": "lasttoken"})
    # Decoders of sentence-transformers' are filled up on the left; no filler is seen from either side.
    put(tmp_path / "tokenizer_config.json", {"padding_side": "left", "model_max_length": 48})
    encoder = load_encoder(f"hf:{tmp_path}")
    close(encoder, [unit(hidden[-1]) for hidden in tokens_of(model)])
    close(load_encoder(f"hf:{tmp_path}@mean,nounit"), [hidden.mean(0) for hidden in tokens_of(model)])
    save_encoder(encoder, tmp_path / "out")
    assert np.array_equal(load_encoder(tmp_path / "out").embed(TEXTS), encoder.embed(TEXTS))
    by_transformers_alone(load_encoder(f"hf:{tmp_path}@mean,nounit"), tmp_path / "hf")


@torch.no_grad()
def by_transformers_alone(encoder: Encoder, folder: Path) -> None:
    """What is written in the format hf answers without this package as the encoder does, by the mean of the tokens."""
    import transformers

    assert export(encoder, folder, "hf") == "hf"
    model = getattr(transformers, CLASSES.get(encoder.architecture["config"]["model_type"], "AutoModel"))
    # Of Qwen2 the library takes a tokenizer of its own, whatever a folder says.
    qwen = encoder.architecture["config"]["model_type"] == "qwen2"
    loader = transformers.PreTrainedTokenizerFast if qwen else transformers.AutoTokenizer
    tokens = loader.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    hidden = model.from_pretrained(folder).eval()(**tokens).last_hidden_state
    mask = tokens["attention_mask"][:, :, None]
    found = ((hidden * mask).sum(1) / mask.sum(1).clamp(min=1)).numpy()
    got = encoder.embed(TEXTS)
    assert np.abs(found - got).max() <= 1e-5 * np.abs(got).max()


def test_a_decoder_saved_with_its_head_loses_the_head(tmp_path: Path) -> None:
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        whole = Qwen3ForCausalLM(model_of("qwen3").config).eval()
    whole.config.tie_word_embeddings = False
    whole.save_pretrained(tmp_path)
    (tmp_path / TOKENIZER).write_text(tokenizer_json())
    encoder = load_encoder(f"hf:{tmp_path}")
    close(encoder, [hidden.mean(0) for hidden in tokens_of(whole.model)])


def test_a_t5_with_its_decoder_loses_the_decoder(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        whole = T5ForConditionalGeneration(T5Config(**T5)).eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / TOKENIZER).write_text(tokenizer_json())
    encoder = load_encoder(f"hf:{tmp_path}")
    close(encoder, [hidden.mean(0) for hidden in tokens_of(whole.encoder)])
    assert any(name.startswith("decoder.") for name in encoder.record["weights_left_out"])


def clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 40, "max_position_embeddings": 32, "eos_token_id": 3, "pad_token_id": 0}
        | {"projection_dim": 24},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
        projection_dim=24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return CLIPModel(config).eval()


@torch.no_grad()
def text_features(model: Any) -> list[Tensor]:
    rows = []
    for text in TEXTS:
        answers = model.get_text_features(input_ids=torch.tensor([ids_of(text)]))
        rows.append((answers if isinstance(answers, Tensor) else answers.pooler_output)[0])
    return rows


def test_clips_text_tower_gives_text_features_alone_and_of_the_whole_model(tmp_path: Path) -> None:
    from transformers import CLIPTextModelWithProjection

    model = clip()
    wanted = text_features(model)
    model.save_pretrained(tmp_path / "whole")
    CLIPTextModelWithProjection.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "alone")
    for name in ("whole", "alone"):
        (tmp_path / name / TOKENIZER).write_text(tokenizer_json())
    close(load_encoder(f"hf:{tmp_path / 'alone'}"), wanted)
    close(load_encoder(f"hf:{tmp_path / 'whole'}@text"), wanted)
    modules(tmp_path / "whole", "Normalize", first="CLIPModel")
    close(load_encoder(f"hf:{tmp_path / 'whole'}"), [unit(row) for row in wanted])


# --- what sentence-transformers' files say ---

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda h: h[0],
    "max": lambda h: h.amax(0),
    "mean": lambda h: h.mean(0),
    "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
    "weightedmean": lambda h: (h * torch.arange(1, 1 + len(h))[:, None]).sum(0) / sum(range(1, 1 + len(h))),
    "lasttoken": lambda h: h[-1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_pooling_is_the_librarys_formula(folder: Path, bert: Any, way: str) -> None:
    (place,) = modules(folder, "Pooling")
    put(place / "config.json", {"embedding_dimension": 32, "pooling_mode": way})
    wanted = [WAYS[way](hidden) for hidden in tokens_of(bert)]
    close(load_encoder(f"hf:{folder}"), wanted)
    flag = f"pooling_mode_{way}" + ("" if way in ("lasttoken", "mean_sqrt_len_tokens") else "_tokens")
    flag = "pooling_mode_cls_token" if way == "cls" else flag
    put(place / "config.json", {"pooling_mode_mean_tokens": False, flag: True})
    close(load_encoder(f"hf:{folder}"), wanted)


def test_several_poolings_are_joined_in_the_librarys_order(folder: Path, bert: Any) -> None:
    (place,) = modules(folder, "Pooling")
    # A Pooling takes the mean unless it is told not to.
    put(place / "config.json", {"pooling_mode_lasttoken": True, "pooling_mode_max_tokens": True})
    wanted = [torch.cat([h.amax(0), h.mean(0), h[-1]]) for h in tokens_of(bert)]
    encoder = load_encoder(f"hf:{folder}")
    assert encoder.dim == 96
    close(encoder, wanted)
    for named in ("lasttoken+mean+max", ["mean", "lasttoken", "max"]):
        put(place / "config.json", {"pooling_mode": named})
        close(load_encoder(f"hf:{folder}"), wanted)


FUNCTIONS: dict[str, nn.Module] = {
    "torch.nn.modules.activation.Tanh": nn.Tanh(),
    "torch.nn.modules.linear.Identity": nn.Identity(),
    "torch.nn.modules.activation.GELU": nn.GELU(),
    "torch.nn.modules.activation.ReLU": nn.ReLU(),
    "torch.nn.modules.activation.SiLU": nn.SiLU(),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_dense_layers_and_lengths_come_in_their_order(folder: Path, bert: Any, function: str, tmp_path: Path) -> None:
    _, first, _, norm, second, _ = modules(folder, "Pooling", "Dense", "Normalize", "LayerNorm", "Dense", "Normalize")
    one = dense(first, 32, 48, function)
    two = dense(second, 48, 20, "torch.nn.modules.linear.Identity", bias=False, pickle=True)
    scale = nn.LayerNorm(48)
    nn.init.normal_(scale.weight, generator=torch.Generator().manual_seed(0))
    put(norm / "config.json", {"dimension": 48})
    save_file({f"norm.{name}": t.detach() for name, t in scale.state_dict().items()}, norm / "model.safetensors")
    rows = [unit(two(scale(unit(FUNCTIONS[function](one(h.mean(0))))))) for h in tokens_of(bert)]
    encoder = load_encoder(f"hf:{folder}")
    close(encoder, rows)
    save_encoder(encoder, tmp_path / "out")
    assert np.array_equal(load_encoder(tmp_path / "out").embed(TEXTS), encoder.embed(TEXTS))


def test_truncate_dim_keeps_the_first_numbers_and_scales_nothing_again(folder: Path, bert: Any) -> None:
    modules(folder, "Pooling", "Normalize", truncate_dim=10)
    close(load_encoder(f"hf:{folder}"), [unit(h.mean(0))[:10] for h in tokens_of(bert)])
    modules(folder, "Pooling", truncate_dim=1000)
    close(load_encoder(f"hf:{folder}"), [h.mean(0) for h in tokens_of(bert)])


PROMPT = "the cat : "


def test_a_default_prompt_stands_before_every_text(folder: Path, bert: Any, tmp_path: Path) -> None:
    modules(folder, "Pooling", prompts={"query": PROMPT, "other": "a dog"}, default_prompt_name="query")
    encoder = load_encoder(f"hf:{folder}")
    rows = [h.mean(0) for h in tokens_of(bert, [PROMPT + text for text in TEXTS])]
    close(encoder, rows)
    save_encoder(encoder, tmp_path / "out")
    close(load_encoder(tmp_path / "out"), rows)
    modules(folder, "Pooling", prompts={"query": PROMPT})
    close(load_encoder(f"hf:{folder}"), [h.mean(0) for h in tokens_of(bert)])


@pytest.mark.parametrize("way", ["mean", "max", "weightedmean", "lasttoken"])
def test_a_prompt_that_is_not_included_is_seen_and_not_pooled(folder: Path, bert: Any, way: str) -> None:
    place, _ = modules(folder, "Pooling", "Dropout", prompts={"q": PROMPT}, default_prompt_name="q")
    put(place / "config.json", {"pooling_mode": way, "include_prompt": False})
    # The prompt's tokens with what the tokenizer puts before them: [CLS] the cat [UNK].
    skipped = len(ids_of(PROMPT)) - 1
    rows = []
    for hidden in tokens_of(bert, [PROMPT + text for text in TEXTS]):
        weights = torch.arange(1, 1 + len(hidden))[skipped:, None]
        rest = hidden[skipped:]
        rows.append((rest * weights).sum(0) / weights.sum() if way == "weightedmean" else WAYS[way](rest))
    close(load_encoder(f"hf:{folder}"), rows)


@pytest.mark.parametrize("name", ["embedding.weight", "embeddings"])
def test_a_static_embedding_is_the_mean_of_its_tokens_vectors(tmp_path: Path, name: str) -> None:
    table = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    save_file({name: table}, tmp_path / "model.safetensors")
    (tmp_path / TOKENIZER).write_text(tokenizer_json())
    (place,) = modules(
        tmp_path, "Dense", first="StaticEmbedding", prompts={"q": PROMPT}, default_prompt_name="q", truncate_dim=5
    )
    layer = dense(place, 12, 8, "torch.nn.modules.activation.Tanh")
    rows = [table[ids_of(PROMPT + text, special=False)].mean(0) for text in TEXTS]
    encoder = load_encoder(f"hf:{tmp_path}")
    close(encoder, [torch.tanh(layer(row))[:5] for row in rows])
    modules(tmp_path, first="StaticEmbedding")
    plain = load_encoder(f"hf:{tmp_path}")
    # The library gives zeros for a text without tokens.
    close(plain, [table[i].mean(0) if (i := ids_of(text, special=False)) else torch.zeros(12) for text in TEXTS])
    save_encoder(plain, tmp_path / "out")
    assert np.array_equal(load_encoder(tmp_path / "out").embed(TEXTS), plain.embed(TEXTS))
    with pytest.raises(UsageError, match="leave out @cls"):
        load_encoder(f"hf:{tmp_path}@cls")


# --- weights and tokenizers in other files ---


def shards(folder: Path, *, suffix: str = "safetensors", stem: str = "model") -> dict[str, Any]:
    """Put the weights of a folder in two files and an index; return the index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for k in range(2):
        name = f"{stem}-0000{k + 1}-of-00002.{suffix}"
        part = {key: tensors[key] for key in sorted(tensors)[k::2]}
        (save_file if suffix == "safetensors" else torch.save)(part, folder / name)  # type: ignore[operator]
        places.update(dict.fromkeys(part, name))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    put(folder / f"{stem}.{suffix}.index.json", index)
    return index


def test_weights_in_other_files_are_the_same(folder: Path, saved: Path, tmp_path: Path) -> None:
    wanted = load_encoder(f"hf:{saved}").embed(TEXTS)
    shards(folder)
    assert np.array_equal(load_encoder(f"hf:{folder}").embed(TEXTS), wanted)
    pickled = shutil.copytree(saved, tmp_path / "pickled")
    torch.save(load_file(saved / "model.safetensors"), pickled / "pytorch_model.bin")
    both = shutil.copytree(pickled, tmp_path / "both")
    (pickled / "model.safetensors").unlink()
    shards(both, suffix="bin", stem="pytorch_model")
    (both / "pytorch_model.bin").unlink()
    for place in (pickled, both):
        assert np.array_equal(load_encoder(f"hf:{place}").embed(TEXTS), wanted)


def wordpieces(folder: Path, **config: Any) -> Path:
    """Replace the tokenizer by a vocab.txt."""
    (folder / TOKENIZER).unlink()
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "Dog", "naive", "猫"]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n")
    put(folder / "tokenizer_config.json", config)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
        {"strip_accents": False, "tokenize_chinese_chars": False, "model_max_length": 7},
    ],
)
def test_a_vocabulary_of_word_pieces_is_read_as_transformers_reads_it(folder: Path, config: dict[str, Any]) -> None:
    from transformers import BertTokenizer

    texts = [*TEXTS, "Dogs dogs naïve 猫猫 [SEP] a\tcat", "unbelievable Dog, dog."]
    theirs = BertTokenizer.from_pretrained(wordpieces(folder, **config), local_files_only=True)
    wanted = theirs(texts, padding=True, truncation=True, max_length=config.get("model_max_length", 64))
    prepared = load_encoder(f"hf:{folder}").prepare(texts)
    assert prepared[:, 0].tolist() == wanted["input_ids"]
    assert prepared[:, 1].tolist() == wanted["attention_mask"]


def test_a_tokenizers_configuration_may_add_an_end_and_cut_the_start(folder: Path) -> None:
    put(
        folder / "tokenizer_config.json",
        {
            **{"add_bos_token": True, "add_eos_token": True, "truncation_side": "left", "model_max_length": 4},
            **{"bos_token": "dog", "eos_token": {"content": "cat"}},
        },
    )
    ids = ids_of("cat dog a the big", special=False)
    rows = load_encoder(f"hf:{folder}").prepare(["a", "a the big"])[:, 0].tolist()
    assert rows == [[ids[1], ids[2], ids[0], 0], [ids[1], *ids[3:], ids[0]]]


# --- hostile folders ---


def written(name: str, content: object) -> Callable[[Path], None]:
    return lambda folder: put(folder / name, content)


def layered(**fields: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        _, place = modules(folder, "Pooling", "Dense")
        dense(place, 32, 8, "torch.nn.modules.activation.Tanh")
        put(place / "config.json", json.loads((place / "config.json").read_text()) | fields)

    return apply


def indexed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        index = shards(folder)
        change(index)
        put(folder / "model.safetensors.index.json", index)

    return apply


class Evil:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


def pickled(content: object, *, packed: bool = False) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        torch.save(content, path)
        if packed:
            with zipfile.ZipFile(path) as archive:
                entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, data in entries.items():
                    archive.writestr(name, data)

    return apply


def table(**tensors: Tensor) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        modules(folder, first="StaticEmbedding")
        save_file(tensors, folder / "model.safetensors")

    return apply


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "another module": (lambda f: modules(f, "Pooling", "CNN"), "names a 'CNN' in place 2"),
    "code": (
        written("modules.json", [{"type": "evil.Transformer", "path": ""}]),
        "names code of its own, which is never run: 'evil.Transformer'",
    ),
    "no pooling": (lambda f: modules(f, "Normalize"), "names no Pooling: choose one with @mean"),
    "pooling first": (lambda f: modules(f, "Pooling", first="Normalize"), "names a 'Normalize' in place 0"),
    "dense before pooling": (lambda f: modules(f, "Dense", "Pooling"), "names a 'Pooling' in place 2"),
    "function": (layered(activation_function="os.system"), "a function that is not torch's, and is never run"),
    "torch's other": (layered(activation_function="torch.nn.Module"), "must be one of CELU, ELU, GELU"),
    "dense too wide": (layered(out_features=10**9), "must be a whole number from 1 to 65536"),
    "dense of other width": (layered(in_features=64), "a dense layer takes 64 numbers, and 32 come"),
    "dense of other shape": (layered(out_features=9), "has shape (8,), not (9,)"),
    "dense of tokens": (layered(module_input_name="token_embeddings"), "only layers behind a pooling are known"),
    "dense without bias": (layered(bias=False), "must hold linear.weight, not linear.bias, linear.weight"),
    "cut": (lambda f: modules(f, "Pooling", truncate_dim=0), "truncate_dim must be a whole number above 0"),
    "prompt": (lambda f: modules(f, "Pooling", default_prompt_name="q"), "the default prompt 'q' is not a text"),
    "prompt of another kind": (
        lambda f: modules(f, "Pooling", prompts={"q": 3}, default_prompt_name="q"),
        "the default prompt 'q' is not a text",
    ),
    "long prompt": (
        lambda f: modules(f, "Pooling", prompts={"q": "a" * 20_000}, default_prompt_name="q"),
        "prompt must be a text of 16384 characters",
    ),
    "another task": (
        written("sentence_bert_config.json", {"transformer_task": "fill-mask"}),
        "is made for 'fill-mask', and gives no vectors of tokens",
    ),
    "outside": (
        indexed(lambda i: i["weight_map"].update(x="../model.safetensors")),
        "names a file outside its own folder: '../model.safetensors'",
    ),
    "shard missing": (indexed(lambda i: i["weight_map"].update(x="model-9.safetensors")), "which is not there"),
    "no map": (indexed(lambda i: i.pop("weight_map")), "must hold a weight_map"),
    "pickle with code": (pickled({"a": Evil()}), "holds more than tensors"),
    "pickle without tensors": (pickled({"a": 3}), "no plain tensor"),
    "packed pickle": (pickled({"a": torch.zeros(1 << 20)}, packed=True), "is packed, as torch.save never writes it"),
    "vocabulary of others": (
        lambda f: wordpieces(f, tokenizer_class="BertweetTokenizer"),
        "a vocab.txt of 'BertweetTokenizer', which is not read",
    ),
    "vocabulary without its unknown": (
        lambda f: (wordpieces(f) / "vocab.txt").write_text("[CLS]\n[SEP]\na\n"),
        "lacks the unk_token '[UNK]'",
    ),
    "two tables": (table(embeddings=torch.zeros(40, 4), mapping=torch.zeros(40)), "must hold one table of vectors"),
    "no table": (table(embeddings=torch.zeros(40)), "must hold one table of vectors"),
    "small table": (table(embeddings=torch.zeros(5, 4)), "does not embed inputs"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_folder_is_refused_in_one_sentence(
    folder: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    change, message = HOSTILE[case]
    change(folder)
    with pytest.raises(EncoderError) as caught:
        load_encoder(f"hf:{folder}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "ran" not in capfd.readouterr().out.split()


DESCRIBED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "layers": ({"layers": "dense"}, {}),
    "many layers": ({"layers": [{"kind": "unit"}] * 17}, {}),
    "another layer": ({"layers": [{"kind": "conv"}]}, {}),
    "cut": ({"truncate": 0}, {}),
    "pooling twice": ({"pooling": "mean+mean"}, {}),
    "pooling of CLIP": ({"pooling": "projection"}, {}),
    "prompt": ({}, {"prompt": 3}),
    "special": ({}, {"special": "no"}),
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_a_changed_description_is_refused(saved: Path, tmp_path: Path, case: str) -> None:
    save_encoder(load_encoder(f"hf:{saved}"), tmp_path / "out")
    path = tmp_path / "out" / "encoder.json"
    content = json.loads(path.read_text())
    for name, fields in zip(("architecture", "preprocess"), DESCRIBED[case], strict=True):
        content[name].update(fields)
    path.write_text(json.dumps(content))
    with pytest.raises(EncoderError):
        load_encoder(tmp_path / "out")


def faulty(kind: str) -> str:
    """Return a tokenizer that faults as it runs."""
    content = json.loads(tokenizer_json())
    if kind == "no unknown token":
        content["model"]["unk_token"] = "nope"
    else:
        content["normalizer"] = {"type": "Replace", "pattern": {"Regex": "((a+)+)+$"}, "content": "x"}
    return json.dumps(content)


@pytest.mark.parametrize("kind", ["no unknown token", "a pattern without end"])
def test_a_tokenizer_that_faults_ends_in_one_sentence_and_json(folder: Path, tmp_path: Path, kind: str) -> None:
    (folder / TOKENIZER).write_text(faulty(kind))
    (tmp_path / "texts.txt").write_text("a" * 2000 + "!\n" + "b c a\n" * 5)
    ran = sslguard(
        "embed", f"hf:{folder}", "--data", f"text:{tmp_path / 'texts.txt'}", "--out", tmp_path / "a.npy", "--json"
    )
    assert ran.code in (2, 3)
    assert "error" in json.loads(ran.out.strip().splitlines()[-1])


def test_a_pattern_that_takes_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def encode_batch_fast(self, *_: object, **__: object) -> None:
            time.sleep(2)

    preprocess = TextPreprocess(tokenizer_json(), 8)
    preprocess.__dict__["_tokenizer"] = Slow()
    monkeypatch.setattr(text_module, "_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"a text cannot be encoded: a pattern of the tokenizer .* within 0\.05 s"):
        preprocess.prepare(["a"])
