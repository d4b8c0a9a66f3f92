"""
What is left to Ollama's own client library: changes of a daemon's store, off the hot path.

The library waits for ever unless told otherwise, takes proxies even for loopback and sends
`OLLAMA_API_KEY` to whoever listens, so all three are settled here. Its errors become ours.
"""

from __future__ import annotations

import msgspec

from localfirst.errors import Breakage, UpstreamBroken, UpstreamRefused

WAIT_S = 30.0


async def delete(endpoint: str, model: str) -> None:
    """Remove *model* at *endpoint*; raises `UpstreamError`."""
    import httpx
    import ollama

    client = ollama.AsyncClient(
        host=endpoint, timeout=WAIT_S, trust_env=False, headers={"authorization": "none"}
    )
    try:
        await client.delete(model)
    except ollama.ResponseError as error:
        body = msgspec.json.encode({"error": error.error})
        raise UpstreamRefused(error.status_code, body) from error
    except (ConnectionError, httpx.TransportError) as error:
        raise UpstreamBroken(Breakage.CONNECT_REFUSED, str(error)[:200]) from error
    finally:
        await client.close()  # type: ignore[no-untyped-call]
