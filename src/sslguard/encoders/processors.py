"""Image processors of the transformers library: from the JSON that describes one to our preprocessing.

The file is preprocessor_config.json, or the part `image_processor` of processor_config.json. What it asks for is done
in the same way or refused, and never left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.pretrained import read_json
from sslguard.errors import EncoderError, UsageError

# What is meant where a file leaves a field out, and whether one number is a square.
_HALF, _CLIP = ((0.5,) * 3,) * 2, ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PROCESSORS: dict[str, dict[str, Any]] = {
    "Bit": {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3, "like": _CLIP},
    "CLIP": {"size": {"shortest_edge": 224}, "crop_size": 224, "do_center_crop": True, "resample": 3, "like": _CLIP},
    "ConvNext": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256, "resample": 3, "like": _HALF},
    "DINOv3ViT": {"size": 224, "resample": 2, "like": _IMAGENET, "square": True},
    "DeiT": {
        **{"size": 256, "crop_size": 224, "do_center_crop": True, "resample": 3, "like": _HALF, "square": True},
    },
    "Siglip": {"size": {"height": 224, "width": 224}, "resample": 3, "like": _HALF},
    "ViT": {"size": 224, "resample": 2, "like": _HALF, "square": True},
}
_MAX_NUMBER = 1e9
_RESAMPLES = {2: "bilinear", 3: "bicubic"}
_READ = {
    *("size", "crop_size", "crop_pct", "resample", "image_mean", "image_std", "rescale_factor", "do_resize"),
    *("do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb", "image_processor_type"),
    *("feature_extractor_type",),
}
# These say nothing of the picture: who wrote the file, where labels go, how answers are returned.
_SAYS_NOTHING = {
    *("data_format", "default_to_square", "device", "disable_grouping", "do_reduce_labels", "input_data_format"),
    *("processor_class", "return_tensors", "transformers_version"),
}


def read_processor(folder: Path, config: dict[str, Any], usual: str) -> ImagePreprocess:
    """Return what a folder's image processor does.

    Args:
        folder: the folder.
        config: the model's fields, of `vision.checked_config`: its channels, and its size where nothing is resized.
        usual: name of the processor where the file states none.

    Raises:
        EncoderError: there is no such file, or it asks for what cannot be done here in the same way.
    """
    path = folder / "preprocessor_config.json"
    fields = read_json(path)
    if fields is None:
        path = folder / "processor_config.json"
        fields = (read_json(path) or {}).get("image_processor")
    if not isinstance(fields, dict):
        raise EncoderError(
            f"{folder} holds no preprocessor_config.json: write it with "
            f"AutoImageProcessor.from_pretrained(...).save_pretrained(...)"
        )
    try:
        return processed(fields, config, usual)
    except UsageError as error:
        raise EncoderError(f"{path}: {error}") from error


def processed(fields: dict[str, Any], config: dict[str, Any], usual: str) -> ImagePreprocess:
    """Return the preprocessing that an image processor's configuration describes.

    Args:
        fields: the content of preprocessor_config.json.
        config: as for `read_processor`.
        usual: as for `read_processor`.

    Raises:
        UsageError: it asks for what cannot be done here, or a field is of the wrong type.
    """
    if fields.get("auto_map"):
        raise UsageError("it names code of its own, which is never run (auto_map): save the processor without it")
    said = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    name = usual if said is None else str(said)
    for end in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        name = name.removesuffix(end)
    if name not in _PROCESSORS:
        known = ", ".join(f"{one}ImageProcessor" for one in _PROCESSORS)
        raise UsageError(f"it is of a {said!r:.80}, and only {known} are known")
    for field, value in fields.items():
        if field not in _READ | _SAYS_NOTHING and not field.startswith("_") and value not in (None, False):
            raise UsageError(f"{field} {value!r:.80} cannot be followed here")
    defaults = _PROCESSORS[name]
    given = {**defaults, **{field: value for field, value in fields.items() if value is not None}}
    channels = config.get("num_channels", 3)
    if channels not in (1, 3):
        raise UsageError(f"the model takes {channels!r:.80} channels, and images have 1 or 3")
    resized = _resized(name, given, config)
    mean, std = _scale(given, channels, defaults["like"])
    return ImagePreprocess(channels=channels, mean=mean, std=std, **resized)


def described(preprocess: ImagePreprocess) -> dict[str, Any]:
    """Return the content of a preprocessor_config.json that describes a preprocessing: the way of `processed` back.

    Raises:
        UsageError: No image processor of transformers does the same.
    """
    resize, _, rounds = preprocess.resample.partition("-")
    across = [round(side / (preprocess.crop or 1)) for side in (preprocess.height, preprocess.width)]
    named: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor" if rounds or resize == "none" else "DINOv3ViTImageProcessor",
        "do_resize": resize != "none",
        "size": {"height": across[0], "width": across[1]},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
    if resize != "none":
        named["resample"] = next(number for number, name in _RESAMPLES.items() if name == resize)
    if preprocess.crop is not None:
        named |= {"do_center_crop": True, "crop_size": {"height": preprocess.height, "width": preprocess.width}}
        named["image_processor_type"] = "DeiTImageProcessor" if preprocess.stretch else "CLIPImageProcessor"
        named |= {} if preprocess.stretch else {"size": {"shortest_edge": min(across)}}
    sizes = {"num_channels": preprocess.channels, "image_size": tuple(across)}
    try:
        again = processed(named, sizes, "ViT")
    except UsageError:
        again = None
    if again is None or not _alike(again, preprocess):
        raise UsageError(
            f"no image processor of transformers resizes and cuts as this one: {preprocess.to_json()}; choose the "
            "format onnx or torch-export"
        )
    return named


def _alike(one: ImagePreprocess, other: ImagePreprocess) -> bool:
    """Return whether two do the same, but for rounding."""
    same = all(getattr(one, name) == getattr(other, name) for name in ("height", "width", "channels", "resample"))
    flat = [[*each.mean, *each.std, each.crop or 1, each.crop is not None and each.stretch] for each in (one, other)]
    return same and all(abs(a - b) <= 1e-6 for a, b in zip(*flat, strict=True))


def _resized(name: str, given: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return height, width, crop, resample and stretch of the preprocessing."""
    crops = _flag(given, "do_center_crop", usual=False)
    if not _flag(given, "do_resize", usual=True):
        if crops or "image_size" not in config:
            raise UsageError("it does not resize images, and what it does instead cannot be followed here")
        height, width = pair(config["image_size"])
        return {"height": _side(height), "width": _side(width), "resample": "none"}
    resample = given["resample"]
    if not isinstance(resample, int) or isinstance(resample, bool) or resample not in _RESAMPLES:
        raise UsageError(f"resample must be 2 (bilinear) or 3 (bicubic), not {resample!r:.80}")
    how = {"resample": _RESAMPLES[resample] + ("" if name == "DINOv3ViT" else "-bytes")}
    size = _sides(given["size"], square=given.get("square", False))
    if name == "ConvNext":
        if crops or not isinstance(size, int):
            raise UsageError(
                f"size of a ConvNextImageProcessor must be a shortest_edge alone, not {given['size']!r:.80}"
            )
        if size >= 384:
            return {"height": size, "width": size, **how}
        share = given["crop_pct"]
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0.05 <= share <= 1:
            raise UsageError(f"crop_pct must lie in 0.05 to 1, not {share!r:.80}")
        return {"height": size, "width": size, "crop": size / int(size / share), **how}
    cut = _sides(given.get("crop_size"), square=True) if crops else None
    if isinstance(size, int):
        if cut is None or isinstance(cut, int) or cut[0] != cut[1] or cut[0] > size or name == "DINOv3ViT":
            raise UsageError(
                f"it scales the shorter side to {size} pixels and cuts {given.get('crop_size') if crops else 'none'}: "
                "only a square cut inside that is known"
            )
        return {"height": cut[0], "width": cut[1], "crop": cut[0] / size, **how}
    if cut is None or cut == size:
        return {"height": size[0], "width": size[1], **how}
    if isinstance(cut, int) or cut[0] > size[0] or cut[0] * size[1] != cut[1] * size[0]:
        raise UsageError(f"crop_size {given['crop_size']!r:.80} must have the shape of size {given['size']!r:.80}")
    return {"height": cut[0], "width": cut[1], "crop": cut[0] / size[0], "stretch": True, **how}


def _scale(given: dict[str, Any], channels: int, like: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation for inputs in [0, 1]: a processor's are for inputs that it scaled itself."""
    factor = 255.0
    if _flag(given, "do_rescale", usual=True):
        factor *= _number(given.get("rescale_factor", 1 / 255), "rescale_factor")
    if factor <= 0:
        raise UsageError(f"rescale_factor must be above 0, not {given.get('rescale_factor')!r:.80}")
    mean: Any = [0.0] * channels
    std: Any = [1.0] * channels
    if _flag(given, "do_normalize", usual=True):
        mean, std = given.get("image_mean", like[0]), given.get("image_std", like[1])
    values = [v if isinstance(v, list | tuple) else [v] * channels for v in (mean, std)]
    if any(len(v) != channels for v in values):
        raise UsageError(f"image_mean and image_std must have {channels} values each, not {mean!r:.80} and {std!r:.80}")
    shift, spread = (tuple(_number(one, "image_mean and image_std") / factor for one in v) for v in values)
    return shift, spread


def pair(size: Any) -> tuple[int, int]:
    """Return height and width of a size that one number or two give."""
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def _sides(size: Any, *, square: bool) -> int | tuple[int, int]:
    """Return the shorter side alone, or height and width."""
    if isinstance(size, dict):
        stated = {key: value for key, value in size.items() if value is not None}
        if stated.keys() == {"height", "width"}:
            return _side(stated["height"]), _side(stated["width"])
        if stated.keys() == {"shortest_edge"}:
            return _side(stated["shortest_edge"])
    elif isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        return _side(size[0]), _side(size[1])
    elif isinstance(size, int) and square:
        return _side(size), _side(size)
    elif isinstance(size, int):
        return _side(size)
    raise UsageError(f"a size must be height and width, or shortest_edge, or one number, not {size!r:.80}")


def _side(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 4096:
        raise UsageError(f"a size must lie in 1 to 4096 pixels, not {value!r:.80}")
    return value


def _flag(given: dict[str, Any], name: str, *, usual: bool) -> bool:
    value = given.get(name, usual)
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, not {value!r:.80}")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _MAX_NUMBER:
        raise UsageError(f"{name} must be numbers, not {value!r:.80}")
    return float(value)
