"""Short training runs on a budget: what the reproductions of claims about training share."""

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer
from rich.progress import Progress


class Budget:
    """The time that a measurement may take, drawn as a progress bar; ``budget`` makes one."""

    def __init__(self, title: str, seconds: float, progress: Progress):
        self.title, self.seconds, self.start = title, seconds, time.monotonic()
        self._progress, self._task = progress, progress.add_task(title, total=seconds)

    def tick(self, doing: str | None = None) -> float:
        """Move the bar, and write what is going on; the seconds that are left, below 0 when it is overdrawn."""
        spent = time.monotonic() - self.start
        named = {} if doing is None else {"description": f"{self.title}: {doing}"}
        self._progress.update(self._task, completed=min(spent, self.seconds), **named)
        return self.seconds - spent


@contextmanager
def quiet() -> Iterator[None]:
    """Within it Lightning keeps its advice on short runs to itself."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def budget(title: str, minutes: float) -> Iterator[Budget]:
    """A ``Budget`` of so many minutes; Lightning is ``quiet`` within it."""
    with quiet(), Progress(transient=True) as progress:
        yield Budget(title, 60 * minutes, progress)


class _Clock(Callback):
    def __init__(self, tick: Callable[[], object]):
        self.tick, self.times = tick, [time.monotonic()]

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.monotonic())
        self.tick()


def short_run(
    module: LightningModule,
    data: Any,
    steps: int | None,
    tick: Callable[[], object] = lambda: None,
    seconds: float | None = None,
) -> float:
    """Train without checkpoints, logs or validation; returns the median seconds of a step.

    data: a loader, or a LightningDataModule. steps, seconds: the run ends with whichever is over first; None for no
    limit of its kind. tick: called after every step. ``module.trainer.global_step`` is the number of steps done.
    """
    clock = _Clock(tick)
    trainer = Trainer(
        accelerator="auto", devices=1, max_steps=steps or -1, max_epochs=-1, callbacks=[clock], logger=False,
        max_time=None if seconds is None else timedelta(seconds=seconds), limit_val_batches=0,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    fed = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data}
    trainer.fit(module, **fed)
    taken = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    return statistics.median(taken[2:] or taken or [0.0])
