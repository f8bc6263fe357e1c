"""The address of a server, and the model that is known by it."""

from __future__ import annotations

import pytest

from app.errors import SettingsError
from app.model_identity import identify_model
from app.settings import load_settings
from app.urls import checked_base_url


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1"),
        (" https://GPU.example/v1/ ", "https://gpu.example/v1"),
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://[::1]:8000/openai/v2/", "http://[::1]:8000/openai/v2"),
    ],
)
def test_an_address_is_kept_in_one_form(given: str, kept: str) -> None:
    assert checked_base_url(given) == kept


@pytest.mark.parametrize(
    "given", ["localhost:8000", "ftp://host/v1", "http://", "http://user:secret@host/v1", "http://host/v1?key=secret",
              "http://host/v1#secret", "http://host:port/v1"],
)  # fmt: skip
def test_another_thing_is_refused_and_a_secret_in_it_not_repeated(given: str) -> None:
    with pytest.raises(SettingsError, match="FARM_BASE_URL") as error:
        load_settings(base_url=given)
    assert "secret" not in str(error.value)


def test_an_engine_and_an_address_belong_together() -> None:
    with pytest.raises(SettingsError, match="the first needs the second"):
        load_settings(engine="openai")
    with pytest.raises(SettingsError, match="for the engine openai alone"):
        load_settings(engine="vllm", base_url="http://host/v1")
    assert load_settings(base_url="http://host").base_url == "http://host/v1"


def test_the_key_is_read_from_the_variable_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret\n")
    settings = load_settings(base_url="http://host", api_key_env="MY_KEY")
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sk-secret"
    assert "sk-secret" not in repr(settings) + str(settings.environment()) + repr(settings.api_key)
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(SettingsError, match="MY_KEY"):
        _ = settings.api_key
    assert load_settings().api_key is None


def test_a_key_where_a_name_belongs_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError, match="NAME of an environment variable") as error:
        load_settings(api_key_env="sk-my-secret")
    assert "secret" not in str(error.value)


def test_address_and_name_stand_for_the_weights() -> None:
    here, there = (identify_model("qwen", None, f"http://{host}/v1") for host in ("here", "there"))
    assert here.hash
    assert here.key != there.key != identify_model("other", None, "http://there/v1").key
    assert here.keys_served == [here.key]
    assert identify_model("qwen").key not in here.keys_served
    here.refuse_missing()
    assert identify_model("small", None, "http://here/v1").source == "small"
