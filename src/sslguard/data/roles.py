"""Who sees which items of the test bed. No two roles share a picture, nor the clutter around it."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Roles:
    """Specs of the test bed by role, for `open_data`. Bounds are multiples of 1,000, the blocks of clutter.

    Attributes:
        pretrain: the owner pre-trains encoders on it.
        mark: the owner marks them on it.
        thief: the thief queries with it and trains surrogates on the answers.
        verify: suspects are asked about it.
        probe_train: probes are trained on it; subsets of few labels are drawn from it.
        tune: settings are chosen on it, so that nothing is ever chosen on `probe_test`.
        probe_test: probes are measured on it.
        thief_digits: a thief of another domain queries with it.
        digits_probe_train: the second domain's probes are trained on it.
        digits_probe_test: the second domain's probes are measured on it.
    """

    pretrain: str = "cluttered-fashion-mnist:train[0:30000]"
    mark: str = "cluttered-fashion-mnist:train[30000:38000]"
    thief: str = "cluttered-fashion-mnist:train[38000:50000]"
    verify: str = "cluttered-fashion-mnist:train[50000:52000]"
    probe_train: str = "cluttered-fashion-mnist:train[52000:57000]"
    tune: str = "cluttered-fashion-mnist:train[57000:60000]"
    probe_test: str = "cluttered-fashion-mnist:test[0:5000]"
    thief_digits: str = "cluttered-mnist-5k:train[0:2000]"
    digits_probe_train: str = "cluttered-mnist-5k:train[2000:4000]"
    digits_probe_test: str = "cluttered-mnist-5k:test[0:1000]"

    def specs(self) -> dict[str, str]:
        """Return the spec of each role, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


ROLES = Roles()
