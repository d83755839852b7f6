"""Components: which weights move while the rest of the network stays at the anchor."""

from lightning_slt.components.component import Component
from lightning_slt.components.resolving import FULL, resolve_components

__all__ = ["FULL", "Component", "resolve_components"]
