"""Which classes do the teachers confuse? Covariance of predictions in one pass, and its clusters.

The specialists of Hinton, Vinyals and Dean (arXiv 1503.02531, section 5.2): k-means on the columns of the
covariance matrix of the generalist's predicted probabilities. No labels are needed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix, diags
from sklearn.cluster import KMeans, kmeans_plusplus
from sklearn.exceptions import ConvergenceWarning

from ensemble_kd.ensemble.covariance import check_matrix, confusion_captured, confusion_mass
from ensemble_kd.errors import InputError

METHODS = ("kmeans", "online", "spectral")
LARGE = 1024
"""Above this many classes columns are projected and the affinity is sparse; below, all is exact."""
PROJECTED = 256
"""Dimensions of projected columns: squared distances keep to about 1 +- sqrt(2 / 256) = 9%."""
NEIGHBOURS = 64
"""Entries that the sparse affinity keeps for each class."""
UNCONFUSED = 1e-3
"""A class whose positive covariances add up to less than this share of its variance is left out."""
MOST_CLUSTERS = 512
"""What `auto` tries at most where there are more than `LARGE` classes."""


@dataclass(frozen=True)
class Clustering:
    """A partition of the columns."""

    labels: np.ndarray
    """(C,) the cluster of each class; -1 for classes that nobody confuses."""
    centroids: np.ndarray
    """(K, C) mean of the columns of each cluster, normalised ones where `normalise`."""
    normalise: bool

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    def distances(self, matrix: np.ndarray) -> np.ndarray:
        """(C, K) squared distance of each column to each centroid; infinite for classes left out."""
        squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)  # (C,)
        products = (matrix @ self.centroids.T).astype(np.float64)  # the matrix is symmetric
        if self.normalise:
            products /= _norms(squares)[:, None]
            squares = (squares > 0).astype(np.float64)
        centroids = np.einsum("ij,ij->i", self.centroids, self.centroids, dtype=np.float64)
        distances = np.maximum(squares[:, None] - 2 * products + centroids, 0)
        distances[self.labels < 0] = np.inf
        return distances


def cluster_columns(
    matrix: np.ndarray,
    *,
    method: str = "kmeans",
    num_clusters: int | str = "auto",
    seed: int = 0,
    normalise: bool = True,
) -> Clustering:
    """Clusters of the columns of a symmetric matrix (C, C), a covariance or `confusion_affinity`.

    kmeans:   scikit-learn's, best of several starts
    online:   MacQueen's, as in the paper: c = argmin_j |x - mu_j|^2; n_c += 1; mu_c += (x - mu_c) / n_c.
              Deviations: k-means++ start, up to ten passes in random order, the best of several starts
    spectral: k-means on the unit rows of the leading eigenvectors of D^-1/2 A D^-1/2 (Ng, Jordan and
              Weiss, 2001), where A is the positive part of the correlation (of the matrix, where not
              `normalise`) without its diagonal

    `normalise` scales columns to length 1; without it frequent classes dominate. Classes that nobody
    confuses (see `UNCONFUSED`) get label -1.

    `auto` takes the number of clusters with the largest share of confusion captured less the share of the
    pairs of classes that its clusters hold, sum_k [captured_k - n_k (n_k - 1) / (C (C - 1))]: 0 for one
    cluster of all, and 0 in expectation for random ones. Up to 256 classes all of 2 .. C / 2 are tried,
    above that a geometric grid and then the numbers around the best; equal scores give fewer clusters.

    Above `LARGE` classes no second matrix of that size is made: k-means runs on a random projection to
    `PROJECTED` dimensions, spectral clustering keeps the `NEIGHBOURS` largest entries of each row. The
    same seed gives the same clusters; they are numbered by their least class. Fewer than `num_clusters`
    come back where fewer columns differ.

    Raises InputError for more clusters than classes, where no two classes are confused, and where one
    cluster holds more than half of all classes although more than two clusters were asked for.
    """
    if method not in METHODS:
        raise ValueError(f"method: {', '.join(METHODS)}, got {method!r}")
    matrix = np.asarray(matrix)
    check_matrix(matrix)
    num_classes = len(matrix)
    if num_clusters != "auto" and (not isinstance(num_clusters, int | np.integer) or num_clusters < 1):
        raise InputError(f"clusters.num_clusters: 'auto' or an integer above 0, got {num_clusters!r}")
    masses = confusion_mass(matrix)
    chosen = np.flatnonzero(masses > UNCONFUSED * np.maximum(np.diagonal(matrix), 0))  # classes
    if len(chosen) < 2:
        raise InputError(
            f"clusters: no two of {num_classes} classes are confused, so there is nothing to specialise on; "
            "soften the predictions (clusters.temperature=3) or run without specialists"
        )
    if num_clusters != "auto" and int(num_clusters) > len(chosen):
        left_out = num_classes - len(chosen)
        raise InputError(
            f"clusters.num_clusters: {num_clusters} clusters of {len(chosen)} classes"
            + (f" ({left_out} more are confused with no other)" if left_out else "")
            + f"; ask for at most {max(len(chosen) // 2, 1)}, or 'auto'"
        )
    if num_clusters == "auto":
        tried = _candidates(len(chosen))
        points = _points(matrix, chosen, method, normalise, seed, max(tried))
        local = _auto(matrix, chosen, points, tried, masses.sum(), method=method, seed=seed)
        asked = int(local.max()) + 1
    else:
        asked = int(num_clusters)
        points = _points(matrix, chosen, method, normalise, seed, asked)
        local = _partition(points, asked, method, seed)
    if _collapsed(local, num_classes, asked):
        raise InputError(collapse(int(np.bincount(local).max()), num_classes, f"{method}, {num_clusters}"))
    labels = np.full(num_classes, -1)
    labels[chosen] = local
    return Clustering(labels, _centroids(matrix, labels, normalise), normalise)


def check_sizes(num_classes: int, per_specialist: int | None, min_size: int, max_size: int | None) -> None:
    problems = []
    if per_specialist is not None and not 2 <= per_specialist < num_classes:
        problems.append(
            f"clusters.classes_per_specialist: {per_specialist} of {num_classes} classes; a specialist needs "
            f"2 to {num_classes - 1}, so that it has something to tell apart and something to leave out"
        )
    if min_size < 2:
        problems.append(f"clusters.min_size: {min_size}; a cluster of one class tells nothing apart, use 2")
    if max_size is not None and max_size < min_size:
        problems.append(f"clusters.max_size: {max_size} is below clusters.min_size = {min_size}; raise it")
    if per_specialist is not None and not min_size <= per_specialist <= (max_size or per_specialist):
        problems.append(
            f"clusters.classes_per_specialist: {per_specialist} lies outside clusters.min_size = {min_size} "
            f"and clusters.max_size = {max_size}; change one of them"
        )
    if problems:
        raise InputError(problems)


def _norms(squares: np.ndarray) -> np.ndarray:
    """Lengths, 1 for columns of zeros, which stay as they are."""
    return np.sqrt(np.where(squares > 0, squares, 1.0))


def _points(
    matrix: np.ndarray, chosen: np.ndarray, method: str, normalise: bool, seed: int, most: int
) -> np.ndarray:
    """What k-means sees of the chosen classes: columns, projected ones, or eigenvectors (chosen, `most`)."""
    if method == "spectral":
        return _eigenvectors(matrix, chosen, normalise, seed, most)
    squares = np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64)
    points = matrix
    if len(matrix) > LARGE:
        projection = np.random.default_rng(seed).standard_normal((len(matrix), PROJECTED), dtype=np.float32)
        points = matrix @ (projection / np.float32(PROJECTED**0.5)).astype(matrix.dtype)
    points = points[chosen].astype(np.float64)
    if normalise:
        return points / _norms(squares)[chosen, None]
    return points / np.sqrt(squares.max())  # one factor for all: scikit-learn's tolerances are not relative


def _eigenvectors(
    matrix: np.ndarray, chosen: np.ndarray, normalise: bool, seed: int, most: int, rows: int = 1024
) -> np.ndarray:
    scale = np.ones(len(chosen))
    if normalise:
        scale = 1 / _norms(np.maximum(np.diagonal(matrix)[chosen], 0).astype(np.float64))
    keep = NEIGHBOURS if len(matrix) > LARGE else len(chosen)
    entries = []
    for i in range(0, len(chosen), rows):
        part = matrix[np.ix_(chosen[i : i + rows], chosen)] * (scale[i : i + rows, None] * scale)
        part = np.maximum(part, 0)
        local = np.arange(len(part))
        part[local, i + local] = 0
        if keep < len(chosen):
            cut = np.partition(part, -keep, axis=1)[:, -keep, None]
            part[part < cut] = 0
        row, column = np.nonzero(part)
        entries.append((row + i, column, part[row, column]))
    row, column, value = (np.concatenate(parts) for parts in zip(*entries, strict=True))
    affinity = coo_matrix((value, (row, column)), shape=(len(chosen), len(chosen))).tocsr()
    affinity = affinity.maximum(affinity.T)
    inverse = diags(1 / np.sqrt(np.maximum(np.asarray(affinity.sum(1)).ravel(), 1e-300)))
    normal = inverse @ affinity @ inverse
    if len(chosen) <= LARGE:
        return np.linalg.eigh(normal.toarray())[1][:, ::-1][:, :most]
    # Subspace iteration: Lanczos may miss copies of an eigenvalue, and each separate group has one of 1.
    width = min(most + 10, len(chosen))
    basis = np.random.default_rng(seed).standard_normal((len(chosen), width))
    for _ in range(30):
        for _ in range(4):
            basis = (normal @ basis + basis) / 2  # eigenvalues within 0 .. 1
        basis = np.linalg.qr(basis)[0]
    values, vectors = np.linalg.eigh(basis.T @ (normal @ basis))
    return basis @ vectors[:, ::-1][:, :most]


def _partition(points: np.ndarray, k: int, method: str, seed: int, starts: int = 10) -> np.ndarray:
    """Labels (n,), numbered by each cluster's first row."""
    if k == 1:
        return np.zeros(len(points), dtype=np.int64)
    if method == "online":
        labels = _macqueen(points, k, seed, starts)
    else:
        if method == "spectral":
            points = points[:, :k]
            points = points / _norms((points**2).sum(1))[:, None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer than k different columns
            fitted = KMeans(k, n_init=starts, random_state=seed % 2**32, tol=1e-6).fit(points)
        labels = fitted.labels_
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def _macqueen(points: np.ndarray, k: int, seed: int, starts: int, passes: int = 10) -> np.ndarray:
    generator = np.random.default_rng(seed)
    squares = (points**2).sum(1)
    best: tuple[float, Any] = (np.inf, None)
    for _ in range(starts):
        centroids, _ = kmeans_plusplus(points, k, random_state=int(generator.integers(2**31)))
        halves, counts = (centroids**2).sum(1) / 2, np.ones(k)
        before = None
        for _ in range(passes):
            for i in generator.permutation(len(points)):
                c = int((halves - centroids @ points[i]).argmin())
                counts[c] += 1
                centroids[c] += (points[i] - centroids[c]) / counts[c]
                halves[c] = centroids[c] @ centroids[c] / 2
            distances = squares[:, None] + 2 * (halves - points @ centroids.T)  # (n, k)
            labels = distances.argmin(1)
            if before is not None and (labels == before).all():
                break
            before = labels
        inertia = float(distances.min(1).sum())
        if inertia < best[0] - 1e-12:
            best = (inertia, labels)
    return best[1]


def _candidates(num_classes: int) -> list[int]:
    most = num_classes // 2
    if most <= 128:
        return list(range(2, most + 1)) or [1]
    if num_classes > LARGE:
        most = min(most, MOST_CLUSTERS)
    return sorted({round(k) for k in np.geomspace(2, most, 20)})


def _auto(
    matrix: np.ndarray,
    chosen: np.ndarray,
    points: np.ndarray,
    candidates: list[int],
    total: float,
    *,
    method: str,
    seed: int,
) -> np.ndarray:
    found: dict[int, tuple[float, np.ndarray]] = {}
    pairs = max(len(chosen) * (len(chosen) - 1), 1)

    def best() -> int:
        return max(found, key=lambda k: (found[k][0], -k))

    def look(numbers: list[int]) -> None:
        for k in numbers:
            if k in found:
                continue
            labels = _partition(points, k, method, seed, starts=4 if len(points) <= LARGE else 2)
            # Two clusters may well differ in size; but three quarters in one is no finding either.
            if _collapsed(labels, len(matrix), k) or (k == 2 and _collapsed(labels, len(matrix), k, 0.75)):
                collapsed.append((k, labels))
                continue
            clusters = [np.flatnonzero(labels == c) for c in range(labels.max() + 1)]
            score = sum(
                confusion_captured(matrix, chosen[members].tolist(), total)
                - len(members) * (len(members) - 1) / pairs
                for members in clusters
            )
            found[k] = (round(score, 9), labels)  # rounded: equal is equal on any machine

    collapsed: list[tuple[int, np.ndarray]] = []
    look(candidates)
    if collapsed and all(k <= 2 for k in found):
        k, labels = collapsed[-1]
        raise InputError(collapse(int(np.bincount(labels).max()), len(matrix), f"{method}, auto"))
    if len(candidates) > 1 and max(np.diff(candidates)) > 1:
        at = candidates.index(best())
        low, high = candidates[max(at - 1, 0)], candidates[min(at + 1, len(candidates) - 1)]
        look(sorted({round(k) for k in np.linspace(low, high, 10)}))
    return _partition(points, best(), method, seed) if best() > 1 else found[best()][1]


def _collapsed(labels: np.ndarray, num_classes: int, asked: int, share: float = 0.5) -> bool:
    enough = asked > 2 or share > 0.5
    share = max(share, 0.75) if num_classes <= 20 else share  # of ten classes, six may well belong together
    return num_classes > 6 and enough and int(np.bincount(labels).max()) > num_classes * share


def collapse(size: int, num_classes: int, how: str) -> str:
    return (
        f"clusters: {size} of {num_classes} classes fell into one cluster ({how}); soften the predictions "
        "(clusters.temperature=3), scale the columns (clusters.normalise=true), or try another "
        "clusters.method (kmeans, online, spectral)"
    )


def _centroids(matrix: np.ndarray, labels: np.ndarray, normalise: bool) -> np.ndarray:
    """(K, C) means of the (normalised) columns of each cluster."""
    chosen = np.flatnonzero(labels >= 0)
    weights = np.ones(len(matrix))
    if normalise:
        weights = 1 / _norms(np.einsum("ij,ij->i", matrix, matrix, dtype=np.float64))
    shares = np.zeros((labels.max() + 1, len(matrix)), dtype=matrix.dtype)
    shares[labels[chosen], chosen] = weights[chosen] / np.bincount(labels[chosen])[labels[chosen]]
    return shares @ matrix
