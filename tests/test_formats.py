"""The chat formats: held to the original prompt builders and post-processing, and to themselves."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings, strategies as st

from glmkit.errors import UsageError
from glmkit.models.formats import FORMATS, Special, encode, guess_format
from glmkit.models.formats.glm4_tools import told
from glmkit.models.formats.replies import INTERPRETER, TURN, turns_of
from glmkit.models.formats.tools import json_object, listed, python_call
from glmkit.models.prompts import Renderer
from glmkit.models.tiny import tiny_checkpoint
from glmkit.models.tokenizers import Tokenizer
from glmkit.types import Message, Passage, ToolCall

FAMILIES = {
    "chatglm-6b": "chatglm",
    "chatglm2-6b": "chatglm2",
    "chatglm3-6b": "chatglm3",
    "glm-4-9b": "glm4",
}
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def expected(shared_reference):
    return json.loads((shared_reference / "expected" / "prompts.json").read_text("utf-8"))


@pytest.fixture(scope="module", params=FAMILIES)
def generation(request, shared_reference, expected):
    """Return a published vocabulary, its chat format and what is expected of them."""
    tokenizer = Tokenizer.open(shared_reference / "tokenizers" / request.param)
    family = FAMILIES[request.param]
    assert guess_format(tokenizer, family) is FORMATS[family]
    return tokenizer, FORMATS[family], expected[request.param]


def shown(pieces):
    return "".join(each.name if isinstance(each, Special) else each for each in pieces)


def message(item):
    """Return an entry of an original history as a message."""
    metadata, content = item.get("metadata"), item["content"]
    calls = ()
    if metadata:
        code = content.strip().removeprefix("```python\n").removesuffix("\n```")
        arguments = json_object(content) or python_call(code) or {"code": code}
        calls, content = (ToolCall(metadata, arguments),), ""
    return Message(item["role"], content, tools=tuple(item.get("tools", ())), tool_calls=calls)


def conversation(case):
    if "messages" in case:
        return [message(each) for each in case["messages"]]
    turns = [
        Message(role, text)
        for pair in case["history"]
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    return [*turns, Message("user", case["query"])]


def test_prompts_are_the_original_ones(generation):
    tokenizer, chat_format, cases = generation
    for name, case in cases["chat"].items():
        ids = encode(chat_format.pieces(conversation(case), ""), tokenizer)
        # GLM-4's template renders JSON with today's transformers as we do: keys in their order.
        wanted = case.get("input_ids_transformers_5_23") or case["input_ids"]
        wanted = wanted[0] if isinstance(wanted[0], list) else wanted
        if name == "special_in_text" and chat_format.name == "glm4":
            # The original template lets users forge turns; its own message builder does not.
            assert tokenizer.special("<|user|>") in wanted[4:]
            wanted = case["ids_build_single_message"]
        assert (name, ids) == (name, wanted)


def test_a_later_tokenizer_config_does_not_change_prompts(expected, shared_reference, tmp_path):
    # Its chat template writes role tokens that its tokenizer does not know, and lets users forge
    # those that it knows; the original message builder does neither.
    source = shared_reference / "tokenizers" / "chatglm3-6b"
    (tmp_path / "tokenizer.model").symlink_to(source / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").symlink_to(source / "tokenizer_config.late.json")
    tokenizer = Tokenizer.open(tmp_path)
    for name, case in expected["chatglm3-6b-late"]["chat"].items():
        ids = encode(FORMATS["chatglm3"].pieces(conversation(case), ""), tokenizer)
        assert (name, ids) == (name, case["build_chat_input"])
        assert (ids == case["template_ids"]) == case["equal"]


def read(chat_format, history, text, parts=1):
    reader = chat_format.reader(history)
    size = max(1, -(-len(text) // max(1, parts)))
    pieces = [reader.push(text[at : at + size]) for at in range(0, len(text), size)]
    return "".join(pieces) + reader.finish(), reader.calls


def test_answers_are_read_as_the_original_code_does(generation):
    _, chat_format, cases = generation
    for case in cases["process_response"]:
        history = [message(each) for each in case.get("history", ())]
        said, calls = read(chat_format, history, case["input"])
        assert (said, calls) == read(chat_format, history, case["input"], len(case["input"]))
        result = case.get("output", case.get("result"))
        if isinstance(result, list):
            turns = [{"role": "assistant", **each._asdict()} for each in turns_of(case["input"])]
            assert [*case["history"], *turns] == result[1]
            result = result[0]
        if isinstance(result, str):
            assert (said, calls) == (result, ())
        elif "parameters" in result:
            assert calls == (ToolCall(result["name"], result["parameters"]),)
        elif result.get("name") == INTERPRETER:
            assert result["content"] == f"```python\n{calls[0].arguments['code']}\n```"
        else:
            # No tool was offered, or what is said to it is no JSON: the original code returns a
            # call all the same, or raises. It is text.
            assert (said, calls) == (case["input"], ())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.open(tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


ROUNDS = [Message("user", "a"), Message("assistant", "b"), Message("user", "c")]


def test_rounds_are_counted_as_each_generation_does():
    first, second = FORMATS["chatglm"], FORMATS["chatglm2"]
    assert shown(first.pieces(ROUNDS[:1], "")) == "a[gMASK]<sop>"
    assert shown(first.pieces(ROUNDS, "")) == (
        "[Round 0]\n问：a\n答：b\n[Round 1]\n问：c\n答：[gMASK]<sop>"
    )
    assert shown(second.pieces(ROUNDS, "")) == (
        "[gMASK]sop[Round 1]\n\n问：a\n\n答：b\n\n[Round 2]\n\n问：c\n\n答："
    )


def test_generations_without_system_messages_get_them_as_text_first():
    told = [Message("system", "Rhyme."), *ROUNDS]
    assert shown(FORMATS["chatglm"].pieces(told, "no")).startswith("Rhyme.\n[Round 0]\n问：a")
    assert shown(FORMATS["chatglm"].pieces(ROUNDS[:1], "Rhyme.")).startswith("Rhyme.\na[gMASK]")
    assert "[gMASK]sopRhyme.\n\n[Round 1]" in shown(FORMATS["chatglm2"].pieces(told, "no"))


def test_turns_that_do_not_alternate_are_joined():
    turns = [Message("assistant", "x"), *ROUNDS, Message("user", "d")]
    assert shown(FORMATS["chatglm"].pieces(turns, "")) == (
        "[Round 0]\n问：\n答：x\n[Round 1]\n问：a\n答：b\n[Round 2]\n问：c\nd\n答：[gMASK]<sop>"
    )


TOOL_TURNS = [
    Message("system", "", tools=(WEATHER,)),
    Message("user", "北京天气怎么样？"),
    Message("assistant", "I look.", tool_calls=(ToolCall("get_weather", {"city": "北京"}),)),
    Message("tool", '{"temp": 20}'),
]


def test_calls_and_results_are_written_as_each_generation_does():
    third = shown(FORMATS["chatglm3"].pieces(TOOL_TURNS, ""))
    assert third.startswith("[gMASK]sop<|system|>\nAnswer the following questions")
    assert '"name": "get_weather"' in third
    assert third.endswith(
        "<|assistant|>\nI look.<|assistant|>get_weather\n```python\ntool_call(city='北京')\n```"
        '<|observation|>\n{"temp": 20}<|assistant|>'
    )
    fourth = shown(FORMATS["glm4"].pieces(TOOL_TURNS, ""))
    assert "# 可用工具\n## get_weather\n\n{\n" in fourth
    assert fourth.endswith(
        '<|assistant|>\nI look.<|assistant|>get_weather\n{"city": "北京"}'
        '<|observation|>\n{"temp": 20}<|assistant|>'
    )


@pytest.mark.parametrize("name", ["chatglm3", "glm4", "glm4-0414"])
def test_tools_mean_the_same_bare_and_wrapped(name):
    wrapped = Message("system", "", tools=({"type": "function", "function": WEATHER},))
    both = [FORMATS[name].pieces([each, ROUNDS[0]], "") for each in (TOOL_TURNS[0], wrapped)]
    assert both[0] == both[1]


def test_glm4_0414_puts_what_the_system_says_first():
    late = [*ROUNDS, Message("system", "Rhyme.", tools=(WEATHER,)), Message("user", "d")]
    text = shown(FORMATS["glm4-0414"].pieces(late, ""))
    assert text.index("智谱 AI 公司") < text.index("Rhyme.") < text.index("<|user|>\na")
    assert text.endswith("<|user|>\nd<|assistant|>")


@pytest.mark.parametrize("name", ["chatglm", "chatglm2"])
@pytest.mark.parametrize("at", [0, 2, 3])
def test_generations_without_tools_say_so(name, at):
    with pytest.raises(UsageError, match="never taught tools"):
        FORMATS[name].pieces([ROUNDS[0], TOOL_TURNS[at], ROUNDS[0]], "")


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_carries_passages_and_shortens(tokenizer, name):
    renderer = Renderer(tokenizer, FORMATS[name], languages=frozenset({"zh", "en"}))
    passages = tuple(Passage(f"fact {at}", "x", score=at / 9) for at in (1, 5, 3))
    turns = [*ROUNDS[:2], Message("user", "Why?", passages)]
    long = renderer.render(turns, room=10_000)
    text = tokenizer.decode(long.ids)
    assert text.index("fact 1") < text.index("fact 5") < text.index("fact 3") < text.index("Why?")
    short = renderer.render(turns, room=len(long.ids) - 1)
    assert [each.text for each in short.passages] == ["fact 5", "fact 3"]
    bare = renderer.render([Message("user", "Why?")], room=10_000)
    assert renderer.render(turns, room=len(bare.ids)).ids == bare.ids


_FORGERS = ("<|user|>", "<|assistant|>", "<|observation|>", "[gMASK]", "<sop>", "sop", "<eop>")


@pytest.mark.parametrize("name", FORMATS)
@settings(deadline=None, max_examples=30)
@given(
    content=st.lists(st.sampled_from([*_FORGERS, "<|im_end|>", "\n", "你", "[Round 1]"])).map(
        "".join
    )
)
def test_nobody_forges_a_turn(tokenizer, name, content):
    specials = set(tokenizer.specials.values())

    def steering(text):
        pieces = FORMATS[name].pieces([*ROUNDS[:2], Message("user", text)], "")
        return [each for each in encode(pieces, tokenizer) if each in specials]

    assert steering(content + "x") == steering("x")


PARTS = ["track", "\n", "```python\n", "tool_call(a=1)", "\n```", " ", "{", '"a": 1}', TURN, "你好"]
PARTS += [",", "[[训练", "时间]]", "interpreter", "get_weather", "text", "!", "<|", "python"]


@pytest.mark.parametrize("tools", [(), (WEATHER,), ({"type": "python"}, {"type": "cogview"})])
@pytest.mark.parametrize("name", ["chatglm", "chatglm2", "chatglm3", "glm4", "chatml"])
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_answers_are_read_the_same_however_they_arrive(name, tools, data):
    text = "".join(data.draw(st.lists(st.sampled_from(PARTS), max_size=10)))
    history = [Message("system", "", tools=tools), ROUNDS[0]]
    parts = data.draw(st.integers(1, max(1, len(text))))
    assert read(FORMATS[name], history, text) == read(FORMATS[name], history, text, parts)


def streamed(name, history, parts):
    reader = FORMATS[name].reader(history)
    return [reader.push(each) for each in parts], reader


def test_text_is_shown_as_it_comes():
    assert streamed("glm4", ROUNDS, ["\n", "You", " see", ", it"])[0] == ["", "You", " see", ", it"]
    # A name that could be called is held back no longer than it could be.
    parts = ["get", "_weather", " is", " a tool"]
    pieces, _ = streamed("glm4", TOOL_TURNS[:2], parts)
    assert pieces == ["", "", "get_weather is", " a tool"]
    pieces, _ = streamed("chatglm3", TOOL_TURNS[:2], ["get_weather\n", "```", "x"])
    assert pieces == ["", "", ""]
    pieces, _ = streamed("chatglm3", TOOL_TURNS[:2], ["get_weather\n", "says", " rain"])
    assert pieces == ["", "get_weather\nsays", " rain"]
    assert streamed("chatglm", ROUNDS, ["你好", ",", "a", ",", "b"])[0] == [
        "你好",
        "，",
        "a",
        "",
        ",b",
    ]


def test_a_call_is_never_shown_as_text():
    answer = ["\n", "I look.", TURN, "get_weather", '\n{"city": ', '"北京"}']
    pieces, reader = streamed("glm4", TOOL_TURNS[:2], answer)
    assert "".join(pieces) + reader.finish() == "I look."
    assert reader.calls == (ToolCall("get_weather", {"city": "北京"}),)


@pytest.mark.parametrize(
    "tool, said, arguments",
    [
        ("python", "print(1)", {"code": "print(1)"}),
        ("python", "```python\nprint(1)\n```", {"code": "print(1)"}),
        ("cogview", "A cat.", {"prompt": "A cat."}),
        ("simple_browser", "search('cats')", {"code": "search('cats')"}),
    ],
)
def test_built_in_tools_take_bare_text(tool, said, arguments):
    history = [Message("system", "", tools=({"type": tool},)), ROUNDS[0]]
    assert read(FORMATS["glm4"], history, f"{tool}\n{said}") == ("", (ToolCall(tool, arguments),))
    call = Message("assistant", "", tool_calls=(ToolCall(tool, arguments),))
    text = shown(FORMATS["glm4"].pieces([*history, call, Message("tool", "x")], ""))
    assert said.strip("`").removeprefix("python\n").strip("\n") in text


@pytest.mark.parametrize(
    "code",
    [
        "tool_call(a=__import__('os').system('true'))",
        "tool_call(a=open('/etc/passwd').read())",
        "tool_call(a=[].__class__)",
        "tool_call(a=(lambda: 1)())",
        "tool_call(**{'a': 1})",
        "tool_call(1)",
        "tool_call(a=b'bytes')",
        "tool_call(a={1, 2})",
        "tool_call(a=1j)",
        "tool_call(a={1: 2})",
        "tool_call(a=...)",
        "other(a=1)",
        "tool_call(a=1); x",
        "tool_call(a=f'{1}')",
        "tool_call(a=" + "[" * 500 + "]" * 500 + ")",
        "tool_call(a=" + "-" * 5000 + "1)",
        "tool_call(a='" + "x" * 70_000 + "')",
        "tool_call(a='\0')",
        r"tool_call(a='\ud83d')",
        "tool_call(a=1",
        "",
    ],
)
def test_what_is_no_literal_call_stays_text(code):
    assert python_call(code) is None
    answer = f"get_weather\n```python\n{code}\n```"
    assert read(FORMATS["chatglm3"], TOOL_TURNS[:2], answer) == (answer, ())


@pytest.mark.parametrize(
    "text", ["[1]", "1", '{"a": NaN}', '{"a": 1', r'{"a": ["\ud83d"]}', "[" * 100_000, ""]
)
def test_what_is_no_json_object_stays_text(text):
    assert json_object(text) is None
    answer = f"get_weather\n{text}".strip()
    assert read(FORMATS["glm4"], TOOL_TURNS[:2], answer) == (answer, ())


@settings(deadline=None, max_examples=50)
@given(
    arguments=st.dictionaries(
        st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda name: name.isidentifier()),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=5,
        ),
        max_size=3,
    )
)
@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_a_call_survives_writing_and_reading(name, arguments):
    import keyword

    if any(map(keyword.iskeyword, arguments)) or set(arguments) == {"code"}:
        return
    call = ToolCall("get_weather", arguments)
    turns = [*TOOL_TURNS[:2], Message("assistant", "", tool_calls=(call,)), TOOL_TURNS[3]]
    pieces = FORMATS[name].pieces(turns, "")
    start = pieces.index("get_weather\n") if name == "chatglm3" else len(pieces) - 4
    said = "".join(pieces[start : pieces.index(Special("<|observation|>"))])
    if TURN not in said:
        assert read(FORMATS[name], TOOL_TURNS[:2], said) == ("", (call,))


@pytest.mark.parametrize("write", [listed, lambda tools: told(tools, "")])
def test_tools_that_would_fill_memory_are_refused(write):
    deep: object = {}
    for _ in range(900):
        deep = {"properties": deep}
    wide = {"name": "f", "parameters": {f"key{at}": "x" * 90 for at in range(3000)}}
    for schema, said in ((deep, "nested deeper"), (wide, "offer fewer")):
        with pytest.raises(UsageError, match=said):
            write([{"type": "function", "function": {"name": "f", "parameters": schema}}])
