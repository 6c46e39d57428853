"""What an attack leaves of an encoder's use: a linear probe before and after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sslguard.data.base import Data
from sslguard.encoders.base import Encoder
from sslguard.probes.baselines import accuracy_kept, baseline
from sslguard.probes.evaluate import probe_encoder
from sslguard.training.processes import is_first_process


@dataclass(frozen=True)
class Yardstick:
    """A probe's task and what is compared with. Accuracies lie in [0, 1].

    Attributes:
        train: Labelled items that the probe is trained on.
        test: Labelled items that it is measured on.
        victim: Accuracy of the encoder before the attack.
        clean: Accuracy of the clean encoder, A_F; None if none was given.
        baseline: Accuracy of the better baseline, A₀; None without a clean encoder.
    """

    train: Data
    test: Data
    victim: float
    clean: float | None = None
    baseline: float | None = None

    @classmethod
    def of(cls, task: tuple[Data, Data] | None, victim: Encoder, clean: Encoder | None) -> Yardstick | None:
        """Measure what there is before the attack. Return None without a task, and in all processes but the first.

        Args:
            task: Labelled items to train and to test on.
            victim: Encoder before the attack.
            clean: Clean encoder, if the accuracy kept is wanted.

        Raises:
            UsageError: The data cannot be probed on, or the clean encoder is no better than the baseline.
        """
        if task is None or not is_first_process():
            return None
        accuracy = probe_encoder(victim, *task).accuracy
        if clean is None:
            return cls(*task, accuracy)
        reference, floor = probe_encoder(clean, *task).accuracy, baseline(clean, *task).accuracy
        accuracy_kept(reference, reference, floor)
        return cls(*task, accuracy, reference, floor)

    def measure(self, encoder: Encoder) -> dict[str, Any]:
        """Return the accuracy of an encoder, what it is compared with and, with a clean encoder, the accuracy kept."""
        accuracy = probe_encoder(encoder, self.train, self.test).accuracy
        found = {"train": self.train.spec, "test": self.test.spec, "accuracy": accuracy, "victim": self.victim}
        if self.clean is None or self.baseline is None:
            return found
        kept = accuracy_kept(accuracy, self.clean, self.baseline)
        return {**found, "clean": self.clean, "baseline": self.baseline, "kept": kept}
