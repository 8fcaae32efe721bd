"""Languages other than English: numbers, money, percents, times and dates in words where num2words has the language."""

import re
from functools import lru_cache
from re import Match

from .numerals import cardinal, code, ordinal, year

# Languages that write 1,5 for one and a half and group thousands with points or spaces.
_COMMA = frozenset(
    "az be bg ca cs da de es fi fr hu id is it kz lt lv nl no pl pt ro ru sk sl sr sv tr uk vi".split()  # noqa: SIM905
)
_MONEY = {"€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "₽": "RUB", "zł": "PLN", "Kč": "CZK", "₴": "UAH", "₺": "TRY",
          "R$": "BRL", "CHF": "CHF", "EUR": "EUR", "USD": "USD", "GBP": "GBP"}  # fmt: skip
_PERCENT = {
    "ar": "بالمئة", "az": "faiz", "be": "працэнтаў", "ca": "per cent", "cs": "procent", "da": "procent",
    "de": "Prozent",
    "eo": "procentoj", "es": "por ciento", "fa": "درصد", "fi": "prosenttia", "fr": "pour cent", "he": "אחוז",
    "hu": "százalék", "id": "persen", "is": "prósent", "it": "per cento", "ko": "퍼센트",
    "kz": "пайыз", "lt": "procentų", "lv": "procenti", "nl": "procent", "no": "prosent", "pl": "procent",
    "pt": "por cento", "ro": "la sută", "ru": "процентов", "sk": "percent", "sl": "odstotkov", "sr": "посто",
    "sv": "procent", "th": "เปอร์เซ็นต์", "uk": "відсотків", "vi": "phần trăm", "bn": "শতাংশ", "tr": "",
}  # fmt: skip
_HOUR = {"de": "Uhr", "fr": "heures", "nl": "uur"}
# language -> (how a date is put together, its months)
_DATES = {lang: (how, months.split()) for lang, how, months in (
    ("de", "{d}. {m} {y}", "Januar Februar März April Mai Juni Juli August September Oktober November Dezember"),
    ("fr", "{d} {m} {y}", "janvier février mars avril mai juin juillet août septembre octobre novembre décembre"),
    ("es", "{d} de {m} de {y}",
     "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre"),
    ("pt", "{d} de {m} de {y}",
     "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro"),
    ("it", "{d} {m} {y}",
     "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre"),
    ("nl", "{d} {m} {y}", "januari februari maart april mei juni juli augustus september oktober november december"),
    ("ru", "{d} {m} {y}", "января февраля марта апреля мая июня июля августа сентября октября ноября декабря"),
    ("uk", "{d} {m} {y}", "січня лютого березня квітня травня червня липня серпня вересня жовтня листопада грудня"),
    ("pl", "{d} {m} {y}",
     "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia"),
    ("cs", "{d}. {m} {y}", "ledna února března dubna května června července srpna září října listopadu prosince"),
    ("sv", "{d} {m} {y}", "januari februari mars april maj juni juli augusti september oktober november december"),
    ("da", "{d}. {m} {y}", "januar februar marts april maj juni juli august september oktober november december"),
    ("no", "{d}. {m} {y}", "januar februar mars april mai juni juli august september oktober november desember"),
    ("ro", "{d} {m} {y}",
     "ianuarie februarie martie aprilie mai iunie iulie august septembrie octombrie noiembrie decembrie"),
    ("tr", "{d} {m} {y}", "Ocak Şubat Mart Nisan Mayıs Haziran Temmuz Ağustos Eylül Ekim Kasım Aralık"),
    ("id", "{d} {m} {y}", "Januari Februari Maret April Mei Juni Juli Agustus September Oktober November Desember"),
)}  # fmt: skip

_START = r"(?<![A-Za-z\d])(?<!\d[.,:/])"  # scripts without spaces let numbers stand beside letters
_SIGN = "|".join(sorted(map(re.escape, _MONEY), key=len, reverse=True))
_ISO = re.compile(rf"{_START}(?P<y>\d{{4}})-(?P<m>\d\d)-(?P<d>\d\d)(?!\d|-\d)")
_DATE = re.compile(rf"{_START}(?P<d>\d\d?)([./])(?P<m>\d\d?)\2(?P<y>\d{{4}})(?![\w/]|[.,]\d)")
_TIME = re.compile(rf"{_START}([01]?\d|2[0-4])(?::|h(?=\d\d))([0-5]\d)(?: ?(?:Uhr|uur)(?!\w))?(?![\w:])")


@lru_cache
def _numbers(lang: str) -> tuple[str, str]:
    """(pattern of a number, its decimal sign) as the language writes them."""
    if code(lang)[:2] in _COMMA:
        return r"(?:\d{1,3}(?:[. ']\d{3})++(?!\d)|\d++)(?:,\d++)?+", ","
    return r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+", "."


@lru_cache
def _rules(lang: str) -> list[tuple[re.Pattern[str], str]]:
    number = _numbers(lang)[0]
    return [
        (re.compile(rf"(?<!\w)(?P<sign>{_SIGN}) ?(?P<number>{number})"), "money"),
        (re.compile(rf"{_START}(?P<number>{number}) ?(?P<sign>{_SIGN})(?!\w)"), "money"),
        (re.compile(rf"% ?(?P<number>{number})"), "percent"),
        (re.compile(rf"{_START}(?P<number>{number}) ?%"), "percent"),
        (re.compile(rf"(?<![\w)])-(?P<number>{number})"), "negative"),
        (re.compile(rf"{_START}(?P<number>\d{{1,4}}+)\.(?= [^\W\d])"), "ordinal"),
        (re.compile(rf"(?P<number>{number})"), "cardinal"),
    ]


def _plain(number: str, lang: str) -> str:
    """The number as Python writes it."""
    whole, _, fraction = number.partition(_numbers(lang)[1])
    whole = re.sub(r"\D", "", whole)
    return f"{whole}.{fraction}" if fraction else whole


def _money(number: str, sign: str, lang: str) -> str:
    if len(number) > 15:
        return f"{cardinal(number, lang)} {sign}"
    try:
        said = _currency(float(number), _MONEY[sign], lang)
    except Exception:  # languages without the currency raise in many ways
        return f"{cardinal(number, lang)} {sign}"
    return " ".join(said.split())


def _currency(amount: float, currency: str, lang: str) -> str:
    from num2words import num2words

    if code(lang) == "pt_BR" and currency == "BRL":  # the one currency of that converter, without a name
        return num2words(amount, lang="pt_BR", to="currency")
    known = "pt" if code(lang) == "pt_BR" else code(lang)
    if not amount.is_integer():
        return num2words(amount, lang=known, to="currency", currency=currency)
    # The hundredths, of which there are none, are cut off behind a mark of our own.
    return num2words(amount, lang=known, to="currency", currency=currency, separator="\0").partition("\0")[0]


def _date(match: Match[str], lang: str) -> str:
    day, month, written = int(match["d"]), int(match["m"]), match["y"]
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return match.group()
    how, months = _DATES.get(code(lang)[:2], ("{d} {m} {y}", ()))
    name = months[month - 1] if months else cardinal(str(month), lang)
    first = code(lang)[:2] == "fr" and day == 1
    said = ordinal(str(day), lang) if first or "{d}." in how else cardinal(str(day), lang)
    return how.replace("{d}.", "{d}").format(d=said, m=name, y=year(written, lang))


def _time(match: Match[str], lang: str) -> str:
    hour, minute = cardinal(str(int(match[1])), lang), int(match[2])
    parts = [hour, _HOUR.get(code(lang)[:2], ""), cardinal(str(minute), lang) if minute else ""]
    return " ".join(part for part in parts if part)


def _number(match: Match[str], kind: str, lang: str) -> str:
    number = _plain(match["number"], lang)
    if kind == "money":
        return _money(number, match["sign"], lang)
    if kind == "percent":
        said, word = cardinal(number, lang), _PERCENT.get(code(lang)[:2], "%")
        return f"yüzde {said}" if code(lang) == "tr" else f"{said} {word}"
    if kind == "ordinal":
        # "3. März": the languages that write ordinals with a full stop; elsewhere it ends a sentence.
        if code(lang) not in ("de", "da", "no", "cs", "fi", "hu", "is", "sk", "sl", "sr", "lv", "lt", "tr"):
            return match.group()
        declined = code(lang) == "de" and re.search(
            r"\b(?:am|vom|dem|zum|den|bis|der) $", match.string[max(match.start() - 5, 0) : match.start()].lower()
        )
        return ordinal(number, lang) + ("n" if declined else "")
    around = match.string[match.start() - 1 : match.start()], match.string[match.end() : match.end() + 1]
    said = cardinal(f"-{number}" if kind == "negative" else number, lang)
    spaces = code(lang) not in ("ko", "th")
    return " " * (spaces and around[0].isalpha()) + said + " " * (spaces and around[1].isalpha())


def spoken(text: str, lang: str) -> str:
    """Clean text with its numbers in words; as it is in languages that num2words does not have."""
    if not code(lang):
        return text
    for pattern in (_ISO, _DATE):
        text = pattern.sub(lambda match: _date(match, lang), text)
    text = _TIME.sub(lambda match: _time(match, lang), text)
    for pattern, kind in _rules(lang):
        text = pattern.sub(lambda match, kind=kind: _number(match, kind, lang), text)
    return re.sub(r"[ \t]+", " ", text).strip(" ")
