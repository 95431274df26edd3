"""What a split that divides copies of one picture claims, beside one that keeps them on one side.

``twinbud train --measure-leak`` trains both. The naive split, which ignores identical images and near-duplicates, tests
on pictures that the network has learned from; this file counts them, and measures how much they add.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from twinbud.evaluation.bootstrap import Interval
from twinbud.evaluation.metrics import EvaluationMetrics


@dataclass(frozen=True, kw_only=True)
class LeakMetrics:
    """Accuracy of the grouped split, of the naive split, and of the test images of the naive split in two parts.

    All accuracies are shares of images in [0, 1].
    """

    grouped_num_test: int
    """Test images where identical images and near-duplicates are on one side."""
    grouped_accuracy: float
    """Accuracy on them, of the delivered model."""
    grouped_interval: Interval | None
    """Its 95 % interval; None where it is undefined."""
    naive_num_test: int
    """Test images where they may be on both sides."""
    naive_accuracy: float
    """Accuracy on them, of the second model."""
    naive_interval: Interval | None
    """Its 95 % interval; None where it is undefined."""
    difference: float
    """What the naive split claims in addition: its accuracy less that of the grouped split."""
    num_shown: int
    """Test images of the naive split with an identical image or a near-duplicate among those learned from."""
    shown_accuracy: float | None
    """Accuracy of the second model on these; None if there is none."""
    others_accuracy: float | None
    """Accuracy of the second model on the other test images; None if there is none."""

    @property
    def rows(self) -> dict[str, tuple[int, float | None, Interval | None]]:
        """Number of test images, accuracy and its interval of each row of a table, by name."""
        num_others = self.naive_num_test - self.num_shown
        return {
            "copies on one side (the delivered model)": (
                self.grouped_num_test,
                self.grouped_accuracy,
                self.grouped_interval,
            ),
            "copies on both sides (naive)": (self.naive_num_test, self.naive_accuracy, self.naive_interval),
            "… with a copy among the images learned from": (self.num_shown, self.shown_accuracy, None),
            "… without such a copy": (num_others, self.others_accuracy, None),
        }

    @property
    def claim(self) -> str:
        """What the naive split would claim, as a sentence."""
        points = 100 * self.difference
        how = (
            "as much as" if abs(points) < 0.05 else f"{abs(points):.1f} points {'more' if points > 0 else 'less'} than"
        )
        start = "A split that ignores near-duplicates and identical images would claim an accuracy of"
        naive, grouped = (f"{100 * share:.1f}\u00a0%" for share in (self.naive_accuracy, self.grouped_accuracy))
        copies = f"{self.num_shown:,} of its {self.naive_num_test:,} test images have a copy"
        return f"{start} {naive}, {how} the {grouped} of this run. {copies} among the images learned from."


def shown_in_training(
    digests: Sequence[str],
    near_pairs: Collection[tuple[int, int]],
    *,
    test: Collection[int],
    learned: Collection[int],
    blank: Collection[str] = (),
) -> frozenset[int]:
    """Return the test images with an identical image or a near-duplicate among those learned from.

    Of identical images only one is in ``near_pairs``; it stands for all of them.

    Args:
        digests: For each image, the SHA-256 of its pixels.
        near_pairs: Pairs of near-duplicates, as indices of images.
        test: Indices of the test images.
        learned: Indices of the images that the network learns from.
        blank: Digests of blank images, whose copies tell nothing.
    """
    same_picture: dict[str, set[str]] = defaultdict(set)
    for first, second in near_pairs:
        same_picture[digests[first]].add(digests[second])
        same_picture[digests[second]].add(digests[first])
    known = {digests[index] for index in learned} - set(blank)
    return frozenset(index for index in test if known & {digests[index], *same_picture.get(digests[index], ())})


def compare_splits(
    grouped: EvaluationMetrics, naive: EvaluationMetrics, is_correct: Mapping[int, bool], shown: Collection[int]
) -> LeakMetrics:
    """Compare the results of both splits.

    Args:
        grouped: Metrics of the split that keeps copies on one side.
        naive: Metrics of the split that does not.
        is_correct: For each test image of the naive split, whether the second model classifies it correctly.
        shown: Those of them that ``shown_in_training`` finds.
    """
    return LeakMetrics(
        grouped_num_test=grouped.num_test,
        grouped_accuracy=grouped.accuracy,
        grouped_interval=grouped.confidence_intervals["accuracy"],
        naive_num_test=naive.num_test,
        naive_accuracy=naive.accuracy,
        naive_interval=naive.confidence_intervals["accuracy"],
        difference=naive.accuracy - grouped.accuracy,
        num_shown=len(shown),
        shown_accuracy=_share([is_correct[index] for index in shown]),
        others_accuracy=_share([correct for index, correct in is_correct.items() if index not in shown]),
    )


def _share(correct: Sequence[bool]) -> float | None:
    return sum(correct) / len(correct) if correct else None
