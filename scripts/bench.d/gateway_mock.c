/* A model server that costs nothing: one thread, epoll, whole answers written at once.
   A request that holds "stream":true gets CHUNKS server-sent events, any other one JSON. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENT \
  "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"," \
  "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},\"finish_reason\":null}]}\n\n"
#define LAST \
  "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"," \
  "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
#define JSON \
  "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":" \
  "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello there, how are you " \
  "today? I am fine.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9," \
  "\"completion_tokens\":12,\"total_tokens\":21}}"

static char json[2048], head[256], event[1024], last[1024];
static int chunks = 100;

static void put(int fd, const char *data, size_t size) {
  while (size > 0) {
    ssize_t done = write(fd, data, size);
    if (done <= 0) return;
    data += done, size -= done;
  }
}

static void answer(int fd, const char *request) {
  if (!strstr(request, "\"stream\":true")) {
    put(fd, json, strlen(json));
    return;
  }
  put(fd, head, strlen(head));
  for (int i = 0; i < chunks; i++) put(fd, event, strlen(event));
  put(fd, last, strlen(last));
}

int main(int count, char **arguments) {
  if (count > 1) chunks = atoi(arguments[1]);
  sprintf(json, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
          strlen(JSON), JSON);
  sprintf(head, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                "transfer-encoding: chunked\r\n\r\n");
  sprintf(event, "%zx\r\n%s\r\n", strlen(EVENT), EVENT);
  sprintf(last, "%zx\r\n%s\r\n0\r\n\r\n", strlen(LAST), LAST);
  static char buffer[65536];
  int server = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof where;
  if (bind(server, (struct sockaddr *)&where, size) || listen(server, 1024)) return 1;
  getsockname(server, (struct sockaddr *)&where, &size);
  printf("%d\n", ntohs(where.sin_port));
  fflush(stdout);
  int poll = epoll_create1(0);
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = server}, events[256];
  epoll_ctl(poll, EPOLL_CTL_ADD, server, &wanted);
  for (;;) {
    int ready = epoll_wait(poll, events, 256, -1);
    for (int i = 0; i < ready; i++) {
      int fd = events[i].data.fd;
      if (fd == server) {
        wanted.data.fd = accept(server, 0, 0);
        setsockopt(wanted.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(poll, EPOLL_CTL_ADD, wanted.data.fd, &wanted);
        continue;
      }
      ssize_t got = read(fd, buffer, sizeof buffer - 1);
      /* Requests of the benchmark are smaller than one segment, and end their body with '}'. */
      if (got <= 0) close(fd);
      else if (buffer[got - 1] == '}') buffer[got] = 0, answer(fd, buffer);
    }
  }
}
