"""From trained networks to a voice that speaks without torch."""

import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from vitalk.deploy.kernels import profile
from vitalk.deploy.voice_export import export_voice
from vitalk.errors import UserError
from vitalk.speech.acoustic.variance import Spread
from vitalk.speech.mel import PRESETS
from vitalk.speech.synthesizer import Prompt
from vitalk.speech.text.symbols import SIZE
from vitalk.speech.vocoder.vocos import Vocos
from vitalk.speech.voice import Voice
from vitalk.systems.fastspeech2 import fastspeech2_small
from vitalk.systems.fastspeech2.training import ForVoice

SPEC = PRESETS["vitalk"]


def networks(speakers=0):
    torch.manual_seed(0)
    sizes = {"depth": 1, "hidden": 16, "kernels": (3, 1)}
    net = fastspeech2_small(
        SIZE, dim=16, encoder=sizes, decoder=sizes, speakers=speakers,
        f0_spread=Spread(5.0, 0.3, 60.0, 600.0, log=True),
    ).eval()  # fmt: skip
    nn.init.constant_(net.duration.linear.bias, 1.8)  # about five frames a symbol
    return ForVoice(net), Vocos(80, 24, 48, 2, SPEC.n_fft, SPEC.hop).eval()


def test_a_voice_speaks(voice_file):
    voice = Voice.load(voice_file)
    assert (voice.name, voice.lang, voice.rate, voice.speakers) == ("babble", "en-us", 24_000, [])
    audio = voice.speak("Hello there.")
    assert audio.rate == 24_000 and len(audio.samples) % SPEC.hop == 0 and audio.seconds > 0.3
    assert np.isfinite(audio.samples).all() and np.abs(audio.samples).max() <= 1


def test_a_voice_says_symbols_it_never_met_as_the_nearest(tmp_path, voice_file):
    few = Voice.load(export_voice(*networks(), SPEC, tmp_path / "few.onnx", "few", "en-us", symbols="həlˈoʊ ,."))
    assert np.array_equal(few.speak("Hello — hello!").samples, few.speak("Hello, hello.").samples)
    whole = Voice.load(voice_file)
    assert len(whole.speak("Hello — hello!").samples) != len(whole.speak("Hello, hello.").samples)
    with pytest.raises(UserError, match="few has learnt none of the sounds"):
        few.speak("Be!")


def test_speed_changes_the_length_and_sentences_come_one_by_one(voice_file):
    voice = Voice.load(voice_file)
    plain, slow = (voice.speak("Hello there, you.", speed=speed).seconds for speed in (1.0, 0.5))
    assert slow == pytest.approx(2 * plain, rel=0.1)
    parts = list(voice.stream("One. Two. Three."))
    assert len(parts) == 3 and sum(p.seconds for p in parts) == pytest.approx(voice.speak("One. Two. Three.").seconds)
    ssml = voice.speak('<speak>One.<break time="2s"/>Two.</speak>', ssml=True)
    assert ssml.seconds > 2


def test_several_speakers(tmp_path):
    path = export_voice(*networks(speakers=2), SPEC, tmp_path / "two.onnx", "two", "en-us", ["ann", "bob"])
    voice = Voice.load(path)
    ann, bob = (voice.speak("Hello.", speaker=name).samples for name in ("ann", "bob"))
    assert voice.speakers == ["ann", "bob"] and (len(ann) != len(bob) or not np.allclose(ann, bob))
    with pytest.raises(UserError, match=r"no speaker anna; it has ann, bob\. Did you mean ann"):
        voice.speak("Hello.", speaker="anna")


def test_refusals(voice_file, tmp_path):
    voice = Voice.load(voice_file)
    for wrong, message in (
        ({"speed": 0}, "speed must be from 0.25"),
        ({"speed": 100}, "got 100"),
        ({"pitch": 9}, "pitch"),
    ):
        with pytest.raises(UserError, match=message):
            voice.speak("Hello.", **wrong)
    for text in ("", "   ", "?!", "😀"):
        with pytest.raises(UserError, match="nothing to say"):
            voice.speak(text)
    with pytest.raises(UserError, match="cannot follow a prompt with style"):
        voice.synthesize("Hello.", Prompt(style="angry"))
    with pytest.raises(UserError, match="there is no voice nobody"):
        Voice.load("nobody")
    (tmp_path / "broken.onnx").write_bytes(b"no voice")
    with pytest.raises(UserError, match="cannot be opened as a voice"):
        Voice.load(tmp_path / "broken.onnx")
    with pytest.raises(UserError, match="no spectrum"):
        export_voice(networks()[0], nn.Identity(), SPEC, tmp_path / "x.onnx", "x", "en-us")


@pytest.mark.parametrize("args", [["-o", "said.wav"], ["-o", "-"], ["--stream"]])
def test_the_verb_speaks_without_torch(voice_file, tmp_path, args):
    program = (
        "import sys; sys.modules['torch'] = None; from vitalk.cli import main; "
        f"sys.argv = ['vitalk', 'speak', '-', '--voice', {str(voice_file)!r}, *{args!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], input=b"Hello. You.", capture_output=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    if args[1:] == ["said.wav"]:
        assert (tmp_path / "said.wav").stat().st_size > 10_000 and b"said.wav" in done.stdout
    else:
        samples = np.frombuffer(done.stdout, "<i2")
        assert len(samples) > 5_000 and samples.any() and b"24000 Hz" in done.stderr


def test_the_verb_refuses_in_one_sentence(voice_file, tmp_path):
    def run(*args, stdin=b""):
        program = "from vitalk.cli import main; import sys; sys.argv = ['vitalk', 'speak', *sys.argv[1:]]; main()"
        command = [sys.executable, "-c", program, "--voice", str(voice_file), *args]
        return subprocess.run(command, input=stdin, capture_output=True, text=False, cwd=tmp_path)

    for args, stdin, message in (
        (["-o", "a.wav"], b"", b"nothing to say"),
        (["Hi.", "-o", "a.xyz"], b"", b"cannot write xyz"),
        (["-o", "a.wav"], b"\xff\xfe\x00", b"not UTF-8"),
        (["-f", "none.txt", "-o", "a.wav"], b"", b"no text at none.txt"),
        (["<speak>oops", "--ssml", "-o", "a.wav"], b"", b"line 1"),
        (["Hi.", "--lang", "klingon", "-o", "a.wav"], b"", b"klingon"),
    ):
        done = run(*args, stdin=stdin)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count(b"\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_voice_is_smaller_runs_in_integers_and_says_the_same(tmp_path):
    acoustic, vocoder = networks()
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 60, (30,), generator=generator).tolist() for _ in range(4)]
    files = {
        name: export_voice(acoustic, vocoder, SPEC, tmp_path / f"{name}.onnx", name, "en-us", bits=bits, texts=texts)
        for name, bits in (("plain", None), ("int8", (8, 8)))
    }
    stored = [onnx.numpy_helper.to_array(value) for value in onnx.load(files["int8"]).graph.initializer]
    assert sum(array.dtype == np.int8 and array.ndim == 2 for array in stored) >= 12
    ones = {name: np.ones(1, np.float32) for name in ("speed", "pitch", "energy")}
    kernels = profile(files["int8"], {"ids": np.array([texts[0]]), **ones})
    assert kernels.integer >= 12 and kernels.counts.get("Conv", 0) + kernels.counts.get("FusedConv", 0) <= 3
    plain, small = (Voice.load(file).speak("Hello there.").samples for file in files.values())
    assert abs(len(small) / len(plain) - 1) < 0.1
    assert np.isfinite(small).all() and np.abs(small).max() > 0.2 * np.abs(plain).max()
    with pytest.raises(UserError, match="--texts"):
        export_voice(acoustic, vocoder, SPEC, tmp_path / "no.onnx", "no", "en-us", bits=(8, 8))
