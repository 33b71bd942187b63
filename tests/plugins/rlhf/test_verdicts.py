"""Answers with a verdict in the formats of others: what each becomes, and what is wrong with it."""

import json
from collections import Counter

import pytest
from click.testing import CliRunner

import glmkit_finetune
from glmkit.cli import cli
from glmkit.console import drain
from glmkit.dataset import ColumnNames, open_data
from glmkit.dataset.checks import check
from glmkit.dataset.converting import VERDICT_FORMATS, as_rows, write_rows
from glmkit.dataset.statistics import verdict_statistics
from glmkit.errors import DataError
from glmkit.testing import make_app


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in rows), "utf-8")
    return path


def read(path, **options):
    return open_data([str(path)], kind="verdicts", **options)


USER, GOOD = {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}
TOLD = {"role": "system", "content": "Be brief."}
ALIKE = {
    "TRL": {"prompt": "1+1?", "completion": "2", "label": True},
    "TRL, messages": {"prompt": [USER], "completion": [GOOD], "label": True},
    "TRL, words": {"prompt": "1+1?", "completion": "2", "label": "True"},
    "LLaMA-Factory, sharegpt": {
        "conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}],
        "kto_tag": True,
    },
    "LLaMA-Factory, alpaca": {"instruction": "1+1?", "input": "", "output": "2", "kto_tag": True},
    "LLaMA-Factory, messages; ms-swift": {"messages": [USER, GOOD], "label": True},
    "a number": {"query": "1+1?", "response": "2", "kto_tag": 1},
}


@pytest.mark.parametrize("name", ALIKE)
def test_all_formats_say_the_same(tmp_path, name):
    path = jsonl(tmp_path / "a.jsonl", ALIKE[name])
    (found,) = read(path).verdicts()
    assert [(each.role, each.content) for each in found.conversation] == [
        ("user", "1+1?"),
        ("assistant", "2"),
    ]
    assert found.good is True
    report = drain(check([str(path)]))
    assert report.good and (report.verdicts, report.desirable) == (1, 1)
    with pytest.raises(DataError, match=r"holds answers with a verdict .* glmkit finetune kto"):
        open_data([str(path)])
    with pytest.raises(DataError, match=r"with a verdict \(KTO\), and preferences are wanted"):
        open_data([str(path)], kind="preferences")


ASKED = {"prompt": "1+1?", "completion": "2"}


def test_verdicts_are_known_by_any_of_the_first_rows(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", *({**ASKED, "label": each} for each in (None, None, True)))
    assert [each.good for each in read(path, skip_bad=True).verdicts()] == [True]
    with pytest.raises(DataError, match="line 1: label must be true or false, got None"):
        read(path)
    with pytest.raises(DataError, match="holds answers with a verdict"):
        open_data([str(path)])


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_one_and_nought_are_verdicts(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "csv":
        path.write_text("prompt,completion,label\n1+1?,2,1\n1+1?,3,0\n")
    else:
        jsonl(path, *({**ASKED, "label": each} for each in (1, 0)))
    for kind in ("verdicts", None):
        found = open_data([str(path)], kind=kind)
        assert [each.good for each in found.verdicts()] == [True, False]
    with pytest.raises(DataError, match="to learn them all, bad ones too, name --prompt-column"):
        open_data([str(path)])
    columns = ColumnNames(prompt="prompt", response="completion")
    assert len(list(open_data([str(path)], columns=columns).samples())) == 2


def test_other_numbers_are_no_verdicts_unless_these_are_wanted(tmp_path):
    rated = jsonl(tmp_path / "rated.jsonl", *({**ASKED, "label": each} for each in (0, 1, 2)))
    assert open_data([str(rated)], kind=None).holds == "answers"
    with pytest.raises(DataError, match="line 3: label must be true or false, got 2"):
        read(rated)
    classed = jsonl(tmp_path / "classed.jsonl", {"messages": [USER, GOOD], "label": 1})
    assert open_data([str(classed)]).holds == "answers"
    assert [each.good for each in read(classed).verdicts()] == [True]


def test_formats_are_written_and_read_again(tmp_path):
    rows = [
        {"messages": [TOLD, USER, GOOD, USER, GOOD], "label": False},
        {"prompt": "Über?", "completion": "Ja", "label": True},
    ]
    data = [jsonl(tmp_path / f"{at}.jsonl", row) for at, row in enumerate(rows)]
    wanted = [each for path in data for each in read(path).verdicts()]
    for name in VERDICT_FORMATS:
        found = []
        for at, path in enumerate(data):
            out = tmp_path / f"{name}{at}.jsonl"
            assert write_rows(as_rows(read(path), name), out) == 1
            found += read(out).verdicts()
        assert [(each.conversation, each.good) for each in found] == [
            (each.conversation, each.good) for each in wanted
        ]


def test_preferences_are_taken_apart_and_a_row_is_held_out_whole(tmp_path):
    pairs = jsonl(tmp_path / "a.jsonl", {"prompt": "?", "chosen": "a", "rejected": "b"})
    ranked = jsonl(
        tmp_path / "b.jsonl",
        *({"instruction": f"{at}?", "output": ["a", "b", "c"]} for at in range(8)),
    )
    told = [(each.answer.content, each.good) for each in read(pairs).verdicts()]
    assert told == [("a", True), ("b", False)]
    data = read(ranked)
    assert data.holds == "verdicts" and len(data) == 24 and "24 answers" in data.described
    assert Counter(each.answer.content + str(each.good) for each in data.verdicts()) == {
        "aTrue": 8,
        "bFalse": 8,
        "cFalse": 8,
    }
    learnt, held = data.split(0.25)
    questions = [{each.prompt[0].content for each in some.verdicts()} for some in (learnt, held)]
    assert not questions[0] & questions[1] and len(held) == 6
    compared = open_data([str(ranked)], kind="preferences")
    assert data.fingerprint != compared.fingerprint


def test_columns_can_be_named_or_listed(tmp_path):
    row = {"q": "1+1?", "a": "3", "good": 0}
    path = jsonl(tmp_path / "a.jsonl", row)
    (found,) = read(path, columns=ColumnNames(prompt="q", response="a", label="good")).verdicts()
    assert (found.prompt[0].content, found.good) == ("1+1?", False)
    with pytest.raises(DataError, match="name the columns of questions, answers and verdicts"):
        read(path, columns=ColumnNames(label="good"))
    plain = jsonl(tmp_path / "b.jsonl", {"prompt": "1+1?", "response": "2", "fine": "true"})
    (found,) = read(plain, columns=ColumnNames(label="fine")).verdicts()
    assert found.good
    listing = {"mine": {"file_name": "a.jsonl", "columns": {"prompt": "q", "response": "a"}}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(listing))
    with pytest.raises(DataError, match="listed without a column kto_tag"):
        open_data(["mine"], dataset_dir=tmp_path, kind="verdicts")
    listing["mine"]["columns"]["kto_tag"] = "good"
    (tmp_path / "dataset_info.json").write_text(json.dumps(listing))
    (found,) = open_data(["mine"], dataset_dir=tmp_path, kind="verdicts").verdicts()
    assert found.answer.content == "3"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "?", "completion": "a", "label": "perhaps"}, "label must be true or false"),
        ({"prompt": "?", "completion": " ", "label": True}, "the answer is empty"),
        ({"messages": [USER], "label": True}, "it must end with an answer"),
        ({"prompt": "?", "completion": "a"}, "lacks 'label'"),
    ],
)
def test_what_says_nothing_is_named_with_its_line(tmp_path, row, reason):
    good = {"prompt": "?", "completion": "a", "label": True}
    path = jsonl(tmp_path / "a.jsonl", good, row)
    columns = ColumnNames() if "prompt" in row else ColumnNames(messages="messages", label="label")
    with pytest.raises(DataError, match=rf"(?s)a.jsonl, line 2: .*{reason}"):
        read(path, columns=columns)
    with pytest.raises(DataError, match="holds alpaca, and answers with a verdict are wanted"):
        read(jsonl(tmp_path / "b.jsonl", {"instruction": "a", "output": "b"}))


def test_commands_know_verdicts(tmp_path):
    row = {"prompt": "1+1?", "completion": "2", "label": True}
    path = jsonl(tmp_path / "a.jsonl", row, row, row | {"label": False})

    app = make_app(tmp_path / "home", finetune=glmkit_finetune)

    def said(*words):
        done = CliRunner().invoke(cli, ["data", *map(str, words)], obj=app)
        assert done.exit_code == 0, done.output
        return done.output

    told = said("check", path)
    assert "3 of 3 answers can be learnt" in told and "2 answers are desirable (66.7%)" in told
    assert "the same answer as line 1" in told and "says the opposite of this answer" in told
    assert "undesirable          1" in said("stats", path)
    shown = said("preview", path, "-n", 3)
    assert "line 2, desirable" in shown and "line 3, undesirable" in shown
    out = tmp_path / "out.jsonl"
    said("convert", path, "--to", "alpaca", "-o", out)
    assert json.loads(out.read_text().splitlines()[2])["kto_tag"] is False


def test_the_published_file_is_read_whole(shared_data):
    name = "kto_en_demo"
    folder = shared_data / "llama-factory"
    data = open_data([name], dataset_dir=folder, kind="verdicts")
    assert len(data) == 300 and not data.bad
    found = drain(verdict_statistics(data))
    assert (found.verdicts, found.desirable + found.undesirable) == (300, 300)
    assert found.desirable == sum(
        each["label"] for each in json.loads((folder / f"{name}.json").read_text())
    )
    again = open_data([str(folder / f"{name}.json")], kind=None)
    assert again.holds == "verdicts" and len(again) == 300
