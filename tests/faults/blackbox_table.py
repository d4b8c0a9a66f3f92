"""
Every way in which a cloud can fail a request, as a scripted step and what must follow.

A row says what the cloud does to a streamed and to a whole request, the class that the trail
must show, and how the ladder goes on: `next` (somebody else answers), `ends` with a status
(the request's own fault), `ok` (it is no fault), `cut` (after content: told, never retried).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.fakes import cloud_answers as answers

Step = dict[str, Any]
Made = Callable[[str, bool], Step | None]


@dataclass(frozen=True)
class Row:
    """
    One fault: `step(dialect, stream)` makes the script, None where it cannot happen.

    `cls` is the class in the trail; `status` what the client is told where the ladder ends.
    """

    id: str
    step: Made
    then: str = "next"
    cls: str = ""
    status: int = 0


def raw(data: bytes, then: str = "close") -> Step:
    return {"do": "raw", "base64": base64.b64encode(data).decode(), "then": then}


def head(*lines: str, kind: str = "application/json") -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", f"content-type: {kind}", *lines, "", ""]).encode()


def kind_of(stream: bool) -> str:
    return "text/event-stream" if stream else "application/json"


def same(step: Step | str) -> Made:
    made = {"do": step} if isinstance(step, str) else step
    return lambda _dialect, _stream: dict(made)


def streamed(step: Step | str) -> Made:
    made = {"do": step} if isinstance(step, str) else step
    return lambda _dialect, stream: dict(made) if stream else None


def status(code: int, body: Any = None, **headers: str) -> Made:
    step: Step = {"do": "status", "status": code, "headers": headers}
    if body is not None:
        step["body"] = body if isinstance(body, str) else json.dumps(body)
    return same(step)


def whole(dialect: str) -> bytes:
    return json.dumps(answers.whole(dialect, {}, "m")).encode()


def stream_bytes(dialect: str, count: int | None = None) -> bytes:
    return b"".join(answers.events(dialect, {}, "m", usage=False)[:count])


def body_bytes(dialect: str, stream: bool) -> bytes:
    return stream_bytes(dialect) if stream else whole(dialect)


def chunked(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


# --- before the first content --------------------------------------------------------------


def _hang_in_headers(_dialect: str, stream: bool) -> Step:
    return raw(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind_of(stream).encode(), "hang")


def _hang_after_headers(_dialect: str, stream: bool) -> Step:
    return raw(head("transfer-encoding: chunked", kind=kind_of(stream)), "hang")


def _cut_after_headers(_dialect: str, stream: bool) -> Step:
    return raw(head("transfer-encoding: chunked", kind=kind_of(stream)))


def _cut_without_length(_dialect: str, stream: bool) -> Step:
    return raw(head("connection: close", kind=kind_of(stream)))


def _cut_in_the_body(dialect: str, stream: bool) -> Step:
    if stream:
        return {"do": "cut", "events": 1}
    body = whole(dialect)
    return raw(head(f"content-length: {len(body)}") + body[: len(body) // 2])


def _cut_in_a_body_without_length(dialect: str, stream: bool) -> Step | None:
    if stream:
        return raw(head(kind=kind_of(True)) + stream_bytes(dialect, 1))
    return raw(head("connection: close") + whole(dialect)[:60])


def _reset_in_the_body(_dialect: str, stream: bool) -> Step | None:
    return {"do": "cut", "events": 1, "reset": True} if stream else None


def _empty_200(_dialect: str, stream: bool) -> Step:
    return raw(head("content-length: 0", kind=kind_of(stream)), "keep")


def _no_content(_dialect: str, _stream: bool) -> Step:
    return raw(b"HTTP/1.1 204 No Content\r\n\r\n", "keep")


def _only_done(dialect: str, stream: bool) -> Step | None:
    if not stream:
        return raw(head("content-length: 2") + b"{}", "keep")
    last = answers.events(dialect, {}, "m", usage=False)[-1]
    return raw(head(f"content-length: {len(last)}", kind=kind_of(True)) + last, "keep")


def _html(code: int) -> Made:
    page = b"<!DOCTYPE html><html><head><title>x</title></head><body>Bad gateway</body></html>"
    line = f"HTTP/1.1 {code} X\r\ncontent-type: text/html\r\ncontent-length: {len(page)}\r\n\r\n"
    return lambda _dialect, _stream: raw(line.encode() + page, "keep")


def _json_for_a_stream(body: bytes) -> Made:
    def step(_dialect: str, _stream: bool) -> Step:
        return raw(head(f"content-length: {len(body)}") + body, "keep")

    return step


def _bad_chunks(dialect: str, stream: bool) -> Step:
    start = head("transfer-encoding: chunked", kind=kind_of(stream))
    return raw(start + b"zz\r\n" + body_bytes(dialect, stream))


def _chunks_without_end(dialect: str, stream: bool) -> Step | None:
    if stream:
        return None  # the terminator of the stream has come: it is whole
    start = head("transfer-encoding: chunked")
    return raw(start + chunked(whole(dialect)[:-1]))


def _in_band(error: dict[str, Any], status: int = 200) -> Made:
    def step(dialect: str, stream: bool) -> Step:
        if stream:
            return {"do": "error_event", "error": error}
        body = json.dumps({"type": "error", "error": error}).encode()
        return raw(head(f"content-length: {len(body)}") + body, "keep")

    del status
    return step


def _drip_of_blanks(_dialect: str, stream: bool) -> Step | None:
    """Keep-alives of a whole answer that never comes: blank lines (DeepSeek sends them)."""
    return None if stream else {"do": "blanks", "pause_s": 0.05}


OVERLOADED = {"type": "overloaded_error", "message": "Overloaded"}
LIMITED = {"type": "rate_limit_error", "message": "Rate limit reached", "code": "rate_limited"}

BROKEN_CALL = {"message": {"role": "assistant", "content": None, "tool_calls": [{
    "id": "c", "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Par'}}]},
    "index": 0, "finish_reason": "tool_calls"}  # fmt: skip


def _openai_only(body: dict[str, Any], stream: bool) -> Made:
    data = json.dumps({"id": "x", "object": "chat.completion", "model": "m", **body}).encode()

    def step(dialect: str, streamed: bool) -> Step | None:
        if dialect != "openai" or streamed != stream:
            return None
        return raw(head(f"content-length: {len(data)}") + data, "keep")

    return step


def _framing(*lines: str, stream_too: bool = True) -> Made:
    def step(dialect: str, stream: bool) -> Step | None:
        if stream and not stream_too:
            return None
        return raw(head(*lines, kind=kind_of(stream)) + chunked(body_bytes(dialect, stream)))

    return step


CONNECTION = [
    Row("negative-length", _framing("content-length: -5"), cls="*"),
    Row("two-lengths", _framing("content-length: 10", "content-length: 20"), cls="*"),
    Row("absurd-length", _framing("content-length: 99999999999999999999"), cls="*"),
    Row(
        "unknown-transfer-encoding",
        _framing("transfer-encoding: xchunked", stream_too=False),
        cls="*",
    ),
    Row("status-line-without-number", same(raw(b"HTTP/1.1 OK\r\n\r\n")), cls="invalid_response"),
    Row("status-999", same(raw(b"HTTP/1.1 999 No\r\ncontent-length: 2\r\n\r\n{}")), cls="*"),
    Row(
        "switching-protocols", same(raw(b"HTTP/1.1 101 Switching\r\nupgrade: h2c\r\n\r\n")), cls="*"
    ),
    Row("close-on-request", same("close"), cls="network"),
    Row("reset-on-request", same("reset"), cls="network"),
    Row("hang-before-headers", same("hang"), cls="timeout"),
    Row("half-headers-then-cut", same("half_headers"), cls="network"),
    Row("half-headers-then-hang", _hang_in_headers, cls="timeout"),
    Row("headers-then-hang", _hang_after_headers, cls="timeout"),
    Row("headers-then-cut", _cut_after_headers, cls="network"),
    Row("headers-without-length-then-cut", _cut_without_length, cls="*"),
    Row("cut-before-content", _cut_in_the_body, cls="network"),
    Row("cut-before-content-without-length", _cut_in_a_body_without_length, cls="*"),
    Row("reset-before-content", _reset_in_the_body, cls="network"),
    Row("garbage-for-http", same(raw(b"SSH-2.0-OpenSSH_9.6\r\n")), cls="invalid_response"),
    Row("tls-for-http", same(raw(b"\x15\x03\x01\x00\x02\x02\x28")), cls="invalid_response"),
    Row("bad-chunks", _bad_chunks, cls="invalid_response"),
    Row("chunks-without-end", _chunks_without_end, cls="network"),
    Row("huge-header", same({"do": "long_header"}), cls="invalid_response"),
    Row("endless-headers", same({"do": "endless_headers"}), cls="invalid_response"),
    Row("gzip-though-identity-was-asked", same({"do": "gzip"}), cls="invalid_response"),
    Row("endless-continue", same({"do": "continues"}), cls="invalid_response"),
]

CONTENT = [
    Row("empty-completion", same("empty"), cls="invalid_response"),
    Row("empty-200", _empty_200, cls="invalid_response"),
    Row("no-content-204", _no_content, cls="invalid_response"),
    Row("only-the-terminator", _only_done, cls="invalid_response"),
    Row("html-200", _html(200), cls="invalid_response"),
    Row("malformed-json", same("malformed"), cls="invalid_response"),
    Row("json-null", _json_for_a_stream(b"null"), cls="invalid_response"),
    Row("json-list", _json_for_a_stream(b"[]"), cls="invalid_response"),
    Row("json-string", _json_for_a_stream(b'"safe"'), cls="invalid_response"),
    Row("json-choices-null", _json_for_a_stream(b'{"choices":null}'), cls="invalid_response"),
    Row("json-choices-empty", _json_for_a_stream(b'{"choices":[]}'), cls="invalid_response"),
    Row("in-band-overloaded", _in_band(OVERLOADED), cls="unavailable"),
    Row("in-band-rate-limit", _in_band(LIMITED), cls="rate_limit"),
    Row("error-in-a-choice", _openai_only({"choices": [{"index": 0, "error": {"code": 502,
        "message": "Provider returned error"}, "finish_reason": "error"}]}, False),
        cls="unavailable"),
    Row("broken-call-in-a-whole-answer", _openai_only({"choices": [BROKEN_CALL]}, False),
        cls="invalid_response"),
    Row("keepalives-without-end", streamed({"do": "keepalives"}), cls="timeout"),
    Row("keepalives-in-a-flood", streamed({"do": "keepalives", "pause_s": 0}), cls="*"),
    Row("blanks-without-end", _drip_of_blanks, cls="timeout"),
    Row("line-without-end", streamed({"do": "long_line"}), cls="*"),
    Row("body-without-end", lambda _d, s: None if s else {"do": "long_body"}, cls="*"),
    *[
        Row(f"redirect-{code}", same({"do": "redirect", "status": code, "to": "/elsewhere/v1"}),
            cls="invalid_response")
        for code in (301, 302, 303, 307, 308)
    ],
]  # fmt: skip

# --- no fault at all -----------------------------------------------------------------------


def _after(prefix: bytes) -> Made:
    def step(dialect: str, stream: bool) -> Step:
        body = body_bytes(dialect, stream)
        start = head(f"content-length: {len(body)}", kind=kind_of(stream))
        return raw(prefix + start + body, "keep")

    return step


def _until_close(dialect: str, stream: bool) -> Step:
    return raw(head("connection: close", kind=kind_of(stream)) + body_bytes(dialect, stream))


def _tiny_chunks(dialect: str, stream: bool) -> Step:
    pieces = [chunked(bytes([byte])) for byte in body_bytes(dialect, stream)]
    start = head("transfer-encoding: chunked", kind=kind_of(stream))
    return raw(start + b"".join(pieces) + b"0\r\n\r\n", "keep")


def _crlf(dialect: str, stream: bool) -> Step | None:
    if not stream:
        return None
    body = stream_bytes(dialect).replace(b"\n", b"\r\n")
    return raw(head(f"content-length: {len(body)}", kind=kind_of(True)) + body, "keep")


def _blank_lines_first(dialect: str, stream: bool) -> Step | None:
    if stream:
        body = b": OPENROUTER PROCESSING\n\n" * 400 + stream_bytes(dialect)
    else:
        body = b"\n" * 30 + whole(dialect)
    return raw(head(f"content-length: {len(body)}", kind=kind_of(stream)) + body, "keep")


def _wrong_type(dialect: str, stream: bool) -> Step:
    body = body_bytes(dialect, stream)
    start = head(f"content-length: {len(body)}", kind="application/octet-stream")
    return raw(start + body, "keep")


def _whole_then_reset(dialect: str, stream: bool) -> Step:
    start = head("transfer-encoding: chunked", kind=kind_of(stream))
    end = b"" if stream else b"0\r\n\r\n"
    return raw(start + chunked(body_bytes(dialect, stream)) + end)


def _http_10(dialect: str, stream: bool) -> Step:
    kind = f"content-type: {kind_of(stream)}\r\n\r\n".encode()
    return raw(b"HTTP/1.0 200 OK\r\n" + kind + body_bytes(dialect, stream))


def _other_sort(dialect: str, stream: bool) -> Step:
    """A stream for who asked for a whole answer, and a whole answer for a stream."""
    body = body_bytes(dialect, not stream)
    return raw(head(f"content-length: {len(body)}", kind=kind_of(not stream)) + body, "keep")


def _keepalives_one_by_one(dialect: str, stream: bool) -> Step | None:
    """As many as a slow model's gateway sends in minutes, each a chunk of its own."""
    if not stream:
        return None
    empty = b": keep-alive\n\n"
    if dialect == "openai":
        empty = answers.events(dialect, {}, "m", usage=False)[0]
    pieces = chunked(empty) * 400 + chunked(stream_bytes(dialect))
    return raw(head("transfer-encoding: chunked", kind=kind_of(True)) + pieces + b"0\r\n\r\n")


HARMLESS = [
    Row("four-hundred-keepalives", _keepalives_one_by_one, "ok"),
    Row("http-10", _http_10, "ok"),
    Row("the-other-sort", _other_sort, "ok"),
    Row("continue-100-first", _after(b"HTTP/1.1 100 Continue\r\n\r\n"), "ok"),
    Row("early-hints-103-first", _after(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"), "ok"),
    Row("processing-102-twice", _after(b"HTTP/1.1 102 Processing\r\n\r\n" * 2), "ok"),
    Row("body-until-close", _until_close, "ok"),
    Row("one-byte-a-chunk", _tiny_chunks, "ok"),
    Row("crlf-lines", _crlf, "ok"),
    Row("keepalives-first", _blank_lines_first, "ok"),
    Row("another-content-type", _wrong_type, "ok"),
    Row("whole-then-closed", _whole_then_reset, "ok"),
    Row("drip", streamed("drip"), "ok"),
    Row("slow-but-moving", streamed({"do": "ok", "pause_s": 0.25}), "ok"),
    Row("slow-whole", lambda _d, s: None if s else {"do": "ok", "delay_s": 1.2}, "ok"),
]  # fmt: skip

# --- after the first content ---------------------------------------------------------------

TOOL = {"name": "weather", "arguments": {"city": "Paris", "unit": "celsius"}}


def _in_arguments(**more: Any) -> Made:
    """The first half of a tool call's arguments, then the end."""

    def step(dialect: str, stream: bool) -> Step | None:
        events = 4 if dialect == "anthropic" else 3
        return {"do": "cut", "tool": TOOL, "events": events, **more} if stream else None

    return step


CUTS = [
    Row("cut-in-content", streamed({"do": "cut", "events": 5}), "cut", "network"),
    Row("reset-in-content", streamed({"do": "cut", "events": 5, "reset": True}), "cut", "network"),
    Row("ended-without-terminator", streamed({"do": "cut", "events": 5, "clean": True}), "cut",
        "network"),
    Row("stall-in-content", streamed({"do": "stall", "events": 5}), "cut", "timeout"),
    Row("error-in-content", streamed({"do": "error_event", "events": 5, "error": OVERLOADED}),
        "cut", "unavailable"),
    Row("cut-in-tool-arguments", _in_arguments(), "cut", "network"),
    Row("ended-in-tool-arguments", _in_arguments(clean=True), "cut", "network"),
]  # fmt: skip
