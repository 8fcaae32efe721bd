"""SSML to spans, and what is wrong with it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitalk.errors import UserError
from vitalk.speech.text.ssml import PARAGRAPH, SENTENCE, Span, parse_ssml


def only(text):
    (span,) = parse_ssml(text)
    return span


def test_plain_text_needs_no_speak():
    assert (
        parse_ssml("Hello &amp; goodbye")
        == parse_ssml("<speak>Hello &amp; goodbye</speak>")
        == [Span("Hello & goodbye")]
    )
    assert parse_ssml(
        "<?xml version='1.0'?>\n<speak xmlns='http://www.w3.org/2001/10/synthesis' xml:lang='de'>x</speak>"
    ) == [Span("x", lang="de")]


@pytest.mark.parametrize(
    ("attribute", "seconds"),
    [
        ('time="500ms"', 0.5),
        ('time="1s"', 1.0),
        ('time="1.5s"', 1.5),
        ('strength="none"', 0.0),
        ("", 0.4),
        ('strength="strong"', 0.75),
    ],
)
def test_breaks(attribute, seconds):
    first = parse_ssml(f"a <break {attribute}/> b")[0]
    assert first.pause == seconds


def test_breaks_add_up_and_may_come_first():
    assert [s.pause for s in parse_ssml('<break time="1s"/><break time="1s"/>a')] == [2.0, 0.0]


@pytest.mark.parametrize(
    ("attribute", "name", "value"),
    [
        ('rate="slow"', "rate", 0.75),
        ('rate="120%"', "rate", 1.2),
        ('rate="1.2"', "rate", 1.2),
        ('rate="+20%"', "rate", 1.2),
        ('pitch="+12st"', "pitch", 2.0),
        ('pitch="high"', "pitch", 1.15),
        ('pitch="+10%"', "pitch", 1.1),
        ('pitch="-5%"', "pitch", 0.95),
        ('volume="loud"', "volume", 6.0),
        ('volume="+6dB"', "volume", 6.0),
        ('volume="silent"', "volume", float("-inf")),
    ],
)
def test_prosody(attribute, name, value):
    assert getattr(only(f"<prosody {attribute}>x</prosody>"), name) == pytest.approx(value)


def test_nested_prosody_multiplies_and_ends():
    spans = parse_ssml('a<prosody rate="2" volume="+3dB">b<prosody rate="50%" volume="+3dB">c</prosody></prosody>d')
    assert [(s.text, s.rate, s.volume) for s in spans] == [("a", 1, 0), ("b", 2, 3), ("c", 1, 6), ("d", 1, 0)]


def test_phoneme_sub_and_lang():
    spans = parse_ssml(
        'I say <phoneme alphabet="ipa" ph="təmˈeɪtoʊ">tomato</phoneme>, '
        '<sub alias="so">s.</sub> <lang xml:lang="de">ja</lang>'
    )
    assert [(s.text, s.phonemes, s.lang) for s in spans] == [
        ("I say ", None, None),
        ("tomato", "təmˈeɪtoʊ", None),
        (", so ", None, None),
        ("ja", None, "de"),
    ]


def test_paragraphs_and_sentences_pause():
    assert [s.pause for s in parse_ssml("<p>a</p><s>b</s>c")] == [PARAGRAPH, SENTENCE, 0.0]
    assert [s.pause for s in parse_ssml("<p><s>a</s><s>b</s></p>\n<p>c</p>")] == [SENTENCE, PARAGRAPH, PARAGRAPH]


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("characters", "ABC", "A-B-C"),
        ("spell-out", "a1@", "A one at"),
        ("cardinal", "1984", "one thousand nine hundred eighty-four"),
        ("cardinal", "-5", "minus five"),
        ("ordinal", "21", "twenty-first"),
        ("digits", "1984", "one nine eight four"),
        ("telephone", "555-1234", "five five five, one two three four"),
        ("time", "3:05 pm", "three oh five P-M"),
        ("currency", "$3.50", "three dollars and fifty cents"),
        ("date", "3/4/2025", "March fourth, twenty twenty-five"),
        ('date" format="dmy', "3/4/2025", "April third, twenty twenty-five"),
        ('date" format="my', "4/2025", "April twenty twenty-five"),
    ],
)
def test_say_as(kind, text, said):
    assert only(f'<say-as interpret-as="{kind}">{text}</say-as>').text == said


def test_say_as_follows_the_language():
    assert only('<lang xml:lang="de-DE"><say-as interpret-as="ordinal">3</say-as></lang>').text == "dritte"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<speak>a\n <b</speak>", "line 2"),
        ("<speak>a</p></speak>", r"line 1, column \d+, in <speak>: mismatched tag"),
        ("<speak><p>a", "in <p>"),
        ("a & b", r"line 1, column 4.*&amp;"),
        ("<emphasis>a</emphasis>", r"<emphasis>: there is no such tag; there are speak, p, s, break"),
        ("<prosodie>a</prosodie>", "Did you mean prosody"),
        ('<prosody rate="quick">a</prosody>', "column 1, <prosody>: rate cannot be 'quick'"),
        ('<prosody rate="0%">a</prosody>', "rate cannot be"),
        ('<prosody pitch="200Hz">a</prosody>', "pitch cannot be"),
        ('<prosody volume="11">a</prosody>', "volume cannot be"),
        ('<break time="1 hour"/>', "time cannot be '1 hour'"),
        ('<break strength="huge"/>', "strength cannot be"),
        ("<break>a</break>", "holds no text"),
        ("<phoneme>a</phoneme>", "needs the attribute ph"),
        ('<phoneme ph="漢">a</phoneme>', "no IPA"),
        ('<phoneme alphabet="x-sampa" ph="a">a</phoneme>', "alphabet"),
        ("<sub>a</sub>", "needs the attribute alias"),
        ('<sub alias="a"><p>b</p></sub>', "holds text only"),
        ('<say-as interpret-as="poem">a</say-as>', "choose one of characters"),
        ('<say-as interpret-as="cardinal">abc</say-as>', "'abc' has no digit"),
        ("<lang>a</lang>", "needs a language"),
        ("<speak><speak>a</speak></speak>", "around everything"),
        ('<!DOCTYPE speak [<!ENTITY a "b">]><speak>&a;</speak>', "document types and entities are not allowed"),
        ("<speak>&nbsp;</speak>", "undefined entity"),
    ],
)
def test_errors_say_where_and_what(text, message):
    with pytest.raises(UserError, match=message):
        parse_ssml(text)


PARTS = st.sampled_from(
    ["<p>", "</p>", "<s>", "</s>", "<break/>", '<prosody rate="2">', "</prosody>", "a ", "&amp;", "\n", "1"]
)


@given(st.one_of(st.text(max_size=60), st.lists(PARTS, max_size=12).map("".join)))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_spans_or_a_user_error(text):
    try:
        spans = parse_ssml(text)
    except UserError:
        return
    assert all(isinstance(span, Span) and span.pause >= 0 and span.rate > 0 for span in spans)
