"""DIMAP: prune the weights of a Swin (or any ViT) in one shot, by a score that needs no data.

He and Zhou, "Data-independent Module-aware Pruning for Hierarchical Vision Transformers", ICLR 2024, arXiv 2404.13648.

A weight is worth the share that it has in what is alive of its module when its turn to go has come: its square by the
sum of squares of it and all larger ones. Such shares can be compared between modules and stages of different scale,
so one threshold for the whole network decides, and small attention weights are not wiped out by large MLP weights.
The masks then stay fixed while the network is fine-tuned.

    vitalk train dimap --preset finetune --model.init_args.init=runs/dimap-cpu/model.safetensors
    vitalk train dimap --preset slim --model.init_args.init=runs/dimap-cpu/model.safetensors

    >>> from vitalk.systems.dimap import Masks, dimap, records, slim, sparse_cost, sparse_linears, write_sparse
    >>> masks = dimap(model, 0.7)                      # in place; 70 % of the weights are zeros now
    >>> masks = dimap(model, 0.525, of="macs")         # or as many as save 52.5 % of the MACs
    >>> min(masks.density.values()), sparse_cost(model).macs
    >>> Masks.of(model)                                # found again in a file of pruned weights

``PrunedClassifier`` fine-tunes with the masks fixed, ``SlimClassifier`` a slimmed network. The baselines of the paper's
comparison are rankings of the same function: ``ranking="global"``, "uniform", "lamp", "random" and "taylor".

What it gains. Dense kernels multiply by zeros as fast as by anything else: the MACs of ``sparse_cost`` are theoretical,
and the file alone shrinks (``write_sparse``: a bit a weight, and the values that live; ``unpack`` makes it an ordinary
file again). Two ways make a CPU faster: ``sparse_linears`` multiplies by the nonzero weights only, for torch, where
layers are sparse enough (``crossover`` measures how sparse); ``slim(model, rate)`` removes whole heads and hidden
units by the same scores (ours) and gives a smaller dense network, which exports to ONNX, can be quantized, and loads by
the name ``dimap_slim``. ``records`` sets cost on paper against time and file size.

The paper leaves open how far a module extends and what is auxiliary: by default both layers of a block's MLP, its qkv,
and its projection are a module each; patch merging is pruned, patch embedding and head are not (``aux``). No code was
published; the score of one layer is LAMP's. Rates by MACs or parameters end where the paper's bisection would.
"""

from .cost import Record, SparseCost, records, sparse_cost
from .kernels import SparseLinear, crossover, dense_linears, sparse_linears
from .layers import partition
from .masks import Masks
from .method import dimap
from .models import dimap_slim, dimap_swin_cifar
from .scores import group_scores, rank
from .slim import slim
from .storage import read_sparse, unpack, write_sparse
from .training import PrunedClassifier, SlimClassifier

__all__ = [
    "Masks",
    "PrunedClassifier",
    "Record",
    "SlimClassifier",
    "SparseCost",
    "SparseLinear",
    "crossover",
    "dense_linears",
    "dimap",
    "dimap_slim",
    "dimap_swin_cifar",
    "group_scores",
    "partition",
    "rank",
    "read_sparse",
    "records",
    "slim",
    "sparse_cost",
    "sparse_linears",
    "unpack",
    "write_sparse",
]
