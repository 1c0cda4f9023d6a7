/* Opens and closes sockets as fast as it can, on loopback; for benchmarks and tests of the watch.
 *
 *     socket_load listen|bind|udp|fail|connect|hold COUNT [PORT [PROCESSES [RATE]]]
 *
 * listen: socket, bind, listen, close. bind: without listen. udp: a datagram socket. fail: a bind to a port that is
 * held. connect: connections to one listener, accepted and closed. hold: listeners that stay until standard input ends.
 * PORT 0: chosen by the kernel. With PROCESSES, each child makes its part and ends. RATE: so many a second. Prints for
 * each socket "pid port", if VERBOSE is in the environment, and at the end the nanoseconds for one of them: by the
 * clock, and of processor time.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *what) { perror(what); exit(1); }

static struct sockaddr_in on_loopback(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static int bound(int kind, int *port)
{
    struct sockaddr_in address = on_loopback(*port);
    socklen_t length = sizeof address;
    int one = 1, made = socket(AF_INET, kind | SOCK_CLOEXEC, 0);
    if (made < 0) fail("socket");
    if (kind == SOCK_STREAM) setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(made, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (!*port && getsockname(made, (struct sockaddr *)&address, &length)) fail("getsockname");
    *port = ntohs(address.sin_port);
    return made;
}

static long long now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void connect_once(int listener, struct sockaddr_in *address)
{
    struct linger at_once = {1, 0};
    char byte;
    int client = socket(AF_INET, SOCK_STREAM, 0), server;
    if (client < 0 || connect(client, (struct sockaddr *)address, sizeof *address)) fail("connect");
    if ((server = accept(listener, NULL, NULL)) < 0) fail("accept");
    setsockopt(client, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once); /* no TIME_WAIT: ports last */
    close(client);
    read(server, &byte, 1);
    close(server);
}

/* Wait until it is time for the next one, if there is a rate: sockets a second. */
static void keep_pace(long done, long rate, long long began)
{
    long long due = began + (rate ? done * 1000000000LL / rate : 0), left = due - now_ns(CLOCK_MONOTONIC);
    struct timespec pause = {left / 1000000000LL, left % 1000000000LL};
    if (rate && left > 0) nanosleep(&pause, NULL);
}

static void work(const char *mode, long count, int port, int verbose, long rate)
{
    long long began = now_ns(CLOCK_MONOTONIC);
    int kind = strcmp(mode, "udp") ? SOCK_STREAM : SOCK_DGRAM, listener = -1, holder = -1;
    struct sockaddr_in address;
    if (!strcmp(mode, "fail")) holder = bound(SOCK_STREAM, &port);
    if (!strcmp(mode, "connect")) {
        listener = bound(SOCK_STREAM, &port);
        if (listen(listener, 128)) fail("listen");
    }
    address = on_loopback(port);
    for (long i = 0; i < count; i++) {
        int used = port, made;
        keep_pace(i, rate, began);
        if (listener >= 0) {
            connect_once(listener, &address);
            continue;
        }
        if (holder >= 0) {
            if ((made = socket(AF_INET, SOCK_STREAM, 0)) < 0) fail("socket");
            if (!bind(made, (struct sockaddr *)&address, sizeof address)) fail("a bind that must fail");
        } else {
            made = bound(kind, &used);
            if ((!strcmp(mode, "listen") || !strcmp(mode, "hold")) && listen(made, 1)) fail("listen");
        }
        if (strcmp(mode, "hold")) close(made);
        if (verbose) printf("%d %d\n", getpid(), used);
    }
}

static void wait_for_end(void)
{
    char byte;
    printf("held\n");
    fflush(stdout);
    while (read(0, &byte, 1) > 0) ;
}

int main(int argc, char **argv)
{
    if (argc < 3) return fprintf(stderr, "usage: socket_load MODE COUNT [PORT [PROCESSES [RATE]]]\n"), 2;
    long count = atol(argv[2]);
    int port = argc > 3 ? atoi(argv[3]) : 0, processes = argc > 4 ? atoi(argv[4]) : 0, status, failed = 0;
    long rate = argc > 5 ? atol(argv[5]) : 0;
    struct rlimit most = {1048576, 1048576};
    int verbose = getenv("VERBOSE") != NULL;
    long long began = now_ns(CLOCK_MONOTONIC);
    setrlimit(RLIMIT_NOFILE, &most);
    if (!processes) work(argv[1], count, port, verbose, rate);
    if (!strcmp(argv[1], "hold")) wait_for_end();
    for (int i = 0; i < processes; i++) {
        pid_t child = fork();
        if (child < 0) fail("fork");
        if (!child) {
            work(argv[1], count / processes, port, verbose, rate);
            fflush(stdout);
            _exit(0);
        }
        if (waitpid(child, &status, 0) < 0 || status) failed = 1;
    }
    printf("%lld %lld\n", (now_ns(CLOCK_MONOTONIC) - began) / count, now_ns(CLOCK_PROCESS_CPUTIME_ID) / count);
    return failed;
}
