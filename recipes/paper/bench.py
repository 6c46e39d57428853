"""Where a run keeps what it made, and on which machine it works.

    OUT/ORIGIN/NAME/made.json      what made the item; written last
                    encoder/       its network, where it is stored; key/ beside that of F*
                    score.json     its answers under the key
                    TASK.json      its accuracy downstream
    OUT/unfinished/                checkpoints of trainings that were killed

A result is only taken up again by a run that would make the same: by other settings it is refused, never overwritten.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from items import Item
from settings import Recipe

from sslguard.attacks.removal import Prune
from sslguard.attacks.wrapping import InputNoise, OutputNoise
from sslguard.encoders.base import Embedder, Encoder
from sslguard.encoders.folder import load_folder
from sslguard.errors import OutputError, UsageError
from sslguard.files import write_atomic
from sslguard.schemes.base import Key
from sslguard.schemes.keyfile import load_key
from sslguard.training import is_first_process, shared


@dataclass(frozen=True)
class Machine:
    """What is trained and asked on what; see `training.Loop`."""

    devices: int = 1
    accelerator: str = "cpu"
    precision: str = "32"
    progress: bool = True

    def __post_init__(self) -> None:
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise UsageError("--accelerator cuda: torch finds no such device here")

    def loop(self) -> dict[str, Any]:
        """The settings that training functions take."""
        return {"devices": self.devices, "accelerator": self.accelerator, "precision": self.precision}

    def wait(self) -> None:
        """Until all processes of the run are here."""
        shared(lambda: None, devices=self.devices, accelerator=self.accelerator)

    def place(self, encoder: Encoder) -> Encoder:
        """The encoder with its network on this process's device."""
        if self.accelerator == "mps":
            encoder.module.to("mps")
        elif self.accelerator != "cpu" and torch.cuda.is_available():
            encoder.module.to(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        return encoder


@dataclass(frozen=True)
class Run:
    """One recipe, one folder."""

    recipe: Recipe
    out: Path
    machine: Machine

    def folder(self, item: Item) -> Path:
        return self.out / item.origin / item.name

    def checkpoint(self, item: Item) -> Path:
        """The file from which a killed training goes on."""
        return self.out / "unfinished" / f"{item.origin}-{item.name}.pt"

    def stands(self, item: Item) -> bool:
        """Whether the item was trained, by these settings, or needs no training.

        Raises:
            UsageError: it was trained by others.
        """
        return not item.stored or self._read(self.folder(item) / "made.json", item.made_of()) is not None

    def keep(self, item: Item, record: dict[str, Any]) -> None:
        """Note that the item was made, once all else of it is in its folder."""
        self._write(self.folder(item) / "made.json", item.made_of(), record)
        self.checkpoint(item).unlink(missing_ok=True)

    def load(self, item: Item) -> Embedder:
        """The item, on this process's device.

        Raises:
            UsageError: it, or what it is made of, was not trained yet.
        """
        if item.parent is None or item.stored:
            return self.encoder(item)
        parent = self.encoder(item.parent)
        if item.kind == "prune":
            return Prune(**item.settings)(parent)
        wrapping = InputNoise if item.kind == "input-noise" else OutputNoise
        return wrapping(item.settings["std"], item.seed)(parent)

    def encoder(self, item: Item) -> Encoder:
        """As `load`, for F and for what is stored."""
        if not self.stands(item):
            raise UsageError(f"{item} is not made yet: run the step {item.step} first")
        if not item.stored:
            return self.machine.place(self.recipe.encoder.load())
        return self.machine.place(load_folder(self.folder(item) / "encoder"))

    def key(self, marked: Item) -> Key:
        """The key of F*."""
        if not self.stands(marked):
            raise UsageError(f"{marked} is not made yet: run the step {marked.step} first")
        return load_key(self.folder(marked) / "key")

    def result(self, path: Path, settings: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` returns, JSON values, kept in the file `path` below OUT and measured only once."""
        found = self._read(self.out / path, json.loads(json.dumps(settings)))
        if found is None:
            self.say(f"{path}")
            found = measure()
            self._write(self.out / path, settings, found)
        return found

    def known(self, path: Path) -> dict[str, Any] | None:
        """A result that was measured, None where it was not."""
        return self._read(self.out / path, None)

    def say(self, text: str) -> None:
        """One line to standard error."""
        if self.machine.progress and is_first_process():
            sys.stderr.write(f"paper: {text}\n")
            sys.stderr.flush()

    def _read(self, path: Path, settings: dict[str, Any] | None) -> dict[str, Any] | None:
        try:
            content = json.loads(path.read_bytes())
            found, result = content["settings"], content["result"]
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{path} cannot be read: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path} is damaged: delete it to make it again") from error
        if settings is not None and found != settings:
            raise UsageError(
                f"{path} was made by other settings, first {_difference(found, settings)}: choose another --out, or "
                f"delete {path.parent}"
            )
        assert isinstance(result, dict)
        return result

    def _write(self, path: Path, settings: dict[str, Any], result: dict[str, Any]) -> None:
        content = json.dumps({"settings": settings, "result": result}, indent=1, sort_keys=True, allow_nan=False)
        write_atomic(path, content.encode() + b"\n")


def _difference(found: Any, wanted: Any, where: str = "") -> str:
    """Where two JSON values differ first, and how."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            if found.get(key) != wanted.get(key):
                return _difference(found.get(key), wanted.get(key), f"{where}.{key}" if where else key)
    return f"{where} = {found!r:.60} and not {wanted!r:.60}"
