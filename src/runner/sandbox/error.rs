//! Errors of a sandbox, for people: the part that this machine does not provide, and the command that enables it.

use std::fmt::{self, Display};
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

/// A part of the isolation. Its number is sent over the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SandboxPart {
    Plan = 1,
    Program,
    Namespaces,
    Ids,
    Cgroup,
    Mounts,
    Names,
    Network,
    Home,
    Privileges,
    Limits,
    Filter,
}

impl SandboxPart {
    pub(super) const ALL: [Self; 12] = [
        Self::Plan,
        Self::Program,
        Self::Namespaces,
        Self::Ids,
        Self::Cgroup,
        Self::Mounts,
        Self::Names,
        Self::Network,
        Self::Home,
        Self::Privileges,
        Self::Limits,
        Self::Filter,
    ];
}

impl Display for SandboxPart {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Program => "program",
            Self::Namespaces => "namespaces",
            Self::Ids => "user and group ids of a user namespace",
            Self::Cgroup => "cgroup",
            Self::Mounts => "file systems of a mount namespace",
            Self::Names => "host name of a uts namespace",
            Self::Network => "network of a net namespace",
            Self::Home => "home",
            Self::Privileges => "giving up of privileges",
            Self::Limits => "limits",
            Self::Filter => "filter of system calls",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("this machine gives a sandbox no {part}: {cause}; {remedy}")]
    Unavailable { part: SandboxPart, cause: String, remedy: String },
    #[error("cannot run {program} in a sandbox: {cause}; {remedy}", program = program.display())]
    Program { program: PathBuf, cause: String, remedy: String },
    #[error("the sandbox cannot be made as planned: {0}")]
    Plan(String),
    #[error("cannot start {launcher} as the launcher of a sandbox: {cause}", launcher = launcher.display())]
    Start { launcher: PathBuf, cause: io::Error },
    #[error(
        "the sandbox died before it reported how its program ended; look for the OOM killer in the kernel's log (dmesg)"
    )]
    Died,
    #[error("the sandbox was not built within {0} seconds; the machine may be overloaded: try again")]
    Slow(u64),
    #[error("the sandbox sent a message that the daemon cannot read; this is a bug in codex-authd")]
    Nonsense,
    #[error("the connection to the sandbox failed: {0}")]
    Io(#[from] io::Error),
}

impl SandboxError {
    /// Builds the error from the failure that the sandbox reported.
    pub(super) fn failed(part: SandboxPart, errno: i32, what: &str, program: PathBuf) -> Self {
        let errno = Errno::from_raw(errno);
        let cause = format!("cannot {what}: {}", errno.desc());
        match part {
            SandboxPart::Plan => Self::Plan(what.to_owned()),
            SandboxPart::Home => Self::Plan(cause),
            SandboxPart::Program => Self::Program { program, cause, remedy: of_program(errno).to_owned() },
            part => Self::Unavailable { part, cause, remedy: remedy(part, errno, &Kernel::here()) },
        }
    }
}

fn of_program(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOENT => "it must be there, and need no loader or library: name the Codex binary itself, not a script",
        Errno::EACCES | Errno::EPERM => {
            "every user must be allowed to read and execute it, and it must not be on a file system mounted noexec"
        }
        Errno::ENOEXEC => "it must be a program for this processor",
        Errno::ENOMEM | Errno::EAGAIN => "raise its limits of memory and processes",
        _ => "check that it is a statically linked program that every user may read and execute",
    }
}

/// The kernel's settings for namespaces.
#[derive(Default)]
pub(super) struct Kernel {
    /// The sysctls that exist on this machine.
    pub values: Vec<(&'static str, u64)>,
}

/// A sysctl, a test for a wrong value, and a right value.
type Sysctl = (&'static str, fn(u64) -> bool, &'static str);

const SYSCTLS: [Sysctl; 9] = [
    ("kernel.unprivileged_userns_clone", |value| value == 0, "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", |value| value == 1, "0"),
    ("user.max_user_namespaces", |value| value == 0, "10000"),
    ("user.max_mnt_namespaces", |value| value == 0, "10000"),
    ("user.max_pid_namespaces", |value| value == 0, "10000"),
    ("user.max_net_namespaces", |value| value == 0, "10000"),
    ("user.max_ipc_namespaces", |value| value == 0, "10000"),
    ("user.max_uts_namespaces", |value| value == 0, "10000"),
    ("user.max_cgroup_namespaces", |value| value == 0, "10000"),
];

impl Kernel {
    pub(super) fn here() -> Self {
        let read = |name: &str| -> Option<u64> {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            std::fs::read_to_string(path).ok()?.trim().parse().ok()
        };
        let values = SYSCTLS.iter().filter_map(|(name, ..)| Some((*name, read(name)?))).collect();
        Self { values }
    }

    /// Commands that correct the sysctls with a wrong value.
    fn commands(&self) -> Vec<String> {
        let wrong = |name: &str, is_wrong: fn(u64) -> bool| {
            self.values.iter().any(|(known, value)| *known == name && is_wrong(*value))
        };
        let commands = SYSCTLS.iter().filter(|(name, is_wrong, _)| wrong(name, *is_wrong));
        commands.map(|(name, _, right)| format!("sysctl -w {name}={right}")).collect()
    }
}

/// The next step for the operator.
pub(super) fn remedy(part: SandboxPart, errno: Errno, kernel: &Kernel) -> String {
    let commands = kernel.commands();
    let refused = matches!(errno, Errno::EPERM | Errno::EACCES | Errno::ENOSPC | Errno::EUSERS);
    if refused && !commands.is_empty() {
        let mut text = format!("allow it: `{}` (and in /etc/sysctl.d, to keep it)", commands.join("; "));
        if commands.iter().any(|command| command.contains("apparmor")) {
            text.push_str(", or give /usr/bin/codex-authd an AppArmor profile with `userns,`");
        }
        return text;
    }
    match (part, errno) {
        (SandboxPart::Namespaces, Errno::ENOSPC | Errno::EUSERS) => {
            "too many namespaces are in use: raise user.max_*_namespaces with sysctl".to_owned()
        }
        (
            SandboxPart::Namespaces
            | SandboxPart::Ids
            | SandboxPart::Mounts
            | SandboxPart::Network
            | SandboxPart::Names,
            Errno::EPERM | Errno::EACCES,
        ) => {
            "something around the daemon refuses it: in a systemd unit RestrictNamespaces= or SystemCallFilter=, in a \
             container its seccomp or AppArmor profile (`--security-opt seccomp=unconfined`), in a chroot the chroot"
                .to_owned()
        }
        (_, Errno::EINVAL | Errno::ENOSYS) => {
            "a kernel of 5.10 or later with all namespaces and seccomp is needed".to_owned()
        }
        (SandboxPart::Cgroup, _) => {
            "delegate a cgroup (`Delegate=memory pids` in the unit), or start the daemon again".to_owned()
        }
        (_, Errno::ENOMEM) => "the machine is out of memory: free some, then try again".to_owned(),
        _ => "`codex-authd runner doctor` shows what this machine can isolate".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(part: SandboxPart, errno: Errno, values: &[(&'static str, u64)]) -> String {
        remedy(part, errno, &Kernel { values: values.to_vec() })
    }

    #[test]
    fn what_the_kernel_was_told_to_refuse_is_named_with_the_command_that_mends_it() {
        let debian = told(SandboxPart::Namespaces, Errno::EPERM, &[("kernel.unprivileged_userns_clone", 0)]);
        assert!(debian.contains("`sysctl -w kernel.unprivileged_userns_clone=1`"), "{debian}");
        let none = told(SandboxPart::Namespaces, Errno::ENOSPC, &[("user.max_user_namespaces", 0)]);
        assert!(none.contains("`sysctl -w user.max_user_namespaces=10000`"), "{none}");
        // Ubuntu permits the namespace, and refuses the mounts in it.
        let ubuntu = [("kernel.apparmor_restrict_unprivileged_userns", 1), ("user.max_user_namespaces", 96551)];
        let ubuntu = told(SandboxPart::Mounts, Errno::EACCES, &ubuntu);
        assert!(ubuntu.contains("AppArmor profile with `userns,`"), "{ubuntu}");
        assert!(!ubuntu.contains("max_user_namespaces"), "what is not switched off is not named: {ubuntu}");
    }

    #[test]
    fn what_refuses_from_outside_the_kernel_is_told_apart() {
        let fine = [("user.max_user_namespaces", 96551)];
        let around = told(SandboxPart::Namespaces, Errno::EPERM, &fine);
        assert!(around.contains("RestrictNamespaces=") && around.contains("seccomp"), "{around}");
        assert!(told(SandboxPart::Filter, Errno::EINVAL, &fine).contains("a kernel of 5.10 or later"));
        assert!(told(SandboxPart::Cgroup, Errno::EACCES, &fine).contains("Delegate=memory pids"));
    }
}
