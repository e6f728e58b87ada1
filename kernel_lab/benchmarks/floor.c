/* The floor: what the kernel itself costs.  One container, made as directly as C can make it:
 *
 *   clone3 into new user, uts, mnt, ipc, pid and net namespaces, with a pidfd; uid and gid 0 mapped to the caller's;
 *   host name; private propagation; bind the root, pivot_root, detach the old one; /proc; loopback up;
 *   with --veth also one end of a veth pair in a bridge, the other inside with an address and a default route;
 *   with --overlay the root is the lower layer of an overlay, whose own directories are made in FOLDER and removed;
 *   with --limit it begins in a control group made in PARENT, where TEXT has been written to FILE, if that has a name;
 *   dead when its creator is, out of the reach of the terminal's keys, without the creator's descriptors;
 *   execve; both outputs read to their end through pipes; waited for.
 *
 * floor [--hostname NAME] [--veth BRIDGE ADDRESS/BITS GATEWAY] [--overlay FOLDER] [--limit PARENT FILE TEXT]...
 *       [--server] ROOT COMMAND [ARGUMENT...]
 *
 * Once, it answers as the command does (its output, its exit status).  With --server it makes one container for each
 * line of its standard input, and prints "NANOSECONDS STATUS BYTES_OF_OUTPUT BYTES_OF_ERRORS\n" and those bytes.
 */
#define _GNU_SOURCE
#include "floor.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STACK = 64 * 1024, KEPT = 64 * 1024, FIRST_OTHER = 3, CLOEXEC_RANGE = 4 };

struct wishes {
    const char *hostname, *root, *bridge, *address, *gateway, *layers;
    struct limit limits[LIMITS];
    int limited; /* how many limits there are */
    char **command;
    int server, nothing; /* nothing: /dev/null, the command's input */
    char uid_map[32], gid_map[32];
};

struct container {
    const struct wishes *wishes;
    int out[2], err[2], go[2]; /* go: the child waits for its end of the veth pair */
    int pid, pidfd;
    struct overlay overlay;
    struct groups groups;
};

void die(const char *what)
{
    char line[256];
    int size = snprintf(line, sizeof line, "floor: %s: %s\n", what, strerror(errno));
    write(2, line, size);
    _exit(125);
}

void need(long answer, const char *what)
{
    if (answer < 0)
        die(what);
}

/* ---- the child ---- */

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    need(fd, path);
    need(write(fd, text, strlen(text)), path);
    close(fd);
}

/* A process may write its own map when it maps one id, its creator's; gid_map only once setgroups is denied. */
static void become_root(const struct wishes *w)
{
    write_file("/proc/self/setgroups", "deny");
    write_file("/proc/self/uid_map", w->uid_map);
    write_file("/proc/self/gid_map", w->gid_map);
}

/* In a user namespace of its own a process may mount /proc only while it still sees another: before the old root goes. */
static void enter_root(const struct container *c)
{
    const char *root = c->wishes->root;
    need(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "private propagation");
    if (c->wishes->layers)
        root = mount_overlay(&c->overlay);
    else
        need(mount(root, root, NULL, MS_BIND | MS_REC, NULL), "bind root");
    need(chdir(root), "chdir root");
    need(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "proc");
    need(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    need(umount2(".", MNT_DETACH), "detach old root");
    need(chdir("/"), "chdir /");
}

static void network(const struct wishes *w)
{
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP}, eth = {.ifr_name = "eth0"};
    int netlink = open_netlink();
    need(ioctl(netlink, SIOCSIFFLAGS, &lo), "loopback up");
    if (w->bridge) {
        need(ioctl(netlink, SIOCGIFINDEX, &eth), "eth0");
        int index = eth.ifr_ifindex; /* a union: the flags take its place */
        eth.ifr_flags = IFF_UP;
        need(ioctl(netlink, SIOCSIFFLAGS, &eth), "eth0 up");
        set_address(netlink, index, w->address, w->gateway);
    }
    close(netlink);
}

static void leave_creator(void)
{
    need(prctl(PR_SET_PDEATHSIG, SIGKILL), "death signal");
    need(setsid(), "session");
    need(syscall(SYS_close_range, FIRST_OTHER, ~0U, CLOEXEC_RANGE), "close_range");
}

static int child(void *job)
{
    const struct container *c = job;
    const struct wishes *w = c->wishes;
    char go;
    enter_groups(&c->groups);
    need(dup2(w->nothing, 0), "stdin");
    need(dup2(c->out[1], 1), "stdout");
    need(dup2(c->err[1], 2), "stderr");
    become_root(w);
    need(sethostname(w->hostname, strlen(w->hostname)), "sethostname");
    enter_root(c);
    if (w->bridge) {
        close(c->go[1]); /* so that the read ends when the creator does */
        if (read(c->go[0], &go, 1) != 1)
            _exit(125);
    }
    network(w);
    leave_creator();
    execve(w->command[0], w->command, (char *[]){"PATH=/usr/bin:/bin:/usr/sbin:/sbin", NULL});
    die(w->command[0]);
    return 125;
}

/* ---- the creator ---- */

static char stack[STACK] __attribute__((aligned(16)));

/* glibc has no clone3; a child on a stack of its own must not come back through a C function's frame. */
static long spawn(struct clone_args *how, int (*body)(void *), void *job)
{
#if defined(__x86_64__)
    long answer;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "mov %[job], %%rdi\n\t"
                     "call *%[body]\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(answer)
                     : "a"(SYS_clone3), "D"(how), "S"(sizeof *how), [body] "r"(body), [job] "r"(job)
                     : "rcx", "r11", "memory");
#elif defined(__aarch64__)
    register long number __asm__("x8") = SYS_clone3;
    register long answer __asm__("x0") = (long)how;
    register long size __asm__("x1") = sizeof *how;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, xzr\n\t"
                     "mov x0, %[job]\n\t"
                     "blr %[body]\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(answer)
                     : "r"(number), "r"(size), [body] "r"(body), [job] "r"(job)
                     : "memory", "x30");
#else
#error "the floor is written for x86-64 and aarch64"
#endif
    return answer;
}

static void create(struct container *c)
{
    struct clone_args how = {
        .flags = CLONE_VM | CLONE_PIDFD | CLONE_CLEAR_SIGHAND | CLONE_NEWUSER | CLONE_NEWUTS | CLONE_NEWNS |
                 CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET,
        .pidfd = (uintptr_t)&c->pidfd,
        .exit_signal = SIGCHLD,
        .stack = (uintptr_t)stack,
        .stack_size = sizeof stack,
    };
    born_in(&c->groups, &how);
    long pid = spawn(&how, child, c);
    if (pid < 0)
        errno = -pid;
    need(pid < 0 ? -1 : 0, "clone3");
    c->pid = pid;
}

struct output {
    size_t size;
    char bytes[KEPT];
};

/* More than KEPT bytes are read all the same, so that the child never waits, and forgotten. */
static int take(int fd, struct output *o)
{
    static char spare[KEPT];
    size_t room = KEPT - o->size;
    ssize_t got = read(fd, room ? o->bytes + o->size : spare, room ? room : KEPT);
    need(got, "read output");
    o->size += room ? got : 0;
    return got > 0;
}

static void drain(struct container *c, struct output *out, struct output *err)
{
    struct pollfd ends[2] = {{c->out[0], POLLIN, 0}, {c->err[0], POLLIN, 0}};
    struct output *into[2] = {out, err};
    out->size = err->size = 0;
    for (int open = 2; open;) {
        need(poll(ends, 2, -1), "poll");
        for (int i = 0; i < 2; i++)
            if (ends[i].fd >= 0 && ends[i].revents && !take(ends[i].fd, into[i])) {
                ends[i].fd = -1;
                open--;
            }
    }
}

static void connect_veth(struct container *c, const struct wishes *w)
{
    static int netlink = -1;
    static unsigned count;
    char name[IFNAMSIZ];
    if (netlink < 0)
        netlink = open_netlink();
    unsigned bridge = if_nametoindex(w->bridge);
    if (!bridge)
        die(w->bridge);
    snprintf(name, sizeof name, "klabf%x.%x", getpid() & 0xffffff, count++ & 0xff);
    make_veth(netlink, bridge, name, c->pid);
    need(write(c->go[1], "", 1), "go");
}

static int run(const struct wishes *w, struct output *out, struct output *err)
{
    struct container c = {.wishes = w};
    siginfo_t end;
    need(pipe2(c.out, O_CLOEXEC), "pipe");
    need(pipe2(c.err, O_CLOEXEC), "pipe");
    if (w->bridge)
        need(pipe2(c.go, O_CLOEXEC), "pipe");
    if (w->layers)
        make_overlay(&c.overlay, w->layers, w->root);
    make_groups(&c.groups, w->limits, w->limited);
    create(&c);
    close(c.out[1]);
    close(c.err[1]);
    if (w->bridge)
        connect_veth(&c, w);
    drain(&c, out, err);
    need(waitid(P_PIDFD, c.pidfd, &end, WEXITED), "waitid");
    close(c.out[0]);
    close(c.err[0]);
    close(c.pidfd);
    if (w->bridge) {
        close(c.go[0]);
        close(c.go[1]);
    }
    remove_groups(&c.groups);
    if (w->layers)
        remove_overlay(&c.overlay);
    return end.si_code == CLD_EXITED ? end.si_status : 128 + end.si_status;
}

static long long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct output out, err;

static void serve(const struct wishes *w)
{
    char line[16];
    while (fgets(line, sizeof line, stdin)) {
        long long start = now();
        int status = run(w, &out, &err);
        printf("%lld %d %zu %zu\n", now() - start, status, out.size, err.size);
        fwrite(out.bytes, 1, out.size, stdout);
        fwrite(err.bytes, 1, err.size, stdout);
        fflush(stdout);
    }
}

static int once(const struct wishes *w)
{
    int status = run(w, &out, &err);
    need(write(1, out.bytes, out.size), "stdout");
    need(write(2, err.bytes, err.size), "stderr");
    return status;
}

static void usage(void)
{
    fputs("floor [--hostname NAME] [--veth BRIDGE ADDRESS/BITS GATEWAY] [--overlay FOLDER] [--limit PARENT FILE TEXT]...\n"
          "      [--server] ROOT COMMAND [ARGUMENT...]\n",
          stderr);
    exit(2);
}

/* The first word that is no option. */
static char **read_options(char **word, struct wishes *w)
{
    for (; *word && !strncmp(*word, "--", 2); word++)
        if (!strcmp(*word, "--server"))
            w->server = 1;
        else if (!strcmp(*word, "--hostname") && word[1])
            w->hostname = *++word;
        else if (!strcmp(*word, "--veth") && word[1] && word[2] && word[3]) {
            w->bridge = *++word;
            w->address = *++word;
            w->gateway = *++word;
        } else if (!strcmp(*word, "--overlay") && word[1])
            w->layers = *++word;
        else if (!strcmp(*word, "--limit") && word[1] && word[2] && word[3] && w->limited < LIMITS) {
            w->limits[w->limited++] = (struct limit){word[1], word[2], word[3]};
            word += 3;
        } else
            usage();
    return word;
}

int main(int count, char **words)
{
    struct wishes w = {.hostname = "box", .nothing = open("/dev/null", O_RDONLY | O_CLOEXEC)};
    char **rest = read_options(words + 1, &w);
    if (words + count - rest < 2)
        usage();
    need(w.nothing, "/dev/null");
    w.root = rest[0];
    w.command = rest + 1;
    snprintf(w.uid_map, sizeof w.uid_map, "0 %d 1", geteuid());
    snprintf(w.gid_map, sizeof w.gid_map, "0 %d 1", getegid());
    if (w.server)
        serve(&w);
    return w.server ? 0 : once(&w);
}
