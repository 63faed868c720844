/* Tries to get out, one attempt after the other, and reports: "name: through" or "name: ERRNO".
 *
 * usage: escapes PARENT LEDGER TCP UDP ABSTRACT SOCKET PATH [attempt...]; without names, all that do not end the process.
 * PARENT is the pid of the process that started it, LEDGER a file of its own, PATH the address at which the launcher had
 * the path of its execveat (0: unknown), the others where it listens.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef MAP_GROWSDOWN
#define MAP_GROWSDOWN 0x100
#endif
extern char **environ;
static int parent, tcp, udp;
static unsigned long path_at;
static const char *ledger, *abstract, *sock_path;
static char beside[4096], linked[4096], via[64];

/* 0: it worked, -1: errno says why not. */
static int opened(const char *path, int flags) { return open(path, flags | O_CLOEXEC, 0600) < 0 ? -1 : 0; }
static int dialled(int family, int type, int protocol, const void *address, socklen_t size) {
    int fd = socket(family, type, protocol);
    if (fd < 0) return -1;
    return connect(fd, address, size) < 0 || send(fd, "x", 1, MSG_NOSIGNAL) < 0 ? -1 : 0;
}
static int inet(int type, int protocol, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    return dialled(AF_INET, type, protocol, &to, sizeof to);
}
static int local(const char *path, int is_abstract) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path + is_abstract, path, sizeof to.sun_path - 2);
    return dialled(AF_UNIX, SOCK_STREAM, 0, &to, offsetof(struct sockaddr_un, sun_path) + is_abstract + strlen(path));
}
static int made(int family, int type, int protocol) { return socket(family, type, protocol) < 0 ? -1 : 0; }
static const char *ledger_through_path_fd(void) {
    int fd = open(ledger, O_PATH | O_CLOEXEC);
    snprintf(via, sizeof via, "/proc/self/fd/%d", fd);
    return via;
}
static int owned(int command, void *argument, int signal_first) {
    int ends[2];
    if (pipe(ends) < 0) return -1;
    if (signal_first && fcntl(ends[0], F_SETSIG, SIGURG) < 0) return -1;
    return fcntl(ends[0], command, argument) < 0 ? -1 : 0;
}
static int ended(pid_t pid) { /* of a child that was made although it must not be */
    if (pid == 0) _exit(0);
    if (pid > 0) waitpid(pid, NULL, 0);
    return pid < 0 ? -1 : 0;
}
/* In a process of its own where that is allowed, or what comes after it would never be tried. */
static int replaced(int fd, const char *path, int flags) {
    int ends[2], why = 0;
    if (pipe2(ends, O_CLOEXEC) < 0) return -1;
    pid_t pid = fork();
    if (pid <= 0) {
        if (pid == 0) dup2(open("/dev/null", O_WRONLY), 1);
        execveat(fd, path, (char *[]){"sh", "-c", ":", NULL}, environ, flags);
        why = errno;
        if (pid == 0) _exit(write(ends[1], &why, sizeof why) < 0);
    }
    close(ends[1]);
    if (pid > 0 && read(ends[0], &why, sizeof why) >= 0) waitpid(pid, NULL, 0);
    close(ends[0]);
    return (errno = why) ? -1 : 0;
}
static int executed(const char *path) { return replaced(AT_FDCWD, path, 0); }
static int foreign_descriptors(void) {
    for (int fd = 3; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0) return 0;
    errno = EBADF;
    return -1;
}
static int passed_descriptor(void) {
    int ends[2];
    char room[CMSG_SPACE(sizeof(int))] = {0}, byte = 'x';
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0) return -1;
    return sendmsg(ends[0], &message, 0) < 0 ? -1 : 0;
}
static int mapped(int flags, int fd) {
    return mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, flags, fd, 0) == MAP_FAILED ? -1 : 0;
}
static sigjmp_buf no_more;
static void full(int number) { (void)number; siglongjmp(no_more, 1); }
static int mapped_zero(void) { /* shared, its pages are counted nowhere; where it is a file they are the file system's */
    size_t size = 64 << 20;
    int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    volatile char *at = fd < 0 ? MAP_FAILED : mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return -1;
    signal(SIGBUS, full);
    if (sigsetjmp(no_more, 1)) { errno = ENOSPC; return -1; }
    for (size_t place = 0; place < size; place += 4096) (void)at[place];
    return 0;
}
static int executed_memory(void) {
    int fd = memfd_create("x", 0);
    if (fd < 0) return -1;
    return write(fd, "#!/bin/sh\n", 10) < 0 ? -1 : replaced(fd, "", AT_EMPTY_PATH);
}
static int executed_again(void) { /* the one execveat that the stub needed, with the numbers it may have used */
    char *argv[] = {"sh", NULL};
    for (int fd = 0; fd < 4200; fd++)
        if (execveat(fd, "/nowhere", argv, environ, AT_EMPTY_PATH) < 0 && errno == ENOENT) return 0;
    return -1;
}
static int executed_by_path(void) { /* with its address too: of an absolute path the descriptor does not count */
    char *argv[] = {"sh", NULL};
    char *page = mmap((void *)(path_at & ~0xfffful), 1 << 17, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | (path_at ? MAP_FIXED : 0), -1, 0);
    if (page == MAP_FAILED) return -1;
    char *path = strcpy(page + (path_at & 0xffff), "/nowhere");
    for (int fd = 0; fd < 4200; fd++)
        if (execveat(fd, path, argv, environ, AT_EMPTY_PATH) < 0 && errno == ENOENT) return 0;
    return -1;
}
static int thread(void *ignored) { (void)ignored; syscall(SYS_exit, 0); return 0; }
static int threaded(void) {
    static char stack[65536] __attribute__((aligned(16)));
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    return clone(thread, stack + sizeof stack, flags, NULL) < 0 ? -1 : 0;
}
static int cloned3(void) {
    unsigned long long arguments[11] = {0};
    arguments[4] = SIGCHLD;
    return ended(syscall(SYS_clone3, arguments, sizeof arguments));
}
static int raised_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return -1;
    limit.rlim_cur = limit.rlim_max = limit.rlim_max + 1;
    return setrlimit(RLIMIT_NOFILE, &limit);
}
static int limited_parent(void) {
    struct rlimit limit = {1 << 20, 1 << 20};
    return prlimit(parent, RLIMIT_CORE, &limit, NULL);
}
static int pinned_parent(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) < 0) return -1;
    return sched_setaffinity(parent, sizeof set, &set);
}
static int read_parent(void) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)&foreign_descriptors, 1};
    return process_vm_readv(parent, &here, 1, &there, 1, 0) < 0 && errno != EFAULT ? -1 : 0;
}
static int handled_path(void) {
    struct { struct file_handle head; char rest[128]; } handle = {.head = {.handle_bytes = 128}};
    int mount;
    return name_to_handle_at(AT_FDCWD, "/", &handle.head, &mount, 0);
}
static int raised_capabilities(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{~0u, ~0u, ~0u}, {~0u, ~0u, ~0u}};
    return syscall(SYS_capset, &head, data);
}
static int user_namespace_mount(void) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0) return -1;
    return mount("x", "/tmp", "tmpfs", 0, "");
}
static int watched_metadata(void) {
    struct stat found;
    return stat(ledger, &found);
}
static int linked_out(void) { /* a link of one's own that points outside, then through it */
    unlink("/scratch/link");
    if (symlink(ledger, "/scratch/link") < 0) return -1;
    return opened("/scratch/link", O_RDONLY);
}
static int executed_scratch(void) {
    int fd = open("/scratch/program", O_WRONLY | O_CREAT | O_TRUNC, 0700);
    if (fd < 0 || write(fd, "#!/bin/sh\n", 10) < 0 || close(fd) < 0) return -1;
    return executed("/scratch/program");
}
static int signalled_by_pidfd(void) {
    int fd = syscall(SYS_pidfd_open, parent, 0);
    return fd < 0 ? -1 : syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0);
}
static int queued(void) {
    siginfo_t info = {.si_code = SI_QUEUE, .si_pid = getpid(), .si_uid = getuid()};
    return syscall(SYS_rt_sigqueueinfo, parent, 0, &info);
}
static int perf(void) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE, .size = sizeof attributes, .exclude_kernel = 1};
    return syscall(SYS_perf_event_open, &attributes, 0, -1, -1, 0);
}
static int environment(void) { /* only what it was given: one variable */
    int count = 0;
    while (environ[count]) count++;
    errno = ENOENT;
    return count > 1 || getenv("LD_PRELOAD") ? 0 : -1;
}
static int killed_foreign(int kind) { /* ends the process where it is forbidden */
#ifdef __x86_64__
    long result = 0;
    if (kind) return syscall(0x40000000 | SYS_getpid) < 0 ? -1 : 0;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    return result < 0 ? (errno = -result, -1) : 0;
#else
    (void)kind;
    return raise(SIGSYS);
#endif
}

#define PIPE_OWNER (&(struct f_owner_ex){F_OWNER_PID, parent})
#define ATTEMPTS(X) \
    X(inherited_descriptors, foreign_descriptors()) \
    X(read_link, (int)readlink(linked, via, sizeof via)) X(open_path, opened(ledger, O_PATH | O_NOFOLLOW)) \
    X(exists, access(ledger, F_OK)) X(enter_directory, chdir("/proc")) X(stat_fs, statfs(ledger, &(struct statfs){0})) \
    X(group_of_parent, getpgid(parent)) X(session_of_parent, getsid(parent)) \
    X(affinity_of_parent, ({ cpu_set_t set; sched_getaffinity(parent, sizeof set, &set); })) \
    X(scheduler_of_parent, sched_getscheduler(parent)) X(scheduling_of_parent, sched_getparam(parent, &(struct sched_param){0})) \
    X(priority_of_parent, (int)syscall(SYS_getpriority, PRIO_PROCESS, parent)) \
    X(capabilities_of_parent, (int)syscall(SYS_capget, &(struct __user_cap_header_struct){_LINUX_CAPABILITY_VERSION_3, parent}, \
        (struct __user_cap_data_struct[2]){{0}})) \
    X(time_of_parent, (int)syscall(SYS_clock_gettime, ~parent << 3 | 2, &(struct timespec){0})) \
    X(lock_shared, flock(open("/usr/bin/env", O_RDONLY), LOCK_SH | LOCK_NB)) \
    X(see_locks, fcntl(open("/usr/bin/env", O_RDONLY), F_GETLK, &(struct flock){.l_type = F_WRLCK})) \
    X(read_passwd, opened("/etc/passwd", O_RDONLY)) X(read_shadow, opened("/etc/shadow", O_RDONLY)) \
    X(read_ledger, opened(ledger, O_RDONLY)) X(write_ledger, opened(ledger, O_WRONLY)) \
    X(create_beside_ledger, opened(beside, O_WRONLY | O_CREAT)) X(read_sys, opened("/sys/kernel", O_RDONLY)) \
    X(read_proc, opened("/proc/1/status", O_RDONLY)) X(read_kmsg, opened("/dev/kmsg", O_RDONLY)) \
    X(read_parent_memory, ({ snprintf(via, 64, "/proc/%d/mem", parent); opened(via, O_RDWR); })) \
    X(stat_ledger, watched_metadata()) X(write_own_program, opened("/proc/self/exe", O_RDWR)) \
    X(write_own_artifact, opened("/artifact", O_RDWR)) X(write_system, opened("/usr/bin/sh", O_WRONLY)) \
    X(write_cgroup, opened("/sys/fs/cgroup/unified/cgroup.procs", O_WRONLY)) X(chmod_ledger, chmod(ledger, 0600)) \
    X(chmod_ledger_by_path_fd, chmod(ledger_through_path_fd(), 0600)) X(truncate_ledger, truncate(ledger, 0)) \
    X(chmodat2_ledger, syscall(452, AT_FDCWD, ledger, 0600, 0)) X(touch_ledger, utimensat(AT_FDCWD, ledger, NULL, 0)) \
    X(chown_ledger, chown(ledger, geteuid(), getegid())) X(xattr_ledger, setxattr(ledger, "user.x", "x", 1, 0)) \
    X(xattr_ledger_by_path_fd, setxattr(ledger_through_path_fd(), "user.x", "x", 1, 0)) \
    X(hardlink_ledger, link(ledger, beside)) X(rename_ledger, rename(ledger, ledger)) X(mkdir_beside, mkdir(beside, 0700)) \
    X(mkfifo_beside, mkfifo(beside, 0600)) X(unlink_beside, unlink(beside)) X(symlink_out, linked_out()) \
    X(tcp, inet(SOCK_STREAM, 0, tcp)) X(udp, inet(SOCK_DGRAM, 0, udp)) X(dns, inet(SOCK_DGRAM, 0, 53)) \
    X(mptcp, inet(SOCK_STREAM, 262, tcp)) X(raw, made(AF_INET, SOCK_RAW, IPPROTO_ICMP)) X(vsock, made(40, SOCK_STREAM, 0)) \
    X(netlink, made(AF_NETLINK, SOCK_RAW, 0)) X(packet, made(AF_PACKET, SOCK_RAW, 0)) X(alg, made(38, SOCK_SEQPACKET, 0)) \
    X(unix_abstract, local(abstract, 1)) X(unix_path, local(sock_path, 0)) X(unix_dgram, made(AF_UNIX, SOCK_DGRAM, 0)) \
    X(socketpair_dgram, socketpair(AF_UNIX, SOCK_DGRAM, 0, (int[2]){0})) X(pass_descriptor, passed_descriptor()) \
    X(environment, environment()) \
    X(kill_parent, kill(parent, 0)) X(kill_everyone, kill(-1, 0)) X(tgkill_parent, syscall(SYS_tgkill, parent, parent, 0)) \
    X(tkill_parent, syscall(SYS_tkill, parent, 0)) X(queue_to_parent, queued()) X(pidfd_parent, signalled_by_pidfd()) \
    X(setown_parent, owned(F_SETOWN, (void *)(long)parent, 0)) X(setown_ex_parent, owned(F_SETOWN_EX, PIPE_OWNER, 1)) \
    X(trace_parent, ptrace(PTRACE_SEIZE, parent, 0, 0)) X(read_parent_by_vm, read_parent()) X(limit_parent, limited_parent()) \
    X(pin_parent, pinned_parent()) X(nice_parent, setpriority(PRIO_PROCESS, parent, getpriority(PRIO_PROCESS, parent) + 1)) \
    X(ioprio_parent, syscall(SYS_ioprio_set, 1, parent, (2 << 13) | 4)) X(kcmp_parent, syscall(SYS_kcmp, getpid(), parent, 1, 0, 0)) \
    X(fork, ended(syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0))) X(clone3, cloned3()) X(thread, threaded()) \
    X(session, setsid() < 0 && errno == EPERM ? -1 : 0) X(exec_shell, executed("/bin/sh")) \
    X(exec_setuid, executed("/usr/bin/su")) X(exec_memory, executed_memory()) X(exec_again, executed_again()) \
    X(exec_by_path, executed_by_path()) \
    X(exec_scratch, executed_scratch()) X(user_namespace, user_namespace_mount()) X(new_net, unshare(CLONE_NEWNET)) \
    X(mount, mount("x", "/tmp", "tmpfs", 0, "")) X(remount, mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND, NULL)) \
    X(unmount, umount2("/usr/bin", MNT_DETACH)) X(chroot, chroot("/usr")) X(enter_namespace, setns(0, 0)) \
    X(become_root, setuid(0)) X(raise_capabilities, raised_capabilities()) X(raise_limit, raised_limit()) \
    X(outlive_parent, prctl(PR_SET_PDEATHSIG, 0)) X(personality, syscall(SYS_personality, 0x0040000)) \
    X(io_uring, syscall(SYS_io_uring_setup, 1, (char[256]){0})) X(bpf, syscall(SYS_bpf, 5, (char[128]){0}, 128)) \
    X(add_key, syscall(SYS_add_key, "user", "x", "x", 1, -3)) X(keyctl, syscall(SYS_keyctl, 0, -3, 1)) X(perf_event, perf()) \
    X(userfault, syscall(SYS_userfaultfd, 1)) X(handle, handled_path()) X(fanotify, syscall(SYS_fanotify_init, 0, 0)) \
    X(seccomp, syscall(SYS_seccomp, 2, 0, NULL)) X(hostname, sethostname("x", 1)) X(set_time, syscall(SYS_clock_settime, 0, NULL)) \
    X(shm, shmget(IPC_PRIVATE, 4096, 0600)) X(msg, msgget(IPC_PRIVATE, 0600)) X(sem, semget(IPC_PRIVATE, 1, 0600)) \
    X(mqueue, (int)mq_open("/latticed-escape", O_RDWR | O_CREAT, 0600, NULL)) \
    X(shared_file_memory, opened("/dev/shm/latticed-escape", O_RDWR | O_CREAT)) X(type_ahead, ioctl(0, TIOCSTI, "x")) \
    X(shared_memory, mapped(MAP_SHARED | MAP_ANONYMOUS, -1)) X(zero_memory, mapped_zero()) \
    X(stack_memory, mapped(MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN, -1)) X(memfd, memfd_create("x", 0)) \
    X(pipe_memory, ({ int e[2]; pipe(e) < 0 ? -1 : fcntl(e[0], F_SETPIPE_SZ, 1 << 20); })) \
    X(gift_memory, ({ int e[2]; pipe(e) < 0 ? -1 : (int)vmsplice(e[1], &(struct iovec){via, 1}, 1, 0); }))

#define FUNCTION(name, expression) static int try_##name(void) { return expression; }
ATTEMPTS(FUNCTION)
static int try_int80(void) { return killed_foreign(0); }
static int try_x32(void) { return killed_foreign(1); }

#define ROW(name, expression) {#name, try_##name},
static const struct { const char *name; int (*attempt)(void); } attempts[] = {
    ATTEMPTS(ROW){"int80", try_int80}, {"x32", try_x32}};
enum { COUNT = sizeof attempts / sizeof *attempts, LETHAL = 2 };

static void report(int index) {
    errno = 0;
    if (attempts[index].attempt() >= 0) printf("%s: through\n", attempts[index].name);
    else printf("%s: %s\n", attempts[index].name, strerrorname_np(errno));
    fflush(stdout);
}

int main(int argc, char **argv) {
    if (argc < 8) return 2;
    parent = atoi(argv[1]), ledger = argv[2], tcp = atoi(argv[3]), udp = atoi(argv[4]), abstract = argv[5], sock_path = argv[6];
    path_at = strtoul(argv[7], NULL, 0);
    snprintf(beside, sizeof beside, "%s.beside", ledger);
    snprintf(linked, sizeof linked, "%s.link", ledger);
    for (int index = 0; argc == 8 && index < COUNT - LETHAL; index++) report(index);
    for (int wanted = 8; wanted < argc; wanted++)
        for (int index = 0; index < COUNT; index++)
            if (!strcmp(argv[wanted], attempts[index].name)) report(index);
    return 0;
}
