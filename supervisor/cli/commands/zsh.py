"""The completion script for zsh: a function for each command, which says to _arguments what there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nsbridge.supervisor.cli.commands.model import NOTHING, PATH, Command, Operand, Option, Program, Value

_HEAD = r"""#compdef {names}
# zsh completion of {names}; made by: nsbridgectl completion zsh

_nsbridge_asked() { # what the running daemon lists: $2... are names, letters
  local what
  local -a found expl
  for what in ${@[2,-1]}; do
    if [[ $what == all ]]; then
      found+=(all)
    else
      found+=(${(f)"$(nsbridgectl completion $what -- $nsbridge_typed 2>/dev/null)"})
    fi
  done
  _wanted names expl $1 compadd -a found
}
"""
_TAIL = r"""
_nsbridge() { # also the file's name: zsh takes this for what it has loaded
  __$service "$@"
}
if [[ $funcstack[1] == _nsbridge ]]; then
  _nsbridge "$@"
elif (( $+functions[compdef] )); then
  compdef _nsbridge {names}
fi
"""


def script(programs: Sequence[Program]) -> str:
    """Return the whole script for these programs."""
    functions = [_function(path) for program in programs for path in program.command.walk()]
    names = " ".join(program.name for program in programs)
    return "".join([_HEAD.replace("{names}", names), *functions, _TAIL.replace("{names}", names)])


def _function(path: tuple[Command, ...]) -> str:
    command = path[-1]
    lines = [f"\n{_name(path)}() {{"]
    if len(path) == 1:
        lines += ["  local -a nsbridge_typed=($words)"]
    lines += ["  local curcontext=$curcontext state line", "  local -A opt_args"]
    specs = [_option(option) for above in reversed(path) for option in above.options]
    if command.commands:
        specs += ["'1: :->command'", "'*:: :->rest'"]
    specs += [_operand(operand) for operand in command.operands]
    lines += ["  _arguments -C -S \\", *(f"    {spec} \\" for spec in specs[:-1]), f"    {specs[-1]}"]
    if command.commands:
        lines += list(_below(path))
    return "\n".join([*lines, "}", ""])


def _below(path: tuple[Command, ...]) -> Iterator[str]:
    described = " ".join(_quoted(f"{command.name}:{command.summary}") for command in path[-1].commands)
    yield "  case $state in"
    yield f"  command) local -a commands=({described}); _describe -t commands command commands ;;"
    yield "  rest)"
    yield "    case $words[1] in"
    for command in path[-1].commands:
        yield f"    {command.name}) {_name((*path, command))} ;;"
    yield "    esac ;;"
    yield "  esac"


def _name(path: tuple[Command, ...]) -> str:
    return "__" + "_".join(command.name for command in path)


def _option(option: Option) -> str:
    text = f"[{_escaped(option.help)}]"
    if option.dest in ("help", "version"):
        return f"'(- *)'{_braced(option.flags)}{_quoted(text)}"
    if option.value is None:
        return f"{_excluding(option.flags)}{_braced(option.flags)}{_quoted(text)}"
    flags = [f"{flag}=" if flag.startswith("--") else f"{flag}+" for flag in option.flags]
    value = f"{text}:{option.value.metavar}:{_action(option.value)}"
    return f"{_excluding(option.flags)}{_braced(flags)}{_quoted(value)}"


def _operand(operand: Operand) -> str:
    where = "*" if operand.most > 1 else ("" if operand.least else ":")
    return _quoted(f"{where}:{operand.value.metavar}:{_action(operand.value)}")


def _action(value: Value) -> str:
    if value.words:
        return f"({' '.join(value.words)})"
    if value.completes in (NOTHING, PATH):
        return "_files" if value.completes else " "
    return f"_nsbridge_asked {value.metavar} {' '.join(value.completes)}"


def _excluding(flags: Sequence[str]) -> str:
    return f"'({' '.join(flags)})'"


def _braced(flags: Sequence[str]) -> str:
    return f"{{{','.join(flags)}}}" if len(flags) > 1 else flags[0]


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "[]:\\" else c for c in text)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
