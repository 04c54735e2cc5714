"""Checks of servers' addresses, whether an option, a config or the environment names them."""

import re
import urllib.parse

#: Host names and addresses of machines, IPv6 included.
HOST = re.compile(r"[^\W_]([\w.-]*[^\W_])?\.?|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%\w+)?")


def check_address(address: str | None, *, name: str) -> None:
    """Check the address of a server.

    Errors, logs and lists of processes show it, so it must not hold a secret.

    Args:
        address: address such as `http://localhost:8000/v1`; None for none.
        name: name of the option or variable that gave it, for the error.

    Raises:
        ValueError: if it holds a user, a password or a query, or is not an address of http or https.
    """
    if address is None:
        return
    try:
        parts = urllib.parse.urlsplit(address)
    except ValueError as error:  # brackets without an IPv6 number; their content may be secret
        raise ValueError(f"{name} is no address: expected http(s)://host[:port]") from error
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(f"{name} holds a user's name, a password or a query: keys come from the environment only")
    if parts.scheme not in ("http", "https") or not _has_host(parts):
        raise ValueError(f"{name} is {address!r}: expected http(s)://host[:port]")


def _has_host(parts: urllib.parse.SplitResult) -> bool:
    try:
        return bool(parts.hostname and HOST.fullmatch(parts.hostname)) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number, or too large
        return False


def check_host(host: str | None, *, name: str) -> None:
    """Check a host: a machine's name or number without scheme, port or path.

    Args:
        host: host such as `localhost`, `10.0.0.1` or `::1`; None for none.
        name: name of the option that gave it, for the error.

    Raises:
        ValueError: if it is not a host.
    """
    if host is not None and not HOST.fullmatch(host):
        raise ValueError(f"{name} is {host!r}: expected the name or number of a machine, such as 127.0.0.1")


def check_port(port: int, *, name: str) -> None:
    """Check the number of a port; a ValueError if it is invalid."""
    if not 1 <= port <= 65535:
        raise ValueError(f"{name} is {port}: expected the number of a port, 1 to 65535")
