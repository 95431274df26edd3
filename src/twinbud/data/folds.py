"""Divide a set 80/20: stratified by class, with groups of images that stay on one side.

The test part is the first of five folds of scikit-learn's StratifiedGroupKFold (StratifiedKFold if every image is a
group of its own) that is not much larger than a fifth; with several labels an image, the folds are those of iterative
stratification. A class too rare for its fifth still gets one group on each side: its smallest group is moved.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from twinbud.core.extras import import_extra
from twinbud.core.rng import stream_seed

Members = Mapping[str, np.ndarray]
"""Which of N images show each class, (N,) bool by name."""

NUM_FOLDS = 5
"""One of them is the test part."""

MAX_TEST_SHARE = 0.3
"""A fold with a larger share of the images, because it holds a large group, is the test part only if all have one."""


def connected_groups(*keys: Sequence[Hashable]) -> np.ndarray:
    """Number the groups of images that share a key, directly or through others.

    Args:
        keys: One sequence for each kind of key (patients, pixels), with one key an image. Keys of different kinds
            are never equal.

    Returns:
        (N,) int: groups are numbered in the order of their first images.
    """
    num_images = size = len(keys[0])
    nodes: list[np.ndarray] = []
    for of_kind in keys:
        numbers: dict[Hashable, int] = {}
        nodes.append(np.array([numbers.setdefault(key, size + len(numbers)) for key in of_kind], dtype=np.int64))
        size += len(numbers)
    images = np.tile(np.arange(num_images), len(keys))
    graph = coo_array((np.ones(len(images), bool), (images, np.concatenate(nodes))), (size, size))
    components = connected_components(graph, directed=False)[1][:num_images]
    _, first, groups = np.unique(components, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[groups]


def connected_pairs(num_images: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """Number the groups of images that pairs connect, directly or through others; (N,) int."""
    first, second = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), (num_images, num_images))
    return connected_components(graph, directed=False)[1]


def choose_test_part(
    labels: np.ndarray, groups: np.ndarray, split_seed: int, *, members: Members | None = None
) -> np.ndarray:
    """Choose the images to test on: about a fifth of each class, in whole groups.

    Args:
        labels: (N,) class names.
        groups: (N,) int; images of one group stay on one side.
        split_seed: Seed of the shuffle.
        members: Of several labels an image, (N,) bool for each label; None for one class an image.

    Returns:
        (N,) bool: the first fold with each class on both sides, after moving groups if need be, and with at most
        MAX_TEST_SHARE of the images; without such a fold, the first with each class on both sides; else the first.
    """
    if members is None:
        folds, members = _folds(labels, groups, split_seed), members_of(labels)
    else:
        folds = _multi_label_folds(members, groups, split_seed)
    candidates = [*folds, np.zeros(len(labels), bool)]
    has_all_classes: list[np.ndarray] = []
    for in_test in candidates:
        _put_classes_on_both_sides(in_test, members, groups)
        if all(0 < in_test[of_class].mean() < 1 for of_class in members.values()):
            if in_test.mean() <= MAX_TEST_SHARE:
                return in_test
            has_all_classes.append(in_test)
    return (has_all_classes or candidates)[0]


def members_of(labels: np.ndarray) -> Members:
    """Return which images are of each class, for one class an image."""
    return {str(name): labels == name for name in sorted(set(labels))}


def _multi_label_folds(members: Members, groups: np.ndarray, split_seed: int) -> Iterator[np.ndarray]:
    """Yield (N,) bool each: folds of iterative stratification (Sechidis et al., ECML 2011) of whole groups.

    A group has the labels of any of its images.
    """
    numbers, group_of = np.unique(groups, return_inverse=True)
    shown = np.stack([np.bincount(group_of, weights=of_label) > 0 for of_label in members.values()], axis=1)
    num_folds = min(NUM_FOLDS, len(numbers))
    if num_folds < 2:
        return
    iterstrat = import_extra(
        "iterstrat.ml_stratifiers", "multi-label", where="--task multi-label", otherwise="give a split of your own"
    )
    random_state = stream_seed("split", split_seed) % 2**32
    folds = iterstrat.MultilabelStratifiedKFold(num_folds, shuffle=True, random_state=random_state)
    for _, chosen in folds.split(shown, shown.astype(int)):
        yield np.isin(group_of, chosen)


def _folds(labels: np.ndarray, groups: np.ndarray, split_seed: int) -> Iterator[np.ndarray]:
    """Yield (N,) bool each: five folds, or as many as the number of groups or the largest class allows."""
    num_folds = min(NUM_FOLDS, len(set(groups.tolist())), max(Counter(labels.tolist()).values()))
    if num_folds < 2:
        return
    for chosen in split_folds(labels, groups, num_folds, stream_seed("split", split_seed)):
        in_test = np.zeros(len(labels), bool)
        in_test[chosen] = True
        yield in_test


def split_folds(labels: np.ndarray, groups: np.ndarray, num_folds: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the ascending (M,) int indices of each fold: stratified by class, whole groups.

    Args:
        labels: (N,) class names.
        groups: (N,) int.
        num_folds: At most the number of groups.
        seed: Seed of the shuffle.
    """
    options = {"n_splits": num_folds, "shuffle": True, "random_state": seed % 2**32}
    alone = len(set(groups.tolist())) == len(labels)
    folds = StratifiedKFold(**options) if alone else StratifiedGroupKFold(**options)
    with warnings.catch_warnings():
        # a class with fewer images than folds, which the callers see to
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for _, chosen in folds.split(labels, labels, None if alone else groups):
            yield chosen


def _put_classes_on_both_sides(in_test: np.ndarray, members: Members, groups: np.ndarray) -> None:
    """Move, for each class that one side lacks, its smallest group that leaves every class on the other side."""
    for side in (True, False):
        for of_class in members.values():
            if (in_test[of_class] == side).any():
                continue
            sizes = Counter(groups.tolist())
            for group in sorted(set(groups[of_class].tolist()), key=lambda group: (sizes[group], group)):
                moved = np.where(groups == group, side, in_test)
                others = [of_other for of_other in members.values() if (of_other & (in_test != side)).any()]
                if all((of_other & (moved != side)).any() for of_other in others):
                    in_test[:] = moved
                    break
