/* Many streams at once, read by one thread: streams_load PORT COUNT EVENTS STEP_US HOLD

   Opens COUNT streams of EVENTS events each, STEP_US apart (see gateway_mock.c, which stamps
   each event with the time it was written), one every 2 ms. With HOLD 0 it reads them to their
   ends and prints one line of JSON: how long events were under way, the longest silence of a
   stream, how many streams were not whole. With HOLD 1 it prints the number of streams that
   have begun once all have, and hangs up when its standard input ends. */
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SIZE 16384
#define OPENING_NS 2000000LL
#define STALL_US 500000
#define MARK "\"content\":\" "

struct stream {
  int fd, done, events, disordered;
  size_t filled;
  long long stamp, came, gap_us;
  char data[SIZE];
};

static struct stream *streams;
static int *late_us, late_count, late_room;

static long long now(void) {
  struct timespec at;
  clock_gettime(CLOCK_MONOTONIC, &at);
  return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void ask(struct stream *one, int port, int events, int step_us, int poll_fd) {
  char body[256], request[512];
  int size = sprintf(body, "{\"model\":\"auto\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],"
                           "\"stream\":true,\"max_tokens\":%d,\"seed\":%d}", events, step_us);
  int whole = sprintf(request, "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                      "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
                      port, size, body);
  struct sockaddr_in where = {.sin_family = AF_INET, .sin_port = htons(port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  one->fd = socket(AF_INET, SOCK_STREAM, 0);
  if (one->fd < 0 || connect(one->fd, (struct sockaddr *)&where, sizeof where)) {
    perror("connect");
    exit(1);
  }
  if (write(one->fd, request, whole) != whole) exit(1);
  struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = one};
  epoll_ctl(poll_fd, EPOLL_CTL_ADD, one->fd, &wanted);
}

static void note(struct stream *one, long long stamp, long long at) {
  if (late_count < late_room) late_us[late_count++] = (int)((at - stamp) / 1000);
  if (one->came && (at - one->came) / 1000 > one->gap_us) one->gap_us = (at - one->came) / 1000;
  if (stamp <= one->stamp) one->disordered = 1;
  one->stamp = stamp, one->came = at, one->events++;
}

/* Takes the events that are whole; returns 1 at the terminator. */
static int take(struct stream *one, long long at) {
  char *from = one->data, *end = one->data + one->filled, *mark, *quote;
  while ((mark = strstr(from, MARK)) && (quote = strchr(mark + strlen(MARK), '"'))) {
    note(one, atoll(mark + strlen(MARK)), at);
    from = quote;
  }
  int done = strstr(from, "data: [DONE]") != 0;
  /* An event is shorter than this, so a mark that is cut in two is kept whole. */
  if (end - from > 512) from = end - 512;
  one->filled = end - from;
  memmove(one->data, from, one->filled + 1);
  return done;
}

static int heard(struct stream *one) {
  ssize_t got = read(one->fd, one->data + one->filled, SIZE - one->filled - 1);
  if (got > 0) {
    one->filled += got;
    one->data[one->filled] = 0;
    one->done = take(one, now());
  }
  if (got > 0 && !one->done) return 0;
  close(one->fd);
  return 1;
}

static int by_size(const void *a, const void *b) { return *(int *)a - *(int *)b; }

static void report(int count, int events) {
  long long worst = 0, stalls = 0, torn = 0, disordered = 0;
  for (int i = 0; i < count; i++) {
    if (streams[i].gap_us > worst) worst = streams[i].gap_us;
    stalls += streams[i].gap_us > STALL_US;
    torn += !streams[i].done || streams[i].events != events;
    disordered += streams[i].disordered;
  }
  qsort(late_us, late_count, sizeof *late_us, by_size);
  printf("{\"events\":%d,\"p50_us\":%d,\"p99_us\":%d,\"p999_us\":%d,\"max_us\":%d,"
         "\"gap_us\":%lld,\"stalls\":%lld,\"torn\":%lld,\"disordered\":%lld}\n",
         late_count, late_us[late_count / 2], late_us[(long)late_count * 99 / 100],
         late_us[(long)late_count * 999 / 1000], late_us[late_count - 1], worst, stalls, torn,
         disordered);
}

static int all_begun(int count) {
  for (int i = 0; i < count; i++) if (!streams[i].events) return 0;
  return 1;
}

static void hold(int count) {
  printf("%d\n", count);
  fflush(stdout);
  char line[16];
  while (read(0, line, sizeof line) > 0) {}
}

int main(int words, char **given) {
  if (words != 6) return 2;
  int port = atoi(given[1]), count = atoi(given[2]), events = atoi(given[3]);
  int step_us = atoi(given[4]), holding = atoi(given[5]), opened = 0, closed = 0;
  streams = calloc(count, sizeof *streams);
  late_room = holding ? 0 : count * events;
  late_us = calloc(late_room + 1, sizeof *late_us);
  int poll_fd = epoll_create1(0);
  struct epoll_event ready[256];
  long long next = now();
  while (closed < count) {
    if (opened < count && now() >= next) {
      ask(&streams[opened++], port, events, step_us, poll_fd);
      next += OPENING_NS;
    }
    int found = epoll_wait(poll_fd, ready, 256, opened < count ? 1 : 1000);
    for (int i = 0; i < found; i++) closed += heard(ready[i].data.ptr);
    if (holding && opened == count && all_begun(count)) return hold(count), 0;
  }
  report(count, events);
  return 0;
}
