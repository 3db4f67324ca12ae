/* Part of hostile.c: what takes memory, processes, room, time or attention. */

static const size_t MIB = 1 << 20;

/* MIB of a process's own memory, touched. */
static int memory(char **a) {
  for (long got = 0; got < number(a[0]); got += 16) {
    char *block = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) return say(REFUSED, "%s after %ld MiB", name_of(errno), got);
    for (size_t at = 0; at < 16 * MIB; at += 4096) block[at] = 1;
  }
  return say(ESCAPED, "%s MiB", a[0]);
}

static int shared_memory(char **a) {
  char *block = mmap(NULL, number(a[0]) * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED) return refused();
  return say(ESCAPED, "%s MiB", a[0]);
}

/* A shared mapping of /dev/zero is shared memory of no file, too. */
static int zero_memory(char **a) {
  int zero = open("/dev/zero", O_RDWR);
  if (zero < 0) return refused();
  for (long got = 0; got < number(a[0]); got += 16) {
    char *block = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
    if (block == MAP_FAILED) return say(REFUSED, "%s after %ld MiB", name_of(errno), got);
    for (size_t at = 0; at < 16 * MIB; at += 4096) block[at] = 1;
  }
  return say(ESCAPED, "%s MiB", a[0]);
}

/* The bytes that the kernel holds in sockets whose other end nobody reads, up to `most`. */
static long fill_sockets(long most) {
  static char block[1 << 16];
  long held = 0;
  int large = 1 << 30, pair[2];
  while (held < most && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0) {
    for (int end = 0; end < 2; end++) {
      setsockopt(pair[end], SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
      for (ssize_t length; held < most && (length = write(pair[end], block, sizeof block)) > 0;) held += length;
    }
  }
  return held;
}

/* The same over TCP on the loopback, whose buffers grow with what is read: each end reads for a while, then no more. */
static long fill_connections(long most) {
  static char block[1 << 16];
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t length = sizeof at;
  long held = 0;
  int large = 1 << 30, listener = socket(AF_INET, SOCK_STREAM, 0);
  if (bind(listener, (void *)&at, length) < 0 || listen(listener, 8) < 0) return 0;
  getsockname(listener, (void *)&at, &length);
  while (held < most) {
    int ends[2] = {socket(AF_INET, SOCK_STREAM, 0), -1};
    if (ends[0] < 0 || connect(ends[0], (void *)&at, sizeof at) < 0 || (ends[1] = accept(listener, NULL, NULL)) < 0) break;
    for (int end = 0; end < 2; end++) {
      setsockopt(ends[end], SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
      fcntl(ends[end], F_SETFL, O_NONBLOCK);
    }
    for (int round = 0; round < 12; round++) {
      for (int end = 0; end < 2; end++) while (write(ends[end], block, sizeof block) > 0) {}
      for (int end = 0; end < 2; end++) while (read(ends[end], block, sizeof block) > 0) {}
    }
    for (int end = 0; end < 2; end++)
      for (ssize_t wrote; held < most && (wrote = write(ends[end], block, sizeof block)) > 0;) held += wrote;
  }
  return held;
}

/* KIND PROCESSES MIB: how much of the kernel's memory so many processes can have by sockets, MIB at most. */
static int socket_memory(char **a) {
  int ready[2];
  long held = 0, started = 0, of_one, most = number(a[2]) * (long)MIB;
  long (*fill)(long) = strcmp(a[0], "tcp") ? fill_sockets : fill_connections;
  if (pipe(ready) < 0) return say(CANNOT, "make a pipe");
  for (long n = 1; n < number(a[1]); n++) {
    pid_t pid = fork();
    if (pid < 0) break;
    started++;
    if (pid > 0) continue;
    of_one = fill(most / number(a[1]));
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (write(ready[1], &of_one, sizeof of_one) < 0) _exit(1);
    stay();
  }
  held = fill(most / number(a[1]));
  for (; started > 0 && read(ready[0], &of_one, sizeof of_one) == sizeof of_one; started--) held += of_one;
  if (held >= most) return say(ESCAPED, "%ld MiB", held / (long)MIB);
  return say(REFUSED, "no more after %ld MiB", held / (long)MIB);
}

/* PROCESSES MIB: each has that much and stays; what they have together. */
static int memory_of_many(char **a) {
  int ready[2];
  long granted = 0;
  if (pipe(ready) < 0) return say(CANNOT, "make a pipe");
  for (long n = 0; n < number(a[0]); n++) {
    char byte = 'n';
    pid_t pid = fork();
    if (pid < 0) break;
    if (pid == 0) {
      char *block = mmap(NULL, number(a[1]) * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      for (size_t at = 0; block != MAP_FAILED && at < number(a[1]) * MIB; at += 4096) block[at] = 1;
      if (write(ready[1], block == MAP_FAILED ? "n" : "y", 1) < 0) _exit(1);
      stay();
    }
    if (read(ready[0], &byte, 1) == 1 && byte == 'y') granted += number(a[1]);
  }
  dprintf(1, "granted: %ld MiB\n", granted);
  stay();
  return CANNOT;
}

/* As many children as there may be, which stay. */
static int fork_bomb(char **a) {
  (void)a;
  for (int count = 0; count < 4096; count++)
    if (child_that_stays() < 0) return say(REFUSED, "%s after %d", name_of(errno), count);
  return say(ESCAPED, "4096 children");
}

/* Each child does the same again, without end. */
static int fork_storm(char **a) {
  (void)a;
  for (;;) fork();
  return CANNOT;
}

/* Puts what there is room for into a directory. */
static int fill(char **a) {
  static char block[1 << 20];
  char path[4096];
  long written = 0;
  memset(block, 'x', sizeof block);
  signal(SIGXFSZ, SIG_IGN);
  for (int n = 0; written < 1024 * (long)MIB; n++) {
    snprintf(path, sizeof path, "%s/fill-%d", a[0], n);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    if (fd < 0) return say(REFUSED, "%s after %ld MiB", name_of(errno), written / (long)MIB);
    long before = written;
    for (ssize_t length; written < 1024 * (long)MIB && (length = write(fd, block, sizeof block)) > 0;) written += length;
    if (written == before) return say(REFUSED, "%s after %ld MiB", name_of(errno), written / (long)MIB);
    close(fd);
  }
  return say(ESCAPED, "1024 MiB");
}

/* DIRECTORY KIND: 100,000 of them. */
static int files(char **a) {
  char path[4096], first[4096];
  snprintf(first, sizeof first, "%s/n-0", a[0]);
  for (int n = 0; n < 100000; n++) {
    int made = 0;
    snprintf(path, sizeof path, "%s/n-%d", a[0], n);
    if (n == 0 || !strcmp(a[1], "file")) {
      int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
      made = fd;
      if (fd >= 0) close(fd);
    } else if (!strcmp(a[1], "link")) {
      made = link(first, path);
    } else if (!strcmp(a[1], "symlink")) {
      made = symlink("nowhere", path);
    } else if (!strcmp(a[1], "directory")) {
      made = mkdir(path, 0700);
    } else {
      return say(CANNOT, "make a %s", a[1]);
    }
    if (made < 0) return say(REFUSED, "%s after %d", name_of(errno), n);
  }
  return say(ESCAPED, "100000");
}

static void deaf(void) {
  for (int number = 1; number <= 64; number++) signal(number, SIG_IGN);
}

static int spin(char **a) {
  (void)a;
  deaf();
  for (volatile long n = 0;; n++) {}
  return CANNOT;
}

static int stop(char **a) {
  (void)a;
  child_that_stays();
  kill(getpid(), SIGSTOP);
  stay();
  return CANNOT;
}

/* A daemon, the way a daemon is made; it keeps the outputs open. */
static int linger(char **a) {
  (void)a;
  int ready[2];
  char byte;
  if (pipe(ready) < 0) return say(CANNOT, "make a pipe");
  if (fork() == 0) {
    setsid();
    if (fork() > 0) _exit(0);
    deaf();
    if (write(ready[1], "r", 1) < 0) _exit(1);
    stay();
  }
  if (read(ready[0], &byte, 1) != 1) return say(CANNOT, "leave one behind");
  return say(REFUSED, "one is left behind");
}

static int flood(char **a) {
  static char line[4096];
  (void)a;
  signal(SIGPIPE, SIG_IGN);
  memset(line, 'x', sizeof line);
  line[sizeof line - 1] = '\n';
  for (;;)
    if (write(1, line, sizeof line) < 0 || write(2, line, sizeof line) < 0) stay();
  return CANNOT;
}

static int close_outputs(char **a) {
  (void)a;
  say(REFUSED, "its outputs are closed");
  close(0), close(1), close(2);
  wait_ms(100);
  return 7;
}

/* KIND TARGET: something else in the place of the login, which is read from outside of the program. */
static int watched(char **a) {
  const char *kind = a[0], *target = a[1], *login = "/home/probe/.codex/auth.json";
  int made = -1;
  if (!strcmp(kind, "symlink")) {
    unlink(login);
    made = symlink(target, login);
  } else if (!strcmp(kind, "moved-symlink")) {
    made = symlink(target, "/home/probe/.codex/new") < 0 ? -1 : rename("/home/probe/.codex/new", login);
  } else if (!strcmp(kind, "symlinked-directory")) {
    made = rename("/home/probe/.codex", "/home/probe/away") < 0 ? -1 : symlink(target, "/home/probe/.codex");
  } else if (!strcmp(kind, "hard-link")) {
    unlink(login);
    made = link(target, login);
    if (made < 0) return refused();
  } else if (!strcmp(kind, "fifo")) {
    unlink(login);
    made = mknod(login, S_IFIFO | 0600, 0);
    if (made < 0) return refused();
  } else if (!strcmp(kind, "socket")) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strcpy(at.sun_path, login);
    unlink(login);
    made = bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&at, sizeof at);
  } else if (!strcmp(kind, "directory")) {
    unlink(login);
    made = mkdir(login, 0700);
  } else if (!strcmp(kind, "large")) {
    int fd = open(login, O_WRONLY | O_TRUNC);
    static char block[1 << 20];
    signal(SIGXFSZ, SIG_IGN);
    for (int n = 0; n < 100 && write(fd, block, sizeof block) > 0; n++) {}
    made = close(fd);
  } else if (!strcmp(kind, "sparse")) {
    int fd = open(login, O_WRONLY | O_TRUNC);
    signal(SIGXFSZ, SIG_IGN);
    made = ftruncate(fd, number(target) * (long)MIB);
    if (made < 0) return refused();
    made = close(fd);
  } else if (!strcmp(kind, "rewritten")) {
    for (long n = 0;; n++) {
      int fd = open(login, O_WRONLY | O_TRUNC);
      dprintf(fd, "%ld", n);
      close(fd);
    }
  } else if (!strcmp(kind, "swapped")) {
    /* Now a file, now a link: whoever looks twice sees two things. */
    for (;;) {
      unlink(login);
      if (symlink(target, login) < 0 || unlink(login) < 0) continue;
      int fd = open(login, O_WRONLY | O_CREAT, 0600);
      if (write(fd, "own", 3) < 0) return say(CANNOT, "write it");
      close(fd);
    }
  } else if (!strcmp(kind, "grown")) {
    /* While it is read. */
    int fd = open(login, O_WRONLY | O_APPEND);
    for (;;) {
      if (write(fd, "0123456789abcdef", 16) < 0 && ftruncate(fd, 0) < 0) return say(CANNOT, "cut it");
      close(open(login, O_WRONLY));
    }
  }
  if (made < 0) return say(CANNOT, "put a %s there: %s", kind, name_of(errno));
  close(open("/home/probe/.codex/other", O_WRONLY | O_CREAT, 0600));
  wait_ms(100);
  return say(REFUSED, "a %s is there", kind);
}

/* A MiB a second: less than what a program is ended for. */
static void trickle(void) {
  static char line[4096];
  memset(line, 'x', sizeof line);
  line[sizeof line - 1] = '\n';
  for (;; wait_ms(4))
    if (write(1, line, sizeof line) < 0) stay();
}

/* What the worst program does at once: the first threads one thing each, all others spin. */
static void *one_of_the_worst(void *a) {
  static char *room[2][2] = {{"/home/probe", "file"}, {"/tmp", "file"}}, *much[] = {"256"};
  static _Atomic int next;
  int n = next++;
  if (n == 0) !strcmp(a, "flood") ? (void)flood(NULL) : trickle();
  if (n < 3) fill(room[n - 1]);
  else if (n < 5) files(room[n - 3]);
  else if (n < 7) memory(much);
  else if (n == 7) fill_sockets(1L << 30);
  else spin(NULL);
  stay();
  return NULL;
}

/* "flood" or "trickle": all of it at once. It forks as well, where it may. */
static int worst(char **a) {
  pthread_attr_t small;
  pthread_t thread;
  deaf();
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, 1 << 17);
  while (pthread_create(&thread, &small, one_of_the_worst, a[0]) == 0) {}
  /* A session of its own has a share of the processors of its own, where the scheduler groups by session. */
  for (;;)
    if (fork() == 0) setsid();
  return CANNOT;
}
