"""What is decided about a request to Ollama before a socket is opened, and how lists are read."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from localfirst.engines import refusals
from localfirst.engines.base import LocalModel
from localfirst.engines.launch import connectable
from localfirst.engines.ollama import guard
from localfirst.engines.ollama.listing import Shown, full_name, is_remote, listing, models, unix
from localfirst.engines.wishes import seconds_of
from localfirst.errors import UpstreamNonsense, UpstreamRefused
from localfirst.types import Needs

DATA = Path(__file__).parent.parent / "data" / "ollama"


def recorded(name: str) -> bytes:
    body: str = json.loads((DATA / f"{name}.json").read_text())["response"]["body"]
    return body.encode()


@pytest.mark.parametrize(
    ("said", "endpoint"),
    [
        ("", "http://127.0.0.1:11434"),
        ("1.2.3.4", "http://1.2.3.4:11434"),
        (":1234", "http://127.0.0.1:1234"),
        ("[::1]", "http://[::1]:11434"),
        ("::1", "http://[::1]:11434"),
        ("[::]", "http://[::1]:11434"),
        ("[::1]:1337", "http://[::1]:1337"),
        ('  "1.2.3.4" ', "http://1.2.3.4:11434"),
        ("http://1.2.3.4", "http://1.2.3.4:80"),
        ("https://example.com/ollama", "https://example.com:443/ollama"),
        ("https://0.0.0.0:4321", "https://127.0.0.1:4321"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
    ],
)
def test_a_listening_address_becomes_one_to_connect_to(said: str, endpoint: str) -> None:
    assert connectable(said) == endpoint


def test_the_recorded_lists_become_models() -> None:
    found = models(listing(recorded("tags_with_models")), [])
    tiny = next(model for model in found if model.name == "tiny:latest")
    assert tiny == LocalModel(
        name="tiny:latest",
        digest="e59b7c5d6d0a446a49943ebfabef6e7166587c90ba583edc46ad37b736843eb1",
        size_bytes=469624,
        context_tokens=2048,
        capabilities=("completion",),
        family="llama",
        parameters="115K",
        quantization="unknown",
        modified_unix=unix("2026-01-01T00:00:01.821409Z"),
        partial=True,  # a template of its own may show tools, which is not listed
    )


def test_what_is_loaded_is_told_by_its_name() -> None:
    loaded = listing(recorded("ps_loaded"))
    tags = [msgspec.structs.replace(loaded[0], name="ASCII", expires_at="", size_vram=0)]
    found = models(tags, loaded)[0]
    assert (found.loaded, found.loaded_bytes) == (True, 4666162)
    assert found.expires_unix == unix("2026-01-01T00:05:06.548393Z")


def test_an_empty_list_may_be_null_and_html_is_no_list() -> None:
    assert listing(b'{"models":null}') == []
    with pytest.raises(UpstreamNonsense):
        listing(b"<html></html>")


def test_a_shown_model_tells_its_window_and_its_own_context() -> None:
    shown = msgspec.json.decode(recorded("show"), type=Shown)
    assert shown.context_tokens == 2048
    shown.parameters = 'stop      "</s>"\nnum_ctx       8192\n'
    assert shown.num_ctx == 8192
    for odd in ("²", "-1", "9" * 5000, "many"):  # a model's own file says it: anything may
        assert msgspec.structs.replace(shown, parameters=f"num_ctx {odd}").num_ctx < 10**9


@pytest.mark.parametrize(
    ("name", "remote"),
    [
        ("gpt-oss:20b-cloud", True),
        ("qwen3-coder:cloud", True),
        ("me/model:cloud", True),
        ("cloud", False),
        ("host:5000/cloud", False),
        ("cloud:latest", False),
    ],
)
def test_ollamas_own_cloud_models_are_known_by_their_tag(name: str, remote: bool) -> None:
    assert is_remote(name) is remote


def test_names_are_compared_with_their_tag_and_without_regard_to_case() -> None:
    assert full_name("Llama3.2") == full_name("llama3.2:latest")
    assert full_name("127.0.0.1:5000/library/tiny") == "127.0.0.1:5000/library/tiny:latest"


@pytest.mark.parametrize(
    ("stamp", "seconds"),
    [
        ("2026-01-01T00:00:00Z", 1767225600.0),
        ("2026-01-01T01:00:00.123456789+01:00", 1767225600.123456),
        ("0001-01-01T00:00:00Z", 0.0),
        ("", 0.0),
        ("yesterday", 0.0),
    ],
)
def test_go_time_stamps(stamp: str, seconds: float) -> None:
    assert unix(stamp) == pytest.approx(seconds)


def context(**given: int) -> int:
    usual = {"settled": 0, "asked": 0, "prompt_tokens": 10, "max_tokens": 0, "window": 131072}
    return guard.stable_context(**usual | given)


def test_a_context_stays_the_daemons_own_while_it_suffices() -> None:
    assert context() == 0
    assert context(prompt_tokens=3000) == 0


def test_a_context_grows_to_hold_prompt_and_answer_and_never_shrinks() -> None:
    assert context(prompt_tokens=5000) == 8192
    assert context(settled=16384, prompt_tokens=5000) == 16384
    assert context(settled=16384, asked=4096) == 16384
    assert context(asked=6000) == 6000
    assert context(asked=6000, prompt_tokens=7000) == 8192


def test_a_context_is_never_larger_than_the_models_window() -> None:
    assert context(prompt_tokens=500000) == 131072
    assert context(settled=4096, window=2048) == 2048


@pytest.mark.parametrize(
    ("name", "prompt", "size"),
    [("chat_gguf_both_false", 746, 256), ("chat_tmpl_shift_false", 0, 0)],
)
def test_both_ways_of_saying_too_long_are_understood(name: str, prompt: int, size: int) -> None:
    found = refusals.overflow(recorded(name))
    assert found == refusals.Overflow(prompt_tokens=prompt, context_tokens=size)


@pytest.mark.parametrize("name", ["chat_missing_model", "queue_full_503", "root_get"])
def test_other_errors_are_no_overflow(name: str) -> None:
    assert refusals.overflow(recorded(name)) is None


def test_an_error_of_llama_server_is_unwrapped_from_its_string() -> None:
    inner = refusals.unwrapped(recorded("image_on_text_model_chat"))
    assert inner["type"] == "server_error"
    assert "image input is not supported" in inner["message"]
    assert refusals.unwrapped(b"plain")["message"] == ""
    assert refusals.unwrapped(b'{"error":"plain"}')["error"] == "plain"


def test_what_a_model_cannot_do_is_known_before_it_is_asked() -> None:
    text = LocalModel(name="m", capabilities=("completion",))
    both = LocalModel(name="m", capabilities=("completion", "tools", "vision"))
    encoder = LocalModel(name="m", capabilities=("embedding",))
    assert refusals.missing(text, Needs(tools=True)) == "tools"
    assert refusals.missing(text, Needs(vision=True)) == "vision"
    assert refusals.missing(both, Needs(vision=True, tools=True)) == ""
    assert refusals.missing(encoder, Needs()) == "completion"
    assert refusals.missing(LocalModel(name="unknown"), Needs(tools=True, vision=True)) == ""


def test_a_prepared_request_keeps_every_field_it_does_not_settle() -> None:
    body = (
        b'{"model":"a","messages":[{"role":"user","content":"say \\"truncate\\":"}],'
        b'"options":{"temperature":0.25,"num_ctx":1},"tools":[{"truncate":true}],"think":true}'
    )
    made = json.loads(guard.prepared(body, model="b", num_ctx=8192, drop_think=True))
    assert made == {
        "model": "b",
        "messages": [{"role": "user", "content": 'say "truncate":'}],
        "options": {"temperature": 0.25, "num_ctx": 8192},
        "tools": [{"truncate": True}],
        "stream": True,
        "truncate": False,
        "shift": False,
    }


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (None, 300),
        (0, 0),
        (-1, -1),
        (12.5, 12.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("-1m", -60),
        ("0", 0),
        ("500us", 0.0005),
        ("never", 300),
    ],
)
def test_keep_alive_is_read_as_go_reads_it(said: str | float | None, seconds: float) -> None:
    assert seconds_of(said, 300) == seconds


def test_a_prompt_that_was_cut_silently_tells_it_by_its_count_alone() -> None:
    """Why a cut is forbidden in every request: nothing in the answer says so."""
    answer = json.loads(recorded("chat_tmpl_default"))
    assert refusals.overflow(recorded("chat_tmpl_default")) is None
    assert answer["done"] is True
    assert answer["prompt_eval_count"] == 256 // 2 + 2  # of a prompt of 600 tokens
    sent = json.loads(guard.prepared(b'{"messages":[]}', model="m", num_ctx=0))
    assert (sent["truncate"], sent["shift"]) == (False, False)


def test_a_dead_runner_is_listed_like_a_live_one() -> None:
    seen = json.loads((DATA / "runner_killed_idle_ps.json").read_text())
    assert seen["children"] == []
    running = listing(json.dumps({"models": seen["ps"]}).encode())
    assert [entry.name for entry in running] == ["slow:latest", "endless:latest"]
    assert running[0].size_vram > 0  # and an AMX buffer counts as GPU memory


@pytest.mark.parametrize("words", ["chat", "generate"])
def test_a_model_without_its_file_is_told_from_a_wrong_request(words: str) -> None:
    body = msgspec.json.encode({"error": f'"m" does not support {words}'})
    assert refusals.lost_its_file(UpstreamRefused(400, body))
    assert not refusals.lost_its_file(UpstreamRefused(500, body))
    assert not refusals.lost_its_file(UpstreamRefused(400, b'{"error":"m does not support tools"}'))
