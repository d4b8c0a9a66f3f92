"""What is guarded: Ollama's name grammar, and that no name leads out of the store."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localfirst.errors import ModelNameInvalid
from localfirst.models import names

READ = {
    # text: host, namespace, model, tag, display   (ollama types/model/name_test.go, and ours)
    "llama2": ("registry.ollama.ai", "library", "llama2", "latest", "llama2:latest"),
    "llama3.2:3b": ("registry.ollama.ai", "library", "llama3.2", "3b", "llama3.2:3b"),
    "library/llama2": ("registry.ollama.ai", "library", "llama2", "latest", "llama2:latest"),
    "me/mine:v1": ("registry.ollama.ai", "me", "mine", "v1", "me/mine:v1"),
    "h/n/m:t": ("h", "n", "m", "t", "h/n/m:t"),
    "_why/_the/_lucky:_stiff": ("_why", "_the", "_lucky", "_stiff", "_why/_the/_lucky:_stiff"),
    "host:https/namespace/model:tag": (
        "host:https",
        "namespace",
        "model",
        "tag",
        "host:https/namespace/model:tag",
    ),
    "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M": (
        "hf.co",
        "bartowski",
        "Llama-3.2-1B-Instruct-GGUF",
        "Q4_K_M",
        "hf.co/bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
    ),
    "127.0.0.1:5000/library/tiny": (
        "127.0.0.1:5000",
        "library",
        "tiny",
        "latest",
        "127.0.0.1:5000/library/tiny:latest",
    ),
    "registry.ollama.ai/library/qwen3:4b": (
        "registry.ollama.ai",
        "library",
        "qwen3",
        "4b",
        "qwen3:4b",
    ),
    "a" * 80: ("registry.ollama.ai", "library", "a" * 80, "latest", "a" * 80 + ":latest"),
}

REFUSED = (
    *("", "^", "mm:", "/nn/mm", "//", "-hh/nn/mm:tt", "hh/-nn/mm:tt", "hh/nn/mm:-tt"),
    *("host/name:space/model:tag", "m@d", "a/b/c/d:tag", "hh/nn/-mm:tt", "nn//mm", "hh//mm"),
    *("../../etc/passwd", "..", ".", "a/../b", "/abs", "a\\..\\b", "C:\\x", "a%2f..", ".hidden"),
    *("-rf", "a b", "a\n", "a\0b", "x" * 5000, "x" * 81, "ｌlama", "llama２", "$(id)", ";ls"),
    *("m@sha256:abc", "😀", "a\u202eb", "m:" + "t" * 81, "n.s/m:t", "h" * 351 + "/n/m:t"),
    "host/names.pace/model",
)


@pytest.mark.parametrize("text", READ)
def test_a_name_is_read_as_ollama_reads_it(text: str) -> None:
    host, namespace, model, tag, display = READ[text]
    name = names.parse(text)
    assert (name.host, name.namespace, name.model, name.tag) == (host, namespace, model, tag)
    assert name.display == display
    assert names.parse(name.full) == name and names.is_valid(text)
    assert str(name) == display
    assert name.path.parts == (host, namespace, model, tag)


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_name_is_refused_and_says_why(text: str) -> None:
    with pytest.raises(ModelNameInvalid) as caught:
        names.parse(text)
    assert caught.value.field == "model"
    assert caught.value.message.isprintable() and caught.value.message.isascii()
    assert len(caught.value.message) < 200
    assert not names.is_valid(text)


def test_a_host_in_front_may_carry_its_scheme() -> None:
    name = names.parse("http://127.0.0.1:5000/library/tiny:latest")
    assert (name.scheme, name.host, name.tag) == ("http", "127.0.0.1:5000", "latest")
    assert names.parse("https://hf.co/a/b").scheme == "https"


def test_names_that_differ_in_case_have_one_key() -> None:
    assert names.parse("Llama2:7B").key == names.parse("llama2:7b").key


def test_cloud_tags_are_seen() -> None:
    assert names.parse("gpt-oss:120b-cloud").is_remote
    assert names.parse("kimi-k2:cloud").is_remote
    assert not names.parse("cloudy:7b").is_remote


@given(st.text(max_size=40))
def test_no_text_makes_a_path_that_leaves_the_store(text: str) -> None:
    if names.is_valid(text):
        parts = names.parse(text).path.parts
        assert len(parts) == 4
        assert not any(part in {"", ".", ".."} or "/" in part or "\\" in part for part in parts)
        assert not any(part.startswith((".", "-")) for part in parts)
