"""The table of nsbridgectl's commands."""

from __future__ import annotations

from nsbridge.supervisor.cli.commands import values
from nsbridge.supervisor.cli.commands.model import (
    ANY,
    EXIT_CODES,
    LETTERS,
    LETTERS_OR_NAMES,
    NAMES,
    NAMES_OR_ALL,
    PATH,
    Command,
    Operand,
    Option,
    Program,
    Value,
    about,
)

LINES = 20  # of the log and of what happened, that are shown by default
TOP_KEYS = ("name", "rate", "bytes", "pending", "cpu", "memory", "state")
SHELLS = ("bash", "zsh", "fish")
ASKED = ("names", "letters", "containers")  # by the shells' scripts: of the daemon, and of this host

_NAME = Value("NAME", completes=NAMES)
_NAME_OR_ALL = Value("NAME", completes=NAMES_OR_ALL)
_LETTERS = Value("ID", completes=LETTERS_OR_NAMES)
_JSON = Option("--json", "print JSON instead of a table")
_JSON_LINES = Option("--json", "print a JSON object a line")
_FOLLOW = Option("-f --follow", "continue with what follows, until Ctrl-C")
_SOME = Operand("names", "routes or agents; all of them if none is named", _NAME, least=0, most=ANY)
_ONE = Operand("name", "a route or an agent; all of them if none is named", _NAME, least=0)
_WHICH = Operand("names", "the name of a route or an agent, or all", _NAME_OR_ALL, most=ANY)
_WHICH_DEAD = Operand("names", "an ID, the name of a route or an agent, or all", _LETTERS, most=ANY)


def _lines(what: str) -> Option:
    return Option("-n --lines", f"the last N {what} (default: {LINES})", Value("N", values.count), LINES)


def _change(name: str, summary: str, text: str, until: str) -> Command:
    end = f"return when {until}, or when it is clear that they will not; then with exit code 1"
    wait = Option("--wait", f"{end}. On a terminal it shows how much is left")
    return Command(name, summary, text, options=(wait, _JSON), operands=(_WHICH,))


_DEAD = Command(
    "dead",
    "messages that could not be delivered",
    "Messages that can never be delivered as they are (too large for their queue, say) are put aside with the reason, "
    "and the messages behind them pass. ID is what dead list shows: AGENT/NUMBER, or AGENT/EPOCH-NUMBER as --json has "
    "it, because the numbers start again when a journal is made anew.",
    commands=(
        Command(
            "list",
            "which messages could not be delivered, and why",
            "When each was put aside, its bytes, the type it had in the queue that it came from (- : it came from a "
            "file), where it was to go, and why it could not.",
            options=(_JSON,),
            operands=(_SOME,),
        ),
        Command(
            "show",
            "one dead letter, with the beginning of its content",
            "What is known of it and its first 1,024 bytes; with --json its first 64 KiB in base64 (body), and whether "
            "there is more (cut). All of it is in the file that is named.",
            options=(_JSON,),
            operands=(Operand("id", "an ID that dead list shows", Value("ID", completes=LETTERS)),),
        ),
        Command("retry", "deliver dead letters, now that they can be", options=(_JSON,), operands=(_WHICH_DEAD,)),
        Command("drop", "remove dead letters for good", options=(_JSON,), operands=(_WHICH_DEAD,)),
    ),
)

_TOP = Command(
    "top",
    "the busiest agents, live",
    "Shows every agent's message and byte rates, what waits to enter its container, its CPU and its own memory (what "
    "would be free if it ended), refreshed until q is pressed; below the table is in full why agents wait or do not "
    "run. Keys: n, r, b, p, c, m, s sort by name, rate, bytes, "
    "pending, CPU, memory, state, and the same again turns the order round; arrows, Page Up, Page Down and Home "
    "scroll; the space bar refreshes at once. The memory of some agents is measured at each look: of many, it is known "
    "after a while. Without a terminal, with --once or --json it prints one table, of what happens in one interval, "
    "and ends.",
    options=(
        Option("--once", "print one table and end"),
        Option("-d --interval", "seconds between two looks (default: 1)", Value("S", values.seconds), 1.0),
        Option("--sort", "what to sort by (default: rate)", Value("KEY", words=TOP_KEYS), "rate"),
        _JSON,
    ),
    operands=(_SOME,),
)

_COMMANDS = (
    Command(
        "status",
        "what runs and what does not, and what has been delivered",
        "A line for each agent: its state and why, its container, its endpoint, and counts of messages. out: have left "
        "its container. in: have entered it. pending: waiting to be delivered to this agent. in doubt: may or may not "
        "have been sent before a crash. missed: the program removed or overwrote them before they could be read. "
        "dead: are set aside because they could not be delivered (see dead list). refused: files in its spool that "
        "cannot be taken.",
        options=(_JSON,),
        operands=(_SOME,),
    ),
    _change("start", "start agents", "Starts agents that are stopped, or FATAL and fixed.", "they run"),
    _change(
        "stop",
        "stop agents",
        "Stops agents in order: what is in flight is handed over first, what is not waits in the journal.",
        "they have stopped",
    ),
    _change(
        "restart",
        "stop agents and start them again",
        "Stops agents in order, as stop does, and starts them again. The other agent of a route stays as it is.",
        "they run again",
    ),
    Command(
        "reload",
        "read the configuration again, and touch only what has changed",
        "Reads the configuration again. Routes that are gone are drained and stopped, new ones are started, changed "
        "ones restarted, all others not touched. If the file is wrong, nothing is changed and each mistake is a line.",
        options=(
            Option(
                "--dry-run",
                "only say what would be stopped, started, restarted or left alone, and which containers no engine of "
                "this host knows",
            ),
            Option("--wait", "return when it has been carried out"),
            _JSON,
        ),
    ),
    Command(
        "tail",
        "the end of the log",
        "The last lines of the daemon's log, all or those of NAME.",
        options=(_FOLLOW, _lines("lines"), _JSON_LINES),
        operands=(_ONE,),
    ),
    Command(
        "events",
        "what has happened to the agents",
        "Changes of agents' states, reloads, and what else is worth acting upon: each with its time, the agent, from "
        "which state to which, and why.",
        options=(_FOLLOW, _lines("events"), _JSON_LINES),
        operands=(_ONE,),
    ),
    Command(
        "tap",
        "the messages of a route as they are handed over, live",
        "Shows copies of the messages that enter the containers of NAME's agents, from now on, until Ctrl-C: when, "
        "from which agent to which, number, type (in the queue that it came from), bytes, and the beginning. It has "
        "no effect on the messages, and hardly any on their speed: at most 2,000 messages and 1 MB a second are "
        "copied, and 32 KiB of each; how many were not is shown between the others. For callers who may control.",
        options=(
            Option("-n --count", "end after N messages", Value("N", values.count)),
            _JSON_LINES,
            Option("--raw", "print the bytes of the messages and nothing else; what is missed goes to stderr"),
        ),
        operands=(Operand("name", "a route, or the agent that hands over", _NAME),),
    ),
    Command(
        "inspect",
        "an agent's processes, looked at from outside",
        "Pid, threads, memory, CPU time, open files, capabilities, what confines it, and each namespace's inode number "
        "by whether it is its container's, the host's, both's or neither's; of each process that sends for it a line. "
        "--json has all that is known of each of them, sizes in bytes.",
        options=(_JSON,),
        operands=(Operand("name", "a route or an agent", _NAME),),
    ),
    _TOP,
    Command(
        "metrics",
        "metrics for Prometheus, as text",
        "Prints what nsbridge web serves at /metrics, for node_exporter's textfile collector: write it to another file "
        "and rename that. A daemon that cannot be reached is nsbridge_up 0, and exit code 4. Needs the packages of "
        "nsbridge[web].",
    ),
    _DEAD,
    Command(
        "shutdown",
        "stop all agents in order, then the daemon",
        "Ends the daemon: every agent hands over what is in flight, within seconds; what cannot be handed over waits "
        "in the journals, and the log says how much and where.",
        options=(Option("--wait", "return when the daemon has ended"), _JSON),
    ),
    Command("version", "the version of the daemon", options=(_JSON,)),
    Command(
        "completion",
        "what makes a shell complete these commands",
        "Prints a script that completes nsbridgectl, nsbridge and nsbridged, for the shell to read: eval it in "
        "~/.bashrc or ~/.zshrc, pipe it into source in ~/.config/fish/config.fish. Such a script asks the running "
        "daemon for names with completion names, and for IDs of dead letters with completion letters, which print one "
        "a line, and nothing where the daemon does not answer.",
        operands=(
            Operand("what", "bash, zsh, fish; names, letters or containers", Value("SHELL", words=(*SHELLS, *ASKED))),
            Operand("words", "what has been typed so far, for its -s and -c", Value("WORD"), least=0, most=ANY),
        ),
    ),
)

PROGRAM = Program(
    Command(
        "nsbridgectl",
        "asks and steers a running nsbridged",
        "Speaks to the daemon over its control socket. NAME is a route (orders) or an agent (orders:web); ID is what "
        "dead list shows (orders:legacy/12).",
        options=(
            Option(
                "-s --socket",
                "the control socket (default: $NSBRIDGE_CONTROL, else /run/nsbridge/control.sock)",
                Value("PATH", values.path, PATH),
            ),
            Option(
                "-c --config",
                "take the control socket's path from this configuration",
                Value("FILE", values.path, PATH),
            ),
            Option(
                "--timeout", "seconds to wait for an answer (default: 5; 60 with --wait)", Value("S", values.seconds)
            ),
            *about("nsbridgectl"),
        ),
        commands=_COMMANDS,
    ),
    section=1,
    notes=(
        ("exit codes", EXIT_CODES),
        (
            "environment",
            (
                ("NSBRIDGE_CONTROL", "the control socket, where -s and -c are not given"),
                ("NO_COLOR", "if it is set and not empty, nothing is coloured"),
            ),
        ),
        (
            "files",
            (
                ("/run/nsbridge/control.sock", "the control socket"),
                ("/etc/nsbridge/nsbridge.toml", "the daemon's configuration"),
            ),
        ),
        (
            "examples",
            (
                ("nsbridgectl status", "what runs, what does not and why"),
                ("nsbridgectl restart --wait orders", "both agents of the route orders, and return when they run"),
                ("nsbridgectl reload --dry-run", "what a changed configuration would do"),
                ("nsbridgectl tap --raw --count 1 orders:legacy >message", "the next message of a queue, as it is"),
                ("nsbridgectl dead retry orders:legacy/12", "once more, after its queue was made larger"),
                ("nsbridgectl -s /run/other/control.sock events -f", "of another daemon"),
            ),
        ),
    ),
    see_also=("nsbridge(1)", "nsbridged(8)", "nsbridge.toml(5)"),
)
