"""Which questions lean on the turn before, and how they are completed."""

import pytest

from glmkit_knowledge.followup import leans_back, readings

LEANING = [
    "它有多长?",
    "它流经哪些国家？",
    "那长江呢？",
    "那它的首都呢？",
    "这条河在哪里？",
    "还有呢？",
    "为什么？",
    "有多长？",
    "他是什么时候出生的？",
    "And how long is it?",
    "How long is it?",
    "What about the Amazon?",
    "And the Amazon?",
    "When was it built?",
    "Where do they live?",
    "Why?",
    "In which country does it end?",
    "What is its capital?",
]
STANDING = [
    "世界上最大的河流是什么？",
    "长江有多长？",
    "长江和它的支流有多长？",
    "其他国家的首都是哪里？",
    "那不勒斯在哪个国家？",
    "其中一个插件叫什么？",
    "glmkit 的配置文件在哪里？",
    "How long is the Nile?",
    "What is the capital of Peru?",
    "Does glmkit keep its index on disk?",
    "How long does it take to index a folder?",
    "Is it possible to change the encoder?",
    "Is there a command that lists the plugins?",
    "How many lakes are there in Finland?",
    "When did the lake get its name?",
    "Who wrote The Classic of Tea?",
]


@pytest.mark.parametrize("question", LEANING)
def test_a_question_that_points_back_is_recognised(question):
    assert leans_back(question)


@pytest.mark.parametrize("question", STANDING)
def test_a_question_that_stands_alone_is_left_alone(question):
    history = [("尼罗河在哪里？", "尼罗河在非洲。 [1]"), ("How old is Rome?", "Rome is old. [1]")]
    assert readings(question, history) == [question]


def test_without_history_a_question_is_read_as_it_is():
    assert readings("它有多长?", []) == ["它有多长?"]


def test_a_pronoun_stands_for_what_was_asked_and_for_what_was_answered():
    history = [("世界上最大的河流是什么？", "亚马孙河是世界上最大的河流。 [1]")]
    assert readings("它有多长?", history) == ["世界上最大的河流有多长?", "亚马孙河有多长?"]
    history = [("What is the largest river?", "The Amazon is the largest river. [1]")]
    assert readings("And how long is it?", history) == [
        "how long is the largest river?",
        "how long is The Amazon?",
    ]


def test_a_question_about_something_else_is_asked_again_of_that():
    assert readings("那长江呢？", [("尼罗河有多长？", "6650 公里。")]) == ["长江有多长？"]
    history = [("How long is the Nile?", "6,650 kilometres.")]
    assert readings("What about the Amazon?", history) == ["How long is the Amazon?"]


def test_a_question_without_a_subject_gets_the_earlier_one():
    assert readings("有多长？", [("尼罗河在哪里？", "在非洲。")])[0] == "尼罗河有多长？"


def test_completions_go_back_over_several_turns():
    history = [("尼罗河在哪里？", "在非洲。"), ("它有多长?", "6650 公里。")]
    assert readings("它流经哪些国家？", history)[0] == "尼罗河流经哪些国家？"


def test_a_possessive_is_kept():
    history = [("How big is Peru?", "Peru has 1.3 million km2.")]
    assert "What is Peru's capital?" in readings("What is its capital?", history)
