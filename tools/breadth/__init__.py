"""The sweep: a small model of every type that transformers knows, compiled and compared with the library's own code."""
