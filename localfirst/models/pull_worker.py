"""
One connection of a transfer: claim a stretch, ask for it, check the answer, write it.

An answer counts only if it is a 206 for the very bytes asked for and of the size the
manifest names. Trouble gives the stretch back; tries go on while any connection of the
transfer brings bytes, and end after a ladder of pauses that brought none.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import logging
import random
import re
import ssl
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from localfirst.errors import LocalFirstError, PullError, PullStalled, RegistryRefused
from localfirst.models.pull_errors import broken, is_passing, refused, retry_after_s
from localfirst.models.pull_ranges import Claim
from localfirst.transport import files
from localfirst.transport.bulk import BUFFER_BYTES, BodyReader, origin
from localfirst.types import Clock

if TYPE_CHECKING:
    from localfirst.models.pull_transfer import Transfer
    from localfirst.models.registry import Location

LOG = logging.getLogger(__name__)
NOTE_BYTES = 4 * 2**20
STALE_STATUSES = frozenset({301, 302, 303, 307, 308, 400, 401, 403, 404, 410})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)", re.ASCII)


class Limiter:
    """A pace shared by all connections; 0 bytes a second is none."""

    def __init__(self, rate_bytes_s: int, clock: Clock) -> None:
        self.rate_bytes_s = rate_bytes_s
        self._clock = clock
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def buffer_bytes(self) -> int:
        """How much to read at once so that the pace is even."""
        if not self.rate_bytes_s:
            return BUFFER_BYTES
        return max(4096, min(BUFFER_BYTES, self.rate_bytes_s // 20))

    def take(self, count: int) -> float:
        """Account for *count* bytes; the seconds to wait before reading on."""
        if not self.rate_bytes_s:
            return 0.0
        with self._lock:
            now = self._clock.monotonic()
            self._free_at = max(now, self._free_at) + count / self.rate_bytes_s
            return max(0.0, self._free_at - now)


class RangeIgnored(Exception):
    """Raised when a server answers 200 to a range: it can only send everything."""


class Worker(threading.Thread):
    """A connection of *transfer*; ends when nothing is left, or the transfer has stopped."""

    def __init__(self, transfer: Transfer, number: int) -> None:
        super().__init__(name=f"pull-{number}", daemon=True)
        self._transfer = transfer
        self._reader: BodyReader | None = None
        self._location: Location | None = None
        self._stale: Location | None = None
        self._claimed: Claim | None = None
        self._rate = 0.0
        self._strikes = 0
        self._mark = -1
        self._buffer = memoryview(bytearray(transfer.limiter.buffer_bytes))

    def abort(self) -> None:
        """End a read that waits; from any thread."""
        reader = self._reader
        if reader is not None:
            reader.abort()

    def free_if_robbed(self) -> None:
        """End a read whose stretch another connection has taken over."""
        claim = self._claimed
        if claim is not None and claim.lost:
            self.abort()

    def run(self) -> None:
        """Fetch stretches until there are none."""
        try:
            while (claim := self._claim()) is not None:
                self._work(claim)
        except Exception as error:  # a thread's top frame: the transfer must learn of it
            LOG.exception("a download thread failed")
            self._transfer.fail(broken(error, "download"))
        finally:
            self._close()

    def _claim(self) -> Claim | None:
        """The next stretch; waits while all are in other hands and may come back."""
        transfer = self._transfer
        while not transfer.stopped.is_set():
            with transfer.lock:
                if transfer.board.complete:
                    break
                if transfer.serial and transfer.board.active:
                    return None
                claim = transfer.board.claim(transfer.clock.monotonic(), self._rate)
                if claim is not None:
                    return claim
                transfer.moved.wait(0.5)
        transfer.whole()
        return None

    def _work(self, claim: Claim) -> None:
        """Fetch a stretch; in trouble give it back first and then wait."""
        before, pause = claim.position, 0.0
        self._claimed = claim
        self._transfer.free_the_robbed()
        try:
            self._fetch(claim)
        except concurrent.futures.CancelledError:
            self._transfer.cancel()
        except RangeIgnored:
            self._transfer.serial = True
        except LocalFirstError as error:
            pause = self._trouble(error, claim.position > before)
        except (OSError, http.client.HTTPException, ValueError) as error:
            host = urlsplit(self._location.url).hostname if self._location else ""
            pause = self._trouble(broken(error, host or "registry"), claim.position > before)
        finally:
            with self._transfer.lock:
                self._transfer.board.release(claim)
                self._transfer.moved.notify_all()
            if self._reader is not None and not self._reader.drained:
                self._close()
        self._transfer.stopped.wait(pause)

    def _trouble(self, error: LocalFirstError, brought: bool) -> float:
        """Decide after how many seconds to try again; or end the transfer."""
        transfer = self._transfer
        self._close()
        robbed = self._claimed is not None and self._claimed.lost
        if robbed or transfer.stopped.is_set() or transfer.board.complete:
            return 0.0
        if not isinstance(error, PullError) or error.code in _OURS:
            transfer.fail(error)
            return 0.0
        if _is_final(error):
            return self._over(error)
        others = self._location is not None and self._location.others
        # A drop before each silence is no reason to wait, where somebody else may have it.
        silent = others and isinstance(error, PullStalled)
        if (brought or transfer.fetched_bytes != self._mark) and not silent:
            self._strikes = 0
        self._mark = transfer.fetched_bytes
        status = getattr(error, "status", None)
        if self._location is not None and (status in STALE_STATUSES or self._strikes):
            self._stale = self._location
        final = len(transfer.pauses_s) if is_passing(error) and not others else 2
        if self._strikes >= final:
            return self._over(error)
        pause = 0.0 if brought else transfer.pauses_s[min(self._strikes, final - 1)]
        self._strikes += 1
        wait = getattr(error, "retry_after_s", None)
        return wait if wait is not None else pause * random.uniform(0.75, 1.0)

    def _over(self, error: PullError) -> float:
        """Leave a source that does not do; the whole transfer fails where it was the last."""
        if self._transfer.leave(self._location, error):
            self._strikes = 0
        else:
            self._transfer.fail(error)
        return 0.0

    def _fetch(self, claim: Claim) -> None:
        """Ask for a stretch and write what comes."""
        transfer = self._transfer
        self._location = None
        self._location = location = transfer.location(self._stale)
        self._stale = None
        reader = self._connected(location)
        asked = (claim.position, claim.end)  # the end may come closer meanwhile
        wanted = ("Range", f"bytes={asked[0]}-{asked[1] - 1}")
        status, headers = reader.ask(location.url, [*location.headers(), wanted])
        if status == 200 and self._goes_serial(claim, headers):
            self._skip(reader, claim.position)
        else:
            self._check(status, headers, asked, location)
        self._copy(reader, claim)
        if transfer.serial and claim.left:
            raise ConnectionError("the body ended early")

    def _copy(self, reader: BodyReader, claim: Claim) -> None:
        transfer, partial = self._transfer, self._transfer.partial
        began, noted = transfer.clock.monotonic(), claim.position
        start = claim.position
        try:
            while claim.left and not claim.lost and not transfer.stopped.is_set():
                count = reader.readinto(self._buffer[: min(len(self._buffer), claim.left)])
                if not count:
                    raise ConnectionError("the body ended early")
                files.write_at(partial.descriptor, self._buffer[:count], claim.position)
                with transfer.lock:
                    count = 0 if claim.lost else max(0, min(count, claim.left))
                    transfer.board.advance(claim, count, transfer.clock.monotonic())
                    transfer.wrote(claim.position - count, claim.position)
                transfer.progressed()
                if claim.position - noted >= NOTE_BYTES:
                    partial.written(noted, claim.position)
                    noted = claim.position
                wait = transfer.limiter.take(count)
                if wait:
                    transfer.stopped.wait(wait)
        finally:
            if claim.position > noted:
                partial.written(noted, claim.position)
        took = max(transfer.clock.monotonic() - began, 1e-6)
        self._rate = (claim.position - start) / took

    def _check(
        self, status: int, headers: dict[str, str], asked: tuple[int, int], location: Location
    ) -> None:
        """Raise unless this is a 206 for exactly the bytes asked for."""
        transfer, host = self._transfer, urlsplit(location.url).hostname or ""
        what = f"blob {transfer.layer.short}"
        if status == 200:
            raise RangeIgnored
        if status != 206:
            wait = retry_after_s(headers.get("retry-after"), transfer.clock.unix())
            raise refused(status, host, what, retry_after_s=wait)
        match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
        start, end = (int(match[1]), int(match[2]) + 1) if match else (-1, -1)
        if start != asked[0] or end > asked[1]:
            raise RegistryRefused(f"`{host}` sent other bytes of {what} than asked for")
        if match and match[3] not in {"*", str(transfer.layer.size_bytes)}:
            raise _wrong_size(host, what, match[3], transfer.layer.size_bytes)
        length = headers.get("content-length")
        if length is not None and length != str(end - start):
            raise RegistryRefused(f"`{host}` sent a length that is not its range's")

    def _goes_serial(self, claim: Claim, headers: dict[str, str]) -> bool:
        """A server without ranges: this connection takes everything, the others leave."""
        transfer = self._transfer
        length = headers.get("content-length")
        if length is not None and length != str(transfer.layer.size_bytes):
            host = self._location.host if self._location else ""
            raise _wrong_size(
                host, f"blob {transfer.layer.short}", length, transfer.layer.size_bytes
            )
        with transfer.lock:
            others = [other for other in transfer.board.active if other is not claim]
            if transfer.serial and others:
                return False
            transfer.serial = True
            for other in others:
                other.lost = True
                transfer.board.release(other)
            claim.end = transfer.layer.size_bytes
        return True

    def _skip(self, reader: BodyReader, count: int) -> None:
        """Read over what is here already."""
        while count and not self._transfer.stopped.is_set():
            read = reader.readinto(self._buffer[: min(len(self._buffer), count)])
            if not read:
                raise ConnectionError("the body ended early")
            count -= read

    def _connected(self, location: Location) -> BodyReader:
        """A connection to the location's origin: the present one if it is of that origin."""
        if self._reader is not None and self._reader.origin == origin(location.url):
            return self._reader
        self._close()
        transfer = self._transfer
        self._reader = BodyReader(
            location.url,
            environ=transfer.environ,
            context=transfer.tls,
            stall_s=transfer.stall_s,
        )
        return self._reader

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


_OURS = frozenset({"store-not-writable", "store-file-limit", "store-failed", "pull-cancelled"})
"""Trouble that has nothing to do with who is asked."""


def _is_final(error: PullError) -> bool:
    """Trouble that no further try at the same place will mend."""
    cause_is_tls = isinstance(error.__cause__, ssl.SSLCertVerificationError)
    codes = {"registry-tls", "registry-size", "registry-redirect-refused"}
    return cause_is_tls or error.code in codes


def _wrong_size(host: str, what: str, said: str, wanted: int) -> RegistryRefused:
    return RegistryRefused(
        f"`{host}` has {said} bytes of {what}, the manifest says {wanted}",
        code="registry-size",
        hint="check the mirror or proxy: it serves another file",
    )
