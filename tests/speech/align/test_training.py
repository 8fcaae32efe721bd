"""An aligner trained from nothing finds durations that are known."""

import pytest
import torch
from lightning import Trainer, seed_everything
from torch.utils.data import DataLoader

from vitalk.errors import UserError
from vitalk.speech.align.training import AlignerTraining, standardised_bands


def batches(count, seed=0, symbols=12, mels=10, size=8):
    """Batches of symbols that each sound like a vector of their own, and the durations they were given."""
    generator = torch.Generator().manual_seed(seed)
    sounds = torch.randn(symbols, mels, generator=torch.Generator().manual_seed(99))
    for _ in range(count):
        lengths = torch.randint(4, 10, (size,), generator=generator)
        # No symbol twice in a row: where one ends and its like begins, nobody could hear.
        ids = 1 + torch.randint(1, symbols - 1, (size, 10), generator=generator).cumsum(1) % (symbols - 1)
        durations = torch.randint(1, 7, (size, 10), generator=generator) * (torch.arange(10) < lengths[:, None])
        frames = durations.sum(1)
        mel = torch.zeros(size, mels, int(frames.max()))
        for item in range(size):
            mel[item, :, : frames[item]] = sounds[ids[item].repeat_interleave(durations[item])].T
        mel += 0.1 * torch.randn(mel.shape, generator=generator)
        yield {"ids": ids, "text_lengths": lengths, "mel": mel - 5, "mel_lengths": frames}, durations


def loader(count, seed=0):
    return DataLoader([batch for batch, _ in batches(count, seed)], batch_size=None)


def quiet(**options):
    return Trainer(
        accelerator="cpu", logger=options.pop("logger", False), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    seed_everything(0, verbose=False)
    model = AlignerTraining(12, 10, text_dim=24, dim=16, warmup_steps=10, binarise_from=150, binarise_ramp=50, lr=1e-2)
    trainer = quiet(max_epochs=1)
    trainer.fit(model, loader(250), loader(2, seed=1))
    return model, trainer


def boundary_error(model, seed=2):
    errors = []
    for batch, durations in batches(4, seed=seed):
        found = model.durations(batch)
        inside = torch.arange(10) < batch["text_lengths"][:, None]
        assert torch.equal(found.sum(1), batch["mel_lengths"]) and not found[~inside].any()
        errors.append((found.cumsum(1) - durations.cumsum(1))[inside].abs().float())
    return float(torch.cat(errors).mean())


def test_recovers_durations_that_it_was_never_told(trained):
    model, trainer = trained
    before = boundary_error(AlignerTraining(12, 10, text_dim=24, dim=16))
    after = boundary_error(model)
    assert after < 0.3 and after < before / 4
    assert {"train/forward_sum", "train/binarisation", "val/forward_sum"} <= set(trainer.callback_metrics)


def test_weights_are_written_and_read(trained, tmp_path):
    model, _ = trained
    model.save_weights(tmp_path / "aligner.safetensors")
    back = AlignerTraining.load(tmp_path / "aligner.safetensors")
    batch, _ = next(batches(1, seed=3))
    assert torch.equal(back.durations(batch), model.durations(batch))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as an aligner"):
        AlignerTraining.load(tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match="there is no aligner at"):
        AlignerTraining.load(tmp_path / "none.safetensors")


def test_refuses_what_cannot_be_aligned():
    batch, _ = next(batches(1))
    batch["mel_lengths"][3] = 2
    with pytest.raises(UserError, match=r"item 3 of the batch has \d symbols but only 2 frames"):
        AlignerTraining(12, 10).durations(batch)
    batch, _ = next(batches(1))
    batch["mel"][0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="the loss became nan at step 0"):
        quiet(max_steps=1).fit(AlignerTraining(12, 10), DataLoader([batch], batch_size=None))


def test_draws_the_alignment_for_loggers_that_take_pictures(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    model = AlignerTraining(12, 10, text_dim=8, dim=8, image_every=2)
    quiet(max_epochs=1, logger=logger).fit(model, loader(3))
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    assert [picture.step for picture in events.Images("alignment")] == [0, 2]


def test_binarisation_joins_slowly(monkeypatch):
    model = AlignerTraining(12, 10, binarise_from=10, binarise_ramp=4)
    weights = []
    for step in (0, 9, 10, 12, 13, 50):
        monkeypatch.setattr(AlignerTraining, "global_step", step)
        weights.append(model.binarisation)
    assert weights == [0, 0, 0.25, 0.75, 1, 1]


def test_bands_lose_level_and_scale_but_for_the_padding():
    mel, mask = torch.randn(2, 3, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    mel[0, 1] = 4.0
    found = standardised_bands(3 * mel + 7, mask)
    assert not found[0, 1].any() and not found[1, :, 6:].any()
    torch.testing.assert_close(found[1, :, :6].mean(1), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1, :, :6].std(1, unbiased=False), torch.ones(3))
