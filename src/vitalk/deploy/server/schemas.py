"""What requests and answers look like; the speech part is the OpenAI audio API's."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vitalk.speech.voice import RANGES

from .sounds import Kind

STAND_INS = (  # the names that programs written for OpenAI's server send; the default voice answers to them
    "alloy", "ash", "ballad", "coral", "echo", "fable", "marin", "cedar", "nova", "onyx", "sage", "shimmer", "verse",
)  # fmt: skip
MODELS = ("vitalk", "tts-1", "tts-1-hd", "gpt-4o-mini-tts")
Speed = Annotated[float, Field(ge=RANGES["speed"][0], le=RANGES["speed"][1], allow_inf_nan=False)]


class Strict(BaseModel):
    """Fields that are not known are refused, so that nothing a client asks for is left out in silence."""

    model_config = ConfigDict(extra="forbid")


class VoiceId(Strict):
    """A voice named by an object."""

    id: str


class Manner(Strict):
    """How sound is made and sent: what speech and descriptions have in common."""

    voice: str | VoiceId = Field("", description="One of /v1/audio/voices; OpenAI's names mean the default voice.")
    response_format: Kind = "mp3"
    speed: Speed = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    pitch: Annotated[float, Field(ge=RANGES["pitch"][0], le=RANGES["pitch"][1], allow_inf_nan=False)] = 1.0
    energy: Annotated[float, Field(ge=RANGES["energy"][0], le=RANGES["energy"][1], allow_inf_nan=False)] = 1.0


class SpeechRequest(Manner):
    """OpenAI's ``audio.speech.create``; pitch, energy and lang are ours (``extra_body`` of its client)."""

    model: str = Field(description="One of /v1/models.")
    input: str = Field(min_length=1, description="What to say.")
    voice: str | VoiceId = Field(description="One of /v1/audio/voices; OpenAI's names mean the default voice.")
    instructions: str = Field("", description="Only empty: no voice here follows instructions.")
    lang: str | None = Field(None, max_length=40, description="espeak language of the text, e.g. en-us.")

    @field_validator("instructions")
    @classmethod
    def _none_is_followed(cls, value: str) -> str:
        if value.strip():
            raise ValueError("no voice here follows instructions; leave them out")
        return value


class ClassifyRequest(Strict):
    """A picture to be named."""

    image: str = Field(min_length=1, description="The bytes of a picture file in base64, or a data URL.")
    top: int = Field(5, ge=1, le=1000, description="Labels to return.")


class DescribeRequest(Manner):
    """A picture to be described aloud."""

    image: str = Field(min_length=1, description="The bytes of a picture file in base64, or a data URL.")


class Label(BaseModel):
    """What may be in a picture."""

    label: str
    probability: float


class Classified(BaseModel):
    """The likeliest labels of a picture, likeliest first."""

    model: str
    labels: list[Label]


class Model(BaseModel):
    """A model as OpenAI's API lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "vitalk"


class Models(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


class VoiceCard(BaseModel):
    """A voice, or one speaker of it."""

    id: str
    name: str
    lang: str
    rate: int = Field(description="Of the sound it makes, Hz.")
    follows: list[str] = Field(description="The factors that it can be told.")
    default: bool = False


class Voices(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[VoiceCard]


class Fault(BaseModel):
    """What went wrong, as OpenAI's API tells it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Faulty(BaseModel):
    """An answer that is an error."""

    error: Fault


def fault(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The body of an error."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return Faulty(error=Fault(message=message, type=kind, param=param)).model_dump()
