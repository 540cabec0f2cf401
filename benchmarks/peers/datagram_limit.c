/* The kernel's own limit: datagrams between two processes through a pair of Unix sockets, nothing in between.
 * usage: datagram_limit COUNT SIZE -> messages/s */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void die(const char *what) { perror(what); exit(1); }
int main(int argc, char **argv) {
    static char text[8192];
    if (argc < 3) { fprintf(stderr, "usage: datagram_limit COUNT SIZE\n"); return 2; }
    int count = atoi(argv[1]), size = atoi(argv[2]), ends[2], status;
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) < 0) die("socketpair");
    memset(text, 'a', size);
    double start = now();
    if (fork() == 0) {
        for (int i = 0; i < count; i++) if (recv(ends[1], text, sizeof text, 0) != size) die("recv");
        _exit(0);
    }
    for (int i = 0; i < count; i++) if (send(ends[0], text, size, 0) != size) die("send");
    wait(&status);
    printf("%.0f messages/s\n", count / (now() - start));
    return status != 0;
}
