"""When a picture may leave, per sample, on the way through the exits or afterwards from what they said."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from vitalk.errors import UserError

Kind = Literal["confidence", "entropy", "patience", "patient_and_confident"]
# threshold, exits in a row; the release's, except that its ViT waits for 7 equal predictions and its Swin for 3
DEFAULTS: dict[Kind, tuple[float | None, int]] = {
    "confidence": (0.8, 1),
    "entropy": (0.6, 1),
    "patience": (None, 3),
    "patient_and_confident": (0.5, 2),
}


class Rule:
    """An exit rule (arXiv 2308.00255, section 3.4, and the baselines of its section 4).

    kind: "confidence", the largest probability lies above ``threshold``; "entropy", that of the probabilities lies
    below it, in nats; "patient_and_confident", the same at ``patience`` exits in a row; "patience" (PABEE), as many
    equal predictions in a row, no threshold. None takes the release's defaults.

    A rule that never fires (confidence above 1, entropy below 0, more patience than exits) leaves the plain network.
    Raises UserError for kinds, thresholds and patience that mean nothing.
    """

    def __init__(self, kind: Kind = "confidence", threshold: float | None = None, patience: int | None = None):
        if kind not in get_args(Kind):
            raise UserError(f"there is no exit rule {kind!r}; choose one of {', '.join(get_args(Kind))}")
        usual = DEFAULTS[kind]
        if kind == "patience" and threshold is not None:
            raise UserError(f"the rule patience counts equal predictions and takes no threshold, got {threshold}")
        if threshold is not None and not threshold >= 0:
            raise UserError(f"the exit threshold must be a number of at least 0, got {threshold}")
        if patience is not None and patience < 1:
            raise UserError(f"patience must be at least one exit, got {patience}")
        self.kind = kind
        self.threshold = usual[0] if threshold is None else float(threshold)
        self.patience = usual[1] if patience is None else patience

    def never(self, exits: int) -> bool:
        """Whether no picture can leave at any of so many exits, so that their heads need not be asked."""
        if self.patience > exits:
            return True
        if self.kind == "confidence":
            return self.threshold >= 1
        return self.kind != "patience" and self.threshold <= 0

    def score(self, logits: Tensor) -> Tensor:
        """logits [..., classes] -> what the rule looks at [...], float32; NaN where logits are NaN or infinite."""
        probability = logits.float().softmax(-1)
        top = probability.amax(-1)
        if self.kind == "confidence":
            return top
        if self.kind == "patience":
            return torch.where(top.isnan(), top, probability.argmax(-1).to(top.dtype))
        # Not p log p as it stands: that is NaN where a probability underflows to 0.
        return -(probability * probability.clamp_min(torch.finfo(top.dtype).tiny).log()).sum(-1)

    def begin(self, batch: int, device: torch.device) -> Tensor:
        """The state before the first exit: the last score and how long the condition has held, [batch, 2]."""
        return torch.tensor([[-1.0, 0.0]], device=device).repeat(batch, 1)

    def step(self, score: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [batch] of the next exit -> who leaves there, bool [batch], and the state after it.

        A score that is NaN never lets anyone leave.
        """
        if self.kind == "patience":
            run = torch.where(score == state[:, 0], state[:, 1] + 1, 1.0)
        else:
            met = score > self.threshold if self.kind == "confidence" else score < self.threshold
            run = torch.where(met, state[:, 1] + 1, 0.0)
        run = torch.where(score.isnan(), 0.0, run)
        return run >= self.patience, torch.stack([score, run], 1)

    def decide(self, scores: Tensor) -> Tensor:
        """Scores [exits, batch] of all exits -> the index of the one where each sample leaves, [batch].

        The number of exits stands for the final classifier. The same steps as on the way, so the same decisions.
        """
        exits, batch = scores.shape
        chosen = torch.full((batch,), exits, device=scores.device)
        if self.never(exits):
            return chosen
        state = self.begin(batch, scores.device)
        for index in range(exits):
            leave, state = self.step(scores[index], state)
            chosen = torch.where(leave & (chosen == exits), index, chosen)
        return chosen

    def __repr__(self) -> str:
        return f"Rule({self.kind!r}, threshold={self.threshold}, patience={self.patience})"


def rules(kind: Kind, exits: int, classes: int, steps: int = 100) -> list[Rule]:
    """Rules from the most eager to the one that never fires, for a sweep.

    The threshold goes over its whole range in ``steps`` steps: 0 to 1 for confidence, log(classes) to 0 for entropy,
    squared so that most steps are where networks are sure. Patience goes from one exit to one more than there are.
    """
    if kind == "patience":
        return [Rule(kind, patience=count) for count in range(1, exits + 2)]
    unsure = [(1 - i / steps) ** 2 for i in range(steps + 1)]
    return [Rule(kind, 1 - x if kind == "confidence" else math.log(classes) * x) for x in unsure]
