"""Preference data in the formats of others: what each becomes, and what is wrong with it."""

import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from glmkit.console import drain
from glmkit.dataset import ColumnNames, Preference, open_data
from glmkit.dataset.checks import check
from glmkit.dataset.converting import PAIR_FORMATS, write_rows
from glmkit.dataset.samples import compared
from glmkit.errors import DataError, UsageError
from glmkit.types import Message, ToolCall


def jsonl(path, *rows):
    path.write_text("\n".join(json.dumps(each, ensure_ascii=False) for each in rows), "utf-8")
    return path


def read(path, **options):
    return open_data([str(path)], kind="preferences", **options)


USER, GOOD, BAD = (
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "assistant", "content": "3"},
)
TOLD = {"role": "system", "content": "Be brief."}
TURN = {"from": "human", "value": "1+1?"}
ALIKE = {
    "TRL": {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    "TRL, messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "TRL, implicit prompt": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "UltraFeedback": {
        "prompt": "1+1?",
        "messages": [USER, GOOD],
        "chosen": [USER, GOOD],
        "rejected": [USER, BAD],
    },
    "HH, implicit prompt of texts": {
        "chosen": "\n\nHuman: 1+1?\n\nAssistant: 2",
        "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3",
    },
    "LLaMA-Factory, sharegpt": {
        "conversations": [TURN],
        "chosen": {"from": "gpt", "value": "2"},
        "rejected": {"from": "gpt", "value": "3"},
    },
    "LLaMA-Factory, alpaca": {
        "instruction": "1+1?",
        "input": "",
        "chosen": "2",
        "rejected": "3",
    },
    "Intel's": {"system": "", "question": "1+1?", "chosen": "2", "rejected": "3"},
    "ms-swift": {"messages": [USER, GOOD], "rejected_response": "3"},
    "ms-swift, messages": {"messages": [USER, GOOD], "rejected_messages": [USER, BAD]},
    "ms-swift, old": {"query": "1+1?", "response": "2", "rejected_response": "3"},
    "ranked": {"instruction": "1+1?", "input": "", "output": ["2", "3"]},
}


@pytest.mark.parametrize("name", ALIKE)
def test_all_formats_say_the_same(tmp_path, name):
    (found,) = read(jsonl(tmp_path / "a.jsonl", ALIKE[name])).preferences()
    assert found.prompt == (Message("user", "1+1?"),)
    assert (found.chosen.content, found.rejected.content) == ("2", "3")
    report = drain(check([str(tmp_path / "a.jsonl")]))
    assert report.good and report.pairs == 1
    with pytest.raises(DataError, match="holds preference data"):
        open_data([str(tmp_path / "a.jsonl")])


def test_earlier_turns_system_messages_and_margins_are_kept(tmp_path):
    rows = [
        {"prompt": [TOLD, USER, GOOD, USER], "chosen": [GOOD], "rejected": [BAD], "margin": 0.5},
        {"chosen": [TOLD, USER, GOOD, USER, GOOD], "rejected": [TOLD, USER, GOOD, USER, BAD]},
        {
            **{"system": "Be brief.", "history": [["1+1?", "2"]]},
            **{"instruction": "1+1?", "chosen": "2", "rejected": "3"},
        },
    ]
    for at, row in enumerate(rows):
        (found,) = read(jsonl(tmp_path / f"{at}.jsonl", row)).preferences()
        roles = [each.role for each in found.prompt]
        assert roles == ["system", "user", "assistant", "user"]
        assert found.margin == (0.5 if at == 0 else None)


def test_ranked_answers_make_all_pairs_or_the_best_with_the_others(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"instruction": "?", "output": ["a", "b", "c"]})
    for ranked, pairs in {"all": "ab ac bc", "best": "ab ac"}.items():
        data = read(path, ranked=ranked)
        found = [each.chosen.content + each.rejected.content for each in data.preferences()]
        assert " ".join(found) == pairs and len(data) == len(found)
    assert read(path).fingerprint != read(path, ranked="best").fingerprint
    with pytest.raises(UsageError, match="ranked must be one of all, best"):
        read(path, ranked="some")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, "are the same answer"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "the chosen answer is empty"),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, "the question is empty"),
        ({"chosen": "The sky is blue", "rejected": "The sky is"}, "nobody says who speaks"),
        ({"chosen": [USER, GOOD], "rejected": [TOLD, USER, BAD]}, "nothing was asked"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "roles are out of order"),
        ({"prompt": [USER], "chosen": [GOOD, USER, BAD], "rejected": [BAD]}, "chosen has 3 messag"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}, "margin must be a number"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": -1}, "from 0 to 1e+15, got -1"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 1e40}, "got 1e+40"),
        ({"instruction": "a", "output": ["b"]}, "two answers or more are compared"),
    ],
)
def test_what_cannot_be_compared_is_named_with_its_line(tmp_path, row, reason):
    path = jsonl(tmp_path / "a.jsonl", ALIKE["ranked" if "output" in row else "TRL"], row)
    if "output" not in row:
        path = jsonl(tmp_path / "a.jsonl", row)
    report = drain(check([str(path)]))
    assert not report.good
    (said,) = [str(each) for each in report.findings]
    assert reason in said and "a.jsonl, line" in said
    with pytest.raises(DataError, match="cannot be learnt"):
        read(path)


def test_a_check_finds_duplicates_contradictions_and_who_is_longer(tmp_path):
    turned = {"prompt": "1+1?", "chosen": "3", "rejected": "2"}
    longer = {"prompt": "2+2?", "chosen": "four", "rejected": "<|user|>"}
    path = jsonl(tmp_path / "a.jsonl", ALIKE["TRL"], ALIKE["TRL"], turned, longer)
    report = drain(check([str(path)]))
    assert report.good and (report.pairs, report.longer) == (4, 0)
    said = [(each.fault, str(each)) for each in report.findings]
    assert [fault for fault, _ in said] == ["duplicate", "contradiction", "markup"]
    assert "line 3: line 1 prefers the other of these answers" in said[1][1]


def test_columns_can_be_named_and_answers_alone_are_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", {"q": "1+1?", "good": "2", "bad": "3"})
    names = ColumnNames(prompt="q", chosen="good", rejected="bad")
    (found,) = read(path, columns=names).preferences()
    assert found.prompt[0].content == "1+1?" and found.rejected.content == "3"
    plain = jsonl(tmp_path / "b.jsonl", {"prompt": "a", "response": "b"})
    with pytest.raises(DataError, match="holds prompt/response, and preferences are wanted"):
        read(plain)
    with pytest.raises(DataError, match="holds answers and .* holds preferences; name one kind"):
        open_data([str(plain), str(jsonl(tmp_path / "c.jsonl", ALIKE["TRL"]))], kind=None)


def test_a_listing_with_ranking(tmp_path):
    jsonl(tmp_path / "p.jsonl", {"q": "1+1?", "good": "2", "bad": "3"})
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    listing = {
        "pairs": {"file_name": "p.jsonl", "ranking": True, "columns": columns},
        "plain": {"file_name": "p.jsonl", "columns": {"prompt": "q", "response": "good"}},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(listing))
    data = open_data(["pairs"], dataset_dir=tmp_path, kind="preferences")
    assert next(data.preferences()).chosen.content == "2"
    with pytest.raises(DataError, match="listed without ranking: true"):
        open_data(["plain"], dataset_dir=tmp_path, kind="preferences")
    assert len(open_data(["plain"], dataset_dir=tmp_path)) == 1


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6).filter(lambda s: s.strip())


@st.composite
def preferences(draw):
    prompt = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [Message("user", draw(TEXT)), Message("assistant", draw(TEXT))]
    prompt.append(Message("user", draw(TEXT)))
    good, bad = draw(st.lists(TEXT, min_size=2, max_size=2, unique_by=str.strip))
    margin = draw(st.none() | st.floats(0, 9))
    return Preference(tuple(prompt), Message("assistant", good), Message("assistant", bad), margin)


@pytest.mark.parametrize("name", PAIR_FORMATS)
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(several=st.lists(preferences(), min_size=1, max_size=4))
def test_what_is_written_in_another_format_is_read_as_the_same(tmp_path, name, several):
    path = tmp_path / "a.jsonl"
    write_rows(map(PAIR_FORMATS[name], several), path, overwrite=True)
    found = list(read(path).preferences())
    assert [each.conversations for each in found] == [each.conversations for each in several]
    assert [each.margin for each in found] == [each.margin for each in several]


def test_an_answer_may_call_a_tool():
    call = Message("assistant", "", tool_calls=(ToolCall("add", {"a": 1}),))
    pair = Preference((Message("user", "?"),), call, Message("assistant", "no idea"))
    assert compared(pair, 0).messages[-1].tool_calls and compared(pair, 1).weights == (0, 1)
    with pytest.raises(DataError, match="needs a question"):
        Preference((), call, Message("assistant", "x"))


@pytest.mark.parametrize(
    ("name", "pairs", "longer"),
    [
        ("llama-factory/dpo_en_demo.json", 300, 131),
        ("llama-factory/dpo_zh_demo.json", 300, 186),
        ("chatglm-efficient-tuning/oaast_rm_zh.json", 1803, None),
    ],
)
def test_published_files_are_read_whole(shared_data, name, pairs, longer):
    report = drain(check([str(shared_data / name)]))
    assert report.pairs == pairs
    assert longer is None or report.longer == longer
    assert report.rows - report.samples == (6 if longer is None else 0)


def said(*words):
    from click.testing import CliRunner

    from glmkit_finetune.data import data

    done = CliRunner().invoke(data, [str(each) for each in words], obj=_app())
    assert done.exit_code == 0, done.output
    return done.stdout


def _app():
    from types import SimpleNamespace

    return SimpleNamespace(watch=drain)


def test_the_commands_of_data_know_pairs(tmp_path):
    rows = [ALIKE["TRL"], {"prompt": "2+2?", "chosen": "It is 4.", "rejected": "5"}]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    checked = said("check", path)
    assert "2 of 2 pairs can be learnt; good" in checked
    assert "the better answer is the longer one in 1 pairs (50.0%)" in checked
    measured = json.loads(said("stats", path, "--json"))
    assert (measured["pairs"], measured["longer"], measured["shorter"]) == (2, 1, 0)
    assert measured["chosen_characters"]["max"] == 8
    assert "longer               1" in said("stats", path)
    shown = said("preview", path)
    assert "assistant: ⟦2⟧" in shown and "assistant: ⟦3⟧" in shown and "2+2?" not in shown
    out = tmp_path / "b.json"
    said("convert", path, "--to", "sharegpt", "-o", out)
    assert json.loads(out.read_text())[1]["rejected"] == {"from": "gpt", "value": "5"}
