"""Training Transformer TTS on batches of a corpus, keeping it, speaking with it, and judging its claims."""

import pytest
import torch
from lightning import seed_everything

from vitalk.errors import UserError
from vitalk.experiments import budget, short_run
from vitalk.speech.features import Speech
from vitalk.speech.synthesizer import Prompt
from vitalk.systems.transformer_tts import reproduce
from vitalk.systems.transformer_tts.training import TorchOnly, TransformerTTSTraining, load_trained
from vitalk.trained import trained_voice
from vitalk.training import run

BLOCKS = {"depth": 1, "heads": 2, "hidden": 16}
SIZE = {"dim": 16, "encoder": BLOCKS, "decoder": BLOCKS, "prenet": (8,), "postnet": {"hidden": 8}, "frames_per_step": 4}


@pytest.fixture(scope="module")
def corpus(hums, tmp_path_factory):
    data = Speech(str(hums), cache=str(tmp_path_factory.mktemp("cache")), workers=0, held_out=0.25, batch_frames=400)
    data.setup()
    return data


def training(corpus, **options):
    told = {"variant": "small", "model_args": SIZE, "warmup_steps": 2, **options}
    module = TransformerTTSTraining(corpus.n_symbols, corpus.n_speakers, **told)
    module.build(*corpus.spreads())
    return module


@pytest.mark.parametrize("schedule", ["noam", "cosine"])
def test_the_losses_fall(corpus, schedule):
    seed_everything(0, verbose=False)
    module = training(corpus, schedule=schedule, lr=1e-2, guided=1, distance="l1")
    batch = next(iter(corpus.whole_dataloader("train")))
    before = module.eval().losses(batch)
    with budget("test", 1):
        short_run(module.train(), corpus, 60)
    after = module.eval().losses(batch)
    assert set(after) == {"mel", "mel_coarse", "stop", "guided"}
    assert after["mel"] < 0.7 * before["mel"] and after["stop"] < before["stop"]


@pytest.mark.parametrize("variant", ["paper", "teacher", "fs2", "soobinseo"])
def test_every_variant_is_built(corpus, variant):
    sizes = {name: value for name, value in SIZE.items() if name not in ("prenet", "postnet", "frames_per_step")}
    postnet = {} if variant == "fs2" else {"postnet": {"hidden": 8, "causal": variant == "soobinseo"}}
    module = training(corpus, variant=variant, model_args={**sizes, **postnet})
    found = module.losses(next(iter(corpus.whole_dataloader("test"))))
    assert all(value.isfinite() for value in found.values()) and ("mel_coarse" in found) == (variant != "fs2")


def test_weights_and_distance_are_heeded(corpus):
    batch = next(iter(corpus.whole_dataloader("train")))
    total, found = training(corpus, weights={"mel": 0.0, "stop": 2.0}).eval().loss(batch)
    torch.testing.assert_close(total, 2 * found["stop"] + found["mel_coarse"])
    torch.manual_seed(1)
    squared = training(corpus).eval()
    absolute = training(corpus, distance="l1", stop_weight=1.0).eval()
    absolute.load_state_dict(squared.state_dict())
    a, b = squared.losses(batch), absolute.losses(batch)
    assert a["mel"] > b["mel"] > 0 and a["stop"] != b["stop"]


def test_from_a_corpus_to_a_voice_by_the_recipe(hums, tmp_path):
    told = ["--trainer.enable_progress_bar=false", f"--data.init_args.cache={tmp_path / 'cache'}"]
    steps = "--trainer.max_steps="
    path = run("transformer-tts", "tiny", str(hums), tmp_path / "run", [*told, steps + "1"], interval=1)
    first = load_trained(path)[0].head.weight
    run("transformer-tts", "tiny", str(hums), tmp_path / "run", [*told, steps + "2"], interval=1)
    net, about = load_trained(path)
    assert not torch.equal(first, net.head.weight) and about["speakers"] == ["s0", "s1"]
    voice = trained_voice(tmp_path / "run")
    # Untrained, it would speak as long as it may, and a batch norm that saw two steps says anything.
    voice.about["symbols"] = "hˈʌm "
    net = voice.session.say.acoustic.net
    net.stop.bias.data.fill_(9.0)
    net.postnet = None
    audio = voice.synthesize("hum", Prompt(speaker="s1"))
    assert audio.rate == 24_000 and len(audio.samples) == 4 * 300
    with pytest.raises(UserError, match=r"cannot change its speed, got 1\.5"):
        voice.speak("hum", speed=1.5)
    with pytest.raises(UserError, match="no speaker s9"):
        voice.speak("hum", speaker="s9")


def test_a_voice_speaks_at_its_own_pace(corpus):
    voice, one = TorchOnly(training(corpus).net.eval(), ()), torch.ones(1)
    ids, speaker = torch.randint(1, 60, (1, 3)), torch.tensor([1])
    mel, durations = voice(ids, speaker, one, one, one)
    assert mel.shape[2] == int(durations.sum()) and durations.shape == ids.shape
    assert TransformerTTSTraining.FOLLOWS == ()  # so that a Voice refuses all factors


def rows(stopped, mel):
    row = {"mel": 0.5, "copy": 0.6, "focus": 0.7, "forward": 0.9, "stopped": 0.5, "text_alpha": 1.1, "frame_alpha": 0.9}
    found = {name: [dict(row), dict(row)] for name in reproduce.ARMS}
    for name, value in (("full", stopped[0]), ("stop weight 1", stopped[1])):
        for one in found[name]:
            one["stopped"] = value
    for name, value in (("full", mel[0]), ("fixed positions", mel[1])):
        for one in found[name]:
            one["mel"] = value
    return found


@pytest.mark.parametrize(
    ("seconds", "stopped", "mel", "verdict"),
    [
        (4.0, (0.9, 0.3), (0.50, 0.51), "reproduced"),
        (4.0, (0.3, 0.3), (0.50, 0.51), "direction only"),
        (4.0, (0.9, 0.3), (0.52, 0.51), "direction only"),
        (1.5, (0.9, 0.3), (0.50, 0.51), "direction only"),
        (0.9, (0.9, 0.3), (0.50, 0.51), "not reproduced"),
    ],
)
def test_the_verdict_follows_from_the_figures(seconds, stopped, mel, verdict):
    timing = {"Transformer TTS": 1.0, "Tacotron 2": seconds}
    found = rows(stopped, mel)
    assert reproduce.judge(timing, found) == verdict
    told = reproduce.report(timing, found, "nothing")
    assert told.verdict == verdict and f"{seconds:.2f} times" in told.measured and "2 seeds" in told.data
    one = {name: r[:1] for name, r in found.items()}
    assert reproduce.judge(timing, one) != "reproduced"  # one seed shows nothing


def test_arms_differ_in_what_they_are_named_for(corpus, monkeypatch):
    monkeypatch.setattr(reproduce, "SIZE", SIZE)
    monkeypatch.setattr(Speech, "n_speakers", 1, raising=False)
    made = {name: reproduce.make(name, corpus, 10) for name in reproduce.ARMS}
    assert [m.hparams.stop_weight for m in made.values()] == [5.0, 1.0, 5.0, 5.0]
    assert not made["fixed positions"].net.positions.alpha.requires_grad
    assert not made["no re-centring"].net.text.recentre and made["full"].net.text.recentre
    shown = reproduce.examine(made["full"].eval(), corpus)
    assert 0 <= shown["stopped"] <= 1 and 0 < shown["focus"] <= 1 and 0 < shown["copy"] < shown["mel"]
    assert shown["text_alpha"] == shown["frame_alpha"] == 1


@pytest.mark.data
def test_measures_on_real_speech(monkeypatch, kokoro):
    for name, value in (("SIZE", SIZE), ("SEEDS", 1), ("WIDTH", 32), ("SHAPE", (2, 5, 8)), ("HEARD", 1)):
        monkeypatch.setattr(reproduce, name, value)
    found = reproduce.measure(0.02, kokoro)
    assert found.verdict in ("direction only", "not reproduced") and set(found.details["arms"]) == set(reproduce.ARMS)


def test_says_that_no_graph_can_be_made(corpus, monkeypatch):
    voice, one = TorchOnly(training(corpus).net.eval(), ()), torch.ones(1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with pytest.raises(UserError, match="speaks in torch only"):
        voice(torch.ones(1, 3, dtype=torch.long), torch.tensor([0]), one, one, one)
