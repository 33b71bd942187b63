"""The public data sets, read in place."""

import pytest

from glmkit.dataset import ColumnNames, open_data
from glmkit.dataset.converting import FORMATS, write_rows
from glmkit.errors import DataError

FILES = {
    "llama-factory/alpaca_zh_demo.json": ("alpaca", 1000),
    "llama-factory/alpaca_en_demo.json": ("alpaca", 999),
    "llama-factory/identity.json": ("alpaca", 91),
    "llama-factory/glaive_toolcall_zh_demo.json": ("sharegpt", 300),
    "llama-factory/glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "llama-factory/reason_tool_use_demo_50.jsonl": ("messages", 50),
    "chatglm-efficient-tuning/oaast_sft_zh.json": ("alpaca", 689),
    "chatglm-efficient-tuning/self_cognition.json": ("alpaca", 80),
    "chatglm-efficient-tuning/example_dataset/examples.json": ("alpaca", 2),
    "adgen/dev.json": ("adgen", 1070),
    "gsm8k/test.jsonl": ("question/answer", 1319),
}


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_sample(shared_data, name, tmp_path):
    path = shared_data / name
    shape, rows = FILES[name]
    data = open_data([str(path)])
    assert data.described == f"{path.name}: {shape}, {rows:,} rows"
    samples = list(data.samples())
    assert len(samples) == len(data) == rows
    write_rows(map(FORMATS["messages"], samples[:100]), tmp_path / "m.jsonl")
    again = open_data([str(tmp_path / "m.jsonl")]).samples()
    assert all(a.messages == b.messages for a, b in zip(samples[:100], again, strict=True))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("llama-factory/dpo_zh_demo.json", "chosen and rejected"),
        ("llama-factory/dpo_en_demo.json", "chosen and rejected"),
        ("llama-factory/kto_en_demo.json", "verdict"),
        ("chatglm-efficient-tuning/oaast_rm_zh.json", "ranked"),
        ("cmrc2018/cmrc2018_dev.json", "one JSON object with the keys 'version', 'data'"),
        ("math/math.json", "in no format that is known"),
    ],
)
def test_others_are_known_for_what_they_are(shared_data, name, kind):
    with pytest.raises(DataError, match=kind):
        open_data([str(shared_data / name)])


def test_the_listing_as_it_is_published(shared_data):
    folder = shared_data / "llama-factory"
    names = ["identity", "alpaca_zh_demo#50", "glaive_toolcall_en_demo"]
    data = open_data(names, dataset_dir=folder)
    assert len(data) == 91 + 50 + 300
    assert "glaive_toolcall_en_demo.json: sharegpt, 300 rows" in data.described
    for name, reason in {
        "dpo_mix_zh": "preference",
        "mllm_demo": "images",
        "lima": "lies at",
    }.items():
        with pytest.raises(DataError, match=reason):
            open_data([name], dataset_dir=folder)


def test_columns_of_our_choice(shared_data):
    names = ColumnNames(prompt="question", response="answer")
    data = open_data([str(shared_data / "gsm8k" / "test.jsonl")], columns=names)
    assert next(data.samples()).messages[1].content.endswith("#### 18")
    turned = ColumnNames(prompt="summary", response="content")
    back = next(open_data([str(shared_data / "adgen" / "dev.json")], columns=turned).samples())
    assert back.messages[1].content.startswith("类型#上衣")
