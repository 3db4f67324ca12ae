/* The calls of libc that change what is on disk, for libraries that are preloaded into the daemon (crash_at.c,
 * record_disk.c).
 *
 * Each function here describes its call and hands it to `disk_call`, which the including library defines and which
 * makes the call with `perform`, directly and not through the next library. Calls that have an older and a newer form
 * are described in the newer one: a rename is always a renameat2. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
  /* Of an open file, their first argument. */
  CALL_WRITE, CALL_WRITEV, CALL_PWRITE, CALL_PWRITEV, CALL_SYNC, CALL_SYNC_RANGE, CALL_SYNCFS, CALL_FTRUNCATE,
  CALL_FALLOCATE, CALL_FCHMOD, CALL_COPY,
  LAST_CALL_OF_FILE = CALL_COPY,
  /* A mapping is of the file in its fifth argument. */
  CALL_MAP,
  /* Of paths. */
  CALL_OPEN, CALL_TRUNCATE, CALL_CHMOD, CALL_RENAME, CALL_LINK, CALL_SYMLINK, CALL_UNLINK, CALL_MKDIR, CALL_BIND,
};

struct call {
  enum kind kind;
  const char *name;
  long number, arguments[6];
};

/* The result as of libc: -1, and errno. */
static long disk_call(struct call *call);

static long perform(const struct call *call) {
  const long *a = call->arguments;
  return syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Of files and directories only; the terminal, pipes and sockets are no disk. */
static int on_disk(int fd) {
  struct stat about;
  int error = errno;
  int yes = fd > 2 && fstat(fd, &about) == 0 && (S_ISREG(about.st_mode) || S_ISDIR(about.st_mode));
  errno = error;
  return yes;
}

#define CALL(kind, name, number, ...) disk_call(&(struct call){kind, name, number, {__VA_ARGS__}})

static int open_at(int dir, const char *path, int flags, va_list rest) {
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  if (flags & (O_CREAT | O_TRUNC)) return CALL(CALL_OPEN, "open", SYS_openat, dir, (long)path, flags, mode);
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
int creat(const char *path, mode_t mode) {
  return CALL(CALL_OPEN, "open", SYS_openat, AT_FDCWD, (long)path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

ssize_t write(int fd, const void *from, size_t length) {
  return CALL(CALL_WRITE, "write", SYS_write, fd, (long)from, length);
}
ssize_t writev(int fd, const struct iovec *from, int count) {
  return CALL(CALL_WRITEV, "writev", SYS_writev, fd, (long)from, count);
}
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t offset) {
  return CALL(CALL_PWRITE, "pwrite64", SYS_pwrite64, fd, (long)from, length, offset);
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t offset) { return pwrite64(fd, from, length, offset); }
ssize_t pwritev64(int fd, const struct iovec *from, int count, off64_t offset) {
  return CALL(CALL_PWRITEV, "pwritev", SYS_pwritev, fd, (long)from, count, offset, 0);
}
ssize_t pwritev(int fd, const struct iovec *from, int count, off_t offset) {
  return pwritev64(fd, from, count, offset);
}
ssize_t pwritev64v2(int fd, const struct iovec *from, int count, off64_t offset, int flags) {
  return CALL(CALL_PWRITEV, "pwritev", SYS_pwritev2, fd, (long)from, count, offset, 0, flags);
}
ssize_t pwritev2(int fd, const struct iovec *from, int count, off_t offset, int flags) {
  return pwritev64v2(fd, from, count, offset, flags);
}

int fsync(int fd) { return CALL(CALL_SYNC, "fsync", SYS_fsync, fd); }
int fdatasync(int fd) { return CALL(CALL_SYNC, "fdatasync", SYS_fdatasync, fd); }
int syncfs(int fd) { return CALL(CALL_SYNCFS, "syncfs", SYS_syncfs, fd); }
int sync_file_range(int fd, off64_t offset, off64_t length, unsigned flags) {
  return CALL(CALL_SYNC_RANGE, "sync_file_range", SYS_sync_file_range, fd, offset, length, flags);
}
int ftruncate64(int fd, off64_t length) { return CALL(CALL_FTRUNCATE, "ftruncate", SYS_ftruncate, fd, length); }
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  return CALL(CALL_FALLOCATE, "fallocate", SYS_fallocate, fd, mode, offset, length);
}
int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }
/* Not the emulation of libc, which writes. */
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return fallocate64(fd, 0, offset, length) ? errno : 0; }
int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }
int fchmod(int fd, mode_t mode) { return CALL(CALL_FCHMOD, "fchmod", SYS_fchmod, fd, mode); }

/* Their first argument is the file that is written, and their number is one that no kernel has: whoever copies falls
 * back to reading and writing. */
ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t length, unsigned flags) {
  (void)from, (void)from_offset, (void)to_offset, (void)length, (void)flags;
  return CALL(CALL_COPY, "copy_file_range", -1, to);
}
ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) {
  if (!on_disk(to)) return syscall(SYS_sendfile, to, from, offset, count);
  return CALL(CALL_COPY, "sendfile", -1, to);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t count) { return sendfile64(to, from, offset, count); }

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off64_t offset) {
  if (fd < 0) return (void *)syscall(SYS_mmap, address, length, protection, flags, fd, offset);
  return (void *)CALL(CALL_MAP, "mmap", SYS_mmap, (long)address, length, protection, flags, fd, offset);
}
void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
  return mmap64(address, length, protection, flags, fd, offset);
}

int truncate64(const char *path, off64_t length) {
  return CALL(CALL_TRUNCATE, "truncate", SYS_truncate, (long)path, length);
}
int truncate(const char *path, off_t length) { return truncate64(path, length); }
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
  return CALL(CALL_RENAME, "rename", SYS_renameat2, from_dir, (long)from, to_dir, (long)to, flags);
}
int renameat(int from_dir, const char *from, int to_dir, const char *to) {
  return renameat2(from_dir, from, to_dir, to, 0);
}
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
  return CALL(CALL_LINK, "link", SYS_linkat, from_dir, (long)from, to_dir, (long)to, flags);
}
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
int symlinkat(const char *from, int dir, const char *to) {
  return CALL(CALL_SYMLINK, "symlink", SYS_symlinkat, (long)from, dir, (long)to);
}
int symlink(const char *from, const char *to) { return symlinkat(from, AT_FDCWD, to); }
int unlinkat(int dir, const char *path, int flags) {
  return CALL(CALL_UNLINK, "unlink", SYS_unlinkat, dir, (long)path, flags);
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int dir, const char *path, mode_t mode) {
  return CALL(CALL_MKDIR, "mkdir", SYS_mkdirat, dir, (long)path, mode);
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
int fchmodat(int dir, const char *path, mode_t mode, int flags) {
  (void)flags;
  return CALL(CALL_CHMOD, "chmod", SYS_fchmodat, dir, (long)path, mode);
}
int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }
int bind(int fd, const struct sockaddr *address, socklen_t length) {
  if (address->sa_family != AF_UNIX) return syscall(SYS_bind, fd, address, length);
  return CALL(CALL_BIND, "bind", SYS_bind, fd, (long)address, length);
}
