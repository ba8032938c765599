"""Reads a prompt with llama.cpp, memory-mapped, and writes its time and next token as JSON.

PYTHON llama_child.py MODEL.gguf TOKENS.json OUT.json THREADS   # of a Python with llama-cpp-python; nothing of ours
"""

import json
import sys
import time

from llama_cpp import Llama  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]


def main() -> None:
    """See the module's text."""
    model, tokens, out, threads = sys.argv[1:]
    with open(tokens, encoding="utf-8") as file:
        prompt = json.load(file)
    count = int(threads)
    loaded = Llama(model, n_ctx=len(prompt) + 64, n_threads=count, n_threads_batch=count, use_mmap=True, verbose=False)
    began = time.perf_counter()
    loaded.eval(prompt)
    token = loaded.sample(temp=0.0)
    found = {"prompt_seconds": time.perf_counter() - began, "next_token": int(token)}
    with open(out, "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
