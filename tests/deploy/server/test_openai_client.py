"""The official client of OpenAI's API, unchanged, against the server."""

import io

import openai
import pytest

from vitalk.speech.audio import Audio


@pytest.fixture
def api(served):
    with openai.OpenAI(base_url=f"{served[1]}/v1", api_key="none", max_retries=0) as api:
        yield api


def test_it_speaks_into_a_file(api, tmp_path):
    with api.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="coral", input="Today is a wonderful day."
    ) as answer:
        answer.stream_to_file(tmp_path / "speech.mp3")
    assert 1 < Audio.load(tmp_path / "speech.mp3").seconds < 4


@pytest.mark.parametrize("kind", ["mp3", "opus", "flac", "wav"])
def test_every_format_can_be_read(api, kind):
    answer = api.audio.speech.create(model="tts-1", voice="alloy", input="Yes, it is.", response_format=kind)
    assert 0.5 < Audio.load(io.BytesIO(answer.read())).seconds < 2.5


def test_aac_can_be_read(api):
    import av

    data = api.audio.speech.create(model="tts-1", voice="alloy", input="Yes, it is.", response_format="aac").read()
    with av.open(io.BytesIO(data)) as file:
        seconds = sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))
    assert 0.5 < seconds < 2.5


def test_events(api):
    with api.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input="One. Two.", stream_format="sse", response_format="pcm", speed=1.5
    ) as answer:
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: {") for line in lines) and "speech.audio.done" in lines[-1]


def test_models_and_errors(api):
    assert "vitalk" in [model.id for model in api.models.list()]
    assert api.models.retrieve("tts-1").id == "tts-1"
    with pytest.raises(openai.BadRequestError, match="there is no voice"):
        api.audio.speech.create(model="tts-1", voice="nobody", input="Hello.")
    with pytest.raises(openai.NotFoundError):
        api.models.retrieve("none")
