"""
What surprised in a real Ollama (430 recorded answers, faults included), and which test holds it.

Staged on a real Ollama where it can be (`real_ollama_*`), else on the fake that plays the
recording, else on the pure function that reads it. A test that is renamed or goes away is
missed here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
REAL = "e2e/test_real_ollama_faults.py"
CONTRACT = "e2e/test_real_ollama_engine.py"
STORE = "e2e/test_real_ollama_store.py"
FAKE = "faults/test_engine_ollama.py"
WAITS = "faults/test_engine_ollama_waits.py"
LOCAL = "faults/test_engine_local.py"
CASES = "faults/test_supervisor_cases.py"
WIRE = "wire/test_recordings.py"
PURE = "unit/test_engines_ollama_pure.py"
PULL = "faults/test_pull_registry.py"
NDJSON = "unit/test_models_pull_ndjson.py"
BROWSERS = "security/test_gateway_browsers.py"
FIT = "unit/test_machine_fit.py"

SURPRISES: dict[str, tuple[str, ...]] = {
    "01 repeat guard: no done:true, or done:false with status 200": (
        f"{REAL}::test_the_repeat_guard_is_a_cut_and_no_answer",
        f"{REAL}::test_a_template_of_the_files_own_has_no_repeat_guard",
        f"{FAKE}::test_a_reply_without_done_is_cut_although_it_ended_cleanly",
        f"{WIRE}::test_a_stream_that_just_ends_is_cut_though_it_ended_cleanly",
        f"{WIRE}::test_a_reply_that_is_not_done_is_cut",
    ),
    "02 a byte that is no UTF-8 ends a stream": (
        f"{WIRE}::test_a_stream_that_just_ends_is_cut_though_it_ended_cleanly",
        f"{WIRE}::test_an_error_line_ends_a_stream",
    ),
    "03 runner killed: an error line in the stream": (
        f"{REAL}::test_a_runner_killed_in_the_middle_is_an_error_and_no_end",
        f"{CONTRACT}::test_a_runner_that_is_killed_in_the_middle_is_an_error_and_the_next_request_works",
        f"{FAKE}::test_a_runner_that_was_killed_is_an_error_inside_the_stream",
    ),
    "04 SIGTERM of the server: closed without terminator or error": (
        f"{REAL}::test_a_daemon_that_is_stopped_while_it_answers_breaks_the_answer",
        f"{CONTRACT}::test_a_daemon_that_is_killed_breaks_the_answer_and_is_seen_as_stopped",
        f"{FAKE}::test_a_daemon_that_dies_in_the_middle_breaks_the_answer",
    ),
    "05a a dead runner is still listed, the next request reloads": (
        f"{REAL}::test_a_dead_runner_is_still_listed_and_the_next_request_loads_it_again",
        f"{WAITS}::test_a_dead_runner_that_is_listed_until_it_is_needed_is_a_load",
    ),
    "05b a frozen runner makes /api/ps block 20 s": (
        f"{REAL}::test_a_frozen_runner_is_waited_out_while_the_list_hangs_and_the_answer_comes",
        f"{FAKE}::test_a_list_that_a_frozen_runner_holds_back_does_not_hold_the_status_back",
        f"{WAITS}::test_an_answer_is_not_held_back_by_a_list_that_is",
        f"{WAITS}::test_a_hanging_list_does_not_keep_a_model_from_being_unloaded",
    ),
    "05c frozen in the middle: silence for ever": (
        f"{REAL}::test_a_runner_frozen_in_the_middle_is_a_stall",
        f"{FAKE}::test_a_runner_that_freezes_in_the_middle_is_a_stall",
    ),
    "05d a load and a hang look alike": (
        f"{REAL}::test_a_runner_frozen_while_it_loads_is_loading_and_then_answers",
        f"{FAKE}::test_loading_is_told_while_the_model_is_not_in_the_list",
        f"{FAKE}::test_a_load_that_takes_too_long_is_given_up",
        f"{FAKE}::test_a_daemon_that_dies_while_it_loads_is_dead_and_not_loading",
        f"{FAKE}::test_a_loaded_model_without_a_token_runs_into_the_first_token_limit",
    ),
    "06 SIGKILL and SIGHUP leave orphans with their memory": (
        f"{REAL}::test_a_daemon_that_dies_leaves_its_runners_and_ours_are_ended",
        f"{CASES}::test_13_runners_go_with_their_daemon",
        f"{CASES}::test_13b_a_runner_that_left_the_group_is_found_by_its_mark",
    ),
    "07 unload answers at once and waits for what runs": (
        f"{REAL}::test_an_unload_waits_for_the_answer_that_runs",
        f"{WAITS}::test_a_model_that_lost_its_gpu_is_gone_before_it_is_loaded_again",
    ),
    "08 size_vram is not zero on processors with AMX": (
        f"{LOCAL}::test_memory_of_a_processor_is_not_taken_for_a_gpus",
        "unit/test_engines_queue.py::test_nothing_is_lost_where_no_gpu_is_expected_or_nothing_is_loaded",
        f"{FIT}::test_recorded_loads_of_ollama_are_predicted",
    ),
    "09 a deleted model stays listed as loaded": (
        f"{REAL}::test_a_deleted_model_is_listed_as_loaded_and_yet_unknown",
    ),
    "10 num_ctx of four or less is a context of four tokens": (
        f"{REAL}::test_a_context_of_four_tokens_is_never_asked_for",
        f"{WAITS}::test_a_context_of_no_tokens_is_not_passed_on",
    ),
    "11 damaged and missing blobs, broken manifests": (
        f"{REAL}::test_a_damaged_file_is_told_in_the_daemons_words",
        f"{REAL}::test_a_broken_manifest_takes_its_model_from_the_list_and_no_other",
        f"{FAKE}::test_errors_of_the_model_reach_the_classifier_whole",
        f"{STORE}::test_ollama_reads_past_what_a_damaged_store_holds",
    ),
    "12 images on a text model 500, embeddings of one 501": (
        f"{FAKE}::test_an_image_for_a_text_model_is_refused_before_it_is_sent",
        f"{CONTRACT}::test_a_text_model_has_no_embeddings",
        f"{PURE}::test_an_error_of_llama_server_is_unwrapped_from_its_string",
    ),
    "13 overflow: 400 on one template path, cut silently on the other": (
        f"{REAL}::test_too_long_a_prompt_is_refused_on_both_template_paths",
        f"{REAL}::test_a_prompt_that_fits_the_window_but_not_the_context_is_taken_whole",
        f"{FAKE}::test_a_prompt_is_never_cut_and_gets_a_longer_context_when_the_model_has_one",
        f"{PURE}::test_both_ways_of_saying_too_long_are_understood",
    ),
    "14 errors name models in two ways": (
        f"{CONTRACT}::test_a_missing_model_is_a_404_that_names_it",
    ),
    "15 out of memory: a 500 of several lines": (
        f"{FAKE}::test_errors_of_the_model_reach_the_classifier_whole",
        "faults/test_engine_hosts.py::test_a_model_that_cannot_be_loaded_at_one_host_is_loaded_at_another",
    ),
    "16 a quick layer prints no line": (
        f"{NDJSON}::test_a_blob_that_ends_between_two_looks_is_told_before_the_next",
    ),
    "17 a stall throws the bytes of an attempt away": (
        f"{PULL}::test_silence_is_cut_and_the_stretch_fetched_by_another",
        "faults/test_pull_daemon.py::test_numbers_that_go_backwards_are_not_shown",
    ),
    "18 a blob host's refusal is never shown": (
        f"{PULL}::test_a_pull_fails_with_its_own_code_and_a_next_step",
    ),
    "19 pulling again right after a hang-up": (
        "faults/test_pull_daemon.py::test_passing_trouble_is_tried_again",
        f"{STORE}::test_an_interrupted_pull_of_ollamas_is_gone_on_with",
    ),
    "20 only 307 to another host name": (f"{PULL}::test_a_pull_gets_through",),
    "21 a resumed range answered with 200": (
        f"{PULL}::test_a_pull_gets_through",
        f"{PULL}::test_false_bytes_are_thrown_away_and_not_gone_on_with",
    ),
    "22 a manifest of {} is success": (
        "unit/test_models_manifest.py::test_what_is_no_manifest_is_refused",
        "unit/test_models_registry.py::test_insecure_means_http_unless_the_name_says_https",
    ),
    "23 tokens go to the registry's realm alone": (
        f"{PULL}::test_a_realm_elsewhere_in_plain_http_gets_nothing",
        "unit/test_models_registry.py::test_an_ollama_key_signs_the_request_for_a_token",
    ),
    "24 stray files switch pruning off": (
        "unit/test_models_store.py::test_stray_files_are_no_models_and_are_named",
        f"{STORE}::test_a_restart_prunes_nothing_of_ours",
    ),
    "25 create rewrites the file": (f"{STORE}::test_what_we_pull_ollama_lists_shows_and_runs",),
    "26 sizes in a manifest are believed": (
        "unit/test_models_store.py::test_a_blob_of_the_wrong_size_is_not_trusted",
    ),
    "27 without a template layer the file's own is shown": (
        f"{PURE}::test_a_shown_model_tells_its_window_and_its_own_context",
        f"{REAL}::test_a_template_of_the_files_own_has_no_repeat_guard",
    ),
    "28 origins of extensions": (f"{BROWSERS}::test_a_page_is_refused",),
    "29 hosts and preflights": (
        f"{BROWSERS}::test_a_page_is_refused",
        f"{BROWSERS}::test_w4_its_preflight_lists_methods_and_headers",
    ),
    "30 a socket that accepts before it answers, and starts that fail": (
        f"{CASES}::test_03_and_04_an_exit_at_once_ends_in_a_crash_loop_with_its_last_words",
        f"{CASES}::test_07_one_that_accepts_and_never_answers_is_ended",
        f"{CASES}::test_08_a_slow_start_is_waited_for",
    ),
    "31-33 what a load takes": (f"{FIT}::test_recorded_loads_of_ollama_are_predicted",),
    "busy: a full queue, and one that is waited in": (
        f"{REAL}::test_a_full_daemon_says_so_and_a_waiting_one_answers_all",
        f"{FAKE}::test_a_missing_model_and_a_full_daemon_are_told_as_they_are",
        f"{WAITS}::test_who_waits_behind_others_in_the_daemon_is_not_given_up",
    ),
    "busy: parallel answers": (f"{CONTRACT}::test_many_at_once_are_all_answered",),
    "crash: a client that hangs up": (
        f"{FAKE}::test_a_caller_that_leaves_takes_its_request_back_at_once",
    ),
    "startup: port in use": (
        f"{CASES}::test_05_an_ollama_that_runs_is_adopted_and_outlives_us",
        f"{CASES}::test_06_a_port_taken_by_another_program_is_named_and_another_is_used",
    ),
    "reload when whether the window may shift differs": (
        f"{REAL}::test_a_model_that_was_loaded_before_is_not_loaded_again_for_the_first_request",
    ),
}


@pytest.mark.parametrize("surprise", SURPRISES)
def test_every_surprise_has_its_tests(surprise: str) -> None:
    for place in SURPRISES[surprise]:
        path, _, name = place.partition("::")
        found = re.search(rf"^ *def {name}\(", (TESTS / path).read_text(), re.MULTILINE)
        assert found, f"{place} is gone"


def test_no_surprise_was_left_out() -> None:
    told = {int(number) for surprise in SURPRISES for number in re.findall(r"^\d\d", surprise)}
    assert told | {32, 33} == set(range(1, 34))


RECORDED = Path(__file__).parent.parent / "data" / "ollama"


def test_every_recording_is_played_or_read() -> None:
    """Data that nobody uses proves nothing."""
    programs = [*TESTS.rglob("*.py"), *(TESTS.parent / "localfirst").rglob("*.py")]
    text = "\n".join(path.read_text() for path in programs if path != Path(__file__))
    unused = [path.stem for path in RECORDED.glob("*.json") if path.stem not in text]
    assert unused == []
