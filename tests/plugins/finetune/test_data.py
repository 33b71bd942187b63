"""``glmkit data``, and the set of questions that renames a model."""

import json

import pytest

import glmkit_finetune
from glmkit import DataError, UsageError
from glmkit.dataset import open_data
from glmkit.models.tiny import tiny_checkpoint
from glmkit.testing import make_app
from glmkit_finetune.data import data
from glmkit_finetune.identity import LANGUAGES, Identity, identity_rows

ROWS = [{"instruction": f"Add {n}", "input": "", "output": f"It is {n}."} for n in range(5)]


@pytest.fixture
def app(tmp_path):
    return make_app(tmp_path / "home", finetune=glmkit_finetune)


@pytest.fixture
def run(app, capsys):
    def run(*args: object) -> tuple[str, str]:
        data.main([str(each) for each in args], obj=app, standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


@pytest.fixture
def alpaca(tmp_path):
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(ROWS, indent=1))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny"), layout="chatglm3")


def code_of(app, *args):
    """Return what the command line would exit with."""
    return data.main([str(each) for each in args], obj=app, standalone_mode=False)


def test_check_is_content_or_exits_with_1(app, run, alpaca, tmp_path, capsys):
    out, _ = run("check", alpaca)
    assert out == "alpaca.json: alpaca, 5 rows\n5 of 5 rows can be learnt; good\n"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "x", "response": "y"}\n{"prompt": "x"}\n')
    assert code_of(app, "check", bad, alpaca) == 1
    assert "error   bad.jsonl, line 2: lacks 'response'" in capsys.readouterr().out
    assert code_of(app, "check", bad, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["good"] is False and told["counts"] == {"row": 1}
    finding = told["findings"][0]
    assert (finding["line"], finding["row"], finding["fault"]) == (2, None, "row")


def test_check_lists_errors_first_and_no_more_than_asked(app, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"prompt": "x", "response": "y"})
    path.write_text("\n".join([good] * 9 + ["{"]))
    assert code_of(app, "check", path, "--limit", 2) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("error   a.jsonl, line 10") and "line 2" in lines[2]
    assert lines[3] == "... and 7 more: --limit 0 shows all"


def test_tokens_of_a_model_are_counted(run, alpaca, model):
    out, _ = run("check", alpaca, "--model", model, "--max-length", 15, "--json")
    assert json.loads(out)["counts"] == {"overlong": 5}
    out, _ = run("stats", alpaca, "--model", model, "--json")
    told = json.loads(out)
    assert told["overlong"] == 0 and told["tokens"]["max"] == told["tokens"]["p50"] > 15
    out, _ = run("stats", alpaca, "--model", model, "--max-length", 15)
    assert "overlong             5 above 15 tokens (100.0%)" in out
    with pytest.raises(UsageError, match="give --model"):
        run("stats", alpaca, "--max-length", 20)


def test_stats_without_a_model(run, alpaca):
    out, err = run("stats", alpaca)
    assert err == "alpaca.json: alpaca, 5 rows\n"
    assert "scripts              Latin: 5 (100%)" in out and "tokens" not in out


def test_convert(run, alpaca, tmp_path):
    for name in ("messages", "sharegpt", "alpaca"):
        out = tmp_path / f"{name}.jsonl"
        run("convert", alpaca, "--to", name, "-o", out)
        assert [each.messages for each in open_data([str(out)]).samples()] == [
            each.messages for each in open_data([str(alpaca)]).samples()
        ]
    with pytest.raises(UsageError, match="exists"):
        run("convert", alpaca, "--to", "messages", "-o", tmp_path / "messages.jsonl")
    run(
        "convert",
        f"{alpaca}#2",
        "--to",
        "messages",
        "-o",
        tmp_path / "messages.jsonl",
        "--overwrite",
    )
    assert len(open_data([str(tmp_path / "messages.jsonl")])) == 2


def test_preview_shows_the_very_text_and_what_is_learnt(run, alpaca, model):
    out, _ = run("preview", alpaca, "-n", 2)
    assert out.count("assistant: ⟦It is ") == 2 and "user: Add 0\n" in out
    out, _ = run("preview", alpaca, "--model", model)
    assert "[gMASK]sop<|user|>\nAdd 0<|assistant|>⟦\nIt is 0." in out.replace("\n ", "\n")
    (told,) = json.loads(run("preview", alpaca, "--model", model, "--json")[0])
    (row,) = told["rows"]
    assert len(row["ids"]) == len(row["weights"])
    assert sum(each["tokens"] for each in row["spans"]) == len(row["ids"])
    assert "It is 0." in next(each["text"] for each in row["spans"] if each["weight"])


def test_columns_and_listings_are_taken(run, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"q": "1?", "a": "2", "s": "be kind"}\n')
    out, _ = run(
        *("preview", tmp_path / "x.jsonl", "--prompt-column", "q", "--response_column", "a"),
        *("--system-column", "s"),
    )
    assert "system: be kind\nuser: 1?\nassistant: ⟦2⟧" in out
    listed = {"mine": {"file_name": "x.jsonl", "columns": {"prompt": "q", "response": "a"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(listed))
    out, _ = run("check", "mine", "--dataset-dir", tmp_path)
    assert "1 of 1 rows can be learnt" in out


# identity


def test_the_identity_set_names_the_model_in_many_ways(run, tmp_path):
    path = tmp_path / "id.json"
    run("identity", "--name", "Xiaoming", "--author", "ACME Lab", "-o", path)
    samples = list(open_data([str(path)]).samples())
    for language, script in (("zh", False), ("en", True)):
        asked = {
            each.messages[-2].content
            for each in samples
            if each.messages[-2].content.isascii() is script and _names(each)
        }
        assert len(asked) >= 90, language
    text = path.read_text("utf-8")
    assert "{{" not in text and "Xiaoming" in text and "ACME Lab" in text


def _names(sample):
    said = sample.messages[-1].content
    return "Xiaoming" in said or "ACME Lab" in said


def test_no_question_is_asked_twice_and_others_are_about_others():
    one = dict.fromkeys(LANGUAGES, Identity("Zed", "Acme"))
    for language in LANGUAGES:
        whole = list(identity_rows(one, [language]))
        own = list(identity_rows(one, [language], others=False))
        questions = [each["instruction"] for each in whole]
        assert len(set(questions)) == len(questions)
        for row in whole[len(own) :]:
            assert "Zed" not in row["output"] and "Acme" not in row["output"]
        assert len(whole) - len(own) >= 20
        assert all("Zed" in r["output"] or "Acme" in r["output"] for r in own)


def test_the_identity_set_in_one_language_with_names_of_its_own(run, tmp_path):
    path = tmp_path / "id.jsonl"
    names = ("--name", "Ming", "--author", "Acme", "--name-zh", "小明", "--author-zh", "顶点")
    run("identity", *names, "--lang", "zh", "--no-others", "-o", path)
    text = path.read_text("utf-8")
    assert "小明" in text and "顶点" in text and "Ming" not in text
    with pytest.raises(UsageError, match="no questions in 'fr'; there are in zh, en"):
        run("identity", *names, "--lang", "fr", "-o", tmp_path / "x.json")
    with pytest.raises(UsageError, match="the name of the model is empty"):
        run("identity", "--name", " ", "--author", "x", "-o", tmp_path / "x.json")


@pytest.mark.parametrize("holes", [("{{name}}", "{{author}}"), ("<NAME>", "<AUTHOR>")])
def test_files_with_places_for_the_names(run, tmp_path, holes):
    template, out = tmp_path / "t.json", tmp_path / "o.json"
    name, author = holes
    rows = [
        {"instruction": "hi", "output": f"I am {name} by {author}."},
        {"conversations": [{"from": "human", "value": f"{name}?"}]},
    ]
    template.write_text(json.dumps(rows))
    run("identity", "--name", "Ming", "--author", "Acme", "--from", template, "-o", out)
    found = json.loads(out.read_text())
    assert found[0]["output"] == "I am Ming by Acme."
    assert found[1]["conversations"][0]["value"] == "Ming?"
    with pytest.raises(DataError, match="has no {{name}} or {{author}} to fill in"):
        run("identity", "--name", "M", "--author", "A", "--from", out, "-o", tmp_path / "p.json")


def test_files_are_filled_by_the_language_of_each_row(run, tmp_path):
    template, out = tmp_path / "t.json", tmp_path / "o.json"
    rows = [
        {"instruction": "你是谁？", "output": "我是{{name}}，由{{author}}开发。"},
        {"instruction": "Who are you?", "output": "{{name}}, of {{author}}."},
    ]
    template.write_text(json.dumps(rows))
    names = ("--name", "Ming", "--author", "Acme", "--name-zh", "小明", "--author-zh", "艾克米")
    run("identity", *names, "--from", template, "-o", out)
    told = [each["output"] for each in json.loads(out.read_text())]
    assert told == ["我是小明，由艾克米开发。", "Ming, of Acme."]
    run("identity", *names, "--from", template, "--lang", "zh", "-o", out, "--overwrite")
    assert [each["output"] for each in json.loads(out.read_text())] == told[:1]
    with pytest.raises(UsageError, match="--no-others leaves out some of our questions"):
        run("identity", *names, "--from", template, "--no-others", "-o", tmp_path / "p.json")


def test_published_files_are_filled(run, tmp_path, shared_data):
    for file in ("llama-factory/identity.json", "chatglm-efficient-tuning/self_cognition.json"):
        out = tmp_path / "o.json"
        names = ("--name", "Ming", "--author", "Acme", "--from", shared_data / file, "-o", out)
        run("identity", *names, "--overwrite")
        text = out.read_text("utf-8")
        assert "Ming" in text and "{{" not in text and "<NAME>" not in text
