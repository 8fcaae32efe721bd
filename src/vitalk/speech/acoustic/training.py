"""Training acoustic models with Lightning, on the batches of ``vitalk.speech.features.Speech``."""

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vitalk.errors import UserError

from .variance import Spread


class AcousticTraining(LightningModule):
    """What the trainings of acoustic models have in common; each builds its network and says its losses.

    n_symbols, n_speakers: from the data. model_args: further arguments of the network. mel: the preset of the data.
    lr: the rate that "noam" (arXiv 1706.03762) reaches at ``warmup_steps`` and "cosine" then lowers to ``min_lr``, as
    ``schedule`` says. betas: of Adam. clip: the largest norm of the gradient, 0 for any. weights: of the losses by
    name, 1 for those that are not named. All arguments, those of the subclasses too, are kept as hyperparameters; a
    subclass names those of these whose default is another, and hands the rest on as ``options``.
    The network is built when the data is known: pitch and energy are scaled by their spread in the corpus.

    MONITOR: the validation loss whose least value makes the best checkpoint. FORMAT: of what ``save_weights`` writes,
    "vitalk SLUG". NAME: of the model in sentences. WEIGHTS: of losses, where they are not 1. FOLLOWS: the factors of a
    voice that the model can be told. WAVES: it needs the recordings themselves to make their mels (``mel``). REMEDY:
    for data without durations.
    Raises UserError for a loss that is not finite.
    """

    MONITOR: str | None = "val/mel"
    FORMAT: str
    NAME: str
    WEIGHTS: dict[str, float] = {}
    FOLLOWS: tuple[str, ...] = ("speed", "pitch", "energy")
    WAVES = False
    REMEDY = "train an aligner and name its model.safetensors as data.aligner"

    def __init__(
        self,
        n_symbols: int,
        n_speakers: int = 1,
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

    def configure_model(self) -> None:  # noqa: D102
        if self.net is None:
            self.build(*self.trainer.datamodule.spreads())

    @abstractmethod
    def build(self, f0: Spread, energy: Spread) -> nn.Module:
        """Make ``net`` for a corpus whose log F0 and energy are spread so, and return it."""

    @abstractmethod
    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a batch, teacher-forced, by name."""

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """(weighted sum, the losses by name)."""
        found = self.losses(batch)
        return self.weigh(found), found

    @abstractmethod
    def mel(self, batch: dict[str, Tensor]) -> Tensor:
        """What the model makes of recordings, told what training tells it: log-mel [batch, mels, frames]."""

    def durations_of(self, batch: dict[str, Tensor]) -> Tensor:
        """Frames of each symbol, int64 [batch, text]. Raises UserError where the data has none."""
        if "durations" not in batch:
            raise UserError(f"the data has no durations; {self.REMEDY}")
        return batch["durations"]

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
        found = self.losses(batch)
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
        """Adam for the weights of a part that learn."""
        weights = [weight for weight in part.parameters() if weight.requires_grad]
        return torch.optim.Adam(weights, lr, betas=tuple(self.hparams.betas), eps=1e-9)

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
    """A trained network as voices need it: (ids, speaker, speed, pitch, energy) -> (log-mel, durations).

    follows: the factors that the network is told; the others change nothing, and voices refuse them. alone: it knows
    one voice, and is told of none; None finds out by its table ``speakers``.
    """

    ARGUMENTS = {"speed": "speed", "pitch": "pitch_factor", "energy": "energy_factor"}  # of the network, by factor

    def __init__(self, net: nn.Module, follows: Collection[str] = AcousticTraining.FOLLOWS, alone: bool | None = None):
        super().__init__()
        self.net, self.follows, self.alone = net, follows, net.speakers is None if alone is None else alone

    def forward(
        self, ids: Tensor, speaker: Tensor | None, speed: Tensor, pitch: Tensor, energy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """ids [1, text], speaker and factors [1] -> [1, mels, frames], int64 [1, text]."""
        factors = {"speed": speed, "pitch": pitch, "energy": energy}
        told = {self.ARGUMENTS[name]: factors[name] for name in self.follows}
        out = self.net(ids, speaker=None if self.alone else speaker, **told)
        return out.mel, out.durations


def load_module(path: str | Path, kind: type[AcousticTraining]) -> tuple[AcousticTraining, dict[str, Any]]:
    """(training module in eval mode, what is known about it) of the model.safetensors of a training.

    Known are "mel", "lang", "speakers", "symbols" and "follows". kind: of the training.
    Raises UserError where the file is of none, or of another kind.
    """
    meta, state = read_trained(path)
    if meta.get("format") != kind.FORMAT:
        raise UserError(f"{path} holds no {kind.NAME}; give the model.safetensors of its training")
    module = kind(**json.loads(meta["arguments"]))
    # Placeholders: the corpus' own spreads are buffers of the state.
    net = module.build(Spread(5.0, 0.3, 60.0, 600.0, log=True), Spread(30.0, 30.0, 0.0, 300.0))
    net.load_state_dict(state)
    about = {"mel": module.hparams.mel, "lang": meta["lang"], "speakers": json.loads(meta["speakers"]),
             "symbols": meta["symbols"], "follows": list(kind.FOLLOWS)}  # fmt: skip
    return module.eval(), about


def read_trained(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, weights) of the model.safetensors of a training. Raises UserError for files that are none."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"there is no trained model at {path}; train first, or name the folder that vitalk train wrote")
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}); train again") from None


def fingerprint(net: nn.Module) -> str:
    """What tells a network from others: a hash of its weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(json.dumps([name, list(value.shape)]).encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
