"""GMM-ViT: a small vision transformer, timm's in all but its masks and its initialisation."""

from typing import Any

from timm.layers import DropPath, PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitalk.errors import UserError
from vitalk.vision.patches import Patches

from .attention import gmm_attention, resize_masks
from .checkpoint import vit_filter_fn
from .mask import MaskedProduct, MaskKind


class GMMViT(VisionTransformer):
    """The small ViT whose scores are masked by patch distance (arXiv 2309.05375): a timm ``VisionTransformer``.

    mask: "gaussian", "elementwise" (ELM), or "none" for the plain ViT; kernels: Gaussians a head.
    class_token: only the plain ViT of the paper has one; the masked ones classify the mean of their tokens. The third
    arm of a fair comparison is ``mask="none", class_token=False``. With a class token the mask leaves it out.
    drop_path_rate: the same in all blocks. The attention has no qkv bias, norms have eps 1e-5, weights start as
    Xavier's, positions and class token as N(0, 1). Further arguments are timm's; a mask needs a fixed picture size.
    Raises UserError for pictures that patches do not tile, and for masks that there are not.
    """

    checkpoint_filter_fn = staticmethod(vit_filter_fn)

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        patch_size: int = 4,
        embed_dim: int = 192,
        depth: int = 9,
        num_heads: int = 12,
        mlp_ratio: float = 2.0,
        mask: MaskKind = "gaussian",
        kernels: int = 5,
        class_token: bool | None = None,
        global_pool: str | None = None,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ) -> None:
        if class_token is None:
            class_token = mask == "none"
        if kwargs.get("patch_drop_rate") and mask != "none":
            raise UserError("a mask needs every patch in its place; leave patch_drop_rate at 0, or take mask='none'")
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=False,
            class_token=class_token,
            global_pool=("token" if class_token else "avg") if global_pool is None else global_pool,
            norm_layer=nn.LayerNorm,
            embed_layer=PatchEmbed if kwargs.get("dynamic_img_size") else Patches,
            **kwargs,
        )
        constant_drop_path(self.blocks, drop_path_rate)
        gmm_attention(self, mask, kernels)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialise as the authors do; other ``mode``s are timm's."""
        super().init_weights(mode, needs_reset)
        if not (mode or self.weight_init_mode):
            xavier(self)
            for table in (self.pos_embed, self.cls_token, self.reg_token):
                if table is not None:
                    nn.init.normal_(table)
            for module in self.modules():
                if isinstance(module, MaskedProduct):
                    module.mask.reset_parameters()

    def no_weight_decay(self) -> set[str]:
        """None: the authors decay positions, class token and masks too, and biases and norms as well."""
        return set()

    def set_input_size(self, img_size: int | tuple[int, int] | None = None, patch_size: Any = None) -> None:
        """Read pictures of another size; Gaussian masks keep their widths in patches, element-wise ones refuse."""
        super().set_input_size(img_size, patch_size)
        resize_masks(self)


def constant_drop_path(blocks: nn.Module, rate: float) -> None:
    """Give all timm blocks in ``blocks`` the same drop path rate, as the authors do, instead of a rising one."""
    for block in blocks.modules():
        if hasattr(block, "drop_path1"):
            block.drop_path1, block.drop_path2 = (DropPath(rate) if rate else nn.Identity() for _ in range(2))


def xavier(model: nn.Module) -> None:
    """Xavier-normal weights and zero biases in all linear layers and convolutions."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
