r"""How a row becomes a prompt: templates, and `render`, the only place where that happens.

    template   "Input: {text}\nLabel: {target}"
    render     instruction ⏎⏎ demonstration with its target ⏎⏎ ... ⏎⏎ "Input: what is asked\nLabel:"
    candidate  " ham"
    reasons    ... ⏎⏎ "Input: shown\nExplanation: why. The answer is ham." ⏎⏎ "Input: what is asked\nExplanation:"
    rationale  "Input: what is asked\nExplanation: why. The answer is ham.\nLabel:"

A prompt followed by a candidate is exactly what a demonstration with that target looks like: the spaces before
`{target}` belong to the candidate, because that is where tokenizers put them. Rows are plain dicts.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from graft import hashing
from graft.errors import DataError, SpecError, suggest

Row = Mapping[str, Any]
Message = dict[str, str]
Chat = Callable[[list[Message]], str]
"""A tokenizer's chat template: messages in, the text up to where the assistant answers out."""


@dataclass(frozen=True)
class Style:
    """The words of a named template."""

    input: str
    """Stands before the value of a single input field; several fields bear their own names."""
    label: str
    """Stands before the target of a classification."""
    output: str
    """Stands before the target of a generation."""


TEMPLATES = {
    "default": Style("Input", "Label", "Output"),
    "question": Style("Question", "Answer", "Answer"),
}
"""The templates that a spec may name; anything with a `{field}` in it is an inline template."""

WHY = "Explanation:"
"""Stands before a rationale."""
THEREFORE = "The answer is"
"""Ends a rationale and begins its answer (Wei et al. 2022, arXiv:2201.11903)."""
_STATED = re.compile(rf"\b{re.escape(THEREFORE)}\b", re.IGNORECASE)

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Template:
    """A checked template of one task; `template_for` makes it."""

    text: str
    """The template, ending in `{target}`; `{{` and `}}` are literal braces."""
    inputs: tuple[str, ...]
    """The task's input columns."""
    kind: str
    """Kind of the input columns."""

    @property
    def sha(self) -> str:
        """A digest of the template's text (32 characters)."""
        return hashing.digest(self.text)

    def input(self, row: Row) -> str:
        """What an encoder reads of a row: the one field's own text, or a line `name: value` per field."""
        if len(self.inputs) == 1:
            return self._value(row, self.inputs[0])
        return "\n".join(f"{name}: {self._value(row, name)}" for name in self.inputs)

    def query(self, row: Row) -> str:
        """The template filled in up to where the target begins, without the spaces before it."""
        return "".join(self._value(row, part) if field else part for field, part in self._head)

    def explained(self, row: Row, rationale: str | None) -> str:
        """As `query`, with a rationale before the words that the target follows; None asks for one."""
        query = self.query(row)
        body, line, cue = query.rpartition("\n") if self._has_cue else (query, "\n", "Answer:")
        return f"{body}\n{WHY}" if rationale is None else f"{body}\n{WHY} {rationale}{line}{cue}"

    def span(self, row: Row) -> tuple[int, int]:
        """Where in `query(row)` the row's own words lie: first character, and the one after the last."""
        lengths = [len(self._value(row, part) if field else part) for field, part in self._head]
        fields = [at for at, (field, _) in enumerate(self._head) if field]
        return sum(lengths[: fields[0]]), sum(lengths[: fields[-1] + 1])

    def read(self, written: str) -> dict[str, str]:
        """The input fields of a text that continues `opening`: `query` undone.

        Each field ends where the words that follow it begin, or with the text; one that the text lacks is empty.
        """
        found = dict.fromkeys(self.inputs, "")
        for at, (field, name) in enumerate(self._head):
            if not field:
                continue
            after = "" if self._head[at + 1 :] == [] or self._head[at + 1][0] else self._head[at + 1][1]
            found[name], _, written = written.partition(after) if after else (written, "", "")
            found[name] = found[name].strip()
        return found

    @property
    def opening(self) -> str:
        """What stands before the first field, without the spaces at its end."""
        return "" if self._head[0][0] else self._head[0][1].rstrip(" ")

    @property
    def closing(self) -> str:
        """What stands between the last field and the target, without the spaces at its end; may be empty."""
        return "" if self._head[-1][0] else self._head[-1][1]

    def candidate(self, label: str, chat: bool = False) -> str:
        """A target as it continues a prompt: after the template's spaces; bare in a chat, where a turn begins."""
        return label if chat else self._spaces + label

    @cached_property
    def _parts(self) -> list[tuple[bool, str]]:
        return list(_parsed(self.text))

    @property
    def _spaces(self) -> str:
        before = self._parts[-2][1] if len(self._parts) > 1 and not self._parts[-2][0] else ""
        return " " * (len(before) - len(before.rstrip(" ")))

    @cached_property
    def _head(self) -> list[tuple[bool, str]]:
        """The parts before `{target}`, without the spaces at their end."""
        *head, _target = self._parts
        if head and not head[-1][0]:
            head[-1] = (False, head[-1][1].rstrip(" "))
        return head

    @property
    def _has_cue(self) -> bool:
        """Whether the target follows words that stand on a line of their own."""
        return bool(self._head) and not self._head[-1][0] and "\n" in self._head[-1][1]

    def _value(self, row: Row, name: str) -> str:
        if self.kind == "messages":
            return "\n".join(f"{message['role']}: {message['content']}" for message in row[name])
        if self.kind != "text":
            raise DataError(
                f"column {name!r} holds {self.kind}, which cannot be written into a prompt; "
                "choose a method that reads it, or a text column as the input"
            )
        return str(row[name])


def template_for(task_template: str, inputs: Sequence[str], kind: str, generation: bool) -> Template:
    """The template of a task, from a name in TEMPLATES or from inline text.

    Args:
        task_template: the spec's `task.template`.
        inputs: names of the task's input columns.
        kind: kind of the input columns.
        generation: True where the target is free text, False where it is a label.

    Raises:
        SpecError: no such name, a placeholder that is no input column, or a text that does not end in `{target}`.
    """
    if style := TEMPLATES.get(task_template):
        text = _styled(style, inputs, kind, generation)
    elif "{" in task_template:
        text = task_template
        _check(text, inputs)
    else:
        raise SpecError(
            f"task.template: unknown template {task_template!r}; {suggest(task_template, TEMPLATES)}; "
            "or write it inline, ending in {target}"
        )
    return Template(text, tuple(inputs), kind)


def render(
    template: Template,
    row: Row,
    demonstrations: Iterable[Row] = (),
    instruction: str | None = None,
    chat: Chat | None = None,
    *,
    rationale: str | None = None,
    reasons: bool = False,
) -> str:
    """The prompt for one row: everything a model reads before it answers.

    Args:
        template: the task's template.
        row: the row that is asked about; its target is not read.
        demonstrations: rows with a `target` (with `reasons` also a `rationale`), in the order in which they are shown.
        instruction: a text that comes first; with `chat` it is (in front of) the system message.
        chat: formats messages as a model's own chat; None writes plain text, blocks divided by blank lines.
        rationale: what is shown beside the row's input.
        reasons: ask for a rationale, which ends with the answer, instead of the answer.
    """
    if chat is not None:
        return chat(_conversation(template, row, rationale, demonstrations, instruction, reasons))
    asked = _asked(template, row, rationale, reasons)
    return "\n\n".join([*_blocks(template, demonstrations, instruction, reasons), asked])


def render_next(template: Template, demonstrations: Iterable[Row], instruction: str | None = None) -> str:
    """The plain text of demonstrations up to where the input of another one begins, for a model to write it.

    Args:
        template: the task's template.
        demonstrations: rows with a `target`, in the order in which they are shown.
        instruction: a text that comes first.
    """
    return "\n\n".join([*_blocks(template, demonstrations, instruction), template.opening])


def concluding(prompt: str, rationale: str, chat: bool) -> str:
    """The prompt after which the answer follows what a model has written of its reasons.

    Args:
        prompt: which asked for them (`render` with `reasons`).
        rationale: what was written.
        chat: whether that began a turn.
    """
    stated = list(_STATED.finditer(rationale))
    before = rationale[: stated[-1].start()] if stated else rationale
    words = " ".join(filter(None, (before.strip(), THEREFORE)))
    return prompt + words if chat else f"{prompt} {words}"


def answer_in(rationale: str) -> str | None:
    """The answer that a rationale ends with; None where it states none."""
    stated = list(_STATED.finditer(rationale))
    answer = rationale[stated[-1].end() :].strip().removesuffix(".").strip() if stated else ""
    return answer or None


def _blocks(
    template: Template, demonstrations: Iterable[Row], instruction: str | None, reasons: bool = False
) -> list[str]:
    """What stands before the question."""
    shown = [_asked(template, shot, None, reasons) + _answer(template, shot, reasons) for shot in demonstrations]
    return [*([instruction] if instruction else []), *shown]


def _asked(template: Template, row: Row, rationale: str | None, reasons: bool) -> str:
    return template.explained(row, rationale) if reasons or rationale else template.query(row)


def _answer(template: Template, shot: Row, reasons: bool, chat: bool = False) -> str:
    """What follows a demonstration's question."""
    if not reasons:
        return template.candidate(shot["target"], chat)
    return f"{'' if chat else ' '}{shot['rationale'].strip()} {THEREFORE} {shot['target']}."


def _conversation(
    template: Template,
    row: Row,
    rationale: str | None,
    demonstrations: Iterable[Row],
    instruction: str | None,
    reasons: bool,
) -> list[Message]:
    turns: list[Message] = []
    for shot in demonstrations:
        turns += _turns(template, shot, None, reasons)
        turns.append({"role": "assistant", "content": _answer(template, shot, reasons, chat=True)})
    turns += _turns(template, row, rationale, reasons)
    # A conversation has one system message, at its head: the instruction, then what the row's own one says.
    own = [message["content"] for message in _messages(template, row) if message["role"] == "system"]
    system = "\n\n".join([*([instruction] if instruction else []), *own])
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def _turns(template: Template, row: Row, rationale: str | None, reasons: bool) -> list[Message]:
    """What is asked about a row: its own messages, or one message with the filled-in template."""
    if template.kind != "messages":
        return [{"role": "user", "content": _asked(template, row, rationale, reasons)}]
    turns = [message for message in _messages(template, row) if message["role"] != "system"]
    if rationale and turns:
        turns[-1] = {**turns[-1], "content": f"{turns[-1]['content']}\n\n{WHY} {rationale}"}
    return turns


def _messages(template: Template, row: Row) -> list[Message]:
    if template.kind != "messages":
        return []
    return [{"role": m["role"], "content": m["content"]} for name in template.inputs for m in row[name]]


def _styled(style: Style, inputs: Sequence[str], kind: str, generation: bool) -> str:
    for name in inputs:
        if "{" in name or "}" in name:
            raise SpecError(f"column {name!r} has a brace in its name, which templates use; rename the column")
    if kind == "messages":
        lines = [f"{{{name}}}" for name in inputs]
    elif len(inputs) == 1:
        lines = [f"{style.input}: {{{inputs[0]}}}"]
    else:
        lines = [f"{name}: {{{name}}}" for name in inputs]
    return "\n".join([*lines, f"{style.output if generation else style.label}: {{target}}"])


def _parsed(text: str) -> Iterable[tuple[bool, str]]:
    """(is a field, literal text or field name) in order; neighbouring literals are joined."""
    literal, start = "", 0
    for match in _PLACEHOLDER.finditer(text):
        literal += text[start : match.start()]
        start = match.end()
        if match[1] is None:
            literal += match[0][0]
            continue
        if literal:
            yield False, literal
        yield True, match[1]
        literal = ""
    if literal + text[start:]:
        yield False, literal + text[start:]


def _check(text: str, inputs: Sequence[str]) -> None:
    where = f"task.template: {text!r}"
    if any(match[0] in ("{", "}") for match in _PLACEHOLDER.finditer(text)):
        raise SpecError(f"{where} has a single brace; write {{{{ or }}}} where a brace is meant")
    parts = list(_parsed(text))
    names = [part for field, part in parts if field]
    if not parts or parts[-1] != (True, "target") or names.count("target") > 1:
        raise SpecError(f"{where} must end with {{target}}, and name it there only")
    for name in names[:-1]:
        if name not in inputs:
            raise SpecError(f"{where} names {name!r}, which is no input column; {suggest(name, inputs)}")
    if len(names) == 1:
        raise SpecError(f"{where} shows nothing of the row; name an input column, for example {{{inputs[0]}}}")
