"""The classes of each specialist, from clusters of classes."""

from __future__ import annotations

import numpy as np

from ensemble_kd.ensemble.clusters import Clustering, check_sizes, collapse
from ensemble_kd.errors import InputError


def assign_classes(
    matrix: np.ndarray,
    clustering: Clustering,
    *,
    classes_per_specialist: int | None = None,
    overlap: bool = True,
    min_size: int = 2,
    max_size: int | None = None,
) -> list[tuple[int, ...]]:
    """The classes of each specialist, sorted, in the order of the clusters; equal sets appear once.

    overlap:  the `classes_per_specialist` columns nearest to each centroid, or as many as its cluster has,
              within `min_size` and `max_size`
    disjoint: the clusters themselves. Larger ones than `max_size` (or `classes_per_specialist`) keep their
              nearest classes, smaller ones than `min_size` are dissolved, least first; the classes set free
              go to the nearest cluster with room, and where there is none stay without a specialist

    Classes with label -1 have no specialist. Raises InputError for sizes that cannot be.
    """
    num_classes = len(matrix)
    check_sizes(num_classes, classes_per_specialist, min_size, max_size)
    limit = min(max_size or num_classes - 1, num_classes - 1)
    distances = clustering.distances(matrix)
    counts = np.bincount(clustering.labels[clustering.labels >= 0], minlength=clustering.num_clusters)
    if overlap:
        available = int(counts.sum())
        sizes = [min(classes_per_specialist or max(int(n), min_size), limit, available) for n in counts]
        order = np.argsort(distances, axis=0, kind="stable")  # (C, K)
        clusters = [order[:size, k].tolist() for k, size in enumerate(sizes)]
    else:
        limit = min(limit, classes_per_specialist or limit)
        clusters = _disjoint(clustering.labels, distances, min_size, limit)
        # Many clusters of one class, dissolved, may add up to a large one; some growth was asked for.
        largest = max(map(len, clusters), default=0)
        if num_classes > 6 and clustering.num_clusters > 2 and largest > num_classes * 0.75:
            raise InputError(collapse(largest, num_classes, "after small clusters were dissolved"))
    clusters = [cluster for cluster in clusters if len(cluster) >= min_size]
    if not clusters:
        raise InputError(
            f"clusters: none of {clustering.num_clusters} clusters has {min_size} classes; "
            "lower clusters.num_clusters or clusters.min_size"
        )
    return list(dict.fromkeys(tuple(sorted(cluster)) for cluster in clusters))


def _disjoint(labels: np.ndarray, distances: np.ndarray, min_size: int, limit: int) -> list[list[int]]:
    free: list[int] = []
    clusters: dict[int, list[int]] = {}
    for k in range(distances.shape[1]):
        members = np.flatnonzero(labels == k)
        members = members[np.argsort(distances[members, k], kind="stable")]
        clusters[k] = members[:limit].tolist()
        free += members[limit:].tolist()
    while True:
        # The classes set free so far, nearest first, so that a small cluster may grow before it goes.
        for c in sorted(free, key=lambda c: (float(distances[c, list(clusters)].min()), c)):
            room = [k for k, members in clusters.items() if len(members) < limit]
            if room:
                clusters[min(room, key=lambda k: (distances[c, k], k))].append(c)
        least = min(clusters, key=lambda k: (len(clusters[k]), k))
        if len(clusters[least]) >= min_size:
            return list(clusters.values())
        free = clusters.pop(least)
        if not clusters:
            return []
