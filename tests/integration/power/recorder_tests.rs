//! The recorder's log is complete.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};

use super::log::{Event, Log};
use super::workload::begin_log;
use crate::support::daemon::{BINARY, Daemon};
use crate::support::record_disk::Recorder;
use crate::support::skip::skipped;

/// A missing write makes the states wrong; so does a sync that never happened.
#[test]
fn the_recorder_sees_the_calls_that_strace_sees() {
    const CALLS: &str = "write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,syncfs,msync,mmap,rename,renameat,renameat2,\
        link,linkat,symlink,symlinkat,unlink,unlinkat,rmdir,mkdir,mkdirat,truncate,ftruncate,copy_file_range,sendfile,\
        splice,io_uring_enter";
    match Command::new("strace").args(["-f", "-qq", "-e", "trace=none", "true"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            return skipped(format!("strace cannot trace here: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Err(error) => return skipped(format!("strace: {error}")),
    }
    let recorder = Recorder::build();
    let mut daemon = Daemon::prepare(&[]);
    let (recorded, traced) = (daemon.state.path().join("recorded"), daemon.state.path().join("traced"));
    recorder.arm(&mut daemon, &recorded);
    drop(begin_log(&recorded, &daemon.state_dir()));
    let mut strace = Command::new("strace");
    daemon.settings_for(&mut strace);
    strace.args(["-f", "-y", "-qq", "-e", "signal=none", "-e", &format!("trace={CALLS}"), "-o"]).arg(&traced);
    strace.arg("-E").arg(format!("LD_PRELOAD={}", recorder.library().display()));
    strace.arg(BINARY).args(["hosts", "add", "a.test"]);
    let output = strace.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let state = daemon.state_dir();
    let state = state.to_str().unwrap();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let traced = std::fs::read_to_string(traced).unwrap();
    for line in traced.lines() {
        let call = line.split_once(' ').and_then(|(_, call)| call.trim_start().split_once('('));
        // Failed calls change nothing. strace may split a call into two lines; the first has the path.
        let Some((call, rest)) = call.filter(|(_, rest)| rest.contains(state) && !rest.contains(") = -1 ")) else {
            continue;
        };
        let is_of_file = rest.split_once('<').is_some_and(|(_, path)| path.starts_with(state));
        let kind = match call {
            "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2" if is_of_file => "write",
            "fsync" | "fdatasync" | "syncfs" if is_of_file => "sync",
            "rename" | "renameat" | "renameat2" => "rename",
            "link" | "linkat" => "link",
            "unlink" | "unlinkat" | "rmdir" => "unlink",
            "mkdir" | "mkdirat" => "mkdir",
            "ftruncate" | "truncate" => "length",
            "mmap" if !rest.contains("PROT_WRITE") || !rest.contains("MAP_SHARED") => continue,
            "write" | "writev" => continue,
            other => panic!("{other} is not recorded: {line}"),
        };
        *seen.entry(kind).or_default() += 1;
    }
    let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
    for event in Log::read(&recorded).events {
        let kind = match event {
            Event::Write { .. } => "write",
            Event::SyncEnd { done, .. } => {
                assert!(done);
                "sync"
            }
            Event::Rename { .. } => "rename",
            Event::Link { .. } => "link",
            Event::Unlink { .. } => "unlink",
            Event::Create { is_directory: true, .. } => "mkdir",
            // O_TRUNC on an existing file would be a `Length` without a call; this command does not do that.
            Event::Length { .. } => "length",
            Event::Create { .. }
            | Event::Extend { .. }
            | Event::Mode { .. }
            | Event::SyncBegin { .. }
            | Event::Mark(_) => {
                continue;
            }
        };
        *counted.entry(kind).or_default() += 1;
    }
    println!("{counted:?}");
    assert_eq!(counted, seen);
    assert!(counted["write"] > 20 && counted["sync"] > 10);
}

/// The recorder cannot see writes to a mapping, so it ends the process.
#[test]
fn a_shared_writable_mapping_is_refused() {
    let recorder = Recorder::build();
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().canonicalize().unwrap().join("state");
    std::fs::create_dir(&state).unwrap();
    let source = directory.path().join("maps.c");
    std::fs::write(
        &source,
        "#include <fcntl.h>\n#include <sys/mman.h>\n#include <unistd.h>\n\
         int main(int count, char **names) {\n\
         int fd = open(names[1], O_RDWR | O_CREAT, 0600);\n\
         ftruncate(fd, 4096);\n\
         return mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED;\n}\n",
    )
    .unwrap();
    let program = directory.path().join("maps");
    assert!(Command::new("cc").arg("-w").arg("-o").arg(&program).arg(&source).status().unwrap().success());
    let run = |file: &std::path::Path| {
        let mut command = Command::new(&program);
        command.env("LD_PRELOAD", recorder.library()).env("RECORD_DIRECTORY", &state);
        command.env("RECORD_LOG", directory.path().join("log")).arg(file).status().unwrap()
    };
    assert!(run(&directory.path().join("elsewhere")).success());
    assert!(!run(&state.join("file")).success());
    let log = directory.path().join("log");
    assert!(std::panic::catch_unwind(|| Log::read(&log)).is_err());
}
