from __future__ import annotations

import pytest

from semibot.models.openai import DEFAULT_BASE_URL, proxy_for, read_settings


@pytest.mark.parametrize(
    ("base_url", "environment", "proxy"),
    [
        ("https://a.example/v1", {}, None),
        ("https://a.example/v1", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://a.example/v1", {"https_proxy": "p:1"}, "http://p:1"),
        ("https://a.example/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://a.example/v1", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("https://a.example/v1", {"ALL_PROXY": "https://p:1"}, "https://p:1"),
        ("http://localhost:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://127.0.0.1:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://[::1]:8000/v1", {"HTTP_PROXY": "http://p:1"}, None),
    ],
)
def test_the_environment_prescribes_a_proxy(
    base_url: str, environment: dict[str, str], proxy: str | None
) -> None:
    assert proxy_for(base_url, environment) == proxy


@pytest.mark.parametrize(
    ("exceptions", "is_direct"),
    [
        ("*", True),
        ("b.example, a.example", True),
        (".example", True),
        ("*.a.example", True),
        ("A.EXAMPLE:443", True),
        ("a.example:80", False),
        ("example.a", False),
        ("xa.example", False),
        (",", False),
    ],
)
def test_some_hosts_are_reached_directly(exceptions: str, is_direct: bool) -> None:
    environment = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": exceptions}
    assert (proxy_for("https://a.example/v1", environment) is None) == is_direct


def test_settings_show_no_secrets() -> None:
    environment = {
        "OPENAI_API_KEY": " sk-secret\n",
        "OPENAI_BASE_URL": "http://user:sk-pass@a.example/v1/",
        "HTTP_PROXY": "http://user:sk-pass@p:1",
    }
    settings = read_settings("m", environment)
    assert settings.api_key.reveal() == "sk-secret"
    assert settings.base_url == "http://user:sk-pass@a.example/v1"
    assert settings.host == "a.example"
    assert not settings.is_openai
    assert "sk-" not in repr(settings)


def test_a_key_alone_means_openai() -> None:
    settings = read_settings("m", {"OPENAI_API_KEY": "k"})
    assert settings.base_url == DEFAULT_BASE_URL
    assert settings.is_openai
    assert settings.proxy is settings.ca_file is settings.organization is None
