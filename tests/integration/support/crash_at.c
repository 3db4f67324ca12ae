/* Preloaded into the daemon by the crash tests: the process dies by SIGKILL in place of its N-th call that changes what
 * is on disk, whichever thread makes it.
 *
 *   CRASH_AT    N; 0 or absent: it only counts
 *   CRASH_TORN  1: where the N-th call writes, the first half of it is written before
 *   CRASH_LOG   a file that gets one line for each such call
 *
 * (strace can inject a signal too, but it counts the calls of each thread and of each kind apart: the third write of
 * one of sled's writing threads, say, is out of its reach when another thread gets to its own third one first.)
 *
 * One call at a time: whatever was counted before the N-th is done, and nothing after it is begun. The calls are made
 * directly, not through the next library, so there is nothing to look up. crash.rs checks with strace that none is
 * missing here. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static long steps, at;
static int torn, log_fd = -1;

__attribute__((constructor)) static void start(void) {
  const char *value = getenv("CRASH_AT");
  at = value ? atol(value) : 0;
  value = getenv("CRASH_TORN");
  torn = value && *value == '1';
  value = getenv("CRASH_LOG");
  if (value) log_fd = syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  unsetenv("LD_PRELOAD");
}

static void die(void) {
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

/* Returns 1 when it is this call, a write, that is to be torn. */
static int begin(const char *name, int writes) {
  pthread_mutex_lock(&one_at_a_time);
  if (log_fd >= 0) {
    char line[32];
    size_t length = strlen(name);
    memcpy(line, name, length);
    line[length] = '\n';
    syscall(SYS_write, log_fd, line, length + 1);
  }
  if (++steps != at) return 0;
  if (torn && writes) return 1;
  die();
  return 0;
}

static long end(long result) {
  int error = errno;
  pthread_mutex_unlock(&one_at_a_time);
  errno = error;
  return result;
}

/* Of files and directories only; the terminal, pipes and sockets are no disk. */
static int on_disk(int fd) {
  struct stat about;
  int error = errno;
  int yes = fd > 2 && fstat(fd, &about) == 0 && (S_ISREG(about.st_mode) || S_ISDIR(about.st_mode));
  errno = error;
  return yes;
}

#define STEP(name, call) return begin(name, 0), end(call)
#define FD_STEP(name, fd, call)     \
  do {                              \
    if (!on_disk(fd)) return call;  \
    STEP(name, call);               \
  } while (0)

static int open_at(int dir, const char *path, int flags, va_list rest) {
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  if (flags & (O_CREAT | O_TRUNC)) STEP("open", syscall(SYS_openat, dir, path, flags, mode));
  return syscall(SYS_openat, dir, path, flags, mode);
}
#define OPEN(name)                                           \
  int name(const char *path, int flags, ...) {               \
    va_list rest;                                            \
    va_start(rest, flags);                                   \
    int fd = open_at(AT_FDCWD, path, flags, rest);           \
    va_end(rest);                                            \
    return fd;                                               \
  }
#define OPENAT(name)                                         \
  int name(int dir, const char *path, int flags, ...) {      \
    va_list rest;                                            \
    va_start(rest, flags);                                   \
    int fd = open_at(dir, path, flags, rest);                \
    va_end(rest);                                            \
    return fd;                                               \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *from, size_t length) {
  if (!on_disk(fd)) return syscall(SYS_write, fd, from, length);
  if (begin("write", 1)) {
    syscall(SYS_write, fd, from, length / 2);
    die();
  }
  return end(syscall(SYS_write, fd, from, length));
}
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t offset) {
  if (!on_disk(fd)) return syscall(SYS_pwrite64, fd, from, length, offset);
  if (begin("pwrite64", 1)) {
    syscall(SYS_pwrite64, fd, from, length / 2, offset);
    die();
  }
  return end(syscall(SYS_pwrite64, fd, from, length, offset));
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t offset) { return pwrite64(fd, from, length, offset); }
ssize_t writev(int fd, const struct iovec *from, int count) {
  FD_STEP("writev", fd, syscall(SYS_writev, fd, from, count));
}

int fsync(int fd) { FD_STEP("fsync", fd, syscall(SYS_fsync, fd)); }
int fdatasync(int fd) { FD_STEP("fdatasync", fd, syscall(SYS_fdatasync, fd)); }
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
  FD_STEP("sync_file_range", fd, syscall(SYS_sync_file_range, fd, offset, length, flags));
}
int ftruncate64(int fd, off64_t length) { FD_STEP("ftruncate", fd, syscall(SYS_ftruncate, fd, length)); }
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  FD_STEP("fallocate", fd, syscall(SYS_fallocate, fd, mode, offset, length));
}
int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }
int fchmod(int fd, mode_t mode) { FD_STEP("fchmod", fd, syscall(SYS_fchmod, fd, mode)); }

int rename(const char *from, const char *to) {
  STEP("rename", syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
int link(const char *from, const char *to) { STEP("link", syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, to, 0)); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  STEP("link", syscall(SYS_linkat, from_dir, from, to_dir, to, flags));
}
int symlink(const char *from, const char *to) { STEP("symlink", syscall(SYS_symlinkat, from, AT_FDCWD, to)); }
int unlink(const char *path) { STEP("unlink", syscall(SYS_unlinkat, AT_FDCWD, path, 0)); }
int unlinkat(int dir, const char *path, int flags) { STEP("unlink", syscall(SYS_unlinkat, dir, path, flags)); }
int rmdir(const char *path) { STEP("unlink", syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR)); }
int mkdir(const char *path, mode_t mode) { STEP("mkdir", syscall(SYS_mkdirat, AT_FDCWD, path, mode)); }
int chmod(const char *path, mode_t mode) { STEP("chmod", syscall(SYS_fchmodat, AT_FDCWD, path, mode)); }

int bind(int fd, const struct sockaddr *address, socklen_t length) {
  if (address->sa_family != AF_UNIX) return syscall(SYS_bind, fd, address, length);
  STEP("bind", syscall(SYS_bind, fd, address, length));
}
