use std::time::Duration;

use super::super::HomeFile;
use super::*;

fn plan() -> Plan {
    let file = |path: &str, content: &str| HomeFile { path: path.into(), content: Zeroizing::new(content.into()) };
    Plan {
        program: "/usr/bin/codex".into(),
        arguments: vec!["exec".into()],
        environment: vec![("HOME".into(), HOME.into())],
        ca_bundle: Some("/etc/ssl/certs/ca-certificates.crt".into()),
        home: vec![file(".codex/auth.json", "a login"), file(".codex/config.toml", "")],
        watched: ".codex/auth.json".into(),
        limits: Limits { time: Duration::from_secs(60), ..Limits::default() },
        cgroup: None,
        only_build: false,
    }
}

fn launch(ids: Ids) -> Launch {
    Launch { ids, program: "/opt/codex".into(), program_size: 1 << 20, ca_bundle: Some("/usr/share/ca.crt".into()) }
}

fn directory(path: &str, mode: u32) -> Step {
    Step::Directory { path: CString::new(path).unwrap(), mode }
}

fn bind(from: &str, to: &str, flags: MsFlags) -> Step {
    let strict = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    Step::Bind { from: CString::new(from).unwrap(), to: CString::new(to).unwrap(), flags: strict | flags }
}

fn tmpfs(path: &str, owner: u32) -> Step {
    let options = format!("mode=0700,uid={owner},gid={owner},size=67108864,nr_inodes=4096");
    Step::Tmpfs { path: CString::new(path).unwrap(), options: CString::new(options).unwrap() }
}

fn sysctl(name: &str, value: &'static [u8]) -> Step {
    Step::Sysctl { path: CString::new(format!("/old/proc/sys/net/ipv4/{name}")).unwrap(), value }
}

fn file(path: &str, content: &str, mode: u32) -> Step {
    Step::File { path: CString::new(path).unwrap(), content: Content(Zeroizing::new(content.into())), mode }
}

/// The complete list for a program that runs as `owner`; `becomes` is the step that switches to this user.
fn whole(owner: u32, becomes: Option<Step>) -> Vec<Step> {
    let limit = |resource, value| Step::Limit { resource, value };
    let device = |path: &str| bind(&format!("/old{path}"), path, MsFlags::MS_NOEXEC);
    let before = vec![
        Step::PrivateMounts,
        Step::NewRoot,
        directory("/bin", 0o755),
        bind("/old/opt/codex", "/bin/codex", MsFlags::MS_NODEV),
        directory("/etc", 0o755),
        file("/etc/resolv.conf", "options timeout:0 attempts:1\n", 0o444),
        directory("/etc/ssl", 0o755),
        directory("/etc/ssl/certs", 0o755),
        bind("/old/usr/share/ca.crt", "/etc/ssl/certs/ca-certificates.crt", MsFlags::MS_NODEV | MsFlags::MS_NOEXEC),
        directory("/dev", 0o755),
        device("/dev/null"),
        device("/dev/full"),
        device("/dev/random"),
        device("/dev/urandom"),
        directory("/proc", 0o755),
        directory("/proc/self", 0o755),
        Step::Symlink { target: c"/bin/codex".to_owned(), path: c"/proc/self/exe".to_owned() },
        directory("/home", 0o755),
        directory("/home/probe", 0o755),
        tmpfs("/home/probe", owner),
        directory("/tmp", 0o755),
        tmpfs("/tmp", owner),
        sysctl("tcp_rmem", b"4096 131072 262144"),
        sysctl("tcp_wmem", b"4096 16384 262144"),
        Step::LeaveOldRoot,
        Step::ReadOnlyRoot,
        Step::Names,
        Step::Loopback,
        Step::Listen,
        Step::NullInput,
        Step::EmptyBoundingSet,
        Step::LockSecurebits,
    ];
    let after = vec![
        Step::NoCapabilities,
        directory("/home/probe/.codex", 0o700),
        file("/home/probe/.codex/auth.json", "a login", 0o600),
        file("/home/probe/.codex/config.toml", "", 0o600),
        Step::Enter { path: c"/home/probe".to_owned() },
        Step::Processors(4),
        Step::Nice,
        limit(Resource::RLIMIT_AS, (768 << 20) + (1 << 20) + (64 << 20)),
        limit(Resource::RLIMIT_DATA, 768 << 20),
        limit(Resource::RLIMIT_NPROC, 256),
        limit(Resource::RLIMIT_NOFILE, 128),
        limit(Resource::RLIMIT_FSIZE, 64 << 20),
        limit(Resource::RLIMIT_CPU, 60),
        limit(Resource::RLIMIT_CORE, 0),
        limit(Resource::RLIMIT_MEMLOCK, 0),
        limit(Resource::RLIMIT_MSGQUEUE, 0),
        limit(Resource::RLIMIT_SIGPENDING, 64),
        Step::NoNewPrivileges,
        Step::NotDumpable,
        Step::DieWithParent,
        Step::Filter(filter::compile(Filtered::FirstProcess).unwrap()),
    ];
    [before, becomes.into_iter().collect(), after].concat()
}

fn planned(plan: &Plan, launch: &Launch) -> Vec<Step> {
    steps(plan, launch).unwrap().into_iter().map(|planned| planned.step).collect()
}

#[test]
fn an_unprivileged_user_builds_it_as_whom_the_program_runs() {
    assert_eq!(planned(&plan(), &launch(Ids::User { uid: 993, gid: 994 })), whole(SOMEBODY, None));
}

#[test]
fn root_builds_it_and_becomes_nobody_before_the_home_is_written() {
    let becomes = Step::Become { uid: Uid::from_raw(65_534), gid: Gid::from_raw(65_534) };
    assert_eq!(planned(&plan(), &launch(Ids::Root)), whole(NOBODY, Some(becomes)));
}

#[test]
fn without_certificates_there_is_no_place_for_them() {
    let without = Launch { ca_bundle: None, ..launch(Ids::Root) };
    let paths = format!("{:?}", planned(&plan(), &without));
    assert!(!paths.contains("/etc/ssl"), "{paths}");
}

#[test]
fn ids_outside_are_one_user_s_or_root_s_and_nobody_s() {
    let user = Ids::User { uid: 993, gid: 994 };
    assert_eq!(user.maps(), ("1000 993 1\n".to_owned(), "1000 994 1\n".to_owned()));
    let root = "0 0 1\n65534 65534 1\n".to_owned();
    assert_eq!(Ids::Root.maps(), (root.clone(), root));
}

#[test]
fn directories_of_the_home_are_made_once_and_from_the_top() {
    let mut plan = plan();
    plan.home[1].path = ".codex/a/b/c".into();
    plan.watched = "x/y".into();
    let made: Vec<CString> = planned(&plan, &launch(Ids::Root))
        .into_iter()
        .filter_map(|step| match step {
            Step::Directory { path, mode: 0o700 } => Some(path),
            _ => None,
        })
        .collect();
    assert_eq!(
        made,
        [c"/home/probe/.codex", c"/home/probe/.codex/a", c"/home/probe/.codex/a/b", c"/home/probe/x",]
            .map(ToOwned::to_owned)
    );
}

#[test]
fn a_plan_that_leaves_the_home_is_refused() {
    for path in ["../x", "/etc/passwd", "", "a/../../b", ".", "a\0b"] {
        let mut with_file = plan();
        with_file.home[0].path = path.into();
        assert!(steps(&with_file, &launch(Ids::Root)).is_err(), "{path:?}");
        let mut with_watch = plan();
        with_watch.watched = path.into();
        assert!(steps(&with_watch, &launch(Ids::Root)).is_err(), "{path:?}");
    }
}

#[test]
fn no_login_is_in_what_is_printed_of_steps() {
    let printed = format!("{:?}", steps(&plan(), &launch(Ids::Root)).unwrap());
    assert!(!printed.contains("a login"), "{printed}");
    assert!(!printed.contains(&format!("{:?}", b"a login")), "{printed}");
}
