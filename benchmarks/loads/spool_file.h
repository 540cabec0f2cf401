/* What one message in a spool costs without any bridge: four calls by who puts it there, four by who takes it. */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
static int put_file(const char *hidden, const char *name, const char *text, int size) {
    int fd = open(hidden, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0 || write(fd, text, size) != size || close(fd) < 0) return -1;
    return rename(hidden, name);
}
static ssize_t take_file(const char *name, char *text, int size) {
    int fd = open(name, O_RDONLY);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, size);
    close(fd);
    return unlink(name) < 0 ? -1 : n;
}
