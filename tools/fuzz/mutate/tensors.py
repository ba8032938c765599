"""Mutations of safetensors files: the header's JSON and its length, and what it says about places."""

from __future__ import annotations

import json
import struct
from random import Random

from tools.fuzz.mutate.plain import ODD, mutated_bytes, mutated_json, mutated_tree

__all__ = ["mutated_safetensors"]

LENGTHS = (0, 1, 7, 2**31, 2**62, 2**64 - 1)
DTYPES = ("F64", "F16", "BF16", "I8", "U8", "BOOL", "F8_E4M3", "I64", "Q4", "")


def mutated_safetensors(data: bytes, draw: Random) -> bytes:
    """``data`` with its header's length, its entries, or its bytes changed."""
    if draw.random() < 0.2:
        return mutated_bytes(data, draw)
    (size,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + size], data[8 + size :]
    match draw.randrange(6):
        case 0:
            return struct.pack("<Q", draw.choice((*LENGTHS, size + 1, size - 1, len(data)))) + data[8:]
        case 1:
            header = mutated_json(header, draw)
        case _:
            tree = json.loads(header)
            entry = tree[draw.choice([name for name in tree if name != "__metadata__"])]
            match draw.randrange(5):
                case 0:
                    entry["dtype"] = draw.choice(DTYPES)
                case 1:
                    entry["shape"][draw.randrange(len(entry["shape"]))] = draw.choice((0, -1, 1, 2**40, 2**63, 3))
                case 2:
                    entry["data_offsets"] = [at + draw.choice((-8, 8, 1, 2**40)) for at in entry["data_offsets"]]
                case 3:
                    entry[draw.choice(list(entry))] = draw.choice(ODD)
                case _:
                    mutated_tree(tree, draw)
            header = json.dumps(tree).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(header)) + header + rest
