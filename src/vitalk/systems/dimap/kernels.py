"""Products that skip zeros: linear layers by sparse matrices, for torch on a CPU."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.vision.cost import latencies


class SparseLinear(nn.Module):
    """A pruned linear layer that multiplies by its nonzero weights only (compressed rows, MKL's kernel on x86).

    For inference. layer: the pruned layer, whose bias it shares; its weight is copied.
    Raises UserError when it is exported: ONNX has no sparse product.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that compressed rows are in beta
            weight = layer.weight.detach().to_sparse_csr()
        # Three plain tensors, as torch can neither copy nor save modules with sparse ones.
        self.register_buffer("starts", weight.crow_indices().int())
        self.register_buffer("columns", weight.col_indices().int())
        self.register_buffer("values", weight.values().clone())
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def rows(self) -> Tensor:
        """The weight [out, in], in compressed rows."""
        size = self.out_features, self.in_features
        return torch.sparse_csr_tensor(self.starts, self.columns, self.values, size, check_invariants=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        if torch.compiler.is_exporting():
            raise UserError("sparse products cannot be exported; export the pruned network itself, or slim it")
        with torch.autocast(x.device.type, enabled=False):
            columns = x.reshape(-1, self.in_features).to(self.values.dtype).T
            out = (self.rows() @ columns).T.reshape(*x.shape[:-1], self.out_features)  # 10 times faster than F.linear
            return (out if self.bias is None else out + self.bias).to(x.dtype)

    def dense(self) -> nn.Linear:
        """The layer that it was made of."""
        layer = nn.Linear(self.in_features, self.out_features, device="meta")
        layer.weight, layer.bias = nn.Parameter(self.rows().to_dense(), requires_grad=False), self.bias
        return layer


def sparse_linears(model: nn.Module, density: float = 0.2) -> nn.Module:
    """A copy of a pruned ``model`` whose linear layers of at most this density multiply sparsely; for inference.

    ``crossover`` says what density pays on a machine; 0.2 is safe where torch has MKL. Layers whose weight the module
    around them uses by itself (Swin v2's and BEiT's ``qkv``) stay dense.
    Raises UserError for densities outside (0, 1], and where no layer is as sparse.
    """
    if not 0 < density <= 1:
        raise UserError(f"density must be in (0, 1], got {density}")

    def sparse(parent: nn.Module, layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or getattr(parent, "q_bias", None) is not None:
            return None
        return SparseLinear(layer) if float((layer.weight != 0).float().mean()) <= density else None

    replaced = _replaced(model, sparse)
    if not any(isinstance(module, SparseLinear) for module in replaced.modules()):
        raise UserError(f"no linear layer has a density of {density} or less; prune it further or raise density")
    return replaced


def dense_linears(model: nn.Module) -> nn.Module:
    """The pruned network that ``sparse_linears`` made ``model`` of; ``model`` itself where that is not so."""
    if not any(isinstance(module, SparseLinear) for module in model.modules()):
        return model
    return _replaced(model, lambda _, layer: layer.dense() if isinstance(layer, SparseLinear) else None)


def crossover(out: int = 1536, inner: int = 384, tokens: int = 196, rounds: int = 7) -> float:
    """The largest density at which a sparse product of these sizes is faster than the dense one, on this machine now.

    Defaults: the first MLP layer of Swin's third stage. Found by bisection to 0.02; 0 where sparsity never pays.
    """
    x, chance = torch.randn(tokens, inner), torch.rand(out, inner)
    dense = nn.Linear(inner, out)

    def pays(density: float) -> bool:
        layer = nn.Linear(inner, out)
        layer.weight = nn.Parameter(torch.where(chance < density, layer.weight.detach(), 0.0))
        sparse = SparseLinear(layer)
        with torch.inference_mode():
            taken = latencies({"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, 2, rounds)
        return taken["sparse"] < taken["dense"]

    low, high = 0.0, 1.0
    while high - low > 0.02:
        middle = (low + high) / 2
        low, high = (middle, high) if pays(middle) else (low, middle)
    return low


def _replaced(model: nn.Module, instead: Callable[[nn.Module, nn.Module], nn.Module | None]) -> nn.Module:
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (other := instead(parent, child)) is not None:
                setattr(parent, name, other)
    return model
