"""Random models that are far from uniform and slow to end, so that lists are long and a wrong number shows."""

import torch

from yaofang.glm.loading import LoadedModel


def peaked(loaded: LoadedModel) -> LoadedModel:
    """Sharpen the logits of a random model and make its stop as unlikely as its separator is likely."""
    with torch.no_grad():
        loaded.model.model.norm.weight.mul_(15.0)
        embedding = loaded.model.model.embed_tokens.weight
        embedding[loaded.template.stop_id] = -embedding[loaded.template.encode("、")[0]]
    return loaded
