"""Reads a prompt with llama.cpp, memory-mapped, and writes its time and next token as JSON.

PYTHON llama_child.py MODEL.gguf TOKENS.json OUT.json THREADS   # of a Python with llama-cpp-python; nothing of ours
"""

import json
import sys
import time
from typing import Any

from llama_cpp import Llama, llama_cpp  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]


def read_in_place() -> None:
    """Has weights computed with where the file is mapped.

    Where a processor has kernels for another layout (AMX), llama.cpp copies all weights into it while it loads: more
    than the memory that it is held to here. Its package has no argument for this setting.
    """
    default = llama_cpp.llama_model_default_params

    def settings() -> Any:
        made = default()
        made.use_extra_bufts = False
        return made

    llama_cpp.llama_model_default_params = settings


def main() -> None:
    """See the module's text."""
    read_in_place()
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
