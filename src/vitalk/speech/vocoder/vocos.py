"""Vocos: a ConvNeXt trunk at the frame rate, and one inverse Fourier transform (arXiv 2306.00814)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .stft import Padding, inverse_stft

CONFIGS = {
    "vocos": {"n_mels": 100, "dim": 512, "intermediate": 1536, "layers": 8, "n_fft": 1024, "hop": 256,
              "padding": "center"},  # as published for 24 kHz; mel preset "vocos"
    "vitalk": {"n_mels": 80, "dim": 192, "intermediate": 576, "layers": 6, "n_fft": 1200, "hop": 300},
}  # fmt: skip
CLIP = 100.0  # largest magnitude


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over 7 frames, LayerNorm and an MLP, scaled per channel and added: [batch, dim, frames]."""

    def __init__(self, dim: int, intermediate: int, scale: float):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, intermediate)
        self.pwconv2 = nn.Linear(intermediate, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, dim, frames] -> the same shape."""
        hidden = self.norm(self.dwconv(x).transpose(1, 2))
        hidden = self.gamma * self.pwconv2(F.gelu(self.pwconv1(hidden)))
        return x + hidden.transpose(1, 2)


class Vocos(nn.Module):
    """Log-mel [batch, mels, frames] -> wave [batch, samples] (arXiv 2306.00814, section 3).

    n_mels, n_fft, hop: of the mel spectrogram. dim, intermediate, layers: widths and depth of the trunk.
    padding: "same" for mels whose frames lie inside, which gives frames * hop samples; "center" for centred ones,
    which gives (frames - 1) * hop, see ``inverse_stft``. Named arguments: ``CONFIGS``.
    """

    def __init__(
        self,
        n_mels: int = 80,
        dim: int = 512,
        intermediate: int = 1536,
        layers: int = 8,
        n_fft: int = 1024,
        hop: int = 256,
        padding: Padding = "same",
    ):
        super().__init__()
        self.n_fft, self.hop, self.padding = n_fft, hop, padding
        self.embed = nn.Conv1d(n_mels, dim, 7, padding=3)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.convnext = nn.ModuleList(ConvNeXtBlock(dim, intermediate, 1 / layers) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=1e-6)
        self.out = nn.Linear(dim, n_fft + 2 - n_fft % 2)
        self.apply(_initialise)

    def hidden(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> the trunk's output [batch, frames, dim]."""
        x = self.norm(self.embed(mel).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))

    def head(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Trunk's output [batch, frames, dim] -> real and imaginary parts, each [batch, n_fft / 2 + 1, frames]."""
        log_magnitude, phase = self.out(hidden).float().transpose(1, 2).chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp(max=CLIP)
        return magnitude * phase.cos(), magnitude * phase.sin()

    def spectrum(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [batch, mels, frames] -> real and imaginary parts, each [batch, n_fft / 2 + 1, frames].

        All but the inverse Fourier transform: the part that goes into an ONNX file.
        """
        return self.head(self.hidden(mel))

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> wave [batch, samples]."""
        return inverse_stft(torch.complex(*self.spectrum(mel)), self.n_fft, self.hop, self.padding)


def from_official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of charactr-platform/vocos (keys ``backbone.`` and ``head.``) for ``Vocos``.

    Entries of its feature extractor and window, which are computed here, are left out.
    """
    parts = (key.partition(".") for key in state)
    kept = [(head, rest) for head, _, rest in parts if head == "backbone" or (head == "head" and rest[:4] == "out.")]
    return {rest: state[f"{head}.{rest}"] for head, rest in kept}


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv1d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
