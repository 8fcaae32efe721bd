from .method import parse_bits, repq_vit, restore, skeleton

__all__ = ["parse_bits", "repq_vit", "restore", "skeleton"]
