"""Load a bundle and run it for any input length; needs NumPy and one backend, never torch or onnx.

::

    import twoheads.runtime

    bundle = twoheads.runtime.load("smollm2.bundle")
    result = bundle.run(bundle.tokenizer.encode(text), output="last")
    print(result.array.argmax(), result.report.engine_calls)
"""

from twoheads.runtime.document_run import run_documents
from twoheads.runtime.job import Job
from twoheads.runtime.merge import attention, merge_state
from twoheads.runtime.npz_writer import NpzWriter
from twoheads.runtime.opening import load
from twoheads.runtime.report import Report, Result, StageReport
from twoheads.runtime.session import LoadedBundle

__all__ = [
    "Job",
    "LoadedBundle",
    "NpzWriter",
    "Report",
    "Result",
    "StageReport",
    "attention",
    "load",
    "merge_state",
    "run_documents",
]
