"""Encoders of strangers: descriptions with impossible numbers, tokenizers that grow, archives that unpack to more."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from helpers.texts import tokenizer_json
from sslguard.encoders.files import read_state_dict
from sslguard.encoders.folder import load_folder
from sslguard.encoders.rebuild import preprocess_from_json
from sslguard.encoders.text import TextPreprocess, parse_tokenizer
from sslguard.errors import EncoderError, SslguardError, UsageError
from sslguard.suspects.memory import limited_memory

WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    0.5,
    1e308,
    2**31,
    2**63,
    2**64,
    10**400,
    "1",
    "x" * 1000,
    [],
    [1],
    {},
    {"a": 1},
)


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let each test take 2 GiB: what tries more fails here, and does not end the machine."""
    with limited_memory(1 << 31):
        yield


def shown(value: Any) -> str:
    return f"{value!r:.12}"


def written(folder: Path, **fields: Any) -> Path:
    """Write an encoder's folder with some fields of its description replaced."""
    description = {
        **{"format": "sslguard-encoder", "version": 1, "architecture": {"backbone": "plain-small"}, "dim": 96},
        "preprocess": {
            "kind": "image",
            "height": 16,
            "width": 16,
            "channels": 1,
            "mean": [0.5],
            "std": [0.5],
            "crop": None,
        },
        **{"source": "", "record": {}, "dtype": "float32", **fields},
    }
    (folder / "encoder.json").write_text(json.dumps(description))
    save_file({"x": np.zeros(1, np.float32)}, folder / "weights.safetensors")
    return folder


class TestDescriptions:
    @pytest.mark.parametrize(
        "field", ["format", "version", "architecture", "dim", "preprocess", "source", "record", "dtype"]
    )
    def test_fields(self, field: str, tmp_path: Path) -> None:
        for value in WRONG:
            with pytest.raises(EncoderError) as caught:
                load_folder(written(tmp_path, **{field: value}))
            assert len(str(caught.value)) < 1000, value

    @pytest.mark.parametrize(
        "backbone", ["plain-small", "vit-small", "timm:test_vit", "torchvision:resnet18", "static"]
    )
    @pytest.mark.parametrize(
        "field", ["backbone", "channels", "linear", "head", "config", "stem", "size", "classes", "width"]
    )
    @pytest.mark.heavy
    def test_architectures(self, backbone: str, field: str, tmp_path: Path) -> None:
        for value in WRONG[::3]:
            with pytest.raises(SslguardError):
                load_folder(written(tmp_path, architecture={"backbone": backbone, field: value}))

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "timm:",
                "timm:vit_7b_patch16_dinov3",
                "timm:no_such",
                "timm:../x",
                "timm:hf-hub:a/b",
                "timm:local-dir:/etc",
            ),
            *(
                "torchvision:",
                "torchvision:vit_h_14",
                "torchvision:__init__",
                "torchvision:os",
                "hf",
                "hf-vision",
                "own",
            ),
            *(
                "random:plain-small",
                "shipped:simclr",
                "python:os:system",
                "__class__",
                "\0",
                "a" * 5000,
                "timm:" + "a" * 5000,
            ),
        ],
        ids=shown,
    )
    @pytest.mark.heavy
    def test_networks_by_name(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(SslguardError) as caught:
            load_folder(written(tmp_path, architecture={"backbone": name}))
        assert len(str(caught.value)) < 2000

    @pytest.mark.parametrize(
        "field", ["height", "width", "channels", "mean", "std", "crop", "resample", "stretch", "kind"]
    )
    def test_preprocessing(self, field: str) -> None:
        good = {"kind": "image", "height": 16, "width": 16, "channels": 1, "mean": [0.5], "std": [0.5], "crop": None}
        allowed = {"crop": (None, 0.5), "stretch": ()}
        for value in (*WRONG, [float("nan")], [float("inf")], [0.0], [[1.0]], ["x"]):
            if value in allowed.get(field, ()) or (field in ("mean", "std") and value == [1]):
                continue
            if field == "stretch" and isinstance(value, bool):
                continue
            if field == "mean" and value == [0.0]:
                continue
            with pytest.raises(UsageError):
                preprocess_from_json({**good, field: value})

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"[]",
            b"null",
            b"NaN",
            b"[" * 100_000,
            b'{"format": ' + b"9" * 5000 + b"}",
            b"\xff\xfe",
            b"{}" * 2,
        ],
        ids=shown,
    )
    def test_no_description(self, content: bytes, tmp_path: Path) -> None:
        written(tmp_path)
        (tmp_path / "encoder.json").write_bytes(content)
        with pytest.raises(EncoderError):
            load_folder(tmp_path)


def replaces(content: str, **pattern: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": list(steps)}


GROWING = {
    "one long": replaces("x" * 2000, String="a"),
    "a megabyte": replaces("x" * 1_000_000, String="a"),
    "doubled": sequence(*[replaces("aa", String="a")] * 40),
    "tripled within": sequence(*[sequence(*[replaces("aaa", String="a")] * 4)] * 2),
    "nothing replaced": replaces("x" * 2000, Regex=""),
    "everything replaced": sequence(*[replaces("xxx", Regex=".")] * 6),
    "nothing as text": sequence(*[replaces("xxx", String="")] * 6),
    "put before": {"type": "Prepend", "prepend": "x" * 2000},
    "put before in turn": sequence(*[{"type": "Prepend", "prepend": "xxx"}] * 6),
}
USUAL = {
    "spaces": replaces("▁", String=" "),
    "many spaces": sequence(replaces(" ", Regex="\\s+"), replaces("▁", Regex=" {2,}"), {"type": "Lowercase"}),
    "Llama": sequence({"type": "Prepend", "prepend": "▁"}, replaces("▁", String=" ")),
    "shortened": sequence(*[replaces("a", String="aa")] * 40),
    "quotes": sequence(*[replaces('"', String=quote) for quote in ("``", "''", "“", "”")], {"type": "NFKD"}),
}


class TestTokenizers:
    @staticmethod
    def having(**parts: Any) -> str:
        return json.dumps({**json.loads(tokenizer_json()), **parts})

    @pytest.mark.parametrize("normalizer", GROWING.values(), ids=GROWING.keys())
    @pytest.mark.parametrize("part", ["normalizer", "decoder"])
    def test_that_make_texts_long(self, normalizer: dict[str, Any], part: str) -> None:
        if part == "decoder":
            if "Prepend" in json.dumps(normalizer):
                return  # no decoder does that
            normalizer = json.loads(json.dumps(normalizer).replace("normalizers", "decoders"))
        with pytest.raises(UsageError, match="times longer, and at most 1024 are allowed"):
            parse_tokenizer(self.having(**{part: normalizer}))

    @pytest.mark.parametrize("normalizer", USUAL.values(), ids=USUAL.keys())
    def test_that_people_use(self, normalizer: dict[str, Any]) -> None:
        assert TextPreprocess(self.having(normalizer=normalizer), 12, 0).prepare(["a  dog"]).shape[0] == 1

    def test_spelt_otherwise(self) -> None:
        content = self.having(normalizer=GROWING["doubled"]).replace("Replace", "Rep\\u006cace")
        with pytest.raises(UsageError, match="times longer"):
            parse_tokenizer(content)

    @pytest.mark.parametrize(
        "parts",
        [
            {"normalizer": {"type": "None"}},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
            {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////////"}},
            {"normalizer": replaces("x", Regex="(((")},
            {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False}},
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}},
            {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
            {"model": {"type": "BPE", "vocab": {"a": 2**40}, "merges": []}},
            {"model": {"type": "Unigram", "vocab": [], "unk_id": 7}},
            {"model": {"type": "WordPiece", "vocab": {}, "unk_token": 1, "max_input_chars_per_word": -1}},
            {"model": {"type": "none"}},
            {"model": None},
            {"post_processor": {"type": "TemplateProcessing", "single": "$A", "pair": [], "special_tokens": []}},
            {"post_processor": {"type": "BertProcessing", "sep": ["a", -1], "cls": ["b", 1]}},
            {"added_tokens": [{"id": -1}]},
            {"added_tokens": "x"},
            {"truncation": {"max_length": -1, "strategy": "LongestFirst", "stride": 0}},
            {"version": "99.0"},
            {"version": None},
        ],
        ids=lambda parts: shown(json.dumps(parts)[-40:]),
    )
    def test_that_are_none(self, parts: dict[str, Any]) -> None:
        with pytest.raises(SslguardError) as caught:
            TextPreprocess(self.having(**parts), 12, 0).prepare(["a dog"])
        assert len(str(caught.value)) < 600

    @pytest.mark.parametrize("field", ["max_length", "pad_id", "prompt", "pool_prompt", "special", "strip"])
    def test_numbers_of_a_preprocessing(self, field: str) -> None:
        preprocess = TextPreprocess(tokenizer_json(), 12, 0)
        good = preprocess.to_json()
        flags = ("pool_prompt", "special", "strip")
        for value in WRONG:
            if (field == "pad_id" and value == 0 and value is not False) or (field in flags and value is True):
                continue
            if field == "prompt" and isinstance(value, str):
                continue
            with pytest.raises(SslguardError):
                preprocess_from_json({**good, field: value}, preprocess.files())


class TestArchives:
    def test_packed_weights(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"a": torch.zeros(1 << 20, 2)}}, tmp_path / "plain.pth")
        with (
            zipfile.ZipFile(tmp_path / "plain.pth") as plain,
            zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
        assert read_state_dict(tmp_path / "plain.pth").tensors.keys() == {"a"}
        with pytest.raises(EncoderError, match=r"unpacks to 8,38.* packs nothing"):
            read_state_dict(tmp_path / "bomb.pth")

    def test_tensors_larger_than_their_storage(self, tmp_path: Path) -> None:
        torch.save({"a": torch.zeros(1).expand(1 << 40, 1), "b": torch.ones(2, 2)}, tmp_path / "x.pth")
        assert read_state_dict(tmp_path / "x.pth").tensors.keys() == {"b"}

    @pytest.mark.parametrize("ending", ["pth", "safetensors"])
    @pytest.mark.parametrize(
        "content",
        [
            *(
                b"",
                b"x" * 100,
                b"PK\x03\x04" + bytes(100),
                b"PK\x05\x06" + bytes(18),
                b"\x80\x02}q\x00.",
                b"\x80\x04N.",
            ),
            *(
                b"\xff" * 8 + b"{}",
                b"\x02" + bytes(7) + b"{}",
                b"\x08" + bytes(7) + b'{"a":1} ',
                b"\x80\x04cos\nsystem\n.",
            ),
            *(
                b"\x80\x02" + b"(" * 100_000,
                b"\x80\x04\x8e" + b"\xff" * 8,
                b"\x80\x04\x8b\xff\xff\xff\x7f",
                b"\x80\x02]" * 5000,
            ),
        ],
        ids=shown,
    )
    def test_no_weights(self, ending: str, content: bytes, tmp_path: Path) -> None:
        (tmp_path / f"x.{ending}").write_bytes(content)
        with pytest.raises(EncoderError) as caught:
            read_state_dict(tmp_path / f"x.{ending}")
        assert len(str(caught.value)) < 600
