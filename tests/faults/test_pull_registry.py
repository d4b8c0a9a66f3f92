"""What is guarded: every way a registry, a mirror or a proxy can go wrong in a pull."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import random
import shutil
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localfirst.errors import DigestMismatch, LocalFirstError, PullError, PullStalled
from localfirst.models.pull import Puller
from localfirst.models.pull_errors import broken, refused, retry_after_s
from localfirst.models.store import Store
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock
from tests.fakes.registry import FakeRegistry, running

WEIGHTS = random.Random(8).randbytes(9_000_000)
DIGEST = "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()
PAUSES_S = (0.01, 0.02, 0.03, 0.04)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeRegistry]:
    with running(tmp_path_factory.mktemp("registry")) as fake:
        fake.publish(model=WEIGHTS, template=b"{{ .Prompt }}")
        yield fake


@pytest.fixture
def fake(shared: FakeRegistry) -> FakeRegistry:
    shared.knobs(reset=True)
    return shared


class Scene:
    """A store, and pulls into it one after another."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = Store(tmp_path / "models")
        self.environ = {"HOME": str(tmp_path)}
        self.completed: list[int] = []
        self.on_progress: Callable[[int], object] = lambda done: None

    def pull(self, name: str, **changes: Any) -> None:
        """Pull *name*; raises what the job raises."""
        options = {k: changes.pop(k) for k in ("insecure", "any_host", "digest") if k in changes}
        settings = PullSettings(**{"stall_s": 5.0, "reserve_disk_bytes": 0, **changes})

        async def main() -> None:
            puller = Puller(
                store=self.store,
                settings=settings,
                clock=SystemClock(),
                environ=self.environ,
                pauses_s=PAUSES_S,
            )
            try:
                async with asyncio.timeout(40):
                    async for progress in puller.start(name, **options).watch():
                        self.completed.append(progress.completed_bytes)
                        self.on_progress(progress.completed_bytes)
            finally:
                await puller.aclose()

        asyncio.run(main())

    def is_whole(self, name: str) -> bool:
        return self.store.model_file(name).read_bytes() == WEIGHTS


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


SURVIVED: dict[str, dict[str, Any]] = {
    "direct answer without a redirect": {"redirect": 0},
    "301": {"redirect": 301},
    "302": {"redirect": 302},
    "303": {"redirect": 303},
    "308": {"redirect": 308},
    "ranges ignored": {"ignore_range": True},
    "ranges ignored and cut once": {"ignore_range": True, "cut_after": 3_000_000, "cut_times": 1},
    "every third body cut": {"cut_share": 0.34},
    "cut at once, five times": {"cut_after": 0, "cut_times": 5},
    "cut midway, twenty times": {"cut_after": 200_000, "cut_times": 20},
    "signed url good for two requests": {"expire_after": 2},
    "429 with Retry-After, then good": {"cdn_status": 429, "cdn_times": 3, "retry_after": "0"},
    "503 twice, then good": {"cdn_status": 503, "cdn_times": 2},
    "403 once, then good": {"cdn_status": 403, "cdn_times": 1},
    "manifest 500 once, then good": {"manifest_status": 500, "manifest_times": 1},
    "blob redirect 502 once, then good": {"registry_status": 502, "registry_times": 1},
    "one byte corrupt once": {"corrupt_at": 4_000_000, "corrupt_times": 1},
    "token asked for": {"auth": "bearer"},
    "HEAD tells nothing": {"no_head": True},
    "first connection drips": {"slow_first": 20_000},
    "each answer late": {"latency_s": 0.05},
}


@pytest.mark.parametrize("fault", SURVIVED)
def test_a_pull_gets_through(fault: str, scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(**SURVIVED[fault])
    scene.pull(fake.name())
    assert scene.is_whole(fake.name())
    assert scene.completed == sorted(scene.completed)
    assert not list((scene.store.ours / "partial").iterdir())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "manifest 401": ({"manifest_status": 401}, "registry-unauthorized"),
    "manifest 403": ({"manifest_status": 403}, "registry-unauthorized"),
    "manifest 404": ({"manifest_status": 404}, "model-not-in-registry"),
    "manifest 429": ({"manifest_status": 429}, "registry-rate-limited"),
    "manifest 500": ({"manifest_status": 500}, "registry-unavailable"),
    "manifest is HTML": ({"manifest_body": "<html>sign in"}, "manifest-invalid"),
    "manifest is empty": ({"manifest_body": "{}"}, "manifest-invalid"),
    "manifest with path in digest": (
        {"manifest_body": '{"layers":[{"digest":"sha256:../../../etc/passwd","size":1}]}'},
        "manifest-invalid",
    ),
    "blobs 403": ({"cdn_status": 403}, "registry-unauthorized"),
    "blobs 404": ({"registry_status": 404}, "model-not-in-registry"),
    "blobs 503": ({"cdn_status": 503}, "registry-unavailable"),
    "corrupt for ever": ({"corrupt_at": 4_000_000}, "digest-mismatch"),
    "another size": ({"wrong_total": 5}, "registry-size"),
    "another range": ({"wrong_start": 3}, "registry-refused"),
    "a range of more digits than a number has": ({"start_digits": 5000}, "registry-refused"),
    "another length": ({"wrong_length": -7}, "registry-refused"),
    "cut for ever": ({"cut_after": 0}, "registry-unreachable"),
    "basic without password": ({"auth": "basic"}, "registry-unauthorized"),
    "redirect to a file": ({"redirect_to": "file:///etc/passwd"}, "registry-refused"),
    "redirect to no URL": ({"redirect_to": "http://["}, "registry-refused"),
    "redirect in circles": (
        {"redirect_to": "/v2/library/tiny/blobs/" + DIGEST},
        "registry-refused",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_pull_fails_with_its_own_code_and_a_next_step(
    fault: str, scene: Scene, fake: FakeRegistry
) -> None:
    knobs, code = REFUSED[fault]
    fake.knobs(**knobs)
    with pytest.raises(PullError) as caught:
        scene.pull(fake.name())
    assert caught.value.code == code
    assert caught.value.hint and "sig=" not in caught.value.message
    assert scene.store.models() == []
    assert not list(scene.store.root.glob("blobs/sha256-" + DIGEST[7:]))
    fake.knobs(reset=True)
    scene.pull(fake.name())
    assert scene.is_whole(fake.name())


def test_what_was_fetched_before_a_failure_is_kept(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(rate=4_000_000)
    scene.on_progress = lambda done: fake.knobs(down=True) if done > 3_000_000 else None
    with pytest.raises(PullError) as caught:
        scene.pull(fake.name())
    assert caught.value.code == "registry-unavailable"
    kept = scene.completed[-1]
    scene.on_progress = lambda done: None
    scene.completed.clear()
    fake.knobs(reset=True)
    scene.pull(fake.name())
    assert scene.is_whole(fake.name())
    assert kept > 3_000_000
    assert min(done for done in scene.completed if done) >= kept
    starts = [int(entry["range"][6:].split("-")[0]) for entry in fake.requests("cdn")]
    assert 0 not in starts[1:2]  # the first asks only where the blob is


def test_false_bytes_are_thrown_away_and_not_gone_on_with(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(corrupt_at=100)
    with pytest.raises(DigestMismatch) as caught:
        scene.pull(fake.name())
    assert caught.value.exit_code == 5
    fake.knobs(reset=True)
    scene.pull(fake.name())
    assert fake.fetched_bytes(DIGEST) >= len(WEIGHTS)


def test_silence_is_cut_and_the_stretch_fetched_by_another(
    scene: Scene, fake: FakeRegistry
) -> None:
    fake.knobs(stall_after=300_000, stall_times=3)
    scene.pull(fake.name(), stall_s=0.3)
    assert scene.is_whole(fake.name())


def test_silence_for_ever_is_a_stall(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(stall_after=0)
    with pytest.raises(PullStalled):
        scene.pull(fake.name(), stall_s=0.1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files by /proc")
def test_pulls_that_fail_leave_no_thread_and_no_open_file(scene: Scene, fake: FakeRegistry) -> None:
    def leavings() -> tuple[int, int]:
        gc.collect()
        threads = [t for t in threading.enumerate() if t.name.startswith("pull")]
        return len(list(Path("/proc/self/fd").iterdir())), len(threads)

    troubles: list[dict[str, Any]] = [
        {"cut_after": 0},
        {"stall_after": 1000},
        {"cdn_status": 404},
        {"corrupt_at": 5},
        {"wrong_start": 1},
        {"ignore_range": True, "cut_after": 100},
    ]
    before = leavings()
    for trouble in troubles:
        fake.knobs(reset=True, **trouble)
        # What an earlier trouble left is true, and might let this one succeed.
        shutil.rmtree(scene.store.root, ignore_errors=True)
        with pytest.raises(PullError):
            scene.pull(fake.name(), stall_s=0.1)
    for _ in range(100):  # a pool's idle threads end soon after their loop
        after = leavings()
        if after[0] <= before[0] and not after[1]:
            break
        threading.Event().wait(0.05)
    assert after[0] <= before[0] and after[1] == 0, (before, after, open_files())


def open_files() -> list[str]:
    return [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()]


def test_an_expired_url_is_resolved_again(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(expire_after=2)
    scene.pull(fake.name(), connections=2)
    located = [e for e in fake.requests("registry") if DIGEST in e["path"]]
    assert len(located) >= 2


def test_the_authorization_stays_with_the_registrys_origin(
    scene: Scene, fake: FakeRegistry
) -> None:
    fake.knobs(auth="bearer")
    scene.pull(fake.name())
    assert {entry["authorization"] for entry in fake.requests("cdn")} == {""}
    fetched = [entry for entry in fake.requests("registry") if entry["status"] < 400]
    tokens = [entry for entry in fetched if entry["path"].startswith("/token")]
    assert len(tokens) == 1 and tokens[0]["authorization"] == ""


def test_a_mirror_with_a_password_is_asked_instead(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(auth="basic")
    mirrors = {"registry.ollama.ai": f"http://me:secret@{fake.host}"}
    scene.pull("tiny", mirrors=mirrors, registries=())
    assert scene.is_whole("tiny")
    assert {entry["authorization"] for entry in fake.requests("cdn")} == {""}


def test_a_mirrors_password_is_in_no_error(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(auth="basic")
    mirrors = {"registry.ollama.ai": f"http://me:hunter2@{fake.host}"}
    with pytest.raises(PullError) as caught:
        scene.pull("tiny", mirrors=mirrors, registries=())
    assert "hunter2" not in f"{caught.value!r} {caught.value.message} {caught.value.hint}"


def test_a_realm_elsewhere_in_plain_http_gets_nothing(scene: Scene, fake: FakeRegistry) -> None:
    fake.knobs(auth="bearer", realm="http://tokens.example/token")
    with pytest.raises(PullError, match="not https"):
        scene.pull(fake.name())


@pytest.mark.parametrize("realm", ["https://[", "http://127.0.0.1:99999/t", "https://x:-1/t"])
def test_a_realm_that_is_no_url_is_a_refusal(scene: Scene, fake: FakeRegistry, realm: str) -> None:
    fake.knobs(auth="bearer", realm=realm)
    with pytest.raises(PullError, match="no URL") as caught:
        scene.pull(fake.name())
    assert caught.value.code == "registry-refused"


def test_only_allowed_registries_are_asked(scene: Scene) -> None:
    with pytest.raises(PullError) as caught:
        scene.pull("evil.example/library/tiny")
    assert caught.value.code == "registry-not-allowed"


def test_plain_http_elsewhere_needs_to_be_asked_for(scene: Scene) -> None:
    with pytest.raises(PullError) as caught:
        scene.pull("http://registry.example/library/tiny", any_host=True)
    assert caught.value.code == "registry-insecure"
    with pytest.raises(PullError) as caught:
        scene.pull("tiny", mirrors={"registry.ollama.ai": "http://mirror.example"})
    assert caught.value.code == "registry-insecure"


def test_a_name_that_nobody_knows_is_a_dns_error(scene: Scene) -> None:
    with pytest.raises(PullError) as caught:
        scene.pull("registry.invalid/library/tiny", any_host=True)
    assert caught.value.code in {"registry-dns", "registry-unreachable"}


def test_a_registry_that_is_down_is_unreachable(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(PullError) as caught:
        scene.pull(f"127.0.0.1:{port}/library/tiny")
    assert caught.value.code == "registry-unreachable"


def test_a_registry_that_speaks_no_tls_is_a_tls_error(scene: Scene, fake: FakeRegistry) -> None:
    with pytest.raises(PullError) as caught:
        scene.pull(f"https://{fake.name()}")
    assert caught.value.code == "registry-tls"


def test_a_moved_tag_fails_a_pinned_pull_before_any_blob(scene: Scene, fake: FakeRegistry) -> None:
    with pytest.raises(LocalFirstError) as caught:
        scene.pull(fake.name(), digest="0" * 64)
    assert (caught.value.code, caught.value.exit_code) == ("lock-moved", 5)
    assert fake.requests("cdn") == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5", 5.0),
        (" 7 ", 7.0),
        ("99999999", 600.0),
        ("-1", None),
        ("soon", None),
        ("", None),
        (None, None),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("1e9", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(
    value: str | None, expected: float | None
) -> None:
    assert retry_after_s(value, 40.0) == expected


def test_each_cause_has_its_own_code() -> None:
    def code(error: BaseException) -> str:
        return broken(error, "host").code

    assert code(OSError(28, "No space left on device")) == "insufficient-disk"
    assert code(PermissionError(13, "denied", "/models/x")) == "store-not-writable"
    assert code(socket.gaierror(-2, "unknown")) == "registry-dns"
    assert code(ssl.SSLCertVerificationError(1, "self-signed")) == "registry-tls"
    assert code(TimeoutError()) == "pull-stalled"
    assert code(ConnectionResetError(104, "reset")) == "registry-unreachable"
    assert code(OSError("Tunnel connection failed: 407 Proxy Authentication Required")) == (
        "registry-proxy"
    )
    outer = RuntimeError("outer")
    outer.__cause__ = socket.gaierror(-2, "unknown")
    assert code(outer) == "registry-dns"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (socket.gaierror(-2, "Name or service not known"), "`host`: Name or service not known"),
        (ConnectionResetError(104, "reset"), "`host` broke the connection: reset"),
        (OSError("no number"), "`host` broke the connection: no number"),
        (ConnectionResetError(), "`host` broke the connection: ConnectionResetError"),
    ],
)
def test_a_cause_is_told_in_words_and_not_in_numbers(error: OSError, said: str) -> None:
    assert broken(error, "host").message == said


def test_foreign_text_is_shown_without_its_secrets() -> None:
    said = b"see https://u:p@host/x?X-Amz-Signature=abc\r\n\x1b[31mred"
    message = refused(500, "host", "x", said).message
    assert "abc" not in message and "u:p" not in message and "\x1b" not in message
