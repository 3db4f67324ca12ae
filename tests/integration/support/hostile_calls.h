/* Part of hostile.c: one system call each, in groups. */

/* With what no call can do harm with: bad pointers, bad descriptors, unknown flags. */
struct call {
  const char *name;
  long number, a, b, c;
};

#define BAD -1L, -1L, -1L
#define CALL(name) {#name, SYS_##name, BAD}
#ifndef SYS_statmount
#define SYS_statmount 457
#define SYS_listmount 458
#endif
#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

static const struct call CALLS[] = {
    /* Other processes. */
    CALL(ptrace), CALL(process_vm_readv), CALL(process_vm_writev), CALL(pidfd_open), CALL(pidfd_getfd),
    CALL(pidfd_send_signal), CALL(process_madvise), CALL(kcmp), CALL(rt_sigqueueinfo), CALL(rt_tgsigqueueinfo),
    CALL(setsid), CALL(sched_setaffinity), CALL(sched_setscheduler), CALL(sched_setattr), CALL(setpriority), CALL(ioprio_set),
    CALL(move_pages), CALL(migrate_pages), CALL(perf_event_open),
    /* Namespaces and mounts. */
    CALL(unshare), CALL(setns), {"clone3", SYS_clone3, -1, 88, 0}, CALL(mount), CALL(umount2), CALL(pivot_root),
    CALL(chroot), CALL(fsopen), CALL(fsconfig), CALL(fsmount), CALL(fspick), CALL(move_mount), CALL(open_tree),
    CALL(mount_setattr), CALL(statmount), CALL(listmount), CALL(name_to_handle_at), CALL(open_by_handle_at),
    /* The kernel itself. */
    CALL(init_module), CALL(finit_module), CALL(delete_module), CALL(kexec_load), {"reboot", SYS_reboot, BAD},
    CALL(bpf), CALL(userfaultfd), CALL(io_uring_setup), CALL(io_uring_enter), CALL(io_uring_register), CALL(add_key),
    CALL(request_key), CALL(keyctl), CALL(syslog), CALL(acct), CALL(swapon), CALL(swapoff), CALL(quotactl),
    CALL(settimeofday), CALL(clock_settime), CALL(clock_adjtime), CALL(adjtimex), CALL(sethostname),
    CALL(setdomainname), CALL(personality), CALL(seccomp), CALL(fanotify_init), CALL(fanotify_mark),
    CALL(landlock_create_ruleset),
    /* Memory that no limit counts, and memory that stays. */
    CALL(memfd_create), CALL(memfd_secret), {"shmget", SYS_shmget, -1, 4096, 0}, CALL(shmat), CALL(shmctl),
    {"msgget", SYS_msgget, -1, 0, 0}, {"semget", SYS_semget, -1, 1, 0}, CALL(mq_open), CALL(mlock2), CALL(mlockall),
    CALL(mbind), CALL(set_mempolicy), CALL(remap_file_pages), CALL(vmsplice), CALL(splice), CALL(tee),
    /* Who it is, and what it may. */
    CALL(setuid), CALL(setgid), CALL(setreuid), CALL(setresuid), CALL(setresgid), CALL(setfsuid), CALL(setgroups),
    CALL(capget), CALL(capset), CALL(setrlimit), CALL(chown), CALL(fchown), CALL(lchown), CALL(fchownat), CALL(mknod),
    CALL(mknodat), CALL(setxattr), CALL(fsetxattr), CALL(execveat), CALL(timer_create),
#ifdef __x86_64__
    CALL(iopl), CALL(ioperm), {"modify_ldt", SYS_modify_ldt, 0, -1, 16}, CALL(kexec_file_load), CALL(uselib),
#endif
};

/* A line for each; whether one was looked at. */
static int each(long bit) {
  int code = REFUSED;
  for (size_t n = 0; n < sizeof CALLS / sizeof *CALLS; n++) {
    const struct call *it = CALLS + n;
    dprintf(1, "%s ", it->name);
    if (looked_at(syscall(bit | it->number, it->a, it->b, it->c, -1L, -1L, -1L)) == ESCAPED) code = ESCAPED;
  }
  return code;
}

static int calls(char **a) {
  (void)a;
  return each(0);
}

static int x32_calls(char **a) {
  (void)a;
  return each(0x40000000);
}

struct row {
  const char *name;
  long a, b, c;
};
#define EACH(it, rows) for (const struct row *it = rows; it->name; it++)

static int sockets(char **a) {
  static const struct row rows[] = {
      {"raw", AF_INET, SOCK_RAW, IPPROTO_ICMP},   {"raw6", AF_INET6, SOCK_RAW, IPPROTO_ICMPV6},
      {"raw-ip", AF_INET, SOCK_RAW, IPPROTO_RAW}, {"ping", AF_INET, SOCK_DGRAM, IPPROTO_ICMP},
      {"packet", AF_PACKET, SOCK_RAW, 0x300},     {"route", AF_NETLINK, SOCK_RAW, 0},
      {"uevent", AF_NETLINK, SOCK_DGRAM, 15},     {"audit", AF_NETLINK, SOCK_RAW, 9},
      {"netfilter", AF_NETLINK, SOCK_RAW, 12},    {"vsock", AF_VSOCK, SOCK_STREAM, 0},
      {"alg", AF_ALG, SOCK_SEQPACKET, 0},         {"key", AF_KEY, SOCK_RAW, 2},
      {"can", AF_CAN, SOCK_RAW, 1},               {"bluetooth", AF_BLUETOOTH, SOCK_RAW, 1},
      {"xdp", AF_XDP, SOCK_RAW, 0},               {"tipc", AF_TIPC, SOCK_STREAM, 0},
      {"rds", AF_RDS, SOCK_SEQPACKET, 0},         {"smc", AF_SMC, SOCK_STREAM, 0},
      {"sctp", AF_INET, SOCK_STREAM, 132},        {"mptcp", AF_INET, SOCK_STREAM, 262},
      {"udplite", AF_INET, SOCK_DGRAM, 136},      {"unix-seqpacket", AF_UNIX, SOCK_SEQPACKET, 0},
      {"high-bits", (1L << 32) | AF_NETLINK, SOCK_RAW, 0}, {NULL, 0, 0, 0}};
  int code = REFUSED;
  (void)a;
  EACH(it, rows) {
    dprintf(1, "%s ", it->name);
    if (answered(syscall(SYS_socket, it->a, it->b, it->c), "it has one") == ESCAPED) code = ESCAPED;
  }
  return code;
}

static int options(char **a) {
  static const struct row rows[] = {
      {"attach-filter", SOL_SOCKET, 26, 0},  {"attach-bpf", SOL_SOCKET, 50, 0},
      {"reuseport-cbpf", SOL_SOCKET, 51, 0}, {"reuseport-ebpf", SOL_SOCKET, 52, 0},
      {"tcp-ulp", IPPROTO_TCP, 31, 0},       {"iptables", IPPROTO_IP, 64, 0},
      {"ip6tables", IPPROTO_IPV6, 64, 0},    {"ip-options", IPPROTO_IP, 4, 0},
      {"sndbuf", SOL_SOCKET, SO_SNDBUF, 0},  {"rcvbuf", SOL_SOCKET, SO_RCVBUF, 0},
      {"sndbufforce", SOL_SOCKET, SO_SNDBUFFORCE, 0}, {"rcvbufforce", SOL_SOCKET, SO_RCVBUFFORCE, 0},
      {"high-bits", SOL_SOCKET, (1L << 32) | 26, 0}, {NULL, 0, 0, 0}};
  int fd = socket(AF_INET, SOCK_STREAM, 0), code = REFUSED;
  (void)a;
  if (fd < 0) return say(CANNOT, "have a socket: %s", name_of(errno));
  EACH(it, rows) {
    dprintf(1, "%s ", it->name);
    if (looked_at(syscall(SYS_setsockopt, fd, it->a, it->b, -1L, 16L)) == ESCAPED) code = ESCAPED;
  }
  return code;
}

static int in_another_table(void *a) {
  (void)a;
  syscall(SYS_exit, 0);
  return 0;
}

/* Each way to start something that has limits of its own: another process, or a thread with its own open files. */
static int processes(char **a) {
  static char stack[65536];
  int code = REFUSED;
  (void)a;
  for (int way = 0; way < 5; way++) {
    static const char *names[] = {"fork", "vfork", "clone", "clone-in-its-memory", "thread-with-its-own-files"};
    long pid;
    dprintf(1, "%s ", names[way]);
    if (way == 0) {
      pid = syscall(SYS_fork);
      if (pid == 0) _exit(0);
    } else if (way == 1) {
      pid = vfork();
      if (pid == 0) _exit(0);
    } else if (way == 2) {
      pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
      if (pid == 0) _exit(0);
    } else if (way == 3) {
      pid = clone(in_another_table, stack + sizeof stack, CLONE_VM | CLONE_FILES | CLONE_SIGHAND | SIGCHLD, NULL);
    } else {
      pid = clone(in_another_table, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, NULL);
    }
    if (answered(pid, "it has one") == ESCAPED) code = ESCAPED;
    wait_ms(20);
  }
  return code;
}

static int prctls(char **a) {
  static const struct row rows[] = {
      {"seccomp", PR_SET_SECCOMP, -1, 0},    {"keepcaps", PR_SET_KEEPCAPS, -1, 0}, {"securebits", PR_SET_SECUREBITS, -1, 0},
      {"ptracer", PR_SET_PTRACER, -1, 0},    {"mm", PR_SET_MM, -1, 0},             {"ambient", PR_CAP_AMBIENT, -1, 0},
      {"capbset-drop", PR_CAPBSET_DROP, -1, 0}, {"subreaper", PR_SET_CHILD_SUBREAPER, 0, 0},
      {"get-securebits", PR_GET_SECUREBITS, 0, 0},  {NULL, 0, 0, 0}};
  int code = REFUSED;
  (void)a;
  EACH(it, rows) {
    dprintf(1, "%s ", it->name);
    if (looked_at(syscall(SYS_prctl, it->a, it->b, it->c, 0L, 0L)) == ESCAPED) code = ESCAPED;
  }
  return code;
}

/* DESCRIPTOR: words in the mouth of whoever types there. */
static int terminal(char **a) {
  char letter = 'x', paste[2] = {3, 0};
  int fd = number(a[0]), code = REFUSED;
  const struct {
    const char *name;
    unsigned long request;
    void *what;
  } rows[] = {{"TIOCSTI", TIOCSTI, &letter},
              {"TIOCSTI-high-bits", (1UL << 32) | TIOCSTI, &letter},
              {"TIOCLINUX", TIOCLINUX, paste},
              {"TIOCSCTTY", TIOCSCTTY, (void *)1},
              {"TIOCSETD", TIOCSETD, (void *)-1L},
              {"TCSETS", TCSETS, (void *)-1L},
              {"TIOCGPTPEER", 0x5441, NULL},
              {NULL, 0, NULL}};
  for (int n = 0; rows[n].name; n++) {
    long result = syscall(SYS_ioctl, fd, rows[n].request, rows[n].what);
    if (result < 0) {
      dprintf(fd, "%s refused: %s\n", rows[n].name, name_of(errno));
    } else {
      dprintf(fd, "%s ESCAPED: done\n", rows[n].name);
      code = ESCAPED;
    }
  }
  return code;
}

/* Each kind, in each way to have a new one. */
static int namespaces(char **a) {
  static const struct row kinds[] = {{"user", CLONE_NEWUSER, 0, 0},     {"mount", CLONE_NEWNS, 0, 0},
                                     {"pid", CLONE_NEWPID, 0, 0},       {"net", CLONE_NEWNET, 0, 0},
                                     {"ipc", CLONE_NEWIPC, 0, 0},       {"uts", CLONE_NEWUTS, 0, 0},
                                     {"cgroup", CLONE_NEWCGROUP, 0, 0}, {"user-and-mount", CLONE_NEWUSER | CLONE_NEWNS, 0, 0},
                                     {NULL, 0, 0, 0}};
  int code = REFUSED;
  (void)a;
  EACH(it, kinds) {
    struct clone_args three = {.flags = it->a, .exit_signal = SIGCHLD};
    /* In a child of its own, so that one does not stand in the other's way. */
    for (int way = 0; way < 3; way++) {
      int status;
      pid_t pid = fork();
      if (pid == 0) {
        static const char *const WAYS[] = {"clone", "clone3", "unshare"};
        long result = way == 0   ? syscall(SYS_clone, it->a | SIGCHLD, 0L, 0L, 0L, 0L)
                      : way == 1 ? syscall(SYS_clone3, &three, sizeof three)
                                 : syscall(SYS_unshare, it->a);
        /* The new one itself. */
        if (way < 2 && result == 0) _exit(0);
        dprintf(1, "%s-%s ", WAYS[way], it->name);
        _exit(answered(result, "it has one"));
      }
      waitpid(pid, &status, 0);
      if (WIFEXITED(status) && WEXITSTATUS(status) == ESCAPED) code = ESCAPED;
    }
  }
  return code;
}

/* As somebody would who means it. */
static int mounts(char **a) {
  static const struct {
    const char *name;
    long number, a, b, c, d;
  } rows[] = {
      {"tmpfs", SYS_mount, (long)"tmpfs", (long)"/tmp", (long)"tmpfs", 0},
      {"proc", SYS_mount, (long)"proc", (long)"/tmp", (long)"proc", 0},
      {"bind", SYS_mount, (long)"/", (long)"/tmp", 0, MS_BIND},
      {"remount", SYS_mount, 0, (long)"/tmp", 0, MS_REMOUNT | MS_BIND},
      {"shared", SYS_mount, 0, (long)"/tmp", 0, MS_SHARED},
      {"fsopen", SYS_fsopen, (long)"tmpfs", 0, 0, 0},
      {"open-tree", SYS_open_tree, AT_FDCWD, (long)"/", 1, 0},
      {"umount", SYS_umount2, (long)"/tmp", MNT_DETACH, 0, 0},
      {"chroot", SYS_chroot, (long)"/tmp", 0, 0, 0},
  };
  int code = REFUSED;
  (void)a;
  for (size_t n = 0; n < sizeof rows / sizeof *rows; n++) {
    dprintf(1, "%s ", rows[n].name);
    long result = syscall(rows[n].number, rows[n].a, rows[n].b, rows[n].c, rows[n].d, 0L);
    if (answered(result, "done") == ESCAPED) code = ESCAPED;
  }
  return code;
}
