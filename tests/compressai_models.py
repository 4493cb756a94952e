"""CompressAI's models with random weights that leave nothing zero, for the tests that compare with them."""

import torch
from torch import nn


def random_weights(compressai, kind: str, *arguments, **options) -> nn.Module:
    """A class of compressai.models: latents, medians, contexts and reconstruction offsets are not all zero."""
    torch.manual_seed(1)
    model = getattr(compressai.models, kind)(*arguments, **options).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if part.endswith("quantiles"):
                parameter[:, 0, 1] += torch.rand(len(parameter)) * 3
            elif "context_prediction" in part or part.endswith(("entropy_parameters.4.bias", "h_s.4.bias")):
                parameter.add_(torch.rand_like(parameter) * (0.05 if "weight" in part else 1))
            elif "factor" in part:
                parameter.uniform_(-0.5, 0.5)
            elif part == "gayn2zqstep.4.bias":
                parameter.add_(0.4)
        last = [layer for layer in model.g_a if isinstance(layer, nn.Conv2d)][-1]
        last.weight.mul_(100 if kind.startswith("Elic") else 40)
    model.update(force=True)
    return model
