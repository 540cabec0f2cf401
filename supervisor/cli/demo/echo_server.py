"""An echo server on a SysV message queue: what comes as type 1 goes back as type 2. It does not use nsbridge."""

import sys

import sysv_ipc

KEY = 0x4D2
QUESTION, ANSWER = 1, 2
LONGEST = 8192  # bytes: the kernel's msgmax


def main() -> None:
    """Answer until killed."""
    queue = sysv_ipc.MessageQueue(KEY, sysv_ipc.IPC_CREAT, mode=0o660, max_message_size=LONGEST)
    sys.stdout.write("Ready\n")
    sys.stdout.flush()
    while True:
        message, _ = queue.receive(type=QUESTION)
        queue.send(message, type=ANSWER)


if __name__ == "__main__":
    main()
