import pytest

from aurora_rl.endpoint.api_key import ApiKey


def test_a_key_shows_in_no_text_of_the_object(monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-very-secret-0123 \n")
    key = ApiKey.read("MY_KEY")
    assert key.value == "sk-very-secret-0123"
    assert "secret" not in f"{key} {key!r}"


def test_no_key_cuts_nothing_out(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    assert ApiKey.read("MY_KEY").cut_out("EMPTY") == "EMPTY"


@pytest.mark.parametrize(("variable", "key"), [("sk-secret", ""), ("MY_KEY", "secret key"), ("MY_KEY", "secr\u00e9t")])
def test_what_can_be_no_key_or_no_variable_is_refused_unshown(variable, key, monkeypatch):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ValueError, match="key") as raised:
        ApiKey.read(variable)
    assert "sec" not in str(raised.value)
