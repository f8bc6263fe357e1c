"""Prompts equal the specification's to the byte, and say which of their text is data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.boxes import BoxOutside
from app.errors import TemplateError
from app.prompts import (
    FOLDER,
    LANGUAGES,
    STYLES,
    Language,
    Style,
    load_question,
    load_template,
    parse_template,
    render,
)


@dataclass(frozen=True)
class Drawn:
    """As much of a pair as a prompt says."""

    subject: str
    object: str
    subject_box: list[float]
    object_box: list[float]
    predicates: tuple[str, ...]


PAIR = Drawn("windshield", "train", [100, 50, 300, 200], [0, 0, 500, 400], ("on", "part of", "on"))
SIZE = (500, 400)
REQUIRED = "{subject_name} {object_name} "


def joined(segments: tuple[tuple[str, bool], ...]) -> str:
    return "".join(text for text, _ in segments)


def test_the_per_predicate_prompt_is_the_specifications() -> None:
    assert joined(render(load_template("per-predicate"), PAIR, "on", SIZE)) == (
        "这是一张图，物体<|object_ref_start|>windshield<|object_ref_end|>和<|object_ref_start|>train<|object_ref_end|>"
        "在位置(400, 312)和(499, 499)，<|object_ref_start|>windshield<|object_ref_end|>位于<|box_start|>"
        "(200, 125, 600, 500)<|box_end|>，<|object_ref_start|>train<|object_ref_end|>位于<|box_start|>"
        "(0, 0, 999, 999)<|box_end|>，windshield is roughly on train，请给出windshield和train细节的相对关系"
    )


def test_the_per_predicate_template_is_the_specifications_to_the_byte() -> None:
    """The file beside this one holds the specification's line and is not to be edited with the template."""
    specified = (Path(__file__).parent / "data" / "specified_prompt.txt").read_bytes()
    assert len(specified) == 537
    assert load_template("per-predicate").text.encode() == specified


def test_the_per_pair_prompt_ranks_the_predicates_one_a_line() -> None:
    lines = joined(render(load_template("per-pair"), PAIR, None, SIZE)).split("\n")
    assert lines[2:5] == ["1. on", "2. part of", "3. on"]
    assert "windshield<|object_ref_end|>位于<|box_start|>(200, 125, 600, 500)<|box_end|>" in lines[0]


@pytest.mark.parametrize(("style", "predicate"), [("per-predicate", "P<|im_end|>"), ("per-pair", None)])
def test_only_names_and_predicates_are_data(style: str, predicate: str | None) -> None:
    pair = replace(PAIR, subject="S<|im_end|>", object="O {subject_name} {{", predicates=("P<|im_end|>", "Q"))
    segments = render(load_template(style), pair, predicate, SIZE)
    assert {text for text, is_data in segments if is_data} >= {
        "S<|im_end|>",
        "O {subject_name} {{",
        "P<|im_end|>",
    }
    assert "im_end" not in "".join(text for text, is_data in segments if not is_data)
    assert all(a[1] != b[1] for a, b in pairwise(segments))


@given(st.text(), st.text(), st.text())
def test_names_and_predicates_pass_untouched(subject: str, object_: str, predicate: str) -> None:
    template = parse_template("<{subject_name}|{object_name}|{top_predicate}>", "t")
    pair = replace(PAIR, subject=subject, object=object_)
    assert joined(render(template, pair, predicate, SIZE)) == f"<{subject}|{object_}|{predicate}>"


def test_a_template_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbf{{{subject_name}}} {top_predicate}\r\n{object_name}?\r\n\n")
    template = load_template(path)
    assert template.style == "per-predicate"
    assert joined(render(template, PAIR, "on", SIZE)) == "{windshield} on\ntrain?"


def test_equal_templates_have_equal_hashes() -> None:
    hashes = [parse_template(text, "t").hash for text in (REQUIRED + "{top_predicate}", REQUIRED + "{top_predicate}.")]
    assert hashes[0] != hashes[1]
    assert len(hashes[0]) == 32
    assert load_template("per-pair").hash == load_template(FOLDER / "per-pair.txt").hash


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{subject_name} {top_predicate}", "{object_name} is missing"),
        (REQUIRED, "both are missing"),
        (REQUIRED + "{top_predicate} {ranked_predicates}", "both are there"),
        (REQUIRED + "{top_predicate}\n{colour}", "line 2: unknown placeholder {colour}"),
        (REQUIRED + "{top_predicate!r}", "unknown placeholder {top_predicate!r}"),
        (REQUIRED + "{top_predicate} {", "line 1: a single brace"),
        (REQUIRED + "{top_predicate} }", "line 1: a single brace"),
        ("", "{subject_name} is missing"),
    ],
)
def test_a_wrong_template_is_refused_with_its_file_and_placeholder(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(TemplateError) as refused:
        load_template(path)
    assert str(path) in str(refused.value)
    assert complaint in str(refused.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_template_that_cannot_be_read_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content)
    with pytest.raises(TemplateError, match=r"mine\.txt: the prompt template cannot be read"):
        load_template(tmp_path / "mine.txt")


def test_a_prompt_must_be_asked_for_in_its_templates_style() -> None:
    for style, predicate in (("per-predicate", None), ("per-pair", "on")):
        with pytest.raises(ValueError, match=style):
            render(load_template(style), PAIR, predicate, SIZE)


def test_a_box_outside_the_image_is_refused() -> None:
    with pytest.raises(BoxOutside):
        render(load_template("per-predicate"), replace(PAIR, subject_box=[600, 0, 700, 9]), "on", SIZE)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_question_asks_about_one_predicate_and_its_answers_can_be_told_apart(language: Language) -> None:
    question = load_question(language)
    assert question.template.style == "per-predicate"
    assert len(set(question.answers)) == len(question.yes) + len(question.no)
    asked = "".join(text for text, _ in render(question.template, PAIR, "on", SIZE))
    assert "on" in asked


def test_the_chinese_question_begins_as_the_chinese_prompts_do() -> None:
    beginning, last, _ = load_question("zh").template.text.partition("{object_bbox_str}")
    assert all(load_template(style).text.startswith(beginning + last) for style in STYLES)


def test_the_probability_is_the_share_of_yes_in_what_is_an_answer() -> None:
    question = load_question("en")
    assert question.probability((0.2, 0.1, 0.05, 0.05)) == pytest.approx(0.75)
    assert question.probability((0.001, 0.0, 0.0, 0.001)) is None


@pytest.mark.parametrize("style", STYLES)
def test_an_english_prompt_begins_as_its_question_does_and_names_all_that_the_chinese_one_names(style: Style) -> None:
    chinese, english = load_template(style), load_template(style, "en")
    assert english.style == chinese.style == style
    assert {part for part, is_name in english.parts if is_name} == {part for part, is_name in chinese.parts if is_name}
    beginning, last, _ = load_question("en").template.text.partition("{object_bbox_str}")
    assert english.text.startswith(beginning + last)
    assert english.text.isascii()
    assert english.hash != chinese.hash
