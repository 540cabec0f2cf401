/* The containers' programs of the throughput rows: one feeds messages as fast as it is let, one drains them and checks
 * that each is the next one. usage:
 *   load feed  queue|mqueue|socket|log|spool PLACE COUNT SIZE
 *   load drain queue|mqueue|socket|log|spool PLACE COUNT SIZE
 *   load tick  PREFIX LOGS SECONDS SIZE          a line a second into each of the logs PREFIX0, PREFIX1 …, evenly spread
 * PLACE is a queue's key, a POSIX queue's name, the path of a log or of a socket for datagrams, or a spool's directory. A
 * drain makes its socket before it is ready. A message is SIZE bytes, at least 16, and begins with its
 * number. Each prints "ready", then "BEGUN ENDED" in seconds of CLOCK_MONOTONIC: a feed's begin is before its first
 * message, a drain's end is after its last. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "spool_file.h"
#define LONGEST 8192
#define BLOCK 65536
#define BACKLOG 4096 /* files that may wait in a spool: fewer than inotify's events, so that none is dropped */
static const char *place;
static int count, size;
static struct { long type; char text[LONGEST]; } m = { 1, "" };

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec / 1e9; }
static void rest(double seconds) { struct timespec t = { (long)seconds, (long)((seconds - (long)seconds) * 1e9) }; nanosleep(&t, NULL); }
static void die(const char *what) { perror(what); exit(1); }
static void number(char *text, int i) { for (int digit = 7; digit >= 0; digit--, i /= 10) text[digit] = '0' + i % 10; }
static void check(const char *text, ssize_t length, int i) {
    char wanted[8];
    number(wanted, i);
    if (length != size || memcmp(text, wanted, 8)) {
        fprintf(stderr, "message %d: got %zd bytes: %.8s\n", i, length, text);
        exit(1);
    }
}

static int queue(void) {
    int id = msgget(strtoul(place, NULL, 0), 0666 | IPC_CREAT);
    if (id < 0) die("msgget");
    return id;
}
static void feed_queue(void) {
    int id = queue();
    for (int i = 0; i < count; i++) {
        number(m.text, i);
        if (msgsnd(id, &m, size, 0) < 0) die("msgsnd");
    }
}
static void drain_queue(void) {
    int id = queue();
    for (int i = 0; i < count; i++) {
        ssize_t n = msgrcv(id, &m, LONGEST, 0, 0);
        if (n < 0) die("msgrcv");
        check(m.text, n, i);
    }
}

static mqd_t posix_queue(int access) {
    mqd_t id = mq_open(place, access | O_CREAT, 0666, NULL);
    if (id < 0) die(place);
    return id;
}
static void feed_mqueue(void) {
    mqd_t id = posix_queue(O_WRONLY);
    for (int i = 0; i < count; i++) {
        number(m.text, i);
        if (mq_send(id, m.text, size, 0) < 0) die("mq_send");
    }
}
static void drain_mqueue(void) {
    mqd_t id = posix_queue(O_RDONLY);
    for (int i = 0; i < count; i++) {
        ssize_t n = mq_receive(id, m.text, LONGEST, NULL);
        if (n < 0) die("mq_receive");
        check(m.text, n, i);
    }
}

static int datagrams(int (*use)(int, const struct sockaddr *, socklen_t)) {
    struct sockaddr_un address = { AF_UNIX, "" };
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", place);
    if (fd < 0 || use(fd, (struct sockaddr *)&address, sizeof address) < 0) die(place);
    return fd;
}
static void feed_socket(int fd) {
    for (int i = 0; i < count; i++) {
        number(m.text, i);
        if (send(fd, m.text, size, 0) != size) die(place);
    }
}
static void drain_socket(int fd) {
    for (int i = 0; i < count; i++) {
        ssize_t n = recv(fd, m.text, LONGEST, 0);
        if (n < 0) die(place);
        check(m.text, n, i);
    }
}

static void feed_log(void) {
    char block[BLOCK + LONGEST + 1];
    int fd = open(place, O_WRONLY | O_APPEND | O_CREAT, 0666), used = 0;
    if (fd < 0) die(place);
    for (int i = 0; i < count; i++) {
        number(m.text, i);
        memcpy(block + used, m.text, size);
        block[used + size] = '\n';
        used += size + 1;
        if (used < BLOCK && i < count - 1) continue;
        if (write(fd, block, used) != used) die(place);
        used = 0;
    }
}
static void drain_log(void) {
    char block[BLOCK + LONGEST + 1];
    int fd = -1, used = 0;
    for (int i = 0; i < count;) {
        if (fd < 0 && (fd = open(place, O_RDONLY)) < 0 && errno != ENOENT) die(place);
        ssize_t n = fd < 0 ? 0 : read(fd, block + used, BLOCK);
        if (n < 0) die(place);
        if (n == 0) { rest(0.0005); continue; }
        used += n;
        int at = 0;
        for (; used - at > size; at += size + 1, i++) check(block + at, block[at + size] == '\n' ? size : -1, i);
        memmove(block, block + at, used -= at);
    }
}

static void feed_spool(void) {
    char from[4096], to[4096];
    struct stat s;
    for (int i = 0; i < count; i++) {
        /* a directory of tmpfs has 20 bytes for each of its names */
        while (i % 256 == 0 && !stat(place, &s) && s.st_size / 20 > BACKLOG) rest(0.001);
        snprintf(from, sizeof from, "%s.tmp/%d", place, i);
        snprintf(to, sizeof to, "%s/%08d", place, i);
        number(m.text, i);
        if (put_file(from, to, m.text, size) < 0) die(to);
    }
}
static void drain_spool(int watch) {
    char events[BLOCK], path[4096];
    for (int i = 0; i < count;) {
        ssize_t n = read(watch, events, sizeof events);
        if (n <= 0) die("inotify");
        for (char *at = events; at < events + n;) {
            struct inotify_event *event = (struct inotify_event *)at;
            at += sizeof *event + event->len;
            if (!event->len || event->name[0] == '.') continue;
            snprintf(path, sizeof path, "%s/%s", place, event->name);
            ssize_t length = take_file(path, m.text, LONGEST);
            if (length < 0) die(path);
            check(m.text, length, i++);
        }
    }
}

static void tick(const char *prefix, int logs, int seconds) {
    char path[4096];
    int *fds = malloc(logs * sizeof *fds);
    for (int i = 0; i < logs; i++) {
        snprintf(path, sizeof path, "%s%d", prefix, i);
        if ((fds[i] = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666)) < 0) die(path);
    }
    double start = now();
    for (int i = 0; i < logs * seconds; i++) {
        double early = start + (double)i / logs - now();
        if (early > 0) rest(early);
        number(m.text, i / logs);
        m.text[size] = '\n';
        if (write(fds[i % logs], m.text, size + 1) != size + 1) die(prefix);
    }
    double early = start + seconds - now();
    if (early > 0) rest(early);
}

int main(int argc, char **argv) {
    if (argc < 6 || (size = atoi(argv[5])) < 16 || size >= LONGEST + (argv[1][0] != 't')) {
        fprintf(stderr, "usage: load feed|drain queue|mqueue|socket|log|spool PLACE COUNT SIZE; load tick PREFIX LOGS SECONDS SIZE\n");
        return 2;
    }
    int feeds = argv[1][0] == 'f', drains = argv[1][0] == 'd', watch = -1, end = -1;
    const char *kind = argv[2];
    place = argv[3];
    count = atoi(argv[4]);
    memset(m.text, 'a', size);
    if (drains && !strcmp(kind, "spool") &&
        ((watch = inotify_init()) < 0 || inotify_add_watch(watch, place, IN_MOVED_TO | IN_CLOSE_WRITE) < 0)) die(place);
    if (!strcmp(kind, "socket")) end = datagrams(feeds ? connect : bind);
    puts("ready");
    fflush(stdout);
    double begun = now();
    if (argv[1][0] == 't') tick(argv[2], atoi(argv[3]), count);
    else if (!strcmp(kind, "queue")) feeds ? feed_queue() : drain_queue();
    else if (!strcmp(kind, "mqueue")) feeds ? feed_mqueue() : drain_mqueue();
    else if (!strcmp(kind, "socket")) feeds ? feed_socket(end) : drain_socket(end);
    else if (!strcmp(kind, "log")) feeds ? feed_log() : drain_log();
    else feeds ? feed_spool() : drain_spool(watch);
    printf("%.9f %.9f\n", begun, now());
    return 0;
}
