"""The network with exits: every exit at once for training, and batches that shrink as pictures leave."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitalk.errors import UserError
from vitalk.vision.wrapper import Wrapper

from .checkpoint import checkpoint_filter_fn
from .heads import KINDS, Exit, ExitHead, GlobalAggregation, LinearHead, LocalPerception, reset_classifier
from .rules import Kind, Rule
from .trunks import checked_layers, trunk_of


@dataclass(frozen=True)
class Pass:
    """All that one pass through every layer and head gives.

    exits: from shallow to deep. logits: the final classifier's, [batch, classes]. hidden: the token map that leaves
    the last layer, before its norm, [batch, rows, columns, dim].
    """

    exits: list[Exit]
    logits: Tensor
    hidden: Tensor

    def stacked(self) -> Tensor:
        """The logits of all exits and, last, of the final classifier: [exits + 1, batch, classes]."""
        return torch.stack([*(e.logits for e in self.exits), self.logits])


@dataclass(frozen=True)
class Left:
    """Where pictures left, in the order in which they came in.

    logits: [batch, classes], of the exit that each left at. layer: [batch], its layer, counted from 1; the depth of
    the network for those that went all the way.
    """

    logits: Tensor
    layer: Tensor


class LGViT(Wrapper):
    """A timm ViT, DeiT or Swin with a classifier behind some of its layers; itself a timm backbone.

    In eval mode a call is early-exit inference by ``rule``, which may be replaced at any time: pictures that leave are
    taken out of the batch, and later layers run on the others alone. In training mode it is the plain network. An
    exported graph cannot shrink: it runs everything and gives each picture the logits of its exit.

    layers: after which an exit stands, counted from 1. kinds: of their heads, see ``heads.KINDS``. The state dict has
    the plain model's own keys and those of the heads under ``exits.``, so weights of either load into the other.
    Raises UserError for models, layers and kinds that do not go together.
    """

    inside, own = "trunk.vit.", ("trunk.", "exits.")
    checkpoint_filter_fn = staticmethod(checkpoint_filter_fn)

    def __init__(self, vit: nn.Module, layers: Sequence[int | float] | None, kinds: str | Sequence[str], rule: Rule):
        super().__init__()
        self.trunk = trunk_of(vit)
        if layers is None and kinds == "vit":
            layers = (0.5,)  # ViT-EE has a single exit: after layer 6 of 12
        self.layers = self.trunk.default_layers(None) if layers is None else checked_layers(layers, self.trunk.depth)
        self.kinds = self._kinds(kinds)
        self.exits = nn.ModuleList(
            self._head(kind, layer - 1) for kind, layer in zip(self.kinds, self.layers, strict=True)
        )
        self.rule, self.grad_checkpointing = rule, False

    def forward(self, images: Tensor) -> Tensor:
        """images [batch, channels, height, width] -> logits [batch, classes]."""
        if self.training or self.rule.never(len(self.exits)):
            return self.vit(images)
        if torch.compiler.is_exporting():
            logits = self.forward_exits(images).stacked()
            return chosen_logits(logits, self.rule.decide(self.rule.score(logits[:-1])))
        return self.infer(images).logits

    def forward_exits(self, images: Tensor, frozen: bool = False) -> Pass:
        """Every head on images [batch, channels, height, width].

        frozen: no gradients through the layers, only through the heads.
        """
        exits, x = [], None
        for index in range(self.trunk.depth):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                x = self._layer(index, self.trunk.embed(images) if x is None else x)
            if index + 1 in self.layers:
                exits.append(self.exits[len(exits)](*self.trunk.split(x, images.shape[-2:])))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            return Pass(exits, self.trunk.classify(x), self.trunk.split(x, images.shape[-2:])[0])

    def infer(self, images: Tensor) -> Left:
        """Early-exit inference on images [batch, channels, height, width]; each as if it were alone.

        Where the rule can never fire no head is asked. Raises UserError where a head's logits are NaN or infinite.
        """
        asked = not self.rule.never(len(self.exits))
        state = self.rule.begin(len(images), images.device)
        rows, gone, x, index = torch.arange(len(images)), [], self.trunk.embed(images), 0
        for number in range(1, self.trunk.depth + 1):
            x = self._layer(number - 1, x)
            if not asked or number not in self.layers:
                continue
            logits = self.exits[index](*self.trunk.split(x, images.shape[-2:])).logits
            score = self.rule.score(logits)
            leave, state = self.rule.step(score, state)
            index += 1
            out = self._settled(leave, score, number)
            if not out.any():
                continue
            who, stay = (mask.nonzero().squeeze(1) for mask in (out, ~out))
            gone.append((rows[who], logits[who.to(x.device)], number))
            if not len(stay):
                break
            rows, kept = rows[stay], stay.to(x.device)
            x, state = x[kept], state[kept]
        else:
            gone.append((rows, self.trunk.classify(x), self.trunk.depth))
        order = torch.cat([part for part, _, _ in gone]).argsort()
        layer = torch.cat([torch.full((len(part),), number) for part, _, number in gone])
        logits = torch.cat([part for _, part, _ in gone])
        return Left(logits[order.to(logits.device)], layer[order].to(logits.device))

    def _layer(self, index: int, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.trunk.layer, index, x, use_reentrant=False)
        return self.trunk.layer(index, x)

    def _settled(self, leave: Tensor, score: Tensor, layer: int) -> Tensor:
        """``leave`` on the CPU. The check for NaN rides on this transfer, which the loop waits for anyway."""
        settled = (leave + 2 * score.isnan()).cpu()
        if (settled > 1).any():
            raise UserError(
                f"the exit after layer {layer} gives NaN or infinite logits for {int((settled > 1).sum())} of "
                f"{len(leave)} pictures; check the pictures and weights, or use float32"
            )
        return settled > 0

    def _kinds(self, kinds: str | Sequence[str]) -> tuple[str, ...]:
        if kinds == "lgvit":
            return self.trunk.order(self.layers)
        kinds = (kinds,) * len(self.layers) if isinstance(kinds, str) else tuple(kinds)
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise UserError(f"there is no kind of exit head {unknown[0]!r}; choose lgvit or {', '.join(KINDS)}")
        if len(kinds) != len(self.layers):
            raise UserError(f"{len(kinds)} kinds of head were given for {len(self.layers)} exits; give one or one each")
        return kinds

    def _head(self, kind: str, index: int) -> ExitHead | LinearHead:
        dim, special, classes = self.trunk.dims[index], self.trunk.special, self.vit.num_classes
        if kind in ("linear", "vit"):
            layer = self.trunk.encoder_layer(index) if kind == "vit" else None
            return LinearHead(dim, special, classes, layer)
        body = (LocalPerception if kind.startswith("lph") else GlobalAggregation)(dim, int(kind[-1]))
        return ExitHead(body, dim, special, classes)

    @property
    def vit(self) -> nn.Module:
        """The wrapped timm model."""
        return self.trunk.vit

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New classifiers for ``num_classes`` classes, at every exit and at the end."""
        for head in self.exits:
            reset_classifier(head, num_classes)
        super().reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade compute for memory in training: each layer is run again in the backward pass."""
        self.grad_checkpointing = enable
        super().set_grad_checkpointing(enable)


def lgvit(
    vit: VisionTransformer | SwinTransformer,
    exits: int | None = None,
    layers: Sequence[int | float] | None = None,
    heads: str | Sequence[str] = "lgvit",
    rule: Kind = "confidence",
    threshold: float | None = None,
    patience: int | None = None,
) -> LGViT:
    """Exits for the (trained) timm model ``vit``, which becomes part of the result (arXiv 2308.00255, section 3).

    exits: how many, placed by share of the depth; None for the paper's eight, or as many as a shallow model has room
    for. layers: after which instead, counted from 1, or as shares of the depth in (0, 1). heads: "lgvit" for the
    paper's order, one of ``heads.KINDS`` for all, or one each. rule, threshold, patience: see ``rules.Rule``.

    The heads are new: train them, see ``training``. Raises UserError for what does not go together.
    """
    if exits is not None and layers is not None:
        raise UserError(f"give the number of exits ({exits}) or their layers ({list(layers)}), not both")
    chosen = Rule(rule, threshold, patience)
    if exits is not None:
        layers = trunk_of(vit).default_layers(exits)
    return LGViT(vit, layers, heads, chosen)


class AtExit(nn.Module):
    """The network cut off at one exit, for a device that can afford so many layers and no more.

    images [batch, channels, height, width] -> logits [batch, classes] of exit ``index`` (from 0; -1 for the last). It
    asks no other head, and an exported file holds nothing else. Raises UserError for exits that do not exist.
    """

    def __init__(self, model: LGViT, index: int):
        super().__init__()
        if not -len(model.exits) <= index < len(model.exits):
            raise UserError(f"there is no exit {index}; the model has {len(model.exits)}, counted from 0")
        self.model, self.index = model, range(len(model.exits))[index]
        self.train(model.training)  # a wrapper would be in training mode, and pass it on when its mode is restored

    def forward(self, images: Tensor) -> Tensor:
        """The logits of the one exit."""
        x = self.model.trunk.embed(images)
        for index in range(self.model.layers[self.index]):
            x = self.model.trunk.layer(index, x)
        return self.model.exits[self.index](*self.model.trunk.split(x, images.shape[-2:])).logits


class EveryExit(nn.Module):
    """The whole network: images -> logits [batch, exits + 1, classes] of all exits, the final classifier last."""

    def __init__(self, model: LGViT):
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """All logits."""
        return self.model.forward_exits(images).stacked().transpose(0, 1)


def chosen_logits(logits: Tensor, chosen: Tensor) -> Tensor:
    """logits [exits + 1, batch, classes] and the exit of each sample [batch] -> its logits [batch, classes]."""
    return logits.gather(0, chosen[None, :, None].expand(1, -1, logits.shape[2]))[0]
