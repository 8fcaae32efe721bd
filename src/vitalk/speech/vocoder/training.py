"""The vocoder that trains: any generator, by spectral losses first and with discriminators later.

A batch is a float tensor of waves [batch, samples], full scale at 1, whose mel spectrograms are made on the device; or
{"wave", "heard"}, where the log-mels to hear [batch, mels, frames] come with them.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitalk.errors import UserError, nearest

from ..mel import MelSpec, compress, log_mel, magnitudes, mel_spec
from ..resample import Resample
from .discriminators import (
    BandDiscriminator,
    Judged,
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    MultiScaleDiscriminator,
)
from .generators import create, output_rate, read_vocoder, save_vocoder
from .losses import (
    SUB_BAND_SETS,
    Kind,
    MelLoss,
    MultiResolutionSTFTLoss,
    Reduction,
    discriminator_loss,
    feature_matching,
    generator_loss,
)


@dataclass(frozen=True)
class Opponents:
    """Discriminators, the weight of each, and the adversarial loss that goes with them.

    band: channels of one more, for what lies above the mel's band (``BandDiscriminator``); 0 for none.
    """

    make: tuple[Callable[[], nn.Module], ...]
    weights: tuple[float, ...]
    kind: Kind
    reduction: Reduction
    band: int = 0


OPPONENTS = {
    "small": Opponents(
        (MultiPeriodDiscriminator.small, lambda: MultiResolutionDiscriminator(16)), (1.0, 1.0), "hinge", "mean"
    ),
    "vocos": Opponents(
        (lambda: MultiPeriodDiscriminator(first_map=False), MultiResolutionDiscriminator), (1.0, 0.1), "hinge", "mean"
    ),
    "hifigan": Opponents((MultiPeriodDiscriminator, MultiScaleDiscriminator), (1.0, 1.0), "lsgan", "sum"),
    "hifinet": Opponents(
        (MultiPeriodDiscriminator, MultiResolutionDiscriminator), (1.0, 1.0, 1.0), "lsgan", "mean", 64
    ),
    "hifinet-small": Opponents(
        (MultiPeriodDiscriminator.small, lambda: MultiResolutionDiscriminator(16)), (1.0, 1.0, 1.0), "lsgan", "mean", 16
    ),
}


class Target(NamedTuple):
    """What a batch asks for: its waves [batch, samples], log-mel to hear and log-mel to reach [batch, mels, frames]."""

    wave: Tensor
    mel: Tensor
    full: Tensor


class VocoderTraining(LightningModule):
    """Trains a generator on waves; in the first stage by spectral losses alone, then with discriminators too.

    generator, generator_args: see ``generators.create``. mel: its preset. init: a vocoder's file to start from.
    mel_weight, stft_weight: of the L1 distance of log-mels (over the whole band, whatever the preset's) and of the
    multi-resolution STFT loss, which MB-iSTFT's sub-bands get as well.
    gan_start: step at which the discriminators join, None for never; within ``gan_ramp`` steps the generator comes to
    heed them fully. Two stages in one run are ours: discriminators cost more than a small generator, and beat one that
    knows nothing. discriminators: "small" (ours, for processors), "vocos" or "hifigan", each with its paper's loss;
    for generators that go beyond the mel's band "hifinet" or "hifinet-small" (ours), with one more for what lies there.
    feature_weight: of feature matching: 1 in Vocos, 2 in HiFi-GAN.
    lr, gan_lr: AdamW's learning rates of the generator before ``gan_start``, and of everything from there on; both
    follow half a cosine over the whole run to 0, after ``warmup_steps`` of linear warm-up. clip: largest norm of the
    gradient of either side, None for any.
    degrade: blur and noise of the mels that the generator hears while training, see ``degraded``.
    rate: that of the data, Hz, which must be the generator's; its mels are made of the waves resampled to the mel's.

    Steps are those of the generator. Each batch moves the generator first: the discriminators judge the real waves
    once for both. Moving averages are Lightning's ``EMAWeightAveraging``; several processes with two stages need
    ``strategy: ddp_find_unused_parameters_true``.

    Raises UserError for unknown names, for segments that are too short and for losses that are not finite.
    """

    def __init__(
        self,
        generator: str = "vocos",
        generator_args: dict[str, Any] | None = None,
        mel: str = "vitalk",
        init: str | None = None,
        mel_weight: float = 15.0,
        stft_weight: float = 1.0,
        gan_start: int | None = None,
        gan_ramp: int = 1000,
        discriminators: Literal["small", "vocos", "hifigan"] = "small",
        feature_weight: float = 2.0,
        lr: float = 5e-4,
        gan_lr: float = 2e-4,
        warmup_steps: int = 0,
        betas: tuple[float, float] = (0.8, 0.99),
        weight_decay: float = 0.01,
        clip: float | None = 5.0,
        degrade: float = 0.0,
        rate: int | None = None,
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["rate"])  # the data has one of this name, which may say None
        self.automatic_optimization = False
        self.spec = mel_spec(mel)
        self.generator = create(generator, self.spec, generator_args)
        if init is not None:
            self._start_from(init)
        if discriminators not in OPPONENTS:
            near = nearest(discriminators, list(OPPONENTS))
            raise UserError(
                f"there are no discriminators {discriminators}; choose one of {', '.join(OPPONENTS)}.{near}"
            )
        self.opponents = OPPONENTS[discriminators]
        self.rate = output_rate(self.generator, self.spec)
        if rate not in (None, self.rate):
            raise UserError(
                f"{generator} makes waves of {self.rate} Hz, the data's are of {rate} Hz; set data.init_args.rate"
            )
        self.resample = Resample(self.rate, self.spec.rate)
        self.discriminators = self._opponents() if gan_start is not None else None
        self.mel_loss = MelLoss(_whole_band(self.spec, self.rate))
        self.stft_loss = MultiResolutionSTFTLoss()
        self.band_loss = MultiResolutionSTFTLoss(SUB_BAND_SETS)

    def forward(self, mel: Tensor) -> Tensor:
        """Log-mel [batch, mels, frames] -> wave [batch, samples]."""
        return self.generator(mel)

    @property
    def gan_weight(self) -> float:
        """How far the generator heeds the discriminators at this step, 0 to 1."""
        h = self.hparams
        if h.gan_start is None:
            return 0.0
        return min(max((self.global_step - h.gan_start + 1) / max(h.gan_ramp, 1), 0.0), 1.0)

    def training_step(self, batch: Tensor | dict[str, Tensor], _: int) -> None:  # noqa: D102
        target = self._target(batch)
        heard = degraded(target.mel, self.hparams.degrade) if self.hparams.degrade else target.mel
        fake, losses = self._spectral(heard, target)
        joined = self.gan_weight > 0
        real = [judge(target.wave) for judge in self.discriminators] if joined else []
        if joined:
            losses |= self._adversarial(real, fake)
        self._move_generator(losses)
        if joined:
            losses |= self._move_discriminators(real, fake.detach())
        named = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(named, prog_bar=True, sync_dist=True)

    def validation_step(self, batch: Tensor | dict[str, Tensor], _: int) -> None:  # noqa: D102
        target = self._target(batch)
        fake = self.generator(target.mel)[:, : target.wave.shape[1]].float()
        found = {"mel_l1": self.mel_loss(fake, target.full), "stft": self.stft_loss(fake, target.wave)}
        named = {f"val/{name}": value for name, value in found.items()}
        self.log_dict(named, prog_bar=True, sync_dist=True, batch_size=len(fake))

    def configure_optimizers(self) -> tuple[list[Optimizer], list[LambdaLR]]:  # noqa: D102
        h = self.hparams
        parts = [self.generator, *([] if self.discriminators is None else [self.discriminators])]
        optimizers = [AdamW(p.parameters(), 1.0, tuple(h.betas), weight_decay=h.weight_decay) for p in parts]
        starts = [0, h.gan_start]
        total = self.trainer.estimated_stepping_batches
        rates = [LambdaLR(o, _rate(h, total, start)) for o, start in zip(optimizers, starts, strict=False)]
        return optimizers, rates

    def on_fit_start(self) -> None:
        """Have denormal numbers, which silence is full of, taken for 0 on processors: they are slow."""
        torch.set_flush_denormal(self.device.type == "cpu")
        # Lightning recommends to keep the weights from before the step; those from after it are what resumes rightly.
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")

    def on_fit_end(self) -> None:  # noqa: D102
        torch.set_flush_denormal(False)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients here, where those of mixed precision are unscaled."""
        for group in optimizer.param_groups if self.hparams.clip is not None else ():
            nn.utils.clip_grad_norm_(group["params"], self.hparams.clip)

    def save_weights(self, path: Path, data: Any = None) -> None:
        """Write the generator for ``generators.load_vocoder``."""
        h = self.hparams
        save_vocoder(path, self.generator, h.generator, dict(h.generator_args or {}), h.mel)

    def _target(self, batch: Tensor | dict[str, Tensor]) -> Target:
        heard = batch.get("heard") if isinstance(batch, dict) else None
        wave = batch["wave"] if isinstance(batch, dict) else batch
        hop, least = self.generator.hop, self.mel_loss.spec.n_fft
        wave = wave[:, : wave.shape[1] // hop * hop]
        if wave.shape[1] < least:
            raise UserError(f"segments of {wave.shape[1]} samples are too short; give {least} at least")
        with torch.no_grad(), torch.autocast(wave.device.type, enabled=False):
            linear = magnitudes(self.resample(wave), self.spec)
            mel = compress(linear, self.spec)
            if self.rate != self.spec.rate:
                return Target(wave, mel if heard is None else heard, log_mel(wave, self.mel_loss.spec))
            same = self.spec.fmax in (None, self.spec.rate / 2)
            full = mel if same else compress(linear, self.mel_loss.spec)
            return Target(wave, mel if heard is None else heard, full)

    def _spectral(self, heard: Tensor, target: Target) -> tuple[Tensor, dict[str, Tensor]]:
        """(generated waves, losses {"mel", "stft", "bands"} as far as they apply)."""
        pqmf = getattr(self.generator, "pqmf", None)
        bands = self.generator.bands(heard).float() if pqmf is not None else None
        fake = self.generator.join(bands) if bands is not None else self.generator(heard)
        fake = fake[:, : target.wave.shape[1]].float()
        with torch.autocast(fake.device.type, enabled=False):
            losses = {"mel": self.mel_loss(fake, target.full)}
            if self.hparams.stft_weight:
                losses["stft"] = self.stft_loss(fake, target.wave)
                if bands is not None:
                    wanted = pqmf.analysis(target.wave)
                    losses["bands"] = self.band_loss(
                        *(b[..., : wanted.shape[2]].flatten(0, 1) for b in (bands, wanted))
                    )
        return fake, losses

    def _adversarial(self, real: list[Judged], fake: Tensor) -> dict[str, Tensor]:
        """Losses {"adversarial", "features"} of the generator."""
        o = self.opponents
        self.discriminators.requires_grad_(False)
        judged = [judge(fake) for judge in self.discriminators]
        self.discriminators.requires_grad_(True)
        rows = list(zip(o.weights, real, judged, strict=True))
        return {
            "adversarial": sum(w * generator_loss(f[0], o.kind, o.reduction) for w, _, f in rows),
            "features": sum(w * feature_matching(r[1], f[1], o.reduction) for w, r, f in rows),
        }

    def _move_generator(self, losses: dict[str, Tensor]) -> None:
        h, gan = self.hparams, self.gan_weight
        weights = {
            "mel": h.mel_weight, "stft": h.stft_weight, "bands": h.stft_weight,
            "adversarial": gan, "features": gan * h.feature_weight,
        }  # fmt: skip
        total = sum(weights[name] * value for name, value in losses.items())
        if not torch.isfinite(total):
            raise UserError(f"the loss became {total.item()} at step {self.global_step}; lower lr or check the sounds")
        optimizer, schedule = _listed(self.optimizers())[0], _listed(self.lr_schedulers())[0]
        optimizer.zero_grad()
        self.manual_backward(total)
        optimizer.step()
        schedule.step()

    def _move_discriminators(self, real: list[Judged], fake: Tensor) -> dict[str, Tensor]:
        """Move them; {"discriminator": their loss, "gap": mean score of real minus generated waves}."""
        o = self.opponents
        judged = [judge(fake) for judge in self.discriminators]
        rows = list(zip(o.weights, real, judged, strict=True))
        loss = sum(w * discriminator_loss(r[0], f[0], o.kind, o.reduction) for w, r, f in rows)
        optimizer = self.optimizers()[1]
        optimizer.zero_grad()
        self.manual_backward(loss)
        # Not by the wrapper's step, which would count: a step is one of the generator.
        self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None)
        self.lr_schedulers()[1].step()
        gaps = [r.mean() - f.mean() for _, (rs, _), (fs, _) in rows for r, f in zip(rs, fs, strict=True)]
        return {"discriminator": loss, "gap": torch.stack(gaps).mean()}

    def _opponents(self) -> nn.ModuleList:
        """The discriminators; that of the upper band, where it is wanted, begins where the mel ends."""
        made = [make() for make in self.opponents.make]
        if self.opponents.band:
            if self.rate <= self.spec.rate:
                raise UserError(
                    f"{self.hparams.discriminators} judges what lies above the mel's band, where "
                    f"{self.hparams.generator} makes nothing; choose other discriminators or the generator hifinet"
                )
            made.append(BandDiscriminator(self.opponents.band, self.spec.rate / self.rate))
        return nn.ModuleList(made)

    def _start_from(self, path: str) -> None:
        _, state = read_vocoder(path)
        try:
            self.generator.load_state_dict(state)
        except RuntimeError:
            raise UserError(
                f"the vocoder {path} does not fit {self.hparams.generator}; give the same generator, "
                "generator_args and mel as it was trained with"
            ) from None


def _whole_band(spec: MelSpec, rate: int) -> MelSpec:
    """The spectrogram of the loss: the mel's own up to half the rate, at higher rates stretched with 128 bands."""
    if rate == spec.rate:
        return replace(spec, fmax=None)
    sizes = {name: getattr(spec, name) * rate // spec.rate for name in ("n_fft", "hop", "win")}
    return replace(spec, rate=rate, fmax=None, n_mels=max(spec.n_mels, 128), **sizes)


def degraded(mel: Tensor, strength: float) -> Tensor:
    """Log-mel [batch, mels, frames], blurred and with noise, as acoustic models make them.

    Each item gets its own blur over time and over bands, of a deviation up to ``strength`` frames and bands, and
    Gaussian noise of a deviation up to 0.2 ``strength`` (natural logarithm), so that clean mels are met as well. The
    idea is common (mels of acoustic models are too smooth), the form is ours.
    """
    sigma = strength * torch.rand(3, len(mel), 1, device=mel.device)
    mel = _blurred(_blurred(mel, sigma[0]).transpose(1, 2), sigma[1]).transpose(1, 2)
    return mel + 0.2 * sigma[2, :, :, None] * torch.randn_like(mel)


def _blurred(x: Tensor, sigma: Tensor, reach: int = 3) -> Tensor:
    """x [batch, rows, time], a Gaussian of deviation sigma [batch, 1] over the last axis; ends are repeated."""
    offset = torch.arange(-reach, reach + 1, device=x.device)
    kernel = (-0.5 * (offset / sigma.clamp(min=1e-3)).square()).softmax(1)
    windows = F.pad(x, (reach, reach), mode="replicate").unfold(2, 2 * reach + 1, 1)
    return torch.einsum("brtk,bk->brt", windows, kernel.to(x))


def _rate(h: Any, total: float, start: int) -> Callable[[int], float]:
    def rate(done: int) -> float:
        step = start + done
        peak = h.lr if h.gan_start is None or step < h.gan_start else h.gan_lr
        if done < h.warmup_steps:
            return peak * (done + 1) / h.warmup_steps
        return peak * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2

    return rate


def _listed(one_or_many: Any) -> list[Any]:
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
