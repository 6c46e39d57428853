"""Tables become frozen dataclasses, and errors name the path, the rule and the value."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from sslguard.errors import UsageError
from sslguard.settings import Checked, Choices, Count, Range, load_toml, read, read_named, rest, to_table


class Shape:
    pass


@dataclass(frozen=True)
class Circle(Shape):
    radius: float = 1.0


@dataclass(frozen=True)
class Inner:
    steps: int = 3
    rate: float = 0.5


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["mean", "sum"] = "mean"
    fast: bool = False
    limit: int | None = 7
    sizes: tuple[int, ...] = ()
    inner: Inner = field(default_factory=lambda: Inner(steps=9))
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    shape: Shape = field(default_factory=Circle)


@dataclass(frozen=True)
class Open:
    name: str = ""
    settings: Mapping[str, Any] = rest()


SHAPES = Choices("shape", {"circle": Circle, "wide-circle": Circle(5.0)})
NAMED = {Shape: SHAPES}
FULL = {
    "name": "a", "kind": "sum", "fast": True, "limit": None, "sizes": [1, 2], "inner": {"steps": 1, "rate": 2},
    "by_name": {"x": {"steps": 4}}, "shape": {"shape": "wide-circle"},
}  # fmt: skip


def test_reads_every_type_and_tells_it_again() -> None:
    made = read(Outer, FULL, named=NAMED)
    assert made == Outer("a", "sum", True, None, (1, 2), Inner(1, 2.0), {"x": Inner(4)}, Circle(5.0))
    assert type(made.inner.rate) is float
    told = json.loads(json.dumps(to_table(made, named=NAMED)))
    assert told["shape"] == {"shape": "circle", "radius": 5.0}
    assert read(Outer, told, named=NAMED) == made


def test_keeps_what_is_left_out() -> None:
    assert read(Outer, {"name": "a", "inner": {"rate": 1}}).inner == Inner(9, 1.0)
    start = Outer("b", inner=Inner(2, 3.0))
    assert read(Outer, {"inner": {"steps": 5}}, start=start) == Outer("b", inner=Inner(5, 3.0))
    assert read_named(SHAPES, "wide-circle", {}) == Circle(5.0)
    assert read(Open, {"name": "a", "x": 1, "settings": 2}) == Open("a", {"x": 1, "settings": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": 1}, r"^it has no setting 'kinds'; known: name, .*, shape\. Did you mean 'kind'\?$"),
        ({"qqq": 1}, r"^it has no setting 'qqq'; known: name, .*, shape$"),
        ({"kind": "men"}, r"^it\.kind must be one of mean, sum, not 'men'\. Did you mean 'mean'\?$"),
        ({"kind": ["mean"]}, r"^it\.kind must be one of mean, sum, not \['mean'\]"),
        ({"name": 3}, r"^it\.name must be a text, not 3$"),
        ({"fast": 1}, r"^it\.fast must be true or false, not 1$"),
        ({"limit": True}, r"^it\.limit must be a whole number, not True$"),
        ({"limit": 1.0}, r"^it\.limit must be a whole number, not 1\.0$"),
        ({"inner": {"rate": float("inf")}}, r"^it\.inner\.rate must be a finite number, not inf$"),
        ({"steps": 1}, r"^it has no setting 'steps'; known: name, .*, shape\. It is a setting of 'inner'$"),
        ({"inner": {"stps": 1}}, r"^it\.inner has no setting 'stps'; known: steps, rate\. Did you mean 'steps'\?$"),
        ({"inner": 3}, r"^it\.inner must be a table of settings, not 3$"),
        ({"sizes": 3}, r"^it\.sizes must be a list, not 3$"),
        ({"sizes": [1, "2"]}, r"^it\.sizes\[1\] must be a whole number, not '2'$"),
        ({"by_name": []}, r"^it\.by_name must be a table, not \[\]$"),
        ({"by_name": {"x": {"rate": "1"}}}, r"^it\.by_name\.x\.rate must be a finite number, not '1'$"),
        ({"shape": {"radius": 2}}, r"^it\.shape must be a table with a name under shape, not"),
        ({"shape": {"shape": "cirle"}}, r"^it\.shape\.shape must be one of circle, wide-circle, not 'cirle'\. Did you"),
        ({"shape": {"shape": "circle", "size": 2}}, r"^it\.shape has no setting 'size'; known: radius"),
    ],
)
def test_refuses_in_one_sentence_with_the_path(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(Outer, {"name": "a", **change}, "it", named=NAMED)


def test_refuses_what_is_missing_no_table_or_no_json() -> None:
    with pytest.raises(UsageError, match=r"^the configuration needs a value for name$"):
        read(Outer, {})
    with pytest.raises(UsageError, match=r"^it must be a table of settings, not 3$"):
        read(Outer, 3, "it")
    with pytest.raises(UsageError, match=r"^it holds a setting that is no finite number"):
        read(Open, {"x": [float("nan")]}, "it")
    with pytest.raises(UsageError, match=r"^Inner has no name in the registry; known: circle, wide-circle$"):
        SHAPES.name_of(Inner())


def test_reads_toml_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        load_toml(path)
    path.write_text("a = [")
    with pytest.raises(UsageError, match="is not TOML"):
        load_toml(path)
    path.write_text("a = [1]")
    assert load_toml(path) == {"a": [1]}


def test_needs_neither_torch_nor_numpy() -> None:
    heavy = "import sys, sslguard.settings; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


@dataclass(frozen=True)
class Ranged(Checked):
    steps: Count = 1
    share: Annotated[float, Range(above=0, most=1)] = 0.5
    sizes: tuple[Count, ...] = ()
    kind: Literal["mean", "sum"] | None = None
    limit: Count | None = None


OUT_OF_RANGE = [
    ({"steps": 0}, "steps must be at least 1, not 0"),
    ({"share": 0.0}, "share must be above 0 and at most 1, not 0.0"),
    ({"share": 1.5}, "share must be above 0 and at most 1, not 1.5"),
    ({"sizes": [3, 0]}, r"sizes\[1\] must be at least 1, not 0"),
    ({"kind": "men"}, "kind must be one of mean, sum, not 'men'. Did you mean 'mean'?"),
    ({"limit": -1}, "limit must be at least 1, not -1"),
]


@pytest.mark.parametrize(("values", "message"), OUT_OF_RANGE)
def test_ranges_and_choices_are_checked_in_python_and_in_a_table(values, message) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        Ranged(**values)
    with pytest.raises(UsageError, match=rf"^it\.{message}"):
        read(Ranged, values, "it")


@pytest.mark.parametrize(
    ("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), ("2", "'2'"), (None, "None")]
)
def test_what_is_no_finite_number_is_in_no_range(value, shown) -> None:
    with pytest.raises(UsageError, match=f"^steps must be a finite number at least 1, not {shown}$"):
        Ranged(steps=value)


def test_numbers_of_numpy_and_none_pass() -> None:
    assert Ranged(steps=np.int64(3), share=np.float32(1), limit=None).steps == 3


def test_a_range_says_its_rule() -> None:
    assert str(Range(least=2, most=16)) == "at least 2 and at most 16"
    assert str(Range(above=0, below=1)) == "above 0 and below 1"
