"""Load a bundle and run it for any input length; needs NumPy and one backend, never torch or onnx.

::

    import twoheads.runtime

    bundle = twoheads.runtime.load("smollm2.bundle")
    result = bundle.run(bundle.tokenizer.encode(text), output="last")
    print(result.array.argmax(), result.report.engine_calls)
"""

from twoheads.runtime.documents.document_run import run_documents
from twoheads.runtime.jobs.job import Job
from twoheads.runtime.memory.npz_writer import NpzWriter
from twoheads.runtime.opening import load
from twoheads.runtime.reports.report import Report, Result, StageReport
from twoheads.runtime.runs.session import LoadedBundle
from twoheads.runtime.stages.attention.merge import attention, merge_state

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
