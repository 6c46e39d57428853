"""What the test depends on: its settings, its fixed rules, and how many queries a verification asks."""

from __future__ import annotations

import pytest

from sslguard.errors import UsageError
from sslguard.schemes.exact.protocol import Protocol
from sslguard.schemes.exact.scheme import Exact

GRID = sorted({int(step * 10**k) for step in (1, 1.5, 2, 3, 5, 7.5) for k in range(1, 7)} | {1, 2, 3, 5, 7})


class TestGrid:
    @pytest.mark.parametrize("least", [1, 2, 60, 500, 501, 12_345])
    def test_the_most_that_the_data_holds(self, least):
        protocol, before = Protocol(n_queries=least), 0
        for n in (*range(10, 2000), 9_999, 10_000, 10_001, 14_999, 15_000, 123_456, 10**6):
            found = protocol.asks(n)
            assert found == max([least, *(step for step in GRID if step <= n)])
            assert found >= before, "more data must not ask less"
            assert found == least or found <= n
            before = found

    def test_examples(self):
        asks = Protocol().asks
        assert [asks(n) for n in (500, 749, 750, 800, 50_000, 60_000)] == [500, 500, 750, 750, 50_000, 50_000]

    def test_too_few_items_ask_for_the_least(self):
        assert Protocol(n_queries=500).asks(12) == 500  # which a verification then refuses


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"functions": 1}, "functions must be at least 2"),
        ({"functions": 129}, "at most 128"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"rank": 17}, "at most 16"),
        ({"spread": 0.0}, "spread must be above 0, not 0.0"),
        ({"spread": float("nan")}, "spread must be a finite number above 0, not nan"),
        ({"n_queries": 0}, "at least 1"),
    ],
)
def test_protocols_that_make_no_sense(settings, message):
    with pytest.raises(UsageError, match=message):
        Protocol(**settings)


class TestDescription:
    def test_comes_back(self):
        protocol = Protocol(functions=20, rank=3, spread=1.5, n_queries=77)
        assert Protocol.from_json(protocol.to_json()) == protocol

    def test_every_setting_and_rule_is_in_the_digest(self):
        base = Protocol()
        others = {name: Protocol(**{name: value}) for name, value in (("functions", 63), ("rank", 5), ("spread", 7.5))}
        others["n_queries"], others["pool"] = Protocol(n_queries=501), Protocol(pool="1:" + "ab" * 32)
        assert set(others) == set(vars(base))
        assert len({one.digest() for one in (base, *others.values())}) == 6

    @pytest.mark.parametrize("rule", sorted(Protocol().to_json().keys() - vars(Protocol()).keys()))
    def test_other_rules_are_refused(self, rule):
        described = Protocol().to_json()
        value = described[rule]
        for other in (None, f"{value} ", float(value) if isinstance(value, int) else value.upper() + "!"):
            with pytest.raises(UsageError, match=f"whose {rule} is"):
                Protocol.from_json({**described, rule: other})
        del described[rule]
        with pytest.raises(UsageError, match=f"whose {rule} is"):
            Protocol.from_json(described)

    def test_settings_of_other_types_are_refused(self):
        for wrong in ({"functions": 64.0}, {"rank": True}, {"spread": 7}, {"unknown": 1}):
            with pytest.raises(TypeError):
                Protocol.from_json({**Protocol().to_json(), **wrong})
        with pytest.raises(TypeError, match="described by an object"):
            Protocol.from_json([])


def test_settings_of_the_scheme():
    gentle, strong = Exact.gentle(), Exact()
    assert gentle.protocol == strong.protocol
    assert gentle.largest < strong.largest
    assert gentle.overlap > strong.overlap
    for settings, message in (
        ({"sub_keys": 17}, "sub_keys must be at least 1 and at most 16"),
        ({"sub_keys": 0}, "sub_keys must be at least 1"),
        ({"protocol": Protocol(rank=9), "sub_keys": 8}, "rank times sub_keys must be at most 64, not 9 times 8"),
        ({"overlap": 1.0}, "overlap"),
        ({"largest": 0.0}, "largest must be above 0"),
        ({"redraw": -1}, "redraw"),
    ):
        with pytest.raises(UsageError, match=message):
            Exact(**settings)
