"""Segments of recordings: what is decoded, kept, held out and passed over."""

import os
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.speech.vocoder.fixtures import tones
from vitalk.errors import UserError
from vitalk.files import data_root
from vitalk.speech.audio import Audio
from vitalk.speech.corpus import open_corpus, split
from vitalk.speech.vocoder.data import RandomPlaces, Segments, WaveCache, Waves, recordings


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Twenty recordings of half a second and one short one, in several formats, laid out as LJSpeech's are."""
    root = tmp_path_factory.mktemp("corpus")
    waves = tones(20, 12_000).numpy()
    for i, wave in enumerate(waves):
        folder = root / "wavs" if i % 2 else root / "more" / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        Audio(wave, 24_000).save(folder / f"r{i:02d}.{('wav', 'flac', 'ogg')[i % 3]}")
    Audio(waves[0][:2000], 24_000).save(root / "short.wav")
    (root / "metadata.csv").write_text("r00|words")
    return root


def ready(corpus, cache, **options):
    data = Segments(str(corpus), cache=str(cache), **{"workers": 0, "segment": 3000, "hold_out": 0.2} | options)
    data.trainer = trainer()
    data.prepare_data()
    data.setup()
    return data


def trainer(epoch=0, ready_batches=0, rank=0, world=1, training=True):
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready_batches))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(current_epoch=epoch, fit_loop=loop, global_rank=rank, world_size=world, training=training)


def test_batches_are_segments_at_one_level(corpus, tmp_path):
    data = ready(corpus, tmp_path)
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader()]
    assert len(batches) > 3
    for batch in batches:
        assert batch.shape == (8, 3000) and batch.dtype == torch.float32
    level = 10 * torch.log10(torch.cat(batches).square().mean())
    assert level.item() == pytest.approx(-23, abs=1.5)
    held = list(data.val_dataloader())
    assert sum(map(len, held)) == 4 and held[0].shape[1] == 3000


def test_short_recordings_end_in_silence(corpus, tmp_path):
    cache = WaveCache(24_000, tmp_path)
    clip = next(c for c in recordings(corpus) if c.id == "short")
    assert cache.fetch(clip) is None
    waves = Waves([cache.path(clip)], 3000)
    segment = waves[0, 0]
    assert segment.shape == (3000,) and segment[:1500].any() and not segment[waves.lengths[0] :].any()


def test_recordings_are_decoded_once_and_again_when_they_change(corpus, tmp_path, monkeypatch):
    ready(corpus, tmp_path)
    kept = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert len(kept) == 21 and all(p.suffix == ".s16" for p in kept)
    (kept[0]).unlink()  # as if it had been broken off before this one
    decoded = []
    load = Audio.load.__func__
    monkeypatch.setattr(Audio, "load", classmethod(lambda cls, path: decoded.append(path) or load(cls, path)))
    ready(corpus, tmp_path)
    assert len(decoded) == 1 and sorted(p for p in tmp_path.rglob("*") if p.is_file()) == kept
    changed = corpus / "wavs" / "r01.flac"
    later = time.time() + 5
    os.utime(changed, (later, later))
    ready(corpus, tmp_path)
    assert decoded[1:] == [changed]


def test_the_rate_is_that_of_the_mel(corpus, tmp_path):
    lengths = [ready(corpus, tmp_path, mel=mel).waves["train"].lengths.sum() for mel in ("vitalk", "hifigan")]
    assert lengths[1] / lengths[0] == pytest.approx(22_050 / 24_000, rel=0.01)


def test_places_depend_on_seed_and_epoch_and_go_on_where_they_stood(corpus, tmp_path):
    waves = ready(corpus, tmp_path).waves["train"]

    def places(seed=0, **at):
        return list(RandomPlaces(waves, 4, seed, trainer(**at)))

    first = places()
    assert first == places() and first != places(epoch=1) and first != places(seed=1)
    assert places(ready_batches=2) == first[8:]
    for number, start in first:
        assert 0 <= start <= max(waves.lengths[number] - waves.segment, 0)
    shares = [places(rank=rank, world=2) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) and len(shares[0]) % 4 == 0 and shares[0] != shares[1]


def test_long_recordings_are_heard_more_often(tmp_path):
    for name, length in (("long", 40_000), ("brief", 10_000)):
        (tmp_path / name).write_bytes(np.zeros(length, "<i2").tobytes())
    waves = Waves([tmp_path / "long", tmp_path / "brief"], 100)
    numbers = np.array(list(RandomPlaces(waves, 5, 0, trainer())))[:, 0]
    assert len(numbers) == 500 and np.mean(numbers == 0) == pytest.approx(0.8, abs=0.06)


def test_the_held_out_are_those_of_other_trainings(corpus, tmp_path):
    data = ready(corpus, tmp_path)
    names = {clip.id for clip in data.parts["test"]}
    assert names == {c.id for c in split(recordings(corpus), 0.2)[1]} and len(names) == 4
    assert not names & {clip.id for clip in data.parts["train"]}
    assert len(ready(corpus, tmp_path, limit=6).clips) == 6
    both = Segments([str(corpus), str(corpus / "wavs")], cache=str(tmp_path))
    assert len(both.clips) == 31 and both.clips[-1].id.startswith("wavs/r")


def test_gain_moves_the_level_while_training_only(corpus, tmp_path):
    data = ready(corpus, tmp_path, gain=6.0)
    batch = torch.full((200, 10), 3277, dtype=torch.int16)
    moved = 20 * torch.log10(data.on_after_batch_transfer(batch, 0)[:, 0] / 0.1)
    assert moved.min() > -6.1 and moved.max() < 6.1 and moved.std() > 2
    data.trainer = trainer(training=False)
    torch.testing.assert_close(data.on_after_batch_transfer(batch, 0), torch.full((200, 10), 0.1), atol=1e-4, rtol=0)


def spoilt(corpus, tmp_path, bad):
    """A copy of the corpus with so many damaged recordings more."""
    root = tmp_path / "spoilt"
    for path in corpus.rglob("*.*"):
        target = root / path.relative_to(corpus)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    for i in range(bad):
        (root / f"bad{i}.wav").write_bytes(b"RIFF nonsense")
    return root


def test_few_damaged_recordings_are_passed_over_and_many_are_refused(corpus, tmp_path):
    with pytest.warns(UserWarning, match=r"1 recordings are passed over, the first: .*bad0.wav cannot be read"):
        data = ready(spoilt(corpus, tmp_path, 1), tmp_path / "cache")
    assert sum(len(waves) for waves in data.waves.values()) == 21
    with pytest.raises(UserError, match=r"3 of 24 recordings are bad, the first: .*bad0.wav cannot be read as sound"):
        ready(spoilt(corpus, tmp_path, 3), tmp_path / "cache")


def test_recordings_that_vanish_are_named(corpus, tmp_path):
    root = spoilt(corpus, tmp_path, 0)
    data = Segments(str(root), cache=str(tmp_path / "cache"), workers=0)
    for path in (root / "wavs").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"10 of 21 recordings are bad, the first: .*r01.flac"):
        data.prepare_data()


def test_refuses_folders_without_sound_and_caches_that_cannot_be_written(corpus, tmp_path):
    with pytest.raises(UserError, match="there is no folder"):
        Segments(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no sound files; they end in \.wav"):
        Segments(str(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ready(corpus, tmp_path / "file")


@pytest.mark.data
def test_real_recordings_hold_out_the_same_as_their_corpus(tmp_path):
    root = data_root() / "speech" / "prompts" / "en"
    if not root.is_dir():
        pytest.skip("the real data sets are not there")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = Segments(str(root), cache=str(tmp_path), hold_out=0.05)
        assert data.cache.fill(data.clips[:3]) == []
    held = {clip.id for clip in split(open_corpus(Path(root)), 0.05)[1]}
    ours = {clip.id for clip in data.parts["test"]}
    assert len(ours & held) > 0.8 * len(held)
