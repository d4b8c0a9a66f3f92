"""
The attack table: every row that is tried here, by the letter of its section and its number.

A test belongs to the rows that its name or its parameter's id begins with (`test_h6_…`,
`test_k6_k7_…`, `[F3-xchunked]`).
"""

from __future__ import annotations

import re

SECTIONS = {
    "H": "host",
    "F": "framing",
    "W": "web pages",
    "A": "keys",
    "S": "destinations",
    "N": "names",
    "E": "exhaustion",
    "J": "json",
    "K": "secrets",
    "T": "logs and terminal",
}

ROWS = {
    "H1": "another host's name",
    "H2": "another port, or none",
    "H3": "no host at all",
    "H4": "two hosts",
    "H5": "a host that is a path, a user or a list",
    "H6": "this listener's own names (pass)",
    "H7": "other spellings of loopback",
    "H8": "names that resolvers send home",
    "H9": "a target with a host of its own",
    "H10": "forwarding headers",
    "H11": "any host off loopback, with a key",
    "F1": "length and chunks at once",
    "F2": "lengths that are none",
    "F3": "other transfer encodings",
    "F4": "chunks that are none",
    "F5": "lines that another parser reads otherwise",
    "F6": "heads without end",
    "F7": "other methods and protocols",
    "F8": "upgrades",
    "F9": "expectations",
    "F10": "a request behind a refused one",
    "F11": "paths that mean another path",
    "W1": "another site's form or script",
    "W2": "origins that look like ours",
    "W3": "preflights",
    "W4": "near misses of a configured origin",
    "W5": "another site's image or frame",
    "W6": "a GET with effects",
    "W7": "content types that need no preflight",
    "W8": "answers that may be sniffed, cached, embedded",
    "W9": "extensions and applications",
    "A1": "off loopback without a key",
    "A2": "wrong keys of every form",
    "A3": "the right key beside a wrong one",
    "A4": "any route without a key",
    "A5": "the time that a comparison takes",
    "A6": "the client's credentials, further on",
    "A7": "a key in the URL",
    "S1": "fields that choose the destination",
    "S2": "other registries",
    "S3": "two spellings of one field",
    "S4": "URLs of images",
    "S5": "a cloud that redirects elsewhere",
    "S6": "addresses that hide a user, a scheme or plain text",
    "S7": "a key for one place, shown at another",
    "S8": "a proxy in front of this machine itself",
    "S9": "certificates that prove nothing",
    "S10": "URLs in answers",
    "N1": "model names that are paths, commands or tricks",
    "E1": "headers that drip",
    "E2": "bodies that drip",
    "E3": "absurd lengths",
    "E4": "chunks without end",
    "E5": "compressed requests",
    "E6": "compressed answers",
    "E7": "answers without end",
    "E8": "too many connections",
    "E9": "too many requests",
    "E10": "a client that does not read",
    "E11": "numbers out of range",
    "E12": "lists without end",
    "E13": "no descriptors left",
    "E14": "a storm of hang-ups",
    "J1": "JSON that two readers read differently",
    "K1": "a secret, printed in any way",
    "K2": "keys in URLs and the logs of libraries",
    "K3": "a cloud that echoes the key",
    "K4": "a traceback",
    "K5": "a child's environment and arguments",
    "K6": "prompts in logs",
    "K7": "keys in what we tell of ourselves",
    "K8": "files that others can read",
    "K9": "keys on the command line",
    "T1": "control characters in logs",
    "T2": "control characters in a download's status",
    "T3": "text that ends a stream",
    "T4": "headers in headers",
    "T5": "a reader that goes away",
}

_BY_ID = re.compile(r"\[([A-Z]\d+)-")
_BY_NAME = re.compile(r"::test_((?:[a-z]\d+_)+)")


def rows_of(nodeid: str) -> list[str]:
    """The rows that a test tries."""
    if found := _BY_ID.search(nodeid):
        return [found[1]]
    named = _BY_NAME.search(nodeid)
    return named[1].upper().strip("_").split("_") if named else []


def summary(results: dict[str, bool]) -> str:
    """Rows tried and rows held, of each section; *results* by test, whether it held."""
    tried: dict[str, bool] = {}
    for nodeid, held in results.items():
        for row in rows_of(nodeid):
            tried[row] = tried.get(row, True) and held
    parts = []
    for letter, name in SECTIONS.items():
        rows = [row for row in ROWS if row.rstrip("0123456789") == letter]
        here = [row for row in rows if row in tried]
        if here:
            held = sum(tried[row] for row in here)
            parts.append(f"{name} {len(here)}/{len(rows)} tried, {held} refused")
    whole = sum(tried.values())
    fallen = sorted(row for row, held in tried.items() if not held)
    last = f"rows tried: {len(tried)} of {len(ROWS)}, refused: {whole}"
    return "\n".join([*parts, last + (f", NOT refused: {' '.join(fallen)}" if fallen else "")])
