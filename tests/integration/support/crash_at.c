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
 * One call at a time: whatever was counted before the N-th is done, and nothing after it is begun. crash.rs checks with
 * strace that no call is missing in disk_calls.h. */
#include "disk_calls.h"

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

static long disk_call(struct call *call) {
  if (call->kind == CALL_MAP || call->kind == CALL_COPY) return perform(call);
  if (call->kind <= LAST_CALL_OF_FILE && !on_disk(call->arguments[0])) return perform(call);
  if (begin(call->name, call->kind == CALL_WRITE || call->kind == CALL_PWRITE)) {
    call->arguments[2] /= 2;
    perform(call);
    die();
  }
  return end(perform(call));
}
