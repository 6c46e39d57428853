"""Model cards: what stands in README.md beside an encoder, for who gets it and for the Hugging Face hub.

A card says what the encoder is, what it takes, and how to load it. It says nothing of a key or a mark until the owner
asks for it: by `export --tell`, or by `commit --card`, which names the published commitment.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from sslguard.encoders.base import Encoder
from sslguard.encoders.heads import Headed
from sslguard.encoders.names import HEAD
from sslguard.encoders.own import Items
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.text import TextModule
from sslguard.encoders.vision import VisionModule
from sslguard.errors import UsageError
from sslguard.files import read_plain, write_atomic

CARD = "README.md"
MAX_CARD = 1 << 20  # bytes
_COMMITMENT = "## Commitment"
_TOLD = "This encoder is watermarked: a copy of it, or a model that was trained on its answers, can be told."


def write_card(
    encoder: Encoder, folder: Path, form: str | None, base_model: str | None = None, *, tell: bool = False
) -> None:
    """Write the model card of an encoder into a folder that is there; see `card`."""
    (folder / CARD).write_text(card(encoder, form, base_model, tell=tell), "utf-8")


def card(encoder: Encoder, form: str | None, base_model: str | None = None, *, tell: bool = False) -> str:
    """Return a model card, Markdown with the fields of the Hugging Face hub. The licence is the owner's to add.

    Args:
        encoder: The encoder, marked or not.
        form: Format of the files beside the card, one of `formats.FORMATS`; None for this package's own alone.
        base_model: What the card names as its base; what the encoder came from unless given.
        tell: Whether the card says that the encoder is watermarked.
    """
    base, headed = parts(encoder)
    texts, own = not isinstance(encoder.preprocess, ImagePreprocess), isinstance(encoder.preprocess, Items)
    came = str(encoder.record.get("base", encoder.source))
    # Of a network of this package's own the source names the data that it learned from, not a model.
    name = base_model or (None if form is None else base_name(came))
    library = {"hf": "transformers", "sentence-transformers": form, "timm": form}.get(form or "", "pytorch")
    task = "image-feature-extraction" if not texts else "feature-extraction"
    task = "sentence-similarity" if library == "sentence-transformers" else task
    what = "" if own else " of texts" if texts else " of images"
    each = "item" if own else "text" if texts else "image"
    lines = ["---", *([f"base_model: {name}"] if name else []), f"library_name: {library}", f"pipeline_tag: {task}"]
    lines += ["# license: yours to fill in", "---", "", f"# {(name or 'Encoder').rpartition('/')[2]}", ""]
    made = f" It was made from {name}." if name else ""
    lines += [f"An encoder{what}: it turns each {each} into an embedding of {encoder.dim} numbers.{made}", ""]
    lines += ["## How to load it", "", "```python", *_usage(base, form, headed is not None), "```", ""]
    lines += ["## What it takes", "", _takes(encoder), ""]
    limits = f" The licence of {name} may limit the choice." if name else ""
    lines += ["## Licence", "", f"To be filled in by the owner.{limits}", ""]
    return "\n".join([*lines, *([_TOLD, ""] if tell else [])])


def name_commitment(place: Path, digest: str) -> None:
    """Name a published commitment in a model card, in a section at its end; one that is there is replaced.

    Args:
        place: The card, or the folder that it lies in.
        digest: SHA-256 of the commitment's file, hex.

    Raises:
        UsageError: There is no card.
        OutputError: It cannot be written.
    """
    path = place / CARD if place.is_dir() else place
    text = _read(path)
    words = "The owner published a commitment to the key that tells it. The SHA-256 of its file is"
    section = [_COMMITMENT, "", _TOLD, words, "", f"`{digest}`", ""]
    kept = re.sub(rf"^{_COMMITMENT}$.*?(?=^#|\Z)", "", text, flags=re.MULTILINE | re.DOTALL).replace(f"{_TOLD}\n", "")
    write_atomic(path, (kept.rstrip("\n") + "\n\n" + "\n".join(section)).encode())


def check_card(place: Path) -> None:
    """Raise UsageError where `name_commitment` would find no card."""
    _read(place / CARD if place.is_dir() else place)


def _read(path: Path) -> str:
    try:
        return read_plain(path, MAX_CARD, UsageError, links=False).decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no model card: it is not UTF-8") from None


def _takes(encoder: Encoder) -> str:
    """Return in words what an encoder does with an item before its network."""
    preprocess = encoder.preprocess
    if not isinstance(preprocess, ImagePreprocess):
        length = getattr(preprocess, "max_length", None)
        if isinstance(preprocess, Items) or length is None:
            return "Items as its network takes them."
        tokens = "by the tokenizer in tokenizer.json" if preprocess.files() else "at their spaces"
        return f"Texts. Each is split into words or parts of words {tokens}, and cut after {length} of them."
    size = f"{preprocess.height} x {preprocess.width} pixels"
    if preprocess.resample == "none":
        first = f"Images of {size}; others are refused."
    elif preprocess.crop is None:
        first = f"Images of any size. Each is stretched to {size}."
    else:
        share = "" if preprocess.crop == 1 else f", {preprocess.crop:.3g} of the shorter side,"
        first = f"Images of any size. Each is resized, and its middle{share} is cut out, so that {size} are left."
    colours = "three colours" if preprocess.channels == 3 else "grey"
    means, deviations = (", ".join(f"{v:.4g}" for v in values) for values in (preprocess.mean, preprocess.std))
    scaled = f"from 0 to 1; then {means} is subtracted, and the rest divided by {deviations}."
    return f"{first} Pixels are in {colours}, {scaled}"


def base_name(source: str) -> str:
    """Return what a model card calls the encoder that a source names: without a path, an option or what was done to it.

    A model in the cache of the Hugging Face hub has the name that it has there.
    """
    named = source.rpartition(" ")[2].partition("@")[0]
    if (cached := re.search(r"models--([\w.-]+?)--([\w.-]+)", named)) is not None:
        return f"{cached[1]}/{cached[2]}"
    kind, _, rest = named.partition(":")
    if kind in ("timm", "torchvision") and rest:
        model, _, file = rest.partition(":")
        return Path(file).name if file not in ("", "random") else f"{kind}/{model}"
    return Path(rest or kind).name


def _usage(base: nn.Module, form: str | None, headed: bool) -> list[str]:
    """Return the lines of Python that load what was written, and embed."""
    if form is None:
        return ["import sslguard", "", 'embeddings = sslguard.load_encoder("FOLDER").embed(items)']
    if form == "sentence-transformers":
        trusted = ", trust_remote_code=True" if headed else ""  # for head.py
        return [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'embeddings = SentenceTransformer("FOLDER"{trusted}).encode(texts)',
        ]
    if form == "hf":
        assert isinstance(base, TextModule | VisionModule)
        made = {"projection": "image_embeds" if isinstance(base, VisionModule) else "text_embeds"}
        made |= {"pooler": "pooler_output.flatten(1)", "cls": "last_hidden_state[:, 0]"}
        pooled = made.get(base.pooling, f"last_hidden_state  # then pooled: {base.pooling}")
        loader = type(base.model).__name__
        before = "AutoImageProcessor" if isinstance(base, VisionModule) else "AutoTokenizer"
        filled = "" if isinstance(base, VisionModule) else "padding=True, truncation=True, "
        lines = [
            f"from transformers import {before}, {loader}",
            "",
            f'inputs = {before}.from_pretrained("FOLDER")(items, {filled}return_tensors="pt")',
            f'embeddings = {loader}.from_pretrained("FOLDER")(**inputs).{pooled}',
        ]
        if base.pooling == "mean" and isinstance(base, TextModule):
            lines[-1] = lines[-1].partition("  #")[0]
            lines.append('mask = inputs["attention_mask"][:, :, None]')
            lines.append("embeddings = (embeddings * mask).sum(1) / mask.sum(1)")
        behind = base.behind if isinstance(base, TextModule) else base
        if getattr(behind, "unit", False):
            lines.append("embeddings = torch.nn.functional.normalize(embeddings)")
        given = "*inputs.values()" if isinstance(base, VisionModule) else "inputs.input_ids, inputs.attention_mask"
    elif form == "timm":
        lines = ["import timm", "", 'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()']
        lines += ["embeddings = model(images)"]
        given = "images"
    elif form == "state-dict":
        lines = ['network.load_state_dict(torch.load("FILE"), strict=False)  # your own network', ""]
        lines += ["embeddings = network(images)"]
        given = "images"
    else:
        return ['embeddings = torch.export.load("FILE.pt2").module()(images)']
    if headed:
        lines = ["import torch", *lines]
        lines += [f'embeddings = torch.export.load("{HEAD}").module()(embeddings, {given})']
    return lines


def parts(encoder: Encoder) -> tuple[nn.Module, Headed | None]:
    """Return an encoder's network, and the network with its head where it has one."""
    headed = encoder.module if isinstance(encoder.module, Headed) else None
    base = encoder.module if headed is None else headed.encoder
    return base.eval(), headed
