"""A training step of each backbone, as ``vitalk train`` takes it, against how timm or the release computes it.

Both sides have the same network, sizes and batch: forward pass, loss and backward pass, without the optimizer, whose
work is the same. The other side is timm's model as it comes, or the release's way of computing, written down here from
its description; DualToken-ViT, which has neither, meets a plain ViT of as many multiply-accumulates.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from vitalk.measurement import machine
from vitalk.systems.gmm_vit.mask import GaussianMixtureMask
from vitalk.systems.tic.layers import MSAConv
from vitalk.systems.volo.dense import dense_logits, draw_box
from vitalk.vision.classifier import Classifier
from vitalk.vision.cost import latencies

Step = Callable[[], object]
CLASSES = 10


class UnfoldedMSAConv(nn.Module):
    """MSA-Conv as the release checks its kernel: keys and values unfolded to one column a tap.

    layer: the one whose parameters it shares; one with shift, half resolution or masked borders has no such form.
    """

    def __init__(self, layer: MSAConv) -> None:
        super().__init__()
        self.qkv, self.heads, self.window = layer.qkv, layer.num_heads, layer.window

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, dim, height, width] -> the same shape."""
        q, k, v = self.qkv(x).chunk(3, 1)
        window = self.window
        taps = window.kernel[0] * window.kernel[1]
        keys, values = (
            F.unfold(part, window.kernel, window.dilation, window.reach).unflatten(1, (self.heads, -1, taps))
            for part in (k, v)
        )  # [batch, heads, head_dim, taps, places]
        queries = q.flatten(2).unflatten(1, (self.heads, -1, 1))
        weights = (queries * keys).sum(2, keepdim=True).mul((q.shape[1] // self.heads) ** -0.5).softmax(3)
        return (weights * values).sum(3).reshape(x.shape)


class PowerMask(nn.Module):
    """The Gaussian mixture mask as the release computes it: a table of all pairs raised to a power for each Gaussian.

    mask: the one whose parameters it shares.
    """

    table: Tensor

    def __init__(self, mask: GaussianMixtureMask) -> None:
        super().__init__()
        self.sigma, self.alpha, self.prefix, self.grid = mask.sigma, mask.alpha, mask.prefix, mask.grid
        place = torch.cartesian_prod(*(torch.arange(side) for side in mask.grid)).float()
        self.register_buffer("table", (-torch.cdist(place, place).square() / 2).exp(), persistent=False)

    def forward(self) -> Tensor:
        """The mask [heads, patches, patches]."""
        power = 1 / (self.sigma.square() + 1e-5)
        return (self.alpha[..., None, None] * self.table ** power[..., None, None]).sum(0)


def volo(images: Tensor, labels: Tensor) -> tuple[Step, Step]:
    """Both heads on mix-token, ours in channels_last, against timm's ``forward_train``."""
    name, arguments = "volo_d1_224", {}
    model, theirs = _trained(name, arguments), _timm(name, arguments)

    def ours(x: Tensor) -> Tensor:
        logits = dense_logits(model, x, draw_box(14, 14))
        return F.cross_entropy(logits.image, labels) + logits.tokens.mean()

    def peer(x: Tensor) -> Tensor:
        features, tokens, _ = theirs.forward_train(x)
        return F.cross_entropy(theirs.head(features), labels) + tokens.mean()

    return partial(_step, model, ours, _last(images)), partial(_step, theirs, peer, images)


def tic(images: Tensor, labels: Tensor) -> tuple[Step, Step]:
    """MSA-Conv tap by tap, against unfolded maps; without shift and pooling, which the release does not have."""
    arguments = {"shift": False, "pool": False, "padding": "zeros"}
    theirs = _timm("tic_tiny", arguments)
    for module in list(theirs.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, MSAConv):
                setattr(module, child, UnfoldedMSAConv(layer))
    return _pair(_trained("tic_tiny", arguments), theirs, images, labels)


def gmm_vit(images: Tensor, labels: Tensor) -> tuple[Step, Step]:
    """Masks looked up from the distinct distances, against a power of the whole table for each Gaussian."""
    theirs = _timm("gmm_vit", {}, fused_attn=False)
    for module in list(theirs.modules()):
        for child, mask in list(module.named_children()):
            if isinstance(mask, GaussianMixtureMask):
                setattr(module, child, PowerMask(mask))
    return _pair(_trained("gmm_vit", {}), theirs, images, labels)


def same(
    name: str, images: Tensor, labels: Tensor, peer: str | None = None, peer_args: dict[str, Any] | None = None,
    fused_attn: bool = True,
) -> tuple[Step, Step]:  # fmt: skip
    """The model ``name`` as it is trained, against ``peer`` (the same model where None) as timm makes it.

    fused_attn: False multiplies the peer's attention out, as releases do.
    """
    return _pair(_trained(name, {}), _timm(peer or name, peer_args or {}, fused_attn), images, labels)


# Name: the model that is shown, pixels, batch, what it meets, and the two steps.
CONTESTS: dict[str, tuple[str, int, int, str, Callable[[Tensor, Tensor], tuple[Step, Step]]]] = {
    "volo": ("volo_d1_224", 224, 4, "timm's forward_train", volo),
    "next-vit": ("nextvit_small", 224, 8, "timm, contiguous", partial(same, "nextvit_small")),
    "dhvt": (
        "dhvt_tiny_imagenet_patch16", 224, 8, "release: contiguous, attention multiplied out",
        partial(same, "dhvt_tiny_imagenet_patch16", fused_attn=False),
    ),
    "dualtoken-vit": (
        "dualtoken_vit_small_mix", 224, 8, "timm's ViT of equal MACs (vit_tiny, 9 blocks)",
        partial(same, "dualtoken_vit_small_mix", peer="vit_tiny_patch16_224", peer_args={"depth": 9}),
    ),
    "tic": ("tic_tiny", 224, 2, "release: unfolded maps", tic),
    "gmm-vit": ("gmm_vit", 32, 64, "release: powers of a table of all pairs", gmm_vit),
    "vir": (
        "vir_tiny_patch16_224", 224, 8, "release: softmax over the masked products",
        partial(same, "vir_tiny_patch16_224", peer_args={"mode": "release_softmax"}),
    ),
}  # fmt: skip


def contest(names: list[str], repeats: int) -> dict[str, Any]:
    """A record with one row a backbone: milliseconds a step of both sides, the ratio, and ours in bfloat16."""
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(names))
        for name in names:
            progress.update(task, description=name)
            rows.append(measure(name, repeats))
            progress.advance(task)
    return {
        "machine": machine(),
        "note": "Milliseconds of a forward and backward pass, float32, medians of steps taken in turns; a ratio above 1"
        " is in favour of ours. bf16: ours under autocast, and its ratio to ours in float32.",
        "rows": rows,
    }


def measure(name: str, repeats: int) -> dict[str, Any]:
    """The row of the backbone ``name``."""
    model, size, batch, peer, build = CONTESTS[name]
    torch.manual_seed(0)
    ours, theirs = build(torch.randn(batch, 3, size, size), torch.randint(CLASSES, (batch,)))

    def bf16() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            ours()

    taken = latencies({"ours": ours, "theirs": theirs, "bf16": bf16}, warmup=2, repeats=repeats)
    return {
        "name": name, "model": model, "pixels": size, "batch": batch, "against": peer,
        "ms": 1000 * taken["ours"], "peer_ms": 1000 * taken["theirs"], "ratio": taken["theirs"] / taken["ours"],
        "bf16_ms": 1000 * taken["bf16"], "ratio_bf16": taken["ours"] / taken["bf16"],
    }  # fmt: skip


def _trained(name: str, arguments: dict[str, Any]) -> nn.Module:
    return Classifier(name, arguments, CLASSES, fused_attn=False).model.train()


def _timm(name: str, arguments: dict[str, Any], fused_attn: bool = True) -> nn.Module:
    model = timm.create_model(name, num_classes=CLASSES, **arguments).train()
    for module in model.modules():
        if hasattr(module, "fused_attn") and not fused_attn:
            module.fused_attn = False
    return model


def _pair(ours: nn.Module, theirs: nn.Module, images: Tensor, labels: Tensor) -> tuple[Step, Step]:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(model(x), labels)

    mine = partial(_step, ours, partial(loss, ours), _last(images))
    return mine, partial(_step, theirs, partial(loss, theirs), images)


def _step(model: nn.Module, loss: Callable[[Tensor], Tensor], images: Tensor) -> float:
    model.zero_grad(set_to_none=True)
    value = loss(images)
    value.backward()
    return value.item()


def _last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)
