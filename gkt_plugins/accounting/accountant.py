"""What drivers use: prices every call, keeps it in the ledger, then tells observers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol

from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.prices import FirstKnown, cost_nano
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import GUIDANCE_CACHE, BuildContext, Price, PriceSource, Role, Usage, UsageRecord

if TYPE_CHECKING:
    from gkt_plugins.config import Config
    from gkt_plugins.plugins import Plugins

__all__ = ["Accountant", "CallAccount", "Keeper", "open_accountant", "price_sources"]

_log = logging.getLogger(__name__)


class Keeper(Protocol):
    """What an accountant needs of a ledger; :class:`Ledger` is one."""

    async def opened(self, record: UsageRecord) -> None: ...
    async def closed(self, record: UsageRecord) -> None: ...
    async def request(self, record: RequestRecord) -> None: ...
    async def reserve(
        self, reservation_id: str, budgets: Sequence[Budget], amount_nano: int, day: str
    ) -> Budget | None: ...
    async def settle(self, reservation_id: str, spent_nano: int | None) -> None: ...
    async def room(self, budgets: Sequence[Budget], day: str) -> int: ...
    async def aclose(self) -> None: ...


@dataclass(slots=True)
class CallAccount:
    """What is to be said of a call when it ends; set the fields inside :meth:`Accountant.call`."""

    usage: Usage = field(default_factory=Usage)
    status: Literal["final", "failed", "cancelled"] = "final"


class Accountant:
    """Prices, ledger and observers behind two calls: :meth:`opened` before a request goes out, :meth:`closed` after."""

    def __init__(
        self,
        prices: PriceSource,
        ledger: Keeper,
        *,
        observer: Callable[[UsageRecord], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``observer``: told of a closed record once the ledger has it; must not block (``plugins.record_usage``).

        ``clock``: seconds since the epoch.
        """
        self.prices = prices
        """Every price source of the configuration, behind one."""
        self._ledger = ledger
        self._observer = observer
        self._clock = clock

    async def opened(self, record: UsageRecord) -> None:
        """Put an ``open`` record on disk. Errors: as ``Ledger.opened``."""
        await self._ledger.opened(record)

    async def closed(self, record: UsageRecord) -> UsageRecord:
        """Price the record and put it on disk. A cost that the engine reported is kept. Errors: as ``Ledger.closed``.

        :returns: the record as it was written.
        """
        if record.cost_nano is None:
            record = self._priced(record)
        elif record.price_source == GUIDANCE_CACHE and (price := self._price(record.model)) is not None:
            record = replace(record, currency=price.currency)  # nothing, of what the teacher is paid in
        await self._ledger.closed(record)
        if self._observer is not None:
            self._observer(record)
        return record

    async def request(self, record: RequestRecord) -> None:
        """Put what became of a client's request on disk. Errors: as ``Ledger.request``."""
        await self._ledger.request(record)

    async def reserve(
        self, reservation_id: str, budgets: Sequence[Budget], amount_nano: int, day: str
    ) -> Budget | None:
        """Set ``amount_nano`` aside in every budget, or return the first without room. As ``Ledger.reserve``."""
        return await self._ledger.reserve(reservation_id, budgets, amount_nano, day)

    async def settle(self, reservation_id: str, spent_nano: int | None) -> None:
        """Replace a reservation by what was spent; None is unknown. As ``Ledger.settle``."""
        await self._ledger.settle(reservation_id, spent_nano)

    async def room(self, budgets: Sequence[Budget], day: str) -> int:
        """The least that any of ``budgets`` has left. As ``Ledger.room``."""
        return await self._ledger.room(budgets, day)

    @asynccontextmanager
    async def call(
        self,
        request_id: str,
        role: Role,
        engine: str,
        model: str,
        *,
        call: int = 0,
        attempt: int = 0,
        pipeline: str = "",
    ) -> AsyncIterator[CallAccount]:
        """Account for the engine call inside the ``async with`` block.

        ::

            async with accountant.call(request_id, "teacher", engine.name, engine.model) as account:
                [completion] = await engine.generate([call])
                account.usage = completion.usage

        Leaving the block closes the record: as ``failed`` when it raises, as ``cancelled`` when it is cancelled, else
        as ``account.status`` says.
        """
        record = UsageRecord(
            request_id=request_id,
            call=call,
            role=role,
            attempt=attempt,
            engine=engine,
            model=model,
            status="open",
            started_at=self._clock(),
            pipeline=pipeline,
        )
        account = CallAccount()
        try:
            await self.opened(record)
        except asyncio.CancelledError:
            await self.closed(replace(record, status="cancelled"))
            raise
        try:
            yield account
        except (asyncio.CancelledError, GeneratorExit):
            account.status = "cancelled"
            raise
        except BaseException:
            account.status = "failed"
            raise
        finally:
            await self.closed(replace(record, status=account.status, usage=account.usage))

    async def aclose(self) -> None:
        """Close the ledger. Safe to call twice."""
        await self._ledger.aclose()

    def _priced(self, record: UsageRecord) -> UsageRecord:
        price = self._price(record.model)
        if price is None:
            return record
        cost = cost_nano(record.usage, price)
        return replace(record, cost_nano=cost, currency=price.currency, price_source=price.source)

    def _price(self, model: str) -> Price | None:
        try:
            return self.prices.price(model)
        except Exception:  # noqa: BLE001 - a price source may be someone else's code; what it cannot tell is unknown
            _log.exception("the price of %r could not be told; its cost is unknown", model)
            return None


def price_sources(config: Config, plugins: Plugins, env: Mapping[str, str] | None = None) -> FirstKnown:
    """Every price source of the configuration: ``[prices.MODEL]`` first, then ``[price_sources.NAME]`` in order.

    ``env``: stands in for ``os.environ``.

    :raises ConfigError: one of them cannot be built.
    """
    context = BuildContext(
        base_dir=config.base_dir,
        env=os.environ if env is None else env,
        resources={"config": config, "plugins": plugins},
    )
    provided = plugins.price_sources()
    others = [
        provided.build(section.source, section.options, replace(context, name=name))
        for name, section in config.price_sources.items()
    ]
    return FirstKnown([provided.build("config", {}, context), *others])


def open_accountant(config: Config, plugins: Plugins, env: Mapping[str, str] | None = None) -> Accountant:
    """The accountant that the configuration describes; close it when done. ``env``: stands in for ``os.environ``.

    :raises ConfigError: a price or the ledger's URL cannot be used.
    :raises BackendError: the ledger cannot be opened.
    """
    prices = price_sources(config, plugins, env)
    url = config.ledger.resolved_url(os.environ if env is None else env)
    ledger = Ledger.open(url, base_dir=config.base_dir, sync=config.ledger.sync)
    return Accountant(prices, ledger, observer=plugins.record_usage)
