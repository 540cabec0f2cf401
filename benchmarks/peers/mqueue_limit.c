/* The kernel's own limit: POSIX messages between two processes through one queue of the default size, nothing in between.
 * usage: mqueue_limit COUNT SIZE -> messages/s */
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void die(const char *what) { perror(what); exit(1); }
int main(int argc, char **argv) {
    static char text[8192], name[64];
    if (argc < 3) { fprintf(stderr, "usage: mqueue_limit COUNT SIZE\n"); return 2; }
    int count = atoi(argv[1]), size = atoi(argv[2]), status;
    snprintf(name, sizeof name, "/mqueue_limit-%d", getpid());
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, NULL);
    if (queue < 0) die(name);
    mq_unlink(name);
    memset(text, 'a', size);
    double start = now();
    if (fork() == 0) {
        for (int i = 0; i < count; i++) if (mq_receive(queue, text, sizeof text, NULL) != size) die("mq_receive");
        _exit(0);
    }
    for (int i = 0; i < count; i++) if (mq_send(queue, text, size, 0) < 0) die("mq_send");
    wait(&status);
    printf("%.0f messages/s\n", count / (now() - start));
    return status != 0;
}
