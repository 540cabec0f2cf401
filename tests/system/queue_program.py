"""A program that uses a SysV queue as a container's would; run in its ipc namespace by `nsenter`.

    queue_program.py put KEY            reads frames on stdin, sends each; ends with the input
    queue_program.py get KEY TYPE COUNT [ANSWER_TYPE]
                                        receives so many, writes each as a frame on stdout, and sends it back
                                        with the answer's type if there is one
    queue_program.py times KEY TYPE     receives until it is killed; each message is a time (ns of CLOCK_MONOTONIC);
                                        writes lines "SENT RECEIVED" of such times

A frame is type (i64) and length (u32), little-endian, then the bytes.
"""

from __future__ import annotations

import struct
import sys
import time

import sysv_ipc

FRAME = struct.Struct("<qI")


def _queue(key: str) -> sysv_ipc.MessageQueue:
    return sysv_ipc.MessageQueue(int(key), sysv_ipc.IPC_CREAT, 0o666, 1 << 16)


def put(queue: sysv_ipc.MessageQueue) -> None:
    """Send what stdin has."""
    while header := sys.stdin.buffer.read(FRAME.size):
        mtype, length = FRAME.unpack(header)
        queue.send(sys.stdin.buffer.read(length), True, mtype)


def get(queue: sysv_ipc.MessageQueue, mtype: int, count: int, answer_type: int) -> None:
    """Write what comes to stdout, and answer it."""
    for _ in range(count):
        body, got = queue.receive(True, mtype)
        sys.stdout.buffer.write(FRAME.pack(got, len(body)) + body)
        if answer_type:
            queue.send(body, True, answer_type)


def times(queue: sysv_ipc.MessageQueue, mtype: int) -> None:
    """Write when each was sent and received."""
    while True:
        body, _ = queue.receive(True, mtype)
        print(body.decode("ascii"), time.monotonic_ns(), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["put", key]:
            put(_queue(key))
        case ["get", key, mtype, count]:
            get(_queue(key), int(mtype), int(count), 0)
        case ["get", key, mtype, count, answer_type]:
            get(_queue(key), int(mtype), int(count), int(answer_type))
        case ["times", key, mtype]:
            times(_queue(key), int(mtype))
        case _:
            sys.exit(__doc__)
