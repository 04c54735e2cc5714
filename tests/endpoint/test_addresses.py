import pytest

from aurora_rl.endpoint.addresses import check_address, check_host, check_port


@pytest.mark.parametrize(
    "address",
    [None, "http://localhost:8000/v1", "https://10.0.0.1", "http://[::1]:8000", "http://my_host.local.", "http://höst"],
)
def test_addresses_of_servers(address):
    check_address(address, name="base_url")


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://:80",
        "http://a:port",
        "http://a:70000",
        "http://a b",
        "http://[x",
    ],
)
def test_what_is_no_address_is_refused_as_one(address):
    with pytest.raises(ValueError, match=r"^base_url is .*expected http\(s\)://host\[:port\]"):
        check_address(address, name="base_url")


@pytest.mark.parametrize("address", ["http://me@x", "http://me:secret@x", "http://x?key=secret"])
def test_a_secret_is_refused_and_not_shown(address):
    with pytest.raises(ValueError, match="keys come from the environment") as error:
        check_address(address, name="base_url")
    assert "secret@" not in str(error.value) and "key=secret" not in str(error.value)


def test_hosts_stand_alone():
    for host in (None, "localhost", "127.0.0.1", "0.0.0.0", "::1", "fe80::1%eth0", "gpu-1.cluster"):
        check_host(host, name="--host")
    for host in ("", "http://localhost", "localhost:80", "a/b", "-a", "a b", "me@x"):
        with pytest.raises(ValueError, match="--host is "):
            check_host(host, name="--host")


def test_ports_are_those_of_tcp():
    check_port(1, name="--port")
    check_port(65_535, name="--port")
    for port in (0, 65_536, -1):
        with pytest.raises(ValueError, match="1 to 65535"):
            check_port(port, name="--port")
