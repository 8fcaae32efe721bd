"""The two discriminators that keep content, speaker and words apart (arXiv 2404.18094, D_p and D_t)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from vitalk.speech.acoustic.ecapa import TDNN, AttentivePooling, Res2
from vitalk.speech.acoustic.fft_block import length_mask


class PhonemeDiscriminator(nn.Module):
    """D_p: do two vectors of a speaker come from one utterance, and so share words? [batch, dim] twice -> [batch].

    The paper says neither its layers nor its loss (unconfirmed): a perceptron of two layers and binary cross-entropy
    are ours. The speaker encoder learns to leave it undecided.
    """

    def __init__(self, dim: int, hidden: int = 256):
        super().__init__()
        layers = [nn.Linear(2 * dim, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # noqa: D102
        return self.layers(torch.cat([a, b], 1))[:, 0]

    def losses(self, first: Tensor, second: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """(what it minimises itself, what the speaker encoder minimises: the paper's L_se).

        first, second: vectors [batch, dim] of two slices of an utterance; other: of another one of the speaker. The
        first loss moves nothing but the discriminator; the second, cross-entropy to "one half" less its least value,
        nothing but what made the vectors.
        """
        a, b = torch.cat([first, other]), torch.cat([second, second])
        same = torch.cat([torch.ones_like(first[:, 0]), torch.zeros_like(first[:, 0])])
        own = F.binary_cross_entropy_with_logits(self(a.detach(), b.detach()).float(), same.float())
        frozen = {name: weight.detach() for name, weight in self.named_parameters()}
        undecided = functional_call(self, frozen, (a, b)).float()
        return own, F.binary_cross_entropy_with_logits(undecided, torch.full_like(undecided, 0.5)) - math.log(2)


class TimbreDiscriminator(nn.Module):
    """D_t: is content the text's own, or is a speaker left in it? [batch, latent, frames] -> [batch].

    Res2Net layers and attentive statistics pooling as in the paper; their number and widths are (unconfirmed).
    """

    def __init__(self, latent: int, dim: int = 128, layers: int = 2):
        super().__init__()
        self.enter = TDNN(latent, dim, 5)
        self.blocks = nn.ModuleList(Res2(dim, 4, dilation=i + 2) for i in range(layers))
        self.pool, self.leave = AttentivePooling(dim, dim // 2), nn.Linear(2 * dim, 1)

    def forward(self, content: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        x = self.enter(content, mask)
        for block in self.blocks:
            x = x + block(x, mask)
        return self.leave(self.pool(x, mask))[:, 0]

    def loss(self, prior: Tensor, content: Tensor, lengths: Tensor) -> Tensor:
        """Binary cross-entropy (the paper's L_td) of draws of the text's prior against what the flow made.

        prior, content: [batch, latent, frames]; the first moves nothing, the second whatever made it.
        """
        mask = length_mask(lengths, content.shape[2]).repeat(2, 1)
        # Both in one pass, so that they have the same batch statistics.
        said = self(torch.cat([prior.detach(), content]), mask).float()
        free = torch.cat([said.new_ones(len(prior)), said.new_zeros(len(content))])
        return F.binary_cross_entropy_with_logits(said, free)


def cut(x: Tensor, lengths: Tensor, share: float, place: Tensor) -> tuple[Tensor, Tensor]:
    """A slice of each item: x [batch, channels, frames] -> ([batch, channels, shorter], its lengths int64 [batch]).

    share: of the item's frames that it has. place: where it lies, [batch] from 0, the beginning, to 1, the end.
    Frames behind a slice hold anything.
    """
    sizes = (lengths * share).long().clamp(min=1)
    start = ((lengths - sizes) * place).long()
    index = start[:, None] + torch.arange(int(sizes.max()), device=x.device)
    return x.gather(2, index.clamp(max=x.shape[2] - 1)[:, None].expand(-1, x.shape[1], -1)), sizes
