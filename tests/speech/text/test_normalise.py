"""Text as people read it."""

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitalk.speech.text.cleaning import clean
from vitalk.speech.text.normalise import normalise

ENGLISH = [
    # numbers
    ("I have 3 apples", "I have three apples"),
    ("101 dalmatians", "one hundred one dalmatians"),
    ("1,234,567 grapes", "one million two hundred thirty-four thousand five hundred sixty-seven grapes"),
    ("10,000 people", "ten thousand people"),
    ("3.14", "three point one four"),
    ("0.05 and .5", "zero point zero five and zero point five"),
    ("It was -5 outside", "It was minus five outside"),
    ("(-3.5)", "(minus three point five)"),
    ("the 1st, 2nd, 3rd and 21st", "the first, second, third and twenty-first"),
    ("the 112th", "the one hundred twelfth"),
    ("agent 007", "agent zero zero seven"),
    ("1/2 cup", "one half cup"),
    ("3/4", "three quarters"),
    ("2 1/2 and 2½", "two and a half and two and a half"),
    ("½kg", "one half kilogram"),
    ("5/0", "five over zero"),
    ("open 24/7", "open twenty-four seven"),
    ("pages 5-10", "pages five to ten"),
    ("pages 3–7", "pages three to seven"),
    ("1990-1995", "nineteen ninety to nineteen ninety-five"),
    ("1990-95", "nineteen ninety to ninety-five"),
    ("the 5-year plan", "the five-year plan"),
    ("in 1984", "in nineteen eighty-four"),
    ("in 1905", "in nineteen oh-five"),
    ("in 2005", "in two thousand five"),
    ("the 1990s", "the nineteen nineties"),
    ("the '90s", "the nineties"),
    ("the 2010s", "the twenty tens"),
    ("3500", "three thousand five hundred"),
    ("Henry VIII", "Henry the Eighth"),
    ("Louis XIV", "Louis the Fourteenth"),
    ("World War II", "World War two"),
    ("Chapter IV", "Chapter four"),
    ("I saw Henry I think", "I saw Henry I think"),
    ("Elizabeth I was queen", "Elizabeth the First was queen"),
    ("12345678901234567890", " ".join(["one two three four five six seven eight nine zero"] * 2)),
    ("１２３ and ٣٤", "one hundred twenty-three and thirty-four"),
    # dates
    ("on 2025-03-14", "on March fourteenth, twenty twenty-five"),
    ("3/14/2025", "March fourteenth, twenty twenty-five"),
    ("14/3/2025", "March fourteenth, twenty twenty-five"),
    ("March 3rd, 2021", "March third, twenty twenty-one"),
    ("Sept. 11, 2001", "September eleventh, two thousand one"),
    ("the 3rd of March", "the third of March"),
    ("3 March 2021", "the third of March twenty twenty-one"),
    ("may 5 people", "may five people"),
    ("2025-03-14T15:30:00Z", "March fourteenth, twenty twenty-five, fifteen thirty"),
    # times
    ("at 3:05 pm", "at three oh five P-M"),
    ("at 15:30", "at fifteen thirty"),
    ("at 5 a.m. sharp", "at five A-M sharp"),
    ("3pm", "three P-M"),
    ("12:00", "twelve o'clock"),
    ("15:00", "fifteen hundred"),
    ("00:00", "midnight"),
    ("10:30-11:30", "ten thirty to eleven thirty"),
    ("3:05:20", "three oh five and twenty seconds"),
    ("16:9", "sixteen to nine"),
    # money
    ("$3.50", "three dollars and fifty cents"),
    ("$1", "one dollar"),
    ("$0.99", "ninety-nine cents"),
    ("£1.01", "one pound and one penny"),
    ("€1,200", "one thousand two hundred euros"),
    ("£5m", "five million pounds"),
    ("$1.5 billion", "one point five billion dollars"),
    ("5€", "five euros"),
    ("20 USD", "twenty dollars"),
    ("-$5", "minus five dollars"),
    ("$5-10", "five to ten dollars"),
    ("¥500", "five hundred yen"),
    ("50¢", "fifty cents"),
    # measures
    ("50%", "fifty percent"),
    ("5-10%", "five to ten percent"),
    ("25°C", "twenty-five degrees Celsius"),
    ("-5 °F", "minus five degrees Fahrenheit"),
    ("1°C", "one degree Celsius"),
    ("100 km/h", "one hundred kilometers per hour"),
    ("5 kg and 1 kg", "five kilograms and one kilogram"),
    ("16MB", "sixteen megabytes"),
    ("20 m²", "twenty square meters"),
    ("2.4GHz", "two point four gigahertz"),
    ("a 5-km run", "a five kilometer run"),
    ("5'11\"", "five feet eleven inches"),
    ("30s", "thirty seconds"),
    # telephone numbers and other strings of digits
    ("555-1234", "five five five, one two three four"),
    ("(555) 123-4567", "five five five, one two three, four five six seven"),
    ("+1 555 123 4567", "plus one, five five five, one two three, four five six seven"),
    ("192.168.0.1", "one hundred ninety-two dot one hundred sixty-eight dot zero dot one"),
    ("v2.0.1", "version two point zero point one"),
    # abbreviations and letters
    ("Dr. Smith and Mr. Jones", "Doctor Smith and Mister Jones"),
    ("Main St. is near St. Louis", "Main Street is near Saint Louis"),
    ("Maple Dr. is long", "Maple Drive is long"),
    ("fruit, e.g. apples vs. pears, etc.", "fruit, for example apples versus pears, et cetera."),
    ("No. 5 and no. No. I said", "number five and no. No. I said"),
    ("Fig. 3", "figure three"),
    ("Gen. Lee", "General Lee"),
    ("the U.S. Army", "the U-S Army"),
    ("J. K. Rowling", "J K Rowling"),
    ("the FBI and the USA", "the F-B-I and the U-S-A"),
    ("NASA", "NASA"),
    ("HTML", "H-T-M-L"),
    ("two CPUs", "two C-P-U's"),
    ("HELLO WORLD", "HELLO WORLD"),
    ("do NOT go", "do NOT go"),
    ("MP3 and H2O", "M-P three and H two O"),
    ("COVID-19", "COVID nineteen"),
    ("AT&T", "A-T and T"),
    # links and signs
    ("john.doe@example.com", "john dot doe at example dot com"),
    ("See https://www.example.com/foo?x=1.", "See W-W-W dot example dot com slash foo question mark X equals one."),
    ("go to example.org", "go to example dot org"),
    ("#MachineLearning", "hashtag Machine Learning"),
    ("we are #1", "we are number one"),
    ("@john_doe", "at john doe"),
    ("2+2=4", "two plus two equals four"),
    ("3×4", "three times four"),
    ("1920x1080", "nineteen twenty by one thousand eighty"),
    ("5 - 3", "five minus three"),
    ("salt & pepper", "salt and pepper"),
    ("C++ and C#", "C plus plus and C sharp"),
    ("10⁵ and x²", "ten to the power of five and x squared"),
    ("and/or", "and or"),
    ("~5", "about five"),
    # Unicode
    ("“quotes” and don’t", '"quotes" and don\'t'),
    ("wait... what -- no", "wait… what — no"),
    ("hi 😀👍🏽 there\u200b!\x07", "hi there!"),
    ("ﬁne naïve", "fine naïve"),
]
OTHERS = [
    ("en-gb", "on 3/4/2025", "on the third of April, twenty twenty-five"),
    ("en-gb", "101 in 2005", "one hundred and one in two thousand and five"),
    ("de", "Am 3. März um 15:30 Uhr", "Am dritten März um fünfzehn Uhr dreißig"),
    ("de", "3,50 €", "drei Euro und fünfzig Cent"),
    ("de", "1.234,5", "eintausendzweihundertvierunddreißig Komma fünf"),
    ("de", "-5 Grad, 50 %", "minus fünf Grad, fünfzig Prozent"),
    ("de", "14.3.2025", "vierzehnte März zweitausendfünfundzwanzig"),
    ("fr-fr", "Le 01/03/2021 à 15h30", "Le premier mars deux mille vingt et un à quinze heures trente"),
    ("fr-fr", "1 234 567", "un million deux cent trente-quatre mille cinq cent soixante-sept"),
    ("fr-fr", "1€", "un euro"),
    ("es", "14/3/2025", "catorce de marzo de dos mil veinticinco"),
    ("ru", "100 ₽ и 50%", "сто рублей и пятьдесят процентов"),
    ("pt-br", "R$ 5,50", "cinco reais e cinquenta centavos"),
    ("tr", "%50", "yüzde elli"),
    ("it", "21 anni", "ventuno anni"),
    ("it", "12,5%", "dodici virgola cinque per cento"),
    ("pl", "-7", "minus siedem"),
    ("vi", "-7 12,5", "âm bảy mười hai phẩy năm"),
    ("cmn", "1984年 3.5", "1984年 3.5"),
]


@pytest.mark.parametrize(("written", "read"), ENGLISH, ids=[written for written, _ in ENGLISH])
def test_english(written, read):
    assert normalise(written) == read


@pytest.mark.parametrize(("lang", "written", "read"), OTHERS)
def test_other_languages(lang, written, read):
    assert normalise(written, lang) == read


@pytest.mark.parametrize(("written", "read"), ENGLISH, ids=[written for written, _ in ENGLISH])
def test_what_is_read_stays(written, read):
    assert normalise(read) == read


SIGNS = st.text(st.sampled_from("0123456789.,:/-+%$€£°#@&' \nkmhsxMBVIXabcSTdrN()²½年é"), max_size=60)


@given(st.one_of(st.text(max_size=80), SIGNS))
@settings(max_examples=400, deadline=None)
def test_no_digit_remains_in_english(text):
    assert not re.search(r"\d", normalise(text))


@given(
    st.one_of(st.text(max_size=60), SIGNS),
    st.sampled_from(["de", "fr-fr", "ru", "ar", "hi", "cmn", "pt-br", "vi", "ko"]),
)
@settings(max_examples=200, deadline=None)
def test_other_languages_take_any_text(text, lang):
    assert isinstance(normalise(text, lang), str)


@example("¹²")
@example("①²³")
@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_cleaning_leaves_nothing_invisible_and_is_done_once(text):
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u200b\ud800-\udfff\ue000]", cleaned)


HARD = [
    "a",
    "1",
    ".",
    "-",
    "1,",
    "1.",
    "1/",
    "1:",
    "1-",
    "$",
    "a.",
    "A.",
    "a@",
    "#",
    "http://",
    "A",
    "I",
    "(",
    " ",
    "\n",
    "+1",
    "1 ",
    "a-",
    "a1",
    "e.g. ",
    "Henry I ",
    "²",
    "年",
    "1,111",
    "12:30 ",
    "x.com/",
    "$1 ",
    "_",
    "'",
    "…",
]


@pytest.mark.parametrize("part", HARD)
def test_repetition_takes_linear_time(part):
    def seconds(size):
        start = time.process_time()
        normalise(part * (size // len(part)))
        return time.process_time() - start

    # 8 times the text: a quadratic rule would take 64 times as long.
    short = min(seconds(4_000) for _ in range(2))
    assert seconds(32_000) < 24 * short + 0.2


def test_dense_text_takes_seconds():
    text = "On March 3rd, 2021 at 3:05 pm Dr. Smith paid $3.50 for 5 kg (50%) at www.example.com, etc. " * 2_000
    start = time.process_time()
    normalise(text)
    assert time.process_time() - start < 6
