"""What Transformer TTS is trained on: two spectrograms, the end, and perhaps the diagonal."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vitalk.errors import UserError
from vitalk.speech.acoustic.fft_block import masked_mean

from .alignment import guided_attention_loss
from .model import Output

Distance = Literal["l2", "l1"]


def mel_distance(mel: Tensor, target: Tensor, mask: Tensor, distance: Distance = "l2") -> Tensor:
    """Mean error of a mel [batch, mels, frames] within the mask [batch, frames], "l2" squared or "l1" absolute.

    Raises UserError for another distance and for mels of different shapes.
    """
    if distance not in ("l2", "l1"):
        raise UserError(f'there is no mel distance "{distance}"; choose l2 or l1')
    if mel.shape != target.shape:
        raise UserError(f"a mel of shape {list(target.shape)} does not fit one of {list(mel.shape)}; crop it")
    off = mel - target
    return masked_mean(off.square() if distance == "l2" else off.abs(), mask[:, None])


def stop_targets(steps: Tensor, width: int) -> Tensor:
    """1 at the last step of each item, 0 elsewhere: steps [batch] -> [batch, width]."""
    return F.one_hot(steps - 1, width).float()


def stop_loss(logits: Tensor, steps: Tensor, weight: float = 5.0) -> Tensor:
    """Binary cross-entropy of logits [batch, steps], whose only positive step counts ``weight`` times.

    Of the mean over steps; without the weight a model may never stop (arXiv 1809.08895, section 3.7).
    """
    target = stop_targets(steps, logits.shape[1])
    inside = torch.arange(logits.shape[1], device=logits.device) < steps[:, None]
    positive = logits.new_tensor(weight)
    loss = F.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=positive.float(), reduction="none")
    return masked_mean(loss, inside)


def losses(
    output: Output, mel: Tensor, distance: Distance = "l2", stop_weight: float = 5.0, guided: bool = False
) -> dict[str, Tensor]:
    """The losses of a teacher-forced pass by name; training adds them up.

    mel and, before the post-net, mel_coarse: see ``mel_distance``. stop: see ``stop_loss``. guided: see
    ``guided_attention_loss``, of half of the heads, one at least, in the layers whose maps the output has.
    """
    found = {"mel": mel_distance(output.mel, mel, output.frame_mask, distance)}
    if output.mel_coarse is not None:
        found["mel_coarse"] = mel_distance(output.mel_coarse, mel, output.frame_mask, distance)
    found["stop"] = stop_loss(output.stop, output.steps, stop_weight)
    if guided:
        maps = output.maps[:, :, : max(output.maps.shape[2] // 2, 1)]
        found["guided"] = guided_attention_loss(maps, output.steps, output.text_mask.sum(1))
    return found
