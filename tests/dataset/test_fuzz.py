"""Whatever a file holds, it is data or a clear refusal."""

import json

from hypothesis import HealthCheck, given, settings, strategies as st

from glmkit.console import drain
from glmkit.dataset import ColumnNames, open_data
from glmkit.dataset.checks import check
from glmkit.errors import GlmkitError

KEYS = st.sampled_from(
    "instruction input output system history tools messages conversations prompt response content "
    "role from value label chosen rejected tool_calls name arguments parameters weight loss type "
    "text completion query question answer reasoning_content function".split()
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "system", "tool", "[]", "{}", "[[1, 2]]", "\ud83d"])
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)
ROWS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=5)
TURN = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
OFTEN = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@OFTEN
@given(
    rows=st.lists(ROWS, min_size=1, max_size=3),
    first=st.sampled_from(
        [None, TURN, {"instruction": "a", "output": "b"}, {"prompt": "a", "completion": "b"}]
    ),
)
def test_rows_of_any_kind(tmp_path, rows, first):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in [*([first] if first else []), *rows]))
    drain(check([str(path)]))
    try:
        data = open_data([str(path)], skip_bad=True)
    except GlmkitError:
        return
    assert len(list(data.samples())) == len(data) > 0


@OFTEN
@given(
    content=st.binary(max_size=200), suffix=st.sampled_from([".json", ".csv", ".parquet", ".txt"])
)
def test_bytes_of_any_kind(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    names = ColumnNames(prompt="a", response="b")
    for columns in (ColumnNames(), names):
        try:
            data = open_data([str(path)], columns=columns, skip_bad=True)
        except GlmkitError:
            continue
        assert len(list(data.samples())) == len(data) > 0
