"""Downloads: Ollama's `/api/pull` over the server's own pull, and our list of them."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from localfirst.errors import AccessDenied, InvalidRequest, UnknownModel
from localfirst.gateway.refusal import JSON_LINES
from localfirst.gateway.request import Request
from localfirst.gateway.surfaces.surface import NDJSON
from localfirst.gateway.views import Download
from localfirst.models import names
from localfirst.settings import PullSettings
from localfirst.types import Json
from localfirst.wire.fields import Fields, refuse, wrong
from localfirst.wire.ollama.decode import model_of
from localfirst.wire.strict_json import load_object

if TYPE_CHECKING:
    from localfirst.gateway.app import Gateway

ACTIONS = ("start", "pause", "resume", "cancel")


async def ollama(gateway: Gateway, request: Request) -> None:
    """`POST /api/pull`: the lines of Ollama's API; leaving does not end the download."""
    fields = _fields(await request.body())
    stream = fields.flag("stream") is not False
    if fields.flag("insecure"):
        raise InvalidRequest(
            "`insecure` is not taken from a request",
            field="insecure",
            hint="run `localfirst pull --insecure` on the machine itself",
        )
    job = gateway.runtime.puller.start(pullable(fields, gateway.runtime.settings.pull))
    request.model = job.name
    if not stream:
        status, data = await gateway.runtime.pull_last(job)
        await request.answer(data, JSON_LINES, status)
        return
    request.start(200, NDJSON)
    async with aclosing(gateway.runtime.pull_lines(job)) as lines:
        async for line in lines:
            await request.write(line)
    await request.end()


async def listing(gateway: Gateway, request: Request) -> None:
    """`GET /localfirst/pulls`: every download this server knows of."""
    await request.struct({"pulls": [job_object(job) for job in gateway.runtime.puller.jobs()]})


async def change(gateway: Gateway, request: Request) -> None:
    """`POST /localfirst/pulls` with `{"action": …, "model": …}`."""
    fields = _fields(await request.body())
    action = fields.choice("action", ACTIONS) or "start"
    name = pullable(fields, gateway.runtime.settings.pull)
    if action == "start":
        job: Download = gateway.runtime.puller.start(name)
    else:
        job = _running(gateway, name)
        getattr(job, action)()
    request.model = job.name
    await request.struct(job_object(job))


def pullable(fields: Fields, settings: PullSettings) -> str:
    """
    The model's name, at a registry that may be asked, or whose mirror is.

    Raises:
        ModelNameInvalid: no name.
        AccessDenied: 403 `registry-not-allowed`.
    """
    name = model_of(fields)
    if name == "auto":
        raise wrong("model", "the name of a model to download")
    ref = names.parse(name)
    if ref.host not in settings.registries and ref.host not in settings.mirrors:
        raise AccessDenied(
            f"the registry `{ref.host[:80]}` may not be asked",
            code="registry-not-allowed",
            hint="add it to `pull.registries`",
        )
    return name


def job_object(job: Download) -> dict[str, Json]:
    """A download for lists: bytes, rate in bytes a second, seconds to go."""
    seen = job.snapshot()
    progress = job.progress
    return {
        "model": seen.name,
        "state": str(seen.state),
        "completed_bytes": progress.completed_bytes,
        "total_bytes": progress.total_bytes,
        "percent": progress.percent,
        "rate_bytes_s": seen.rate_bytes_s,
        "eta_s": seen.eta_s,
        "error": seen.error,
        "hint": seen.hint,
    }


def _fields(body: bytes) -> Fields:
    fields = Fields(load_object(body))
    refuse(set(fields.values))
    return fields


def _running(gateway: Gateway, name: str) -> Download:
    wanted = names.parse(name).key
    for job in gateway.runtime.puller.jobs():
        if job.ref.key == wanted:
            return job
    raise UnknownModel(f"no download of `{name[:80]}` is known", nearest=())
