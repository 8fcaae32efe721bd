"""Training USAT on pairs, adapting it, keeping voices, speaking by name and by reference, and judging its claims."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
import yaml
from lightning import seed_everything

from tests.systems.test_usat import TINY, WAVE, moved
from vitalk.cli.adapt import adapt as verb
from vitalk.errors import UserError
from vitalk.experiments import quiet, short_run
from vitalk.recipes import load_recipe
from vitalk.speech.acoustic.training import fingerprint, load_module
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.audio import Audio
from vitalk.speech.features import Speech
from vitalk.speech.mel import mel_spec
from vitalk.speech.synthesizer import Prompt
from vitalk.systems.usat import Adaptation, AdaptedVoice, Adapters, adapt, linear, reproduce
from vitalk.systems.usat.adaptation import held_out, tuned, waves
from vitalk.systems.usat.data import PairedSpeech, Pairs
from vitalk.systems.usat.probes import common_word, pairs, ridge, without, word_cost
from vitalk.systems.usat.training import UsatTraining, load_for_voice, margin, mean_voice
from vitalk.trained import trained_voice
from vitalk.training import run

RATE = 24_000
SIZE = {key: value for key, value in TINY.items() if key != "mel"}


def hum(pitch, seconds, rate=RATE):
    time = np.arange(int(seconds * rate)) / rate
    return sum(0.2 * np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 20)).astype(np.float32)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


def paired(path, cache, **options):
    data = PairedSpeech(str(path), cache=cache, workers=0, **{"held_out": 0.25, "batch_frames": 400, **options})
    data.setup()
    return data


@pytest.fixture(scope="module")
def corpus(hums, cache):
    return paired(hums, cache)


def training(corpus, sizes=SIZE, **options):
    told = {"variant": "small", "warmup_steps": 2, "schedule": "cosine", "lr": 3e-3, "ramp": 10, **options}
    module = UsatTraining(corpus.n_symbols, corpus.n_speakers, model_args=sizes, **told)
    module.build(*corpus.spreads())
    module.oppose()
    return module


@pytest.fixture
def source(corpus, tmp_path, monkeypatch):
    """A run folder with a model that knows every symbol, and the module it was kept from."""
    monkeypatch.setattr(Speech, "symbols", lambda _: "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    torch.manual_seed(0)
    module = training(corpus)
    moved(module.net)  # a fresh flow is nothing, whoever speaks
    module.save_weights(tmp_path / "run" / "model.safetensors", corpus)
    return tmp_path / "run", module


def first(corpus, part="train"):
    return next(iter(corpus.whole_dataloader(part)))


# Pairs


def test_references_are_others_of_the_speaker(corpus):
    for part in ("train", "test"):
        rows = Pairs(corpus, part)
        for index in range(len(rows)):
            others = {rows.partner(index, share) for share in np.linspace(0, 0.999, 20)}
            same = {i for i, clip in enumerate(rows.pool) if clip.speaker == rows.clips[index].speaker}
            assert others == same - {index}
    batch, again = first(corpus), first(corpus)
    assert torch.equal(batch["reference"], again["reference"])
    assert batch["wave"].shape[1] == 300 * batch["mel"].shape[2]
    assert batch["reference"].shape[1] == 300 * int(batch["reference_lengths"].max())


def test_references_are_cut_and_can_be_left_out(hums, cache):
    batch = first(paired(hums, cache, reference_frames=20))
    assert batch["reference_lengths"].tolist() == [20] * len(batch["ids"])
    assert "reference" not in first(paired(hums, cache, references=False))


def test_references_change_with_the_epoch(corpus):
    class At:
        world_size, global_rank = 1, 0
        fit_loop = type("", (), {"epoch_loop": type("", (), {"batch_progress": type("", (), {
            "current": type("", (), {"ready": 0})})})})  # fmt: skip

        def __init__(self, epoch):
            self.current_epoch = epoch

    seen = []
    for epoch in (0, 0, 1):
        corpus.trainer = At(epoch)
        seen.append(sorted(key for batch in corpus.train_dataloader().batch_sampler for key in batch))
    corpus.trainer = None
    assert seen[0] == seen[1] != seen[2]


def test_speakers_of_one_utterance_are_named(hums, cache):
    data = paired(hums, cache)
    data.train = [clip for clip in data.train if clip.speaker == "s0"][:1]
    data.frames["train"] = data.frames["train"][:1]
    with pytest.raises(UserError, match="speaker s0 has one utterance in the train part"):
        data.whole_dataloader("train")


def test_waves_are_those_of_the_features(corpus):
    clip, spec = corpus.train[0], mel_spec("vitalk")
    wave = corpus.framed_wave(clip)
    mel = torch.from_numpy(corpus.cache.fetch(clip)["mel"]).float()
    assert len(wave) == spec.hop * mel.shape[1]
    from vitalk.speech.mel import compress

    off = (compress(linear(wave[None], spec), spec)[0] - mel)[:, 3:-3].abs()
    assert off.mean() < 0.1
    plain = corpus.wave(replace(clip, path=None))
    assert np.abs(plain - corpus.wave(clip)).max() < 1e-4


# Training


def test_the_losses_fall_and_nobody_s_vector_collapses(corpus):
    seed_everything(0, verbose=False)
    module, batch = training(corpus, lr=1e-2), first(corpus)
    before = module.eval().losses(batch)
    assert set(before) == {"mel", "kl", "duration", "words", "phonemes", "timbre"}
    with quiet():
        short_run(module.train(), corpus, 40)
    after = module.eval().losses(batch)
    assert after["mel"] < 0.7 * before["mel"] and after["kl"] < 0.7 * before["kl"]
    assert module.heed == 1.0 and all(value.isfinite() for value in after.values())
    found = module.net.listen(linear(batch["wave"], module.net.spec))
    assert found.std(0).mean() > 1e-3


def test_every_weight_learns_and_rivals_pull_apart(corpus, monkeypatch):
    seed_everything(0, verbose=False)
    module, batch = training(corpus).train(), first(corpus)
    monkeypatch.setattr(UsatTraining, "heed", 1.0)
    module.loss(batch)[0].backward()
    net, idle = module.net, {"voices"}
    missing = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert missing <= idle and all(p.grad is not None for p in module.rivals.parameters())

    def gradient(heed, name, part):
        monkeypatch.setattr(UsatTraining, "heed", heed)
        weights = {key: 0.0 for key in ("mel", "kl", "duration", "words", "phonemes", "timbre")} | {name: 1.0}
        module.hparams.weights = weights
        module.zero_grad()
        torch.manual_seed(0)
        module.loss(batch)[0].backward()
        return next(p.grad for p in part.parameters()).clone()

    flow = net.flow.steps[-1].end
    turned = gradient(1.0, "timbre", flow)
    assert turned.abs().sum() > 0 and not gradient(0.0, "timbre", flow).any()
    torch.testing.assert_close(gradient(0.5, "timbre", flow), turned / 2)
    assert gradient(0.0, "timbre", module.rivals["timbre"]).abs().sum() > 0, "it learns from the first step on"
    assert gradient(1.0, "phonemes", net.speaker).abs().sum() > 0
    assert not gradient(0.0, "phonemes", net.speaker).any() and not gradient(1.0, "words", net.speaker).any()


def test_the_decoder_of_waves_trains_with_its_discriminators(corpus):
    seed_everything(0, verbose=False)
    module, batch = training(corpus, {**SIZE, **WAVE}, discriminators="small", segment=16), first(corpus)
    assert set(module.eval().losses(batch)) == {"mel", "kl", "duration", "words", "phonemes", "timbre"}
    loss, found = module.train().loss(batch)
    assert {"judges", "adversarial", "features"} <= set(found)
    loss.backward()
    assert all(p.grad is not None for p in module.rivals.parameters())
    module.hparams.weights = {"judges": 0.0, "timbre": 0.0, "words": 0.0}
    module.zero_grad()
    module.loss(batch)[0].backward()
    assert not any(p.grad.any() for p in module.rivals["waves"].parameters()), "generator losses move no discriminator"
    with quiet():
        short_run(module, corpus, 2)


def test_ablations_and_schedules_train(corpus):
    for told in ({"sizes": {**SIZE, "memory": 0}}, {"schedule": "decay", "weights": {"phonemes": 0.0, "timbre": 0.0}}):
        with quiet():
            short_run(training(corpus, **told), corpus, 1)
    with pytest.raises(UserError, match='no schedule "noam"'):
        UsatTraining(9, schedule="noam")


def test_the_margin_tells_a_collapse():
    speaker = torch.tensor([0, 0, 1, 1])
    apart = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert margin(apart, speaker) == 1 and abs(margin(torch.ones(4, 2), speaker)) < 1e-6
    assert margin(apart[:2], speaker[:2]) is None and margin(apart[1:3], speaker[1:3]) is None


def test_presets_build_what_they_name():
    for preset, speakers in (("tiny", 2), ("cpu", 5), ("paper", 2_311)):
        _, config = load_recipe("usat", preset)
        told, data = config["model"]["init_args"], config["data"]["init_args"]
        assert told.get("mel") == data.get("mel") and told["ramp"] < config["trainer"]["max_steps"]
        with torch.device("meta"):
            net = UsatTraining(320, speakers, **told).build(Spread(5.0, 0.3, 60.0, 600.0, log=True), None)
        assert len(net.voices) == speakers and net.speaks_mel == (preset != "paper")


def test_from_a_corpus_to_a_run_by_the_recipe_to_speech(hums, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(Speech, "symbols", lambda _: "")  # eight hums show none often enough
    _, config = load_recipe("usat", "tiny")
    config["model"]["init_args"]["model_args"] = SIZE
    config["data"]["init_args"] |= {"cache": cache, "batch_frames": 400, "held_out": 0.25}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({"presets": {"tiny": config}}))
    quietly = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    for steps in (1, 2):  # the second goes on where the first stopped
        run(str(file), "tiny", str(hums), tmp_path / "run", [*quietly, f"--trainer.max_steps={steps}"], 1)
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)["global_step"] == 2
    module, about = load_module(tmp_path / "run" / "model.safetensors", UsatTraining)
    assert about["speakers"] == ["s0", "s1"] and module.net.voices.any(1).all() and module.rivals is None
    voice = trained_voice(tmp_path / "run")
    assert voice.speakers == ["s0", "s1"] and voice.speak("Hum.", speaker="s1").rms() > -70


# Speaking


def test_speaks_as_a_reference_sounds(source, tmp_path):
    folder, _ = source
    voice = trained_voice(folder)
    like = [voice.synthesize("Hum.", Prompt(reference=Audio(hum(pitch, 2), RATE))) for pitch in (150, 150, 300)]
    assert all(audio.rms() > -70 for audio in like)
    assert np.array_equal(like[0].samples, like[1].samples) and not np.array_equal(like[0].samples, like[2].samples)
    wide = tmp_path / "wide.wav"
    tones = Audio(hum(150, 2), RATE).resampled(96_000).samples
    soundfile.write(wide, np.stack([tones, tones], 1), 96_000)
    assert voice.synthesize("Hum.", Prompt(reference=Audio.load(wide), reference_text="Hum.")).rms() > -70
    slow = voice.synthesize("Hum.", Prompt(reference=Audio(hum(150, 2), RATE), speed=0.5))
    assert slow.seconds > 1.3 * like[0].seconds


def test_references_and_prompts_that_cannot_be_followed_are_refused(source):
    voice = trained_voice(source[0])
    with pytest.raises(UserError, match="is silent"):
        voice.synthesize("Hum.", Prompt(reference=Audio(np.zeros(2 * RATE, np.float32), RATE)))
    good = Audio(hum(150, 2), RATE)
    with pytest.raises(UserError, match="cannot follow a prompt with speaker"):
        voice.synthesize("Hum.", Prompt(reference=good, speaker="s0"))
    with pytest.raises(UserError, match="cannot follow a prompt with style"):
        voice.synthesize("Hum.", Prompt(style="cheerful"))
    with pytest.raises(UserError, match=r"cannot change its pitch, got 1\.2"):
        voice.speak("Hum.", pitch=1.2, speaker="s0")
    with pytest.raises(UserError, match="has no speaker bert; it has s0, s1"):
        voice.speak("Hum.", speaker="bert")


def test_models_of_waves_speak_themselves(corpus, vocoder, tmp_path, monkeypatch):
    monkeypatch.setattr(Speech, "symbols", lambda _: "")
    module = training(corpus, {**SIZE, **WAVE})
    module.save_weights(tmp_path / "run" / "model.safetensors", corpus)
    voice = trained_voice(tmp_path / "run")
    assert voice.speak("Hum.", speaker="s0").seconds > 0.05
    with pytest.raises(UserError, match="makes waveforms, not mels, and cannot be exported"):
        load_for_voice(tmp_path / "run" / "model.safetensors")
    with pytest.raises(UserError, match="makes waveforms itself; leave the vocoder"):
        trained_voice(tmp_path / "run", vocoder())


def test_exports_and_says_the_same(source, tmp_path):
    import onnxruntime as ort

    model, _ = load_for_voice(source[0] / "model.safetensors")
    model.eval()
    example = (torch.randint(3, 60, (1, 9)), torch.tensor([1]), *(torch.ones(1) for _ in range(3)))
    torch.onnx.export(
        model, example, dynamo=True, opset_version=20, verbose=False,
        dynamic_shapes=({1: torch.export.Dim("text", min=2, max=4096)}, None, None, None, None),
        input_names=["ids", "speaker", "speed", "pitch", "energy"], output_names=["mel", "durations"],
    ).save(tmp_path / "voice.onnx")  # fmt: skip
    session = ort.InferenceSession(tmp_path / "voice.onnx")
    names = [node.name for node in session.get_inputs()]
    for length, speaker, speed, energy in ((9, 0, 1.0, 1.0), (40, 1, 0.7, 1.3)):
        fed = [torch.randint(3, 60, (1, length)), torch.tensor([speaker])]
        fed += [torch.tensor([factor]) for factor in (speed, 1.0, energy)]
        with torch.inference_mode():
            wanted = model(*fed)
        told = dict(zip(("ids", "speaker", "speed", "pitch", "energy"), fed, strict=True))
        mel, durations = session.run(None, {name: told[name].numpy() for name in names})
        assert np.array_equal(durations, wanted[1].numpy())
        assert np.abs(mel - wanted[0].numpy()).max() < 1e-3


# Adaptation


def test_adaptation_moves_what_it_names_and_learns(corpus, hums, cache):
    seed_everything(0, verbose=False)
    source = training(corpus)
    one = paired(hums, cache, references=False, speakers=["s1"])
    begin = mean_voice(source.net, waves(one, one.train))
    alone = [source.net.eval().listen(linear(wave[None], source.net.spec))[0] for wave in waves(one, one.train)]
    torch.testing.assert_close(begin, torch.stack(alone).mean(0))
    torch.testing.assert_close(mean_voice(source.net, waves(one, one.train[:1])), alone[0], rtol=0, atol=0)
    before = fingerprint(source.net)
    for part in ("voice", "adapters", "all"):
        seed_everything(0, verbose=False)
        module = Adaptation.of(source, begin, part, Adapters(reduction=2), lr=1e-2, steps=8)
        start = {name: p.clone() for name, p in module.net.named_parameters()}
        begun = held_out(module, one)
        with quiet():
            short_run(module.train(), one, 8)
        changed = {name for name, p in module.net.named_parameters() if not torch.equal(p, start[name])}
        free = {name for name, p in module.net.named_parameters() if p.requires_grad}
        assert changed <= free and "voices" in changed
        assert len(free) == len(tuned(module.net, part))
        assert held_out(module, one) < begun or part == "voice"
    assert fingerprint(source.net) == before, "the source stays as it is"


def test_from_sentences_to_a_voice_that_speaks(source, anna, tmp_path, capsys):
    folder, _ = source
    alone = trained_voice(folder)
    verb(folder, anna, None, None, None, None, 2)
    told = capsys.readouterr().out
    voice = AdaptedVoice.load(folder / "voices" / "anna.safetensors")
    assert f"anna.safetensors: {voice.numbers:,} numbers" in told and "--speaker anna" in told
    assert "loss of held-out sentences" in told and voice.numbers > 12
    spoken = trained_voice(folder)
    assert (alone.speakers, spoken.speakers) == (["s0", "s1"], ["s0", "s1", "anna"])
    before, after = (v.speak("Hum.", speaker="s1").samples for v in (alone, spoken))
    assert np.array_equal(before, after), "own speakers say the same bits"
    assert spoken.speak("Hum.", speaker="anna").rms() > -70
    with pytest.raises(UserError, match="adapts without --reference; leave it out"):
        verb(folder, anna, None, None, anna, None, 2)
    (folder / "voices" / "anna.safetensors").rename(folder / "voices" / "s0.safetensors")
    with pytest.raises(UserError, match="has a speaker s0 of its own; rename"):
        trained_voice(folder)
    (folder / "voices" / "s0.safetensors").unlink()
    shutil.copy(folder / "model.safetensors", folder / "voices" / "bert.safetensors")
    with pytest.raises(UserError, match=r"bert\.safetensors holds no voice of USAT"):
        trained_voice(folder)


def test_voices_of_other_models_are_refused(source, corpus, anna, cache):
    folder, _ = source
    done = adapt(folder, anna, steps=1, kinds=Adapters("x-res"), cache=cache)
    assert done.before > 0 and done.sentences == 3 and trained_voice(folder).speakers[-1] == "anna"
    torch.manual_seed(1)
    training(corpus).save_weights(folder / "model.safetensors", corpus)
    with pytest.raises(UserError, match="voice anna was made for another model"):
        trained_voice(folder)


def test_says_what_is_missing(source, corpus, anna, cache, tmp_path):
    folder, module = source
    with pytest.raises(UserError, match=r"has 2 speakers \(s0, s1\); choose one with --speaker"):
        adapt(folder, corpus.hparams.path, cache=cache)
    with pytest.raises(UserError, match="is no name for a new voice"):
        adapt(folder, corpus.hparams.path, speaker="s1", cache=cache)
    with pytest.raises(UserError, match="there is no corpus at"):
        adapt(folder, tmp_path / "nobody", cache=cache)
    assert not (folder / "voices").exists()
    batch = first(corpus)
    del batch["reference"]
    with pytest.raises(UserError, match="no references; train on"):
        module.losses(batch)


# The claims


def test_probes_find_what_is_there():
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(60, 5) + 4 * torch.nn.functional.one_hot(y, 5)
    assert (ridge(x[:40], y[:40], x[40:]) == y[40:]).all()
    features, classes = pairs({name: torch.randn(6, 4) for name in ("first", "second", "other")})
    assert features.shape == (12, 8) and classes.tolist() == [1] * 6 + [0] * 6


def test_a_word_can_be_left_out(corpus):
    clip = replace(corpus.train[0], phonemes="ðə hˈʌm, hˈʌmz ænd hˈʌm.")
    assert without(clip, "hˈʌm").phonemes == "ðə , hˈʌmz ænd ."
    assert common_word([clip], [clip]) in ("hˈʌm", "hˈʌmz", "ænd")
    with pytest.raises(UserError, match="share no word"):
        common_word([clip], [replace(clip, phonemes="a")])


def test_the_cost_of_a_word_is_that_of_its_frames(corpus, hums, cache):
    one = paired(hums, cache, references=False, speakers=["s1"])
    source = training(corpus)
    module = Adaptation.of(source, mean_voice(source.net, waves(one, one.train)), "voice")
    assert np.isfinite(word_cost(module, one, "hˈʌm"))
    with pytest.raises(UserError, match="no held-out utterance has the word"):
        word_cost(module, one, "mˈʌh")


ROW = reproduce.Row(
    z=0.9, content=0.5, open=0.6, pairs=0.52, leaky=0.7, margin=0.2, mel=0.5, mel_plain=0.55, kl=9.0, kl_plain=8.0,
    before=10.0, adapters=8.0, full=7.9, forgot=0.2, forgot_full=0.9, likeness=0.5, likeness_after=0.6, share=0.05,
    untouched=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "reproduced"),
        ({"content": 0.65}, "direction only"),
        ({"pairs": 0.25}, "direction only"),
        ({"margin": 0.0}, "direction only"),
        ({"adapters": 9.0}, "direction only"),
        ({"forgot": 1.0}, "direction only"),
        ({"share": 0.2}, "direction only"),
        ({"untouched": False}, "direction only"),
        ({"content": 0.95}, "not reproduced"),
        ({"adapters": 10.5}, "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(changed, verdict):
    rows = [replace(ROW, **changed), replace(ROW, **({} if verdict == "not reproduced" else changed))]
    assert reproduce.judge(rows) == verdict
    told = reproduce.report(rows, "nothing")
    assert told.verdict == verdict and "speaker cosine 0.500 before, 0.600 after" in told.measured
    assert "90% in z" in told.baseline and len(told.details["seeds"]) == 2


@pytest.mark.data
def test_measures_on_real_speech(monkeypatch, kokoro):
    monkeypatch.setattr(reproduce, "SIZE", SIZE)
    for name, value in (("SEEDS", 1), ("PILOT", 2), ("HEARD", 1), ("SECONDS", 25), ("TESTED", 12)):
        monkeypatch.setattr(reproduce, name, value)
    monkeypatch.setattr(reproduce, "SOURCES", reproduce.SOURCES[:2])
    found = reproduce.measure(0.05, kokoro)
    assert len(found.details["seeds"]) == 1 and "the same bits" in found.measured
    assert set(found.details["seeds"][0]) == set(vars(ROW))
