"""Words for the signs of English text: units, money, abbreviations, letters that are read one by one."""

import re


def _table(rows: str) -> dict[str, str]:
    return dict(row.strip().split(" ", 1) for row in rows.strip().split("\n"))


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# sign -> (singular, plural); several signs of one unit stand side by side.
UNITS: dict[str, tuple[str, str]] = {}
for _row in """
km/h kph|kilometer per hour|kilometers per hour
m/s|meter per second|meters per second
mph|mile per hour|miles per hour
mpg|mile per gallon|miles per gallon
m/s² m/s2|meter per second squared|meters per second squared
km² km2|square kilometer|square kilometers
m² m2|square meter|square meters
cm² cm2|square centimeter|square centimeters
mm² mm2|square millimeter|square millimeters
km³|cubic kilometer|cubic kilometers
m³ m3|cubic meter|cubic meters
cm³ cm3|cubic centimeter|cubic centimeters
ft²|square foot|square feet
km|kilometer|kilometers
cm|centimeter|centimeters
mm|millimeter|millimeters
µm|micrometer|micrometers
nm|nanometer|nanometers
m|meter|meters
mi|mile|miles
ft|foot|feet
yd|yard|yards
kg|kilogram|kilograms
g|gram|grams
mg|milligram|milligrams
µg mcg|microgram|micrograms
lb lbs|pound|pounds
oz|ounce|ounces
l L|liter|liters
ml mL|milliliter|milliliters
cl|centiliter|centiliters
dl|deciliter|deciliters
gal|gallon|gallons
kB KB|kilobyte|kilobytes
MB|megabyte|megabytes
GB|gigabyte|gigabytes
TB|terabyte|terabytes
PB|petabyte|petabytes
KiB|kibibyte|kibibytes
MiB|mebibyte|mebibytes
GiB|gibibyte|gibibytes
kbps kb/s|kilobit per second|kilobits per second
Mbps Mb/s Mbit/s|megabit per second|megabits per second
Gbps Gb/s Gbit/s|gigabit per second|gigabits per second
kB/s KB/s|kilobyte per second|kilobytes per second
MB/s|megabyte per second|megabytes per second
GB/s|gigabyte per second|gigabytes per second
Hz|hertz|hertz
kHz KHz|kilohertz|kilohertz
MHz|megahertz|megahertz
GHz|gigahertz|gigahertz
W|watt|watts
kW|kilowatt|kilowatts
MW|megawatt|megawatts
GW|gigawatt|gigawatts
Wh|watt hour|watt hours
kWh|kilowatt hour|kilowatt hours
MWh|megawatt hour|megawatt hours
V|volt|volts
kV|kilovolt|kilovolts
mV|millivolt|millivolts
mA|milliampere|milliamperes
mAh|milliampere hour|milliampere hours
Ω|ohm|ohms
kΩ|kiloohm|kiloohms
dB|decibel|decibels
dBA|decibel A|decibels A
Pa|pascal|pascals
hPa|hectopascal|hectopascals
kPa|kilopascal|kilopascals
MPa|megapascal|megapascals
psi|pound per square inch|pounds per square inch
N|newton|newtons
kN|kilonewton|kilonewtons
Nm|newton meter|newton meters
J|joule|joules
kJ|kilojoule|kilojoules
cal|calorie|calories
kcal|kilocalorie|kilocalories
hp|horsepower|horsepower
s sec secs|second|seconds
ms|millisecond|milliseconds
µs|microsecond|microseconds
ns|nanosecond|nanoseconds
min mins|minute|minutes
h hr hrs|hour|hours
px|pixel|pixels
MP|megapixel|megapixels
fps|frame per second|frames per second
rpm|revolution per minute|revolutions per minute
bpm|beat per minute|beats per minute
dpi|dot per inch|dots per inch
ppm|part per million|parts per million
ha|hectare|hectares
mol|mole|moles
lm|lumen|lumens
kn|knot|knots
°C ºC|degree Celsius|degrees Celsius
°F ºF|degree Fahrenheit|degrees Fahrenheit
°K|degree Kelvin|degrees Kelvin
°|degree|degrees
%|percent|percent
‰|per mille|per mille
""".strip().split("\n"):
    _signs, _one, _many = _row.split("|")
    UNITS.update(dict.fromkeys(_signs.split(), (_one, _many)))

# sign or code -> (one, many, hundredth, hundredths); None where there are no hundredths in use.
_CURRENCIES = """
$ US$ USD|dollar|dollars|cent|cents
A$ AUD AU$|Australian dollar|Australian dollars|cent|cents
C$ CA$ CAD|Canadian dollar|Canadian dollars|cent|cents
NZ$ NZD|New Zealand dollar|New Zealand dollars|cent|cents
HK$ HKD|Hong Kong dollar|Hong Kong dollars|cent|cents
€ EUR|euro|euros|cent|cents
£ GBP|pound|pounds|penny|pence
¥ JPY|yen|yen||
CNY RMB|yuan|yuan|fen|fen
₹ INR|rupee|rupees|paisa|paise
₩ KRW|won|won||
₽ RUB|ruble|rubles|kopeck|kopecks
₺ TRY|lira|lira|kurush|kurush
₴ UAH|hryvnia|hryvnias|kopiyka|kopiykas
₪ ILS|shekel|shekels|agora|agorot
₦ NGN|naira|naira|kobo|kobo
₫ VND|dong|dong||
₱ PHP|peso|pesos|centavo|centavos
₿ BTC|bitcoin|bitcoins||
CHF|Swiss franc|Swiss francs|centime|centimes
R$ BRL|real|reais|centavo|centavos
MXN|Mexican peso|Mexican pesos|centavo|centavos
SEK|Swedish krona|Swedish kronor|öre|öre
NOK|Norwegian krone|Norwegian kroner|øre|øre
DKK|Danish krone|Danish kroner|øre|øre
PLN|zloty|zlotys|grosz|groszy
CZK|Czech koruna|Czech korunas||
"""
MONEY = {
    sign: tuple(names) for signs, *names in (row.split("|") for row in _CURRENCIES.strip().split("\n"))
    for sign in signs.split()
}  # fmt: skip
SCALES = {"k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "mm": "million",
          "b": "billion", "B": "billion", "bn": "billion", "t": "trillion", "T": "trillion",
          "tn": "trillion"}  # fmt: skip

MONTHS = """January February March April May June July August September October November December""".split()  # noqa: SIM905
MONTH = {name[:3].lower(): name for name in MONTHS} | {"sept": "September"} | {name.lower(): name for name in MONTHS}

ABBREVIATIONS = _table("""
Mr Mister
Mrs Missus
Ms Miz
Messrs Messers
Dr Doctor
Prof Professor
Rev Reverend
Hon Honorable
Gen General
Col Colonel
Maj Major
Capt Captain
Cpt Captain
Lt Lieutenant
Sgt Sergeant
Cpl Corporal
Gov Governor
Sen Senator
Rep Representative
Pres President
Jr Junior
Sr Senior
Esq Esquire
Ft Fort
Mt Mount
Mts Mountains
Ave Avenue
Blvd Boulevard
Rd Road
Hwy Highway
Ln Lane
Sq Square
Apt Apartment
Dept Department
Univ University
Inc Incorporated
Ltd Limited
Corp Corporation
Co Company
Bros Brothers
Assn Association
etc et cetera
vs versus
approx approximately
No number
Nos numbers
est established
ext extension
tel telephone
fig figure
figs figures
eq equation
vol volume
vols volumes
ch chapter
sec section
pp pages
ed edition
eds editors
misc miscellaneous
min minimum
max maximum
avg average
govt government
incl including
excl excluding
resp respectively
cf compare
Mon Monday
Tue Tuesday
Tues Tuesday
Wed Wednesday
Thu Thursday
Thur Thursday
Thurs Thursday
Fri Friday
Jan January
Feb February
Mar March
Apr April
Jun June
Jul July
Aug August
Sept September
Sep September
Oct October
Nov November
Dec December
""")
# These need no full stop to be abbreviations.
BARE = _set("Mr Mrs Ms Dr Prof Rev Capt Lt Sgt Jr Sr Blvd Ltd etc vs approx")
# These are also words (or units), and end sentences: abbreviations only before a number or a name.
BEFORE_NUMBER = _set("""
fig figs eq vol vols ch sec pp ext est min max No Nos
""")
BEFORE_NAME = _set("Gen Col Maj Gov Sen Rep Pres Ft Mt Hon")
WITH_STOPS = {
    "e.g.": "for example", "i.e.": "that is", "a.k.a.": "also known as", "et al.": "and others", "Ph.D.": "P-H-D",
    "a.m.": "A-M", "p.m.": "P-M", "A.M.": "A-M", "P.M.": "P-M", "A.D.": "A-D", "B.C.": "B-C", "p.a.": "per annum",
    "w.r.t.": "with respect to", "viz.": "namely",
}  # fmt: skip

# In capitals and with vowels, but words to say.
SAID = _set("""
NASA NATO UNESCO UNICEF AIDS OPEC LASER RADAR SONAR SCUBA RAM ROM PIN SIM GIF JPEG LAN WAN ASCII COVID FIFA UEFA
SWAT DRAM CAPTCHA CRUD GUI NAFTA NORAD OSHA PETA SARS SAT TASER YOLO FOMO SQUID LED ZIP BIOS ASEAN MENSA INTERPOL
IKEA LEGO VAT POTUS SCOTUS FEMA HIPAA NAND
""")
SPELLED = _set("""
FBI CIA NSA USA UK EU UN UAE CEO CFO CTO COO IBM API AI CPU GPU TPU URL PDF HTML CSS ATM DIY UFO IT US ASAP FAQ IEEE
IATA NAACP USB RSVP SUV USSR BBC CNN NBC ABC CBS NBA NFL NHL UCLA MIT IOS DOA DNA RNA OECD UI UX ETA AKA IQ EQ OS PC
TV DVD CD ID TTS ISO IMDB ACLU AOL AARP ESPN IRS IPO IOU AC ADHD HIV LLM OK VIP CIO EPA FDA FAA FCC AM PM AD BC BCE
CE UTC GMT EST EDT PST PDT CET
""")
# Short words that people write in capitals for emphasis.
EMPHASISED = _set("""
AN AS AT BE BY DO GO HE IF IN IS IT ME MY NO OF ON OR SO TO UP US WE AM OH AH HI HA HO HEY OX YES THE AND FOR ARE
BUT NOT YOU ALL ANY CAN HER HAS HAD HIM HIS HOW ITS LET MAY NEW NOW OLD ONE OUR OUT OWN SAY SEE SHE TWO TOO USE WAS
WAY WHO WHY BIG BAD BIT BOY CAT CAR CUT DAY DID DIE DOG EAR EAT END EYE FAR FEW FIX FUN GET GOD GOT GUN GUY HIT HOT
JOB JOY KEY KID LAW LAY LEG LIE LOT LOW MAD MAN MEN MET MIX MOM DAD NOR OFF OIL PAY PER PUT RED RUN SAD SAT SEA SET
SEX SIR SIT SIX SKY SON SUN TAX TEA TEN TIE TOP TRY WAR WET WIN WON YET ADD AGE AGO AID AIM AIR ART ASK ATE BAG BAN
BAR BED BEE BET BOX BUS BUY FIT FLY GAS HUG ICE ILL LAB LAP LIP MAP MUD NET NUT ODD PEN PET PIE POP RAW ROW RUB SIN
TIP TOE TOY VAN WAX WEB WOW ZOO AHA UGH HUH OOH ACT APP BIN BAY EGG FAT FED HEN INK JAM JAR JAW LED LOG MOB NAP OAK
PAN PIG PIT POT RAT RAY RIB ROD SAW SHY SPY TAP TIN VET VIA VOW WIT COW CUP DIG DRY DUE EVE FAN GUM GYM HAT HAY HIP
HOP INN
""")

MONARCHS = _set("""
Henry Louis Elizabeth George Edward Richard William Charles James Philip John Paul Pius Benedict Gregory Francis
Frederick Friedrich Wilhelm Napoleon Nicholas Alexander Peter Catherine Ivan Ferdinand Alfonso Carlos Juan Leopold
Albert Baldwin Otto Christian Gustav Gustavus Leo Innocent Clement Urban Boniface Ramesses Ramses Darius Xerxes
Ptolemy Cleopatra Mary Margaret Haakon Harald Olav Umberto Victor Vittorio Emmanuel Robert David Malcolm Constantine
Theodosius Justinian Mehmed Selim Murad Suleiman Sixtus Julius Philippe Charlemagne Beatrix Pope King Queen Emperor
Tsar Thutmose Amenhotep Seti
""")
NUMBERED = _set("""
War Chapter Part Volume Act Scene Section Book Phase Type Class Title Article Appendix Stage Bowl Vol Level Grade
Mark Mk Figure Table Rocky Fantasy Group Division League Apollo Saturn Schedule Annex Round Episode Season Category
Tier Unit Lesson Quest Hall Canto
""")

SIGNS = {
    "&": "and", "+": "plus", "=": "equals", "#": "number", "@": "at", "%": "percent", "‰": "per mille", "°": "degrees",
    "<": "less than", ">": "greater than", "≤": "less than or equal to", "≥": "greater than or equal to",
    "≈": "approximately", "≠": "not equal to", "±": "plus or minus", "×": "times", "÷": "divided by", "∞": "infinity",
    "√": "the square root of", "∑": "the sum of", "∆": "delta", "∫": "the integral of", "→": "to", "←": "from",
    "∈": "in",
    "§": "section", "©": "copyright", "®": "registered", "™": "trademark", "²": "squared", "³": "cubed", "º": "degrees",
    "ª": "", "/": "slash", "\\": "backslash", "$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "¢": "cents",
    "₹": "rupees", "π": "pi", "µ": "micro", "Ω": "ohm", "^": "to the power of", "¬": "not", "•": ",",
    "|": ",", "*": "", "_": " ", "~": "", "¶": "", "†": "", "‡": "", "¦": "",
}  # fmt: skip
LINK_SIGNS = {".": "dot", "/": "slash", "-": "dash", "_": "underscore", "@": "at", ":": "colon", "?": "question mark",
              "=": "equals", "&": "and", "#": "hash", "%": "percent", "~": "tilde", "+": "plus"}  # fmt: skip
# Domains that are words of their own (in, it, no, be) would make links of missing spaces.
TLDS = ("com|org|net|edu|gov|io|ai|co|uk|de|fr|es|nl|eu|ca|au|jp|cn|ru|br|info|dev|app|xyz|tv|tech|online|shop|site"
        "|blog|cloud|news|ch|se|dk|fi|pl|cz|pt|ie|nz|za|mx|kr|int|mil|biz")  # fmt: skip


def either(words: object) -> str:
    """A regular expression for any of the words, the longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))  # type: ignore[call-overload]
