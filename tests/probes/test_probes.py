"""Probes against closed forms and scikit-learn, their seeds, and tasks that are none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslguard.data.base import Data, Extent
from sslguard.encoders.base import Encoder
from sslguard.encoders.preprocess import ImagePreprocess
from sslguard.encoders.rebuild import build
from sslguard.encoders.words import HashedWords
from sslguard.errors import DataError, EncoderError, UsageError
from sslguard.probes.baselines import Baseline, PixelEmbedder, accuracy_kept, baseline
from sslguard.probes.evaluate import PROBES, few_label_subset, probe_encoder
from sslguard.probes.knn import knn_probe
from sslguard.probes.linear import _choose_l2, _held_out, _principal_axes, _Softmax, class_shares, linear_probe
from sslguard.probes.mlp import mlp_probe
from sslguard.probes.task import ProbeResult

# Fewer steps than the default: the tasks here are easy, and the tests many.
FAST: dict[str, Callable[..., ProbeResult]] = {
    "linear": linear_probe,
    "mlp": lambda *arrays, **options: mlp_probe(*arrays, steps=60, **options),
    "knn": knn_probe,
}

Arrays = tuple[NDArray, NDArray, NDArray, NDArray]


def blobs(n: int = 300, width: int = 12, classes: int = 4, spread: float = 3.0, seed: int = 0) -> Arrays:
    """Gaussian classes, `spread` standard deviations long means; the first half trains."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((classes, width)) * spread
    y = generator.permutation(np.arange(2 * n) % classes)
    x = centres[y] + generator.standard_normal((2 * n, width))
    return x[:n], y[:n], x[n:], y[n:]


class Pictures(Data):
    """Labelled pictures in memory, each a function of its class and noise."""

    def __init__(self, spec: str, pictures: torch.Tensor, labels: NDArray[np.int64] | None) -> None:
        self.spec, self.pictures, self.labels = spec, pictures, labels

    def __len__(self) -> int:
        return len(self.pictures)

    def take(self, indices: Sequence[int] | NDArray[np.integer]) -> torch.Tensor:
        return self.pictures[torch.as_tensor(np.asarray(indices))]

    def extent_of(self, start: int, stop: int) -> Extent:
        return Extent(self.spec, start, stop)


def stripes(spec: str, n: int, seed: int, classes: int = 3) -> Pictures:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    pictures = torch.randint(0, 60, (n, 1, 16, 16), generator=generator)
    for k in range(classes):
        pictures[labels == k, :, k::classes] += 150
    return Pictures(spec, pictures.to(torch.uint8), labels.numpy().astype(np.int64))


TRAIN, TEST = stripes("stripes:train", 90, 1), stripes("stripes:test", 30, 2)


class Fixed:
    """An embedder of pictures by a function of the pixels that remembers how many items it saw."""

    def __init__(self, function: Callable[[torch.Tensor], NDArray]) -> None:
        self.function, self.seen = function, 0

    def embed(self, batch: object, /) -> NDArray:
        assert isinstance(batch, torch.Tensor)
        self.seen += len(batch)
        return self.function(batch)


def rows(batch: torch.Tensor) -> NDArray:
    return batch.float().mean(-1).flatten(1).numpy()


def small_encoder() -> Encoder:
    architecture = {"backbone": "resnet-narrow", "channels": 1}
    module, dim = build(architecture, seed=5)
    return Encoder(module, ImagePreprocess(16, 16, 1, (0.5,), (0.5,)), dim, architecture, "test")


@pytest.mark.parametrize("probe", FAST.values(), ids=FAST)
def test_separable_classes_are_learned_and_noise_is_not(probe: Callable[..., ProbeResult]) -> None:
    x, y, test_x, test_y = blobs()
    result = probe(x, y, test_x, test_y)
    assert result.accuracy > 0.98
    assert (result.n_train, result.n_test) == (300, 300)
    assert set(result.per_class) == {0, 1, 2, 3}
    # Features that have nothing to do with the labels: chance is 1/4, its standard error 0.025.
    assert abs(probe(*blobs(spread=0.0)).accuracy - 0.25) < 0.1


@pytest.mark.parametrize("probe", FAST.values(), ids=FAST)
def test_same_seed_same_result_and_global_randomness_untouched(probe: Callable[..., ProbeResult]) -> None:
    arrays = blobs(n=120, spread=0.5)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = probe(*arrays, seed=7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    torch.manual_seed(99)
    assert probe(*arrays, seed=7) == first


def test_mlp_seeds_differ() -> None:
    arrays = blobs(n=120, spread=0.4)
    assert len({FAST["mlp"](*arrays, seed=seed).accuracy for seed in range(3)}) > 1


@pytest.mark.parametrize("probe", FAST.values(), ids=FAST)
def test_probes_work_inside_inference_mode_and_leave_their_input_alone(
    probe: Callable[..., ProbeResult],
) -> None:
    arrays = blobs(n=100)
    copies = [array.copy() for array in arrays]
    with torch.inference_mode():
        assert probe(*arrays).accuracy > 0.95
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("probe", [FAST["linear"], FAST["mlp"]], ids=["linear", "mlp"])
def test_scale_shift_and_constant_columns_do_not_decide(probe: Callable[..., ProbeResult]) -> None:
    x, y, test_x, test_y = blobs(spread=0.6)
    plain = probe(x, y, test_x, test_y).accuracy
    gains = 10.0 ** np.linspace(-6, 6, x.shape[1])

    def moved(features: NDArray) -> NDArray:
        constant = np.full((len(features), 2), 0.1)
        return np.hstack([features * gains + 100 * gains, constant])

    assert abs(probe(moved(x), y, moved(test_x), test_y).accuracy - plain) < 0.03


def test_linear_probe_is_scikit_learns_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, test_x, test_y = blobs(n=400, width=20, classes=5, spread=0.5)
    mean, std = x.mean(0), x.std(0)
    for l2 in (1.0, 1e-3):
        reference = linear_model.LogisticRegression(C=1 / (l2 * len(x)), tol=1e-8, max_iter=2000)
        reference.fit((x - mean) / std, y)
        features = torch.from_numpy((x - mean) / std)
        variance, axes = _principal_axes(features)
        problem = _Softmax(features @ axes, torch.from_numpy(y), 5, variance, l2)
        weights, converged = problem.solve(None, tolerance=1e-7, iterations=2000)
        assert converged
        np.testing.assert_allclose((axes @ weights[:-1]).T, reference.coef_, atol=1e-5)
        expected = reference.score((test_x - mean) / std, test_y)
        assert linear_probe(x, y, test_x, test_y, l2_grid=[l2]).accuracy == pytest.approx(expected)


def test_softmax_gradient_is_that_of_autograd() -> None:
    x, y, _, _ = blobs(n=40, width=6)
    features = torch.from_numpy(x - x.mean(0))
    variance, axes = _principal_axes(features)
    problem = _Softmax(features @ axes, torch.from_numpy(y), 4, variance, 0.3)
    point = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 4))).requires_grad_()
    weights = point * problem.scale
    logits = problem.x @ weights[:-1] + weights[-1]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)) + 0.15 * weights[:-1].square().sum()
    (slope,) = torch.autograd.grad(loss, point)
    value, ours = problem.objective(point.detach())
    assert value.item() == pytest.approx(loss.item())
    np.testing.assert_allclose(ours, slope, atol=1e-12)


@pytest.mark.parametrize("classes", [2, 5])
def test_shares_of_classes_are_those_of_the_regression(classes: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 6)) * np.geomspace(1, 0.05, 6) + 3
    standard = (x - x.mean(0)) / x.std(0)
    y = (standard @ rng.standard_normal((6, classes)) + 0.5 * rng.gumbel(size=(600, classes))).argmax(1)
    found = class_shares(x, y, l2=1e-2)
    np.testing.assert_allclose(found.sum(1), 1)
    centred = x - x.mean(0)
    centred /= np.sqrt(np.square(centred).mean())
    # Of two classes theirs has weights for the difference alone, whose square is twice that of ours.
    penalty = 1e-2 * 600 / (2 if classes == 2 else 1)
    fitted = linear_model.LogisticRegression(C=1 / penalty, tol=1e-8, max_iter=5000).fit(centred, y)
    np.testing.assert_allclose(found, fitted.predict_proba(centred), atol=0.02)
    np.testing.assert_allclose(np.bincount(y) / 600, found.mean(0), atol=5e-3)
    assert np.allclose(found, class_shares(7 * x - 2, y, l2=1e-2), atol=1e-3)


def test_fewer_items_than_features_is_the_same_problem() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, test_x, test_y = blobs(n=30, width=80, classes=3, spread=0.3)
    mean, std = x.mean(0), x.std(0)
    reference = linear_model.LogisticRegression(C=1 / (0.1 * len(x)), tol=1e-8, max_iter=2000)
    reference.fit((x - mean) / std, y)
    ours = linear_probe(x, y, test_x, test_y, l2_grid=[0.1])
    assert ours.accuracy == pytest.approx(reference.score((test_x - mean) / std, test_y))
    assert ours.details["converged"] == 1


def test_the_penalty_follows_the_noise() -> None:
    quiet, noisy = blobs(n=600, spread=3.0), blobs(n=40, width=60, spread=0.2)
    assert linear_probe(*noisy).details["l2"] > 10 * linear_probe(*quiet).details["l2"]
    with pytest.raises(UsageError, match="l2_grid"):
        linear_probe(*quiet, l2_grid=[])
    with pytest.raises(UsageError, match="l2_grid"):
        linear_probe(*quiet, l2_grid=[0.0])


def test_the_hold_out_leaves_every_class_to_fit_and_never_sees_the_test_part() -> None:
    labels = np.array([0] * 50 + [1] * 2 + [2])
    held = _held_out(labels, 0)
    assert np.bincount(labels[held], minlength=3).tolist() == [10, 1, 0]
    assert (_held_out(labels, 0) == held).all()
    assert (_held_out(labels, 1) != held).any()
    x, y = torch.eye(3, dtype=torch.float64), torch.arange(3)
    assert _choose_l2(x, y, 3, torch.ones(3, dtype=torch.float64), [1.0, 0.1, 0.01], 0) == (0.1, None)
    train_x, train_y, test_x, test_y = blobs(spread=0.5)
    whole = linear_probe(train_x, train_y, test_x, test_y)
    assert linear_probe(train_x, train_y, test_x[:50], test_y[:50]).details == whole.details


def test_one_label_a_class_and_features_that_say_nothing() -> None:
    x, y, test_x, test_y = blobs()
    few = few_label_subset(y, 1, 0)
    for name, probe in FAST.items():
        assert probe(x[few], y[few], test_x, test_y).accuracy > 0.8, name
        assert probe(np.zeros_like(x), y, np.zeros_like(test_x), test_y).accuracy == pytest.approx(0.25, abs=0.05)


def test_knn_weighs_by_cosine() -> None:
    # Two neighbours of class 1 at cosine 0 against one of class 0 at cosine 1.
    train_x, train_y = np.array([[2.0, 0], [0, 1], [0, -1]]), np.array([0, 1, 1])
    result = knn_probe(train_x, train_y, np.array([[9.0, 0]]), np.array([0]), k=3)
    assert result.accuracy == 1
    assert result.details == {"k": 3}
    # exp(0.9/0.07) against 2·exp(0.86/0.07): 3.8e5 to 4.3e5, so here the two win.
    away = np.array([[0.9, np.sqrt(1 - 0.81)], [0.86, np.sqrt(1 - 0.86**2)], [0.86, np.sqrt(1 - 0.86**2)]])
    assert knn_probe(away, train_y, np.array([[1.0, 0]]), np.array([1]), k=3).accuracy == 1
    assert knn_probe(away, train_y, np.array([[1.0, 0]]), np.array([0]), k=1).accuracy == 1
    assert knn_probe(train_x, train_y, train_x, train_y, k=20).details == {"k": 3}
    with pytest.raises(UsageError, match="k must"):
        knn_probe(train_x, train_y, train_x, train_y, k=0)


def test_knn_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = blobs(spread=0.4)
    whole = knn_probe(*arrays)
    monkeypatch.setattr("sslguard.probes.knn._BATCH", 7)
    assert knn_probe(*arrays) == whole


def test_classes_need_not_be_consecutive_and_per_class_is_by_label() -> None:
    x, y, test_x, test_y = blobs(classes=3)
    names = np.array([4, 17, 900])
    # Class 900's test items are relabelled 4: a perfect probe gets none of them.
    truth = np.where(test_y == 2, 4, names[test_y])
    result = linear_probe(x, names[y], test_x, truth)
    assert set(result.per_class) == {4, 17}
    assert result.per_class[17] > 0.98
    assert result.per_class[4] == pytest.approx((test_y == 0).sum() / (test_y != 1).sum(), abs=0.02)
    assert result.accuracy == pytest.approx(
        (result.per_class[17] * (truth == 17).sum() + result.per_class[4] * (truth == 4).sum()) / len(truth)
    )
    json.dumps(result.to_json(), allow_nan=False)


@pytest.mark.parametrize("probe", FAST.values(), ids=FAST)
@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"train_x": np.zeros((4, 0))}, UsageError, "train_x must have shape"),
        ({"train_x": np.zeros(4)}, UsageError, "train_x must have shape"),
        ({"train_x": [["a"]]}, UsageError, "train_x must be an array"),
        ({"train_x": np.full((4, 2), np.nan)}, UsageError, "train_x must be finite"),
        ({"test_x": np.full((2, 2), np.inf)}, UsageError, "test_x must be finite"),
        ({"train_x": np.full((4, 2), 1e200)}, UsageError, "train_x must be finite"),
        ({"test_x": np.zeros((2, 3))}, UsageError, "equally wide"),
        ({"train_y": [0, 1, 0]}, UsageError, "one label for each of 4"),
        ({"train_y": [0.0, 1.0, 0.0, 1.0]}, UsageError, "whole numbers"),
        ({"train_y": [[0, 1, 0, 1]]}, UsageError, "whole numbers"),
        ({"train_y": [0, 1, -1, -1]}, DataError, "2 items are unlabelled"),
        ({"train_y": [1, 1, 1, 1]}, DataError, "at least two classes"),
        ({"test_y": [0, 5]}, DataError, "class 5 occurs in the test"),
        ({"test_x": np.zeros((0, 2)), "test_y": []}, UsageError, "test_x must have shape"),
        ({"seed": -1}, UsageError, "seed"),
        ({"seed": 0.5}, UsageError, "seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_tasks_that_are_none(
    probe: Callable[..., ProbeResult], change: dict[str, object], error: type[Exception], complaint: str
) -> None:
    sound = {
        "train_x": np.eye(4)[:, :2],
        "train_y": [0, 1, 0, 1],
        "test_x": np.zeros((2, 2)),
        "test_y": [0, 1],
        "seed": 0,
    }
    given = {**sound, **change}
    with pytest.raises(error, match=complaint):
        probe(given["train_x"], given["train_y"], given["test_x"], given["test_y"], seed=given["seed"])


@pytest.mark.parametrize("options", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_mlp_settings_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        mlp_probe(*blobs(n=20), **options)  # type: ignore[arg-type]


def test_few_label_subset() -> None:
    labels = np.array([3, 1, 1, 3, 3, 1, 3, 1, 1, 3])
    chosen = few_label_subset(labels, 2, 0)
    assert np.bincount(labels[chosen]).tolist() == [0, 2, 0, 2]
    assert (np.diff(chosen) > 0).all()
    assert (few_label_subset(labels, 2, 0) == chosen).all()
    assert len({tuple(few_label_subset(labels, 2, seed)) for seed in range(8)}) > 3
    with pytest.raises(DataError, match="class 1 has 5 items"):
        few_label_subset(labels, 6, 0)
    with pytest.raises(UsageError, match="per_class"):
        few_label_subset(labels, 0, 0)
    with pytest.raises(DataError, match="unlabelled"):
        few_label_subset([-1, 0], 1, 0)


def test_accuracy_kept() -> None:
    assert accuracy_kept(0.8, 0.8, 0.3) == 1
    assert accuracy_kept(0.3, 0.8, 0.3) == 0
    assert accuracy_kept(0.55, 0.8, 0.3) == pytest.approx(0.5)
    assert accuracy_kept(0.2, 0.8, 0.3) == pytest.approx(-0.2)
    for bad in ((0.5, 0.3, 0.3), (0.5, 0.2, 0.3), (float("nan"), 0.8, 0.3), (0.5, 80.0, 0.3), (0.5, 0.8, -0.1)):
        with pytest.raises(UsageError):
            accuracy_kept(*bad)


def test_raw_pixels_as_they_are_and_pooled() -> None:
    batch = TRAIN.take([0, 1])
    assert isinstance(batch, torch.Tensor)
    same_size = ImagePreprocess(16, 16, 1, (0.0,), (1.0,))
    np.testing.assert_allclose(PixelEmbedder(same_size).embed(batch), batch.flatten(1).numpy() / 255, rtol=1e-6)
    pooled = PixelEmbedder(same_size, max_width=16).embed(batch)
    expected = batch.float().reshape(2, 4, 4, 4, 4).mean((2, 4)).flatten(1) / 255
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)
    colour = PixelEmbedder(ImagePreprocess(224, 112)).embed(batch)
    assert 2000 < colour.shape[1] <= 2304
    assert PixelEmbedder(ImagePreprocess(1, 4000, 1, (0.0,), (1.0,))).embed(batch).shape == (2, 2304)
    assert PixelEmbedder(ImagePreprocess(48, 48, 1, (0.0,), (1.0,))).embed(batch).shape == (2, 2304)
    with pytest.raises(UsageError, match="max_width"):
        PixelEmbedder(ImagePreprocess(16, 16), max_width=2).embed(batch)


def test_texts_have_no_pixels() -> None:
    with pytest.raises(DataError, match="raw pixels need pictures"):
        PixelEmbedder(HashedWords()).embed(["some text"])


@pytest.mark.parametrize("method", PROBES)
def test_probe_encoder(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROBES, method, FAST[method])
    result = probe_encoder(Fixed(rows), TRAIN, TEST, method=method)
    assert result.method == method
    assert result.accuracy > 0.95
    assert (result.n_train, result.n_test, result.seeds) == (90, 30, (0,))


def test_few_labels_embed_only_what_they_use_and_average_over_seeds() -> None:
    embedder = Fixed(rows)
    result = probe_encoder(embedder, TRAIN, TEST, per_class=2, seeds=(0, 1, 2))
    assert embedder.seen <= 3 * 6 + 30
    assert result.n_train == 6
    assert result.seeds == (0, 1, 2)
    assert result.accuracy == pytest.approx(np.mean(result.accuracies))
    one = [probe_encoder(Fixed(rows), TRAIN, TEST, per_class=2, seeds=(seed,)).accuracy for seed in range(3)]
    assert list(result.accuracies) == one
    assert len(set(few_label_subset(TRAIN.labels, 2, 0)) | set(few_label_subset(TRAIN.labels, 2, 1))) > 6


def growing(batch: torch.Tensor) -> NDArray:
    return np.ones((len(batch), len(batch)))


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda batch: np.full((len(batch), 3), np.nan), "finite"),
        (lambda batch: np.zeros((len(batch) - 1, 3)), "shape"),
        (lambda batch: np.zeros(len(batch)), "shape"),
    ],
)
def test_embedders_that_answer_badly(function: Callable[[torch.Tensor], NDArray], complaint: str) -> None:
    with pytest.raises(EncoderError, match=complaint):
        probe_encoder(Fixed(function), TRAIN, TEST)


def test_an_embedder_whose_width_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslguard.probes.evaluate.EMBED_BATCH", 60)
    with pytest.raises(EncoderError, match="shape"):
        probe_encoder(Fixed(growing), TRAIN, TEST)


@pytest.mark.parametrize(
    ("train", "test", "options", "complaint"),
    [
        (Pictures("unlabelled", TRAIN.pictures, None), TEST, {}, "unlabelled has no labels"),
        (TRAIN, Pictures("unlabelled", TEST.pictures, None), {}, "unlabelled has no labels"),
        (Pictures("part", TRAIN.pictures, np.full(90, -1)), TEST, {}, "90 items are unlabelled"),
        (Pictures("one", TRAIN.pictures, np.zeros(90, np.int64)), TEST, {}, "at least two classes"),
        (TRAIN, stripes("more", 30, 3, classes=5), {}, "class 3 occurs in the test"),
        (TRAIN, TRAIN.slice(0, 10), {}, r"share \d+ items"),
        (TRAIN, TEST, {"per_class": 31}, "class 0 has 30 items"),
        (TRAIN, TEST, {"per_class": 0}, "per_class"),
        (TRAIN, TEST, {"method": "svm"}, "method must be one of"),
        (TRAIN, TEST, {"seeds": ()}, "seeds"),
        (TRAIN, TEST, {"seeds": (-1,)}, "seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_cannot_be_probed(train: Data, test: Data, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        probe_encoder(Fixed(rows), train, test, **options)  # type: ignore[arg-type]


def test_baseline_is_the_better_of_pixels_and_an_untrained_network() -> None:
    encoder = small_encoder()
    state = {name: tensor.clone() for name, tensor in encoder.module.state_dict().items()}
    found = baseline(encoder, TRAIN, TEST, seeds=(0, 1))
    assert found.pixels is not None
    assert found.accuracy == max(found.pixels.accuracy, found.random.accuracy) > 0.9
    assert found.random.seeds == found.pixels.seeds == (0, 1)
    # Its weights are not read: another encoder of the same architecture has the same baseline.
    torch.nn.init.zeros_(next(encoder.module.parameters()))
    assert baseline(encoder, TRAIN, TEST, seeds=(0, 1)) == found
    for name, tensor in small_encoder().module.state_dict().items():
        assert torch.equal(tensor, state[name])
    worse = replace(found.random, accuracy=0.1)
    assert Baseline(found.pixels, worse).accuracy == found.pixels.accuracy
    assert Baseline(None, worse).accuracy == 0.1


class Counts:
    """A preprocessing of items that are not pictures: here, the mean of each row as a vector."""

    def prepare(self, batch: object, /) -> torch.Tensor:
        assert isinstance(batch, torch.Tensor)
        return batch.float().mean(-1).flatten(1) / 255

    def normalise(self, prepared: torch.Tensor, /) -> torch.Tensor:
        return prepared.unflatten(1, (1, 4, 4))

    def to_json(self) -> dict[str, object]:
        return {}


def test_items_that_are_not_pictures_have_the_untrained_network_alone() -> None:
    found = baseline(replace(small_encoder(), preprocess=Counts()), TRAIN, TEST)
    assert found.pixels is None
    assert found.accuracy == found.random.accuracy
