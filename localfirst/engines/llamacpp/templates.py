"""
Chat templates for models whose file carries none, found by the markers of Ollama's Go text.

A GGUF mostly has its own Jinja template and that one is used. Older ones (llama2 among
them) have none, and llama.cpp would then speak ChatML to a model that never saw it. Here
each family is four pieces of text around the turns; the Jinja is made from them. Pure.

The pieces follow the model cards and the templates of ollama.com/library.
"""

from __future__ import annotations

import json

import msgspec

# A turn that only calls tools has no content at all.
TEXT = "(m['content'] or '')"


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """
    How a family writes turns: each pair goes before and after a turn's text.

    `system` None means the family has no such turn: its text then stands in front of the
    first user's, within `inline`. `answer` invites the model to speak.
    """

    name: str
    markers: tuple[str, ...]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    system: tuple[str, str] | None = None
    inline: tuple[str, str] = ("", "\n\n")


def _header(role: str) -> tuple[str, str]:
    return (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>")


def _chatml(role: str) -> tuple[str, str]:
    return (f"<|im_start|>{role}\n", "<|im_end|>\n")


# Narrower markers first; all of a family's markers have to be there.
FAMILIES = (
    Family(
        name="llama3",
        markers=("<|start_header_id|>",),
        system=_header("system"),
        user=_header("user"),
        assistant=_header("assistant"),
        answer=_header("assistant")[0],
    ),
    Family(
        name="command-r",
        markers=("<|START_OF_TURN_TOKEN|>",),
        system=("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        user=("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        assistant=("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        answer="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    ),
    Family(
        name="gemma",
        markers=("<start_of_turn>",),
        user=("<start_of_turn>user\n", "<end_of_turn>\n"),
        assistant=("<start_of_turn>model\n", "<end_of_turn>\n"),
        answer="<start_of_turn>model\n",
    ),
    Family(
        name="chatml",
        markers=("<|im_start|>",),
        system=_chatml("system"),
        user=_chatml("user"),
        assistant=_chatml("assistant"),
        answer=_chatml("assistant")[0],
    ),
    Family(
        name="llama2",
        markers=("<<SYS>>",),
        user=("[INST] ", " [/INST]"),
        assistant=(" ", " </s><s>"),
        answer="",
        inline=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    ),
    Family(
        name="mistral",
        markers=("[INST]",),
        user=("[INST] ", " [/INST]"),
        assistant=(" ", "</s>"),
        answer="",
    ),
    Family(
        name="granite",
        markers=("<|start_of_role|>",),
        system=("<|start_of_role|>system<|end_of_role|>", "<|end_of_text|>\n"),
        user=("<|start_of_role|>user<|end_of_role|>", "<|end_of_text|>\n"),
        assistant=("<|start_of_role|>assistant<|end_of_role|>", "<|end_of_text|>\n"),
        answer="<|start_of_role|>assistant<|end_of_role|>",
    ),
    Family(
        name="deepseek-r1",
        markers=("<｜User｜>", "<｜Assistant｜>"),
        system=("", ""),
        user=("<｜User｜>", ""),
        assistant=("<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
        answer="<｜Assistant｜>",
    ),
    Family(
        name="exaone3",
        markers=("[|assistant|]",),
        system=("[|system|]", "[|endofturn|]\n"),
        user=("[|user|]", "\n"),
        assistant=("[|assistant|]", "[|endofturn|]\n"),
        answer="[|assistant|]",
    ),
    Family(
        name="phi3",
        markers=("<|user|>", "<|end|>"),
        system=("<|system|>\n", "<|end|>\n"),
        user=("<|user|>\n", "<|end|>\n"),
        assistant=("<|assistant|>\n", "<|end|>\n"),
        answer="<|assistant|>\n",
    ),
    Family(
        name="zephyr",
        markers=("<|user|>",),
        system=("<|system|>\n", "</s>\n"),
        user=("<|user|>\n", "</s>\n"),
        assistant=("<|assistant|>\n", "</s>\n"),
        answer="<|assistant|>\n",
    ),
    Family(
        name="openchat",
        markers=("GPT4 Correct User:",),
        system=("", "<|end_of_turn|>"),
        user=("GPT4 Correct User: ", "<|end_of_turn|>"),
        assistant=("GPT4 Correct Assistant: ", "<|end_of_turn|>"),
        answer="GPT4 Correct Assistant:",
    ),
    Family(
        name="vicuna",
        markers=("USER:", "ASSISTANT:"),
        system=("", "\n\n"),
        user=("USER: ", "\n"),
        assistant=("ASSISTANT: ", "</s>\n"),
        answer="ASSISTANT:",
    ),
    Family(
        name="alpaca",
        markers=("### Instruction:", "### Response:"),
        system=("", "\n\n"),
        user=("### Instruction:\n", "\n\n"),
        assistant=("### Response:\n", "\n\n"),
        answer="### Response:\n",
    ),
    Family(
        name="plain",
        markers=("User:", "Assistant:"),
        system=("", "\n\n"),
        user=("User: ", "\n\n"),
        assistant=("Assistant: ", "\n\n"),
        answer="Assistant:",
    ),
)


def family_of(go_template: str) -> Family | None:
    """The family whose markers are all in a Go template, or None."""
    for family in FAMILIES:
        if all(marker in go_template for marker in family.markers):
            return family
    return None


def jinja_for(go_template: str) -> str:
    """The Jinja template that writes turns as *go_template* does; "" for an unknown format."""
    family = family_of(go_template)
    return _jinja(family) if family else ""


def _jinja(family: Family) -> str:
    if family.system is None:
        opening, closing = (_literal(text) for text in family.inline)
        system = f"{{%- set ns.system = {opening} + {TEXT} + {closing} -%}}"
    else:
        system = _say(family.system, TEXT)
    user = _say(family.user, f"ns.system + {TEXT}") + "{%- set ns.system = '' -%}"
    return (
        "{%- set ns = namespace(system='') -%}{%- for m in messages -%}"
        "{%- if m['role'] == 'system' -%}"
        + system
        + "{%- elif m['role'] == 'assistant' -%}"
        + _say(family.assistant, TEXT)
        + "{%- else -%}"
        + user
        + "{%- endif -%}{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{- "
        + _literal(family.answer)
        + " -}}{%- endif -%}"
    )


def _say(around: tuple[str, str], text: str) -> str:
    return f"{{{{- {_literal(around[0])} + {text} + {_literal(around[1])} -}}}}"


def _literal(text: str) -> str:
    """*text* as a string of Jinja, which reads the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
