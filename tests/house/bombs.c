/* Takes as much of one thing as it can get, and says how much that was and what stopped it: "KIND COUNT ERRNO".
 *
 * usage: bombs fork|threads|memory|shared|tables|descriptors|disk|inodes|output. Every loop has an end of its own, so
 * that a missing limit fails a test and not the machine.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { TASKS = 3000, MEBIBYTES = 2048, GIBIBYTES = 512, FILES = 20000 };

static void *sleeper(void *nothing) { pause(); return nothing; }

static int forks(void) {
    for (int count = 0; count < TASKS; count++) {
        pid_t pid = fork();
        if (pid == 0) { pause(); _exit(0); }
        if (pid < 0) return count;
    }
    return TASKS;
}
static int threads(void) {
    pthread_attr_t small;
    pthread_t thread;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 16384);
    for (int count = 0; count < TASKS; count++)
        if ((errno = pthread_create(&thread, &small, sleeper, NULL))) return count;
    return TASKS;
}
static int memory(int flags) {
    for (int count = 0; count < MEBIBYTES; count++) {
        char *room = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) return count;
        memset(room, 1, 1 << 20);
    }
    return MEBIBYTES;
}
static int tables(void) { /* what is only read takes no memory but a page table for each 2 MiB */
    const size_t one = 1ul << 30;
    for (int count = 0; count < GIBIBYTES; count++) {
        volatile char *room = mmap(NULL, one, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (room == MAP_FAILED) return count;
        for (size_t place = 0; place < one; place += 2 << 20) (void)room[place];
    }
    return GIBIBYTES;
}
static int descriptors(void) {
    for (int count = 0; count < FILES; count++)
        if (dup(0) < 0) return count;
    return FILES;
}
static int disk(void) {
    static char block[1 << 20];
    for (int count = 0; count < MEBIBYTES; count++) {
        char name[64];
        snprintf(name, sizeof name, "/scratch/%d", count);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        if (fd < 0 || write(fd, block, sizeof block) != sizeof block) return count;
        close(fd);
    }
    return MEBIBYTES;
}
static int inodes(void) {
    for (int count = 0; count < FILES; count++) {
        char name[64];
        snprintf(name, sizeof name, "/scratch/%d", count);
        int fd = open(name, O_WRONLY | O_CREAT, 0600);
        if (fd < 0) return count;
        close(fd);
    }
    return FILES;
}
static int output(void) { /* never ends by itself: whoever reads must be the one to stop */
    static char line[65536];
    memset(line, 'x', sizeof line);
    for (;;)
        if (write(1, line, sizeof line) < 0) return 0;
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    int count = !strcmp(kind, "fork")          ? forks()
                : !strcmp(kind, "threads")     ? threads()
                : !strcmp(kind, "memory")      ? memory(MAP_PRIVATE)
                : !strcmp(kind, "shared")      ? memory(MAP_SHARED)
                : !strcmp(kind, "tables")      ? tables()
                : !strcmp(kind, "descriptors") ? descriptors()
                : !strcmp(kind, "disk")        ? disk()
                : !strcmp(kind, "inodes")      ? inodes()
                : !strcmp(kind, "output")      ? output()
                                               : -1;
    const char *why = strerrorname_np(errno);
    dprintf(1, "%s %d %s\n", kind, count, count < 0 ? "?" : why ? why : "?");
    return 0;
}
