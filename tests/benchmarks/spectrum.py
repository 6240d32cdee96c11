"""The spectra of ResNet-50 against `torch.linalg.svdvals` layer by layer, side by side in one run.

    python tests/benchmarks/spectrum.py [--rounds 5] [--large]

Both decompose the 54 weight matrices in float32; they alternate, and the ratio is that of the fastest runs. The error is
relative to the largest singular value, against float64 `svdvals`. `--large` decomposes a linear layer of 65536 x 2048 (134
million weights) instead, and prints the additional memory.
"""

import argparse
import resource
import time

import torch
import torchvision
from torch import nn

from scor_lightning import weight_spectrum
from scor_lightning.spectrum import select_layers


def per_layer(matrices: list[torch.Tensor]) -> float:
    """Return the seconds of `svdvals` for one matrix after another."""
    started = time.perf_counter()
    for matrix in matrices:
        torch.linalg.svdvals(matrix)
    return time.perf_counter() - started


def resnet50(rounds: int) -> None:
    """Print the seconds of both, their ratio, and the error."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50(weights=None)
    matrices = {name: layer.weight.flatten(1) for name, layer in select_layers(network).layers.items()}
    ours, theirs = [], []
    for _ in range(rounds):
        theirs.append(per_layer(list(matrices.values())))
        found = weight_spectrum(network)
        ours.append(found.seconds)
    error = float32 = 0.0
    for name, matrix in matrices.items():
        exact = torch.linalg.svdvals(matrix.double())
        error = max(error, float((found.layers[name].values - exact).abs().max() / exact[0]))
        float32 = max(float32, float((torch.linalg.svdvals(matrix) - exact).abs().max() / exact[0]))
    print(f"{len(matrices)} matrices of ResNet-50, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"svdvals float32  {min(theirs):6.2f} s  error {float32:.0e}  {[round(s, 2) for s in theirs]}")
    print(f"weight_spectrum  {min(ours):6.2f} s  error {error:.0e}  {[round(s, 2) for s in ours]}")
    print(f"ratio            {min(ours) / min(theirs):6.3f}  (at most 0.45)")


def large() -> None:
    """Print the seconds and the memory of one large layer."""
    network = nn.Linear(65536, 2048, bias=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = weight_spectrum(network)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    size = network.weight.nbytes / 2**20
    print(f"65536 x 2048: {found.seconds:.1f} s, {peak:.0f} MiB beside the {size:.0f} MiB of the weights")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    large() if options.large else resnet50(options.rounds)
