"""Trie, conflict mask, logits processors and the Recommender."""
