"""The openai engine from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from chat_server import (
    KEY,
    Act,
    prompts,
    written,
)

from glmkit.cli import main
from glmkit.testing import HashEncoder, make_app

pytestmark = [
    pytest.mark.network,
    pytest.mark.allow_hosts(["127.0.0.1"]),
    pytest.mark.usefixtures("hurry"),
]


@pytest.fixture(autouse=True)
def _here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return server


def test_a_batch_from_the_command_line(named, tmp_path, capsys):
    source = prompts(tmp_path, 20)
    command = ["batch", str(source), "-o", "out.jsonl", "--engine", "openai", "--concurrency", "5"]
    assert main(command) == 0
    assert [written(Path("out.jsonl"))[at]["response"] for at in range(20)] == [
        f"echo row {at}" for at in range(20)
    ]
    assert named.headers[0]["Authorization"] == f"Bearer {KEY}"
    record = Path(".out.jsonl.job.json").read_text()
    assert json.loads(record)["model"] == "tiny"
    assert KEY not in record and named.url not in record
    assert main([*command, "--base-url", named.url + "/v1", "--requests-per-minute", "9000"]) == 0
    assert "20 were done before" in capsys.readouterr().out
    named.models = ["other"]
    assert main(command) == 2
    assert "another" in capsys.readouterr().err


def test_extra_fields_count_but_are_not_written_down(named, tmp_path, capsys):
    settings = tmp_path / "glmkit.toml"
    command = ["--config", str(settings), "batch", str(prompts(tmp_path, 2)), "-o", "out.jsonl"]
    for token, status in (("topsecret-1", 0), ("topsecret-1", 0), ("topsecret-2", 2)):
        settings.write_text(f'engine = "openai"\n[openai.extra]\nproxy_token = "{token}"\n')
        assert main(command) == status
    assert {each["proxy_token"] for each in named.asked} == {"topsecret-1"}
    assert "another extra of requests" in (said := capsys.readouterr().err)
    assert "topsecret" not in Path(".out.jsonl.job.json").read_text() + said


def test_adapters_of_rows_are_models_of_the_server(named, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": "x", "who": each}) + "\n" for each in ("law", "", "art"))
    )
    command = ["batch", str(source), "-o", "out.jsonl", "--base-url", named.url]
    assert main([*command, "--adapter-column", "who", "--concurrency", "1"]) == 0
    assert [each["model"] for each in named.asked] == ["law", "tiny", "art"]


def test_a_chat_from_the_command_line(named, capsys):
    named.acts.append(Act(500))
    command = ["run", "chat", "--engine", "openai", "--model", "big", "--ask", "how are you?"]
    assert main([*command, "--temperature", "0.5", "--system", "be kind"]) == 0
    assert capsys.readouterr().out.strip() == "echo how are you?"
    assert named.asked[-1]["model"] == "big" and named.asked[-1]["temperature"] == 0.5
    assert named.asked[-1]["messages"][0] == {"role": "system", "content": "be kind"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--engine", "openai", "--quantize", "int4"], "takes no quantize"),
        (["--engine", "local", "--base-url", "http://x"], "asks no server"),
        (["--base-url", "localhost:8000"], "must begin with http://"),
        (["--base-url", "http://me:pass@"], "must begin with http://"),
    ],
)
def test_what_does_not_go_together_is_refused(flags, said, capsys):
    assert main(["--no-plugins", "run", "chat", *flags, "--ask", "x"]) == 2
    err = capsys.readouterr().err
    assert said in err and "pass" not in err


def test_rates_belong_to_the_openai_engine(tmp_path, capsys):
    command = ["batch", str(prompts(tmp_path, 1)), "-o", "out.jsonl", "--tokens-per-minute", "5"]
    assert main(command) == 2
    assert "--tokens-per-minute belongs to --engine openai" in capsys.readouterr().err


def test_documents_are_answered_by_a_server(server, tmp_path, monkeypatch):
    import glmkit_knowledge
    from glmkit_knowledge import session, settings
    from glmkit_knowledge.retrieve import Retriever

    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "rivers.md").write_text("# Rivers\n\nThe Nile is the longest river of Africa.\n")
    app = make_app(tmp_path / "home", knowledge=glmkit_knowledge)
    monkeypatch.setattr(type(app), "load_encoder", lambda self, name=None: HashEncoder())
    with session.open_base(app, folder) as (base, _):
        retriever = Retriever(base, base.encoder, home=app.config.home)
        loading = {"engine": "openai", "server": server.url}
        own = settings.Settings.of({"threshold": 0.0})
        talk = session.Session(app, retriever, own, loading=loading)
        turn = talk.answer("Which river is the longest of Africa?")
    assert (turn.mode, turn.model) == ("generate", "tiny")
    said = server.contents()[-1]
    assert "<passage 1>" in said and "longest river of Africa" in said


def test_a_remote_model_needs_no_torch(server, tmp_path):
    source = prompts(tmp_path, 3)
    code = (
        "import sys\nfrom glmkit.cli import main\n"
        f"assert main(['run', 'chat', '--base-url', '{server.url}', '--ask', 'x']) == 0\n"
        f"assert main(['batch', {str(source)!r}, '-o', 'out', '--base-url', '{server.url}']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'ray'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
