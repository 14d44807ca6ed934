"""Preference pairs (safe against unsafe prescriptions) and DPO. Nothing is here yet but the place."""
