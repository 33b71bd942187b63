"""Rewards: the rules, how they are found by name, and what is refused."""

from pathlib import Path

import pytest

import glmkit
import glmkit_rlhf
from glmkit.errors import PluginError, UnknownNameError, UsageError
from glmkit.testing import make_app
from glmkit_rlhf.rewards import RewardError, RewardSpec, opened, rated, registered


@pytest.fixture
def known(tmp_path):
    return registered(make_app(tmp_path / "home", rlhf=glmkit_rlhf).plugins)


def worth(known, name, answer, row=None, question="?"):
    return rated(opened([name], [], known), answer, question, row or {}).total


@pytest.mark.parametrize(
    ("name", "answer", "expected"),
    [
        ("length:4", "abcd", 1.0),
        ("length:4", " abcd\n", 1.0),
        ("length:4", "ab", 0.5),
        ("length:4", "abcdef", 0.5),
        ("length:4", "", 0.0),
        ("length:4", "a" * 99, 0.0),
        ("length:10-20", "a" * 15, 1.0),
        ("length:10-20", "a" * 30, 0.5),
        ("length:10-20", "a" * 5, 0.5),
        ("format:json", '{"a": [1]}', 1.0),
        ("format:json", '{"a": [1]} so', 0.0),
        ("format:json", "[" * 100_000, 0.0),
        ("format:think+answer", "<think>a\nb</think>\n <answer>4</answer>", 1.0),
        ("format:think+answer", "<think>a</think><answer> </answer>", 0.0),
        ("format:think+answer", "<answer>4</answer><think>a</think>", 0.0),
        ("format:think+answer", "<think>a</think><answer>4</answer>, or <answer>5</answer>", 0.0),
        ("format:think+answer", "<think>a</think><answer>4</answer></answer>", 0.0),
        ("regex:^yes", "yes, it is", 1.0),
        ("regex:^yes$", "yes, it is", 0.0),
        ("regex:a:b", "so a:b", 1.0),
    ],
)
def test_what_rules_give(known, name, answer, expected):
    assert worth(known, name, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It is 5 + 13 = 18.\n#### 18", True),
        ("so \\boxed{1,018}", False),
        ("The answer is $18.00.", True),
        ("18 apples, and 3 are left", False),
        ("#### 18 apples, 3 of them red", True),
        ("-18", False),
        ("答案是18。", True),
        ("none", False),
        ("", False),
    ],
)
def test_the_number_of_gsm8k(known, answer, right):
    row = {"question": "?", "answer": "5 + 13 = <<5+13=18>>18\n#### 18"}
    assert worth(known, "gsm8k", answer, row) == float(right)
    assert worth(known, "gsm8k", "x 1,234.5", {"solution": "#### 1234.50"}) == 1.0


def test_it_agrees_with_the_answers_of_gsm8k_itself(known, shared_data):
    import json

    lines = (shared_data / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(each) for each in lines]
    (gsm8k,) = opened(["gsm8k"], [], known)
    right = [gsm8k.function(row["answer"], question="", row=row) for row in rows]
    wrong = [gsm8k.function(f"{row['answer']}1", question="", row=row) for row in rows]
    assert sum(right) == len(rows) == 1319 and sum(wrong) == 0


def test_answers_of_the_file_itself(known):
    assert worth(known, "exact", "a  b\n", {"reference": "a b"}) == 1.0
    assert worth(known, "exact", "a c", {"reference": "a b"}) == 0.0
    with pytest.raises(RewardError, match="exact failed: UsageError: .*the row has none"):
        worth(known, "exact", "a", {"prompt": "q"})


def test_several_with_weights(known):
    rewards = opened(["regex:a", "length:2"], [2.0, -1.0], known)
    found = rated(rewards, "ab", "?", {})
    assert found.total == 1.0 and dict(found.parts) == {"regex_a": 1.0, "length_2": 1.0}


OWN = """
def words(answer, *, question, row):
    return len(answer.split()) + len(question) + row["more"]
def wrong(answer):
    return 1.0
def broken(answer, *, question, row):
    return [][0]
def nothing(answer, *, question, row):
    return None
def nan(answer, *, question, row):
    return float("nan")
number = 5
"""


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(OWN, encoding="utf-8")
    return str(file)


def test_functions_of_ones_own(known, own, monkeypatch, tmp_path):
    assert worth(known, f"{own}:words", "a b", {"more": 0.5}, "q?") == 4.5
    monkeypatch.syspath_prepend(str(tmp_path))
    assert worth(known, "mine:words", "a b", {"more": 0.5}, "q?") == 4.5
    for name, says in {
        "broken": "failed: IndexError: list index out of range",
        "nothing": "is None",
        "nan": "is nan",
    }.items():
        with pytest.raises(RewardError, match=says):
            worth(known, f"{own}:{name}", "a")


def test_what_is_no_reward(known, own, tmp_path):
    for name, says in {
        f"{own}:wrong": r"must be a function \(answer, \*, question, row\) -> float",
        f"{own}:number": "is 5, and a function is wanted",
        f"{own}:absent": "has no 'absent'; it has words, wrong",
        f"{tmp_path}/none.py:f": "is not a file",
        "no_such_module:f": "there is no module 'no_such_module'",
        "length": "is written length:CHARACTERS",
        "length:x": "takes characters from 1 on",
        "length:20-10": "takes characters from 1 on",
        "regex:(": "takes a regular expression, got",
        "format:a+a": "takes json or names of tags",
        "gsm8k:5": "takes nothing behind a colon",
    }.items():
        with pytest.raises(UsageError, match=says):
            opened([name], [], known)
    with pytest.raises(UnknownNameError, match="unknown reward 'lenght'; did you mean 'length'"):
        opened(["lenght"], [], known)
    with pytest.raises(UsageError, match="1 rewards and 2 weights"):
        opened(["gsm8k"], [1, 2], known)


def politeness(answer, *, question, row):
    """Return 1 for answers that thank."""
    return float("thank" in answer)


def plugin(name):
    """Return a plugin that offers a reward."""

    class Offers:
        @staticmethod
        @glmkit.hookimpl
        def register_rewards(register):
            register(RewardSpec(name, "Politeness.", f"{__name__}:politeness"))

    return Offers()


def test_hook_register_rewards(tmp_path):
    app = make_app(tmp_path / "home", rlhf=glmkit_rlhf, mine=plugin("politeness"))
    known = registered(app.plugins)
    assert set(known) > {"politeness", "length", "gsm8k"}
    assert worth(known, "politeness", "thanks") == 1.0
    app = make_app(tmp_path / "home", rlhf=glmkit_rlhf, mine=plugin("length"))
    with pytest.raises(PluginError, match="'length' of plugin '(mine|rlhf)' is already registered"):
        registered(app.plugins)


def test_the_example_of_a_reward(tmp_path, monkeypatch):
    example = Path(__file__).parents[3] / "examples" / "plugins" / "glmkit-brevity"
    monkeypatch.syspath_prepend(str(example))
    import glmkit_brevity

    app = make_app(tmp_path / "home", rlhf=glmkit_rlhf, brevity=glmkit_brevity)
    known = registered(app.plugins)
    row = {"reference": "Paris"}
    for answer, expected in {"paris": 1.0, "it is paris": 1.0, "so it is Paris, I": 0.6}.items():
        assert worth(known, "brevity:3", answer, row) == pytest.approx(expected)
    assert worth(known, "brevity:3", "Rome", row) == 0.0


def test_rewards_of_one_file_are_told_apart_in_figures(known, tmp_path):
    folder = tmp_path / ("a" * 60)
    folder.mkdir()
    (folder / "mine.py").write_text(OWN, encoding="utf-8")
    names = [f"{folder / 'mine.py'}:{each}" for each in ("words", "nan", "words")]
    titles = [each.title for each in opened(names, [], known)]
    assert len(set(titles)) == 3 and titles[0].endswith("mine_py_words")
    assert titles[2] == f"{titles[0]}_2" and titles[1].endswith("mine_py_nan")


def test_plugins_that_fail_are_named():
    from types import SimpleNamespace

    def fails(register):
        raise RuntimeError("no luck")

    hook = SimpleNamespace(plugin_name="poor", function=fails)
    caller = SimpleNamespace(get_hookimpls=lambda: [hook])
    with pytest.raises(PluginError, match="plugin 'poor' failed in register_rewards .*no luck"):
        registered(SimpleNamespace(hook=SimpleNamespace(register_rewards=caller)))
    known = {"gone": RewardSpec("gone", "", "no_such_module:x")}
    with pytest.raises(PluginError, match="'gone' is to be found at 'no_such_module:x'"):
        opened(["gone"], [], known)
    known = {"number": RewardSpec("number", "", "builtins:float", "NUMBER")}
    with pytest.raises(UsageError, match="cannot be made with 'x' .* written number:NUMBER"):
        opened(["number:x"], [], known)
