"""Training USAT with Lightning, on pairs of utterances of one speaker (``data.PairedSpeech``)."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask, masked_mean
from vitalk.speech.acoustic.noise import Noise
from vitalk.speech.acoustic.training import AcousticTraining, load_module
from vitalk.speech.acoustic.variance import Spread, scale_gradient
from vitalk.speech.vocoder.losses import MelLoss, discriminator_loss, feature_matching, generator_loss
from vitalk.speech.vocoder.training import OPPONENTS

from .adversaries import PhonemeDiscriminator, TimbreDiscriminator, cut
from .model import Taught, Usat, linear
from .variants import usat, usat_small

VARIANTS: dict[str, Callable[..., Usat]] = {"paper": usat, "small": usat_small}
HEARD = 16  # recordings of a speaker whose mean vector is kept
SLICE = 2 / 3  # of an utterance, in each of the slices that D_p compares; two of one utterance share its middle third


class UsatTraining(AcousticTraining):
    """Trains USAT (arXiv 2404.18094): L = L_re + L_dur + L_kl + L_se + L_td, the last two adversarial.

    Losses by name: "mel", L1 of log-mels; where the decoder makes waves it is of random segments, and "adversarial",
    "features" and the discriminators' own "judges" join. "kl" and "duration": see ``Usat.teach``. "phonemes": the
    speaker encoder's against D_p, whose own is "words". "timbre": D_t's, reversed for what made the content.
    Validation has no adversaries, and the least "loss" of the rest makes the best checkpoint. "margin" is the monitor
    of the speaker encoder: cosine of vectors of the same speaker less that of different ones; 0 where it collapsed.

    n_symbols, n_speakers: from the data. variant: "paper" or "small". model_args: further arguments of ``Usat``.
    segment: frames that are decoded to waves for each item. discriminators: of waves, see
    ``vocoder.training.OPPONENTS``. ramp: steps within which the speaker encoder comes to heed D_p and the flow D_t;
    from the first step on they would make the encoder say the same of everybody (ours).
    lr, warmup_steps, betas, clip, options: see ``AcousticTraining``; schedule "decay" multiplies the rate by
    ``decay`` after each epoch (by epoch, not by step, is (unconfirmed)), "cosine" is for short runs.

    Where the data has an aligner's durations they stand in for the search within ``Usat.teach`` (ours), which in
    a thousand small steps gives one symbol nearly all frames. Everything moves at once: generators and discriminators
    see the batch with the weights from before the step, where VITS moves the discriminators first. References are heard
    as means of q, through which no gradient goes (ours).
    Raises UserError for data without references and for a loss that is not finite.
    """

    MONITOR = "val/loss"
    FORMAT, NAME = "vitalk usat", "USAT"
    FOLLOWS = ("speed", "energy")
    WAVES = True
    WEIGHTS = {"mel": 45.0, "features": 2.0}

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "small"] = "paper",
        model_args: dict[str, Any] | None = None,
        segment: int = 32,
        discriminators: Literal["hifigan", "small"] = "hifigan",
        ramp: int = 10_000,
        lr: float = 2e-4,
        schedule: Literal["decay", "cosine"] = "decay",
        decay: float = 0.9999,
        warmup_steps: int = 1,
        betas: tuple[float, float] = (0.8, 0.99),
        clip: float = 0.0,
        **options: Any,
    ):
        super().__init__(
            n_symbols, n_speakers, model_args, lr=lr, schedule=schedule, warmup_steps=warmup_steps, betas=betas,
            clip=clip, **options,
        )  # fmt: skip
        if schedule not in ("decay", "cosine"):
            raise UserError(f'there is no schedule "{schedule}"; choose decay or cosine')
        self.rivals: nn.ModuleDict | None = None

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network; how pitch and energy are spread does not matter."""
        h = self.hparams
        self.net = VARIANTS[h.variant](h.n_symbols, **{"mel": h.mel, "speakers": h.n_speakers, **(h.model_args or {})})
        return self.net

    def configure_model(self) -> None:  # noqa: D102
        super().configure_model()
        if self.rivals is None:
            self.oppose()

    def oppose(self) -> None:
        """Make the adversaries, which nobody but training needs."""
        latent, voice = self.net.posterior.out_channels // 2, self.net.voices.shape[1]
        self.rivals = nn.ModuleDict({"words": PhonemeDiscriminator(voice), "timbre": TimbreDiscriminator(latent)})
        if not self.net.speaks_mel:
            self.opponents = OPPONENTS[self.hparams.discriminators]
            self.rivals["waves"] = nn.ModuleList(make() for make in self.opponents.make)
            # As in VITS, over the whole band.
            self.mel_loss = MelLoss(replace(self.net.spec, fmax=None, center=False))

    @property
    def heed(self) -> float:
        """How far D_p and D_t are heeded at this step, 0 to 1."""
        return min(self.global_step / max(self.hparams.ramp, 1), 1.0)

    def mel(self, batch: dict[str, Tensor]) -> Tensor:
        """What the decoder makes of the means of q. Raises UserError for a decoder that makes waves."""
        if not self.net.speaks_mel:
            raise UserError("this USAT makes waveforms itself and needs no vocoder; there are no mels of it")
        mask = length_mask(batch["mel_lengths"], int(batch["mel_lengths"].max()))
        return self.net.decode(self.net.encode(linear(batch["wave"], self.net.spec), mask)[0], mask)

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:  # noqa: D102
        return self.taught(batch)[0]

    def taught(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Taught, Tensor]:
        """(losses, what the text was taught, vectors of the references [batch, voice])."""
        lengths = batch["mel_lengths"]
        mask = length_mask(lengths, int(lengths.max()))
        mean, logs = self.net.encode(linear(batch["wave"], self.net.spec), mask)
        z = (mean + torch.randn_like(mean) * logs.exp()).masked_fill(~mask[:, None], 0.0)
        voice, slices = self.vectors(batch, mean)
        out = self.net.teach(
            z, logs, lengths, batch["ids"], batch["text_lengths"], voice, durations=batch.get("durations")
        )
        found = self.sound(z, batch) | out.losses
        found["words"], found["phonemes"] = self.rivals["words"].losses(*slices)
        content = scale_gradient(out.content, -self.heed) if self.training else out.content
        found["timbre"] = self.rivals["timbre"].loss(out.prior, content, lengths)
        return found, out, voice

    def vectors(self, batch: dict[str, Tensor], mean: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Vectors of the whole references, and of two slices of each and one of the target, all [batch, voice].

        mean: of q of the targets, [batch, latent, frames].
        """
        if "reference" not in batch:
            raise UserError("the data has no references; train on vitalk.systems.usat.data.PairedSpeech")
        lengths = batch["reference_lengths"]
        with torch.no_grad():
            frames = length_mask(lengths, int(lengths.max()))
            heard, _ = self.net.encode(linear(batch["reference"], self.net.spec), frames)
        first = torch.zeros_like(lengths, dtype=torch.float32)
        rows = [(heard, lengths)]
        rows += [cut(heard, lengths, SLICE, place) for place in (first, first + 1)]
        rows += [cut(mean.detach(), batch["mel_lengths"], SLICE, torch.rand_like(first))]
        longest = max(x.shape[2] for x, _ in rows)
        x = torch.cat([F.pad(x, (0, longest - x.shape[2])) for x, _ in rows])
        inside = length_mask(torch.cat([sizes for _, sizes in rows]), longest)
        voice, *slices = self.net.speaker(x.masked_fill(~inside[:, None], 0.0), inside).chunk(4)
        return voice, slices

    def sound(self, z: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of what is decoded from z [batch, latent, frames] (the paper's L_re)."""
        lengths, hop = batch["mel_lengths"], self.net.spec.hop
        if self.net.speaks_mel:
            mask = length_mask(lengths, z.shape[2])
            off = (self.net.decode(z, mask) - batch["mel"][..., : z.shape[2]]).abs()
            return {"mel": masked_mean(off, mask[:, None])}
        frames = self.hparams.segment
        spare = max(frames - z.shape[2], 0)  # where all utterances are shorter than a segment
        z, wave = F.pad(z, (0, spare)), F.pad(batch["wave"], (0, spare * hop))
        start = ((lengths - frames).clamp(min=0) * torch.rand(len(z), device=z.device)).long()
        index = start[:, None] + torch.arange(frames, device=z.device)
        fake = self.net.decode(z.gather(2, index[:, None].expand(-1, z.shape[1], -1))).float()
        real = wave.unflatten(1, (-1, hop)).gather(1, index[..., None].expand(-1, -1, hop)).flatten(1)
        with torch.autocast(fake.device.type, enabled=False):
            found = {"mel": self.mel_loss(fake, real)}
        return found | self.contest(real, fake) if self.training else found

    def contest(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Losses of generator and discriminators on segments of waves [batch, samples]."""
        o, judges = self.opponents, self.rivals["waves"]
        trues = [judge(real) for judge in judges]
        falses = [judge(fake.detach()) for judge in judges]
        judges.requires_grad_(False)  # they judge for the generator's sake, not to learn
        seen = [judge(fake) for judge in judges]
        judges.requires_grad_(True)
        rows = list(zip(o.weights, trues, falses, seen, strict=True))
        return {
            "judges": sum(w * discriminator_loss(r[0], f[0], o.kind, o.reduction) for w, r, f, _ in rows),
            "adversarial": sum(w * generator_loss(s[0], o.kind, o.reduction) for w, _, _, s in rows),
            "features": sum(w * feature_matching(r[1], s[1], o.reduction) for w, r, _, s in rows),
        }

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, each by its weight; that of the speaker encoder against D_p grows along the ramp."""
        return super().weigh({**losses, "phonemes": self.heed * losses["phonemes"]})

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        found, _, voice = self.taught(batch)
        found["loss"] = AcousticTraining.weigh(self, {k: found[k] for k in ("mel", "kl", "duration")})
        if (told := margin(voice, batch["speaker"])) is not None:
            found["margin"] = told
        self.log_dict({f"val/{k}": v for k, v in found.items()}, sync_dist=True, batch_size=len(batch["ids"]))

    def configure_optimizers(self) -> Any:  # noqa: D102
        h = self.hparams
        groups = [
            {"params": [p for p in part.parameters() if p.requires_grad]} for part in (self.net, self.rivals) if part
        ]
        optimizer = AdamW(groups, h.lr, betas=tuple(h.betas), eps=1e-9)
        scheduler = LambdaLR(optimizer, self.schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def schedule(self) -> Callable[[int], float]:
        """What the learning rate is multiplied by at a step."""
        if self.hparams.schedule == "cosine":
            return super().schedule()
        h = self.hparams
        return lambda step: min((step + 1) / h.warmup_steps, 1.0) * h.decay**self.trainer.current_epoch

    def save_weights(self, path: Path, data: Any) -> None:
        """As every acoustic model, with the vectors of the data's speakers; discriminators are left out."""
        self.hear(data)
        super().save_weights(path, data)

    def hear(self, data: Any) -> None:
        """Keep for each speaker of the data the mean vector of some recordings."""
        for number, name in enumerate(data.speakers):
            clips = [clip for clip in (*data.train, *data.test) if clip.speaker == name][:HEARD]
            if clips:
                self.net.voices[number] = mean_voice(self.net, [data.framed_wave(clip) for clip in clips])


@torch.no_grad()
def mean_voice(net: Usat, waves: Iterable[Tensor]) -> Tensor:
    """The mean [voice] of the vectors of recordings [frames * hop]; of one recording its own vector."""
    training, device = net.training, net.voices.device
    net.eval()
    found = torch.stack([net.listen(linear(wave[None].to(device), net.spec))[0] for wave in waves]).mean(0)
    net.train(training)
    return found


def margin(voice: Tensor, speaker: Tensor) -> Tensor | None:
    """Mean cosine of vectors [batch, voice] of the same speaker less that of different ones; None where one is missing.

    speaker: numbers [batch].
    """
    unit = F.normalize(voice.float(), dim=1)
    cosine, same = unit @ unit.T, speaker[:, None] == speaker
    apart = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    if not (same & apart).any() or same.all():
        return None
    return cosine[same & apart].mean() - cosine[~same].mean()


class ForVoice(nn.Module):
    """A trained network as voice files need it: (ids, speaker, speed, pitch, energy) -> (log-mel, durations).

    Energy multiplies amplitudes. Pitch is not heeded: nothing in USAT is F0. Noise is always the same, see ``Noise``.
    voice: a vector [1, voice] to speak with in place of the network's speakers.
    """

    def __init__(self, net: Usat, voice: Tensor | None = None):
        super().__init__()
        self.net, self.noise = net, Noise()
        self.register_buffer("voice", voice, persistent=False)

    def forward(
        self, ids: Tensor, speaker: Tensor | None, speed: Tensor, pitch: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids [1, text], speaker and factors [1] -> [1, mels, frames] or wave [1, samples], int64 [1, text]."""
        told = {"speaker": speaker} if self.voice is None else {"voice": self.voice}
        out = self.net(ids, speed=speed, draw=self.noise, **told)
        if out.mel is None:
            return out.wave * energy[:, None], out.durations
        return out.mel + energy.log()[:, None, None], out.durations


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """What voice files are made of: the model's own speakers. Adapted ones, and references, speak in torch alone.

    Raises UserError for models that make waves themselves.
    """
    module, about = load_module(path, UsatTraining)
    if not module.net.speaks_mel:
        raise UserError(f"{path} makes waveforms, not mels, and cannot be exported; train it with decoder: mel")
    return ForVoice(module.net.fold()), about
