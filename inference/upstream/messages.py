"""What of a provider's message about a caller's own parameters may be passed on: one line, without where it comes from.

Such a text may name hosts, URLs, paths, keys and organisations. What looks like one is left out; rather too much than
too little.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

#: Characters that are passed on, and that are read.
LONGEST, MOST_READ = 300, 1000
GAP = "[...]"
#: No word, and a search for what it may be takes the longer the longer it is.
TOO_LONG = re.compile(r"\S{80,}")
#: A literal of fewer characters stands in too many texts by chance.
SHORTEST_SECRET = 4
#: Endings of names of hosts. Without them a parameter such as `text.format` would be taken for one.
TOP_LEVEL = (
    "ai app arpa biz br ca ch cloud cn co com corp de dev edu es eu example fr gov home host in info internal intranet "
    "invalid io jp kr lan local localdomain net nl online org pl private pro ru se sg site svc tech test tw uk us xyz"
).replace(" ", "|")
LEFT_OUT = re.compile(
    rf"""
    \b [a-z][a-z0-9+.-]* :// \S+                                   # URLs
    | \b www \. \S+
    | [\w.+-]+ @ [\w-]+ (?: \. [\w-]+ )+                           # addresses of people
    | (?<! [\w.] ) (?: \d{{1,3}} \. ){{3}} \d{{1,3}} (?! [\w.] \d ) (?: :\d+ )? (?: /\S* )?
    | \[? (?<! [\w:] ) (?: [0-9a-f]{{0,4}} : ){{2,7}} [0-9a-f]{{1,4}} (?! [\w:] ) \]? (?: :\d+ )?   # IPv6
    | \b localhost \b (?: :\d+ )? (?: /\S* )?
    | (?<! [\w.-] ) (?: [a-z0-9-]+ \. )+ (?: {TOP_LEVEL} ) (?! [\w-] ) (?: :\d+ )? (?: /\S* )?      # names of hosts
    | (?<! [\w.-] ) (?= [a-z0-9.-]* [a-z] ) [a-z0-9.-]* [.-] [a-z0-9.-]* : \d{{2,5}} \b (?: /\S* )?
    | (?<! [\w.)\]/] ) / [\w.-]+ (?: / [\w.-]* )+                    # paths
    | \b (?i: bearer | basic ) \s+ \S{{8,}}                        # keys, and who owns them
    | \b (?i: api[ _-]?key | secret | password | authorization ) ["']? \s* [:=] \s* \S+
    | \b (?i: sk | pk | rk | ak | gsk | hf | xai | ghp | org | proj | req | chatcmpl ) [_-] [A-Za-z0-9_*-]{{5,}}
    | \b (?: AKIA | AIza | eyJ ) [\w.+/=-]{{8,}}
    | \b [0-9a-f]{{8}} (?: - [0-9a-f]{{4}} ){{3}} - [0-9a-f]{{12}} \b
    | (?<! \w ) (?= [\w+/=-]* \d ) (?= [\w+/=-]* [a-z] ) (?= [\w+/=-]* [A-Z] ) [\w+/=-]{{20,}}
    | (?<! \w ) (?= [a-zA-Z]* \d ) [A-Za-z0-9]{{24,}}
    """,
    re.VERBOSE,
)


def passable(message: object, hidden: Iterable[str]) -> str:
    """Return the first line of a provider's message without what must not be passed on; empty where nothing is left.

    `hidden` are texts that are not to be seen whatever they look like, such as the provider's secret.
    """
    if not isinstance(message, str) or "Traceback" in message:
        return ""
    line = next((line for line in message[:MOST_READ].splitlines() if line.strip()), "")
    if len(line) >= MOST_READ:
        line = line.rpartition(" ")[0]  # half a secret does not look like one
    line = " ".join("".join(each for each in line if each == "\t" or unicodedata.category(each)[0] != "C").split())
    for text in sorted(hidden, key=len, reverse=True):
        if len(text) >= SHORTEST_SECRET:
            line = re.sub(re.escape(text), GAP, line, flags=re.IGNORECASE)
    line = LEFT_OUT.sub(GAP, TOO_LONG.sub(GAP, line))
    if line.startswith("<") or not re.search(r"[^\W\d_]{2}", line.replace(GAP, "")):
        return ""
    return line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"
