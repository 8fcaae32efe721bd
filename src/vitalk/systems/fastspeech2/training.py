"""Training FastSpeech 2 with Lightning, on the batches of ``vitalk.speech.features.Speech``."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitalk.errors import UserError
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import mel_spec
from vitalk.speech.pitch import average_by_duration
from vitalk.speech.wavelet import pitch_spectrogram

from .model import FastSpeech2, Output, Targets
from .variants import fastspeech2, fastspeech2_ming, fastspeech2_small

VARIANTS: dict[str, Callable[..., FastSpeech2]] = {
    "paper": fastspeech2,
    "ming": fastspeech2_ming,
    "small": fastspeech2_small,
}


class FastSpeech2Training(LightningModule):
    """Trains FastSpeech 2 on symbols, durations, pitch, energy and mels.

    variant: "paper", "ming" or "small". model_args: further arguments of ``FastSpeech2``. mel: the preset of the data.
    n_symbols, n_speakers: from the data; one speaker has no embedding.
    lr: the rate that "noam" (arXiv 1706.03762, as in the paper) reaches at ``warmup_steps`` and "cosine" then lowers
    to ``min_lr``. betas: of Adam. clip: largest norm of the gradient, 0 for any.
    weights: of the losses by name, 1 for those that are not named.
    The network is built when the data is known: pitch and energy are scaled by their spread in the corpus.

    Raises UserError for data without durations and for a loss that is not finite.
    """

    MONITOR: str | None = "val/mel"
    FORMAT, NAME = "vitalk fastspeech2", "FastSpeech 2"  # of what ``save_weights`` writes
    WEIGHTS: dict[str, float] = {}

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
        variant: Literal["paper", "ming", "small"] = "paper",
        model_args: dict[str, Any] | None = None,
        mel: str = "vitalk",
        lr: float = 1e-3,
        schedule: Literal["noam", "cosine"] = "noam",
        warmup_steps: int = 4000,
        min_lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.98),
        clip: float = 1.0,
        weights: dict[str, float] | None = None,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.net: nn.Module | None = None

    @property
    def acoustic(self) -> FastSpeech2:
        """The network that makes spectrograms."""
        return self.net

    def configure_model(self) -> None:  # noqa: D102
        if self.net is None:
            self.build(*self.trainer.datamodule.spreads())

    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make the network for a corpus whose log F0 and energy are spread so."""
        h = self.hparams
        options: dict[str, Any] = {"f0_spread": f0, "energy_spread": energy, **(h.model_args or {})}
        options["speakers"] = h.n_speakers if h.n_speakers > 1 else 0
        self.net = VARIANTS[h.variant](h.n_symbols, mels=mel_spec(h.mel).n_mels, **options)
        return self.net

    def forward(self, batch: dict[str, Tensor]) -> tuple[Output, Targets]:
        """A batch, teacher-forced with its durations, pitch and energy -> what the network gives, and the targets."""
        told, targets = self.told(batch)
        return self.net(**told), targets

    def told(self, batch: dict[str, Tensor]) -> tuple[dict[str, Any], Targets]:
        """What the network is given of a batch, by the names of its arguments, and the targets."""
        if "durations" not in batch:
            raise UserError(
                "the data has no durations; train an aligner and name its model.safetensors as data.aligner"
            )
        targets = self.targets(batch)
        told = {"ids": batch["ids"], "text_lengths": batch["text_lengths"], "durations": targets.durations,
                "pitch": self.pitch_told(batch, targets), "energy": targets.energy}  # fmt: skip
        return told | ({} if self.acoustic.speakers is None else {"speaker": batch["speaker"]}), targets

    def targets(self, batch: dict[str, Tensor]) -> Targets:
        """What the network is compared with, at the levels that it predicts."""
        durations = batch["durations"]
        energy = batch["energy"]
        if self.acoustic.energy_level == "phoneme":
            energy = average_by_duration(energy, durations)
        common = {"mel": batch["mel"], "durations": durations, "energy": energy}
        if self.acoustic.pitch_level == "phoneme":
            return Targets(**common, pitch=average_by_duration(batch["pitch"], durations))
        if not hasattr(self.acoustic.pitch, "predict"):
            return Targets(**common, pitch=batch["pitch"].clamp(min=1.0))
        spectrogram, mean, std = self._wavelets(batch)
        return Targets(
            **common, spectrogram=spectrogram, voiced=batch["f0"] > 0, pitch_mean=mean, pitch_std=std
        )  # fmt: skip

    def pitch_told(self, batch: dict[str, Tensor], targets: Targets) -> Tensor:
        """The pitch that the network is given in place of its own: wavelet pitch is told where there is no voice."""
        return targets.pitch if targets.pitch is not None else batch["f0"]

    def _wavelets(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        spec = mel_spec(self.hparams.mel)
        # Each curve for itself: the transform is of whole curves, and padding would be a part of it.
        rows = [
            pitch_spectrogram(pitch[:length].log(), spec.hop / spec.rate)
            for pitch, length in zip(batch["pitch"], batch["mel_lengths"].tolist(), strict=True)
        ]
        spectrogram = nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)
        return spectrogram.float(), *(torch.stack([row[i] for row in rows]).float() for i in (1, 2))

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum, the losses by name)."""
        found = self.acoustic.losses(*self(batch))
        return self.weigh(found), found

    def weigh(self, losses: dict[str, Tensor]) -> Tensor:
        """The sum of the losses, each by its weight."""
        weights = {**self.WEIGHTS, **(self.hparams.weights or {})}
        return sum(weights.get(name, 1.0) * value for name, value in losses.items())

    def check(self, loss: Tensor) -> None:
        """Raises UserError for a loss that is not finite."""
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {self.global_step}; lower lr or check the corpus")

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:  # noqa: D102
        loss, found = self.loss(batch)
        self.check(loss)
        size = len(batch["ids"])
        self.log_dict(
            {f"train/{k}": v.detach() for k, v in found.items()}, prog_bar=True, sync_dist=True, batch_size=size
        )
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        _, found = self.loss(batch)
        self.log_dict({f"val/{k}": v for k, v in found.items()}, sync_dist=True, batch_size=len(batch["ids"]))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients here, where those of mixed precision are unscaled."""
        for group in optimizer.param_groups if self.hparams.clip else ():
            nn.utils.clip_grad_norm_(group["params"], self.hparams.clip)

    def configure_optimizers(self) -> Any:  # noqa: D102
        optimizer = self.adam(self.net, self.hparams.lr)
        scheduler = LambdaLR(optimizer, self.schedule())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def adam(self, part: nn.Module, lr: float) -> Optimizer:
        """The paper's optimiser for the weights of a part."""
        return torch.optim.Adam(part.parameters(), lr, betas=tuple(self.hparams.betas), eps=1e-9)

    def schedule(self) -> Callable[[int], float]:
        """What the learning rate is multiplied by at a step."""
        h, steps = self.hparams, self.trainer.estimated_stepping_batches

        def factor(step: int) -> float:
            done = (step + 1) / h.warmup_steps
            if done <= 1 or h.schedule == "noam":
                return min(done, done**-0.5)
            part = min((step + 1 - h.warmup_steps) / max(steps - h.warmup_steps, 1), 1.0)
            return (h.min_lr + (h.lr - h.min_lr) * (1 + math.cos(math.pi * part)) / 2) / h.lr

        return factor

    def save_weights(self, path: Path, data: Any) -> None:
        """Write the network as safetensors whose metadata holds its arguments, speakers, language and symbols."""
        from vitalk.files import write_tensors
        from vitalk.training import arguments_of

        meta = {
            "format": self.FORMAT,
            "arguments": json.dumps(arguments_of(self)),
            "speakers": json.dumps(data.speakers),
            "lang": data.hparams.lang,
            "symbols": data.symbols(),
        }
        write_tensors(path, self.net.state_dict(), meta)


class ForVoice(nn.Module):
    """A trained network as voice files need it: (ids, speaker, speed, pitch, energy) -> (log-mel, durations)."""

    def __init__(self, net: FastSpeech2):
        super().__init__()
        self.net = net

    def forward(
        self, ids: Tensor, speaker: Tensor | None, speed: Tensor, pitch: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids [1, text], speaker and factors [1] -> [1, mels, frames], int64 [1, text]."""
        told = {} if self.net.speakers is None else {"speaker": speaker}
        out = self.net(ids, speed=speed, pitch_factor=pitch, energy_factor=energy, **told)
        return out.mel, out.durations


def load_module(
    path: str | Path, kind: type[FastSpeech2Training] = FastSpeech2Training
) -> tuple[FastSpeech2Training, dict[str, Any]]:
    """(training module in eval mode, {"mel", "lang", "speakers", "symbols"}) of the model.safetensors of a training.

    kind: of the training. Raises UserError where the file is of none, or of another kind.
    """
    meta, state = read_trained(path)
    if meta.get("format") != kind.FORMAT:
        raise UserError(f"{path} holds no {kind.NAME}; give the model.safetensors of its training")
    module = kind(**json.loads(meta["arguments"]))
    # Placeholders: the corpus' own spreads are buffers of the state.
    net = module.build(Spread(5.0, 0.3, 60.0, 600.0, log=True), Spread(30.0, 30.0, 0.0, 300.0))
    net.load_state_dict(state)
    about = {"mel": module.hparams.mel, "lang": meta["lang"], "speakers": json.loads(meta["speakers"]),
             "symbols": meta["symbols"]}  # fmt: skip
    return module.eval(), about


def load_trained(path: str | Path) -> tuple[FastSpeech2, dict[str, Any]]:
    """``load_module`` without the training: (network in eval mode, what is known about it)."""
    module, about = load_module(path)
    return module.net, about


def read_trained(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, weights) of the model.safetensors of a training. Raises UserError for files that are none."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"there is no trained model at {path}")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); train again") from None


def load_for_voice(path: str | Path) -> tuple[ForVoice, dict[str, Any]]:
    """``load_trained`` in the form that voices are made of: what ``vitalk export`` asks of an acoustic model."""
    net, about = load_trained(path)
    return ForVoice(net), about
