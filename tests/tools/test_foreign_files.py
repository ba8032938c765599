"""The page on ONNX files says what was found."""

from __future__ import annotations

from dataclasses import replace

from tools.foreign_files import PACKAGES, PAGE, facts, render


def test_the_page_is_made_of_what_was_found() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(facts())


def test_every_package_and_exporter_is_there() -> None:
    found = facts()
    assert {entry.package for entry in found["packages"]} == set(PACKAGES)
    assert {entry.package.split()[0] for entry in found["exports"]} == {"optimum-onnx", "onnxruntime-genai"}


def test_exact_files_are_counted_and_bars_do_not_cut_cells() -> None:
    entry = replace(facts()["packages"][0], said="a|b", exact=True)
    page = render({"packages": [entry, replace(entry, exact=False)], "exports": [entry]})
    assert "2 files of 11 packages" in page
    assert "1 are exact" in page
    assert "1 of 1 files are exact" in page
    assert page.count("| a/b |") == 3
