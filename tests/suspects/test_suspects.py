"""Hostile suspects: live ones that answer badly, and files of logged answers that are not what they say."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from sslguard.encoders.wrapped import LocalSuspect
from sslguard.errors import DataError, EncoderError, SuspectError, UsageError
from sslguard.suspects import opening
from sslguard.suspects.base import MAX_WIDTH, Counted, checked
from sslguard.suspects.logged import LoggedAnswers
from sslguard.suspects.opening import open_suspect


def queries(n: int) -> torch.Tensor:
    return torch.zeros(n, 1, 4, 4, dtype=torch.uint8)


class Answering:
    """An embedder that answers whatever it was told to, one entry a call; an exception is raised."""

    def __init__(self, *answers: object) -> None:
        self.answers = iter(answers)

    def embed(self, batch: object, /) -> object:
        answer = next(self.answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def counted(*answers: object) -> Counted:
    return Counted(LocalSuspect(Answering(*answers), "the accused"))  # type: ignore[arg-type]


def log(path: Path, rows: object) -> Path:
    np.save(path, np.asarray(rows))
    return path


def npy(header: bytes, body: bytes = b"") -> bytes:
    padded = header + b" " * ((-len(header) - 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded + body


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        (np.zeros(3), "one row a query"),
        (np.zeros((3, 2, 1)), "one row a query"),
        (np.zeros((2, 4)), "asked 3 queries and gave 2"),
        (np.zeros((4, 4)), "asked 3 queries and gave 4"),
        (np.zeros((3, 0)), "not 0"),
        (np.zeros((3, MAX_WIDTH + 1), np.float16), "65,537"),
        (np.full((3, 4), np.nan), "3 of 3"),
        (np.array([[0.0], [0.0], [np.inf]]), "1 of 3 .* the first is query 2"),
        (np.array([[0.0], [-np.inf], [0.0]]), "1 of 3"),
        (np.array([[0.0], [1e39], [0.0]]), "beyond float32"),
        (np.zeros((3, 4), complex), "complex128"),
        (np.zeros((3, 4), bool), "bool"),
        (np.array([["a"]] * 3), "real numbers"),
        (np.array([[None]] * 3), "object"),
        ([[1.0], [1.0, 2.0], [1.0]], "not an array"),
        (None, "object"),
        (torch.zeros(3, 4, requires_grad=True), "not an array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_answers_that_are_none(answers: object, complaint: str) -> None:
    with pytest.raises(SuspectError, match=complaint) as caught:
        checked(answers, 3, name="the accused")
    assert str(caught.value).startswith("the accused")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.dtype(">f4"), np.longdouble, np.int8, np.uint64]
)
def test_real_numbers_of_any_type_become_native_floats(dtype: object) -> None:
    answers = np.array([[1, 2], [3, 4]]).astype(dtype)  # type: ignore[call-overload]
    array = checked(answers, 2)
    assert array.dtype in (np.float32, np.float64)
    assert array.dtype.isnative
    assert array.tolist() == [[1, 2], [3, 4]]


def test_tensors_and_lists_are_answers() -> None:
    assert checked(torch.ones(2, 3), 2).shape == (2, 3)
    assert checked([[1.0, 2.0]], 1).tolist() == [[1.0, 2.0]]


def test_width_must_stay() -> None:
    suspect = counted(np.ones((2, 3)), np.ones((2, 4)))
    suspect.embed(queries(2))
    assert suspect.width == 3
    with pytest.raises(SuspectError, match="3 numbers a query before, and now 4"):
        suspect.embed(queries(2))


def test_queries_count_when_they_are_asked() -> None:
    suspect = counted(np.ones((2, 3)), np.full((5, 3), np.nan), RuntimeError("out of memory\nat line 3"))
    suspect.embed(queries(2))
    with pytest.raises(SuspectError):
        suspect.embed(queries(5))
    with pytest.raises(SuspectError, match="failed on a batch of 7: RuntimeError: out of memory"):
        suspect.embed(queries(7))
    assert suspect.n_queries == 14
    assert suspect.name == "the accused"
    with pytest.raises(UsageError, match="at least one"):
        suspect.embed(queries(0))
    assert suspect.n_queries == 14


def test_complaints_about_the_data_stay_what_they_are() -> None:
    with pytest.raises(DataError, match="takes images"):
        counted(DataError("this encoder takes images")).embed(["a text"])
    with pytest.raises(KeyboardInterrupt):
        counted(KeyboardInterrupt()).embed(queries(1))


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_logged_answers_come_back_in_order(tmp_path: Path, dtype: str, order: str) -> None:
    rows = np.arange(30).reshape(10, 3)
    path = log(tmp_path / "a.npy", rows.astype(dtype, order=order))  # type: ignore[call-overload]
    suspect = Counted(open_suspect(f"answers:{path}"))
    answers = [suspect.embed(queries(n)) for n in (4, 4, 2)]
    suspect.finish()
    np.testing.assert_array_equal(np.concatenate(answers), rows)
    assert (suspect.n_queries, suspect.n_missing) == (10, 0)
    assert suspect.name == f"answers:{path}"


def test_missing_answers_are_zero_and_counted(tmp_path: Path) -> None:
    rows = np.ones((6, 2), np.float32)
    rows[[1, 4, 5]] = np.nan
    path = log(tmp_path / "a.npy", rows)
    before = path.read_bytes()
    suspect = Counted(LoggedAnswers(path))
    first, second = suspect.embed(queries(3)), suspect.embed(queries(3))
    assert first.tolist() == [[1, 1], [0, 0], [1, 1]]
    assert second.tolist() == [[1, 1], [0, 0], [0, 0]]
    assert (suspect.n_missing, suspect.n_queries) == (3, 6)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_are_partly_answers_are_refused(tmp_path: Path, bad: float) -> None:
    rows = np.ones((6, 2))
    rows[4, 1] = bad
    suspect = LoggedAnswers(log(tmp_path / "a.npy", rows))
    suspect.embed(queries(3))
    with pytest.raises(SuspectError, match=r"rows 3 to 5, .* the first is query 1 of the batch"):
        suspect.embed(queries(3))


def test_too_few_and_too_many_rows(tmp_path: Path) -> None:
    path = log(tmp_path / "a.npy", np.ones((5, 2)))
    suspect = LoggedAnswers(path)
    suspect.embed(queries(3))
    with pytest.raises(SuspectError, match="5 answers for 3 queries"):
        suspect.finish()
    with pytest.raises(SuspectError, match="holds 5 answers, and query 6 was asked"):
        suspect.embed(queries(3))
    empty = LoggedAnswers(log(tmp_path / "none.npy", np.ones((0, 2))))
    with pytest.raises(SuspectError, match="holds 0 answers"):
        empty.embed(queries(1))


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (np.zeros((2, 2, 2)), "one row a query"),
        (np.float64(1.0), "one row a query"),
        (np.zeros((4, 2), complex), "complex128"),
        (np.zeros((4, 2), np.longdouble), r"longdouble|float128"),
        (np.zeros(4, [("a", "f4"), ("b", "f4")]), "numbers of at most 8 bytes"),
        (np.array([["1.0"]]), "numbers of at most 8 bytes"),
        (np.array([[{}]], object), "cannot be read"),
        (np.zeros((4, 0)), "not 0"),
        (np.zeros((1, MAX_WIDTH + 1), np.float16), "65,537"),
    ],
    ids=str,
)
def test_arrays_that_are_not_answers(tmp_path: Path, rows: object, complaint: str) -> None:
    with pytest.raises(SuspectError, match=complaint) as caught:
        open_suspect(f"answers:{log(tmp_path / 'a.npy', rows)}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [np.arange(4), np.arange(4)[:, None], np.arange(4, dtype=np.uint8), np.arange(4.0)])
def test_labels_as_they_come(tmp_path: Path, rows: np.ndarray) -> None:
    suspect = open_suspect(f"answers:{log(tmp_path / 'a.npy', rows)}")
    assert suspect.embed(["a", "b", "c", "d"]).tolist() == [[0.0], [1.0], [2.0], [3.0]]


def test_a_label_that_is_missing_is_no_label_0(tmp_path: Path) -> None:
    suspect = open_suspect(f"answers:{log(tmp_path / 'a.npy', np.array([1.0, np.nan]))}")
    with pytest.raises(SuspectError, match="cannot be told from a label 0"):
        suspect.embed(["a", "b"])


def test_a_missing_answer_of_one_number_that_is_no_label(tmp_path: Path) -> None:
    suspect = open_suspect(f"answers:{log(tmp_path / 'a.npy', np.array([[0.5], [np.nan]]))}")
    assert suspect.embed(["a", "b"]).tolist() == [[0.5], [0.0]]


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
FILES = {
    "empty": b"",
    "text": b"1.0, 2.0\n",
    "magic only": b"\x93NUMPY\x01\x00",
    "unknown version": b"\x93NUMPY\x09\x00" + b"\x00" * 100,
    "header cut off": npy(HEADER % b"2, 2")[:40],
    "body cut off": npy(HEADER % b"2, 2", b"\0" * 15),
    "bytes appended": npy(HEADER % b"2, 2", b"\0" * 17),
    "far larger than the file": npy(HEADER % b"1000000000000, 128", b"\0" * 16),
    "size overflows to zero": npy(HEADER % b"4294967296, 4294967296", b"\0" * 16),
    "size overflows": npy(HEADER % b"9223372036854775807, 128", b"\0" * 16),
    "size beyond integers": npy(HEADER % (b"9" * 60 + b", 2"), b"\0" * 16),
    "negative size": npy(HEADER % b"-1, 4", b"\0" * 16),
    "both negative": npy(HEADER % b"-2, -2", b"\0" * 16),
    "call in the header": npy(b"__import__('os').system('true')"),
    "deeply nested": npy(b"(" * 5000),
    "unknown dtype": npy(b"{'descr': 'evil', 'fortran_order': False, 'shape': (2, 2), }", b"\0" * 16),
    "unclosed": npy(b"{'descr': '<f4', 'shape': ((((", b"\0" * 16),
    "not a dictionary": npy(b"[1, 2]"),
    "pickle": b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00\x8c\x01a\x94.",
    "zip": b"PK\x03\x04" + b"\0" * 60,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_files_that_are_not_arrays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(SuspectError) as caught:
        open_suspect(f"answers:{path}")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "", "absent.npy", "x" * 300, "a\0b"):
        with pytest.raises(SuspectError, match=r"there is no file|cannot be read"):
            LoggedAnswers(f"{tmp_path}/{name}")


def test_an_archive_of_arrays_is_not_a_log(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", answers=np.ones((2, 2)))
    with pytest.raises(SuspectError, match="cannot be read"):
        open_suspect(f"answers:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("spec", ["", "answers:", None, 7])
def test_specifications_that_name_nothing(spec: object) -> None:
    with pytest.raises(UsageError):
        open_suspect(spec)  # type: ignore[arg-type]


def test_a_suspect_that_does_not_load_is_the_suspects_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(spec: object) -> None:
        raise EncoderError("weights.safetensors is truncated")

    monkeypatch.setattr(opening, "load_encoder", broken)
    with pytest.raises(SuspectError, match=r"the suspect stolen/encoder .* is truncated"):
        open_suspect("stolen/encoder")


def test_a_specification_that_cannot_be_read_stays_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unparsable(spec: object) -> None:
        raise UsageError("no such form")

    monkeypatch.setattr(opening, "load_encoder", unparsable)
    with pytest.raises(UsageError, match="no such form"):
        open_suspect("???")


def test_an_encoder_is_a_suspect() -> None:
    suspect = Counted(open_suspect("random:resnet-narrow:3"))
    answers = suspect.embed(torch.zeros(2, 1, 48, 48, dtype=torch.uint8))
    suspect.finish()
    assert answers.shape == (2, 64)
    assert (suspect.n_queries, suspect.n_missing, suspect.width) == (2, 0, 64)
    with pytest.raises(DataError):
        suspect.embed(["a text"])
