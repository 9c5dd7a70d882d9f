"""A real text task that every machine has: which topic of the standard library does a docstring speak of?

    asyncio/queues.py ── ast ──► "Put an item into the queue." ── mask ──► text      label: concurrency

The rows are the opening paragraphs of public docstrings in the installed standard library's sources, parsed
and never imported. The names of all modules in TOPICS, and of the parts of a row's own module, are masked, so
that the label has to be read from what is said. Rows differ a little between Python versions, as the
docstrings do; `Dataset.fingerprint` tells them apart.
"""

import ast
import functools
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa

from graft.errors import DataError
from graft.spec import Task
from graft.tasks.dataset import Dataset
from graft.tasks.split import divide

TOPICS: dict[str, tuple[str, ...]] = {
    "concurrency": ("_threading_local", "asyncio", "concurrent", "multiprocessing", "queue", "sched", "selectors",
                    "subprocess", "threading"),
    "files": ("_compression", "_pyio", "bz2", "compression", "filecmp", "fileinput", "fnmatch", "genericpath", "glob",
              "gzip", "lzma", "ntpath", "os", "pathlib", "posixpath", "shutil", "stat", "tarfile", "tempfile",
              "zipapp", "zipfile"),
    "language": ("_py_abc", "abc", "ast", "compileall", "contextlib", "ctypes", "dis", "importlib", "inspect",
                 "modulefinder", "opcode", "pkgutil", "platform", "py_compile", "pyclbr", "runpy", "symtable",
                 "sysconfig", "tokenize", "typing", "zipimport"),
    "mail": ("email", "imaplib", "mailbox", "mimetypes", "poplib", "quopri", "smtplib"),
    "networking": ("ftplib", "http", "ipaddress", "socket", "socketserver", "ssl", "urllib", "webbrowser", "wsgiref",
                   "xmlrpc"),
    "numbers-and-collections": ("_collections_abc", "_pydatetime", "_pydecimal", "_strptime", "_weakrefset", "bisect",
                                "calendar", "collections", "colorsys", "dataclasses", "datetime", "enum", "fractions",
                                "functools", "graphlib", "hashlib", "heapq", "hmac", "numbers", "operator", "random",
                                "secrets", "statistics", "uuid", "weakref", "zoneinfo"),
    "testing-and-debugging": ("bdb", "cProfile", "doctest", "logging", "pdb", "profile", "pstats", "timeit", "trace",
                              "traceback", "tracemalloc", "unittest", "warnings"),
    "text-and-formats": ("_markupbase", "argparse", "base64", "codecs", "configparser", "csv", "curses", "dbm",
                         "difflib", "getopt", "getpass", "gettext", "html", "json", "locale", "netrc", "optparse",
                         "pickle", "pickletools", "plistlib", "pprint", "pydoc", "re", "reprlib", "shelve", "shlex",
                         "sqlite3", "stringprep", "textwrap", "tomllib", "xml"),
}  # fmt: skip
"""Topic to its modules and packages; a module that the running Python lacks gives no rows."""
MASK = "[module]"
LEAST_WORDS = 5
"""Shorter paragraphs say too little to be classified; masked words do not count."""
_TEST_FOLDERS = {"test", "tests", "__pycache__"}


class PythonDocs(Task):
    """Docstrings of Python's standard library, classified by topic; about 3,500 rows and 8 labels."""

    name: Literal["python-docs"]

    @property
    def kind(self) -> str:
        """Text."""
        return "text"

    def read(self) -> Dataset:
        """Parse the installed standard library (seconds, once per process) and split the rows.

        Raises:
            DataError: the standard library is installed without its sources.
        """
        return divide(_rows(Path(sysconfig.get_path("stdlib"))), ("text",), self.kind, self.test_examples)


@functools.cache
def _rows(library: Path) -> pa.Table:
    """All rows (`id`, `text`, `target`), sorted by id, the qualified name of what the docstring describes."""
    found: dict[str, tuple[str, str]] = {}
    topics_of: dict[str, set[str]] = {}
    for topic, module, path in _sources(library):
        hide = _masker(module)
        for name, docstring in _docstrings(path, module):
            text = hide(_opening(docstring))
            if len(re.findall(r"\w+", text.replace(MASK, " "))) >= LEAST_WORDS and name not in found:
                found[name] = topic, text
                topics_of.setdefault(_normal(text), set()).add(topic)
    if not found:
        raise DataError(f"{library}: no sources of the standard library; install a Python that carries its .py files")
    # A paragraph counts once, and not at all where it stands in several topics: its label would be arbitrary.
    once = {_normal(text): name for name, (_, text) in sorted(found.items(), reverse=True)}
    names = sorted(name for text, name in once.items() if len(topics_of[text]) == 1)
    return pa.table(
        {
            "id": names,
            "text": [found[name][1] for name in names],
            "target": [found[name][0] for name in names],
        }
    )


def _sources(library: Path) -> Iterator[tuple[str, str, Path]]:
    """Topic, dotted module name and file of every module, tests left out."""
    for topic, tops in TOPICS.items():
        for top in tops:
            single = library / f"{top}.py"
            paths = [single] if single.is_file() else sorted((library / top).rglob("*.py"))
            for path in paths:
                parts = path.relative_to(library).with_suffix("").parts
                if not _TEST_FOLDERS.intersection(parts) and parts[-1] != "__main__":
                    yield topic, ".".join(part for part in parts if part != "__init__"), path


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Qualified name and docstring of a module and of its public classes, functions and methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the sources' own style, which is not ours to change
        tree = ast.parse(path.read_bytes(), str(path))
    for name, node in ((module, tree), *_public(tree.body, module)):
        if docstring := ast.get_docstring(node):
            yield name, docstring


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(body: Iterable[ast.stmt], inside: str) -> Iterator[tuple[str, _Definition]]:
    for node in body:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            yield f"{inside}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{inside}.{node.name}")
        elif isinstance(node, ast.If | ast.Try):
            yield from _public([*node.body, *node.orelse], inside)
            for handler in getattr(node, "handlers", ()):
                yield from _public(handler.body, inside)


def _opening(docstring: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0].split())


def _normal(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@functools.cache
def _masker(module: str) -> "functools.partial[str]":
    """Replaces the names of all modules in TOPICS, and of the parts of this one, by MASK."""
    names = {name for tops in TOPICS.values() for name in tops} | set(module.split("."))
    return functools.partial(_words(names).sub, MASK)


def _words(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names as a word of its own or between underscores, in any case, longest first."""
    choices = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    return re.compile(rf"(?<![^\W_])(?:{choices})(?![^\W_])", re.IGNORECASE)
