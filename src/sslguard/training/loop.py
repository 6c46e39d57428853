"""Run a training task: steps, gradients over chunks, checkpoints, progress bar, interrupts."""

from __future__ import annotations

import io
import json
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sslguard.errors import UsageError
from sslguard.files import write_atomic
from sslguard.training.base import History, Loop, Task, Update, isolated_rng
from sslguard.training.processes import launched


def run(task: Task, loop: Loop) -> History:
    """Train `task`, from `loop.checkpoint` on if that file exists.

    The networks are trained in place and stay on the device.

    Returns:
        The losses of every step and the time taken.

    Raises:
        UsageError: The checkpoint belongs to another run or is damaged, or a loss is not finite.
        KeyboardInterrupt: On SIGINT, after the current step is finished and the checkpoint is written.
    """
    return _Runner(task, loop).run()


class _Runner:
    def __init__(self, task: Task, loop: Loop) -> None:
        self.task, self.loop = task, loop
        self.fabric = launched(
            accelerator=loop.accelerator,
            devices=loop.devices,
            num_nodes=loop.nodes,
            precision="bf16-mixed" if self._bfloat16() else "32-true",
        )
        self.history = History()
        self._epoch: tuple[int, NDArray[np.int64]] | None = None

    def _bfloat16(self) -> bool:
        if self.loop.precision != "auto":
            return self.loop.precision == "bf16"
        return self.loop.accelerator != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported()

    def run(self) -> History:
        self.task.to(self.fabric.device)
        started, cpu_started = time.perf_counter(), time.process_time()
        self._resume()
        before, cpu_before = self.history.seconds, self.history.cpu_seconds
        saved = time.perf_counter()
        with _deferred_interrupt() as interrupted, self._progress() as show:
            while self.history.steps < self.loop.steps:
                show(self._step(self.history.steps))
                self.history.seconds = before + time.perf_counter() - started
                self.history.cpu_seconds = cpu_before + time.process_time() - cpu_started
                stop = self._anywhere(interrupted.is_set())
                due = self._anywhere(time.perf_counter() - saved > self.loop.checkpoint_seconds)
                if due or stop or self.history.steps == self.loop.steps:
                    self._save()
                    saved = time.perf_counter()
                if stop and self.history.steps < self.loop.steps:
                    raise KeyboardInterrupt
        return self.history

    def _step(self, step: int) -> dict[str, float]:
        task, loop, world = self.task, self.loop, self.fabric.world_size
        task.begin_step(step, loop.steps)
        for optimizer in task.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        size = loop.batch_size // (world * loop.accumulate)
        chunks = [k * world + self.fabric.global_rank for k in range(loop.accumulate)]
        microbatches = []
        for chunk in chunks:
            with isolated_rng(loop.seed, step, chunk, 0):
                microbatches.append(task.load(self._indices(step * loop.batch_size + chunk * size, size)))
        losses: dict[str, Tensor] = {}
        for number, update in enumerate(task.updates(), start=1):
            losses[update.name] = self._gradients(update, (step, number), dict(zip(chunks, microbatches, strict=True)))
            for name in update.optimizers:
                task.optimizers[name].step()
                task.optimizers[name].zero_grad(set_to_none=True)
        task.end_step(step, self._gather([task.carry(m) for m in microbatches]))
        return self._record(losses)

    def _gradients(self, update: Update, at: tuple[int, int], microbatches: Mapping[int, Any]) -> Tensor:
        """Add the gradient over all chunks to `.grad`, and return this process's loss.

        Networks are left with the mean statistics of the chunks.

        Args:
            update: The update to run.
            at: Step, and number of the update, from 1.
            microbatches: Micro-batches by number of their chunk.
        """
        step, number = at
        n = len(microbatches)
        total = torch.zeros((), device=self.fabric.device)
        parameters = update.parameters or tuple(self._parameters(update.optimizers))
        statistics = _Statistics(self.task.modules.values()) if n > 1 else None
        for chunk, microbatch in microbatches.items():
            if statistics is not None:
                statistics.restore()
            with isolated_rng(self.loop.seed, step, chunk, number), self.fabric.autocast():
                loss = update.loss(microbatch)
            _add_gradients(loss / n, parameters)
            total += loss.detach() / n
            if statistics is not None:
                statistics.collect(1 / n)
        if statistics is not None:
            statistics.settle()
        # One message for all. Gradients for optimisers of later updates are averaged when those updates run.
        self._average([*(p.grad for p in self._parameters(update.optimizers)), *_floating(self.task.modules.values())])
        return total

    def _parameters(self, names: Sequence[str]) -> Iterator[nn.Parameter]:
        for name in names:
            for group in self.task.optimizers[name].param_groups:
                yield from group["params"]

    def _indices(self, start: int, size: int) -> NDArray[np.int64]:
        """Return items `start` … `start + size` of the endless sequence of shuffled epochs."""
        n = self.task.n_items
        positions = np.arange(start, start + size)
        out = np.empty(size, dtype=np.int64)
        for epoch in range(int(positions[0] // n), int(positions[-1] // n) + 1):
            if self._epoch is None or self._epoch[0] != epoch:
                self._epoch = (epoch, np.random.default_rng([self.loop.seed, epoch]).permutation(n))
            here = positions // n == epoch
            out[here] = self._epoch[1][positions[here] % n]
        return out

    def _average(self, tensors: Sequence[Tensor | None]) -> None:
        """Replace tensors by their mean over processes, in place, in one message."""
        present = [t for t in tensors if t is not None]
        if self.fabric.world_size == 1 or not present:
            return
        flat = self.fabric.all_reduce(torch.cat([t.detach().reshape(-1).float() for t in present]), reduce_op="mean")
        offset = 0
        for tensor in present:
            part = flat[offset : offset + tensor.numel()]
            tensor.detach().copy_(part.view_as(tensor))
            offset += tensor.numel()

    def _gather(self, rows: Sequence[Tensor | None]) -> Tensor | None:
        """Return the rows of all chunks, in the order of the chunks."""
        present = [r for r in rows if r is not None]
        if not present:
            return None
        if self.fabric.world_size == 1:
            return torch.cat(present)
        gathered = [self.fabric.all_gather(r) for r in present]
        return torch.cat([part for micro in gathered for part in micro])

    def _anywhere(self, flag: bool) -> bool:
        if self.fabric.world_size == 1:
            return flag
        return bool(self.fabric.all_reduce(torch.tensor(float(flag), device=self.fabric.device), reduce_op="sum") > 0)

    def _record(self, losses: dict[str, Tensor]) -> dict[str, float]:
        stacked = torch.stack(list(losses.values()))
        self._average([stacked])
        values = dict(zip(losses, stacked.tolist(), strict=True))
        self.history.steps += 1
        for name, value in values.items():
            if not np.isfinite(value):
                raise UsageError(
                    f"loss {name!r} is {value} at step {self.history.steps}: lower the learning rate, or check the "
                    "data for constant items"
                )
            self.history.losses.setdefault(name, []).append(value)
        return values

    def _fingerprint(self) -> str:
        chunks = self.loop.accumulate * self.fabric.world_size
        loop = {k: getattr(self.loop, k) for k in ("steps", "batch_size", "seed", "precision")}
        return json.dumps({"task": self.task.identity, "loop": loop, "chunks": chunks}, sort_keys=True)

    def _save(self) -> None:
        if self.loop.checkpoint is None:
            return
        if self.fabric.is_global_zero:
            self._write(self.loop.checkpoint)
        # All wait until the file is written: if one process failed meanwhile, the launcher would kill the writing one.
        self.fabric.barrier()

    def _write(self, path: Path) -> None:
        state = {
            "fingerprint": self._fingerprint(),
            "modules": {name: module.state_dict() for name, module in self.task.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.task.optimizers.items()},
            "history": vars(self.history),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        # Private, because the checkpoint of a scheme holds the decoder and the trigger of its key.
        write_atomic(path, buffer.getvalue(), private=True)

    def _resume(self) -> None:
        path = self.loop.checkpoint
        if path is None:
            return
        if path.exists():
            self._read(path)
        here = torch.tensor(float(self.history.steps), device=self.fabric.device)
        if self.fabric.world_size > 1 and self.fabric.all_reduce(here.clone(), reduce_op="mean") != here:
            raise UsageError(f"the checkpoint {path} is not on every node: put it in a folder that all nodes can read")

    def _read(self, path: Path) -> None:
        # Torch raises many kinds of errors on damaged files. Its message is left out: it advises an unsafe load.
        damaged = UsageError(f"{path} is damaged, or not a checkpoint of this program: delete it to start again")
        try:
            state = torch.load(path, map_location=self.fabric.device, weights_only=True)
            same = state["fingerprint"] == self._fingerprint()
        except Exception as error:
            raise damaged from error
        if not same:
            raise UsageError(
                f"the checkpoint {path} belongs to a run with other settings: delete it, or choose another --out"
            )
        try:
            for name, module in self.task.modules.items():
                module.load_state_dict(state["modules"][name])
            for name, optimizer in self.task.optimizers.items():
                optimizer.load_state_dict(state["optimizers"][name])
            self.history = History(**state["history"])
        except Exception as error:
            raise damaged from error

    @contextmanager
    def _progress(self) -> Iterator[Callable[[dict[str, float]], None]]:
        if not (self.loop.progress and self.fabric.is_global_zero):
            yield lambda _: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[losses]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            row = bar.add_task(self.loop.title, total=self.loop.steps, completed=self.history.steps, losses="")

            def show(losses: dict[str, float]) -> None:
                text = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
                bar.update(row, completed=self.history.steps, losses=text)

            yield show


class _Statistics:
    """Buffers of networks while one update runs over several chunks.

    Each chunk starts from the same buffers. If it started from the buffers of the chunk before, they would depend on
    how chunks are dealt to processes.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._buffers = [b for module in modules for b in module.buffers()]
        self._start = [b.clone() for b in self._buffers]
        self._mean = [torch.zeros_like(b) for b in self._buffers]

    def restore(self) -> None:
        """Set the buffers back to their values before the update."""
        for buffer, start in zip(self._buffers, self._start, strict=True):
            buffer.copy_(start)

    def collect(self, share: float) -> None:
        """Add the buffers that one chunk left to the mean."""
        for buffer, mean in zip(self._buffers, self._mean, strict=True):
            if buffer.is_floating_point():
                mean.add_(buffer, alpha=share)

    def settle(self) -> None:
        """Set the buffers to the mean. Integer counters stay as the last chunk left them."""
        for buffer, mean in zip(self._buffers, self._mean, strict=True):
            if buffer.is_floating_point():
                buffer.copy_(mean)


def _floating(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [b for module in modules for b in module.buffers() if b.is_floating_point()]


def _add_gradients(loss: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """Add the gradient of `loss` to `.grad` of exactly these parameters."""
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Set the event on SIGINT instead of interrupting a step. A second SIGINT interrupts."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    previous = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        if event.is_set() and callable(previous):
            previous(signum, frame)
        event.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
