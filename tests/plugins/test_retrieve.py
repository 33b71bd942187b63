"""Retrieval: fusion, the scale, its zero, and the hook that offers passages."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from memory_base import MemoryBase, Piece

import glmkit_knowledge
from glmkit import ConfigError, DataError, Message, Policy, Request
from glmkit.testing import EchoModel, HashEncoder, make_app
from glmkit_knowledge.calibrate import WEIGHTS, Background, Curve, Evidence, relative
from glmkit_knowledge.retrieve import KnowledgeQuery, Retriever, turns
from glmkit_knowledge.settings import Settings
from glmkit_knowledge.terms import (
    answer_kind,
    content_terms,
    coverage,
    hard_tokens,
    holds_kind,
    missing_tokens,
)

DOCUMENTS = {
    "rivers.md": "The Nile is 6,650 kilometres long.\n\nThe Danube flows through ten countries.",
    "lakes.md": "贝加尔湖是世界上最深的湖，最深处 1642 米。\n\n洞庭湖在湖南省北部。",
    "washer.md": "Error E3 means that the water does not drain.\n\nError E5 means an open door.",
    "bread.md": "Knead the dough for ten minutes and let it rest.",
}


@pytest.fixture
def retriever(hash_encoder) -> Retriever:
    return Retriever(MemoryBase.of(DOCUMENTS, hash_encoder), hash_encoder)


@pytest.mark.parametrize(
    ("question", "path", "text"),
    [
        ("How long is the Nile in kilometres?", "rivers.md", "6,650"),
        ("贝加尔湖最深处有多少米?", "lakes.md", "1642"),
        ("What does error E5 mean?", "washer.md", "open door"),
        ("错误 E3 是什么意思", "washer.md", "drain"),
    ],
)
def test_the_passage_that_answers_comes_first(retriever, question, path, text):
    best = retriever.search(question, 3)[0]
    assert best.path == path
    assert text in best.text
    assert best.origin == "knowledge"


def test_scores_are_probabilities_best_first_and_unrelated_text_is_low(retriever):
    for question in (
        "How long is the Nile?",
        "洞庭湖在哪里",
        "Who composed the opera Carmen?",
        "?",
    ):
        scores = [passage.score for passage in retriever.search(question, 7)]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
    assert retriever.search("Who composed the opera Carmen?", 1)[0].score < 0.1
    assert retriever.search("The Nile is 6,650 kilometres long", 1)[0].score > 0.9


def test_a_code_that_the_passage_lacks_lowers_its_score(retriever):
    known = retriever.search("What does error E5 mean?", 1)[0].score
    unknown = retriever.search("What does error E9 mean?", 1)[0].score
    assert unknown < known


def test_as_many_passages_as_asked_for(retriever):
    for top_k in (1, 3, 7, 50):
        assert len(retriever.search("the Nile", top_k)) == min(top_k, 7)


def test_an_empty_base_finds_nothing(hash_encoder):
    retriever = Retriever(MemoryBase([], hash_encoder), hash_encoder)
    assert retriever.retrieve("anything", top_k=5).passages == ()


def test_a_chunk_that_vanishes_meanwhile_is_skipped(hash_encoder):
    base = MemoryBase.of(DOCUMENTS, hash_encoder)
    gone = base.without({1})
    base.chunks, base.vectors = gone.chunks, base.vectors
    found = Retriever(base, hash_encoder).search("How long is the Nile in kilometres?", 5)
    assert found
    assert all("6,650" not in passage.text for passage in found)


def test_the_reading_with_the_best_passage_is_taken(retriever):
    history = [("What is the Nile?", "A river. [1]")]
    found = retriever.retrieve("And how long is it in kilometres?", top_k=2, history=history)
    assert found.reading == "how long is the Nile in kilometres?"
    assert found.passages[0].path == "rivers.md"
    alone = retriever.retrieve("What does error E5 mean?", top_k=2, history=history)
    assert alone.reading == alone.question
    assert alone.passages == retriever.retrieve("What does error E5 mean?", top_k=2).passages


class Shifted(HashEncoder):
    """An encoder that puts everything close together, and each language in its own corner."""

    def encode(self, texts, *, kind="passage"):
        rows = super().encode(texts, kind=kind)
        corner = [[3.0, 0.0] if any("一" <= c <= "鿿" for c in t) else [1.5, 2.6] for t in texts]
        rows = np.hstack([rows, np.array(corner, np.float32).reshape(len(texts), 2)])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def __init__(self) -> None:
        super().__init__()
        self.name, self.dimensions = "shifted", 258


def test_scores_survive_an_encoder_whose_cosines_are_all_high(retriever):
    encoder = Shifted()
    other = Retriever(MemoryBase.of(DOCUMENTS, encoder), encoder)
    for question in ("How long is the Nile in kilometres?", "Who composed the opera Carmen?"):
        mine, theirs = retriever.search(question, 1)[0], other.search(question, 1)[0]
        assert theirs.score == pytest.approx(mine.score, abs=0.1)


def test_the_zero_is_what_unrelated_text_scores():
    encoder = Shifted()
    background = Background.of(encoder)
    [question] = encoder.encode(["Who composed Carmen?"], kind="query")
    zeros = background.zeros(question)
    assert zeros["en"] > zeros["zh"] > 0.3
    [english, chinese] = encoder.encode(["Bread is baked.", "长江很长。"], kind="passage")
    assert relative(float(english @ question), zeros["en"]) == pytest.approx(0, abs=0.15)
    neutral = background.neutral(question)
    assert abs(float(english @ neutral) - float(chinese @ neutral)) < 0.1


def test_the_background_is_remembered_and_a_damaged_file_is_measured_anew(tmp_path, hash_encoder):
    first = Background.of(hash_encoder, tmp_path)
    files = sorted((tmp_path / "knowledge").iterdir())
    assert len(files) == 2

    class Silent(HashEncoder):
        def encode(self, texts, *, kind="passage"):
            raise AssertionError("measured again")

    vector = hash_encoder.encode(["hello"])[0]
    assert Background.of(Silent(), tmp_path).zeros(vector) == first.zeros(vector)
    files[0].write_bytes(files[0].read_bytes()[:50])
    assert Background.of(hash_encoder, tmp_path).zeros(vector) == first.zeros(vector)


NUMBERS = st.floats(-2, 2)


@given(st.builds(Evidence, *[NUMBERS] * 6), st.floats(0, 1))
def test_more_likeness_never_lowers_the_probability(evidence, more):
    evidence = replace(evidence, crossing=float(evidence.crossing > 0))
    for name in ("passage", "sentence", "margin", "coverage"):
        better = replace(evidence, **{name: getattr(evidence, name) + more})
        assert WEIGHTS.probability(better) >= WEIGHTS.probability(evidence)
    assert 0 <= WEIGHTS.probability(evidence) <= 1


def test_a_curve_is_logistic():
    curve = Curve(1.0, Evidence(2.0, 0, 0, 0, 0, 0))
    value = curve.probability(Evidence(0.5, 9, 9, 9, 9, 9))
    assert value == pytest.approx(1 / (1 + math.exp(-2)))


def test_terms_of_a_question():
    assert content_terms("What is the capital of Peru?") == ["capital", "peru"]
    assert content_terms("长江有多长?") == ["长江"]
    assert coverage(["river", "长江"], "Rivers: 长江") == 1.0
    assert coverage(["river", "nile"], "rivers") == 0.5
    assert hard_tokens("错误 E9 怎么处理?") == ["e9"]
    assert hard_tokens("What does status 503 of GraphQL mean in Peru?") == ["503", "graphql"]
    assert missing_tokens(["e9", "503"], "Error E90 or 503") == 0.5


@pytest.mark.parametrize(
    ("question", "kind", "good", "bad"),
    [
        ("长江有多长?", "number", "全长 6300 公里", "在亚洲"),
        ("How many eyes has a bee?", "number", "It has five eyes.", "It has eyes."),
        ("When was it built?", "time", "It was built in 1869.", "It is long."),
        ("几点关门?", "time", "晚上十点", "关门"),
        ("Where is Peru?", "none", "anything", None),
    ],
)
def test_the_kind_of_answer(question, kind, good, bad):
    assert answer_kind(question) == kind
    assert holds_kind(kind, good)
    assert bad is None or not holds_kind(kind, bad)


def request(question: str, settings: object) -> Request:
    return Request((Message("user", question),), settings={"knowledge": settings})


def test_hook_extra_context_offers_what_passes_the_threshold(retriever):
    query = KnowledgeQuery(retriever, top_k=3, threshold=0.5)
    offered = glmkit_knowledge.extra_context(request("How long is the Nile in kilometres?", query))
    assert [passage.path for passage in offered][0] == "rivers.md"
    assert all(passage.score >= 0.5 for passage in offered)
    assert glmkit_knowledge.extra_context(request("Who composed Carmen?", query)) == []
    assert glmkit_knowledge.extra_context(Request((Message("user", "hi"),))) is None


def test_turns_pair_questions_with_answers():
    said = [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "now")]
    asked = Request(tuple(Message(role, text) for role, text in said))
    assert turns(asked) == [("a", "b"), ("c", "")]


def test_refused_questions_are_logged(tmp_path, retriever):
    log = tmp_path / "unanswered.jsonl"
    app = make_app(tmp_path / "home", knowledge=glmkit_knowledge)
    query = KnowledgeQuery(retriever, 5, 0.5, log_unanswered=log)
    model = EchoModel()
    chat = app.chat(model, policy=Policy.REFUSE, settings={"knowledge": query})
    assert chat.reply("谁写了歌剧《卡门》?").text == "基于本地知识搜索没有找到答案"
    assert chat.reply("Who composed Carmen?").finish_reason == "refused"
    assert chat.reply("How long is the Nile in kilometres?").sources
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [entry["question"] for entry in entries] == [
        "谁写了歌剧《卡门》?",
        "Who composed Carmen?",
    ]
    assert entries[0]["nearest"]["score"] < 0.5
    assert len(model.seen) == 1
    query.log_unanswered = tmp_path / "mistyped" / "unanswered.jsonl"
    with pytest.raises(DataError, match="log_unanswered: cannot write"):
        chat.reply("Who composed Carmen?")
    assert not query.log_unanswered.parent.exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"topk": 3}, "did you mean 'top_k'"),
        ({"top_k": 0}, "1 to 50"),
        ({"top_k": True}, "whole number"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"threshold": "0.5"}, "from 0 to 1"),
        ({"answer": "guess"}, "auto, generate, extract"),
        ({"when_missing": "shrug"}, "refuse, fallback"),
        ({"log_unanswered": 3}, "file name"),
    ],
)
def test_a_wrong_table_is_refused_when_the_application_starts(tmp_path, table, said):
    with pytest.raises(ConfigError, match=said):
        make_app(tmp_path, {"plugins": {"knowledge": table}}, knowledge=glmkit_knowledge)


def test_flags_win_over_the_table():
    settings = Settings.of({"top_k": 3, "threshold": 0.2}, top_k=7, threshold=None)
    assert (settings.top_k, settings.threshold) == (7, 0.2)


def test_pieces_are_what_retrieval_expects():
    assert {"id", "path", "heading", "location", "text"} == set(Piece.__dataclass_fields__)
