"""What a permissive JSON reader lets through, refused one by one."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localfirst.errors import InvalidRequest
from localfirst.wire import strict_json
from localfirst.wire.anthropic import requests as anthropic
from localfirst.wire.ollama import requests as ollama
from localfirst.wire.openai import requests as openai

REFUSED = {
    "deep-list": b"[" * 100_000,
    "deep-list-closed": b"[" * 65 + b"]" * 65,
    "deep-object": b'{"a":' * 100_000,
    "deep-behind-brackets-in-text": b'{"a":"'
    + b"]" * 200
    + b'","b":'
    + b"[" * 70
    + b"]" * 70
    + b"}",
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": Infinity}',
    "minus-infinity": b'{"a": -Infinity}',
    "overflowing-float": b'{"a": 1e999}',
    "five-thousand-digits": b'{"a": ' + b"9" * 5000 + b"}",
    "lone-surrogate": b'{"a": "\\ud800"}',
    "lone-low-surrogate-in-a-key": b'{"\\uDC00": 1}',
    "reversed-pair": b'{"a": "\\udc00\\ud800"}',
    "duplicate-key": b'{"model": "a", "model": "b"}',
    "duplicate-key-escaped": b'{"model": "a", "mod\\u0065l": "b"}',
    "duplicate-key-inside": b'{"a": [{"b": 1, "b": 2}]}',
    "utf-16": '{"a": 1}'.encode("utf-16"),
    "utf-16-without-mark": '{"a": 1}'.encode("utf-16-le"),
    "utf-32": '{"a": 1}'.encode("utf-32"),
    "byte-order-mark": b'\xef\xbb\xbf{"a": 1}',
    "invalid-utf-8": b'{"a": "\xff"}',
    "overlong-utf-8": b'{"a": "\xc0\xaf"}',
    "surrogate-in-utf-8": b'{"a": "\xed\xa0\x80"}',
    "lone-surrogate-in-a-list": b'{"a": [["\\ud800"]]}',
    "huge-key": b'{"' + b"k" * 5000 + b'": 1}',
    "empty": b"",
    "blank": b" \n",
    "trailing-comma": b'{"a": 1,}',
    "single-quotes": b"{'a': 1}",
    "comment": b'{"a": 1} // x',
    "two-values": b'{"a": 1}{"b": 2}',
    "control-character": b'{"a": "\n"}',
    "half": b'{"a": ',
    "leading-zero": b'{"a": 01}',
    "not-json": b"model=a",
}

refused = pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())


@refused
def test_a_body_that_two_readers_could_read_differently_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        strict_json.loads(body)
    assert caught.value.code == "invalid-json"
    assert len(caught.value.message) < 300


TOLD = [
    (b" ", "the body is empty; send a JSON object", ""),
    (b'\xef\xbb\xbf{"a": 1}', "byte order mark", ""),
    (b'{"a": "\xff"}', "not UTF-8 (byte 7)", ""),
    (b'{"a": 1,}', "at character 8", ""),
    (b'{"a": {"bee": 1, "c": 2, "bee": 2}}', "`bee` appears twice", "bee"),
    (b'{"' + b"k" * 5000 + b'": 1}', "a key is longer than 4096", ""),
    (b'{"a": NaN}', "`NaN` is not JSON", ""),
    (b'{"a": 1e999}', "`1e999` is too large", ""),
    (b'{"a": ' + b"9" * 65 + b"}", "more than 64 digits", ""),
    (b"[" * 65 + b"]" * 65, "deeper than 64 levels", ""),
    (b'{"a": ["\\ud800"]}', "lone surrogate", ""),
]


@pytest.mark.parametrize(("body", "told", "field"), TOLD, ids=[told for _, told, _ in TOLD])
def test_a_refusal_says_what_is_wrong_and_where(body: bytes, told: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        strict_json.loads(body)
    assert told in caught.value.message
    assert caught.value.field == field


def test_what_is_no_object_is_told_that_one_is_wanted() -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object") as caught:
        strict_json.load_object(b"[1]")
    assert caught.value.code == "invalid-json"


SURFACES = [
    openai.decode,
    anthropic.decode,
    ollama.decode,
    ollama.decode_generate,
]
LOOKS = [openai.peek, anthropic.peek, ollama.peek]


@refused
@pytest.mark.parametrize("read", SURFACES, ids=lambda f: f.__module__.split(".")[2] + f.__name__)
def test_every_surface_refuses_it(body: bytes, read: object) -> None:
    with pytest.raises(InvalidRequest):
        read(body)  # type: ignore[operator]


@pytest.mark.parametrize(
    "extra",
    [
        '"model":"b"',
        '"messages":[{"role":"user","content":"x"}]',
        '"stream":true',
        '"x":"\\ud800"',
        '"x":NaN',
        '"x":' + "[" * 100 + "]" * 100,
        '"x":"\x00"',
    ],
)
@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("look", LOOKS, ids=lambda f: f.__module__.split(".")[2])
def test_the_cheap_look_is_as_strict_where_routing_depends_on_it(
    look: object, extra: str, space: str
) -> None:
    members = ['"model":"a"', '"max_tokens":5', '"stream":false']
    members.append('"messages":[{"role":"user","content":"hi"}]')
    body = "{" + f",{space}".join([*members, extra]) + "}"
    with pytest.raises(InvalidRequest):
        look(body.encode())  # type: ignore[operator]


@pytest.mark.parametrize("look", [*LOOKS, *SURFACES], ids=lambda f: f.__module__ + f.__name__)
@pytest.mark.parametrize("body", [b"[]", b'"x"', b"1", b"null", b"true", b"[1]"])
def test_the_top_level_must_be_an_object(look: object, body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        look(body)  # type: ignore[operator]


def test_what_is_legal_is_read() -> None:
    value = {"a": [1, -2.5, True, None, "\u2028 ü 😀", {"b": {}}], "__proto__": {"$ref": "#"}}
    assert strict_json.loads(json.dumps(value).encode()) == value
    assert strict_json.loads(json.dumps(value, ensure_ascii=False).encode()) == value
    assert strict_json.loads(b"[" * 64 + b"]" * 64)
    assert strict_json.loads(b'"' + b"[" * 1000 + b'"') == "[" * 1000
    assert strict_json.loads(b"[" + b"[]," * 200 + b"[]]") == [[]] * 201
    assert strict_json.loads(b"[" * 64 + b"]" * 63 + b",[]]")
    assert strict_json.loads(b"9" * 64) == int("9" * 64)
    assert strict_json.loads(b'{"' + b"k" * 4096 + b'": 1}') == {"k" * 4096: 1}
    assert strict_json.loads(b'["\\ud83d\\ude00"]') == ["\U0001f600"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.text()
    | st.floats(-1e300, 1e300),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(json_values)
def test_every_document_that_python_writes_is_read_back(value: object) -> None:
    assert strict_json.loads(json.dumps(value).encode()) == value
    assert strict_json.loads(json.dumps(value, ensure_ascii=False).encode()) == value


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_no_bytes_raise_anything_but_invalid_request(body: bytes) -> None:
    for read in (strict_json.loads, *LOOKS, *SURFACES):
        with contextlib.suppress(InvalidRequest):
            read(body)
