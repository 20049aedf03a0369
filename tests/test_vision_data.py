"""A user's JSONL of pictures: whatever stands in it, rows or one sentence that names file, row and field."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dualppo.core.errors import DataError
from dualppo.vision.picture_data import beavertails_v_card, beavertails_v_pairs, read_pictures

ROW = {"image": "a.png", "question": "How do I use this?", "replies": [{"text": "With soup.", "help": 1, "harm": 0}]}
PAIR = {
    "question": "What is it?",
    "image": "a.png",
    "response_1": "Hit!",
    "response_2": "A spoon.",
    "more_helpful_response_id": 2,
    "safer_response_id": 2,
    "is_response_1_safe": False,
    "is_response_2_safe": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a picture, one below, and links that lead out."""
    root = tmp_path_factory.mktemp("pictures")
    inside = root / "inside"
    (inside / "below").mkdir(parents=True)
    for path in (inside / "a.png", inside / "below" / "b.png", root / "secret.png"):
        Image.new("RGB", (4, 4)).save(path)
    os.symlink(root / "secret.png", inside / "link.png")
    os.symlink(root, inside / "up")
    return inside


def read(folder, *rows, adapter=None):
    """What is read from lines."""
    file = folder / "mine.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return read_pictures(file, adapter)


def test_rows_come_as_they_were_written(folder):
    blind = {
        "image": None,
        "question": "Why?",
        "knowledge": "Because.",
        "replies": [{"text": "b"}, {"text": "c", "harm": True}],
    }
    data = read(folder, ROW, "", ROW | {"image": "below/b.png"}, blind)
    assert [row.line for row in data.rows] == [1, 3, 4] and data.images[2] is None
    assert data.images[1].name == "b.png" and data.rows[2].knowledge == "Because."
    assert data.pool == ["With soup.", "b", "c"] and data.candidates() == [[0], [0], [1, 2]]
    assert [(r.help, r.harm) for r in data.rows[2].replies] == [(None, None), (None, 1.0)]


@pytest.mark.parametrize(
    "image", ["../secret.png", "link.png", "up/secret.png", "/etc/passwd", "..\\secret.png", "c:a.png"]
)
def test_no_path_leads_out_of_the_folder(folder, image):
    with pytest.raises(DataError, match="row 2, field 'image'.*leads out"):
        read(folder, ROW, ROW | {"image": image})


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image": "none.png"}, "field 'image': there is no file"),
        ({"image": 3}, "field 'image': a text"),
        ({"question": ""}, "field 'question'"),
        ({"question": None}, "field 'question'"),
        ({"knowledge": 3}, "field 'knowledge'"),
        ({"replies": {}}, "field 'replies'"),
        ({"replies": ["a"]}, r"field 'replies\[0\]': an object"),
        ({"replies": [{"text": "a", "help": "much"}]}, r"replies\[0\].help"),
        ({"replies": [{"text": "a", "harm": 1.5}]}, r"replies\[0\].harm"),
        ({"replies": [{"text": "a", "hram": 1}]}, r"replies\[0\].hram.*did you mean harm"),
        ({"repies": []}, "did you mean replies"),
        ({"question": "\ud800"}, "field 'question'"),
    ],
)
def test_a_bad_field_is_named(folder, change, said):
    with pytest.raises(DataError, match=f"mine.jsonl, row 2.*{said}"):
        read(folder, ROW, ROW | change)


@pytest.mark.parametrize("line", ["{", "[]", "3", "null", '{"a": NaN}', "\x00", "[" * 100_000])
def test_a_bad_line_is_named(folder, line):
    with pytest.raises(DataError, match="mine.jsonl, row 2"):
        read(folder, ROW, line)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*ROW, *PAIR, "text", "help", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(JSON, st.sampled_from(sorted({*ROW, *PAIR, "response", "is_response_safe"})), st.sampled_from([0, 1, 2]))
def test_anything_anywhere_is_read_or_a_sentence(folder, value, field, form):
    start = [ROW, PAIR, {"image": "a.png", "question": "?", "response": "a", "is_response_safe": True}][form]
    try:
        data = read(folder, start | {field: value}, adapter=[None, beavertails_v_pairs, beavertails_v_card][form])
        assert len(data) == 1 and all(r.harm is None or 0 <= r.harm <= 1 for r in data.rows[0].replies)
    except DataError as error:
        assert "mine.jsonl, row 1" in str(error)


def test_both_forms_of_beavertails_v_say_the_same(folder):
    cards = [
        {"image": "a.png", "question": "What is it?", "category": "tools", "image_severity": 1}
        | {"response": PAIR[f"response_{k}"], "is_response_safe": PAIR[f"is_response_{k}_safe"]}
        for k in (1, 2)
    ]
    (one,), (other,) = (
        read(folder, *rows, adapter=how).rows
        for rows, how in ((cards, beavertails_v_card), ([PAIR], beavertails_v_pairs))
    )
    assert [(r.text, r.harm) for r in one.replies] == [(r.text, r.harm) for r in other.replies]
    assert [r.help for r in other.replies] == [0.0, 1.0] and [r.help for r in one.replies] == [None, None]
