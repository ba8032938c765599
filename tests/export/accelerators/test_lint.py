"""What a compiler can't take is named before it runs: node, rule, remedy."""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto, helper

from tests.runtime.tiny_bundle import rehash, write_tiny
from tests.runtime.tiny_model import Tiny
from twoheads.export.accelerators.lint import lint_bundle, lint_model
from twoheads.export.accelerators.target import Rule, Target, load_target, target_names
from twoheads.export.cli import main
from twoheads.runtime.bundle.reader import read_bundle


def model(operator, *, shape=(1, 4, 8, 16), dtype=TensorProto.FLOAT, name="x"):
    value = helper.make_tensor_value_info(name, dtype, shape)
    result = helper.make_tensor_value_info("y", dtype, shape)
    node = helper.make_node(operator, [name] * (2 if operator == "Add" else 1), ["y"], name="the_node")
    graph = helper.make_graph([node], "g", [value], [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def target(rule, limit=None, operators=(), dtypes=()):
    rules = (Rule(rule, operators, dtypes, limit, "refused", "do otherwise", "measured"),)
    return Target("t", "T", "m", (), ("fp32",), False, (), None, "tile", None, None, None, "1", rules)


@pytest.mark.parametrize(
    ("rule", "broken", "fine", "says"),
    [
        (target("operator", operators=("Erf",)), model("Erf"), model("Exp"), "operator"),
        (
            target("dtype", dtypes=("double",)),
            model("Add", dtype=TensorProto.DOUBLE),
            model("Add"),
            "dtype double of x",
        ),
        (target("rank", 5), model("Exp", shape=(1,) * 6), model("Exp", shape=(1,) * 5), "rank 6 of x is above 5"),
        (target("axis", 100), model("Exp", shape=(1, 101)), model("Exp", shape=(1, 100)), "axis 101 of x"),
        (target("elements", 100), model("Exp", shape=(2, 51)), model("Exp", shape=(2, 50)), "elements 102 of x"),
        (target("plane", 100), model("Exp", shape=(9, 2, 51)), model("Exp", shape=(9, 2, 50)), "axes 102 of x"),
        (target("mask", 9), model("Add", shape=(10,), name="mask"), model("Add", shape=(10,)), "mask 10 of mask"),
    ],
)
def test_each_rule_fires_where_it_is_broken_and_nowhere_else(rule, broken, fine, says):
    (found,) = lint_model(broken, rule, "e.onnx")
    assert (found.engine, found.node, found.effect, found.remedy) == ("e.onnx", "the_node", "refused", "do otherwise")
    assert says in found.rule
    assert lint_model(fine, rule, "e.onnx") == []


def test_a_rule_of_some_operators_leaves_others_alone():
    assert lint_model(model("Exp", shape=(1,) * 6), target("rank", 5, operators=("Transpose",)), "e") == []


def test_every_engine_is_checked_with_what_the_vendors_compiler_reported(tmp_path):
    bundle = read_bundle(write_tiny(tmp_path / "b", Tiny()))
    found = lint_bundle(bundle, load_target("rknn"))
    engines = {finding.engine for finding in found}
    assert "engines/attention.masked_merge.onnx" in engines
    assert "engines/first.onnx" not in engines  # the host looks its rows up
    assert "engines/attention.masked_add.onnx" not in engines  # not built in half precision
    assert {finding.effect for finding in found} == {"host"}
    assert lint_bundle(bundle, load_target("openvino")) == ()
    assert {found.operator for found in lint_bundle(bundle, load_target("ethos-u"))} >= {"ReduceMax", "Log", "Greater"}


def test_data_files_say_what_their_rules_mean():
    for name in target_names():
        assert load_target(name).lowering in ("tile", "stock")
        for rule in load_target(name).rules:
            assert rule.effect in ("refused", "host", "wrong")
            assert rule.source in ("measured", "reported")
            assert rule.remedy
            lint_model(model("Exp"), target(rule.rule, rule.limit, rule.operators, rule.dtypes), "e")


def test_the_command_line_exits_by_what_is_refused(tmp_path, capsys):
    path = write_tiny(tmp_path / "b", Tiny())
    assert main(["lint", str(path), "--target", "openvino"]) == 0
    assert "nothing known against" in capsys.readouterr().out
    assert main(["lint", str(path), "--target", "rknn", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["effect"] == "host"
    assert main(["lint", str(path), "--target", "abacus"]) == 1
    engine = path / "engines/last.onnx"
    changed = onnx.load(engine, load_external_data=False)
    next(node for node in changed.graph.node if node.op_type == "Tanh").op_type = "Erf"
    engine.write_bytes(changed.SerializeToString())
    rehash(path, "engines/last.onnx")
    assert main(["lint", str(path), "--target", "qnn"]) == 1
    assert "refused" in capsys.readouterr().out
