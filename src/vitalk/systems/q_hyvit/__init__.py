"""Q-HyViT."""

from .choice import choices
from .method import q_hyvit

__all__ = ["choices", "q_hyvit"]
