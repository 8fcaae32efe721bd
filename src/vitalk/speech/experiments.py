"""Short experiments on speech: what the reproductions of claims about acoustic models share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import seed_everything

from vitalk.experiments import short_run

from .acoustic.fft_block import length_mask
from .acoustic.training import AcousticTraining
from .align.durations import DurationCache, extract
from .align.training import AlignerTraining
from .features import Speech

BATCH_FRAMES = 1_200  # of a batch: in minutes on a processor, many small steps teach far more than few large ones


def align(corpus: Speech, seconds: float, tick: Callable[[], object] = lambda: None) -> AlignerTraining:
    """An aligner trained on the corpus for so many seconds; tick: called after every step."""
    seed_everything(0, verbose=False)
    aligner = AlignerTraining(corpus.n_symbols, binarise_from=10**9, image_every=0, lr=3e-3, warmup_steps=20)
    short_run(aligner, corpus, None, tick, seconds)
    return aligner.eval()


def keep_durations(aligner: AlignerTraining, folder: str | Path, *corpora: Speech) -> None:
    """Give corpora the durations of an aligner that nobody will have again: they are kept as long as ``folder`` is."""
    durations = DurationCache(folder)
    for corpus in corpora:
        for part in ("train", "test"):
            extract(aligner, corpus.whole_dataloader(part), durations)
        corpus.durations = durations


def some(corpus: Speech, part: Literal["train", "test"] = "test", most: int = 24) -> Iterator[dict[str, Any]]:
    """Batches of a part, so many at most, from the shortest utterances to the longest."""
    loader = corpus.whole_dataloader(part)
    batches = list(loader.batch_sampler)
    for rows in batches[:: -(-len(batches) // most)]:
        yield loader.collate_fn([loader.dataset[i] for i in rows])


@torch.inference_mode()
def mel_error(model: AcousticTraining, corpus: Speech, part: Literal["train", "test"] = "test") -> float:
    """Mean mel L1 of ``some`` utterances of a part, told what training tells."""
    model.eval()
    total = count = 0.0
    for batch in some(corpus, part):
        made, mask = model.mel(batch), length_mask(batch["mel_lengths"], batch["mel"].shape[2])[:, None]
        total += float((made - batch["mel"]).abs().masked_fill(~mask, 0.0).sum())
        count += float(mask.sum()) * made.shape[1]
    model.train()
    return total / count
