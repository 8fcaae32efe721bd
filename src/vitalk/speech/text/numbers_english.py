"""English numbers: dates, times, money, measures, fractions, telephone numbers, ranges, years."""

import re
from re import Match

from .numerals import cardinal, digits, ordinal, plural, year
from .tables import MONEY, MONTH, MONTHS, SCALES, UNITS, either

# A number begins where neither a word nor another number goes on, and takes all of its digits: no way back.
_START = r"(?<!\w)(?<!\d[.,:/])"
_NUMBER = r"(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+"
_END = r"(?!\w|[.,]\d)"
_MONTH = either({name.capitalize() for name in MONTH})
_SIGN, _SCALE = either(MONEY), f"{either(SCALES)}|hundred|thousand|million|billion|trillion"
_GLYPH = either({sign for sign in MONEY if not sign.isalpha()})
_UNIT = either(UNITS)


def _say(number: str, lang: str) -> str:
    return cardinal(number.replace(",", ""), lang)


def _date(year_: str | None, month: int, day: int, lang: str) -> str:
    said = ordinal(str(day), lang)
    name = MONTHS[month - 1]
    date = f"{name} {said}" if lang.startswith("en-us") else f"the {said} of {name}"
    return f"{date}, {_year(year_, lang)}" if year_ else date


def _year(number: str, lang: str) -> str:
    return year(f"20{number}" if len(number) == 2 else number, lang)


def _valid(month: int, day: int) -> bool:
    return 1 <= month <= 12 and 1 <= day <= 31


def _iso(match: Match[str], lang: str) -> str:
    month, day = int(match[2]), int(match[3])
    if not _valid(month, day):
        return match.group()
    return _date(match[1], month, day, lang) + (", " if match[4] else "")


def _slashed(match: Match[str], lang: str) -> str:
    first, second, last = int(match[1]), int(match[3]), match[4]
    if match[2] != "/" and len(last) == 2:
        return match.group()
    orders = [(first, second), (second, first)]
    for month, day in orders if lang.startswith("en-us") and match[2] != "." else orders[::-1]:
        if _valid(month, day):
            return _date(last, month, day, lang)
    return match.group()


def _month_day(match: Match[str], lang: str) -> str:
    name, first, last = MONTH[match["month"].lower()], match["day"], match["last"]
    if not 1 <= int(first) <= 31:
        return match.group()
    said = f"{name} {ordinal(first, lang)}" + (f" to {ordinal(last, lang)}" if last else "")
    return f"{said}, " if match["year"] else said


def _day_month(match: Match[str], lang: str) -> str:
    if not 1 <= int(match["day"]) <= 31:
        return match.group()
    before = match.string[max(match.start() - 4, 0) : match.start()].lower()
    article = "" if before.endswith("the ") else "the "
    return f"{article}{ordinal(match['day'], lang)} of {MONTH[match['month'].lower()]}"


def _time(match: Match[str], lang: str) -> str:
    hour, minute, second = int(match["hour"]), int(match["minute"]), match["second"]
    half = f" {match['half'].upper()}-M" if match["half"] else ""
    if hour > 24 or minute > 59 or (second and int(second) > 59):
        return " to ".join(cardinal(str(int(n)), lang) for n in (hour, minute, second) if n is not None)
    said = cardinal(str(hour), lang)
    if minute or second:
        low = "oh " if 0 < minute < 10 else ""
        said += f" {low}{cardinal(str(minute), lang)}" if minute else " hundred"
    elif not half:
        said = "midnight" if hour in (0, 24) else f"{said} o'clock" if hour <= 12 else f"{said} hundred"
    if second and int(second):
        said += f" and {cardinal(str(int(second)), lang)} second{'s' * (int(second) != 1)}"
    return said + half


def _money(sign: str, number: str, scale: str | None, lang: str) -> str:
    one, many, hundredth, hundredths = MONEY[sign]
    number = number.replace(",", "")
    whole, _, fraction = number.partition(".")
    if scale:
        return f"{cardinal(number, lang)} {SCALES.get(scale, scale)} {many}"
    if not fraction or not hundredth or len(fraction) > 2:
        return f"{cardinal(number, lang)} {one if number == '1' else many}"
    cents = int(fraction.ljust(2, "0"))
    parts = [f"{cardinal(whole, lang)} {one if whole == '1' else many}"] if int(whole[:20]) or not cents else []
    if cents:
        parts.append(f"{cardinal(str(cents), lang)} {hundredth if cents == 1 else hundredths}")
    return " and ".join(parts)


def _money_before(match: Match[str], lang: str) -> str:
    minus = "minus " if match["minus"] else ""
    if match["last"]:
        return f"{minus}{_say(match['number'], lang)} to {_money(match['sign'], match['last'], match['scale'], lang)}"
    return minus + _money(match["sign"], match["number"], match["scale"], lang)


def _money_after(match: Match[str], lang: str) -> str:
    return _money(match["sign"], match["number"], match["scale"], lang)


def _measure(match: Match[str], lang: str) -> str:
    first, number, gap, sign = match["first"], match["number"], match["gap"], match["unit"]
    one, many = UNITS[sign]
    said = ("minus " if match["minus"] else "") + (f"{_say(first, lang)} to " if first else "") + _say(number, lang)
    return f"{said} {one if gap == '-' or (number == '1' and not first) else many}"


def _fraction(match: Match[str], lang: str) -> str:
    said = _parts(match, lang)
    return f"{said} {UNITS[match['unit']][bool(match['whole'])]}" if match["unit"] else said


def _parts(match: Match[str], lang: str) -> str:
    whole, top, bottom = match["whole"], int(match["top"]), int(match["bottom"])
    if not whole and (top, bottom) in ((24, 7), (9, 11), (50, 50)):
        return f"{cardinal(str(top), lang)} {cardinal(str(bottom), lang)}"
    if not 2 <= bottom <= 100 or (whole and top >= bottom):
        joined = f"{cardinal(str(top), lang)} over {cardinal(str(bottom), lang)}"
        return f"{cardinal(whole, lang)} {joined}" if whole else joined
    part = {2: "half", 4: "quarter"}.get(bottom) or ordinal(str(bottom), lang)
    many = "halves" if bottom == 2 else plural(part)
    if whole:
        return f"{cardinal(whole, lang)} and {'a ' + part if top == 1 else cardinal(str(top), lang) + ' ' + many}"
    return f"one {part}" if top == 1 else f"{cardinal(str(top), lang)} {many}"


def _decade(match: Match[str], lang: str) -> str:
    if len(match["decade"]) == 2 and not (match["quote"] or match["before"]):
        return match.group()
    return (match["before"] or "") + plural(year(match["decade"], lang))


def _telephone(match: Match[str], lang: str) -> str:
    plus = "plus " if match.group().startswith("+") else ""
    return plus + ", ".join(digits(group) for group in re.findall(r"\d+", match.group()))


def _dotted(match: Match[str], lang: str) -> str:
    parts = match.group().split(".")
    return (" dot " if len(parts) == 4 else " point ").join(cardinal(part, lang) for part in parts)


def _range(match: Match[str], lang: str) -> str:
    first, last = match["first"], match["last"]
    if _is_year(first) and (_is_year(last) or len(last) == 2):
        return f"{year(first, lang)} to {year(last, lang) if len(last) > 2 else cardinal(last, lang)}"
    return f"{_say(first, lang)} to {_say(last, lang)}"


def _is_year(number: str) -> bool:
    return bool(re.fullmatch(r"1[1-9]\d\d|20\d\d", number))


def _scaled(match: Match[str], lang: str) -> str:
    number, scale = match["number"], match["scale"]
    if scale == "K" and number in ("2", "4", "5", "8"):
        return f"{_say(number, lang)} K"
    return f"{_say(number, lang)} {SCALES[scale]}"


def _last(match: Match[str], lang: str) -> str:
    return _say(match.group() if match.group()[0] != "." else f"0{match.group()}", lang)


RULES = [
    (re.compile(r"(?<=:\d\d) ?[-—] ?(?=\d\d?:\d\d)"), lambda m, lang: " to "),
    (re.compile(r"(?<!\w)[vV]\.? ?(?=\d{1,3}\.\d)"), lambda m, lang: "version "),
    (re.compile(rf"{_START}(\d{{4}})-(\d\d)-(\d\d)(?!\d|-\d)(?:(T|,? )(?=\d\d:\d\d))?"), _iso),
    (re.compile(rf"{_START}(\d{{4}})/(\d\d?)/(\d\d?)()(?![\w/])"), _iso),
    (re.compile(rf"{_START}(\d\d?)([/.-])(\d\d?)\2(\d{{4}}|\d\d)(?![\w/]|[.,-]\d)"), _slashed),
    (re.compile(rf"(?<!\w)(?P<month>{_MONTH}) (?P<day>\d\d?)(?:st|nd|rd|th)?"
                r"(?: ?[-—] ?(?P<last>\d\d?)(?:st|nd|rd|th)?)?"
                r"(?![\w:/]|[.,]\d|-\d)(?P<year>, ?(?=\d{4}(?!\d)))?"), _month_day),
    (re.compile(rf"{_START}(?P<day>\d\d?)(?:st|nd|rd|th)? (?:of )?(?P<month>{_MONTH})(?!\w)"), _day_month),
    (re.compile(rf"{_START}(?P<hour>\d\d?):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:\.\d++)?+)?Z?"
                r"(?: ?(?P<half>[AaPp])-?[Mm](?!\w))?(?![\w:]|\.\d)"), _time),
    (re.compile(rf"{_START}(?P<hour>\d\d?) ?(?P<half>[AaPp])-?[Mm](?!\w)(?P<minute>)(?P<second>)"),
     lambda m, lang: f"{cardinal(str(int(m['hour'])), lang)} {m['half'].upper()}-M"),
    (re.compile(rf"{_START}(\d++):(\d++)(?![\w:])"), lambda m, lang: f"{_say(m[1], lang)} to {_say(m[2], lang)}"),
    (re.compile(rf"(?<!\w)(?P<minus>-)?(?P<sign>{_SIGN}) ?(?P<number>{_NUMBER})"
                rf"(?:[-—](?:{_GLYPH})?(?P<last>{_NUMBER}))?"
                rf"(?: ?(?P<scale>{_SCALE})(?!\w))?"), _money_before),
    (re.compile(rf"{_START}(?P<number>{_NUMBER})(?: ?(?P<scale>{_SCALE}))? ?(?P<sign>{_SIGN})(?!\w)"), _money_after),
    (re.compile(rf"{_START}({_NUMBER}) ?¢"), lambda m, lang: f"{_say(m[1], lang)} cent{'s' * (m[1] != '1')}"),
    (re.compile(r"(?P<before>(?<!\w)(?:the|his|her|their|my|our|your|mid|early|late|in)[ -])?(?<!\w)(?P<quote>')?"
                r"(?P<decade>(?:1\d|20)?\d0)'?s(?!\w)"), _decade),
    (re.compile(rf"{_START}(\d)' ?(\d\d?)(?:\"|'')"),
     lambda m, lang: f"{_say(m[1], lang)} feet {_say(m[2], lang)} inch{'es' * (m[2] != '1')}"),
    (re.compile(rf"(?:(?<![\w)])(?P<minus>-))?{_START}(?:(?P<first>{_NUMBER}) ?[-—] ?)?"
                rf"(?P<number>{_NUMBER})(?P<gap>[ -]?)"
                rf"(?P<unit>{_UNIT})(?![\w²³°/])"), _measure),
    (re.compile(r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,6}+(?!\w)"), _telephone),
    (re.compile(r"(?<![\w.,-])(?:(?:1[ -])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}|\d{3}-\d{4}|\(0\d{1,4}\) ?\d{3,8}"
                r"|0\d{1,4}[ -]\d{3,4}[ -]\d{3,4})(?![\w-])"), _telephone),
    (re.compile(rf"{_START}(?:(?P<whole>\d{{1,6}}) )?(?P<top>\d{{1,3}})/(?P<bottom>\d{{1,3}})"
                rf"(?: ?(?P<unit>{_UNIT}))?(?![\w/]|[.,]\d)"), _fraction),
    (re.compile(rf"{_START}(\d{{1,3}}(?:,\d{{3}})++|\d++)(?:st|nd|rd|th|ST|ND|RD|TH)(?!\w)"),
     lambda m, lang: ordinal(m[1].replace(",", ""), lang)),
    (re.compile(r"(?<![\d.])\d++(?:\.\d++){2,}+"), _dotted),
    (re.compile(r"(?<=\d) - (?=\d)"), lambda m, lang: " minus "),
    (re.compile(rf"{_START}(?<![-—])(?P<first>{_NUMBER})[-—](?P<last>{_NUMBER})(?![\w]|[-/:.,]\d)"), _range),
    (re.compile(r"(?<=\d) ?x ?(?=\d)"), lambda m, lang: " by "),
    (re.compile(r"(?<=\d) ?\* ?(?=\d)"), lambda m, lang: " times "),
    (re.compile(r"(?<![\w)])~ ?(?=\d)"), lambda m, lang: "about "),
    (re.compile(rf"{_START}(?P<number>{_NUMBER})(?P<scale>k|K|M|B|bn)(?!\w)"), _scaled),
    (re.compile(r"(?<![\w)])-(?=\.?\d)"), lambda m, lang: "minus "),
    (re.compile(r"(?<=[A-Za-z])-(?=\d)|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])"), lambda m, lang: " "),
    (re.compile(rf"{_START}(?:1[1-9]\d\d|20\d\d){_END}"), lambda m, lang: year(m.group(), lang)),
    (re.compile(rf"(?<![\d.])\.\d++|{_NUMBER}"), _last),
]  # fmt: skip
