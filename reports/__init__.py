"""Turns the JSON of an evaluation into a page and a card."""
