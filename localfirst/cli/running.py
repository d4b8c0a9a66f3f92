"""
The gateway that runs on this machine, asked over loopback in Ollama's words.

Its embedded engine lives in its own process, so what is in memory there only it can tell.
One that wants a key is shown the configured one, if it is a process of this user's: whoever
else took its port would learn it.
"""

from __future__ import annotations

import http.client
import json
from typing import Any

from localfirst.settings import GatewaySettings
from localfirst.types import Json

ASK_S = 3.0
UNLOAD_S = 30.0


LOCKED = 401


def locked(gateway: GatewaySettings) -> bool:
    """Whether a gateway answers that wants another key than is configured."""
    return ask(gateway, "GET", "/api/ps", None, ASK_S)[0] == LOCKED


def models(gateway: GatewaySettings) -> list[dict[str, Json]]:
    """What it has in memory, as `/api/ps` tells; empty when no gateway answers."""
    status, found = ask(gateway, "GET", "/api/ps", None, ASK_S)
    listed = found.get("models") if status == 200 else None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def unload(gateway: GatewaySettings, name: str) -> bool:
    """Have it take a model out of memory; False when it had none of that name."""
    if not any(same(str(one.get("name", "")), name) for one in models(gateway)):
        return False
    body = {"model": name, "keep_alive": 0, "stream": False}
    status, _ = ask(gateway, "POST", "/api/generate", body, UNLOAD_S)
    return status == 200


def same(listed: str, asked: str) -> bool:
    """Whether two names are one model; a tag that is not said is `latest`."""
    return listed.removesuffix(":latest") == asked.removesuffix(":latest")


def ask(
    gateway: GatewaySettings, method: str, path: str, body: Json, limit_s: float
) -> tuple[int, dict[str, Json]]:
    """One request; `(0, {})` when nobody answers as a gateway does."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(gateway.host, gateway.host)
    connection = http.client.HTTPConnection(host, gateway.port, timeout=limit_s)
    try:
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, headers(gateway))
        response = connection.getresponse()
        found = json.loads(response.read(2**20))
    except (OSError, http.client.HTTPException, ValueError):
        return 0, {}
    finally:
        connection.close()
    return response.status, found if isinstance(found, dict) else {}


def headers(gateway: GatewaySettings) -> dict[str, str]:
    """What a request to *gateway* carries: its key only where it is ours."""
    found = {"content-type": "application/json"}
    if gateway.keys and ours(gateway.port):
        found["authorization"] = f"Bearer {gateway.keys[0].reveal()}"
    return found


def ours(port: int) -> bool:
    """Whether a gateway of this user's listens on *port*."""
    import psutil

    return any(serves(process, port) for process in psutil.process_iter())


def serves(process: Any, port: int) -> bool:
    """Whether a process is a `localfirst serve` that listens on *port*."""
    import psutil

    try:
        words = process.cmdline()
        if "serve" not in words or not any("localfirst" in word for word in words):
            return False
        listening = process.net_connections("tcp")
    except (psutil.Error, OSError):
        return False
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in listening)
