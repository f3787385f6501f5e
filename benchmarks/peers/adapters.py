"""The peers, each used as its own documentation shows it.

Speed is measured without options, behaviour with each that helps: a peer gets the better of both. None of them is
installed where idempo is developed, so they are imported by name, when they are needed.
"""

import asyncio
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.peers import ours
from benchmarks.peers.shapes import LEASE, Function, Options, Peer, Places, Wrap, by_type, shaped

__all__ = ["PEERS"]

KEEP = 7 * 86_400


def _idemkit(backend: Callable[[Any, Places], Any]) -> Wrap:
    def wrap(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
        kit: Any = import_module("idemkit")
        config: dict[str, Any] = {"key_fields": ["key"], "expires_after_seconds": float(KEEP)}
        if "codec" in options:
            config["result_codec"] = by_type(function, "dataclass", "pydantic", "pickle")
        if "fingerprint" in options:
            config["validation_fingerprint"] = lambda arguments: str(arguments["amount"]).encode()
        if "lease" in options:
            config["lease_ttl_seconds"] = float(LEASE)
        decorate = kit.idempotent if asynchronous else kit.idempotent_sync
        with warnings.catch_warnings(action="ignore"):  # that there is one tenant
            return decorate(backend=backend(kit, places), config=kit.MethodConfig(**config))(
                shaped(function, asynchronous)
            )

    return wrap


def _idemkit_postgres(kit: Any, places: Places) -> Any:
    asyncio.run(import_module("idemkit.backends.postgres").init_pg(places.libpq))
    return kit.PostgresBackend.from_url(places.libpq)


def _exactly_once(store: Callable[[Any, Places], Any]) -> Wrap:
    def wrap(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
        peer: Any = import_module("exactly_once")
        settings: dict[str, Any] = {"policy": import_module("exactly_once.policies").wait(timeout=10.0)}
        if "fingerprint" in options:
            settings["fingerprint"] = lambda key, amount=1: amount
        if "lease" in options:  # with a prober that finds that nothing was done
            nothing = peer.ProbeResult(peer.Verdict.NOT_COMMITTED)
            settings |= {"policy": peer.check_then_decide(lambda key: nothing), "lease_ttl": float(LEASE)}
        decorate = peer.once(
            store(peer, places), key=lambda key, amount=1: key, namespace=function.name, **settings
        )
        return decorate(shaped(function, asynchronous))

    return wrap


def _powertools(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
    peer: Any = import_module("aws_lambda_powertools.utilities.idempotency")
    cache: Any = import_module("aws_lambda_powertools.utilities.idempotency.persistence.cache")
    redis: Any = import_module("redis")
    work = shaped(function, False)

    def run(*, order: dict[str, Any]) -> Any:
        return work(order["key"], order["amount"])

    class Context:
        def get_remaining_time_in_millis(self) -> int:
            return (LEASE if "lease" in options else 30) * 1000

    config = {"event_key_jmespath": "key", "expires_after_seconds": KEEP, "lambda_context": Context()}
    serializer = None
    if "fingerprint" in options:
        config["payload_validation_jmespath"] = "amount"
    if kind := "codec" in options and by_type(function, "dataclass", "pydantic", ""):
        package = "aws_lambda_powertools.utilities.idempotency.serialization."
        serializer = getattr(import_module(package + kind), f"{kind.title()}Serializer")
    run.__annotations__["return"] = function.returns
    with warnings.catch_warnings(action="ignore"):  # deprecated names under the new ones
        layer = cache.CachePersistenceLayer(client=redis.Redis.from_url(places.redis, decode_responses=True))
    decorated = peer.idempotent_function(
        run,
        data_keyword_argument="order",
        persistence_store=layer,
        config=peer.IdempotencyConfig(**config),
        output_serializer=serializer,
        key_prefix=function.name,
    )
    return lambda key, amount=1: decorated(order={"key": key, "amount": amount})


def _idempotency_kit(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
    peer: Any = import_module("idempotency_kit")
    storage: Any = import_module("idempotency_kit.infra.storage.redis.aio")
    client: Any = import_module("redis.asyncio").Redis.from_url(places.redis)
    settings = {"in_flight_lease_seconds": LEASE} if "lease" in options else {}
    coordinator = peer.AsyncIdempotencyCoordinator(
        storage.RedisAsyncIdempotencyRepository(client), peer.IdempotencyDomainService(), **settings
    )
    work, model = shaped(function, True), "codec" in options and by_type(function, "", "model", "")

    @peer.async_idempotent(  # type: ignore[untyped-decorator]
        operation=function.name,
        adapter=peer.PydanticResultAdapter(function.returns) if model else peer.JsonResultAdapter(),
        ttl_seconds=KEEP,
        key_param="key",
        infra_param="coordinator",
        fingerprint_params=("amount",) if "fingerprint" in options else None,
    )
    async def run(key: str, amount: int, coordinator: Any) -> Any:
        return await work(key, amount)

    async def call(key: str, amount: int = 1) -> Any:
        return await run(key, amount, coordinator=coordinator)

    return call


def _dbos(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
    peer: Any = import_module("dbos")
    work = shaped(function, asynchronous)
    if not getattr(_dbos, "configured", False):
        config = {"name": "bench", "system_database_url": places.libpq, "log_level": "CRITICAL"}
        peer.DBOS(config={**config, "application_version": "1", "run_admin_server": False})
        _dbos.configured = True  # type: ignore[attr-defined]
    decorated = peer.DBOS.workflow(name=f"{function.name}-{asynchronous}")(work)
    peer.DBOS.launch()

    async def call_async(key: str, amount: int = 1) -> Any:
        with peer.SetWorkflowID(f"{function.name}-{key}"):
            return await decorated(key, amount)

    def call(key: str, amount: int = 1) -> Any:
        with peer.SetWorkflowID(f"{function.name}-{key}"):
            return decorated(key, amount)

    return call_async if asynchronous else call


def _dogpile(backend: str) -> Wrap:
    def wrap(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
        peer: Any = import_module("dogpile.cache")
        arguments: dict[str, Any] = {}
        if backend == "dogpile.cache.redis":
            arguments = {"url": places.redis, "redis_expiration_time": KEEP + 3600}
            arguments |= {"distributed_lock": True, "thread_local_lock": False}
            if "lease" in options:
                arguments |= {"lock_timeout": LEASE, "lock_sleep": 0.01}
        region = peer.make_region().configure(backend, expiration_time=KEEP, arguments=arguments)
        work = shaped(function, False)

        def call(key: str, amount: int = 1) -> Any:
            return region.get_or_create(f"{function.name}:{key}", lambda: work(key, amount))

        return call

    return wrap


def _cashews(url: Callable[[Places], str]) -> Wrap:
    def wrap(function: Function, places: Places, asynchronous: bool, options: Options) -> Any:
        cache: Any = import_module("cashews").Cache()
        cache.setup(url(places))
        key = f"{function.name}:{{key}}"
        if "lease" in options:  # the lock in a decorator of its own, to be shorter than the result is kept
            cached = cache(ttl=KEEP, key=key)(shaped(function, True))
            return cache.locked(ttl=LEASE, key=key, check_interval=0.01)(cached)
        return cache(ttl=KEEP, key=key, lock=True)(shaped(function, True))

    return wrap


SYNC, ASYNC = (False,), (True,)
IDEMKIT = "sync is a facade over a loop in a thread; types and fingerprint by option"
EXACTLY_ONCE = "JSON types only; fingerprint by option"
STALE = "a stalled owner's result replaces the new owner's"

PEERS = (
    Peer("idempo Memory", "memory", ours.memory),
    Peer("idempo RedisCache", "redis", ours.redis_cache),
    Peer("idempo UniqueInsert", "postgres", ours.unique_insert),
    Peer("idemkit", "memory", _idemkit(lambda kit, places: kit.InMemoryBackend()), note=IDEMKIT),
    Peer(
        "idemkit",
        "redis",
        _idemkit(lambda kit, places: kit.RedisBackend.from_url(places.redis)),
        note=IDEMKIT,
    ),
    Peer("idemkit", "postgres", _idemkit(_idemkit_postgres), note=f"{IDEMKIT}; 7 / 5 round trips"),
    Peer(
        "exactly-once", "memory", _exactly_once(lambda peer, places: peer.Store.memory()), note=EXACTLY_ONCE
    ),
    Peer(
        "exactly-once",
        "redis",
        _exactly_once(lambda peer, places: peer.Store.redis(places.redis, committed_ttl=KEEP)),
        note=f"{EXACTLY_ONCE}; {STALE}",
    ),
    Peer(
        "exactly-once",
        "postgres",
        _exactly_once(lambda peer, places: peer.Store.postgres(places.libpq)),
        note=f"{EXACTLY_ONCE}; {STALE}; 6 / 4 round trips",
    ),
    Peer(
        "aws-lambda-powertools",
        "redis",
        _powertools,
        SYNC,
        f"loses falsy results; duplicates do not wait; 3 requests a replay; {STALE}",
    ),
    Peer(
        "idempotency-kit",
        "redis",
        _idempotency_kit,
        ASYNC,
        f"runs again where the result is no JSON; 2 requests a replay; {STALE}",
    ),
    Peer("DBOS", "postgres", _dbos, note="no fingerprint; no lease; 7 / 9 round trips", leased=False),
    Peer("dogpile.cache", "memory", _dogpile("dogpile.cache.memory"), SYNC, "a cache: no fingerprint"),
    Peer(
        "dogpile.cache",
        "redis",
        _dogpile("dogpile.cache.redis"),
        SYNC,
        f"a cache: no fingerprint; 5 requests a first run; {STALE}",
    ),
    Peer("cashews", "memory", _cashews(lambda places: "mem://"), ASYNC, "a cache: no fingerprint"),
    Peer(
        "cashews",
        "redis",
        _cashews(lambda places: places.redis),
        ASYNC,
        f"a cache: no fingerprint; 4 / 3 requests; {STALE}",
    ),
)
