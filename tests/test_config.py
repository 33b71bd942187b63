"""Configuration: precedence, and refusing what nobody reads."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from glmkit import Config, ConfigError, GenerationOptions
from glmkit.config import SETTINGS


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "glmkit.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path):
    file = write(tmp_path, 'model = "from-file"\nencoder = "from-file"\ndevice = "cpu"\n')
    config = Config.load(
        file,
        environment={"GLMKIT_MODEL": "from-env", "GLMKIT_ENCODER": "from-env"},
        flags={"model": "from-flag", "encoder": None},
    )
    assert (config.model, config.encoder, config.device) == ("from-flag", "from-env", "cpu")
    assert config.offline is False


def test_generation_and_plugin_tables_are_read(tmp_path):
    file = write(
        tmp_path, "[generation]\nmax_tokens = 7\ntop_p = 0.5\n[plugins.knowledge]\ntop_k = 3\n"
    )
    config = Config.load(file, environment={})
    assert config.generation == GenerationOptions(max_tokens=7, top_p=0.5)
    assert config.plugins["knowledge"]["top_k"] == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('modle = "x"', "did you mean 'model'"),
        ("[generation]\nmax_token = 3", "did you mean 'max_tokens'"),
        ("[generation]\ntop_p = 2.0", "top_p must be above 0, up to 1, got 2.0"),
        ('[generation]\nmax_tokens = "many"', r"\[generation\]"),
        ("offline = 'perhaps'", "must be true or false"),
        ("plugins = 3", "one table per plugin"),
        ("model = ", "mend it as TOML"),
        ('hf_token = "secret"', "unknown key 'hf_token'"),
    ],
)
def test_a_wrong_file_is_refused_with_what_to_write_instead(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        Config.load(write(tmp_path, text), environment={})


def test_a_named_file_must_exist_and_the_usual_one_need_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Config.load(environment={}).model == "default"
    with pytest.raises(ConfigError, match="no configuration file"):
        Config.load(environment={"GLMKIT_CONFIG": str(tmp_path / "missing.toml")})


def test_the_file_in_the_working_folder_is_found(tmp_path, monkeypatch):
    write(tmp_path, 'model = "here"')
    monkeypatch.chdir(tmp_path)
    assert Config.load(environment={}).model == "here"


@pytest.mark.parametrize("name", ["GLMKIT_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_every_known_offline_switch_counts(name):
    assert Config.load(environment={name: "1"}).offline
    assert not Config.load(environment={name: "0"}).offline


def test_an_empty_allow_list_blocks_every_plugin_but_other_empty_variables_do_not_count():
    assert Config.load(environment={"GLMKIT_PLUGINS": ""}).plugins_allowed == ()
    assert Config.load(environment={"GLMKIT_PLUGINS": "a, b"}).plugins_allowed == ("a", "b")
    assert Config.load(environment={"GLMKIT_MODEL": ""}).model == "default"


def test_the_token_is_never_shown():
    assert "hf_secret" not in repr(Config.load(environment={"HF_TOKEN": "hf_secret"}))


@given(st.dictionaries(st.sampled_from(sorted(SETTINGS)), st.text(min_size=1)))
def test_any_environment_text_gives_a_configuration_or_a_clear_error(values):
    variables = {SETTINGS[key].environment[0]: value for key, value in values.items()}
    try:
        config = Config.load(environment=variables)
    except ConfigError as error:
        assert any(name in str(error) for name in variables)
    else:
        assert isinstance(config, Config)
