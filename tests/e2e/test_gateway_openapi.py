"""The description of the gateway, held against a running one by a tool that knows only that."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localfirst.gateway.openapi import document
from localfirst.gateway.routes import ROUTES
from localfirst.models import toy
from tests.fakes import registry
from tests.fakes.backends import OllamaBackend, daemon
from tests.fakes.house import House, house

PATIENCE_S = 300
# A body of 20 MB, which it makes, takes its time on a machine that does other things too.
SLOWLY = ["--request-timeout", "60"]

# Neither a method that HTTP's parsers do not know nor TRACE gets as far as a 405.
CHECKS = ["--checks", "all", "--exclude-checks", "unsupported_method"]

SAYING = ["--no-color", "--continue-on-failure", "--warnings", "off"]

# A model that is not there, a registry that may not be asked and a window that is too small
# are answers that a schema cannot foresee; a server's error never is one.
CONFIG = '[checks.positive_data_acceptance]\nexpected-statuses = ["2xx", 403, 404, 413]\n'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house with a model, an engine that never tires, and a registry for everything else."""
    folder = tmp_path_factory.mktemp("described")
    (folder / "shop").mkdir()
    toy.publish(folder / "shop")
    with registry.running(folder / "shop") as shop, daemon() as url:
        mirror = f'"registry.ollama.ai" = "http://127.0.0.1:{shop.port}"\n'
        engine = {"OLLAMA_HOST": url, "LOCALFIRST_LOCAL_ENGINE": "ollama"}
        alone = {"LOCALFIRST_ORDER": "local", **engine}
        with house(folder, config=f"[pull.mirrors]\n{mirror}", **alone) as at:
            OllamaBackend(at, url).prepare("anything")
            yield at


def test_no_request_that_the_description_allows_or_forbids_gets_an_answer_it_does_not_tell_of(
    served: House, tmp_path: Path
) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    program = Path(sys.executable).with_name("st")
    phases = ["--phases", "coverage,fuzzing", "--max-examples", "5", "--seed", "1"]
    where = f"{served.url}/localfirst/openapi.json"
    done = subprocess.run(
        [str(program), "run", where, *CHECKS, *phases, *SAYING, *SLOWLY],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    described = len(ROUTES) - 1  # the description's own address is not asked for again
    assert f"Selected: {described}/{described}" in done.stdout
    assert "No issues found" in done.stdout


DESCRIBED: dict[str, Any] = json.loads(document(ROUTES))["paths"]


@pytest.mark.parametrize("path", sorted(DESCRIBED))
def test_a_method_that_is_not_described_is_refused_with_those_that_are(
    path: str, served: House
) -> None:
    described = {method.upper() for method in DESCRIBED[path]}
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS"):
        connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=5)
        try:
            connection.request(method, path.replace("{name}", "tiny"))
            answer = connection.getresponse()
            assert answer.status == 405, (method, answer.read())
            allowed = set(answer.getheader("allow", "").split(", "))
            assert allowed - {"HEAD"} == described
            assert answer.headers.get_all("connection") == ["close"]
        finally:
            connection.close()
