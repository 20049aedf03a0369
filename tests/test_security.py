"""SECURITY.md is what is done: every sentence of what is promised has its tests, which are there."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
HOSTILE, DATA, RECORDS, PROJECT = "test_hostile", "test_data", "test_records", "test_project"
READERS, OWN, TABLES, LAB = "test_readers", "test_own_data", "test_tables", "test_lab"

# The beginning of a sentence → (file, test) …
PROMISES = {
    "Bad input ends in one sentence": [
        (HOSTILE, "test_no_reader_breaks"),
        ("test_cli", "test_bad_input_gets_one_sentence"),
    ],
    "The sentence is one line of at most 2,000": [(HOSTILE, "test_a_sentence_is_one_line_that_any_terminal_takes")],
    "`dualppo doctor` asks three hosts": [
        ("test_doctor", "test_no_host_is_asked_offline_and_none_holds_it_up"),
        ("test_doctor", "test_what_is_said_of_hosts"),
    ],
    "Nothing is unpickled, evaluated or imported": [(PROJECT, "test_no_unsafe_loading_anywhere")],
    "Tensors come from safetensors": [(HOSTILE, "test_absurd_safetensors_headers_are_refused")],
    "The word list of a Keras tokenizer": [(HOSTILE, "test_a_spoilt_word_cache_is_refused")],
    "The only use of `torch.load`": [(PROJECT, "test_no_unsafe_loading_anywhere")],
    "Parameters reach a notebook as quoted": [(HOSTILE, "test_parameters_reach_a_notebook_as_literals")],
    "Results go below the output folder": [
        (HOSTILE, "test_tables_never_leave_the_output_folder"),
        ("test_survival", "test_kills_at_random_moments_lose_nothing"),
    ],
    "A link below it that leads out": [
        (RECORDS, "test_a_link_does_not_lead_writing_out_of_the_folder"),
        (RECORDS, "test_inside_agrees_with_the_file_system"),
    ],
    "Archives go into a new folder": [(HOSTILE, "test_a_download_is_unpacked_by_the_same_rules")],
    "Members that climb out": [(HOSTILE, "test_hostile_headers_are_refused_before_memory_is_filled")],
    "One function fetches one archive": [
        (DATA, "test_download_once_then_from_cache"),
        (DATA, "test_wrong_hash_is_refused_and_forgotten"),
    ],
    "The sentence encoder is an installed package": [
        ("test_encoders", "test_every_file_of_the_encoder_is_verified"),
        ("test_encoders", "test_the_hub_is_asked_for_one_commit"),
    ],
    "Another encoder (`--encoder`)": [
        ("test_encoders", "test_an_encoder_is_named_by_its_folder"),
        ("test_encoders", "test_a_strange_encoder_is_refused"),
    ],
    "So are all weights that come in packages": [
        (HOSTILE, "test_carrier_bombs_and_damage_are_refused"),
        ("test_judges", "test_wrong_weights_are_refused"),
        ("test_reward_models", "test_shipped_pairs_of_another_file_are_refused"),
    ],
    "`make env` installs every package": [
        (PROJECT, "test_every_locked_file_has_its_sha256"),
        (PROJECT, "test_the_locks_are_used_by_their_hashes"),
    ],
    "What a run keeps between two starts": [("test_survival", "test_no_flipped_bit_of_a_checkpoint_reaches_a_result")],
    "What does not fit is put aside": [("test_survival", "test_what_another_run_left_is_not_continued")],
    "A record that lacks something": [
        (RECORDS, "test_a_record_with_a_piece_missing_is_named_and_set_aside"),
        (RECORDS, "test_no_value_of_a_record_ends_what_reads_it"),
        (RECORDS, "test_nothing_that_was_set_aside_is_replaced"),
    ],
    "One function opens every file": [
        (READERS, "test_files_are_opened_in_one_way_only"),
        (READERS, "test_another_opener_would_be_seen"),
    ],
    "A file may have 4 GiB": [
        (READERS, "test_no_reader_takes_what_is_no_file"),
        (RECORDS, "test_a_record_that_is_too_large_is_not_parsed"),
        (HOSTILE, "test_carrier_bombs_and_damage_are_refused"),
    ],
    "The size a header claims": [(HOSTILE, "test_absurd_safetensors_headers_are_refused")],
    "Pipes, devices and folders are not read": [
        (READERS, "test_no_reader_takes_what_is_no_file"),
        (READERS, "test_no_command_takes_what_is_no_file"),
    ],
    "`data build` and `data scores` write over nothing": [
        (OWN, "test_an_input_is_never_written_over"),
        (OWN, "test_a_foreign_file_at_an_output_stays"),
    ],
    "Tables, pictures, report, ledger and stored policies": [
        (TABLES, "test_no_table_report_or_ledger_is_written_over_a_strangers_file"),
        (LAB, "test_no_policy_is_written_over_a_strangers_file"),
    ],
    "Cells of `NAME.replies.csv`, `NAME.queries.csv`": [
        (OWN, "test_no_cell_is_a_formula"),
        ("test_vision_own", "test_a_name_that_a_spreadsheet_would_run_is_inert_and_comes_back"),
    ],
    "A page shows a picture only while": [("test_vision_own", "test_a_thumbnail_is_of_the_picture_that_was_encoded")],
    "A stored policy carries the sha256": [(LAB, "test_a_flipped_bit_makes_no_other_policy")],
    "Text from outside is escaped": [(HOSTILE, "test_reports_are_inert_whatever_the_data_is_called")],
}


def promised() -> list[str]:
    """The sentences of the list under "What is promised", without the words that head them."""
    text = (TESTS.parent / "SECURITY.md").read_text(encoding="utf-8")
    section = text.partition("## What is promised")[2].partition("\n## ")[0]
    items = [re.sub(r"\s+", " ", item.strip()) for item in re.findall(r"(?m)^- ((?:.+\n?(?:  .+\n)*))", section)]
    bare = [re.sub(r"^\*\*[^*]+\*\* ", "", item) for item in items]
    return [sentence.strip() for item in bare for sentence in re.split(r"(?<=\.) (?=[A-Z`])", item)]


def test_the_list_is_read_whole():
    assert len(promised()) >= 20 and all(sentence.endswith(".") for sentence in promised())


def test_every_promise_has_its_test():
    for sentence in promised():
        assert any(map(sentence.startswith, PROMISES)), f"SECURITY.md promises what no test holds: {sentence}"
    for start in PROMISES:
        assert sum(sentence.startswith(start) for sentence in promised()) == 1, f"no such promise any more: {start}"


@pytest.mark.parametrize("start", PROMISES)
def test_the_tests_of_a_promise_are_there(start):
    for file, name in PROMISES[start]:
        tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
        (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        marks = " ".join(ast.unparse(mark) for mark in found.decorator_list)
        assert "mark.skip(" not in marks and "xfail" not in marks, f"{name} is not run"
