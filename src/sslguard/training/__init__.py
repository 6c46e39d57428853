"""The one training loop: devices, accumulation, progress, checkpoints, exact resume. No losses, no recipes.

A `Task` says what is trained. Each iteration runs its `Update`s in order; each takes the gradient of one loss
for chosen parameters, over all micro-batches of all processes, and then steps its optimisers.

Everything random in step s is a function of (seed, s, chunk), where the global batch is cut into
processes × accumulation chunks. Every chunk of an update starts from the same running statistics (batch norm's
buffers), and the mean over chunks is what the update leaves behind, as it is with gradients. So a resumed run
repeats an unbroken one, and two processes see what one process sees that accumulates the same halves. Gradients are
averaged here rather than by DistributedDataParallel: its reducer wants every parameter in every backward pass,
which a scheme with three losses over four networks does not offer.
"""

from sslguard.training.base import (
    History,
    Loop,
    Task,
    Update,
    cosine_schedule,
    isolated_rng,
    set_learning_rate,
)
from sslguard.training.loop import run
from sslguard.training.processes import is_first_process, shared

__all__ = [
    "History",
    "Loop",
    "Task",
    "Update",
    "cosine_schedule",
    "is_first_process",
    "isolated_rng",
    "run",
    "set_learning_rate",
    "shared",
]
