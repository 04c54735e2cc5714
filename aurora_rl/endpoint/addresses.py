"""One rule for the addresses of servers, whether an option, a config or the environment names them."""

import urllib.parse


def check_address(address: str | None, *, name: str) -> None:
    """Check the address of a server.

    It is shown in errors, logs and lists of processes, so that it must not hold a secret.

    Args:
        address: such as `http://localhost:8000/v1`; None for none.
        name: of the option or variable that it comes from, for the error.

    Raises:
        ValueError: if it holds a user, a password or a query, or is no address of http or https.
    """
    if address is None:
        return
    parts = urllib.parse.urlsplit(address)
    if parts.username is not None or parts.password is not None or parts.query:
        raise ValueError(f"{name} holds a user's name, a password or a query: keys come from the environment only")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} is {address!r}: expected http(s)://host[:port]")
