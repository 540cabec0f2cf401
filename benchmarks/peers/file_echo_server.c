/* No bridge at all: what merges the two mount namespaces in one directory. Answers what is written to DIR/to_server with the
 * same text in DIR/to_client. usage: file_echo_server DIR */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <unistd.h>
int main(int argc, char **argv) {
    char events[4096], text[4096];
    if (argc < 2 || chdir(argv[1]) < 0) { perror("usage: file_echo_server DIR"); return 2; }
    close(open("to_server", O_CREAT | O_WRONLY, 0666));
    close(open("to_client", O_CREAT | O_WRONLY, 0666));
    int watch = inotify_init1(IN_CLOEXEC);
    if (inotify_add_watch(watch, "to_server", IN_CLOSE_WRITE) < 0) { perror("watch"); return 1; }
    for (;;) {
        if (read(watch, events, sizeof events) <= 0) return 1;
        int in = open("to_server", O_RDONLY);
        ssize_t n = read(in, text, sizeof text);
        close(in);
        if (n <= 0) continue;
        int out = open("to_client", O_WRONLY | O_TRUNC);
        if (write(out, text, n) != n) { perror("write"); return 1; }
        close(out);
    }
}
