"""What is guarded: who is asked, how, and who hears our name."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from localfirst.errors import PullError
from localfirst.models import names
from localfirst.models.registry_auth import (
    EMPTY_BODY_HASH,
    Challenge,
    first_authorization,
    origin,
    read_challenge,
    same_service,
    token_request,
)
from localfirst.models.sources import Sources
from localfirst.settings import PullSettings
from localfirst.transport.clock import SystemClock

MIRRORS = {
    "registry.ollama.ai": "https://mirror.corp/ollama/",
    "near.example": "http://10.0.0.5:5000",
    "far.example": "http://mirror.example",
}


def base(name: str, *, mirrors: bool = False, insecure: bool = False) -> str:
    settings = PullSettings(
        registries=("registry.ollama.ai", "reg.example"), mirrors=MIRRORS if mirrors else {}
    )
    sources = Sources(settings, clock=SystemClock(), local_only=False)
    return sources.of(names.parse(name), insecure=insecure)[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3.2:3b", "https://registry.ollama.ai"),
        ("reg.example/a/b", "https://reg.example"),
        ("127.0.0.1:5000/a/b", "http://127.0.0.1:5000"),
        ("localhost:5000/a/b", "http://localhost:5000"),
        ("https://127.0.0.1:5000/a/b", "https://127.0.0.1:5000"),
    ],
)
def test_loopback_is_asked_in_http_and_everyone_else_in_https(name: str, expected: str) -> None:
    assert base(name) == expected


def test_insecure_means_http_unless_the_name_says_https() -> None:
    assert base("reg.example/a/b", insecure=True) == "http://reg.example"
    assert base("http://reg.example/a/b", insecure=True) == "http://reg.example"
    assert base("https://reg.example/a/b", insecure=True) == "https://reg.example"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("other.example/a/b", "registry-not-allowed"),
        ("169.254.169.254/a/b", "registry-not-allowed"),
        ("http://reg.example/a/b", "registry-insecure"),
    ],
)
def test_nobody_else_is_asked(name: str, code: str) -> None:
    with pytest.raises(PullError) as caught:
        base(name)
    assert caught.value.code == code


def test_a_mirror_stands_in_for_its_registry() -> None:
    assert base("llama2", mirrors=True) == "https://mirror.corp/ollama"
    assert base("near.example/a/b", mirrors=True) == "http://10.0.0.5:5000"
    with pytest.raises(PullError):
        base("far.example/a/b", mirrors=True)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/token",service="s",scope="x y"',
            Challenge(scheme="bearer", realm="https://a/token", service="s", scope="x y"),
        ),
        ("bearer realm=https://a/token", Challenge(scheme="bearer", realm="https://a/token")),
        ('Basic realm="x"', Challenge(scheme="basic")),
        ("Bearer", None),
        ("Negotiate", None),
        ("", None),
        (None, None),
    ],
)
def test_a_challenge_is_read(header: str | None, expected: Challenge | None) -> None:
    assert read_challenge(header) == expected


def asked(realm: str, registry: str, home: Path) -> tuple[str, str]:
    challenge = Challenge(scheme="bearer", realm=realm, service="s", scope="a b")
    return token_request(challenge, registry, now_unix=7.0, environ={"HOME": str(home)})


def test_a_password_goes_to_the_registrys_own_realm_and_no_further(tmp_path: Path) -> None:
    registry = "https://me:secret@reg.example"
    own, by = asked("https://reg.example/token", registry, tmp_path)
    assert by == "Basic " + base64.b64encode(b"me:secret").decode()
    assert "scope=a&scope=b&service=s&ts=7" in own and "secret" not in own
    for realm in (
        "https://auth.other.example/token",
        "https://reg.example:444/token",
        "https://reg.example.evil.example/token",
    ):
        assert asked(realm, registry, tmp_path)[1] == ""
    with pytest.raises(PullError):
        asked("http://reg.example/token", registry, tmp_path)


def test_hugging_faces_two_names_are_one_service() -> None:
    assert same_service("https://hf.co/x", "https://huggingface.co/y")
    assert not same_service("http://hf.co/x", "https://huggingface.co/y")
    assert not same_service("https://hf.co.evil.example", "https://huggingface.co")
    assert origin("HTTPS://HF.co/x") == ("https", "hf.co", 443)


def test_hugging_faces_token_goes_to_hugging_face_only() -> None:
    environ = {"HF_TOKEN": "hf_x"}
    assert first_authorization("https://hf.co", environ) == "Bearer hf_x"
    assert first_authorization("http://hf.co", environ) == ""
    assert first_authorization("https://registry.ollama.ai", environ) == ""
    assert first_authorization("https://hf.co.evil.example", environ) == ""


def test_an_ollama_key_signs_the_request_for_a_token(tmp_path: Path) -> None:
    keys = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    forms = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    private = keys.Ed25519PrivateKey.generate()
    folder = tmp_path / ".ollama"
    folder.mkdir()
    (folder / "id_ed25519").write_bytes(
        private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption())
    )
    public = private.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH)
    (folder / "id_ed25519.pub").write_bytes(public + b" me@here\n")
    url, by = asked("https://reg.example/token", "https://reg.example", tmp_path)
    name, _, signature = by.partition(":")
    assert name == public.split()[1].decode()
    private.public_key().verify(
        base64.b64decode(signature), f"GET,{url},{EMPTY_BODY_HASH}".encode()
    )


def test_without_a_key_nobody_signs(tmp_path: Path) -> None:
    assert asked("https://reg.example/token", "https://reg.example", tmp_path)[1] == ""
