"""A file of Inception's weights in torch-fidelity's own layout, with random numbers: 9 MB, since its tensors share them."""

import torch
from torch import nn

from e2e_lib.evaluation.fidelity import FeatureExtractorInceptionV3
from e2e_lib.repro.files import sha256


class _Unfilled(FeatureExtractorInceptionV3):
    """The network as it is before it has read any weights."""

    def load_state_dict(self, *_, **__):
        pass


class NarrowInception(FeatureExtractorInceptionV3):
    """Inception, loaded and run as ever, of whose features the first two are taken: FID of all takes a while."""

    def forward(self, batch):
        features, logits = super().forward(batch)
        return features[:, :2], logits


def save_inception(path, seed=0):
    """Writes the file and returns its SHA-256. Activations keep their size from layer to layer."""
    torch.save({}, path)  # something to read
    with torch.device("meta"):
        empty = _Unfilled("inception", ["2048"], feature_extractor_weights_path=str(path))
    largest = max(weight.numel() for weight in empty.state_dict().values())
    numbers, state = torch.randn(largest, generator=torch.Generator().manual_seed(seed)), {}
    for name, weight in empty.state_dict().items():
        state[name] = numbers[:weight.numel()].view(weight.shape) if weight.ndim > 1 else torch.zeros(
            weight.shape, dtype=weight.dtype)
    for name, block in empty.named_modules():
        if isinstance(getattr(block, "bn", None), nn.BatchNorm2d):
            state[f"{name}.bn.weight"] = torch.ones(block.bn.num_features)
            state[f"{name}.bn.running_var"] = torch.full([block.bn.num_features], block.conv.weight[0].numel() / 2)
    torch.save(state, path)
    return sha256(path)
