/* A model server that costs nothing: one thread, epoll, answers written at once or paced.

   A request without "stream":true gets one JSON. Any other gets "max_tokens" events (100 when
   it names none), "seed" microseconds apart (0: all at once): fields that every relay passes
   on as they are. The text of each event is the time at which it was written, in nanoseconds
   of CLOCK_MONOTONIC, so that a reader on the same machine can tell how long it was under way. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STREAMS 8192
#define EVENT \
  "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"," \
  "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" %016lld\"},\"finish_reason\":null}]}\n\n"
#define LAST \
  "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\"," \
  "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n"
#define JSON \
  "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":" \
  "[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello there, how are you " \
  "today? I am fine.\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9," \
  "\"completion_tokens\":12,\"total_tokens\":21}}"
#define HEAD \
  "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

/* What is left of a running stream; indexed by its socket. */
static struct { long left; long long step, due; } streams[STREAMS];
static char json[2048], last[1024];
static int highest;

static long long now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void put(int fd, const char *data, size_t size) {
  while (size > 0) {
    ssize_t done = write(fd, data, size);
    if (done <= 0) return;
    data += done, size -= done;
  }
}

static long field(const char *request, const char *name, long otherwise) {
  const char *found = strstr(request, name);
  return found ? atol(found + strlen(name)) : otherwise;
}

static size_t event(char *into) {
  char text[512];
  int size = sprintf(text, EVENT, now());
  return sprintf(into, "%x\r\n%s\r\n", size, text);
}

/* Writes what is due; the first event leaves in one piece with what stands before it. */
static void say(int fd, const char *before) {
  char out[1024];
  size_t size = sprintf(out, "%s", before);
  if (streams[fd].left > 0) size += event(out + size), streams[fd].left--;
  put(fd, out, size);
  streams[fd].due += streams[fd].step;
  if (streams[fd].left == 0) put(fd, last, strlen(last)), streams[fd].due = 0;
}

static void answer(int fd, const char *request) {
  if (!strstr(request, "\"stream\":true")) {
    put(fd, json, strlen(json));
    return;
  }
  streams[fd].left = field(request, "\"max_tokens\":", 100);
  streams[fd].step = field(request, "\"seed\":", 0) * 1000LL;
  streams[fd].due = now();
  if (fd > highest) highest = fd;
  say(fd, HEAD);
  while (streams[fd].step == 0 && streams[fd].left > 0) say(fd, "");
}

/* Events whose time has come; returns the milliseconds until the next. */
static int tick(void) {
  long long at = now(), next = at + 1000000000LL;
  int last_one = 0;
  for (int fd = 0; fd <= highest; fd++) {
    if (streams[fd].due == 0) continue;
    if (streams[fd].due <= at) say(fd, "");
    if (streams[fd].due) last_one = fd;
    if (streams[fd].due && streams[fd].due < next) next = streams[fd].due;
  }
  highest = last_one;
  return next <= at ? 0 : (int)((next - at + 999999) / 1000000);
}

static int listening(void) {
  int server = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof where;
  if (bind(server, (struct sockaddr *)&where, size) || listen(server, 4096)) exit(1);
  getsockname(server, (struct sockaddr *)&where, &size);
  printf("%d\n", ntohs(where.sin_port));
  fflush(stdout);
  return server;
}

int main(void) {
  signal(SIGPIPE, SIG_IGN);
  sprintf(json, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
          strlen(JSON), JSON);
  sprintf(last, "%zx\r\n%s\r\n0\r\n\r\n", strlen(LAST), LAST);
  static char buffer[65536];
  int server = listening(), one = 1;
  int poll = epoll_create1(0);
  struct epoll_event wanted = {.events = EPOLLIN, .data.fd = server}, events[256];
  epoll_ctl(poll, EPOLL_CTL_ADD, server, &wanted);
  for (int rest = 1000;; rest = tick()) {
    int ready = epoll_wait(poll, events, 256, rest);
    for (int i = 0; i < ready; i++) {
      int fd = events[i].data.fd;
      if (fd == server) {
        wanted.data.fd = accept(server, 0, 0);
        if (wanted.data.fd >= STREAMS) close(wanted.data.fd);
        if (wanted.data.fd < 0 || wanted.data.fd >= STREAMS) continue;
        setsockopt(wanted.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        epoll_ctl(poll, EPOLL_CTL_ADD, wanted.data.fd, &wanted);
        continue;
      }
      ssize_t got = read(fd, buffer, sizeof buffer - 1);
      /* Requests of the benchmark are smaller than one segment, and end their body with '}'. */
      if (got <= 0) streams[fd].due = 0, close(fd);
      else if (buffer[got - 1] == '}') buffer[got] = 0, answer(fd, buffer);
    }
  }
}
