"""The variational generator: a small latent sequence with a flow as its prior (arXiv 2109.15166, section 3.2)."""

from dataclasses import dataclass

from torch import Tensor, nn

from vitalk.speech.acoustic.flows import MeanFlow, wavenet
from vitalk.speech.acoustic.noise import Draw

from .linguistic import BLOCK


@dataclass(frozen=True)
class Variational:
    """Sizes of the variational generator.

    dim, kernel: of the WaveNets of encoder and decoder, which have so many layers as ``encoder`` and ``decoder`` say.
    latent: channels of z. prior, prior_dim: layers and width of each of the four couplings of the prior's flow;
    prior=0 is a normal distribution without a flow, the paper's ablation.
    """

    dim: int = 192
    kernel: int = 5
    encoder: int = 8
    decoder: int = 4
    latent: int = 16
    prior: int = 4
    prior_dim: int = 64


class Generator(nn.Module):
    """q(z | mel, condition), p(z | condition) and p(mel | z, condition), z with a step every four frames.

    mels: bands. condition: channels of the condition. sizes: see ``Variational``.
    """

    def __init__(self, mels: int, condition: int, sizes: Variational):
        super().__init__()
        s, window = sizes, {"kernel_size": 2 * BLOCK, "stride": BLOCK, "padding": BLOCK // 2}
        self.latent = s.latent
        self.condition = nn.Conv1d(condition, condition, **window)
        self.enter, self.encoder = nn.Conv1d(mels, s.dim, **window), wavenet(s.dim, s.encoder, s.kernel, condition)
        self.posterior = nn.Conv1d(s.dim, 2 * s.latent, 1)
        self.prior = MeanFlow(s.latent, s.prior_dim, 4, s.prior, condition=condition) if s.prior else None
        self.expand = nn.ConvTranspose1d(s.latent, s.dim, BLOCK, stride=BLOCK)
        self.decoder, self.head = wavenet(s.dim, s.decoder, s.kernel, condition), nn.Conv1d(s.dim, mels, 1)

    def encode(self, mel: Tensor, condition: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mel [batch, mels, frames], condition [batch, condition, frames] -> mean and log-deviation of z.

        mask [batch, frames]. Both are [batch, latent, frames / 4], and hold anything in the padding.
        """
        small = _small(mask)
        hidden = self.encoder(self.enter(mel), self.condition(condition), small)
        mean, logs = self.posterior(hidden).float().chunk(2, 1)
        return mean, logs

    def divergence(
        self, mean: Tensor, logs: Tensor, noise: Tensor, condition: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(z drawn with this noise, its KL divergence from the prior, in nats per channel and step).

        With a flow it is that of the sample, log q(z) - log N(f(z)), whose log-determinant is 0; without one it is
        the divergence of the two normal distributions.
        """
        small = _small(mask)
        z = mean + noise * logs.exp()
        z = z if small is None else z.masked_fill(~small[:, None], 0.0)
        if self.prior is None:
            values = (mean.square() + (2 * logs).exp() - 1) / 2 - logs
        else:
            values = (self.prior(z, self.condition(condition), small).square() - noise.square()) / 2 - logs
        if small is None:
            return z, values.mean()
        kept = values.masked_fill(~small[:, None], 0.0)
        return z, kept.sum() / (small.sum() * values.shape[1])

    def sample(self, condition: Tensor, draw: Draw, mask: Tensor | None = None) -> Tensor:
        """z of the prior, [batch, latent, frames / 4]. draw: makes normal noise of a shape."""
        small = _small(mask)
        down = self.condition(condition)
        z = draw((len(condition), self.latent, down.shape[2]))
        z = z if small is None else z.masked_fill(~small[:, None], 0.0)
        return z if self.prior is None else self.prior.inverse(z, down, small)

    def decode(self, z: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """z -> log-mel [batch, mels, frames], zero in the padding."""
        mel = self.head(self.decoder(self.expand(z), condition, mask)).float()
        return mel if mask is None else mel.masked_fill(~mask[:, None], 0.0)


def _small(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask[:, ::BLOCK]
