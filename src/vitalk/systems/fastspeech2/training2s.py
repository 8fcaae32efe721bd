"""Training FastSpeech 2s: slices of the waveform, by spectra first and with a discriminator later."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitalk.errors import UserError
from vitalk.speech.acoustic.training import load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec
from vitalk.speech.vocoder.losses import SETS, MultiResolutionSTFTLoss, discriminator_loss, generator_loss

from .decoder2s import FastSpeech2s, WaveDecoder, WaveDiscriminator, WaveOutput, cut, random_starts
from .model import FastSpeech2, Targets
from .training import FastSpeech2Training


class FastSpeech2sTraining(FastSpeech2Training):
    """Trains FastSpeech 2s (arXiv 2006.04558, section 2.4) on batches that bring waveforms, ``Speech(wave=True)``.

    The losses are those of FastSpeech 2, whose mel decoder learns along as an aid, and of a slice of every waveform the
    multi-resolution STFT loss "stft" and, from ``gan_start`` on, "adversarial", (1 - D(G))^2. ``weights`` may name
    these as well; "adversarial" weighs 4 otherwise, as in Parallel WaveGAN (arXiv 1910.11480), from which the paper
    has its waveforms. The discriminator minimises (1 - D(x))^2 + D(G)^2.

    n_symbols, n_speakers, and options, such as variant, mel, lr, schedule: see ``FastSpeech2Training``.
    decoder_args, discriminator_args: of ``WaveDecoder``, whose dim and hop are known, and of ``WaveDiscriminator``.
    slice_frames: hidden frames of a slice, 80 in the paper.
    gan_start: step at which the discriminator joins; 100,000 in Parallel WaveGAN, the paper does not say.
    gan_lr: the discriminator's counterpart of ``lr``: both follow one schedule, and it warms up when it joins (ours).

    Steps are those of the generator, which each batch moves first. Several processes need
    ``strategy: ddp_find_unused_parameters_true``.

    Raises UserError for slices too short for the STFT loss, for data without durations or waveforms, and for a loss
    that is not finite.
    """

    # A discriminator makes the spectra no closer, so that the least validation loss would be the one before it joins.
    MONITOR = None
    FORMAT, NAME = "vitalk fastspeech2s", "FastSpeech 2s"
    WEIGHTS = {"adversarial": 4.0}

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        decoder_args: dict[str, Any] | None = None,
        discriminator_args: dict[str, Any] | None = None,
        slice_frames: int = 80,
        gan_start: int = 100_000,
        gan_lr: float = 2.5e-4,
        **options: Any,
    ):
        super().__init__(n_symbols, n_speakers, **options)
        self.automatic_optimization = False
        hop, needed = mel_spec(self.hparams.mel).hop, max(n_fft for n_fft, _, _ in SETS) // 2
        if slice_frames * hop <= needed:
            raise UserError(f"slice_frames={slice_frames} is too short for spectra; give {needed // hop + 1} or more")
        self.discriminator = WaveDiscriminator(**(discriminator_args or {}))
        self.stft_loss = MultiResolutionSTFTLoss()

    @property
    def acoustic(self) -> FastSpeech2:
        """The network that makes spectrograms, a part of the whole."""
        return self.net.acoustic

    def build(self, f0: Spread, energy: Spread) -> FastSpeech2s:
        """Make the network for a corpus whose log F0 and energy are spread so."""
        h, acoustic = self.hparams, super().build(f0, energy)
        decoder = WaveDecoder(acoustic.head.in_features, mel_spec(h.mel).hop, **(h.decoder_args or {}))
        self.net = FastSpeech2s(acoustic, decoder, h.slice_frames)
        return self.net

    def forward(self, batch: dict[str, Tensor], starts: Tensor) -> tuple[WaveOutput, Targets]:
        """A batch, teacher-forced, of which slices are decoded that begin at the frames ``starts`` [batch]."""
        told, targets = self.told(batch)
        return self.net(**told, starts=starts, mel=True), targets

    def slices(self, batch: dict[str, Tensor], starts: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(generated slices, those of the recordings, [batch, samples] both, and all losses but the adversarial)."""
        hop, frames = self.net.decoder.hop, self.hparams.slice_frames
        if "wave" not in batch:
            raise UserError("the data brings no waveforms; set data.init_args.wave to true")
        if batch["wave"].shape[1] != batch["mel"].shape[2] * hop:
            raise UserError(f"the data's mel is not the model's, {self.hparams.mel}; give both the same")
        out, targets = self(batch, starts)
        fake, real = out.wave.float(), cut(batch["wave"], starts * hop, frames * hop)
        losses = self.acoustic.losses(out.acoustic, targets)
        with torch.autocast(fake.device.type, enabled=False):
            losses["stft"] = self.stft_loss(fake, real)
        return fake, real, losses

    def training_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        fake, real, losses = self.slices(batch, random_starts(batch["mel_lengths"], self.hparams.slice_frames))
        joined = self.global_step >= self.hparams.gan_start
        if joined:
            self.discriminator.requires_grad_(False)
            losses["adversarial"] = generator_loss([self.discriminator(fake)], "lsgan", "mean")
            self.discriminator.requires_grad_(True)
        self._move_generator(losses)
        if joined:
            losses |= self._move_discriminator(real, fake.detach())
        named = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(named, prog_bar=True, sync_dist=True, batch_size=len(real))

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        middles = (batch["mel_lengths"] - self.hparams.slice_frames).clamp(min=0) // 2
        _, _, losses = self.slices(batch, middles)
        self.log_dict({f"val/{k}": v for k, v in losses.items()}, sync_dist=True, batch_size=len(batch["ids"]))

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:  # noqa: D102
        h, factor = self.hparams, self.schedule()
        optimizers = [self.adam(self.net, h.lr), self.adam(self.discriminator, h.gan_lr)]

        def late(done: int) -> float:
            return min((done + 1) / h.warmup_steps, 1.0) * factor(max(h.gan_start, h.warmup_steps) + done)

        return optimizers, [LambdaLR(o, rate) for o, rate in zip(optimizers, (factor, late), strict=True)]

    def on_fit_start(self) -> None:  # noqa: D102
        # Lightning recommends to keep the weights from before the step; those from after it are what resumes rightly.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")

    def _move_generator(self, losses: dict[str, Tensor]) -> None:
        total = self.weigh(losses)
        self.check(total)
        optimizer, schedule = self.optimizers()[0], self.lr_schedulers()[0]
        optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        schedule.step()

    def _move_discriminator(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Move it; {"discriminator": its loss, "gap": mean score of real minus generated waveforms}."""
        scores = self.discriminator(real), self.discriminator(fake)
        loss = discriminator_loss([scores[0]], [scores[1]], "lsgan", "mean")
        optimizer = self.optimizers()[1]
        optimizer.zero_grad()
        self.manual_backward(loss)
        # Not by the wrapper's step, which would count: a step is one of the generator.
        self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        self.lr_schedulers()[1].step()
        return {"discriminator": loss, "gap": scores[0].mean() - scores[1].mean()}


def load_trained2s(path: str | Path) -> tuple[FastSpeech2s, dict[str, Any]]:
    """(network in eval mode, what is known about it): as ``load_trained``, and without weight norm."""
    module, about = load_module(path, FastSpeech2sTraining)
    module.net.decoder.fold()
    return module.net, about
