/* Preloaded into the daemon by the power-cut test: records every call that changes something below a directory, in the
 * order of the calls, with the written data.
 *
 *   RECORD_DIRECTORY  absolute, without symbolic links; it is there already
 *   RECORD_LOG        the log, outside of the directory
 *
 * The log is a sequence of records: the header below and data, `length` bytes together. Each record is one write with
 * O_APPEND, so the test can add its own records (kind MARK). power/log.rs reads the log.
 *
 * A mutex serialises the calls, and each call is recorded before the next one. Syncs run in parallel with other calls:
 * one record when they begin, one when they return. Writes before the first record are certain after the second.
 * sync_file_range makes nothing certain and has no record.
 *
 * A call that cannot be recorded (a shared writable mapping, a punched hole, a symbolic link) leaves a record of kind
 * FAILED and ends the process. */
#include "disk_calls.h"

#include <limits.h>
#include <stdint.h>
#include <stdio.h>

enum record_kind {
  CREATE = 1, MKDIR = 2, WRITE = 3, LENGTH = 4, EXTEND = 5, MODE = 6, SYNC_BEGIN = 7, SYNC_END = 8, LINK = 9,
  UNLINK = 10, RENAME = 11, MARK = 12, FAILED = 13,
};

/* In the byte order of the machine. Files and directories are inode numbers. */
struct record {
  uint32_t length, kind;
  uint64_t file;
  /* CREATE, MKDIR, LINK, UNLINK, RENAME: the directory. WRITE: the offset. LENGTH, EXTEND: the length. MODE: the mode.
   * SYNC_BEGIN, SYNC_END: the number of the sync. */
  uint64_t first;
  /* CREATE, MKDIR: the mode. RENAME: the other directory. SYNC_END: errno, or 0. */
  uint64_t second;
};

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX];
static size_t directory_length;
static dev_t device;
static int log_fd = -1;
static uint64_t syncs;

__attribute__((constructor)) static void start(void) {
  const char *name = getenv("RECORD_DIRECTORY"), *log = getenv("RECORD_LOG");
  struct stat about;
  unsetenv("LD_PRELOAD");
  if (!name || !log || strlen(name) >= sizeof directory || stat(name, &about) != 0) abort();
  strcpy(directory, name);
  directory_length = strlen(name);
  device = about.st_dev;
  log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (log_fd < 0) abort();
}

static void append(struct record record, struct iovec *parts, int count) {
  record.length = sizeof record;
  for (int part = 1; part < count; part++) record.length += parts[part].iov_len;
  parts[0] = (struct iovec){&record, sizeof record};
  /* Half a record would spoil all that follow. */
  if (syscall(SYS_writev, log_fd, parts, count) != (long)record.length) abort();
}

static void append_text(struct record record, const char *text, size_t length) {
  struct iovec parts[2] = {{0}, {(void *)text, length}};
  append(record, parts, 2);
}

static void append_bare(struct record record) { append_text(record, "", 0); }

static void fail(const struct call *call, const char *path) {
  char text[PATH_MAX + 64];
  int length = snprintf(text, sizeof text, "%s of %s", call->name, path);
  append_text((struct record){.kind = FAILED}, text, length);
  abort();
}

static int is_below(const char *path) {
  return strncmp(path, directory, directory_length) == 0 &&
         (path[directory_length] == '/' || path[directory_length] == 0);
}

/* The path of an open file; of one that is gone from its directory, with " (deleted)" behind it. */
static int path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  if (length < 0) return -1;
  path[length] = 0;
  return 0;
}

/* The inode of an open file below the directory; 0 for any other descriptor. */
static uint64_t recorded(int fd, char *path) {
  struct stat about;
  int error = errno;
  uint64_t inode = 0;
  if (fd > 2 && fstat(fd, &about) == 0 && about.st_dev == device && (S_ISREG(about.st_mode) || S_ISDIR(about.st_mode)) &&
      path_of(fd, path) == 0 && is_below(path)) {
    inode = about.st_ino;
  }
  errno = error;
  return inode;
}

/* The directory of a path and the name in it. */
struct place {
  uint64_t directory;
  const char *name;
};

/* 0 where it is not below the directory. */
static int find(int dir, const char *path, struct place *place) {
  char parent[PATH_MAX], real[PATH_MAX];
  struct stat about;
  int error = errno, found = 0;
  const char *slash = strrchr(path, '/');
  place->name = slash ? slash + 1 : path;
  if (strlen(path) < sizeof parent && *place->name) {
    if (slash) {
      memcpy(parent, path, slash - path + 1);
      parent[slash - path + 1] = 0;
    } else {
      strcpy(parent, ".");
    }
    int fd = syscall(SYS_openat, dir, parent, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
    if (fd >= 0) {
      found = path_of(fd, real) == 0 && is_below(real) && fstat(fd, &about) == 0;
      if (found) place->directory = about.st_ino;
      syscall(SYS_close, fd);
    }
  }
  errno = error;
  return found;
}

static uint64_t inode_at(int dir, const char *path) {
  struct stat about;
  int error = errno;
  uint64_t inode = fstatat(dir, path, &about, AT_SYMLINK_NOFOLLOW) == 0 ? about.st_ino : 0;
  errno = error;
  return inode;
}

static uint64_t mode_of(int dir, const char *path) {
  struct stat about;
  return fstatat(dir, path, &about, 0) == 0 ? about.st_mode & 07777 : 0;
}

static void record_write(int fd, uint64_t file, const struct iovec *from, int count, size_t written, off_t offset) {
  static struct iovec parts[IOV_MAX + 1];
  int used = 1;
  for (int part = 0; part < count && written > 0; part++) {
    size_t length = from[part].iov_len < written ? from[part].iov_len : written;
    parts[used++] = (struct iovec){from[part].iov_base, length};
    written -= length;
  }
  /* Where the file stands now is behind what was written, with O_APPEND too. */
  if (offset < 0) {
    offset = lseek(fd, 0, SEEK_CUR);
    for (int part = 1; part < used; part++) offset -= parts[part].iov_len;
  }
  append((struct record){.kind = WRITE, .file = file, .first = offset}, parts, used);
}

/* Once it was done. Calls that failed have changed nothing. */
static void record_call_of_file(struct call *call, uint64_t file, const char *path, long result) {
  const long *a = call->arguments;
  struct iovec whole = {(void *)a[1], a[2]};
  switch (call->kind) {
    case CALL_WRITE: record_write(a[0], file, &whole, 1, result, -1); break;
    case CALL_WRITEV: record_write(a[0], file, (struct iovec *)a[1], a[2], result, -1); break;
    case CALL_PWRITE: record_write(a[0], file, &whole, 1, result, a[3]); break;
    case CALL_PWRITEV: record_write(a[0], file, (struct iovec *)a[1], a[2], result, a[3]); break;
    case CALL_FTRUNCATE: append_bare((struct record){.kind = LENGTH, .file = file, .first = a[1]}); break;
    case CALL_FCHMOD: append_bare((struct record){.kind = MODE, .file = file, .first = a[1]}); break;
    case CALL_FALLOCATE:
      if (a[1] == 0) append_bare((struct record){.kind = EXTEND, .file = file, .first = a[2] + a[3]});
      else if (a[1] != FALLOC_FL_KEEP_SIZE) fail(call, path);
      break;
    default: break;
  }
}

static long sync_call(struct call *call, uint64_t file) {
  pthread_mutex_lock(&one_at_a_time);
  uint64_t number = ++syncs;
  append_bare((struct record){.kind = SYNC_BEGIN, .file = file, .first = number});
  pthread_mutex_unlock(&one_at_a_time);
  long result = perform(call);
  int error = errno;
  pthread_mutex_lock(&one_at_a_time);
  append_bare((struct record){.kind = SYNC_END, .file = file, .first = number, .second = result == 0 ? 0 : error});
  pthread_mutex_unlock(&one_at_a_time);
  errno = error;
  return result;
}

static long call_of_file(struct call *call) {
  const long *a = call->arguments;
  char path[PATH_MAX];
  uint64_t file = recorded(a[0], path);
  if (!file || call->kind == CALL_SYNC_RANGE) return perform(call);
  if (call->kind == CALL_SYNC) return sync_call(call, file);
  if (call->kind == CALL_SYNCFS) return sync_call(call, 0);
  pthread_mutex_lock(&one_at_a_time);
  /* The offset of such a write is not its argument. */
  if ((call->kind == CALL_PWRITE || call->kind == CALL_PWRITEV) && syscall(SYS_fcntl, a[0], F_GETFL) & O_APPEND) {
    fail(call, path);
  }
  long result = perform(call);
  int error = errno;
  int writes = call->kind <= CALL_PWRITEV;
  if (result > 0 || (result == 0 && !writes)) record_call_of_file(call, file, path, result);
  pthread_mutex_unlock(&one_at_a_time);
  errno = error;
  return result;
}

static long map(struct call *call) {
  const long *a = call->arguments;
  char path[PATH_MAX];
  if ((a[3] & MAP_SHARED) && (a[2] & PROT_WRITE) && recorded(a[4], path)) fail(call, path);
  return perform(call);
}

/* Under the mutex. */
static long open_call(struct call *call) {
  const long *a = call->arguments;
  char path[PATH_MAX];
  struct place place;
  uint64_t before = inode_at(a[0], (char *)a[1]);
  long fd = perform(call);
  uint64_t file = fd < 0 ? 0 : recorded(fd, path);
  if (!file) return fd;
  if ((a[2] & O_TMPFILE) == O_TMPFILE || !find(a[0], (char *)a[1], &place)) fail(call, path);
  if (!before) {
    struct record made = {.kind = CREATE, .file = file, .first = place.directory, .second = mode_of(a[0], (char *)a[1])};
    append_text(made, place.name, strlen(place.name));
  } else if (a[2] & O_TRUNC) {
    append_bare((struct record){.kind = LENGTH, .file = file, .first = 0});
  }
  return fd;
}

static void record_rename(struct call *call, uint64_t file, struct place *from, struct place *to) {
  char names[2 * NAME_MAX + 2];
  int length = snprintf(names, sizeof names, "%s/%s", from->name, to->name);
  if (call->arguments[4] & ~1L /* RENAME_NOREPLACE */) fail(call, names);
  append_text((struct record){.kind = RENAME, .file = file, .first = from->directory, .second = to->directory}, names,
              length);
}

/* Of paths, under the mutex. */
static long path_call(struct call *call) {
  const long *a = call->arguments;
  struct place from, to;
  int is_from, is_to;
  uint64_t file;
  long result;
  switch (call->kind) {
    case CALL_OPEN: return open_call(call);
    case CALL_TRUNCATE:
      result = perform(call);
      if (result == 0 && find(AT_FDCWD, (char *)a[0], &from)) {
        append_bare((struct record){.kind = LENGTH, .file = inode_at(AT_FDCWD, (char *)a[0]), .first = a[1]});
      }
      return result;
    case CALL_CHMOD:
      result = perform(call);
      if (result == 0 && (find(a[0], (char *)a[1], &from) || strcmp((char *)a[1], directory) == 0)) {
        append_bare((struct record){.kind = MODE, .file = inode_at(a[0], (char *)a[1]), .first = a[2]});
      }
      return result;
    case CALL_RENAME:
      is_from = find(a[0], (char *)a[1], &from);
      is_to = find(a[2], (char *)a[3], &to);
      file = inode_at(a[0], (char *)a[1]);
      result = perform(call);
      if (result == 0 && is_from != is_to) fail(call, (char *)a[1]);
      if (result == 0 && is_from) record_rename(call, file, &from, &to);
      return result;
    case CALL_LINK:
      is_from = find(a[0], (char *)a[1], &from);
      is_to = find(a[2], (char *)a[3], &to);
      result = perform(call);
      if (result == 0 && is_to && !is_from) fail(call, (char *)a[3]);
      if (result == 0 && is_to) {
        struct record made = {.kind = LINK, .file = inode_at(a[2], (char *)a[3]), .first = to.directory};
        append_text(made, to.name, strlen(to.name));
      }
      return result;
    case CALL_UNLINK:
      is_from = find(a[0], (char *)a[1], &from);
      file = inode_at(a[0], (char *)a[1]);
      result = perform(call);
      if (result == 0 && is_from) {
        append_text((struct record){.kind = UNLINK, .file = file, .first = from.directory}, from.name,
                    strlen(from.name));
      }
      return result;
    case CALL_MKDIR:
      result = perform(call);
      if (result == 0 && find(a[0], (char *)a[1], &to)) {
        struct record made = {.kind = MKDIR,
                              .file = inode_at(a[0], (char *)a[1]),
                              .first = to.directory,
                              .second = mode_of(a[0], (char *)a[1])};
        append_text(made, to.name, strlen(to.name));
      }
      return result;
    case CALL_SYMLINK:
      if (find(a[1], (char *)a[2], &to)) fail(call, (char *)a[2]);
      return perform(call);
    case CALL_BIND:
      if (is_below(((struct sockaddr *)a[1])->sa_data)) fail(call, ((struct sockaddr *)a[1])->sa_data);
      return perform(call);
    default: abort();
  }
}

static long disk_call(struct call *call) {
  if (call->kind <= LAST_CALL_OF_FILE) return call_of_file(call);
  if (call->kind == CALL_MAP) return map(call);
  pthread_mutex_lock(&one_at_a_time);
  long result = path_call(call);
  int error = errno;
  pthread_mutex_unlock(&one_at_a_time);
  errno = error;
  return result;
}
