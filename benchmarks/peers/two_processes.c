/* The bridge as two processes, as nsbridge has it: one in the client's mnt namespace, one in the server's ipc
 * namespace, and a socketpair between them; no journal. It shows what this process model costs by itself.
 * usage: two_processes NS_IPC NS_MNT DIR */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/inotify.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "msg_helper.h"
static void join(const char *path, int type) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || setns(fd, type) < 0) { perror(path); exit(1); }
    close(fd);
}
static int serve_queue(const char *ns, int peer) {
    struct message m;
    ssize_t n;
    join(ns, CLONE_NEWIPC);
    int queue = msgget(KEY, 0666 | IPC_CREAT);
    if (queue < 0) { perror("msgget"); return 1; }
    while ((n = recv(peer, m.text, TEXT, 0)) > 0) {
        m.type = TO_SERVER;
        if (msgsnd(queue, &m, n, 0) < 0) { perror("msgsnd"); return 1; }
        n = msgrcv(queue, &m, TEXT, TO_CLIENT, 0);
        if (n < 0) { perror("msgrcv"); return 1; }
        if (send(peer, m.text, n, 0) != n) { perror("send"); return 1; }
    }
    return 0;
}
int main(int argc, char **argv) {
    char events[4096], text[TEXT];
    int pair[2];
    if (argc < 4) { fprintf(stderr, "usage: two_processes NS_IPC NS_MNT DIR\n"); return 2; }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0) { perror("socketpair"); return 1; }
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(pair[0]);
        return serve_queue(argv[1], pair[1]);
    }
    close(pair[1]);
    join(argv[2], CLONE_NEWNS);
    if (chdir(argv[3]) < 0) { perror(argv[3]); return 1; }
    int watch = inotify_init1(IN_CLOEXEC);
    if (watch < 0) { perror("inotify"); return 1; }
    close(open("to_server", O_CREAT | O_WRONLY, 0666));
    close(open("to_client", O_CREAT | O_WRONLY, 0666));
    if (inotify_add_watch(watch, "to_server", IN_CLOSE_WRITE) < 0) { perror("watch"); return 1; }
    for (;;) {
        if (read(watch, events, sizeof events) <= 0) return 1;
        int in = open("to_server", O_RDONLY);
        ssize_t n = read(in, text, TEXT);
        close(in);
        if (n <= 0) continue;
        if (send(pair[0], text, n, 0) != n) { perror("send"); return 1; }
        n = recv(pair[0], text, TEXT, 0);
        if (n <= 0) { perror("recv"); return 1; }
        int out = open("to_client", O_WRONLY | O_TRUNC);
        if (write(out, text, n) != n) { perror("write"); return 1; }
        close(out);
    }
}
