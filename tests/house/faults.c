/* Preloaded into a daemon under test (LD_PRELOAD): chosen calls on chosen paths fail with a chosen errno, and the wall
 * clock is shifted, as long as a shared page says so. tests/house/faults.py compiles this, and writes that page.
 *
 * Only calls that go through the dynamic linker are seen: those of CPython and of the SQLite inside apsw are.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* Keep in step with faults.py. */
enum { OPEN_WRITE = 1, OPEN_READ = 2, WRITE = 4, SYNC = 8, RENAME = 16, MKDIR = 32, TRUNCATE = 64, SOCKET = 128,
       ACCEPT = 256, BIND = 512, UNLINK = 1024 };

struct page {
    volatile int32_t error;    /* the errno, 0: nothing fails */
    volatile uint32_t calls;   /* which calls fail */
    volatile int32_t halves;   /* a write takes half of its bytes first, the next one fails */
    volatile uint32_t clock_reads;
    volatile uint64_t hits;    /* how often a call was made to fail */
    volatile int64_t offset_s; /* what is added to CLOCK_REALTIME */
    volatile uint64_t halt_at; /* instead of failing, writes are counted as hits, and at this one comes the signal */
    volatile int32_t signal;
    char prefix[1024];         /* of absolute paths; calls without a path (socket, accept) need none */
};

static struct page *page;
static int halved;

/* The functions of libc behind those of this file. Looked up once, at the start: dlsym(3) takes a lock, so it cannot be
 * called in write(2), which Python's signal handler calls, perhaps while the thread that it interrupts takes that lock.
 */
#define EACH(DO)                                                                                                       \
    DO(open) DO(open64) DO(openat) DO(openat64) DO(write) DO(pwrite) DO(pwrite64) DO(writev) DO(fsync) DO(fdatasync)   \
    DO(ftruncate) DO(ftruncate64) DO(posix_fallocate) DO(posix_fallocate64) DO(rename) DO(renameat) DO(mkdir)          \
    DO(mkdirat) DO(unlink) DO(unlinkat) DO(socket) DO(accept) DO(accept4) DO(bind) DO(clock_gettime) DO(gettimeofday)  \
    DO(time)
#define DECLARE(name) static __typeof__(&name) real_##name;
#define FOUND(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define LOOK_UP(name) real_##name = FOUND(name);
EACH(DECLARE)
/* Constructors of other libraries may call before `attach` has run. */
#define REAL(name) (real_##name ? real_##name : FOUND(name))

__attribute__((constructor)) static void attach(void) {
    EACH(LOOK_UP)
    const char *path = getenv("LATTICED_TEST_FAULTS");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(NULL, sizeof(struct page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) page = at;
}

static int wanted(uint32_t call) { return page && page->error && (page->calls & call); }

static int fail(void) {
    __atomic_add_fetch(&page->hits, 1, __ATOMIC_SEQ_CST);
    errno = page->error;
    return -1;
}

static int matches(const char *path) { return strncmp(path, page->prefix, strlen(page->prefix)) == 0; }

static int fd_matches(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return matches(path);
}

static int at_matches(int directory, const char *path) {
    char link[64], whole[8192];
    if (path[0] == '/') return matches(path);
    if (directory == AT_FDCWD) return 0; /* the daemon uses no relative paths */
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t size = readlink(link, whole, 4096);
    if (size < 0) return 0;
    snprintf(whole + size, sizeof whole - (size_t)size, "/%s", path);
    return matches(whole);
}

static uint32_t kind(int flags) { return (flags & (O_WRONLY | O_RDWR | O_CREAT)) ? OPEN_WRITE : OPEN_READ; }

#define OPEN(name)                                                                    \
    int name(const char *path, int flags, ...) {                                      \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest); \
        if (wanted(kind(flags)) && at_matches(AT_FDCWD, path)) return fail();         \
        return REAL(name)(path, flags, mode);                                         \
    }
#define OPENAT(name)                                                                  \
    int name(int at, const char *path, int flags, ...) {                              \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, int); va_end(rest); \
        if (wanted(kind(flags)) && at_matches(at, path)) return fail();               \
        return REAL(name)(at, path, flags, mode);                                     \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

/* How much of a write goes through: -1 for none of it. */
static ssize_t granted(int fd, size_t size) {
    if (!wanted(WRITE) || !fd_matches(fd)) return (ssize_t)size;
    if (page->halt_at) {
        if (__atomic_add_fetch(&page->hits, 1, __ATOMIC_SEQ_CST) == page->halt_at) kill(getpid(), page->signal);
        return (ssize_t)size;
    }
    if (page->halves && size > 1 && (halved = !halved)) return (ssize_t)(size / 2);
    return fail();
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t some = granted(fd, size);
    return some < 0 ? some : REAL(write)(fd, data, (size_t)some);
}
#define PWRITE(name, offset_t)                                                        \
    ssize_t name(int fd, const void *data, size_t size, offset_t at) {                \
        ssize_t some = granted(fd, size);                                             \
        return some < 0 ? some : REAL(name)(fd, data, (size_t)some, at);              \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (wanted(WRITE) && fd_matches(fd)) return fail();
    return REAL(writev)(fd, parts, count);
}
#define ON_FD(name, bit)                                                              \
    int name(int fd) { return wanted(bit) && fd_matches(fd) ? fail() : REAL(name)(fd); }
ON_FD(fsync, SYNC)
ON_FD(fdatasync, SYNC)
#define TRUNCATING(name, offset_t)                                                    \
    int name(int fd, offset_t size) { return wanted(TRUNCATE) && fd_matches(fd) ? fail() : REAL(name)(fd, size); }
TRUNCATING(ftruncate, off_t)
TRUNCATING(ftruncate64, off64_t)
#define FALLOCATING(name, offset_t)                                                   \
    int name(int fd, offset_t at, offset_t size) {                                    \
        if (wanted(TRUNCATE) && fd_matches(fd)) { fail(); return errno; }             \
        return REAL(name)(fd, at, size);                                              \
    }
FALLOCATING(posix_fallocate, off_t)
FALLOCATING(posix_fallocate64, off64_t)

int rename(const char *from, const char *to) {
    if (wanted(RENAME) && (at_matches(AT_FDCWD, from) || at_matches(AT_FDCWD, to))) return fail();
    return REAL(rename)(from, to);
}
int renameat(int from_at, const char *from, int to_at, const char *to) {
    if (wanted(RENAME) && (at_matches(from_at, from) || at_matches(to_at, to))) return fail();
    return REAL(renameat)(from_at, from, to_at, to);
}
int mkdir(const char *path, mode_t mode) {
    return wanted(MKDIR) && at_matches(AT_FDCWD, path) ? fail() : REAL(mkdir)(path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    return wanted(MKDIR) && at_matches(at, path) ? fail() : REAL(mkdirat)(at, path, mode);
}
int unlink(const char *path) {
    return wanted(UNLINK) && at_matches(AT_FDCWD, path) ? fail() : REAL(unlink)(path);
}
int unlinkat(int at, const char *path, int flags) {
    return wanted(UNLINK) && at_matches(at, path) ? fail() : REAL(unlinkat)(at, path, flags);
}

int socket(int family, int type, int protocol) {
    return wanted(SOCKET) ? fail() : REAL(socket)(family, type, protocol);
}
int accept(int fd, struct sockaddr *restrict address, socklen_t *restrict size) {
    return wanted(ACCEPT) ? fail() : REAL(accept)(fd, address, size);
}
int accept4(int fd, struct sockaddr *restrict address, socklen_t *restrict size, int flags) {
    return wanted(ACCEPT) ? fail() : REAL(accept4)(fd, address, size, flags);
}
int bind(int fd, const struct sockaddr *address, socklen_t size) {
    const struct sockaddr_un *local = (const struct sockaddr_un *)address;
    if (wanted(BIND) && address->sa_family == AF_UNIX && size > offsetof(struct sockaddr_un, sun_path) &&
        matches(local->sun_path))
        return fail();
    return REAL(bind)(fd, address, size);
}

static int64_t shift(void) {
    __atomic_add_fetch(&page->clock_reads, 1, __ATOMIC_RELAXED);
    return page->offset_s;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = REAL(clock_gettime)(clock, now);
    if (page && result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
    return result;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int result = REAL(gettimeofday)(now, zone);
    if (page && result == 0) now->tv_sec += shift();
    return result;
}
time_t time(time_t *at) {
    time_t now = REAL(time)(NULL) + (page ? (time_t)shift() : 0);
    if (at) *at = now;
    return now;
}
