/* What stands in for Codex in the tests of the sandbox: makes one attempt, says what came of it, and exits.
   "ok", or the name of the error; `calls` says one line for each system call. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
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
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
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

#define CALL(name, ...) say(#name, syscall(SYS_##name, ##__VA_ARGS__))

static void calls(void) {
  static char page[4096];
  CALL(ptrace, PTRACE_ATTACH, 1, 0, 0);
  CALL(process_vm_readv, 1, page, 1, page, 1, 0);
  CALL(process_vm_writev, 1, page, 1, page, 1, 0);
  CALL(pidfd_open, 1, 0);
  CALL(pidfd_getfd, 0, 0, 0);
  CALL(kcmp, 1, 1, 0, 0, 0);
  CALL(mount, "none", "/tmp", "tmpfs", 0, 0);
  CALL(umount2, "/tmp", 0);
  CALL(pivot_root, "/tmp", "/tmp");
  CALL(chroot, "/tmp");
  CALL(open_tree, -100, "/", 1);
  CALL(move_mount, -100, "/", -100, "/tmp", 0);
  CALL(fsopen, "tmpfs", 0);
  CALL(mount_setattr, -100, "/", 0, page, 32);
  CALL(unshare, CLONE_NEWUSER);
  CALL(setns, 0, 0);
  CALL(clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
  CALL(clone3, page, 64);
  CALL(bpf, 0, page, 64);
  CALL(perf_event_open, page, 0, -1, -1, 0);
  CALL(userfaultfd, 0);
  CALL(io_uring_setup, 1, page);
  CALL(io_uring_enter, 0, 0, 0, 0, 0, 0);
  CALL(keyctl, 0, -3, 0, 0, 0);
  CALL(add_key, "user", "x", "x", 1, -3);
  CALL(request_key, "user", "x", 0, -3);
  CALL(init_module, page, 0, "");
  CALL(finit_module, 0, "", 0);
  CALL(delete_module, "x", 0);
  CALL(kexec_load, 0, 0, 0, 0);
  CALL(kexec_file_load, 0, 0, 0, "", 0);
  CALL(reboot, 0, 0, 0, 0);
  CALL(syslog, 3, page, 100);
  CALL(acct, "/tmp/x");
  CALL(swapon, "/tmp/x", 0);
  CALL(quotactl, 0, 0, 0, 0);
  CALL(personality, 0x0400000);
  CALL(memfd_create, "x", 0);
  CALL(shmget, 1, 4096, 01600);
  CALL(msgget, 1, 01600);
  CALL(semget, 1, 1, 01600);
  CALL(mq_open, "/x", 0102, 0600, 0);
  CALL(setuid, 0);
  CALL(setgid, 0);
  CALL(setresuid, 0, 0, 0);
  CALL(setgroups, 0, 0);
  CALL(capset, page, page);
  CALL(setrlimit, RLIMIT_NOFILE, page);
  CALL(prlimit64, 0, RLIMIT_NOFILE, page, 0);
  CALL(sched_setscheduler, 0, 0, page);
  CALL(sched_setaffinity, 0, 8, page);
  CALL(setpriority, 0, 0, -20);
  CALL(name_to_handle_at, -100, "/", page, page, 0);
  CALL(open_by_handle_at, -100, page, 0);
  CALL(fanotify_init, 0, 0);
  CALL(sethostname, "x", 1);
  CALL(settimeofday, page, 0);
  CALL(clock_settime, 0, page);
  CALL(adjtimex, page);
  CALL(mknodat, -100, "/tmp/x", S_IFCHR | 0600, 0x101);
  CALL(fchownat, -100, "/tmp", 0, 0, 0);
  CALL(vmsplice, 1, page, 0, 0);
  CALL(splice, 0, 0, 1, 0, 1, 0);
  CALL(seccomp, 1, 0, page);
  CALL(process_madvise, 0, 0, 0, 0, 0);
  CALL(landlock_create_ruleset, 0, 0, 1);
  CALL(socket, AF_NETLINK, SOCK_RAW, 0);
  CALL(socket, AF_INET, SOCK_RAW, 1);
  CALL(socket, AF_INET, SOCK_DGRAM, 1);
  CALL(socket, AF_INET6, SOCK_RAW, 58);
  CALL(socket, AF_PACKET, SOCK_RAW, 0);
  CALL(socket, AF_ALG, SOCK_SEQPACKET, 0);
  CALL(socket, AF_VSOCK, SOCK_STREAM, 0);
  CALL(socket, AF_UNIX, SOCK_SEQPACKET, 0);
  CALL(socketpair, AF_INET, SOCK_STREAM, 0, page);
  CALL(setsockopt, 0, SOL_SOCKET, SO_ATTACH_FILTER, page, 16);
  CALL(ioctl, 0, TIOCSTI, "x");
  CALL(ioctl, 0, TIOCSTI | 0x100000000UL, "x");
  CALL(ioctl, 0, TIOCLINUX, "x");
  CALL(prctl, PR_SET_MM, 0, 0, 0, 0);
  CALL(mmap, 0, 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
#ifdef __x86_64__
  say("x32", syscall(0x40000000 | SYS_getpid));
  CALL(iopl, 3);
  CALL(ioperm, 0, 1, 1);
  CALL(modify_ldt, 0, page, 16);
#endif
  say("tomorrow", syscall(10000));
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

static void look(const char *path, int depth) {
  DIR *directory = opendir(path);
  struct dirent *entry;
  if (!directory) return say(path, -1);
  while ((entry = readdir(directory))) {
    char below[600];
    struct stat about;
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(below, sizeof below, "%s/%s", path[1] ? path : "", entry->d_name);
    lstat(below, &about);
    printf("%s%s\n", below, S_ISDIR(about.st_mode) ? "/" : S_ISLNK(about.st_mode) ? "@" : "");
    if (S_ISDIR(about.st_mode) && depth) look(below, depth - 1);
  }
  closedir(directory);
}

int main(int count, char **arguments) {
  const char *attempt = arguments[1], *rest = count > 2 ? arguments[2] : "";
  signal(SIGXFSZ, SIG_IGN);
  if (!strcmp(attempt, "calls")) calls();
  else if (!strcmp(attempt, "look")) look("/", 9);
  else if (!strcmp(attempt, "open")) {
    for (int i = 2; i < count; i++) say(arguments[i], open(arguments[i], O_RDONLY));
  } else if (!strcmp(attempt, "write")) {
    for (int i = 2; i < count; i++) say(arguments[i], open(arguments[i], O_WRONLY | O_CREAT, 0600));
  } else if (!strcmp(attempt, "symlinks")) {
    symlink("/bin/codex", "/home/probe/a");
    symlink("/etc/ssl/certs/ca-certificates.crt", "/home/probe/b");
    symlink("/../../../etc/passwd", "/home/probe/c");
    say("program", open("/home/probe/a", O_WRONLY));
    say("certificates", open("/home/probe/b", O_WRONLY));
    say("outside", open("/home/probe/c", O_WRONLY | O_CREAT, 0600));
    say("rename", rename("/bin/codex", "/home/probe/d"));
    say("link", link("/bin/codex", "/home/probe/d"));
    say("unlink", unlink("/etc/ssl/certs/ca-certificates.crt"));
    say("chmod", chmod("/dev/null", 0777));
  } else if (!strcmp(attempt, "environment")) {
    extern char **environ;
    for (char **one = environ; *one; one++) puts(*one);
    for (int fd = 0; fd < 65536; fd++)
      if (fcntl(fd, F_GETFD) >= 0) printf("fd %d\n", fd);
    printf("ids %d %d %d %d groups %d\n", getuid(), geteuid(), getgid(), getegid(), getuid() == 1000 ? 0 : getgroups(0, 0));
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    (void)header;
    for (int capability = 0; capability < 64; capability++)
      if (prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1) printf("bounding %d\n", capability);
    printf("no_new_privs %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    struct rlimit limit;
    getrlimit(RLIMIT_CORE, &limit);
    printf("core %ld\n", (long)limit.rlim_max);
  } else if (!strcmp(attempt, "processes")) {
    int seen = 0;
    for (int pid = 1; pid < 4200000; pid++) seen += !kill(pid, 0);
    printf("seen %d\n", seen);
    say("kill init", kill(1, SIGKILL));
    printf("parent %d\n", getppid());
    say("group", kill(-getppid(), SIGKILL));
  } else if (!strcmp(attempt, "connect")) {
    connect_to("127.0.0.1", atoi(rest));
    connect_to("169.254.169.254", 80);
    connect_to("10.0.0.1", 80);
    connect_to("192.0.2.1", 443);
    connect_unix(arguments[3], 0);
    connect_unix(arguments[4], 1);
  } else if (!strcmp(attempt, "setuid")) {
    int from = open("/bin/codex", O_RDONLY), to = open("/home/probe/su", O_CREAT | O_WRONLY, 0755), length;
    static char buffer[65536];
    while ((length = read(from, buffer, sizeof buffer)) > 0 && write(to, buffer, length) == length);
    close(to);
    say("chmod", chmod("/home/probe/su", 06755));
    char *list[] = {"su", "environment", 0};
    say("exec", execv("/home/probe/su", list));
  } else if (!strcmp(attempt, "forks")) {
    int made = 0;
    for (; made < 100000; made++) {
      pid_t pid = fork();
      if (pid < 0) break;
      if (!pid) pause_until_killed();
    }
    say(made < 300 ? "fork" : "fork, too many", -1);
  } else if (!strcmp(attempt, "memory")) {
    char *one = malloc(1 << 30);
    say("1 GiB", one ? 0 : -1);
    long megabytes = 0;
    char *some;
    while (megabytes < 4096 && (some = malloc(1 << 20))) memset(some, 1, 1 << 20), megabytes++;
    printf("%s\n", megabytes < 800 ? "less than 800 MiB" : "too much");
  } else if (!strcmp(attempt, "disk")) {
    static char block[1 << 20];
    const char *where[] = {"/home/probe", "/tmp"};
    for (int i = 0; i < 2; i++) {
      long written = 0;
      for (int file = 0; file < 100; file++) {
        char path[99];
        sprintf(path, "%s/f%d", where[i], file);
        int fd = open(path, O_CREAT | O_WRONLY, 0600);
        for (int n = 0; fd >= 0 && n < 10 && write(fd, block, sizeof block) == sizeof block; n++) written++;
        close(fd);
      }
      printf("%s %s\n", where[i], written <= 64 ? "64 MiB or less" : "too much");
    }
  } else if (!strcmp(attempt, "files")) {
    int made = 0;
    for (; made < 100000; made++) {
      char path[99];
      sprintf(path, "/home/probe/f%d", made);
      int fd = open(path, O_CREAT | O_WRONLY, 0600);
      if (fd < 0) break;
      close(fd);
    }
    say(made < 4096 ? "open" : "open, too many", -1);
  } else if (!strcmp(attempt, "descriptors")) {
    int made = 0;
    while (made < 100000 && dup(0) >= 0) made++;
    say(made < 256 ? "dup" : "dup, too many", -1);
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
    int fd = open("/home/probe/.codex/auth.json", O_WRONLY | O_TRUNC);
    for (int n = 0; n < 3; n++) write(fd, block, sizeof block);
  } else if (!strcmp(attempt, "rewrite")) {
    char text[99];
    for (int n = 0; n < 20000; n++) {
      sprintf(text, "%d", n);
      put("/home/probe/.codex/auth.json", text);
    }
  } else return 99;
  return 7;
}
