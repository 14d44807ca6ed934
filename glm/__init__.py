"""The base model: chat template, loss mask and stop ids, loading, and the bundled tiny model."""
