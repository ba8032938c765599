"""Reads a prompt with llama.cpp, memory-mapped, and prints its timings and next token as JSON.

PYTHON llama_child.py MODEL.gguf TOKENS.json OUT.json THREADS   # a Python that has xllamacpp; imports nothing of ours
"""

import json
import sys

import xllamacpp  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]


def main() -> None:
    """See the module's text."""
    model, tokens, out, threads = sys.argv[1:]
    with open(tokens, encoding="utf-8") as file:
        prompt = json.load(file)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.n_parallel, params.warmup = len(prompt) + 64, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    server = xllamacpp.Server(params)
    asked = {"prompt": prompt, "n_predict": 1, "temperature": 0, "cache_prompt": False}
    answer = server.handle_completions(asked)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
