"""Training PortaSpeech with Lightning, its two stages one run each, on the batches of ``vitalk.speech.features``."""

import math
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import length_mask
from vitalk.speech.acoustic.noise import Noise
from vitalk.speech.acoustic.training import AcousticTraining, load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec

from .linguistic import BLOCK, Reading
from .model import PortaSpeech, fitted
from .variants import VARIANTS


class PortaSpeechTraining(AcousticTraining):
    """Trains PortaSpeech: all but the post-net ("generator"), or the post-net alone on what that made ("post").

    n_symbols, n_speakers: from the data; one speaker has no embedding. variant: "normal" or "small". model_args:
    further arguments of ``PortaSpeech``.
    stage: "generator" minimises half the L1 and half of 1 - SSIM of the coarse mel, the KL divergence, of which no
    gradient flows before step ``kl_start``, and the distance of word durations, "l1" or "mse" as ``durations`` says.
    "post" minimises the post-net's negative log-likelihood. All else is frozen, comes from ``start``, the
    model.safetensors of a run of the first stage, and makes coarse mels by way of the posterior, as in the paper.
    Activation norms begin with the deviations of one batch of the corpus (Glow's way; the release begins with 1), and
    the coarse mel with its mean (ours): on the way there from zero the decoder's gates saturate, and learn no more.
    lr, schedule, warmup_steps, min_lr, options: see ``AcousticTraining``; ``min_lr`` of ``lr`` is the release's,
    constant after the warm-up. Each stage has its own optimiser so.

    Raises UserError for data without durations, a second stage without a first of the same sizes, and a loss that is
    not finite.
    """

    MONITOR = "val/loss"
    FORMAT, NAME = "vitalk portaspeech", "PortaSpeech"
    FOLLOWS = ("speed", "energy")
    WEIGHTS = {"mel": 0.5, "ssim": 0.5, "sentence": 0.0}

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["normal", "small"] = "normal",
        model_args: dict[str, Any] | None = None,
        stage: Literal["generator", "post"] = "generator",
        start: str | None = None,
        kl_start: int = 10_000,
        durations: Literal["l1", "mse"] = "l1",
        lr: float = 2e-4,
        schedule: Literal["noam", "cosine"] = "cosine",
        warmup_steps: int = 8000,
        min_lr: float = 2e-4,
        **options: Any,
    ):
        super().__init__(
            n_symbols, n_speakers, model_args, lr=lr, schedule=schedule, warmup_steps=warmup_steps, min_lr=min_lr,
            **options,
        )  # fmt: skip
        if stage not in ("generator", "post") or durations not in ("l1", "mse"):
            raise UserError(f'stage "{stage}" is generator or post, durations "{durations}" are l1 or mse')

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network; only the part that the stage is about learns."""
        h, options = self.hparams, {**(self.hparams.model_args or {})}
        options["speakers"] = h.n_speakers if h.n_speakers > 1 else 0
        self.net: PortaSpeech = VARIANTS[h.variant](h.n_symbols, mels=mel_spec(h.mel).n_mels, **options)
        for name, part in self.net.named_children():
            part.requires_grad_((name == "postnet") == (h.stage == "post"))
        return self.net

    def configure_model(self) -> None:  # noqa: D102
        begins = self.net is None
        super().configure_model()
        if begins:
            # The same batch in every process, so that all of them begin with the same weights.
            loader = self.trainer.datamodule.whole_dataloader("train")
            rows = list(loader.batch_sampler)
            batch = loader.collate_fn([loader.dataset[i] for i in rows[len(rows) // 2]])
            if self.hparams.stage == "generator":
                self.fit_mean(batch)
            else:
                self._go_on()
                self.fit_norms(batch)

    def _go_on(self) -> None:
        """Take the weights of the first stage."""
        h = self.hparams
        if h.start is None:
            raise UserError("the post-net needs a trained generator; name its model.safetensors as model.start")
        first, about = load_module(h.start, PortaSpeechTraining)
        if about["mel"] != h.mel:
            raise UserError(f"{h.start} makes mels of preset {about['mel']}, not {h.mel}; give both stages the same")
        try:
            self.net.load_state_dict(first.net.state_dict())
        except RuntimeError:
            raise UserError(f"{h.start} has other sizes; give both stages the same variant and model_args") from None

    @torch.no_grad()
    def fit_mean(self, batch: dict[str, Tensor]) -> None:
        """Let the generator begin with the mean mel of a batch."""
        inside = length_mask(batch["mel_lengths"], batch["mel"].shape[2])
        self.net.generator.head.bias.copy_(batch["mel"].transpose(1, 2)[inside].mean(0))

    @torch.no_grad()
    def fit_norms(self, batch: dict[str, Tensor]) -> None:
        """Set the post-net's activation norms by a batch."""
        training = self.training
        reading, coarse, mel = self.eval().coarse(batch)
        self.net.postnet.fit(mel, torch.cat([coarse, reading.condition], 1), reading.padding)
        self.train(training)

    def train(self, mode: bool = True) -> "PortaSpeechTraining":
        """Parts that do not learn stay as they are when they speak."""
        super().train(mode)
        for name, part in self.net.named_children() if self.net is not None else ():
            if (name == "postnet") != (self.hparams.stage == "post"):
                part.eval()
        return self

    def read(self, batch: dict[str, Tensor]) -> Reading:
        """The text of a batch with the durations that it brings."""
        durations = self.durations_of(batch)
        if int(batch["mel_lengths"].min()) < BLOCK:
            raise UserError(f"an utterance lasts less than {BLOCK} frames, too short to learn from; remove it")
        told = {} if self.net.linguistic.speakers is None else {"speaker": batch["speaker"]}
        return self.net.linguistic(batch["ids"], batch["text_lengths"], durations, **told)

    def coarse(self, batch: dict[str, Tensor]) -> tuple[Reading, Tensor, Tensor]:
        """(reading, coarse mel by way of the posterior, the mel that it is to become) of a batch."""
        reading = self.read(batch)
        mel = fitted(batch["mel"], reading)
        return reading, self.net.reconstruct(reading, mel)[0], mel

    def mel(self, batch: dict[str, Tensor]) -> Tensor:
        """By way of the posterior, and sharpened where the post-net was trained."""
        reading, coarse, _ = self.coarse(batch)
        return self.net.sharpen(coarse, reading, torch.randn) if self.hparams.stage == "post" else coarse

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of the stage, teacher-forced with the durations; "post" in nats per point of the mel."""
        if self.hparams.stage == "post":
            with torch.no_grad():
                reading, coarse, mel = self.coarse(batch)
            return {"post": self.net.likelihood_loss(coarse, reading, mel)}
        floor = math.log(mel_spec(self.hparams.mel).floor)
        found = self.net.losses(self.read(batch), batch["mel"], floor, self.hparams.durations)
        if self.training and self.global_step < self.hparams.kl_start:
            found["kl"] = found["kl"].detach()
        return found

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        loss, found = self.loss(batch)
        named = {f"val/{name}": value for name, value in {**found, "loss": loss}.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(batch["ids"]))


class ForVoice(nn.Module):
    """A trained network as voice files need it: (ids, speaker, speed, pitch, energy) -> (log-mel, durations).

    Energy multiplies amplitudes. Pitch is not heeded: PortaSpeech draws its prosody, and nothing in it is F0.
    postnet: False speaks with the coarse mel, as after the first stage. Noise is always the same, see ``Noise``.
    """

    def __init__(self, net: PortaSpeech, postnet: bool = True):
        super().__init__()
        self.net, self.postnet, self.noise = net.fold(), postnet, Noise()

    def forward(
        self, ids: Tensor, speaker: Tensor | None, speed: Tensor, pitch: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids [1, text], speaker and factors [1] -> [1, mels, frames], int64 [1, text]."""
        told = {} if self.net.linguistic.speakers is None else {"speaker": speaker}
        out = self.net(ids, speed=speed, postnet=self.postnet, draw=self.noise, **told)
        return out.mel + energy.log()[:, None, None], out.durations


def load_trained(path: str | Path) -> tuple[PortaSpeech, dict[str, Any]]:
    """(network in eval mode, what is known about it, with the stage that it went through last as "stage")."""
    module, about = load_module(path, PortaSpeechTraining)
    return module.net, {**about, "stage": module.hparams.stage}


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """What voices are made of: the post-net speaks where it was trained, the generator alone where it was not."""
    module, about = load_module(path, PortaSpeechTraining)
    return ForVoice(module.net, module.hparams.stage == "post"), about
