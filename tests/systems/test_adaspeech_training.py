"""Training AdaSpeech, adapting it to a voice, keeping both, and speaking with them."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from lightning import seed_everything

from vitalk.cli.adapt import adapt as verb
from vitalk.cli.export import export
from vitalk.errors import UserError
from vitalk.experiments import quiet, short_run
from vitalk.recipes import load_recipe
from vitalk.speech.acoustic.training import load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.align.training import AlignerTraining
from vitalk.speech.audio import Audio
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.speech.voice import Voice
from vitalk.systems.adaspeech import Adaptation, Adapter, adapt, fold, reproduce
from vitalk.systems.adaspeech.adaptation import spoken_error, tuned
from vitalk.systems.adaspeech.conditional import norms
from vitalk.systems.adaspeech.training import AdaSpeechTraining, load_for_voice
from vitalk.systems.adaspeech.voices import fingerprint, reference_mel, reference_of
from vitalk.trained import trained_voice
from vitalk.training import run

BLOCKS = {"depth": 1, "hidden": 16, "kernels": (3, 1)}
SIZE = {"dim": 16, "encoder": BLOCKS, "decoder": BLOCKS}
RATE = 24_000


@pytest.fixture(scope="module")
def corpus(hums, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligner")
    torch.manual_seed(0)
    aligner = AlignerTraining(Speech(str(hums)).n_symbols, text_dim=8, dim=8).eval()
    aligner.save_weights(folder / "model.safetensors")
    data = Speech(
        str(hums), cache=str(tmp_path_factory.mktemp("cache")), workers=0, held_out=0.25, batch_frames=400,
        aligner=str(folder / "model.safetensors"),
    )  # fmt: skip
    data.setup()
    return data


@pytest.fixture(scope="module")
def one(corpus):
    """The sentences of one of its speakers."""
    told = corpus.hparams
    data = Speech(
        str(told.path), ["s1"], workers=0, held_out=0.25, batch_frames=400, cache=told.cache, aligner=told.aligner
    )
    data.setup()
    return data


def training(corpus, **options):
    options = {"variant": "small", "predictor_start": 0, "warmup_steps": 2, "model_args": SIZE, **options}
    module = AdaSpeechTraining(corpus.n_symbols, corpus.n_speakers, **options)
    module.build(*corpus.spreads())
    return module


@pytest.fixture
def source(corpus, tmp_path, monkeypatch):
    """A run folder with a source model that knows every symbol, and the module it was kept from."""
    monkeypatch.setattr(Speech, "symbols", lambda _: "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    module = training(corpus)
    torch.nn.init.constant_(module.net.duration.linear.bias, 1.5)
    module.save_weights(tmp_path / "run" / "model.safetensors", corpus)
    return tmp_path / "run", module


def adapted(run_folder, folder, corpus, **options):
    return adapt(run_folder, folder, **{"steps": 2, "cache": str(corpus.cache.folder), **options})


# Stages one and two


def test_the_losses_fall(corpus):
    seed_everything(0, verbose=False)
    module = training(corpus, schedule="cosine", lr=1e-2)
    batch = next(iter(corpus.whole_dataloader("train")))
    before, losses = module.eval().loss(batch)
    assert set(losses) == {"mel", "duration", "energy", "pitch", "latents"}
    with quiet():
        short_run(module.train(), corpus, 30)
    assert module.eval().loss(batch)[0].item() < 0.7 * before.item()


@pytest.mark.parametrize("variant", ["paper", "tuanh", "small"])
def test_every_variant_trains(corpus, variant):
    module = training(corpus, variant=variant)
    assert module.net.references.shape == (2, 16)
    loss, found = module.loss(next(iter(corpus.whole_dataloader("train"))))
    loss.backward()
    assert ("mel_coarse" in found) == (variant == "tuanh")
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.net.parameters())


@pytest.mark.parametrize("options", [{"levels": ["utterance"]}, {"levels": ["phoneme"]}, {"conditional": False}])
def test_ablations_train_and_speak(corpus, options):
    module = training(corpus, model_args={**SIZE, **options})
    module.loss(next(iter(corpus.whole_dataloader("train"))))[0].backward()
    assert all(p.grad is not None for p in module.net.parameters())
    module.hear(corpus)
    assert bool(module.net.references.any()) == ("utterance" in options.get("levels", ["utterance"]))
    assert fold(module.net)(torch.ones(1, 3, dtype=torch.long), speaker=torch.tensor([1])).mel.isfinite().all()


def test_the_predictor_joins_at_its_step(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    for start, moved in ((3, False), (1, True)):
        seed_everything(0, verbose=False)
        module = training(corpus, predictor_start=start)
        before = [p.clone() for p in module.net.phoneme_predictor.parameters()]
        with quiet():
            short_run(module, corpus, 3)
        after = module.net.phoneme_predictor.parameters()
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moved
        assert "latents" in module.losses(batch)


def test_presets_build_what_they_name():
    for preset, start, speakers in (("tiny", 60, 2), ("cpu", 12_000, 4), ("paper", 60_000, 2_456)):
        _, config = load_recipe("adaspeech", preset)
        told, data = config["model"]["init_args"], config["data"]["init_args"]
        assert told["predictor_start"] == start < config["trainer"]["max_steps"]
        assert told.get("mel") == data.get("mel")
        with torch.device("meta"):
            module = AdaSpeechTraining(320, speakers, **told)
            net = module.build(Spread(5.0, 0.3, 60.0, 600.0, log=True), Spread(30.0, 30.0, 0.0, 300.0))
        assert net.voices.num_embeddings == speakers
        assert preset != "paper" or sum(p.numel() for p in tuned(net, "conditional")) == 1_184_256 + 256 * 2_456


def test_references_are_vectors_of_own_recordings(corpus):
    module = training(corpus)
    module.hear(corpus)
    for number, speaker in enumerate(corpus.speakers):
        clips = [clip for clip in (*corpus.train, *corpus.test) if clip.speaker == speaker]
        mels = [torch.from_numpy(corpus.cache.fetch(clip)["mel"]).float() for clip in clips]
        with torch.no_grad():
            vectors = torch.stack([module.net.eval().utterance(mel[None])[0] for mel in mels])
        off = (vectors - module.net.references[number]).abs().amax(1)
        assert off.min() < 1e-6 and off.argmin() == (vectors - vectors.mean(0)).norm(dim=1).argmin()


# Stage three


def test_adaptation_moves_what_it_names_and_learns(corpus, one):
    seed_everything(0, verbose=False)
    source = training(corpus)
    source.hear(corpus)
    before = fingerprint(source.net)
    for part, tensors in (("embedding", 1), ("norm", 7), ("conditional", 13), ("decoder", None), ("all", None)):
        seed_everything(0, verbose=False)
        module = Adaptation.of(source, part, lr=1e-2, steps=8)
        start = {name: p.clone() for name, p in module.net.named_parameters()}
        first = spoken_error(module, one)
        with quiet():
            short_run(module.train(), one, 8)
        moved = {name for name, p in module.net.named_parameters() if not torch.equal(p, start[name])}
        free = {name for name, p in module.net.named_parameters() if p.requires_grad}
        assert moved <= free and "voices.weight" in moved
        assert tensors is None or len(free) == tensors == (
            4 * len(norms(module.net)) + 1 if part == "conditional" else tensors
        )
        assert spoken_error(module, one) < first or part == "embedding"
    assert fingerprint(source.net) == before, "the source stays as it is"


def test_statistics_of_a_post_net_stay(corpus, one):
    module = Adaptation.of(training(corpus, model_args={**SIZE, "postnet": True}))
    before = module.net.postnet.norms[0].running_mean.clone()
    with quiet():
        short_run(module, one, 1)
    assert torch.equal(module.net.postnet.norms[0].running_mean, before) and not before.any()


def test_from_sentences_to_a_voice_that_speaks(source, anna, vocoder, tmp_path, capsys):
    folder, module = source
    alone = trained_voice(folder)
    verb(folder, anna, None, None, None, None, 2)
    told = capsys.readouterr().out
    stored = sum(v.numel() for n in norms(module.net).values() for v in (n.scale.bias, n.bias.bias)) + 2 * 16
    assert f"anna.safetensors: {stored:,} numbers" in told and "--speaker anna" in told
    assert stored == 3 * 2 * 16 + 32
    assert Adapter.load(folder / "voices" / "anna.safetensors").numbers == stored
    voice = trained_voice(folder)
    assert (alone.speakers, voice.speakers) == (["s0", "s1"], ["s0", "s1", "anna"])
    torch.manual_seed(0)
    before = alone.speak("Hum.", speaker="s1").samples
    torch.manual_seed(0)
    assert np.array_equal(voice.speak("Hum.", speaker="s1").samples, before)
    assert voice.speak("Hum.", speaker="anna").rms() > -70
    with pytest.raises(UserError, match="has no speaker bert; it has s0, s1, anna"):
        voice.speak("Hum.", speaker="bert")

    export(str(folder / "model.safetensors"), tmp_path / "voices.onnx", vocoder=vocoder())
    assert Voice.load(tmp_path / "voices.onnx").speakers == ["s0", "s1", "anna"]

    (folder / "voices" / "anna.safetensors").rename(folder / "voices" / "s0.safetensors")
    with pytest.raises(UserError, match="has a speaker s0 of its own; rename"):
        trained_voice(folder)


def test_a_voice_of_one_s_own_reference_and_place(corpus, source, anna, tmp_path, capsys):
    folder, _ = source
    time = np.arange(3 * RATE) / RATE
    sound = Audio(sum(0.2 * np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 9)).astype(np.float32), RATE)
    plain = adapted(folder, anna, corpus, output=tmp_path / "a.safetensors")
    other = adapted(folder, anna, corpus, output=tmp_path / "b.safetensors", reference=sound)
    assert plain.tuned == 3 * 2 * (16 * 16 + 16) + 16 and plain.sentences == 3
    assert not torch.equal(plain.adapter.reference, other.adapter.reference)
    net = load_module(folder / "model.safetensors", AdaSpeechTraining)[0].net
    want = reference_of(net, [reference_mel(sound, mel_spec("vitalk"))])
    torch.testing.assert_close(Adapter.load(other.path).reference, want)
    verb(folder, anna, tmp_path / "c.safetensors", None, None, None, 1)
    assert f"move it to {folder}/voices" in capsys.readouterr().out


def test_from_a_corpus_to_a_run_by_the_recipe(hums, corpus, tmp_path):
    told = [
        f"--data.init_args.cache={corpus.cache.folder}", f"--data.init_args.aligner={corpus.hparams.aligner}",
        "--trainer.enable_progress_bar=false", "--data.init_args.held_out=0.25",
    ]  # fmt: skip
    for steps in (1, 2):  # the second goes on where the first stopped
        target = run("adaspeech", "tiny", str(hums), tmp_path / "run", [*told, f"--trainer.max_steps={steps}"], 1)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["global_step"] == 2
    assert (tmp_path / "run" / "best.ckpt").is_file() and (tmp_path / "run" / "aligner.safetensors").is_file()
    speaking, about = load_for_voice(target)
    assert about["speakers"] == ["s0", "s1"] and speaking.net.references.any()


# Bad input


def test_references_that_are_none_are_refused(source, corpus, anna):
    spec, time = mel_spec("vitalk"), np.arange(2 * RATE) / RATE
    tone = sum(0.2 * np.sin(2 * np.pi * 150 * k * time) / k for k in range(1, 9)).astype(np.float32)
    with pytest.raises(UserError, match="is silent"):
        adapted(source[0], anna, corpus, reference=Audio(np.zeros(RATE, np.float32), RATE))
    high = soundfile_stereo(tone)
    assert reference_mel(high, spec).shape == reference_mel(Audio(tone, RATE), spec).shape


def soundfile_stereo(samples):
    """The same sound read from a stereo file of 96 kHz."""
    import io

    buffer = io.BytesIO()
    wide = Audio(samples, RATE).resampled(96_000).samples
    soundfile.write(buffer, np.stack([wide, wide], 1), 96_000, format="WAV")
    buffer.seek(0)
    return Audio.load(buffer)


def test_says_what_is_missing(source, corpus, anna, tmp_path):
    folder, _ = source
    with pytest.raises(UserError, match=r"has 2 speakers \(s0, s1\); choose one with --speaker"):
        adapted(folder, corpus.hparams.path, corpus)
    with pytest.raises(UserError, match="is no name for a new voice"):
        adapted(folder, corpus.hparams.path, corpus, speaker="s1")
    with pytest.raises(UserError, match="there is no corpus at"):
        adapted(folder, tmp_path / "nobody", corpus)
    with pytest.raises(UserError, match="no trained model at"):
        adapted(tmp_path, anna, corpus)
    (folder / "aligner.safetensors").unlink()
    with pytest.raises(UserError, match="there is no aligner at"):
        adapted(folder, anna, corpus)
    assert not (folder / "voices").exists()


def test_voices_that_do_not_fit_are_named(source, corpus, anna):
    folder, module = source
    (folder / "voices").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "voices" / "bert.safetensors")
    with pytest.raises(UserError, match=r"bert\.safetensors holds no voice of AdaSpeech"):
        load_for_voice(folder / "model.safetensors")
    Adapter.of(module.net, "bert", "another").save(folder / "voices" / "bert.safetensors")
    with pytest.raises(UserError, match="voice bert was made for another model"):
        load_for_voice(folder / "model.safetensors")


def test_models_without_conditional_norms_are_refused(corpus, anna, tmp_path):
    module = training(corpus, model_args={**SIZE, "conditional": False})
    module.save_weights(tmp_path / "plain" / "model.safetensors", corpus)
    with pytest.raises(UserError, match="no conditional layer norms to adapt"):
        adapted(tmp_path / "plain", anna, corpus)


def test_data_without_durations_is_refused(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    del batch["durations"]
    with pytest.raises(UserError, match="train an aligner"):
        training(corpus).loss(batch)


def test_metadata_of_the_adapter_names_its_voice(source, corpus, anna):
    from safetensors import safe_open

    done = adapted(source[0], anna, corpus)
    with safe_open(done.path, "np") as file:
        assert file.metadata()["format"] == "vitalk adaspeech voice" and file.metadata()["name"] == "anna"
        assert sum(file.get_tensor(key).size for key in file.keys()) == done.adapter.numbers  # noqa: SIM118
    assert done.before > 0 < done.after


# The claim


@pytest.mark.parametrize(
    ("conditional", "kept", "verdict"),
    [
        ((0.50, 0.51), True, "reproduced"),
        ((0.50, 0.51), False, "direction only"),
        ((0.58, 0.59), True, "direction only"),
        ((0.50, 0.61), True, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(conditional, kept, verdict):
    arms = {"embedding": [0.6, 0.6], "norm": [0.55, 0.55], "conditional": list(conditional), "decoder": [0.49, 0.5],
            "all": [0.48, 0.48]}  # fmt: skip
    assert reproduce.judge(arms, kept) == verdict
    results = {
        "arms": arms, "untouched": kept, "before": 0.7, "steps": 9, "fewer": {1: 0.65}, "likeness": {},
        "ablations": {name: [0.6, 0.62] for name in reproduce.ABLATIONS},
        "numbers": {arm: (1000 * i, i) for i, arm in enumerate(reproduce.ARMS, 1)},
    }  # fmt: skip
    told = reproduce.report(results, "nothing")
    assert told.verdict == verdict and "3,000 parameters tuned and 3 stored; no utterance level 0.610" in told.measured
    assert ("the same bits" in told.measured) == kept and "whole decoder 0.495 (4 stored)" in told.baseline
    results["likeness"] = {"before": 0.7, "conditional": 0.8, "embedding": 0.72}
    told = reproduce.report(results, "nothing")
    assert "speaker cosine 0.700 before, 0.800 after" in told.measured and "cosines embedding 0.720" in told.baseline


def test_counts_of_the_arms(corpus):
    found = reproduce.counts(training(corpus))
    assert found["embedding"] == (16, 16) and found["norm"] == (16 + 3 * 32, 16 + 3 * 32)
    assert found["conditional"] == (16 + 3 * 2 * (16 * 16 + 16), 16 + 3 * 32)
    assert found["conditional"][0] < found["decoder"][0] < found["all"][0]


@pytest.mark.data
def test_measures_on_real_speech(monkeypatch, kokoro):
    monkeypatch.setattr(reproduce, "SIZE", SIZE)
    for name, value in (("SEEDS", 1), ("PILOT", 2), ("HEARD", 1), ("FEWER", (2,)), ("SENTENCES", 4), ("TESTED", 3)):
        monkeypatch.setattr(reproduce, name, value)
    monkeypatch.setattr(reproduce, "SOURCES", reproduce.SOURCES[:2])
    found = reproduce.measure(0.05, kokoro)
    assert set(found.details["held_out"]) == set(reproduce.ARMS) and "the same bits" in found.measured
    assert set(found.details["ablations"]) == set(reproduce.ABLATIONS) and set(found.details["sentences"]) == {"2"}
