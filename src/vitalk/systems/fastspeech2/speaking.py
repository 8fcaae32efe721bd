"""A trained FastSpeech 2s, or FastSpeech 2 with a vocoder, that speaks as it is, in torch."""

from pathlib import Path

from torch import Tensor, nn

from vitalk.errors import UserError
from vitalk.speech.acoustic.training import read_trained
from vitalk.speech.speaking import Chained, torch_voice, vocoder_for
from vitalk.speech.voice import Voice

from .training import load_for_voice
from .training2s import FastSpeech2sTraining, load_trained2s


def trained_voice(model: str | Path, vocoder: str | Path | None = None, device: str = "cpu") -> Voice:
    """A ``Voice``, which is a ``Synthesizer``, of the model.safetensors of a training, without export.

    model: of FastSpeech 2s, or of FastSpeech 2 and then with the model.safetensors of a vocoder. device: of torch.

        trained_voice("runs/fastspeech2-2s-cpu/model.safetensors").speak("Hello.").save("hello.wav")

    Raises UserError for files that are none of these and for a vocoder that is missing, does not fit or is not needed.
    """
    rate = None
    whole = read_trained(model)[0].get("format") == FastSpeech2sTraining.FORMAT
    if whole and vocoder is not None:
        raise UserError(f"{model} makes waveforms itself; leave the vocoder {vocoder} out")
    if whole:
        net, about = load_trained2s(model)
        say: nn.Module = Whole(net)
    else:
        acoustic, about = load_for_voice(model)
        if vocoder is None:
            raise UserError(f"{model} makes spectrograms; give the model.safetensors of a vocoder with it")
        generator, rate = vocoder_for(about["mel"], vocoder, model)
        say = Chained(acoustic, generator)
    return torch_voice(say, about, Path(model).parent.name or "trained", device, rate)


class Whole(nn.Module):
    """FastSpeech 2s as voices ask it: (ids, speaker, speed, pitch, energy) -> waveform [1, samples]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(
        self, ids: Tensor, speed: Tensor, pitch: Tensor, energy: Tensor, speaker: Tensor | None = None
    ) -> Tensor:
        """ids [1, text], the others [1]; the mel decoder does not run."""
        return self.net(ids, speaker=speaker, speed=speed, pitch_factor=pitch, energy_factor=energy).wave
