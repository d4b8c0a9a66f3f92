/* The smallest HTTP/1.1 answerer: one thread, epoll, one answer per request read whole. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const char answer[] =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: 0123456789abcdef\r\n"
    "x-ratelimit-remaining-requests: 999\r\nx-ratelimit-remaining-tokens: 7999\r\n"
    "content-length: 300\r\n\r\n";

static const char opening[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
static const char event_frame[] =
    "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
    "\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},"
    "\"finish_reason\":null}]}\n\n";
static const char closing[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";

/* 200 events, each in a packet of its own, so that a reader is woken for each. */
static int stream(int fd) {
  char chunk[512];
  int size = sprintf(chunk, "%zx\r\n%s\r\n", strlen(event_frame), event_frame);
  if (write(fd, opening, strlen(opening)) < 0) return -1;
  for (int i = 0; i < 200; i++) {
    usleep(300);
    if (write(fd, chunk, size) < 0) return -1;
  }
  return write(fd, closing, strlen(closing));
}

int main(void) {
  char reply[1024], buffer[65536];
  size_t head = strlen(answer);
  memcpy(reply, answer, head);
  memset(reply + head, 'x', 300);
  int server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof where;
  if (bind(server, (struct sockaddr *)&where, size) || listen(server, 1024)) return 1;
  getsockname(server, (struct sockaddr *)&where, &size);
  printf("%d\n", ntohs(where.sin_port));
  fflush(stdout);
  int poll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = server}, events[256];
  epoll_ctl(poll, EPOLL_CTL_ADD, server, &event);
  for (;;) {
    int count = epoll_wait(poll, events, 256, -1);
    for (int i = 0; i < count; i++) {
      int fd = events[i].data.fd;
      if (fd == server) {
        event.data.fd = accept(server, 0, 0);
        setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(poll, EPOLL_CTL_ADD, event.data.fd, &event);
        continue;
      }
      ssize_t got = read(fd, buffer, sizeof buffer);
      /* Requests of the benchmark are smaller than one segment. */
      int streamed = got > 0 && memmem(buffer, got, "\"stream\":true", 13);
      if (got <= 0 || (streamed ? stream(fd) : write(fd, reply, head + 300)) < 0) close(fd);
    }
  }
}
