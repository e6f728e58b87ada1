/* Work to be done in a box, as one static program: each kind prints what it has found, a line each.

   Times are the box's own, by CLOCK_MONOTONIC; what a box takes to start is for the one who starts it to see. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CALLS = 480, CHUNK = 1 << 20, PATIENCE = 300 };

static char chunk[CHUNK] __attribute__((aligned(4096))); /* as O_DIRECT wants it, open(2) */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static int fail(const char *what)
{
    printf("refused: %s: %s\n", what, strerror(errno));
    return 1;
}

/* Arithmetic in registers and a walk through four megabytes: no call of the kernel's. */
static void compute(long rounds)
{
    static uint32_t table[1 << 20];
    uint64_t x = 88172645463325252u;
    for (long i = 0; i < rounds; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        table[x & 0xfffff] += (uint32_t)(x >> 32);
    }
    if (table[x & 0xfffff] == 12345)
        printf(" ");
}

static void call(long rounds)
{
    for (long i = 0; i < rounds; i++)
        syscall(SYS_getppid);
}

/* Past the page cache: an overlay may be told to wait for no disk (volatile), and then fsync(2) says nothing. */
static int store(const char *path, long megabytes)
{
    int file = open(path, O_WRONLY | O_CREAT | O_DIRECT, 0600);
    if (file < 0)
        return fail(path);
    for (long i = 0; i < megabytes; i++)
        if (write(file, chunk, CHUNK) != CHUNK)
            return fail(path);
    return close(file);
}

static int send_all(const char *address, int port, long megabytes)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &to.sin_addr);
    int line = socket(AF_INET, SOCK_STREAM, 0);
    if (line < 0 || connect(line, (struct sockaddr *)&to, sizeof to))
        return fail(address);
    for (long left = megabytes * CHUNK; left > 0;) {
        ssize_t sent = send(line, chunk, left < CHUNK ? left : CHUNK, 0);
        if (sent <= 0)
            return fail(address);
        left -= sent;
    }
    shutdown(line, SHUT_WR);
    return read(line, chunk, 1) < 0; /* the other side closes when it has all */
}

/* Makes a call that cannot do any harm, with nothing but -1 for arguments, and says by which error it was refused: 0 for none. */
static int answer(int number)
{
    int *said = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    *said = 0;
    pid_t child = fork();
    if (!child) {
        setsid(); /* for vhangup(2): no terminal to hang up */
        errno = 0;
        long result = syscall(number, -1L, -1L, -1L, -1L, -1L, -1L);
        *said = result == -1 ? errno : 0;
        if (number == SYS_msgget && result != -1)
            msgctl(result, IPC_RMID, NULL); /* -1 is a key, too, and asks for a new queue, which would outlive us (msgget(2)) */
        _exit(0);
    }
    for (int waited = 0; waitpid(child, NULL, WNOHANG) == 0; waited++) {
        if (waited == PATIENCE)
            kill(child, SIGKILL); /* it waits for something: it has been let in */
        usleep(waited < 20 ? 50 : 1000);
    }
    int error = *said;
    munmap(said, 4096);
    return error;
}

/* Which calls are answered at all: neither "no such call" nor "not permitted". */
static int probe(void)
{
    int absent = 0, forbidden = 0;
    for (int number = 0; number < CALLS; number++) {
        int error = answer(number);
        absent += error == ENOSYS;
        forbidden += error == EPERM || error == EACCES;
    }
    printf("answered %d\nforbidden %d\nabsent %d\n", CALLS - absent - forbidden, forbidden, absent);
    return 0;
}

int main(int count, char **words)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    const char *kind = count > 1 ? words[1] : "";
    long amount = count > 2 ? atol(words[count - 1]) : 0;
    if (!strcmp(kind, "first"))
        return puts("first") < 0;
    if (!strcmp(kind, "probe"))
        return probe();
    double begin = seconds();
    int code = 2;
    if (!strcmp(kind, "compute") && count == 3)
        compute(amount), code = 0;
    else if (!strcmp(kind, "call") && count == 3)
        call(amount), code = 0;
    else if (!strcmp(kind, "store") && count == 4)
        code = store(words[2], amount);
    else if (!strcmp(kind, "send") && count == 5)
        code = send_all(words[2], atoi(words[3]), amount);
    if (code == 0)
        printf("seconds %.9f\n", seconds() - begin);
    if (!strcmp(kind, "store") && count == 4)
        unlink(words[2]);
    return code;
}
