"""Markdown as man(7) source."""

from __future__ import annotations

from nsbridge.supervisor.cli.commands.reference import sections

PAGE = """# Title

One `code with blanks` and **bold**, see [a page](page.md).
'Second' line - with .dots

## `[daemon]`

| key | meaning | kind | default |
|---|---|---|---|
| `a` | the *first*. | path | `"/x"` |
| `b` | the second | table, below | |

### Part

.begins with a dot

* one
  goes further
* two

```toml
.x = "1-2"
```

| what happened to it in the end, long ago | what follows |
|---|---|
| something that is no term, but a sentence | this |
"""


def test_each_kind_of_block_has_its_macro() -> None:
    assert list(sections(PAGE)) == [
        "One \\fBcode\\fR \\fBwith\\fR \\fBblanks\\fR and \\fBbold\\fR, see a page.",
        "\\(aqSecond\\(aq line \\- with .dots",
        '.SH "[DAEMON]"',
        ".TP",
        "\\fBa\\fR",
        'the *first*. Kind: path. Default: \\fB"/x"\\fR.',
        ".TP",
        "\\fBb\\fR",
        "the second. Kind: table, below.",
        '.SS "Part"',
        "\\&.begins with a dot",
        ".IP \\(bu 2",
        "one goes further",
        ".IP \\(bu 2",
        "two",
        ".PP",
        ".RS 4",
        ".nf",
        '\\&.x = "1\\-2"',
        ".fi",
        ".RE",
        ".IP \\(bu 2",
        "something that is no term, but a sentence: this.",
    ]
