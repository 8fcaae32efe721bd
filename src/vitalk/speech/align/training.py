"""Durations for any corpus without an external aligner: train one on the corpus itself, then ask it.

A batch is a dict: ids int64 [batch, text], text_lengths int64 [batch], mel [batch, mels, frames] (log-mel),
mel_lengths int64 [batch].

Recordings begin and end with silence: give every text a symbol of its own for it at both ends. Without one the first
sound symbol has to take the silence, and alignments tend to end up a symbol late.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor, nn

from vitalk.errors import UserError

from .aligner import Aligner, ForwardSumLoss, binarisation_loss, hard_durations, mask_of, priors
from .search import check_lengths, path_of

FORMAT = "vitalk aligner"


class AlignerTraining(LightningModule):
    """Trains an ``Aligner`` over symbol embeddings with the forward-sum loss, later with the binarisation loss too.

    The arrangement and its sizes are ours; losses, prior and attention are of arXiv 2108.10447. Each mel band is
    brought to mean 0 and deviation 1 within the utterance, so that level and colour of a voice do not matter.

    n_symbols: size of the symbol table. n_mels: of the spectrograms. text_dim: width of the embeddings; dim: of the
    space in which symbols and frames meet. temperature: what squared distances there are multiplied by, ten times the
    paper's: encoders as small as these then learn within hundreds of steps instead of thousands.
    lr: of Adam, held after ``warmup_steps`` steps of linear warm-up.
    binarise_from: step at which the binarisation loss joins; its weight rises to 1 within ``binarise_ramp`` steps.
    prior_scale: of the beta-binomial prior.
    image_every: steps between pictures of the first alignment of a batch for loggers that take them (TensorBoard);
    0 draws none.

    Raises UserError for an item with more symbols than frames and for a loss that is not finite.
    """

    def __init__(
        self,
        n_symbols: int,
        n_mels: int = 80,
        text_dim: int = 128,
        dim: int = 80,
        temperature: float = 0.005,
        lr: float = 5e-3,
        warmup_steps: int = 100,
        binarise_from: int = 2000,
        binarise_ramp: int = 1000,
        prior_scale: float = 1.0,
        image_every: int = 1000,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.embedding = nn.Embedding(n_symbols, text_dim)
        self.aligner = Aligner(text_dim, n_mels, dim, temperature)
        self.forward_sum = ForwardSumLoss()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A batch -> (attention, log-probabilities), both [batch, frames, text]."""
        check_lengths(batch["text_lengths"], batch["mel_lengths"])
        text_mask = mask_of(batch["text_lengths"], batch["ids"].shape[1])
        mel_mask = mask_of(batch["mel_lengths"], batch["mel"].shape[2])
        prior = priors(batch["text_lengths"], batch["mel_lengths"], self.hparams.prior_scale)
        prior = F.pad(prior, (0, text_mask.shape[1] - prior.shape[2], 0, mel_mask.shape[1] - prior.shape[1]))
        mel = standardised_bands(batch["mel"], mel_mask)
        return self.aligner(self.embedding(batch["ids"]), mel, text_mask, mel_mask, prior)

    @torch.no_grad()
    def durations(self, batch: dict[str, Tensor]) -> Tensor:
        """Durations in frames, int64 [batch, text]; each item's sum to its frames."""
        _, logprob = self(batch)
        return hard_durations(logprob, batch["text_lengths"], batch["mel_lengths"])

    def losses(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """({"forward_sum", "binarisation"} scalars, attention); the binarisation only from its step on."""
        attn, logprob = self(batch)
        found = {"forward_sum": self.forward_sum(logprob, batch["text_lengths"], batch["mel_lengths"])}
        if self.binarisation > 0:
            durations = hard_durations(logprob, batch["text_lengths"], batch["mel_lengths"])
            found["binarisation"] = binarisation_loss(path_of(durations, attn.shape[1]).transpose(1, 2), attn)
        return found, attn

    @property
    def binarisation(self) -> float:
        """Weight of the binarisation loss at this step, 0 to 1."""
        h = self.hparams
        return min(max((self.global_step - h.binarise_from + 1) / max(h.binarise_ramp, 1), 0.0), 1.0)

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:  # noqa: D102
        found, attn = self.losses(batch)
        loss = found["forward_sum"] + self.binarisation * found.get("binarisation", 0.0)
        if not torch.isfinite(loss):
            raise UserError(f"the loss became {loss.item()} at step {self.global_step}; lower lr or check the mels")
        self.log_dict({f"train/{name}": value.detach() for name, value in found.items()}, prog_bar=True, sync_dist=True)
        if self.hparams.image_every and self.global_step % self.hparams.image_every == 0:
            self._draw(attn[0, : batch["mel_lengths"][0], : batch["text_lengths"][0]])
        return loss

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:  # noqa: D102
        found, _ = self.losses(batch)
        named = {f"val/{name}": value for name, value in found.items()}
        self.log_dict(named, sync_dist=True, batch_size=len(batch["ids"]))

    def configure_optimizers(self) -> dict[str, Any]:  # noqa: D102
        optimizer = torch.optim.Adam(self.parameters(), self.hparams.lr)
        warmup = max(self.hparams.warmup_steps, 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 1.0))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def save_weights(self, path: Path, data: Any = None) -> None:
        """Write the weights as safetensors whose metadata holds the arguments; ``load`` reads it."""
        from vitalk.files import write_tensors
        from vitalk.training import arguments_of

        write_tensors(path, self.state_dict(), {"format": FORMAT, "arguments": json.dumps(arguments_of(self))})

    @classmethod
    def load(cls, path: str | Path) -> "AlignerTraining":
        """The aligner of a file of ``save_weights``, in eval mode. Raises UserError where it is none."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise UserError(f"there is no aligner at {path}")
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} cannot be read as an aligner ({error}); train it again") from None
        if meta.get("format") != FORMAT:
            raise UserError(f"{path} holds no aligner; give the model.safetensors of an aligner's training")
        model = cls(**json.loads(meta["arguments"]))
        model.load_state_dict(state)
        return model.eval()

    def _draw(self, attn: Tensor) -> None:
        for logger in self.loggers:
            draw = getattr(logger.experiment, "add_image", None)
            if draw is not None:
                picture = attn.detach().float().T.flip(0)[None].cpu()
                draw("alignment", picture / picture.max(), self.global_step)


def standardised_bands(mel: Tensor, mask: Tensor) -> Tensor:
    """Every mel band at mean 0 and deviation 1 over the frames of its utterance, 0 in the padding.

    mel: [batch, mels, frames]. mask: bool [batch, frames]. A band without movement becomes 0.
    """
    inside = mask[:, None].to(mel)
    count = inside.sum(2, keepdim=True).clamp(min=1)
    centred = (mel - (mel * inside).sum(2, keepdim=True) / count) * inside
    deviation = (centred.square().sum(2, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=1e-3)
