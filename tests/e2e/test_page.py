"""What the page shows, as the state that it reads: rests, alarms, a download begun from it."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from localfirst.models import toy
from tests.fakes import registry
from tests.fakes.cloud_process import fake_cloud
from tests.fakes.house import house

CONFIG = """
order = ["local", "tired", "broken", "groq", "pull"]
[local]
auto_pull = false
[providers.tired]
base_url = "{tired}"
model = "m"
[providers.broken]
base_url = "{broken}"
model = "m"
[escalation]
failures = 2
same_error = 2
[pull.mirrors]
"registry.ollama.ai" = "http://127.0.0.1:{shop}"
"""


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=20)
    try:
        fields = {"content-type": "application/json"}
        sent = json.dumps(body) if body is not None else None
        connection.request("GET" if body is None else "POST", path, sent, fields)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def until(seen: Callable[[], Any], seconds: float = 10) -> Any:
    end = time.monotonic() + seconds
    while not (found := seen()):
        assert time.monotonic() < end, "never came true"
        time.sleep(0.02)
    return found


def test_the_state_has_what_the_page_shows(tmp_path: Path) -> None:
    toy.publish(tmp_path / "shop")
    with registry.running(tmp_path / "shop") as shop, fake_cloud() as cloud:
        tired, broken = cloud.base_url("tired"), cloud.base_url("broken")
        limited = {"do": "status", "status": 429, "headers": {"retry-after": "600"}, "times": -1}
        cloud.script(limited, part="tired")
        cloud.script({"do": "status", "status": 500, "times": -1}, part="broken")
        config = CONFIG.format(tired=tired, broken=broken, shop=shop.port)
        with house(tmp_path, config=config, LOCALFIRST_LOCAL_ENGINE="none") as at:
            chat = {"model": "auto", "messages": [{"role": "user", "content": "secret words"}]}
            ask(at.url, "/v1/chat/completions", chat)

            def state() -> Any:
                return ask(at.url, "/localfirst/state")

            alarms = until(lambda: state()["escalations"])
            resting = {one["provider"]: one for one in state()["cooldowns"]}
            assert resting["tired"]["cls"] == "rate_limit" and resting["tired"]["until_unix"]
            assert {"tired", "broken"} <= set(resting)
            assert all(one["reason"] and Path(one["file"]).is_file() for one in alarms)
            assert len({one["file"] for one in alarms}) == len(alarms)
            assert "secret words" not in json.dumps(state())

            counted = state()["gateway"]
            assert (counted["requests"], counted["running"]) == (1, 0), "looking on is no load"

            ask(at.url, "/localfirst/pulls", {"action": "start", "model": "tiny"})
            done = until(lambda: [one for one in state()["pulls"] if one["state"] == "done"])
            assert (done[0]["model"], done[0]["percent"]) == ("tiny:latest", 100.0)


def test_the_page_shows_the_plan_and_not_a_guess_at_it() -> None:
    """Under local-only, without downloads, over budget: only the plan knows who may answer."""
    page = resources.files("localfirst.gateway").joinpath("page.html").read_text()
    assert 'ask("localfirst/explain")' in page


def test_the_page_opens_without_a_key_that_it_asks_for_itself(tmp_path: Path) -> None:
    with house(tmp_path, LOCALFIRST_GATEWAY_KEYS="sesame") as at:
        connection = http.client.HTTPConnection(at.url.removeprefix("http://"), timeout=20)
        try:
            for path, status in (("/", 200), ("/ui", 200), ("/localfirst/state", 401)):
                connection.request("GET", path, headers={"accept": "text/html"})
                answer = connection.getresponse()
                assert (answer.status, b"sesame" in answer.read()) == (status, False), path
        finally:
            connection.close()


NODE = """
const at = () => ({});
globalThis.fetch = async (path, options) => {
  const sent = new Headers(options.headers).get("authorization");
  console.log(JSON.stringify([...sent].map((one) => one.charCodeAt(0))));
  return { status: 401 };
};
key = process.argv[1];
ask("/").catch((error) => console.log(error.message));
"""


@pytest.mark.parametrize("typed", ["клюкач", "schlüssel", "sesame"])
def test_a_key_of_any_letters_is_sent_as_the_bytes_that_the_gateway_knows(
    typed: str, tmp_path: Path
) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    page = resources.files("localfirst.gateway").joinpath("page.html").read_text()
    ask_of_the_page = re.search(r"^async function ask.*?^}", page, re.DOTALL | re.MULTILINE)
    assert ask_of_the_page is not None
    script = f"let key; {ask_of_the_page[0]}{NODE}"
    ran = subprocess.run(["node", "-e", script, typed], capture_output=True, text=True, timeout=30)
    sent, told = ran.stdout.splitlines()
    assert bytes(json.loads(sent)) == b"Bearer " + typed.encode()
    assert told == "this key does not open the door"


def test_the_page_leaves_no_letter_of_a_key_to_fetch(tmp_path: Path) -> None:
    """And the gateway takes the bytes that it sends instead."""
    page = resources.files("localfirst.gateway").joinpath("page.html").read_text()
    assert "new TextEncoder().encode(key)" in page
    with house(tmp_path, LOCALFIRST_GATEWAY_KEYS="клюкач") as at:
        for typed, status in (("клюкач", 200), ("клюка", 401)):
            connection = http.client.HTTPConnection(at.url.removeprefix("http://"), timeout=20)
            try:
                shown = {"authorization": b"Bearer " + typed.encode()}
                connection.request("GET", "/localfirst/state", headers=shown)
                assert connection.getresponse().status == status
            finally:
                connection.close()


CHROMIUM = next(filter(shutil.which, ("chromium", "chromium-browser", "google-chrome")), "")
STUB = """
<script>
const pulls = ["first", "second"].map((model) => ({
  model, state: "pulling", total_bytes: 100, completed_bytes: 0, percent: 0,
  rate_bytes_s: 9, eta_s: 9,
}));
const gateway = { requests: 0, running: 0 };
const state = { version: "1", gateway, privacy: "p", order: [], pulls };
const asked = [];
window.fetch = async (path, options) => {
  if (options.method) asked.push(JSON.parse(options.body));
  const found = path.endsWith("explain") ? { steps: [] } : state;
  return { ok: true, status: 200, json: async () => structuredClone(found) };
};
window.setInterval = () => 0;
addEventListener("load", async () => {
  const told = [], buttons = () => [...document.querySelectorAll("#jobs button")];
  const labels = () => buttons().map((one) => one.textContent).join(" ");
  await show();
  buttons()[3].focus();
  const before = document.activeElement;
  pulls[1].percent = 50; pulls[1].completed_bytes = 50;
  await show();
  told.push(document.activeElement === before, document.querySelectorAll("progress")[1].value);
  pulls[1].state = "paused";
  await show();
  told.push(document.activeElement === before, labels());
  told.push(document.querySelectorAll(".job")[1].innerText);
  buttons()[2].click();
  pulls.shift();  // whoever was about to press a button of it must not press one of the next
  await show();
  told.push(document.activeElement === before && buttons().includes(before), labels());
  told.push(asked.map((one) => one.action + " " + one.model).join());
  document.documentElement.innerHTML = JSON.stringify(told);
});
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="no browser is installed")
def test_a_look_takes_nothing_from_under_the_fingers(tmp_path: Path) -> None:
    """Each three seconds every button was another one: who reached it by keyboard lost it."""
    page = resources.files("localfirst.gateway").joinpath("page.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("<script>", f"{STUB}<script>", 1))
    ran = subprocess.run(
        [
            CHROMIUM,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"),
            f"--user-data-dir={tmp_path}/profile",
            "--dump-dom",
            f"file://{tmp_path}/page.html",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = re.search(r"\[.*\]", ran.stdout)
    assert found is not None, ran
    assert json.loads(found[0]) == [
        *(True, 50),
        *(True, "pause cancel resume cancel", "second paused · 50 B of 100 B resume cancel"),
        *(False, "resume cancel"),
        "resume second",
    ]
