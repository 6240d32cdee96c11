"""Export of a classifier to ONNX."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def export_onnx(
    classifier: nn.Module,
    logits: Callable[[Tensor], Tensor],
    sample: Tensor,
    metadata: Mapping[str, Any],
    file_path: Any = None,
    **kwargs: Any,
) -> Any:
    """Write a classifier as an ONNX model: images ``[B, C, H, W]`` in, probabilities ``[B, K]`` out.

    Args:
        classifier: The module that is exported in evaluation mode.
        logits: Its function from images to logits.
        sample: Two images to trace it with.
        metadata: Metadata of the model, stored as JSON.
        file_path: File to write; None writes no file.
        **kwargs: As of ``torch.onnx.export``.

    Returns:
        The ``torch.onnx.ONNXProgram``.

    Raises:
        ImportError: If the packages for ONNX are not installed.
    """
    modes = {module: module.training for module in classifier.modules()}
    try:
        program: Any = torch.onnx.export(
            _Probabilities(classifier, logits).eval(),
            (sample,),
            input_names=["images"],
            output_names=["probabilities"],
            **{"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},), "verbose": False, **kwargs},
        )
    except ImportError as error:
        raise ImportError(f"ONNX needs other packages: {error}; `pip install 'scor-lightning[onnx]'`") from error
    finally:
        for module, training in modes.items():
            module.training = training
    program.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    if file_path is not None:
        program.save(file_path)
    return program


class _Probabilities(nn.Module):
    def __init__(self, classifier: nn.Module, logits: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.classifier = classifier  # whose weights are exported
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits(images).softmax(dim=-1)
