"""The words of the tree: docstrings begin with a verb, texts use the field's words, the names of tests are short.

Each problem is one line: `file:line: the phrase`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("agents", "config", "supervisor", "tests", "benchmarks", "examples")
MAX_TEST_NAME = 60

# Words with a plainer one beside them. They match as whole words, in any case.
WORDS = {
    r"mend(s|ed|ing)?": "fix, repair",
    r"tell(s|ing)?|told": "report, send, log, notify",
    r"said": "reported, logged, named",
    r"dear(er|est|ly)?": "expensive",
    r"go(es|ing|ne)? on|went on": "continue, resume",
    r"let(s|ting)? go( of)?": "release, close, drop",
    r"(is|are|was|were|be) another": "differs, has changed",
    r"in vain": "without success, finds nothing",
    r"for ?ever": "indefinitely",
    r"rightly": "correctly",
    r"house[sd]?": "tree, project",
    r"laws?": "rule",
    r"who(m|so)?ever": "name the actor",
}
_WORD = re.compile(rf"\b({'|'.join(WORDS)})\b", re.IGNORECASE)

# What the list would find and is meant, each with its reason.
ALLOWED = re.compile(r"test_house")  # the name of a file

# How no docstring may begin, whatever it describes.
_NEVER_FIRST = re.compile(
    r"(Of|By|As|Whether|How|What|Who|Whoever|Whom|Whose|Which|Whatever|Why|Where|To|So|That|Until|And|Or|But|Nor)\b"
)
# How no function's docstring may begin: these words are no verbs in the imperative. Tests are sentences of their own.
_NO_VERB = re.compile(
    r"(An?|The|This|That|These|Those|Its?|They|Their|He|His|She|Her|We|Our|Your?|One|Two|Three|Four|All|Any|Both|Each"
    r"|Every|Either|Neither|Some|Several|Many|Most|More|Such|No|None|Nobody|Nothing|Something|Somebody|Everything"
    r"|Everybody|Another|Others?|Also|Only|Even|Not|Never|Always|Otherwise|Instead|Now|Here|There|Then|Today|In|On|At"
    r"|From|For|With|Without|Within|Under|Over|After|Before|Between|Into|Through|While|When|Whenever|If|Unless|Because"
    r"|Since|Once|New|False|Effective|Inode|Whole|Kept|Sent|Harmless|System|Device|Random|Afterwards|Inline|Publisher"
    r"|User|Wall|Round|Bars|Podman)\b"
    r"|\w*[^s\W]s\b|\w+'s\b"  # a plural, a third person (Returns), a possessive
    r"|\w*[^eE\W](?<!Emb)(?<!Sh)ed\b"  # a participle (Killed), but not Feed or Need
    r"|[^A-Z]|[A-Z_]{2,}\b"  # `code`, (a tuple), CPU
)


def _python() -> list[Path]:
    return [*sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")), ROOT / "setup.py"]


def _pages() -> list[Path]:
    others = [ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "examples/README.md", ROOT / "config/example.toml"]
    return sorted((ROOT / "docs").glob("*.md")) + others


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _checked(paths: list[Path]) -> list[Path]:
    itself = _name(Path(__file__))
    return [path for path in paths if _name(path) != itself]


# -- the words


def _texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of everything in a module that people read: comments, docstrings, messages."""
    source = path.read_bytes()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            for offset, line in enumerate(node.value.split("\n")):
                yield node.lineno + offset, line
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")


def word_problems(path: Path) -> Iterator[str]:
    """Yield `file:line: phrase` for each use of a word of the list."""
    for line, text in _texts(path) if path.suffix == ".py" else enumerate(path.read_text().splitlines(), 1):
        for found in _WORD.finditer(ALLOWED.sub("", text)):
            around = " ".join(text[max(0, found.start() - 40) : found.end() + 40].split())
            yield f"{_name(path)}:{line}: '{found[0]}' in: {around}"


# -- the beginnings


def _described(path: Path) -> Iterator[tuple[int, ast.AST, str]]:
    """Yield (line, node, docstring) of the module and of every class and function in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield node.body[0].lineno, node, docstring


def beginning_problems(path: Path) -> Iterator[str]:
    """Yield `file:line: beginning` for each docstring that does not begin as its kind does."""
    for line, node, docstring in _described(path):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_")
        found = _NEVER_FIRST.match(docstring) or (is_function and _NO_VERB.match(docstring))
        if found:
            yield f"{_name(path)}:{line}: begins with '{found[0]}': {docstring.splitlines()[0][:80]}"


# -- test names


def name_problems(path: Path) -> Iterator[str]:
    """Yield `file:line: name` for each test whose name is too long."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > MAX_TEST_NAME:
            yield f"{_name(path)}:{node.lineno}: {len(node.name)} characters: {node.name}"


# -- the tests


def test_texts_use_the_words_of_the_field() -> None:
    wrong = [problem for path in _checked([*_python(), *_pages()]) for problem in word_problems(path)]
    assert not wrong, "\n".join(wrong)


def test_docstrings_begin_with_a_verb() -> None:
    wrong = [problem for path in _checked(_python()) for problem in beginning_problems(path)]
    assert not wrong, "\n".join(wrong)


def test_test_names_are_short() -> None:
    wrong = [problem for path in _checked(_python()) for problem in name_problems(path)]
    assert not wrong, "\n".join(wrong)
