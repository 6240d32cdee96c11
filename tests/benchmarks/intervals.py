"""Coverage of the intervals for new images, by simulation, 2,000 comparisons each.

    python -m tests.benchmarks.intervals [--comparisons 2000]

Crossed: differences are a sum of normal effects of repeats, images and both, of very different sizes, on classes of equal and
of unequal size, weighted as accuracy and as balanced accuracy. Corrected resampled t: 100 repeats with correlations from 0
to .4, at n_test/n_train = .25, for which it assumes .2.
"""

import argparse
import sys

import numpy as np

from scor_lightning.comparison.intervals import Crossed, resampled

LOW, HIGH = 0.93, 0.97  # allowed coverage of 95 % intervals; the upper bound applies from ten repeats on
CONSERVATIVE = 0.985  # upper bound if the effects of repeats and images are both near zero
COMPONENTS = {  # standard deviations of the effects of repeats, images, and both
    "all": (0.02, 0.3, 0.5),
    "repeats": (0.05, 0.05, 0.3),
    "images": (0.002, 0.5, 0.2),
    "interaction alone": (0.0, 0.0, 0.5),
}
SIZES = [(5, 360, 10), (10, 360, 10), (10, 10_000, 100), (50, 1000, 10), (200, 360, 10)]  # repeats, images, classes


def crossed_coverage(
    repeats: int, target: np.ndarray, balanced: bool, components: tuple[float, float, float], comparisons: int
) -> float:
    """Return the share of 95 % intervals that contain the true difference."""
    generator = np.random.default_rng(0)
    of_repeat, of_image, of_both = components
    sizes = np.bincount(target)
    weights = np.full(len(sizes), 1 / len(sizes)) if balanced else sizes / len(target)
    held = 0
    for _ in range(comparisons):
        differences = of_both * generator.standard_normal((repeats, len(target)), dtype=np.float32)
        differences += of_repeat * generator.standard_normal((repeats, 1), dtype=np.float32)
        differences += of_image * generator.standard_normal(len(target), dtype=np.float32)
        interval = Crossed(differences, target).interval(weights, 0.95)
        held += interval.low <= 0 <= interval.high
    return held / comparisons


def resampled_coverage(correlation: float, comparisons: int, repeats: int = 100, ratio: float = 0.25) -> float:
    """Return the share of 95 % intervals that contain the true difference."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(comparisons, 1)) * correlation**0.5
    values = shared + generator.normal(size=(comparisons, repeats)) * (1 - correlation) ** 0.5
    intervals = [resampled(each, ratio, 0.95) for each in values]
    return sum(each is not None and each.low <= 0 <= each.high for each in intervals) / comparisons


def main() -> None:
    """Print the coverages; exit with 1 if one is out of bounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--comparisons", type=int, default=2000)
    comparisons = parser.parse_args().comparisons
    tolerance = 3 * (0.05 * 0.95 / comparisons) ** 0.5 if comparisons < 2000 else 0.0  # for a quick check
    missed = False
    for repeats, images, classes in SIZES:
        for unequal in (False, True):
            share = np.geomspace(10, 1, classes) if unequal else np.ones(classes)
            target = np.repeat(np.arange(classes), np.maximum(2, share / share.sum() * images).astype(int))
            for balanced in (False, True) if unequal else (False,):
                found = {
                    name: crossed_coverage(repeats, target, balanced, each, comparisons)
                    for name, each in COMPONENTS.items()
                }
                kind = "balanced accuracy" if balanced else "accuracy"
                cells = "  ".join(f"{name} {coverage:.1%}" for name, coverage in found.items())
                print(
                    f"crossed, {repeats:>3} repeats, {len(target):>6,} images, {classes:>3} classes, {kind}: {cells}",
                    flush=True,
                )
                for name, coverage in found.items():
                    high = 1.0 if repeats < 10 else CONSERVATIVE if name == "interaction alone" else HIGH
                    missed |= not LOW - tolerance <= coverage <= high + tolerance
    for correlation in (0.0, 0.1, 0.2, 0.4):
        print(f"corrected resampled t, correlation {correlation}: {resampled_coverage(correlation, comparisons):.1%}")
    missed |= not LOW - tolerance <= resampled_coverage(0.2, comparisons) <= HIGH + tolerance
    sys.exit(missed)


if __name__ == "__main__":
    main()
