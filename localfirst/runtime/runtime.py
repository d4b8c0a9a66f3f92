"""
The house opened: every room built from the settings, wired, started, and closed again.

Opening reaches no network and starts no engine; that waits for the first request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from localfirst.cascade import contract, quota, report, structured
from localfirst.cascade.alarm import Alarm
from localfirst.cascade.cache import Cache
from localfirst.cascade.health import Cooldown, Health
from localfirst.cascade.plan import Plan
from localfirst.cascade.quota import Quota
from localfirst.cascade.report import Facts
from localfirst.cascade.run import Answer, Cascade
from localfirst.engines.local import LocalEngine
from localfirst.events import Progress, Reply
from localfirst.ledger.db import Ledger
from localfirst.machine import serverless
from localfirst.machine.connectivity import Connectivity
from localfirst.machine.fit import Hardware
from localfirst.models import daemon_route, names, pull_ndjson
from localfirst.models.names import ModelName
from localfirst.models.pull import Puller
from localfirst.models.pull_job import PullJob
from localfirst.models.store import Store, default_root
from localfirst.runtime import embedding, fitness, state
from localfirst.runtime.budget import Budget
from localfirst.runtime.clouds import Clouds
from localfirst.runtime.entries import EmbedReply, ModelEntry
from localfirst.runtime.gauge import Gauge
from localfirst.runtime.last_resort import LastResort
from localfirst.runtime.lookout import Lookout
from localfirst.runtime.pulled import PulledBackend
from localfirst.runtime.records import Records
from localfirst.runtime.webhook import Webhook
from localfirst.settings import Privacy, Settings
from localfirst.transport import process
from localfirst.transport.clock import SystemClock
from localfirst.transport.http import is_loopback
from localfirst.transport.upstream import UpstreamClient
from localfirst.transport.upstream_proxy import from_environment
from localfirst.types import Call, Clock, Json, Target, Texts

REACH_S = 1.2
"""A registry that takes longer to connect to is not one to wait a download for."""


class Runtime:
    """
    Everything a request needs, for one event loop.

    Args:
        settings: from `config.load()`.
        environ: the process' own variables when None; proxies, GPUs and serverless targets
            are told by them.
        clock: time; the system's when None.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.settings = settings
        self.environ = dict(process.environ() if environ is None else environ)
        self.clock: Clock = clock or SystemClock()
        self.serverless = serverless.verdict(self.environ, override=settings.serverless)
        self.store = Store(Path(settings.local.models_dir or default_root(self.environ)))
        self._started = False
        self._keeping: list[asyncio.Task[None]] = []
        self._open_rooms()

    def _open_rooms(self) -> None:
        """Build everything; nothing here waits, connects or starts."""
        settings, clock = self.settings, self.clock
        self.gauge = Gauge(self.store.root, self.environ, clock)
        self.upstream = UpstreamClient(
            clock,
            proxies=from_environment(self.environ),
            local_only=settings.privacy is Privacy.LOCAL_ONLY,
        )
        self.clouds = Clouds(settings, upstream=self.upstream, clock=clock)
        self.connectivity = Connectivity(
            clock,
            environ=self.environ,
            offline=settings.offline,
            local_only=settings.privacy is Privacy.LOCAL_ONLY,
            hosts=tuple(self.clouds.hosts.values()),
        )
        self.engine = LocalEngine(
            settings,
            store=self.store,
            upstream=self.upstream,
            clock=clock,
            environ=self.environ,
            hardware=self.gauge.now,
        )
        self.puller = Puller(
            store=self.store,
            settings=settings.pull,
            clock=clock,
            environ=self.environ,
            check=fitness.gate(self.gauge.now, context_tokens=settings.local.num_ctx),
            daemon=self._pulling_daemon,
            daemon_idle=self._no_ollama,
            local_only=settings.privacy is Privacy.LOCAL_ONLY,
        )
        self.ledger = Ledger(Path(settings.state_dir) / "localfirst.db", clock)
        self.budget = Budget(settings.budget, self.ledger, clock, own=self.clouds.own)
        self.health = Health(local=self.clouds.near, marks=self.clouds.marks)
        self._open_cascade()

    def _open_cascade(self) -> None:
        """What decides, and everything that it asks or tells."""
        settings, clock = self.settings, self.clock
        self.records = Records(self.ledger, self.connectivity, self.clouds, self.budget)
        self.lookout = Lookout(
            settings,
            engine=self.engine,
            providers=lambda: self.clouds.views,
            connectivity=self.connectivity,
            verdict=self.serverless,
            clock=clock,
            over_budget=self.budget.spent,
            last_resort=LastResort(settings, self.gauge, clock),
        )
        self.alarm = Alarm(
            settings.escalation,
            folder=Path(settings.state_dir) / "escalations",
            clock=clock,
            health=self.health,
            ledger=self.ledger,
            send=Webhook(settings.privacy),
            context=self._context,
            models=self.clouds.configured_models(settings),
        )
        self.cascade = Cascade(
            backends={
                "local": self.engine,
                "pull": PulledBackend(
                    self.engine,
                    start=self.puller.start,
                    reach=self._reach,
                    arrived=self.lookout.forget,
                ),
                **self.clouds.backends,
            },
            look=self.lookout.look,
            clock=clock,
            settings=settings,
            health=self.health,
            quota=Quota(concurrency=self.clouds.concurrency),
            recorder=self.records,
            alarm=self.alarm,
            cache=self._cache(),
            budget=self.budget.refusal,
        )

    def _cache(self) -> Cache | None:
        """Answers given before, when the settings want them remembered."""
        wanted = self.settings.cascade
        if not wanted.cache_ttl_s:
            return None
        return Cache(
            self.ledger,
            ttl_s=wanted.cache_ttl_s,
            size_bytes=wanted.cache_bytes,
            now_unix=self.clock.unix,
        )

    def _context(self) -> dict[str, Json]:
        """What an escalation file says of this runtime; no secrets."""
        return {
            "order": list(self.settings.order),
            "privacy": str(self.settings.privacy),
            "network": self.connectivity.reason(),
            "providers": {view.id: view.reason or "ready" for view in self.clouds.views.values()},
        }

    # --- life ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Measure the machine and read what other processes learnt; idempotent."""
        if self._started:
            return
        self._started = True
        await self.gauge.renew()
        self.ledger.open()
        self._learn(await self.ledger.load_cooldowns())
        self._learn_limits(await self.ledger.load_windows())
        self.ledger.watch(self._learn)
        self.ledger.watch_windows(self._learn_limits)
        await self.budget.start()

    def go_on_with(self, old: Runtime) -> None:
        """Keep what *old* has in memory, where the settings allow it, downloads and has spent."""
        self.budget.go_on_with(old.budget)
        self.engine.take_over(old.engine)
        self.puller.go_on_with(old.puller)

    def keep_fresh(self) -> None:
        """
        For whoever stays: watch the network, and read the clouds' model lists once a day.

        Runs until `aclose()`, and only where there is a cloud to ask.
        """
        if not self._keeping and self.clouds.backends and not self.settings.offline:
            loop = asyncio.get_running_loop()
            self._keeping = [
                loop.create_task(self.clouds.keep_fresh()),
                loop.create_task(self.connectivity.watch()),
            ]

    def _learn(self, cooldowns: tuple[Cooldown, ...]) -> None:
        """Another process (or this one, before) learnt who is cooling down."""
        self.cascade.health.restore(cooldowns, self.cascade.now_unix())

    def _learn_limits(self, found: Mapping[quota.Place, quota.Window]) -> None:
        """The same of what is left of each key's limits."""
        self.cascade.quota.restore(found, self.cascade.now_unix())

    async def aclose(self) -> None:
        """Close in the reverse order; stops only engines that we started. Idempotent."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        await self.lookout.aclose()
        await self.alarm.aclose()
        await self.puller.aclose()
        await self.engine.aclose()
        await self.clouds.aclose()
        await self.upstream.aclose()
        await self.gauge.aclose()
        await self.budget.aclose()
        await self.ledger.aclose()

    async def __aenter__(self) -> Runtime:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- asked -----------------------------------------------------------------------------

    @property
    def providers(self) -> Mapping[str, Any]:
        """Every configured or known provider by id."""
        return self.clouds.providers

    def open(self, call: Call) -> Coroutine[Any, Any, Answer]:
        """Climb the ladder until somebody answers; see `Cascade.open`."""
        return self.cascade.open(self._settled(call))

    async def reply(self, call: Call, schema: Any = None) -> Reply:
        """The whole answer to *call*, validated against *schema* when one is given."""
        if schema is not None:
            return await structured.reply(self.cascade, self._settled(call), schema)
        answer = await self.open(call)
        return await answer.reply()

    async def valid_reply(self, call: Call) -> Reply:
        """
        The whole answer to a request that came with a schema of its own, valid against it.

        Native structured output is asked for; what comes back is repaired and checked, and
        asked for again where it does not hold. An answer that was cut at its token limit is
        handed over as it is, as every such API does.
        """
        settled = self._settled(call)
        return await structured.reply(self.cascade, settled, settled.chat.schema, cut_counts=False)

    def validates(self, call: Call) -> bool:
        """Whether *call* wants a schema met, and what checks it is installed."""
        return call.needs.schema and not call.stream and contract.can_validate()

    def facts(self, reply: Reply) -> Facts:
        """The `x-localfirst-*` headers of a whole reply, but for the request's id."""
        provider, _, model = reply.route.partition("/")
        target = Target(
            rung=reply.rung, provider=provider, model=model, requested=reply.substituted
        )
        asked = [attempt.provider for attempt in reply.attempts if attempt.sent]
        egress = [
            name for name in asked if name in self.clouds.views and name not in self.clouds.own
        ]
        return report.told(reply.attempts, target, egress)

    def _settled(self, call: Call) -> Call:
        """*call* with what the settings say about every request."""
        settings = self.settings
        # Said once more on the call itself: backends check it where a socket is opened.
        call.local_only = call.local_only or settings.privacy is Privacy.LOCAL_ONLY
        if settings.temperature is not None or settings.max_tokens is not None:
            asked = call.chat
            call.request = msgspec.structs.replace(
                asked,
                temperature=settings.temperature
                if asked.temperature is None
                else asked.temperature,
                max_tokens=settings.max_tokens if asked.max_tokens is None else asked.max_tokens,
            )
            # The caller's own bytes do not hold the defaults.
            call.relay = False
        return call

    async def embed(
        self, model: str, texts: Texts, options: dict[str, Json], *, local_only: bool = False
    ) -> EmbedReply:
        """Vectors of *texts* by *model*; see `embedding.embed`."""
        return await embedding.embed(self, model, texts, options, local_only=local_only)

    def forgive(self, provider: str) -> None:
        """Let *provider* be asked again, what a server named excepted: somebody wants to see."""
        self.ledger.drop_cooldowns(self.health.forgive(provider))

    async def explain(self, call: Call) -> Plan:
        """The very plan that *call* would run; sends nothing."""
        return await self.cascade.explain(call)

    def hardware(self) -> Hardware:
        """This machine, as last measured."""
        return self.gauge.now()

    async def pull(self, name: str, *, insecure: bool = False) -> AsyncGenerator[Progress, None]:
        """Download *name* into the store; ends when it is listed, or nobody looks any more."""
        job = self.puller.start(name, insecure=insecure, any_host=True)
        try:
            async with aclosing(job.watch()) as progresses:
                async for progress in progresses:
                    yield progress
        finally:
            if not job.watchers:
                job.cancel()
        self.lookout.forget()

    def pull_lines(self, job: PullJob) -> AsyncGenerator[bytes, None]:
        """The NDJSON lines of Ollama's `/api/pull` for one watcher of *job*."""
        return pull_ndjson.stream(job)

    async def pull_last(self, job: PullJob) -> tuple[int, bytes]:
        """Status and body of `/api/pull` with `"stream": false`."""
        return await pull_ndjson.last(job)

    async def _pulling_daemon(self, ref: ModelName) -> str:
        """The Ollama that must pull *ref* itself, or "" where our store is read."""
        del ref
        local = self.settings.local
        private = self.settings.privacy is Privacy.LOCAL_ONLY
        away = not is_loopback(urlsplit(local.host).hostname or "")
        if local.engine not in {"auto", "ollama"} or (private and away):
            return ""
        return await daemon_route.route(local.host, self.store)

    async def _no_ollama(self) -> bool:
        """Whether no Ollama answers that could be writing to the store."""
        status = await self.engine.status()
        return status.kind != "ollama" or not status.ready

    async def _reach(self, model: str) -> bool:
        """Whether the registry of *model* takes a connection within `REACH_S`."""
        host, _, port = names.parse(model).host.partition(":")
        if is_loopback(host) or host in self.settings.pull.mirrors:
            return True
        if self.connectivity.online() is False:
            return False
        return await self.connectivity.probe([f"{host}:{port or 443}"], timeout_s=REACH_S)

    async def models(self) -> list[ModelEntry]:
        """Every name a request may use now."""
        status = await self.engine.status()
        return state.entries(self.settings, status, self.clouds.views)

    async def state(self) -> dict[str, Json]:
        """What is known of engine, providers, cooldowns and pulls; no secrets."""
        return await state.of(self)
