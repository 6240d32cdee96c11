"""Independent float64 values to compare the losses with."""

import numpy as np

COUNTS = np.array([5000, 1077, 232, 50])


def cross_entropy(z, y):
    z = z - z.max(1, keepdims=True)
    return np.mean(np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y])


def batch(scale=1.0):
    rng = np.random.default_rng(0)
    return scale * rng.uniform(-1, 1, (12, 4)), rng.integers(4, size=12)
