"""Guards the toy model: the same bytes each time, and a real engine that speaks with it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from localfirst.models import gguf, toy

SPEAK = """
import json, sys, urllib.request
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.n_gpu_layers = sys.argv[1], 512, 1, 0
server = xllamacpp.Server(params)
body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 40, "stream": True}
request = urllib.request.Request(
    server.listening_address + "/v1/chat/completions",
    json.dumps(body).encode(),
    {"content-type": "application/json"},
)
with urllib.request.urlopen(request, timeout=20) as answer:
    sys.stdout.write(answer.read().decode())
"""


def speak(path: Path) -> list[str]:
    """The `data:` lines that the embedded engine, in a child, streams from the model."""
    pytest.importorskip("xllamacpp")
    done = subprocess.run(
        [sys.executable, "-c", SPEAK, str(path)], capture_output=True, timeout=60, check=True
    )
    return [line[6:] for line in done.stdout.decode().splitlines() if line.startswith("data: ")]


@pytest.mark.slow
def test_a_real_engine_loads_it_and_streams_readable_noise(tmp_path: Path) -> None:
    toy.write(tmp_path / "toy.gguf")
    *events, done = speak(tmp_path / "toy.gguf")
    text = "".join(
        json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events
    )
    assert done == "[DONE]"
    assert len(text) == 40
    assert text.isascii() and text.isprintable()
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "length"


@pytest.mark.slow
@pytest.mark.parametrize("tensor_type", ["F16", "Q8_0", "Q4_0", "Q4_K", "Q6_K"])
def test_a_real_engine_loads_every_type(tmp_path: Path, tensor_type: str) -> None:
    toy.write(
        tmp_path / "toy.gguf", tensor_type=tensor_type, embedding=256, feed_forward=512, kv_heads=2
    )
    assert speak(tmp_path / "toy.gguf")[-1] == "[DONE]"


def test_the_same_arguments_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    sizes = [toy.write(tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    assert sizes == [len(a), len(b), len(c)]
    assert sizes[0] < 500_000


def test_dimensions_are_what_was_asked_for(tmp_path: Path) -> None:
    toy.write(tmp_path / "x", layers=3, heads=8, kv_heads=2, context=512, vocab=1000)
    header = gguf.read_file(tmp_path / "x")
    assert header.number("block_count") == 3
    assert header.number("attention.head_count") == 8
    assert header.number("attention.head_count_kv") == 2
    assert header.number("context_length") == 512
    assert header.tensors[0].shape == (64, 1000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 3},
        {"kv_heads": 3},
        {"tensor_type": "Q5_K"},
        {"tensor_type": "Q4_0", "embedding": 48},
        {"vocab": 10},
    ],
)
def test_impossible_dimensions_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"embedding|vocab|tensor_type"):
        toy.write(tmp_path / "x", **wrong)


def test_published_it_is_a_store_whose_digests_hold(tmp_path: Path) -> None:
    made = toy.publish(tmp_path, template="{{ .Prompt }}", system="Be brief.")
    manifest = json.loads(made.manifest)
    place = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "tiny" / "latest"
    assert place.read_bytes() == made.manifest
    assert made.digest == f"sha256:{hashlib.sha256(made.manifest).hexdigest()}"
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
    assert kinds == ["model", "template", "system", "params"]
    for part in [manifest["config"], *manifest["layers"]]:
        data = made.blobs[part["digest"]].read_bytes()
        assert part["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert part["size"] == len(data)
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {
        digest.replace(":", "-") for digest in made.blobs
    }
    assert gguf.read_file(made.blobs[made.model]).complete


def test_its_config_names_the_parameters_as_ollama_prints_them(tmp_path: Path) -> None:
    config = json.loads(toy.config_json(digest="sha256:ab"))
    assert config["model_type"] == "115.39K"
    assert config["rootfs"] == {"type": "layers", "diff_ids": ["sha256:ab"]}
    assert (config["model_format"], config["file_type"]) == ("gguf", "F32")
