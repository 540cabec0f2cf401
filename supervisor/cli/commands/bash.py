"""The completion script for bash (4 or newer), which needs nothing of the bash-completion package.

bash breaks a command line at `:` and `=` as well, which stand in names and options: the script breaks it at blanks by
itself, and replies with what follows the last such break, for that is what bash replaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nsbridge.supervisor.cli.commands.model import NOTHING, PATH, Command, Program, Value

_DRIVER = r"""# bash completion of {names}; made by: nsbridgectl completion bash

_nsbridge_complete() { # $1: the function that says which kind of word may stand where
    local line=${COMP_LINE:0:COMP_POINT} words=() found=() word current break=''
    local kind='' value='' path='' only_operands='' count=0
    read -ra words <<<"$line"
    [[ $line == *[[:space:]] ]] && words+=('')
    current=${words[${#words[@]} - 1]}
    for word in "${words[@]:1:${#words[@]}-2}"; do
        if [[ $value ]]; then
            value=''
        elif [[ ! $only_operands && $word == -- ]]; then
            only_operands=1
        elif [[ ! $only_operands && $word == -?* ]]; then
            "$1" "$word"
            value=$kind
        else
            "$1" "$path $count"
            if [[ $kind == commands\ * && " $kind " == *" $word "* ]]; then
                path+=" $word"
            else
                ((count++))
            fi
        fi
    done
    if [[ $value ]]; then
        kind=$value
    elif [[ ! $only_operands && $current == --*=* ]]; then
        "$1" "${current%%=*}"
        current=${current#*=}
    elif [[ ! $only_operands && $current == -* ]]; then
        "$1" "$path -"
    else
        "$1" "$path $count"
    fi
    COMPREPLY=()
    case $kind in
    commands\ * | words\ *) read -ra found <<<"${kind#* }" ;;
    path)
        compopt -o filenames 2>/dev/null
        mapfile -t found < <(compgen -f -- "$current")
        ;;
    asked\ *) for word in ${kind#* }; do
        [[ $word == all ]] && found+=(all) && continue
        mapfile -t -O ${#found[@]} found < <(nsbridgectl completion "$word" -- "${words[@]}" 2>/dev/null)
    done ;;
    esac
    [[ $current == *:* && $COMP_WORDBREAKS == *:* ]] && break=${current%"${current##*:}"}
    for word in "${found[@]}"; do
        [[ $word == "$current"* ]] && COMPREPLY+=("${word#"$break"}")
    done
}
"""
_ANY = -1  # position of an operand


def script(programs: Sequence[Program]) -> str:
    """Return the whole script for these programs."""
    names = ", ".join(program.name for program in programs)
    return _DRIVER.replace("{names}", names) + "".join(_program(program) for program in programs)


def _program(program: Program) -> str:
    lines = [f"\n_{program.name}_kind() {{", "    kind=''", "    case $1 in"]
    for pattern, kind in _kinds(program):
        lines.append(f"    {pattern}) kind='{kind}' ;;")
    lines += ["    esac", "}"]
    lines += [f"_{program.name}() {{ _nsbridge_complete _{program.name}_kind; }}"]
    return "\n".join([*lines, f"complete -F _{program.name} {program.name}", ""])


def _kinds(program: Program) -> Iterator[tuple[str, str]]:
    """Yield (pattern, kind): of an option's value; of options (` dead list -`) and operands (` dead list 0`) of a
    command.
    """
    values: dict[str, str] = {}
    for path in program.command.walk():
        values |= {flag: _kind(option.value) for option in path[-1].options if option.value for flag in option.flags}
    for kind in dict.fromkeys(values.values()):
        yield " | ".join(f"'{flag}'" for flag in values if values[flag] == kind), kind
    for path in program.command.walk():
        typed = "".join(f" {command.name}" for command in path[1:])
        flags = [flag for command in reversed(path) for option in command.options for flag in option.flags]
        yield f"'{typed} -'", f"words {' '.join(flags)}"
        yield from (
            (f"'{typed} {number}'" if number != _ANY else f"'{typed} '*", kind) for number, kind in _operands(path[-1])
        )


def _operands(command: Command) -> Iterator[tuple[int, str]]:
    if command.commands:
        yield 0, "commands " + " ".join(below.name for below in command.commands)
    for number, operand in enumerate(command.operands):
        yield _ANY if operand.most > 1 else number, _kind(operand.value)


def _kind(value: Value) -> str:
    if value.words:
        return f"words {' '.join(value.words)}"
    if value.completes in (NOTHING, PATH):
        return "".join(value.completes) or "nothing"
    return f"asked {' '.join(value.completes)}"
