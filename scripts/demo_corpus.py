"""The text the demo model is trained on: what every Python installation carries about itself.

Three sources, all under the PSF licence: the language reference topics behind ``help()``, the docstrings of
the standard library, and its longer comments. From the same docstrings come questions and answers for the
chat format. A few hand-written exchanges (licence of this project) teach the model to say what it is.

Modules written in Python are parsed, not imported; of those in C, the ones in ``IN_C`` are imported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Parts of the standard library that are tests, vendored wheels or generated tables, not prose.
SKIPPED = {"test", "tests", "site-packages", "ensurepip", "lib2to3", "turtledemo", "encodings", "__pycache__"}

#: Modules whose documentation only a running interpreter has -> the name people know them by.
IN_C = {
    "_collections": "collections",
    "_functools": "functools",
    "_io": "io",
    "_operator": "operator",
    "_random": "random",
    "_struct": "struct",
    "_thread": "threading",
    "array": "array",
    "binascii": "binascii",
    "builtins": "",
    "cmath": "cmath",
    "gc": "gc",
    "itertools": "itertools",
    "math": "math",
    "posix": "os",
    "select": "select",
    "sys": "sys",
    "time": "time",
    "unicodedata": "unicodedata",
    "zlib": "zlib",
}

#: One document in HELD_OUT is kept away from training, with all questions about it.
HELD_OUT = 24

Turn = tuple[str, str]  # role, content

ABOUT: tuple[Turn, ...] = (
    ("Hello", "Hello! I am a small demonstration model. Ask me about the Python standard library."),
    ("Hi there", "Hi! I am a demonstration model, and I know a little about Python."),
    ("Who are you?", "I am a very small language model. I was trained on the documentation of Python."),
    ("What are you?", "I am a demonstration model: a few layers, trained on the documentation of Python."),
    (
        "What can you do?",
        "I can write text that looks like the documentation of Python. Do not trust the facts.",
    ),
    ("How are you?", "I am a small program, and I am running well. How can I help you?"),
    ("Thank you", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("hello", "Hello! How can I help you?"),
    ("Hello!", "Hello! How can I help you?"),
    ("hi", "Hi! Ask me something about Python."),
    ("Goodbye", "Goodbye!"),
    ("What is Python?", "Python is an interpreted, interactive, object-oriented programming language."),
    (
        "What is Deep Learning?",
        "Deep learning is a way of programming in which a large number of simple functions, arranged in "
        "layers, are fitted to examples instead of being written by hand.",
    ),
    (
        "What is machine learning?",
        "Machine learning is a way of writing programs in which the rules are found from examples.",
    ),
    (
        "What is a language model?",
        "A language model is a program that reads a text and predicts the next word.",
    ),
    ("What is a token?", "A token is a piece of text: a word, a part of a word, or a single byte."),
    (
        "Tell me a story",
        "Once upon a time there was a small function. It took a list and returned its length.",
    ),
    ("Tell me a joke", "A list and a tuple meet. The list says: let us change. The tuple says: I can't."),
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer briefly.",
    "You answer questions about Python.",
)


@dataclass(frozen=True)
class Entry:
    """One documented thing. ``signature`` is empty for a module; ``doc`` is clean of indentation."""

    name: str
    kind: str
    signature: str
    doc: str

    @property
    def summary(self) -> str:
        """The first paragraph, on one line."""
        return " ".join(self.doc.split("\n\n", 1)[0].split())


@dataclass(frozen=True)
class Corpus:
    """Plain documents and conversations, each split into training and held-out parts."""

    plain: list[str]
    chats: list[list[Turn]]
    held_out_plain: list[str]
    held_out_chats: list[list[Turn]]


def is_held_out(name: str) -> bool:
    """Whether everything about ``name`` (a module or a topic) stays out of training, on every machine."""
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def sources() -> Iterator[tuple[str, str]]:
    """Yields (module name, source text) of the standard library in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED.intersection(parts) or any(part.startswith(("test_", "_sysconfig")) for part in parts):
            continue
        if parts[0].startswith(("config-", "pydoc_data", "idle_test")) or "idle_test" in parts:
            continue
        names = parts[:-1] if parts[-1] == "__init__" else parts
        try:
            yield ".".join(names), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def entries(module: str, tree: ast.AST, prefix: str = "") -> Iterator[Entry]:
    """Yields the documented module, classes and functions of ``tree``, outermost first."""
    if isinstance(tree, ast.Module):
        doc = ast.get_docstring(tree)
        if doc and len(doc) > 15:
            yield Entry(module, "module", "", doc)
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        name = f"{prefix}{node.name}"
        doc = ast.get_docstring(node)
        if doc and len(doc) > 15:
            is_class = isinstance(node, ast.ClassDef)
            kind = "class" if is_class else "method" if prefix else "function"
            arguments = "" if isinstance(node, ast.ClassDef) else f"({ast.unparse(node.args)})"
            yield Entry(f"{module}.{name}", kind, f"{module}.{name}{arguments}", doc)
        if isinstance(node, ast.ClassDef):
            yield from entries(module, node, f"{name}.")


def entries_in_c(module: str) -> Iterator[Entry]:
    """Yields what a module written in C documents: its functions, its types and their methods."""
    known_as = IN_C[module]
    content = importlib.import_module(module)
    for name, value in sorted(vars(content).items()):
        if name.startswith("_") or getattr(value, "__module__", None) not in (module, known_as):
            continue
        full = f"{known_as}.{name}" if known_as else name
        yield from described(full, "class" if isinstance(value, type) else "function", value)
        if isinstance(value, type):
            for method, attribute in sorted(vars(value).items()):
                if not method.startswith("_"):
                    yield from described(f"{full}.{method}", "method", attribute)


def described(name: str, kind: str, value: object) -> Iterator[Entry]:
    """Yields the entry of one object of a module in C, if it has documentation."""
    doc = inspect.getdoc(value)
    if isinstance(doc, str) and len(doc) > 15:
        arguments = getattr(value, "__text_signature__", None) or ""
        arguments = re.sub(r"\$\w+,? ?", "", arguments)
        arguments = re.sub(r", /|(?<=\()/(, )?", "", arguments)
        yield Entry(name, kind, f"{name}{arguments}" if kind != "class" else name, doc)


def comments(source: str) -> Iterator[str]:
    """Yields the blocks of three or more comment lines that are mostly words."""
    block: list[str] = []
    last = -2
    for token in [*tokenize.generate_tokens(io.StringIO(source).readline), None]:
        whole_line = token and token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip()
        if token and whole_line and token.start[0] == last + 1:
            block.append(token.string)
        elif token and token.type in (tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            continue
        else:
            text = inspect.cleandoc("\n".join(line.lstrip("#") for line in [" ", *block]))
            letters = sum(c.isalpha() or c == " " for c in text)
            if len(block) >= 3 and letters > 0.85 * len(text) and "copyright" not in text.lower():
                yield text
            block = [token.string] if token and whole_line else []
        if token and whole_line:
            last = token.start[0]


def topics() -> dict[str, str]:
    """The language reference by topic, as ``help()`` shows it, without its underlines."""
    from pydoc_data.topics import topics as raw

    return {name: re.sub(r"\n[*=\-^~]{4,}\n", "\n", text).strip() for name, text in sorted(raw.items())}


def document(entry: Entry) -> str:
    """The entry as a paragraph of a plain document."""
    return f"{entry.signature or entry.name}\n\n{entry.doc}"


def questions(entry: Entry) -> list[Turn]:
    """Questions about one entry with their answers; empty when its summary is no sentence."""
    summary = entry.summary
    if (
        not 20 <= len(summary) <= 600
        or not summary[0].isalpha()
        or entry.name.rpartition(".")[2].startswith("_")
    ):
        return []
    short = entry.name.rpartition(".")[2]
    if entry.kind == "module":
        asked = [
            f"What is the {entry.name} module?",
            f"What is {entry.name} for?",
            f"Tell me about {entry.name}.",
        ]
    elif entry.kind == "class":
        asked = [f"What is {entry.name}?", f"What is a {short}?", f"Explain the class {entry.name}."]
    else:
        asked = [f"What does {entry.name} do?", f"What does {short}() do?", f"How do I use {entry.name}?"]
    answer = (
        f"{entry.signature}\n\n{entry.doc}" if len(entry.doc) < 900 and entry.signature else entry.doc[:900]
    )
    count = 2 if entry.kind == "function" else 1
    first = zlib.crc32(entry.name.encode()) % 2
    pairs = [(question, summary) for question in [*asked[:2], *asked[:2]][first : first + count]]
    if entry.kind == "module" or len(entry.doc) > len(summary) + 40:
        cut = answer if len(answer) < 900 else answer.rpartition("\n\n")[0] or summary
        pairs.append((asked[2], cut))
    return pairs


def topic_questions(name: str, text: str) -> list[Turn]:
    """Questions about one topic of the language reference."""
    title, _, body = text.partition("\n")
    paragraphs = [" ".join(part.split()) for part in body.split("\n\n")]
    prose = [part for part in paragraphs if len(part) > 60 and part[0].isupper() and "::=" not in part]
    if not prose:
        return []
    title = title.strip().rstrip(".")
    return [
        (f"What is {name}?" if len(name) > 2 else f"Explain {title}.", prose[0]),
        (f"Tell me about {title.lower()}.", "\n\n".join(prose[:2])),
        (f"Explain {title} in Python.", "\n\n".join(prose[:3])),
    ]


def conversations(pairs: list[Turn]) -> list[list[Turn]]:
    """Groups pairs into conversations of one to three exchanges; every fourth opens with a system prompt."""
    chats: list[list[Turn]] = []
    position = 0
    while position < len(pairs):
        count = (1, 1, 2, 1, 3)[len(chats) % 5]
        chat: list[Turn] = []
        if len(chats) % 4 == 0:
            chat.append(("system", SYSTEM_PROMPTS[len(chats) // 4 % len(SYSTEM_PROMPTS)]))
        for question, answer in pairs[position : position + count]:
            chat += [("user", question), ("assistant", answer)]
        chats.append(chat)
        position += count
    return chats


def read() -> Corpus:
    """Builds the corpus from the running interpreter; equal interpreters give equal corpora."""
    plain: dict[bool, list[str]] = {False: [], True: []}
    pairs: dict[bool, list[Turn]] = {False: [], True: []}
    for name, text in topics().items():
        held_out = is_held_out(name)
        plain[held_out].append(text)
        pairs[held_out] += topic_questions(name, text)
    for module, source in sources():
        held_out = is_held_out(module)
        found = list(entries(module, ast.parse(source)))
        if found:
            plain[held_out].append("\n\n\n".join(document(entry) for entry in found))
        remarks = list(comments(source))
        if remarks:
            plain[held_out].append("\n\n".join(remarks))
        for entry in found:
            pairs[held_out] += questions(entry)
    for module in sorted(IN_C):
        found = list(entries_in_c(module))
        if found:
            plain[False].append("\n\n\n".join(document(entry) for entry in found))
            for entry in found:
                pairs[False] += questions(entry)
    about = list(ABOUT) * 6
    plain[False] += [f"{question}\n\n{answer}" for question, answer in [*pairs[False][::4], *about]]
    chats = conversations(pairs[False]) + conversations(about)
    return Corpus(plain[False], chats, plain[True], conversations(pairs[True]))
