/* The least a client can cost: sends requests at a rate, reads every answer with its kernel stamp, and keeps nothing.
 *
 * usage: bench_floor PORT RATE COUNT NAP_US < BODY; prints one line of JSON. NAP_US: how long answers may gather before
 * they are read; 0 reads at once. Linux only. One connection an answer at a time, on 127.0.0.1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 1024, READ_BYTES = 65536, HEAD_BYTES = 512, MAX_FDS = 1 << 16 };

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static double cpu_s(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int open_connection(const struct sockaddr_in *address, int epoll) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    if (fd < 0 || fd >= MAX_FDS) fail("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) != 0) fail("connect");
    struct epoll_event event = {EPOLLIN, {.fd = fd}};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
    return fd;
}

int main(int count, char **words) {
    if (count != 5) {
        fprintf(stderr, "usage: bench_floor PORT RATE COUNT NAP_US < BODY\n");
        return 2;
    }
    double rate = atof(words[2]);
    long planned = atol(words[3]), nap_ns = atol(words[4]) * 1000;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    static char request[HEAD_BYTES + (1 << 16)], body[1 << 16], buffer[READ_BYTES];
    static int idle[MAX_FDS];
    size_t length = fread(body, 1, sizeof body, stdin);
    int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (epoll < 0 || timer < 0) fail("epoll_create1, timerfd_create");
    struct epoll_event event = {EPOLLIN, {.fd = timer}}, ready[EVENTS];
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    long sent = 0, ended = 0, reads = 0, waits = 0, stamped = 0, idle_count = 0;
    int64_t bytes = 0, worst_lag = 0, start = now_ns() + 100000000, due = start;
    double cpu_at_start = cpu_s();
    int armed = 0;
    while (ended < planned) {
        int64_t now = now_ns();
        while (sent < planned && due <= now) {
            int fd = idle_count ? idle[--idle_count] : open_connection(&address, epoll);
            int head = snprintf(request, HEAD_BYTES,
                                "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Request-Id: floor-%ld\r\n"
                                "Content-Length: %zu\r\n\r\n", sent, length);
            memcpy(request + head, body, length);
            if (now - due > worst_lag) worst_lag = now - due;
            if (send(fd, request, head + length, 0) != (ssize_t)(head + length)) fail("send");
            sent++;
            due = start + (int64_t)(sent * 1e9 / rate);
            armed = 0;
        }
        if (!armed && sent < planned) {
            struct itimerspec when = {{0, 0}, {due / 1000000000, due % 1000000000}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
            armed = 1;
        }
        if (nap_ns) {
            int64_t wake = now + nap_ns;
            if (sent < planned && due < wake) wake = due;
            struct timespec until = {wake / 1000000000, wake % 1000000000};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        }
        int found = epoll_wait(epoll, ready, EVENTS, -1);
        if (found < 0 && errno != EINTR) fail("epoll_wait");
        waits++;
        for (int i = 0; i < found; i++) {
            int fd = ready[i].data.fd;
            if (fd == timer) {
                uint64_t fired;
                if (read(timer, &fired, sizeof fired) < 0 && errno != EAGAIN) fail("read");
                continue;
            }
            char control[64];
            struct iovec part = {buffer, sizeof buffer};
            struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control,
                                     .msg_controllen = sizeof control};
            ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT);
            if (got <= 0) {
                if (got < 0 && errno == EAGAIN) continue;
                fprintf(stderr, "the server closed a connection\n");
                return 1;
            }
            reads++;
            bytes += got;
            stamped += CMSG_FIRSTHDR(&message) != NULL;
            if (got >= 5 && memcmp(buffer + got - 5, "0\r\n\r\n", 5) == 0) {
                idle[idle_count++] = fd;
                ended++;
            }
        }
    }
    printf("{\"reads\": %ld, \"stamped\": %ld, \"bytes\": %lld, \"waits\": %ld, \"cpu_s\": %.6f, \"wall_s\": %.6f, "
           "\"worst_lag_s\": %.6f}\n", reads, stamped, (long long)bytes, waits, cpu_s() - cpu_at_start,
           (now_ns() - start) * 1e-9, worst_lag * 1e-9);
    return 0;
}
