"""How a model is loaded and spoken to: contexts, the manifest's wishes, templates."""

from __future__ import annotations

import functools
import json
import sys
import tempfile
from pathlib import Path

import pytest

from localfirst.engines.llamacpp.plan import context_for, threads_for, with_model_defaults
from localfirst.engines.llamacpp.templates import FAMILIES, family_of, jinja_for
from localfirst.machine.fit import Cpu
from localfirst.models import toy
from localfirst.transport import process
from localfirst.types import ChatRequest, Message

GO = {
    "llama3": "<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>",
    "llama2": "[INST] <<SYS>>{{ .System }}<</SYS>>\n\n{{ .Prompt }} [/INST]",
    "mistral": "[INST] {{ if .System }}{{ .System }} {{ end }}{{ .Prompt }} [/INST]",
    "chatml": "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n",
    "gemma": "<start_of_turn>user\n{{ .Prompt }}<end_of_turn>\n<start_of_turn>model\n",
    "phi3": "<|user|>\n{{ .Prompt }}<|end|>\n<|assistant|>\n",
    "zephyr": "<|user|>\n{{ .Prompt }}</s>\n<|assistant|>\n",
    "vicuna": "{{ .System }}\nUSER: {{ .Prompt }}\nASSISTANT: ",
    "alpaca": "### Instruction:\n{{ .Prompt }}\n\n### Response:\n",
}


@pytest.mark.parametrize("name", GO)
def test_a_go_template_is_known_by_its_markers(name: str) -> None:
    found = family_of(GO[name])
    assert found is not None
    assert found.name == name


def test_an_unknown_format_is_not_guessed() -> None:
    assert jinja_for("{{ .Prompt }}") == ""


CONVERSATION = (
    ("system", "SYS-1"),
    ("user", 'it\'s "quoted" {{ not }} a template'),
    ("assistant", "A-1"),
    ("user", "U-2"),
    ("assistant", None),
    ("tool", "TOOL-1"),
)

# llama.cpp's own template engine says what is written: the one that will be used.
RENDER = """
import json, sys, urllib.request
import xllamacpp
path, templates, turns = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
messages = [{"role": role, "content": content} for role, content in turns]
written = {}
for name, template in templates.items():
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = path, 256, False
    params.chat_template = template
    server = xllamacpp.Server(params)
    request = urllib.request.Request(
        server.listening_address + "/apply-template",
        data=json.dumps({"messages": messages}).encode(),
        headers={"content-type": "application/json"},
    )
    written[name] = json.loads(urllib.request.urlopen(request).read())["prompt"]
print(json.dumps(written))
"""


@functools.cache
def rendered() -> dict[str, str]:
    """What each family's template writes for `CONVERSATION`."""
    templates = {family.name: jinja_for(" ".join(family.markers)) for family in FAMILIES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toy.gguf"
        toy.write(path, template="")
        arguments = [str(path), json.dumps(templates), json.dumps(CONVERSATION)]
        done = process.run([sys.executable, "-c", RENDER, *arguments], 60)
    assert done.returncode == 0, done.stderr[-2000:]
    written: dict[str, str] = json.loads(done.stdout)
    return written


def test_a_llama2_conversation_is_written_as_its_authors_wrote_it() -> None:
    assert rendered()["llama2"] == (
        '[INST] <<SYS>>\nSYS-1\n<</SYS>>\n\nit\'s "quoted" {{ not }} a template [/INST]'
        " A-1 </s><s>[INST] U-2 [/INST]  </s><s>[INST] TOOL-1 [/INST]"
    )


def test_a_family_without_a_system_turn_puts_it_before_the_first_user() -> None:
    assert rendered()["gemma"].startswith("<start_of_turn>user\nSYS-1\n\nit's")


@pytest.mark.parametrize("family", [family.name for family in FAMILIES])
def test_every_family_writes_every_text_once_and_takes_a_turn_without_text(family: str) -> None:
    answer = next(each.answer for each in FAMILIES if each.name == family)
    for _, text in CONVERSATION:
        assert text is None or rendered()[family].count(text) == 1
    assert rendered()[family].rstrip().endswith(answer.rstrip())


def context(**given: int) -> int:
    usual = {
        "asked": 0,
        "prompt_tokens": 100,
        "max_tokens": 0,
        "usual": 4096,
        "window": 131072,
    }
    return context_for(**usual | given)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, 4096),
        ({"asked": 512}, 4096),
        ({"asked": 9000}, 9000),
        ({"prompt_tokens": 5000}, 8192),
        ({"prompt_tokens": 4000, "max_tokens": 100}, 8192),
        ({"window": 2048}, 2048),
        ({"prompt_tokens": 10**6}, 131072),
        ({"window": 128}, 128),
    ],
)
def test_the_context_to_load_with(given: dict[str, int], size: int) -> None:
    assert context(**given) == size


@pytest.mark.parametrize(
    ("cpu", "weights_bytes", "threads"),
    [
        (Cpu(), 4 * 10**9, 0),
        (Cpu(cores=2, threads=4), 4 * 10**9, 2),
        (Cpu(cores=8, threads=16), 4 * 10**9, 7),
        (Cpu(cores=64, threads=128, quota=2.0), 4 * 10**9, 2),
        (Cpu(cores=64, quota=0.5), 4 * 10**9, 1),
        (Cpu(cores=8), 469_440, 1),
    ],
)
def test_threads_are_what_can_run_at_once(cpu: Cpu, weights_bytes: int, threads: int) -> None:
    assert threads_for(cpu, weights_bytes) == threads


USER = Message(role="user", content="hi")
PARAMS = {"temperature": 0.3, "stop": ["</s>"], "num_predict": -1, "top_k": 7, "num_ctx": 8192}


def test_the_models_own_parameters_fill_what_the_caller_left_open() -> None:
    made = with_model_defaults(ChatRequest(messages=(USER,), top_k=1), PARAMS, "")
    assert (made.temperature, made.stop, made.top_k, made.max_tokens) == (0.3, ("</s>",), 1, None)


def test_the_models_system_prompt_yields_to_the_callers() -> None:
    own = Message(role="system", content="mine")
    assert with_model_defaults(ChatRequest(messages=(own, USER)), {}, "model's").messages == (
        own,
        USER,
    )
    made = with_model_defaults(ChatRequest(messages=(USER,)), {}, "model's")
    assert [message.content for message in made.messages] == ["model's", "hi"]


def test_a_raw_prompt_gets_no_system_turn() -> None:
    assert with_model_defaults(ChatRequest(prompt="x"), {}, "model's").messages == ()
