"""What this installation can do, and how to get what is missing: `doctor`."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sslguard import __version__
from sslguard.cli.options import PRINTED, Output
from sslguard.cli.output import Result, command

EXTRAS: Mapping[str, str] = {
    "text": "encoders of texts and of images in transformers' folders (hf:FOLDER)",
    "data": "texts in Parquet files",
    "onnx": "suspects in ONNX files, and writing such files",
    "serve": "`sslguard serve`",
    "demo": "`sslguard demo --api`",
    "bench": "benchmarks on a cluster, and their results as Parquet",
    "docs": "the documentation as a site, `make docs`",
    "dev": "the tests, the data set mnist-5k, and encoders named package:NAME",
}
"""What each optional part of the installation is for."""
SHOWN = ("torch", "torchvision", "timm", "numpy", "scipy")
CONTROLS = "pip install ./packages/sslguard-testbed (in a checkout of sslguard)"
LEAST_MEMORY, LEAST_DISK = 2 * 10**9, 2 * 10**9  # bytes: what the demonstration takes
_GB = 10**9
_EXTRA = re.compile(r"extra == ['\"]([\w-]+)")


def doctor(*, output: Output = PRINTED) -> Result:  # noqa: ARG001 - `main` reads it
    """Show what is installed here, what is missing, and how to get it.

    Exit code 0, or 2 where a package is missing that every command needs.

    Args:
        output: How results are printed.
    """
    wanted = _packages()
    missing = {extra: [name for name, state in found.items() if state is not None] for extra, found in wanted.items()}
    required = missing.pop("")
    versions = {"sslguard": __version__, "python": platform.python_version(), **_versions(SHOWN)}
    devices, threads, problems = _devices()
    memory, disk = free_memory(), _free_disk()
    sets = _sets()
    absent = [name for name, place in sets.items() if place is None and name != "imagenet"]
    controls = find_spec("sslguard_testbed") is not None
    fields: dict[str, Any] = {
        "versions": versions,
        "missing": required,
        "devices": devices,
        "threads": threads,
        "extras": {extra: {"installed": not names, "missing": names} for extra, names in missing.items()},
        "controls": controls,
        "free_memory": memory,
        "free_disk": disk,
        "data": {name: None if place is None else str(place) for name, place in sets.items()},
        "problems": problems,
    }
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        *(("missing", f"{name} {wanted[''][name]}: pip install --upgrade sslguard") for name in required),
        ("devices", ", ".join(devices) or "unknown, as torch cannot be imported"),
        ("threads", f"{threads['torch']} for training, of {threads['allowed']} cores that this program may use"),
        *_extra_rows(missing, controls),
        ("memory", "unknown" if memory is None else f"{memory / _GB:.1f} GB free{_little(memory, LEAST_MEMORY)}"),
        *(("disk", f"{size / _GB:.1f} GB free in {at}{_little(size, LEAST_DISK)}") for at, size in disk.items()),
        ("data here", ", ".join(name for name, place in sets.items() if place is not None) or "none"),
        *([("downloaded", f"when first named: {', '.join(absent)}")] if absent else []),
        *(("problem", problem) for problem in problems),
    ]
    return Result(fields, rows, 2 if required else 0, next=command("demo"))


def free_memory() -> int | None:
    """Return the bytes that programs can still take, within the limit of a container; None where nothing tells."""
    free = _read_meminfo()
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, taken = _number(most), _number(used)
        if limit is not None and taken is not None:
            free = limit - taken if free is None else min(free, limit - taken)
    return free


def _read_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _number(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # "max"
        return None


def _packages() -> dict[str, dict[str, str | None]]:
    """Return extra, "" for what everything needs → package → what is wrong with it, or None."""
    from packaging.requirements import Requirement

    found: dict[str, dict[str, str | None]] = {"": {}, **{extra: {} for extra in EXTRAS}}
    try:
        needs = metadata.requires("sslguard") or []
    except metadata.PackageNotFoundError:  # run from a folder that was never installed
        needs = []
    for line in needs:
        need = Requirement(line)
        match = _EXTRA.search(line)
        extra = found.setdefault(match[1] if match else "", {})
        try:
            version = metadata.version(need.name)
            fits = need.specifier.contains(version, prereleases=True)
            extra[need.name] = None if fits else f"is {version}, and {need.specifier} is needed"
        except metadata.PackageNotFoundError:
            extra[need.name] = "is not installed"
    return found


def _versions(names: tuple[str, ...]) -> dict[str, str]:
    def known() -> Iterator[tuple[str, str]]:
        for name in names:
            try:
                yield name, metadata.version(name)
            except metadata.PackageNotFoundError:
                continue

    return dict(known())


def _devices() -> tuple[list[str], dict[str, int], list[str]]:
    """Return the devices that torch sees, the numbers of threads, and what is wrong, in words."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        import torch
    except (ImportError, OSError) as error:
        return [], {"torch": 0, "allowed": cores}, [f"torch cannot be imported: {error!s:.200}"]
    devices, problems = [f"cpu ({platform.processor() or platform.machine()})"], []
    devices += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if len(devices) == 1 and Path("/proc/driver/nvidia/version").exists():
        problems.append(f"there is a GPU that torch {torch.__version__} does not use: see pytorch.org/get-started")
    return devices, {"torch": torch.get_num_threads(), "allowed": cores}, problems


def _extra_rows(missing: Mapping[str, list[str]], controls: bool) -> list[tuple[str, str]]:
    rows = [("extras here", ", ".join(extra for extra, names in missing.items() if not names) or "none")]
    for extra, names in missing.items():
        if names:
            rows.append((f"without {extra}", f"no {EXTRAS.get(extra, extra)}: pip install 'sslguard[{extra}]'"))
    if not controls:
        rows.append(("no test bed", f"--control shipped needs its own package: {CONTROLS}"))
    return rows


def _free_disk() -> dict[str, int]:
    """Return free bytes in the working folder and in the cache's, or in the nearest folder that there is."""
    from sslguard.data.places import cache_dir

    free = {}
    for place in (Path.cwd(), cache_dir()):
        there = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
        free[str(place)] = shutil.disk_usage(there).free
    return free


def _sets() -> dict[str, Path | None]:
    try:
        from sslguard.data.found import found_sets

        return found_sets()
    except ImportError:  # NumPy is missing, which is told elsewhere
        return {}


def _little(size: int, least: int) -> str:
    return f"; the demonstration takes up to {least // _GB}" if size < least else ""
