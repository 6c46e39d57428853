"""Follow encoders of many kinds the whole way, and write benchmarks/results/formats.json and a table.

python benchmarks/formats.py [--only vit bert] [--modes head distilled] [--steps 150] [--thief-steps 60]

Each kind is a small network of transformers with random weights, saved by the library. It is marked, loaded back by
the library alone (`equal` is the largest difference from sslguard's answers, relative to the largest answer), stolen
by a student of another architecture, and verified: F*, the surrogate, and as negatives the clean encoder and a
surrogate of it. Bits are min(256, -log2 p). A random network is no good encoder, and a surrogate of 60 steps is no
good copy: the table shows that each kind goes through every command, and not how much evidence a real theft leaves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from common import options, prepare, save

import sslguard
from sslguard.crypto.secrets import Secret
from sslguard.data.base import Data
from sslguard.data.specs import open_data
from sslguard.encoders.base import Encoder
from sslguard.encoders.formats import HEAD, export
from sslguard.encoders.heads import Headed
from sslguard.report.markdown import table
from sslguard.training.recipes import Distillation

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
VIT = {"image_size": 32, "patch_size": 8, **SMALL}
DINO = {name: value for name, value in VIT.items() if name != "intermediate_size"}
MAPS = {"image_size": 32, "hidden_sizes": [16, 16, 32, 48], "depths": [1, 1, 1, 1]}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
BOX = {"height": 32, "width": 32}
# kind → class, configuration, processor.
PICTURES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "vit": ("ViTModel", "ViTConfig", VIT, "ViT"),
    "deit": ("DeiTModel", "DeiTConfig", VIT, "DeiT"),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINO, "Bit"),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO, "Bit"),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", VIT, "DINOv3ViT"),
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {"projection_dim": 40, **VIT}, "CLIP"),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VIT, "Siglip"),
    "convnext": ("ConvNextModel", "ConvNextConfig", MAPS, "ConvNext"),
    "convnextv2": ("ConvNextV2Model", "ConvNextV2Config", MAPS, "ConvNext"),
    "resnet": ("ResNetModel", "ResNetConfig", {"embedding_size": 16, "layer_type": "basic", **MAPS}, "ConvNext"),
    "regnet": ("RegNetModel", "RegNetConfig", {"embedding_size": 16, "groups_width": 8, **MAPS}, "ConvNext"),
    "swin": ("SwinModel", "SwinConfig", SWIN, "ViT"),
    "vit mae": ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0, **VIT}, "ViT"),
    "vit msn": ("ViTMSNModel", "ViTMSNConfig", VIT, "ViT"),
}
WORDS = {**SMALL, "max_position_embeddings": 64, "vocab_size": 4000, "pad_token_id": 0}
GROUPED = {**WORDS, "num_key_value_heads": 1, "head_dim": 24}
T5 = {"d_model": 48, "d_kv": 24, "d_ff": 96, "num_layers": 2, "num_heads": 2, "vocab_size": 4000}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 4000}
TEXTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertModel", "BertConfig", WORDS),
    "roberta": ("RobertaModel", "RobertaConfig", {**WORDS, "pad_token_id": 1}),
    "mpnet": ("MPNetModel", "MPNetConfig", {**WORDS, "pad_token_id": 1}),
    "modernbert": ("ModernBertModel", "ModernBertConfig", WORDS),
    "t5": ("T5EncoderModel", "T5Config", T5),
    "gpt2": (
        "GPT2Model",
        "GPT2Config",
        {"n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 4000},
    ),
    "llama": ("LlamaModel", "LlamaConfig", GROUPED),
    "mistral": ("MistralModel", "MistralConfig", GROUPED),
    "gemma": ("GemmaModel", "GemmaConfig", GROUPED),
    "qwen3": ("Qwen3Model", "Qwen3Config", GROUPED),
}


def model_of(name: str, config: str, fields: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**fields)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def of_pictures(kind: str, folder: Path) -> str:
    name, config, fields, processor = PICTURES[kind]
    model_of(name, config, fields).save_pretrained(folder)
    edge = {"shortest_edge": 32}
    sizes: dict[str, Any] = {
        "Bit": {"size": edge, "crop_size": BOX},
        "CLIP": {"size": edge, "crop_size": BOX},
        "ConvNext": {"size": edge},
        "DeiT": {"size": BOX, "crop_size": BOX},
    }
    made = getattr(transformers, f"{processor}ImageProcessor")(**sizes.get(processor, {"size": BOX}))
    made.save_pretrained(folder)
    return f"hf:{folder}"


def of_texts(kind: str, folder: Path, words: list[str]) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    model_of(*TEXTS[kind]).save_pretrained(folder)
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[1]))
    tokens.normalizer, tokens.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokens.save(str(folder / "tokenizer.json"))
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token=words[1], pad_token=words[0], model_max_length=48
    )
    wrapped.save_pretrained(folder)
    return f"hf:{folder}@mean,nounit"


@torch.no_grad()
def by_the_library(encoder: Encoder, folder: Path, batch: Any) -> np.ndarray:
    """Return what the written files answer, loaded without sslguard but for the way of pooling."""
    network: Any = encoder.module.encoder if isinstance(encoder.module, Headed) else encoder.module
    model = type(network.model).from_pretrained(folder).eval()
    if isinstance(batch, list):
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(batch, padding=True, return_tensors="pt")
        hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][:, :, None]
        found = (hidden * mask).sum(1) / mask.sum(1)
        seen = (tokens["input_ids"], tokens["attention_mask"])
    else:
        read = transformers.AutoImageProcessor.from_pretrained(folder)
        seen = (read(images=list(batch.expand(-1, 3, -1, -1)), return_tensors="pt")["pixel_values"],)
        more = {"noise": torch.arange(16.0).expand(len(batch), -1)} if network.kind == "vit_mae" else {}
        found = network._pooled(model(pixel_values=seen[0], **more))
    if isinstance(encoder.module, Headed):
        found = torch.export.load(folder / HEAD).module()(found, *seen)
    return found.numpy()


def whole_way(spec: str, mode: str, roles: Callable[[str], Data], student: str, asked: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "out"
        settings = {"mode": mode, "steps": asked.steps, "protocol": {"n_queries": 500}}
        secret = Secret.from_seed(1)
        marked = sslguard.watermark(spec, roles("mark"), scheme="exact", settings=settings, secret=secret, out=out)
        few = roles("verify").take(range(64))
        export(marked.encoder, Path(place) / "theirs", "hf")
        ours, theirs = marked.encoder.embed(few), by_the_library(marked.encoder, Path(place) / "theirs", few)
        recipe = Distillation(architecture=student, loss="centred", steps=asked.thief_steps)
        suspects = {"F*": out / "encoder", "clean": spec}
        suspects |= {
            f"surrogate of {name}": sslguard.steal(victim, roles("thief"), recipe=recipe)
            for name, victim in suspects.items()
        }
        bits = {
            name: abs(sslguard.verify(out / "key", suspect, roles("verify")).significance.log2_pvalue)
            for name, suspect in suspects.items()
        }
    return {"equal": float(np.abs(ours - theirs).max() / np.abs(ours).max()), **bits}


def main() -> None:
    kinds = (*PICTURES, *TEXTS)
    asked = options(__doc__, only=kinds, modes=("head", "distilled"), steps=150, thief_steps=60)
    prepare()
    texts = {role: open_data(f"vader:{role}") for role in ("mark", "thief", "verify")}
    spoken = (word for text in texts["mark"].take(range(2000)) for word in str(text).lower().split())
    words = ["<pad>", "<unk>", *dict.fromkeys(w for w in spoken if w.isalpha())][:4000]
    starts = {"mark": 30_000, "thief": 38_000, "verify": 50_000}
    rows: list[dict[str, Any]] = []
    for kind in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / kind.replace(" ", "-")
            pictures = kind in PICTURES
            spec = of_pictures(kind, place) if pictures else of_texts(kind, place, words)

            def roles(role: str, pictures: bool = pictures) -> Data:
                first = starts[role]
                if pictures:
                    return open_data(f"cluttered-fashion-mnist:train[{first}:{first + 1500}]")
                return texts[role].slice(0, min(1500, len(texts[role])))

            for mode in asked.modes:
                row = whole_way(spec, mode, roles, "resnet-narrow" if pictures else "bag-of-words", asked)
                rows.append({"kind": kind, "mode": mode, **row})
                shown = {name: f"{x:.1e}" if name == "equal" else f"{x:.1f}" for name, x in row.items()}
                print(kind, mode, *shown.values(), sep="\t", flush=True)
    save("formats", {"rows": rows, "steps": asked.steps, "thief_steps": asked.thief_steps})
    heads = list(rows[0])
    print(table(heads, [[f"{x:.2g}" if isinstance(x, float) else x for x in row.values()] for row in rows]))


if __name__ == "__main__":
    main()
