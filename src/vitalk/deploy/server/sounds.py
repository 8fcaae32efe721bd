"""Sound as it leaves the server: encoded part by part, in the formats of the OpenAI audio API."""

import io
from typing import Literal, get_args

import numpy as np

from vitalk.speech.audio import OPUS_RATES, Audio

Kind = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PCM_RATE = 24_000  # Hz; that of the OpenAI API's raw samples, which carry none
MEDIA = {"mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
         "pcm": "audio/pcm"}  # fmt: skip
# container, codec, bits a second
CODECS: dict[str, tuple[str, str, int | None]] = {
    "mp3": ("mp3", "libmp3lame", 96_000), "opus": ("ogg", "libopus", 48_000), "aac": ("adts", "aac", 96_000),
    "flac": ("flac", "flac", None), "wav": ("wav", "pcm_s16le", None),
}  # fmt: skip


PAGE = {"page_duration": "100000"}  # microseconds of Ogg; its own second would hold back short sentences


class _Sink:
    """A file that can only be written to, so that nothing waits for the end: headers of unknown length are left so."""

    def __init__(self) -> None:
        self.held = bytearray()

    def write(self, data: bytes) -> int:
        self.held += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self.held)
        self.held.clear()
        return taken


class Encoder:
    """Turns sounds of one rate, as they come, into the bytes of one file.

    kind: of ``KINDS``; pcm is 16 bit, mono, little-endian at 24 kHz; flac comes whole at the end, since many readers
    cannot do without the length in its header. rate: of the sounds, Hz.

    >>> encoder = Encoder("mp3", 24_000)
    >>> body = encoder.feed(audio) + encoder.close()
    """

    def __init__(self, kind: Kind, rate: int):
        self.kind, self.sink = kind, io.BytesIO() if kind == "flac" else _Sink()
        if kind == "pcm":
            import soxr

            self.resampler = None if rate == PCM_RATE else soxr.ResampleStream(rate, PCM_RATE, 1, dtype="float32")
            return
        import av

        form, codec, bits = CODECS[kind]
        own = next((r for r in OPUS_RATES if r >= rate), OPUS_RATES[-1]) if kind == "opus" else rate
        self.container = av.open(self.sink, "w", format=form, options=PAGE if kind == "opus" else {})
        self.stream = self.container.add_stream(codec, rate=own, layout="mono")
        if bits is not None:
            self.stream.bit_rate = bits
        self.samples = av.AudioResampler(format=self.stream.codec_context.format, layout="mono", rate=own)

    def feed(self, audio: Audio) -> bytes:
        """The bytes that are ready once ``audio`` is added; codecs keep some until the next."""
        samples = np.clip(audio.samples, -1, 1)
        if self.kind == "pcm":
            return self._pcm(samples, last=False)
        import av

        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
            frame.sample_rate = audio.rate
            self._encode(self.samples.resample(frame))
        return b"" if self.kind == "flac" else self.sink.take()

    def close(self) -> bytes:
        """The bytes that remain; the encoder is used up."""
        if self.kind == "pcm":
            return self._pcm(np.zeros(0, np.float32), last=True)
        self._encode([*self.samples.resample(None), None])
        self.container.close()
        return self.sink.getvalue() if self.kind == "flac" else self.sink.take()

    def _encode(self, frames: list) -> None:
        for frame in frames:
            self.container.mux(self.stream.encode(frame))

    def _pcm(self, samples: np.ndarray, last: bool) -> bytes:
        if self.resampler is not None:
            samples = self.resampler.resample_chunk(samples.astype(np.float32), last=last)
        return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
