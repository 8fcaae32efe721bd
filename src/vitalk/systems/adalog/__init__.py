"""AdaLog."""

from vitalk.nn.quant import parse_bits

from .method import Kind, adalog, restore
from .search import Search

__all__ = ["Kind", "Search", "adalog", "parse_bits", "restore"]
