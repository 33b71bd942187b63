"""Batches through a server: side by side, at its pace, and no row lost where it goes away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
from chat_server import Act, error, serve

from glmkit import Ask, GenerationOptions, Message, Reply, Server
from glmkit.batch.job import Job, run_job
from glmkit.cli import main
from glmkit.config import Config
from glmkit.console import drain
from glmkit.errors import ConfigError, ServerError, UsageError
from glmkit.remote import patience
from glmkit.remote.faults import ShutError, TransientError
from glmkit.remote.model import RemoteModel
from glmkit.remote.pace import Pace, Rate, StoppedError
from glmkit.testing import HashEncoder, make_app

pytestmark = [pytest.mark.network, pytest.mark.allow_hosts(["127.0.0.1"])]

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def _hurry(monkeypatch, tmp_path):
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.005)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server():
    with serve() as state:
        yield state


@pytest.fixture
def model(server):
    return RemoteModel("tiny", Server(server.url))


def ask(key: int, **options: object) -> Ask:
    return Ask(key, [Message("user", f"row {key}")], GenerationOptions(**options))  # type: ignore[arg-type]


def rows(folder: Path, number: int) -> Path:
    source = folder / "in.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"row {at}"}) + "\n" for at in range(number)))
    return source


def written(path: Path) -> dict[int, dict]:
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len({each["glmkit"]["index"] for each in found}) == len(found)
    return {each["glmkit"]["index"]: each for each in found}


def row_of(body: dict) -> int:
    return int(body["messages"][-1]["content"].removeprefix("row "))


def test_rows_run_side_by_side_and_are_drawn_as_room_comes_free(model, server):
    server.pause_s = 0.02
    drawn = []
    ahead = []

    def asked():
        for key in range(60):
            drawn.append(key)
            yield ask(key)

    for done, (key, reply) in enumerate(model.answers(asked(), concurrency=8)):
        assert isinstance(reply, Reply) and reply.text == f"echo row {key}"
        ahead.append(len(drawn) - done)
    assert len(ahead) == 60
    assert 4 <= server.peak
    assert max(ahead) <= 8 + 1
    assert server.connections <= 8


def test_a_slow_source_holds_nothing_back(model):
    def asked():
        yield ask(0)
        time.sleep(0.15)
        yield ask(1)
        yield from iter(lambda: finished.wait(5) and None, None)

    finished = threading.Event()
    answers = model.answers(asked(), concurrency=4)
    assert next(answers)[0] == 0
    finished.set()
    assert next(answers)[0] == 1
    answers.close()


def test_a_row_that_is_refused_is_that_row_s_error(model, server):
    server.always = lambda body: error(400, "bad words") if row_of(body) % 3 == 0 else None
    found = dict(model.answers(map(ask, range(9)), concurrency=3))
    assert [isinstance(found[key], Reply) for key in range(9)] == [key % 3 > 0 for key in range(9)]
    assert "400: bad words" in str(found[3])


def test_a_question_that_a_server_forbids_is_that_row_s_error(model, server):
    server.always = lambda body: error(403, "flagged") if row_of(body) == 4 else None
    found = dict(model.answers(map(ask, range(9)), concurrency=1))
    assert "403: flagged" in str(found[4]) and isinstance(found[8], Reply)


def test_a_row_that_always_breaks_the_server_is_told_from_a_broken_server(
    model, server, monkeypatch
):
    monkeypatch.setattr(patience, "TRIES", 4)
    server.always = lambda body: Act(500) if row_of(body) == 4 else None
    found = dict(model.answers(map(ask, range(12)), concurrency=3))
    assert [key for key, reply in found.items() if not isinstance(reply, Reply)] == [4]
    assert "asked 4 times" in str(found[4])


def test_a_server_that_fails_all_rows_ends_the_job(model, server, tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 2)
    server.always = lambda body: Act(502) if row_of(body) >= 20 else None
    job = Job(rows(tmp_path, 200), tmp_path / "out.jsonl", "tiny", concurrency=4)
    with pytest.raises(ServerError, match="5 requests failed one after the other.*502"):
        drain(run_job(model, job))
    before = written(job.output)
    assert 15 <= len(before) and set(before) <= set(range(20))
    assert not any(each["error"] for each in before.values())
    server.always = lambda body: None
    summary = drain(run_job(model, job))
    assert (summary.answered, summary.failed) == (200 - len(before), 0)
    assert sorted(written(job.output)) == list(range(200))


@pytest.mark.parametrize("act", [error(401, "no"), error(404, "model `tiny` not found")])
def test_what_no_row_can_change_ends_the_job_with_its_first_row(model, server, tmp_path, act):
    server.always = lambda body: act
    job = Job(rows(tmp_path, 100), tmp_path / "out.jsonl", "tiny", concurrency=4)
    with pytest.raises(ShutError):
        drain(run_job(model, job))
    assert job.output.read_text() == ""
    assert len(server.asked) <= 4


def test_what_all_rows_are_refused_for_ends_the_job(model, server, tmp_path):
    server.always = lambda body: error(422, "Unexpected fields in the request: {'top_k'}")
    source = rows(tmp_path, 300)
    job = Job(source, tmp_path / "out.jsonl", "tiny", options=GenerationOptions(top_k=3))
    with pytest.raises(ServerError, match="the first 20 rows were all refused.*leave out top_k"):
        drain(run_job(model, job))
    assert len(written(job.output)) == 20
    server.always = lambda body: None
    summary = drain(run_job(model, replace(job, retry_errors=True)))
    assert (summary.before, summary.answered) == (0, 300)


def test_an_adapter_that_the_server_lacks_is_a_row_s_error(model, server):
    missing = error(404, "The model `law` does not exist.")
    server.always = lambda body: missing if body["model"] == "law" else None
    found = dict(model.answers([ask(0, adapter="law"), ask(1), ask(2, adapter={})]))
    assert "it serves tiny" in str(found[0])
    assert isinstance(found[1], Reply) and isinstance(found[2], Reply)


def test_a_server_that_dies_loses_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(patience, "TRIES", 3)
    job = Job(rows(tmp_path, 200), tmp_path / "out.jsonl", "tiny", concurrency=8)
    with serve() as server:
        model = RemoteModel("tiny", Server(server.url))
        served = count()
        server.always = lambda body: Act(hang_up=True) if next(served) >= 50 else None
        with pytest.raises(ServerError, match="connection to .* broke|cannot reach"):
            drain(run_job(model, job))
    before = written(job.output)
    assert len(before) == 50 and not any(each["error"] for each in before.values())
    with pytest.raises(ShutError, match="is the server running"):
        drain(run_job(model, job))
    with serve() as server:
        summary = drain(run_job(RemoteModel("tiny", Server(server.url)), job))
    assert (summary.before, summary.answered) == (50, 150)
    assert not any(each["error"] for each in written(job.output).values())


def test_leaving_ends_what_still_runs_and_the_server_sees_it(model, server):
    server.always = lambda body: Act(kind="text/event-stream", wait_for_leave=True)
    server.acts.append(Act(400))
    server.pause_s = 0.1  # the others are on their way before the first is refused
    answers = model.answers(map(ask, range(100)), concurrency=6)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 3
    assert server.left.wait(5)
    assert not [each for each in threading.enumerate() if each.name.startswith("glmkit-remote")]


def test_leaving_ends_waits_for_another_try(server):
    model = RemoteModel("tiny", Server(server.url))
    server.always = lambda body: error(429, "later", headers={"Retry-After": "60"})
    server.acts.append(Act(400))
    answers = model.answers(map(ask, range(100)), concurrency=6)
    next(answers)
    started = time.monotonic()
    answers.close()
    assert time.monotonic() - started < 3


def test_a_busy_server_gets_fewer_requests_and_every_row_is_answered(model, server):
    server.pause_s = 0.01
    refused = Counter[int]()

    def busy(body):
        if server.running <= 3:
            return None
        refused[row_of(body)] += 1
        return error(429, "too many", headers={"Retry-After": "0.01"})

    server.always = busy
    found = dict(model.answers(map(ask, range(150)), concurrency=24))
    assert all(isinstance(each, Reply) for each in found.values()) and len(found) == 150
    assert refused and max(refused.values()) < patience.TRIES
    assert sum(refused.values()) < 150


def test_requests_keep_to_their_rate(server):
    model = RemoteModel("tiny", Server(server.url, requests_per_minute=60 / 0.04))
    started = time.monotonic()
    assert len(list(model.answers(map(ask, range(8)), concurrency=8))) == 8
    assert 7 * 0.04 <= time.monotonic() - started < 5


def test_tokens_keep_to_their_rate(server):
    model = RemoteModel("tiny", Server(server.url, tokens_per_minute=60 / 0.005))
    started = time.monotonic()
    found = list(model.answers((ask(at, max_tokens=20) for at in range(8)), concurrency=1))
    used = sum(each.usage.prompt_tokens + each.usage.completion_tokens for _, each in found[:-1])
    assert used == 7 * 10
    assert used * 0.005 * 0.9 <= time.monotonic() - started < 5


def test_the_pace_halves_once_for_all_that_began_before_and_grows_again():
    pace = Pace(16)
    began = time.monotonic()
    for _ in range(16):
        pace.refused(began, None)
    assert pace.limit == 8
    pace.refused(time.monotonic(), None)
    assert pace.limit == 4
    for _ in range(200):
        pace.answered()
    assert pace.limit == 16
    pace.stop()
    with pytest.raises(StoppedError), pace.turn():
        pass


def test_a_server_that_was_there_is_waited_for_longer(monkeypatch):
    monkeypatch.setattr(patience, "LONGEST_PAUSE_S", 0.001)
    tries = {}
    for heard in (True, False):
        own = patience.Patience(Pace(1), 0.3, heard=lambda heard=heard: heard)
        tries[heard] = 0
        with pytest.raises(ShutError):
            while True:
                tries[heard] += 1
                own.wait(TransientError("cannot reach it", gone=True))
    assert tries[False] == patience.TRIES_UNHEARD < patience.TRIES < tries[True]


def test_a_long_wait_is_told_but_not_by_every_request(server, monkeypatch, caplog):
    monkeypatch.setattr(patience, "SILENT_S", 0.1)
    model = RemoteModel("tiny", Server(server.url, api_key=KEY))
    server.acts += [error(429, f"slow {KEY}", headers={"Retry-After": "0.5"})] * 4
    assert len(list(model.answers(map(ask, range(8)), concurrency=4))) == 8
    told = [each.getMessage() for each in caplog.records if each.name == patience.__name__]
    assert 1 <= len(told) < 4
    assert "429: slow ***; asking again in" in told[0]


def test_a_rate_spreads_an_amount_evenly():
    rate = Rate(60)
    first = rate.reserve(2)
    assert rate.reserve(1) - first == pytest.approx(2, abs=0.01)
    rate.correct(-1)
    assert rate.reserve(1) - first == pytest.approx(2, abs=0.01)


def test_a_batch_in_python_keeps_its_order_and_raises(model, server):
    server.always = lambda body: Act(400) if row_of(body) == 5 else None
    conversations = ([Message("user", f"row {at}")] for at in range(9))
    replies = model.batch(conversations)
    assert [next(replies).text for _ in range(5)] == [f"echo row {at}" for at in range(5)]
    with pytest.raises(ServerError, match="400"):
        next(replies)


# the command line


@pytest.fixture
def named(server, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return server


def test_a_batch_from_the_command_line(named, tmp_path, capsys):
    source = rows(tmp_path, 20)
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
    command = ["batch", str(rows(tmp_path, 1)), "-o", "out.jsonl", "--tokens-per-minute", "5"]
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
    source = rows(tmp_path, 3)
    code = (
        "import sys\nfrom glmkit.cli import main\n"
        f"assert main(['run', 'chat', '--base-url', '{server.url}', '--ask', 'x']) == 0\n"
        f"assert main(['batch', {str(source)!r}, '-o', 'out', '--base-url', '{server.url}']) == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'ray'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# settings


def test_the_server_comes_from_file_and_environment(tmp_path):
    file = tmp_path / "glmkit.toml"
    file.write_text(
        'engine = "openai"\n[openai]\nbase_url = "http://a/v1"\ntimeout_s = 5\n'
        "[openai.extra]\nmin_p = 0.1\n"
    )
    config = Config.load(file, environment={"OPENAI_API_KEY": KEY})
    assert config.openai == Server("http://a/v1", KEY, timeout_s=5, extra={"min_p": 0.1})
    assert KEY not in repr(config)
    assert Config.load(file, environment={"OPENAI_BASE_URL": "http://b"}).openai.shown == "http://b"


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ('base_url = "ftp://x"', "http://"),
        ("base_urls = 1", "did you mean 'base_url'"),
        ('api_key = "sk-1"', "set OPENAI_API_KEY"),
        ("timeout_s = 0", "timeout_s must be a number above 0"),
        ("tokens_per_minute = -1", "tokens_per_minute must be"),
        ("extra = { messages = 1 }", "cannot set messages"),
        ('base_url = "http://[::1"', "base URL"),
    ],
)
def test_wrong_settings_are_named(tmp_path, table, said):
    file = tmp_path / "glmkit.toml"
    file.write_text(f"[openai]\n{table}\n")
    with pytest.raises(ConfigError, match=said) as found:
        Config.load(file, environment={})
    assert "sk-1" not in str(found.value)


def test_a_damaged_key_is_refused_unsaid():
    with pytest.raises(UsageError, match="copy it again") as found:
        Server("http://x", "sk-1234\n")
    assert "1234" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "first", "second"),
    [
        ("http://h:1", "http://h:1/v1/models", "http://h:1/models"),
        ("http://h:1/v1/", "http://h:1/v1/models", None),
        ("http://h/v1/chat/completions", "http://h/v1/models", None),
        ("https://o.cn/api/paas/v4/", "https://o.cn/api/paas/v4/models", None),
        ("https://g/v1beta/openai", "https://g/v1beta/openai/models", None),
        ("http://u:p@h/x?v=2", "http://h/x/v1/models?v=2", "http://h/x/models?v=2"),
        ("http://[::1]:8/v1", "http://[::1]:8/v1/models", None),
    ],
)
def test_addresses(url, first, second):
    assert Server(url).addresses("/models") == tuple(filter(None, (first, second)))


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://localhost:1", True), ("http://[::1]", True), ("http://127.9.9.9/v1", True)]
    + [("http://10.0.0.1", False), ("https://localhost.example", False)],
)
def test_what_is_on_this_machine(url, local):
    assert Server(url).local is local
