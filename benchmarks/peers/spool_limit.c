/* The file system's own limit for a spool: one program that does for each message what the two programs at a spool do,
 * create, write, close, rename, then open, read, close, unlink. Nothing in between, no waiting.
 * usage: spool_limit DIR COUNT SIZE -> messages/s */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "../loads/spool_file.h"
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
int main(int argc, char **argv) {
    char hidden[4096], name[4096], text[8192], back[8192];
    if (argc < 4) { fprintf(stderr, "usage: spool_limit DIR COUNT SIZE\n"); return 2; }
    int count = atoi(argv[2]), size = atoi(argv[3]);
    memset(text, 'a', size);
    double start = now();
    for (int i = 0; i < count; i++) {
        snprintf(hidden, sizeof hidden, "%s/.%d", argv[1], i);
        snprintf(name, sizeof name, "%s/%08d", argv[1], i);
        if (put_file(hidden, name, text, size) < 0 || take_file(name, back, sizeof back) != size) { perror(name); return 1; }
    }
    printf("%.0f messages/s\n", count / (now() - start));
    return 0;
}
