"""Yaofang (药方): from a Chinese inpatient EMR to the discharge diagnoses and a safe discharge drug list.

The package's root knows its version and one lazy name, `Recommender`; everything else lives in the parts
(`yaofang.vocab`, `yaofang.data`, ...). Importing it imports neither torch nor transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yaofang.decoding.recommender import Recommender

__version__ = "0.1.0"
__all__ = ["Recommender", "__version__"]


def __getattr__(name: str) -> Any:
    """Import `Recommender` (and with it torch) on first use."""
    if name == "Recommender":
        from yaofang.decoding.recommender import Recommender

        return Recommender
    raise AttributeError(f"module 'yaofang' has no attribute {name!r}")
