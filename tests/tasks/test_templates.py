from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft.errors import DataError, SpecError
from graft.tasks.templates import TEMPLATES, answer_in, concluding, render, render_next, template_for

SHOTS = [{"text": "free money", "target": "spam"}, {"text": "see you at five", "target": "ham"}]
ASKED = {"text": "call now", "target": "must not be read"}


def transcript(messages: list[dict[str, str]]) -> str:
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def test_the_default_classification_has_no_instruction() -> None:
    template = template_for("default", ("text",), "text", generation=False)
    assert render(template, ASKED) == "Input: call now\nLabel:"
    assert template.candidate("ham") == " ham"
    assert template.input(ASKED) == "call now"


def test_the_default_generation() -> None:
    template = template_for("default", ("text",), "text", generation=True)
    assert render(template, ASKED) == "Input: call now\nOutput:"


def test_several_fields_bear_their_names() -> None:
    template = template_for("default", ("title", "body"), "text", generation=False)
    row = {"title": "Win", "body": "Call now"}
    assert render(template, row) == "title: Win\nbody: Call now\nLabel:"
    assert template.input(row) == "title: Win\nbody: Call now"


def test_instruction_demonstrations_and_query_stand_in_blocks() -> None:
    template = template_for("default", ("text",), "text", generation=False)
    assert render(template, ASKED, SHOTS, "Is it spam?") == (
        "Is it spam?\n\nInput: free money\nLabel: spam\n\nInput: see you at five\nLabel: ham\n\nInput: call now\nLabel:"
    )


def test_a_chat_has_a_system_message_and_a_pair_of_turns_per_demonstration() -> None:
    template = template_for("default", ("text",), "text", generation=False)
    assert render(template, ASKED, SHOTS[:1], "Is it spam?", transcript) == (
        "<system>Is it spam?<user>Input: free money\nLabel:<assistant>spam<user>Input: call now\nLabel:<assistant>"
    )
    assert template.candidate("ham", chat=True) == "ham"
    assert render(template, ASKED, chat=transcript) == "<user>Input: call now\nLabel:<assistant>"


CONVERSATION: list[dict[str, str]] = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Is it on?"},
]


def test_the_rows_own_messages_are_the_chat() -> None:
    template = template_for("default", ("talk",), "messages", generation=True)
    shot: dict[str, Any] = {"talk": [{"role": "user", "content": "Hi"}], "target": "Hi!"}
    assert render(template, {"talk": CONVERSATION}, [shot], "Answer.", transcript) == (
        "<system>Answer.\n\nBe short.<user>Hi<assistant>Hi!<user>Hello<assistant>Yes?<user>Is it on?<assistant>"
    )


def test_messages_without_a_chat_are_lines() -> None:
    template = template_for("default", ("talk",), "messages", generation=True)
    lines = "system: Be short.\nuser: Hello\nassistant: Yes?\nuser: Is it on?"
    assert render(template, {"talk": CONVERSATION}) == f"{lines}\nOutput:"
    assert template.input({"talk": CONVERSATION}) == lines


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("inputs", [("text",), ("text", "odd name.x[0]")])
@given(values=st.lists(st.text(), min_size=2, max_size=2), target=st.text())
def test_a_prompt_and_a_candidate_are_what_a_demonstration_shows(
    name: str, inputs: tuple[str, ...], values: list[str], target: str
) -> None:
    template = template_for(name, inputs, "text", generation=False)
    row = dict(zip(inputs, values, strict=False)) | {"target": target}
    with_demonstration = render(template, row, [row])
    assert with_demonstration == render(template, row) + template.candidate(target) + "\n\n" + render(template, row)


@given(st.text(), st.text())
def test_values_are_never_read_as_templates(value: str, target: str) -> None:
    template = template_for("Q: {text} {{json}}  {target}", ("text",), "text", generation=False)
    assert render(template, {"text": value + "{target}", "target": target}) == f"Q: {value}{{target}} {{json}}"
    assert template.candidate("x") == "  x"


def test_a_line_break_before_the_target_stays_in_the_prompt() -> None:
    template = template_for("{text}\n{target}", ("text",), "text", generation=False)
    assert (render(template, ASKED), template.candidate("ham")) == ("call now\n", "ham")


def test_an_inline_template_may_leave_columns_out() -> None:
    template = template_for("{body} ->{target}", ("title", "body"), "text", generation=True)
    assert render(template, {"title": "no", "body": "yes"}) == "yes ->"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defaults", r"task.template: unknown template 'defaults'; did you mean 'default'\?"),
        ("{text} is", r"must end with \{target\}"),
        ("{text}", r"must end with \{target\}"),
        ("{target} {text} {target}", r"name it there only"),
        ("{txet} {target}", r"names 'txet', which is no input column; did you mean 'text'\? known: text"),
        ("{text.__class__} {target}", r"names 'text.__class__', which is no input column"),
        ("{text[0]} {target}", r"names 'text\[0\]', which is no input column"),
        ("{text!r} {target}", r"names 'text!r', which is no input column"),
        ("{} {target}", r"names '', which is no input column"),
        ("{label} {target}", r"names 'label', which is no input column"),
        ("{text} } {target}", r"has a single brace"),
        ("Say: {target}", r"shows nothing of the row; name an input column, for example \{text\}"),
    ],
)
def test_templates_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        template_for(text, ("text",), "text", generation=False)


def test_a_column_with_a_brace_in_its_name() -> None:
    with pytest.raises(SpecError, match="has a brace in its name"):
        template_for("default", ("a{b}",), "text", generation=False)


def test_what_is_not_text_cannot_be_written_into_a_prompt() -> None:
    template = template_for("default", ("scan",), "image", generation=False)
    with pytest.raises(DataError, match="column 'scan' holds image, which cannot be written into a prompt"):
        render(template, {"scan": b"\x89PNG"})


def test_the_digest_is_of_the_text() -> None:
    label, output = (template_for("default", ("text",), "text", generation=g) for g in (False, True))
    inline = template_for("Input: {text}\nLabel: {target}", ("text",), "text", generation=False)
    assert label.sha == inline.sha != output.sha


WHY_SHOTS = [{"text": "free money", "target": "spam", "rationale": "Nobody gives money away."}]


def test_reasons_end_with_the_answer() -> None:
    template = template_for("default", ("text",), "text", generation=False)
    prompt = render(template, ASKED, WHY_SHOTS, "Say why.", reasons=True)
    assert prompt == (
        "Say why.\n\nInput: free money\nExplanation: Nobody gives money away. The answer is spam.\n\n"
        "Input: call now\nExplanation:"
    )
    written = " Who calls? The answer is ham."
    assert concluding(prompt, written, chat=False) == prompt + " Who calls? The answer is"
    assert concluding(prompt, "", chat=False) == prompt + " The answer is"
    assert answer_in(written) == "ham"
    assert answer_in("It is 3. The answer is 4. No: The answer is 3.5.") == "3.5"
    assert answer_in("I do not know") is None
    assert answer_in("The answer is .") is None


def test_a_rationale_stands_before_what_the_target_follows() -> None:
    template = template_for("default", ("text",), "text", generation=False)
    assert render(template, ASKED, rationale="Who calls?") == "Input: call now\nExplanation: Who calls?\nLabel:"
    inline = template_for("{text} is {target}", ("text",), "text", generation=False)
    assert render(inline, ASKED, rationale="Who calls?") == "call now is\nExplanation: Who calls?\nAnswer:"
    several = template_for("default", ("title", "text"), "text", generation=True)
    row = {"title": "a\nb", "text": "c"}
    assert render(several, row, rationale="d") == "title: a\nb\ntext: c\nExplanation: d\nOutput:"


def test_reasons_in_a_chat_are_the_assistants_own() -> None:
    template = template_for("default", ("text",), "text", generation=False)
    prompt = render(template, ASKED, WHY_SHOTS, None, transcript, reasons=True)
    assert prompt == (
        "<user>Input: free money\nExplanation:<assistant>Nobody gives money away. The answer is spam."
        "<user>Input: call now\nExplanation:<assistant>"
    )
    assert concluding(prompt, "Who calls?", chat=True) == prompt + "Who calls? The answer is"


def test_a_conversation_is_followed_by_its_rationale() -> None:
    template = template_for("default", ("talk",), "messages", generation=True)
    prompt = render(template, {"talk": CONVERSATION}, chat=transcript, rationale="It hums.")
    assert prompt.endswith("<user>Is it on?\n\nExplanation: It hums.<assistant>")


@pytest.mark.parametrize(
    ("template", "inputs", "written", "row"),
    [
        ("Input: {text}\nLabel: {target}", ("text",), " ice and snow\nLabel: cold", {"text": "ice and snow"}),
        ("Input: {text}\nLabel: {target}", ("text",), " ice", {"text": "ice"}),
        ("{a} -> {b}: {target}", ("a", "b"), "x -> y: z", {"a": "x", "b": "y"}),
        ("Say {b} and {a}\n{target}", ("a", "b", "c"), " p and q\nr", {"a": "q", "b": "p", "c": ""}),
    ],
)
def test_a_template_reads_what_it_writes(template: str, inputs: tuple[str, ...], written: str, row: Any) -> None:
    found = template_for(template, inputs, "text", False)
    assert found.read(written) == row
    whole = found.query({**dict.fromkeys(inputs, "_"), **row})
    assert whole.startswith(found.opening)
    assert found.read(whole.removeprefix(found.opening)) == row
    prompt = render_next(found, [{**dict.fromkeys(inputs, "_"), **row, "target": "t"}], "Go.")
    assert prompt.split("\n\n") == ["Go.", f"{whole}{found.candidate('t')}", found.opening]


@pytest.mark.parametrize(
    ("rationale", "answer"),
    [
        ("It is so. The answer is 7.", "7"),
        ("So the answer is 7.", "7"),
        ("The answer is 6? No: the answer is  7", "7"),
        ("The answer isn't known.", None),
        ("The answer is", None),
        ("nothing", None),
    ],
)
def test_the_answer_that_a_rationale_states(rationale: str, answer: str | None) -> None:
    assert answer_in(rationale) == answer
    assert concluding("Why?", rationale, chat=False).endswith("The answer is")
    assert concluding("Why?", "So the answer is 7.", chat=False) == "Why? So The answer is"
