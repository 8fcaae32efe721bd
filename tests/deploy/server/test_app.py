import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitalk.deploy.server import Settings
from vitalk.deploy.server.schemas import MODELS, STAND_INS
from vitalk.errors import UserError
from vitalk.speech.audio import Audio
from vitalk.speech.voice import Voice

CAT = Path(__file__).parents[3] / "examples" / "cat.png"
SAID = {"model": "vitalk", "input": "Hello there. How are you?", "voice": "vitalk"}


def say(client, **changes):
    return client.post("/v1/audio/speech", json={**SAID, **changes})


def refused(answer, status=400):
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    return error["message"]


def test_it_says_what_the_voice_says(client):
    got = Audio.load(io.BytesIO(say(client, response_format="wav").content))
    own = Voice.load().speak(SAID["input"])
    assert got.rate == own.rate and abs(got.seconds - own.seconds) < 0.01
    assert np.abs(got.samples - own.samples).max() < 2e-4  # 16 bit


def test_the_default_format_is_mp3(client):
    answer = say(client)
    assert answer.headers["content-type"] == "audio/mpeg"
    assert abs(Audio.load(io.BytesIO(answer.content)).seconds - Voice.load().speak(SAID["input"]).seconds) < 0.15


def test_pcm_is_the_samples_alone_at_24_khz(client):
    samples = np.frombuffer(say(client, response_format="pcm").content, "<i2")
    assert abs(len(samples) / 24_000 - Voice.load().speak(SAID["input"]).seconds) < 0.01


def test_events_carry_the_same_bytes(client):
    plain = say(client, response_format="wav").content
    answer = say(client, response_format="wav", stream_format="sse")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]
    assert [t["type"] for t in told[:-1]] == ["speech.audio.delta"] * (len(told) - 1)
    assert told[-1]["type"] == "speech.audio.done" and told[-1]["usage"]["total_tokens"] > 0
    assert b"".join(base64.b64decode(t["audio"]) for t in told[:-1]) == plain


def test_long_texts_come_sentence_by_sentence(client):
    with client.stream(
        "POST", "/v1/audio/speech", json={**SAID, "input": "One two. " * 30, "response_format": "pcm"}
    ) as r:
        sizes = [len(chunk) for chunk in r.iter_raw()]
    assert len(sizes) >= 10 and sum(sizes) > 20 * max(sizes) / 2


def test_speed_is_followed(client):
    normal, fast = (len(say(client, response_format="pcm", speed=s).content) for s in (1.0, 2.0))
    assert 0.4 < fast / normal < 0.75


@pytest.mark.parametrize("voice", [STAND_INS[0], {"id": "vitalk"}])
def test_voices_by_other_names(client, voice):
    assert say(client, voice=voice).status_code == 200


@pytest.mark.parametrize("model", MODELS)
def test_every_listed_model_speaks(client, model):
    assert say(client, model=model, input="Yes.").status_code == 200


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"voice": "vitalc"}, "there is no voice 'vitalc'; there are vitalk. Did you mean vitalk?"),
        ({"model": "gpt-9"}, "there is no model 'gpt-9'"),
        ({"input": ""}, "input: String should have at least 1 character"),
        ({"input": "?!"}, "there is nothing to say"),
        ({"input": "a" * 4097}, "input has 4097 characters; give at most 4096"),
        ({"speed": 5}, "speed: Input should be less than or equal to 4"),
        ({"speed": "fast"}, "speed: Input should be a valid number"),
        ({"response_format": "ogg"}, "response_format: Input should be 'mp3', 'opus', 'aac', 'flac', 'wav' or 'pcm'"),
        ({"instructions": "Whisper."}, "instructions: no voice here follows instructions; leave them out"),
        ({"lang": "xx"}, "espeak does not speak the language 'xx'"),
        ({"loudness": 1}, "loudness: Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_bad_speech_requests(client, changes, told):
    assert told in refused(say(client, **changes))


def test_bodies_that_are_no_json(client):
    json_type = {"content-type": "application/json"}
    assert refused(client.post("/v1/audio/speech", content=b"{", headers=json_type)) == "the body is no JSON"
    refused(client.post("/v1/audio/speech", content=b"hello", headers={"content-type": "text/plain"}))
    refused(client.post("/v1/audio/speech", content=b"\xff\xfe\x00", headers=json_type))
    assert "10" not in refused(client.post("/v1/audio/speech", content=b"x" * 10**7, headers=json_type), 413)


def test_it_lists_models_and_voices(client):
    assert [m["id"] for m in client.get("/v1/models").json()["data"]] == list(MODELS)
    assert client.get("/v1/models/vitalk").json()["object"] == "model"
    refused(client.get("/v1/models/other"), 404)
    card, *_ = client.get("/v1/audio/voices").json()["data"]
    assert card == {
        "id": "vitalk",
        "name": "vitalk",
        "lang": "en-us",
        "rate": 24000,
        "default": True,
        "follows": ["speed", "pitch", "energy"],
    }


def test_it_names_what_is_in_a_picture(client):
    form = client.post("/v1/vision/classify", files={"image": CAT.read_bytes()}, data={"top": "2"}).json()
    assert form["model"] == "eye" and form["labels"][0]["label"] == "cat" and len(form["labels"]) == 2
    encoded = base64.b64encode(CAT.read_bytes()).decode()
    for image in (encoded, f"data:image/png;base64,{encoded}"):
        told = client.post("/v1/vision/classify", json={"image": image, "top": 2}).json()
        assert told == form


def test_it_describes_a_picture_aloud(client):
    from urllib.parse import unquote

    answer = client.post("/v1/describe", files={"image": CAT.read_bytes()}, data={"response_format": "wav"})
    text = unquote(answer.headers["x-text"])
    assert text.startswith("I see a cat.")
    said = Voice.load().speak(text)
    assert abs(Audio.load(io.BytesIO(answer.content)).seconds - said.seconds) < 0.01


def test_bad_pictures(client):
    def classify(**sent):
        return client.post("/v1/vision/classify", **sent)

    bomb = io.BytesIO()
    Image.new("1", (12_000, 10_000)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    assert "more than 1 million pixels" in refused(classify(files={"image": bomb.getvalue()}))
    assert "cannot be read" in refused(classify(files={"image": CAT.read_bytes()[:200]}))
    assert "is not a picture" in refused(classify(files={"image": b"hello"}))
    assert "no base64" in refused(classify(json={"image": "?!"}))
    assert "no file called image" in refused(classify(files={"photo": CAT.read_bytes()}))
    assert "top" in refused(classify(files={"image": CAT.read_bytes()}, data={"top": "none"}))
    assert "multipart/form-data" in refused(classify(content=CAT.read_bytes(), headers={"content-type": "image/png"}))


def test_health_and_metrics(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    say(client)
    told = client.get("/metrics").text
    for name in ("requests_total", "request_seconds_bucket", "queue_length", "real_time_factor_sum"):
        name = f"vitalk_{name}"
        assert name in told
    assert 'vitalk_audio_seconds_total{voice="vitalk"}' in told
    client.get("/made/up")
    assert "/made/up" not in client.get("/metrics").text


def test_the_api_page_describes_every_answer(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/audio/speech", "/v1/vision/classify", "/v1/describe", "/v1/models", "/readyz"} <= set(paths)
    assert "422" not in json.dumps(paths)
    docs = client.get("/docs").text
    assert "https://" not in docs and "swagger-ui-bundle.js" in docs


def test_a_token_is_asked_for():
    from fastapi.testclient import TestClient

    from vitalk.deploy.server import create_app

    client = TestClient(create_app(Settings(page=False, token="secret")))  # not entered: no worker is started
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        for path in ("/v1/models", "/metrics"):
            assert "Bearer TOKEN" in refused(client.get(path, headers=headers), 401)
    assert client.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
    assert client.get("/healthz").status_code == 200
    refused(client.get("/readyz"), 503)


def test_other_origins_are_let_in_only_where_told():
    from fastapi.testclient import TestClient

    from vitalk.deploy.server import create_app

    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    closed, opened = (TestClient(create_app(Settings(page=False, origins=o))) for o in ((), ("https://example.org",)))
    assert "access-control-allow-origin" not in closed.options("/v1/models", headers=asked).headers
    assert opened.options("/v1/models", headers=asked).headers["access-control-allow-origin"] == "https://example.org"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"workers": 0}, "workers"),
        ({"seconds": 0.0}, "seconds"),
        ({"token": " "}, "token"),
        ({"threads": 0}, "threads"),
    ],
)
def test_settings_that_mean_nothing(given, told):
    with pytest.raises(UserError, match=told):
        Settings(**given)
