"""The linear probe: multinomial logistic regression, trained to convergence, its penalty chosen on held-out items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from sslguard.errors import UsageError
from sslguard.probes.task import ProbeResult, Task, checked_seed

# L2 penalties on standardised features, from strong to weak. Each fit starts from the solution of the one before.
L2_GRID = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
HOLD_OUT = 0.2


def linear_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    seed: int = 0,
    l2_grid: Sequence[float] = L2_GRID,
) -> ProbeResult:
    """Return the accuracy of a converged multinomial logistic regression on standardised features.

    It minimises the mean cross-entropy + l2/2·|W|² (the intercept is not penalised) by L-BFGS on the full batch in
    float64. l2 is the value of `l2_grid` with the least cross-entropy on a held-out fifth of the training items,
    stratified by class. The final fit uses all training items. The problem is that of scikit-learn's
    LogisticRegression(C=1/(l2·n)).

    Args:
        train_x: float (n, d), finite.
        train_y: int (n,), at least 0, at least two classes.
        test_x: float (n', d), finite.
        test_y: int (n',), classes of train_y.
        seed: Seed of the split that chooses l2.
        l2_grid: Positive penalties to choose from.

    Raises:
        UsageError: Shapes, types or values are not as above.
        DataError: Labels are missing, there is one class only, or a class occurs only in `test_y`.
    """
    checked_seed(seed)
    task = Task.of(train_x, train_y, test_x, test_y)
    grid = sorted((float(value) for value in l2_grid), reverse=True)
    if not grid or not all(0 < value < np.inf for value in grid):
        raise UsageError(f"l2_grid must hold positive numbers, not {list(l2_grid)}")
    test = torch.from_numpy(task.standardised()[1])
    axes, weights, details = _fit(task, grid, seed)
    predicted = _logits(test @ axes, weights).argmax(1).numpy()
    return task.result("linear", predicted, seed, details)


def linear_classifier(
    train_x: ArrayLike, train_y: ArrayLike, *, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Train the regression of `linear_probe` and return it as a linear map of unstandardised features.

    Args:
        train_x: float (n, d), finite.
        train_y: int (n,), at least 0, at least two classes.
        seed: Seed of the split that chooses l2.

    Returns:
        Weights (d, classes) and intercepts (classes,), float64. Columns are in the order of the sorted classes.

    Raises:
        UsageError: Shapes, types or values are not as above.
        DataError: Labels are missing, or there is one class only.
    """
    checked_seed(seed)
    task = Task.of(train_x, train_y, train_x, train_y)
    axes, weights, _ = _fit(task, sorted(L2_GRID, reverse=True), seed)
    mean, scale = task.standard()
    linear = (axes @ weights[:-1]).numpy() / scale[:, None]
    return linear, weights[-1].numpy() - mean @ linear


def class_shares(x: ArrayLike, labels: ArrayLike, *, l2: float = 1e-4) -> NDArray[np.float64]:
    """Return P(class | x) of a multinomial logistic regression on the same items, float64 (n, classes).

    Args:
        x: float (n, d), finite; columns of few deviations count for little, as they are not standardised.
        labels: int (n,), 0 to the number of classes less 1.
        l2: Penalty, in units of the mean variance of x.
    """
    rows, y = torch.from_numpy(np.array(x, dtype=np.float64)), torch.from_numpy(np.array(labels, dtype=np.int64))
    rows = rows - rows.mean(0)
    rows = rows / rows.square().mean().sqrt().clamp_min(1e-300)
    variance, axes = _principal_axes(rows)
    rows = rows @ axes
    problem = _Softmax(rows, y, int(y.max()) + 1, variance, l2)
    weights, _ = problem.solve(None, tolerance=1e-4, iterations=100)
    return np.asarray(torch.softmax(_logits(rows, weights), 1).numpy())


def _fit(task: Task, grid: Sequence[float], seed: int) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Return axes (d, r) of the standardised features, weights (r + 1, classes) on them, and the details of the fit."""
    train, labels = torch.from_numpy(task.standardised()[0]), torch.from_numpy(task.train_y)
    n_classes = len(task.classes)
    variance, axes = _principal_axes(train)
    train = train @ axes
    l2, start = _choose_l2(train, labels, n_classes, variance, grid, seed)
    problem = _Softmax(train, labels, n_classes, variance, l2)
    weights, converged = problem.solve(start, tolerance=1e-5, iterations=1000)
    return axes, weights, {"l2": l2, "converged": float(converged)}


def _choose_l2(
    x: Tensor, y: Tensor, n_classes: int, variance: Tensor, grid: Sequence[float], seed: int
) -> tuple[float, Tensor | None]:
    """Return the penalty with the least held-out cross-entropy, and its weights, from which the final fit starts."""
    held = torch.from_numpy(_held_out(y.numpy(), seed))
    if not held.any() or len(grid) == 1:
        # With one item a class, or one penalty, there is nothing to choose by or from.
        return grid[len(grid) // 2], None
    best: tuple[float, float, Tensor | None] = (np.inf, grid[0], None)
    worse, weights = 0, None
    for l2 in grid:
        problem = _Softmax(x[~held], y[~held], n_classes, variance, l2)
        weights, _ = problem.solve(weights, tolerance=1e-4, iterations=200)
        loss = float(nnf.cross_entropy(_logits(x[held], weights), y[held]))
        worse = 0 if loss < best[0] else worse + 1
        if not worse:
            best = (loss, l2, weights)
        # From strong to weak penalties, the loss falls and then rises. Weaker penalties are also slower to fit.
        if worse == 2:
            break
    return best[1], best[2]


def _held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """Return a mask that holds out a fifth of each class, and at least one item of every class that has two."""
    generator = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            held[members[: max(1, round(HOLD_OUT * len(members)))]] = True
    return held


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return variances (r,) and directions (d, r) of centred features (n, d), leaving out directions of no variance.

    A rotation leaves |W|² and so the problem unchanged. With fewer items than features, only r < n directions remain.
    """
    wide = x.shape[1] > len(x)
    variance, axes = torch.linalg.eigh((x @ x.T if wide else x.T @ x) / len(x))
    kept = variance > variance.max().clamp(min=1e-300) * 1e-12
    variance, axes = variance[kept], axes[:, kept]
    return variance, x.T @ axes / (len(x) * variance).sqrt() if wide else axes


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


class _Softmax:
    """Mean cross-entropy + l2/2·|W|² as a function of weights (r + 1, classes).

    The intercept is the last row and not penalised.
    """

    def __init__(self, x: Tensor, y: Tensor, n_classes: int, variance: Tensor, l2: float) -> None:
        self.x, self.target, self.l2 = x, nnf.one_hot(y, n_classes).to(x.dtype), l2
        # In units of 1/√curvature at W = 0, every direction is equally steep, which saves nine steps of ten.
        scale = (variance / n_classes + l2).rsqrt()
        self.scale = torch.cat([scale, scale.new_ones(1)])[:, None]

    def objective(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient at weights/scale.

        The gradient is computed by hand, because autograd fails in a caller's inference mode.
        """
        weights = scaled * self.scale
        log_share = torch.log_softmax(_logits(self.x, weights), 1)
        residual = (log_share.exp() - self.target) / len(self.x)
        slope = torch.cat([self.x.T @ residual + self.l2 * weights[:-1], residual.sum(0, keepdim=True)])
        value = -(self.target * log_share).sum() / len(self.x) + self.l2 / 2 * weights[:-1].square().sum()
        return value, slope * self.scale

    def solve(self, start: Tensor | None, *, tolerance: float, iterations: int) -> tuple[Tensor, bool]:
        """Return the minimum, and whether the largest element of the scaled gradient is within `tolerance`."""
        scaled = self.x.new_zeros(len(self.scale), self.target.shape[1])
        if start is not None:
            scaled = start / self.scale

        def evaluate() -> Tensor:
            value, scaled.grad = self.objective(scaled)
            return value

        optimiser = torch.optim.LBFGS(
            [scaled],
            max_iter=iterations,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=tolerance,
            tolerance_change=1e-14,
        )
        optimiser.step(evaluate)
        return scaled * self.scale, bool(self.objective(scaled)[1].abs().max() <= tolerance)
