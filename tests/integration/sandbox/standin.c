/* What stands in for Codex in the tests of a sandbox's life: does one thing, says what came of it ("ok", or the name of
   the error), and exits. What tries to get out is in the escape suite (tests/integration/escape). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void say(const char *what, long result) {
  printf("%s %s\n", what, result < 0 ? strerrorname_np(errno) : "ok");
  fflush(stdout);
}

static void put(const char *path, const char *text) {
  int fd = open(path, O_CREAT | O_WRONLY | O_TRUNC, 0600);
  if (fd < 0 || write(fd, text, strlen(text)) < 0) say(path, -1);
  close(fd);
}

static void pause_until_killed(void) {
  for (;;) pause();
}

static void connect_to(const char *address, int port) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, address, &to.sin_addr);
  say(address, connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&to, sizeof to));
}

static void connect_unix(const char *path, int abstract) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  strncpy(to.sun_path + abstract, path, 100);
  say(path, connect(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&to, 2 + abstract + strlen(path)));
}

int main(int count, char **arguments) {
  const char *attempt = arguments[1], *rest = count > 2 ? arguments[2] : "";
  if (!strcmp(attempt, "open")) {
    for (int i = 2; i < count; i++) say(arguments[i], open(arguments[i], O_RDONLY));
  } else if (!strcmp(attempt, "connect")) {
    connect_to("127.0.0.1", atoi(rest));
    connect_to("169.254.169.254", 80);
    connect_to("10.0.0.1", 80);
    connect_to("192.0.2.1", 443);
    connect_unix(arguments[3], 0);
    connect_unix(arguments[4], 1);
  } else if (!strcmp(attempt, "for ever")) {
    signal(SIGTERM, SIG_IGN);
    pause_until_killed();
  } else if (!strcmp(attempt, "spin")) {
    for (;;);
  } else if (!strcmp(attempt, "daemon")) {
    if (!fork()) {
      setsid();
      if (!fork()) pause_until_killed();
      _exit(0);
    }
    wait(0);
    say("left", 0);
  } else if (!strcmp(attempt, "both")) {
    if (!fork()) pause_until_killed();
    pause_until_killed();
  } else if (!strcmp(attempt, "crash")) {
    abort();
  } else if (!strcmp(attempt, "login")) {
    /* As Codex does: another file, then renamed; then again; then in place. */
    put("/home/probe/.codex/new", "one");
    rename("/home/probe/.codex/new", "/home/probe/.codex/auth.json");
    say("renamed", 0);
    getchar();
    pause_until_killed();
  } else if (!strcmp(attempt, "login at the end")) {
    unlink("/home/probe/.codex/auth.json");
    rename("/home/probe/.codex", "/home/probe/away");
    mkdir("/home/probe/.codex", 0700);
    put("/home/probe/.codex/auth.json", "last");
  } else if (!strcmp(attempt, "fifo")) {
    unlink("/home/probe/.codex/auth.json");
    mkfifo("/home/probe/.codex/auth.json", 0600);
    say("fifo", mknod("/home/probe/.codex/auth.json", S_IFIFO | 0600, 0));
  } else if (!strcmp(attempt, "symlink for login")) {
    unlink("/home/probe/.codex/auth.json");
    symlink("/etc/ssl/certs/ca-certificates.crt", "/home/probe/.codex/auth.json");
  } else if (!strcmp(attempt, "huge login")) {
    static char block[1 << 20];
    /* Renamed: one that is being written may be heard when it is still small enough. */
    int fd = open("/home/probe/.codex/new", O_CREAT | O_WRONLY, 0600);
    for (int n = 0; n < 3; n++) write(fd, block, sizeof block);
    rename("/home/probe/.codex/new", "/home/probe/.codex/auth.json");
  } else if (!strcmp(attempt, "rewrite")) {
    char text[99];
    for (int n = 0; n < 20000; n++) {
      sprintf(text, "%d", n);
      put("/home/probe/.codex/auth.json", text);
    }
  } else return 99;
  return 7;
}
