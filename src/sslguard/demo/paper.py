"""The paper's scheme in the demonstration, in a process of its own beside the rest.

Its published losses accuse innocents, so the variant without this fault is shown. Its p-value is exact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from sslguard import api
from sslguard.bench.cells import end_with_parent
from sslguard.crypto.secrets import Secret
from sslguard.demo.output import Stages
from sslguard.demo.settings import PIXELS, DemoSettings
from sslguard.demo.suspects import MARKED, STOLEN, Tested, asked, innocents
from sslguard.errors import SslguardError
from sslguard.schemes.keyfile import open_key

FILES = ("marked", "stolen")


@contextmanager
def beside(out: Path, settings: DemoSettings) -> Iterator[None]:
    """Do the paper's part in another process while the block runs. Wait for it at the end of the block.

    An error in it is not raised: `run` goes on where it stopped, and raises it.
    """
    process = get_context("spawn").Process(target=_work, args=(out, settings), daemon=True)
    process.start()
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads - 1))
    try:
        yield
        process.join()
    finally:
        torch.set_num_threads(threads)
        process.terminate()
        process.join()


def _work(out: Path, settings: DemoSettings) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    with suppress(SslguardError, KeyboardInterrupt):
        run(out, settings, progress=False)


def run(out: Path, settings: DemoSettings, *, progress: bool) -> dict[str, Any]:
    """Mark the encoder by the paper's scheme, steal it, and ask the suspects that answer in its width.

    Args:
        out: Folder of this part.
        settings: Settings of the demonstration, with a scheme of the paper.
        progress: Print each stage on standard error.

    Returns:
        What was found, JSON values, as in `run.DemoResult`.
    """
    assert settings.paper is not None
    stages = Stages(out, FILES, settings.plain(), shown=progress)
    marked, stolen, roles = out / "marked", out / "stolen", settings.roles
    secret = None if settings.seed is None else Secret.from_seed(settings.seed)

    def mark() -> None:
        if not marked.exists():
            loop: dict[str, Any] = {"secret": secret, "precision": precision()}
            api.watermark(settings.encoder, roles.mark, out=marked, scheme=settings.paper or "", **loop)

    def steal() -> None:
        if not stolen.exists():
            loop: dict[str, Any] = {"seed": settings.seed or 0, "precision": precision()}
            api.steal(str(marked / "encoder"), roles.thief, out=stolen, recipe=settings.paper_thief, **loop)

    stages.do("mark by the paper's scheme", mark)
    stages.do("steal that one", steal)
    key = open_key(marked / "key")
    tested = [
        Tested(MARKED, "what the owner publishes", True, str(marked / "encoder")),
        Tested(STOLEN, "another network, trained on the marked encoder's answers alone", True, str(stolen)),
        *innocents([one for one in settings.innocents if one.spec != PIXELS]),
    ]
    found = [stages.do(f"ask {one.name} by that key", lambda one=one: asked(key, one, settings)) for one in tested]
    return {"suspects": found, "seconds": stages.fields["seconds"]}


def precision() -> str:
    """Return what small networks are trained in here: bfloat16 halves the time where the processor has it."""
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    able: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "32"
