"""``twoheads generate``: what it prints, and what it refuses."""

from __future__ import annotations

import io
import json
import re

import numpy as np
import pytest

from tests.runtime.generation.decoders import bundle_folder
from tests.runtime.tiny_bundle import rehash
from twoheads.runtime.generation.call_reader import CallReader
from twoheads.runtime.measurement import engine_meter, step_meter


def test_json_tells_the_continuation_and_what_it_took(cli, bundle, tmp_path):
    np.save(tmp_path / "t.npy", np.arange(1, 12))
    words = ("generate", bundle, "--tokens", tmp_path / "t.npy", "--max-new-tokens", 9, "--ignore-eos", "--json")
    made = cli(*words).json
    assert len(made["tokens"]) == 9
    assert (made["prompt_tokens"], made["finish_reason"]) == (11, "length")
    assert 0 < made["first_token_seconds"] < 60
    assert made["tokens_per_second"] > 0
    assert made["engine_calls"] >= 10
    assert made["peak_bytes"] > 1 << 20
    assert made["text"]


def test_text_comes_on_stdout_and_the_rest_on_stderr(cli, bundle, text):
    words = ("generate", bundle, "--file", text, "--max-new-tokens", 5, "--ignore-eos")
    ran, told = cli(*words), cli(*words, "--json").json
    assert ran.code == 0
    assert ran.out == told["text"] + "\n"
    assert "36 + 5 tokens (length)" in ran.err
    stopped = cli(*words, "--stop", told["text"].split()[1], "--json").json
    assert stopped["finish_reason"] == "stop"
    assert len(stopped["tokens"]) == 2


def test_options_set_the_fields_of_their_names(cli, bundle):
    words = ("generate", bundle, "--prompt", "the cat", "--max-new-tokens", 6, "--ignore-eos", "--json")
    sampled = ("--do-sample", "--temperature", 3, "--seed", 1)
    assert cli(*words, *sampled).json["tokens"] == cli(*words, *sampled).json["tokens"]
    assert cli(*words, *sampled).json["tokens"] != cli(*words, "--do-sample", "--seed", 2).json["tokens"]
    several = cli(*words, "--do-sample", "--seed", 2, "--set", "num_return_sequences=2").json
    assert len(several) == 2
    only = cli(*words, "--set", f"suppress_tokens={[token for token in range(16) if token != 5]}").json
    assert only["tokens"] == [5] * 6


def test_what_is_wrong_is_named(cli, bundle, tmp_path):
    generate = ("generate", bundle, "--prompt", "the cat")
    assert "needs one prompt" in cli("generate", bundle).refused()
    assert "temperature -1.0" in cli(*generate, "--temperature", -1).refused()
    assert "stop_strings" in cli(*generate, "--stop", "").refused()
    assert "'typical'" in cli(*generate, "--set", "typical=1").refused()
    assert "is not JSON" in cli(*generate, "--set", "typical_p=x").refused()
    assert "shapes samples" in cli(*generate, "--greedy", "--top-p", 0.5).refused()
    (tmp_path / "m.json").write_text(json.dumps([{"role": "user", "content": "hi"}]))
    assert "chat template" in cli("generate", bundle, "--file", tmp_path / "m.json").refused()
    assert "has no chat template" in cli("chat", bundle).refused()


def test_a_bundle_without_step_engines_says_so(cli, tiny_llama, tmp_path):
    assert cli("compile", tiny_llama, "-o", tmp_path / "b", "--no-generation").code == 0
    assert "holds no engines that extend a sequence" in cli("generate", tmp_path / "b", "--prompt", "the").refused()


def test_a_conversation_keeps_its_context(cli, tiny_llama, tmp_path, monkeypatch):
    template = "{% for m in messages %}{{ m.role == 'user' and 'the' or 'a' }} {{ m.content }} {% endfor %}dog "
    (tmp_path / "model").mkdir()
    for file in tiny_llama.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    assert cli("compile", tmp_path / "model", "-o", tmp_path / "b", "--block-size", 16).code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("cat sat\nred house\n\n"))
    ran = cli("chat", tmp_path / "b", "--max-new-tokens", 4, "--set", "eos_token_id=[]")
    assert ran.code == 0, ran.err
    first, second = ran.out.splitlines()
    assert len(first.split()) == len(second.split()) == 4
    told = [int(number) for number in re.findall(r"(\d+) tokens of context", ran.err)]
    assert told[0] == len(["the", "cat", "sat", "dog"]) + 4
    assert told[1] >= told[0] + len(["a", "the", "red", "house"]) + 4


def test_a_beginning_is_computed_once(cli, bundle, text, tmp_path):
    words = ("generate", bundle, "--file", text, "--max-new-tokens", 3, "--ignore-eos", "--json")
    plain = cli(*words).json
    cold, warm = (cli(*words, "--cache", tmp_path / "pages").json for _ in range(2))
    assert len(list((tmp_path / "pages").glob("*.page"))) == 2
    assert plain["tokens"] == cold["tokens"] == warm["tokens"]
    assert plain["logprobs"] == cold["logprobs"] == warm["logprobs"]
    assert warm["engine_calls"] < cold["engine_calls"] == plain["engine_calls"]
    for file in (tmp_path / "pages").glob("*.page"):
        file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in cli(*words, "--cache", tmp_path / "pages").refused()


def test_a_plan_foretells_the_calls(cli, bundle, tmp_path):
    np.save(tmp_path / "t.npy", np.arange(1, 12))
    words = ("generate", bundle, "--tokens", tmp_path / "t.npy", "--max-new-tokens", 9, "--ignore-eos", "--json")
    plan = cli("plan", bundle, "--length", 11, "--generate", 9, "--json").json
    assert cli(*words).json["engine_calls"] == plan["prompt_calls"] + plan["step_calls"]
    assert (plan["kept_dtype"], plan["precision"]) == ("float32", "float32")
    told = cli("plan", bundle, "--length", 11, "--generate", 9).out
    assert re.search(r"keys and values .*, float32", told)
    assert re.search(r"precision +float32", told)
    assert "--length" in cli("plan", bundle, "--generate", 9).refused()


def _lines(path, *lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_many_prompts_get_what_they_would_get_alone(cli, bundle, tmp_path):
    file = _lines(
        tmp_path / "p.jsonl",
        '"the cat sat on a mat"',
        "",
        {"prompt": "a red dog", "id": "dog", "max_new_tokens": 3},
        {"tokens": [3, 4, 5], "do_sample": True, "temperature": 2.0, "seed": 4},
    )
    words = ("--max-new-tokens", 7, "--ignore-eos")
    ran = cli("generate", bundle, "--prompts", file, *words)
    assert ran.code == 0, ran.err
    told = {line["index"]: line for line in map(json.loads, ran.out.splitlines())}
    assert sorted(told) == [0, 1, 2]
    assert told[1]["id"] == "dog"
    assert [len(told[at]["tokens"]) for at in range(3)] == [7, 3, 7]
    alone = cli("generate", bundle, "--prompt", "the cat sat on a mat", *words, "--steady", "--json").json
    for name in ("tokens", "text", "logprobs", "finish_reason", "prompt_tokens"):
        assert told[0][name] == alone[name]
    np.save(tmp_path / "t.npy", np.array([3, 4, 5]))
    sampled = ("--tokens", tmp_path / "t.npy", "--do-sample", "--temperature", 2, "--seed", 4)
    assert told[2]["tokens"] == cli("generate", bundle, *sampled, *words, "--steady", "--json").json["tokens"]
    one = cli("generate", bundle, "--prompts", file, *words, "--at-once", 1)
    assert [json.loads(line)["index"] for line in one.out.splitlines()] == [0, 1, 2]


def test_a_prompt_that_fails_has_an_error_on_its_line(cli, bundle, tmp_path):
    file = _lines(tmp_path / "p.jsonl", '"the cat"', {"prompt": "the cat", "suppress_tokens": list(range(20))})
    ran = cli("generate", bundle, "--prompts", file, "--max-new-tokens", 3, "--ignore-eos")
    assert ran.code == 1
    told = {line["index"]: line for line in map(json.loads, ran.out.splitlines())}
    assert len(told[0]["tokens"]) == 3
    assert "leave no token" in told[1]["error"]
    assert "1 of 2 prompts failed" in ran.err


def test_lines_that_are_no_prompts_are_named(cli, bundle, tmp_path):
    def refused(*lines, words=()):
        return cli("generate", bundle, "--prompts", _lines(tmp_path / "p.jsonl", *lines), *words).refused()

    assert "is empty" in refused("", "")
    assert "p.jsonl:2: is not JSON" in refused('"the"', "cat")
    assert "p.jsonl:1: is no prompt" in refused({"text": "the"})
    assert "p.jsonl:1: is no prompt" in refused({"prompt": "the", "tokens": [1]})
    assert "has no tokens" in refused({"tokens": ["the"]})
    assert 'has seed = "x"' in refused({"prompt": "the", "seed": "x"})
    assert "has streamer = 1" in refused({"prompt": "the", "streamer": 1})
    assert "p.jsonl:2: generate: has temperature -1" in refused('"the"', {"prompt": "the", "temperature": -1})
    assert "needs one prompt" in refused('"the"', words=("--prompt", "the"))
    assert "--prompts" in refused('"the"', words=("--speculate",))
    assert "--at-once" in cli("generate", bundle, "--prompt", "the", "--at-once", 2).refused()


def test_a_sequence_goes_on_in_another_process(cli, bundle, tmp_path):
    def told(tokens, *more):
        np.save(tmp_path / "t.npy", np.array(tokens))
        words = ("--tokens", tmp_path / "t.npy", "--max-new-tokens", 6, "--ignore-eos", "--json")
        return cli("generate", bundle, *words, *more)

    file = tmp_path / "context"
    first = told([3, 4, 5, 6], "--save-context", file).json["tokens"]
    second = told([7, 8], "--load-context", file).json
    assert second["prompt_tokens"] == 4 + 6 + 2
    assert second["tokens"] == told([3, 4, 5, 6, *first, 7, 8]).json["tokens"]
    file.write_bytes(file.read_bytes()[:-1])
    assert "is damaged" in told([7], "--load-context", file).refused()
    assert "can't be read" in told([7], "--load-context", tmp_path / "none").refused()
    assert "no such folder" in told([7], "--save-context", tmp_path / "none" / "c").refused()


def test_a_draft_has_the_same_vocabulary(cli, bundle, copied, monkeypatch):
    monkeypatch.setattr(CallReader, "_share", lambda *_: 0.1)  # as of a much smaller one
    words = ("generate", bundle, "--prompt", "the cat sat on a mat", "--max-new-tokens", 12, "--ignore-eos", "--json")
    plain = cli(*words).json
    drafted = cli(*words, "--draft", bundle).json
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["right_guesses"] == drafted["guessed_tokens"] > 0
    assert drafted["engine_calls"] < plain["engine_calls"] + drafted["guessed_tokens"]
    tokenizer = copied / "tokenizer" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"cat"', '"cow"'))
    rehash(copied, "tokenizer/tokenizer.json")
    assert "other tokens than the model" in cli(*words, "--draft", copied).refused()
    other = bundle_folder("llama")
    assert "a vocabulary of 64 tokens" in cli(*words, "--draft", other).refused()
    assert "--draft" in cli(*words, "--draft", bundle, "--speculate").refused()


def test_the_time_is_foretold_by_a_profile_of_steps(cli, bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_meter, "MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(step_meter, "MEASURE_SECONDS", 0.0)
    path, plan = tmp_path / "steps.json", ("plan", bundle, "--length", 24, "--generate", 8)
    assert "step_head" in cli("profile", bundle, "--generation", "-o", path, "--threads", 1).out
    timed = cli(*plan, "--device", path, "--json").json["device"]
    assert timed["first_token_seconds"] > 0
    assert timed["later_seconds"] * timed["tokens_per_second"] == pytest.approx(7)
    assert "the first token after" in cli(*plan, "--device", path).out
    cli("profile", bundle, "-o", path, "--threads", 1)
    assert "--generation" in cli(*plan, "--device", path).refused()
