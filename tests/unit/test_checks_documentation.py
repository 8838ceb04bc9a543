"""docs/checks.md has a section for every code, as the catalogue has it."""

from __future__ import annotations

import re

import pytest

from tests.support.paths import ROOT
from torchmar.checks.finding import Code

TEXT = (ROOT / "docs" / "checks.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"^### (.*)\n\n(.*)\n((?:(?!##).*\n)*)", TEXT, re.MULTILINE)
PARTS = ["**What happens.**", "**Common causes.**", "**Solution.**"]


def test_every_code_has_exactly_one_section_in_the_order_of_the_catalogue() -> None:
    assert [heading for heading, _, _ in SECTIONS] == [code.name for code in Code]
    assert len(re.findall("^### ", TEXT, re.MULTILINE)) == len(SECTIONS)


@pytest.mark.parametrize("code", Code, ids=lambda code: code.name)
def test_a_section_has_the_severity_and_the_title_of_its_code(code: Code) -> None:
    assert {first for heading, first, _ in SECTIONS if heading == code.name} == {f"**{code.severities}**: {code.title}"}


@pytest.mark.parametrize(("heading", "body"), [(heading, body) for heading, _, body in SECTIONS])
def test_a_section_has_the_effect_the_cause_and_the_remedy(heading: str, body: str) -> None:
    assert re.findall(r"^\*\*[A-Z].*?\.\*\*", body, re.MULTILINE) == PARTS


def test_a_code_is_in_the_group_of_its_hundred() -> None:
    groups = re.findall(r"^## MAR(\d)xx: .*\n((?:(?!## ).*\n)*)", TEXT, re.MULTILINE)
    grouped = [(group, code) for group, body in groups for code in re.findall(r"^### MAR(\d)", body, re.MULTILINE)]
    assert [group for group, _ in grouped] == [code.name[3] for code in Code]
    assert all(group == code for group, code in grouped)


def test_the_contents_name_every_code_once() -> None:
    contents = TEXT.partition("## Contents\n")[2].partition("\n## ")[0]
    assert re.findall(r"\[(MAR\d{3})\]\(#mar\d{3}\)", contents) == [code.name for code in Code]


def test_links_lead_to_headings() -> None:
    headings = re.findall(r"^##+ (.*)", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", TEXT)) <= anchors


def test_every_code_has_one_severity() -> None:
    table = TEXT.partition("## Deciding programs\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (MAR.*?) \| .+? \| .+? \|$", table, re.MULTILINE)
    assert sorted(code for row in rows for code in row.split(", ")) == [code.name for code in Code]


def test_the_severity_names_the_servers_on_which_a_code_is_an_error() -> None:
    table = TEXT.partition("## Deciding programs\n")[2].partition("\n## ")[0]
    for codes, errors in re.findall(r"^\| (MAR.*?) \| .+? \| (.+?) \|$", table, re.MULTILINE):
        for code in codes.split(", "):
            assert (Code[code].severities == "warning") == (errors.startswith("never") or code == "MAR310"), code
