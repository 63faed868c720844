/* Tries to become another program, by the execveat of its launcher: a process whose thread is executed again is told
 * nothing when the daemon ends. Says "refused", or that program says "another"; then it stays.
 *
 * usage: outlives PATH FD WHO: the address at which the launcher had its path (0: unknown), its descriptor's number, and
 * "leader" or "thread".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __x86_64__
#define LINKER "/lib64/ld-linux-x86-64.so.2"
#else
#define LINKER "/lib/ld-linux-aarch64.so.1"
#endif

static void *execute(void *given) { /* Landlock lets the dynamic linker be executed, which loads any program */
    char **words = given, *none[] = {NULL};
    unsigned long path_at = strtoul(words[1], NULL, 0);
    char *page = mmap((void *)(path_at & ~0xfffful), 1 << 17, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | (path_at ? MAP_FIXED : 0), -1, 0);
    if (page == MAP_FAILED) exit(1);
    char *path = strcpy(page + (path_at & 0xffff), LINKER);
    char *argv[] = {"ld.so", "/bin/sh", "-c", "echo another; while :; do read x || :; done", NULL};
    execveat(atoi(words[2]), path, argv, none, AT_EMPTY_PATH);
    puts("refused");
    fflush(stdout);
    for (;;) pause();
}

int main(int argc, char **argv) {
    pthread_t other;
    if (argc < 4) return 2;
    if (!strcmp(argv[3], "leader")) execute(argv);
    pthread_create(&other, NULL, execute, argv);
    for (;;) pause();
}
