"""Supervised fine-tuning with TRL, from recipes."""
