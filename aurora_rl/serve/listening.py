"""Where the page is served: the socket that visitors reach, and whether others than this machine can."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Open a socket that accepts connections while the block runs.

    Raises:
        OSError: if another program listens there or the address is not this machine's; the error names host and port.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        connection = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error}; give another --port or --host") from error
    with connection:
        yield connection


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
