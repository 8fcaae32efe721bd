"""The network: memory-augmented VAE, speaker encoder, timbre flow, text encoder and duration predictor."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from vitalk.errors import UserError
from vitalk.nn.precision import full_precision
from vitalk.speech.acoustic.ecapa import EcapaTDNN
from vitalk.speech.acoustic.fft_block import length_mask, symbol_mask
from vitalk.speech.acoustic.flows import MeanFlow, wavenet
from vitalk.speech.acoustic.gated import fold
from vitalk.speech.acoustic.noise import Draw
from vitalk.speech.acoustic.regulator import LONGEST, frame_index
from vitalk.speech.acoustic.relative import RelativeStack
from vitalk.speech.acoustic.speakers import numbered
from vitalk.speech.align.search import maximum_path
from vitalk.speech.mel import MelSpec, magnitudes, mel_spec
from vitalk.speech.vocoder.generators import create, output_rate

from .duration import LOG_2PI, StochasticDuration, kept
from .memory import Memory

Factor = float | Tensor


@dataclass
class Reading:
    """A text: its states [batch, dim, text], mean and log-deviation of its latents [batch, latent, text], its mask."""

    hidden: Tensor
    mean: Tensor
    logs: Tensor
    mask: Tensor | None


@dataclass
class Output:
    """What speaking gives. Padding is zero.

    mel: log-mel [batch, mels, frames]; wave: [batch, samples]; the one that the decoder makes, the other is None.
    mel_lengths: frames, int64 [batch]. durations: frames of each symbol, int64 [batch, text]. content, z: latents
    without and with the speaker, [batch, latent, frames].
    """

    mel: Tensor | None
    wave: Tensor | None
    mel_lengths: Tensor
    durations: Tensor
    content: Tensor
    z: Tensor


@dataclass
class Taught:
    """What the text part makes of latents that are known.

    content: latents without the speaker, as the flow found them; prior: a draw of the text's own on the same frames;
    both [batch, latent, frames]. durations: found by search, int64 [batch, text]. losses: "kl" in nats a frame,
    "duration" in nats a symbol.
    """

    content: Tensor
    prior: Tensor
    durations: Tensor
    losses: dict[str, Tensor]


class MelDecoder(nn.Module):
    """A WaveNet in place of the waveform decoder, for processors (ours): [batch, latent, frames] -> log-mel."""

    def __init__(self, latent: int, mels: int, dim: int = 128, layers: int = 6):
        super().__init__()
        self.start, self.stack = nn.Conv1d(latent, dim, 1), wavenet(dim, layers, 5, 0)
        self.end = nn.Conv1d(dim, mels, 1)

    def forward(self, m: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask [batch, frames]; the mel is zero where it is False."""
        return kept(self.end(self.stack(self.start(m), None, mask)).float(), mask)


class Usat(nn.Module):
    """USAT (arXiv 2404.18094): text to content, a flow that gives it a speaker, a memory, a decoder.

    n_symbols: of the text, padding included. mel: preset whose frames the latents have, and whose linear spectrogram
    the VAE hears. speakers: named voices. dim, heads, depth, hidden, kernel, dropout: of the text encoder; its dim is
    also the WaveNets' width. latent: channels of z. posterior_layers: of the VAE's encoder. memory, memory_heads: slots
    and heads, 0 slots for none (the paper's ablation). flow_steps, flow_layers: couplings and layers of each.
    voice: width of speakers' vectors; ecapa: further arguments of their encoder. duration_dropout, duration_steps: see
    ``StochasticDuration``. decoder: a vocoder's name (``vocoder.generators``), which gets latents in place of mels, or
    "mel"; decoder_args: of it.
    voices: buffer [speakers, voice], the vectors that named speakers speak with.

    Sizes are those of VITS (arXiv 2106.06103), which the paper builds on; that it keeps all of them, the width of the
    vectors and the memory's slots are (unconfirmed).
    """

    def __init__(
        self,
        n_symbols: int,
        mel: str = "hifigan",
        speakers: int = 1,
        dim: int = 192,
        heads: int = 2,
        depth: int = 6,
        hidden: int = 768,
        kernel: int = 3,
        dropout: float = 0.1,
        latent: int = 192,
        posterior_layers: int = 16,
        memory: int = 1000,
        memory_heads: int = 1,
        flow_steps: int = 4,
        flow_layers: int = 4,
        voice: int = 256,
        ecapa: dict[str, Any] | None = None,
        duration_dropout: float = 0.5,
        duration_steps: int = 4,
        decoder: str = "hifigan-v1",
        decoder_args: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.spec = mel_spec(mel)
        self.symbols = nn.Embedding(n_symbols, dim, padding_idx=0)
        nn.init.normal_(self.symbols.weight, std=dim**-0.5)
        self.text = RelativeStack(
            depth, dim, heads, hidden, (kernel, kernel), dropout=dropout, prenet=False, inner_dropout=dropout
        )
        self.prior = nn.Linear(dim, 2 * latent)
        self.enter = nn.Conv1d(self.spec.n_fft // 2 + 1, dim, 1)
        self.encoder, self.posterior = wavenet(dim, posterior_layers, 5, 0), nn.Conv1d(dim, 2 * latent, 1)
        self.memory = Memory(latent, memory, memory_heads) if memory else None
        self.speaker = EcapaTDNN(latent, voice, **(ecapa or {}))
        self.flow = MeanFlow(latent, dim, flow_steps, flow_layers, 5, condition=voice)
        self.duration = StochasticDuration(dim, voice, dropout=duration_dropout, steps=duration_steps)
        self.decoder = _decoder(decoder, latent, self.spec, decoder_args or {})
        self.register_buffer("voices", torch.zeros(speakers, voice))

    @property
    def speaks_mel(self) -> bool:
        """Whether the decoder makes mels, not waves."""
        return isinstance(self.decoder, MelDecoder)

    def forward(
        self,
        ids: Tensor,
        text_lengths: Tensor | None = None,
        speaker: Tensor | None = None,
        voice: Tensor | None = None,
        durations: Tensor | None = None,
        speed: Factor = 1.0,
        temperature: float = 0.667,
        duration_temperature: float = 0.8,
        draw: Draw | None = None,
    ) -> Output:
        """Symbols ids [batch, text] and their lengths [batch] (all of the width without them) -> ``Output``.

        speaker: numbers of named speakers [batch]; one alone needs none. voice: vectors [batch, voice] in their place,
        as ``listen`` hears them in recordings of anybody. durations: int64 [batch, text], used as they are, by default
        drawn. speed: multiplies the tempo; a number or [batch]. temperature, duration_temperature: deviations of the
        noise, VITS' own. draw: makes normal noise of a shape, torch's generator by default.
        Raises UserError for empty text, and for speakers and voices that there are not or that are both given.
        """
        voice = self._voice(ids, speaker, voice)
        draw = draw or (lambda shape: torch.randn(shape, device=ids.device))
        reading = self.read(ids, text_lengths)
        if durations is None:
            noise = duration_temperature * draw((len(ids), 2, ids.shape[1]))
            durations = self._whole(self.duration.sample(reading.hidden, voice, noise, reading.mask), reading, speed)
        index, inside = frame_index(durations)
        mean, logs = (_spread(x, index) for x in (reading.mean, reading.logs))
        mask = None if len(ids) == 1 else inside
        content = kept(mean + temperature * draw(tuple(mean.shape)) * logs.exp(), mask)
        z = self.flow.inverse(content, voice[:, :, None], mask)
        mel = wave = None
        if self.speaks_mel:
            mel = self.decode(z, mask)
        else:  # each for itself: what lies behind the end of an item is heard in its last frames
            frames = inside.sum(1)
            waves = [self.decode(one[None, :, :count])[0] for one, count in zip(z, frames.tolist(), strict=True)]
            wave = pad_sequence(waves, batch_first=True)
        return Output(mel, wave, inside.sum(1), durations, content, z)

    # The VAE

    def encode(self, spectra: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Linear spectra [batch, bins, frames] (``linear``) -> mean and log-deviation of z, [batch, latent, frames]."""
        mean, logs = self.posterior(self.encoder(self.enter(spectra), None, mask)).float().chunk(2, 1)
        return kept(mean, mask), kept(logs, mask)

    def remember(self, z: Tensor) -> Tensor:
        """What the decoder sees of z: a mixture of the memory's slots, or z itself where there is no memory."""
        return z if self.memory is None else self.memory(z)

    def decode(self, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """z [batch, latent, frames] -> log-mel [batch, mels, frames] or wave [batch, frames * hop]."""
        seen = kept(self.remember(z), mask)
        return self.decoder(seen, mask) if self.speaks_mel else self.decoder(seen)

    def listen(self, spectra: Tensor, mask: Tensor | None = None) -> Tensor:
        """Linear spectra of recordings -> the vectors of who speaks in them, [batch, voice]."""
        return self.speaker(self.encode(spectra, mask)[0], mask)

    # The text

    def read(self, ids: Tensor, text_lengths: Tensor | None = None) -> Reading:
        """Symbols -> what is known of their latents before anybody speaks them."""
        mask = symbol_mask(ids, text_lengths)
        hidden = self.text(self.symbols(ids) * self.symbols.embedding_dim**0.5, mask)
        mean, logs = kept(self.prior(hidden).float().transpose(1, 2), mask).chunk(2, 1)
        return Reading(hidden.transpose(1, 2), mean, logs, mask)

    def teach(
        self,
        z: Tensor,
        logs: Tensor,
        lengths: Tensor,
        ids: Tensor,
        text_lengths: Tensor,
        voice: Tensor,
        draw: Draw | None = None,
        durations: Tensor | None = None,
    ) -> Taught:
        """The flow, the search for the alignment, and the losses of latents and durations (the paper's L_kl, L_dur).

        z: drawn from q, whose log-deviation is logs, [batch, latent, frames]; lengths: frames, int64 [batch]. voice:
        vectors [batch, voice], best of other recordings of the speakers. draw: noise, torch's generator by default.
        durations: int64 [batch, text] with the frames of the utterances, in place of the search (ours), for trainings
        too short for it.
        Raises UserError for an utterance with more symbols than frames.
        """
        draw = draw or (lambda shape: torch.randn(shape, device=z.device))
        mask = length_mask(lengths, z.shape[2])
        content = self.flow(z, voice[:, :, None], mask)
        reading = self.read(ids, text_lengths)
        if durations is None:
            durations = maximum_path(likelihood(content, reading), text_lengths, lengths)
        index, _ = frame_index(durations, z.shape[2])
        mean, spread = (_spread(x, index) for x in (reading.mean, reading.logs))
        with full_precision(z):
            # One sample of z, the entropy of q in closed form, and a flow without determinant, as in VITS.
            nats = spread - logs - 0.5 + 0.5 * (content - mean).square() * (-2 * spread).exp()
            kl = kept(nats, mask).sum() / mask.sum()
        missing = self.duration(reading.hidden, durations, voice, draw, reading.mask)
        prior = kept(mean + draw(tuple(mean.shape)) * spread.exp(), mask)
        return Taught(content, prior, durations, {"kl": kl, "duration": missing.sum() / text_lengths.sum()})

    def fold(self) -> "Usat":
        """Take weight norm off, for inference."""
        fold(self)
        return self

    def _whole(self, logs: Tensor, reading: Reading, speed: Factor) -> Tensor:
        """Drawn log-durations [batch, text] -> whole frames, rounded up as they were made continuous by going down."""
        frames = logs.float().exp().clamp(max=LONGEST)
        frames = frames / (speed[:, None] if isinstance(speed, Tensor) else speed)
        frames = frames.ceil().long().clamp(min=1)
        return frames if reading.mask is None else frames.masked_fill(~reading.mask, 0)

    def _voice(self, ids: Tensor, speaker: Tensor | None, voice: Tensor | None) -> Tensor:
        count, width = self.voices.shape
        if voice is not None:
            if speaker is not None or voice.shape != (len(ids), width):
                raise UserError(
                    f"a voice of shape {list(voice.shape)} for {len(ids)} texts: give vectors [{len(ids)}, {width}] "
                    "and no speaker with them"
                )
            return voice
        if speaker is None:
            if count > 1:
                raise UserError(f"this model needs a speaker or a voice; give numbers below {count}, or vectors")
            return self.voices.expand(len(ids), -1)
        return self.voices[numbered("speaker", speaker, count)]


def linear(wave: Tensor, spec: MelSpec) -> Tensor:
    """Linear magnitudes of waves [batch, frames * hop] -> [batch, n_fft / 2 + 1, frames].

    Silence stands around them and no reflection, so that an utterance gives the same alone and in a padded batch.
    """
    around = -(-spec.n_fft // spec.hop)
    padded = torch.nn.functional.pad(wave, (around * spec.hop, around * spec.hop))
    return magnitudes(padded, replace(spec, center=False))[..., around:-around]


@torch.no_grad()
def likelihood(content: Tensor, reading: Reading) -> Tensor:
    """log N(content; mean, deviation) of every frame under every symbol, [batch, text, frames]."""
    with full_precision(content):
        precision = (-2 * reading.logs).exp()
        constant = (reading.logs + 0.5 * reading.mean.square() * precision).sum(1) + 0.5 * LOG_2PI * content.shape[1]
        squares = precision.transpose(1, 2) @ content.square()
        return (reading.mean * precision).transpose(1, 2) @ content - 0.5 * squares - constant[:, :, None]


def _spread(x: Tensor, index: Tensor) -> Tensor:
    """x [batch, channels, text] on frames: index [batch, frames] -> [batch, channels, frames]."""
    return x.gather(2, index[:, None].expand(-1, x.shape[1], -1))


def _decoder(name: str, latent: int, spec: MelSpec, args: dict[str, Any]) -> nn.Module:
    if name == "mel":
        return MelDecoder(latent, spec.n_mels, **args)
    generator = create(name, spec, {"n_mels": latent, **args})
    if output_rate(generator, spec) != spec.rate:
        raise UserError(f"the decoder {name} goes beyond the rate of the data; choose hifigan-v1 or mel")
    return generator
