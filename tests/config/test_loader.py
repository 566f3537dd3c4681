from __future__ import annotations

from pathlib import Path

import pytest

from semibot.config.loader import HostFlags, load_host_settings
from semibot.errors import ConfigError


def load(environment=None, flags=None, *, data_dir: Path):
    return load_host_settings(environment or {}, flags or HostFlags(), default_data_dir=data_dir)


def test_nothing_said_means_loopback_and_a_directory(tmp_path):
    settings = load(data_dir=tmp_path)
    assert (settings.host, settings.port, settings.data_dir) == ("127.0.0.1", 8080, tmp_path)
    assert settings.jwt_secret is None
    assert settings.vm_bootstrap_cmd is None
    assert settings.run_mode == "development"
    assert settings.providers == {}


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path):
    (tmp_path / "semibot.toml").write_text('port = 1\nhost = "file"\nmodel = "file"\n')
    variables = {"SEMIBOT_PORT": "2", "SEMIBOT_HOST": "variable"}
    settings = load(variables, HostFlags(port=3), data_dir=tmp_path)
    assert (settings.port, settings.host, settings.model) == (3, "variable", "file")


def test_every_variable_is_read(tmp_path):
    settings = load(
        {
            "SEMIBOT_DATA_DIR": str(tmp_path / "elsewhere"),
            "SEMIBOT_WORKSPACE": "work",
            "SEMIBOT_ALLOW": "write, run:git",
            "SEMIBOT_ENV": "Production",
            "SEMIBOT_SKILLS_DIR": "~/skills",
            "JWT_SECRET": "s" * 16 + "t" * 16,
            "VM_BOOTSTRAP_CMD": "start-vm --name 'my vm'",
            "VM_BOOTSTRAP_MAX_ATTEMPTS": "3",
            "VM_BOOTSTRAP_COOLDOWN_MS": "1000",
            "VM_TOKEN_TTL": "2h",
            "OPENAI_API_KEY": "sk-1",
            "OPENAI_BASE_URL": "http://127.0.0.1:1/v1",
            "ANTHROPIC_API_KEY": "sk-2",
        },
        data_dir=tmp_path,
    )
    assert settings.data_dir == tmp_path / "elsewhere"
    assert settings.workspace == Path("work").absolute()
    assert settings.allow == ("write", "run:git")
    assert settings.run_mode == "production"
    assert settings.skills_dir == Path("~/skills").expanduser()
    assert settings.vm_bootstrap_cmd == ("start-vm", "--name", "my vm")
    assert settings.vm_bootstrap_max_attempts == 3
    assert settings.vm_bootstrap_cooldown_ms == 1000
    assert settings.vm_token_ttl == 7200
    assert set(settings.providers) == {"openai", "anthropic"}
    assert settings.providers["openai"].base_url == "http://127.0.0.1:1/v1"


def test_the_file_has_types_of_its_own(tmp_path):
    file = tmp_path / "named.toml"
    file.write_text(
        'port = 9\nallow = ["write"]\nvm_bootstrap_cmd = ["sh", "start"]\nvm_token_ttl = 600\n'
    )
    settings = load({"SEMIBOT_CONFIG": str(file)}, data_dir=tmp_path)
    assert settings.port == 9
    assert settings.allow == ("write",)
    assert settings.vm_bootstrap_cmd == ("sh", "start")
    assert settings.vm_token_ttl == 600


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SEMIBOT_PORT", "70000"),
        ("SEMIBOT_PORT", "http"),
        ("SEMIBOT_PORT", "-1"),
        ("SEMIBOT_HOST", "  "),
        ("SEMIBOT_ENV", "staging"),
        ("SEMIBOT_ALLOW", "write,,run"),
        ("VM_BOOTSTRAP_CMD", "'unbalanced"),
        ("VM_BOOTSTRAP_CMD", " "),
        ("VM_BOOTSTRAP_MAX_ATTEMPTS", "0"),
        ("VM_TOKEN_TTL", "1s"),
        ("VM_TOKEN_TTL", "soon"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_its_name(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        load({name: value}, data_dir=tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("port = ", "not TOML"),
        ("jwt_secret = 'x'", "no setting that a file may have"),
        ("port = 'eighty'", "port in .*semibot.toml"),
        ("port = true", "port in .*semibot.toml"),
        ("allow = 5", "allow in"),
        ("vm_bootstrap_cmd = []", "vm_bootstrap_cmd in"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, text, words):
    (tmp_path / "semibot.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(data_dir=tmp_path)


def test_a_named_file_has_to_be_there(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load({"SEMIBOT_CONFIG": str(tmp_path / "none.toml")}, data_dir=tmp_path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "semibot.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot read"):
        load(data_dir=tmp_path)


def test_secrets_are_not_shown(tmp_path):
    settings = load({"JWT_SECRET": "do not show", "OPENAI_API_KEY": "nor this"}, data_dir=tmp_path)
    assert "do not show" not in repr(settings)
    assert "nor this" not in repr(settings)
