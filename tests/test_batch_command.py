"""``glmkit batch``."""

import json

import pytest
import tiny_adapters
from batch_parts import jsonl, written

from glmkit.batch.journal import KEY, Journal
from glmkit.models.tiny import tiny_checkpoint


def test_the_command_answers_and_resumes(tmp_path, capsys):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    source = jsonl(tmp_path / "in.jsonl", [{"q": "a"}, {"q": "bc"}, {"other": 1}])
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder), "--max-tokens", "3"]
    command += ["--prompt-template", "Say {q}", "--temperature", "0", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["answered"], first["failed"], first["completion_tokens"]) == (2, 1, 6)
    assert main([*command, "--retry-errors"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["answered"], again["failed"], again["before"]) == (0, 1, 2)
    assert main([*command[:-1], "--max-tokens", "4"]) == 2
    assert "another max_tokens (3, now 4)" in capsys.readouterr().err
    assert main([*command[:-1], "--dtype", "bfloat16"]) == 2
    assert "another dtype" in capsys.readouterr().err
    assert main([*command, "--limit", "1", "--adapter", "a", "--adapter", "b"]) == 2
    assert "--adapter-column" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "code", "why"),
    [
        ("text\na\n", (), 2, "has none of the columns messages, body, instruction, prompt"),
        ("text\na\n", ("--prompt-template", "{txt}"), 2, "no row has the column 'txt'"),
        ("prompt\na\n", ("--adapter", "a=x", "--adapter-column", "w"), 2, "no row has the col"),
        ("prompt\na\n", ("--adapter-column", "prompt"), 2, "none is given; add --adapter"),
        (
            "prompt\na\n",
            ("--adapter", "a=x", "--adapter", "a=y", "--adapter-column", "prompt"),
            2,
            "--adapter names 'a' twice",
        ),
        ("prompt,response\na,b\n", (), 2, "--response-column"),
        ('prompt\n"a\n', (), 1, "a quote there may not be closed"),
        ("prompt\na\n", ("-o", "out.csv"), 2, "written as JSONL; name it out.jsonl"),
    ],
)
def test_the_command_looks_before_it_loads(tmp_path, capsys, content, options, code, why):
    from glmkit.cli import main

    source = tmp_path / "in.csv"
    source.write_text(content)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source), "--model", "absent"]
    assert main([*command, "-o", str(tmp_path / "out.jsonl"), *options]) == code
    assert why in capsys.readouterr().err


def test_an_interrupted_command_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    source = jsonl(tmp_path / "in.jsonl", [{"prompt": "abc"}] * 9)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source), "--max-tokens", "2"]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder), "--concurrency", "1"]
    real = Journal.write

    def write(journal, index, row):
        if index == 5:
            raise KeyboardInterrupt
        real(journal, index, row)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "write", write)
        assert main(command) == 130
    assert "interrupted: 5 of 9 rows are done; the same command goes" in capsys.readouterr().err
    assert len(written(tmp_path / "out.jsonl")) == 5


def test_the_command_fails_when_every_row_did(tmp_path, capsys):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    source = jsonl(tmp_path / "in.jsonl", [{"other": 1}, {"other": 2}])
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder)]
    assert main(command) == 1
    assert "0 answered, 2 failed" in capsys.readouterr().out


def test_the_command_puts_on_any_adapter(tmp_path, capsys):
    """A path may hold a ``=``; alpha is for those that record none."""
    from glmkit.cli import main
    from glmkit.runtime.loading import load_local

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    adapter = tiny_adapters.lora(load_local(folder), scale=8.0)
    recorded = tiny_adapters.written(tmp_path / "lr=1e-4", adapter)
    raw = tiny_adapters.write(tmp_path / "raw", tiny_adapters.tensors_of(adapter), file="raw.pt")
    rows = [{"prompt": "abc", "who": who} for who in ("lr=1e-4", "raw", "")]
    source = jsonl(tmp_path / "in.jsonl", rows)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source)]
    command += ["-o", str(tmp_path / "out.jsonl"), "--model", str(folder), "--max-tokens", "8"]
    command += ["--adapter-column", "who", "--temperature", "0", "--adapter-alpha", "32"]
    assert main([*command, "--adapter", str(recorded), "--adapter", f"raw={raw / 'raw.pt'}"]) == 0
    capsys.readouterr()
    found = sorted(written(tmp_path / "out.jsonl"), key=lambda each: each[KEY]["index"])
    first, second, base = (each["response"] for each in found)
    assert first == second != base


def test_answers_fit_the_schema_of_a_file(tmp_path, capsys):
    from glmkit.cli import main

    folder = tiny_checkpoint(tmp_path / "tiny", layout="chatglm3")
    schema, out = tmp_path / "schema.json", tmp_path / "out.jsonl"
    schema.write_text('{"enum": [1, "二"]}', encoding="utf-8")
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 90}
    regex = {"response_format": {"regex": "[ab]{3}"}}
    rows = [{"prompt": "a"}, {"custom_id": "b", "body": {**body, **regex}}]
    source = jsonl(tmp_path / "in.jsonl", rows)
    command = ["--home", str(tmp_path), "--no-plugins", "batch", str(source), "-o", str(out)]
    command += ["--model", str(folder), "--order", "input", "--json-schema", str(schema)]
    assert main(command) == 0
    first, second = [json.loads(each)["response"] for each in out.read_text("utf-8").splitlines()]
    said = second["body"]["choices"][0]["message"]["content"]
    assert json.loads(first) in (1, "二") and set(said) <= {"a", "b"} and len(said) == 3
    capsys.readouterr()
    schema.write_text('{"enum": [1]}', encoding="utf-8")
    assert main(command) == 2 and "another response_format" in capsys.readouterr().err
    schema.write_text('{"enum": [1', encoding="utf-8")
    assert main(command) == 2 and "is no JSON" in capsys.readouterr().err
    assert main([*command[:-1], "nothing.json"]) == 2
    assert "nothing.json" in capsys.readouterr().err
