"""Features of clips: made once, kept whole, batched by length."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.audio import Audio
from vitalk.speech.corpus import Clip, open_corpus
from vitalk.speech.features import FeatureCache, FeatureSettings, LengthBatches, Speech, collate, extract, framed, sound
from vitalk.speech.mel import PRESETS, compress, energy, magnitudes, mel_spec
from vitalk.speech.text.symbols import SIZE, to_ids


def test_features_of_a_hum(hums):
    found = extract(open_corpus(hums)[3], FeatureSettings())
    frames = found["mel"].shape[1]
    assert found["mel"].shape[0] == 80 and found["ids"].tolist() == to_ids(" hˈʌm ")
    assert len(found["f0"]) == len(found["energy"]) == frames == PRESETS["vitalk"].frames(int(0.7 * 24_000))
    voiced = found["f0"][found["f0"] > 0]
    assert len(voiced) > 0.5 * frames and np.median(voiced) == pytest.approx(150, rel=0.03)


def test_the_cache_is_used_and_damage_is_made_good(hums, tmp_path):
    cache, clip = FeatureCache(FeatureSettings(), tmp_path), open_corpus(hums)[0]
    assert cache.get(clip) is None
    made = cache.fetch(clip)
    file = next(tmp_path.rglob("*.npz"))
    stamp = file.stat().st_mtime_ns
    assert all(np.array_equal(made[k], v) for k, v in cache.fetch(clip).items()) and file.stat().st_mtime_ns == stamp
    file.write_bytes(file.read_bytes()[:500])  # as a kill in the middle would leave it, were it not renamed
    assert cache.get(clip) is None
    assert all(np.array_equal(made[k], v) for k, v in cache.fetch(clip).items())
    assert [p.name for p in tmp_path.rglob("*.*")] == [file.name]


def test_other_settings_or_sounds_have_other_names(hums, tmp_path):
    clips = open_corpus(hums)
    names = {FeatureCache(FeatureSettings(fmin=low), tmp_path).name(c) for low in (50.0, 60.0) for c in clips}
    assert len(names) == 16


def test_batches_are_padded_and_know_their_lengths(hums, tmp_path):
    data = Speech(str(hums), cache=str(tmp_path), workers=0, held_out=0.25)
    data.setup()
    assert (data.n_speakers, len(data.train), len(data.test)) == (2, 6, 2)
    batch = next(iter(data.whole_dataloader("train")))
    assert batch["mel"].shape == (6, 80, int(batch["mel_lengths"].max())) and batch["speaker"].shape == (6,)
    beyond = torch.arange(batch["mel"].shape[2]) >= batch["mel_lengths"][:, None]
    assert not batch["mel"].transpose(1, 2)[beyond].any() and not batch["f0"][beyond].any()
    assert (batch["pitch"][~beyond] > 60).all() and torch.equal(
        batch["pitch"][batch["f0"] > 0], batch["f0"][batch["f0"] > 0]
    )
    hertz, level = data.spreads()
    assert 100 < math.exp(hertz.mean) < 200 and hertz.log and level.mean > 0


def test_durations_come_from_an_aligner_and_are_kept(hums, tmp_path):
    AlignerTraining(n_symbols=SIZE, text_dim=8, dim=8).save_weights(tmp_path / "aligner.safetensors")
    options = {
        "cache": str(tmp_path / "f"),
        "workers": 0,
        "held_out": 0.25,
        "aligner": str(tmp_path / "aligner.safetensors"),
    }
    data = Speech(str(hums), **options)
    data.setup()
    batch = next(iter(data.whole_dataloader("train")))
    assert torch.equal(batch["durations"].sum(1), batch["mel_lengths"])
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "f").glob("durations-*/*.npz")}
    assert len(files) == 8
    Speech(str(hums), **options).setup()
    assert {p: p.stat().st_mtime_ns for p in files} == files


@given(st.sampled_from(sorted(PRESETS)), st.integers(4_000, 9_000), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_samples_lie_where_their_frames_do(preset, samples, place):
    spec = PRESETS[preset]
    wave = np.zeros(samples, np.float32)
    click = spec.n_fft + int(place * (samples - 2 * spec.n_fft - 1))
    wave[click] = 1.0
    frames = spec.frames(samples)
    found = framed(wave, frames, spec)
    assert found.shape == (frames * spec.hop,) and found.sum() == 1
    loudest = energy(magnitudes(torch.from_numpy(wave)[None], spec))[0].argmax()
    assert abs(found.argmax() - (loudest + 0.5) * spec.hop) <= 0.5 * spec.hop + 1


@pytest.mark.parametrize("mel", ["vitalk", "hifigan", "vocos"])
def test_batches_bring_the_waveforms_of_their_mels(hums, tmp_path, mel):
    spec, data = mel_spec(mel), Speech(str(hums), mel=mel, cache=str(tmp_path), workers=0, held_out=0.25, wave=True)
    data.setup()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    batch = next(iter(data.whole_dataloader("train")))
    assert batch["wave"].shape == (6, batch["mel"].shape[2] * spec.hop) and batch["wave"].dtype == torch.float32
    names = [data.cache.name(clip) for clip in data.train]
    for i, name in enumerate(batch["utterances"]):
        clip, frames = data.train[names.index(name)], int(batch["mel_lengths"][i])
        assert not batch["wave"][i, frames * spec.hop :].any() and batch["wave"][i].abs().max() > 0.05
        whole = torch.from_numpy(sound(clip, spec).samples)
        lead = spec.hop // 2 if spec.center else 0
        inside = batch["wave"][i, lead : frames * spec.hop]
        assert torch.equal(inside[: len(whole)], whole[: len(inside)])
        torch.testing.assert_close(
            batch["mel"][i, :, :frames], compress(magnitudes(whole[None], spec), spec)[0], atol=0.01, rtol=0.01
        )
    # Off, the caches are the same, and batches as they were.
    plain = Speech(str(hums), mel=mel, cache=str(tmp_path), workers=0, held_out=0.25)
    plain.setup()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == kept
    without = next(iter(plain.whole_dataloader("train")))
    assert set(batch) - set(without) == {"wave"} and without["utterances"] == batch["utterances"]


def test_names_in_the_cache_stay_as_they_are(tmp_path):
    clip = Clip("a", "hum", "s", lambda: Audio(np.zeros(9, np.float32), 24_000), "hʌm")
    assert FeatureCache(FeatureSettings(), tmp_path).name(clip) == "efc297a54a90f4e38b8a48e0"


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(50, 2000), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_every_clip_is_in_one_batch_and_batches_are_not_too_large(frames, most, world):
    frames = np.array(frames)
    plain = LengthBatches(frames, most)
    assert sorted(i for batch in plain for i in batch) == list(range(len(frames)))
    assert all(len(b) == 1 or len(b) * frames[b].max() <= most for b in plain)
    progress = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(ready=0)))
    )
    shares = []
    for rank in range(world):
        trainer = SimpleNamespace(current_epoch=3, world_size=world, global_rank=rank, fit_loop=progress)
        shares.append(list(LengthBatches(frames, most, 0, trainer)))
    indices = [i for share in shares for batch in share for i in batch]
    assert len({len(share) for share in shares}) == 1 and len(set(indices)) == len(indices)


def test_a_resumed_epoch_goes_on_where_it_was():
    def trainer(done, epoch=1):
        current = SimpleNamespace(ready=done)
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=current)))
        return SimpleNamespace(current_epoch=epoch, world_size=1, global_rank=0, fit_loop=loop)

    frames = np.random.default_rng(0).integers(50, 400, 100)
    whole = list(LengthBatches(frames, 1000, 5, trainer(0)))
    assert list(LengthBatches(frames, 1000, 5, trainer(7))) == whole[7:]
    assert list(LengthBatches(frames, 1000, 5, trainer(0, epoch=2))) != whole


def test_says_what_cannot_be_learnt_from(hums, tmp_path):
    clip = open_corpus(hums)[0]
    short = Audio(np.full(400, 0.1, np.float32), 24_000)
    with pytest.raises(UserError, match=r"0 lasts 0\.02 s, too short"):
        extract(type(clip)(clip.id, clip.text, clip.speaker, lambda: short), FeatureSettings())
    silent = Audio(np.random.default_rng(0).normal(0, 0.01, 24_000).astype(np.float32), 24_000)
    with pytest.raises(UserError, match="0 has no voice between 60 and 600 Hz"):
        extract(type(clip)(clip.id, clip.text, clip.speaker, lambda: silent, "h"), FeatureSettings())
    data = Speech(str(hums), cache=str(tmp_path), workers=0, held_out=0.25, longest=5)
    with pytest.raises(UserError, match="raise longest"):
        data.setup()


def test_rows_without_durations_make_batches_without_them():
    row = {name: torch.ones(3) for name in ("f0", "pitch", "energy")}
    row |= {"ids": torch.tensor([1, 2]), "mel": torch.ones(80, 3), "speaker": torch.tensor(0), "utterance": "a"}
    batch = collate([row] * 2)
    assert "durations" not in batch and batch["ids"].shape == (2, 2)
