"""The library on real parts: a toy model, the embedded engine, a loopback registry."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import localfirst
from localfirst.config import load
from localfirst.errors import (
    CascadeExhausted,
    InsufficientResources,
    InvalidRequest,
    UnknownModel,
)
from localfirst.events import Finished, Progress, TextDelta
from localfirst.models import toy
from localfirst.models.manifest import parse as parse_manifest
from localfirst.models.store import Store
from localfirst.runtime import Runtime, fitness
from localfirst.settings import Settings
from localfirst.types import Rung
from tests.fakes import registry


def settings_at(folder: Path, **environ: str) -> Settings:
    """Settings of a machine with nothing but the embedded engine."""
    return load(
        environ={
            "LOCALFIRST_CONFIG": os.devnull,
            "LOCALFIRST_STATE_DIR": str(folder / "state"),
            "OLLAMA_MODELS": str(folder / "models"),
            "LOCALFIRST_LOCAL_ENGINE": "llamacpp",
            "LOCALFIRST_PULL_RESERVE_DISK": "0",
            **environ,
        },
        cwd=folder,
    ).settings


@pytest.fixture
def stocked(tmp_path: Path) -> Path:
    """A folder whose store holds the toy model."""
    toy.publish(tmp_path / "models")
    return tmp_path


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[registry.FakeRegistry]:
    """A registry that offers the toy model."""
    toy.publish(tmp_path / "shop")
    with registry.running(tmp_path / "shop") as running:
        yield running


def test_a_sync_chat_is_answered_by_the_model_of_this_machine(stocked: Path) -> None:
    with localfirst.Client(settings_at(stocked)) as client:
        reply = client.chat("hello", max_tokens=8)
        again = client.chat([{"role": "user", "content": "hello"}], max_tokens=8, temperature=0)
    assert reply.text and again.text
    assert (reply.route, reply.rung) == ("local/tiny:latest", Rung.LOCAL)
    assert reply.usage.completion_tokens == 8
    assert [(a.provider, a.outcome) for a in reply.attempts] == [("local", "ok")]


def test_a_sync_stream_gives_text_piece_by_piece_and_its_reply_at_the_end(stocked: Path) -> None:
    with localfirst.Client(settings_at(stocked)) as client:
        stream = client.stream("hello", max_tokens=8)
        with pytest.raises(InvalidRequest, match="not finished"):
            _ = stream.reply
        pieces = list(stream.text())
        assert len(pieces) > 1
        assert stream.reply.text == "".join(pieces)
        assert stream.headers["x-localfirst-trail"] == "local=ok"


def test_a_stream_left_early_leaves_nothing_behind(stocked: Path) -> None:
    async def scenario() -> None:
        async with localfirst.AsyncClient(settings_at(stocked)) as client:
            stream = client.stream("hello", max_tokens=500)
            async for text in stream.text():
                assert text
                break
            await stream.aclose()
            reply = await client.chat("hello", max_tokens=4)
            assert reply.usage.completion_tokens == 4
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert {task.get_name() for task in others if not task.done()} <= set()

    asyncio.run(scenario())


def test_the_blocking_client_refuses_to_freeze_a_running_loop(stocked: Path) -> None:
    async def scenario() -> None:
        client = localfirst.Client(settings_at(stocked))
        with pytest.raises(InvalidRequest, match="event loop") as caught:
            client.chat("hello")
        assert "AsyncClient" in caught.value.hint

    asyncio.run(scenario())


def test_wrong_arguments_are_named(stocked: Path) -> None:
    with localfirst.Client(settings_at(stocked)) as client:
        with pytest.raises(InvalidRequest, match="temprature"):
            client.chat("hello", temprature=1)
        with pytest.raises(InvalidRequest, match="role"):
            client.chat([{"role": "nobody", "content": "x"}])
        with pytest.raises(InvalidRequest, match="schema"):
            client.chat("hello", schema=42)
        with pytest.raises(UnknownModel, match="nonsense"):
            client.chat("hello", model="nonsense")


def test_the_last_rung_pulls_once_for_everybody_and_answers_from_it(
    tmp_path: Path, shop: registry.FakeRegistry
) -> None:
    settings = settings_at(
        tmp_path,
        LLM_FALLBACK_ORDER="local,pull",
        LOCALFIRST_LOCAL_LAST_RESORT=shop.name(),
    )

    async def scenario() -> None:
        async with Runtime(settings, environ={"PATH": os.environ["PATH"]}) as runtime:
            client = localfirst.AsyncClient(settings)
            client._runtime = runtime
            streams = [client.stream("hello", max_tokens=4) for _ in range(3)]

            async def drain(stream: localfirst.AsyncStream) -> list[object]:
                return [event async for event in stream]

            for stream, events in zip(
                streams, await asyncio.gather(*map(drain, streams)), strict=True
            ):
                kinds = [type(event) for event in events]
                assert Progress in kinds
                assert TextDelta in kinds
                assert kinds[-1] is Finished
                assert stream.headers["x-localfirst-rung"] == "pull"
            manifests = [r for r in shop.requests("registry") if "/manifests/" in r["path"]]
            assert len(manifests) == 1
            # The next one finds it installed.
            reply = await client.chat("hello", max_tokens=4)
            assert reply.rung is Rung.LOCAL

    asyncio.run(scenario())
    assert [model.name for model in Store(tmp_path / "models").models()]


def test_serverless_targets_never_pull(tmp_path: Path, shop: registry.FakeRegistry) -> None:
    settings = settings_at(
        tmp_path, LLM_FALLBACK_ORDER="local,pull", LOCALFIRST_LOCAL_LAST_RESORT=shop.name()
    )
    lambda_ = {
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "LAMBDA_TASK_ROOT": "/var/task",
        "AWS_EXECUTION_ENV": "AWS_Lambda_python3.11",
    }

    async def scenario() -> CascadeExhausted:
        async with Runtime(settings, environ=lambda_) as runtime:
            client = localfirst.AsyncClient(settings)
            client._runtime = runtime
            with pytest.raises(CascadeExhausted) as caught:
                await client.chat("hello")
            return caught.value

    error = asyncio.run(scenario())
    assert shop.requests() == []
    assert "pull" in dict(error.skipped)
    assert "LOCALFIRST_SERVERLESS" in str(error)


def test_nobody_to_ask_is_told_at_once_with_what_to_do(tmp_path: Path) -> None:
    settings = settings_at(
        tmp_path, LLM_FALLBACK_ORDER="local,groq", LOCALFIRST_LOCAL_ENGINE="none"
    )
    with localfirst.Client(settings) as client, pytest.raises(CascadeExhausted) as caught:
        client.chat("hello")
    assert caught.value.attempts == ()
    assert "GROQ_API_KEY" in str(caught.value)
    assert (caught.value.http_status, caught.value.exit_code) == (503, 3)


def test_a_schema_is_met_by_a_model_that_only_makes_noise(stocked: Path) -> None:
    """The engine's grammar forces the shape; the object is validated before it is returned."""
    schema = {
        "type": "object",
        "properties": {"yes": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
        "required": ["yes", "n"],
        "additionalProperties": False,
    }
    with localfirst.Client(settings_at(stocked)) as client:
        reply = client.chat("hello", schema=schema, max_tokens=300)
    assert isinstance(reply.parsed["yes"], bool)
    assert reply.parsed["n"] in {1, 2, 3}


def test_a_model_that_cannot_run_here_is_refused_before_its_first_blob(
    tmp_path: Path, shop: registry.FakeRegistry
) -> None:
    """The manifest names a size that no machine has free; the refusal names models that do fit."""
    manifest = shop.folder / "manifests/registry.ollama.ai/library/tiny/latest"
    document = json.loads(manifest.read_text())
    for layer in document["layers"]:
        if layer["mediaType"].endswith(".model"):
            layer["size"] = 16 * 10**12
    manifest.write_text(json.dumps(document))
    settings = settings_at(tmp_path)

    async def scenario() -> InsufficientResources:
        async with Runtime(settings, environ={}) as runtime:
            job = runtime.puller.start(shop.name(), force=False)
            with pytest.raises(InsufficientResources) as caught:
                await job.wait()
            return caught.value

    error = asyncio.run(scenario())
    assert error.exit_code == 4
    # The disk is asked first; the memory by the very same gate.
    assert error.kind == "disk"
    assert all(entry["range"] == "bytes=0-262143" for entry in shop.requests("cdn"))

    async def gate() -> InsufficientResources:
        async with Runtime(settings, environ={}) as runtime:
            check = fitness.gate(runtime.hardware)
            with pytest.raises(InsufficientResources) as caught:
                await check(parse_manifest(manifest.read_bytes()), b"")
            return caught.value

    refused = asyncio.run(gate())
    assert refused.kind == "memory"
    assert "these fit: `" in refused.hint or "no model of the catalogue fits" in refused.hint


def test_under_local_only_a_remote_ollama_is_not_even_looked_at(stocked: Path) -> None:
    """No probe leaves the machine; the embedded engine answers instead."""
    settings = settings_at(
        stocked,
        LOCALFIRST_PRIVACY="local-only",
        LOCALFIRST_LOCAL_ENGINE="auto",
        LOCALFIRST_LOCAL_START="false",
        OLLAMA_HOST="http://192.0.2.1:11434",
    )
    reached: list[object] = []

    def watch(name: str, args: tuple[object, ...]) -> None:
        if name == "socket.connect" and "192.0.2.1" in repr(args):
            reached.append(args)

    sys.addaudithook(watch)
    with localfirst.Client(settings) as client:
        reply = client.chat("hello", max_tokens=4)
    assert reply.route == "local/tiny:latest"
    assert reached == []
