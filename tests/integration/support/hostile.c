/* A hostile stand-in for codex: it tries to get out of its sandbox, or to be a burden to the machine.
 *
 *   hostile ATTEMPT [ARGUMENT...]
 *
 * Its last line and its exit code tell how that went:
 *
 *   ESCAPED: ...   0   it got what it must not have
 *   refused: ...  10   it was told no, and how
 *   cannot: ...   11   it could not even try: the test is wrong
 *
 * Attempts in groups print such a line for each member, the member's name before it. Started as codex is ("exec ..."),
 * the attempt is the line `hostile = "ATTEMPT ARGUMENT..."` of config.toml in the home.
 *
 * Outside of a sandbox the same attempts are the controls: there they succeed, or show that the kernel looks at them.
 * None sends a packet to anywhere but the loopback interface. What is tried is in hostile_calls.h (one system call each)
 * and hostile_burden.h (what takes time, memory or room), the rest is here. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { ESCAPED = 0, REFUSED = 10, CANNOT = 11 };

static int say(int code, const char *format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  vsnprintf(text, sizeof text, format, list);
  va_end(list);
  dprintf(1, "%s: %s\n", code == ESCAPED ? "ESCAPED" : code == REFUSED ? "refused" : "cannot", text);
  return code;
}

static const char *name_of(int error) {
  const char *name = strerrorname_np(error);
  return name ? name : "an unknown error";
}

static int refused(void) { return say(REFUSED, "%s", name_of(errno)); }

/* What a system call answered that must not succeed. */
static int answered(long result, const char *what) { return result < 0 ? refused() : say(ESCAPED, "%s", what); }

/* The same for a call that was made with nonsense: whatever is not a plain no shows that the kernel looked at it. */
static int looked_at(long result) {
  if (result >= 0) return say(ESCAPED, "done");
  if (errno == ENOSYS || errno == EPERM || errno == EACCES) return refused();
  return say(ESCAPED, "the kernel looked at it: %s", name_of(errno));
}

static void wait_ms(long ms) {
  struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&time, &time) < 0 && errno == EINTR) {}
}

/* Until it is killed. */
static void stay(void) {
  for (;;) wait_ms(100000);
}

static long number(const char *text) { return strtol(text, NULL, 0); }

/* Files. */

static int read_file(char **a) {
  char byte;
  int fd = open(a[0], O_RDONLY | O_NONBLOCK);
  if (fd < 0 || read(fd, &byte, 1) < 0) return refused();
  return say(ESCAPED, "read %s", a[0]);
}

static int write_file(char **a) {
  int fd = open(a[0], O_WRONLY | O_CREAT, 0600);
  if (fd < 0 || write(fd, "x", 1) < 0) return refused();
  return say(ESCAPED, "wrote %s", a[0]);
}

static int remove_file(char **a) { return answered(unlink(a[0]), "removed it"); }
static int make_directory(char **a) { return answered(mkdir(a[0], 0700), "made it"); }
static int chmod_file(char **a) { return answered(chmod(a[0], 0777), "changed it"); }

/* Everything that can be seen, a path a line. */
static void walk(const char *path) {
  DIR *directory = opendir(path);
  if (!directory) return;
  for (struct dirent *entry; (entry = readdir(directory));) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    char below[4096];
    snprintf(below, sizeof below, "%s/%s", strcmp(path, "/") ? path : "", entry->d_name);
    dprintf(1, "%s\n", below);
    struct stat about;
    if (!lstat(below, &about) && S_ISDIR(about.st_mode)) walk(below);
  }
  closedir(directory);
}

static int tree(char **a) {
  (void)a;
  walk("/");
  return REFUSED;
}

/* A copy of itself in a directory, with the setuid bit, executed. */
static int setuid_copy(char **a) {
  char path[4096], buffer[65536];
  snprintf(path, sizeof path, "%s/copy", a[0]);
  int from = open("/proc/self/exe", O_RDONLY), to = open(path, O_WRONLY | O_CREAT, 0700);
  if (from < 0 || to < 0) return say(CANNOT, "copy itself: %s", name_of(errno));
  for (ssize_t length; (length = read(from, buffer, sizeof buffer)) > 0;)
    if (write(to, buffer, length) != length) return say(CANNOT, "write the copy");
  if (fchmod(to, 04755) < 0) return say(CANNOT, "set the bit: %s", name_of(errno));
  close(to);
  char *arguments[] = {path, "executed", NULL};
  execv(path, arguments);
  return refused();
}

static int executed(char **a) {
  (void)a;
  return say(ESCAPED, "executed, as %d", geteuid());
}

/* Who it is, when it was started from a setuid-root file. */
static int ids(char **a) {
  (void)a;
  if (geteuid() == 0 || getegid() == 0) return say(ESCAPED, "it is root");
  return say(REFUSED, "uid %d, euid %d", getuid(), geteuid());
}

/* Processes. */

static int read_memory(char **a) {
  char bytes[16] = "";
  struct iovec here = {bytes, sizeof bytes}, there = {(void *)strtoul(a[1], NULL, 0), sizeof bytes};
  return answered(syscall(SYS_process_vm_readv, number(a[0]), &here, 1L, &there, 1L, 0L), "read its memory");
}

static int read_memory_file(char **a) {
  char path[64], bytes[16];
  snprintf(path, sizeof path, "/proc/%s/mem", a[0]);
  int fd = open(path, O_RDONLY);
  if (fd < 0) return refused();
  return answered(pread(fd, bytes, sizeof bytes, strtoul(a[1], NULL, 0)), "read its memory");
}

/* SIGNAL PID...: each way to touch a process by its number. */
static int signal_pids(char **a) {
  long signal = number(a[0]);
  int last = 0;
  for (char **pid = a + 1; *pid; pid++) {
    struct rlimit limit;
    long n = number(*pid);
    /* Not its own group, not everything, not the first process. */
    if (n <= 1) continue;
    if (kill(n, signal) >= 0 || syscall(SYS_tkill, n, signal) >= 0 || syscall(SYS_tgkill, n, n, signal) >= 0)
      return say(ESCAPED, "signalled %ld", n);
    last = errno;
    if (getpgid(n) >= 0 || getsid(n) >= 0 || syscall(SYS_prlimit64, n, RLIMIT_AS, NULL, &limit) >= 0 ||
        syscall(SYS_pidfd_open, n, 0) >= 0)
      return say(ESCAPED, "sees %ld", n);
  }
  errno = last;
  return refused();
}

static pid_t child_that_stays(void) {
  pid_t pid = fork();
  if (pid == 0) stay();
  return pid;
}

/* Everything there is: that is its own child. */
static int signal_all(char **a) {
  (void)a;
  /* Not on the host. */
  if (getppid() != 1) return say(ESCAPED, "its parent is not the first of its namespace");
  pid_t own = child_that_stays();
  int status = 0;
  if (own < 0 || kill(-1, SIGKILL) < 0) return refused();
  waitpid(own, &status, 0);
  return say(REFUSED, "its own child ended by signal %d", WTERMSIG(status));
}

/* The first process of its namespace, by every signal there is. */
static int signal_first(char **a) {
  (void)a;
  for (int signal = 1; signal <= 64; signal++)
    if (kill(1, signal) < 0) return say(CANNOT, "signal %d", signal);
  wait_ms(50);
  return getppid() == 1 ? say(REFUSED, "the first process is still there") : say(ESCAPED, "it is gone");
}

static int trace_child(char **a) {
  (void)a;
  pid_t own = child_that_stays();
  int result = answered(ptrace(PTRACE_ATTACH, own, NULL, NULL), "it traces its child");
  kill(own, SIGKILL);
  return result;
}

static int trace(char **a) { return answered(ptrace(PTRACE_SEIZE, number(a[0]), NULL, NULL), "it traces it"); }

/* What it has open without having opened it. */
static int descriptors(char **a) {
  (void)a;
  struct stat about;
  for (int fd = 3; fd < 65536; fd++)
    if (fcntl(fd, F_GETFD) >= 0) return say(ESCAPED, "descriptor %d is open", fd);
  if (fstat(0, &about) < 0 || about.st_rdev != 0x103) return say(ESCAPED, "its input is not /dev/null");
  for (int fd = 1; fd <= 2; fd++)
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_WRONLY) return say(ESCAPED, "descriptor %d can be read", fd);
  return say(REFUSED, "0, 1 and 2 are all");
}

static int environment(char **a) {
  (void)a;
  for (char **entry = environ; *entry; entry++) dprintf(1, "%s\n", *entry);
  return REFUSED;
}

static int capabilities(char **a) {
  (void)a;
  for (int number = 0; number < 64; number++)
    if (prctl(PR_CAPBSET_READ, number, 0, 0, 0) == 1) return say(ESCAPED, "capability %d can be had", number);
  if (prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1) return say(ESCAPED, "new privileges can be had");
  return say(REFUSED, "none, and no new ones");
}

/* Waits to be looked at. */
static int be_seen(char **a) {
  (void)a;
  dprintf(1, "here\n");
  stay();
  return CANNOT;
}

/* Connections. */

static socklen_t internet(struct sockaddr_storage *to, const char *address, const char *port) {
  memset(to, 0, sizeof *to);
  struct sockaddr_in *four = (void *)to;
  struct sockaddr_in6 *six = (void *)to;
  if (inet_pton(AF_INET, address, &four->sin_addr) == 1) {
    four->sin_family = AF_INET;
    four->sin_port = htons(number(port));
    return sizeof *four;
  }
  if (inet_pton(AF_INET6, address, &six->sin6_addr) != 1) exit(say(CANNOT, "no address: %s", address));
  six->sin6_family = AF_INET6;
  six->sin6_port = htons(number(port));
  return sizeof *six;
}

static int connected(int kind, const char *address, const char *port) {
  struct sockaddr_storage to;
  socklen_t length = internet(&to, address, port);
  int fd = socket(to.ss_family, kind, 0);
  if (fd < 0 || connect(fd, (void *)&to, length) < 0) return -1;
  return fd;
}

static int connect_to(char **a) { return answered(connected(SOCK_STREAM, a[0], a[1]), "connected"); }

/* ADDRESS PORT, where no packet may go: connecting a datagram socket sends none, it only asks for the way there. */
static int way_to(char **a) { return answered(connected(SOCK_DGRAM, a[0], a[1]), "there is a way"); }

/* A path, or a name behind '@'. */
static int connect_unix(char **a) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  size_t length = strlen(a[0]);
  if (length >= sizeof to.sun_path) return say(CANNOT, "too long a path");
  memcpy(to.sun_path, a[0], length);
  int is_abstract = *a[0] == '@';
  if (is_abstract) to.sun_path[0] = 0;
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  return answered(connect(fd, (void *)&to, offsetof(struct sockaddr_un, sun_path) + length + !is_abstract), "connected");
}

static int bind_to(char **a) {
  struct sockaddr_storage to;
  socklen_t length = internet(&to, a[0], a[1]);
  return answered(bind(socket(to.ss_family, SOCK_STREAM, 0), (void *)&to, length), "bound");
}

/* HOST:PORT..., each through the daemon's proxy. */
static int by_proxy(char **a) {
  int escaped = 0;
  for (; *a; a++) {
    char request[512], answer[512] = "";
    int fd = connected(SOCK_STREAM, "127.0.0.1", "3128"), status = 0;
    if (fd < 0) return say(CANNOT, "reach the proxy: %s", name_of(errno));
    dprintf(1, "%s ", *a);
    snprintf(request, sizeof request, strncmp(*a, "http:", 5) ? "CONNECT %s HTTP/1.1\r\n\r\n" : "GET %s HTTP/1.1\r\n\r\n", *a);
    if (write(fd, request, strlen(request)) < 0 || read(fd, answer, sizeof answer - 1) <= 0) return say(CANNOT, "ask it");
    sscanf(answer, "HTTP/1.1 %d", &status);
    escaped |= say(status == 200 ? ESCAPED : REFUSED, "%d", status) == ESCAPED;
    close(fd);
  }
  return escaped ? ESCAPED : REFUSED;
}

/* The system calls of other ABIs. */

static int i386(char **a) {
  (void)a;
#ifdef __x86_64__
  int status = 0;
  pid_t pid = fork();
  if (pid == 0) {
    long result = 20; /* getpid, there */
    __asm__ volatile("int $0x80" : "+a"(result) : : "memory", "r8", "r9", "r10", "r11");
    _exit(result > 0 ? 0 : 1);
  }
  waitpid(pid, &status, 0);
  if (WIFSIGNALED(status)) return say(REFUSED, "signal %d", WTERMSIG(status));
  return WEXITSTATUS(status) ? say(REFUSED, "it was answered with an error") : say(ESCAPED, "it was answered");
#else
  return say(REFUSED, "there is none");
#endif
}

#include "hostile_burden.h"
#include "hostile_calls.h"

struct attempt {
  const char *name;
  int arguments;
  int (*run)(char **arguments);
};

static const struct attempt ATTEMPTS[] = {
    {"read", 1, read_file},
    {"write", 1, write_file},
    {"remove", 1, remove_file},
    {"mkdir", 1, make_directory},
    {"chmod", 1, chmod_file},
    {"tree", 0, tree},
    {"setuid-copy", 1, setuid_copy},
    {"executed", 0, executed},
    {"ids", 0, ids},
    {"memory-of", 2, read_memory},
    {"memory-file-of", 2, read_memory_file},
    {"signal", 2, signal_pids},
    {"signal-all", 0, signal_all},
    {"signal-first", 0, signal_first},
    {"trace-child", 0, trace_child},
    {"trace", 1, trace},
    {"descriptors", 0, descriptors},
    {"environment", 0, environment},
    {"capabilities", 0, capabilities},
    {"be-seen", 0, be_seen},
    {"connect", 2, connect_to},
    {"way-to", 2, way_to},
    {"connect-unix", 1, connect_unix},
    {"bind", 2, bind_to},
    {"by-proxy", 1, by_proxy},
    {"i386", 0, i386},
    {"calls", 0, calls},
    {"x32-calls", 0, x32_calls},
    {"sockets", 0, sockets},
    {"options", 0, options},
    {"processes", 0, processes},
    {"prctls", 0, prctls},
    {"terminal", 1, terminal},
    {"namespaces", 0, namespaces},
    {"mounts", 0, mounts},
    {"memory", 1, memory},
    {"shared-memory", 1, shared_memory},
    {"zero-memory", 1, zero_memory},
    {"memory-of-many", 2, memory_of_many},
    {"socket-memory", 3, socket_memory},
    {"fork-bomb", 0, fork_bomb},
    {"fork-storm", 0, fork_storm},
    {"fill", 1, fill},
    {"files", 2, files},
    {"spin", 0, spin},
    {"stop", 0, stop},
    {"linger", 0, linger},
    {"flood", 0, flood},
    {"close-outputs", 0, close_outputs},
    {"watched", 2, watched},
    {"worst", 1, worst},
};

static char *line_of_config(void) {
  static char text[65536];
  int fd = open("/home/probe/.codex/config.toml", O_RDONLY);
  if (fd < 0 || read(fd, text, sizeof text - 1) < 0) return NULL;
  close(fd);
  char *line = strstr(text, "hostile = \""), *end = line ? strchr(line + 11, '"') : NULL;
  if (!end) return NULL;
  *end = 0;
  return line + 11;
}

int main(int count, char **arguments) {
  char *told[32] = {NULL}, **a = arguments + 1;
  (void)count;
  if (*a && !strcmp(*a, "exec")) {
    int n = 0;
    for (char *word = strtok(line_of_config(), " "); word && n < 31; word = strtok(NULL, " ")) told[n++] = word;
    a = told;
  }
  for (size_t n = 0; *a && n < sizeof ATTEMPTS / sizeof *ATTEMPTS; n++) {
    if (strcmp(ATTEMPTS[n].name, *a)) continue;
    for (int n_given = 1; n_given <= ATTEMPTS[n].arguments; n_given++)
      if (!a[n_given]) return say(CANNOT, "do %s with so few arguments", *a);
    return ATTEMPTS[n].run(a + 1);
  }
  return say(CANNOT, "do that: there is no such attempt");
}
