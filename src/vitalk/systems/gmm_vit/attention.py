"""Masks for the attention of any timm vision transformer."""

from collections.abc import Iterator
from typing import Any, Self, TypeVar

from timm.layers import Attention
from timm.models.cait import Cait, TalkingHeadAttn
from timm.models.pit import PoolingVisionTransformer
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.nn.attention import MatMul, SiteAttention, SiteWindowAttention, split_heads

from .mask import Grid, MaskedProduct, MaskKind, make_mask

Model = TypeVar("Model", bound=nn.Module)


class TalkingHeads(TalkingHeadAttn):
    """timm's talking-heads attention in the open: both products are modules, the first before the heads are mixed.

    head_dim: dim / heads where None; bias: of the two mixings. As attention of a class block it takes ``context``.
    Further arguments, parameters and their names are timm's.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, head_dim: int | None = None, bias: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        inner = num_heads * (head_dim or dim // num_heads)
        if inner != dim:
            dd = {"device": self.proj.weight.device, "dtype": self.proj.weight.dtype}
            self.qkv = nn.Linear(dim, 3 * inner, bias=self.qkv.bias is not None, **dd)
            self.proj = nn.Linear(inner, dim, **dd)
            self.scale = head_dim**-0.5
        if not bias:
            self.proj_l.bias = self.proj_w.bias = None
        self.matmul1, self.matmul2 = MatMul(), MatMul()

    @classmethod
    def from_timm(cls, attn: TalkingHeadAttn) -> Self:
        """An attention that holds the very modules (and so the parameters) of ``attn``."""
        site = cls(attn.qkv.in_features, attn.num_heads, device="meta")
        for name in ("qkv", "attn_drop", "proj", "proj_l", "proj_w", "proj_drop"):
            setattr(site, name, getattr(attn, name))
        return site.train(attn.training)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x [batch, tokens, dim], which attends to itself or to context [batch, others, dim] -> the shape of x."""
        q, k, v = split_heads(self.qkv(x), self.num_heads)
        if context is not None:
            _, k, v = split_heads(self.qkv(context), self.num_heads)
        scores = _mix(self.proj_l, self.matmul1(q * self.scale, k.transpose(-2, -1)))
        weights = self.attn_drop(_mix(self.proj_w, scores.softmax(-1)))
        x = self.matmul2(weights, v).transpose(1, 2).flatten(2)
        return self.proj_drop(self.proj(x))


def gmm_attention(model: Model, mask: MaskKind = "gaussian", kernels: int = 5) -> Model:
    """Multiply the attention scores of a timm model by a mask a layer, in place; the model is returned.

    Takes models whose blocks hold timm's ``Attention`` (vit_*, deit_*, t2t_vit_*, pit_*: tokens on one grid, or on a
    pooled one a stage; class, distillation and register tokens stay unmasked), ``WindowAttention`` (swin_*: the mask
    is that of a window, and comes before the relative bias) and ``TalkingHeadAttn`` (cait_*: patch blocks only,
    before the heads are mixed). All parameters keep their names; a layer's mask adds ``attn.matmul1.mask.*``.

    mask: "gaussian", the mixture of ``kernels`` Gaussians a head, or "elementwise", a number a pair of patches;
    "none" leaves the model as it is.
    The scores are multiplied out, as no fused kernel takes a factor; a fused attention becomes an open one.

    Raises UserError for models without such attention, with masks already, and of no fixed picture size.
    """
    if mask == "none":
        return model
    if getattr(model, "dynamic_img_size", False):
        raise UserError(f"{type(model).__name__} takes pictures of any size, but a mask needs one; fix img_size")
    found = list(_attentions(model))
    if not found:
        raise UserError(
            f"{type(model).__name__} has no attention that takes a mask; choose a vit, deit, swin, pit, cait"
        )
    for name, attn, grid, prefix in found:
        site = _open(attn)
        if isinstance(site.matmul1, MaskedProduct):
            raise UserError(f"{name} is masked already; start from the model without masks")
        fresh = make_mask(mask, grid, attn.num_heads, kernels, prefix, like=attn.proj.weight)
        site.matmul1 = MaskedProduct(site.matmul1, fresh).train(attn.training)
        model.set_submodule(name, site)
    return model


def resize_masks(model: nn.Module) -> None:
    """Fit all masks to the grids that the model has now. Raises UserError for element-wise masks of another grid."""
    for _, attn, grid, _ in _attentions(model):
        if isinstance(product := getattr(attn, "matmul1", None), MaskedProduct):
            product.mask.set_grid(grid)


def _attentions(model: nn.Module) -> Iterator[tuple[str, nn.Module, Grid, int]]:
    """Name, module, grid and prefix tokens of each attention between patches."""
    if isinstance(model, PoolingVisionTransformer):
        grid = tuple(model.patch_embed.grid_size)
        for index, stage in enumerate(model.transformers):
            if index:
                grid = tuple((side + 1) // 2 for side in grid)
            for name, module in stage.blocks.named_modules(prefix=f"transformers.{index}.blocks"):
                if _is_plain(module):
                    yield name, module, grid, model.num_tokens
        return
    grid = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    prefix = 0 if isinstance(model, Cait) else getattr(model, "num_prefix_tokens", 0)
    blocks = getattr(model, "blocks", nn.Identity())
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            yield name, module, tuple(module.window_size), 0
    for name, module in blocks.named_modules(prefix="blocks"):
        if grid is not None and (_is_plain(module) or isinstance(module, TalkingHeadAttn)):
            yield name, module, tuple(grid), prefix


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, Attention) and type(module).forward in (Attention.forward, SiteAttention.forward)


def _open(attn: nn.Module) -> Any:
    if hasattr(attn, "matmul1"):
        return attn
    kinds = {Attention: SiteAttention, WindowAttention: SiteWindowAttention, TalkingHeadAttn: TalkingHeads}
    return next(site for kind, site in kinds.items() if isinstance(attn, kind)).from_timm(attn)


def _mix(linear: nn.Linear, scores: Tensor) -> Tensor:
    """Each head of [batch, heads, rows, columns] becomes a mixture of all."""
    return linear(scores.movedim(1, -1)).movedim(-1, 1)
