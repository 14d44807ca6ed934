"""Continued pretraining on plain text: recipe, blocks, perplexity on held-out text."""
